"""What the three experiments on RSO share: candidates, the pairs made of them, exact win rates, parts of a verdict.

All samples of a seed are shared: the reward model scores one set of candidates of π_ref, and every row takes its data
from it. Two rows of one seed then differ only by what their names say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from rlhf_lab import exact, preferences, sampling
from rlhf_lab.batch import Pairs, Tokens, cat, pick_pairs
from rlhf_lab.evaluation import evaluate
from rlhf_lab.experiments.runner import EXACT_SCALES
from rlhf_lab.experiments.scales import set_up
from rlhf_lab.experiments.setup import Setup
from rlhf_lab.experiments.setup_exact import ExactSetup
from rlhf_lab.experiments.statistics import Interval
from rlhf_lab.experiments.verdicts import Outcome
from rlhf_lab.policies.base import Policy
from rlhf_lab.randomness import Stream
from rlhf_lab.rounding import levels
from rlhf_lab.training import seeded
from rlhf_lab.worlds.finite_world import FiniteWorld

LOSSES = ("sigmoid-norm", "hinge", "hinge-norm")
SOURCES = ("direct", "sft-sample-rank", "rso-sample-rank")
_CHUNK = 16  # prompts whose candidates are sampled and scored at a time


@dataclass(eq=False)
class RSOSetup:
    """One seed of an experiment on RSO: its set-up, and candidates from which every row takes its pairs or targets.

    Attributes:
        setup: labels, reward model, prompts and reference policy.
        candidates: how many responses of π_ref are sampled for each prompt.
    """

    setup: Setup
    candidates: int

    @cached_property
    def sampled(self) -> tuple[Tokens, Tensor]:
        """Candidates (P, G, T) of π_ref for the prompts of the set-up, and r_φ of each, (P, G)."""
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
        """The exact evaluation of this seed; exact scales only."""
        assert isinstance(self.setup, ExactSetup)
        return ExactEvaluator(self.setup.world, self.setup.learned_rewards, self.setup.budget.beta)

    @cached_property
    def gold_scores(self) -> Tensor:
        """r* of the same candidates, (P, G)."""
        with torch.no_grad():
            return self.setup.gold(self.setup.prompts, self.sampled[0])

    def reach(self, beta: float) -> float:
        """Estimate KL(π_r‖π_ref) in nats, mean over prompts, from the candidates weighted by exp(r_φ/β).

        The estimate is at most log G.
        """
        weights = (self.sampled[1] / beta).softmax(-1)
        return torch.special.xlogy(weights, weights * weights.shape[-1]).sum(-1).mean().item()

    def pairs(
        self,
        source: str,
        beta: float,
        accepted: int,
        pairing: preferences.Pairing = "first-round",
        gold: bool = False,
        labels: preferences.Labels = "sampled",
    ) -> Pairs:
        """Pairs of `source`. Except for "direct", they are labelled by the reward model.

        Args:
            source: one of `SOURCES`.
            beta: of π_r, in [0, inf].
            accepted: how many candidates are paired; sft-sample-rank takes the first ones.
            pairing: see `preferences.make_pairs`.
            gold: accept and label by r* in place of r_φ.
            labels: sampled with probability σ(r_1 − r_2), or hard, by the larger score.
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


def rso_setup(settings: Any, task: str, seed: int) -> RSOSetup:
    """Make the set-up of one seed with the sizes of an experiment's settings.

    Args:
        settings: of one of the three experiments. On exact scales the reward model is fitted at the middle one of its
            rates.
        task: text world of a language model.
        seed: of labels, reward model and samples; on exact scales of the world too.
    """
    sizes: dict[str, Any] = {"labels": settings.labels, "prompts": settings.prompts, "beta": settings.beta}
    sizes |= {"steps": settings.steps, "batch_size": settings.batch, "reward_steps": settings.reward_steps}
    if settings.scale in EXACT_SCALES:
        sizes["learning_rate"] = sorted(settings.rates)[len(settings.rates) // 2]
    else:
        sizes |= {"test_prompts": settings.test_prompts, "test_samples": settings.test_samples}
    return RSOSetup(set_up(settings.scale, seed, task, **sizes), settings.candidates)


def chance_to_win(log_ref: Tensor, reward: Tensor) -> Tensor:
    """P(r(y) > r(y')) + ½ P(r(y) = r(y')) of every y against y' ~ π_ref, (X, K)."""
    place = levels(reward)
    mass = torch.zeros_like(log_ref).scatter_add(-1, place, log_ref.exp())
    return (mass.cumsum(-1) - mass / 2).gather(-1, place)


def chance_to_please(log_ref: Tensor, reward: Tensor) -> Tensor:
    """Σ_y' π_ref(y') σ(r(y) − r(y')): how often a labeller prefers each y to a sample of π_ref, (X, K)."""
    return torch.stack([exact.preference(r) @ q for q, r in zip(log_ref.exp(), reward, strict=True)])


@dataclass(eq=False)
class ExactEvaluator:
    """Evaluates the policies of one seed of an exact scale.

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
            "judge_wins": chance_to_please(log_ref, gold),
        }

    def __call__(self, policy: Policy | Tensor) -> dict[str, float]:
        """All numbers of a row; a policy may be given as its log-probabilities, (X, K)."""
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


State = Literal["yes", "no", "mixed", "open"]


def state_of(intervals: Sequence[Interval]) -> State:
    """What several differences say of one part of a claim.

    yes: all lie above zero. no: at least one lies below zero and none above. mixed: some lie above zero, not all.
    open: none is decided.
    """
    above, below = sum(one.above for one in intervals), sum(one.below for one in intervals)
    if intervals and above == len(intervals):
        return "yes"
    if above:
        return "mixed"
    return "no" if below else "open"


def compose(states: Mapping[str, State], main: str) -> Outcome:
    """The outcome of a claim from its parts.

    holds: every part does. does not hold: the main part is contradicted, or no part stands and one is contradicted.
    not decided: no part is decided either way. holds when: the rest; the parts say when.
    """
    said = list(states.values())
    if all(one == "yes" for one in said):
        return "supported"
    standing = any(one in ("yes", "mixed") for one in said)
    if states[main] == "no" or (not standing and "no" in said):
        return "not supported"
    return "partly supported" if standing else "inconclusive"


def sentence_of(states: Mapping[str, State]) -> str:
    """The parts, sorted by what was found of them."""
    words = {"yes": "Borne out", "mixed": "In part", "no": "Contradicted", "open": "Not decided"}
    parts = []
    for state, head in words.items():
        names = [name for name, one in states.items() if one == state]
        if names:
            parts.append(f"{head}: {'; '.join(names)}.")
    return " ".join(parts)


def percent(interval: Interval) -> str:
    """A difference of two win rates in points with its interval."""
    return f"{100 * interval.mean:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


def log_ticks(ax: Any) -> None:
    """Plain numbers at 1, 2, 5, 10, … on a logarithmic x axis."""
    from matplotlib import ticker

    ax.set_xscale("log")
    ax.xaxis.set_major_locator(ticker.LogLocator(subs=[1, 2, 5]))
    ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(ticker.NullFormatter())


def style_key(source: Any) -> str:
    """The key of `figures.style` for a source of pairs or a method."""
    return f"rso-{source}" if source in SOURCES else str(source)
