"""Random generators by seed and step, the rows of the data that a step trains on, and log π_ref of these rows."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.policies.reference_cache import ReferenceRows
from rlhf_lab.randomness import Stream
from rlhf_lab.training import distributed
from rlhf_lab.training.config import Training


def seeded(seed: int, *path: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Create a generator whose random numbers are a function of `seed` and `path`.

    The integers are combined by a hash (the finaliser of splitmix64), so that neighbouring seeds and steps have
    unrelated streams.

    Args:
        seed: the run's seed.
        *path: further integers, for example a stream of `rlhf_lab.randomness` and a step.
        device: device of the generator.
    """
    word = 0x9E3779B97F4A7C15
    for part in (seed, *path):
        word = (word ^ (part + 0x9E3779B97F4A7C15 + (word << 6) + (word >> 2))) & 0xFFFFFFFFFFFFFFFF
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        word ^= word >> 31
    return torch.Generator(device).manual_seed(word & 0x7FFFFFFFFFFFFFFF)


@lru_cache(maxsize=2)
def epoch_order(num_rows: int, seed: int, epoch: int) -> Tensor:
    """Return the rows 0 … `num_rows` − 1 in the order of an epoch. The tensor is shared and must not be changed."""
    return torch.randperm(num_rows, generator=seeded(seed, Stream.ROW_ORDER, epoch))


def rows_at(step: int, num_rows: int, batch_size: int, seed: int) -> Tensor:
    """Return the rows of a step. In each epoch every row occurs once, in an order that depends on the epoch.

    A batch can contain rows of two epochs, so all batches have the same size. If `batch_size >= num_rows`, every step
    has all rows in their order.

    Args:
        step: number of the step, from 0.
        num_rows: number of rows of the data.
        batch_size: rows per step.
        seed: the run's seed.
    """
    if num_rows < 1:
        raise LabError("There are no rows to train on.")
    if batch_size >= num_rows:
        return torch.arange(num_rows)
    first = step * batch_size
    parts, wanted = [], batch_size
    while wanted > 0:
        epoch, start = divmod(first, num_rows)
        part = epoch_order(num_rows, seed, epoch)[start : start + wanted]
        parts.append(part)
        first, wanted = first + len(part), wanted - len(part)
    return torch.cat(parts)


def reference_rows(
    reference: Any,
    data: Pairs | tuple[Tokens, Tokens],
    training: Training,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    folder: Path | None = None,
    held_out: bool = False,
) -> ReferenceRows:
    """Return log π_ref of responses, which is computed when a training step or a measurement first needs a row.

    Several processes share the work. They store nothing, because their caches may differ.

    Args:
        reference: the frozen policy.
        data: N pairs; or prompts (N, P) and responses (N, G, T).
        training: settings of the run whose steps need the numbers.
        context: precision in which the numbers are computed.
        folder: of the cache; None stores nothing.
        held_out: whether the rows are measured in their order, and not trained on.

    Raises:
        LabError: there is no data.
    """
    number = len(data if isinstance(data, Pairs) else data[0])
    shuffled = training.batch_size < number and not held_out
    alone = distributed.world_size() == 1
    return ReferenceRows(
        reference,
        data,
        epoch_order(number, training.seed, 0) if shuffled else None,
        training.batch_size,
        folder if alone else None,
        training.accumulate if alone else 1,
        context,
        partial(distributed.map_rows, reference.log_prob),
    )
