"""Claim 5: RSO's β and γ (its Figure 3), and first-round against tournament ranking (its Table 2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from rlhf_lab import exact
from rlhf_lab.algorithms.dpo import DPO, dpo
from rlhf_lab.errors import LabError, Natural, NonNegative, check_beta
from rlhf_lab.experiments import runner
from rlhf_lab.experiments.published_results import RSO_TABLE_2
from rlhf_lab.experiments.rso_common import RSOSetup, State, compose, percent, rso_setup, sentence_of, state_of
from rlhf_lab.experiments.runner import EXACT_SCALES, BestConfig, Experiment, Job, Settings, Worded
from rlhf_lab.experiments.setup_exact import ExactSetup
from rlhf_lab.experiments.setup_text import UNITS, TextSetup
from rlhf_lab.experiments.statistics import Interval, difference, summarise
from rlhf_lab.experiments.text_judge import judge_of
from rlhf_lab.figures import style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


SEARCH_SEED = 1000
SFT = math.inf
"""β of the sampler at which nothing is rejected: sft-sample-rank."""


@dataclass(frozen=True)
class Condition:
    """One way to make pairs and to fit them, all else equal."""

    beta: float
    """β of the sampler; inf takes draws of π_ref as they come."""
    gamma: float
    """γ, the loss's slope."""
    accepted: int = 8
    """Responses that are paired."""
    pairing: str = "first-round"
    """first-round or tournament."""

    @property
    def key(self) -> str:
        """Its name in the tables."""
        return f"β={self.beta:g} γ={self.gamma:g} {self.accepted} {self.pairing}"


@dataclass(frozen=True)
class RSOSettings(Settings):
    """RSO's β and γ, and first-round against tournament ranking."""

    task: str = ""
    """Text world of a language model. Default: summaries."""
    beta: NonNegative = 0.5
    """β of the objective; also the sampler's and the loss's slope where they are not what varies."""
    betas: tuple[NonNegative, ...] = ()
    """β's of the sampler; 0 and "no rejection" are always run too. Default: 0, .1, .25, .5, 1, 2; for a language model
    0, .5, 2."""
    gammas: tuple[NonNegative, ...] = ()
    """γ's of the loss. Default: .05, .15, .25, .5, 1, 2; for a language model .05, .5, 2."""
    paper_gamma: NonNegative = 0.05
    """The γ that the paper uses with β = 0.5; added to `gammas` where it is missing."""
    labels: Natural = 0
    """Preference labels. 0: 400 on the bandit, 5,000 on the tree, 384 for a language model."""
    prompts: Natural = 0
    """Prompts that are answered. 0: 500 on the bandit, 2,000 on the tree, 64 for a language model."""
    candidates: Natural = 64
    """Draws of π_ref for each prompt, a power of two."""
    steps: Natural = 0
    """Optimiser steps of every fit. 0: 150 for tables, 24 for a language model."""
    batch: Natural = 0
    """Pairs in a step. 0: 4,096 for tables, 16 for a language model."""
    rates: tuple[NonNegative, ...] = ()
    """Learning rates of the search. Default: 0.02, 0.05, 0.15; a language model's: 1e-4, 3e-4, 1e-3."""
    reward_steps: Natural = 0
    """Optimiser steps of the reward model. 0: 150 for tables, 80 for a language model."""
    test_prompts: Natural = 0
    """Test prompts that a language model answers in the end. 0: 64."""
    test_samples: Natural = 0
    """Responses to each. 0: 4."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_beta(self.beta)
        text, tree = self.scale not in EXACT_SCALES, self.scale == "tree"
        usual: dict[str, Any] = {
            "seeds": 4 if text else 5 if tree else 20,
            "task": "summaries" if text else self.scale,
            "betas": (0.0, 0.5, 2.0) if text else (0.0, 0.1, 0.25, 0.5, 1.0, 2.0),
            "gammas": (0.05, 0.5, 2.0) if text else (0.05, 0.15, 0.25, 0.5, 1.0, 2.0),
            "labels": 384 if text else 5000 if tree else 400,
            "prompts": 64 if text else 2000 if tree else 500,
            "steps": 24 if text else 150,
            "batch": 16 if text else 4096,
            "rates": (1e-4, 3e-4, 1e-3) if text else (0.02, 0.05, 0.15),
            "reward_steps": 80 if text else 150,
            "test_prompts": 64,
            "test_samples": 4,
        }
        if self.quick:
            usual |= {"seeds": 2, "prompts": 4 if text else 50, "steps": 1 if text else 5, "batch": 4 if text else 4096}
            usual |= {"rates": usual["rates"][1:2], "reward_steps": 2 if text else 20, "test_prompts": 4}
            usual |= {"labels": 16 if text else 200, "test_samples": 2}
        for name, value in usual.items():
            if getattr(self, name) in (0, (), ""):
                object.__setattr__(self, name, value)
        # What the rule compares is always run.
        betas = sorted({*map(float, self.betas), 0.0, self.beta})
        gammas = sorted({*map(float, self.gammas), self.beta, self.paper_gamma})
        object.__setattr__(self, "betas", tuple(betas))
        object.__setattr__(self, "gammas", tuple(gammas))
        if betas[0] < 0 or math.isinf(betas[-1]) or gammas[0] <= 0 or min(self.rates) <= 0:
            raise LabError("betas must be finite and not negative; gammas and rates must be above zero.")
        if self.candidates < 16 or self.candidates & (self.candidates - 1):
            raise LabError(
                f"candidates must be 16, 32, 64, … for a tournament among all of them, not {self.candidates}."
            )
        if text and self.task not in UNITS:
            raise LabError(f"Unknown task '{self.task}'. There are: {', '.join(UNITS)}.")

    @property
    def samplers(self) -> tuple[float, ...]:
        """β's of the sampler that are run, rising, no rejection the last of them."""
        return (*self.betas, SFT)

    @property
    def base(self) -> Condition:
        """rso-8, first-round, β and γ those of the objective."""
        return Condition(self.beta, self.beta)

    @property
    def rankings(self) -> dict[str, Condition]:
        """Table 2's rows: candidates and ranking."""
        kinds = {"sft-8": (SFT, 8), "rso-8": (self.beta, 8), "sft-64": (SFT, self.candidates)}
        return {
            f"{kind} {pairing}": Condition(beta, self.beta, accepted, pairing)
            for kind, (beta, accepted) in kinds.items()
            for pairing in ("first-round", "tournament")
        }

    @property
    def conditions(self) -> list[Condition]:
        """Each once, the base first."""
        every = [self.base, *(Condition(beta, self.beta) for beta in self.samplers)]
        every += [Condition(self.beta, gamma) for gamma in self.gammas]
        return list(dict.fromkeys([*every, *self.rankings.values()]))


def _search_trials(settings: RSOSettings) -> list[Job]:
    return [{"seed": SEARCH_SEED, "condition": settings.base.key, "rate": rate} for rate in settings.rates]


def _select_best(settings: RSOSettings, search: pd.DataFrame) -> BestConfig:
    best = int(search["proxy_objective"].to_numpy().argmax())
    return {"rate": float(search["rate"].to_numpy()[best])}


def _jobs(settings: RSOSettings) -> list[Job]:
    return [{"seed": s, "condition": one.key} for s in range(settings.seeds) for one in settings.conditions]


@lru_cache(maxsize=1)
def _setup(settings: RSOSettings, seed: int) -> RSOSetup:
    """The set-up of one seed, cached while its conditions follow each other."""
    return rso_setup(settings, settings.task, seed)


def _run(settings: RSOSettings, job: Job, best_config: BestConfig) -> list[dict[str, Any]]:
    searching = "rate" in job
    rate = float(job["rate"] if searching else best_config.get("rate", settings.rates[0]))
    one = next(condition for condition in settings.conditions if condition.key == job["condition"])
    shared = _setup(settings, job["seed"])
    source = "sft-sample-rank" if math.isinf(one.beta) else "rso-sample-rank"
    pairs = shared.pairs(source, one.beta, one.accepted, one.pairing)  # type: ignore[arg-type]
    policy = shared.setup.new_policy()
    training = shared.setup.training(1, learning_rate=rate)
    if len(pairs):  # with β = 0 all accepted responses may be the same one: nothing to learn
        dpo(policy, shared.setup.reference, pairs, DPO("sigmoid-norm", one.gamma), training)
    numbers: dict[str, Any] = {"beta": str(one.beta), "gamma": one.gamma, "accepted": one.accepted}
    numbers |= {"pairing": one.pairing, "pairs": len(pairs)}
    setup = shared.setup
    if isinstance(setup, ExactSetup):
        numbers |= shared.evaluator(policy)
        # With infinitely many labels of these pairs a table converges to π_ref exp(r_φ/γ), whatever β was.
        limit = exact.optimal_policy(setup.world.log_ref(), setup.learned_rewards, one.gamma)
        numbers |= {f"limit_{name}": value for name, value in shared.evaluator(limit).items() if name in LIMITS}
    else:
        assert isinstance(setup, TextSetup)
        judge = None if searching else judge_of(settings.scale, settings.task, settings.quick)
        reward: Any = setup.reward_model
        split = "validation" if searching else "test"
        found = setup.evaluate(policy, split, proxy=reward, judge=judge, beta=settings.beta)
        numbers |= found | {"proxy_objective": found["proxy"] - settings.beta * found["kl"]}
    return [numbers]


LIMITS = ("judge_wins", "objective", "kl")
METRICS = ["proxy_wins", "gold_wins", "judge_wins", "reward", "kl", "objective", "regret"]


def _summarise(settings: RSOSettings, runs: pd.DataFrame) -> pd.DataFrame:
    metrics = [*METRICS, "pairs", *(f"limit_{name}" for name in LIMITS)]
    table = summarise(runs, "condition", [metric for metric in metrics if metric in runs])
    known = {one.key: one for one in settings.conditions}
    for name in ("beta", "gamma", "accepted", "pairing"):
        table.insert(1, name, [getattr(known[key], name) for key in table["condition"]])
    names = {one.key: name for name, one in settings.rankings.items()}
    for metric in ("proxy", "judge"):
        published = [RSO_TABLE_2.get(names.get(key, "")) for key in table["condition"]]
        table[f"paper_{metric}_wins"] = [math.nan if row is None else getattr(row, metric) / 100 for row in published]
    return table


INSIDE = "pairs at the paper's β above both ends, β = 0 (top 8 of 64) and no rejection"
STEEP = "the paper's small γ above γ = β"
TOURNAMENT = "tournament above first-round by the reward model"
REJECTION = "rso-8 above sft-8 and sft-64"


def comparisons(settings: RSOSettings, runs: pd.DataFrame) -> dict[str, dict[str, Interval]]:
    """The differences that the rule looks at, by part, paired within seeds."""
    base, rows = settings.base, settings.rankings

    def less(one: Condition, other: Condition, metric: str = "judge_wins") -> Interval:
        return difference(runs, "condition", one.key, other.key, metric)

    return {
        INSIDE: {
            "β = 0": less(base, Condition(0.0, settings.beta)),
            "no rejection": less(base, Condition(SFT, settings.beta)),
        },
        STEEP: {f"γ = {settings.paper_gamma:g}": less(Condition(settings.beta, settings.paper_gamma), base)},
        TOURNAMENT: {
            kind: less(rows[f"{kind} tournament"], rows[f"{kind} first-round"], "proxy_wins")
            for kind in ("sft-8", "rso-8", "sft-64")
        },
        REJECTION: {kind: less(rows["rso-8 first-round"], rows[f"{kind} first-round"]) for kind in ("sft-8", "sft-64")},
    }


def _states(settings: RSOSettings, runs: pd.DataFrame) -> dict[str, State]:
    return {name: state_of(list(parts.values())) for name, parts in comparisons(settings, runs).items()}


def _verdict(settings: RSOSettings, summary: pd.DataFrame, runs: pd.DataFrame) -> Worded:
    states = _states(settings, runs)
    return Worded(compose(states, INSIDE), sentence_of(states))


def _figure(settings: RSOSettings, summary: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Differences to one condition, paired within seeds: worlds differ by more than settings do."""
    who = "labeller" if settings.scale in EXACT_SCALES else "judge"
    samplers = ["none" if math.isinf(beta) else f"{beta:g}" for beta in settings.samplers]
    first = next(iter(settings.rankings.values()))
    columns = [
        ("β of the sampler", f"β (none: nothing rejected), γ = {settings.beta:g}", settings.base,
         dict(zip(samplers, (Condition(beta, settings.beta) for beta in settings.samplers), strict=True))),
        ("γ of the loss", f"γ, β = {settings.beta:g}", settings.base,
         {f"{gamma:g}": Condition(settings.beta, gamma) for gamma in settings.gammas}),
        ("Candidates and ranking", "", first,
         {_stacked(name): one for name, one in settings.rankings.items()}),
    ]  # fmt: skip
    drawing, axes = style.subplots(2, 3, 15.5, 7.4, sharex="col", width_ratios=[1, 1, 1.3])
    with style.use():
        for column, (title, label, origin, shown) in enumerate(columns):
            above, below = axes[:, column]
            _differences(above, runs, origin, shown, {"judge_wins": who, "proxy_wins": "reward model"}, 100)
            _differences(below, runs, origin, shown, {"objective": "J by the gold reward"}, 1)
            above.set_title(title)
            name = "sft-8, first-round" if origin == first else f"β = γ = {settings.beta:g}"
            above.set_ylabel(f"wins over those of\n{name} [points]")
            below.set_ylabel(f"J over that of\n{name} [reward]")
            below.set_xticks(range(len(shown)), list(shown))
            below.set_xlabel(label)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        more, names = axes[1, 0].get_legend_handles_labels()
        drawing.legend([*handles, *more], [*labels, *names], loc="outside lower center", ncols=3)
    return drawing


def _stacked(name: str) -> str:
    return name.replace(" ", "\n").replace("t-r", "t\nr").replace("am", "a-\nm")


_LOOKS = {"judge_wins": "rso-rso-sample-rank", "proxy_wins": "reward", "objective": "optimal"}


def _differences(
    ax: Any, runs: pd.DataFrame, origin: Condition, shown: dict[str, Condition], names: dict[str, str], scale: float
) -> None:
    ax.axhline(0, color="#999999", lw=1.2, ls="--", zorder=1)
    for number, (metric, name) in enumerate(names.items()):
        look = style.of(_LOOKS[metric])
        marker = "s" if metric == "proxy_wins" else look.marker
        found = [difference(runs, "condition", one.key, origin.key, metric) for one in shown.values()]
        shift = 0.12 * (number - (len(names) - 1) / 2)
        ax.errorbar(
            [place + shift for place in range(len(found))],
            [scale * one.mean for one in found],
            yerr=[[scale * (one.mean - one.low) for one in found], [scale * (one.high - one.mean) for one in found]],
            fmt=marker,
            color=look.light,
            capsize=3,
            label=f"wins by the {name}" if scale == 100 else name,
        )


def _words(settings: RSOSettings, summary: pd.DataFrame, runs: pd.DataFrame) -> str:
    def row(one: Condition) -> str:
        found = summary.set_index("condition").loc[one.key]
        return f"{100 * found['judge_wins']:.1f} and {100 * found['proxy_wins']:.1f}, J {found['objective']:.3g}"

    betas = "; ".join(
        f"β {'none' if math.isinf(beta) else f'{beta:g}'}: {row(Condition(beta, settings.beta))}"
        for beta in settings.samplers
    )
    gammas = "; ".join(f"γ {gamma:g}: {row(Condition(settings.beta, gamma))}" for gamma in settings.gammas)
    ranks = "; ".join(f"{name}: {row(one)}" for name, one in settings.rankings.items())
    who = "labeller" if settings.scale in EXACT_SCALES else "judge"
    return f"Wins in percent by the {who} and by the reward model, and J. {betas}. {gammas}. {ranks}."


def _text(settings: RSOSettings, summary: pd.DataFrame, runs: pd.DataFrame) -> str:
    exact_scale = settings.scale in EXACT_SCALES
    found = comparisons(settings, runs)
    rows = settings.rankings
    table: Any = summary.set_index("condition")

    def less(one: Condition, other: Condition, metric: str) -> Interval:
        return difference(runs, "condition", one.key, other.key, metric)

    def listed(part: str) -> str:
        return ", ".join(f"{percent(one)} ({name})" for name, one in found[part].items())

    who = "labeller" if exact_scale else "judge"
    ends = " and by ".join(f"{percent(one)} points from those of {name}" for name, one in found[INSIDE].items())
    out = [f"The {who}'s wins with pairs of π_r at β = {settings.beta:g} differ by {ends}."]
    j_end = less(settings.base, Condition(SFT, settings.beta), "objective")
    out.append(f"In J they differ from those without rejection by {j_end}.")
    if exact_scale:
        spread = table.loc[[Condition(beta, settings.beta).key for beta in settings.samplers], "objective"]
        best = settings.samplers[int(spread.to_numpy().argmax())]
        out.append(
            "Endless labels would bring a table to π_ref exp(r_φ/γ) whatever β the sampler has, so that β is about "
            f"noise alone; of the β's tried the best J is at {'no rejection' if math.isinf(best) else f'β = {best:g}'}."
        )
    steep, flat = Condition(settings.beta, settings.paper_gamma), settings.base
    j_gamma = less(steep, flat, "objective")
    far, near = table.loc[steep.key, "kl"], table.loc[flat.key, "kl"]
    out.append(
        f"γ says how far the policy goes: {table.loc[steep.key, 'kl']:.2f} nats from π_ref at γ = "
        f"{settings.paper_gamma:g} and {table.loc[flat.key, 'kl']:.2f} at γ = β = {settings.beta:g}. The small γ "
        f"changes the {who}'s wins by {percent(found[STEEP][f'γ = {settings.paper_gamma:g}'])} points and J by "
        f"{j_gamma}"
        + (
            ": what it wins it pays for in KL."
            if found[STEEP][f"γ = {settings.paper_gamma:g}"].above and j_gamma.below
            else "."
        )
    )
    if abs(far - near) < 0.2 * near:
        out.append(
            f"So much alike they are after {settings.steps} steps, whose size Adam makes independent of the slope: "
            "this is no test of where the two would end."
        )
    if exact_scale:
        out.append(
            f"The limit at γ = {settings.paper_gamma:g} lies {table.loc[steep.key, 'limit_kl']:.2f} nats from π_ref, "
            f"that at γ = β {table.loc[flat.key, 'limit_kl']:.2f}."
        )
    judged = ", ".join(
        f"{percent(less(rows[f'{kind} tournament'], rows[f'{kind} first-round'], 'judge_wins'))} ({kind})"
        for kind in ("sft-8", "rso-8", "sft-64")
    )
    out.append(f"A tournament changes wins by the reward model by {listed(TOURNAMENT)}, and by the {who} by {judged}.")
    out.append(
        "Its later rounds pair winners, so their labels are no longer those of pairs drawn at random; each is still a "
        "Bradley–Terry label of the two that meet, and the limit is the same."
    )
    others = " and by ".join(f"{percent(one)} points from {name}" for name, one in found[REJECTION].items())
    out.append(f"With first-round pairs the {who}'s wins of rso-8 differ by {others}.")
    kept = {name: table.loc[rows[f"{name} first-round"].key, "pairs"] for name in ("rso-8", "sft-8")}
    out.append(
        f"Of its {4 * settings.prompts} pairs {kept['rso-8']:.0f} are of different responses, of sft-8's "
        f"{kept['sft-8']:.0f}; and responses that were all accepted lie closer in reward, so that more of their "
        "labels, which are drawn and not ranked, fall on the worse one."
    )
    return " ".join(out)


EXPERIMENT = Experiment(
    number=5,
    name="rso-settings",
    title="RSO's β and γ have a best place in the middle, and a tournament ranks better than a first round",
    claim=(
        "The paper accepts 8 of 64 candidates at β = 0.5 and fits at γ = 0.05. Its Figure 3, wins by the reward "
        "model on TL;DR: of β = 0, 0.05, 0.5, 5 the best is 0.5 (at γ = 0.05), of γ = 0.005, 0.05, 0.5 the best is "
        "0.05 (at β = 0.5). Table 2, wins by reward model and AutoSxS: sft-8 88.63% and 68.51% with first-round "
        "pairs, 90.69% and 68.57% with a tournament; rso-8 92.37% and 71.86%, 93.35% and 71.69%; sft-64 88.91% and "
        "68.84%, 91.14% and 71.08%. So tournaments please the reward model more, AutoSxS hardly (but for sft-64), "
        "and rejection beats both."
    ),
    source=(
        "Liu et al. 2024 (RSO), section 5.2, Figure 3 and Table 2; lecture, “How to sample from π_r? Rejection "
        "Sampling!”"
    ),
    setup=(
        "sigmoid-norm on 8 of 64 candidates, with β of the sampler from 0 (the top 8) to none rejected while γ = "
        "0.5, with γ from 0.05 up while β = 0.5, and Table 2's six rows. All of a seed's rows share labels, reward "
        "model and candidates, and have as many optimiser steps, whatever the number of pairs; labels are drawn from "
        "σ(r₁ − r₂) of the reward model. J is counted at β = "
        "0.5. On the exact scales policies are tables, each seed has a world of its own, the judge is the gold "
        "labeller (who prefers by Bradley–Terry) and wins are against draws of π_ref; else they are against the SFT "
        "target, on summaries. The learning rate is one for all: the best of three at the base setting on one search "
        "seed, by E[r_φ] − β KL."
    ),
    rule=(
        "Four parts, paired within seeds. By the judge: β = 0.5 has more wins than β = 0 and than no rejection; γ = "
        "0.05 more than γ = β = 0.5; first-round pairs of rso-8 more than those of sft-8 and of sft-64. By the reward "
        "model: a tournament has more wins than a first round with each of the three. A part is borne out when all its "
        "intervals lie above zero, contradicted when some lie below and none above, in part when some lie above, else "
        "not decided. Holds: all four. Does not hold: the part on β is contradicted, or no part stands at all and one "
        "is contradicted. Not decided: no part is decided. Holds when: the rest."
    ),
    settings=RSOSettings,
    scales=("bandit", "tree", "small"),
    jobs=_jobs,
    run=_run,
    summarise=_summarise,
    decide=_verdict,
    figure=_figure,
    words=_words,
    text=_text,
    search_trials=_search_trials,
    select_best=_select_best,
)


def main(settings: RSOSettings) -> None:
    """The command `rlhf-lab experiment rso-settings`."""
    runner.main(EXPERIMENT, settings)


__all__ = ["EXPERIMENT", "Condition", "RSOSettings", "comparisons", "main"]
