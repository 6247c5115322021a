"""Decision and picture of the experiment on RSO's Table 1: win rates by loss and by source of pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlhf_lab.evaluation import mean_interval
from rlhf_lab.experiments.claims.rso_table.settings import MARGIN, RSOTable
from rlhf_lab.experiments.rso_common import LOSSES, SOURCES, decide_claim, decide_part, log_ticks
from rlhf_lab.experiments.statistics import difference
from rlhf_lab.experiments.verdicts import Number, Outcome, Verdict
from rlhf_lab.intervals import Interval

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RSO = "sigmoid-norm rso-sample-rank"
SHORT = {"direct": "direct", "sft-sample-rank": "sft", "rso-sample-rank": "rso"}
"""Sources of pairs → their names in the names of numbers."""


def name_of(row: str) -> str:
    """Return a row's name in the names of numbers, such as `hinge_norm_sft`."""
    loss, _, source = row.partition(" ")
    return f"{loss}_{SHORT[source]}".replace("-", "_") if source else row


def comparisons(runs: pd.DataFrame) -> list[dict[str, Interval]]:
    """Return the differences in win rate that each part of the rule compares, by name, for the rows of one task."""

    def more(one: str, other: str) -> Interval:
        return Interval(*difference(runs, "row", one, other, "judge_wins"))

    names = {loss: loss.replace("-", "_") for loss in LOSSES}
    return [
        {f"rso_over_sft_{n}": more(f"{loss} rso-sample-rank", f"{loss} sft-sample-rank") for loss, n in names.items()},
        {f"sft_over_direct_{n}": more(f"{loss} sft-sample-rank", f"{loss} direct") for loss, n in names.items()},
        {
            f"{n}_over_hinge": more(f"{loss} rso-sample-rank", "hinge rso-sample-rank")
            for loss, n in names.items()
            if loss != "hinge"
        },
        {f"rso_over_{method}": more(RSO, method) for method in ("raft", "rest")},
    ]


def numbers_of(settings: RSOTable, summary: pd.DataFrame, runs: pd.DataFrame, task: str) -> dict[str, Number]:
    """Return the numbers of one task by name, such as `wins_hinge_sft` for the win rate of hinge on sft-sample-rank."""
    runs, summary = runs[runs["task"] == task], summary[summary["task"] == task]
    numbers: dict[str, Number] = {name: one for part in comparisons(runs) for name, one in part.items()}
    for name, one, other in (
        ("objective_rso_over_sft", RSO, "sigmoid-norm sft-sample-rank"),
        ("objective_sft_over_direct", "sigmoid-norm sft-sample-rank", "sigmoid-norm direct"),
    ):
        numbers[name] = Interval(*difference(runs, "row", one, other, "objective"))
    metrics = {"wins": "judge_wins", "kl": "kl"} | ({"regret": "regret"} if settings.exact else {})
    for short, metric in metrics.items():
        columns = summary[["row", metric, f"{metric}_low", f"{metric}_high"]]
        numbers |= {f"{short}_{name_of(row)}": Interval(*ends) for row, *ends in columns.itertuples(index=False)}
    if settings.exact:
        return numbers
    for source, short in SHORT.items():
        shares = runs[runs["source"] == source].groupby("seed")["right"].mean()
        numbers[f"correct_labels_{short}"] = Interval(*mean_interval(shares.to_numpy()))
    numbers["kl_pi_r"] = Interval(*mean_interval(runs.groupby("seed")["reach"].mean().to_numpy()))
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
    """Apply the rule (`settings.RULE`) to each task, and then to all of them."""
    pairs = settings.prompts * settings.accepted // 2
    rates = runs[runs["row"] != "reference"].groupby("row")["rate"].first()
    numbers: dict[str, Number] = {
        "tuned_rows": len(rates),
        "rows_at_lowest_rate": int((rates == min(settings.rates)).sum()),
        "rows_at_highest_rate": int((rates == max(settings.rates)).sum()),
        "pairs": pairs,
        "pairs_per_label": pairs / settings.labels,
    }
    thresholds, outcomes = dict[str, float](), set[Outcome]()
    for task in settings.tasks:
        suffix = "" if settings.exact else f"_{task}"
        rso, sft, hinge, others = comparisons(runs[runs["task"] == task])
        parts = [decide_part([*part.values()]) for part in (rso, sft, others)]
        outcomes.add(decide_claim(*parts, decide_part([*hinge.values()], -MARGIN)))
        found = numbers_of(settings, summary, runs, task)
        numbers |= {f"{name}{suffix}": value for name, value in found.items()}
        thresholds |= {f"{name}{suffix}": -MARGIN for name in hinge}
    if len(outcomes) == 1:
        return Verdict(outcomes.pop(), numbers, thresholds)
    some = outcomes & {"supported", "partly supported"}
    return Verdict("partly supported" if some else "inconclusive", numbers, thresholds)


def figure(settings: RSOTable, summary: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Draw the win rates of all rows on each task, and on exact scales their regret."""
    from rlhf_lab.figures import style

    panels = len(settings.tasks) + settings.exact
    drawing, axes = style.subplots(1, panels, 6.6 * panels + 1.6, 6.2, sharey=True, squeeze=False)
    with style.use():
        for ax, task in zip(axes[0], settings.tasks, strict=False):
            _wins_panel(ax, summary[summary["task"] == task], task, settings.exact)
        if settings.exact:
            _regret_panel(axes[0][-1], summary, settings.scale)
        _legend(drawing, settings.exact, panels)
    return drawing


def _points(ax: Axes, table: pd.DataFrame, metric: str, **labels: Any) -> list[str]:
    """Draw a metric of each row in the colour of its source, and return the colours."""
    from rlhf_lab.figures import statistical, style

    names = {"reference": "π_ref", "raft": "RAFT", "rest": "ReST"}
    looks = {
        row: style.of(f"rso-{source}" if source in SOURCES else source, label=names.get(row, row.replace(" ", ", ")))
        for row, source in zip(table["row"], table["source"], strict=True)
    }
    statistical.interval_points(ax, table, "row", metric, looks=looks, legend=False, **labels)
    for line in ax.lines:
        line.set_markersize(9)
    return [look.light for look in looks.values()]


def _wins_panel(ax: Axes, table: pd.DataFrame, task: str, exact: bool) -> None:
    import numpy as np

    table = table.assign(**{name: 100 * table[name] for name in table.columns if "_wins" in name})
    colours = _points(
        ax, table, "judge_wins", title=f"Win rates on {'the ' if exact else ''}{task}",
        xlabel=f"wins against {'samples of π_ref' if exact else 'the SFT target'} [%]",
    )  # fmt: skip
    places = np.arange(len(table))
    ax.scatter(table["gold_wins"], places + 0.28, 45, marker="D", facecolors="none", edgecolors=colours, linewidths=1.4)
    ax.scatter(table["proxy_wins"], places + 0.28, 70, marker="|", c=colours, linewidths=1.6)
    ax.scatter(table["paper_judge_wins"], places, 50, marker="x", c="#111111", linewidths=1.6, zorder=5)
    # With two seeds an interval may be wider than all possible win rates.
    left, right = ax.get_xlim()
    ax.set_xlim(max(left, 0), min(right, 100))
    ax.axvline(50, color="#999999", lw=1.2, ls="--", zorder=1)


def _regret_panel(ax: Axes, table: pd.DataFrame, scale: str) -> None:
    least = float(table["regret"].min())
    # On a logarithmic axis an interval that reaches zero is drawn to the left end of the axis.
    shown = table.assign(regret_low=table["regret_low"].clip(lower=least / 4))
    _points(
        ax, shown, "regret", title=f"Distance to π* on the {scale}", xlabel="regret J(π*) − J(π) [reward, log scale]"
    )
    log_ticks(ax)
    ax.set_xlim(least / 2, 2 * float(table["regret"].max()))


def _legend(drawing: Figure, exact: bool, panels: int) -> None:
    from matplotlib.lines import Line2D

    grey, who = "#555555", "labeller" if exact else "judge"
    handles = [
        Line2D([], [], ls="-", marker="o", color=grey, ms=8, label=f"{who}, 95% interval over seeds"),
        Line2D([], [], ls="", marker="D", color=grey, mfc="none", ms=7, label="gold reward"),
        Line2D([], [], ls="", marker="|", color=grey, ms=9, mew=1.6, label="reward model"),
    ]
    if not exact:
        handles.append(Line2D([], [], ls="", marker="x", color="#111111", ms=7, mew=1.6, label="the paper's judge"))
    drawing.legend(handles=handles, loc="outside lower center", ncols=len(handles) if panels > 1 else 2)
