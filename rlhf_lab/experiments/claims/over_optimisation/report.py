"""Decision and picture of claim 7: where the gold reward peaks along a trajectory, and how far it falls afterwards."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from rlhf_lab.experiments.claims.over_optimisation.settings import MARGIN, REACH, OverOptimisation
from rlhf_lab.experiments.claims.over_optimisation.trajectories import POINT, TRAINED, TRAJECTORY
from rlhf_lab.experiments.statistics import holm_intervals, in_row, mean_of
from rlhf_lab.experiments.verdicts import Number, Verdict, outcome_of, side
from rlhf_lab.figures import statistical, style
from rlhf_lab.intervals import Interval
from rlhf_lab.language import tr

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METHODS = ("best-of-n", *TRAINED)
"""The methods whose trajectories are recorded."""
DECISIVE = ("best-of-n", "ppo")
"""The methods of the rule, those of the source."""
DECISIVE_KIND = "extrapolating"
"""The kind of reward model that the rule judges on the exact scales. On text there is one kind, "full"."""
KINDS = {
    "full": ("plug-in", "o", "any reward"),
    "noisy": ("wrong", "x", "any reward (noisy labels)"),
    "limited": ("reward", "s", "a part of the gold reward"),
    "saturating": ("rest", "^", "any reward (gold saturates)"),
    "extrapolating": ("policy", "D", "features (gold saturates)"),
}
"""Reward models of the exact scales, each with its style, its marker and what it can represent."""
FALL = "peak to end [logits of a label]"


def turn(rows: pd.DataFrame, most: pd.Series) -> pd.DataFrame:
    """Return what one trajectory does between the peak of the gold reward, found on the other seeds, and its end.

    Args:
        rows: its rows, of all seeds.
        most: seed → the maximum of the proxy reward.

    Returns:
        one row for each seed with `fall`, the gold reward at the peak minus that at the end, and `rise`, the proxy
        reward at the end minus that at the peak. The other columns are the same for all seeds: `gain` of the mean gold
        reward from π_ref to its peak, √KL at that `peak` and at the `end`, and `reach`, the mean proxy reward at the
        end relative to its maximum.
    """
    gold, proxy, kl = (
        rows.pivot(index="seed", columns=POINT, values=name).to_numpy(float) for name in ("gold", "proxy", "kl")
    )
    others = gold.sum(0) - gold if len(gold) > 1 else gold
    seeds, peaks = np.arange(len(gold)), others.argmax(1)
    mean, root = gold.mean(0), np.sqrt(kl.clip(min=0)).mean(0)
    top = mean.argmax()
    reach = (proxy[:, -1] / most.sort_index().to_numpy()).mean()
    falls, rises = gold[seeds, peaks] - gold[:, -1], proxy[:, -1] - proxy[seeds, peaks]
    of_all = {"gain": mean[top] - mean[0], "peak": root[top], "end": root[-1], "reach": reach}
    return pd.DataFrame({"fall": falls, "rise": rises, **of_all})


def sign(turned: pd.DataFrame, fall: Interval) -> int:
    """+1 if a trajectory turns, −1 if it stays high, 0 if this is open; `fall` has the interval of the rule."""
    if fall.above and mean_of(turned["rise"]).above:
        return 1
    gain, reach = turned[["gain", "reach"]].iloc[0]
    return -int(fall.high < MARGIN * gain and reach >= REACH)


def turns(rows: pd.DataFrame) -> dict[tuple[str, str, int], pd.DataFrame]:
    """Return the `turn` of every trajectory, by its name, kind of reward model and number of labels."""
    most = rows.groupby(["kind", "labels", "seed"])["proxy"].max()
    groups: Any = rows.groupby([TRAJECTORY, "kind", "labels"], sort=False)
    return {(str(name), str(kind), int(n)): turn(part, most[kind, n]) for (name, kind, n), part in groups}


def peak_shifts(settings: OverOptimisation, rows: pd.DataFrame) -> np.ndarray:
    """Return √KL at the peak of the gold reward with the most labels minus that with the fewest, for each seed.

    The peak is found in each seed. A trajectory that does not turn has it at its end. The difference is averaged over
    the two methods of the rule.
    """
    few, many = settings.labels[0], settings.labels[-1]
    decisive = rows[(rows["kind"] == decisive_kind(settings)) & rows[TRAJECTORY].isin(DECISIVE)].reset_index(drop=True)
    peaks = decisive.loc[decisive.groupby(["seed", TRAJECTORY, "labels"])["gold"].idxmax()]
    root = peaks.assign(root=peaks["kl"].clip(lower=0) ** 0.5).pivot(
        index=["seed", TRAJECTORY], columns="labels", values="root"
    )
    return (root[many] - root[few]).groupby("seed").mean().to_numpy()


def decisive_kind(settings: OverOptimisation) -> str:
    """Return the kind of reward model that the rule judges."""
    return DECISIVE_KIND if settings.exact else "full"


def key_of(name: str, kind: str, labels: int) -> str:
    """Return the end of the names of a trajectory's numbers, such as `best_of_n_50`."""
    return f"{name.replace('-', '_')}_{labels}" if kind == "full" else f"{name.replace('-', '_')}_{kind}_{labels}"


def numbers_of(
    settings: OverOptimisation, summary: pd.DataFrame, found: dict[tuple[str, str, int], pd.DataFrame]
) -> dict[str, Number]:
    """Return the numbers of a result by name, such as `fall_ppo_50` for PPO with 50 labels.

    `gold_…` and `proxy_…` are the gains in both rewards at the end of a trajectory, `reach_…` the share of the proxy's
    maximum there.
    """
    few, many = settings.labels[0], settings.labels[-1]
    numbers: dict[str, Number] = {"labels_few": few, "labels_many": many}
    ends: Any = summary.groupby([TRAJECTORY, "kind", "labels"]).last()
    for (name, kind, labels), turned in found.items():
        key = key_of(name, kind, labels)
        if kind in ("full", DECISIVE_KIND) and labels in (few, many):
            numbers |= {f"{what}_{key}": mean_of(turned[what]) for what in ("fall", "rise")}
            of_all = turned.iloc[0]
            numbers |= {f"{what}_{key}": float(of_all[what]) for what in ("reach", "gain", "peak", "end")}
            end = ends.loc[(name, kind, labels)]
            numbers |= {f"{reward}_{key}": in_row(end, reward) for reward in ("gold", "proxy")}
            numbers[f"margin_{key}"] = float(MARGIN * of_all["gain"])
        elif name == "optimum":
            numbers[f"fall_{key}"] = mean_of(turned["fall"])
    return numbers


def decide(settings: OverOptimisation, summary: pd.DataFrame, rows: pd.DataFrame) -> Verdict:
    """Apply the rule (`settings.RULE`) to the rows."""
    found, few, kind = turns(rows), settings.labels[0], decisive_kind(settings)
    decisive = {key_of(name, kind, few): found[name, kind, few] for name in DECISIVE}
    compared = {f"fall_{key}": turned["fall"].to_numpy() for key, turned in decisive.items()}
    intervals = holm_intervals(compared | {"peak_shift": peak_shifts(settings, rows)})
    signs = [sign(turned, intervals[f"fall_{key}"]) for key, turned in decisive.items()] + [
        side(intervals["peak_shift"])
    ]
    numbers: dict[str, Any] = numbers_of(settings, summary, found) | intervals
    thresholds = {f"fall_{key}": numbers[f"margin_{key}"] for key in decisive} | {"peak_shift": 0.0}
    return Verdict(outcome_of(signs), numbers, thresholds | {f"reach_{key}": REACH for key in decisive})


def styles() -> dict[str, style.Style]:
    """Return the style of each trajectory, in the order of the legend."""
    return {
        "optimum": style.of("plug-in", label="optimum of the proxy"),
        "best-of-n": style.of("best-of-n", label="best of n"),
        "ppo": style.of("ppo"),
        "dpo": style.of("dpo"),
        "rso": style.of("rso", label="RSO"),
    }


@style.use()
def figure(settings: OverOptimisation, summary: pd.DataFrame, rows: pd.DataFrame) -> Figure:
    """Draw gold and proxy reward over √KL with few and with many labels, and the falls of the gold reward."""
    from matplotlib.lines import Line2D

    drawing, axes = style.subplots(1, 3, width=17, height=5.2)
    for ax, labels in zip(axes, (settings.labels[0], settings.labels[-1]), strict=False):
        _rewards(ax, summary[(summary["kind"] == decisive_kind(settings)) & (summary["labels"] == labels)])
        ax.set(
            title=tr("Gold and proxy, {labels:,} labels", labels=labels), xlabel="√KL(π‖π_ref) [√nats]",
            ylabel="gain over π_ref [logits of a label]",
        )  # fmt: skip
    low, high = min(ax.get_ylim()[0] for ax in axes[:2]), max(ax.get_ylim()[1] for ax in axes[:2])
    for ax in axes[:2]:
        ax.set_ylim(low, high + 0.3 * (high - low))
    axes[0].legend(loc="upper left", ncols=2, fontsize=10)
    lines = [Line2D([], [], color="#444444", ls=ls, label=label) for ls, label in (("-", "gold"), ("--", "proxy"))]
    axes[1].legend(handles=lines, loc="upper left", ncols=2, fontsize=10)
    falls = [
        turned.assign(method=name, kind=kind, labels=labels) for (name, kind, labels), turned in turns(rows).items()
    ]
    (_falls_by_kind if settings.exact else _falls_by_method)(axes[2], settings, pd.concat(falls))
    for ax in axes:
        ax.axhline(0, color="#999999", lw=1, zorder=1)
    return drawing


def _rewards(ax: Axes, summary: pd.DataFrame) -> None:
    """Draw both rewards of every trajectory from π_ref to its end, with the interval of the gold reward."""
    import seaborn as sns

    for name, shown in styles().items():
        part = summary[summary[TRAJECTORY] == name].sort_values(POINT)
        if part.empty:
            continue
        line = shown.line() | {"sort": False, "estimator": None, "legend": False, "ax": ax}
        marks = {"markevery": max(len(part) // 6, 1), "markersize": 6, "label": shown.label}
        sns.lineplot(part, x="root_kl", y="gold", **line, **marks)
        sns.lineplot(part, x="root_kl", y="proxy", **line | {"linestyle": "--", "marker": "", "linewidth": 1.3})
        ax.fill_between(part["root_kl"], part["gold_low"], part["gold_high"], color=shown.light, alpha=0.12, lw=0)


def _falls_by_kind(ax: Axes, settings: OverOptimisation, falls: pd.DataFrame) -> None:
    """Draw the falls of the proxy's optimum over the number of labels, by kind of reward model."""
    looks = {kind: style.of(key, label=label, marker=mark, dash="-") for kind, (key, mark, label) in KINDS.items()}
    statistical.interval_lines(
        ax, falls[falls["method"] == "optimum"], "labels", "fall", "kind", looks, dodge=0.06, legend=False,
        xscale="log", title="Fall of gold, optimum of the proxy", xlabel="labels of the reward model", ylabel=FALL,
    )  # fmt: skip
    ax.set_xticks(settings.labels, [f"{labels:,}" for labels in settings.labels])
    ax.minorticks_off()
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.5 * (high - low))
    ax.legend(title="The reward model can represent", loc="upper right", fontsize=10)


def _falls_by_method(ax: Axes, settings: OverOptimisation, falls: pd.DataFrame) -> None:
    """Draw the falls of every trajectory on text, by method and number of labels."""
    named = styles()
    falls = falls.sort_values("method", key=lambda column: column.map(METHODS.index), kind="stable")
    conditions = [
        f"{named[name].label}\n{n:,} labels" for name, n in zip(falls["method"], falls["labels"], strict=True)
    ]
    methods = dict(zip(conditions, falls["method"], strict=True))
    looks = {condition: replace(named[name], label=condition) for condition, name in methods.items()}
    statistical.interval_points(
        ax, falls.assign(condition=conditions), "condition", "fall", None, looks, vertical=True,
        title="Fall of gold from its peak", xlabel="method and labels of the reward model", ylabel=FALL,
    )  # fmt: skip
    ax.tick_params(axis="x", labelsize=9)
