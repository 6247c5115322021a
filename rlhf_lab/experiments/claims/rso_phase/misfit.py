r"""Rewards that a linear class misses by a given share, and DPO's limit in the class for pairs of different sources.

The class consists of the policies π ∝ π_ref exp(f/β) with f = Φw, whose implicit reward is linear in the features. DPO
with γ = β on infinitely many pairs of a source finds the f that is computed here, by Newton's method. A reward has
variance 1 over the responses. A share s of it is not linear in the features:

    noise          r = √(1−s) u + √s ε, where u = Φw and ε is independent of response to response and orthogonal to Φ
    saturating     r = −exp(−c u), standardised: the reward rises ever more slowly along u
    accelerating   r = exp(c u), standardised: the reward rises ever faster along u

where c is such that the share is s. To second order in r and f, DPO on pairs from μ minimises Var_μ(f − r), and the
regret is Var_{π*}(f − r)/(2β) (`derivations.label_value.pairs_of_the_optimum`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.bradley_terry import expected_wins, fit_features, pair_distribution
from rlhf_lab.randomness import Stream
from rlhf_lab.training import seeded
from rlhf_lab.worlds import token_tree

KINDS = ("noise", "saturating", "accelerating")
SOURCES = ("ref", "r", "mixture")
"""Sources of both responses of a pair: π_ref, π_r (which is π* here, because the reward is known), half of each."""


@dataclass(frozen=True)
class LinearWorld:
    """The reference policy of a prompt and the features of the restricted class. Leading axes are several worlds.

    Attributes:
        log_ref: log π_ref, (…, K).
        basis: an orthonormal basis of the centred features, (…, K, d).
        linear: u, a random reward of the class with mean 0 and variance 1 over the responses, (…, K).
        noise: ε, mean 0, variance 1, orthogonal to the class, (…, K).
    """

    log_ref: Tensor
    basis: Tensor
    linear: Tensor
    noise: Tensor

    def share_outside(self, reward: Tensor) -> Tensor:
        """The share of the variance of a reward (…, K) that is not linear in the features, (…)."""
        centred = reward - reward.mean(-1, keepdim=True)
        inside = centred.unsqueeze(-2) @ self.basis
        share: Tensor = 1 - inside.square().sum((-1, -2)) / centred.square().sum(-1)
        return share

    def reward(self, kind: str, share: float) -> Tensor:
        """The reward of this kind of which the class misses the given share, (…, K)."""
        if kind == "noise":
            return math.sqrt(1 - share) * self.linear + math.sqrt(share) * self.noise
        sign = 1.0 if kind == "accelerating" else -1.0
        low, high = torch.full_like(self.linear[..., :1], -7.0), torch.full_like(self.linear[..., :1], 3.0)
        for _ in range(60):  # bisection in log c, with which the share rises from 0
            middle = (low + high) / 2
            curved = _standardised(sign * torch.exp(sign * middle.exp() * self.linear))
            less = (self.share_outside(curved) < share).unsqueeze(-1)
            low, high = torch.where(less, middle, low), torch.where(less, high, middle)
        return curved


def _standardised(values: Tensor) -> Tensor:
    return (values - values.mean(-1, keepdim=True)) / values.std(-1, correction=0, keepdim=True)


def linear_world(scale: str, seed: int, responses: int = 40, features: int = 3) -> LinearWorld:
    """Make the random world of a seed.

    Args:
        scale: bandit (random features of the responses) or tree (a feature for each token in each of four places, over
            four tokens: 256 responses).
        seed: of the world.
        responses: of the bandit.
        features: of the bandit.
    """
    generator = seeded(seed, Stream.MISFIT_WORLD)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    if scale == "tree":
        world = token_tree.random(4, 4, 1, seed)
        log_ref = world.log_ref()[0]
        phi = token_tree.unigrams(world.tree)
    else:
        log_ref, phi = normal(responses).log_softmax(-1), normal(responses, features)
    linear = _standardised(phi @ normal(phi.shape[1]))
    left, size, _ = torch.linalg.svd(phi - phi.mean(0), full_matrices=False)
    basis = left[:, size > 1e-8 * size[0]]
    noise = normal(len(log_ref))
    noise = noise - noise.mean()
    return LinearWorld(log_ref, basis, linear, _standardised(noise - basis @ (basis.T @ noise)))


def stacked(worlds: Sequence[LinearWorld]) -> LinearWorld:
    """Several worlds of the same size as one, with a leading axis."""
    return LinearWorld(*(torch.stack([getattr(one, field.name) for one in worlds]) for field in fields(LinearWorld)))


def sources(log_ref: Tensor, reward: Tensor, beta: float) -> Tensor:
    """The log-probabilities of `SOURCES`, (3, …, K)."""
    log_star = exact.optimal_policy(log_ref, reward, beta)
    log_ref = log_ref.expand_as(log_star)
    return torch.stack([log_ref, log_star, torch.logaddexp(log_ref, log_star) - math.log(2)])


def dpo_limit(basis: Tensor, log_source: Tensor, reward: Tensor) -> Tensor:
    """The implicit reward to which DPO with γ = β converges in the class, (…, K), with infinitely many pairs.

    Args:
        basis: (…, K, d).
        log_source: of both responses of a pair, (…, K).
        reward: r, whose Bradley–Terry probabilities are the labels, (…, K).
    """
    # The factor makes the prior of the fit negligible.
    wins = 1e6 * expected_wins(reward, pair_distribution(log_source))
    return (basis @ fit_features(basis, wins, prior=1e3).unsqueeze(-1)).squeeze(-1)


def least_squares(basis: Tensor, log_source: Tensor, reward: Tensor) -> Tensor:
    """The function of the class (and a constant) nearest to the reward under the source, (…, K): second order."""
    p = log_source.exp()
    design = torch.cat([basis, torch.ones_like(basis[..., :1])], -1)
    weighted = p.unsqueeze(-1) * design
    # The ridge decides where the source gives all but one response less than rounding.
    ridge = 1e-12 * torch.eye(design.shape[-1], dtype=design.dtype)
    solved = torch.linalg.solve(design.mT @ weighted + ridge, weighted.mT @ reward.unsqueeze(-1))
    nearest: Tensor = (design @ solved).squeeze(-1)
    return nearest


def regrets(world: LinearWorld, reward: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """The regret of DPO's limit for pairs from each of `SOURCES`, and its second-order approximation.

    Args:
        world: reference and class.
        reward: r, (…, K).
        beta: β = γ.

    Returns:
        (3, …) each, in units of reward.
    """
    log_sources = sources(world.log_ref, reward, beta)
    every = reward.expand_as(log_sources)
    log_policy = (world.log_ref + dpo_limit(world.basis, log_sources, every) / beta).log_softmax(-1)
    error = least_squares(world.basis, log_sources, every) - every
    star = log_sources[1].exp()
    error = error - (star * error).sum(-1, keepdim=True)
    second = (star * error.square()).sum(-1) / (2 * beta)
    # Below 1e-12 a regret is rounding, and may be negative.
    return exact.regret(log_policy, world.log_ref, every, beta).clamp(min=1e-12), second.clamp(min=1e-12)
