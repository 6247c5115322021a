"""Linear classes of implicit rewards, and their convex fits, for the exact scales of the experiment `rso-why`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.bradley_terry import Comparisons, fit_function
from rlhf_lab.evaluation import evaluate
from rlhf_lab.experiments.claims.rso_why.settings import DIRECT, RSOWhy
from rlhf_lab.experiments.runner import JobSpec
from rlhf_lab.randomness import Stream
from rlhf_lab.training import seeded
from rlhf_lab.worlds import bandit, token_tree
from rlhf_lab.worlds.finite_world import FiniteWorld

LISTED = 64
"""Up to this number of responses, infinitely many pairs are computed from the list of all pairs."""


@dataclass(frozen=True)
class LinearClass:
    """Functions f(x, y) that are linear in θ, with a prior under which f has about unit variance."""

    size: int
    """Length of θ."""
    values: Callable[[Tensor], Tensor]
    """θ → f, (X, K)."""
    variance: Tensor
    """Prior variance of each entry of θ, (size,)."""


def table_class(world: FiniteWorld) -> LinearClass:
    """Return the class of all functions: a number for every response (bandit) or for every prefix (tree)."""
    shapes = [(world.num_prompts, *shape) for shape in world.tree.shapes]
    sizes = [torch.Size(shape).numel() for shape in shapes]

    def values(theta: Tensor) -> Tensor:
        parts = theta.split(sizes)
        return exact.path_sums([part.view(shape) for part, shape in zip(parts, shapes, strict=True)])

    return LinearClass(sum(sizes), values, torch.full((sum(sizes),), 1 / len(sizes), dtype=torch.float64))


def feature_class(world: FiniteWorld, features: int, seed: int) -> LinearClass:
    """Return the class of random features of the responses. All prompts share them, with different weights."""
    shape = (world.tree.num_responses, features)
    phi = torch.randn(shape, dtype=torch.float64, generator=seeded(seed, Stream.WHY_FEATURES)) / features**0.5
    size = world.num_prompts * features
    ones = torch.ones(size, dtype=torch.float64)
    return LinearClass(size, lambda theta: theta.view(world.num_prompts, features) @ phi.T, ones)


def token_class(world: FiniteWorld, bigrams: bool) -> LinearClass:
    """Return the tree's class of a number for every token in every place, and with `bigrams` for every token pair.

    The gold reward of the tree is in this class, with equal parts of both kinds.
    """
    tree = world.tree
    phi = token_tree.unigrams(tree)
    variance = torch.full((phi.shape[1],), (0.5 if bigrams else 1.0) / tree.depth, dtype=torch.float64)
    if bigrams:
        pairs = token_tree.bigrams(tree)
        phi = torch.cat([phi, pairs], 1)
        variance = torch.cat([variance, torch.full((pairs.shape[1],), 0.5 / (tree.depth - 1), dtype=torch.float64)])
    width = phi.shape[1]
    return LinearClass(
        width * world.num_prompts,
        lambda theta: theta.view(world.num_prompts, width) @ phi.T,
        variance.repeat(world.num_prompts),
    )


def draw_pairs(log_source: Tensor, reward: Tensor, number: int, generator: torch.Generator, soft: bool) -> Comparisons:
    """Draw `number` pairs of different responses from `log_source`, (X, K), with Bradley–Terry labels.

    With `soft` the labels are the probabilities σ(r_1 − r_2) themselves.
    """
    p, parts, have = log_source.exp(), [], 0
    for _ in range(200):
        prompt = torch.randint(len(p), (2 * number,), generator=generator)
        both = torch.multinomial(p, 4 * number, replacement=True, generator=generator).view(len(p), 2, -1)
        place = torch.arange(2 * number)
        first, second = both[prompt, 0, place], both[prompt, 1, place]
        rows = torch.stack([prompt, first, second])[:, first != second][:, : number - have]
        parts.append(rows)
        have += rows.shape[1]
        if have == number:
            break
    prompt, first, second = torch.cat(parts, 1)
    chance = torch.sigmoid(reward[prompt, first] - reward[prompt, second])
    if not soft:
        chance = (torch.rand(len(chance), dtype=torch.float64, generator=generator) < chance).double()
    return Comparisons(prompt, first, second, chance)


def every_pair(log_source: Tensor, reward: Tensor) -> Comparisons:
    """Return all pairs, each weighted by its probability: the limit of infinitely many sampled pairs."""
    prompts, size = log_source.shape
    first, second = torch.triu_indices(size, size, 1)
    p = log_source.exp()
    weight = (p[:, first] * p[:, second]).flatten()
    chance = torch.sigmoid(reward[:, first] - reward[:, second]).flatten()
    rows = torch.arange(prompts).repeat_interleave(len(first))
    return Comparisons(rows, first.repeat(prompts), second.repeat(prompts), chance, weight / weight.sum())


def fit(functions: LinearClass, pairs: Comparisons, prior: bool = True) -> Tensor:
    """Return the maximum a posteriori estimate of f, (X, K); without `prior` that of maximum likelihood."""
    # Without a prior, a tiny ridge determines the parts of f which no pair compares.
    return fit_function(functions.values, functions.variance, pairs, 1 / len(pairs.wins) if prior else 1e-6)


@dataclass(frozen=True, eq=False)
class ExactSeed:
    """The world of one seed, its classes, and the reward model fitted to its labels."""

    settings: RSOWhy
    seed: int
    world: FiniteWorld
    classes: dict[str, LinearClass]
    labels: Comparisons
    learned: Tensor
    """r_φ, (X, K)."""

    def source(self, name: str) -> Tensor:
        """Return the log-probabilities of a source of pairs, (X, K): ref, r (π_r of r_φ) or star (π*)."""
        log_ref = self.world.log_ref()
        if name == "ref":
            return log_ref
        reward = self.learned if name == "r" else self.world.rewards()
        return exact.optimal_policy(log_ref, reward, self.settings.beta)

    def fitted(self, policy: str, condition: str) -> Tensor:
        """Return log π of the fit of a condition, (X, K)."""
        labeller, source, number = condition.split(" ")
        reward = self.learned if labeller == "rm" else self.world.rewards()
        beta, log_ref, functions = self.settings.beta, self.world.log_ref(), self.classes[policy]
        if number == "inf" and policy == "full":
            return exact.optimal_policy(log_ref, reward, beta)  # there DPO's gradient is zero for any pairs
        if condition == DIRECT:
            f = fit(functions, self.labels)
        elif number == "inf" and log_ref.shape[1] <= LISTED:
            f = fit(functions, every_pair(self.source(source), reward), prior=False)
        else:
            soft = number == "inf"
            drawn = {"inf": self.settings.soft_pairs, "M": self.settings.pairs, "N": self.settings.labels}[number]
            generator = seeded(self.seed, Stream.WHY_SOFT_PAIRS if soft else Stream.WHY_PAIRS)
            f = fit(functions, draw_pairs(self.source(source), reward, drawn, generator, soft), prior=not soft)
        return (log_ref + f / beta).log_softmax(-1)

    def expected_regret(self, source: str) -> float:
        """Return the leading term of the expected regret of a table after N labels on pairs of `source`."""
        p = self.source(source).exp()
        pairs = p.unsqueeze(-1) * p.unsqueeze(-2) * (1 - torch.eye(p.shape[1], dtype=p.dtype))
        pairs = pairs / pairs.sum((-1, -2), keepdim=True)
        each = exact.label_price(self.world.log_ref(), self.world.rewards(), self.settings.beta, pairs)
        # The prompts share the labels.
        return each.mean().item() * self.world.num_prompts / self.settings.labels


@lru_cache(maxsize=1)
def exact_seed(settings: RSOWhy, seed: int) -> ExactSeed:
    """Make what the conditions of a seed share. Every seed has a different world."""
    if settings.scale == "tree":
        world = token_tree.random(8, 4, 1, seed)
        classes = {"full": table_class(world), "limited": token_class(world, bigrams=False)}
        of_reward = token_class(world, bigrams=True)
    else:
        world = bandit.random(4, 10, seed)
        classes = {"full": table_class(world), "limited": feature_class(world, settings.features, seed)}
        of_reward = classes["full"]
    labels = draw_pairs(world.log_ref(), world.rewards(), settings.labels, seeded(seed, Stream.WHY_LABELS), False)
    return ExactSeed(settings, seed, world, classes, labels, fit(of_reward, labels))


def exact_rows(settings: RSOWhy, job: JobSpec) -> list[dict[str, Any]]:
    """Return the rows of one job on an exact scale."""
    made, rows = exact_seed(settings, job["seed"]), []
    for condition in settings.conditions:
        found = evaluate(made.fitted(job["policy"], condition), made.world, settings.beta)
        row = {"condition": condition, "objective": found.objective, "regret": found.regret, "kl": found.kl}
        if settings.scale == "bandit" and job["policy"] == "full" and condition in (DIRECT, "gold r N", "gold star N"):
            row["closed_form"] = made.expected_regret(condition.split(" ")[1])
        rows.append(row)
    return rows
