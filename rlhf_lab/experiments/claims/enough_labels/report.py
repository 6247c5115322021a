"""Decision and picture of claim 1: how regret falls with the number of labels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from rlhf_lab.experiments.claims.enough_labels.settings import MARGIN, MAX_LEFT, SLOPE_RANGE, EnoughLabels
from rlhf_lab.experiments.statistics import equivalence, interval_at, mean_of
from rlhf_lab.experiments.verdicts import Number, Verdict, outcome_of, side
from rlhf_lab.figures import statistical, style
from rlhf_lab.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TABLE_METRICS = ("regret", "ratio", "left", "finite")
TEXT_METRICS = ("objective", "gain", "gold", "kl", "regret", "left", "effective", "trusted")


def slopes(settings: EnoughLabels, runs: pd.DataFrame) -> np.ndarray:
    """Return the slope of log regret in log N for tables, fitted for each seed."""
    part = runs[(runs["kind"] == "table") & (runs["labels"] >= settings.labels[-1] / SLOPE_RANGE)]
    wide = part.pivot(index="seed", columns="labels", values="regret")
    x = np.log(wide.columns.to_numpy(dtype=float))
    x = x - x.mean()
    fitted: np.ndarray = (np.log(wide.to_numpy(dtype=float)) @ x) / (x @ x)
    return fitted


def decisive(settings: EnoughLabels, runs: pd.DataFrame) -> dict[str, Interval]:
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


def numbers_of(settings: EnoughLabels, summary: pd.DataFrame, runs: pd.DataFrame) -> dict[str, Number]:
    """Return the numbers of a result by name, such as `regret_1000` for the regret at 1,000 labels."""
    first, last, used = settings.labels[0], settings.labels[-1], settings.steps * settings.batch
    numbers: dict[str, Number] = {"labels_first": first, "labels_last": last}
    kind, metrics = ("table", TABLE_METRICS) if settings.exact else ("text", TEXT_METRICS)
    for metric in metrics:
        numbers |= {f"{metric}_{n}": interval_at(summary, metric, kind=kind, labels=n) for n in settings.labels}
    if not settings.exact:
        numbers["passes_last"] = used / last
    for n in settings.net_labels:
        for when in ("end", "stopped"):
            row = {"kind": "transformer", "labels": n, "when": when}
            numbers |= {f"net_{m}_{when}_{n}": interval_at(summary, m, **row) for m in ("regret", "loss")}
    if settings.net_labels:
        numbers |= {"fresh_labels": used, "fresh_regret": interval_at(summary, "regret", kind="fresh", when="end")}
    return numbers | decisive(settings, runs)


def decide(settings: EnoughLabels, summary: pd.DataFrame, runs: pd.DataFrame) -> Verdict:
    """Apply the rule (`settings.RULE`) to the numbers."""
    parts, last = decisive(settings, runs), settings.labels[-1]
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


@style.use()
def figure(settings: EnoughLabels, summary: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Draw regret against the number of labels, beside its limit; on the tree also the transformer's training."""
    if not settings.exact:
        return _text_figure(summary)
    tree = bool(settings.net_labels)
    drawing, axes = style.subplots(1, 3 if tree else 2, 14.5 if tree else 10.5, 4.4)
    one, two = axes[:2]
    table = summary[summary["kind"] == "table"]
    one.plot(table["labels"], table["limit"], "--", color=style.colour("optimal"), label="limit (label price / N)")
    two.axhline(1, ls="--", color=style.colour("optimal"), label="limit")
    _by_labels(
        one, table, "regret", yscale="log", ylabel="regret J(π*) − J(π) [reward]",
        title="Regret against the number of labels",
    )  # fmt: skip
    _by_labels(
        two, table, "ratio", yscale="log", ylabel="N · regret / limit (mean over seeds)",
        title="Regret relative to its limit",
    )  # fmt: skip
    for set_formatter in (two.yaxis.set_major_formatter, two.yaxis.set_minor_formatter):
        set_formatter(lambda value, place: f"{value:g}" if f"{value:.0e}"[0] in "1235" else "")
    one.legend(loc="lower left")
    two.legend(loc="upper right")
    if tree:
        _net_panel(axes[2], settings, summary)
    return drawing


def _by_labels(ax: Axes, frame: pd.DataFrame, metric: str, **labels: Any) -> None:
    """Draw a metric of DPO with its intervals over the number of labels."""
    looks = {kind: style.of("dpo") for kind in frame["kind"].unique()}
    statistical.interval_lines(
        ax, frame, "labels", metric, "kind", looks, legend=False, xscale="log", xlabel="labels N", **labels
    )


def _net_panel(ax: Axes, settings: EnoughLabels, summary: pd.DataFrame) -> None:
    """Draw the regret of the transformer over its training, one line for each number of labels."""
    import seaborn as sns

    fresh = settings.steps * settings.batch
    rows = summary[summary["kind"].isin(["transformer", "fresh"]) & summary["when"].str.startswith("step ")]
    rows = rows.assign(step=rows["when"].str.removeprefix("step ").astype(int))
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
    drawing, axes = style.subplots(1, 3, 13.5, 4.2)
    panels = [
        ("gain", "J(π) − J(π_ref) [units of a label]", "Objective gained", "reference", "π_ref", "lower right"),
        ("regret", "regret J(π*) − J(π) [units]", "Estimated distance to π*", "optimal", "π*", "lower left"),
        ("kl", "KL(π‖π_ref) [nats]", "Distance from π_ref", None, "", "upper left"),
    ]
    for ax, (metric, label, title, line, name, place) in zip(axes, panels, strict=True):
        if line:
            ax.axhline(0, ls="--", color=style.colour(line), label=name)
        _by_labels(ax, summary, metric, ylabel=label, title=title)
        ax.set_ylim(min(0, ax.get_ylim()[0]), ax.get_ylim()[1] * 1.25)
        ax.legend(loc=place)
    return drawing
