"""`rlhf-lab sample`: sample responses to prompts from the command line, a file, the Hub or a text world.

Without --out the responses are printed. With --out FILE they are written as JSON lines, one response per line. The file
is named FILE.part until it is complete. An interrupted run continues with --resume and gives the same file, because the
random numbers of a batch depend only on the seed and on the index of the batch.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
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
from rlhf_lab.data.conversations import write_turns
from rlhf_lab.data.readers import Chat
from rlhf_lab.data.sft import tokenise_prompts
from rlhf_lab.errors import Count, LabError, Seed, Temperature, check_paths, check_settings, check_utf8, refuse_unused
from rlhf_lab.policies.base import Policy, Reward
from rlhf_lab.policies.end_tokens import find_end_tokens, strip_end_token
from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.policies.loading import (
    check_model_available,
    check_policy,
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
from rlhf_lab.training.lock import FolderLock


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Sample responses from a causal language model."""

    model: str
    """Model: a folder, a .gguf file, lab-gpt2, lab-pythia, smollm2, or a name on the Hub."""
    prompts: Annotated[tuple[str, ...], tyro.conf.arg(name="prompt")] = ()
    """One or more prompts, each in quotes."""
    data: str | None = None
    """Source of prompts: a file, a data set on the Hub, or world:NAME."""
    out: Path | None = None
    """Output file of JSON lines. Without it the responses are printed."""
    config: Path | None = None
    """YAML file with any of these settings. Options of the command line override it."""
    num_samples: Count = 1
    """Number of responses to each prompt."""
    temperature: Temperature = 1.0
    """Sampling temperature, which divides the logits. Near 0 the most likely tokens are sampled."""
    top_k: Count | None = None
    """Sample only from the k most likely tokens."""
    sampler: Sampler = "lab"
    """Implementation of sampling. lab: the lab's own. graphs: the lab's own with CUDA graphs, on a GPU (experimental).
    vllm: the package vllm, on Linux with a GPU (experimental). vllm samples other responses from the same
    distribution."""
    chat: Chat = "auto"
    """Which prompts the model's chat template writes. auto: conversations and dialogues of AnthropicHH's format in
    `data`. on: every prompt, as a turn of the user. off: no prompt. Without a template, auto is off."""
    reward: str | None = None
    """Reward that scores the responses: the folder of a reward model, or gold (gold:NAME) for a world's gold reward."""
    max_prompt_tokens: Count | None = None
    """Maximum length of a prompt. Longer prompts lose their beginning. Default: the longest prompt of the world, or 256
    tokens if the context has room for them."""
    max_response_tokens: Count | None = None
    """Maximum length of a response, with its end token. Default: as for prompts."""
    limit: Count | None = None
    """Use only this number of prompts, the first ones."""
    batch_size: Count = 16
    """Number of prompts that are processed at the same time."""
    seed: Seed = 0
    """Random seed of sampling."""
    model_revision: str | None = None
    """Branch, tag or commit of the model on the Hub."""
    data_revision: str | None = None
    """Branch, tag or commit of the data set on the Hub."""
    data_split: str = "test"
    """Split of the data set, of the world, or of a .json file with several splits."""
    data_folder: str | None = None
    """Folder inside the data set on the Hub."""
    device: str = "auto"
    """Device: cpu, cuda, cuda:1, …, or auto, which uses a GPU if there is one."""
    resume: bool = False
    """Continue the unfinished file `out`."""
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.data is None:
            of_data = ["limit", "data_revision", "data_split", "data_folder"]
            refuse_unused(self, of_data, "without data, to which it belongs")

    @property
    def world(self) -> str | None:
        """Name of the text world, or None if the prompts are not from a world."""
        return self.data.removeprefix(WORLD) if self.data is not None and self.data.startswith(WORLD) else None


def sample(settings: Sample) -> list[dict[str, Any]]:
    """Run the command.

    Returns:
        a row for each new response: prompt, response, sample (the index of the response), tokens, ended, and reward if
        a reward was given.

    Raises:
        LabError: there are no prompts or two sources of them, a setting cannot be used, the file exists already or is
            being written, or data, model or reward cannot be loaded.
    """
    settings = check_paths(settings)
    show_progress_bars(settings.progress)
    _check(settings)
    out = settings.out
    if out is not None:
        _check_file(settings, out)
    device = pick_device(settings.device)
    check_policy(settings.model)
    check_model_available(settings.model, settings.model_revision)
    tokenizer = load_tokenizer(settings.model, settings.model_revision)
    limits = token_limits(settings, load_config(settings.model, settings.model_revision), tokenizer)
    prompts, texts = _prompts(settings, tokenizer, limits)
    model, tokenizer = load_language_model(settings.model, device, revision=settings.model_revision)
    graphs = settings.sampler == "graphs"
    ends = find_end_tokens(model, tokenizer)
    policy = LanguageModelPolicy(model, ends[0], limits[1], len(tokenizer), tokenizer, graphs, ends)
    reward = None if settings.reward is None else load_reward(settings, policy, tokenizer)
    sampler = VllmSampler.load(policy, dtype="float32") if settings.sampler == "vllm" else policy
    rows: list[dict[str, Any]] = []
    with _locked(out) if out is not None else nullcontext():
        if out is not None:
            _check_file(settings, out)  # another run may have written it in the meantime
        done = _claim(settings, out) if out is not None else 0
        try:
            for batch in _batches(settings, sampler, policy, reward, prompts, texts, done):
                rows += batch
                _write_rows(batch, out)
        except KeyboardInterrupt as stop:
            if out is not None and not str(stop):
                stop.args = (f"Stopped. The responses so far are in {_part(out)}. Use --resume to continue.",)
            raise
        if out is not None:
            if out.exists():
                raise LabError(f"Another program has written {out}. The sampled responses are in {_part(out)}.")
            os.replace(_part(out), out)
    return rows


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Lock the output file, so that two runs cannot write or resume it at the same time."""
    folder = out.with_name(f".{out.name}.lock")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(folder)
    except LabError as error:
        raise LabError(str(error).replace(str(folder), str(out)).replace("output folder", "output file")) from None
    except OSError as error:
        raise LabError(f"{out} cannot be written ({error.strerror or error}). Give another name.") from None
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):
            folder.rmdir()


def _check(settings: Sample) -> None:
    if (settings.data is None) == (not settings.prompts):
        raise LabError('Give prompts with --prompt "…" "…" or with --data FILE, but not with both.')
    if settings.data is not None:
        check_data(settings)
    if settings.sampler == "vllm":
        check_vllm_installed()
    elif settings.sampler == "graphs":
        check_cuda_device(pick_device(settings.device))
    if settings.resume and settings.out is None:
        raise LabError("--resume needs --out, the file to continue.")
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
        raise LabError(f"Prompt {empty} of the command line is empty. Give it a text.")
    if settings.chat == "on":
        if getattr(tokenizer, "chat_template", None) is None:
            raise LabError(f"{settings.model} has no chat template, so chat cannot be on. Leave it out.")
        texts = [
            write_turns([{"role": "user", "content": text}], tokenizer, f"Prompt {number} of the command line")
            for number, text in enumerate(texts, 1)
        ]
    return tokenise_prompts(texts, tokenizer, limits[0], "the command line")[0], list(settings.prompts)


def _part(out: Path) -> Path:
    """The name of the file while it is not complete."""
    return out.with_name(f"{out.name}.part")


def _settings_file(out: Path) -> Path:
    """The file with the settings that decide the samples."""
    return out.with_name(f"{out.name}.settings.yaml")


def _deciding(settings: Sample) -> dict[str, Any]:
    """The settings that decide the samples."""
    free = {"out", "resume", "config", "progress", "device"}
    return {f.name: yaml_config.plain(getattr(settings, f.name)) for f in fields(settings) if f.name not in free}


def _check_file(settings: Sample, out: Path) -> None:
    """Raise `LabError` if the file exists, or, with --resume, if it was started with other settings."""
    part, record = _part(out), _settings_file(out)
    if not settings.resume:
        for path in (out, part, record):
            if path.exists():
                raise LabError(
                    f"{path} exists already; nothing was changed. Give another name, or --resume to continue the file."
                )
        return
    if not (part.is_file() or out.is_file()) or not record.is_file():
        raise LabError(f"Nothing to resume: `rlhf-lab sample` did not start {out}. Leave --resume out.")
    import yaml

    try:
        before = dict(yaml.safe_load(record.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise LabError(f"{record} is damaged ({str(error).splitlines()[0]}), so {out} cannot be resumed.") from None
    for name, value in _deciding(settings).items():
        if name in before and before[name] != value:
            raise LabError(
                f"{out} was started with {name} = {before[name]!r}, not {value!r}. Resume it with this setting."
            )


def _claim(settings: Sample, out: Path) -> int:
    """Create or reopen the file, and return the number of complete batches in it."""
    part = _part(out)
    if settings.resume:
        if not part.exists():
            os.replace(out, part)
        return _whole_batches(part)
    import yaml

    try:
        part.open("x").close()
    except OSError as error:
        raise LabError(f"{out} cannot be written ({error.strerror or error}). Give another name.") from None
    given = yaml.safe_dump(_deciding(settings), sort_keys=False, allow_unicode=True)
    checkpoint.write_text(_settings_file(out), given)
    return 0


def _whole_batches(part: Path) -> int:
    """Cut the file after its last complete batch, whose last row is marked, and return the number of batches."""
    lines = part.read_bytes().splitlines(keepends=True)
    ends = [number for number, line in enumerate(lines, 1) if line.endswith(b"\n") and b'"last": true' in line]
    keep = ends[-1] if ends else 0
    os.truncate(part, sum(map(len, lines[:keep])))
    return len(ends)


def _batches(
    settings: Sample,
    sampler: Policy,
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
        y = sampler.sample(x, settings.num_samples, generator, settings.temperature, settings.top_k)
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
        # The mark shows, in an interrupted file, that the batch is complete.
        rows[-1]["last"] = True
        yield rows


def _write_rows(rows: list[dict[str, Any]], out: Path | None) -> None:
    if out is not None:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        try:
            checkpoint.append(_part(out), text)
        except LabError as error:
            raise LabError(f"{error} Use --resume to continue after the complete batches.") from None
        return
    for row in rows:
        if row["sample"] == 0:
            print(f"\n=== {row['prompt']}")
        score = f" (reward {row['reward']:.4g})" if "reward" in row else ""
        cut = "" if row["ended"] else " […]"
        print(f"--- {row['sample'] + 1}{score}\n{row['response']}{cut}")
