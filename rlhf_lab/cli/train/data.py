"""Data for a method: pairs, examples with targets, or prompts; from a file, the Hub or a text world; as ids."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.cli.train.settings import PairSettings
from rlhf_lab.data import preferences, sft
from rlhf_lab.data.readers import Source, check_source, holds_splits, is_local
from rlhf_lab.errors import LabError, check_path, refuse_unused
from rlhf_lab.policies.base import Policy, Reward
from rlhf_lab.policies.transformer.shared_prefix_forward import context_length
from rlhf_lab.randomness import Stream
from rlhf_lab.training import distributed, seeded

Kind = Literal["pairs", "targets", "prompts", "verdicts"]

TOKENS = 256
"""Longest prompt and longest response where neither the user nor a world says otherwise."""
WORLD_PAIRS = 1000
"""Pairs drawn in a world where no limit says otherwise."""


@dataclass
class Data:
    """What a method learns from. Only what its kind needs is there.

    Attributes:
        pairs: preference pairs.
        prompts: (N, P).
        targets: (N, 1, T).
        labels: of verdicts, whether each target is desirable, (N, 1) booleans.
        said: what was found, dropped and cut, a line each.
    """

    pairs: Pairs | None = None
    prompts: Tokens | None = None
    targets: Tokens | None = None
    labels: Tensor | None = None
    said: list[str] = field(default_factory=list)


def check_data(settings: Any, split_told: bool = True) -> None:
    """Refuse data that cannot be had, before anything is loaded.

    Args:
        settings: of a command with data.
        split_told: `data_split` is meant for these data, and not taken over from others.

    Raises:
        LabError: no such file, world or data set; settings that these data do not have.
    """
    hub_only = ["data_revision", "data_folder"]
    if settings.world is not None:
        load_world(settings.world)
        refuse_unused(settings, hub_only, "on data of a world; it is for data sets on the Hub")
    elif is_local(settings.data):
        check_source(settings.data)
        refuse_unused(settings, hub_only, "on a local file; it is for data sets on the Hub")
        if split_told and not holds_splits(settings.data):
            reason = f"on {settings.data}, a file without splits; only a .json file may have some"
            refuse_unused(settings, ["data_split"], reason)
    else:
        check_source(settings.data, settings.data_revision)


def load_world(name: str) -> Any:
    """A text world by its name; the error for another name lists those that are there."""
    from rlhf_lab.worlds import text

    return text.load(name)


def data_mark(settings: Any) -> dict[str, str]:
    """The SHA-256 of the local files that are read, for run.json; nothing for other data."""
    marks = {}
    for name in ("data", "original"):
        source = getattr(settings, name, None)
        if source is not None and not source.startswith("world:") and is_local(source):
            with check_path(source, name).open("rb") as file:
                marks[f"{name}_sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return marks


def original_of(settings: Any) -> Any:
    """`settings` with the data that `--original` names in place of `--data`; None where it names none."""
    if settings.original is None:
        return None
    return replace(
        settings,
        data=settings.original,
        data_split=settings.original_split or settings.data_split,
        data_revision=settings.original_revision,
        data_folder=settings.original_folder,
        limit=settings.original_limit,
    )


def token_limits(settings: Any, config: Any, tokenizer: Any) -> tuple[int, int]:
    """The longest prompt and response in tokens: as told, else as the world or the model's context has it.

    Raises:
        LabError: together they do not fit in the context.
    """
    prompt, response = settings.max_prompt_tokens, settings.max_response_tokens
    context = context_length(config)
    if settings.world is not None:
        world = load_world(settings.world)
        prompt = prompt or world.max_prompt_tokens(tokenizer)
        response = response or world.max_response_tokens(tokenizer)
    room = context or 2 * TOKENS
    response = response or max(min(TOKENS, room // 2 if prompt is None else room - prompt), 1)
    prompt = prompt or max(min(TOKENS, room - response), 1)
    if context is not None and prompt + response > context:
        raise LabError(
            f"max_prompt_tokens {prompt} and max_response_tokens {response} are {prompt + response} together; the "
            f"context of {settings.model} holds {context}. Lower one of them."
        )
    return prompt, response


def load_data(settings: Any, kind: Kind, tokenizer: Any, limits: tuple[int, int]) -> Data:
    """Read and tokenise. Pairs of a world are not read but drawn, see `draw_pairs`.

    Raises:
        LabError: as the loaders of `rlhf_lab.worlds`.
    """
    if settings.world is not None:
        return Data() if kind in ("pairs", "verdicts") else _from_world(settings, kind, tokenizer, limits)
    where = Source(settings.data, settings.data_split, settings.data_revision, settings.data_folder, settings.limit)
    end = tokenizer.eos_token_id
    if kind == "verdicts" and not sft.holds_verdicts(where):
        kind = "pairs"
    if kind == "pairs":
        texts = preferences.load_preferences(where, tokenizer)
        pairs, report = preferences.tokenise(texts, tokenizer, *limits, end)
        return Data(pairs=pairs, said=[texts.summary(), report.summary()])
    if kind in ("targets", "verdicts"):
        load = sft.load_targets if kind == "targets" else sft.load_verdicts
        examples = load(where, tokenizer)
        prompts, targets, kept, report = sft.tokenise_targets(examples, tokenizer, *limits, end)
        labels = torch.tensor([[examples.labels[i]] for i in kept]) if examples.labels else None
        return Data(prompts=prompts, targets=targets, labels=labels, said=[examples.summary(), report.summary()])
    asked = sft.load_prompts(where, tokenizer)
    prompts, report = sft.tokenise_prompts(asked.prompts, tokenizer, limits[0], settings.data)
    return Data(prompts=prompts, said=[asked.summary(), report.summary()])


def _from_world(settings: Any, kind: Kind, tokenizer: Any, limits: tuple[int, int]) -> Data:
    world = load_world(str(settings.world))
    if kind == "targets":
        prompts, targets = world.sft(tokenizer, settings.data_split, settings.limit)
        longest = int(targets.lengths.max())
        if longest > limits[1]:
            raise LabError(f"A target of {settings.data} has {longest} tokens; raise max_response_tokens to that.")
        data = Data(prompts=prompts, targets=targets)
    else:
        prompts = world.prompts(tokenizer, settings.data_split, settings.limit)
        data = Data(prompts=prompts)
    longest = int(prompts.lengths.max())
    if longest > limits[0]:
        raise LabError(f"A prompt of {settings.data} has {longest} tokens; raise max_prompt_tokens to that.")
    what = "examples" if kind == "targets" else "prompts"
    data.said.append(f"{settings.data}, split {settings.data_split}: {len(prompts):,} {what}")
    return data


def draw_pairs(settings: PairSettings, policy: Policy, tokenizer: Any) -> Data:
    """Pairs of a world: two responses of the policy to each prompt, labelled by Bradley-Terry on the gold reward."""
    number = settings.limit or WORLD_PAIRS
    pairs, dropped = load_world(str(settings.world)).preferences(
        policy,
        tokenizer,
        settings.data_split,
        number,
        seeded(settings.seed, Stream.COMMAND_PAIRS, device=policy.device),
        settings.label_beta,
        settings.label_noise,
        distributed.shows_progress(settings.progress),
    )
    said = f"{settings.data}: {len(pairs):,} pairs drawn from {settings.model}, {dropped:,} of equal responses dropped"
    return Data(pairs=pairs, said=[said])


def gold_reward(name: str, tokenizer: Any) -> Reward:
    """The gold reward of a text world, on ids."""
    return load_world(name).reward(tokenizer)
