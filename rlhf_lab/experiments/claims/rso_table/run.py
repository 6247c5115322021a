"""Claim 4, first part: RSO's Table 1. Three losses times three sources of pairs, with RAFT and ReST beside them.

A language model's sizes were settled before its run on seed 2000, which neither the run nor the search uses, and on one
thing alone: whether fits move, how far π_r itself lies from π_ref, and where a rate is too high (KL, and how far a
row's own tries lie below its best one). 256 human labels serve for everything, the reward model and the rows "direct".
The reward model labels twice as many pairs, and every fit goes through as many pairs as these are. Five rates reach
from one that leaves the policy at π_ref to one that takes every pairwise loss many times as far away as π_r.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import torch

from rlhf_lab.algorithms.dpo import DPO, dpo
from rlhf_lab.algorithms.raft import best_of
from rlhf_lab.algorithms.rest import reward_filter
from rlhf_lab.algorithms.sft import sft
from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError, Natural, NonNegative, check_beta
from rlhf_lab.experiments import runner
from rlhf_lab.experiments.published_results import RSO_TABLE_1
from rlhf_lab.experiments.rso_common import (
    LOSSES,
    SOURCES,
    RSOSetup,
    State,
    compose,
    log_ticks,
    percent,
    rso_setup,
    sentence_of,
    state_of,
    style_key,
)
from rlhf_lab.experiments.runner import EXACT_SCALES, BestConfig, Experiment, Job, Settings, Worded
from rlhf_lab.experiments.setup_exact import ExactSetup
from rlhf_lab.experiments.setup_text import UNITS, TextSetup
from rlhf_lab.experiments.statistics import Interval, difference, summarise
from rlhf_lab.experiments.text_judge import judge_of
from rlhf_lab.figures import style
from rlhf_lab.policies.base import Policy
from rlhf_lab.randomness import Stream
from rlhf_lab.rounding import unit_interval, wins
from rlhf_lab.training import seeded

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


ROWS = ("raft", "rest", *(f"{loss} {source}" for loss in LOSSES for source in SOURCES))
"""The table's rows: RAFT, ReST, and "loss source"."""
SEARCH_SEED = 1000
MARGIN = 0.02
"""A loss is "not worse" than another when its win rate is at most this much lower, over the whole interval."""
WINS = {"proxy_wins": "reward model", "gold_wins": "gold reward", "judge_wins": "judge"}


@dataclass(frozen=True)
class RSOTable(Settings):
    """RSO's Table 1: RAFT, ReST, and three losses times three sources of pairs."""

    tasks: tuple[str, ...] = ()
    """Text worlds of a language model. Default: summaries and dialogue, for TL;DR and HH."""
    beta: NonNegative = 0.5
    """β of π_r and of the objective, in logits of a label."""
    gamma: NonNegative = 0.0
    """γ, the slope of every loss. 0: β, so that sigmoid-norm aims at π* of the same β (the paper has 0.05)."""
    labels: Natural = 0
    """Preference labels. 0: 400 on the bandit, 5,000 on the tree, 256 for a language model."""
    prompts: Natural = 0
    """Prompts that are answered. 0: 500 on the bandit, 2,000 on the tree, 128 for a language model."""
    candidates: Natural = 0
    """Draws of π_ref for each prompt; RAFT keeps the best, ReST those above τ. 0: 64, as in the paper."""
    accepted: Natural = 8
    """Of these, how many are paired: 4 first-round pairs, as in the paper."""
    ranks: Literal["sampled", "hard"] = "sampled"
    """How the reward model labels its pairs: by draws from σ(r₁ − r₂), or hard, the larger score always chosen."""
    threshold: NonNegative = 0.7
    """τ of ReST's one Improve step, on rewards scaled to [0, 1]."""
    steps: Natural = 0
    """Optimiser steps of every fit. 0: 150 for tables, 32 for a language model."""
    batch: Natural = 0
    """Pairs or responses in a step. 0: 4,096 for tables, 16 for a language model."""
    rates: tuple[NonNegative, ...] = ()
    """Learning rates that the search tries for every row. Default: 0.02, 0.05, 0.15; a language model's: 2e-5,
    6e-5, 1.5e-4, 4e-4, 1e-3."""
    reward_steps: Natural = 0
    """Optimiser steps of the reward model. 0: 150 for tables, 48 for a language model."""
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
            "tasks": ("summaries", "dialogue") if text else (self.scale,),
            "gamma": self.beta,
            "labels": 256 if text else 5000 if tree else 400,
            "prompts": 128 if text else 2000 if tree else 500,
            "candidates": 64,
            "steps": 32 if text else 150,
            "batch": 16 if text else 4096,
            "rates": (2e-5, 6e-5, 1.5e-4, 4e-4, 1e-3) if text else (0.02, 0.05, 0.15),
            "reward_steps": 48 if text else 150,
            "test_prompts": 64,
            "test_samples": 4,
        }
        if self.quick:
            usual |= {"seeds": 2, "candidates": 16, "prompts": 8 if text else 100, "steps": 1 if text else 5}
            usual |= {"rates": usual["rates"][1:2], "reward_steps": 2 if text else 20, "test_prompts": 4}
            usual |= {"labels": 16 if text else 200, "test_samples": 2, "tasks": usual["tasks"][:1]}
            usual |= {"batch": 4 if text else 4096}
        for name, value in usual.items():
            if getattr(self, name) in (0, ()):
                object.__setattr__(self, name, value)
        if not text and self.tasks != (self.scale,):
            raise LabError(f"tasks are for language models; the scale '{self.scale}' has none.")
        if unknown := [task for task in self.tasks if text and task not in UNITS]:
            raise LabError(f"Unknown tasks {', '.join(unknown)}. There are: {', '.join(UNITS)}.")
        if self.gamma < 0 or min(self.rates) <= 0:
            raise LabError("gamma and rates must be above zero.")
        if not 2 <= self.accepted <= self.candidates or self.accepted % 2:
            raise LabError(f"accepted must be even and between 2 and candidates ({self.candidates}).")
        if not 0 <= self.threshold < 1:
            raise LabError(f"threshold must lie in [0, 1), not {self.threshold}.")


def _search_trials(settings: RSOTable) -> list[Job]:
    # On text the search is run on the first task and serves all: it costs as much as a seed of a task.
    task = settings.tasks[0]
    return [{"seed": SEARCH_SEED, "task": task, "row": row, "rate": rate} for row in ROWS for rate in settings.rates]


def _select_best(settings: RSOTable, search: pd.DataFrame) -> BestConfig:
    best = search.loc[search.groupby("row")["proxy_objective"].idxmax()]
    return {str(row): float(rate) for row, rate in zip(best["row"], best["rate"], strict=True)}


def _jobs(settings: RSOTable) -> list[Job]:
    return [
        {"seed": seed, "task": task, "row": row}
        for seed in range(settings.seeds)
        for task in settings.tasks
        for row in ("reference", *ROWS)
    ]


@lru_cache(maxsize=1)
def _setup(settings: RSOTable, task: str, seed: int) -> RSOSetup:
    """The set-up of one seed and task, cached while the rows of that seed follow each other."""
    return rso_setup(settings, task, seed)


def fit(shared: RSOSetup, settings: RSOTable, row: str, rate: float) -> Policy:
    """Train the policy of one row; "reference" is π_ref itself."""
    if row == "reference":
        return shared.setup.reference
    policy = shared.setup.new_policy()
    training = shared.setup.training(1, learning_rate=rate)
    if row in ("raft", "rest"):
        (y, scores), prompts = shared.sampled, shared.setup.prompts
        if row == "raft":
            best = best_of(scores, seeded(shared.setup.seed, Stream.BEST_OF_N))
            sft(policy, prompts, y.take(best), training)
            return policy
        flat = scores.flatten()
        keep = reward_filter(unit_interval(flat, flat.min().item(), flat.max().item()), settings.threshold)
        every = Tokens(y.ids.flatten(0, 1).unsqueeze(1), y.mask.flatten(0, 1).unsqueeze(1))
        sft(policy, prompts.repeat(settings.candidates)[keep], every[keep], training)
        return policy
    loss, source = row.split(" ")
    pairs = shared.pairs(source, settings.beta, settings.accepted, labels=settings.ranks)
    dpo(policy, shared.setup.reference, pairs, DPO(loss, settings.gamma), training)  # type: ignore[arg-type]
    return policy


def _run(settings: RSOTable, job: Job, best_config: BestConfig) -> list[dict[str, Any]]:
    row, task = job["row"], job["task"]
    searching = "rate" in job
    rate = float(job["rate"] if searching else best_config.get(row, settings.rates[0]))
    shared = _setup(settings, task, job["seed"])
    policy = fit(shared, settings, row, rate)
    loss, _, source = row.partition(" ")
    names = {"loss": loss if source else "none" if row == "reference" else "cross-entropy", "source": source or row}
    setup = shared.setup
    if isinstance(setup, ExactSetup):
        numbers = shared.evaluator(policy)
    else:
        assert isinstance(setup, TextSetup)
        split = "validation" if searching else "test"
        judge = None if searching else judge_of(settings.scale, task, settings.quick)
        reward: Any = setup.reward_model
        numbers = setup.evaluate(policy, split, proxy=reward, judge=judge, beta=settings.beta)
        numbers["proxy_objective"] = numbers["proxy"] - settings.beta * numbers["kl"]
        numbers |= {"right": _labels_right(shared, settings, source), "reach": shared.reach(settings.beta)}
    return [{**names, **numbers}] if searching else [{**names, "rate": rate, **numbers}]


def _labels_right(shared: RSOSetup, settings: RSOTable, source: str) -> float:
    """How often the label of a pair names the one that its labeller scores higher, ties half; NaN without pairs."""
    if source not in SOURCES:
        return math.nan
    pairs = shared.pairs(source, settings.beta, settings.accepted, labels=settings.ranks)
    score: Any = shared.setup.gold if source == "direct" else shared.setup.reward_model
    with torch.no_grad():
        chosen, rejected = score(pairs.prompts, pairs.responses).unbind(-1)
    return wins(chosen, rejected).double().mean().item()


METRICS = ["proxy_wins", "gold_wins", "judge_wins", "reward", "kl", "objective", "regret", "kl_to_optimal", "right"]


def _summarise(settings: RSOTable, runs: pd.DataFrame) -> pd.DataFrame:
    table = summarise(runs, ["task", "row", "loss", "source"], [m for m in METRICS if m in runs])
    for metric in WINS:
        paper = [_paper(task, row, metric) for task, row in zip(table["task"], table["row"], strict=True)]
        table[f"paper_{metric}"] = paper
    return table


def _paper(task: str, row: str, metric: str) -> float:
    found = RSO_TABLE_1.get(task, {}).get(row)
    return math.nan if found is None else getattr(found, metric.removesuffix("_wins")) / 100


def comparisons(runs: pd.DataFrame, task: str, metric: str = "judge_wins") -> dict[str, dict[str, Interval]]:
    """The differences that the rule looks at, by part, paired within seeds.

    The part on losses is given with the margin added, so that "above zero" means "not worse".
    """
    part = runs[runs["task"] == task]

    def less(one: str, other: str) -> Interval:
        return difference(part, "row", one, other, metric)

    def shifted(interval: Interval) -> Interval:
        return Interval(*(value + MARGIN for value in interval))

    rso = "sigmoid-norm rso-sample-rank"
    return {
        RSO_OVER_SFT: {loss: less(f"{loss} rso-sample-rank", f"{loss} sft-sample-rank") for loss in LOSSES},
        SFT_OVER_DIRECT: {loss: less(f"{loss} sft-sample-rank", f"{loss} direct") for loss in LOSSES},
        NOT_WORSE: {
            loss: shifted(less(f"{loss} rso-sample-rank", "hinge rso-sample-rank"))
            for loss in ("sigmoid-norm", "hinge-norm")
        },
        BELOW: {method: less(rso, method) for method in ("raft", "rest")},
    }


RSO_OVER_SFT = "rso-sample-rank above sft-sample-rank"
SFT_OVER_DIRECT = "sft-sample-rank above direct"
NOT_WORSE = "losses with π_ref not worse than hinge"
BELOW = "RAFT and ReST below RSO"


def _states(runs: pd.DataFrame, task: str) -> dict[str, State]:
    return {name: state_of(list(parts.values())) for name, parts in comparisons(runs, task).items()}


def _judge_verdict(settings: RSOTable, summary: pd.DataFrame, runs: pd.DataFrame) -> Worded:
    states = {task: _states(runs, task) for task in settings.tasks}
    outcomes = {task: compose(parts, RSO_OVER_SFT) for task, parts in states.items()}
    many = len(states) > 1
    sentence = " ".join(
        (f"On {task}, {outcomes[task]}. " if many else "") + sentence_of(parts) for task, parts in states.items()
    )
    found = set(outcomes.values())
    if len(found) == 1:
        return Worded(found.pop(), sentence)
    # One task may hold where another does not, or is not decided: that is a condition.
    return Worded("partly supported" if found & {"supported", "partly supported"} else "inconclusive", sentence)


def _row_label(row: Any) -> str:
    return {"reference": "π_ref", "raft": "RAFT", "rest": "ReST"}.get(str(row), str(row).replace(" ", ", "))


def _figure(settings: RSOTable, summary: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    exact = settings.scale in EXACT_SCALES
    panels = [(task, False) for task in settings.tasks] + ([(settings.scale, True)] if exact else [])
    drawing, axes = style.subplots(1, len(panels), 6.6 * max(len(panels), 1) + 1.6, 6.2, sharey=True, squeeze=False)
    with style.use():
        for ax, (task, by_regret) in zip(axes[0], panels, strict=True):
            table = summary[summary["task"] == task].iloc[::-1].reset_index(drop=True)
            (_regret_panel if by_regret else _wins_panel)(ax, table, task)
            ax.set_yticks(range(len(table)), [_row_label(row) for row in table["row"]])
            ax.set_ylim(-0.7, len(table) - 0.3)
        _legend(drawing, exact, len(panels))
    return drawing


def _interval_point(ax: Any, x: float, low: float, high: float, y: float, look: style.Style, **more: Any) -> None:
    error = [[max(x - low, 0.0)], [max(high - x, 0.0)]] if low == low else None
    ax.errorbar([x], [y], xerr=error, fmt=look.marker, color=look.light, ms=8, elinewidth=2, capsize=3, **more)


def _wins_panel(ax: Any, table: pd.DataFrame, task: str) -> None:
    for place, (_, row) in enumerate(table.iterrows()):
        look = style.of(style_key(row["source"]))
        y = float(place)
        _interval_point(
            ax,
            100 * row["judge_wins"],
            100 * row["judge_wins_low"],
            100 * row["judge_wins_high"],
            y + 0.12,
            look,
            zorder=4,
        )
        for metric, marker in (("proxy_wins", "|"), ("gold_wins", "D")):
            face = "none" if marker == "D" else look.light
            ax.plot([100 * row[metric]], [y - 0.15], marker, color=look.light, ms=7, mfc=face, mew=1.4, zorder=3)
        if row["paper_judge_wins"] == row["paper_judge_wins"]:
            ax.plot([100 * row["paper_judge_wins"]], [y + 0.12], "x", color="#111111", ms=7, mew=1.6, zorder=5)
    # Two seeds may make an interval wider than all there is: it is cut off.
    left, right = ax.get_xlim()
    ax.set_xlim(max(left, 0), min(right, 100))
    ax.axvline(50, color="#999999", lw=1.2, ls="--", zorder=1)
    against = "π_ref's own draws" if task in EXACT_SCALES else "the SFT target"
    ax.set(title=f"Wins on {task}", xlabel=f"responses preferred to {against} [%]")


def _regret_panel(ax: Any, table: pd.DataFrame, task: str) -> None:
    low, high = float(table["regret"].min()), float(table["regret"].max())
    for place, (_, row) in enumerate(table.iterrows()):
        look = style.of(style_key(row["source"]))
        # On a log axis an interval that reaches zero is drawn to the axis' left end.
        _interval_point(
            ax, row["regret"], max(row["regret_low"], low / 4), row["regret_high"], float(place), look, zorder=4
        )
    log_ticks(ax)
    ax.set_xlim(low / 3, 2 * high)
    ax.set(title=f"Distance to π* on the {task}", xlabel="regret J(π*) − J(π) [reward, log scale]")


def _legend(drawing: Figure, exact: bool, panels: int) -> None:
    from matplotlib.lines import Line2D

    grey = "#555555"
    who = "labeller" if exact else "judge"
    handles = [
        Line2D([], [], ls="-", marker="o", color=grey, ms=8, label=f"{who}, 95% interval over seeds"),
        Line2D([], [], ls="", marker="D", color=grey, mfc="none", ms=7, label="gold reward"),
        Line2D([], [], ls="", marker="|", color=grey, ms=9, mew=1.6, label="reward model"),
    ]
    if not exact:
        handles.append(Line2D([], [], ls="", marker="x", color="#111111", ms=7, mew=1.6, label="the paper's judge"))
    drawing.legend(handles=handles, loc="outside lower center", ncols=len(handles) if panels > 1 else 2)


def _words(settings: RSOTable, summary: pd.DataFrame, runs: pd.DataFrame) -> str:
    who = "labeller" if settings.scale in EXACT_SCALES else "judge"
    parts = []
    for task in settings.tasks:
        table = summary[summary["task"] == task]
        rows = ", ".join(
            f"{_row_label(row['row'])} {100 * row['judge_wins']:.1f}"
            + (f" (paper {100 * row['paper_judge_wins']:.1f})" if row["paper_judge_wins"] > 0 else "")
            + (f", regret {row['regret']:.3g}" if "regret" in table else "")
            for _, row in table.iterrows()
        )
        parts.append(f"Wins in percent by the {who} on {task}: {rows}.")
    return " ".join(parts)


def _text(settings: RSOTable, summary: pd.DataFrame, runs: pd.DataFrame) -> str:
    exact = settings.scale in EXACT_SCALES
    who = "labeller" if exact else "judge"
    out = []
    for task in settings.tasks:
        head = f"On {task}, in points of the {who}'s win rate: " if not exact else f"In points of the {who}'s wins: "
        found = comparisons(runs, task)
        body = "; ".join(
            f"{name} by " + ", ".join(f"{percent(one)} ({loss})" for loss, one in found[name].items())
            for name in (RSO_OVER_SFT, SFT_OVER_DIRECT)
        )
        below = ", ".join(f"{percent(one)} ({_row_label(name)})" for name, one in found[BELOW].items())
        out.append(f"{head}{body}; RSO with sigmoid-norm above {below}.")
        losses = {
            name: Interval(*(value - MARGIN for value in one))
            for name, one in comparisons(runs, task)[NOT_WORSE].items()
        }
        out.append(
            "Against hinge on the same pairs: "
            + ", ".join(f"{name} {percent(one)}" for name, one in losses.items())
            + "."
        )
        out.append(_objective_sentence(settings, runs, task))
        if not exact:
            out.append(_labels_sentence(settings, runs, task))
            out.append(_order_sentence(summary, task))
    return " ".join([*out, _rate_sentence(settings, runs)])


def _rate_sentence(settings: RSOTable, runs: pd.DataFrame) -> str:
    """Where the search put the rows on its grid, and how many pairs there are beside the labels."""
    rates = runs[runs["row"].isin(ROWS)].groupby("row")["rate"].first()
    text = settings.scale not in EXACT_SCALES
    lowest, highest = (int((rates == edge).sum()) for edge in (min(settings.rates), max(settings.rates)))
    pairs = settings.prompts * settings.accepted // 2
    said = (
        f"The search took the lowest of its rates for {lowest}"
        + (f" and the highest for {highest}" if text else "")
        + f" of {len(rates)} rows"
        + (": a finer one might do all of them good. " if 2 * lowest > len(rates) else ". ")
        + f"The reward model labelled {pairs} pairs, {pairs / settings.labels:.2g} times the labels it was fitted to"
    )
    if text:
        said += f", and on {settings.prompts} prompts, where every label has a prompt of its own"
    return said + (": there is little of what it can give for nothing." if pairs < 2 * settings.labels else ".")


def _objective_sentence(settings: RSOTable, runs: pd.DataFrame, task: str) -> str:
    """What the wins cost: J, and the KL behind it."""
    part = runs[runs["task"] == task]
    gain = difference(part, "row", "sigmoid-norm rso-sample-rank", "sigmoid-norm sft-sample-rank", "objective")
    label = difference(part, "row", "sigmoid-norm sft-sample-rank", "sigmoid-norm direct", "objective")
    kl = part.groupby("row")["kl"].mean()
    words = {True: "more", False: "less"}

    def said(one: Interval) -> str:
        return words[one.mean > 0] if one.above or one.below else "undecidedly " + words[one.mean > 0]

    wins = part.groupby("row")["judge_wins"].mean().drop("reference")
    most = str(wins.idxmax())
    return (
        f"In the objective J = E[r*] − β KL, which counts what the wins cost, rso-sample-rank has {said(gain)} than "
        f"sft-sample-rank ({gain}), and sft-sample-rank {said(label)} than direct ({label}), with sigmoid-norm. The "
        f"three go {kl['sigmoid-norm rso-sample-rank']:.2f}, {kl['sigmoid-norm sft-sample-rank']:.2f} and "
        f"{kl['sigmoid-norm direct']:.2f} nats from π_ref; most wins has {_row_label(most)}, at {kl[most]:.2f} nats."
    )


def _labels_sentence(settings: RSOTable, runs: pd.DataFrame, task: str) -> str:
    """What the labels of each source can teach at all, and how far away the target is."""
    part = runs[runs["task"] == task]
    right = {source: 100 * float(part.loc[part["source"] == source, "right"].mean()) for source in SOURCES}
    said = (
        f"π_r lies {part['reach'].mean():.2f} nats from π_ref. Of two candidates the label names the one with the "
        f"larger r_φ in {right['sft-sample-rank']:.0f}% of sft-sample-rank's pairs and in "
        f"{right['rso-sample-rank']:.0f}% of rso-sample-rank's; people name the one with the larger r* in "
        f"{right['direct']:.0f}%"
    )
    over = {source: share - 50 for source, share in right.items()}
    if settings.ranks == "sampled" and over["rso-sample-rank"] < over["sft-sample-rank"] / 2:
        said += (
            ". What π_r accepts is so much alike in r_φ that labels drawn from σ(r₁ − r₂) beat a coin by less than "
            "half as much"
        )
    return f"{said}."


def _order_sentence(summary: pd.DataFrame, task: str) -> str:
    from scipy import stats

    table = summary[(summary["task"] == task) & summary["paper_judge_wins"].notna()]
    if len(table) < 3:
        return ""
    rank = stats.spearmanr(table["judge_wins"], table["paper_judge_wins"]).statistic
    low, high = 100 * table["judge_wins"].min(), 100 * table["judge_wins"].max()
    paper_low, paper_high = 100 * table["paper_judge_wins"].min(), 100 * table["paper_judge_wins"].max()
    return (
        f"Our rows lie between {low:.1f}% and {high:.1f}%, the paper's between {paper_low:.1f}% and {paper_high:.1f}%; "
        f"the rank correlation of the two orders is {rank:.2f}."
    )


EXPERIMENT = Experiment(
    number=4,
    name="rso-table",
    title="Pairs from π_r, labelled by a reward model, beat pairs from π_sft, and these beat the labels themselves",
    claim=(
        "On TL;DR by AutoSxS, wins against the SFT target: RSO (sigmoid-norm, rso-sample-rank) 71.86%, "
        "sft-sample-rank 69.02%, direct (DPO) 67.72%; SLiC's hinge with the same three 69.26%, 67.34%, 60.54%; RAFT "
        "53.77%, ReST 34.36%. On HH: 40.98%, 39.56%, 24.01%; RAFT 24.99%, ReST 15.58%. In every loss the order is "
        "the same, by reward model, gold reward and AutoSxS."
    ),
    source="Liu et al. 2024 (RSO), Table 1; lecture, “Statistical Rejection Sampling Improves Preference Optimization”",
    setup=(
        "All eleven rows, from the same labels, the same reward model and the same 64 draws of π_ref a prompt, with as "
        "many optimiser steps: wins by the reward model, by gold and by a judge that shares neither weights nor labels "
        "with it, and what the paper could not show: KL, J, and on exact scales the regret. Summaries and dialogue "
        "stand in for TL;DR and HH. Different from the paper: its direct pairs are decodes of other policies, ours are "
        "π_ref's, so that direct and sft-sample-rank differ by the labeller alone; its reward model has fourteen times "
        "its policy's weights, ours as many; it keeps the checkpoint that the reward model likes best, we the last "
        "one; the slope γ is β (0.5 in logits of a label) for all rows, not 0.05, so that sigmoid-norm aims at π*; the "
        "reward model's labels are drawn from σ(r₁ − r₂) (`--ranks hard` always prefers the larger score); candidates "
        "are drawn at temperature 1; and everything is small: a language model takes a few dozen steps on a few "
        "hundred pairs. On the exact scales policies are tables, each seed has a world of its own, wins are against "
        "π_ref's own draws, and the judge is the gold labeller, who prefers by Bradley–Terry. Learning rate: the same "
        "few for every row on one search seed (on text: summaries, validation prompts), by the largest E[r_φ] − β KL."
    ),
    rule=(
        "Win rates by the judge, paired within seeds. Four parts: rso-sample-rank above sft-sample-rank in each "
        "loss; sft-sample-rank above direct in each loss; sigmoid-norm and hinge-norm on rso-sample-rank at most 2 "
        "points below hinge, over the whole interval; RAFT and ReST below RSO (sigmoid-norm, rso-sample-rank). A "
        "part is borne out when all its intervals lie above zero, contradicted when some lie below and none above, "
        "in part when some lie above, else not decided. Holds: all four parts. Does not hold: the first part is "
        "contradicted, or no part stands at all and one is contradicted. Not decided: no part is decided. Holds "
        "when: the rest. On several tasks the rule is applied to each; where the tasks differ and one of them holds, "
        "in part or whole, it holds when."
    ),
    settings=RSOTable,
    scales=("bandit", "tree", "small"),
    jobs=_jobs,
    run=_run,
    summarise=_summarise,
    decide=_judge_verdict,
    figure=_figure,
    words=_words,
    text=_text,
    search_trials=_search_trials,
    select_best=_select_best,
)


def main(settings: RSOTable) -> None:
    """The command `rlhf-lab experiment rso-table`."""
    runner.main(EXPERIMENT, settings)


__all__ = ["EXPERIMENT", "RSOTable", "comparisons", "fit", "main"]
