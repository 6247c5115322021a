"""The shared-prefix forward pass: hidden states of many responses per prompt, with every prompt computed once.

Log-probabilities, reward models and critics all use it. Suppose that a prompt x has two responses, a and b. The usual
batch repeats the prompt in every row and pads the rows to equal length (·):

    x x x a a
    x x x b ·

The shared-prefix batch has the prompt once and no padding. Positions (second line) continue after the prompt in each
response, and each response attends to the prompt and to itself, but not to the other response:

    x x x a a b
    0 1 2 3 4 3

A causal transformer computes the same hidden state for each token in both batches. The state from which a response
token is predicted is that of the token before it. For a response's first token this is the prompt's last token.

There are three ways to compute the states, and `shared_prefix_states` chooses between them:

1. All prompts of the batch are in one row, with the attention of `varlen_attention.py`. This is the usual way.
2. Models whose attention is "eager", or which do not hand keyword arguments on to their attention, get one padded row
   per prompt and a block mask.
3. If such a row would have more than `MAX_PADDED_ROW` tokens, the prompt's keys and values are computed once and put
   into a cache, through which gradients flow. The responses are then computed in chunks that read the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError, count_of
from rlhf_lab.policies.transformer import varlen_attention

MAX_PADDED_ROW = 4096
"""Maximum number of tokens in a padded row. With more, the responses are computed in chunks over a shared cache."""
MAX_TOKENS_PER_PASS = 16_384
"""Maximum number of tokens in a row without padding. A larger batch is computed in several rows."""


class States(NamedTuple):
    """Hidden states of a batch. Responses of one prompt share the state of the prompt's last token.

    Attributes:
        flat: (M, H), the last layer's states at every prompt's last token and at every response token that
            was computed.
        before: (B, G, T), the row of `flat` from which response token t is predicted. This is the state of the
            prompt's last token for t = 0, and of token t−1 for t > 0. It is 0, and meaningless, where the response
            has no token t.
    """

    flat: Tensor
    before: Tensor


@contextmanager
def dropout_off(module: nn.Module) -> Iterator[None]:
    """Switch dropout off inside the `with` block, by eval mode.

    If all dropout probabilities are 0 (`remove_dropout`), the mode does not change, because transformers uses gradient
    checkpointing in training mode only.
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
    """Set every dropout probability in `module` to 0. The configuration, which is saved with it, does not change."""
    for part in module.modules():
        for name in _drops(part):
            setattr(part, name, 0.0)


def _drops(part: nn.Module) -> list[str]:
    """Names of the dropout probabilities of one module that are above 0: `p` of `nn.Dropout`, `attention_dropout`, …"""
    names = [name for name in vars(part) if "drop" in name] + (["p"] if hasattr(part, "p") else [])
    values = {name: getattr(part, name) for name in names}
    return [name for name, value in values.items() if isinstance(value, float) and value > 0]


def fuse_gelu(module: nn.Module) -> None:
    """Replace GPT-2's tanh-approximated GELU by torch's fused kernel, which computes the same function.

    The implementation in transformers has eight operations, each of which stores its result for the backward pass at
    the model's widest layer.
    """
    for part in module.modules():
        for name, child in part.named_children():
            if type(child).__name__ == "NewGELUActivation":
                setattr(part, name, nn.GELU(approximate="tanh"))


def body_of(model: nn.Module) -> nn.Module:
    """The body of a Hugging Face model: the transformer without the language-model head, but with peft's adapters."""
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()  # type: ignore[operator]
    return getattr(model, getattr(model, "base_model_prefix", ""), model)


def context_length(config: Any) -> int | None:
    """Maximum sequence length of a model with this configuration, in tokens; None if the configuration has no limit.

    A sliding attention window counts as the limit, because the block mask does not implement windows.
    """
    names = ("max_position_embeddings", "n_positions", "sliding_window", "window_size")
    limits = [getattr(config, name, None) for name in names]
    return min((n for n in limits if isinstance(n, int) and n > 0), default=None)


def check_prompts(prompts: Tokens, known_ids: int) -> None:
    """Raise `LabError` if prompts are not (B, P), if one is empty, or if an id is not in the model's vocabulary."""
    if prompts.ids.ndim != 2 or len(prompts) == 0:
        raise LabError(f"prompts must have shape (B, P) with at least one row, not {tuple(prompts.shape)}.")
    empty = prompts.lengths == 0
    if empty.any():
        raise LabError(
            f"Prompt {int(empty.nonzero()[0])} is empty, but the first response token is predicted from the prompt's "
            f"last token. Add a token to it, for example the beginning-of-text token."
        )
    _check_ids(prompts, known_ids, "Prompt", "the model's vocabulary")


def check_batch(prompts: Tokens, responses: Tokens, config: Any, num_ids: int | None = None) -> None:
    """Raise `LabError` for a batch that a model with this configuration cannot score. The message names the row.

    Args:
        prompts: (B, P), each of at least one token.
        responses: (B, G, T).
        config: the Hugging Face configuration of the model.
        num_ids: a response may contain the ids 0 … num_ids − 1; None for the model's whole vocabulary.
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
            f"Prompt {row} with its response {column} has {count_of(int(total[row, column]), 'token')}, but the "
            f"model's maximum length is {limit}. Truncate or remove that row."
        )


def _check_ids(tokens: Tokens, limit: int, what: str, where: str) -> None:
    if tokens.mask.device.type != "cpu":  # tokens on the CPU were checked when they were created
        tokens.check_places()
    bad = tokens.mask & ((tokens.ids >= limit) | (tokens.ids < 0))
    if bad.any():
        place = bad.nonzero()[0].tolist()
        raise LabError(
            f"{what} {place[0] if len(place) == 2 else tuple(place[:-1])} contains the id {int(tokens.ids[bad][0])} "
            f"at index {place[-1]}, but {where} has the ids 0 … {limit - 1}."
        )


def shared_prefix_states(body: nn.Module, prompts: Tokens, responses: Tokens) -> States:
    """The hidden states from which the response tokens are predicted.

    The state of a response's last token is not computed, because no token is predicted from it. A reward model, which
    needs this state, extends each response by one token first (see `rewards.language_model`).

    Args:
        body: the transformer without its head. It must accept a (B, 1, Q, K) attention mask.
        prompts: (B, P), each of at least one token.
        responses: (B, G, T).

    Returns:
        The states, with gradients.

    Raises:
        LabError: the model's attention implementation accepts no block mask.
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
    """Rows (B, G, T) from which tokens are predicted: `first` (B,) for the first token, then `rest` (B, G, T)."""
    before = torch.cat([first[:, None, None].expand(-1, rest.shape[1], 1), rest[..., :-1]], -1)
    return before.where(mask, 0)


def _varlen_states(body: nn.Module, prompts: Tokens, responses: Tokens) -> States | None:
    """Way 1: rows of up to `MAX_TOKENS_PER_PASS` tokens without padding; None if the attention ignores the layout."""
    device = _device(body)
    inputs, mask = varlen_attention.without_last_token(responses), responses.mask
    ends = (prompts.lengths + inputs.lengths.sum(-1)).cumsum(0).tolist()
    flat, before, start, made = [], [], 0, 0
    while start < len(ends):
        limit = MAX_TOKENS_PER_PASS + (ends[start - 1] if start else 0)
        stop = max(start + 1, sum(end <= limit for end in ends))
        layout = varlen_attention.VarlenLayout(prompts[start:stop], inputs[start:stop], device)
        hidden = varlen_attention.forward_with_layout(body, layout.ids, layout.positions, layout)
        if hidden is None:
            return None
        # Tokens are predicted from a prompt's last token and from every computed response token.
        wanted = torch.zeros(hidden.shape[1], dtype=torch.bool, device=prompts.device)
        wanted[layout.last_prompt_index] = True
        wanted[layout.response_index[inputs.mask[start:stop]]] = True
        number = wanted.cumsum(0) - 1
        rows = wanted.nonzero().squeeze(1).to(device)
        places = _before(number[layout.last_prompt_index], number[layout.response_index], mask[start:stop])
        flat.append(hidden[0].index_select(0, rows))
        before.append((places + made).where(mask[start:stop], 0))
        start, made = stop, made + len(rows)
    whole = flat[0] if len(flat) == 1 else torch.cat(flat)
    return States(whole, torch.cat(before).to(device))


def _padded_row_states(body: nn.Module, prompts: Tokens, inputs: Tokens) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Way 2: one padded row per prompt. Returns the states, and in them the rows of prompts' ends and of inputs."""
    row = _PaddedRow.of(inputs, prompts)
    out = _run(body, row.ids, row.positions, row.mask(body) if inputs.shape[1] > 1 else None)
    wanted = row.number() >= prompts.lengths[:, None] - 1
    wanted &= row.segment >= 0
    numbers = (wanted.flatten().cumsum(0) - 1).view_as(wanted)
    first = numbers.gather(1, prompts.lengths[:, None] - 1).squeeze(1)
    rest = numbers.gather(1, row.places.flatten(1)).view_as(row.places)
    return out.last_hidden_state[wanted], (first, rest)


def _cached_prompt_states(body: nn.Module, prompts: Tokens, inputs: Tokens) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Way 3: prompts first, then chunks of at most `MAX_PADDED_ROW` tokens that read the prompts' keys and values."""
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
    """One padded row per prompt, with its responses one after the other.

    Attributes:
        ids: (B, L), 0 in padding.
        positions: (B, L), the position of the token in its prompt + response.
        segment: (B, L): 0 for the prompt, 1 … G for the responses, −1 for padding.
        places: (B, G, T), the index in the row of each input token, 0 where there is none.
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
        # Masked tokens are written to an extra last column, which is then removed.
        target = place.where(mask, length)

        def lay(values: Tensor, empty: int) -> Tensor:
            return torch.full((count, length + 1), empty, device=ids.device).scatter(1, target, values)[:, :length]

        place = place.where(mask, 0)[:, place.shape[1] - group * width :]
        return cls(lay(ids, 0), lay(position, 0), lay(segment, -1), place.view(count, group, width))

    def number(self) -> Tensor:
        """Column indices, (1, L)."""
        return torch.arange(self.ids.shape[1], device=self.ids.device)[None]

    def mask(self, body: nn.Module, cached: Tensor | None = None) -> Tensor:
        """The block mask, (B, 1, L, L), or (B, 1, L, P + L) after cached keys, of which `cached` is the mask (B, P).

        Padding attends to itself, so that no row of the softmax is empty.
        """
        query, key = self.segment[:, :, None], self.segment[:, None, :]
        past = self.number().mT >= self.number()
        allowed = ((query == key) | (key == 0)) & past
        if cached is not None:
            allowed = torch.cat([cached[:, None, :].expand(-1, self.ids.shape[1], -1), allowed], 2)
        return _as_attention_mask(allowed[:, None], body)


def _as_attention_mask(allowed: Tensor, body: nn.Module) -> Tensor:
    """The mask as the attention implementation expects it: boolean for sdpa, additive for eager attention."""
    kind = getattr(body.config, "_attn_implementation", "eager")
    if kind in ("sdpa", varlen_attention.NAME):
        return allowed
    if kind == "eager":
        dtype = next(body.parameters()).dtype
        return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(
            ~allowed, torch.finfo(dtype).min
        )
    raise LabError(f"The attention '{kind}' accepts no block mask. Load the model with attn_implementation='sdpa'.")


def _run(
    body: nn.Module,
    ids: Tensor,
    positions: Tensor | None,
    mask: Tensor | None,
    use_cache: bool = False,
    **more: Any,
) -> Any:
    """The body's forward pass. Without a mask, attention is causal and any padding is at the end of the rows."""
    if mask is None:
        # With a mask of ones, transformers uses the causal kernel and does not warn about padding.
        return body(ids, attention_mask=torch.ones_like(ids), use_cache=use_cache, **more)
    return body(ids, attention_mask=mask, position_ids=positions, use_cache=use_cache, **more)
