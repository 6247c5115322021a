"""Decision and picture of question 10: what a budget of labels achieves by source of pairs, rounds and split."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pandas as pd

from rlhf_lab import label_budget
from rlhf_lab.experiments.claims.annotation_budget.run_text import STRATEGIES
from rlhf_lab.experiments.claims.annotation_budget.settings import (
    LIMITS,
    MARGIN,
    MAX_RATIO,
    ROUNDS_MARGIN,
    SHARES,
    TEXT_COMPARED,
    TIE,
    AnnotationBudget,
)
from rlhf_lab.experiments.statistics import equivalence, holm_intervals, interval_at, paired
from rlhf_lab.experiments.verdicts import Number, Verdict, side
from rlhf_lab.figures import statistical, style
from rlhf_lab.intervals import Interval
from rlhf_lab.language import tr

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ANSWERS = ("limit_design", "ratio_active", "ratio_reference")
"""The numbers that answer the question on the exact scales."""
_PRICES = (("#949494", "o"), ("#727272", "s"), ("#484848", "^"), ("#111111", "D"))
"""Grey and marker of each price of a demonstration, darker for a higher price. Colours belong to methods."""


def numbers_of(settings: AnnotationBudget, summary: pd.DataFrame) -> dict[str, Number]:
    """Return the numbers of a result by name.

    `ratio_active` is the number of labels that the active policy needs, relative to the closed form of the best design;
    `simulated_active` is the same relative to the simulation of the best design; `limit_reference` is N · regret with
    pairs from π_ref relative to its limit; `share_active_3` is the best share of the budget for demonstrations with
    active labels at a price of 3 labels. Numbers that end in `_early` are those with few labels.
    """

    def value(part: str, what: str, **names: Any) -> Interval:
        return interval_at(summary, "value", part=part, what=what, **names)

    if not settings.exact:
        numbers: dict[str, Number] = {}
        for key in ("none", *STRATEGIES):
            name = "reference" if key == "none" else key.replace("-", "_")
            numbers |= {f"{what}_{name}": value(key, what) for what in ("objective", "reward", "kl", "labels")}
            if key not in ("none", "random"):
                numbers[f"gain_{name}"] = value(key, "gain")
        return numbers
    last, early, most = settings.totals[-1], settings.totals[min(2, settings.doublings)], settings.limit_totals[-1]
    numbers = {
        "labels_first": settings.totals[0],
        "labels_early": early,
        "labels_rounds": settings.round_labels,
        "limit_last": most,
    }
    numbers |= {f"limit_{key}": value("limit", "limit_ratio", pairs=key, labels=most) for key in LIMITS}
    for key in label_budget.PAIR_SOURCES:
        numbers[f"ratio_{key}"] = value("sources", "label_ratio", pairs=key, labels=last)
        numbers[f"ratio_{key}_early"] = value("sources", "label_ratio", pairs=key, labels=early)
    numbers["ratio_d_optimal"] = value("d-optimal", "label_ratio", pairs="d-optimal")
    numbers["simulated_active"] = value("sources", "simulated_ratio", pairs="active", labels=last)
    rounds = {n: value("rounds", "label_ratio", pairs="active", rounds=n) for n in settings.rounds}
    numbers |= {f"rounds_{n}": one for n, one in rounds.items()}
    enough = ROUNDS_MARGIN * rounds[settings.rounds[-1]].mean
    numbers["rounds_enough"] = next(n for n, one in rounds.items() if one.mean <= enough)
    for price in settings.ratios:
        for pairs in ("active", "sft"):
            numbers[f"share_{pairs}_{price:g}"] = value("split", "best_share", pairs=pairs, demo_price=price)
        numbers[f"share_limit_{price:g}"] = value("split", "best_share_limit", pairs="sft", demo_price=price)
    only_demonstrations = {"demo_price": settings.ratios[0], "share": SHARES[-1]}
    numbers["regret_demonstrations"] = value("split", "regret", pairs="active", **only_demonstrations)
    numbers["regret_misjudged"] = value("split", "regret", pairs="misjudged", **only_demonstrations)
    numbers["regret_dpo"] = value("learners", "regret", learner="limited-dpo", labels=last)
    numbers["regret_reward_model"] = value("learners", "regret", learner="limited-reward", labels=last)
    numbers["regret_best_of_class"] = value("learners", "best_of_class")
    numbers["dpo_minus_reward_model"] = value("learners", "dpo_minus_reward_model")
    if settings.scale == "tree":
        numbers["structured_factor"] = value("learners", "structured_factor")
    return numbers


def decide(settings: AnnotationBudget, summary: pd.DataFrame, runs: pd.DataFrame) -> Verdict:
    """Apply the rule (`settings.RULE`) to the numbers."""
    numbers: dict[str, Any] = numbers_of(settings, summary)
    if settings.exact:
        limit, *ratios = (numbers[name] for name in ANSWERS)
        decided = equivalence(limit, MARGIN) != "open" and all(side(one, MAX_RATIO) for one in ratios)
        thresholds = dict.fromkeys(ANSWERS, MAX_RATIO) | {ANSWERS[0]: 1 + math.copysign(MARGIN, limit.mean - 1)}
    else:
        names = {f"gain_{key.replace('-', '_')}": key for key in TEXT_COMPARED}
        found = holm_intervals({name: paired(runs, "part", key, "random", "objective") for name, key in names.items()})
        numbers |= found
        thresholds = dict.fromkeys(found, 0.0)
        decided = all(side(one) or max(-one.low, one.high) < TIE for one in found.values())
    return Verdict("answered" if decided else "inconclusive", numbers, thresholds)


@style.use()
def figure(settings: AnnotationBudget, summary: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Draw the limit, the sources of pairs and the split of the budget; on a language model J by strategy."""
    if not settings.exact:
        return _text_figure(settings, summary)
    drawing, axes = style.subplots(1, 3, width=15, height=5.2)
    looks = {key: style.of(label_budget.STYLES[key], label=name) for key, name in label_budget.NAMES.items()}
    axes[0].axhline(1, color="#444444", lw=1)
    statistical.interval_lines(
        axes[0], summary[summary["part"] == "limit"], "labels", "value", "pairs", looks, dodge=0.12, legend=False,
        lines={"markersize": 9}, xscale="log", yscale="log", xlabel="labels N",
        ylabel="N · regret relative to its limit",
    )  # fmt: skip
    axes[0].set_title("Regret approaches its limit", pad=28)
    axes[1].axhline(MAX_RATIO, color="#444444", lw=1, ls=":")
    sources = summary[(summary["part"] == "sources") & (summary["what"] == "label_ratio")]
    statistical.interval_lines(
        axes[1], sources, "labels", "value", "pairs", looks, band=True, legend=False, lines={"markersize": 9},
        xscale="log", yscale="log", xlabel="labels N", ylabel="labels relative to the best design",
    )  # fmt: skip
    axes[1].set_xticks(settings.totals, [str(n) for n in settings.totals], fontsize=9)
    axes[1].xaxis.set_minor_formatter("")
    axes[1].set_title(tr("Sources of pairs (β = {beta:g})", beta=settings.beta), pad=46)
    _split_panel(axes[2], settings, summary)
    for ax in (axes[0], axes[2]):
        ax.yaxis.set_major_formatter(lambda value, place: f"{value:g}")
        ax.yaxis.set_minor_formatter(lambda value, place: f"{value:g}" if f"{value:.0e}"[0] in "235" else "")
    for ax, columns in zip(axes, (3, 3, 4), strict=True):
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, fontsize=10, borderaxespad=0.1,
                  columnspacing=1.0, handlelength=1.4)  # fmt: skip
    return drawing


def _split_panel(ax: Axes, settings: AnnotationBudget, summary: pd.DataFrame) -> None:
    """Draw regret against the share of the budget for demonstrations, one line for each price and source of pairs."""
    rows = summary[(summary["part"] == "split") & (summary["what"] == "regret") & (summary["pairs"] != "misjudged")]
    rows = rows.assign(line=rows["pairs"] + rows["demo_price"].map("{:g}".format))
    looks = {}
    for price, (grey, marker) in zip(settings.ratios, _PRICES, strict=False):
        label = "1 label" if price == 1 else f"{price:g} labels"
        looks[f"active{price:g}"] = style.Style(label, grey, grey, marker)
        looks[f"sft{price:g}"] = style.Style(f"_{label}", grey, grey, marker, dash="--", hollow=True)
    statistical.interval_lines(
        ax, rows, "share", "value", "line", looks, dodge=0.006, legend=False, yscale="log",
        xlabel="share of the budget for demonstrations", ylabel="regret [reward]",
    )  # fmt: skip
    ax.set_title("Cost of a demonstration (hollow: pairs of π_sft)", pad=28, fontsize=11)


def _text_figure(settings: AnnotationBudget, summary: pd.DataFrame) -> Figure:
    """Draw J of each strategy, and its difference from DPO on random pairs."""
    drawing, axes = style.subplots(1, 2, width=12, height=4.8, sharey=True)
    looks = {key: style.of(one.style, label=one.label) for key, one in STRATEGIES.items()}
    reference = interval_at(summary, "value", part="none", what="objective").mean
    axes[0].axvline(reference, color=style.colour("reference"), ls="--", label="π_ref")
    axes[1].axvline(0, color="#444444", lw=1)
    for ax, what, label, title in (
        (axes[0], "objective", f"J = reward − {settings.beta:g} KL [logits of a label]",
         f"J at equal cost ({settings.money:g} labels)"),
        (axes[1], "gain", "difference in J within a seed (95% each)", "Compared with DPO on random pairs"),
    ):  # fmt: skip
        # Both panels have a row for every strategy, also where the second has no difference to show.
        rows = summary[summary["what"] == what].set_index("part").reindex([*STRATEGIES]).reset_index()
        statistical.interval_points(ax, rows, "part", "value", looks=looks, legend=False, xlabel=label)
        ax.set_title(title, pad=24)
    axes[0].legend(handles=axes[0].lines[:1], loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.1)
    return drawing
