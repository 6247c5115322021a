"""The attention of a row without padding on a GPU: one block-sparse `flex_attention` for the whole row.

Which blocks of 128 × 128 tokens hold anything is worked out from the first and last token of each block, on the CPU
and in N²/128² steps; torch's own `create_block_mask` would look at all N² pairs of tokens on the device (10 GB for a
row of 100,000). What is seen within a block is decided token by token in the kernel.

Not yet measured on a GPU; the pattern, and on machines with a C++ compiler the compiled kernel, are tested on a CPU.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

BLOCK = 128
"""Tokens in a block."""

_compiled: dict[str, Callable[..., Any]] = {}


def available(device: torch.device) -> bool:
    """Whether the kernel can be compiled for this device: a CUDA device, and Triton is installed."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


def visible_blocks(text: Tensor, segment: Tensor, size: int = BLOCK) -> tuple[Tensor, Tensor]:
    """Blocks of which something is seen, and among them those of which everything is.

    Args:
        text: (N,), the number of the prompt that each token belongs to, rising.
        segment: (N,), 0 for a prompt's token, 1 … G for those of its responses; rising within a text.
        size: tokens in a block.

    Returns:
        (n, n) booleans for n = ⌈N / size⌉: query block i sees something, or everything, of key block j. A block that
        the row does not fill is never seen whole.
    """
    number = len(text)
    start = torch.arange(0, number, size)
    stop = (start + size - 1).clamp(max=number - 1)
    new = torch.zeros(number, dtype=torch.long)
    new[1:] = (text[1:] != text[:-1]) | (segment[1:] != segment[:-1])
    run = new.cumsum(0)  # a number for each prompt and each response, in the row's order
    q_text, q_run = (t[start][:, None] for t in (text, run))  # of a query block's first token
    q_last_text, q_last_run = (t[stop][:, None] for t in (text, run))
    k_first, k_text, k_run = (t[start][None] for t in (segment, text, run))
    k_last, k_last_text, k_last_run = (t[stop][None] for t in (segment, text, run))
    earlier = start[None] < start[:, None]
    # An earlier block can share one text with a later one, its own last and the other's first. Of that text it holds
    # prompt tokens if the text begins in it, or if its own first token is one.
    prompt = (k_last_text == q_text) & ((k_text != k_last_text) | (k_first == 0))
    some = (earlier & (prompt | (k_last_run == q_run))) | torch.eye(len(start), dtype=torch.bool)

    one_text = (k_text == q_text) & (k_text == q_last_text)  # with `earlier`: all of both
    same_run = (k_last_run == q_run) & (k_last_run == q_last_run)
    prompt_before = (k_first == 0) & (k_last_run - k_run == 1)
    all_seen = (k_last == 0) | (same_run & ((k_run == k_last_run) | prompt_before))
    filled = (start + size <= number)[:, None]
    return some, earlier & one_text & all_seen & filled


def block_mask(text: Tensor, segment: Tensor, device: torch.device, size: int = BLOCK) -> Any:
    """The row's `BlockMask` on `device`: a token sees its prompt and its own response up to itself.

    Args:
        text: (N,), as in `visible_blocks`. It is read on the CPU; one that lies elsewhere is copied there.
        segment: (N,), as in `visible_blocks`, likewise.
        device: where attention is computed.
        size: tokens in a block.
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
    """(n, n): the columns of each row, those that are set first and in order."""
    return (~mask).int().argsort(dim=1, stable=True)


def _listed(blocks: Tensor) -> Tensor:
    return blocks.to(torch.int32)[None, None].contiguous()


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Any, scale: float | None, compiled: bool = True) -> Tensor:
    """(1, heads, N, d) queries over (1, key heads, N, d) keys; gives (1, N, heads, d)."""
    from torch.nn.attention.flex_attention import flex_attention

    if compiled and "flex" not in _compiled:
        _compiled["flex"] = torch.compile(flex_attention, dynamic=True)
    attention: Any = _compiled["flex"] if compiled else flex_attention
    # Rotary embeddings may have widened queries and keys; the kernel wants one number type.
    query, key = query.to(value.dtype), key.to(value.dtype)
    grouped = query.shape[1] != key.shape[1]
    return attention(query, key, value, block_mask=mask, scale=scale, enable_gqa=grouped).transpose(1, 2)
