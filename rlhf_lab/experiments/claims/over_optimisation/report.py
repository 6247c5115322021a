"""What the experiment on over-optimisation tells: turns, and its picture, words and text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rlhf_lab.experiments import runner
from rlhf_lab.experiments.claims.over_optimisation.trajectories import KEYS, TRAINED
from rlhf_lab.experiments.statistics import Interval, mean_interval
from rlhf_lab.figures import style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from rlhf_lab.experiments.claims.over_optimisation.settings import OverOptimisation


METHODS = ("best-of-n", "ppo", "dpo", "rso")
"""The four of the claim, in the order of the verdict."""
KINDS = {
    "full": "can be any reward",
    "noisy": "the same, some labels turned round",
    "limited": "sees a part of what gold sees",
}
"""Reward models of the exact scales."""
MARGIN = 0.1
"""A road does not turn if its fall is surely less than this share of what gold gained on it."""
FAR = 1.0
"""√KL, √nats, that a road must reach before it can be said not to turn."""


def is_exact(settings: OverOptimisation) -> bool:
    """Whether the scale's distances are exact."""
    return settings.scale in runner.EXACT_SCALES


@dataclass(frozen=True)
class Turn:
    """What one road does from gold's peak, found on other seeds, to its end."""

    fall: Interval
    """Gold at the peak less gold at the end, paired within seeds."""
    rise: Interval
    """Proxy at the end less proxy at the peak."""
    gain: float
    """What mean gold gained from π_ref to its highest place."""
    root_kl: float
    """√KL at the highest place of the mean, √nats."""
    end_root_kl: float
    """√KL at the end."""

    @property
    def status(self) -> str:
        """turns; stays (surely falls by less than a tenth of the gain, and went far); or open."""
        if self.fall.above and self.rise.above:
            return "turns"
        return "stays" if self.fall.high < MARGIN * self.gain and self.end_root_kl >= FAR else "open"


def turn(rows: pd.DataFrame) -> Turn:
    """The turn of one road: rows of one (road, kind, labels), all seeds."""
    gold, proxy, kl = (
        rows.pivot(index="seed", columns="place", values=name).to_numpy(float) for name in ("gold", "proxy", "kl")
    )
    falls, rises = [], []
    for seed in range(len(gold)):
        others = np.delete(gold, seed, axis=0) if len(gold) > 1 else gold
        peak = int(others.mean(0).argmax())
        falls.append(gold[seed, peak] - gold[seed, -1])
        rises.append(proxy[seed, -1] - proxy[seed, peak])
    top = int(gold.mean(0).argmax())
    root = np.sqrt(kl.clip(min=0)).mean(0)
    return Turn(
        Interval(*mean_interval(np.array(falls))),
        Interval(*mean_interval(np.array(rises))),
        float(gold.mean(0)[top] - gold.mean(0)[0]),
        float(root[top]),
        float(root[-1]),
    )


def turns(rows: pd.DataFrame) -> dict[tuple[str, str, int], Turn]:
    """The turn of every road, by (road, kind, labels)."""
    groups: Any = rows.groupby(["road", "kind", "labels"], sort=False)
    return {(str(road), str(kind), int(n)): turn(part) for (road, kind, n), part in groups}


def later(rows: pd.DataFrame, settings: OverOptimisation) -> Interval:
    """√KL at gold's highest place with the most labels less that with the fewest: mean over methods, over seeds.

    Of each seed the highest place of its own; a road that does not turn has it at its end. Of the methods that were
    run with both.
    """
    few, many = settings.labels[0], settings.labels[-1]
    full = rows[(rows["kind"] == "full") & rows["road"].isin(METHODS)].reset_index(drop=True)
    place = full.loc[full.groupby(["seed", "road", "labels"])["gold"].idxmax()]
    root = place.assign(root=place["kl"].clip(lower=0) ** 0.5).pivot(
        index=["seed", "road"], columns="labels", values="root"
    )
    moved = (root[many] - root[few]).dropna().groupby("seed").mean()
    return Interval(*mean_interval(moved.to_numpy()))


def name_of(road: str) -> str:
    """What a road is called in pictures and texts."""
    return {**TRAINED, "best-of-n": "best of n", "optimum": "the proxy's optimum"}[road]


def listed(names: list[str]) -> str:
    """`["a", "b", "c"]` as "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _line(ax: Any, part: pd.DataFrame, metric: str, colour: str, **looks: Any) -> None:
    part = part.sort_values("place")
    ax.plot(part["root_kl"], part[metric], color=colour, **looks)
    if metric == "gold":
        ax.fill_between(part["root_kl"], part["gold_low"], part["gold_high"], color=colour, alpha=0.12, lw=0)


def figure(settings: OverOptimisation, summary: pd.DataFrame, rows: pd.DataFrame) -> Figure:
    """Gold and proxy against √KL with few labels; how labels move gold; on exact scales how the error's kind does."""
    from matplotlib.lines import Line2D

    exactly, few, many = is_exact(settings), settings.labels[0], settings.labels[-1]
    drawing, axes = style.subplots(1, 3, width=17, height=5.2)
    keys = {**KEYS, "best-of-n": "best-of-n", "optimum": "plug-in"}
    full = summary[summary["kind"] == "full"]
    shown = [name for name in ("optimum", *METHODS) if name in set(full["road"])]
    with style.use():
        for ax, number, title in ((axes[0], few, f"{few} labels"), (axes[1], many, f"{many:,} labels")):
            present = [name for name in shown if len(full[(full["road"] == name) & (full["labels"] == number)])]
            for name in present:
                part = full[(full["road"] == name) & (full["labels"] == number)]
                colour = style.colour(keys[name])
                marks = {} if len(part) > 12 else {"marker": style.of(keys[name]).marker, "ms": 6}
                _line(ax, part, "gold", colour, **marks)
                _line(ax, part, "proxy", colour, ls="--", lw=1.3)
            ax.set(title=f"Gold and proxy, {title}", xlabel="√KL(π‖π_ref) [√nats]",
                   ylabel="gain over π_ref [logits of a label]")  # fmt: skip
            ax.axhline(0, color="#999999", lw=1)
        ends = [min(ax.get_ylim()[0] for ax in axes[:2]), max(ax.get_ylim()[1] for ax in axes[:2])]
        for ax in axes[:2]:
            ax.set_ylim(ends[0], ends[1] + 0.3 * (ends[1] - ends[0]))
        handles = [Line2D([], [], color=style.colour(keys[name]), label=name_of(name)) for name in shown]
        axes[0].legend(handles=handles, loc="upper left", ncols=2, fontsize=10)
        lines = [Line2D([], [], color="#444444", ls=ls, label=label) for ls, label in (("-", "gold"), ("--", "proxy"))]
        axes[1].legend(handles=lines, loc="upper left", ncols=2, fontsize=10)

        found, ax = turns(rows), axes[2]
        if exactly:
            looks = {"full": ("plug-in", "o"), "noisy": ("wrong", "x"), "limited": ("reward", "s")}
            for shift, (kind, (key, marker)) in zip((0.94, 1.0, 1.06), looks.items(), strict=True):
                falls = [found["optimum", kind, n].fall for n in settings.labels]
                ax.errorbar(
                    [n * shift for n in settings.labels], [one.mean for one in falls],
                    yerr=[[one.mean - one.low for one in falls], [one.high - one.mean for one in falls]],
                    color=style.colour(key), marker=marker, capsize=3, label=KINDS[kind],
                )  # fmt: skip
            ax.set_xscale("log")
            ax.set_xticks(settings.labels, [f"{n:,}" for n in settings.labels])
            ax.minorticks_off()
            ax.set(title="Fall of gold, the proxy's optimum", xlabel="labels of the reward model [log scale]")
        else:
            names = [(name, n) for name in METHODS for n in (few, many) if (name, "full", n) in found]
            for place, (name, n) in enumerate(names):
                one = found[name, "full", n].fall
                ax.errorbar(
                    [place], [one.mean], yerr=[[one.mean - one.low], [one.high - one.mean]], capsize=3,
                    color=style.colour(keys[name]), marker=style.of(keys[name]).marker, ls="none",
                )  # fmt: skip
            ax.set_xticks(range(len(names)), [f"{name_of(name)}\n{n}" for name, n in names], rotation=45, ha="right")
            ax.set(title="Fall of gold from its peak", xlabel="method and labels of the reward model")
        ax.set_ylabel("peak to end [logits of a label]")
        ax.axhline(0, color="#999999", lw=1)
        if exactly:
            low, high = ax.get_ylim()
            ax.set_ylim(low, high + 0.3 * (high - low))
            ax.legend(loc="upper right", fontsize=10)
    return drawing


def words(settings: OverOptimisation, summary: pd.DataFrame, rows: pd.DataFrame) -> str:
    """The picture in words."""
    found, few, many = turns(rows), settings.labels[0], settings.labels[-1]
    said = []
    for name in ("optimum", *METHODS):
        one = found.get((name, "full", few))
        if one is None:
            continue
        more = found.get((name, "full", many))
        said.append(
            f"{name_of(name)}: gold highest at √KL {one.root_kl:.2f} with {one.gain:+.2f}, then down by "
            f"{one.fall.mean:.2f} until {one.end_root_kl:.2f}"
            + (
                f" ({many:,} labels: {more.gain:+.2f} at {more.root_kl:.2f}, down by {more.fall.mean:.2f})"
                if more
                else ""
            )
        )
    return _minus(
        f"Gold and proxy against √KL with {few} and with {many:,} labels of the reward model, gains over π_ref in "
        f"logits of a label. With {few} labels, {'; '.join(said)}. The right panel shows these falls with their "
        f"intervals{', for the optimum of three kinds of reward models by their labels' if is_exact(settings) else ''}."
    )


def text(settings: OverOptimisation, summary: pd.DataFrame, rows: pd.DataFrame) -> str:
    """What was found."""
    found, postponed = turns(rows), later(rows, settings)
    few, many = settings.labels[0], settings.labels[-1]
    said = []
    turned = [name for name in METHODS if found[name, "full", few].status == "turns"]
    said.append(
        f"With a reward model of {few} labels gold turned on the roads of {listed([name_of(n) for n in turned])}."
        if turned
        else f"With a reward model of {few} labels no method's road is shown to turn."
    )
    fell = [name for name in METHODS if name not in turned and found[name, "full", few].fall.above]
    if fell:
        said.append(
            f"Gold fell on the roads of {listed([name_of(n) for n in fell])}, but from gold's peak to the end the "
            f"proxy is not shown to rise there: this is a fall, not the turn that the rule asks for."
        )
    for name in METHODS:
        one = found[name, "full", few]
        if one.fall == (0, 0, 0):
            went = "and ended there, still rising or level"
        else:
            moved = "fell" if one.fall.above else "rose" if one.fall.below else "did not surely move"
            went = (
                f"and from the peak that the other seeds name to the end gold {moved} (fall {one.fall}) while the "
                f"proxy {'rose' if one.rise.mean >= 0 else 'fell'} by {abs(one.rise.mean):.2f}"
            )
        said.append(
            f"{name_of(name)[0].upper() + name_of(name)[1:]} went to √KL {one.end_root_kl:.2f}; gold gained at most "
            f"{one.gain:.2f}, at √KL {one.root_kl:.2f}, {went}."
        )
    ends_at = summary[(summary["kind"] == "full") & (summary["labels"] == few)].groupby("road").last()
    said.append(
        "What was promised and what came, at the ends: "
        + "; ".join(
            f"{name_of(str(name))} {proxy:.2f} of the proxy and {gold:.2f} of gold"
            for name, proxy, gold in zip(ends_at.index, ends_at["proxy"], ends_at["gold"], strict=True)
        )
        + "."
    )
    if not turned and not fell:
        said.append(
            "A promise that is not kept is not yet a fall: where a reward model's errors know nothing of gold, what it "
            "likes best is still better than most, and gold levels off; it falls only where the best-liked are worse."
        )
    where = "later" if postponed.above else "earlier" if postponed.below else "not surely elsewhere"
    said.append(f"With {many:,} labels gold's highest place is {where}: {postponed} in √KL.")
    if is_exact(settings):
        ends = {kind: [found["optimum", kind, n] for n in (few, many)] for kind in KINDS}
        said.append(
            "For the proxy's exact optimum, which no training error blurs, the fall was "
            + "; ".join(
                f"{one[0].fall.mean:.2f} with {few} and {one[1].fall.mean:.2f} with {many:,} labels where the reward "
                f"model {_kind(kind, settings)}"
                for kind, one in ends.items()
            )
            + "."
        )
        first, last = (one.fall.above for one in ends["full"])
        if first and not last:
            said.append(
                f"What {many:,} labels can mend, they mended: the model that can be any reward no longer turns."
            )
        elif last:
            said.append(f"Even with {many:,} labels the model that can be any reward is optimised too far in the end.")
        if ends["limited"][1].fall.above:
            said.append(
                "What a reward model cannot see no number of labels mends: with the most of them gold still fell."
            )
        else:
            said.append(
                f"Blindness alone did not make gold fall: with {many:,} labels the reward model that sees a part of "
                f"gold is not shown to turn."
            )
    else:
        said.append(
            f"KL was reached by training, not by weights on samples of π_ref, which can be trusted only near it: best "
            f"of {settings.most} cannot go beyond √KL {found['best-of-n', 'full', few].end_root_kl:.2f}."
        )
    return _minus(" ".join(said))


def _minus(said: str) -> str:
    return re.sub(r"-(?=\d)", "−", said)


def _kind(kind: str, settings: OverOptimisation) -> str:
    return {
        "full": "can be any reward",
        "noisy": f"can be any and {settings.noise:.0%} of its labels were turned round",
        "limited": "sees a part of what gold sees",
    }[kind]
