"""The parts of a step's batch, which are computed one after the other or by several processes, and sums over them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf_lab.batch import Tokens
from rlhf_lab.training import distributed


class BatchPart(NamedTuple):
    """Rows of a step's batch that are computed together, their weight in its mean, and the first one's position."""

    batch: tuple[Any, ...]
    share: Any
    first: int = 0


def parts_of(batch: tuple[Any, ...] | None, weight: Tensor | None, accumulate: int) -> list[BatchPart]:
    """Return the parts of a step that this process computes.

    All processes have the same number of parts, because with FSDP they compute each part together. If a process has
    too few rows, its remaining parts consist of row 0 with weight 0.

    Args:
        batch: tensors, `Tokens` or `Pairs` with the same number of rows. None: every process computes everything.
        weight: non-negative weights of the rows in the means, (B,). None: those of the batch, or equal ones.
        accumulate: number of parts of one process.
    """
    if batch is None:
        return [BatchPart((), 1.0 / distributed.world_size())]
    number, mine = len(batch[0]), distributed.local_rows(len(batch[0]))
    if distributed.world_size() == 1 and accumulate == 1:
        return [BatchPart(batch, 1.0)]
    if weight is None:
        weight = weight_in(batch)
    if weight is not None:
        weight = weight.double() / weight.double().sum()
    widest = -(-number // distributed.world_size())
    out = []
    for rows in torch.arange(mine.start, mine.stop).tensor_split(min(accumulate, widest)):
        share = len(rows) / number if weight is None else weight[rows.to(weight.device)].sum()
        some = rows if len(rows) else torch.zeros(1, dtype=torch.long)
        out.append(BatchPart(tuple(b[some] for b in batch), share, mine.start if not len(rows) else int(rows[0])))
    return out


def weight_in(batch: tuple[Any, ...]) -> Tensor | None:
    """The weights of the rows of a batch; None if all rows count the same."""
    return next((b.weight for b in batch if getattr(b, "weight", None) is not None), None)


def sum_over_processes(numbers: list[Any]) -> list[Any]:
    """The sum of each number over all processes. The first one is a tensor."""
    if distributed.world_size() == 1:
        return numbers
    return list(distributed.all_reduce_sum(torch.stack([torch.as_tensor(n).to(numbers[0]) for n in numbers])).unbind())


def tokens_of(batch: tuple[Any, ...]) -> Tensor | float:
    """The number of tokens in a batch that are not padding. A prompt is counted once for all its responses."""
    found: Tensor | float = 0
    for b in batch:
        for tokens in (b, getattr(b, "prompts", None), getattr(b, "responses", None)):
            if isinstance(tokens, Tokens):
                found = found + tokens.mask.sum()
    return found
