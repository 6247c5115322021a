r"""Exact evaluation of a policy in a finite world.

E_π[r],   KL(π‖π_ref),   J(π) = E_π[r] − β KL(π‖π_ref),   J(π*) − J(π) = β KL(π‖π*)
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.errors import check_beta
from rlhf_lab.policies.base import Policy
from rlhf_lab.worlds.finite_world import FiniteWorld


@dataclass(frozen=True)
class Exact:
    """The exact numbers of a policy in a finite world, as means over its prompts. Rewards are gold rewards."""

    reward: float
    """E_π[r*]."""
    kl: float
    """KL(π‖π_ref), nats."""
    objective: float
    """J(π), in units of reward."""
    regret: float
    """J(π*) − J(π), in units of reward."""
    kl_to_optimal: float
    """KL(π‖π*) = regret / β, nats."""


def evaluate(policy: Policy | Tensor, world: FiniteWorld, beta: float) -> Exact:
    """Evaluate a policy under the gold reward.

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
