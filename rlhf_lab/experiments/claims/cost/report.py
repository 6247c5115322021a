"""Decision and picture of claim 8: what each method costs, and how its results differ from those of DPO."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from rlhf_lab.experiments import statistics
from rlhf_lab.experiments.claims.cost.settings import MARGIN, Cost
from rlhf_lab.experiments.claims.cost.setup import TRAINED
from rlhf_lab.experiments.methods import METHODS
from rlhf_lab.experiments.verdicts import Number, Verdict, outcome_of, side
from rlhf_lab.figures import style
from rlhf_lab.intervals import Interval

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_RSO = "rso-rso-sample-rank"
NAMES = {method: "rso" if method == _RSO else method for method in TRAINED}
"""How the numbers of a result name each method."""
AT_END = ("objective", "seconds", "samples", "to_seconds", "to_samples", "spread")


DECISIVE = ("ppo", _RSO)
"""The methods whose J is compared with DPO's by the rule."""


def log_memory_ratios(runs: pd.DataFrame) -> np.ndarray:
    """Return log of DPO's memory divided by PPO's, for each seed where it was measured, and otherwise exact."""
    part = runs[runs["when"] == "memory"]
    if part.empty:
        held = runs[runs["when"] == "end"].groupby("method")["held"].first()
        ratios = np.array([held["dpo"] / held["ppo"]] * 2)
        return np.asarray(np.log(ratios))
    wide = part.pivot(index="seed", columns="method", values="own")[["dpo", "ppo"]].dropna()
    return np.asarray(np.log(wide["dpo"] / wide["ppo"]))


def decisive(runs: pd.DataFrame) -> dict[str, Interval]:
    """Return the memory ratio and the two differences in J that decide, with intervals corrected for their number."""
    end = runs[runs["when"] == "end"]
    compared = {f"lead_{NAMES[m]}": statistics.paired(end, "method", "dpo", m, "objective") for m in DECISIVE}
    saved = log_memory_ratios(runs) - math.log(1 - MARGIN)
    found = statistics.holm_intervals(compared | {"memory_ratio": saved})
    ratio = Interval(*((1 - MARGIN) * math.exp(one) for one in found["memory_ratio"]))
    return found | {"memory_ratio": ratio}


def leads(runs: pd.DataFrame) -> dict[str, Interval]:
    """Return J of DPO at the end minus that of each other trained method, paired within the seed, uncorrected."""
    end = runs[runs["when"] == "end"]
    return {m: statistics.difference(end, "method", "dpo", m, "objective") for m in TRAINED if m != "dpo"}


def final(summary: pd.DataFrame, method: str, metric: str, when: str = "end") -> Interval:
    """Return a metric of a method, at the end or of the measured memory, with its interval over seeds."""
    return statistics.interval_at(summary, metric, method=method, when=when)


def numbers_of(settings: Cost, summary: pd.DataFrame, runs: pd.DataFrame) -> dict[str, Number]:
    """Return the numbers of a result by name, such as `seconds_ppo` for PPO's processor time.

    `reached` is the number of seeds that reach the equal reward, and `to_…` the cost until then, its mean over these
    seeds. `held` is the size of weights, gradients and Adam's moments, in KiB or MiB. `spread` is the standard
    deviation of J over seeds. A number that does not exist is left out.
    """
    found = leads(runs)
    numbers: dict[str, Number] = {f"lead_{NAMES[method]}": lead for method, lead in found.items()}
    numbers |= decisive(runs)
    numbers |= {name: final(summary, "dpo", name) for name in ("start", "level")}
    unit, factor = ("kib", 1024) if settings.exact else ("mib", 1)
    for method, name in NAMES.items():
        numbers |= {f"{metric}_{name}": final(summary, method, metric) for metric in AT_END}
        numbers[f"held_{unit}_{name}"] = final(summary, method, "held").mean * factor
        numbers[f"networks_{name}"] = METHODS[method].networks
        numbers[f"reached_{name}"] = round(final(summary, method, "reached").mean * settings.seeds)
    numbers["responses_best_of_n"] = final(summary, "best-of-n", "an_answer")
    for method in summary[summary["when"] == "memory"]["method"]:
        numbers[f"peak_mib_{NAMES[method]}"] = final(summary, method, "own", "memory")
    return {name: one for name, one in numbers.items() if not isinstance(one, Interval) or one.mean == one.mean}


def decide(settings: Cost, summary: pd.DataFrame, runs: pd.DataFrame) -> Verdict:
    """Apply the rule (`settings.RULE`) to the numbers."""
    samples = {method: final(summary, method, "samples").mean for method in ("dpo", "ppo")}
    parts = decisive(runs)
    easy = 1 if samples["dpo"] == 0 < samples["ppo"] else -1
    one, other = (side(parts[f"lead_{NAMES[method]}"]) for method in DECISIVE)
    thresholds = dict.fromkeys(parts, 0.0) | {"memory_ratio": 1 - MARGIN}
    outcome = outcome_of([easy, -side(parts["memory_ratio"], 1 - MARGIN), -one * other])
    return Verdict(outcome, numbers_of(settings, summary, runs), thresholds)


def figure(settings: Cost, summary: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Draw reward against processor time, J at the end with its spread over seeds, and memory."""
    from rlhf_lab.figures import statistical

    styles = {method: style.of(method) for method in TRAINED} | {_RSO: style.of(_RSO, label="RSO")}
    with style.use():
        drawing, (one, two, three) = style.subplots(1, 3, 15, 5.2)
        steps = summary[summary["method"].isin(TRAINED) & summary["when"].str.startswith("step")]
        statistical.interval_lines(
            one, steps[["method", "seconds", "reward"]], "seconds", "reward", "method", styles, legend=False,
            lines={"markersize": 5}, xscale="log", xlabel="processor time on one thread [s]",
            ylabel="gold reward [units of a label]", title="Reward during training",
        )  # fmt: skip
        for axis in (one.xaxis.set_major_formatter, one.xaxis.set_minor_formatter):
            axis(lambda value, place: f"{value:g}" if f"{value:.0e}"[0] in "125" else "")
        one.axhline(final(summary, "dpo", "level").mean, color=style.colour("optimal"), ls="--", label="equal reward")
        one.axhline(final(summary, "dpo", "start").mean, color=style.colour("reference"), ls=":", label="π_ref")
        end = runs[(runs["when"] == "end") & runs["method"].isin(TRAINED)]
        statistical.seed_values(
            two, end, "method", "objective", styles, ylabel="J [units of a label]",
            title="J at the end, with 95% intervals",
        )  # fmt: skip
        _memory_panel(three, settings, summary, styles)
        for ax, label in ((two, "method"), (three, "method (bars: weights, gradients, Adam's moments)")):
            ax.set_xlabel(label)
            for tick in ax.get_xticklabels():
                tick.set(rotation=40, ha="right", fontsize=10)
        statistical.legend_below(drawing, one, three, columns=10)
    return drawing


def _memory_panel(ax: Axes, settings: Cost, summary: pd.DataFrame, styles: dict[str, style.Style]) -> None:
    """Draw the computed size of each method's numbers as bars and the measured peak as points with intervals."""
    from rlhf_lab.figures import statistical

    unit, factor = ("KiB", 1024) if settings.exact else ("MiB", 1)
    end = summary[(summary["when"] == "end") & summary["method"].isin(TRAINED)]
    held = end[["method"]].assign(held=end["held"] * factor)
    statistical.interval_bars(ax, held, "method", "held", looks=styles, ylabel=f"memory [{unit}]", title="Memory")
    peaks = summary[summary["when"] == "memory"]
    if len(peaks):
        peaks = peaks.set_index("method").loc[[m for m in TRAINED if m in set(peaks["method"])]].reset_index()
        statistical.interval_points(
            ax, peaks.assign(kind="peak"), "method", "own", "kind",
            {"peak": style.of("optimal", label="measured peak", marker="D")},
            names={method: one.label for method, one in styles.items()}, vertical=True, legend=False,
        )  # fmt: skip
