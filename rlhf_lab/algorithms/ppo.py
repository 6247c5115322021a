r"""PPO for RLHF: the KL-regularised objective by policy gradient, token by token.

    max_θ E_{x~D, y~π_θ}[ r_φ(x, y) ] − β KL(π_θ‖π_ref)

Lecture, "Preliminaries", RL fine-tuning phase. Each response token is an action. Its reward is −β k1 of that token,
and the score r_φ(x, y) is added at the last one; so the return of a response is r_φ − β log π/π_ref, whose mean is
the objective. Advantages by GAE (Schulman et al. 2016), the clipped surrogate (Schulman et al. 2017, equation 7),
settings of Stiennon et al. 2020 as reproduced by Huang et al. 2024: γ = 1, λ = 0.95, advantages whitened and rewards
not, value clip, the critic started from the reward model, policy and reference divided by one temperature. On a
bandit the same file runs with one token a response. Left out on purpose: an adaptive β, and a bonus for entropy,
each of which would move the optimum away from π*.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlhf_lab import kl, losses
from rlhf_lab.algorithms.cached_rollouts import sample
from rlhf_lab.algorithms.grpo_rloo import check_minibatches, checked, refuse_lbfgs
from rlhf_lab.batch import Tokens
from rlhf_lab.errors import Count, Fraction, NonNegative, Positive, Temperature, check_settings, refuse_unused
from rlhf_lab.policies.base import Policy, Reward
from rlhf_lab.rounding import rounding, standardised
from rlhf_lab.training import Loop, Training


@dataclass(frozen=True)
class PPO:
    """Settings of PPO; the defaults are those of the careful public reproductions."""

    beta: Positive = 0.1
    """β of the objective."""
    samples: Count = 8
    """G, responses drawn for each prompt of a step."""
    epochs: Count = 4
    """Passes over a step's samples."""
    minibatches: Count = 1
    """Parts of the step's prompts, one optimiser step each; at most as many as a step has prompts."""
    clip: Positive = 0.2
    """How far the probability ratio may move from 1 before its gradient is cut. With one epoch and one minibatch the
    ratio is 1, and another value than the default is refused, as it is of value_clip."""
    value_clip: Positive = 0.2
    """How far a value may move from its old one before its gradient is cut."""
    value_coefficient: NonNegative = 0.1
    """Weight of the critic's loss."""
    discount: Fraction = 1.0
    """γ of the return, between 0 and 1. 1 is the objective above."""
    gae_lambda: Fraction = 0.95
    """λ of GAE, between 0 and 1."""
    temperature: Temperature = 1.0
    """Of sampling; the logits of policy and reference are divided by it too."""
    top_k: Count | None = None
    """Draw among the k likeliest tokens alone. The gradient does not know of it, and is no longer unbiased."""
    whiten: bool = True
    """Advantages to mean 0 and standard deviation 1 over the step's tokens."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.epochs == self.minibatches == 1:
            unused = ["clip", "value_clip"]
            refuse_unused(self, unused, "where every sample is learned from once: raise epochs or minibatches")


def token_rewards(score: Tensor, log_policy: Tensor, log_ref: Tensor, mask: Tensor, beta: float) -> Tensor:
    """−β k1 at every token, plus the response's score at its last one.

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
    """Generalised advantage estimates and the returns that the critic is fitted to.

    δ_t = r_t + γ V_{t+1} − V_t,  A_t = δ_t + γ λ A_{t+1},  return_t = A_t + V_t; V is 0 after the last token.

    Args:
        rewards: (B, G, T).
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
    """Mean 0 and variance 1 over the places where `mask` is True; exactly 0 where all of them are equal.

    Args:
        values: any shape.
        mask: which of them count, same shape.
        doubt: how far a difference of two values may be off because of how they came about; see `rlhf_lab.rounding`.
    """
    return torch.zeros_like(values).masked_scatter(mask, standardised(values[mask], doubt))


def ppo(
    policy: Policy,
    reference: Policy,
    reward: Reward,
    critic: nn.Module,
    prompts: Tokens,
    settings: PPO = PPO(),
    training: Training = Training(),
    name: str = "ppo",
) -> list[dict[str, float]]:
    """Train `policy` (and `critic`) in place on its own samples.

    Args:
        policy: π_θ, usually `reference.copy()`.
        reference: π_ref, frozen.
        reward: r_φ (or a gold reward), scores (B, G).
        critic: V, `(prompts, responses) → (B, G, T)`; see `Policy.new_critic`.
        prompts: (N, P); a step draws `training.batch_size` of them.
        settings: PPO's own.
        training: here a step is one round of sampling and `epochs` passes of learning.
        name: text of the progress bar.

    Returns:
        the history: loss, score, kl (k1, nats a response), objective, clip_fraction, value_loss.

    Raises:
        LabError: a score or a loss that is not finite; L-BFGS, which would follow one step's samples to the end.
    """
    refuse_lbfgs(name, training)
    check_minibatches(settings.minibatches, training, prompts)

    def loss_of(x: Tokens, y: Tokens, *drawn: Tensor) -> tuple[Tensor, dict]:
        old, old_values, advantages, returns = drawn
        return clipped_loss(policy, critic, x, y, old, old_values, advantages, returns, settings)

    with Loop(name, nn.ModuleDict({"policy": policy, "critic": critic}), training, settings) as loop:
        for step, generator in loop:
            x = prompts[loop.rows(len(prompts))]
            with torch.no_grad(), loop.autocast():
                y = sample(policy, x, settings.samples, generator, settings.temperature, settings.top_k)
                old = policy.token_log_probs(x, y, settings.temperature)
                ref = reference.token_log_probs(x, y, settings.temperature)
                old_values = critic(x, y)
                score, mask = checked(reward(x, y), name, step).to(old.device), y.mask.to(old.device)
                rewards = token_rewards(score, old, ref, mask, settings.beta)
                advantages, returns = gae(rewards, old_values, mask, settings.discount, settings.gae_lambda)
                if settings.whiten:
                    # Advantages are differences of scores, penalties and values, and have the rounding of these.
                    off = rounding(score).amax() + settings.beta * rounding(1.0, old, ref).amax()
                    advantages = whiten(advantages, mask, off + rounding(old_values).amax())
            drift = kl.k1(old, ref).sum(-1).mean()
            seen = {"score": score.mean(), "kl": drift, "objective": score.mean() - settings.beta * drift}
            drawn = x, y, old, old_values, advantages, returns
            order = torch.randperm(len(x), generator=generator, device=generator.device).cpu()
            for _ in range(settings.epochs):
                for rows in order.chunk(settings.minibatches):
                    # The loss is a mean over tokens: a prompt counts by the tokens of its responses.
                    tokens = y.mask[rows].sum((-1, -2))
                    loop.update(loss_of, tuple(part[rows] for part in drawn), tokens, **seen)
    return loop.history


def clipped_loss(
    policy: Policy,
    critic: nn.Module,
    prompts: Tokens,
    responses: Tokens,
    old: Tensor,
    old_values: Tensor,
    advantages: Tensor,
    returns: Tensor,
    settings: PPO,
) -> tuple[Tensor, dict]:
    """Minus the clipped surrogate plus the critic's clipped loss, means over tokens.

    Args:
        policy: π_θ.
        critic: V.
        prompts: (B, P).
        responses: (B, G, T).
        old: log π of each token under the policy that drew them, (B, G, T).
        old_values: V before each token as it was then, (B, G, T).
        advantages: (B, G, T).
        returns: what the critic is fitted to, (B, G, T).
        settings: PPO's own.

    Returns:
        the loss, a scalar; and clip_fraction and value_loss.
    """
    mask = responses.mask.to(old.device)
    log_ratio = policy.token_log_probs(prompts, responses, settings.temperature) - old
    policy_loss = losses.masked_mean(losses.clipped_surrogate(log_ratio, advantages, settings.clip), mask)
    value = critic(prompts, responses)
    value_loss = losses.masked_mean(losses.clipped_value_loss(value, old_values, returns, settings.value_clip), mask)
    clipped = (log_ratio.detach().exp() - 1).abs() > settings.clip
    watched = {"clip_fraction": losses.masked_mean(clipped, mask), "value_loss": value_loss.detach()}
    return policy_loss + settings.value_coefficient * value_loss, watched
