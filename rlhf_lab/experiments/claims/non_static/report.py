"""Decision and picture of question 9: when fresh labels are better than as many labels at the start."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rlhf_lab.experiments import statistics
from rlhf_lab.experiments.claims.non_static.settings import CLOSED_FORM, OTHER_CHANGES, PIECES, NonStatic
from rlhf_lab.experiments.claims.non_static.strategies import STRATEGIES
from rlhf_lab.experiments.verdicts import Number, Verdict, outcome_of, side
from rlhf_lab.figures import statistical, style
from rlhf_lab.intervals import Interval
from rlhf_lab.language import tr

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CASES = {
    "drift_saving": ("drift", "window"),
    "policy_saving": ("policy", "online-all"),
    "policy_narrow_saving": ("policy-narrow", "online-all"),
}
TEXT_CASES = {"drift_gain": ("drift", "online"), "policy_gain": ("none", "online-all")}
"""The numbers that decide, positive where fresh labels are better: name → change, and strategy with fresh labels."""


def deployed(table: pd.DataFrame, turn: float) -> pd.DataFrame:
    """Return the rows of deployments in which preferences drift by `turn`, and of those with other changes."""
    return table[(table["part"] == "deploy") & ((table["change"] != "drift") | (table["turn"] == turn))]


def differences(rows: pd.DataFrame, change: str, one: str, other: str, metric: str = "regret") -> np.ndarray:
    """Return `metric` of strategy `one` minus that of `other` under a change, for each seed."""
    return statistics.paired(rows[rows["change"] == change], "strategy", one, other, metric)


def savings(runs: pd.DataFrame) -> dict[float, Interval]:
    """Return by how much refitting to the newest labels lowers the regret of a round, for each turn in order."""
    turns = sorted(runs.loc[runs["change"] == "drift", "turn"].unique())
    return {turn: statistics.mean_of(differences(deployed(runs, turn), "drift", "offline", "window")) for turn in turns}


def first_turn(saved: Mapping[float, Interval]) -> float | None:
    """Return the first turn from which on refitting is better at every tested turn; None if there is none."""
    turns = list(saved)
    return next((turn for i, turn in enumerate(turns) if all(saved[one].above for one in turns[i:])), None)


def ratio_at_best(runs: pd.DataFrame, more: int) -> Interval:
    """Return simulated regret over closed form at the tested window nearest to the closed form's best one."""
    rows = runs[(runs["part"] == "steady") & (runs["more"] == more) & (runs["every"] == runs["every"].min())]
    near = rows.assign(off=(rows["window"].map(math.log) - rows["best"].map(math.log)).abs())
    near = near.loc[near.groupby(["seed", "rate"])["off"].idxmin()]
    return statistics.mean_of((near["regret"] / near["limit"]).groupby(near["seed"]).mean())


def rhythm(steady: pd.DataFrame, cost: float, column: str = "regret") -> tuple[int, int]:
    """Return the window and the rounds between fits for which `column` + cost / rounds is minimal."""
    best = steady.iloc[int((steady[column] + cost / steady["every"]).to_numpy().argmin())]
    return int(best["window"]), int(best["every"])


def _name(row: pd.Series) -> str:
    return f"{row['change']}_{row['strategy']}".replace("-", "_")


def _compared(rows: pd.DataFrame, metric: str, *compared: tuple[str, str, str]) -> dict[str, Interval]:
    return {
        f"{change}_{one}_vs_{other}".replace("-", "_"): statistics.mean_of(
            differences(rows, change, one, other, metric)
        )
        for change, one, other in compared
    }


def numbers_of(settings: NonStatic, summary: pd.DataFrame, runs: pd.DataFrame) -> dict[str, Number]:
    """Return the numbers of a result by name.

    `regret_drift_window` (text: `objective_…`) is that of a strategy under a change, for drift at the largest turn.
    `drift_online_vs_window` is one strategy minus another, and `still_…` the same without drift. `saving_0.8` is what
    refitting saves at a turn of 0.8 rad.
    """
    if not settings.exact:
        return _text_numbers(settings, summary, runs)
    saved = savings(runs)
    numbers: dict[str, Number] = {"turn_most": max(saved), "labels_start": settings.labels * settings.rounds}
    numbers |= {f"saving_{turn:.3g}": one for turn, one in saved.items()}
    if (start := first_turn(saved)) is not None:
        numbers |= {"turn_from": start, "saving_from": saved[start]}
    if higher := [turn for turn, one in saved.items() if one.below]:
        numbers["turn_until"] = max(higher)
    for _, row in deployed(summary, max(saved)).iterrows():
        numbers[f"regret_{_name(row)}"] = statistics.in_row(row, "regret")
        if row["change"] == "sudden":
            numbers[f"late_regret_{_name(row)}"] = statistics.in_row(row, f"quarter_{PIECES}")
        numbers["break_even"] = statistics.in_row(row, "even")
    rows = deployed(runs, max(saved))
    numbers |= _compared(
        rows, "regret", ("drift", "online", "window"), ("prompts", "refit-all", "window"),
        ("drift", "forgetting", "window"), ("drift", "forgetting", "refit-all"),
    )  # fmt: skip
    still = differences(deployed(runs, 0.0), "drift", "forgetting", "refit-all")
    numbers["still_forgetting_vs_refit_all"] = statistics.mean_of(still)
    cases = {name: differences(rows, change, "offline", fresh) for name, (change, fresh) in CASES.items()}
    return numbers | statistics.holm_intervals(cases) | _long_run_numbers(settings, summary, runs)


def _long_run_numbers(settings: NonStatic, summary: pd.DataFrame, runs: pd.DataFrame) -> dict[str, Number]:
    numbers: dict[str, Number] = {"ratio_1": ratio_at_best(runs, 1), "ratio_more": ratio_at_best(runs, settings.more)}
    every = summary[summary["more"] == 1]
    steady = {rate: every[every["rate"] == rate] for rate in every["rate"].unique().tolist()}
    for rate, rows in steady.items():
        numbers[f"window_{rate:g}"] = rhythm(rows, 0.0)[0]
        numbers[f"formula_{rate:g}"] = statistics.in_row(rows[rows["every"] == 1].iloc[0], "best")
    numbers["rhythm_drift"] = middle = [*steady][len(steady) // 2]
    for name, column in (("rhythm", "regret"), ("formula_rhythm", "limit")):
        numbers[f"{name}_window"], numbers[f"{name}_every"] = rhythm(steady[middle], settings.cost, column)
    return numbers


def _text_numbers(settings: NonStatic, summary: pd.DataFrame, runs: pd.DataFrame) -> dict[str, Number]:
    numbers: dict[str, Number] = {"turn_most": settings.turns[-1], "labels_start": settings.labels * settings.rounds}
    for _, row in summary.iterrows():
        if row["round"] == "all":
            numbers[f"objective_{_name(row)}"] = statistics.in_row(row, "objective")
        elif row["round"] == settings.rounds and row["change"] == "drift":
            for metric in ("objective", "gold", "words"):
                numbers[f"last_{metric}_{_name(row)}"] = statistics.in_row(row, metric)
    means = runs.groupby(["change", "strategy", "seed"], sort=False)["objective"].mean().reset_index()
    numbers |= _compared(
        means, "objective", ("prompts", "online-all", "offline"), ("drift", "window", "refit-all"),
        ("drift", "online", "window"),
    )  # fmt: skip
    last = differences(runs[runs["round"] == settings.rounds], "drift", "window", "offline", "objective")
    numbers["last_drift_window_vs_offline"] = statistics.mean_of(last)
    return numbers | statistics.holm_intervals(
        {
            name: differences(means, change, fresh, "offline", "objective")
            for name, (change, fresh) in TEXT_CASES.items()
        }
    )


def decide(settings: NonStatic, summary: pd.DataFrame, runs: pd.DataFrame) -> Verdict:
    """Apply the rule (`settings.RULE`) to the numbers."""
    numbers: dict[str, Any] = numbers_of(settings, summary, runs)
    cases = CASES if settings.exact else TEXT_CASES
    thresholds = dict.fromkeys(cases, 0.0)
    if settings.exact:  # the bound that is nearer to the estimate
        thresholds["ratio_more"] = 1 + math.copysign(CLOSED_FORM, numbers["ratio_more"].mean - 1)
    return Verdict(outcome_of(side(numbers[name]) for name in cases), numbers, thresholds)


def strategy_styles() -> dict[str, style.Style]:
    """Return the style of each strategy."""
    return {strategy: style.of(key, label=label) for strategy, (key, label) in STRATEGIES.items()}


def figure(settings: NonStatic, summary: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Draw windows, drift and other changes on the exact scales; on text J in each round under three changes."""
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
    statistical.interval_points(
        axes[2], summary[summary["change"].isin(list(OTHER_CHANGES))], "change", "regret", "strategy",
        strategy_styles(), names=OTHER_CHANGES, vertical=True, dodge=0.13, legend=False, yscale="log",
        ylabel="mean regret of a round [reward]", title="Other changes",
    )  # fmt: skip
    statistical.legend_below(drawing, axes[1])
    return drawing


def _windows_panel(ax: Axes, settings: NonStatic, summary: pd.DataFrame) -> None:
    """Draw regret against the window at each drift, beside the closed form and its best window."""
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
    drawing, axes = style.subplots(1, 3, width=16, height=4.8, sharey=True)
    titles = {"none": "No change", "drift": "Preferences turn: positive to short", "prompts": "Prompts shift"}
    for ax, (change, title) in zip(axes, titles.items(), strict=True):
        statistical.interval_lines(
            ax, summary[(summary["change"] == change) & (summary["round"] != "all")], "round", "objective", "strategy",
            strategy_styles(), dodge=0.06, legend=False, title=title, xlabel="round",
            ylabel="J of the round, E[r_t] − β KL [reward]", xticks=range(1, settings.rounds + 1),
        )  # fmt: skip
    statistical.legend_below(drawing, axes[1], columns=5)
    return drawing
