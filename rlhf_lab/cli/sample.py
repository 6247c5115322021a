"""`rlhf-lab sample`: draw responses from a language model, to prompts of the command line, a file, the Hub or a world.

Without --out they are printed. With it they are written as JSON lines, a response a line, as they come, under the name
FILE.part until the last one is there. What was interrupted goes on with --resume and ends with the same file, for the
draws of a batch are a function of the seed and of the batch's place alone.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from tqdm.auto import tqdm

from rlhf_lab.batch import Tokens
from rlhf_lab.cli import yaml_config
from rlhf_lab.cli.train.data import check_data, load_data, token_limits
from rlhf_lab.cli.train.reward import check_reward, load_reward
from rlhf_lab.cli.train.settings import WORLD, Sampler
from rlhf_lab.data.formats import write_turns
from rlhf_lab.data.sft import tokenise_prompts
from rlhf_lab.errors import Count, LabError, Seed, Temperature, check_paths, check_settings, check_utf8, refuse_unused
from rlhf_lab.policies.base import Policy, Reward
from rlhf_lab.policies.end_tokens import find_end_tokens, strip_end_token
from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.policies.loading import (
    check_model_available,
    load_config,
    load_language_model,
    load_tokenizer,
    pick_device,
    show_progress_bars,
)
from rlhf_lab.policies.transformer.cuda_graph import check_cuda_device
from rlhf_lab.policies.vllm import VllmSampler, check_vllm_installed
from rlhf_lab.randomness import Stream
from rlhf_lab.training import checkpoint, seeded


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Draw responses from a causal language model."""

    model: str
    """A folder, a .gguf file, lab-gpt2, lab-pythia, smollm2, or a name on the Hub."""
    prompts: Annotated[tuple[str, ...], tyro.conf.arg(name="prompt")] = ()
    """Prompts, each in quotes."""
    data: str | None = None
    """Prompts from a file, a data set on the Hub, or world:NAME."""
    out: Path | None = None
    """File to write, JSON lines; without it the responses are printed."""
    config: Path | None = None
    """YAML file with any of these settings; the command line wins over it."""
    num_samples: Count = 1
    """Responses to each prompt."""
    temperature: Temperature = 1.0
    """Divides the logits. Near 0 the likeliest tokens are drawn."""
    top_k: Count | None = None
    """Draw among the k likeliest tokens only."""
    sampler: Sampler = "lab"
    """Who draws. graphs (a GPU): the lab, a step's kernels recorded once and replayed as a CUDA graph. vllm (package
    vllm, Linux and a GPU) draws others than the lab from the same distribution."""
    chat: bool = False
    """Prompts of the command line are a user's turn, written by the model's chat template."""
    reward: str | None = None
    """Score the responses by this: a reward model's folder, or gold (gold:NAME) of a world."""
    max_prompt_tokens: Count | None = None
    """Longer prompts lose their beginning. By default 256, the world's longest, or what the context leaves."""
    max_response_tokens: Count | None = None
    """Longest response, the end token counted. Default as for prompts."""
    limit: Count | None = None
    """The first so many prompts of the data alone."""
    batch_size: Count = 16
    """Prompts at a time."""
    seed: Seed = 0
    """Of the draws."""
    model_revision: str | None = None
    """Branch, tag or commit of a model on the Hub."""
    data_revision: str | None = None
    """Branch, tag or commit of a data set on the Hub."""
    data_split: str = "test"
    """Split of a data set on the Hub, of a world, or of a .json file that has lists by split."""
    data_folder: str | None = None
    """Folder within a data set on the Hub."""
    device: str = "auto"
    """cpu, cuda, cuda:1, …; auto takes a GPU if there is one."""
    resume: bool = False
    """Go on with the file in `out`."""
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.data is None:
            told = ["limit", "data_revision", "data_split", "data_folder"]
            refuse_unused(self, told, "without data, to which it belongs")
        else:
            refuse_unused(self, ["chat"], "with data; it is for prompts of the command line")

    @property
    def world(self) -> str | None:
        """The text world's name, where the data come from one."""
        return self.data.removeprefix(WORLD) if self.data is not None and self.data.startswith(WORLD) else None


def sample(settings: Sample) -> list[dict[str, Any]]:
    """Run the command.

    Returns:
        a row for each response that was drawn now: prompt, response, sample (its number), tokens, ended, and reward
        where one was asked for.

    Raises:
        LabError: no prompts, or from two places; numbers that cannot be used; a file that is there already; as the
            loaders of data, model and reward.
    """
    settings = check_paths(settings)
    show_progress_bars(settings.progress)
    _check(settings)
    out = settings.out
    if out is not None:
        _check_file(settings, out)
    device = pick_device(settings.device)
    check_model_available(settings.model, settings.model_revision)
    tokenizer = load_tokenizer(settings.model, settings.model_revision)
    limits = token_limits(settings, load_config(settings.model, settings.model_revision), tokenizer)
    prompts, texts = _prompts(settings, tokenizer, limits)
    model, tokenizer = load_language_model(settings.model, device, revision=settings.model_revision)
    graphs = settings.sampler == "graphs"
    ends = find_end_tokens(model, tokenizer)
    policy = LanguageModelPolicy(model, ends[0], limits[1], len(tokenizer), tokenizer, graphs, ends)
    reward = None if settings.reward is None else load_reward(settings, policy, tokenizer)
    drawing = VllmSampler.load(policy, dtype="float32") if settings.sampler == "vllm" else policy
    done = _claim(settings, out) if out is not None else 0
    rows: list[dict[str, Any]] = []
    try:
        for batch in _batches(settings, drawing, policy, reward, prompts, texts, done):
            rows += batch
            _put(batch, out)
    except KeyboardInterrupt as stop:
        if out is not None and not str(stop):
            stop.args = (f"Stopped. What was drawn is in {_part(out)}; run again with --resume to go on.",)
        raise
    if out is not None:
        if out.exists():
            raise LabError(f"{out} has been made by another program meanwhile. What was drawn is in {_part(out)}.")
        os.replace(_part(out), out)
    return rows


def _check(settings: Sample) -> None:
    if (settings.data is None) == (not settings.prompts):
        raise LabError('Give prompts in one of two ways: --prompt "…" "…", or --data FILE.')
    if settings.data is not None:
        check_data(settings)
    if settings.sampler == "vllm":
        check_vllm_installed()
    elif settings.sampler == "graphs":
        check_cuda_device(pick_device(settings.device))
    if settings.resume and settings.out is None:
        raise LabError("--resume needs --out, the file to go on with.")
    check_reward(settings)


def _prompts(settings: Sample, tokenizer: Any, limits: tuple[int, int]) -> tuple[Tokens, list[str]]:
    if settings.data is not None:
        data = load_data(settings, "prompts", tokenizer, limits)
        assert data.prompts is not None
        if settings.progress:
            print("\n".join(data.said), file=sys.stderr)
        return data.prompts, tokenizer.batch_decode(data.prompts.tolist(), skip_special_tokens=True)
    texts = [check_utf8(text, f"Prompt {place} of the command line") for place, text in enumerate(settings.prompts, 1)]
    empty = next((number for number, text in enumerate(texts, 1) if not text.strip()), None)
    if empty is not None:
        raise LabError(f"Prompt {empty} of the command line is empty.")
    if settings.chat:
        if getattr(tokenizer, "chat_template", None) is None:
            raise LabError(f"{settings.model} has no chat template: leave --chat out.")
        texts = [
            write_turns([{"role": "user", "content": text}], tokenizer, f"Prompt {number} of the command line")
            for number, text in enumerate(texts, 1)
        ]
    return tokenise_prompts(texts, tokenizer, limits[0], "the command line")[0], list(settings.prompts)


def _part(out: Path) -> Path:
    """The file's name while it is not whole."""
    return out.with_name(f"{out.name}.part")


def _beside(out: Path) -> Path:
    return out.with_name(f"{out.name}.settings.yaml")


def _deciding(settings: Sample) -> dict[str, Any]:
    """The settings that decide what is drawn."""
    free = {"out", "resume", "config", "progress", "device"}
    return {f.name: yaml_config.plain(getattr(settings, f.name)) for f in fields(settings) if f.name not in free}


def _check_file(settings: Sample, out: Path) -> None:
    """Refuse a file that is there, or, to resume, one that these settings did not begin."""
    part, beside = _part(out), _beside(out)
    if not settings.resume:
        for path in (out, part, beside):
            if path.exists():
                raise LabError(
                    f"{path} is there already; nothing was changed. Give another name, or --resume to go on with it."
                )
        return
    if not (part.is_file() or out.is_file()) or not beside.is_file():
        raise LabError(f"Nothing to resume: {out} is not a file that `rlhf-lab sample` began.")
    import yaml

    try:
        before = dict(yaml.safe_load(beside.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise LabError(f"{beside} is damaged ({str(error).splitlines()[0]}); {out} cannot be resumed.") from None
    for name, value in _deciding(settings).items():
        if name in before and before[name] != value:
            raise LabError(f"{out} was begun with {name} = {before[name]!r}, not {value!r}. Resume it with that.")


def _claim(settings: Sample, out: Path) -> int:
    """Take the file; returns how many whole batches it holds already."""
    part = _part(out)
    if settings.resume:
        if not part.exists():
            os.replace(out, part)
        return _whole_batches(part)
    import yaml

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part.open("x").close()
    except FileExistsError:
        raise LabError(f"{part} is there already: another run began it. Give another name.") from None
    except OSError as error:
        raise LabError(f"{out} cannot be written ({error.strerror or error}). Give another name.") from None
    given = yaml.safe_dump(_deciding(settings), sort_keys=False, allow_unicode=True)
    checkpoint.write_text(_beside(out), given)
    return 0


def _whole_batches(part: Path) -> int:
    """Cut the file after its last whole batch; a batch is known by the number of its last row's prompt."""
    lines = part.read_bytes().splitlines(keepends=True)
    ends = [number for number, line in enumerate(lines, 1) if line.endswith(b"\n") and b'"last": true' in line]
    keep = ends[-1] if ends else 0
    os.truncate(part, sum(map(len, lines[:keep])))
    return len(ends)


def _batches(
    settings: Sample,
    drawing: Policy,
    policy: LanguageModelPolicy,
    reward: Reward | None,
    prompts: Tokens,
    texts: list[str],
    done: int,
) -> Iterator[list[dict[str, Any]]]:
    starts = range(done * settings.batch_size, len(prompts), settings.batch_size)
    tokenizer = policy.tokenizer
    for start in tqdm(starts, desc="sample", leave=False, disable=not settings.progress or len(starts) < 2):
        x = prompts[start : start + settings.batch_size]
        generator = seeded(settings.seed, Stream.COMMAND_SAMPLE, start, device=policy.device)
        y = drawing.sample(x, settings.num_samples, generator, settings.temperature, settings.top_k)
        with torch.no_grad():
            scores = None if reward is None else reward(x, y).tolist()
        rows = []
        for b, group in enumerate(y.tolist()):
            for g, ids in enumerate(group):
                row = {
                    "prompt": texts[start + b],
                    "response": tokenizer.decode(strip_end_token(ids, policy.end_tokens), skip_special_tokens=True),
                    "sample": g,
                    "tokens": len(ids),
                    "ended": bool(ids) and ids[-1] in policy.end_tokens,
                }
                rows.append(row if scores is None else row | {"reward": scores[b][g]})
        # The mark by which a file that was cut off is known to be whole up to here.
        rows[-1]["last"] = True
        yield rows


def _put(rows: list[dict[str, Any]], out: Path | None) -> None:
    if out is not None:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        try:
            checkpoint.append(_part(out), text)
        except LabError as error:
            raise LabError(f"{error} With --resume it goes on behind the batches before.") from None
        return
    for row in rows:
        if row["sample"] == 0:
            print(f"\n=== {row['prompt']}")
        score = f" (reward {row['reward']:.4g})" if "reward" in row else ""
        cut = "" if row["ended"] else " […]"
        print(f"--- {row['sample'] + 1}{score}\n{row['response']}{cut}")
