r"""Claim 3: DPO wins more than PPO and best-of-n, and minds the sampling temperature less.

The DPO paper's TL;DR figure: every policy answers at temperatures from 0 to 1, and its summaries are set beside the
reference ones. Here the world is the lab's summaries, with the gold reward and a judge that has seen neither labels
nor reward model of any run. On finite worlds the opponent is a draw of π_ref, policies are tables, and a temperature
divides each prefix's logits, so that win rates are sums over all responses:

    W(π_T) = Σ_y π_T(y) [ P_ref(r* < r*(y)) + ½ P_ref(r* = r*(y)) ],    π_T(a|s) ∝ π(a|s)^{1/T}
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.errors import LabError, Natural, NonNegative, check_beta
from rlhf_lab.experiments import runner
from rlhf_lab.experiments.methods import BestOf, train
from rlhf_lab.experiments.rso_common import chance_to_win
from rlhf_lab.experiments.runner import EXACT_SCALES, BestConfig, Experiment, Job, Settings, Worded
from rlhf_lab.experiments.scales import set_up
from rlhf_lab.experiments.setup import Setup
from rlhf_lab.experiments.setup_exact import ExactSetup
from rlhf_lab.experiments.setup_text import TextSetup
from rlhf_lab.experiments.statistics import Interval, mean_interval, summarise
from rlhf_lab.experiments.text_judge import judge_of
from rlhf_lab.policies.base import Policy
from rlhf_lab.policies.tabular import TabularPolicy
from rlhf_lab.worlds.finite_world import FiniteWorld

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

TRAINED = {"sft": 1, "dpo": 2, "ppo": 3}
"""Methods that are trained, each with a stream of random numbers of its own."""
NAMES = {"reference": "SFT (π_ref)", "sft": "SFT on chosen", "dpo": "DPO", "ppo": "PPO"}
SEARCH = 1000
"""First seed of the search."""
WORLD = "summaries"
PAPER = {"dpo": 0.617, "ppo": 0.570}
"""Win rates at temperature 0 in the DPO paper's TL;DR figure, where it is PPO's best temperature too."""
Part = Literal["yes", "no", "open"]


@dataclass(frozen=True)
class Temperatures(Settings):
    """Win rates of DPO, PPO, SFT and best of n over sampling temperatures."""

    temperatures: tuple[NonNegative, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Of sampling, rising from 0 to 1. 0 takes the likeliest token each time."""
    best_of: tuple[Natural, ...] = ()
    """n of best-of-n, by the reward model. Default: 8, 128; on text 4, 16."""
    beta: NonNegative = 0.5
    """β of DPO and PPO."""
    rates: tuple[NonNegative, ...] = ()
    """Learning rates that the search tries for SFT, DPO and PPO. Default: .02, .05, .15; on text 3e-4, 1e-3."""
    search_seeds: Natural = 0
    """Seeds of the search. 0: 2; on text 1."""
    labels: Natural = 0
    """Preference labels. 0: 1,000; on the tree 20,000, on text 512."""
    steps: Natural = 0
    """Optimiser steps of every run; PPO's samples serve for several. 0: 240; on the tree 400, on text 44."""
    prompts: Natural = 0
    """Text: test prompts, each answered once at every temperature. 0: 80."""

    def __post_init__(self) -> None:
        super().__post_init__()
        text, tree, quick = self.scale not in EXACT_SCALES, self.scale == "tree", self.quick
        if quick and self.temperatures == (0.0, 0.25, 0.5, 0.75, 1.0):
            object.__setattr__(self, "temperatures", (0.0, 0.5, 1.0))
        defaults: dict[str, Any] = {
            "seeds": 2 if quick else 3 if text else 10,
            "best_of": ((2,) if quick else (4, 16)) if text else (8, 128),
            "rates": (1e-3,) if text and quick else (3e-4, 1e-3) if text else (0.02, 0.05, 0.15)[quick:],
            "search_seeds": 1 if text or quick else 2,
            "labels": (16 if quick else 512) if text else 200 if quick else 20_000 if tree else 1000,
            "steps": (2 if quick else 44) if text else 8 if quick else 400 if tree else 240,
            "prompts": 4 if quick else 80,
        }
        for name, value in defaults.items():
            if getattr(self, name) in (0, ()):
                object.__setattr__(self, name, value)
        check_beta(self.beta)
        rising = list(self.temperatures) == sorted(set(self.temperatures))
        if not rising or self.temperatures[:1] != (0.0,) or self.temperatures[-1] != 1.0:
            raise LabError(f"temperatures must rise from 0 to 1, not {self.temperatures}.")
        if min(self.best_of) < 2 or self.prompts < 2 or self.labels < 8 or not all(rate > 0 for rate in self.rates):
            raise LabError("Needed: n of best-of-n and prompts of at least 2, 8 labels, learning rates above 0.")


@lru_cache(maxsize=1)
def _setup(settings: Temperatures, seed: int) -> Setup:
    sizes: dict[str, Any] = {"labels": settings.labels, "beta": settings.beta, "steps": settings.steps}
    if settings.scale not in EXACT_SCALES:
        sizes |= {"reward_steps": 100, "test_prompts": settings.prompts, "test_samples": 1}
        if settings.quick:
            sizes |= {"reward_steps": 2, "batch_size": 4, "prompts": 8}
    return set_up(settings.scale, seed, WORLD, **sizes)


def jobs(settings: Temperatures) -> list[Job]:
    """One job a seed and method: it is trained once, and answers at all temperatures."""
    methods = ("reference", *TRAINED, "best-of-n")
    return [{"seed": seed, "method": method} for seed in range(settings.seeds) for method in methods]


def search_trials(settings: Temperatures) -> list[Job]:
    """The same rates for each method."""
    return [
        {"seed": SEARCH + seed, "method": method, "rate": rate}
        for seed in range(settings.search_seeds)
        for method in TRAINED
        for rate in settings.rates
    ]


def select_best(settings: Temperatures, rows: pd.DataFrame) -> BestConfig:
    """The rate with the largest objective J at temperature 1, mean over search seeds, by method."""
    means = rows.groupby(["method", "rate"])["objective"].mean()
    return {method: float(means[method].idxmax()) for method in TRAINED}


def run(settings: Temperatures, job: Job, best_config: BestConfig) -> list[dict[str, Any]]:
    """One row for each temperature; in a search the objective of the trained policy alone."""
    method, setup, searching = job["method"], _setup(settings, job["seed"]), "rate" in job
    policy = setup.reference
    if method in TRAINED:
        changes: dict[str, Any] = {}
        if method == "ppo" and isinstance(setup, TextSetup):
            changes = {"samples": 2}
        training = setup.training(TRAINED[method], learning_rate=job["rate"] if searching else best_config[method])
        policy = setup.new_policy()
        train(method, setup, training, policy, **changes)
    if searching:
        return [{"objective": setup.evaluate(policy, "validation")["objective"]}]
    if isinstance(setup, ExactSetup):
        return _exact_rows(settings, setup, method, policy)
    assert isinstance(setup, TextSetup)
    return _text_rows(settings, setup, method, policy)


# ------------------------------------------------------------------------------------------------------------ exact


def sharpened(tables: list[Tensor], temperature: float) -> Tensor:
    """log π_T of every response, (X, K), from log π(a|s), one table a depth: every prefix's logits divided by T.

    Args:
        tables: (X, c^t, V) a depth.
        temperature: 0 puts all on the likeliest token of every prefix.
    """
    if temperature == 0:
        best = [torch.zeros_like(t).scatter(-1, t.argmax(-1, keepdim=True), 1.0) for t in tables]
        return exact.path_sums([t.log() for t in best])
    return exact.path_sums([(t.double() / temperature).log_softmax(-1) for t in tables])


def _tables(policy: Policy, world: FiniteWorld) -> list[Tensor]:
    assert isinstance(policy, TabularPolicy)
    with torch.no_grad():
        return [table.double().log_softmax(-1) for table in policy.log_tables()]


def _exact_rows(settings: Temperatures, setup: ExactSetup, method: str, policy: Policy) -> list[dict[str, Any]]:
    world = setup.world
    wins, reward, tables = chance_to_win(world.log_ref(), world.rewards()), world.rewards(), _tables(policy, world)
    rows = []
    for temperature in settings.temperatures:
        log_p = sharpened(tables, temperature)
        named = {method: log_p}
        if method == "best-of-n":
            learned = setup.learned_rewards
            named = {f"best-of-{n}": exact.best_of_n(log_p, learned, n) for n in settings.best_of}
        for name, log_q in named.items():
            share = log_q.exp()
            rows.append(
                {
                    "method": name,
                    "temperature": temperature,
                    "gold_wins": (share * wins).sum(-1).mean().item(),
                    "reward": (share * reward).sum(-1).mean().item(),
                }
            )
    return rows


# ------------------------------------------------------------------------------------------------------------- text


def _text_rows(settings: Temperatures, setup: TextSetup, method: str, policy: Policy) -> list[dict[str, Any]]:
    policies = {method: policy}
    if method == "best-of-n":
        reward: Any = setup.reward_model
        policies = {f"best-of-{n}": BestOf(policy, reward, n, sampling_batch_size=16) for n in settings.best_of}
    judge = judge_of(settings.scale, WORLD, settings.quick)
    rows = []
    for name, answering in policies.items():
        for temperature in settings.temperatures:
            found = setup.evaluate(answering, temperature=temperature, judge=judge)
            kept = {key: found[key] for key in ("gold_wins", "judge_wins", "reward", "tokens", "distinct_2")}
            rows.append({"method": name, "temperature": temperature, **kept})
    return rows


# ---------------------------------------------------------------------------------------------------------- verdict


def metrics(settings: Temperatures) -> list[str]:
    """What is measured on the scale."""
    return ["gold_wins", "gain"] if settings.scale in EXACT_SCALES else ["gold_wins", "judge_wins", "gain", "tokens"]


def summarise_runs(settings: Temperatures, runs: pd.DataFrame) -> pd.DataFrame:
    """One row a method and temperature. `gain` is the reward less that of π_ref at temperature 1 in the same seed."""
    start = runs[(runs["method"] == "reference") & (runs["temperature"] == 1)].set_index("seed")["reward"]
    runs = runs.assign(gain=runs["reward"] - runs["seed"].map(start))
    out = summarise(runs, ["method", "temperature"], metrics(settings))
    # A win rate cannot leave [0, 1]; Student's interval of few seeds can.
    ends = [column for column in out if "_wins_" in str(column)]
    return out.assign(**{str(column): out[column].clip(0, 1) for column in ends})


def _best(summary: pd.DataFrame, methods: list[str], metric: str) -> tuple[str, float]:
    """The method and temperature of the largest mean."""
    part = summary[summary["method"].isin(methods)]
    row = part.iloc[int(part[metric].to_numpy().argmax())]
    return str(row["method"]), float(row["temperature"])


def _gap(runs: pd.DataFrame, metric: str, plus: list[tuple[str, float]], minus: list[tuple[str, float]]) -> Interval:
    """Sum of some cells less the sum of others, within the seed; mean over seeds with its interval."""
    table = runs.pivot(index="seed", columns=["method", "temperature"], values=metric)
    total: Any = sum(table[cell] for cell in plus) - sum(table[cell] for cell in minus)
    return Interval(*mean_interval(total.to_numpy()))


@dataclass(frozen=True)
class Parts:
    """The claim's three parts by one measure of winning."""

    ahead: Interval
    """Win rate of DPO at 0 less PPO's at its best temperature. Above 0 is for the claim."""
    ppo_best: float
    """PPO's best temperature."""
    steadier: Interval
    """PPO's fall from temperature 0 to 1 less DPO's. Above 0 is for the claim."""
    beyond: Interval
    """DPO at its best temperature less best-of-n at its best n and temperature. Above 0 is for the claim."""
    dpo_best: float
    """DPO's best temperature."""
    rival: tuple[str, float]
    """The best best-of-n, and its temperature."""

    def said(self) -> dict[str, Part]:
        """Each part's answer, by what it says."""
        return {
            name: "yes" if gap.above else "no" if gap.below else "open"
            for name, gap in (
                ("DPO at temperature 0 wins more than PPO at its best", self.ahead),
                ("DPO loses less than PPO from temperature 0 to 1", self.steadier),
                ("DPO's best wins more than best-of-n's best", self.beyond),
            )
        }


def parts(settings: Temperatures, summary: pd.DataFrame, runs: pd.DataFrame, metric: str = "gold_wins") -> Parts:
    """The three parts by `metric`. Best temperatures are those of the largest mean over seeds."""
    _, ppo_best = _best(summary, ["ppo"], metric)
    _, dpo_best = _best(summary, ["dpo"], metric)
    rival = _best(summary, [f"best-of-{n}" for n in settings.best_of], metric)
    return Parts(
        ahead=_gap(runs, metric, [("dpo", 0.0)], [("ppo", ppo_best)]),
        ppo_best=ppo_best,
        steadier=_gap(runs, metric, [("ppo", 0.0), ("dpo", 1.0)], [("ppo", 1.0), ("dpo", 0.0)]),
        beyond=_gap(runs, metric, [("dpo", dpo_best)], [rival]),
        dpo_best=dpo_best,
        rival=rival,
    )


def _points(gap: Interval) -> str:
    """A difference of win rates, in points."""
    return f"{100 * gap.mean:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}] points"


def judge(settings: Temperatures, summary: pd.DataFrame, runs: pd.DataFrame) -> Worded:
    """See the rule."""
    found = parts(settings, summary, runs)
    said = found.said()
    numbers = (
        f"By the gold reward DPO at temperature 0 is {_points(found.ahead)} from PPO at {found.ppo_best:g}, its fall "
        f"from 0 to 1 is smaller than PPO's by {_points(found.steadier)}, and its best (at {found.dpo_best:g}) is "
        f"{_points(found.beyond)} from {found.rival[0]} at {found.rival[1]:g}"
    )
    listed = {answer: [name for name, value in said.items() if value == answer] for answer in ("yes", "no", "open")}
    if len(listed["yes"]) == len(said):
        return Worded("supported", f"All three parts do. {numbers}.")
    if listed["yes"]:
        rest = [f"not so: {'; '.join(listed['no'])}"] * bool(listed["no"])
        rest += [f"not decided: {'; '.join(listed['open'])}"] * bool(listed["open"])
        return Worded(
            "partly supported", f"it says no more than: {'; '.join(listed['yes'])} ({'. '.join(rest)}). {numbers}."
        )
    if listed["no"]:
        rest = [f" (not decided: {'; '.join(listed['open'])})"] * bool(listed["open"])
        return Worded(
            "not supported", f"No part does, and not so: {'; '.join(listed['no'])}{''.join(rest)}. {numbers}."
        )
    return Worded("inconclusive", f"Every part's interval holds 0. {numbers}.")


# ---------------------------------------------------------------------------------------------------------- picture


def _name(method: str) -> str:
    return NAMES.get(method, method.replace("best-of-", "best of "))


def _methods(settings: Temperatures) -> list[str]:
    return [*NAMES, *(f"best-of-{n}" for n in settings.best_of)]


def figure(settings: Temperatures, summary: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Win rates over temperature: by gold; and by the judge on text, the expected reward on exact scales."""
    from matplotlib.ticker import PercentFormatter

    from rlhf_lab.figures import style

    exactly = settings.scale in EXACT_SCALES
    drawing, axes = style.subplots(1, 2, 12.4, 5.4)
    panels = [("gold_wins", "Win rate by the gold reward", "preferred to the opponent [% of comparisons]")]
    panels.append(
        ("gain", "Expected gold reward", "gain of E[r*] over π_ref at 1 [logits of a label]")
        if exactly
        else ("judge_wins", "Win rate by the judge", "preferred to the target [% of comparisons]")
    )
    with style.use():
        for ax, (metric, title, what) in zip(axes, panels, strict=True):
            for place, method in enumerate(_methods(settings)):
                look = style.of("best-of-n" if method.startswith("best-of-") else method)
                part = summary[summary["method"] == method]
                first_n = method == f"best-of-{settings.best_of[0]}" and len(settings.best_of) > 1
                error = [
                    (part[metric] - part[f"{metric}_low"]).clip(lower=0).fillna(0),
                    (part[f"{metric}_high"] - part[metric]).clip(lower=0).fillna(0),
                ]
                ax.errorbar(
                    part["temperature"] + 0.008 * (place - 2.5), part[metric], yerr=error, color=look.light,
                    marker=look.marker, ls="--" if first_n else "-", mfc="none" if first_n else look.light,
                    elinewidth=1.2, capsize=2, lw=1.8, label=_name(method),
                )  # fmt: skip
            ax.set(title=title, xlabel="sampling temperature", ylabel=what)
            ax.set_xticks(settings.temperatures)
            if metric != "gain":
                ax.axhline(0.5, color="#444444", lw=1, zorder=1)
                ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            if metric == "judge_wins":
                for method, rate in PAPER.items():
                    look = style.of(method)
                    ax.plot([-0.05], [rate], look.marker, mfc="none", mec=look.light, ms=9, mew=1.6,
                            label=f"{_name(method)}, the paper")  # fmt: skip
        handles: dict[str, Any] = {}
        for ax in axes:
            handles |= dict(zip(*ax.get_legend_handles_labels()[::-1], strict=True))
        drawing.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=4)
    return drawing


def words(settings: Temperatures, summary: pd.DataFrame, runs: pd.DataFrame) -> str:
    """The picture's numbers."""
    table: Any = summary.set_index(["method", "temperature"])
    ends = settings.temperatures[0], settings.temperatures[-1]

    def told(metric: str) -> str:
        return "; ".join(
            f"{_name(m)} {100 * table.loc[(m, ends[0]), metric]:.1f} and {100 * table.loc[(m, ends[1]), metric]:.1f}"
            for m in _methods(settings)
        )

    out = f"Win rate in percent at temperatures {ends[0]:g} and {ends[1]:g}, by the gold reward: {told('gold_wins')}."
    if settings.scale in EXACT_SCALES:
        rewards = "; ".join(
            f"{_name(m)} {table.loc[(m, ends[0]), 'gain']:.2f} and {table.loc[(m, ends[1]), 'gain']:.2f}"
            for m in _methods(settings)
        )
        return f"{out} Expected reward above that of π_ref at temperature 1: {rewards}."
    return f"{out} By the judge: {told('judge_wins')}."


def text(settings: Temperatures, summary: pd.DataFrame, runs: pd.DataFrame) -> str:
    """What was found."""
    exactly = settings.scale in EXACT_SCALES
    found = parts(settings, summary, runs)
    table: Any = summary.set_index(["method", "temperature"])
    opponent = "a draw of π_ref" if exactly else "the target"

    def rate(method: str, temperature: float, metric: str = "gold_wins") -> str:
        row = table.loc[(method, temperature)]
        return f"{row[metric]:.1%} [{row[f'{metric}_low']:.1%}, {row[f'{metric}_high']:.1%}]"

    out = [
        f"Against {opponent}, and by the gold reward, DPO at temperature 0 wins {rate('dpo', 0.0)}; PPO's best is "
        f"{rate('ppo', found.ppo_best)} at temperature {found.ppo_best:g}: a difference of {_points(found.ahead)} "
        f"within a seed (the paper's judge: {PAPER['dpo']:.1%} against {PAPER['ppo']:.1%}).",
        f"From temperature 0 to 1 DPO goes to {rate('dpo', 1.0)} and PPO from {rate('ppo', 0.0)} to "
        f"{rate('ppo', 1.0)}; PPO's fall less DPO's is {_points(found.steadier)}.",
        f"DPO's best, at {found.dpo_best:g}, is {_points(found.beyond)} from {_name(found.rival[0])} at "
        f"{found.rival[1]:g}, which wins {rate(*found.rival)}"
        + (
            " and pays for it with n draws an answer." if found.rival[1] else ": at 0 that is π_ref's likeliest answer."
        ),
    ]
    fall = _gap(runs, "gold_wins", [("reference", 0.0)], [("reference", 1.0)])
    sharp = (
        "cold sampling alone raises it" if fall.above else "cold sampling alone lowers it" if fall.below
        else "cold sampling alone does not clearly change it"
    )  # fmt: skip
    out.append(
        f"π_ref itself wins {rate('reference', 0.0)} at 0 and {rate('reference', 1.0)} at 1: {sharp} "
        f"({_points(fall)}). A temperature below 1 is a second sharpening on top of the one that was trained, and it "
        f"follows likelihood, not reward."
    )
    if exactly:
        out.append(
            "Each seed has a world of its own and all numbers are sums over all responses, so the intervals are over "
            "worlds and labels alone."
        )
    else:
        other = parts(settings, summary, runs, "judge_wins")
        same = sum(a == b for a, b in zip(found.said().values(), other.said().values(), strict=True))
        out.append(
            f"The judge, which shares neither labels nor weights with any reward model here, answers {same} of the "
            f"three parts as the gold reward does: {_points(other.ahead)}, {_points(other.steadier)} and "
            f"{_points(other.beyond)}."
        )
        words_of = {m: table.loc[(m, 0.0), "tokens"] for m in ("reference", "dpo", "ppo")}
        out.append(
            f"At temperature 0 an answer has {words_of['reference']:.1f} tokens from π_ref, {words_of['dpo']:.1f} from "
            f"DPO and {words_of['ppo']:.1f} from PPO."
        )
    return " ".join(out)


EXPERIMENT = Experiment(
    number=3,
    name="temperatures",
    title="DPO beats PPO and best-of-n at their best temperatures, and minds the temperature less",
    claim=(
        "On TL;DR, DPO's summaries win 61.7% against the reference summaries at temperature 0, PPO's 57.0% at its best "
        "temperature, which is 0 too; DPO is much more robust to the temperature than PPO, and its best exceeds the "
        "best of N = 128."
    ),
    source="Rafailov et al. 2023, section 6.2 and Figure 2, right; lecture, “Compared to PPO”",
    setup=(
        "π_ref, SFT on the chosen responses (Preferred-FT), DPO, PPO and best-of-n of π_ref by the same reward model, "
        "at temperatures from 0 to 1. Labels, reward model, prompts and steps are shared within a seed; each learning "
        "rate comes from the same small search. On text: win rate against the summaries world's targets, by the gold "
        "reward and by a judge, a reward model of another architecture and other labels, where the paper asks GPT-4. "
        "On bandit and tree: exact, against a draw of π_ref, policies as tables, a world of its own for each seed. "
        "Best-of-n has n of 8 and 128 there, 4 and 16 on text."
    ),
    rule=(
        "Three parts, each a difference of gold win rates within a seed with its 95% interval over seeds: (a) DPO at "
        "temperature 0 less PPO at its best temperature, (b) PPO's fall from temperature 0 to 1 less DPO's, (c) DPO at "
        "its best temperature less best-of-n at its best n and temperature; best is the largest mean over seeds. A "
        "part is so if its interval lies above 0, not so if it lies below 0, else not decided. The claim holds if all "
        "three are so, holds in the parts named if some are, does not hold if none is and at least one is not so, and "
        "else it is not decided."
    ),
    settings=Temperatures,
    scales=("bandit", "tree", "small"),
    jobs=jobs,
    run=run,
    summarise=summarise_runs,
    decide=judge,
    figure=figure,
    words=words,
    text=text,
    search_trials=search_trials,
    select_best=select_best,
)


def main(settings: Temperatures) -> None:
    """The command `rlhf-lab experiment temperatures`."""
    runner.main(EXPERIMENT, settings)
