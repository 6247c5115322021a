"""Candidates, pairs, exact win rates and decisions, which the three experiments on RSO share.

In one seed the reward model scores one set of candidates from π_ref, and every condition takes its data from it. Two
conditions of a seed therefore differ only in what their names say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlhf_lab import exact, preferences, sampling
from rlhf_lab.batch import Pairs, Tokens, cat, pick_pairs
from rlhf_lab.evaluation import evaluate
from rlhf_lab.evaluation.judges import Judge
from rlhf_lab.experiments.scales import set_up
from rlhf_lab.experiments.setup import Setup
from rlhf_lab.experiments.setup_exact import ExactSetup
from rlhf_lab.experiments.setup_text import TextSetup
from rlhf_lab.experiments.verdicts import Outcome
from rlhf_lab.intervals import Interval
from rlhf_lab.policies.base import Policy
from rlhf_lab.randomness import Stream
from rlhf_lab.rounding import levels
from rlhf_lab.training import seeded
from rlhf_lab.worlds.finite_world import FiniteWorld

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

LOSSES = ("sigmoid-norm", "hinge", "hinge-norm")
SOURCES = ("direct", "sft-sample-rank", "rso-sample-rank")
SEARCH_SEED = 1000
"""The seed of the search for learning rates, which no result uses."""
_CHUNK = 16
"""Number of prompts whose candidates are sampled and scored together."""


@dataclass(eq=False)
class RSOSetup:
    """One seed of an experiment on RSO: its set-up, and the candidates from which pairs and targets are taken.

    Attributes:
        setup: labels, reward model, prompts and reference policy.
        candidates: number of responses of π_ref for each prompt.
    """

    setup: Setup
    candidates: int

    @cached_property
    def sampled(self) -> tuple[Tokens, Tensor]:
        """The candidates of π_ref for the prompts of the set-up, (P, G, T), and their learned rewards r_φ, (P, G)."""
        reward, reference, prompts = self.setup.reward_model, self.setup.reference, self.setup.prompts
        generator = seeded(self.setup.seed, Stream.CANDIDATES, device=reference.device)
        found, scores = [], []
        size = len(prompts) if isinstance(self.setup, ExactSetup) else _CHUNK
        with torch.no_grad():
            for start in range(0, len(prompts), size):
                x = prompts[start : start + size]
                y = reference.sample(x, self.candidates, generator)
                found.append(y)
                scores.append(reward(x, y).double().cpu())
        return cat(found).to("cpu"), torch.cat(scores)

    @cached_property
    def evaluator(self) -> ExactEvaluator:
        """The exact evaluation of this seed, for exact scales only."""
        assert isinstance(self.setup, ExactSetup)
        return ExactEvaluator(self.setup.world, self.setup.learned_rewards, self.setup.budget.beta)

    @cached_property
    def gold_scores(self) -> Tensor:
        """The gold rewards r* of the candidates, (P, G)."""
        with torch.no_grad():
            return self.setup.gold(self.setup.prompts, self.sampled[0])

    def reach(self, beta: float) -> float:
        """Estimate KL(π_r‖π_ref) in nats, mean over prompts, from the candidates weighted by exp(r_φ/β).

        The estimate is at most log G.
        """
        weights = (self.sampled[1] / beta).softmax(-1)
        return float(torch.special.xlogy(weights, weights * weights.shape[-1]).sum(-1).mean())

    def pairs(
        self,
        source: str,
        beta: float,
        accepted: int,
        pairing: preferences.Pairing = "first-round",
        gold: bool = False,
        labels: preferences.Labels = "sampled",
    ) -> Pairs:
        """Make the preference pairs of a source. The reward model labels them, except for "direct".

        Args:
            source: one of `SOURCES`.
            beta: β of π_r, in [0, inf].
            accepted: number of candidates that are paired. sft-sample-rank takes the first ones.
            pairing: see `preferences.make_pairs`.
            gold: accept and label by r* instead of r_φ.
            labels: "sampled" with probability σ(r_1 − r_2), or "hard", by the larger score.
        """
        if source == "direct":
            return self.setup.pairs
        (y, scores), generator = self.sampled, seeded(self.setup.seed, Stream.CANDIDATE_PAIRS)
        if gold:
            scores = self.gold_scores
        if source == "rso-sample-rank":
            index = sampling.rejection_sample(scores, accepted, beta, generator)
        else:
            index = torch.arange(accepted).expand(len(scores), accepted)
        chosen = preferences.make_pairs(scores.gather(1, index), generator, pairing, labels)
        return pick_pairs(self.setup.prompts, y.take(index), chosen)[0]

    def evaluate(self, policy: Policy, beta: float, search: bool, judge: Judge | None = None) -> dict[str, float]:
        """Return win rates, reward, KL and objectives of a policy, and its regret on exact scales.

        Args:
            policy: what was trained.
            beta: β of the objective.
            search: on text, answer validation prompts in place of test prompts.
            judge: on text, decides further wins.
        """
        if isinstance(self.setup, ExactSetup):
            return self.evaluator(policy)
        assert isinstance(self.setup, TextSetup)
        reward: Any = self.setup.reward_model
        split = "validation" if search else "test"
        found = self.setup.evaluate(policy, split, proxy=reward, judge=judge, beta=beta)
        return {**found, "proxy_objective": found["proxy"] - beta * found["kl"]}


@lru_cache(maxsize=1)
def rso_setup(settings: Any, task: str, seed: int) -> RSOSetup:
    """Make the set-up of one seed, or return it again while the conditions of the seed follow each other.

    Args:
        settings: those of one of the three experiments. On exact scales the reward model is fitted with the middle one
            of its learning rates.
        task: the text world of a language model.
        seed: the seed of labels, reward model and samples, and on exact scales also of the world.
    """
    sizes: dict[str, Any] = {"labels": settings.labels, "prompts": settings.prompts, "beta": settings.beta}
    sizes |= {"steps": settings.steps, "batch_size": settings.batch, "reward_steps": settings.reward_steps}
    if settings.exact:
        sizes["learning_rate"] = sorted(settings.rates)[len(settings.rates) // 2]
    else:
        sizes |= {"test_prompts": settings.test_prompts, "test_samples": settings.test_samples}
    return RSOSetup(set_up(settings.scale, seed, task, **sizes), settings.candidates)


def chance_to_win(log_ref: Tensor, reward: Tensor) -> Tensor:
    """Return P(r(y) > r(y')) + ½ P(r(y) = r(y')) of every y against y' ~ π_ref, (X, K)."""
    place = levels(reward)
    mass = torch.zeros_like(log_ref).scatter_add(-1, place, log_ref.exp())
    return (mass.cumsum(-1) - mass / 2).gather(-1, place)


def chance_to_be_preferred(log_ref: Tensor, reward: Tensor) -> Tensor:
    """Return Σ_y' π_ref(y') σ(r(y) − r(y')): how often a labeller prefers each y to a sample of π_ref, (X, K)."""
    return torch.stack([exact.preference(r) @ q for q, r in zip(log_ref.exp(), reward, strict=True)])


@dataclass(eq=False)
class ExactEvaluator:
    """The exact evaluation of the policies of one seed.

    Attributes:
        world: the finite world.
        learned: r_φ of every response, (X, K).
        beta: β of the objective.
    """

    world: FiniteWorld
    learned: Tensor
    beta: float

    @cached_property
    def chances(self) -> dict[str, Tensor]:
        """The probability that each response is preferred to a sample of π_ref, (X, K), by the reward that prefers."""
        log_ref, gold = self.world.log_ref(), self.world.rewards()
        return {
            "proxy_wins": chance_to_win(log_ref, self.learned),
            "gold_wins": chance_to_win(log_ref, gold),
            "judge_wins": chance_to_be_preferred(log_ref, gold),
        }

    def __call__(self, policy: Policy | Tensor) -> dict[str, float]:
        """Return all numbers of a row. A policy may be given as its log-probabilities, (X, K)."""
        log_policy = policy if isinstance(policy, Tensor) else self.world.log_probs(policy)
        found = evaluate(log_policy, self.world, self.beta)
        p, log_ref = log_policy.exp(), self.world.log_ref()
        return {
            **{name: (p * chance).sum(-1).mean().item() for name, chance in self.chances.items()},
            "reward": found.reward,
            "kl": found.kl,
            "objective": found.objective,
            "regret": found.regret,
            "kl_to_optimal": found.kl_to_optimal,
            "proxy_objective": exact.objective(log_policy, log_ref, self.learned, self.beta).mean().item(),
        }


def decide_part(differences: Sequence[Interval], threshold: float = 0.0) -> Outcome:
    """Decide one part of a claim, which says that several differences are above a threshold.

    Returns:
        supported if all intervals are above the threshold, partly supported if some are, not supported if none is above
        and at least one is below, and otherwise inconclusive.
    """
    above = sum(one.low > threshold for one in differences)
    if differences and above == len(differences):
        return "supported"
    if above:
        return "partly supported"
    return "not supported" if any(one.high < threshold for one in differences) else "inconclusive"


def decide_claim(main: Outcome, *others: Outcome) -> Outcome:
    """Decide a claim from the outcomes of its parts.

    Returns:
        supported if all parts are. Not supported if the main part is not supported, or if no part is supported in full
        or in part and one is not supported. Inconclusive if all parts are. Otherwise partly supported.
    """
    parts = (main, *others)
    if all(one == "supported" for one in parts):
        return "supported"
    some = any(one in ("supported", "partly supported") for one in parts)
    if main == "not supported" or (not some and "not supported" in parts):
        return "not supported"
    return "partly supported" if some else "inconclusive"


def best_rates(search: pd.DataFrame, by: str) -> dict[str, float]:
    """Return the learning rate with the highest estimated proxy objective for each value of the column `by`."""
    best = search.loc[search.groupby(by)["proxy_objective"].idxmax()]
    return {str(key): float(rate) for key, rate in zip(best[by], best["rate"], strict=True)}


def log_ticks(ax: Axes) -> None:
    """Use a logarithmic x axis with plain numbers at 1, 2, 5, 10, …."""
    from matplotlib import ticker

    ax.set_xscale("log")
    ax.xaxis.set_major_locator(ticker.LogLocator(subs=[1, 2, 5]))
    ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(ticker.NullFormatter())
