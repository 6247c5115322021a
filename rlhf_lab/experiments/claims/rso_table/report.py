"""Decision and picture of the experiment on RSO's Table 1: wins, and J apart from them, by source of pairs and cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rlhf_lab.experiments import rso_report
from rlhf_lab.experiments.claims.rso_table.settings import RowCondition, RSOTable
from rlhf_lab.experiments.rso_common import SOURCES, Cell
from rlhf_lab.experiments.statistics import holm_intervals, in_row, mean_of, paired
from rlhf_lab.experiments.verdicts import Number, Outcome, Verdict
from rlhf_lab.figures import statistical, style
from rlhf_lab.intervals import Interval
from rlhf_lab.language import tr

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RSO, SFT, DIRECT = (f"sigmoid-norm {source}" for source in reversed(SOURCES))
SHORT = {"direct": "direct", "sft-sample-rank": "sft", "rso-sample-rank": "rso"}
"""Sources of pairs → their names in the names of numbers."""
COMPARED = {"rso_over_sft": (RSO, SFT), "sft_over_direct": (SFT, DIRECT), "rso_over_raft": (RSO, "raft")}
"""The rule's comparisons: name → the two rows."""
WINS = {"judge": "judge_wins", "gold": "gold_wins", "proxy": "proxy_wins"}


def name_of(row: str) -> str:
    """Return a row's name in the names of numbers, such as `hinge_norm_sft`."""
    loss, _, source = row.partition(" ")
    return f"{loss}_{SHORT[source]}".replace("-", "_") if source else row


def _differences(runs: pd.DataFrame, cell: Cell, rows: tuple[str, str], metric: str) -> np.ndarray:
    one, other = (RowCondition(row, cell).key for row in rows)
    return paired(runs, "condition", one, other, metric)


def comparisons(settings: RSOTable, runs: pd.DataFrame) -> dict[str, Interval]:
    """Return the differences in win rate that the rule compares, with intervals by Holm, for the rows of one task."""
    paper = settings.design[0]
    return holm_intervals({name: _differences(runs, paper, rows, "judge_wins") for name, rows in COMPARED.items()})


def numbers_of(settings: RSOTable, summary: pd.DataFrame, runs: pd.DataFrame) -> dict[str, Number]:
    """Return the numbers of one task by name.

    For example, `wins_hinge_sft` is a win rate in the paper's cell, and `proxy_rso_over_sft_sampled` is a difference in
    wins by the reward model in the cell with sampled labels. Over the cells the intervals of a metric are Holm's.
    """
    numbers: dict[str, Number] = dict(comparisons(settings, runs))
    paper, design = settings.design[0], settings.design
    metrics = WINS | {"objective": "objective"}
    for short, metric in metrics.items():
        for name, rows in COMPARED.items():
            if short != "judge":
                numbers[f"{short}_{name}"] = mean_of(_differences(runs, paper, rows, metric))
        cells = {one.name(settings.paper_gamma): _differences(runs, one, (RSO, SFT), metric) for one in design}
        numbers |= {f"{short}_rso_over_sft_{name}": one for name, one in holm_intervals(cells).items()}
    table: Any = summary.set_index("condition")

    def mean(condition: RowCondition, metric: str) -> Interval:
        return in_row(table.loc[condition.key], metric)

    for one in settings.conditions:
        if one.cell == paper:
            numbers |= {f"{s}_{name_of(one.row)}": mean(one, m) for s, m in {"wins": "judge_wins", "kl": "kl"}.items()}
    for cell in design:
        name = cell.name(settings.paper_gamma)
        for row in (RSO, SFT):
            source = SHORT[row.partition(" ")[2]]
            numbers[f"kl_{source}_in_{name}"] = mean(RowCondition(row, cell), "kl")
            if settings.exact and cell in settings.expected:
                numbers[f"expected_kl_{source}_in_{name}"] = mean(RowCondition(row, cell), "expected_kl")
        if settings.exact:
            numbers[f"limit_kl_in_{name}"] = mean(RowCondition(RSO, cell), "limit_kl")
    if settings.exact:
        for cell in design[:4:2]:
            numbers[f"best_gamma_{cell.reward_model}"] = mean(RowCondition(RSO, cell), "best_gamma")
    for source, short in SHORT.items():
        numbers[f"correct_labels_{short}"] = mean(RowCondition(f"sigmoid-norm {source}", paper), "right")
    numbers["kl_pi_r"] = mean(RowCondition(RSO, paper), "reach")
    return numbers | _against_paper(summary)


def _against_paper(summary: pd.DataFrame) -> dict[str, Number]:
    """The win rates of the paper, the ranges of both tables, and the rank correlation of their rows."""
    from scipy import stats

    table = summary[summary["paper_judge_wins"].notna()]
    if len(table) < 3:
        return {}
    ours, theirs = table["judge_wins"], table["paper_judge_wins"]
    return {
        **{f"paper_{name_of(row)}": float(value) for row, value in zip(table["row"], theirs, strict=True)},
        "wins_lowest": float(ours.min()),
        "wins_highest": float(ours.max()),
        "paper_lowest": float(theirs.min()),
        "paper_highest": float(theirs.max()),
        "rank_correlation": float(stats.spearmanr(ours, theirs).statistic),
    }


def decide(settings: RSOTable, summary: pd.DataFrame, runs: pd.DataFrame) -> Verdict:
    """Apply the rule (`settings.RULE`) to each task. The outcome is that of the tasks if they agree."""
    numbers: dict[str, Number] = {"pairs_per_label": settings.pairs / settings.labels}
    outcomes = set[Outcome]()
    for task in settings.tasks:
        suffix = "" if len(settings.tasks) == 1 else f"_{task}"
        of_task = runs[runs["task"] == task]
        outcomes.add(rso_report.decide_by_main([*comparisons(settings, of_task).values()]))
        found = numbers_of(settings, summary[summary["task"] == task], of_task)
        numbers |= {f"{name}{suffix}": value for name, value in found.items()}
    return Verdict(outcomes.pop() if len(outcomes) == 1 else "partly supported", numbers)


def figure(settings: RSOTable, summary: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Draw for each task the table in the paper's cell, and by cell what pairs from π_r change in wins and in J."""
    tasks, number = settings.tasks, len(settings.design)
    drawing, axes = style.subplots(
        len(tasks), 3, 17.5, (3.2 + 0.24 * number) * len(tasks), squeeze=False, width_ratios=[1, 1.1, 0.9]
    )  # fmt: skip
    wins, objective = rso_report.styles(settings.exact)
    compared = {
        _cell_label(settings, one): (RowCondition(RSO, one).key, RowCondition(SFT, one).key) for one in settings.design
    }
    with style.use():
        for (table, left, right), task in zip(axes, tasks, strict=True):
            of_task = runs[runs["task"] == task]
            _table_panel(table, settings, summary[summary["task"] == task], wins, f"{'the ' * settings.exact}{task}")
            rso_report.draw_differences(left, of_task, compared, wins, 100)
            rso_report.draw_differences(right, of_task, compared, objective)
            left.set(title="π_r instead of π_ref: wins", xlabel="difference in wins [percentage points]")
            right.set(title="π_r instead of π_ref: J", xlabel="difference in J [reward]", yticklabels=[])
        statistical.legend_below(drawing, *axes[0], columns=5)
    return drawing


def _cell_label(settings: RSOTable, cell: Cell) -> str:
    words = tr(", ").join([f"γ = {cell.gamma:g}", *map(tr, (cell.ranks, cell.reward_model, cell.length))])
    return words + (tr(" (paper)") if cell == settings.design[0] else "")


def _table_panel(ax: Axes, settings: RSOTable, table: pd.DataFrame, looks: statistical.Looks, task: str) -> None:
    shown = {_row_name(one.row): one.key for one in settings.conditions if one.cell == settings.design[0]}
    rso_report.draw_percentages(
        ax, table, shown, looks, dodge=0.22, title=f"Table 1 on {task}, paper's settings",
        xlabel=f"wins against {'samples of π_ref' if settings.exact else 'the SFT target'} [%]",
    )  # fmt: skip
    published = 100 * table.set_index("condition").loc[[*shown.values()], "paper_judge_wins"].to_numpy()
    if np.isfinite(published).any():
        places = np.arange(len(published))
        ax.scatter(published, places, 50, marker="x", c="#111111", linewidths=1.6, zorder=5, label="the paper's judge")
    left, right = ax.get_xlim()
    ax.set_xlim(max(left, 0), min(right, 100))
    ax.axvline(50, color="#999999", lw=1.2, ls="--", zorder=1)


def _row_name(row: str) -> str:
    return {"reference": "π_ref", "raft": "RAFT", "rest": "ReST"}.get(row, row.replace(" ", ", "))
