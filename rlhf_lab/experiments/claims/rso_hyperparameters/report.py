"""Decision and picture of claim 5: wins and J by RSO's β and γ, by cell, and by candidates and ranking."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rlhf_lab.experiments.claims.rso_hyperparameters.settings import Condition, RSOHyperparameters
from rlhf_lab.experiments.rso_common import Cell, decide_by_majority
from rlhf_lab.experiments.statistics import difference, holm_intervals, in_row, paired
from rlhf_lab.experiments.verdicts import Number, Verdict
from rlhf_lab.intervals import Interval

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRICS = {"proxy": "proxy_wins", "judge": "judge_wins", "gold": "gold_wins", "objective": "objective"}
KINDS = ("sft-8", "rso-8", "sft-64")


def contrasts(settings: RSOHyperparameters, cell: Cell) -> dict[str, tuple[Condition, Condition]]:
    """Return the pairs of conditions that are compared in a cell, by name, such as `beta_over_0`."""
    base, (low, *_, high) = Condition(settings.beta, cell), settings.samplers
    equal = Condition(settings.beta, replace(cell, gamma=settings.beta))
    return {
        f"beta_over_{low:g}": (base, Condition(low, cell)),
        f"beta_over_{high:g}": (base, Condition(high, cell)),
        "small_gamma": (base, equal),
    }


def _paired(runs: pd.DataFrame, both: tuple[Condition, Condition], metric: str) -> np.ndarray:
    return paired(runs, "condition", both[0].key, both[1].key, metric)


def comparisons(settings: RSOHyperparameters, runs: pd.DataFrame) -> dict[str, Interval]:
    """Return the differences in win rate by the reward model that the rule compares, with intervals by Holm."""
    pairs = contrasts(settings, settings.design[0])
    pairs["small_gamma"] = contrasts(settings, settings.gamma_cell)["small_gamma"]
    return holm_intervals({name: _paired(runs, both, "proxy_wins") for name, both in pairs.items()})


def _name(words: str) -> str:
    return words.replace("-", "_").replace(" ", "_")


def cell_name(cell: Cell) -> str:
    """Return a cell's name in the names of numbers: `paper`, or what it changes, such as `sampled_few_long`."""
    changes = (
        cell.ranks == "sampled" and "sampled",
        cell.reward_model == "few" and "few",
        cell.length == "long" and "long",
    )
    return "_".join(name for name in changes if name) or "paper"


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
        where = cell_name(cell)
        for name, both in contrasts(settings, cell).items():
            for short, metric in METRICS.items():
                numbers[f"{short}_{name}_{where}"] = difference(runs, "condition", both[0].key, both[1].key, metric)
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
    outcome = decide_by_majority([*comparisons(settings, runs).values()])
    return Verdict(outcome, numbers_of(settings, summary, runs))


def figure(settings: RSOHyperparameters, summary: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Draw wins by β, γ and ranking, and below the differences by cell, paired within seeds."""
    from rlhf_lab.figures import statistical, style

    wins = {
        "proxy_wins": style.of("reward", label="wins by the reward model", marker="s"),
        "judge_wins": style.of(
            "rso-rso-sample-rank", label="wins by the labeller" if settings.exact else "wins by the judge"
        ),
        "gold_wins": style.of("optimal", label="wins by the gold reward", marker="D"),
    }
    value = {"objective": style.of("dpo", label="J by the gold reward", marker="^")}
    paper = settings.design[0]
    betas = {f"{beta:g}": Condition(beta, paper) for beta in settings.samplers}
    gammas = {f"{g:g}": Condition(settings.beta, replace(settings.gamma_cell, gamma=g)) for g in settings.slopes}
    names = [*contrasts(settings, paper)]
    drawing, axes = style.subplots(
        2, 3, 17.5, 5.2 + 0.55 * len(settings.design), height_ratios=[1, 0.35 + 0.12 * len(settings.design)]
    )
    with style.use():
        for ax, shown, title, label in (
            (axes[0, 0], betas, "β of the sampler, paper's cell", f"β (γ = {settings.paper_gamma:g})"),
            (axes[0, 1], gammas, "γ of the loss, sampled, long", f"γ (β = {settings.beta:g})"),
        ):
            _levels(ax, summary, shown, wins, vertical=True, dodge=0.16)
            ax.set(title=title, xlabel=label, ylabel="wins [%]")
        _levels(axes[0, 2], summary, settings.rankings, wins, dodge=0.22)
        axes[0, 2].set(title="Candidates, paper's cell", xlabel="wins [%]")
        for ax, looks, title, label in zip(
            axes[1],
            (wins, wins, value),
            (
                f"β = {settings.beta:g} instead of 0: wins",
                "small γ instead of γ = β: wins",
                "small γ instead of γ = β: J",
            ),
            ("difference in wins [points]",) * 2 + ("difference in J [reward]",),
            strict=True,
        ):
            name = names[0] if title.startswith("β") else names[-1]
            _cells(ax, settings, runs, name, looks, 1 if looks is value else 100)
            ax.set(title=title, xlabel=label)
        statistical.legend_below(drawing, axes[0, 0], axes[1, 2], columns=4)
    return drawing


def _levels(ax: Axes, summary: pd.DataFrame, shown: dict[str, Condition], looks: Any, **options: Any) -> None:
    import pandas as pd

    from rlhf_lab.figures import statistical

    table = summary.set_index("condition").loc[[one.key for one in shown.values()]]
    ends = ("", "_low", "_high")
    parts = [
        pd.DataFrame({"x": [*shown], "metric": m} | {f"y{end}": 100 * table[f"{m}{end}"].to_numpy() for end in ends})
        for m in looks
    ]
    statistical.interval_points(ax, pd.concat(parts), "x", "y", "metric", looks, legend=False, **options)


def _cells(ax: Axes, settings: RSOHyperparameters, runs: pd.DataFrame, name: str, looks: Any, scale: float) -> None:
    import pandas as pd

    from rlhf_lab.figures import statistical

    rows = []
    for cell in settings.design:
        one, other = contrasts(settings, cell)[name]
        label = f"{cell.ranks}, {cell.reward_model}, {cell.length}" + (" (paper)" if cell == settings.design[0] else "")
        for metric in looks:
            ends = difference(runs, "condition", one.key, other.key, metric)
            rows.append((label, metric, *(scale * end for end in ends)))
    frame = pd.DataFrame(rows, columns=["cell", "metric", "value", "value_low", "value_high"])
    ax.axvline(0, color="#999999", lw=1.2, ls="--", zorder=1)
    statistical.interval_points(ax, frame, "cell", "value", "metric", looks, dodge=0.22, legend=False)
