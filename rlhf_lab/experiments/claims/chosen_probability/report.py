"""Summary, decision and picture of claim 13: the change of log π of chosen and of rejected responses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rlhf_lab.experiments.claims.chosen_probability.settings import CLASSES, ChosenProbability
from rlhf_lab.experiments.statistics import by_metric, holm_intervals, in_row, mean_of, summarise
from rlhf_lab.experiments.verdicts import Number, Verdict, outcome_of, side
from rlhf_lab.figures import statistical, style
from rlhf_lab.language import tr

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

METRICS = ["chosen", "rejected", "margin", "falling", "mass_chosen", "mass_rejected", "reward", "kl", "steps"]
NAMES = {"dpo": "DPO", "ipo": "IPO", "orpo": "ORPO", "dpo-nll": "DPO + NLL", "dpop": "DPOP"}


def summarise_runs(settings: ChosenProbability, runs: pd.DataFrame) -> pd.DataFrame:
    """Return the means of every change by class and loss."""
    return summarise(runs[runs["part"] == "training"], ["policies", "loss"], METRICS)


def rank_correlations(pairs: pd.DataFrame, one: str, other: str) -> np.ndarray:
    """Return Spearman's correlation of two columns over the pairs of each seed in which neither is constant."""
    from scipy.stats import rankdata

    found = []
    for _, part in pairs.groupby("seed"):
        ranks = np.stack([rankdata(part[name].round(9)) for name in (one, other)])
        if (ranks.std(axis=1) > 0).all():
            found.append(np.corrcoef(ranks)[0, 1])
    return np.array(found or [np.nan])


def decide(settings: ChosenProbability, summary: pd.DataFrame, runs: pd.DataFrame) -> Verdict:
    """Apply the rule (`settings.RULE`) to the rows."""
    shared = runs[(runs["part"] == "training") & (runs["policies"] == "shared")]
    change = {loss: rows["chosen"].to_numpy() for loss, rows in shared.groupby("loss")}
    pairs = {name: runs[(runs["part"] == "pair") & (runs["policies"] == name)] for name in CLASSES}
    # Each is above zero where it counts for the claim.
    gains = holm_intervals({
        "dpo_chosen": -change["dpo"],
        "ches": -rank_correlations(pairs["shared"], "ches", "chosen"),
        "dpop_chosen": change["dpop"],
    })  # fmt: skip
    numbers: dict[str, Number] = {**gains, "dpo_chosen": -gains["dpo_chosen"], "ches": -gains["ches"]}
    for _, row in summary.iterrows():
        name = f"{row['policies']}_{row['loss']}".replace("-", "_")
        numbers |= {f"{metric}_{name}": in_row(row, metric) for metric in METRICS}
    for policies, table in pairs.items():
        table = table.assign(others=table["predicted"] - table["own"])
        varying = ("shared_tokens",) if table["shared_tokens"].any() else ()  # a bandit's responses share no tokens
        for column in ("overlap", "predicted", "own", "others", *varying):
            numbers[f"{column}_{policies}"] = mean_of(table.groupby("seed")[column].mean())
            numbers[f"rank_{column}_{policies}"] = mean_of(rank_correlations(table, column, "chosen"))
        numbers[f"above_one_{policies}"] = float((table["overlap"] > 1).mean())
        numbers[f"predicted_falling_{policies}"] = float((table["predicted"] < 0).mean())
        numbers[f"overlap_most_{policies}"] = float(table["overlap"].max())
        for same, part in table.groupby(table["shared_tokens"] > 0) if varying else ():
            word = "same" if same else "other"
            numbers[f"chosen_{word}_first_token_{policies}"] = mean_of(part.groupby("seed")["chosen"].mean())
    for beta, part in runs[runs["part"] == "optimum"].groupby("beta"):
        numbers[f"optimum_chosen_{beta:g}"] = mean_of(part["chosen"])
        numbers[f"optimum_rejected_{beta:g}"] = mean_of(part["rejected"])
    return Verdict(outcome_of(map(side, gains.values())), numbers, dict.fromkeys(gains, 0.0))


def figure(settings: ChosenProbability, summary: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Draw the changes of log π by loss and class, and those of single pairs against the prediction of the gradient."""
    looks = {
        "chosen": style.of("optimal", label="chosen", marker="o"),
        "rejected": style.of("reward", label="rejected", marker="s"),
    }
    drawing, axes = style.subplots(1, 3, 15.0, 4.6)
    with style.use():
        for ax, policies, title in zip(axes[:2], CLASSES, ("Table", "Shared parameters"), strict=True):
            ax.axhline(0, color="0.4", lw=1)
            statistical.interval_points(
                ax, by_metric(summary[summary["policies"] == policies], [*looks]), "loss", "value", "metric", looks,
                names=NAMES, vertical=True, legend=False, xlabel="loss", ylabel="change of log π [nats]",
                title=tr("{policies}, margin up to {margin:g} nats", policies=tr(title), margin=settings.margin),
            )  # fmt: skip
            ax.legend()
        ax = axes[2]
        pairs = runs[runs["part"] == "pair"]
        for policies, key, label in zip(CLASSES, ("reference", "dpo"), ("table", "shared parameters"), strict=True):
            part = pairs[pairs["policies"] == policies]
            step = settings.margin * part["predicted"]
            ax.plot(step, part["chosen"], ".", ms=4, alpha=0.6, color=style.colour(key), label=label)
        ax.axhline(0, color="0.4", lw=1)
        ax.axvline(0, color="0.4", lw=1)
        ax.set(title="Single pairs under DPO", xlabel="predicted by the first step [nats]",
               ylabel="change of log π(chosen) [nats]")  # fmt: skip
        ax.legend()
    return drawing
