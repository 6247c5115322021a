"""What the experiment on the number of labels tells: slopes, and its picture, words and text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlhf_lab.evaluation import mean_interval
from rlhf_lab.experiments.runner import EXACT_SCALES
from rlhf_lab.experiments.statistics import Interval

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from rlhf_lab.experiments.claims.enough_labels.run import EnoughLabels


UPPER = 10.0
"""The slope is taken over the numbers of labels within this factor of the largest."""
LEFT = 0.1
"""On text, π* counts as found where less than this share of the way from π_ref to π* is left."""


def slope(settings: EnoughLabels, runs: pd.DataFrame) -> Interval:
    """Slope of log regret in log N for tables over the upper numbers of labels: each seed's, then t over seeds."""
    import numpy as np

    part = runs[(runs["kind"] == "table") & (runs["labels"] >= settings.labels[-1] / UPPER)]
    wide = part.pivot(index="seed", columns="labels", values="regret")
    x = np.log(wide.columns.to_numpy(dtype=float))
    x = x - x.mean()
    return Interval(*mean_interval((np.log(wide.to_numpy(dtype=float)) @ x) / (x @ x)))


def value_at(summary: pd.DataFrame, kind: str, labels: int, metric: str, when: str = "end") -> Interval:
    """`metric` of one kind of policy at this number of labels, with its interval over seeds."""
    row = summary[(summary["kind"] == kind) & (summary["labels"] == labels) & (summary["when"] == when)].iloc[0]
    return Interval(row[metric], row[f"{metric}_low"], row[f"{metric}_high"])


def apart(summary: pd.DataFrame, kind: str, ends: tuple[int, int], metric: str, when: str = "end") -> int:
    """+1 where `metric` is clearly higher at the larger number of labels, −1 where lower, 0 where intervals meet."""
    first, last = (value_at(summary, kind, n, metric, when) for n in ends)
    return int(last.low > first.high) - int(last.high < first.low)


def figure(settings: EnoughLabels, summary: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """The result's picture. Arguments: its settings, its summary, its rows; returns a matplotlib figure."""
    from rlhf_lab.figures import style

    if settings.scale not in EXACT_SCALES:
        return _text_figure(settings, summary)
    tree = settings.scale == "tree"
    with style.use():
        drawing, axes = style.subplots(1, 3 if tree else 2, 14.5 if tree else 10.5, 4.4, squeeze=False)
        one, two = axes[0][:2]
        table = summary[summary["kind"] == "table"]
        _line(one, table, "regret", "dpo", "DPO, a table")
        one.plot(table["labels"], table["limit"], "--", color=style.colour("optimal"), label="limit, price / N")
        one.set(
            xscale="log", yscale="log", xlabel="labels N", ylabel="regret J(π*) − J(π) (reward)",
            title="Regret against labels",
        )  # fmt: skip
        one.legend(loc="lower left")
        _line(two, table, "ratio", "dpo", "DPO, a table")
        two.axhline(1, ls="--", color=style.colour("optimal"), label="the limit")
        two.set(
            xscale="log", yscale="log", xlabel="labels N", ylabel="N · regret / limit (mean over seeds)",
            title="How soon the limit rules",
        )  # fmt: skip
        for axis in (two.yaxis.set_major_formatter, two.yaxis.set_minor_formatter):
            axis(lambda value, place: f"{value:g}" if f"{value:.0e}"[0] in "1235" else "")
        two.legend(loc="upper right")
        if tree:
            _net_panel(axes[0][2], settings, summary)
    return drawing


def _net_panel(axes: Any, settings: EnoughLabels, summary: pd.DataFrame) -> None:
    from rlhf_lab.figures import style

    shades = (0.35, 0.5, 0.7, 0.85, 1.0)
    courses = [("transformer", n) for n in settings.net_labels] + [("fresh", settings.steps * settings.batch)]
    for number, (kind, labels) in enumerate(courses):
        part = summary[(summary["kind"] == kind) & (summary["labels"] == labels)]
        part = part[part["when"].str.startswith("step ")].copy()
        part["step"] = part["when"].str.removeprefix("step ").astype(int)
        fresh = kind == "fresh"
        colour = style.colour("online" if fresh else "dpo")
        alpha = 1.0 if fresh else shades[max(len(shades) - len(courses) + 1, 0) :][number % len(shades)]
        label = "fresh every step" if fresh else f"{labels:,} labels"
        axes.plot(part["step"], part["regret"], "--" if fresh else "-", color=colour, alpha=alpha, label=label)
        axes.fill_between(part["step"], part["regret_low"], part["regret_high"], color=colour, alpha=0.12, lw=0)
    axes.set(
        yscale="log", xlabel="optimiser steps", ylabel="regret (reward)",
        title=f"A transformer, {settings.batch} pairs a step",
    )  # fmt: skip
    axes.legend(fontsize=9, ncols=2, loc="upper right")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.3)


def _line(axes: Any, part: pd.DataFrame, metric: str, key: str, label: str, x: str = "labels") -> None:
    from rlhf_lab.figures import style

    mean = part[metric].to_numpy()
    bars = [(mean - part[f"{metric}_low"]).fillna(0).clip(lower=0), (part[f"{metric}_high"] - mean).fillna(0)]
    axes.errorbar(part[x], mean, bars, color=style.colour(key), marker=style.of(key).marker, capsize=3, label=label)


def _text_figure(settings: EnoughLabels, summary: pd.DataFrame) -> Figure:
    from rlhf_lab.figures import style

    with style.use():
        drawing, (one, two, three) = style.subplots(1, 3, 13.5, 4.2)
        _line(one, summary, "gain", "dpo", "DPO")
        one.axhline(0, ls="--", color=style.colour("reference"), label="π_ref")
        one.set(xlabel="labels N", ylabel="J(π) − J(π_ref) (units of a label)", title="Objective gained")
        _line(two, summary, "regret", "dpo", "DPO, estimated")
        two.axhline(0, ls="--", color=style.colour("optimal"), label="π*")
        two.set(xlabel="labels N", ylabel="regret J(π*) − J(π) (units)", title="Estimated distance to π*")
        _line(three, summary, "kl", "dpo", "DPO")
        three.set(xlabel="labels N", ylabel="KL(π‖π_ref) (nats)", title="Distance from π_ref")
        for axes in (one, two, three):
            axes.set_xscale("log")
            axes.set_ylim(min(0, axes.get_ylim()[0]), axes.get_ylim()[1] * 1.25)
            axes.legend(loc="upper left" if axes is not two else "lower left")
    return drawing


def words(settings: EnoughLabels, summary: pd.DataFrame, runs: pd.DataFrame) -> str:
    """The picture in words, for who cannot see it; numbers from the summary and the rows."""
    kind = "text" if settings.scale not in EXACT_SCALES else "table"
    course = "; ".join(f"{n:,} labels: {value_at(summary, kind, n, 'regret')}" for n in settings.labels)
    out = f"Regret of DPO against the number of labels, both axes logarithmic: {course}."
    if kind == "text":
        gains = "; ".join(f"{n:,}: {value_at(summary, kind, n, 'gain')}" for n in settings.labels)
        return f"Estimated regret of DPO by the number of labels: {course}. Gain in J over π_ref: {gains}."
    ratios = "; ".join(f"{n:,}: {value_at(summary, kind, n, 'ratio')}" for n in settings.labels)
    out += f" N times regret as a share of its limit: {ratios}."
    if settings.net_labels:
        ends = "; ".join(f"{n:,}: {value_at(summary, 'transformer', n, 'regret')}" for n in settings.net_labels)
        fresh = value_at(summary, "fresh", settings.steps * settings.batch, "regret")
        out += f" A transformer's regret after {settings.steps} steps: {ends}; with fresh pairs every step {fresh}."
    return out


def text_of(settings: EnoughLabels, summary: pd.DataFrame, runs: pd.DataFrame) -> str:
    """The short text below the verdict, every number of it from the summary or the rows."""
    if settings.scale not in EXACT_SCALES:
        return _text_on_text(settings, summary)
    steep, ends = slope(settings, runs), (settings.labels[0], settings.labels[-1])
    first, last = (value_at(summary, "table", n, "regret") for n in ends)
    ratio, early = value_at(summary, "table", ends[1], "ratio"), value_at(summary, "table", ends[0], "ratio")
    finite = [value_at(summary, "table", n, "finite").mean for n in settings.labels]
    sure = next((n for n, share in zip(settings.labels, finite, strict=True) if share > 0.99), None)
    met = "which its interval contains" if ratio.low <= 1 <= ratio.high else "which its interval leaves out"
    size = "4 prompts with 10 arms each" if settings.scale == "bandit" else "16 sequences"
    out = (
        f"Each of {settings.seeds} seeds has a random world of its own ({size}, β = {settings.beta:g}), labels drawn "
        f"as the lecture says, and a table fitted by Newton's method from π_ref. The regret goes from {first} at "
        f"{ends[0]:,} "
        f"labels to {last} at {ends[1]:,}, where {value_at(summary, 'table', ends[1], 'left').mean:.2%} of π_ref's own "
        f"is left; over the last factor of {UPPER:g} in labels its slope is {steep} on logarithmic axes, where the "
        f"theory says "
        f"−1. The theory also says the height before a label is drawn, price / N: at the largest N the regret is "
        f"{ratio} of that (1 is the limit, {met}); at {ends[0]:,} labels it was {early}. "
    )
    worse = [n for n in settings.labels if value_at(summary, "table", n, "left").low > 1]
    if worse:
        out += (
            f"Too few labels are worse than none: up to {worse[-1]:,} the fitted policy's regret is clearly above "
            f"that of "
            f"π_ref itself ({value_at(summary, 'table', worse[-1], 'left')} times), since a fit to the end believes "
            f"every win. "
        )
    if early.high < 1:
        out += (
            "With few labels the limit overstates the regret: it has no upper end, and the regret of a policy has one. "
        )
    out += (
        f"With few labels some response has always won, or never: {finite[0]:.0%} of the prompts have a finite "
        f"optimum at "
        f"{ends[0]:,} labels, and {finite[-1]:.0%} at {ends[1]:,}"
        f"{f' ({sure:,} is the first number with over 99%)' if sure else ''}. Elsewhere the loss falls for ever, on "
        f"the "
        f"way to a policy that gives some response no mass at all; the same number of iterations is spent on all, "
        f"nothing is added to the loss, and these runs are in the means. "
    )
    return out + (_text_of_net(settings, summary) if settings.net_labels else "")


def _text_of_net(settings: EnoughLabels, summary: pd.DataFrame) -> str:
    low, high = settings.net_labels[0], settings.net_labels[-1]

    def at(n: int, metric: str = "regret", when: str = "end") -> Interval:
        return value_at(summary, "transformer", n, metric, when)

    every = settings.steps * settings.batch
    fresh = value_at(summary, "fresh", every, "regret")
    seen_few, seen_end = at(low, "loss", "stopped").mean, at(low, "loss").mean
    overfits = at(low).low > at(low, when="stopped").high and seen_end < seen_few
    out = (
        f"A transformer on the tree of 4,096 sequences shares what it learns between them, and its road is another: "
        f"after {settings.steps} steps its regret is {at(low)} with {low:,} labels and {at(high)} with {high:,}; "
        f"stopped "
        f"where the loss on a held-out tenth is lowest, {at(low, when='stopped')} and {at(high, when='stopped')}. "
    )
    if overfits:
        out += (
            f"On the {low:,} labels it overfits: from that place to the end the loss on the labels falls further, from "
            f"{seen_few:.3f} to {seen_end:.3f}, while the policy moves away from π*. "
        )
    compared = "below" if fresh.high < at(high).low else "above" if fresh.low > at(high).high else "no different from"
    return out + (
        f"Fresh pairs every step, {every:,} in all, leave {fresh}: {compared} {high:,} fixed ones after as many steps. "
        f"What is left there is the price of a finite run and a small network, which no label can pay."
    )


def _text_on_text(settings: EnoughLabels, summary: pd.DataFrame) -> str:
    ends = (settings.labels[0], settings.labels[-1])

    def at(n: int, metric: str) -> Interval:
        return value_at(summary, "text", n, metric)

    trust = [at(n, "trusted").mean for n in settings.labels]
    passes = settings.steps * settings.batch / ends[1]
    rises = apart(summary, "text", ends, "objective")
    what = {1: "rises", 0: "is not clearly another", -1: "falls"}[rises]
    out = (
        f"On {settings.world}, β = {settings.beta:g}, every fit takes {settings.steps} steps of {settings.batch} pairs "
        f"whatever the number of labels, so that labels are the only difference ({passes:.2g} passes at the largest, "
        f"{settings.steps * settings.batch / ends[0]:.0f} at the smallest). With more labels J {what}: over π_ref it "
        f"gains "
        f"{at(ends[0], 'gain')} with {ends[0]:,} and {at(ends[1], 'gain')} with {ends[1]:,}, at gold rewards of "
        f"{at(ends[0], 'gold')} and {at(ends[1], 'gold')} and KL of {at(ends[0], 'kl')} and {at(ends[1], 'kl')} nats. "
        f"π* cannot be listed here; weighted samples estimate the regret as {at(ends[0], 'regret')} and "
        f"{at(ends[1], 'regret')}. "
    )
    out += (
        f"The estimate's own verdict is *trusted* in {min(trust):.0%} to {max(trust):.0%} of the runs, depending on N, "
        f"with {at(ends[1], 'effective').mean:.0f} effective samples a prompt of {2 * settings.samples} at the "
        f"largest. "
    )
    left = at(ends[1], "left")
    return out + (
        f"At {ends[1]:,} labels {left.mean:.0%} of the way from π_ref to π* is still left: "
        f"{'next to nothing' if left.high < LEFT else 'π* is not found, for want of labels, of steps, or of both'}. "
        f"The interval is over seeds, on the same {settings.prompts} test prompts."
    )
