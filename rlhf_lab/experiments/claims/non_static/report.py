"""What the experiment on worlds that move tells: its picture, its words, its text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rlhf_lab.experiments.claims.non_static.settings import PIECES
from rlhf_lab.experiments.claims.non_static.strategies import LOOKS
from rlhf_lab.experiments.runner import EXACT_SCALES
from rlhf_lab.experiments.statistics import Interval, difference

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rlhf_lab.experiments.claims.non_static.settings import NonStatic


CHANGES = {
    "none": "nothing moves",
    "drift": "preferences drift",
    "sudden": "preferences turn at once",
    "prompts": "prompts shift",
    "policy": "policy moves on",
    "policy-narrow": "policy moves on, small reward model",
}
"""What may move."""
LANGUAGE = {
    "none": ("offline", "online-all"),
    "drift": ("offline", "refit-all", "window", "online", "online-all"),
    "prompts": ("offline", "online-all"),
}
"""Which strategies a language model tries under which change."""


def _deployed(runs: pd.DataFrame, change: str, turn: float) -> pd.DataFrame:
    return runs[(runs["part"] == "deploy") & (runs["change"] == change) & ((runs["turn"] - turn).abs() < 1e-4)]


def gain(runs: pd.DataFrame, change: str, turn: float, one: str = "window", other: str = "offline") -> Interval:
    """Mean regret of a round of `one` less that of `other`, paired within the seed; below 0 where `one` is better."""
    return difference(_deployed(runs, change, turn), "strategy", one, other, "regret")


def at_best(runs: pd.DataFrame, more: int, rate: float | None = None) -> Interval:
    """Regret over closed form at the tried window next to the closed form's best one, policies always fresh."""
    from rlhf_lab.experiments.statistics import mean_interval

    long = runs[(runs["part"] == "steady") & (runs["more"] == more) & (runs["every"] == runs["every"].min())]
    if rate is not None:
        long = long[(long["rate"] - rate).abs() < 1e-6]
    near = long.assign(off=(long["window"].map(math.log) - long["best"].map(math.log)).abs())
    near = near.loc[near.groupby(["seed", "rate"])["off"].idxmin()]
    each = (near["regret"] / near["limit"]).groupby(near["seed"]).mean()
    return Interval(*mean_interval(each.to_numpy()))


def language_gain(runs: pd.DataFrame, change: str, one: str, other: str = "offline") -> Interval:
    """Mean objective over the rounds of `one` less that of `other`, paired within the seed; above 0: better."""
    part = runs[runs["change"] == change].groupby(["strategy", "seed"], sort=False)["objective"].mean().reset_index()
    return difference(part, "strategy", one, other, "objective")


# In words


def _range(found: Interval) -> str:
    return f"{found.mean:.2g} [{found.low:.2g}, {found.high:.2g}]"


def _compared(found: Interval, one: str, other: str) -> str:
    """Which of two has the smaller regret, by the interval of their difference."""
    if found.below:
        return f"{one} lose less than {other} (difference {_range(found)})"
    if found.above:
        return f"{one} lose more than {other} (difference {_range(found)})"
    return f"{one} and {other} cannot be told apart (difference {_range(found)})"


def rhythm(summary: pd.DataFrame, rate: float, cost: float, column: str = "regret") -> tuple[int, int]:
    """The window and the rounds between fits with the least `column` + cost / k, among those tried at `rate`."""
    long = summary[(summary["part"] == "steady") & ((summary["rate"] - rate).abs() < 1e-6) & (summary["more"] == 1)]
    best = long.iloc[int((long[column] + cost / long["every"]).to_numpy().argmin())]
    return int(best["window"]), int(best["every"])


def _mean(summary: pd.DataFrame, change: str, turn: float, strategy: str, column: str = "regret") -> float:
    rows = summary[(summary["change"] == change) & (summary["strategy"] == strategy)]
    return float(rows[(rows["turn"] - turn).abs() < 1e-4][column].iloc[0])


def text(settings: NonStatic, summary: pd.DataFrame, runs: pd.DataFrame) -> str:
    """What was found and why."""
    if settings.scale not in EXACT_SCALES:
        return _text_language(settings, summary, runs)
    n, rounds, most = settings.labels, settings.rounds, max(settings.turns)
    gains = {turn: gain(runs, "drift", turn) for turn in sorted(settings.turns)}
    worse = [turn for turn, found in gains.items() if found.above]
    better = [turn for turn, found in gains.items() if found.below]
    even = float(summary["even"].dropna().mean())
    once = (
        "fitting once is better up to a turn of " + f"{max(worse):.2g} rad" if worse else "fitting once is never better"
    )
    again = f"refitting from {min(better):.2g} rad on" if better else "refitting nowhere"
    windows = []
    for rate in settings.drifts:
        found = rhythm(summary, rate, 0.0)
        long = summary[((summary["rate"] - rate).abs() < 1e-6) & (summary["more"] == 1) & (summary["every"] == 1)]
        windows.append(f"{found[0]} at {rate:g} rad a round (formula {float(long['best'].iloc[0]):.1f})")
    middle = settings.drifts[len(settings.drifts) // 2]
    dear, dear_formula = rhythm(summary, middle, settings.cost), rhythm(summary, middle, settings.cost, "limit")
    prompts = gain(runs, "prompts", 0.0, "refit-all", "window")
    own = gain(runs, "drift", most, "online", "window")
    wide, narrow = (gain(runs, change, 0.0, "online-all", "offline") for change in ("policy", "policy-narrow"))
    reason = ": such a model is right only where it was fitted" if narrow.below else ""
    return "\n\n".join(
        [
            f"{n} labels a round for {rounds} rounds, or {n * rounds} before the first; {runs['seed'].nunique()} seeds "
            f"with a random world each. Under drift {once}, {again}. The closed form puts the turning point "
            f"at {even:.2g} rad: ωT = √(q P/(nT C)), q a number that depends on T alone, so more labels make refitting "
            f"worth while at less drift. At {most:.2g} rad fitting once loses "
            f"{_mean(summary, 'drift', most, 'offline'):.2g} a round, refitting on all labels so far "
            f"{_mean(summary, 'drift', most, 'refit-all'):.2g}, on the newest "
            f"{_mean(summary, 'drift', most, 'window'):.2g}, with fading labels "
            f"{_mean(summary, 'drift', most, 'forgetting'):.2g}.",
            f"The window with the least regret in the long run, among those tried, was {', '.join(windows)}. "
            f"The closed form, price/(nW) for estimation and Var_π*(dr/dt)/(2β) times the squared age for "
            f"drift, is a limit of many labels and slow drift: at its best window simulation over formula is "
            f"{at_best(runs, 1)}, with {settings.more} times the labels {at_best(runs, settings.more)}. If a "
            f"retraining costs {settings.cost:g} (reward, summed over rounds) and preferences turn {middle:g} rad a "
            f"round, the cheapest rhythm tried is a fit every {dear[1]} rounds on {dear[0]} rounds of labels; by the "
            f"formula every "
            f"{dear_formula[1]} on {dear_formula[0]}.",
            f"What moves decides what to keep. When preferences turn at once half way, fitting once loses "
            f"{_mean(summary, 'sudden', 0.0, 'offline', f'quarter_{PIECES}'):.2g} in the last quarter, all labels "
            f"{_mean(summary, 'sudden', 0.0, 'refit-all', f'quarter_{PIECES}'):.2g}, the newest "
            f"{_mean(summary, 'sudden', 0.0, 'window', f'quarter_{PIECES}'):.2g}. When prompts shift, old labels stay "
            f"true: {_compared(prompts, 'fits to all labels', 'fits to the newest')}. When only the policy moves on "
            f"from π_ref, {_compared(wide, 'labels of its own responses, all kept,', 'labels of π_ref at the start')} "
            f"with a reward model that can say everything, and with one half as large "
            f"{_compared(narrow, 'the former', 'the latter')}{reason}. At the fastest drift "
            f" {_compared(own, 'the newest labels of own responses', 'the newest labels of π_ref')}.",
        ]
    )


def _of_language(summary: pd.DataFrame, change: str, strategy: str, number: Any = "all") -> pd.Series:
    rows = summary[(summary["change"] == change) & (summary["strategy"] == strategy)]
    return rows[rows["round"].astype(str) == str(number)].iloc[0]


def _text_language(settings: NonStatic, summary: pd.DataFrame, runs: pd.DataFrame) -> str:
    n, rounds, turn = settings.labels, settings.rounds, settings.turns[-1]
    lines = []
    for strategy in LANGUAGE["drift"]:
        last = _of_language(summary, "drift", strategy, rounds)
        lines.append(
            f"{LOOKS[strategy][1]}: J {last['objective']:.2f}, VADER {last['gold']:.2f}, {last['words']:.1f} words"
        )
    drift, still, shift = (
        language_gain(runs, change, one)
        for change, one in (("drift", "online"), ("none", "online-all"), ("prompts", "online-all"))
    )

    def told(found: Interval) -> str:
        sign = "more" if found.above else "less" if found.below else "not decidedly more or less"
        return f"{sign} ({_range(found)})"

    memory = language_gain(runs, "drift", "window", "refit-all")
    own = language_gain(runs, "drift", "online", "window")
    end = language_gain(runs[runs["round"] == rounds], "drift", "window")
    return "\n\n".join(
        [
            f"{n} labels a round for {rounds} rounds, or {n * rounds} before the first; every fit is DPO from π_ref "
            f"with {settings.steps} steps; {runs['seed'].nunique()} seeds. In the drift the labeller's taste turns by "
            f"{turn:.2f} rad, from glad (VADER) to brief (fewer words); where prompts shift, films and books give way "
            f"to restaurants, hotels and games. π* is out of reach here: J of the round, E[r_t] − β KL, is compared.",
            f"In the last round of the drift: {'; '.join(lines)}. There a refit to the newest labels of π_ref's "
            f"responses earned {told(end)} than fitting once. Over all rounds, labels of own responses, the newest "
            f"only, earned {told(drift)} than as many labels at the start. Where nothing moves, labels of own "
            f"responses (all kept) earned {told(still)}, and where prompts shift {told(shift)}.",
            f"Apart: of π_ref's responses, the newest labels earned {told(memory)} than all labels so far; of the "
            f"newest labels, those of own responses earned {told(own)} than those of π_ref's.",
        ]
    )


def figure(settings: NonStatic, summary: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Exact: window against closed form, drift against regret, other changes. Language: J by round, and differences."""
    from rlhf_lab.figures import style

    if settings.scale not in EXACT_SCALES:
        return _figure_language(settings, summary, runs)
    drawing, axes = style.subplots(1, 3, width=17, height=5.2)
    with style.use():
        _draw_windows(axes[0], settings, summary)
        _draw_drift(axes[1], settings, summary)
        _draw_changes(axes[2], summary)
    return drawing


def _draw_windows(ax: Axes, settings: NonStatic, summary: pd.DataFrame) -> None:
    from rlhf_lab.figures import style

    long = summary[(summary["part"] == "steady") & (summary["every"] == 1) & (summary["more"] == 1)]
    marks = ("o", "s", "^", "D", "v", "P")
    for i, rate in enumerate(settings.drifts):
        rows = long[(long["rate"] - rate).abs() < 1e-6]
        ends = [rows["regret"] - rows["regret_low"], rows["regret_high"] - rows["regret"]]
        colour = style.colour(("dpo", "policy", "rest", "online", "ppo", "sft")[i % 6])
        ax.errorbar(
            rows["window"],
            rows["regret"],
            ends,
            fmt=marks[i % 6],
            color=colour,
            capsize=3,
            label=f"{rate:g} rad a round",
        )
        ax.plot(rows["window"], rows["limit"], color=colour, ls="--", lw=1.4)
        ax.axvline(float(rows["best"].iloc[0]), color=colour, ls=":", lw=1.2)
    ax.set(xscale="log", yscale="log", xlabel="window W [rounds of labels]", ylabel="regret of a round [reward]")
    ax.set_xticks(list(settings.windows), [str(w) for w in settings.windows])
    ax.minorticks_off()
    ax.set_title("Long run: points simulated, dashed the\nclosed form, dotted its best window", pad=30)
    ax.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.1, handlelength=1, columnspacing=1)


def _draw_drift(ax: Axes, settings: NonStatic, summary: pd.DataFrame) -> None:
    from rlhf_lab.figures import style

    for strategy, (key, name) in LOOKS.items():
        rows = summary[(summary["change"] == "drift") & (summary["strategy"] == strategy)]
        look = style.of(key)
        ends = [rows["regret"] - rows["regret_low"], rows["regret_high"] - rows["regret"]]
        ax.errorbar(
            rows["turn"],
            rows["regret"],
            ends,
            marker=look.marker,
            ls=look.dash,
            color=look.light,
            capsize=3,
            label=name,
        )
    # Only as high as the data: the legend stands above.
    ax.axvline(float(summary["even"].dropna().mean()), ymax=0.66, color=style.colour("optimal"), ls=":", lw=1.4)
    ax.set(yscale="log", xlabel=f"turn of preferences over {settings.rounds} rounds [rad]")
    ax.set_ylabel("regret of a round, mean [reward]")
    ax.set_title("Drift: once or again? Dotted: where\nthe closed form changes sides", pad=12)
    ax.legend(fontsize=9, loc="upper left", labelspacing=0.25)
    low, high = ax.get_ylim()
    ax.set_ylim(low, high * 6)  # room for the legend above the data


def _draw_changes(ax: Axes, summary: pd.DataFrame) -> None:
    from rlhf_lab.figures import style

    kinds = [change for change in CHANGES if change not in ("none", "drift")]
    for j, (strategy, (key, _)) in enumerate(LOOKS.items()):
        look = style.of(key)
        for i, change in enumerate(kinds):
            row = summary[(summary["change"] == change) & (summary["strategy"] == strategy)].iloc[0]
            ends = [[row["regret"] - row["regret_low"]], [row["regret_high"] - row["regret"]]]
            ax.errorbar(i + 0.13 * (j - 2.5), row["regret"], ends, marker=look.marker, color=look.light, capsize=2)
    names = ["turn at\nonce", "prompts\nshift", "policy\nmoves", "policy moves,\nsmall model"]
    ax.set_xticks(range(len(kinds)), names)
    ax.grid(axis="x", visible=False)
    ax.set(yscale="log", ylabel="regret of a round, mean [reward]")
    ax.set_title("Other changes\n(looks as in the middle)", pad=12)


def _figure_language(settings: NonStatic, summary: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    from rlhf_lab.figures import style

    drawing, axes = style.subplots(1, 3, width=16, height=4.8, sharey=True)
    titles = {"none": "Nothing moves", "drift": "Taste turns from glad to brief", "prompts": "Prompts shift"}
    with style.use():
        for ax, (change, title) in zip(axes, titles.items(), strict=True):
            for j, strategy in enumerate(LANGUAGE[change]):
                key, name = LOOKS[strategy]
                look = style.of(key)
                rows = summary[(summary["change"] == change) & (summary["strategy"] == strategy)]
                rows = rows[rows["round"].astype(str) != "all"]
                x = rows["round"].astype(float) + 0.06 * (j - len(LANGUAGE[change]) / 2)
                ends = [rows["objective"] - rows["objective_low"], rows["objective_high"] - rows["objective"]]
                ax.errorbar(
                    x,
                    rows["objective"],
                    ends,
                    marker=look.marker,
                    ls=look.dash,
                    color=look.light,
                    capsize=3,
                    label=name,
                )
            ax.set_xticks(range(1, settings.rounds + 1))
            ax.set(xlabel="round", title=title)
        axes[0].set_ylabel("J of the round, E[r_t] − β KL [reward]")
        axes[0].tick_params(labelleft=True)
        handles, names = axes[1].get_legend_handles_labels()
        drawing.legend(handles, names, loc="outside lower center", ncols=len(names))
    return drawing


def words(settings: NonStatic, summary: pd.DataFrame, runs: pd.DataFrame) -> str:
    """The picture in words."""
    if settings.scale not in EXACT_SCALES:
        parts = []
        for change, strategies in LANGUAGE.items():
            numbers = []
            for strategy in strategies:
                row = _of_language(summary, change, strategy)
                ends = f"[{row['objective_low']:.2f}, {row['objective_high']:.2f}]"
                numbers.append(f"{LOOKS[strategy][1]} {row['objective']:.2f} {ends}")
            parts.append(f"{CHANGES[change]}: {', '.join(numbers)}")
        return f"J of the round against the round, in three panels. Means over the rounds: {'; '.join(parts)}."
    long = [
        f"{rhythm(summary, rate, 0.0)[0]} at {rate:g} rad (formula "
        f"{float(summary[((summary['rate'] - rate).abs() < 1e-6) & (summary['every'] == 1)]['best'].iloc[0]):.1f})"
        for rate in settings.drifts
    ]
    most = max(settings.turns)
    drift = [f"{name} {_mean(summary, 'drift', most, key):.2g}" for key, (_, name) in LOOKS.items()]
    others = []
    for change in CHANGES:
        if change not in ("none", "drift"):
            numbers = [f"{name} {_mean(summary, change, 0.0, key):.2g}" for key, (_, name) in LOOKS.items()]
            others.append(f"{CHANGES[change]}: {', '.join(numbers)}")
    return (
        f"Three panels. Left: regret against window falls and rises again; best window {', '.join(long)}. Middle: "
        f"mean regret against drift; at a turn of {most:.2g} rad {', '.join(drift)}. Right: "
        f"{'; '.join(others)}."
    )
