"""Log-probabilities of selected tokens, log softmax(h W / τ)[y], with little memory.

With a vocabulary of 49 thousand ids, the logits are the largest tensors of a training step. Written with torch's
functions, log-softmax, gather and their backward passes each allocate a further tensor of that size. Here there is one
buffer, in which the logits become probabilities in place. If g_j is the upstream gradient of selected token j of a row,
the gradient with respect to the row's logits is

    Σ_j g_j · onehot(y_j) − (Σ_j g_j) · softmax(logits)

Up to `MAX_LOGITS` probabilities are stored for the backward pass, which then needs three matrix products in all. More
logits are computed in parts, and again in the backward pass, which needs four.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

MAX_LOGITS = 2**27
"""Maximum number of logits in memory. More are computed in parts, and computed again in the backward pass."""


def token_log_probs(
    head: nn.Module, vocab: int, states: Tensor, rows: Tensor, ids: Tensor, temperature: float
) -> Tensor:
    """Compute log softmax(head(states)[:, :vocab] / temperature)[rows, ids].

    Args:
        head: the language-model head. Only an `nn.Linear` without hooks uses the memory-saving implementation.
        vocab: number of ids; further logits are ignored.
        states: (M, H).
        rows: (J,) rows of `states`; a row may occur several times.
        ids: (J,) the id of the selected token in each of these rows.
        temperature: τ, by which the logits are divided.

    Returns:
        (J,) in nats, float32 or float64.
    """
    if type(head) is nn.Linear and not _has_hooks(head):
        weight: Tensor = head.weight
        bias: Tensor | None = head.bias
        if vocab < weight.shape[0]:
            weight, bias = weight[:vocab], None if bias is None else bias[:vocab]
        if torch.is_autocast_enabled(states.device.type):
            lower = torch.get_autocast_dtype(states.device.type)
            states, weight = states.to(lower), weight.to(lower)
        apply: Callable[..., Tensor] = _Picked.apply
        with torch.autocast(states.device.type, enabled=False):
            return apply(states, weight, bias, rows, ids, 1.0 / temperature)
    return _general(head, vocab, states, rows, ids, temperature)


def _has_hooks(head: nn.Module) -> bool:
    """Whether something depends on calls of this module (an adapter, a sharded weight), so that it must be called."""
    return bool(head._forward_hooks or head._forward_pre_hooks or head._backward_hooks)


def _parts(count: int, vocab: int) -> list[slice]:
    each = max(MAX_LOGITS // vocab, 1)
    return [slice(start, min(start + each, count)) for start in range(0, count, each)]


class _Picked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor, ids: Tensor,
                scale: float) -> Tensor:  # fmt: skip
        parts = _parts(len(states), len(weight))
        wide = torch.promote_types(states.dtype, torch.float32)
        picked, tops, log_totals, kept = states.new_empty(len(rows), dtype=wide), [], [], None
        for part in parts:
            logits = _logits(states[part], weight, bias, scale)
            tops.append(logits.amax(-1, keepdim=True))
            logits.sub_(tops[-1])  # before selection: differences of numbers near 1000 nats lose digits
            if len(parts) == 1:
                picked = logits[rows, ids]
            else:
                here = (rows >= part.start) & (rows < part.stop)
                picked[here] = logits[rows[here] - part.start, ids[here]]
            total = logits.exp_().sum(-1, keepdim=True)
            log_totals.append(total.log())
            if len(parts) == 1 and any(ctx.needs_input_grad[:3]):
                kept = logits.div_(total)
        top, log_total = torch.cat(tops), torch.cat(log_totals)
        ctx.save_for_backward(states, weight, bias, rows, ids, top, log_total, kept)
        ctx.scale = scale
        return picked - log_total[rows, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, bias, rows, ids, top, log_total, kept = ctx.saved_tensors
        wants_states, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        upstream = (upstream * ctx.scale).to(log_total.dtype)
        mass = torch.zeros_like(log_total[:, 0]).index_add_(0, rows, upstream)
        to_states = torch.empty_like(states) if wants_states else None
        to_weight: Tensor | None = None
        to_bias = torch.zeros_like(bias) if wants_bias and bias is not None else None
        for part in _parts(len(states), len(weight)):
            if kept is not None:
                gradient = kept * -mass[:, None]
                gradient.index_put_((rows, ids), upstream, accumulate=True)
            else:
                gradient = _logits(states[part], weight, bias, ctx.scale)
                gradient.sub_(top[part]).sub_(log_total[part]).exp_().mul_(-mass[part, None])
                here = (rows >= part.start) & (rows < part.stop)
                gradient.index_put_((rows[here] - part.start, ids[here]), upstream[here], accumulate=True)
            if to_bias is not None:
                to_bias += gradient.sum(0).to(to_bias.dtype)
            narrow = gradient.to(states.dtype)
            if to_states is not None:
                torch.mm(narrow, weight, out=to_states[part])
            if wants_weight:
                to_weight = narrow.T @ states[part] if to_weight is None else to_weight.addmm_(narrow.T, states[part])
        return to_states, to_weight, to_bias, None, None, None


def _logits(states: Tensor, weight: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """A new tensor of logits (M, V), float32 or float64, multiplied by `scale`, which is 1/τ."""
    logits = states @ weight.T
    if logits.dtype.itemsize < 4:
        logits = logits.float()
    if bias is not None:
        logits += bias
    return logits if scale == 1.0 else logits.mul_(scale)


def _general(head: nn.Module, vocab: int, states: Tensor, rows: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """The same with any head. If there are several parts, each is computed again in the backward pass."""

    def one(states: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
        logits = head(states)[..., :vocab]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        logits = logits / temperature if temperature != 1.0 else logits
        chosen: Tensor = logits[rows, ids] - logits.logsumexp(-1)[rows]
        return chosen

    parts = _parts(len(states), vocab)
    if len(parts) <= 1:
        return one(states, rows, ids)
    out = states.new_zeros(len(rows), dtype=torch.promote_types(states.dtype, torch.float32))
    for part in parts:
        here = (rows >= part.start) & (rows < part.stop)
        inputs = (states[part], rows[here] - part.start, ids[here])
        if torch.is_grad_enabled():
            out = out.masked_scatter(here, checkpoint(one, *inputs, use_reentrant=False))
        else:
            out = out.masked_scatter(here, one(*inputs))
    return out
