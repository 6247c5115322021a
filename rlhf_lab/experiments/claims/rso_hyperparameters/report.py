"""Decision and picture of claim 5: wins and J by RSO's β and γ, by cell, and by candidates and ranking."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rlhf_lab.experiments import rso_report
from rlhf_lab.experiments.claims.rso_hyperparameters.settings import Condition, RSOHyperparameters
from rlhf_lab.experiments.rso_common import Cell
from rlhf_lab.experiments.statistics import difference, holm_intervals, in_row, paired
from rlhf_lab.experiments.verdicts import Number, Verdict
from rlhf_lab.figures import statistical, style
from rlhf_lab.intervals import Interval

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

METRICS = {"proxy": "proxy_wins", "judge": "judge_wins", "gold": "gold_wins", "objective": "objective"}
KINDS = ("sft-8", "rso-8", "sft-64")


def contrasts(settings: RSOHyperparameters, cell: Cell) -> dict[str, tuple[str, str]]:
    """Return the pairs of conditions that are compared in a cell, by name, such as `beta_over_0`."""
    base, low, high = settings.beta, settings.samplers[0], settings.samplers[-1]
    others = {
        f"beta_over_{low:g}": Condition(low, cell),
        f"beta_over_{high:g}": Condition(high, cell),
        "small_gamma": Condition(base, replace(cell, gamma=base)),
    }
    return {name: (Condition(base, cell).key, other.key) for name, other in others.items()}


def comparisons(settings: RSOHyperparameters, runs: pd.DataFrame) -> dict[str, Interval]:
    """Return the differences in win rate by the reward model that the rule compares, with intervals by Holm."""
    pairs = contrasts(settings, settings.design[0])
    pairs["small_gamma"] = contrasts(settings, settings.gamma_cell)["small_gamma"]
    return holm_intervals({name: paired(runs, "condition", *both, "proxy_wins") for name, both in pairs.items()})


def _name(words: str) -> str:
    return words.replace("-", "_").replace(" ", "_")


def numbers_of(settings: RSOHyperparameters, summary: pd.DataFrame, runs: pd.DataFrame) -> dict[str, Number]:
    """Return the numbers of a result by name.

    For example, `judge_small_gamma_long` is the difference in wins by the judge between the two values of γ after long
    training, and `proxy_gamma_0.005_long` is a win rate by the reward model.
    """
    numbers: dict[str, Number] = dict(comparisons(settings, runs))
    table: Any = summary.set_index("condition")

    def mean(condition: Condition, metric: str) -> Interval:
        return in_row(table.loc[condition.key], metric)

    metrics = METRICS | {"kl": "kl"} | ({"limit_kl": "limit_kl"} if settings.exact else {})
    for cell in settings.design:
        where = cell.name(settings.paper_gamma)
        for name, both in contrasts(settings, cell).items():
            for short, metric in METRICS.items():
                numbers[f"{short}_{name}_{where}"] = difference(runs, "condition", *both, metric)
        named = {f"beta_{beta:g}": Condition(beta, cell) for beta in settings.samplers}
        named |= {f"gamma_{g:g}": Condition(settings.beta, replace(cell, gamma=g)) for g in settings.slopes}
        for name, condition in named.items():
            numbers |= {f"{short}_{name}_{where}": mean(condition, metric) for short, metric in metrics.items()}
    for name, ranking in settings.rankings.items():
        for short in ("proxy", "judge", "objective"):
            numbers[f"{short}_{_name(name)}"] = mean(ranking, METRICS[short])
    for kind in KINDS:
        first, second = (settings.rankings[f"{kind} {pairing}"].key for pairing in ("tournament", "first-round"))
        for short in ("proxy", "judge"):
            numbers[f"{short}_tournament_{_name(kind)}"] = difference(runs, "condition", first, second, METRICS[short])
    return numbers


def decide(settings: RSOHyperparameters, summary: pd.DataFrame, runs: pd.DataFrame) -> Verdict:
    """Apply the rule (`settings.RULE`)."""
    outcome = rso_report.decide_by_majority([*comparisons(settings, runs).values()])
    return Verdict(outcome, numbers_of(settings, summary, runs))


def figure(settings: RSOHyperparameters, summary: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Draw wins by β, γ and ranking, and below the differences by cell, paired within seeds."""
    wins, value = rso_report.styles(settings.exact)
    design, paper = settings.design, settings.design[0]
    betas = {f"{beta:g}": Condition(beta, paper).key for beta in settings.samplers}
    gammas = {f"{g:g}": Condition(settings.beta, replace(settings.gamma_cell, gamma=g)).key for g in settings.slopes}
    first, *_, last = contrasts(settings, paper)
    height = 5.2 + 0.55 * len(design)
    drawing, axes = style.subplots(2, 3, 17.5, height, height_ratios=[1, 0.35 + 0.12 * len(design)])
    with style.use():
        for ax, shown, title, label in (
            (axes[0, 0], betas, "β of the sampler, paper's cell", f"β (γ = {settings.paper_gamma:g})"),
            (axes[0, 1], gammas, "γ of the loss, sampled, long", f"γ (β = {settings.beta:g})"),
        ):
            rso_report.draw_percentages(
                ax, summary, shown, wins, vertical=True, dodge=0.16, title=title, xlabel=label, ylabel="wins [%]"
            )
        rankings = {name: one.key for name, one in settings.rankings.items()}
        rso_report.draw_percentages(
            axes[0, 2], summary, rankings, wins, dodge=0.22, title="Candidates, paper's cell", xlabel="wins [%]"
        )
        for ax, name, looks, title in (
            (axes[1, 0], first, wins, f"β = {settings.beta:g} instead of 0: wins"),
            (axes[1, 1], last, wins, "small γ instead of γ = β: wins"),
            (axes[1, 2], last, value, "small γ instead of γ = β: J"),
        ):
            compared = {_label(cell, cell == paper): contrasts(settings, cell)[name] for cell in design}
            rso_report.draw_differences(ax, runs, compared, looks, 100 if looks is wins else 1)
            ax.set(title=title, xlabel=f"difference in {'wins [points]' if looks is wins else 'J [reward]'}")
        statistical.legend_below(drawing, axes[0, 0], axes[1, 2], columns=4)
    return drawing


def _label(cell: Cell, paper: bool) -> str:
    return f"{cell.ranks}, {cell.reward_model}, {cell.length}{' (paper)' if paper else ''}"
