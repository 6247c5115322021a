"""Summary, decision and picture of claim 12: the regret against the coverage of the offline pairs."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from rlhf_lab.experiments.claims.coverage.settings import CLASSES, MASKS, METHODS, Coverage
from rlhf_lab.experiments.statistics import exp_of, holm_intervals, in_row, mean_of, paired, summarise_geometric
from rlhf_lab.experiments.verdicts import Number, Verdict, outcome_of, side
from rlhf_lab.figures import statistical, style
from rlhf_lab.language import tr

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

COMPARISONS = {
    "rounds_table": ("table", "optimal", "rounds"),
    "rounds_shared": ("shared", "optimal", "rounds"),
    "rlhf_rare": ("table", "rare", "rlhf"),
}
"""Comparison of the rule → policy class, mask, and the method that is compared with offline DPO at coverage 0."""


def summarise_runs(settings: Coverage, runs: pd.DataFrame) -> pd.DataFrame:
    """Return the geometric mean of the share of π_ref's regret that is left, and the mean mass on masked responses."""
    return summarise_geometric(runs, ["policies", "masked", "coverage", "method", "labels"], ["left"], ["mass"])


def decide(settings: Coverage, summary: pd.DataFrame, runs: pd.DataFrame) -> Verdict:
    """Apply the rule (`settings.RULE`) to the rows."""
    finite = runs[np.isfinite(runs["labels"])].assign(log_left=np.log(runs["left"]))
    gaps = {
        (policies, kind, method, coverage): paired(cell, "method", method, "offline", "log_left")
        for (policies, kind, coverage), cell in finite.groupby(["policies", "masked", "coverage"])
        for method in METHODS[1:]
    }
    # Each is above zero where it counts for the claim. Where two methods are the same, rounding is no difference.
    gains = holm_intervals({name: -np.round(gaps[*key, 0.0], 6) for name, key in COMPARISONS.items()})
    numbers: dict[str, Number] = {name: exp_of(-one) for name, one in gains.items()}
    for (policies, kind, method, coverage), values in gaps.items():
        numbers[f"{method}_over_offline_{policies}_{kind}_{coverage:g}"] = exp_of(mean_of(values))
    for _, row in summary.iterrows():
        where = f"{row['method']}_{row['policies']}_{row['masked']}"
        if np.isfinite(row["labels"]):
            numbers[f"left_{where}_{row['coverage']:g}"] = in_row(row, "left")
        else:
            numbers[f"limit_{where}"] = in_row(row, "left")
            if row["policies"] in CLASSES:
                numbers[f"mass_{where}"] = in_row(row, "mass")
    worst = runs[(runs["policies"] == "worst") & (runs["method"] == "offline")]
    for kind, name in itertools.product(MASKS, ("mass_ref", "mass_optimal")):
        numbers[f"{name}_{kind}"] = mean_of(worst.loc[worst["masked"] == kind, name])
    return Verdict(outcome_of(map(side, gains.values())), numbers, dict.fromkeys(COMPARISONS, 1.0))


def figure(settings: Coverage, summary: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Draw the share of π_ref's regret that is left against the coverage, by policy class and mask."""
    looks = {
        "offline": style.of("dpo", label="offline DPO"),
        "rounds": style.of("online", label="DPO in rounds"),
        "rlhf": style.of("ppo", label="RLHF, exact KL"),
    }
    titles = {"table": "Table", "shared": "Shared"}
    words = {"optimal": "likely in π* masked", "rest": "unlikely in π* masked", "rare": "rare ones masked"}
    shown = summary[np.isfinite(summary["labels"])]
    place = {coverage: at for at, coverage in enumerate(sorted(settings.coverages))}
    drawing, axes = style.subplots(2, 3, 13.0, 8.0, sharex=True, sharey="row")
    with style.use():
        for row, name in zip(axes, CLASSES, strict=True):
            for ax, kind in zip(row, MASKS, strict=True):
                rows = shown[(shown["policies"] == name) & (shown["masked"] == kind)]
                statistical.interval_lines(
                    ax, rows.assign(place=rows["coverage"].map(place)), "place", "left", "method", looks, legend=False,
                    title=tr(titles[name]) + tr(", ") + tr(words[kind]), xlabel="coverage of the masked responses",
                    yscale="log",
                    ylabel="regret / regret of π_ref", dodge=0.08,
                )  # fmt: skip
                ax.set_xticks([*place.values()], [f"{one:g}" for one in place])
        statistical.legend_below(drawing, *axes.flat, columns=3)
    return drawing
