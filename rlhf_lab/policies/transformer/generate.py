"""Many responses to one prompt, token by token: the prompt's keys and values are computed once and read once.

`generate` repeats the prompt's cache for each response and grows it by copying. Here all responses of a prompt ask
the same keys in one matrix product,

    scores = [ q·K_promptᵀ | q·K_ownᵀ ],   attention = softmax(scores) [ V_prompt ; V_own ]

q of all G responses against one K_prompt, and against each one's own, preallocated K_own. Responses that have ended
are left out of the row that the model computes; their keys are dropped where a good share of them has ended.

`SharedPromptCache` is the layout that a decoding step hands to `varlen_attention.py`; no cache of transformers
takes part, so this works for whatever architecture hands keywords on to its attention.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_lab.batch import Tokens
from rlhf_lab.policies.transformer import varlen_attention

COMPACT_BELOW = 0.8
"""The grid of B × G responses is cut down when what goes on fits into less than this share of it."""


class SharedPromptCache:
    """The layout of a decoding step: B prompts' keys and values, and each of B × G responses' own.

    Attributes:
        step: tokens that each response has in its own keys before this step.
        rows: (n,), the responses that take part in this step, as numbers in the flat grid; None for all.
        used: an attention layer has asked for it.
    """

    def __init__(self, prompts: Tokens, layout: varlen_attention.VarlenLayout, group: int, room: int) -> None:
        """Take the keys and values that `layout` kept.

        Args:
            prompts: (B, P) on the model's device.
            layout: of a pass over the prompts alone, with `keep=True`.
            group: G, responses a prompt.
            room: tokens for which keys are preallocated.
        """
        assert layout.kept is not None
        self.group, self.room, self.step, self.used = group, room, 0, False
        self.rows: Tensor | None = None
        lengths = prompts.lengths
        start = layout.first.to(prompts.device) - lengths + 1
        place = (start[:, None] + torch.arange(prompts.shape[1], device=prompts.device)).where(prompts.mask, 0)
        self._prompt = {k: (_rows(keys, place), _rows(values, place)) for k, (keys, values) in layout.kept.items()}
        self._own: dict[int, tuple[Tensor, Tensor]] = {}
        self._barred = None if bool(prompts.mask.all()) else ~prompts.mask

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """One new token of n responses: (1, heads, n, d) queries; gives (1, n, heads, d)."""
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
        out = (seen.reshape(count, kv_heads, self.group * shared, length) @ values).view(*q.shape[:-1], -1)
        out = out + new @ own_values
        out = out.permute(0, 2, 1, 3, 4).reshape(1, count * self.group, heads, -1)
        return out if self.rows is None else out[:, self.rows]

    def _remember(self, module: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Put this step's keys and values, (1, key heads, B·G, d) each, to the responses' own.

        Gives all of them, (B, key heads, G, T, d), and which of the T are yet to come, (T,), or None if none is.
        """
        own = self._own_of(module, key, value)
        for whole, new in zip(own, (key, value), strict=True):
            whole[:, :, :, self.step] = self._in_grid(new)
        keys, values = (whole[:, :, :, : self.step + 1] for whole in own)
        return keys, values, None

    def _own_of(self, module: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The room for a layer's own keys and values, (B, key heads, G, room, d) each."""
        if id(module) not in self._own:
            known, heads = self._prompt[id(module)][0], key.shape[1]
            shape = (len(known), heads, self.group, self.room)
            self._own[id(module)] = known.new_empty(*shape, key.shape[-1]), known.new_empty(*shape, value.shape[-1])
        return self._own[id(module)]

    def _in_grid(self, states: Tensor) -> Tensor:
        """(1, key heads, B·G, d) as (B, key heads, G, d)."""
        return states[0].view(states.shape[1], -1, self.group, states.shape[-1]).transpose(0, 1)

    def _spread(self, states: Tensor) -> Tensor:
        """(1, heads, n, d) to its places in the whole grid, (1, heads, B·G, d)."""
        if self.rows is None:
            return states
        count = len(next(iter(self._prompt.values()))[0])
        whole = states.new_zeros(1, states.shape[1], count * self.group, states.shape[-1])
        return whole.index_copy(2, self.rows, states)

    def keep(self, prompts: Tensor, responses: Tensor) -> None:
        """Go on with these prompts (B',) and, of each, these responses (B', G')."""
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
    """(1, heads, N, d) at places (B, P): (B, heads, P, d)."""
    if place.shape[0] == 1:
        return kept
    return kept[0][:, place].transpose(0, 1).contiguous()


class EagerStep:
    """One decoding step of `body`, computed as it comes.

    Attributes:
        cache: the prompts' and the responses' keys and values.
        thins: responses that have ended can be left out of it.
    """

    thins = True

    def __init__(
        self, body: nn.Module, prompts: Tokens, layout: varlen_attention.VarlenLayout, group: int, room: int
    ) -> None:
        """As `SharedPromptCache`."""
        self._body = body
        self.cache = SharedPromptCache(prompts, layout, group, room)

    def __call__(self, tokens: Tensor, positions: Tensor, step: int) -> Tensor:
        """States (1, n, H) of `tokens` (n,) at `positions` (n,); each response has `step` tokens before this one."""
        self.cache.step = step
        states = varlen_attention.forward_with_layout(self._body, tokens[None], positions[None], self.cache)
        assert states is not None  # the prompts went the same way
        return states


def prefill(
    body: nn.Module, prompts: Tokens, device: torch.device
) -> tuple[Tensor, varlen_attention.VarlenLayout] | None:
    """The states (B, H) at the prompts' last tokens, and the layout that kept keys and values; None as in `run`."""
    layout = varlen_attention.VarlenLayout(prompts, Tokens.full(prompts.ids[:, None, :0]), device, keep=True)
    hidden = varlen_attention.forward_with_layout(body, layout.ids, layout.positions, layout)
    return None if hidden is None else (hidden[0, layout.first.to(device)], layout)


def still_generating(alive: Tensor, drawn: Tensor, ends: Collection[int]) -> Tensor:
    """`alive`, except where the token in `drawn` is one of `ends`. Both have the same shape."""
    for end in ends:
        alive = alive & (drawn != end)
    return alive


def generate(
    body: nn.Module,
    prompts: Tokens,
    num_samples: int,
    max_new_tokens: int,
    ends: Collection[int],
    choose: Any,
    device: torch.device,
    step_of: Callable[..., Any] = EagerStep,
) -> Tokens | None:
    """Draw responses (B, num_samples, T) to `prompts` (B, P); None if the model's attention takes no layout.

    Args:
        body: the transformer without its head.
        prompts: each of at least one token.
        num_samples: responses a prompt.
        max_new_tokens: longest response.
        ends: ids that end a response; may be empty.
        choose: `(states (N, H), number) → ids (N, number)`.
        device: where the model lies.
        step_of: makes the step; `EagerStep`, or `graphs.CudaGraphStep`.
    """
    start = prefill(body, prompts, device)
    if start is None:
        return None
    last, layout = start
    prompts = prompts.to(device)
    count, group = len(prompts), num_samples
    compute = step_of(body, prompts, layout, group, max_new_tokens - 1)
    cache = compute.cache
    layout.kept = None
    ids = torch.zeros(count * group, max_new_tokens, dtype=torch.long, device=device)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    slot = torch.arange(count * group, device=device).view(count, group)
    position = prompts.lengths[:, None].expand(count, group)
    alive = torch.ones_like(slot, dtype=torch.bool)
    drawn = choose(last, group)
    for step in range(max_new_tokens):
        ids[slot, step], mask[slot, step] = drawn.where(alive, 0), alive
        if step + 1 == max_new_tokens:
            break
        if ends:
            alive = still_generating(alive, drawn, ends)
            # On a device the count is a wait, so it is asked for now and then only.
            if device.type == "cpu" or step % 8 == 7:
                going = alive.sum(1)
                widest = int(going.max())
                if widest == 0:
                    break
                kept = going.nonzero().squeeze(1)
                if compute.thins and len(kept) * widest < COMPACT_BELOW * alive.numel():
                    columns = (~alive[kept]).int().argsort(dim=1, stable=True)[:, :widest]
                    cache.keep(kept, columns)
                    slot, position, alive, drawn = (t[kept].gather(1, columns) for t in (slot, position, alive, drawn))
                if compute.thins:
                    cache.rows = alive.flatten().nonzero().squeeze(1)
        tokens, places = drawn.flatten(), position.flatten() + step
        if cache.rows is not None:
            tokens, places = tokens[cache.rows], places[cache.rows]
        hidden = compute(tokens, places, step)
        new = choose(hidden[0], 1)[:, 0]
        new = new if cache.rows is None else torch.zeros_like(drawn).flatten().index_copy(0, cache.rows, new)
        drawn = new.view(slot.shape)
    longest = max(int(mask.sum(1).max()), 1)
    return Tokens(ids[:, :longest].view(count, group, -1), mask[:, :longest].view(count, group, -1))


def generate_with_repeated_cache(
    body: nn.Module, prompts: Tokens, num_samples: int, max_new_tokens: int, ends: Collection[int], choose: Any
) -> Tokens:
    """The same through the model's own cache, repeated for each response: for attention that takes no layout."""
    model: Any = body
    # Prompts lie at the left: under a causal mask what follows a prompt's end cannot reach it.
    out = model(prompts.ids, attention_mask=torch.ones_like(prompts.ids), use_cache=True)
    last = out.last_hidden_state[torch.arange(len(prompts), device=prompts.device), prompts.lengths - 1]
    drawn = choose(last, num_samples).flatten()
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
        drawn = choose(out.last_hidden_state[:, -1], 1)[:, 0]
    shape = (len(prompts), num_samples, len(ids))
    return Tokens(torch.stack(ids, -1).view(shape), torch.stack(mask, -1).view(shape))
