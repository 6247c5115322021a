"""What the experiment on why RSO should help tells: effects, and its picture, words and text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlhf_lab.experiments.claims.rso_why.settings import DIRECT
from rlhf_lab.experiments.rso_common import log_ticks, state_of
from rlhf_lab.experiments.statistics import Interval, mean_interval
from rlhf_lab.figures import style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from rlhf_lab.experiments.claims.rso_why.settings import RSOWhy


POLICIES = ("full", "limited")


# The effects.

FREE, SOURCE, CAPACITY, STATISTICS = "free labels", "pairs from π_r", "limited capacity", "statistics"
QUALITY, SOURCE_GOLD = "gold labels for r_φ's", "pairs from π*, gold labels"


def effects(settings: RSOWhy, runs: pd.DataFrame) -> dict[str, dict[str, Interval]]:
    """Gains of J by effect and policy, paired within seeds.

    free labels + pairs from π_r is the whole way from direct to rso-sample-rank. On exact scales pairs from π_r =
    limited capacity (what is left with endless pairs) + statistics (the rest). On text capacity is how much more the
    limited policy gains from π_r than the full one, and statistics is what the full one gains.
    """
    table = runs.pivot(index="seed", columns=["policy", "condition"], values="objective")

    def gain(policy: str, after: str, before: str) -> Any:
        return table[policy, after] - table[policy, before]

    def said(values: Any) -> Interval:
        return Interval(*mean_interval(values.to_numpy()))

    source = {policy: gain(policy, "rm r M", "rm ref M") for policy in POLICIES}
    found = {
        FREE: {policy: said(gain(policy, "rm ref M", DIRECT)) for policy in POLICIES},
        SOURCE: {policy: said(source[policy]) for policy in POLICIES},
        QUALITY: {policy: said(gain(policy, "gold ref M", "rm ref M")) for policy in POLICIES},
        SOURCE_GOLD: {policy: said(gain(policy, "gold star M", "gold ref M")) for policy in POLICIES},
    }
    if settings.exact:
        left = {policy: gain(policy, "rm r inf", "rm ref inf") for policy in POLICIES}
        found[CAPACITY] = {"limited": said(left["limited"])}
        found[STATISTICS] = {policy: said(source[policy] - left[policy]) for policy in POLICIES}
    else:
        found[CAPACITY] = {"limited": said(source["limited"] - source["full"])}
        found[STATISTICS] = {"full": said(source["full"])}
    return found


def how(intervals: dict[str, Interval]) -> str:
    """helps, hurts, …, of an explanation, over its policies."""
    state = state_of(list(intervals.values()))
    words = {"yes": "helps", "no": "hurts", "open": "is not decided"}
    if state == "mixed":
        helped = [policy for policy, one in intervals.items() if one.above]
        return f"helps the {helped[0]} policy"
    return words[state]


def signed(one: Interval) -> str:
    """A number with its sign, and its interval."""
    return f"{one.mean:+.3g} [{one.low:+.3g}, {one.high:+.3g}]"


NAMES = {
    DIRECT: "direct: N labels, π_ref",
    "rm ref N": "r_φ labels N pairs, π_ref",
    "rm ref M": "r_φ labels M pairs, π_ref",
    "rm r M": "r_φ labels M pairs, π_r",
    "rm ref inf": "r_φ labels endless pairs, π_ref",
    "rm r inf": "r_φ labels endless pairs, π_r",
    "gold ref M": "gold labels M pairs, π_ref",
    "gold star M": "gold labels M pairs, π*",
    "gold ref inf": "gold labels endless pairs, π_ref",
    "gold star inf": "gold labels endless pairs, π*",
    "gold r N": "N gold labels, π_r",
    "gold star N": "N gold labels, π*",
}
_ORDER = (
    DIRECT, "gold r N", "gold star N", "rm ref N", "rm ref M", "rm r M", "rm ref inf", "rm r inf", "gold ref M",
    "gold star M", "gold ref inf", "gold star inf",
)  # fmt: skip
_KEYS = {"ref": "rso-sft-sample-rank", "r": "rso-rso-sample-rank", "star": "optimal"}


def figure(settings: RSOWhy, summary: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """The result's picture. Arguments: its settings, its summary, its rows; returns a matplotlib figure."""
    drawing, (left, right) = style.subplots(1, 2, 14.5, 5.8, width_ratios=[1.0, 1.15])
    with style.use():
        _effects_panel(left, effects(settings, runs))
        _conditions_panel(right, settings, summary)
    return drawing


def _effects_panel(ax: Any, found: dict[str, dict[str, Interval]]) -> None:
    names = [FREE, SOURCE, CAPACITY, STATISTICS, QUALITY, SOURCE_GOLD]
    looks = {"full": ("s", style.colour("dpo"), 0.13), "limited": ("o", style.colour("policy"), -0.13)}
    for policy, (marker, colour, shift) in looks.items():
        rows = [(place, found[name][policy]) for place, name in enumerate(reversed(names)) if policy in found[name]]
        error = [[one.mean - one.low for _, one in rows], [one.high - one.mean for _, one in rows]]
        ax.errorbar(
            [one.mean for _, one in rows],
            [place + shift for place, _ in rows],
            xerr=error,
            fmt=marker,
            color=colour,
            capsize=3,
            label=f"{policy} policy",
        )
    ax.axvline(0, color="#999999", lw=1.2, ls="--", zorder=1)
    indent = {CAPACITY: "of this, ", STATISTICS: "of this, "}
    ax.set_yticks(range(len(names)), [indent.get(name, "") + name for name in reversed(names)])
    ax.set_ylim(-1.3, len(names) - 0.4)
    ax.set(title="What each thing brings", xlabel="gain of J [reward], 95% interval over seeds")
    ax.legend(loc="lower right", ncols=2)


def _conditions_panel(ax: Any, settings: RSOWhy, summary: pd.DataFrame) -> None:
    metric = "regret" if settings.exact else "objective"
    shown = [condition for condition in _ORDER if condition in settings.conditions]
    for policy, shift in (("full", 0.15), ("limited", -0.15)):
        table = summary[summary["policy"] == policy].set_index("condition")
        for place, condition in enumerate(reversed(shown)):
            row = table.loc[condition]
            look = style.of(_KEYS[condition.split(" ")[1]])
            low = row[metric] - row[f"{metric}_low"]
            if settings.exact:
                low = min(low, 0.9 * row[metric])
            face = look.light if policy == "full" else "white"
            ax.errorbar(
                [row[metric]],
                [place + shift],
                xerr=[[max(low, 0)], [max(row[f"{metric}_high"] - row[metric], 0)]],
                fmt="s" if policy == "full" else "o",
                color=look.light,
                mfc=face,
                capsize=3,
                ms=7,
            )
            if policy == "full" and row.get("closed_form", float("nan")) > 0:
                ax.plot([row["closed_form"]], [place + shift], "|", color="#111111", ms=13, mew=2, zorder=6)
    ax.set_yticks(range(len(shown)), [NAMES[condition] for condition in reversed(shown)])
    ax.set_ylim(-0.7, len(shown) - 0.4)
    if settings.exact:
        log_ticks(ax)
        bar = ", bar: price / N" if "closed_form" in summary else ""
        key = f"filled: full policy (endless gold labels: 0), hollow: limited{bar}"
        ax.set(title="Regret by pairs", xlabel="regret J(π*) − J(π) [reward, log scale]")
        ax.text(0.0, -0.17, key, transform=ax.transAxes, ha="left", va="top", fontsize=10)
    else:
        ax.set(title="J by pairs", xlabel="J = E[r*] − β KL [reward]\nfilled: full policy, hollow: limited")


def words(settings: RSOWhy, summary: pd.DataFrame, runs: pd.DataFrame) -> str:
    """The picture in words, for who cannot see it; numbers from the summary and the rows."""
    found = effects(settings, runs)
    left = "; ".join(
        f"{name}: " + ", ".join(f"{policy} {signed(one)}" for policy, one in parts.items())
        for name, parts in found.items()
    )
    metric = "regret" if settings.exact else "objective"
    table = summary.set_index(["policy", "condition"])[metric]
    right = "; ".join(
        f"{NAMES[condition]}: {table['full', condition]:.3g} and {table['limited', condition]:.3g}"
        for condition in settings.conditions
    )
    name = "Regret" if settings.exact else "J"
    return f"Gains of J with intervals. {left}. {name} of the full and the limited policy. {right}."


def text_of(settings: RSOWhy, summary: pd.DataFrame, runs: pd.DataFrame) -> str:
    """The short text below the verdict, every number of it from the summary or the rows."""
    found = effects(settings, runs)
    table: Any = summary.set_index(["policy", "condition"])

    def both(name: str) -> str:
        return " and ".join(f"{signed(one)} ({policy})" for policy, one in found[name].items())

    out = [
        f"From direct to sft-sample-rank, that is from {settings.labels} labels to {settings.pairs} pairs labelled for "
        f"nothing, J changes by {both(FREE)}; from π_ref's pairs to π_r's by {both(SOURCE)}."
    ]
    if settings.exact:
        same = settings.scale == "bandit"
        out.append(
            "The bandit's reward model is a table, as the full policy is: endless labels of it lead back to the very "
            "policy that direct has already (J differs by "
            f"{table.loc[('full', 'rm ref inf'), 'objective'] - table.loc[('full', DIRECT), 'objective']:.1g}), and "
            "finitely many blur it."
            if same
            else "The tree's reward model knows the form of the reward (tokens in places and pairs of neighbours), "
            "the full policy does not: what the labels say of other responses reaches it through the reward model."
        )
        limited = found[CAPACITY]["limited"]
        regret = table["regret"]
        out.append(
            "With endless pairs the full policy is at the optimum of r_φ whatever the pairs; the limited one ends at "
            f"a regret of {regret['limited', 'rm ref inf']:.3g} with pairs of π_ref and "
            f"{regret['limited', 'rm r inf']:.3g} with pairs of π_r (difference {signed(limited)})."
        )
        weighs = (
            "Between responses of π* the loss weighs errors of the implicit reward as the regret does, to second order "
            "their variance under π* over 2β"
        )
        if limited.above:
            out.append(f"{weighs}; pairs of π_ref spend the few numbers on responses that π* hardly gives.")
        elif limited.below:
            out.append(
                f"{weighs}. But the regret is β KL(π‖π*), a mean over the policy's own responses: pairs of π_r are "
                "silent on what π_r hardly gives, and a policy whose few numbers are set elsewhere may give just that."
            )
        else:
            out.append(
                f"Two things pull against each other. {weighs}, which speaks for pairs of π_r; but the regret is "
                "β KL(π‖π*), a mean over the policy's own responses, and pairs of π_r are silent on what π_r hardly "
                "gives."
            )
        out.append(
            f"With finitely many pairs the rest of the difference is {both(STATISTICS)}"
            + (
                ": fewer of the labels fall on what π_r seldom gives, and there the policy stays wrong for longer."
                if all(one.below for one in found[STATISTICS].values())
                else "."
            )
        )
    else:
        out.append(
            f"The limited policy, which may set biases and norms alone, gains {signed(found[CAPACITY]['limited'])} "
            "more from π_r's pairs than the full one does. Of the full one it is not known whether it is full: endless "
            "pairs cannot be had here."
        )
    out.append(
        f"Gold labels in place of r_φ's on as many pairs would bring {both(QUALITY)}, and with gold labels pairs of π* "
        f"bring {both(SOURCE_GOLD)}."
    )
    if "closed_form" in table:
        names = {"ref": DIRECT, "r": "gold r N", "star": "gold star N"}
        price = {name: table.loc[("full", key), "closed_form"] for name, key in names.items()}
        real = {name: table.loc[("full", key), "regret"] for name, key in names.items()}
        out.append(
            f"With {settings.labels} gold labels the regret of a full table should be, to leading order (label_price), "
            f"{price['ref']:.3g} with pairs of π_ref, {price['r']:.3g} of π_r and {price['star']:.3g} of π*; the fits, "
            f"which have a prior, came to {real['ref']:.3g}, {real['r']:.3g} and {real['star']:.3g}."
        )
    return " ".join(out)
