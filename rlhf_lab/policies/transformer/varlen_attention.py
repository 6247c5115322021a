"""Variable-length (varlen) attention: a whole batch in one row without padding, with every prompt computed once.

The row of a batch with two prompts x and X, of which the first has two responses a and b and the second has one, c:

    tokens      x  x  x  a  a  b  X  X  c  c
    positions   0  1  2  3  4  3  0  1  2  3

A response's positions continue those of its prompt. Each token attends to its prompt and to its response, up to
itself (rows are queries, columns are keys):

         x  x  x  a  a  b  X  X  c  c
    x    #
    x    #  #
    x    #  #  #
    a    #  #  #  #
    a    #  #  #  #  #
    b    #  #  #        #
    X                      #
    X                      #  #
    c                      #  #  #
    c                      #  #  #  #

Only attention has to know this pattern, because all other layers of a transformer process each token separately.
transformers calls the attention function that is registered under the name in the model's `_attn_implementation`.
This module registers one under the name "rlhf_lab". If the forward pass was given a `VarlenLayout` as a keyword
argument, the function computes the pattern above; otherwise it calls the usual `scaled_dot_product_attention`.

The cost of the matrix products is linear in the number of tokens. Attention costs P² + ΣT·(P + chunk) for a prompt of
P tokens and responses of T tokens. On a CUDA device the pattern is computed by one block-sparse `flex_attention`
(`flex_attention.py`, experimental).

Left out on purpose: sliding windows and soft caps (`shared_prefix_forward.context_length` treats a window as the
model's maximum length).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from rlhf_lab.batch import Tokens
from rlhf_lab.policies.transformer import flex_attention

NAME = "rlhf_lab"
"""The name under which the attention function is registered."""
KEYWORD = "rlhf_lab_layout"
"""The keyword argument with which a model's forward pass hands the layout on to its attention layers."""
CHUNK_TOKENS = 256
"""Maximum number of response tokens computed in one attention call. A larger chunk computes more masked scores."""

_registered: set[str] = set()


class PromptSpan(NamedTuple):
    """The part of the row that one prompt and its responses occupy.

    Attributes:
        length: number of tokens of the prompt and of all its responses.
        prompt_length: number of tokens of the prompt.
        chunks: numbers of response tokens that are computed together. A chunk consists of whole responses. The first
            chunk is computed together with the prompt.
        masks: an additive attention mask for each chunk, 0 where a query may attend and −∞ elsewhere; None if the
            chunk needs only a causal mask.
    """

    length: int
    prompt_length: int
    chunks: tuple[int, ...]
    masks: tuple[Tensor | None, ...]


class VarlenLayout:
    """The tokens of a row without padding, and which of them attend to which. All layers of a forward pass share it.

    Attributes:
        ids: (1, N) token ids.
        positions: (1, N), the position of each token in its prompt + response.
        last_prompt_index: (B,), the index in the row of each prompt's last token.
        response_index: (B, G, T), the index in the row of each response token; meaningless where there is none.
        used: whether an attention layer has used the layout.
        keys_values: keys and values by the id of the attention module, (1, heads, N, d) each; None if they are not
            stored.
    """

    def __init__(self, prompts: Tokens, inputs: Tokens, device: torch.device, store_keys_values: bool = False) -> None:
        """Lay out a batch.

        The lengths are read on the CPU. If the tokens are on the CPU, nothing has to wait for the device.

        Args:
            prompts: (B, P).
            inputs: (B, G, T), the response tokens that are computed.
            device: the model's device.
            store_keys_values: store the keys and values of every layer in `keys_values`.
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
        self.last_prompt_index = place.gather(1, prompts.lengths[:, None] - 1)[:, 0]
        self.response_index = place[:, prompts.shape[-1] :].view(count, group, width)
        self.device = device
        self.keys_values: dict[int, tuple[Tensor, Tensor]] | None = {} if store_keys_values else None
        self._lengths = prompts.lengths.tolist(), inputs.lengths.tolist()
        self._spans: dict[torch.dtype, list[PromptSpan]] = {}
        self._blocks: Any = None
        self.used = False

    def spans(self, dtype: torch.dtype) -> list[PromptSpan]:
        """The spans of all prompts, with masks of this dtype."""
        if dtype not in self._spans:
            self._spans[dtype] = [_prompt_span(p, t, dtype, self.device) for p, t in zip(*self._lengths, strict=True)]
        return self._spans[dtype]

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Compute attention over the row.

        Args:
            module: the attention layer.
            query: (1, heads, N, d).
            key: (1, key heads, N, d); `heads` is a multiple of `key heads` (grouped-query attention).
            value: (1, key heads, N, d).
            scale: factor of the scores; None for 1/√d.

        Returns:
            (1, N, heads, d).
        """
        if self.keys_values is not None:
            self.keys_values[id(module)] = (key, value)
        if flex_attention.available(query.device):
            return self._attend_flex(query, key, value, scale)
        return self._attend_dense(query, key, value, scale)

    def _attend_dense(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Compute the spans one after the other with dense kernels."""
        if value.dtype == torch.bfloat16 and value.device.type == "cpu":  # rotary positions make the others float32
            # On a CPU the backward pass of torch's attention takes about twice as long in bfloat16 as in float32.
            with torch.autocast("cpu", enabled=False):
                return self._attend_dense(query.float(), key.float(), value.float(), scale).bfloat16()
        if key.shape[1] != query.shape[1]:
            key, value = (t.repeat_interleave(query.shape[1] // key.shape[1], 1) for t in (key, value))
        spans = self.spans(query.dtype)
        sizes, out = [span.length for span in spans], []
        for span, q, k, v in zip(spans, query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), strict=True):
            cuts = [span.prompt_length + span.chunks[0], *span.chunks[1:]]
            ks, vs = (k.split(cuts, 2), v.split(cuts, 2)) if len(cuts) > 1 else ([k], [v])
            for i, (mask, piece) in enumerate(zip(span.masks, q.split(cuts, 2), strict=True)):
                see_k, see_v = ks[i], vs[i]
                if i:
                    see_k = torch.cat([ks[0][:, :, : span.prompt_length], see_k], 2)
                    see_v = torch.cat([vs[0][:, :, : span.prompt_length], see_v], 2)
                done = scaled_dot_product_attention(
                    piece, see_k, see_v, attn_mask=mask, is_causal=mask is None, scale=scale
                )
                out.append(done.transpose(1, 2))
        return torch.cat(out, 1)

    def _attend_flex(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Compute the whole row in one call. Empty blocks of the pattern cost nothing."""
        if self._blocks is None:
            self._blocks = flex_attention.block_mask(self._text, self._segment, query.device)
        return flex_attention.attend(query, key, value, self._blocks, scale, compiled=query.device.type == "cuda")


def _columns(tokens: Tokens) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids, mask, index within the sequence, and the sequence's number: 0 for a prompt, 1 … G for responses."""
    order = torch.arange(tokens.shape[-1], device=tokens.device).expand(tokens.shape).clone()
    segment = torch.zeros_like(order)
    if tokens.ids.ndim == 3:
        segment += torch.arange(1, tokens.shape[1] + 1, device=tokens.device)[:, None]
    return tokens.ids, tokens.mask, order, segment


def _prompt_span(prompt: int, responses: list[int], dtype: torch.dtype, device: torch.device) -> PromptSpan:
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
            masks.append(None)  # a prompt with one response is an ordinary causal sequence
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
    """The attention function that transformers calls in every layer: varlen with a layout, else sdpa.

    Args:
        module: the attention layer.
        query: (B, heads, N, d); with a layout B is 1.
        key: (B, key heads, N, d).
        value: (B, key heads, N, d).
        attention_mask: used without a layout only.
        scaling: factor of the scores; None for 1/√d.
        dropout: used without a layout only.
        more: the layout under `KEYWORD`; everything else is handed on to sdpa.

    Returns:
        (B, N, heads, d), and None in place of the attention weights.
    """
    layout = more.pop(KEYWORD, None)
    if layout is not None:
        layout.used = True
        return layout.attend(module, query, key, value, scaling), None
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more)


def install(body: nn.Module) -> bool:
    """Make `body` use this module's attention if it uses sdpa now.

    The weights, and the files that `save_pretrained` writes, do not change.

    Returns:
        Whether `body` uses this module's attention now.
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
    """Make `body` use sdpa again, for an architecture that does not hand keyword arguments on to its attention."""
    config: Any = body.config
    if config._attn_implementation == NAME:
        config._attn_implementation = "sdpa"


def forward_with_layout(body: nn.Module, ids: Tensor, positions: Tensor, layout: Any) -> Tensor | None:
    """Run `body` on a row with a layout.

    Args:
        body: the transformer without its head, after `install`.
        ids: (1, N) token ids.
        positions: (1, N).
        layout: a `VarlenLayout`, or another object with `used` and `attend`.

    Returns:
        The last hidden states, (1, N, H); None if no attention layer used the layout.
    """
    layout.used = False
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids.device)  # transformers hands a 4-D mask on unchanged
    try:
        out = body(ids, attention_mask=mask, position_ids=positions, use_cache=False, **{KEYWORD: layout})
    except TypeError as error:
        if KEYWORD in str(error):
            return None
        raise
    return out.last_hidden_state if layout.used else None


def without_last_token(responses: Tokens) -> Tokens:
    """The response tokens that have to be computed: all except the last one, from which no token is predicted."""
    return Tokens(responses.ids, pad(responses.mask[..., 1:], (0, 1)))
