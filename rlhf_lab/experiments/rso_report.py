"""Decisions and panels, which the reports of `rso-table` and `rso-hyperparameters` share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlhf_lab.experiments.statistics import by_metric, difference
from rlhf_lab.experiments.verdicts import Outcome, side
from rlhf_lab.figures import statistical, style
from rlhf_lab.intervals import Interval

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def decide_by_main(differences: Sequence[Interval]) -> Outcome:
    """Decide a claim from comparisons of which the first one is the main one, with the same rule for and against it.

    Returns:
        inconclusive if the first interval contains zero. Otherwise supported (first interval above zero) or not
        supported (below zero), and partly supported if another interval lies wholly on the other side of zero.
    """
    main, *others = map(side, differences)
    if main == 0:
        return "inconclusive"
    if -main in others:
        return "partly supported"
    return "supported" if main > 0 else "not supported"


def decide_by_majority(differences: Sequence[Interval]) -> Outcome:
    """Decide a claim from comparisons of equal rank, with the same rule for and against it.

    Returns:
        supported if at least two intervals are above zero and none is below, not supported if at least two are below
        and none is above, inconclusive if at most one excludes zero, and otherwise partly supported.
    """
    above, below = sum(one.above for one in differences), sum(one.below for one in differences)
    if above + below < 2:
        return "inconclusive"
    return "partly supported" if above and below else "supported" if above else "not supported"


def styles(exact: bool) -> tuple[dict[str, style.Style], dict[str, style.Style]]:
    """Return the styles of the three win rates, and that of the objective."""
    wins = {
        "judge_wins": style.of("rso-rso-sample-rank", label="wins by the labeller" if exact else "wins by the judge"),
        "gold_wins": style.of("optimal", label="wins by the gold reward", marker="D"),
        "proxy_wins": style.of("reward", label="wins by the reward model", marker="s"),
    }
    return wins, {"objective": style.of("dpo", label="J by the gold reward", marker="^")}


def draw_percentages(
    ax: Axes, summary: pd.DataFrame, conditions: Mapping[str, str], looks: statistical.Looks, **options: Any
) -> None:
    """Draw the metrics of several conditions in percent.

    Args:
        ax: where to draw.
        summary: rows with the column `condition`.
        conditions: name in the picture → condition.
        looks: metric → its style.
        **options: for `statistical.interval_points`.
    """
    table = summary.set_index("condition").loc[[*conditions.values()]].assign(name=[*conditions])
    frame = by_metric(table, [*looks], 100)
    statistical.interval_points(ax, frame, "name", "value", "metric", looks, legend=False, **options)


def draw_differences(
    ax: Axes, runs: pd.DataFrame, compared: Mapping[str, tuple[str, str]], looks: statistical.Looks, scale: float = 1
) -> None:
    """Draw the difference between two conditions in several cells, paired within seeds, with a point for each metric.

    Args:
        ax: where to draw.
        runs: rows with the columns `condition` and `seed`.
        compared: name of a cell in the picture → the two conditions.
        looks: metric → its style.
        scale: factor of the differences: 100 for percentage points.
    """
    import pandas as pd

    rows = [
        (name, metric, *(scale * end for end in difference(runs, "condition", *both, metric)))
        for name, both in compared.items()
        for metric in looks
    ]
    frame = pd.DataFrame(rows, columns=["cell", "metric", "value", "value_low", "value_high"])
    ax.axvline(0, color="#999999", lw=1.2, ls="--", zorder=1)
    statistical.interval_points(ax, frame, "cell", "value", "metric", looks, dodge=0.22, legend=False)
