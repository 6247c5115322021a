"""Drawing the next token: temperature, top-k, and one index out of a wide distribution.

The temperature divides the logits first, then all but the k likeliest tokens are barred (ties with the k-th stay),
as transformers' `generate` does it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlhf_lab.errors import LabError
from rlhf_lab.randomness import uniform

BLOCK = 256
"""Tokens whose probabilities are summed before anything is drawn: two short searches instead of a long one."""


def check_top_k(top_k: int | None) -> None:
    """Raise `LabError` unless `top_k` is None or at least 1."""
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise LabError(f"top_k must be at least 1, or None for the whole vocabulary, not {top_k!r}.")


def keep_top_k(logits: Tensor, top_k: int | None) -> Tensor:
    """Logits (…, V) with −∞ for every token less likely than the `top_k`-th; ties with it are kept."""
    if top_k is None or top_k >= logits.shape[-1]:
        return logits
    least = logits.topk(top_k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < least, -torch.inf)


def sample_index(probabilities: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One index for each row of `probabilities` (…, V), shape (…): the inverse of the distribution function.

    For a few tokens and many rows this is several times faster than `torch.multinomial`.
    """
    cdf = probabilities.double().cumsum(-1)
    if cdf.device.type == "cpu" and not bool((cdf[..., -1] > 0).all()):
        raise LabError("Nothing to draw from: a row of probabilities holds nan or no mass. Are the logits finite?")
    return _search(cdf, uniform(tuple(cdf.shape[:-1]), generator, cdf.device) * cdf[..., -1])


def sample_tokens(
    logits: Tensor,
    number: int,
    generator: torch.Generator | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> Tensor:
    """`number` token ids, with replacement, from each row of logits (N, V): (N, number).

    A distribution function over a vocabulary is found in two steps, first the block of tokens, then the token, so
    only sums over blocks and one block a draw are accumulated. Both in float64; no wait on a device.
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
        raise LabError("Nothing to draw from: the model's logits hold nan or infinity.")
    target = uniform((rows, number), generator, logits.device) * blocks[:, -1:]
    block = _search(blocks[:, None].expand(-1, number, -1), target)
    before = pad(blocks, (1, 0)).gather(1, block)
    within = chances[torch.arange(rows, device=logits.device)[:, None], block].double().cumsum(-1)
    return block * size + _search(within, target - before)


def _search(cdf: Tensor, target: Tensor) -> Tensor:
    """The first index whose `cdf` (…, V) exceeds `target` (…); never one without mass."""
    # Strictly below the total, so that rounding cannot run past the last index that has mass; strictly above is
    # asked of the distribution function, so that one without mass at the front is passed over when target is 0.
    total = cdf[..., -1]
    target = target.clamp(min=0.0).minimum(torch.nextafter(total, torch.zeros_like(total)))
    return (cdf <= target.unsqueeze(-1)).sum(-1)
