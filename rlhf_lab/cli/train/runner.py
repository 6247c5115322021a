"""One run of `rlhf-lab train`, whatever the method: check, load, train, save.

What can be known to be wrong is said first: the settings, the output folder, the data, the model's name and its
context. Only then is the model loaded. The output folder afterwards:

    run.json         settings, and the data's SHA-256
    settings.yaml    the same, as --config takes them
    history.jsonl    loss and what else the method watches
    checkpoints/     from which --resume goes on (of methods in rounds: a folder a round)
    model/           weights and tokenizer; from_pretrained reads them
    pairs/           preference pairs, where the method made some
    README.md        what was done with what
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.cli import yaml_config
from rlhf_lab.cli.train import model_card, sampling_batch
from rlhf_lab.cli.train.data import Data, Kind, check_data, data_mark, draw_pairs, load_data, token_limits
from rlhf_lab.cli.train.reward import check_reward, load_reward, start_of
from rlhf_lab.cli.train.settings import Common, PairSettings, record_of
from rlhf_lab.errors import LabError, check_paths
from rlhf_lab.policies import hub_lookup
from rlhf_lab.policies.base import Policy, Reward
from rlhf_lab.policies.end_tokens import find_end_tokens
from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.policies.loading import (
    check_model_available,
    check_same_vocabulary,
    load_config,
    load_language_model,
    load_tokenizer,
    pick_device,
    show_progress_bars,
)
from rlhf_lab.policies.lora import AdapterReference, LoraPolicy, check_lora_rank, with_lora
from rlhf_lab.policies.reference_cache import cached_reference_log_probs
from rlhf_lab.policies.transformer.cuda_graph import check_cuda_device
from rlhf_lab.policies.vllm import VllmSampler, check_vllm_installed
from rlhf_lab.training import Training, checkpoint, distributed, memory
from rlhf_lab.training.lock import FolderLock

History = list[dict[str, float]]

POLICY = "`model/` loads with `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`."


class Job:
    """What a method's `fit` works with.

    Attributes:
        settings: the command's.
        method: the command's word.
        tokenizer: the model's.
        policy: π_θ, to be trained in place.
        data: of the kind that the method asked for.
        limits: the longest prompt and response, in tokens.
        device: where the policy lies.
        said: what the card shall say about the data.
    """

    def __init__(
        self,
        settings: Any,
        method: str,
        policy: LanguageModelPolicy,
        tokenizer: Any,
        data: Data,
        limits: tuple[int, int],
    ) -> None:
        self.settings, self.method, self.policy, self.tokenizer, self.data = settings, method, policy, tokenizer, data
        self.limits = limits
        self.device = policy.device
        self.said = list(data.said)

    def reference(self) -> Policy:
        """π_ref, frozen: the model that `--reference` names, or the policy as it is now (under LoRA: without adapters).

        Raises:
            LabError: its vocabulary is not the policy's.
        """
        name = getattr(self.settings, "reference", None)
        if name is None:
            return start_of(self.policy)
        model, tokenizer = load_language_model(name, self.device)
        check_same_vocabulary(self.tokenizer, tokenizer, self.settings.model, name)
        policy = self.policy
        return LanguageModelPolicy(
            model, policy.end_token, policy.max_new_tokens, policy.vocab_size, tokenizer, policy.cuda_graphs,
            policy.end_tokens,
        ).frozen()  # fmt: skip

    def reference_log_probs(self, reference: Policy, data: Pairs | tuple[Tokens, Tokens]) -> Tensor | None:
        """log π_ref of given responses, (N, G), computed once and kept in the cache; None: left to the algorithm.

        Several processes share the work in the algorithm instead.
        """
        if distributed.world_size() > 1:
            return None
        settings: Common = self.settings
        folder = (settings.reference_cache or hub_lookup.cache_folder() / "reference") / settings.precision
        # As in the loop: the policy's log-ratio to it starts at zero.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            return cached_reference_log_probs(reference, data, folder, settings.batch_size, settings.progress)

    def drawing(self, policy: Policy) -> Policy:
        """`policy`, whose responses come from where `--sampler` says. Training it trains `policy`.

        Raises:
            LabError: vLLM is not installed.
        """
        if self.settings.sampler != "vllm":
            return policy  # graphs are the policy's own affair
        if isinstance(policy, AdapterReference):
            policy = policy.copy()  # a model whose adapters are switched off cannot be written down
        assert isinstance(policy, LanguageModelPolicy)
        return VllmSampler.load(policy, dtype="bfloat16" if self.settings.precision == "bf16" else "float32")

    def reward(self) -> Reward:
        """What `--reward` names.

        Raises:
            LabError: it cannot be loaded, or belongs to another tokenizer.
        """
        return load_reward(self.settings, self.policy, self.tokenizer)

    def training(self, rows: int, **changes: Any) -> Training:
        """The loop's settings for so many rows of data."""
        return self.settings.training(rows, **changes)

    def say(self, text: str) -> None:
        """A line for the card, and for whoever watches."""
        self.said.append(text)
        _say(self.settings, text)


def run(
    settings: Common,
    method: str,
    kind: Kind,
    fit: Callable[[Job], History],
    save: Callable[[Job, Path], str] | None = None,
) -> History:
    """Run a method.

    Args:
        settings: the command's.
        method: its word.
        kind: of data it learns from.
        fit: trains `job.policy`, or something of its own, and gives the history.
        save: writes the result into a folder and says how to read it; by default the policy is saved.

    Returns:
        the history.

    Raises:
        LabError: something in the settings, the folder, the data or the model is not as it must be.
        KeyboardInterrupt: stopped by Ctrl-C; the message says what is saved, and how to go on.
    """
    settings = check_paths(settings)
    try:
        with ExitStack() as held:
            return _run(settings, method, kind, fit, save, held)
    except KeyboardInterrupt as stop:
        if not str(stop):
            stop.args = (f"{method} stopped. {checkpoint.kept(settings.out)}",)
        raise


def _run(
    settings: Common,
    method: str,
    kind: Kind,
    fit: Callable[[Job], History],
    save: Callable[[Job, Path], str] | None,
    held: ExitStack,
) -> History:
    """See `run`; `held` keeps the folder's lock until the result is saved."""
    start = time.perf_counter()
    distributed.init_process_group()
    show_progress_bars(distributed.shows_progress(settings.progress))
    out = settings.out
    device = pick_device(settings.device)
    check_data(settings)
    check_reward(settings)
    _check_sampler(settings)
    for name in (settings.model, getattr(settings, "reference", None)):
        if name is not None:
            check_model_available(name, settings.model_revision if name == settings.model else None)

    tokenizer = load_tokenizer(settings.model, settings.model_revision)
    sizes = load_config(settings.model, settings.model_revision)
    if settings.lora_rank is not None:
        check_lora_rank(settings.lora_rank, sizes)
    if (reference := getattr(settings, "reference", None)) is not None:
        load_config(reference)
    limits = token_limits(settings, sizes, tokenizer)
    settings = sampling_batch.with_sampling_batch(settings, sizes, limits)
    record = {**record_of(settings, method), **data_mark(settings)}
    _refuse_taken(out, record, settings.resume)
    data = load_data(settings, kind, tokenizer, limits)
    for line in data.said:
        _say(settings, line)

    with memory.oom_hint(settings):
        model, tokenizer = load_language_model(settings.model, device, revision=settings.model_revision)
    graphs = getattr(settings, "sampler", "lab") == "graphs"
    ends = find_end_tokens(model, tokenizer)
    policy = LanguageModelPolicy(model, ends[0], limits[1], len(tokenizer), tokenizer, graphs, ends)
    if settings.lora_rank is not None:
        policy = with_lora(
            policy, settings.lora_rank, settings.lora_alpha, settings.lora_targets or None, settings.seed
        )
    distributed.on_main_process(lambda: _hold(out, held))
    checkpoint.claim(out, record, settings.resume)
    _write(out / "settings.yaml", f"# rlhf-lab train {method} --config THIS-FILE\n{yaml_config.write(settings)}")
    try:
        with memory.oom_hint(settings):
            if settings.world is not None and isinstance(settings, PairSettings):
                data = draw_pairs(settings, policy, tokenizer)
                _say(settings, data.said[0])
            job = Job(settings, method, policy, tokenizer, data, limits)
            history = fit(job)
    except LabError:
        _give_back(out)
        raise
    if isinstance(policy, LoraPolicy):
        distributed.on_main_process(partial(policy.save_adapter, out / "adapters"))
    reads = _save(job, out / "model", save)
    _write(out / "history.jsonl", "".join(json.dumps(row) + "\n" for row in history))
    seconds = time.perf_counter() - start
    _write(
        out / "README.md",
        model_card.model_card(
            method, record, settings.model, settings.data, job.said, history, str(device), seconds, reads
        ),
    )
    _say(settings, f"Done in {seconds:,.0f} s: {out / 'model'}")
    return history


def _check_sampler(settings: Any) -> None:
    """Refuse a sampler that is not there, before anything is loaded."""
    sampler = getattr(settings, "sampler", "lab")
    if sampler == "graphs":
        check_cuda_device(pick_device(settings.device))
    elif sampler == "vllm":
        if distributed.world_size() > 1:
            raise LabError("The sampler vllm works with one process; with several leave --sampler out.")
        check_vllm_installed()


def _hold(out: Path, held: ExitStack) -> None:
    held.callback(FolderLock(out).release)


def _refuse_taken(out: Path, record: dict[str, Any], resume: bool) -> None:
    """Look at the folder now, take it only when data and model have proved usable: a refused run leaves no trace."""
    if resume or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        checkpoint.claim(out, record, resume)


def _give_back(out: Path) -> None:
    """Leave no trace of a run that was refused before its first step, so that the next may have the folder."""
    mine = {"run.json", "settings.yaml"}
    if distributed.is_main_process() and {path.name for path in out.iterdir() if not path.name.startswith(".")} <= mine:
        shutil.rmtree(out)


def _save(job: Job, folder: Path, save: Callable[[Job, Path], str] | None) -> str:
    """Write the folder under another name first, so that a half-written one is never there under its own."""
    part = folder.with_name(f".{folder.name}.part")

    def write() -> str:
        shutil.rmtree(part, ignore_errors=True)
        if save is None:
            job.policy.save_pretrained(part)
            reads = POLICY
        else:
            reads = save(job, part)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)
        return reads

    def write_or_say() -> str:
        try:
            return write()
        except (OSError, SafetensorError) as error:
            shutil.rmtree(part, ignore_errors=True)
            raise LabError(
                f"The result cannot be written to {folder} ({str(error).splitlines()[0]}). "
                f"{checkpoint.kept(folder.parent)}"
            ) from None

    return distributed.on_main_process(write_or_say) or ""


def _write(path: Path, text: str) -> None:
    if distributed.is_main_process():
        checkpoint.write_text(path, text)


def _say(settings: Common, text: str) -> None:
    if distributed.shows_progress(settings.progress):
        print(text, file=sys.stderr, flush=True)


def scored_by(policy: Policy, reward: Reward) -> Any:
    """The critic of `policy`, started from the reward model where the reward is one on a language model's body."""
    from rlhf_lab.rewards.language_model import LanguageModelReward

    return policy.new_critic(reward if isinstance(reward, LanguageModelReward) else None)


def no_adapters(settings: Common, method: str) -> None:
    """Refuse LoRA where a head is trained on a whole body."""
    if settings.lora_rank is not None:
        raise LabError(f"lora_rank is for policies; {method} trains a whole body and its head. Leave it out.")
