"""Generation of many responses per prompt, in which the responses share the prompt's keys and values.

The `generate` method of transformers repeats the prompt's cache for each response, and copies the whole cache to append
a token. Here a prompt's keys and values are stored once. In each step, the queries q of all G responses of a prompt are
multiplied with K_prompt in one matrix product, and with the keys K_own of their own response:

    scores = [ q·K_promptᵀ | q·K_ownᵀ ],   attention = softmax(scores) [ V_prompt ; V_own ]

K_own and V_own are preallocated. Responses that have ended are not computed any more, and when many of them have
ended, their keys and values are removed.

In a decoding step, `SharedPromptCache` takes the place of the layout in `varlen_attention.py`. No cache of
transformers is used, so that this works for every architecture that hands keyword arguments on to its attention. For
the others there is `generate_with_repeated_cache`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_lab.batch import Tokens
from rlhf_lab.policies.transformer import varlen_attention

COMPACT_BELOW = 0.8
"""Ended responses are removed from the cache when the remaining ones fill less than this fraction of its rows."""


class SharedPromptCache:
    """Keys and values of B prompts, and of B × G responses; the layout of a decoding step.

    Attributes:
        step: number of tokens that each response has before this step.
        rows: (n,), indices into the B·G responses of those that are computed in this step; None for all.
        used: whether an attention layer has used the cache.
    """

    def __init__(self, prompts: Tokens, layout: varlen_attention.VarlenLayout, group: int, capacity: int) -> None:
        """Start with the prompts' keys and values from `prefill`.

        Args:
            prompts: (B, P) on the model's device.
            layout: the layout of `prefill`.
            group: G, the number of responses per prompt.
            capacity: number of tokens per response for which memory is preallocated.
        """
        assert layout.keys_values is not None
        self.group, self.capacity, self.step, self.used = group, capacity, 0, False
        self.rows: Tensor | None = None
        lengths = prompts.lengths
        start = layout.last_prompt_index.to(prompts.device) - lengths + 1
        place = (start[:, None] + torch.arange(prompts.shape[1], device=prompts.device)).where(prompts.mask, 0)
        self._prompt = {
            k: (_rows(keys, place), _rows(values, place)) for k, (keys, values) in layout.keys_values.items()
        }
        self._own: dict[int, tuple[Tensor, Tensor]] = {}
        self._barred = None if bool(prompts.mask.all()) else ~prompts.mask

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Compute the attention of one new token for each of n responses.

        Args:
            module: the attention layer.
            query: (1, heads, n, d).
            key: (1, key heads, n, d), which is added to the cache.
            value: (1, key heads, n, d), which is added to the cache.
            scale: factor of the scores; None for 1/√d.

        Returns:
            (1, n, heads, d).
        """
        query, key, value = self._spread(query), self._spread(key), self._spread(value)
        heads, width = query.shape[1], query.shape[-1]
        keys, values = self._prompt[id(module)]  # (B, key heads, P, d)
        count, kv_heads, length, _ = keys.shape
        shared = heads // kv_heads
        own_keys, own_values, to_come = self._remember(module, key, value)
        q = query[0].view(kv_heads, shared, count, self.group, width).permute(2, 0, 3, 1, 4).to(keys.dtype)
        q = q * (width**-0.5 if scale is None else scale)
        flat = q.reshape(count, kv_heads, self.group * shared, width)
        past = (flat @ keys.mT).view(count, kv_heads, self.group, shared, length)
        if self._barred is not None:
            past = past.masked_fill(self._barred[:, None, None, None], -torch.inf)
        own = q @ own_keys.mT
        if to_come is not None:
            own = own.masked_fill(to_come, -torch.inf)
        scores = torch.cat([past, own], -1)
        weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(values.dtype)
        seen, new = weights.split([length, own.shape[-1]], -1)
        out: Tensor = (seen.reshape(count, kv_heads, self.group * shared, length) @ values).view(*q.shape[:-1], -1)
        out = out + new @ own_values
        out = out.permute(0, 2, 1, 3, 4).reshape(1, count * self.group, heads, -1)
        return out if self.rows is None else out[:, self.rows]

    def _remember(self, module: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Add this step's keys and values, (1, key heads, B·G, d) each, to those of the responses.

        Returns all of them, (B, key heads, G, T, d) each, and a mask (T,) of those that are not written yet, or None.
        """
        own = self._own_of(module, key, value)
        for whole, new in zip(own, (key, value), strict=True):
            whole[:, :, :, self.step] = self._in_grid(new)
        keys, values = (whole[:, :, :, : self.step + 1] for whole in own)
        return keys, values, None

    def _own_of(self, module: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The memory for the responses' keys and values of a layer, (B, key heads, G, capacity, d) each."""
        if id(module) not in self._own:
            known, heads = self._prompt[id(module)][0], key.shape[1]
            shape = (len(known), heads, self.group, self.capacity)
            self._own[id(module)] = known.new_empty(*shape, key.shape[-1]), known.new_empty(*shape, value.shape[-1])
        return self._own[id(module)]

    def _in_grid(self, states: Tensor) -> Tensor:
        """Reshape (1, key heads, B·G, d) to (B, key heads, G, d)."""
        return states[0].view(states.shape[1], -1, self.group, states.shape[-1]).transpose(0, 1)

    def _spread(self, states: Tensor) -> Tensor:
        """Write the n computed rows (1, heads, n, d) to their indices among all responses, (1, heads, B·G, d)."""
        if self.rows is None:
            return states
        count = len(next(iter(self._prompt.values()))[0])
        whole = states.new_zeros(1, states.shape[1], count * self.group, states.shape[-1])
        return whole.index_copy(2, self.rows, states)

    def keep(self, prompts: Tensor, responses: Tensor) -> None:
        """Keep only these prompts (B',) and, of each, these responses (B', G')."""
        for key, (keys, values) in self._prompt.items():
            if len(prompts) < len(keys):
                self._prompt[key] = keys[prompts], values[prompts]
        if self._barred is not None:
            self._barred = self._barred[prompts]
        index = responses[:, None, :, None, None]
        for key, own in self._own.items():
            self._own[key] = tuple(  # type: ignore[assignment]
                t[prompts].gather(2, index.expand(-1, t.shape[1], -1, *t.shape[3:])) for t in own
            )
        self.group = responses.shape[1]


def _rows(kept: Tensor, place: Tensor) -> Tensor:
    """Select the indices `place` (B, P) from (1, heads, N, d): (B, heads, P, d)."""
    if place.shape[0] == 1:
        return kept
    return kept[0][:, place].transpose(0, 1).contiguous()


class EagerStep:
    """A decoding step that runs the model directly, without CUDA graphs.

    Attributes:
        cache: keys and values of prompts and responses.
        drops_ended: whether responses that have ended can be left out.
    """

    drops_ended = True

    def __init__(
        self, body: nn.Module, prompts: Tokens, layout: varlen_attention.VarlenLayout, group: int, capacity: int
    ) -> None:
        """See `SharedPromptCache`; `body` is the transformer without its head."""
        self._body = body
        self.cache = SharedPromptCache(prompts, layout, group, capacity)

    def __call__(self, tokens: Tensor, positions: Tensor, step: int) -> Tensor:
        """Compute the states (1, n, H) of `tokens` (n,) at `positions` (n,), after `step` tokens of each response."""
        self.cache.step = step
        states = varlen_attention.forward_with_layout(self._body, tokens[None], positions[None], self.cache)
        assert states is not None  # the same layers used the layout in `prefill`
        return states


def prefill(
    body: nn.Module, prompts: Tokens, device: torch.device
) -> tuple[Tensor, varlen_attention.VarlenLayout] | None:
    """Compute the prompts.

    Args:
        body: the transformer without its head.
        prompts: (B, P), each of at least one token.
        device: the model's device.

    Returns:
        The states (B, H) of the prompts' last tokens, and a layout with the prompts' keys and values; None if the
        model's attention does not use a layout.
    """
    layout = varlen_attention.VarlenLayout(
        prompts, Tokens.full(prompts.ids[:, None, :0]), device, store_keys_values=True
    )
    hidden = varlen_attention.forward_with_layout(body, layout.ids, layout.positions, layout)
    return None if hidden is None else (hidden[0, layout.last_prompt_index.to(device)], layout)


def still_generating(alive: Tensor, drawn: Tensor, ends: Collection[int]) -> Tensor:
    """`alive`, set to False where the token in `drawn` is one of `ends`. Both tensors have the same shape."""
    for end in ends:
        alive = alive & (drawn != end)
    return alive


def generate(
    body: nn.Module,
    prompts: Tokens,
    num_samples: int,
    max_new_tokens: int,
    ends: Collection[int],
    sample_next: Any,
    device: torch.device,
    make_step: Callable[..., Any] = EagerStep,
) -> Tokens | None:
    """Sample responses to prompts.

    Args:
        body: the transformer without its head.
        prompts: (B, P), each of at least one token.
        num_samples: number of responses per prompt.
        max_new_tokens: maximum number of tokens of a response.
        ends: ids that end a response; may be empty.
        sample_next: samples the next tokens, `(states (N, H), number) → ids (N, number)`.
        device: the model's device.
        make_step: `EagerStep` or `cuda_graph.CudaGraphStep`.

    Returns:
        (B, num_samples, T); None if the model's attention does not use a layout.
    """
    start = prefill(body, prompts, device)
    if start is None:
        return None
    last, layout = start
    prompts = prompts.to(device)
    count, group = len(prompts), num_samples
    compute = make_step(body, prompts, layout, group, max_new_tokens - 1)
    cache = compute.cache
    layout.keys_values = None
    ids = torch.zeros(count * group, max_new_tokens, dtype=torch.long, device=device)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    slot = torch.arange(count * group, device=device).view(count, group)
    position = prompts.lengths[:, None].expand(count, group)
    alive = torch.ones_like(slot, dtype=torch.bool)
    drawn = sample_next(last, group)
    for step in range(max_new_tokens):
        ids[slot, step], mask[slot, step] = drawn.where(alive, 0), alive
        if step + 1 == max_new_tokens:
            break
        if ends:
            alive = still_generating(alive, drawn, ends)
            # On a GPU, reading the number back waits for the device, so this is done in every eighth step only.
            if device.type == "cpu" or step % 8 == 7:
                going = alive.sum(1)
                widest = int(going.max())
                if widest == 0:
                    break
                kept = going.nonzero().squeeze(1)
                if compute.drops_ended and len(kept) * widest < COMPACT_BELOW * alive.numel():
                    columns = (~alive[kept]).int().argsort(dim=1, stable=True)[:, :widest]
                    cache.keep(kept, columns)
                    slot, position, alive, drawn = (t[kept].gather(1, columns) for t in (slot, position, alive, drawn))
                if compute.drops_ended:
                    cache.rows = alive.flatten().nonzero().squeeze(1)
        tokens, places = drawn.flatten(), position.flatten() + step
        if cache.rows is not None:
            tokens, places = tokens[cache.rows], places[cache.rows]
        hidden = compute(tokens, places, step)
        new = sample_next(hidden[0], 1)[:, 0]
        new = new if cache.rows is None else torch.zeros_like(drawn).flatten().index_copy(0, cache.rows, new)
        drawn = new.view(slot.shape)
    longest = max(int(mask.sum(1).max()), 1)
    return Tokens(ids[:, :longest].view(count, group, -1), mask[:, :longest].view(count, group, -1))


def generate_with_repeated_cache(
    body: nn.Module, prompts: Tokens, num_samples: int, max_new_tokens: int, ends: Collection[int], sample_next: Any
) -> Tokens:
    """Sample responses with the model's own cache, repeated for each response.

    For models whose attention does not use a layout. Arguments as in `generate`.

    Returns:
        (B, num_samples, T).
    """
    model: Any = body
    # Padding follows the prompts, so that a causal model does not attend to it.
    out = model(prompts.ids, attention_mask=torch.ones_like(prompts.ids), use_cache=True)
    last = out.last_hidden_state[torch.arange(len(prompts), device=prompts.device), prompts.lengths - 1]
    drawn = sample_next(last, num_samples).flatten()
    cache = out.past_key_values
    if max_new_tokens > 1:
        cache.batch_repeat_interleave(num_samples)
    seen = prompts.mask.repeat_interleave(num_samples, 0)
    position = prompts.lengths.repeat_interleave(num_samples)
    alive = torch.ones_like(drawn, dtype=torch.bool)
    ids, mask = [], []
    for step in range(max_new_tokens):
        ids.append(drawn.where(alive, 0))
        mask.append(alive)
        if ends:
            alive = still_generating(alive, drawn, ends)
            if not alive.any():
                break
        if step + 1 == max_new_tokens:
            break
        seen = torch.cat([seen, torch.ones_like(seen[:, :1])], 1)
        out = model(
            drawn[:, None],
            attention_mask=seen.long(),
            position_ids=(position + step)[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        drawn = sample_next(out.last_hidden_state[:, -1], 1)[:, 0]
    shape = (len(prompts), num_samples, len(ids))
    return Tokens(torch.stack(ids, -1).view(shape), torch.stack(mask, -1).view(shape))
