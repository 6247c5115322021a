"""Decision and picture of question 9: when fresh labels are better than as many labels at the start."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rlhf_lab.experiments import statistics
from rlhf_lab.experiments.claims.non_static.settings import (
    CLOSED_FORM,
    OTHER_CHANGES,
    PIECES,
    TEXT_STRATEGIES,
    NonStatic,
)
from rlhf_lab.experiments.claims.non_static.strategies import STRATEGIES
from rlhf_lab.experiments.verdicts import Number, Verdict, outcome_of, side
from rlhf_lab.intervals import Interval
from rlhf_lab.language import tr

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rlhf_lab.figures.style import Style


def _near(column: pd.Series, value: float) -> pd.Series:
    """Which rows have this value, up to the digits of a stored table."""
    return (column - value).abs() < 1e-6


CASES = ("drift_saving", "policy_saving", "policy_narrow_saving")
TEXT_CASES = ("drift_gain", "policy_gain")
"""The differences that decide, positive where fresh labels are better."""


def regret_differences(runs: pd.DataFrame, change: str, turn: float, one: str, other: str) -> np.ndarray:
    """Return the mean regret of a round of strategy `one` minus that of `other`, for each seed."""
    deployed = runs[(runs["part"] == "deploy") & (runs["change"] == change) & _near(runs["turn"], turn)]
    return statistics.paired(deployed, "strategy", one, other, "regret")


def savings(settings: NonStatic, runs: pd.DataFrame) -> dict[float, Interval]:
    """Return by how much refitting to the newest labels lowers the regret of a round, for each turn in order."""
    return {
        turn: statistics.mean_of(regret_differences(runs, "drift", turn, "offline", "window"))
        for turn in sorted(settings.turns)
    }


def ratio_at_best(runs: pd.DataFrame, more: int) -> Interval:
    """Return simulated regret over closed form at the tested window nearest to the closed form's best one."""
    rows = runs[(runs["part"] == "steady") & (runs["more"] == more) & (runs["every"] == runs["every"].min())]
    near = rows.assign(off=(rows["window"].map(math.log) - rows["best"].map(math.log)).abs())
    near = near.loc[near.groupby(["seed", "rate"])["off"].idxmin()]
    return statistics.mean_of((near["regret"] / near["limit"]).groupby(near["seed"]).mean())


def objective_differences(runs: pd.DataFrame, change: str, one: str, other: str) -> np.ndarray:
    """Return J of strategy `one` minus that of `other`, mean over the rounds, for each seed."""
    part = runs[runs["change"] == change].groupby(["strategy", "seed"], sort=False)["objective"].mean().reset_index()
    return statistics.paired(part, "strategy", one, other, "objective")


def rhythm(summary: pd.DataFrame, rate: float, cost: float, column: str = "regret") -> tuple[int, int]:
    """Return the tested window and rounds between fits with the lowest `column` + cost / rounds at this drift."""
    rows = summary[(summary["part"] == "steady") & _near(summary["rate"], rate) & (summary["more"] == 1)]
    best = rows.iloc[int((rows[column] + cost / rows["every"]).to_numpy().argmin())]
    return int(best["window"]), int(best["every"])


def numbers_of(settings: NonStatic, summary: pd.DataFrame, runs: pd.DataFrame) -> dict[str, Number]:
    """Return the numbers of a result by name.

    `regret_drift_window` (text: `objective_…`) is that of a strategy under a change, for drift at the largest turn.
    `drift_online_vs_window` is one strategy minus another, and `still_…` the same without drift. `saving_0.8` is what
    refitting saves at a turn of 0.8 rad.
    """
    if not settings.exact:
        return _text_numbers(settings, summary, runs)
    turns = sorted(settings.turns)
    numbers: dict[str, Number] = {"turn_most": turns[-1], "labels_start": settings.labels * settings.rounds}
    saved = savings(settings, runs)
    numbers |= {f"saving_{turn:.3g}": one for turn, one in saved.items()}
    if (start := first_turn(saved)) is not None:
        numbers |= {"turn_from": start, "saving_from": saved[start]}
    if higher := [turn for turn, one in saved.items() if one.below]:
        numbers["turn_until"] = max(higher)
    for change, turn in {"drift": turns[-1], **dict.fromkeys(OTHER_CHANGES, 0.0)}.items():
        rows = summary[(summary["change"] == change) & _near(summary["turn"], turn)].set_index("strategy")
        for strategy in STRATEGIES:
            name = f"{change}_{strategy}".replace("-", "_")
            numbers[f"regret_{name}"] = statistics.in_row(rows.loc[strategy], "regret")
            if change == "sudden":
                numbers[f"late_regret_{name}"] = statistics.in_row(rows.loc[strategy], f"quarter_{PIECES}")
            numbers["break_even"] = statistics.in_row(rows.loc[strategy], "even")
    differences = (
        ("drift", turns[-1], "online", "window"), ("prompts", 0.0, "refit-all", "window"),
        ("drift", turns[-1], "forgetting", "window"), ("drift", turns[-1], "forgetting", "refit-all"),
        ("drift", 0.0, "forgetting", "refit-all"),
    )  # fmt: skip
    for change, turn, one, other in differences:
        name = f"{'still' if change == 'drift' and turn == 0 else change}_{one}_vs_{other}".replace("-", "_")
        numbers[name] = statistics.mean_of(regret_differences(runs, change, turn, one, other))
    cases = (("drift", turns[-1], "window"), ("policy", 0.0, "online-all"), ("policy-narrow", 0.0, "online-all"))
    numbers |= statistics.holm_intervals(
        {
            name: regret_differences(runs, change, turn, "offline", fresh)
            for name, (change, turn, fresh) in zip(CASES, cases, strict=True)
        }
    )
    return numbers | _long_run_numbers(settings, summary, runs)


def _long_run_numbers(settings: NonStatic, summary: pd.DataFrame, runs: pd.DataFrame) -> dict[str, Number]:
    numbers: dict[str, Number] = {"ratio_1": ratio_at_best(runs, 1), "ratio_more": ratio_at_best(runs, settings.more)}
    for rate in settings.drifts:
        rows = summary[_near(summary["rate"], rate) & (summary["more"] == 1) & (summary["every"] == 1)]
        numbers[f"window_{rate:g}"] = rhythm(summary, rate, 0.0)[0]
        numbers[f"formula_{rate:g}"] = statistics.in_row(rows.iloc[0], "best")
    numbers["rhythm_drift"] = middle = settings.drifts[len(settings.drifts) // 2]
    for name, column in (("rhythm", "regret"), ("formula_rhythm", "limit")):
        numbers[f"{name}_window"], numbers[f"{name}_every"] = rhythm(summary, middle, settings.cost, column)
    return numbers


def _text_numbers(settings: NonStatic, summary: pd.DataFrame, runs: pd.DataFrame) -> dict[str, Number]:
    numbers: dict[str, Number] = {"turn_most": settings.turns[-1], "labels_start": settings.labels * settings.rounds}
    for change, strategies in TEXT_STRATEGIES.items():
        for strategy in strategies:
            rows = summary[(summary["change"] == change) & (summary["strategy"] == strategy)]
            rows = rows.set_index(rows["round"].astype(str))
            name = f"{change}_{strategy}".replace("-", "_")
            numbers[f"objective_{name}"] = statistics.in_row(rows.loc["all"], "objective")
            for metric in ("objective", "gold", "words") if change == "drift" else ():
                numbers[f"last_{metric}_{name}"] = statistics.in_row(rows.loc[str(settings.rounds)], metric)
    for change, one, other in (
        ("prompts", "online-all", "offline"), ("drift", "window", "refit-all"), ("drift", "online", "window"),
    ):  # fmt: skip
        name = f"{change}_{one}_vs_{other}".replace("-", "_")
        numbers[name] = statistics.mean_of(objective_differences(runs, change, one, other))
    last = objective_differences(runs[runs["round"] == settings.rounds], "drift", "window", "offline")
    numbers["last_drift_window_vs_offline"] = statistics.mean_of(last)
    cases = (("drift", "online"), ("none", "online-all"))
    return numbers | statistics.holm_intervals(
        {
            name: objective_differences(runs, change, fresh, "offline")
            for name, (change, fresh) in zip(TEXT_CASES, cases, strict=True)
        }
    )


def first_turn(saved: Mapping[float, Interval]) -> float | None:
    """Return the first turn from which on refitting is better at every tested turn; None if there is none."""
    turns = list(saved)
    return next((turn for i, turn in enumerate(turns) if all(saved[one].above for one in turns[i:])), None)


def decide(settings: NonStatic, summary: pd.DataFrame, runs: pd.DataFrame) -> Verdict:
    """Apply the rule (`settings.RULE`) to the numbers."""
    numbers: dict[str, Any] = numbers_of(settings, summary, runs)
    cases = CASES if settings.exact else TEXT_CASES
    thresholds = dict.fromkeys(cases, 0.0)
    if settings.exact:  # the bound that is nearer to the estimate
        thresholds["ratio_more"] = 1 + math.copysign(CLOSED_FORM, numbers["ratio_more"].mean - 1)
    return Verdict(outcome_of(side(numbers[name]) for name in cases), numbers, thresholds)


def strategy_styles() -> dict[str, Style]:
    """Return the style of each strategy."""
    from rlhf_lab.figures import style

    return {strategy: style.of(key, label=label) for strategy, (key, label) in STRATEGIES.items()}


def figure(settings: NonStatic, summary: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Draw windows, drift and other changes on the exact scales; on text J in each round under three changes."""
    from rlhf_lab.figures import statistical, style

    if not settings.exact:
        return _text_figure(settings, summary)
    drawing, axes = style.subplots(1, 3, width=16, height=5.4)
    _windows_panel(axes[0], settings, summary)
    drift = summary[summary["change"] == "drift"]
    with style.use():
        axes[1].axvline(
            float(drift["even"].iloc[0]), color=style.colour("optimal"), ls=":", lw=1.4,
            label="closed-form break-even",
        )  # fmt: skip
    statistical.interval_lines(
        axes[1], drift, "turn", "regret", "strategy", strategy_styles(), legend=False, yscale="log",
        xlabel=tr("turn of preferences over {rounds} rounds [rad]", rounds=settings.rounds),
        ylabel="mean regret of a round [reward]", title="Drift: fit once or refit?",
    )  # fmt: skip
    names = dict(zip(OTHER_CHANGES, ["preferences\nturn at once", "prompts\nshift", "policy\nmoves",
                                     "policy moves,\nsmall model"], strict=True))  # fmt: skip
    statistical.interval_points(
        axes[2], summary[summary["change"].isin(OTHER_CHANGES)], "change", "regret", "strategy", strategy_styles(),
        names=names, vertical=True, dodge=0.13, legend=False, yscale="log", ylabel="mean regret of a round [reward]",
        title="Other changes",
    )  # fmt: skip
    statistical.legend_below(drawing, axes[1])
    return drawing


def _windows_panel(ax: Axes, settings: NonStatic, summary: pd.DataFrame) -> None:
    """Draw regret against the window at each drift, beside the closed form and its best window."""
    from rlhf_lab.figures import statistical, style

    rows = summary[(summary["part"] == "steady") & (summary["every"] == 1) & (summary["more"] == 1)]
    keys = ("dpo", "policy", "rest", "online", "ppo", "sft")
    looks = {
        rate: style.of(keys[i % len(keys)], label=f"{rate:g} rad per round", dash="none")
        for i, rate in enumerate(dict.fromkeys(rows["rate"]))
    }
    with style.use():
        statistical.interval_lines(
            ax, rows, "window", "regret", "rate", looks, legend=False, xscale="log", yscale="log",
            xlabel="window W [rounds of labels]", ylabel="mean regret of a round [reward]",
            title="Long run: regret against the window",
        )  # fmt: skip
        labels = ["closed form", "its best window"]
        for rate, look in looks.items():
            part = rows[rows["rate"] == rate]
            ax.plot(part["window"], part["limit"], color=look.light, ls="--", lw=1.4, label=labels[0])
            # Not as high as the legend.
            ax.axvline(float(part["best"].iloc[0]), ymax=0.7, color=look.light, ls=":", lw=1.2, label=labels[1])
            labels = ["_", "_"]
        ax.set_xticks(list(settings.windows), [str(window) for window in settings.windows])
        ax.minorticks_off()
        low, high = ax.get_ylim()
        ax.set_ylim(low, high * (high / low) ** 0.3)
        ax.legend(loc="upper left", fontsize=10, ncols=2)


def _text_figure(settings: NonStatic, summary: pd.DataFrame) -> Figure:
    from rlhf_lab.figures import statistical, style

    drawing, axes = style.subplots(1, 3, width=16, height=4.8, sharey=True)
    titles = {"none": "No change", "drift": "Preferences turn: positive to short", "prompts": "Prompts shift"}
    for ax, (change, title) in zip(axes, titles.items(), strict=True):
        rows = summary[(summary["change"] == change) & (summary["round"].astype(str) != "all")]
        statistical.interval_lines(
            ax, rows, "round", "objective", "strategy", strategy_styles(), dodge=0.06, legend=False, xlabel="round",
            ylabel="J of the round, E[r_t] − β KL [reward]", title=title,
        )  # fmt: skip
        ax.set_xticks(range(1, settings.rounds + 1))
    statistical.legend_below(drawing, axes[1], columns=5)
    return drawing
