"""Decision and picture of claim 6: ReST step by step, beside other methods and the limit of its filter."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from rlhf_lab.experiments import statistics
from rlhf_lab.experiments.claims.rest_translation.settings import FRONTIER, LOSSES, ReSTTranslation
from rlhf_lab.experiments.verdicts import Number, Verdict, outcome_of, side
from rlhf_lab.figures import statistical, style
from rlhf_lab.language import tr

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PARTS = ("improve_proxy", "grow_proxy", "over_ppo_proxy")
"""The parts (1), (2) and (3) of the rule."""
METRICS = ("proxy_gain", "gold_gain", "kl", "regret", "bleu", "distinct")


def numbers_of(settings: ReSTTranslation, summary: pd.DataFrame, runs: pd.DataFrame) -> dict[str, Number]:
    """Return the numbers of a result by name.

    `kl_dpo` is the KL of a condition. `over_dpo_proxy` is r_φ of ReST less that of another method, paired within seeds.
    """
    first, second = settings.first_names[-1], settings.second_names[-1]
    conditions = {"reference": "BC", "clone": "G1 I0", "first": first, "second": second, "optimum": "optimum",
                  "limit": f"limit {settings.thresholds[-1]:g}", "best_of_n": "best-of-n",
                  **{name: name for name in (*LOSSES, "ppo")}}  # fmt: skip
    table: Any = summary.set_index("condition")
    numbers: dict[str, Number] = {}
    for name, condition in conditions.items():
        for metric in METRICS:
            if condition in table.index and metric in table and not math.isnan(table.loc[condition, metric]):
                numbers[f"{metric}_{name}"] = statistics.in_row(table.loc[condition], metric)
    numbers["passed_first"] = statistics.in_row(table.loc[first], "kept")
    numbers |= {f"samples_{name}": int(table.loc[one, "samples"]) for name, one in (("second", second), ("ppo", "ppo"))}
    gaps = {tau: float(table.loc[f"limit {tau:g}", "gap"]) for tau in settings.thresholds}
    widest = max(gaps, key=gaps.__getitem__)
    return numbers | {"widest_gap": gaps[widest], "widest_gap_threshold": widest} | _differences(settings, runs)


def _differences(settings: ReSTTranslation, runs: pd.DataFrame) -> dict[str, Number]:
    """The differences within seeds. Those of `PARTS` decide and are corrected for their number."""
    first, second = settings.first_names[-1], settings.second_names[-1]
    compared = {"improve": (first, settings.first_names[0]), "grow": (second, first), "over_ppo": (second, "ppo"),
                **{f"over_{name}": (first, name) for name in LOSSES}}  # fmt: skip
    trained = runs[~runs["condition"].str.match("limit|frontier")]
    found = {
        f"{name}_{metric}": statistics.paired(trained, "condition", one, other, metric)
        for name, (one, other) in compared.items()
        for metric in ("proxy", "gold")
    }
    found["limit_gap"] = runs[runs["condition"] == f"limit {settings.thresholds[-1]:g}"]["gap"].to_numpy()
    numbers: dict[str, Number] = {name: statistics.mean_of(values) for name, values in found.items()}
    return numbers | statistics.holm_intervals({name: found[name] for name in PARTS})


def decide(settings: ReSTTranslation, summary: pd.DataFrame, runs: pd.DataFrame) -> Verdict:
    """Apply the rule (`settings.RULE`) to the numbers."""
    numbers: dict[str, Any] = numbers_of(settings, summary, runs)
    return Verdict(outcome_of(side(numbers[name]) for name in PARTS), numbers, dict.fromkeys(PARTS, 0.0))


def _styles(settings: ReSTTranslation) -> dict[str, style.Style]:
    """The styles of the methods beside ReST, by condition."""
    return {
        "weighted": style.of("reward", label="weighted SFT", dash="none"),
        **{name: style.of(name, dash="none") for name in ("raft", "dpo", "ppo")},
        "best-of-n": style.of("best-of-n", label=tr("best of {n}", n=settings.best_of), dash="none"),
    }


def figure(settings: ReSTTranslation, summary: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Draw the gain in reward step by step, and beside it the gain against the KL."""
    drawing, (left, right) = style.subplots(1, 2, width=13.5, height=5.4)
    _steps_panel(left, settings, summary)
    _kl_panel(right, settings, summary)
    return drawing


@style.use()
def _steps_panel(ax: Axes, settings: ReSTTranslation, summary: pd.DataFrame) -> None:
    """Draw the gain in r_φ (full marks) and in the gold reward (hollow marks) of every condition."""
    steps = ["BC", *settings.first_names, *settings.second_names]
    others = _styles(settings)
    places = {name: place for place, name in enumerate([*steps, *others])}
    rows = summary[summary["condition"].isin(places)]
    rows = rows.assign(method=rows["condition"].where(rows["condition"].isin([*others]), "rest"))
    ax.axhline(0, color="#999999", lw=1)
    ax.axvline(len(steps) - 0.5, color="#CCCCCC", lw=1)
    for metric, shift, rest in (
        ("proxy_gain", -0.08, style.of("rest", label="ReST: r_φ, which the filter uses")),
        ("gold_gain", 0.08, style.of("rest", label="ReST: gold reward", dash="--", hollow=True)),
    ):
        looks = {name: replace(look, label="_", hollow=rest.hollow) for name, look in others.items()}
        statistical.interval_lines(
            ax, rows.assign(place=rows["condition"].map(places) + shift), "place", metric, "method",
            {"rest": rest, **looks}, legend=False, title="Gain over π_ref, step by step",
            xlabel="steps of ReST (G: Grow, I: Improve), then other methods", ylabel="gain [logits of a label]",
        )  # fmt: skip
    names = [*steps, *(look.label for look in others.values())]
    ax.set_xticks(range(len(places)), names, rotation=50, ha="right", rotation_mode="anchor")
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.22 * (high - low))
    ax.legend(loc="upper left")


def _kl_panel(ax: Axes, settings: ReSTTranslation, summary: pd.DataFrame) -> None:
    """Draw the gain in r_φ against the KL: π*, the filter's limits, ReST's trajectory, and the other methods."""
    where = "" if settings.exact else " (on the samples)"
    optima, trained, limits = f"π* of r_φ{where}", "ReST as trained", f"limit of the filter{where}"
    conditions = {
        optima: [f"frontier {share:g}" for share in FRONTIER],
        trained: ["BC", *settings.first_names, *settings.second_names],
        limits: [f"limit {tau:g}" for tau in settings.thresholds],
        **{look.label: [name] for name, look in _styles(settings).items()},
    }
    looks = {
        optima: style.of("optimal", label=optima, marker=""),
        trained: style.of("rest", label=trained),
        limits: style.of("rest", label=limits, marker="o", hollow=True, dash="none"),
        **{look.label: look for look in _styles(settings).values()},
    }
    table: Any = summary.set_index("condition")
    # Filters through which the same samples pass have the same limit.
    rows = [table.loc[names].drop_duplicates("kl").assign(line=line) for line, names in conditions.items()]
    frame = pd.concat(rows)
    frame.loc[frame["line"].isin([optima, trained]), ["proxy_gain_low", "proxy_gain_high"]] = math.nan
    statistical.interval_lines(
        ax, frame, "kl", "proxy_gain", "line", looks, title="Gain in r_φ against the KL",
        xlabel="KL(π‖π_ref) [nats]", ylabel="gain in r_φ over π_ref [logits of a label]", lines={"markersize": 9},
    )  # fmt: skip
