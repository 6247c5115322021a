"""Curves of training runs: one panel for each logged number, one colour for each run, held-out numbers dashed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rlhf_lab.errors import LabError, spaces_hint
from rlhf_lab.figures import style
from rlhf_lab.figures.statistical import legend_below

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LoggedRows = Sequence[Mapping[str, float]]
HELD_OUT = "eval_"
"""Start of the names of numbers that were measured on held-out data."""
NOT_DRAWN = ("step", "round", "labels", "grow", "improve", "threshold", "kept")
"""Numbers that say where in the run a row is."""
FIRST = ("loss", "loss_per_token", "likelihood_loss", "score", "objective", "kl", "accuracy", "margin")
"""The order of the first panels."""
UNITS = {
    "loss_per_token": "nats per token", "likelihood_loss": "nats", "kl": "nats per response",
    "accuracy": "share of comparisons",
    "reference_point": "nats", "chosen_log_ratio": "nats", "rejected_log_ratio": "nats", "chosen_log_prob": "nats",
    "rejected_log_prob": "nats", "clip_fraction": "share", "first_preferred": "share", "response_tokens": "tokens",
    "tokens_per_second": "tokens per second", "score": "units of the reward", "kept_score": "units of the reward",
    "objective": "units of the reward", "margin": "units of the reward",
}  # fmt: skip
"""The unit of each number, the label of its y axis. Others have none, or one that depends on the method."""
LOOKS = ("dpo", "ppo", "rest", "rso-rso-sample-rank", "raft", "policy", "reference", "optimal")
"""Styles of the runs, which are distinguishable with every kind of colour vision."""


def total_steps(history: LoggedRows) -> list[int]:
    """Return the number of steps since the start of the run for each row. Each round counts its steps from 0."""
    found, before, last = [], 0, 0
    for row in history:
        if row["step"] < last:
            before += last
        last = int(row["step"])
        found.append(before + last)
    return found


def numbers_of(histories: Sequence[LoggedRows]) -> list[str]:
    """Return the names of all numbers in the histories that can be drawn, without `eval_`."""
    names = dict.fromkeys(
        name.removeprefix(HELD_OUT) for history in histories for row in history for name in row if name not in NOT_DRAWN
    )
    return sorted(names, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))


def training_curves(histories: Mapping[str, LoggedRows], names: Sequence[str] = (), title: str = "") -> Figure:
    """Draw the logged numbers of one or several runs against the optimiser step.

    Args:
        histories: the rows of each run's history, by the run's name in the legend; at most 8 runs.
        names: the numbers to draw, such as `loss`. Empty: all.
        title: above all panels.

    Returns:
        the figure, with two panels in a row.

    Raises:
        LabError: no run or too many; no rows; no run has one of the names.
    """
    known = numbers_of(list(histories.values()))
    if not 1 <= len(histories) <= len(LOOKS):
        raise LabError(f"{len(histories)} runs cannot be drawn in one picture. Give 1 to {len(LOOKS)} runs.")
    empty = [run for run, history in histories.items() if not history]
    if empty:
        raise LabError(f"The history of {empty[0]} has no rows. Wait until the run has logged a step.")
    unknown = [name for name in names if name not in known]
    if unknown:
        hint = spaces_hint(unknown[0])
        raise LabError(f"No run has logged {unknown[0]!r}. Logged are {', '.join(known)}.{hint}")
    chosen = list(names) or known
    columns = min(len(chosen), 2)
    rows = -(-len(chosen) // columns)
    drawing, grid = style.subplots(rows, columns, 5.2 * columns, 2.6 * rows + 0.9, squeeze=False)
    axes = grid.flatten().tolist()
    with style.use():
        drawing.suptitle(title or "Training curves", x=0.01, ha="left", weight="bold")
        for ax, name in zip(axes, chosen, strict=False):
            for key, (run, history) in zip(LOOKS, histories.items(), strict=False):
                look, steps = style.of(key, label=run), total_steps(history)
                for logged, label, dash in ((name, run, "-"), (HELD_OUT + name, f"{run}, held out", "--")):
                    points = [(step, row[logged]) for step, row in zip(steps, history, strict=True) if logged in row]
                    if points:
                        # A few markers, so that colour is not the only difference between two runs.
                        often = {"ms": 6, "markevery": 1 if dash == "--" else max(len(points) // 6, 1)}
                        ax.plot(*zip(*points, strict=True), **{**look.line(), "linestyle": dash, **often}, label=label)
            ax.set(
                title=name.replace("_", " "), xlabel="optimiser steps", ylabel=UNITS.get(name, name.replace("_", " "))
            )
        for ax in axes[len(chosen) :]:
            ax.remove()
    legend_below(drawing, *axes[: len(chosen)])
    return drawing
