r"""Proximal policy optimisation (PPO) for RLHF, in which each token of a response is an action.

    max_θ E_{x~D, y~π_θ}[ r_φ(x, y) ] − β KL(π_θ‖π_ref)

Lecture, "Preliminaries", RL fine-tuning phase. The reward of a token is −β k1 of that token, and the score r_φ(x, y) is
added at the last token. The return of a response is then r_φ − β log π_θ/π_ref, whose mean is the objective. Advantages
are computed by GAE (`gae.py`), and the loss is the clipped surrogate (Schulman et al. 2017, equation 7).

The settings are those of Stiennon et al. 2020, as reproduced by Huang et al. 2024: γ = 1 and λ = 0.95, whitened
advantages, rewards that are not whitened, a value clip, and one temperature for policy and reference. There the critic
starts from the reward model (`Policy.new_critic`). On a bandit every response is one token. Left out on purpose: an
adaptive β and an entropy bonus, because each of them would move the optimum away from π*.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlhf_lab import kl, losses
from rlhf_lab.algorithms.gae import gae, token_rewards, whiten
from rlhf_lab.algorithms.on_policy import check_scores, check_training, sample
from rlhf_lab.batch import Tokens
from rlhf_lab.errors import Count, Fraction, NonNegative, Positive, Temperature, check_settings, refuse_unused
from rlhf_lab.policies.base import Policy, Reward
from rlhf_lab.rounding import rounding
from rlhf_lab.training import Evaluation, Loop, Metrics, Training

__all__ = ["PPO", "clipped_loss", "gae", "ppo", "token_rewards", "whiten"]


@dataclass(frozen=True)
class PPO:
    """Settings of PPO. Except for β, the defaults are those of Huang et al. 2024."""

    beta: Positive = 0.1
    """β of the objective."""
    samples: Count = 8
    """G, responses sampled for each prompt of a step."""
    epochs: Count = 4
    """Passes over a step's samples."""
    minibatches: Count = 1
    """Parts of the step's prompts, one optimiser step each; at most as many as a step has prompts."""
    clip: Positive = 0.2
    """How far the probability ratio may move from 1 before its gradient is cut. With one epoch and one minibatch the
    ratio is always 1, and only the defaults of clip and value_clip are accepted."""
    value_clip: Positive = 0.2
    """How far a value may move from the value before the update before its gradient is cut."""
    value_coefficient: NonNegative = 0.1
    """Weight of the critic's loss."""
    discount: Fraction = 1.0
    """γ of the return, between 0 and 1. With 1 the return's mean is the objective."""
    gae_lambda: Fraction = 0.95
    """λ of GAE, between 0 and 1."""
    temperature: Temperature = 1.0
    """Sampling temperature. The logits of policy and reference are divided by it as well."""
    top_k: Count | None = None
    """Sample among the k likeliest tokens only. The gradient ignores this and is then biased."""
    whiten: bool = True
    """Scale advantages to mean 0 and standard deviation 1 over the step's tokens."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.epochs == self.minibatches == 1:
            unused = ["clip", "value_clip"]
            refuse_unused(self, unused, "where every sample is learned from once: raise epochs or minibatches")


def ppo(
    policy: Policy,
    reference: Policy,
    reward: Reward,
    critic: nn.Module,
    prompts: Tokens,
    settings: PPO = PPO(),
    training: Training = Training(),
    name: str = "ppo",
    evaluation: Evaluation | None = None,
) -> list[dict[str, float]]:
    """Train `policy` and `critic` in place on samples from the current policy.

    Args:
        policy: π_θ, usually `reference.copy()`.
        reference: π_ref, frozen.
        reward: r_φ (or a gold reward), scores (B, G).
        critic: V, `(prompts, responses) → (B, G, T)`; see `Policy.new_critic`.
        prompts: (N, P); a step uses `training.batch_size` of them.
        settings: those of PPO.
        training: here a step is one round of sampling and `epochs` passes of learning.
        name: text of the progress bar.
        evaluation: what is measured on held-out data, for example `on_policy.held_out_rewards`.

    Returns:
        the history: loss, score, kl (k1, nats per response), objective, clip_fraction, value_loss.

    Raises:
        LabError: a score or a loss is not finite; more minibatches than prompts in a step; L-BFGS, which needs the same
            data in every step.
    """
    check_training(name, training, settings.minibatches, prompts)

    def loss_of(x: Tokens, y: Tokens, *drawn: Tensor) -> tuple[Tensor, Metrics]:
        old, old_values, advantages, returns = drawn
        return clipped_loss(policy, critic, x, y, old, old_values, advantages, returns, settings)

    trained = nn.ModuleDict({"policy": policy, "critic": critic})
    with Loop(name, trained, training, settings, evaluation) as loop:
        for step, generator in loop:
            x = prompts[loop.rows(len(prompts))]
            with torch.no_grad(), loop.autocast():
                y = sample(policy, x, settings.samples, generator, settings.temperature, settings.top_k)
                old = policy.token_log_probs(x, y, settings.temperature)
                ref = reference.token_log_probs(x, y, settings.temperature)
                old_values = critic(x, y)
                score, mask = check_scores(reward(x, y), name, step).to(old.device), y.mask.to(old.device)
                rewards = token_rewards(score, old, ref, mask, settings.beta)
                advantages, returns = gae(rewards, old_values, mask, settings.discount, settings.gae_lambda)
                if settings.whiten:
                    # Advantages are differences of scores, penalties and values, so they contain the rounding of these.
                    off = rounding(score).amax() + settings.beta * rounding(1.0, old, ref).amax()
                    advantages = whiten(advantages, mask, off + rounding(old_values).amax())
            drift = kl.k1(old, ref).sum(-1).mean()
            seen = {"score": score.mean(), "kl": drift, "objective": score.mean() - settings.beta * drift}
            drawn = x, y, old, old_values, advantages, returns
            order = torch.randperm(len(x), generator=generator, device=generator.device).cpu()
            for _ in range(settings.epochs):
                for rows in order.chunk(settings.minibatches):
                    # The loss is a mean over tokens, so each prompt is weighted by the tokens of its responses.
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
) -> tuple[Tensor, Metrics]:
    """Return the loss of policy and critic, means over tokens, and metrics.

    Args:
        policy: π_θ.
        critic: V.
        prompts: (B, P).
        responses: (B, G, T).
        old: log π of each token under the policy that was sampled, (B, G, T).
        old_values: V before each token when the responses were sampled, (B, G, T).
        advantages: (B, G, T).
        returns: the critic's targets, (B, G, T).
        settings: those of PPO.

    Returns:
        the clipped surrogate loss plus `value_coefficient` times the critic's loss, a scalar; and clip_fraction and
        value_loss.
    """
    mask = responses.mask.to(old.device)
    log_ratio = policy.token_log_probs(prompts, responses, settings.temperature) - old
    policy_loss = losses.masked_mean(losses.clipped_surrogate(log_ratio, advantages, settings.clip), mask)
    value = critic(prompts, responses)
    value_loss = losses.masked_mean(losses.clipped_value_loss(value, old_values, returns, settings.value_clip), mask)
    clipped = (log_ratio.detach().exp() - 1).abs() > settings.clip
    watched: Metrics = {"clip_fraction": losses.masked_mean(clipped, mask), "value_loss": value_loss.detach()}
    return policy_loss + settings.value_coefficient * value_loss, watched
