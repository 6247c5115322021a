"""Variable-length attention on a GPU by one block-sparse `flex_attention` call for the whole row (experimental).

The attention pattern (see `varlen_attention.py`) is divided into blocks of 128 × 128 pairs of tokens. Which blocks are
empty is computed on the CPU from the first and last token of each block, in N²/128² steps. torch's `create_block_mask`
would evaluate all N² pairs of tokens on the device, which takes 10 GB for a row of 100,000 tokens. Inside a partly
visible block, the kernel evaluates the pattern for each pair.

Experimental: this has not run on a GPU yet. The pattern is tested on a CPU, and so is the compiled kernel on machines
with a C++ compiler.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

BLOCK = 128
"""Number of tokens in a block."""

_compiled: dict[str, Callable[..., Any]] = {}


def available(device: torch.device) -> bool:
    """Whether the kernel can be compiled for this device, which needs a CUDA device and Triton."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


def visible_blocks(text: Tensor, segment: Tensor, size: int = BLOCK) -> tuple[Tensor, Tensor]:
    """Find the blocks that are visible in part, and those that are visible completely.

    Args:
        text: (N,), the number of the prompt that each token belongs to, in increasing order.
        segment: (N,), 0 for a prompt's tokens and 1 … G for those of its responses, in increasing order in each text.
        size: number of tokens in a block.

    Returns:
        Two boolean (n, n) tensors with n = ⌈N / size⌉. Entry (i, j) of the first says whether any token of query block
        i attends to any token of key block j. The second says whether all tokens attend to all tokens. It is never
        True for an incomplete block at the end of the row.
    """
    number = len(text)
    start = torch.arange(0, number, size)
    stop = (start + size - 1).clamp(max=number - 1)
    new = torch.zeros(number, dtype=torch.long)
    new[1:] = (text[1:] != text[:-1]) | (segment[1:] != segment[:-1])
    run = new.cumsum(0)  # numbers the prompts and responses in the order of the row
    q_text, q_run = (t[start][:, None] for t in (text, run))  # of a query block's first token
    q_last_text, q_last_run = (t[stop][:, None] for t in (text, run))
    k_first, k_text, k_run = (t[start][None] for t in (segment, text, run))
    k_last, k_last_text, k_last_run = (t[stop][None] for t in (segment, text, run))
    earlier = start[None] < start[:, None]
    # An earlier and a later block can have only one text in common, which is the earlier block's last and the later
    # one's first. The earlier block contains prompt tokens of that text if the text starts in the block, or if the
    # block's first token is a prompt token.
    prompt = (k_last_text == q_text) & ((k_text != k_last_text) | (k_first == 0))
    some = (earlier & (prompt | (k_last_run == q_run))) | torch.eye(len(start), dtype=torch.bool)

    one_text = (k_text == q_text) & (k_text == q_last_text)  # with `earlier`, both blocks are in one text
    same_run = (k_last_run == q_run) & (k_last_run == q_last_run)
    prompt_before = (k_first == 0) & (k_last_run - k_run == 1)
    all_seen = (k_last == 0) | (same_run & ((k_run == k_last_run) | prompt_before))
    filled = (start + size <= number)[:, None]
    return some, earlier & one_text & all_seen & filled


def block_mask(text: Tensor, segment: Tensor, device: torch.device, size: int = BLOCK) -> Any:
    """The `BlockMask` of a row, in which a token attends to its prompt and to its response up to itself.

    Args:
        text: (N,), as in `visible_blocks`. It is copied to the CPU if it is on another device.
        segment: (N,), as in `visible_blocks`; copied likewise.
        device: where attention is computed.
        size: number of tokens in a block.
    """
    from torch.nn.attention.flex_attention import BlockMask

    some, full = visible_blocks(text.cpu(), segment.cpu(), size)
    part = some & ~full
    blocks = [_listed(which).to(device) for which in (part.sum(1), _first(part), full.sum(1), _first(full))]
    there_text, there_segment = text.to(device), segment.to(device)

    def sees(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        own = (there_segment[k] == 0) | (there_segment[q] == there_segment[k])
        return (q >= k) & (there_text[q] == there_text[k]) & own

    lengths = (len(text), len(text))
    make: Any = BlockMask.from_kv_blocks
    return make(*blocks, BLOCK_SIZE=size, mask_mod=sees, seq_lengths=lengths)


def _first(mask: Tensor) -> Tensor:
    """The column indices of each row, (n, n): first those where `mask` is True, in order."""
    return (~mask).int().argsort(dim=1, stable=True)


def _listed(blocks: Tensor) -> Tensor:
    return blocks.to(torch.int32)[None, None].contiguous()


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Any, scale: float | None, compiled: bool = True) -> Tensor:
    """Compute attention with a block mask.

    Args:
        query: (1, heads, N, d).
        key: (1, key heads, N, d).
        value: (1, key heads, N, d).
        mask: from `block_mask`.
        scale: factor of the scores; None for 1/√d.
        compiled: compile the kernel; tests on a CPU pass False.

    Returns:
        (1, N, heads, d).
    """
    from torch.nn.attention.flex_attention import flex_attention

    if compiled and "flex" not in _compiled:
        _compiled["flex"] = torch.compile(flex_attention, dynamic=True)
    attention: Any = _compiled["flex"] if compiled else flex_attention
    # Rotary embeddings may have changed queries and keys to a wider dtype; the kernel needs one dtype.
    query, key = query.to(value.dtype), key.to(value.dtype)
    grouped = query.shape[1] != key.shape[1]
    out: Tensor = attention(query, key, value, block_mask=mask, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2)
