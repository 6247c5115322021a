"""Decision and picture of claim 6: ReST step by step, beside other methods and the limit of its filter."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rlhf_lab.experiments import statistics
from rlhf_lab.experiments.claims.rest_translation.settings import FRONTIER, LOSSES, ReSTTranslation
from rlhf_lab.experiments.verdicts import Number, Verdict, outcome_of, side
from rlhf_lab.language import tr

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rlhf_lab.figures.style import Style

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
    widest = max(gaps, key=lambda tau: gaps[tau])
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


def _styles(settings: ReSTTranslation) -> dict[str, Style]:
    """The styles of the methods beside ReST, by condition."""
    from rlhf_lab.figures import style

    return {
        "weighted": style.of("reward", label="weighted SFT", dash="none"),
        **{name: style.of(name, dash="none") for name in ("raft", "dpo", "ppo")},
        "best-of-n": style.of("best-of-n", label=tr("best of {n}", n=settings.best_of), dash="none"),
    }


def figure(settings: ReSTTranslation, summary: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Draw the gain in reward step by step, and beside it the gain against the KL."""
    from rlhf_lab.figures import style

    drawing, (left, right) = style.subplots(1, 2, width=13.5, height=5.4)
    _steps_panel(left, settings, summary)
    _kl_panel(right, settings, summary)
    return drawing


def _steps_panel(ax: Axes, settings: ReSTTranslation, summary: pd.DataFrame) -> None:
    """Draw the gain in r_φ (full marks) and in the gold reward (hollow marks) of every condition."""
    import pandas as pd

    from rlhf_lab.figures import statistical, style

    steps = ["BC", *settings.first_names, *settings.second_names]
    others = _styles(settings)
    places = {name: place for place, name in enumerate([*steps, *others])}
    methods = {"rest": style.of("rest"), **others}
    looks, rows = {}, []
    for shift, metric, words in (
        (-0.08, "proxy_gain", "ReST: r_φ, which the filter uses"),
        (0.08, "gold_gain", "ReST: gold reward"),
    ):
        hollow = metric == "gold_gain"
        part = summary[summary["condition"].isin(places)]
        columns = {f"{metric}{end}": f"gain{end}" for end in ("", "_low", "_high")}
        part = part[["condition", *columns]].rename(columns=columns)
        method = part["condition"].where(part["condition"].isin(list(others)), "rest")
        rows.append(part.assign(place=part["condition"].map(places) + shift, line=method + metric))
        for name, look in methods.items():
            dash = "none" if name != "rest" else "--" if hollow else "-"
            label = words if name == "rest" else "_"
            looks[name + metric] = replace(look, label=label, dash=dash, hollow=hollow)
    with style.use():
        ax.axhline(0, color="#999999", lw=1)
        ax.axvline(len(steps) - 0.5, color="#CCCCCC", lw=1)
        statistical.interval_lines(
            ax, pd.concat(rows), "place", "gain", "line", looks, legend=False, title="Gain over π_ref, step by step",
            xlabel="steps of ReST (G: Grow, I: Improve), then other methods", ylabel="gain [logits of a label]",
        )  # fmt: skip
        names = [*steps, *(look.label for look in others.values())]
        ax.set_xticks(range(len(places)), names, rotation=50, ha="right", rotation_mode="anchor")
        low, high = ax.get_ylim()
        ax.set_ylim(low, high + 0.22 * (high - low))
        ax.legend(loc="upper left")


def _kl_panel(ax: Axes, settings: ReSTTranslation, summary: pd.DataFrame) -> None:
    """Draw the gain in r_φ against the KL: π*, the filter's limits, ReST's trajectory, and the other methods."""
    import pandas as pd

    from rlhf_lab.figures import statistical, style

    where = "" if settings.exact else " (on the samples)"
    others = _styles(settings)
    groups = {
        f"π* of r_φ{where}": [f"frontier {share:g}" for share in FRONTIER],
        "ReST as trained": ["BC", *settings.first_names, *settings.second_names],
        f"limit of the filter{where}": [f"limit {tau:g}" for tau in settings.thresholds],
        **{look.label: [name] for name, look in others.items()},
    }
    styles = [style.of("optimal", marker=""), style.of("rest"), style.of("rest", marker="o", hollow=True, dash="none")]
    looks = {label: replace(look, label=label) for label, look in zip(groups, [*styles, *others.values()], strict=True)}
    table: Any = summary.set_index("condition")
    # Filters through which the same samples pass have the same limit.
    rows = [table.loc[names].drop_duplicates("kl").assign(line=label) for label, names in groups.items()]
    frame = pd.concat(rows)
    frame.loc[frame["line"].isin([*groups][:2]), ["proxy_gain_low", "proxy_gain_high"]] = math.nan
    statistical.interval_lines(
        ax, frame, "kl", "proxy_gain", "line", looks, title="Gain in r_φ against the KL",
        xlabel="KL(π‖π_ref) [nats]", ylabel="gain in r_φ over π_ref [logits of a label]", lines={"markersize": 9},
    )  # fmt: skip
