"""Decision and picture of the experiment on why RSO's pairs should help: gains in J by cause and by policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlhf_lab.experiments.claims.rso_why.settings import DIRECT, POLICIES, RSOWhy
from rlhf_lab.experiments.statistics import holm_intervals, mean_of
from rlhf_lab.experiments.verdicts import Number, Verdict, outcome_of, side
from rlhf_lab.figures import statistical, style
from rlhf_lab.intervals import Interval

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EFFECTS = {
    "more_labels": "additional labels",
    "pi_r_pairs": "pairs from π_r",
    "capacity": "of this, limited capacity",
    "statistics": "of this, statistics",
    "gold_labels": "gold labels instead of r_φ's",
    "pi_star_pairs": "pairs from π*, gold labels",
}
"""Names of the effects → how the picture names them."""
CONDITIONS = {
    DIRECT: "direct: N labels, π_ref",
    "gold r N": "N gold labels, π_r",
    "gold star N": "N gold labels, π*",
    "rm ref N": "N labels of r_φ, π_ref",
    "rm ref M": "M labels of r_φ, π_ref",
    "rm r M": "M labels of r_φ, π_r",
    "rm ref inf": "infinitely many labels of r_φ, π_ref",
    "rm r inf": "infinitely many labels of r_φ, π_r",
    "gold ref M": "M gold labels, π_ref",
    "gold star M": "M gold labels, π*",
    "gold ref inf": "infinitely many gold labels, π_ref",
    "gold star inf": "infinitely many gold labels, π*",
}
"""Conditions → how the picture names them, from top to bottom."""
NEGLIGIBLE = 1e-6
"""A regret below this is zero up to the precision of the fits."""


def effects(settings: RSOWhy, runs: pd.DataFrame) -> dict[str, dict[str, Interval]]:
    """Return the gains in J by effect and policy, paired within seeds.

    `more_labels` + `pi_r_pairs` is the whole step from direct to rso-sample-rank. On exact scales `pi_r_pairs` =
    `capacity` (the gain that remains with infinitely many pairs) + `statistics` (the rest). On text `capacity` is how
    much more the limited policy gains from π_r than the full one, and `statistics` is the gain of the full one. The
    intervals of `pi_r_pairs`, which decide, are corrected for two comparisons.
    """
    table = runs.pivot(index="seed", columns=["policy", "condition"], values="objective")

    def gain(policy: str, after: str, before: str) -> Any:
        return table[policy, after] - table[policy, before]

    source = {policy: gain(policy, "rm r M", "rm ref M") for policy in POLICIES}
    if settings.exact:
        limit = {policy: gain(policy, "rm r inf", "rm ref inf") for policy in POLICIES}
        capacity, statistics = limit["limited"], {policy: source[policy] - limit[policy] for policy in POLICIES}
    else:
        capacity, statistics = source["limited"] - source["full"], {"full": source["full"]}
    found = {
        "more_labels": {policy: gain(policy, "rm ref M", DIRECT) for policy in POLICIES},
        "pi_r_pairs": source,
        "capacity": {"limited": capacity},
        "statistics": statistics,
        "gold_labels": {policy: gain(policy, "gold ref M", "rm ref M") for policy in POLICIES},
        "pi_star_pairs": {policy: gain(policy, "gold star M", "gold ref M") for policy in POLICIES},
    }
    intervals = {name: {policy: mean_of(one) for policy, one in gains.items()} for name, gains in found.items()}
    return intervals | {"pi_r_pairs": holm_intervals(source)}


def decide(settings: RSOWhy, summary: pd.DataFrame, runs: pd.DataFrame) -> Verdict:
    """Apply the rule (`settings.RULE`), and name the numbers, such as `regret_full_rm_r_m`."""
    found = effects(settings, runs)
    numbers: dict[str, Number] = {
        f"{name}_{policy}": one for name, gains in found.items() for policy, one in gains.items()
    }
    metric = "regret" if settings.exact else "objective"
    names = {metric: metric} | ({"expected_regret": "closed_form"} if "closed_form" in summary else {})
    for name, column in names.items():
        part = summary[summary[column].notna()][["policy", "condition", column, f"{column}_low", f"{column}_high"]]
        for policy, condition, *ends in part.itertuples(index=False):
            numbers[f"{name}_{policy}_{condition.replace(' ', '_').lower()}"] = Interval(*ends)
    thresholds = {f"pi_r_pairs_{policy}": 0.0 for policy in POLICIES}
    return Verdict(outcome_of(map(side, found["pi_r_pairs"].values())), numbers, thresholds)


def figure(settings: RSOWhy, summary: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Draw the gains in J by effect, and the regret (on text J) of every condition."""
    looks = {
        "full": style.of("dpo", label="full policy", marker="s"),
        "limited": style.of("policy", label="limited policy", marker="o"),
    }
    drawing, (left, right) = style.subplots(1, 2, 14.5, 5.8, width_ratios=[1.0, 1.15])
    with style.use():
        _effects_panel(left, effects(settings, runs), looks)
        _conditions_panel(right, settings, summary, looks)
        statistical.legend_below(drawing, left, right)
    return drawing


def _effects_panel(ax: Axes, found: dict[str, dict[str, Interval]], looks: Any) -> None:
    import pandas as pd

    rows = [(name, policy, *found[name][policy]) for name in EFFECTS for policy in found[name]]
    frame = pd.DataFrame(rows, columns=["effect", "policy", "gain", "gain_low", "gain_high"])
    ax.axvline(0, color="#999999", lw=1.2, ls="--", zorder=1)
    statistical.interval_points(
        ax, frame, "effect", "gain", "policy", looks, names=EFFECTS, legend=False, title="Gain in J by cause",
        xlabel="gain in J [reward], 95% interval over seeds",
    )  # fmt: skip


def _conditions_panel(ax: Axes, settings: RSOWhy, summary: pd.DataFrame, looks: Any) -> None:
    metric = "regret" if settings.exact else "objective"
    shown = [condition for condition in CONDITIONS if condition in settings.conditions]
    # A row that a logarithmic axis cannot show stays, without a value: its category keeps its place.
    table = summary.set_index("condition").loc[shown].reset_index()
    names = {condition: CONDITIONS[condition] for condition in shown}
    if not settings.exact:
        statistical.interval_points(
            ax, table, "condition", metric, "policy", looks, names=names, legend=False, title="J by pairs",
            xlabel="J = E[r*] − β KL [reward]",
        )  # fmt: skip
        return
    zero = table["regret"] < NEGLIGIBLE
    table["regret_low"] = table["regret_low"].clip(lower=0.1 * table["regret"])
    table.loc[zero, ["regret", "regret_low", "regret_high"]] = float("nan")
    statistical.interval_points(
        ax, table, "condition", metric, "policy", looks, names=names, legend=False, title="Regret by pairs",
        xlabel="regret J(π*) − J(π) [reward, log scale]",
    )  # fmt: skip
    statistical.log_ticks(ax)
    for condition in table.loc[zero, "condition"]:
        ax.text(
            0.01, shown.index(condition) - 0.13, "full policy: 0", transform=ax.get_yaxis_transform(), va="center",
            color=looks["full"].light, fontsize=10,
        )  # fmt: skip
    if "closed_form" in summary:
        exact = table[table["closed_form"].notna()]
        places = [shown.index(condition) - 0.13 for condition in exact["condition"]]
        label = "expected regret of a table (label price / N)"
        ax.scatter(exact["closed_form"], places, 160, marker="|", c="#111111", linewidths=2, zorder=6, label=label)
