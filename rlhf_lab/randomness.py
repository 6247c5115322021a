"""Random numbers where a generator lives, for tensors that may lie elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor


def uniform(
    shape: tuple[int, ...] | torch.Size,
    generator: torch.Generator | None,
    device: torch.device | str,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Numbers in [0, 1) of `shape`, made where `generator` lives (without one, on `device`) and moved to `device`.

    A generator makes numbers on its own device only; a reward may be computed on another.
    """
    where = device if generator is None else generator.device
    return torch.rand(shape, dtype=dtype, generator=generator, device=where).to(device)
