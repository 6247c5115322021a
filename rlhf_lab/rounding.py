r"""When two floating-point numbers count as equal: ties, and scores without spread.

The last digits of a computed number depend on the processor, and on how a batch was split. A difference of two
numbers that are mathematically equal is then not 0 but a few units in the last place of the numbers that were
subtracted. Its sign says nothing, and divided by a spread of the same size it becomes a number of about 1. So the
scale of what counts as zero is always that of the numbers that were subtracted, never a fixed one: differences of
1e-9 between rewards of 1e-3 are real, and differences of 1e-5 between float32 log-probabilities of −300 are not.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FEW = 4
"""Units in the last place by which a number may be off that took a few operations: a reward by a rule, a mean."""
MANY = 64
"""The same of a number that took many: the log-probability of a response, the score of a network."""


def rounding(*numbers: Tensor | float, units: int = FEW) -> Tensor:
    """How far rounding may have moved a sum or a difference of these numbers.

    Args:
        numbers: what was added or subtracted, shapes that broadcast. The least precise type among the tensors decides
            the unit. Infinite numbers count as 0: nothing is near them.
        units: how many units in the last place of the largest of the numbers, `FEW` or `MANY`. Numbers in half
            precision were rounded once, at the end, and always count one unit.

    Returns:
        a non-negative tensor of the broadcast shape.
    """
    tensors = [n.detach() for n in numbers if isinstance(n, Tensor)]
    kinds = [t.dtype for t in tensors if t.is_floating_point()]
    epsilon = max((torch.finfo(kind).eps for kind in kinds), default=torch.finfo(torch.float64).eps)
    sizes = [n.detach().abs() if isinstance(n, Tensor) else abs(float(n)) for n in numbers]
    # Plain numbers stay on the CPU: as tensors they would have to be sent to the device that the others lie on.
    plain = max((size for size in sizes if not isinstance(size, Tensor) and not math.isinf(size)), default=0.0)
    largest: Tensor | None = None
    for size in sizes:
        if isinstance(size, Tensor):
            size = size.masked_fill(size.isinf(), 0.0) if size.is_floating_point() else size
            largest = size if largest is None else torch.maximum(*torch.broadcast_tensors(largest, size))
    largest = torch.tensor(plain, dtype=torch.float64) if largest is None else largest.clamp(min=plain)
    return largest * (epsilon * (1 if epsilon > 1e-4 else units))


def wins(first: Tensor, second: Tensor | float, doubt: Tensor | float = 0.0) -> Tensor:
    """1 where `first` is the larger, 0 where `second` is, and ½ where they are equal within rounding.

    Args:
        first: any shape.
        second: a number, or a tensor that broadcasts.
        doubt: how far the difference may be off because of how the two came about (see `rounding`), in addition to
            `FEW` units in the last place of the two themselves.

    Returns:
        the type and shape of `first − second`; NaN where one of the two is.
    """
    gap = (first - second).detach()
    tie = (gap.abs() <= rounding(first, second) + doubt) | (first == second)
    won = torch.where(tie, 0.5, (gap > 0).to(gap.dtype))
    return torch.where(gap.isnan() & ~tie, torch.nan, won).to(gap.dtype)


def levels(values: Tensor) -> Tensor:
    """The rank of each number among the different ones of its row, from 0, along the last axis.

    Args:
        values: (…, K), finite. Neighbours in order that are equal within rounding of the row's largest share a level.

    Returns:
        (…, K) int64.
    """
    ordered, order = values.detach().sort(-1)
    doubt = rounding(values.abs().amax(-1, keepdim=True))
    rises = wins(ordered[..., 1:], ordered[..., :-1], doubt) == 1
    level = torch.nn.functional.pad(rises.long().cumsum(-1), (1, 0))
    return torch.empty_like(level).scatter(-1, order, level)


def centred(values: Tensor, doubt: Tensor | float = 0.0) -> Tensor:
    """Numbers less their mean, along the last axis; exactly 0 where all of a row are equal within rounding.

    Without that rule the rest of the subtraction, one unit in the last place, would be taken for a difference. Adam
    makes steps of full size of it, and a division by the row's spread makes it a number of about 1.

    Args:
        values: (…, K).
        doubt: how far a difference of two of them may be off because of how they came about (see `rounding`), shapes
            that broadcast with (…, 1); in addition to `FEW` units in the last place of a row's largest.
    """
    spread = values.amax(-1, keepdim=True) - values.amin(-1, keepdim=True)
    alike = spread <= rounding(values).amax(-1, keepdim=True) + doubt
    return torch.where(alike, 0.0, values - values.mean(-1, keepdim=True))


def standardised(values: Tensor, doubt: Tensor | float = 0.0) -> Tensor:
    """`centred` numbers divided by their standard deviation (correction 0), at every magnitude; 0 without spread."""
    apart = centred(values, doubt)
    # Scaled first: the square of a small number could be rounded to 0.
    size = apart.abs().amax(-1, keepdim=True)
    apart = apart / torch.where(size > 0, size, 1.0)
    return apart / torch.where(size > 0, apart.square().mean(-1, keepdim=True).sqrt(), 1.0)


def unit_interval(values: Tensor, low: float, high: float) -> Tensor:
    """(values − low)/(high − low), any shape; 0 where `low` and `high` are equal within rounding of `values`' type."""
    ends = torch.tensor([low, high], dtype=values.dtype, device=values.device)
    if not bool(wins(ends[1], ends[0]) == 1):
        return torch.zeros_like(values)
    return (values - low) / (high - low)
