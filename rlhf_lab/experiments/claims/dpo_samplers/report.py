"""Summary, decision and picture of claim 11: the regret by sampler over steps and labels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rlhf_lab.experiments.claims.dpo_samplers.settings import CONSECUTIVE, SAMPLERS, DPOSamplers
from rlhf_lab.experiments.statistics import (
    bootstrap_median,
    exp_of,
    holm_intervals,
    in_row,
    mean_of,
    paired,
    summarise_geometric,
)
from rlhf_lab.experiments.verdicts import Number, Verdict, outcome_of, side
from rlhf_lab.figures import statistical, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

TITLES = {
    "exact": ("Exact gradients", "gradient steps"),
    "sampled": ("Sampled labels", "gradient steps"),
    "rounds": ("Rounds of labels", "labels"),
}
"""Part → title and x axis of its panel."""


def order(shares: Sequence[float]) -> float:
    """Return the order of convergence: 1 if linear, 2 if quadratic.

    Args:
        shares: the regret at consecutive steps, as shares of the first one.

    Returns:
        log(e_{t+1}/e_t)/log(e_t/e_{t−1}) at the last three shares above 1e-14, below which rounding begins. NaN where
        the regret has not fallen in both steps.
    """
    known = [math.log(one) for one in itertools.takewhile(lambda one: one > 1e-14, shares)][-3:]
    if len(known) < 3 or not known[0] > known[1] > known[2]:
        return math.nan
    return (known[1] - known[2]) / (known[0] - known[1])


def summarise_runs(settings: DPOSamplers, runs: pd.DataFrame) -> pd.DataFrame:
    """Return the geometric mean of the share of π_ref's regret that is left, by part, sampler and step or label."""
    return summarise_geometric(runs, ["part", "sampler", "at"], ["left"])


def decide(settings: DPOSamplers, summary: pd.DataFrame, runs: pd.DataFrame) -> Verdict:
    """Apply the rule (`settings.RULE`) to the rows."""
    last = runs[runs["at"] == runs.groupby("part")["at"].transform("max")]
    last = last.assign(log_left=np.log(last["left"]), log_steps=np.log(last["steps_needed"]))
    by_part = {part: last[last["part"] == part] for part in TITLES}
    # Each is above zero where it counts for the claim.
    gains = holm_intervals(
        {
            "steps_mixture": paired(by_part["exact"], "sampler", "uniform", "mixture", "log_steps"),
            "rounds_current": paired(by_part["rounds"], "sampler", "reference", "current", "log_left"),
            "sampled_mixture": paired(by_part["sampled"], "sampler", "uniform", "mixture", "log_left"),
        }
    )
    numbers: dict[str, Number] = {name: exp_of(-one) for name, one in gains.items()}
    for sampler in SAMPLERS:
        exact = by_part["exact"][by_part["exact"]["sampler"] == sampler]
        numbers[f"steps_{sampler}_mean"] = exp_of(mean_of(exact["log_steps"]))
        numbers[f"reached_{sampler}"] = float((exact["steps_needed"] < settings.steps).mean())
        first = runs[(runs["part"] == "exact") & (runs["sampler"] == sampler) & (runs["at"] <= CONSECUTIVE)]
        orders = [order(part.sort_values("at")["left"].tolist()) for _, part in first.groupby("seed")]
        numbers[f"order_{sampler}"] = bootstrap_median([one for one in orders if not math.isnan(one)] or [math.nan])
        numbers[f"rate_{sampler}"] = float(exact["rate"].iloc[0])
    ends = summary[summary["at"] == summary.groupby("part")["at"].transform("max")]
    for _, row in ends[ends["part"] != "exact"].iterrows():
        numbers[f"left_{row['part']}_{row['sampler']}"] = in_row(row, "left")
    return Verdict(outcome_of(map(side, gains.values())), numbers, dict.fromkeys(gains, 1.0))


def figure(settings: DPOSamplers, summary: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Draw the share of π_ref's regret that is left, by sampler, for the three kinds of training."""
    looks = {
        "uniform": style.of("raft", label="uniform"),
        "reference": style.of("reference"),
        "current": style.of("policy", label="current policy"),
        "optimal": style.of("optimal"),
        "mixture": style.of("rso", label="mixture"),
    }
    drawing, axes = style.subplots(1, 3, 15.0, 4.8)
    with style.use():
        for ax, (part, (title, label)) in zip(axes, TITLES.items(), strict=True):
            rows = summary[(summary["part"] == part) & (summary["at"] > 0)]
            statistical.interval_lines(
                ax, rows, "at", "left", "sampler", looks, band=True, legend=False, title=title, xlabel=label,
                ylabel="regret / regret of π_ref", xscale="log", yscale="log",
                lines={"marker": "", "linestyle": "-"} if part != "rounds" else {"linestyle": "-"},
            )  # fmt: skip
            if part == "rounds":
                statistical.log_ticks(ax)
        axes[0].set_ylim(1e-12, 2)
        statistical.legend_below(drawing, *axes, columns=5)
    return drawing
