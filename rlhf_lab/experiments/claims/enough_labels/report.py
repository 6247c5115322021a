"""Decision and picture of claim 1: how regret falls with the number of labels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from rlhf_lab.experiments.claims.enough_labels.settings import MARGIN, MAX_LEFT, SLOPE_RANGE, EnoughLabels
from rlhf_lab.experiments.statistics import equivalence, in_row, mean_of
from rlhf_lab.experiments.verdicts import Number, Verdict, outcome_of, side
from rlhf_lab.intervals import Interval

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEXT_METRICS = ("objective", "gain", "gold", "kl", "regret", "left", "effective", "trusted")


def slopes(settings: EnoughLabels, runs: pd.DataFrame) -> np.ndarray:
    """Return the slope of log regret in log N for tables, fitted for each seed."""
    part = runs[(runs["kind"] == "table") & (runs["labels"] >= settings.labels[-1] / SLOPE_RANGE)]
    wide = part.pivot(index="seed", columns="labels", values="regret")
    x = np.log(wide.columns.to_numpy(dtype=float))
    x = x - x.mean()
    fitted: np.ndarray = (np.log(wide.to_numpy(dtype=float)) @ x) / (x @ x)
    return fitted


def judged(settings: EnoughLabels, runs: pd.DataFrame) -> dict[str, Interval]:
    """Return the numbers that decide, with intervals that hold together at 95%."""
    first, last = settings.labels[0], settings.labels[-1]
    values: dict[str, np.ndarray | pd.Series] = {}
    if settings.exact:
        table = runs[(runs["kind"] == "table") & (runs["labels"] == last)]
        values = {"slope": slopes(settings, runs), f"ratio_{last}": table["ratio"]}
        if settings.net_labels:
            stopped = runs[(runs["kind"] == "transformer") & (runs["when"] == "stopped")]
            wide = stopped.pivot(index="seed", columns="labels", values="regret")
            values["net_fall"] = wide[settings.net_labels[0]] - wide[settings.net_labels[-1]]
    else:
        few, many = (runs[runs["labels"] == n].set_index("seed") for n in (first, last))
        values["objective_rise"] = many["objective"] - few["objective"]
        values["regret_fall"] = few["regret"] - many["regret"]
        values[f"left_{last}"] = many["left"]
    level = 1 - 0.05 / len(values)
    return {name: mean_of(one, level) for name, one in values.items()}


def value_at(summary: pd.DataFrame, kind: str, labels: int, metric: str, when: str = "end") -> Interval:
    """Return `metric` of one kind of policy at this number of labels, with its interval over seeds."""
    row = summary[(summary["kind"] == kind) & (summary["labels"] == labels) & (summary["when"] == when)].iloc[0]
    return in_row(row, metric)


def numbers_of(settings: EnoughLabels, summary: pd.DataFrame, runs: pd.DataFrame) -> dict[str, Number]:
    """Return the numbers of a result by name, such as `regret_1000` for the regret at 1,000 labels."""
    ends = (settings.labels[0], settings.labels[-1])
    numbers: dict[str, Number] = {"labels_first": ends[0], "labels_last": ends[1]}
    if not settings.exact:
        numbers |= {f"{m}_{n}": value_at(summary, "text", n, m) for m in TEXT_METRICS for n in settings.labels}
        return numbers | judged(settings, runs) | {"passes_last": settings.steps * settings.batch / ends[1]}
    for metric in ("regret", "ratio", "left", "finite"):
        numbers |= {f"{metric}_{n}": value_at(summary, "table", n, metric) for n in settings.labels}
    for when in ("end", "stopped") if settings.net_labels else ():
        for metric in ("regret", "loss"):
            numbers |= {
                f"net_{metric}_{when}_{n}": value_at(summary, "transformer", n, metric, when)
                for n in settings.net_labels
            }
    if settings.net_labels:
        fresh = settings.steps * settings.batch
        numbers |= {"fresh_labels": fresh, "fresh_regret": value_at(summary, "fresh", fresh, "regret")}
    return numbers | judged(settings, runs)


def decide(settings: EnoughLabels, summary: pd.DataFrame, runs: pd.DataFrame) -> Verdict:
    """Apply the rule (`settings.RULE`) to the numbers."""
    parts, last = judged(settings, runs), settings.labels[-1]
    signs, thresholds = {name: side(one) for name, one in parts.items()}, dict.fromkeys(parts, 0.0)
    if settings.exact:
        ratios = {"slope": -parts["slope"], f"ratio_{last}": parts[f"ratio_{last}"]}
        for name, one in ratios.items():
            signs[name] = {"equal": 1, "different": -1, "open": 0}[equivalence(one, MARGIN)]
            bound = 1 + math.copysign(MARGIN, one.mean - 1)  # the bound that is nearer to the estimate
            thresholds[name] = -bound if name == "slope" else bound
    else:
        signs[f"left_{last}"] = -side(parts[f"left_{last}"], MAX_LEFT)
        thresholds[f"left_{last}"] = MAX_LEFT
        if not runs[runs["labels"] == last]["trusted"].all():
            signs |= {"regret_fall": 0, f"left_{last}": 0}
    return Verdict(outcome_of(signs.values()), numbers_of(settings, summary, runs), thresholds)


def figure(settings: EnoughLabels, summary: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Draw regret against the number of labels, beside its limit; on the tree also the transformer's training."""
    from rlhf_lab.figures import style

    if not settings.exact:
        return _text_figure(summary)
    tree = bool(settings.net_labels)
    with style.use():
        drawing, axes = style.subplots(1, 3 if tree else 2, 14.5 if tree else 10.5, 4.4, squeeze=False)
        one, two = axes[0][:2]
        table = summary[summary["kind"] == "table"]
        one.plot(table["labels"], table["limit"], "--", color=style.colour("optimal"), label="limit (label price / N)")
        two.axhline(1, ls="--", color=style.colour("optimal"), label="limit")
        _by_labels(
            one, table, "regret", xscale="log", yscale="log", ylabel="regret J(π*) − J(π) [reward]",
            title="Regret against the number of labels",
        )  # fmt: skip
        _by_labels(
            two, table, "ratio", xscale="log", yscale="log", ylabel="N · regret / limit (mean over seeds)",
            title="Regret relative to its limit",
        )  # fmt: skip
        for axis in (two.yaxis.set_major_formatter, two.yaxis.set_minor_formatter):
            axis(lambda value, place: f"{value:g}" if f"{value:.0e}"[0] in "1235" else "")
        one.legend(loc="lower left")
        two.legend(loc="upper right")
        if tree:
            _net_panel(axes[0][2], settings, summary)
    return drawing


def _by_labels(ax: Axes, frame: pd.DataFrame, metric: str, **labels: Any) -> None:
    """Draw a metric of DPO with its intervals over the number of labels."""
    from rlhf_lab.figures import statistical, style

    looks = {kind: style.of("dpo") for kind in frame["kind"].unique()}
    statistical.interval_lines(ax, frame, "labels", metric, "kind", looks, legend=False, xlabel="labels N", **labels)


def _net_panel(ax: Axes, settings: EnoughLabels, summary: pd.DataFrame) -> None:
    """Draw the regret of the transformer over its training, one line for each number of labels."""
    import pandas as pd
    import seaborn as sns

    from rlhf_lab.figures import statistical, style

    fresh = settings.steps * settings.batch
    rows = summary[summary["kind"].isin(["transformer", "fresh"]) & summary["when"].str.startswith("step ")]
    rows = pd.DataFrame(rows).assign(step=rows["when"].str.removeprefix("step ").astype(int))
    shades = sns.light_palette(style.colour("dpo"), len(settings.net_labels) + 1).as_hex()[1:]
    looks = {
        n: style.of("dpo", label=f"{n:,} labels", light=c) for n, c in zip(settings.net_labels, shades, strict=True)
    }
    looks[fresh] = style.of("online", label="new labels at every step")
    statistical.interval_lines(
        ax, rows, "step", "regret", "labels", looks, band=True, legend=False, yscale="log", xlabel="optimiser steps",
        ylabel="regret [reward]", title=f"A transformer, {settings.batch} pairs a step",
    )  # fmt: skip
    low, high = ax.get_ylim()
    ax.set_ylim(low, high * (high / low) ** 0.3)
    ax.legend(fontsize=9, ncols=2, loc="upper right")


def _text_figure(summary: pd.DataFrame) -> Figure:
    from rlhf_lab.figures import style

    with style.use():
        drawing, axes = style.subplots(1, 3, 13.5, 4.2)
        panels = [
            ("gain", "J(π) − J(π_ref) [units of a label]", "Objective gained", "reference", "π_ref", "lower right"),
            ("regret", "regret J(π*) − J(π) [units]", "Estimated distance to π*", "optimal", "π*", "lower left"),
            ("kl", "KL(π‖π_ref) [nats]", "Distance from π_ref", None, "", "upper left"),
        ]
        for ax, (metric, label, title, line, name, place) in zip(axes, panels, strict=True):
            if line:
                ax.axhline(0, ls="--", color=style.colour(line), label=name)
            _by_labels(ax, summary, metric, xscale="log", ylabel=label, title=title)
            ax.set_ylim(min(0, ax.get_ylim()[0]), ax.get_ylim()[1] * 1.25)
            ax.legend(loc=place)
    return drawing
