r"""How good a policy is: exactly, where the world is finite; with standard errors, where it is not.

E_π[r],   KL(π‖π_ref),   J(π) = E_π[r] − β KL(π‖π_ref),   J(π*) − J(π) = β KL(π‖π*)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlhf_lab import exact, kl
from rlhf_lab.batch import Tokens
from rlhf_lab.checks import LabError, check_beta
from rlhf_lab.policies.base import Policy, Reward
from rlhf_lab.worlds.world import World


@dataclass(frozen=True)
class Exact:
    """A policy's numbers in a finite world, means over its prompts. Rewards are gold."""

    reward: float
    """E_π[r*]."""
    kl: float
    """KL(π‖π_ref), nats."""
    objective: float
    """J(π), in units of reward."""
    regret: float
    """J(π*) − J(π), in units of reward."""
    kl_to_optimal: float
    """KL(π‖π*), nats: regret / β."""


def evaluate(policy: Policy | Tensor, world: World, beta: float) -> Exact:
    """Exact numbers of `policy` under the gold reward.

    Args:
        policy: a policy that can enumerate, or its log-probabilities, (X, K).
        world: the finite world.
        beta: β > 0 of the objective.
    """
    beta = check_beta(beta)
    log_policy = policy if isinstance(policy, Tensor) else world.log_probs(policy)
    log_ref, reward = world.log_ref(), world.rewards()
    regret = exact.regret(log_policy, log_ref, reward, beta).mean().item()
    return Exact(
        reward=(log_policy.exp() * reward).sum(-1).mean().item(),
        kl=exact.kl(log_policy, log_ref).mean().item(),
        objective=exact.objective(log_policy, log_ref, reward, beta).mean().item(),
        regret=regret,
        kl_to_optimal=regret / beta,
    )


@dataclass(frozen=True)
class Estimate:
    """A mean over sampled responses, and its standard error over prompts."""

    mean: float
    error: float

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.error:.2g}"


@dataclass(frozen=True)
class Sampled:
    """A policy's numbers from its samples."""

    reward: Estimate
    kl: Estimate
    objective: Estimate


@torch.no_grad()
def estimate(
    policy: Policy,
    reference: Policy,
    reward: Reward,
    prompts: Tokens,
    beta: float,
    num_samples: int = 8,
    generator: torch.Generator | None = None,
) -> Sampled:
    """E[r], KL(π‖π_ref) by k1, and J, from samples; errors are over prompts, each prompt's mean being one draw.

    Args:
        policy: any policy.
        reference: π_ref.
        reward: scores (B, G).
        prompts: (B, P), at least two.
        beta: β > 0.
        num_samples: G, responses a prompt.
        generator: source of randomness, on the policy's device.

    Raises:
        LabError: fewer than two prompts, which leave no standard error.
    """
    beta = check_beta(beta)
    if len(prompts) < 2:
        raise LabError("A standard error over prompts needs at least two prompts.")
    y = policy.sample(prompts, num_samples, generator)
    ratio = kl.k1(policy.log_prob(prompts, y), reference.log_prob(prompts, y)).double()
    score = reward(prompts, y).to(ratio.device).double()

    def over_prompts(values: Tensor) -> Estimate:
        means = values.mean(-1)
        return Estimate(means.mean().item(), means.std().item() / math.sqrt(len(means)))

    return Sampled(over_prompts(score), over_prompts(ratio), over_prompts(score - beta * ratio))


def mean_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """Mean of independent runs and its Student-t interval: (mean, low, high). One run has no interval: NaN ends.

    Args:
        values: one number a run, shape (n,).
        level: coverage of the interval if the runs' numbers are normal.
    """
    from scipy import stats

    values = np.asarray(values, dtype=float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf(0.5 + level / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half
