"""What the experiment on cost tells: its picture, its words, its text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rlhf_lab.experiments.claims.cost.setup import BEST_OF, TRAINED
from rlhf_lab.experiments.methods import METHODS
from rlhf_lab.experiments.runner import EXACT_SCALES
from rlhf_lab.experiments.statistics import Interval, difference, mean_interval

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from rlhf_lab.experiments.claims.cost.settings import Cost


def memory_ratio(runs: pd.DataFrame) -> Interval:
    """DPO's memory over PPO's: measured, geometric mean over seeds with t interval; else from the weights, exact."""
    import numpy as np

    part = runs[runs["when"] == "memory"]
    if part.empty:
        held = runs[runs["when"] == "end"].groupby("method")["held"].first()
        share = held["dpo"] / held["ppo"]
        return Interval(share, share, share)
    wide = part.pivot(index="seed", columns="method", values="own")[["dpo", "ppo"]].dropna()
    return Interval(*(math.exp(v) for v in mean_interval(np.log((wide["dpo"] / wide["ppo"]).to_numpy()))))


def against(runs: pd.DataFrame) -> dict[str, Interval]:
    """J of DPO at the end less that of each other trained method, paired within the seed."""
    end = runs[runs["when"] == "end"]
    return {m: difference(end, "method", "dpo", m, "objective") for m in TRAINED if m != "dpo"}


def final(summary: pd.DataFrame, method: str, metric: str) -> Interval:
    """A method's `metric` at the end, with its interval over seeds."""
    row = summary[(summary["method"] == method) & (summary["when"] == "end")].iloc[0]
    return Interval(row[metric], row[f"{metric}_low"], row[f"{metric}_high"])


# ------------------------------------------------------------------------------------------------------ picture, words


def figure(settings: Cost, summary: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """The result's picture. Arguments: its settings, its summary, its rows; returns a matplotlib figure."""
    from rlhf_lab.figures import style

    with style.use():
        drawing, (one, two, three) = style.subplots(1, 3, 15, 5.2)
        level, start = final(summary, "dpo", "level").mean, final(summary, "dpo", "start").mean
        for method in TRAINED:
            part = summary[(summary["method"] == method) & summary["when"].str.startswith("step")]
            look = style.of(method)
            one.plot(
                part["seconds"], part["reward"], color=look.light, marker=look.marker, ls=look.dash, ms=4,
                label=look.label,
            )  # fmt: skip
        one.axhline(level, color=style.colour("optimal"), ls="--", lw=1.2, label="equal reward")
        one.axhline(start, color=style.colour("reference"), ls=":", lw=1.2, label="π_ref")
        one.set(
            xlabel="processor seconds, one thread", ylabel="gold reward (units of a label)", xscale="log",
            title="Reward on the way",
        )  # fmt: skip
        drawing.legend(*one.get_legend_handles_labels(), loc="outside lower center", ncols=5)
        _panel_of_luck(two, runs)
        _panel_of_memory(three, settings, summary)
    return drawing


def _panel_of_luck(axes: Any, runs: pd.DataFrame) -> None:
    from rlhf_lab.figures import style

    end = runs[runs["when"] == "end"]
    for place, method in enumerate(TRAINED):
        values = end[end["method"] == method]["objective"].to_numpy()
        mean, low, high = mean_interval(values)
        look = style.of(method)
        axes.plot([place] * len(values), values, look.marker, color=look.light, ms=4, alpha=0.45)
        axes.errorbar(
            place + 0.22,
            mean,
            [[max(mean - low, 0)], [max(high - mean, 0)]],
            fmt=look.marker,
            color=look.light,
            capsize=4,
        )
    axes.set_xticks(range(len(TRAINED)), [_short(m) for m in TRAINED], rotation=40, ha="right", fontsize=10)
    axes.set(xlabel="method", ylabel="J at the end (units of a label)", title="Luck: each seed, mean, 95%")


def _panel_of_memory(axes: Any, settings: Cost, summary: pd.DataFrame) -> None:
    from rlhf_lab.figures import style

    places = range(len(TRAINED))
    unit = 1024 if settings.scale in EXACT_SCALES else 1
    held = [final(summary, m, "held").mean * unit for m in TRAINED]
    axes.bar(places, held, 0.6, color=[style.colour(m) for m in TRAINED])
    found = summary[summary["when"] == "memory"]
    for place, method in enumerate(TRAINED):
        row = found[found["method"] == method]
        if len(row):
            axes.plot(place, row["own"].iloc[0], "D", color=style.colour("optimal"), ms=6)
    what = "bars: weights, gradients, Adam" + ("; ◆ measured peak" if len(found) else "")
    axes.set_xticks(places, [_short(m) for m in TRAINED], rotation=40, ha="right", fontsize=10)
    axes.set(xlabel=f"method ({what})", ylabel=f"memory ({'KiB' if unit > 1 else 'MiB'})", title="Memory held")
    axes.xaxis.label.set_size(10)


def _short(method: str) -> str:
    from rlhf_lab.figures import style

    return "RSO" if method.startswith("rso") else style.label(method)


def words(settings: Cost, summary: pd.DataFrame, runs: pd.DataFrame) -> str:
    """The picture in words, for who cannot see it; numbers from the summary and the rows."""
    ends = "; ".join(
        f"{_short(m)} {final(summary, m, 'objective')}, {final(summary, m, 'seconds').mean:.3g} s, "
        f"{_held(settings, summary, m)}"
        for m in TRAINED
    )
    out = f"J at the end with its interval over seeds, processor seconds, and memory held: {ends}."
    found = summary[summary["when"] == "memory"]
    if len(found):
        out += " Measured peak above the libraries, MiB: "
        out += "; ".join(f"{_short(str(row['method']))} {float(row['own']):.0f}" for _, row in found.iterrows()) + "."
    return out


def _held(settings: Cost, summary: pd.DataFrame, method: str) -> str:
    held = final(summary, method, "held").mean
    return f"{held:.1f} MiB" if held >= 1 else f"{held * 1024:.1f} KiB"


def text_of(settings: Cost, summary: pd.DataFrame, runs: pd.DataFrame) -> str:
    """The short text below the verdict, every number of it from the summary or the rows."""
    exactly = settings.scale in EXACT_SCALES
    level, start = final(summary, "dpo", "level").mean, final(summary, "dpo", "start").mean
    goal = "π*'s" if exactly else f"the best of {BEST_OF}'s"
    out = (
        f"Every method had {settings.labels:,} labels, {settings.steps} optimiser steps of {settings.responses} "
        f"responses and the rate that the same search of {len(settings.rates)} chose for it; {settings.seeds} seeds. "
        f"Equal "
        f"reward is {level:.3g}, halfway from π_ref's {start:.3g} to {goal}. "
    )
    reached = {m: final(summary, m, "reached").mean for m in (*TRAINED, "best-of-n")}
    costs = [
        f"{_short(m)} {final(summary, m, 'to_seconds').mean:.3g} s, "
        f"{final(summary, m, 'to_samples').mean:,.0f} responses"
        for m in sorted(  # only these have a time: a NaN among the keys would leave the order to the sorting algorithm
            (m for m in TRAINED if reached[m] > 0), key=lambda m: final(summary, m, "to_seconds").mean
        )
    ]
    if costs:
        out += f"To get there it took (reward model included, means of the seeds that did): {'; '.join(costs)}. "
    never = [_short(m) for m in TRAINED if reached[m] == 0]
    some = [f"{_short(m)} in {reached[m]:.0%} of the seeds" for m in TRAINED if 0 < reached[m] < 1]
    out += f"Never there: {', '.join(never)}. " if never else "All methods got there in some seed. "
    out += f"Not always: {', '.join(some)}. " if some else ""
    if reached["best-of-n"] > 0:
        n = final(summary, "best-of-n", "an_answer").mean
        out += f"Best-of-n trains no policy and needs n = {n:.2g} responses for every answer, for ever. "
    gap, ratio = against(runs)["ppo"], memory_ratio(runs)
    out += (
        f"While it trains DPO has {METHODS['dpo'].networks} networks at hand and draws nothing, PPO "
        f"{METHODS['ppo'].networks} and draws {final(summary, 'ppo', 'samples').mean:,.0f} responses. "
    )
    if exactly:
        out += (
            f"Weights, gradients, Adam's moments and frozen networks are {_held(settings, summary, 'dpo')} against "
            f"{_held(settings, summary, 'ppo')}, a share of {ratio.mean:.2f}; a peak is not measured here, where "
            f"Python "
            f"itself is larger by orders. "
        )
    else:
        found = summary[summary["when"] == "memory"]
        own = dict(zip(found["method"].astype(str), found["own"].astype(float), strict=True))
        out += (
            f"The measured peak above the libraries is {own['dpo']:.0f} MiB against "
            f"{own['ppo']:.0f}, a share of {ratio.mean:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]; weights, "
            f"gradients, Adam and frozen networks are {_held(settings, summary, 'dpo')} and "
            f"{_held(settings, summary, 'ppo')} of it, the rest activations. "
        )
    luck = sorted(TRAINED, key=lambda m: final(summary, m, "spread").mean)
    place = "clearly above" if gap.above else "clearly below" if gap.below else "not clearly apart from"
    out += (
        f"J of DPO is {place} PPO's ({gap}). From seed to seed J moves by {final(summary, luck[0], 'spread').mean:.2g} "
        f"({_short(luck[0])}, the steadiest) to {final(summary, luck[-1], 'spread').mean:.2g} ({_short(luck[-1])}), "
        f"DPO's by "
        f"{final(summary, 'dpo', 'spread')} (standard deviation, bootstrap). "
    )
    return out + "Seconds are the processor's, on one thread of one machine."
