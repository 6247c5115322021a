r"""Comparison of floating-point numbers that are equal within rounding: ties, ranks, centring and standardising.

The last digits of a computed number depend on the processor and on how a batch was split. The difference of two
numbers that are mathematically equal is then not 0 but a few units in the last place of the numbers that were
subtracted. Its sign carries no information, and if it is divided by a standard deviation of the same size it becomes a
number of about 1. Therefore the tolerance is always relative to the numbers that were subtracted. A difference of 1e-9
between rewards of 1e-3 is real, but a difference of 1e-5 between float32 log-probabilities of −300 is not.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FEW = 4
"""Rounding error, in units in the last place, of a number computed in a few operations, such as a mean."""
MANY = 64
"""The same for a number computed in many operations, such as the log-probability of a response or a network's score."""


def rounding(*numbers: Tensor | float, units: int = FEW) -> Tensor:
    """The maximum rounding error of a sum or a difference of these numbers.

    Args:
        numbers: the numbers that were added or subtracted, with shapes that broadcast. The least precise type among
            the tensors determines the unit. Infinite numbers count as 0, because no other number is close to them.
        units: the error in units in the last place of the largest of the numbers, `FEW` or `MANY`. Numbers in half
            precision were rounded once, at the end, and always count one unit.

    Returns:
        a non-negative tensor of the broadcast shape.
    """
    tensors = [n.detach() for n in numbers if isinstance(n, Tensor)]
    kinds = [t.dtype for t in tensors if t.is_floating_point()]
    epsilon = max((torch.finfo(kind).eps for kind in kinds), default=torch.finfo(torch.float64).eps)
    sizes = [n.detach().abs() if isinstance(n, Tensor) else abs(float(n)) for n in numbers]
    # Plain numbers are not made tensors, because those would have to be sent to the device of the others.
    plain = max((size for size in sizes if not isinstance(size, Tensor) and not math.isinf(size)), default=0.0)
    largest: Tensor | None = None
    for size in sizes:
        if isinstance(size, Tensor):
            size = size.masked_fill(size.isinf(), 0.0) if size.is_floating_point() else size
            largest = size if largest is None else torch.maximum(largest, size)
    largest = torch.tensor(plain, dtype=torch.float64) if largest is None else largest.clamp(min=plain)
    return largest * (epsilon * (1 if epsilon > 1e-4 else units))


def wins(first: Tensor, second: Tensor | float, doubt: Tensor | float = 0.0) -> Tensor:
    """1 where `first` is larger, 0 where `second` is larger, and ½ where they are equal within rounding.

    Args:
        first: any shape.
        second: a number, or a tensor that broadcasts.
        doubt: the rounding error of the difference that comes from the computation of the two numbers (see
            `rounding`). It is added to `FEW` units in the last place of the numbers themselves.

    Returns:
        the type and shape of `first − second`; NaN where one of the two is NaN.
    """
    gap = (first - second).detach()
    tie = (gap.abs() <= rounding(first, second) + doubt) | (first == second)
    won = torch.where(tie, 0.5, (gap > 0).to(gap.dtype))
    return torch.where(gap.isnan() & ~tie, torch.nan, won).to(gap.dtype)


def levels(values: Tensor) -> Tensor:
    """The rank of each number among the distinct values of its row, from 0, along the last axis.

    Args:
        values: (…, K), finite. Neighbours in sorted order have the same rank if they are equal within the rounding
            error of the row's largest number.

    Returns:
        (…, K) int64.
    """
    ordered, order = values.detach().sort(-1)
    doubt = rounding(values.abs().amax(-1, keepdim=True))
    rises = wins(ordered[..., 1:], ordered[..., :-1], doubt) == 1
    level = torch.nn.functional.pad(rises.long().cumsum(-1), (1, 0))
    return torch.empty_like(level).scatter(-1, order, level)


def centred(values: Tensor, doubt: Tensor | float = 0.0) -> Tensor:
    """The numbers minus their mean along the last axis; exactly 0 in a row whose numbers are equal within rounding.

    Without this rule a remainder of one unit in the last place would count as a difference. Adam would take steps of
    full size from it, and a division by the row's standard deviation would make it a number of about 1.

    Args:
        values: (…, K).
        doubt: the rounding error of a difference of two of them that comes from their computation (see `rounding`),
            with a shape that broadcasts with (…, 1). It is added to `FEW` units in the last place of the row's largest
            number.
    """
    spread = values.amax(-1, keepdim=True) - values.amin(-1, keepdim=True)
    alike = spread <= rounding(values).amax(-1, keepdim=True) + doubt
    return torch.where(alike, 0.0, values - values.mean(-1, keepdim=True))


def standardised(values: Tensor, doubt: Tensor | float = 0.0) -> Tensor:
    """`centred` numbers divided by their standard deviation (correction 0); 0 in a row of equal numbers."""
    apart = centred(values, doubt)
    # Scaled first, because the square of a small number could be rounded to 0.
    size = apart.abs().amax(-1, keepdim=True)
    apart = apart / torch.where(size > 0, size, 1.0)
    return apart / torch.where(size > 0, apart.square().mean(-1, keepdim=True).sqrt(), 1.0)


def unit_interval(values: Tensor, low: float, high: float) -> Tensor:
    """(values − low)/(high − low), any shape; 0 if `low` and `high` are equal within rounding of `values`' type."""
    ends = torch.tensor([low, high], dtype=values.dtype, device=values.device)
    if not bool(wins(ends[1], ends[0]) == 1):
        return torch.zeros_like(values)
    return (values - low) / (high - low)
