"""Settings, candidates, pairs and exact win rates, which the experiments on RSO share.

In one seed the reward model scores one set of candidates from π_ref, and every condition takes its data from it. Two
conditions of a seed therefore differ only in what their names say.
"""

from __future__ import annotations

from dataclasses import asdict, astuple, dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import product
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from rlhf_lab import exact, preferences, sampling
from rlhf_lab.batch import Pairs, Tokens, cat, pick_pairs
from rlhf_lab.errors import Count, LabError, Natural, Positive, check_beta
from rlhf_lab.evaluation import evaluate
from rlhf_lab.evaluation.judges import Judge
from rlhf_lab.experiments.scales import set_up
from rlhf_lab.experiments.settings import Defaults, PerScale, Settings
from rlhf_lab.experiments.setup import Setup
from rlhf_lab.experiments.setup_exact import ExactSetup
from rlhf_lab.experiments.setup_text import TextSetup
from rlhf_lab.policies.base import Policy
from rlhf_lab.randomness import Stream
from rlhf_lab.rounding import levels
from rlhf_lab.training import seeded
from rlhf_lab.worlds.finite_world import FiniteWorld

LOSSES = ("sigmoid-norm", "hinge", "hinge-norm")
SOURCES = ("direct", "sft-sample-rank", "rso-sample-rank")
_CHUNK = 16
"""Number of prompts whose candidates are sampled and scored together."""


@dataclass(frozen=True)
class Cell:
    """One combination of those settings in which our first runs differed from the paper."""

    gamma: float
    """γ, the slope of the loss."""
    ranks: preferences.Labels
    """How the reward model labels a pair: hard, by the larger reward, or sampled with probability σ(r₁ − r₂)."""
    reward_model: Literal["many", "few"]
    """Whether the reward model is fitted to many or to few preference labels."""
    length: Literal["short", "long"]
    """Whether training is short, or so long that sigmoid-norm on sampled labels converges."""

    @property
    def key(self) -> str:
        """The name of the cell in the tables."""
        return f"γ={self.gamma:g} {self.ranks} {self.reward_model} {self.length}"

    def name(self, paper_gamma: float) -> str:
        """Return the cell's name in the names of numbers: `paper`, or what it changes, such as `equal_sampled_long`."""
        changes = {
            "equal": self.gamma != paper_gamma, "sampled": self.ranks == "sampled",
            "few": self.reward_model == "few", "long": self.length == "long",
        }  # fmt: skip
        return "_".join(name for name, changed in changes.items() if changed) or "paper"


def cells(paper_gamma: float, beta: float, every: bool) -> list[Cell]:
    """Return the cells of a design, the paper's first.

    Args:
        paper_gamma: γ in the paper.
        beta: the other value of γ, at which the fit aims at π*.
        every: return all sixteen combinations; otherwise the paper's cell and four cells with one change each.
    """
    ranks: tuple[preferences.Labels, ...] = ("hard", "sampled")
    found = [Cell(*one) for one in product((paper_gamma, beta), ranks, ("many", "few"), ("short", "long"))]  # type: ignore[arg-type]
    paper = astuple(found[0])
    return [one for one in found if every or sum(a != b for a, b in zip(astuple(one), paper, strict=True)) < 2]


@dataclass(frozen=True, init=False, kw_only=True)
class RSOSettings(Settings):
    """The settings that `rso-table` and `rso-hyperparameters` share."""

    beta: Positive
    """β of the objective and of π_r, in logits of a label."""
    paper_gamma: Positive
    """The slope γ of the loss in the paper."""
    labels: Natural
    """Number of preference labels. A reward model is fitted to all of them ("many") or to `few_labels`."""
    few_labels: Natural
    """Number of labels of the less reliable reward model."""
    pairs: Natural
    """Number of pairs of a fit. All are used where a condition has fewer pairs of different responses."""
    prompts: Natural
    """Number of prompts to which responses are sampled."""
    candidates: Natural
    """Responses of π_ref to each prompt."""
    temperature: Positive
    """Sampling temperature of the candidates."""
    top_k: Count | None
    """The candidates are sampled among this many likeliest tokens; None for all tokens."""
    steps: Natural
    """Optimiser steps of every fit in cells with short training."""
    long_steps: Natural
    """Optimiser steps of every fit in cells with long training."""
    batch: Natural
    """Pairs or responses in an optimiser step."""
    rate: Positive
    """Learning rate of every fit."""
    reward_steps: Natural
    """Optimiser steps of the reward models."""
    reward_batch: Natural
    """Exact scales: labels in an optimiser step of the reward models."""
    test_prompts: Natural
    """Text: number of test prompts."""
    test_samples: Natural
    """Text: responses to each test prompt."""

    # Steps and rates were chosen on seed 2000, which no result uses, by how far the fits move from π_ref. The reward
    # model has 40 numbers on the bandit and 4,680 on the tree, with about 5 (few) or 100 labels (many) for each.
    DEFAULTS: ClassVar[Defaults] = {
        "seeds": PerScale(12, 6, 8),
        "beta": 0.5,
        "paper_gamma": 0.05,
        "labels": PerScale(4000, 400_000, 512),
        "few_labels": PerScale(200, 20_000, 64),
        "pairs": PerScale(4000, 20_000, 400),
        "prompts": PerScale(5000, 6000, 192),
        "candidates": 64,
        "temperature": PerScale(1.0, 1.0, 0.7),
        "top_k": PerScale(None, None, 40),
        "steps": PerScale(50, 50, 32),
        "long_steps": PerScale(300, 300, 96),
        "batch": PerScale(512, 1024, 16),
        "rate": PerScale(0.2, 0.2, 1e-4),
        "reward_steps": PerScale(150, 150, 80),
        "reward_batch": 4096,
        "test_prompts": 64,
        "test_samples": 4,
    }
    QUICK: ClassVar[Defaults] = {
        "seeds": 2,
        "labels": PerScale(200, 200, 16),
        "few_labels": PerScale(50, 50, 8),
        "pairs": PerScale(100, 100, 8),
        "prompts": PerScale(100, 50, 8),
        "steps": PerScale(2, 2, 1),
        "long_steps": PerScale(4, 4, 2),
        "batch": PerScale(512, 512, 4),
        "reward_steps": PerScale(20, 20, 2),
        "test_prompts": 4,
        "test_samples": 2,
    }

    def check(self) -> None:
        """Refuse numbers that contradict each other."""
        check_beta(self.beta)
        if self.few_labels > self.labels:
            raise LabError(f"few_labels ({self.few_labels}) must be at most labels ({self.labels}).")
        if self.paper_gamma == self.beta:
            raise LabError(f"paper_gamma must differ from beta ({self.beta:g}), to which it is compared.")


@dataclass(eq=False)
class RSOSetup:
    """One seed of an experiment on RSO: its set-up, and the candidates from which pairs and targets are taken.

    Attributes:
        setup: labels, prompts and reference policy.
        candidates: number of responses of π_ref for each prompt.
        temperature: at which the candidates are sampled.
        top_k: the candidates are sampled among this many likeliest tokens; None for all tokens.
        labels: number of the set-up's preference labels to which the reward model is fitted; None for all labels.
    """

    setup: Setup
    candidates: int
    temperature: float = 1.0
    top_k: int | None = None
    labels: int | None = None
    _others: dict[int, RSOSetup] = field(default_factory=dict, init=False)

    @cached_property
    def reward_model(self) -> Any:
        """r_φ, fitted to the first `labels` of the preference labels and frozen."""
        if self.labels is None:
            return self.setup.reward_model
        return self.setup.fit_reward_model(self.setup.pairs[: self.labels], Stream.REWARD_MODEL)

    def with_labels(self, labels: int) -> RSOSetup:
        """Return a set-up that differs in its reward model alone, which is fitted to the first `labels` of the labels.

        The result is cached.
        """
        if labels not in self._others:
            self._others[labels] = replace(self, labels=labels)
            # The candidates do not depend on the reward model. On text they take longer than the fit of a policy.
            self._others[labels].__dict__["responses"] = self.responses
        return self._others[labels]

    @cached_property
    def responses(self) -> Tokens:
        """The candidates of π_ref for the prompts of the set-up, (P, G, T)."""
        reference, prompts = self.setup.reference, self.setup.prompts
        generator = seeded(self.setup.seed, Stream.CANDIDATES, device=reference.device)
        found = [
            reference.sample(prompts[rows], self.candidates, generator, self.temperature, self.top_k)
            for rows in self._chunks
        ]
        return cat(found).to("cpu")

    @cached_property
    def scores(self) -> Tensor:
        """The learned rewards r_φ of the candidates, (P, G), float64."""
        reward, prompts, y = self.reward_model, self.setup.prompts, self.responses
        with torch.no_grad():
            parts = [reward(prompts[rows], y[rows].trim()).double().cpu() for rows in self._chunks]
        return torch.cat(parts)

    @property
    def _chunks(self) -> list[slice]:
        number = len(self.setup.prompts)
        size = number if isinstance(self.setup, ExactSetup) else _CHUNK
        return [slice(start, start + size) for start in range(0, number, size)]

    @property
    def world(self) -> FiniteWorld:
        """The finite world, on exact scales only."""
        assert isinstance(self.setup, ExactSetup)
        return self.setup.world

    @cached_property
    def learned(self) -> Tensor:
        """r_φ of every response, (X, K), on exact scales only."""
        reward, world = self.reward_model, self.world
        with torch.no_grad():
            scores: Tensor = reward(world.prompts, world.responses).double().cpu()
        return scores

    @cached_property
    def best_gamma(self) -> float:
        """The γ for which π_ref exp(r_φ/γ)/Z has the maximum J, on exact scales only. It is β for r_φ = r*."""
        log_ref, gold = self.world.log_ref(), self.world.rewards()
        return float(exact.best_slope(log_ref, self.learned, gold, self.setup.budget.beta))

    @cached_property
    def chances(self) -> dict[str, Tensor]:
        """How often each response is preferred to a sample of π_ref, (X, K), by what prefers, on exact scales only."""
        log_ref, gold = self.world.log_ref(), self.world.rewards()
        return {
            "proxy_wins": chance_to_win(log_ref, self.learned),
            "gold_wins": chance_to_win(log_ref, gold),
            "judge_wins": chance_to_be_preferred(log_ref, gold),
        }

    @cached_property
    def gold_scores(self) -> Tensor:
        """The gold rewards r* of the candidates, (P, G)."""
        with torch.no_grad():
            return self.setup.gold(self.setup.prompts, self.responses)

    def reach(self, beta: float) -> float:
        """Estimate KL(π_r‖π_ref) in nats, mean over prompts, from the candidates weighted by exp(r_φ/β).

        The estimate is at most log G. With a temperature below 1 or with top-k, π_ref is the distribution of the
        candidates.
        """
        weights = (self.scores / beta).softmax(-1)
        return float(torch.special.xlogy(weights, weights * weights.shape[-1]).sum(-1).mean())

    def pairs(
        self,
        source: str,
        beta: float,
        accepted: int,
        pairing: preferences.Pairing = "first-round",
        gold: bool = False,
        labels: preferences.Labels = "sampled",
        number: int | None = None,
    ) -> Pairs:
        """Make the preference pairs of a source. The reward model labels them, except for "direct".

        Args:
            source: one of `SOURCES`.
            beta: β of π_r, in [0, inf].
            accepted: number of candidates that are paired. sft-sample-rank takes the first ones.
            pairing: see `preferences.make_pairs`.
            gold: accept and label by r* instead of r_φ.
            labels: "sampled" with probability σ(r_1 − r_2), or "hard", by the larger score.
            number: how many pairs of different responses are returned at most, drawn at random; None for all.
        """
        if source == "direct":
            return self.setup.pairs[:number]
        y, generator = self.responses, seeded(self.setup.seed, Stream.CANDIDATE_PAIRS)
        scores = self.gold_scores if gold else self.scores
        if source == "rso-sample-rank":
            index = sampling.rejection_sample(scores, accepted, beta, generator)
        else:
            index = torch.arange(accepted).expand(len(scores), accepted)
        chosen = preferences.make_pairs(scores.gather(1, index), generator, pairing, labels)
        pairs = pick_pairs(self.setup.prompts, y.take(index), chosen)[0]
        if number is None or number >= len(pairs):
            return pairs
        return pairs[torch.randperm(len(pairs), generator=generator)[:number]]

    def evaluate(self, policy: Policy, beta: float, search: bool, judge: Judge | None = None) -> dict[str, float]:
        """Return win rates, reward, KL and objectives of a policy, and its regret on exact scales.

        Args:
            policy: what was trained.
            beta: β of the objective.
            search: on text, answer validation prompts in place of test prompts.
            judge: on text, decides further wins.
        """
        if isinstance(self.setup, ExactSetup):
            return self.evaluate_exactly(policy)
        assert isinstance(self.setup, TextSetup)
        split = "validation" if search else "test"
        found = self.setup.evaluate(policy, split, proxy=self.reward_model, judge=judge, beta=beta)
        return {**found, "proxy_objective": found["proxy"] - beta * found["kl"]}

    def evaluate_exactly(self, policy: Policy | Tensor) -> dict[str, float]:
        """Return all numbers of a row on exact scales. A policy may be given as its log-probabilities, (X, K)."""
        world, beta = self.world, self.setup.budget.beta
        log_policy = policy if isinstance(policy, Tensor) else world.log_probs(policy)
        p = log_policy.exp()
        return {
            **{name: (p * chance).sum(-1).mean().item() for name, chance in self.chances.items()},
            **asdict(evaluate(log_policy, world, beta)),
            "proxy_objective": exact.objective(log_policy, world.log_ref(), self.learned, beta).mean().item(),
        }


@lru_cache(maxsize=1)
def rso_setup(settings: Any, task: str, seed: int) -> RSOSetup:
    """Make the set-up of one seed, or return it again while the conditions of the seed follow each other.

    Args:
        settings: those of one of the three experiments. Where they have `rate`, all fits of an exact scale have it.
        task: the text world of a language model.
        seed: the seed of labels, reward model and samples, and on exact scales also of the world.
    """
    sizes: dict[str, Any] = {"labels": settings.labels, "prompts": settings.prompts, "beta": settings.beta}
    sizes |= {"steps": settings.steps, "batch_size": settings.batch, "reward_steps": settings.reward_steps}
    if settings.exact:
        sizes |= {"learning_rate": settings.rate, "reward_batch_size": settings.reward_batch}
    else:
        sizes |= {"test_prompts": settings.test_prompts, "test_samples": settings.test_samples}
    made = RSOSetup(set_up(settings.scale, seed, task, **sizes), settings.candidates)
    if not hasattr(settings, "temperature"):
        return made
    return replace(made, temperature=settings.temperature, top_k=settings.top_k)


def chance_to_win(log_ref: Tensor, reward: Tensor) -> Tensor:
    """Return P(r(y) > r(y')) + ½ P(r(y) = r(y')) of every y against y' ~ π_ref, (X, K)."""
    place = levels(reward)
    mass = torch.zeros_like(log_ref).scatter_add(-1, place, log_ref.exp())
    return (mass.cumsum(-1) - mass / 2).gather(-1, place)


def chance_to_be_preferred(log_ref: Tensor, reward: Tensor) -> Tensor:
    """Return Σ_y' π_ref(y') σ(r(y) − r(y')): how often a labeller prefers each y to a sample of π_ref, (X, K)."""
    return torch.stack([exact.preference(r) @ q for q, r in zip(log_ref.exp(), reward, strict=True)])
