"""Summary, decision and picture of claim 12: the regret against the coverage of the offline pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rlhf_lab.evaluation import mean_interval
from rlhf_lab.experiments.claims.coverage.settings import CLASSES, MASKS, METHODS, Coverage
from rlhf_lab.experiments.rso_common import decide_part
from rlhf_lab.experiments.statistics import holm_intervals, paired, summarise
from rlhf_lab.experiments.verdicts import Number, Verdict
from rlhf_lab.intervals import Interval

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

COMPARISONS = {
    "rounds_table": ("table", "optimal", "rounds"),
    "rounds_shared": ("shared", "optimal", "rounds"),
    "rlhf_rest": ("table", "rest", "rlhf"),
}
"""Comparison of the rule → policy class, mask, and the method that is compared with offline DPO at coverage 0."""


def _log_left(runs: pd.DataFrame) -> pd.DataFrame:
    return runs.assign(log_left=np.log(runs["left"]))


def summarise_runs(settings: Coverage, runs: pd.DataFrame) -> pd.DataFrame:
    """Return the geometric mean of the share of π_ref's regret that is left, and the mean mass on masked responses."""
    table = summarise(
        runs.assign(left=np.log(runs["left"])), ["policies", "masked", "coverage", "method", "labels"], ["left", "mass"]
    )
    ends = ["left", "left_low", "left_high"]
    table[ends] = np.exp(table[ends])
    return table


def decide(settings: Coverage, summary: pd.DataFrame, runs: pd.DataFrame) -> Verdict:
    """Apply the rule (`settings.RULE`) to the rows."""
    finite = _log_left(runs[np.isfinite(runs["labels"])])
    cells = {
        (name, kind, coverage): part
        for (name, kind, coverage), part in finite.groupby(["policies", "masked", "coverage"])
    }
    # Each is above zero where it counts for the claim. Where two methods are the same, rounding is no difference.
    gains = holm_intervals({
        name: -np.round(paired(cells[policies, kind, 0.0], "method", method, "offline", "log_left"), 6)
        for name, (policies, kind, method) in COMPARISONS.items()
    })  # fmt: skip
    numbers: dict[str, Number] = {
        name: Interval(*np.exp([-one.mean, -one.high, -one.low]).tolist()) for name, one in gains.items()
    }
    for name in CLASSES:
        for kind in MASKS:
            for method in METHODS:
                ratio = -paired(cells[name, kind, 0.0], "method", method, "offline", "log_left")
                if method != "offline":
                    numbers[f"{method}_over_offline_{name}_{kind}"] = _exp(-ratio)
                for coverage in settings.coverages:
                    part = cells[name, kind, coverage]
                    values = part.loc[part["method"] == method, "log_left"]
                    numbers[f"left_{method}_{name}_{kind}_{coverage:g}"] = _exp(values)
            many = _log_left(runs[(runs["policies"] == name) & (runs["masked"] == kind) & (runs["coverage"] == 0)])
            for method in ("offline", "rlhf"):
                of = many[(many["method"] == method) & np.isinf(many["labels"])]
                numbers[f"limit_{method}_{name}_{kind}"] = _exp(of["log_left"])
                numbers[f"mass_{method}_{name}_{kind}"] = Interval(*mean_interval(of["mass"].to_numpy(dtype=float)))
        numbers[f"best_{name}"] = Interval(
            *mean_interval(
                runs.loc[runs["policies"] == name, "best"].groupby(runs["seed"]).first().to_numpy(dtype=float)
            )
        )
    for kind in MASKS:
        numbers[f"mass_optimal_{kind}"] = float(runs.loc[(runs["masked"] == kind), "mass_optimal"].mean())
        for method in ("offline", "rlhf"):
            worst = runs[(runs["policies"] == "worst") & (runs["masked"] == kind) & (runs["method"] == method)]
            numbers[f"worst_{method}_{kind}"] = _exp(np.log(worst["left"]))
    return Verdict(decide_part([*gains.values()]), numbers, dict.fromkeys(COMPARISONS, 1.0))


def _exp(logs: pd.Series | np.ndarray) -> Interval:
    """The geometric mean of numbers whose logarithms are given, with its interval."""
    return Interval(*np.exp(mean_interval(np.asarray(logs, dtype=float))).tolist())


def figure(settings: Coverage, summary: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Draw the share of π_ref's regret that is left against the coverage, for both classes and both masks."""
    from rlhf_lab.figures import statistical, style

    looks = {
        "offline": style.of("dpo", label="offline DPO"),
        "rounds": style.of("online", label="DPO in rounds"),
        "rlhf": style.of("ppo", label="RLHF, exact KL"),
    }
    titles = {"table": "Table", "shared": "Shared"}
    words = {"optimal": "likely responses masked", "rest": "unlikely responses masked"}
    shown = summary[np.isfinite(summary["labels"])]
    place = {coverage: at for at, coverage in enumerate(sorted(settings.coverages))}
    drawing, axes = style.subplots(1, 4, 16.0, 4.6, sharey=True)
    with style.use():
        panels = [(name, kind) for kind in MASKS for name in CLASSES]
        for ax, (name, kind) in zip(axes, panels, strict=True):
            rows = shown[(shown["policies"] == name) & (shown["masked"] == kind)]
            statistical.interval_lines(
                ax, rows.assign(place=rows["coverage"].map(place)), "place", "left", "method", looks, legend=False,
                title=f"{titles[name]}, {words[kind]}", xlabel="coverage of the masked responses", yscale="log",
                ylabel="regret / regret of π_ref" if ax is axes[0] else "",
            )  # fmt: skip
            ax.set_xticks([*place.values()], [f"{one:g}" for one in place])
        statistical.legend_below(drawing, *axes, columns=3)
    return drawing
