"""One prompt, many responses, computed once: the forward pass that log-probabilities, rewards and critics share.

The plain way writes prompt + response as a row of its own, so a prompt with G responses is computed G times, and
pads every row to the longest. Here the batch is one row that holds each token once (`varlen_attention.py`):

    [ x¹ | y¹¹ | y¹² | … | x² | y²¹ | … ]

with positions that start again after the prompt; each response sees the prompt and its own past. A causal
transformer then has, at each place, the same state as in the plain way.

Models whose attention is written out ("eager"), or that don't hand keywords on to their attention, take the second
way: a padded row a prompt under a block mask; and where such a row would have more than `MAX_PADDED_ROW` tokens, the
prompt goes once into a key–value cache, which gradients flow through, and the responses follow in chunks that read it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.policies.transformer import varlen_attention

MAX_PADDED_ROW = 4096
"""Tokens in a padded row above which the responses are computed in chunks over a shared cache."""
MAX_TOKENS_PER_PASS = 16_384
"""Tokens in a row without padding. A larger batch is computed in several rows, the same number for number."""


class States(NamedTuple):
    """Hidden states of a batch, each place once.

    Attributes:
        flat: (M, H), the last layer's states at every prompt's last token and at every response token that
            was computed.
        before: (B, G, T), the row of `flat` from which response token t is predicted: the prompt's last token
            for t = 0, token t−1 after it. 0, and meaningless, where the response has no token t.
    """

    flat: Tensor
    before: Tensor


@contextmanager
def dropout_off(module: nn.Module) -> Iterator[None]:
    """No dropout in `module` for a while: parts that would drop something are put in eval mode, and back again.

    A part silenced by `remove_dropout` stays as it is: transformers checkpoints gradients only in training mode.
    """
    training = [part for part in module.modules() if part.training]
    if not any(_drops(part) for part in training):
        training = []
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def remove_dropout(module: nn.Module) -> None:
    """Set every dropout probability in `module` to 0, for good. The configuration that is saved keeps its own."""
    for part in module.modules():
        for name in _drops(part):
            setattr(part, name, 0.0)


def _drops(part: nn.Module) -> list[str]:
    """Names of the probabilities with which this part drops something: p of `nn.Dropout`, `attention_dropout`, …"""
    names = [name for name in vars(part) if "drop" in name] + (["p"] if hasattr(part, "p") else [])
    values = {name: getattr(part, name) for name in names}
    return [name for name, value in values.items() if isinstance(value, float) and value > 0]


def fuse_gelu(module: nn.Module) -> None:
    """GPT-2's GELU by tanh, which transformers writes out in eight steps, as torch's one kernel: the same function.

    The eight keep their results for the backward pass, at the model's widest place.
    """
    for part in module.modules():
        for name, child in part.named_children():
            if type(child).__name__ == "NewGELUActivation":
                setattr(part, name, nn.GELU(approximate="tanh"))


def body_of(model: nn.Module) -> nn.Module:
    """The transformer below a Hugging Face model's language-model head, adapters (peft) and all."""
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()  # type: ignore[operator]
    return getattr(model, getattr(model, "base_model_prefix", ""), model)


def context_length(config: Any) -> int | None:
    """Longest sequence that the architecture of `config` treats as one, or None if it names no limit.

    A sliding attention window counts as the limit: a block mask says nothing about windows.
    """
    names = ("max_position_embeddings", "n_positions", "sliding_window", "window_size")
    limits = [getattr(config, name, None) for name in names]
    return min((n for n in limits if isinstance(n, int) and n > 0), default=None)


def check_prompts(prompts: Tokens, known_ids: int) -> None:
    """Raise `LabError` for prompts that are not (B, P), that are empty, or whose ids the model does not know."""
    if prompts.ids.ndim != 2 or len(prompts) == 0:
        raise LabError(f"prompts must have shape (B, P) with at least one row, not {tuple(prompts.shape)}.")
    empty = prompts.lengths == 0
    if empty.any():
        raise LabError(
            f"Prompt {int(empty.nonzero()[0])} is empty: the first response token is predicted from the prompt's "
            f"last one. Give it a token, e.g. the beginning-of-text token."
        )
    _check_ids(prompts, known_ids, "Prompt", "the model's vocabulary")


def check_batch(prompts: Tokens, responses: Tokens, config: Any, num_ids: int | None = None) -> None:
    """Raise `LabError` for a batch that a model of `config` cannot score; the message names the row.

    Args:
        prompts: (B, P), each of at least one token.
        responses: (B, G, T).
        config: the Hugging Face configuration of the model.
        num_ids: ids that may stand in a response: 0 … num_ids − 1; None for the model's whole vocabulary.
    """
    check_prompts(prompts, config.vocab_size)
    if responses.ids.ndim != 3 or responses.shape[0] != len(prompts):
        raise LabError(
            f"responses must have shape (B, G, T) with B = {len(prompts)} prompts, not {tuple(responses.shape)}."
        )
    what = "the model's vocabulary" if num_ids in (None, config.vocab_size) else "the policy's vocab_size"
    _check_ids(responses, num_ids or config.vocab_size, "Response", what)
    limit = context_length(config)
    total = prompts.lengths[:, None] + responses.lengths
    if limit is not None and bool((total > limit).any()):
        row, column = (total > limit).nonzero()[0].tolist()
        raise LabError(
            f"Prompt {row} with its response {column} has {int(total[row, column])} tokens; the model's context "
            f"holds {limit}. Truncate or drop that row."
        )


def _check_ids(tokens: Tokens, limit: int, what: str, where: str) -> None:
    if tokens.mask.device.type != "cpu":  # one that lies on the CPU was checked when it was made
        tokens.check_places()
    bad = tokens.mask & ((tokens.ids >= limit) | (tokens.ids < 0))
    if bad.any():
        place = bad.nonzero()[0].tolist()
        raise LabError(
            f"{what} {place[0] if len(place) == 2 else tuple(place[:-1])} holds the id {int(tokens.ids[bad][0])} at "
            f"place {place[-1]}; {where} has ids 0 … {limit - 1}."
        )


def shared_prefix_states(body: nn.Module, prompts: Tokens, responses: Tokens) -> States:
    """Hidden states of every place from which a response token is predicted.

    A response's last token is not computed, for nothing follows it; to have its own state too, as a reward
    model does, widen the response by one place (see `rewards.language_model`).

    Args:
        body: the transformer without its head; it takes a (B, 1, Q, K) attention mask.
        prompts: (B, P), each of at least one token.
        responses: (B, G, T).
    """
    if varlen_attention.install(body):
        states = _varlen_states(body, prompts, responses)
        if states is not None:
            return states
        varlen_attention.uninstall(body)
    prompts, responses = prompts.to(_device(body)), responses.to(_device(body))
    inputs = varlen_attention.without_last_token(responses)
    longest = int((prompts.lengths + inputs.lengths.sum(-1)).max())
    if longest <= MAX_PADDED_ROW or responses.shape[1] == 1:
        flat, places = _padded_row_states(body, prompts, inputs)
    else:
        flat, places = _cached_prompt_states(body, prompts, inputs)
    first, rest = places
    return States(flat, _before(first, rest, responses.mask))


def _device(body: nn.Module) -> torch.device:
    return next(body.parameters()).device


def _before(first: Tensor, rest: Tensor, mask: Tensor) -> Tensor:
    """(B, G, T) places from which tokens are predicted: `first` (B,) for the first, then `rest`'s (B, G, T)."""
    before = torch.cat([first[:, None, None].expand(-1, rest.shape[1], 1), rest[..., :-1]], -1)
    return before.where(mask, 0)


def _varlen_states(body: nn.Module, prompts: Tokens, responses: Tokens) -> States | None:
    """Rows without padding, of up to `MAX_TOKENS_PER_PASS` tokens; None if the model's attention takes no layout."""
    device = _device(body)
    inputs, mask = varlen_attention.without_last_token(responses), responses.mask
    ends = (prompts.lengths + inputs.lengths.sum(-1)).cumsum(0).tolist()
    flat, before, start, made = [], [], 0, 0
    while start < len(ends):
        room = MAX_TOKENS_PER_PASS + (ends[start - 1] if start else 0)
        stop = max(start + 1, sum(end <= room for end in ends))
        layout = varlen_attention.VarlenLayout(prompts[start:stop], inputs[start:stop], device)
        hidden = varlen_attention.forward_with_layout(body, layout.ids, layout.positions, layout)
        if hidden is None:
            return None
        # Only the places from which a token is predicted: a prompt's last token, and every computed response token.
        wanted = torch.zeros(hidden.shape[1], dtype=torch.bool, device=prompts.device)
        wanted[layout.first] = True
        wanted[layout.places[inputs.mask[start:stop]]] = True
        number = wanted.cumsum(0) - 1
        rows = wanted.nonzero().squeeze(1).to(device)
        places = _before(number[layout.first], number[layout.places], mask[start:stop])
        flat.append(hidden[0].index_select(0, rows))
        before.append((places + made).where(mask[start:stop], 0))
        start, made = stop, made + len(rows)
    whole = flat[0] if len(flat) == 1 else torch.cat(flat)
    return States(whole, torch.cat(before).to(device))


def _padded_row_states(body: nn.Module, prompts: Tokens, inputs: Tokens) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """All responses in the prompt's row. Returns flat states, and in it the places of prompts and inputs."""
    row = _PaddedRow.of(inputs, prompts)
    out = _run(body, row.ids, row.positions, row.mask(body) if inputs.shape[1] > 1 else None)
    wanted = row.number() >= prompts.lengths[:, None] - 1
    wanted &= row.segment >= 0
    numbers = (wanted.flatten().cumsum(0) - 1).view_as(wanted)
    first = numbers.gather(1, prompts.lengths[:, None] - 1).squeeze(1)
    rest = numbers.gather(1, row.places.flatten(1)).view_as(row.places)
    return out.last_hidden_state[wanted], (first, rest)


def _cached_prompt_states(body: nn.Module, prompts: Tokens, inputs: Tokens) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The prompt once, then responses in chunks of at most `MAX_PADDED_ROW` tokens that read its keys and values."""
    from transformers import DynamicCache

    out = _run(body, prompts.ids, None, None, use_cache=True)
    last = prompts.lengths - 1
    flat = [out.last_hidden_state.gather(1, last[:, None, None].expand(-1, 1, out.last_hidden_state.shape[-1]))[:, 0]]
    keys_values = [(layer.keys, layer.values) for layer in out.past_key_values.layers]
    rest, count = [], len(prompts)
    each = max(MAX_PADDED_ROW // max(int(inputs.lengths.max()), 1), 1)
    for start in range(0, inputs.shape[1], each):
        chunk = Tokens(inputs.ids[:, start : start + each], inputs.mask[:, start : start + each])
        if not bool(chunk.mask.any()):
            rest.append(torch.zeros_like(chunk.ids))
            continue
        row = _PaddedRow.of(chunk, None)
        cache = DynamicCache()
        for layer, (key, value) in enumerate(keys_values):
            cache.update(key, value, layer)
        out = _run(
            body,
            row.ids,
            (row.positions + prompts.lengths[:, None]).where(row.segment >= 0, 0),
            row.mask(body, prompts.mask),
            past_key_values=cache,
        )
        wanted = row.segment >= 0
        numbers = (wanted.flatten().cumsum(0) - 1).view_as(wanted)
        flat.append(out.last_hidden_state[wanted])
        rest.append(count + numbers.gather(1, row.places.flatten(1)).view_as(row.places))
        count += len(flat[-1])
    return torch.cat(flat), (torch.arange(len(prompts), device=prompts.device), torch.cat(rest, 1))


class _PaddedRow(NamedTuple):
    """Sequences laid end to end, one row a prompt.

    Attributes:
        ids: (B, L), 0 where nothing lies.
        positions: (B, L), the place within the prompt + response that the token belongs to.
        segment: (B, L): 0 prompt, 1 … G responses, −1 nothing.
        places: (B, G, T), where in the row each input token lies (0 where there is none).
    """

    ids: Tensor
    positions: Tensor
    segment: Tensor
    places: Tensor

    @classmethod
    def of(cls, inputs: Tokens, prompts: Tokens | None) -> _PaddedRow:
        count, group, width = inputs.shape
        step = torch.arange(width, device=inputs.device).expand(count, group, width)
        which = torch.arange(1, group + 1, device=inputs.device)[:, None].expand(count, group, width)
        parts = [(inputs.ids, inputs.mask, step, which)]
        if prompts is not None:
            order = torch.arange(prompts.shape[-1], device=inputs.device).expand(count, -1)
            step = step + prompts.lengths[:, None, None]
            parts = [
                (prompts.ids, prompts.mask, order, torch.zeros_like(order)),
                (inputs.ids, inputs.mask, step, which),
            ]
        ids, mask, position, segment = (
            torch.cat([column.flatten(1) for column in columns], 1) for columns in zip(*parts, strict=True)
        )
        place = (mask.cumsum(1) - 1).clamp(min=0)
        length = int(mask.sum(1).max())
        # What does not count is sent to a place past the end, which is cut off again.
        target = place.where(mask, length)

        def lay(values: Tensor, empty: int) -> Tensor:
            return torch.full((count, length + 1), empty, device=ids.device).scatter(1, target, values)[:, :length]

        place = place.where(mask, 0)[:, place.shape[1] - group * width :]
        return cls(lay(ids, 0), lay(position, 0), lay(segment, -1), place.view(count, group, width))

    def number(self) -> Tensor:
        """Column numbers, (1, L)."""
        return torch.arange(self.ids.shape[1], device=self.ids.device)[None]

    def mask(self, body: nn.Module, cached: Tensor | None = None) -> Tensor:
        """The block mask, (B, 1, L, L), or (B, 1, L, P + L) behind `cached` keys of mask (B, P).

        A place where nothing lies sees itself, so that no row of the softmax is empty.
        """
        query, key = self.segment[:, :, None], self.segment[:, None, :]
        past = self.number().mT >= self.number()
        allowed = ((query == key) | (key == 0)) & past
        if cached is not None:
            allowed = torch.cat([cached[:, None, :].expand(-1, self.ids.shape[1], -1), allowed], 2)
        return _as_attention_mask(allowed[:, None], body)


def _as_attention_mask(allowed: Tensor, body: nn.Module) -> Tensor:
    """Boolean for the sdpa kernels; for the written-out attention, which adds it, 0 and the lowest number."""
    kind = getattr(body.config, "_attn_implementation", "eager")
    if kind in ("sdpa", varlen_attention.NAME):
        return allowed
    if kind == "eager":
        dtype = next(body.parameters()).dtype
        return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(
            ~allowed, torch.finfo(dtype).min
        )
    raise LabError(f"The attention '{kind}' takes no block mask. Load the model with attn_implementation='sdpa'.")


def _run(
    body: nn.Module,
    ids: Tensor,
    positions: Tensor | None,
    mask: Tensor | None,
    use_cache: bool = False,
    **more: Any,
) -> Any:
    """The body's forward pass. Without a mask the rows are plain causal ones, padding at their right."""
    if mask is None:
        # Ones rather than None: the kernel for plain causal rows, and no warning about padding.
        return body(ids, attention_mask=torch.ones_like(ids), use_cache=use_cache, **more)
    return body(ids, attention_mask=mask, position_ids=positions, use_cache=use_cache, **more)
