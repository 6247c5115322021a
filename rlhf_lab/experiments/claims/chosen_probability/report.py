"""Summary, decision and picture of claim 13: the change of log π of chosen and of rejected responses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rlhf_lab.experiments.claims.chosen_probability.settings import CLASSES, LOSSES, ChosenProbability
from rlhf_lab.experiments.rso_common import decide_part
from rlhf_lab.experiments.statistics import holm_intervals, mean_of, summarise
from rlhf_lab.experiments.verdicts import Number, Verdict
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
    trained = runs[runs["part"] == "training"].set_index(["policies", "loss"])
    pairs = {name: runs[(runs["part"] == "pair") & (runs["policies"] == name)] for name in CLASSES}

    def of(policies: str, loss: str, metric: str) -> np.ndarray:
        return np.asarray(trained.loc[(policies, loss), metric], dtype=float)

    # Each is above zero where it counts for the claim.
    gains = holm_intervals({
        "dpo_chosen": -of("shared", "dpo", "chosen"),
        "ches": -rank_correlations(pairs["shared"], "ches", "chosen"),
        "dpop_chosen": of("shared", "dpop", "chosen"),
    })  # fmt: skip
    outcome = decide_part([*gains.values()])
    numbers: dict[str, Number] = dict(gains)
    numbers |= {name: -gains[name] for name in ("dpo_chosen", "ches")}
    for policies in CLASSES:
        for loss in LOSSES:
            for metric in METRICS:
                numbers[f"{metric}_{policies}_{loss.replace('-', '_')}"] = mean_of(of(policies, loss, metric))
        table = pairs[policies]
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
    return Verdict(outcome, numbers, dict.fromkeys(gains, 0.0))


def figure(settings: ChosenProbability, summary: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Draw the changes of log π by loss and class, and those of single pairs against the prediction of the gradient."""
    from rlhf_lab.figures import style

    drawing, axes = style.subplots(1, 3, 15.0, 4.6)
    with style.use():
        for ax, policies, title in zip(axes[:2], CLASSES, ("Table", "Shared parameters"), strict=True):
            rows = summary[summary["policies"] == policies].set_index("loss").loc[list(LOSSES)]
            for shift, side, key, marker in ((-0.15, "chosen", "optimal", "o"), (0.15, "rejected", "reward", "s")):
                error = np.abs(rows[[f"{side}_low", f"{side}_high"]].to_numpy(float) - rows[[side]].to_numpy(float)).T
                ax.errorbar(
                    np.arange(len(rows)) + shift, rows[side], np.nan_to_num(error), fmt=marker,
                    color=style.colour(key), capsize=3, label=side,
                )  # fmt: skip
            ax.axhline(0, color="0.4", lw=1)
            ax.set_xticks(range(len(rows)), [NAMES[loss] for loss in rows.index])
            ax.set(
                title=tr("{policies}, margin up to {margin:g} nats", policies=tr(title), margin=settings.margin),
                ylabel="change of log π [nats]",
                xlabel="loss",
            )
            ax.legend()
        ax = axes[2]
        pairs = runs[runs["part"] == "pair"]
        for policies, key in zip(CLASSES, ("reference", "dpo"), strict=True):
            part = pairs[pairs["policies"] == policies]
            ax.plot(
                settings.margin * part["predicted"], part["chosen"], ".", ms=4, alpha=0.6, color=style.colour(key),
                label="table" if policies == "table" else "shared parameters",
            )  # fmt: skip
        ax.axhline(0, color="0.4", lw=1)
        ax.axvline(0, color="0.4", lw=1)
        ax.set(title="Single pairs under DPO", xlabel="predicted by the first step [nats]",
               ylabel="change of log π(chosen) [nats]")  # fmt: skip
        ax.legend()
    return drawing
