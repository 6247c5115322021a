"""Summary, decision and picture of the phase diagram: the relative change in regret in every cell of the map."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from rlhf_lab.experiments.claims.rso_phase.misfit import KINDS
from rlhf_lab.experiments.claims.rso_phase.settings import CELL, RSOPhase
from rlhf_lab.experiments.statistics import holm_intervals
from rlhf_lab.experiments.verdicts import Number, Verdict, outcome_of, side
from rlhf_lab.figures import statistical, style
from rlhf_lab.intervals import Interval
from rlhf_lab.language import tr

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

COMPARED = {"r": "pairs from π_r", "mixture": "half from π_r, half from π_ref"}
"""The sources that are compared with π_ref, and how the picture names them."""


def log_ratios(runs: pd.DataFrame, source: str) -> dict[tuple[str, float, float], np.ndarray]:
    """Return log(regret with pairs of `source` / regret with pairs of π_ref) in every world, by cell."""
    values = runs.assign(ratio=np.log(runs[f"regret_{source}"] / runs["regret_ref"]))
    cells = values.groupby(["kind", "share", "beta"], sort=False)["ratio"]
    return {key: part.to_numpy() for key, part in cells}  # type: ignore[misc]


def change(ratio: Interval) -> Interval:
    """Return the relative change, exp(log ratio) − 1, with its interval."""
    return Interval(*(math.expm1(one) for one in ratio))


def summarise_runs(settings: RSOPhase, runs: pd.DataFrame) -> pd.DataFrame:
    """Return the relative change in regret of every cell and source, with intervals for all cells of a source."""
    import pandas as pd

    second = runs.groupby(["kind", "share", "beta"], sort=False)["second_order"].mean()
    rows = []
    for source in COMPARED:
        cells = log_ratios(runs, source)
        found = holm_intervals({"|".join(map(str, key)): values for key, values in cells.items()})
        for key, one in zip(cells, found.values(), strict=True):
            kind, share, beta = key
            row = {"source": source, "kind": kind, "share": share, "beta": beta, "seeds": len(cells[key])}
            row |= dict(zip(("change", "change_low", "change_high"), change(one), strict=True))
            rows.append(row | {"second_order": math.expm1(second[key]) if source == "r" else math.nan})
    return pd.DataFrame(rows)


def decide(settings: RSOPhase, summary: pd.DataFrame, runs: pd.DataFrame) -> Verdict:
    """Apply the rule (`settings.RULE`) to the rows."""
    numbers: dict[str, Number] = {"cells": len(settings.shares) * len(settings.betas)}
    for source in COMPARED:
        cells = log_ratios(runs, source)
        found = holm_intervals({kind: cells[kind, *CELL] for kind in KINDS})
        numbers |= {f"{source}_{kind}": change(one) for kind, one in found.items()}
        if source == "r":
            outcome = outcome_of(-side(one) for one in found.values())
        for kind in KINDS:
            part = summary[(summary["source"] == source) & (summary["kind"] == kind)]
            numbers[f"lower_{source}_{kind}"] = int((part["change_high"] < 0).sum())
            numbers[f"higher_{source}_{kind}"] = int((part["change_low"] > 0).sum())
            columns = ["share", "beta", "change", "change_low", "change_high", "second_order"]
            for share, beta, *ends, second in part[columns].to_numpy(dtype=float):
                numbers[f"map_{source}_{kind}_{share:g}_{beta:g}"] = Interval(*map(float, ends))
                if source == "r" and (share, beta) == CELL:
                    numbers[f"second_order_{kind}"] = float(second)
    return Verdict(outcome, numbers, {f"{source}_{kind}": 0.0 for source in COMPARED for kind in KINDS})


def figure(settings: RSOPhase, summary: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Draw the map: a table for each kind of misfit and source, with the relative change in regret in percent."""
    drawing, axes = style.subplots(2, len(KINDS), 18.0, 9.0)
    scale = "change in regret [%]"
    percent = summary.assign(**{name: 100 * summary[name] for name in ("change", "change_low", "change_high")})
    with style.use():
        for row, (source, words) in zip(axes, COMPARED.items(), strict=True):
            for ax, kind in zip(row, KINDS, strict=True):
                part = percent[(percent["source"] == source) & (percent["kind"] == kind)]
                statistical.heat_map(
                    ax, part, "share", "beta", "change", scale=scale, form="+.0f", centre=0.0, limits=(-100, 100),
                    bar=False, title=f"{tr(kind)}{tr(': ')}{tr(words)}",
                    xlabel="share of the reward's variance missed", ylabel="β = γ [SD of the reward]",
                )  # fmt: skip
                ax.invert_yaxis()
        drawing.colorbar(axes[0, 0].collections[0], ax=axes, label=scale, aspect=40)
    return drawing
