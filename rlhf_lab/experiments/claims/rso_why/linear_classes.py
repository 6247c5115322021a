"""Linear classes and fits carried to their end, for the exact scales of the experiment on why RSO should help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.bradley_terry import Comparisons, fit_function
from rlhf_lab.evaluation import evaluate
from rlhf_lab.experiments.claims.rso_why.settings import DIRECT
from rlhf_lab.experiments.runner import Job
from rlhf_lab.randomness import Stream
from rlhf_lab.training import seeded
from rlhf_lab.worlds import bandit, token_tree
from rlhf_lab.worlds.finite_world import FiniteWorld

if TYPE_CHECKING:
    from rlhf_lab.experiments.claims.rso_why.settings import RSOWhy


LISTED = 64
"""Responses up to which every pair is listed."""


# The exact scales: linear classes, fitted to the end.


@dataclass(frozen=True)
class LinearClass:
    """Functions f(x, y) that are linear in θ, with the prior under which f has about unit variance."""

    size: int
    """Numbers in θ."""
    values: Callable[[Tensor], Tensor]
    """θ → f, (X, K)."""
    variance: Tensor
    """Prior variance of each number of θ, (size,)."""


def table_class(world: FiniteWorld) -> LinearClass:
    """A number for every response (bandit), or for every prefix (tree): anything can be represented."""
    shapes = [(world.num_prompts, *shape) for shape in world.tree.shapes]
    sizes = [torch.Size(shape).numel() for shape in shapes]

    def values(theta: Tensor) -> Tensor:
        parts = theta.split(sizes)
        return exact.path_sums([part.view(shape) for part, shape in zip(parts, shapes, strict=True)])

    return LinearClass(sum(sizes), values, torch.full((sum(sizes),), 1 / len(sizes), dtype=torch.float64))


def feature_class(world: FiniteWorld, features: int, seed: int) -> LinearClass:
    """Random features of the responses, shared by all prompts; each prompt has weights of its own."""
    shape = (world.tree.num_responses, features)
    phi = torch.randn(shape, dtype=torch.float64, generator=seeded(seed, Stream.WHY_FEATURES)) / features**0.5
    size = world.num_prompts * features
    ones = torch.ones(size, dtype=torch.float64)
    return LinearClass(size, lambda theta: theta.view(world.num_prompts, features) @ phi.T, ones)


def token_class(world: FiniteWorld, bigrams: bool) -> LinearClass:
    """On the tree: a number for every token in every place, and with `bigrams` for every two that follow each other.

    The tree's gold reward is of this form, both kinds in equal parts.
    """
    ids = world.tree.responses.ids
    places, size = ids.shape[1], world.tree.vocab_size
    one_hot = torch.nn.functional.one_hot(ids, size).double()  # (K, L, V)
    parts = [one_hot.flatten(1)]
    variance = [torch.full((places * size,), (0.5 if bigrams else 1.0) / places, dtype=torch.float64)]
    if bigrams:
        both = torch.einsum("kla,klb->kab", one_hot[:, :-1], one_hot[:, 1:])
        parts.append(both.flatten(1))
        variance.append(torch.full((size * size,), 0.5 / (places - 1), dtype=torch.float64))
    phi = torch.cat(parts, 1)
    width = phi.shape[1]
    return LinearClass(
        width * world.num_prompts,
        lambda theta: theta.view(world.num_prompts, width) @ phi.T,
        torch.cat(variance).repeat(world.num_prompts),
    )


def draw_pairs(log_source: Tensor, reward: Tensor, number: int, generator: torch.Generator, soft: bool) -> Comparisons:
    """`number` pairs of different responses from `log_source`, (X, K), labelled by σ of the reward's difference."""
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
    """What endless pairs are: each with its population probability."""
    prompts, size = log_source.shape
    first, second = torch.triu_indices(size, size, 1)
    p = log_source.exp()
    weight = (p[:, first] * p[:, second]).flatten()
    chance = torch.sigmoid(reward[:, first] - reward[:, second]).flatten()
    rows = torch.arange(prompts).repeat_interleave(len(first))
    return Comparisons(rows, first.repeat(prompts), second.repeat(prompts), chance, weight / weight.sum())


def fit(functions: LinearClass, pairs: Comparisons, prior: bool = True) -> Tensor:
    """f of maximum posterior (maximum likelihood without `prior`), (X, K): a convex problem, solved to its end."""
    # Without labels' noise the prior's share is that of a label in a million: it only fixes what no pair says.
    return fit_function(functions.values, functions.variance, pairs, 1 / len(pairs.wins) if prior else 1e-6)


@dataclass(frozen=True, eq=False)
class ExactSeed:
    """A world, its classes, and the reward model fitted to the seed's labels."""

    settings: RSOWhy
    seed: int
    world: FiniteWorld
    classes: dict[str, LinearClass]
    labels: Comparisons
    learned: Tensor
    """r_φ, (X, K)."""

    def source(self, name: str) -> Tensor:
        """Where responses come from, log-probabilities (X, K): ref, r (π_r of r_φ) or star (π*)."""
        log_ref = self.world.log_ref()
        if name == "ref":
            return log_ref
        reward = self.learned if name == "r" else self.world.rewards()
        return exact.optimal_policy(log_ref, reward, self.settings.beta)

    def fitted(self, policy: str, condition: str) -> Tensor:
        """log π of the fit, (X, K)."""
        labeller, source, number = condition.split(" ")
        reward = self.learned if labeller == "rm" else self.world.rewards()
        beta, log_ref, functions = self.settings.beta, self.world.log_ref(), self.classes[policy]
        if number == "inf" and policy == "full":
            return exact.optimal_policy(log_ref, reward, beta)  # at π* DPO's gradient is zero, whatever the pairs
        if condition == DIRECT:
            f = fit(functions, self.labels)
        elif number == "inf" and log_ref.shape[1] <= LISTED:
            f = fit(functions, every_pair(self.source(source), reward), prior=False)
        elif number == "inf":
            generator = seeded(self.seed, Stream.WHY_SOFT_PAIRS)
            f = fit(
                functions,
                draw_pairs(self.source(source), reward, self.settings.soft_pairs, generator, True),
                prior=False,
            )
        else:
            how_many = self.settings.pairs if number == "M" else self.settings.labels
            pairs = draw_pairs(self.source(source), reward, how_many, seeded(self.seed, Stream.WHY_PAIRS), False)
            f = fit(functions, pairs)
        return (log_ref + f / beta).log_softmax(-1)

    def price(self, source: str) -> float:
        """Expected regret of a full table after N labels on pairs of `source`, to leading order (`label_price`)."""
        p = self.source(source).exp()
        pairs = p.unsqueeze(-1) * p.unsqueeze(-2) * (1 - torch.eye(p.shape[1], dtype=p.dtype))
        pairs = pairs / pairs.sum((-1, -2), keepdim=True)
        each = exact.label_price(self.world.log_ref(), self.world.rewards(), self.settings.beta, pairs)
        # The prompts share the labels.
        return each.mean().item() * self.world.num_prompts / self.settings.labels


@lru_cache(maxsize=1)
def exact_seed(settings: RSOWhy, seed: int) -> ExactSeed:
    """What a seed's conditions share; every seed has a world of its own."""
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


def exact_rows(settings: RSOWhy, job: Job) -> list[dict[str, Any]]:
    """The rows of one job on an exact scale."""
    made, rows = exact_seed(settings, job["seed"]), []
    for condition in settings.conditions:
        found = evaluate(made.fitted(job["policy"], condition), made.world, settings.beta)
        row = {"condition": condition, "objective": found.objective, "regret": found.regret, "kl": found.kl}
        if (
            settings.scale == "bandit"
            and job["policy"] == "full"
            and condition.startswith("gold")
            and condition[-1] == "N"
        ):
            row["closed_form"] = made.price(condition.split(" ")[1])
        rows.append(row)
    return rows
