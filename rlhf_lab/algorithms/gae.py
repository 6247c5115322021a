r"""Generalised advantage estimation (GAE) for PPO: the rewards of tokens, their advantages, and whitening.

    r_t = −β log π_θ(y_t)/π_ref(y_t), plus the score r_φ(x, y) at the last token
    δ_t = r_t + γ V_{t+1} − V_t,   A_t = δ_t + γ λ A_{t+1},   return_t = A_t + V_t

Schulman et al. 2016, "High-dimensional continuous control using generalized advantage estimation", equation 16; the
rewards and whitening as in Huang et al. 2024. All functions are pure functions of tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_lab import kl
from rlhf_lab.rounding import standardised


def token_rewards(score: Tensor, log_policy: Tensor, log_ref: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Return the reward of each token: −β k1, plus the response's score at its last token.

    Args:
        score: r_φ(x, y), (B, G).
        log_policy: log π_θ of each token, (B, G, T).
        log_ref: log π_ref of each token, (B, G, T).
        mask: which tokens count, (B, G, T).
        beta: β > 0.

    Returns:
        (B, G, T), zero where the mask is False. Its sum over T is r_φ − β log π_θ(y|x)/π_ref(y|x).
    """
    penalty = -beta * kl.k1(log_policy, log_ref) * mask
    last = (mask.sum(-1, keepdim=True) - 1).clamp(min=0)
    return penalty.scatter_add(-1, last, score.unsqueeze(-1).to(penalty.dtype))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, discount: float, lam: float) -> tuple[Tensor, Tensor]:
    """Return generalised advantage estimates (GAE), and the returns to which the critic is fitted.

    δ_t = r_t + γ V_{t+1} − V_t,  A_t = δ_t + γ λ A_{t+1},  return_t = A_t + V_t; V is 0 after the last token.

    Args:
        rewards: r of each token, (B, G, T).
        values: V before each token, (B, G, T).
        mask: (B, G, T), True on a prefix of each row.
        discount: γ in [0, 1].
        lam: λ in [0, 1].

    Returns:
        advantages and returns, (B, G, T), zero where the mask is False.
    """
    advantage = torch.zeros_like(values[..., 0])
    next_value = torch.zeros_like(advantage)
    out = torch.zeros_like(values)
    for t in reversed(range(values.shape[-1])):
        here = mask[..., t]
        delta = rewards[..., t] + discount * next_value - values[..., t]
        advantage = torch.where(here, delta + discount * lam * advantage, 0.0)
        next_value = torch.where(here, values[..., t], 0.0)
        out[..., t] = advantage
    return out, (out + values) * mask


def whiten(values: Tensor, mask: Tensor, doubt: Tensor | float = 0.0) -> Tensor:
    """Scale to mean 0 and variance 1 over the places where `mask` is True; exactly 0 if all values there are equal.

    Args:
        values: any shape.
        mask: which values count, same shape.
        doubt: how far rounding may have moved a difference of two values; see `rlhf_lab.rounding`.
    """
    return torch.zeros_like(values).masked_scatter(mask, standardised(values[mask], doubt))
