"""Sampling of the next token, with temperature and top-k.

As in the `generate` method of transformers, only the k most likely tokens can be sampled, and those that are as likely
as the k-th.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlhf_lab.errors import LabError
from rlhf_lab.randomness import uniform

BLOCK = 256
"""Number of tokens in a block. Sampling selects a block, then a token in it: two short searches, not a long one."""


def check_top_k(top_k: int | None) -> None:
    """Raise `LabError` unless `top_k` is None or at least 1."""
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise LabError(f"top_k must be at least 1, or None for the whole vocabulary, not {top_k!r}.")


def keep_top_k(logits: Tensor, top_k: int | None) -> Tensor:
    """Logits (…, V) with −∞ for every token that is less likely than the `top_k`-th. Ties with it are not changed."""
    if top_k is None or top_k >= logits.shape[-1]:
        return logits
    least = logits.topk(top_k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < least, -torch.inf)


def sample_index(probabilities: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Sample one index for each row of probabilities, by inversion of the cumulative distribution function.

    With a few tokens and many rows this is several times faster than `torch.multinomial`.

    Args:
        probabilities: (…, V); rows need not sum to 1.
        generator: the source of randomness.

    Returns:
        (…) indices.

    Raises:
        LabError: a row contains nan or has no mass (checked on the CPU only).
    """
    cdf = probabilities.double().cumsum(-1)
    if cdf.device.type == "cpu" and not bool((cdf[..., -1] > 0).all()):
        raise LabError("A row of probabilities contains nan or sums to 0. Check that the logits are finite.")
    return _search(cdf, uniform(tuple(cdf.shape[:-1]), generator, cdf.device) * cdf[..., -1])


def sample_tokens(
    logits: Tensor,
    number: int,
    generator: torch.Generator | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> Tensor:
    """Sample token ids from each row of logits, with replacement.

    Sampling first selects a block of tokens, then a token in it, so that cumulative sums are needed only over blocks
    and within one block per sample. Both sums are in float64. Nothing waits for the device.

    Args:
        logits: (N, V).
        number: how many ids to sample from each row.
        generator: the source of randomness.
        temperature: the logits are divided by it.
        top_k: see `keep_top_k`.

    Returns:
        (N, number) ids.

    Raises:
        LabError: logits contain nan or infinity (checked on the CPU only).
    """
    logits = keep_top_k(logits, top_k)
    top = logits.amax(-1, keepdim=True)
    chances = logits - top
    chances = (chances.div_(temperature) if temperature != 1.0 else chances).exp_()
    rows, width = chances.shape
    size = min(BLOCK, width)
    if width % size:
        chances = pad(chances, (0, -width % size))
    chances = chances.view(rows, -1, size)
    blocks = chances.sum(-1).double().cumsum(-1)
    if blocks.device.type == "cpu" and not bool(torch.isfinite(blocks[:, -1]).all()):
        raise LabError("No token can be sampled, because the model's logits contain nan or infinity.")
    target = uniform((rows, number), generator, logits.device) * blocks[:, -1:]
    block = _search(blocks[:, None].expand(-1, number, -1), target)
    before = pad(blocks, (1, 0)).gather(1, block)
    within = chances[torch.arange(rows, device=logits.device)[:, None], block].double().cumsum(-1)
    return block * size + _search(within, target - before)


def _search(cdf: Tensor, target: Tensor) -> Tensor:
    """The first index at which `cdf` (…, V) exceeds `target` (…). It always has positive probability."""
    # The target is less than the total, so that rounding cannot select an index after the last one with mass. The
    # comparison is strict, so that an index without mass at the start is not selected when the target is 0.
    total = cdf[..., -1]
    target = target.clamp(min=0.0).minimum(torch.nextafter(total, torch.zeros_like(total)))
    return (cdf <= target.unsqueeze(-1)).sum(-1)
