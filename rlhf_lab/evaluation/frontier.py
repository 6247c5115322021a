r"""Reward against KL from samples: the points of policies, and the frontier of the optimal policies.

The frontier is the curve of π*_β ∝ π_ref exp(r/β) over β. No policy has a larger expected reward at the same KL. Where
responses cannot be enumerated, π*_β is approximated by samples of π_ref with weights ∝ exp(r/β),

    E_π*[r] ≈ Σ ŵ r,    KL(π*‖π_ref) = E_π*[r]/β − log Z,    ŵ = exp(r/β) / Σ exp(r/β)

The estimate can be trusted only if many samples share the weight. With G samples the estimated KL is at most log G.
Gao et al. 2023, "Scaling laws for reward model overoptimization", plot rewards in this plane; Rafailov et al. 2023,
Figure 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from rlhf_lab import kl
from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError, check_beta, check_finite
from rlhf_lab.evaluation.importance import ENOUGH, SHARE, covariance, weighted
from rlhf_lab.evaluation.sampled import Estimate, over_prompts
from rlhf_lab.policies.base import Policy, Reward
from rlhf_lab.randomness import Stream
from rlhf_lab.training import seeded


@dataclass(frozen=True)
class Point:
    """KL and reward of a policy. `rlhf_lab.figures.frontier.method_points` draws the result of `row`."""

    name: str
    kl: Estimate
    """KL(π‖π_ref), nats."""
    reward: Estimate
    """E_π[r]."""

    def row(self, level: float = 0.95) -> dict[str, float | str]:
        """The point and its intervals, with the keys that the figures need."""
        out: dict[str, float | str] = {"method": self.name, "kl": self.kl.mean, "reward": self.reward.mean}
        for name, found in (("kl", self.kl), ("reward", self.reward)):
            out[f"{name}_low"], out[f"{name}_high"] = found.interval(level)
        return out


@torch.no_grad()
def points(
    policies: Mapping[str, Policy],
    reference: Policy,
    reward: Reward,
    prompts: Tokens,
    num_samples: int = 8,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = False,
) -> list[Point]:
    """Estimate the KL to the reference (k1 summed over tokens) and the reward of each policy, with standard errors.

    Args:
        policies: the policies by name. All are sampled with the same seeds on the same prompts.
        reference: π_ref.
        reward: scores (B, G).
        prompts: (N, P), at least two.
        num_samples: G.
        seed: seed of the samples.
        batch_size: prompts per batch.
        progress: show a progress bar.
    """
    out = []
    for name, policy in tqdm(policies.items(), desc="frontier", leave=False, disable=not progress):
        ratios, scores = [], []
        for start in range(0, len(prompts), batch_size):
            x = prompts[start : start + batch_size]
            y = policy.sample(x, num_samples, seeded(seed, Stream.FRONTIER_SAMPLES, start, device=policy.device))
            ratios.append(kl.k1(policy.log_prob(x, y), reference.log_prob(x, y)).cpu())
            scores.append(check_finite(reward(x, y), "reward").cpu())
        out.append(Point(name, over_prompts(torch.cat(ratios)), over_prompts(torch.cat(scores))))
    return out


@dataclass(frozen=True)
class Tilted:
    """The frontier at one β, from samples of the reference."""

    beta: float
    kl: Estimate
    """KL(π*‖π_ref), nats."""
    reward: Estimate
    """E_π*[r]."""
    effective: float
    """The effective sample size, mean over prompts."""
    trusted: bool
    """Whether the effective sample size is large enough for enough prompts. Draw the curve only where it is."""


def tilted_frontier(rewards: Tensor, betas: Sequence[float]) -> list[Tilted]:
    """Estimate the frontier from samples of the reference with weights ∝ exp(r/β).

    Args:
        rewards: r of G samples y ~ π_ref for each of B prompts, (B, G), with B and G at least 2.
        betas: the values of β, each above 0.

    Returns:
        one entry for each β, in order.

    Raises:
        LabError: rewards of another shape, or not finite; a β that is not above 0.
    """
    check_finite(rewards, "rewards")
    if rewards.ndim != 2 or rewards.shape[1] < 2 or len(rewards) < 2:
        raise LabError(f"rewards must be (B, G) with two prompts and two samples at least, not {tuple(rewards.shape)}.")
    scores = rewards.detach().cpu().double()
    number, out = scores.shape[1], []
    for beta in betas:
        log_w = scores / check_beta(beta)
        tilted = weighted(log_w, scores, [number])
        log_z = log_w.logsumexp(1) - math.log(number)
        log_z = log_z + 0.5 * covariance(tilted.weights, tilted.weights, [number])
        below = (tilted.effective < ENOUGH).double().mean().item()
        ess = tilted.effective.mean().item()
        found = over_prompts(tilted.mean / beta - log_z), over_prompts(tilted.mean)
        out.append(Tilted(float(beta), *found, ess, below <= SHARE))
    return out
