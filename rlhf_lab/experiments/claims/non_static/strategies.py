"""Strategies in a non-stationary finite world: which responses are labelled, and which labels a fit uses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from rlhf_lab import bradley_terry, exact
from rlhf_lab.randomness import Stream
from rlhf_lab.training import seeded
from rlhf_lab.worlds import nonstationary, token_tree
from rlhf_lab.worlds.nonstationary import LabelledPairs, NonstationaryWorld

STRATEGIES = {
    "offline": ("dpo", "fit once, at the start"),
    "refit-all": ("reward", "refit, all labels so far"),
    "window": ("policy", "refit, newest labels"),
    "forgetting": ("plug-in", "refit, old labels decay"),
    "online": ("online", "own responses, newest labels"),
    "online-all": ("best-of-n", "own responses, all labels"),
}
"""Strategy → the key of its style in `figures/style.py`, and its name in pictures."""


TOLERANCE = 1e-16
"""Tolerance of the fits. It is so small that the result does not depend on where a fit began."""


@dataclass(frozen=True, eq=False)
class DriftSetup:
    """The world of a seed and the features of its reward models."""

    at: NonstationaryWorld
    features: Tensor
    """Φ, (K, d), orthonormal in the mean over responses. They span both rewards."""
    narrow: Tensor
    """A random half of them, for a reward model that is too small for the reward."""

    def cost(self, steps: int = 1) -> tuple[float, float]:
        """Return the price P summed over prompts and the drift's cost at one radian, means over half a turn."""
        at, angles = self.at, torch.arange(steps, dtype=torch.float64)[:, None, None] * math.pi / steps
        reward = nonstationary.turned(at.first, at.other, angles)
        velocity = nonstationary.turned(at.first, at.other, angles + math.pi / 2)
        prices = exact.drift.price(self.features, at.log_ref, reward, at.beta)
        costs = exact.drift.drift_cost(at.log_ref, reward, velocity, at.beta)
        return prices.sum(-1).mean().item(), costs.mean().item()


@lru_cache(maxsize=2)
def drift_setup(scale: str, size: tuple[int, ...], seed: int, beta: float, rounds: int) -> DriftSetup:
    """Return the world of a seed without any change."""
    if scale == "bandit":
        at = nonstationary.nonstationary_bandit(size[0], size[1], seed, kind="none", beta=beta, rounds=rounds)
        features = nonstationary.basis(torch.eye(size[1]))
    else:
        at = nonstationary.nonstationary_tree(size[0], size[1], size[2], seed, kind="none", beta=beta, rounds=rounds)
        tree = at.world.tree
        features = nonstationary.basis(torch.cat([token_tree.unigrams(tree), token_tree.bigrams(tree)], 1))
    d = features.shape[1]
    # A random half of the features' space, each as probable as any other, whatever the basis. The stored results of the
    # narrow reward model were made with bases of an earlier release, which depended on the processor: run again, their
    # rows come out as other draws from the same distribution. All other rows do not depend on the basis.
    turn = nonstationary.orthonormal(
        torch.randn(d, d, dtype=torch.float64, generator=seeded(seed, Stream.NARROW_FEATURES))
    )
    return DriftSetup(at, features, features @ turn[:, : (d + 1) // 2])


class Memory:
    """The labels of all previous rounds, and reward models fitted to them with a weight for each round."""

    def __init__(self, features: Tensor, prompts: int) -> None:
        """Begin without labels. They are stored as counts of pairs if responses are few, else as a list."""
        self.features, self.num_prompts = features, prompts
        self.prior = features.shape[1] ** -0.5  # rewards of variance 1 are expected
        size = len(features)
        self.dense = size <= 16
        self.rounds: list[Any] = []
        self._last: list[Tensor | None] = [None] * prompts

    def add(self, pairs: LabelledPairs) -> None:
        """Add the labels of the next round."""
        if not self.dense:
            self.rounds.append(pairs)
            return
        size = len(self.features)
        self.rounds.append(
            bradley_terry.win_counts(pairs.chosen, pairs.rejected, size, None, pairs.prompts, self.num_prompts)
        )

    def fit(self, weights: Tensor) -> Tensor:
        """Fit reward models, (B, X, K), to weights of the rounds, (B, rounds)."""
        if self.dense:
            every = torch.stack(self.rounds)
            wins = (weights @ every.flatten(1)).view(len(weights), *every.shape[1:])
            theta = bradley_terry.fit_features(self.features, wins, self.prior, TOLERANCE)
            return theta @ self.features.T
        return torch.stack([self._fit_list(row) for row in weights])

    def _fit_list(self, weights: Tensor) -> Tensor:
        used = [(pairs, w) for pairs, w in zip(self.rounds, weights.tolist(), strict=True) if w > 1e-6]
        prompts, chosen, rejected = (torch.cat(column) for column in zip(*(pairs for pairs, _ in used), strict=True))
        weight = torch.cat([torch.full(pairs.prompts.shape, w, dtype=torch.float64) for pairs, w in used])
        rewards = []
        for x in range(self.num_prompts):
            mine = prompts == x
            differences = self.features[chosen[mine]] - self.features[rejected[mine]]
            theta = bradley_terry.fit_listed(differences, weight[mine], self.prior, self._last[x], TOLERANCE)
            self._last[x] = theta
            rewards.append(self.features @ theta)
        return torch.stack(rewards)


def round_weights(strategy: str, t: int, window: int) -> Tensor:
    """Return the weights of rounds 0 … t − 1 in the fit for round t, (1, t)."""
    age = torch.arange(t, 0, -1, dtype=torch.float64)
    if strategy == "forgetting":
        decay = 1 - 2 / (window + 1)  # the mean age of the labels is that of the window
        return (decay ** (age - 1)).unsqueeze(0)
    if strategy in ("window", "online"):
        return (age <= window).double().unsqueeze(0)
    return torch.ones(1, t, dtype=torch.float64)


def deploy(
    at: NonstationaryWorld,
    features: Tensor,
    labels: int,
    window: int,
    seed: int,
    strategies: tuple[str, ...] = tuple(STRATEGIES),
) -> dict[str, list[float]]:
    """Return the regret of each round 1 … T for each strategy, in units of reward.

    Strategies that label the responses of π_ref share their labels. `offline` has n·T labels, all of round 0.

    Args:
        at: the changing world.
        features: of the reward model, (K, d).
        labels: n, labels per round.
        window: in rounds, of `window`, `online` and (by mean age) `forgetting`.
        seed: of the labels.
        strategies: names of `STRATEGIES`.
    """
    found: dict[str, list[float]] = {}
    prompts, generator = at.world.num_prompts, seeded(seed, Stream.SHARED_LABELS)
    if "offline" in strategies:
        memory = Memory(features, prompts)
        memory.add(at.sample_labels(labels * at.rounds, 0, generator))
        reward = memory.fit(torch.ones(1, 1, dtype=torch.float64))[0]
        found["offline"] = [at.regret(at.tilt(reward, t), t) for t in range(1, at.rounds + 1)]
    memory = Memory(features, prompts)
    for t in range(1, at.rounds + 1):
        memory.add(at.sample_labels(labels, t - 1, generator))
        for strategy in strategies:
            if strategy in ("refit-all", "window", "forgetting"):
                reward = memory.fit(round_weights(strategy, t, window))[0]
                found.setdefault(strategy, []).append(at.regret(at.tilt(reward, t), t))
    for number, strategy in enumerate(("online", "online-all")):
        if strategy not in strategies:
            continue
        memory, generator = Memory(features, prompts), seeded(seed, Stream.ONLINE_LABELS + number)
        log_policy = at.log_ref
        for t in range(1, at.rounds + 1):
            memory.add(at.sample_labels(labels, t - 1, generator, log_policy))
            log_policy = at.tilt(memory.fit(round_weights(strategy, t, window))[0], t)
            found.setdefault(strategy, []).append(at.regret(log_policy, t))
    return found


def steady(
    at: NonstationaryWorld,
    features: Tensor,
    labels: int,
    windows: tuple[int, ...],
    every: tuple[int, ...],
    fits: int,
    seed: int,
) -> dict[tuple[int, int], float]:
    """Return the mean regret of a round in a long run under drift, for each (window, rounds between fits).

    Fits are spread evenly over half a turn. After it the rewards are the old ones with opposite signs.
    """
    memory, generator = Memory(features, at.world.num_prompts), seeded(seed, Stream.STEADY_LABELS)
    longest, most = max(windows), max(every)
    apart = max(round(math.pi / (at.rate * fits)), 1)
    times = [longest + i * apart for i in range(fits)]
    for t in range(times[-1]):
        memory.add(at.sample_labels(labels, t, generator))
    rounds = torch.arange(times[-1])
    found: dict[tuple[int, int], float] = {}
    for window in windows:
        kept = torch.stack([((rounds < t) & (rounds >= t - window)).double() for t in times])
        rewards = memory.fit(kept)
        log_policy = exact.optimal_policy(at.log_ref, rewards, at.beta)
        late = []
        for age in range(most):
            angle = at.rate * (torch.tensor(times, dtype=torch.float64) + age)
            truth = nonstationary.turned(at.first, at.other, angle[:, None, None])
            late.append(float(exact.regret(log_policy, at.log_ref, truth, at.beta).mean()))
        for k in every:
            found[window, k] = sum(late[:k]) / k
    return found
