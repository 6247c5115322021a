r"""Reward against KL from samples: where policies stand, and how far anything could get.

The frontier is the curve of π*_β ∝ π_ref exp(r/β) over β: no policy has more reward at the same KL. Where it
cannot be enumerated, samples of π_ref with weights exp(r/β) stand for π*_β,

    E_π*[r] ≈ Σ ŵ r,    KL(π*‖π_ref) = E_π*[r]/β − log Z,    ŵ = exp(r/β) / Σ exp(r/β)

which can be trusted only as far as enough samples share the weight: G samples can never show more than log G nats.
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
    """Where a policy stands. `rlhf_lab.figures.frontier.method_points` draws `row()`s with their error crosses."""

    name: str
    kl: Estimate
    """KL(π‖π_ref), nats."""
    reward: Estimate
    """E_π[r]."""

    def row(self, level: float = 0.95) -> dict[str, float | str]:
        """The point and its intervals under the names that the figures read."""
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
    """Each policy's KL to the reference (k1 summed over tokens) and reward, with errors over prompts.

    Args:
        policies: by name. All are sampled from equal generators on equal prompts.
        reference: π_ref.
        reward: scores (B, G).
        prompts: (N, P), at least two.
        num_samples: G.
        seed: of the samples.
        batch_size: prompts at a time.
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
    """Effective samples of a prompt, mean over prompts."""
    trusted: bool
    """Whether enough prompts have enough of them. Draw the curve only as far as this holds."""


def tilted_frontier(rewards: Tensor, betas: Sequence[float]) -> list[Tilted]:
    """The frontier by exponentially tilting samples of the reference.

    Args:
        rewards: r of G samples y ~ π_ref for each of B prompts, (B, G), B of 2 at least.
        betas: each above 0.

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
