"""One row for a whole batch: every prompt and every response token exactly once, and no padding at all.

    [ x¹ | y¹¹ | y¹² | … | x² | y²¹ | … ]

A transformer's matrix products see each token alone, so they don't mind that neighbours in the row belong to
other texts; only attention must know. transformers hands attention to whatever function is registered under the
model's `attn_implementation`. The one registered here, "rlhf_lab", reads a `VarlenLayout` that comes as a keyword:
each response token sees its prompt and its own past. Without a layout it is the ordinary sdpa attention.

The cost: linear in the tokens that are there, whatever the lengths; in attention P² + ΣT·(P + chunk) a prompt. On
a CUDA device the same pattern is one block-sparse `flex_attention` (`flex_attention.py`; not yet measured).

Left out on purpose: sliding windows and soft caps (`packing.context_length` treats a window as the model's limit).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from rlhf_lab.batch import Tokens
from rlhf_lab.policies.transformer import flex_attention

NAME = "rlhf_lab"
"""The registered attention function."""
KEYWORD = "rlhf_lab_layout"
"""The keyword under which a model's forward pass hands the layout to its attention."""
CHUNK_TOKENS = 256
"""Response tokens that share one rectangle of attention; more of them cost more masked-out products."""

_registered: set[str] = set()


class PromptSpan(NamedTuple):
    """One prompt's stretch of the row.

    Attributes:
        length: tokens of the prompt and of all its responses.
        prompt: tokens of the prompt.
        chunks: tokens in each group of whole responses; the first lies in the prompt's own rectangle.
        masks: for each chunk, 0 where a query may look and −∞ elsewhere; None for a plain causal rectangle.
    """

    length: int
    prompt: int
    chunks: tuple[int, ...]
    masks: tuple[Tensor | None, ...]


class VarlenLayout:
    """Who sees whom in a row without padding. Made once for a batch, read by every layer.

    Attributes:
        ids: (1, N).
        positions: (1, N), each token's place in its prompt + response.
        first: (B,), where in the row each prompt's last token lies.
        places: (B, G, T), where each response token lies; meaningless where there is none.
        used: an attention layer has asked for it.
        kept: keys and values by attention module, (1, heads, N, d) each, if they were asked for.
    """

    def __init__(self, prompts: Tokens, inputs: Tokens, device: torch.device, keep: bool = False) -> None:
        """Lay out `prompts` (B, P) and the response tokens `inputs` (B, G, T) that are computed.

        Lengths are read on the CPU: with tokens that lie there nothing waits on the device.
        """
        count, group, width = inputs.shape
        ids, mask, position, segment = (
            torch.cat([a, b.flatten(1)], 1) for a, b in zip(_columns(prompts), _columns(inputs), strict=True)
        )
        position[:, prompts.shape[-1] :] += prompts.lengths[:, None]
        self._segment = segment[mask]
        self._text = torch.arange(count, device=mask.device)[:, None].expand_as(mask)[mask]
        place = mask.flatten().cumsum(0).view_as(mask) - 1
        self.ids, self.positions = ids[mask][None].to(device), position[mask][None].to(device)
        self.first = place.gather(1, prompts.lengths[:, None] - 1)[:, 0]
        self.places = place[:, prompts.shape[-1] :].view(count, group, width)
        self.device = device
        self.kept: dict[int, tuple[Tensor, Tensor]] | None = {} if keep else None
        self._lengths = prompts.lengths.tolist(), inputs.lengths.tolist()
        self._parts: dict[torch.dtype, list[PromptSpan]] = {}
        self._blocks: Any = None
        self.used = False

    def parts(self, dtype: torch.dtype) -> list[PromptSpan]:
        """The prompts' stretches, with masks of this number type."""
        if dtype not in self._parts:
            self._parts[dtype] = [_part(p, t, dtype, self.device) for p, t in zip(*self._lengths, strict=True)]
        return self._parts[dtype]

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Attention over the row: (1, heads, N, d) queries, (1, key heads, N, d) keys; gives (1, N, heads, d)."""
        if self.kept is not None:
            self.kept[id(module)] = (key, value)
        if flex_attention.available(query.device):
            return self._flex(query, key, value, scale)
        return self._segments(query, key, value, scale)

    def _segments(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Prompt by prompt with the dense kernels."""
        if key.shape[1] != query.shape[1]:
            key, value = (t.repeat_interleave(query.shape[1] // key.shape[1], 1) for t in (key, value))
        parts = self.parts(query.dtype)
        sizes, out = [part.length for part in parts], []
        for part, q, k, v in zip(parts, query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), strict=True):
            cuts = [part.prompt + part.chunks[0], *part.chunks[1:]]
            ks, vs = (k.split(cuts, 2), v.split(cuts, 2)) if len(cuts) > 1 else ([k], [v])
            for i, (mask, piece) in enumerate(zip(part.masks, q.split(cuts, 2), strict=True)):
                see_k, see_v = ks[i], vs[i]
                if i:
                    see_k = torch.cat([ks[0][:, :, : part.prompt], see_k], 2)
                    see_v = torch.cat([vs[0][:, :, : part.prompt], see_v], 2)
                done = scaled_dot_product_attention(
                    piece, see_k, see_v, attn_mask=mask, is_causal=mask is None, scale=scale
                )
                out.append(done.transpose(1, 2))
        return torch.cat(out, 1)

    def _flex(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """The whole row at once; blocks of the pattern that are empty cost nothing."""
        if self._blocks is None:
            self._blocks = flex_attention.block_mask(self._text, self._segment, query.device)
        return flex_attention.attend(query, key, value, self._blocks, scale, compiled=query.device.type == "cuda")


def _columns(tokens: Tokens) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ids, mask, order within the sequence, and its number: 0 for a prompt, 1 … G for responses."""
    order = torch.arange(tokens.shape[-1], device=tokens.device).expand(tokens.shape).clone()
    segment = torch.zeros_like(order)
    if tokens.ids.ndim == 3:
        segment += torch.arange(1, tokens.shape[1] + 1, device=tokens.device)[:, None]
    return tokens.ids, tokens.mask, order, segment


def _part(prompt: int, responses: list[int], dtype: torch.dtype, device: torch.device) -> PromptSpan:
    groups: list[list[int]] = [[]]
    for length in responses:
        if groups[-1] and sum(groups[-1]) + length > CHUNK_TOKENS:
            groups.append([])
        groups[-1].append(length)
    groups = [group for group in groups if sum(group)] or [[]]
    masks: list[Tensor | None] = []
    for i, group in enumerate(groups):
        queries = [0] * prompt if i == 0 else []
        queries += [n for n, length in enumerate(group, 1) for _ in range(length)]
        if i == 0 and len([n for n in group if n]) <= 1:
            masks.append(None)  # a prompt with one response is a plain text
            continue
        q = torch.tensor(queries)[:, None]
        k = torch.tensor([0] * (prompt if i else 0) + queries)[None]
        seen = ((q == k) | (k == 0)).tril(k.shape[1] - q.shape[0])
        masks.append(torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, -torch.inf).to(device))
    chunks = tuple(sum(group) for group in groups)
    return PromptSpan(prompt + sum(chunks), prompt, chunks, tuple(masks))


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **more: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer: with a layout the ragged pattern, without one sdpa."""
    layout = more.pop(KEYWORD, None)
    if layout is not None:
        layout.used = True
        return layout.attend(module, query, key, value, scaling), None
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more)


def install(body: nn.Module) -> bool:
    """Make `body` attend through this module if it uses sdpa now. Says whether it does.

    The weights and what `save_pretrained` writes stay as they are.
    """
    config: Any = getattr(body, "config", None)
    kind = getattr(config, "_attn_implementation", None)
    if kind == "sdpa":
        if NAME not in _registered:
            from transformers import AttentionInterface, AttentionMaskInterface
            from transformers.masking_utils import sdpa_mask

            AttentionInterface.register(NAME, attention)
            AttentionMaskInterface.register(NAME, sdpa_mask)
            _registered.add(NAME)
        config._attn_implementation = NAME
    return bool(kind in ("sdpa", NAME))


def uninstall(body: nn.Module) -> None:
    """Back to sdpa, for an architecture that doesn't hand keywords on to its attention."""
    config: Any = body.config
    if config._attn_implementation == NAME:
        config._attn_implementation = "sdpa"


def forward_with_layout(body: nn.Module, ids: Tensor, positions: Tensor, layout: Any) -> Tensor | None:
    """Last hidden states (1, N, H) of a row under `layout`; None if no layer asked for the layout."""
    layout.used = False
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids.device)  # a 4-D mask is handed on untouched
    try:
        out = body(ids, attention_mask=mask, position_ids=positions, use_cache=False, **{KEYWORD: layout})
    except TypeError as error:
        if KEYWORD in str(error):
            return None
        raise
    return out.last_hidden_state if layout.used else None


def without_last_token(responses: Tokens) -> Tokens:
    """The response tokens that must be computed: all but each one's last, for nothing follows that."""
    return Tokens(responses.ids, pad(responses.mask[..., 1:], (0, 1)))
