"""Summary, decision and picture of claim 12: the regret against the coverage of the offline pairs."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from rlhf_lab.experiments.claims.coverage.settings import CLASSES, MASKS, METHODS, Coverage
from rlhf_lab.experiments.rso_common import decide_part
from rlhf_lab.experiments.statistics import exp_of, holm_intervals, mean_of, paired, summarise_geometric
from rlhf_lab.experiments.verdicts import Number, Verdict
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


def _log_left(runs: pd.DataFrame) -> pd.DataFrame:
    return runs.assign(log_left=np.log(runs["left"]))


def summarise_runs(settings: Coverage, runs: pd.DataFrame) -> pd.DataFrame:
    """Return the geometric mean of the share of π_ref's regret that is left, and the mean mass on masked responses."""
    return summarise_geometric(runs, ["policies", "masked", "coverage", "method", "labels"], ["left"], ["mass"])


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
    numbers: dict[str, Number] = {name: exp_of(-one) for name, one in gains.items()}
    for (name, kind, coverage), cell in cells.items():
        logs = {method: cell.loc[cell["method"] == method].set_index("seed")["log_left"] for method in METHODS}
        for method, values in logs.items():
            numbers[f"left_{method}_{name}_{kind}_{coverage:g}"] = exp_of(mean_of(values))
            if method != "offline":
                numbers[f"{method}_over_offline_{name}_{kind}_{coverage:g}"] = exp_of(mean_of(values - logs["offline"]))
    limits = _log_left(runs[(runs["coverage"] == 0) & np.isinf(runs["labels"])])
    for keys, part in limits.groupby(["policies", "masked", "method"]):
        where = "{2}_{0}_{1}".format(*keys)
        numbers[f"limit_{where}"] = exp_of(mean_of(part["log_left"]))
        if keys[0] in CLASSES:
            numbers[f"mass_{where}"] = mean_of(part["mass"])
    worst = runs[(runs["policies"] == "worst") & (runs["method"] == "offline")]
    for kind, name in itertools.product(MASKS, ("mass_ref", "mass_optimal")):
        numbers[f"{name}_{kind}"] = mean_of(worst.loc[worst["masked"] == kind, name])
    return Verdict(decide_part([*gains.values()]), numbers, dict.fromkeys(COMPARISONS, 1.0))


def figure(settings: Coverage, summary: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Draw the share of π_ref's regret that is left against the coverage, by policy class and mask."""
    from rlhf_lab.figures import statistical, style

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
