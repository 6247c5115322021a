"""Decision and picture of claim 3: win rates of DPO, PPO, SFT and best-of-n over sampling temperatures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from rlhf_lab.experiments.claims.temperatures.settings import TIE, Temperatures
from rlhf_lab.experiments.published_results import DPO_WIN_RATES
from rlhf_lab.experiments.statistics import holm_intervals, interval_at, mean_of
from rlhf_lab.experiments.verdicts import Number, Verdict, outcome_of, side
from rlhf_lab.figures import statistical, style
from rlhf_lab.intervals import Interval
from rlhf_lab.language import tr

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {"reference": "SFT (π_ref)", "sft": "SFT on chosen", "dpo": "DPO", "ppo": "PPO"}
PARTS = ("lead_over_ppo", "smaller_fall", "lead_over_best_of_n")
"""The parts (a), (b) and (c) of the rule."""


def metrics(settings: Temperatures) -> list[str]:
    """Return the columns that are measured on the scale."""
    return ["gold_wins", "gain"] if settings.exact else ["gold_wins", "judge_wins", "gain", "tokens"]


def numbers_of(settings: Temperatures, summary: pd.DataFrame, runs: pd.DataFrame) -> dict[str, Number]:
    """Return the numbers of a result by name, such as `wins_dpo_0` for DPO's win rate at temperature 0."""
    numbers = comparisons(settings, runs, "gold_wins")
    if not settings.exact:
        numbers |= {f"judge_{name}": value for name, value in comparisons(settings, runs, "judge_wins").items()}
    for metric in metrics(settings):
        for method in styles(settings):
            name = f"{metric.removeprefix('gold_')}_{method.replace('-', '_')}"
            numbers |= {f"{name}_{t}": interval_at(summary, metric, method=method, temperature=t) for t in (0, 1)}
    best = {"method": f"best-of-{numbers['best_n']}", "temperature": numbers["best_temperature_best_of_n"]}
    numbers["wins_best_of_n"] = interval_at(summary, "gold_wins", **best)
    start = runs[runs["method"] == "reference"].pivot(index="seed", columns="temperature", values="gold_wins")
    return numbers | {"fall_reference": mean_of(start[0] - start[1])}


def comparisons(settings: Temperatures, runs: pd.DataFrame, metric: str) -> dict[str, Number]:
    """Return the three parts of the rule by one measure of winning, with the best temperatures and the best n."""
    table: Any = runs.pivot(index="seed", columns=["method", "temperature"], values=metric)
    best_of = [f"best-of-{n}" for n in settings.best_of]
    at_best = {name: _at_best(table[methods]) for name, methods in (("ppo", ["ppo"]), ("dpo", ["dpo"]), ("n", best_of))}
    parts = {
        "lead_over_ppo": table["dpo", 0] - at_best["ppo"],
        "smaller_fall": table["ppo", 0] - table["ppo", 1] - table["dpo", 0] + table["dpo", 1],
        "lead_over_best_of_n": at_best["dpo"] - at_best["n"],
    }
    rival, temperature = table[best_of].mean().idxmax()
    return {
        **holm_intervals({name: part.to_numpy() for name, part in parts.items()}),
        "best_temperature_ppo": float(table["ppo"].mean().idxmax()),
        "best_temperature_dpo": float(table["dpo"].mean().idxmax()),
        "best_temperature_best_of_n": float(temperature),
        "best_n": int(rival.removeprefix("best-of-")),
    }


def _at_best(table: pd.DataFrame) -> pd.Series:
    """Return each seed's value in the cell whose mean over the other seeds is maximal.

    Args:
        table: a row for each seed, a column for each cell.
    """
    others = (table.sum() - table) / (len(table) - 1) if len(table) > 1 else table
    return table.where(others.eq(others.max(axis=1), axis=0)).bfill(axis=1).iloc[:, 0]


def decide(settings: Temperatures, summary: pd.DataFrame, runs: pd.DataFrame) -> Verdict:
    """Apply the rule (`settings.RULE`) to the numbers."""
    numbers = numbers_of(settings, summary, runs)
    parts = [one for name in PARTS if isinstance(one := numbers[name], Interval)]
    signs = [side(one) or -int(max(-one.low, one.high) < TIE) for one in parts]
    return Verdict(outcome_of(signs), numbers, dict.fromkeys(PARTS, 0.0))


def styles(settings: Temperatures) -> dict[str, style.Style]:
    """Return the style of each method, in the order of the legend. Of several n the smallest is dashed."""
    found = {method: style.of(method, label=name) for method, name in NAMES.items()}
    for n in settings.best_of:
        dashed = n == settings.best_of[0] and len(settings.best_of) > 1
        label, dash = tr("best of {n}", n=n), "--" if dashed else "-"
        found[f"best-of-{n}"] = style.of("best-of-n", label=label, dash=dash, hollow=dashed)
    return found


def figure(settings: Temperatures, summary: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Draw win rates by the gold reward over temperature, and by the judge (text) or the reward (exact scales)."""
    from matplotlib.ticker import PercentFormatter

    exact, text = "comparisons won against a sample of π_ref [%]", "comparisons won against the target [%]"
    rate = exact if settings.exact else text
    panels = {"gold_wins": ("Win rate by the gold reward", rate)}
    if settings.exact:
        panels["gain"] = ("Expected gold reward", "gain in E[r*] over π_ref at temperature 1\n[logits of a label]")
    else:
        panels["judge_wins"] = ("Win rate by the judge", rate)
    with style.use():
        drawing, axes = style.subplots(1, 2, 12.4, 5.4)
        for ax, (metric, (title, ylabel)) in zip(axes, panels.items(), strict=True):
            statistical.interval_lines(
                ax, summary, "temperature", metric, "method", styles(settings), dodge=0.012, legend=False,
                lines={"linewidth": 1.8}, title=title, xlabel="sampling temperature", ylabel=ylabel,
                xticks=settings.temperatures,
            )  # fmt: skip
            if metric != "gain":
                ax.axhline(0.5, color="#444444", lw=1, zorder=1)
                ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            for method, value in DPO_WIN_RATES.items() if metric == "judge_wins" else ():
                mark = style.of(method, hollow=True, dash="none").line()
                ax.plot([-0.07], [value], label=f"{NAMES[method]}, the paper", **mark)
        statistical.legend_below(drawing, *axes, columns=3 if settings.exact else 4)
    return drawing
