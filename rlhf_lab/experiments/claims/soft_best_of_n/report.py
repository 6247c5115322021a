"""Decision and picture of claim 14: the distance to π* against the draws of π_ref per response."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rlhf_lab.experiments.claims.soft_best_of_n.settings import COMPARED, SoftBestOfN
from rlhf_lab.experiments.statistics import exp_of, holm_intervals, in_row, mean_of
from rlhf_lab.experiments.verdicts import Number, Verdict, outcome_of, side
from rlhf_lab.intervals import Interval
from rlhf_lab.language import tr

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

METHODS = ("best-of-n", "soft", "rso")


def decide(settings: SoftBestOfN, summary: pd.DataFrame, runs: pd.DataFrame) -> Verdict:
    """Apply the rule (`settings.RULE`) to the rows."""
    curves = {name: runs[runs["method"] == name] for name in METHODS}
    regret = {name: one.pivot(index="seed", columns="draws", values="regret") for name, one in curves.items()}
    many = [n for n in settings.draws if n >= settings.slope_from]
    x = np.log(many) - np.mean(np.log(many))
    slopes = np.log(regret["soft"][many].to_numpy()) @ x / (x @ x)

    def ratio(one: str, other: str) -> np.ndarray:
        return np.asarray(np.log(regret[one][COMPARED] / regret[other][COMPARED]), dtype=float)

    # Each is above zero where it counts for the claim.
    gains = holm_intervals(
        {"slope": -1 - slopes, "soft_over_best": ratio("best-of-n", "soft"), "rso_over_soft": ratio("soft", "rso")}
    )
    outcome = outcome_of(map(side, gains.values()))
    steep = gains.pop("slope")
    numbers: dict[str, Number] = {"slope": Interval(-1 - steep.mean, -1 - steep.high, -1 - steep.low)}
    numbers |= {name: exp_of(-one) for name, one in gains.items()}
    last, best = settings.draws[-1], regret["best-of-n"]
    for method in METHODS:
        for n in (COMPARED, last):
            row = summary[(summary["method"] == method) & (summary["draws"] == n)].iloc[0]
            numbers[f"{method.replace('-', '_')}_left_{n}"] = in_row(row, "left")
    soft = curves["soft"][curves["soft"]["draws"] == last]
    needed = runs.loc[runs["method"] == "rejection", "draws"]
    means = {
        "limit_ratio": soft["kl_to_optimal"] / soft["limit"],
        "best_n": best.idxmin(axis=1),
        "best_lowest": best.min(axis=1) / best[settings.draws[0]],
        "rejection_draws": needed,
    }
    numbers |= {name: mean_of(values) for name, values in means.items()}
    nearer = np.log(regret["soft"] / best).mean() < 0
    numbers |= {"draws_last": last, "soft_nearer_from": min((n for n in settings.draws if nearer[n]), default=np.inf)}
    return Verdict(outcome, numbers, {"slope": -1.0, "soft_over_best": 1.0, "rso_over_soft": 1.0})


def figure(settings: SoftBestOfN, summary: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Draw KL(π‖π*) and KL(π‖π_ref) of the three methods against the draws of π_ref per response."""
    from rlhf_lab.figures import statistical, style

    looks = {
        "best-of-n": style.of("best-of-n"),
        "soft": style.of("policy", label="soft best-of-n"),
        "rso": style.of("rso", label=tr("RSO, {accepted} accepted", accepted=settings.accepted)),
    }
    drawing, (left, right) = style.subplots(1, 2, 11.5, 4.6)
    with style.use():
        for method in ("soft", "rso"):
            part = summary[(summary["method"] == method) & (summary["draws"] > 1)]
            label = "leading terms" if method == "soft" else "_"
            left.plot(part["draws"], part["limit"], "--", color=style.colour("optimal"), lw=1.2, label=label)
        rejection = runs[runs["method"] == "rejection"]
        right.axhline(rejection["kl"].mean(), ls="--", lw=1.2, color=style.colour("optimal"), label="π*")
        for ax, metric, label, title in (
            (left, "kl_to_optimal", "KL(π‖π*) [nats]", "Distance to π*"),
            (right, "kl", "KL(π‖π_ref) [nats]", "Distance from π_ref"),
        ):
            statistical.interval_lines(
                ax, summary, "draws", metric, "method", looks, legend=False, title=title, xscale="log",
                xlabel="draws of π_ref per response", ylabel=label,
            )  # fmt: skip
            statistical.log_ticks(ax)
        left.set_yscale("log")
        low = summary.loc[summary["kl_to_optimal"] > 0, "kl_to_optimal"].min()
        left.set_ylim(0.5 * low, None)
        statistical.legend_below(drawing, left, right, columns=5)
    return drawing
