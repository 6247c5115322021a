"""The checks of a `train` command before any weights are loaded. `--dry-run` makes the same ones.

What is checked follows from the settings, the data, and the configurations, tokenizers and adapters of the models.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rlhf_lab.cli.train.data import Data, check_data, held_out_of
from rlhf_lab.cli.train.reward import check_reward, find_reward
from rlhf_lab.cli.train.settings import Common
from rlhf_lab.errors import LabError, count_of
from rlhf_lab.policies import quantised
from rlhf_lab.policies.loading import (
    adapter_base,
    adapters_folder,
    check_model_available,
    check_policy,
    check_same_vocabulary,
    check_unmerged,
    check_vocabulary_size,
    load_config,
    load_tokenizer,
    pick_device,
    without_weights,
)
from rlhf_lab.policies.lora import adapter_config, check_new_adapters, check_saved_adapters
from rlhf_lab.policies.transformer.cuda_graph import check_cuda_device
from rlhf_lab.policies.transformer.shared_prefix_forward import context_length
from rlhf_lab.policies.vllm import check_vllm_installed
from rlhf_lab.training import distributed
from rlhf_lab.training.tracking import check_trackers


def start_of(settings: Common) -> str:
    """Return the model of `--model`, or the folder of the adapters that are trained further."""
    return settings.model if settings.adapter == "merge" else str(adapters_folder(settings.model))


def check_start(settings: Any) -> tuple[Any, Any]:
    """Check data, reward, sampler, models and folders. Return the model's tokenizer and its configuration.

    Raises:
        LabError: one of them cannot be used.
    """
    check_data(settings)
    if (held_out := held_out_of(settings)) is not None:
        check_data(held_out, settings.eval_split != "test")
    check_reward(settings)
    check_trackers(settings.trackers)
    _check_sampler(settings)
    reference = getattr(settings, "reference", None)
    for option, name in (("model", settings.model), ("reference", reference)):
        if name is not None:
            check_policy(name, option)
    start = start_of(settings)
    for name in (start, reference):
        if name is not None:
            check_model_available(name, settings.model_revision if name == start else None)
    tokenizer = load_tokenizer(start, settings.model_revision)
    sizes = load_config(start, settings.model_revision)
    check_vocabulary_size(tokenizer, sizes, start)
    _check_adapters(settings, start, sizes)
    if reference is not None:
        _check_reference(tokenizer, settings.model, reference)
    reward = getattr(settings, "reward", None)
    if reward is not None and (folder := find_reward(reward)) is not None and _has_tokenizer(folder):
        theirs = load_tokenizer(str(folder))
        check_same_vocabulary(tokenizer, theirs, settings.model, f"the reward in {folder}", may_have_more=True)
    if not settings.out.exists():
        _check_writable(settings.out, "out")
    if settings.reference_cache is not None:
        _check_writable(settings.reference_cache, "reference_cache")
    return tokenizer, sizes


def _check_sampler(settings: Any) -> None:
    """Raise `LabError` if the sampler cannot be used here."""
    sampler = getattr(settings, "sampler", "lab")
    if sampler == "graphs":
        check_cuda_device(pick_device(settings.device))
    elif sampler == "vllm":
        if distributed.world_size() > 1:
            raise LabError("The sampler vllm works with one process only. Leave --sampler out.")
        check_vllm_installed()


def _check_adapters(settings: Common, start: str, sizes: Any) -> None:
    """Raise `LabError` if adapters, or weights in 4 bits, cannot be used as the settings say."""
    if settings.adapter == "continue":
        names = ("lora_rank", "lora_alpha", "lora_targets", "lora_rank_stabilised")
        adapter_config(Path(start), **{name: getattr(settings, name) for name in names})
    if (base := adapter_base(start)) is not None:
        check_saved_adapters(sizes, Path(start).expanduser(), base)
    if settings.adapter == "merge" and settings.lora_rank is not None:
        check_new_adapters(sizes, settings.lora_rank, settings.lora_targets)
    if settings.load_in_4bit:
        quantised.check_bitsandbytes()
        if distributed.uses_fsdp():
            raise LabError("load_in_4bit cannot be used with FSDP, which spreads the weights. Use configs/ddp.yaml.")
        if settings.adapter == "merge":
            check_unmerged(start)
        quantised.check_widths(quantised.widths(without_weights(sizes)), pick_device(settings.device))


def _check_reference(tokenizer: Any, model: str, reference: str) -> None:
    theirs, sizes = load_tokenizer(reference), load_config(reference)
    check_same_vocabulary(tokenizer, theirs, model, reference)
    check_vocabulary_size(theirs, sizes, reference)
    if (base := adapter_base(reference)) is not None:
        check_saved_adapters(sizes, Path(reference).expanduser(), base)


def _has_tokenizer(folder: Path) -> bool:
    """Whether a reward was saved with a tokenizer. Without one its vocabulary cannot be compared."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))


def _check_writable(folder: Path, option: str) -> None:
    """Raise `LabError` if a folder cannot be created. Nothing is created."""
    place = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not place.is_dir():
        raise LabError(f"{option}={folder} cannot be a folder, because {place} is a file. Give another path.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise LabError(f"{option}={folder} cannot be written, because {place} is read-only. Give another path.")


def check_contexts(settings: Any, parts: list[Data], longest_response: int) -> None:
    """Raise `LabError` if the reference or the reward has a context that is too short for the data.

    Args:
        settings: of a `train` command.
        parts: the data that are trained on, and held-out data.
        longest_response: of responses that are sampled, in tokens.
    """
    reference, reward = getattr(settings, "reference", None), getattr(settings, "reward", None)
    others = [] if reference is None else [("reference", reference, load_config(reference))]
    if reward is not None and (folder := find_reward(reward)) is not None:
        others.append(("reward", reward, load_config(str(folder))))
    longest = max((longest_row(part, longest_response) for part in parts if len(part)), default=0) if others else 0
    for option, name, sizes in others:
        context = context_length(sizes)
        if context is not None and longest > context:
            raise LabError(
                f"{option}={name} has a context of {count_of(context, 'token')}, and the longest prompt with its "
                f"response has {longest}. Lower max_prompt_tokens or max_response_tokens, or give another one."
            )


def longest_row(data: Data, longest_response: int) -> int:
    """Return the largest number of tokens of a prompt with a response, which is `longest_response` if it is sampled."""
    prompts, responses = data.prompts, data.targets
    if data.pairs is not None:
        prompts, responses = data.pairs.prompts, data.pairs.responses
    assert prompts is not None
    after: Any = longest_response if responses is None else responses.lengths.max(-1).values
    return int((prompts.lengths + after).max())
