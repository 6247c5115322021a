"""Sampling and scoring in shards of prompts that are cached on disk: what RAFT, ReST, RSO and iterated DPO share.

The responses to ten thousand prompts do not fit into memory together, and sampling them is the most expensive part of
these methods. The prompts are therefore cut into shards. Each shard has a separate generator, seeded by its position,
so it can be sampled alone. With an output folder a finished shard is written there. A resumed run reads it and
continues with exactly the same numbers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from rlhf_lab.algorithms.on_policy import sample
from rlhf_lab.batch import Pairs, Tokens, cat
from rlhf_lab.errors import LabError, check_finite
from rlhf_lab.policies.base import Policy, Reward
from rlhf_lab.training import Training, distributed, output_folder, seeded

Shard = dict[str, Tensor]
"""Named tensors: what was sampled for some of the prompts."""


@contextmanager
def claim_output(name: str, training: Training, settings: Any) -> Iterator[Path | None]:
    """Claim the output folder for a method of several stages, and give its path; None without a folder.

    Nothing is done where the caller has claimed the folder already, as the command line does.

    Raises:
        LabError: the folder contains another run, or `resume` finds none (see `output_folder.claim_output`).
    """
    record = {"method": name, "training": training, "settings": settings}
    with output_folder.claim_output(training.out, record, training.resume):
        yield training.out


@dataclass(frozen=True)
class Rollouts:
    """Sampled and scored responses.

    Attributes:
        responses: (N, g, T), all G samples of each prompt, or the g that were selected.
        scores: R(x, y) of all samples, (N, G).
        selected: the positions of `responses` among the samples, (N, g).
    """

    responses: Tokens
    scores: Tensor
    selected: Tensor


def sample_and_score(
    policy: Policy,
    reward: Reward,
    prompts: Tokens,
    number: int,
    settings: Any,
    training: Training,
    stream: tuple[int, ...],
    folder: Path | None,
    name: str,
    select: Callable[[Tensor, torch.Generator], Tensor] | None = None,
) -> Rollouts:
    """Sample `number` responses to each prompt and score them.

    Args:
        policy: π, with its present weights.
        reward: R, scores (B, G).
        prompts: (N, P).
        number: G, samples of each prompt.
        settings: have `temperature`, `top_k` and `sampling_batch_size`, the prompts in a shard (None: 512).
        training: the run's seed, and whether to show a progress bar.
        stream: the random stream, of which the samples are a function; see `seeded`.
        folder: where finished shards are stored and looked up.
        name: text of the progress bar.
        select: `(scores, generator) → positions (B, g)` of the responses to keep. None keeps all.

    Raises:
        LabError: there are no prompts, or a score is not finite.
    """

    @torch.no_grad()
    def make(start: int, stop: int) -> Shard:
        # The first shard's generator is that of the whole stream.
        generator = seeded(training.seed, *stream, *([start] if start else []), device=policy.device)
        x = prompts[start:stop]
        y = sample(policy, x, number, generator, settings.temperature, settings.top_k)
        scores = check_finite(reward(x, y).detach(), "reward")
        if select is None:
            positions = torch.arange(number, device=scores.device).expand(scores.shape)
        else:
            positions = select(scores, generator)
            y = y.take(positions)
        return from_tokens("responses", y) | {"scores": scores, "selected": positions}

    size = settings.sampling_batch_size or 512
    shards = in_shards(make, len(prompts), size, folder, f"{name}: samples", training.progress)
    responses = cat([to_tokens("responses", shard) for shard in shards])
    return Rollouts(responses, join(shards, "scores"), join(shards, "selected"))


@torch.no_grad()
def score_in_shards(reward: Reward, prompts: Tokens, responses: Tokens, settings: Any, training: Training) -> Tensor:
    """The scores of given responses (N, G, T), (N, G); `settings` and `training` as of `sample_and_score`."""

    def make(start: int, stop: int) -> Shard:
        return {"scores": check_finite(reward(prompts[start:stop], responses[start:stop]).detach(), "reward")}

    shards = in_shards(make, len(prompts), settings.sampling_batch_size or 512, None, "scores", training.progress)
    return join(shards, "scores")


def in_shards(
    make: Callable[[int, int], Shard],
    number: int,
    size: int,
    folder: Path | None = None,
    description: str = "samples",
    progress: bool = False,
) -> list[Shard]:
    """Call `make(start, stop)` for the rows 0 … number − 1, `size` rows at a time, in order.

    Args:
        make: returns named tensors of any shapes, as a function of its two arguments alone.
        number: how many rows there are.
        size: rows in a shard (the last shard may be smaller).
        folder: where finished shards are stored and looked up. It must belong to this run (see `claim_output`).
        description: text of the progress bar, which is shown if there are several shards.
        progress: show it.

    Returns:
        the shards, on the CPU.

    Raises:
        LabError: there are no rows; a stored shard cannot be read; a shard cannot be written.
    """
    if number < 1:
        raise LabError(f"There are no prompts to make {description} for.")
    if size < 1:
        raise LabError(f"A shard must contain at least 1 prompt, not {size}.")
    starts = range(0, number, size)
    shown = len(starts) > 1 and distributed.shows_progress(progress)
    shards = []
    for start in tqdm(starts, desc=description, leave=False, disable=not shown):
        stop = min(start + size, number)
        path = None if folder is None else folder / f"rows-{start:07d}-{stop:07d}.safetensors"
        # All processes must take the same branch, even if only one of them sees the file already.
        if path is not None and distributed.any_rank(path.is_file()):
            shards.append(_read(path))
            continue
        shard = {name: value.detach().cpu() for name, value in make(start, stop).items()}
        if path is not None:
            _write(path, shard)
        shards.append(shard)
    return shards


def _read(path: Path) -> Shard:
    try:
        return load_file(path)
    except Exception as error:
        raise LabError(
            f"The samples stored in {path} cannot be read ({str(error).splitlines()[0]}). Remove the file, "
            f"then run again with --resume: the same samples are drawn again."
        ) from None


def _write(path: Path, shard: Shard) -> None:
    def write() -> None:
        part = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: value.contiguous().clone() for name, value in shard.items()}, part)
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
        except Exception as error:  # an OSError, or safetensors' own error for the same cause
            part.unlink(missing_ok=True)
            raise LabError(
                f"The samples {path.name} cannot be written to {path.parent} ({str(error).splitlines()[0]}). Free disk "
                f"space and run again with --resume, which continues after the samples that are stored."
            ) from None

    distributed.on_main_process(write)


def join(shards: list[Shard], name: str) -> Tensor:
    """Concatenate the tensor `name` of all shards along the first axis."""
    return torch.cat([shard[name] for shard in shards])


def from_tokens(name: str, tokens: Tokens) -> Shard:
    """Store `tokens` as tensors of a shard under `name`; `to_tokens` is the inverse."""
    return {f"{name}.ids": tokens.ids, f"{name}.mask": tokens.mask}


def to_tokens(name: str, shard: Shard) -> Tokens:
    """Read the tokens `name` from a shard."""
    return Tokens(shard[f"{name}.ids"], shard[f"{name}.mask"])


def from_pairs(pairs: Pairs) -> Shard:
    """Store preference pairs as tensors of a shard; `to_pairs` is the inverse."""
    shard = from_tokens("prompts", pairs.prompts) | from_tokens("responses", pairs.responses)
    return shard if pairs.weight is None else shard | {"weight": pairs.weight}


def to_pairs(shard: Shard) -> Pairs:
    """Read the preference pairs from a shard."""
    return Pairs(to_tokens("prompts", shard), to_tokens("responses", shard), shard.get("weight"))
