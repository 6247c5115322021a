"""Figures of the exact frontier with a point for every method, and of the regret by method.

No policy is above the frontier: of all policies with a given KL to the reference, π* at the corresponding β has the
highest reward.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rlhf_lab.errors import LabError
from rlhf_lab.figures import style
from rlhf_lab.figures.statistical import check_columns, interval_lines, interval_points, log_ticks

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def optimum(curve: pd.DataFrame, beta: float) -> tuple[float, float]:
    """KL and reward of π* at `beta`, interpolated in log β between the rows of the frontier `curve`."""
    logs = np.log(curve["beta"].to_numpy(float))
    order = np.argsort(logs)
    kl, reward = (np.interp(np.log(beta), logs[order], curve[c].to_numpy(float)[order]) for c in ("kl", "reward"))
    return float(kl), float(reward)


@style.use()
def frontier(ax: Axes, curve: pd.DataFrame, beta: float | None = None) -> None:
    """Draw the exact frontier and π* at `beta` on it.

    Args:
        ax: where to draw.
        curve: columns `beta`, `kl` (nats), `reward`, one row for each β (`rlhf_lab.exact.frontier`).
        beta: β of the star; None draws no star.
    """
    check_columns(curve, "curve", "beta", "kl", "reward")
    curve = curve.sort_values("kl")
    look = style.of("optimal")
    ax.plot(curve["kl"], curve["reward"], color=look.light, lw=2, zorder=2)
    if beta is not None:
        # The star is hollow and in front, so that the best methods, which lie on it, stay in view.
        ax.plot(*optimum(curve, beta), look.marker, color=look.light, ms=20, mew=1.8, mfc="none", zorder=6)
    ax.set(
        title="Reward against KL",
        xlabel="KL(π‖π_ref) [nats]",
        ylabel="expected reward E[r] [reward]",
    )


@style.use()
def method_points(ax: Axes, summary: pd.DataFrame) -> None:
    """Draw each method's (KL, reward) with its intervals over seeds.

    Args:
        ax: where to draw, usually on top of `frontier`.
        summary: one row for each method; columns `method`, `kl`, `reward`, and, if there are intervals,
            `kl_low`, `kl_high`, `reward_low`, `reward_high`.
    """
    check_columns(summary, "summary", "method", "kl", "reward")
    shown = summary[summary["method"] != "optimal"]  # π* is the star on the frontier
    points = {"linestyle": "none", "markersize": 9, "zorder": 4}
    interval_lines(ax, shown, "kl", "reward", "method", legend=False, lines=points)
    interval_lines(ax, shown, "kl", "reward", "method", along="x", legend=False, lines=points)


@style.use()
def regret_by_method(ax: Axes, summary: pd.DataFrame) -> None:
    """Draw each method's regret as a point with its interval on a log axis, the best method on top.

    Markers and colours are those of `method_points`, so this panel is also the legend of the other.

    Args:
        ax: where to draw.
        summary: columns `method`, `regret` and, if available, `label`, `regret_low`, `regret_high`. π*, whose
            regret is zero, is left out of the logarithmic axis.
    """
    check_columns(summary, "summary", "method", "regret")
    rows = summary[(summary["regret"] > 0) & (summary["method"] != "optimal")].sort_values("regret")
    if len(rows) == 0:
        raise LabError("No method has a regret above zero, so there is nothing to show.")
    smallest = float(rows["regret"].min())
    if "regret_low" in rows.columns:
        # On a log axis an interval that reaches zero is drawn to the axis' left end.
        rows = rows.assign(regret_low=rows["regret_low"].clip(lower=smallest * 0.05))
    names = dict(zip(rows["method"], rows["label"], strict=True)) if "label" in rows.columns else None
    interval_points(ax, rows, "method", "regret", names=names)
    ax.set_xscale("log")
    ax.set_xlim(left=smallest * 0.3)
    low, high = ax.get_xlim()
    # Within two decades, powers of ten alone would give too few ticks.
    log_ticks(ax, (1, 2, 5) if np.log10(high / low) < 2.5 else (1,))
    ax.set(title="Regret of each method", xlabel="regret J(π*) − J(π) [reward, log scale]")


def comparison_figure(summary: pd.DataFrame, frontier_curve: pd.DataFrame, beta: float) -> Figure:
    """Draw the comparison of methods: frontier and points on the left, regret by method on the right.

    Args:
        summary: one row for each method; columns `method` (machine key), `label` (its name), and for each of
            `reward`, `kl` (nats), `regret` the mean and, if available, `<metric>_low`, `<metric>_high`.
        frontier_curve: columns `beta`, `kl` (nats), `reward`: π* along β.
        beta: the β that the methods were trained for.

    Returns:
        a matplotlib figure, 12.4 × 5.6 inches. Save it with `style.png(figure)` or `figure.savefig`.

    Raises:
        LabError: a missing column, no rows, or a method without a style.
    """
    check_columns(summary, "summary", "method", "kl", "reward", "regret")
    from matplotlib.lines import Line2D

    drawing = style.figure(12.4, 5.6)
    with style.use():
        left, right = drawing.subplots(1, 2, width_ratios=[1.15, 1])
        frontier(left, frontier_curve, beta)
        method_points(left, summary)
        regret_by_method(right, summary)
        right.grid(visible=False, axis="y")
        _frame(left, summary, frontier_curve, beta)
        star, grey = style.of("optimal"), style.of("reference")
        handles = [
            Line2D([], [], color=star.light, label="the best any policy can do (π* along β)"),
            Line2D(
                [], [], ls="", marker="*", ms=16, mew=1.8, mfc="none", color=star.light, label=f"π* at β = {beta:g}"
            ),
        ]
        if "reference" in set(summary["method"]):
            handles.append(Line2D([], [], ls="", marker=grey.marker, ms=9, color=grey.light, label=grey.label))
        left.legend(handles=handles, loc="upper left", borderaxespad=0.2, frameon=True, edgecolor="none")
        _zoom(left, summary, frontier_curve, beta)
    return drawing


def _zoom(ax: Axes, summary: pd.DataFrame, curve: pd.DataFrame, beta: float) -> None:
    """Magnify the region around π* in the empty lower right corner, if many methods are close to it."""
    learned = summary[~summary["method"].isin(["reference", "optimal"])]
    if len(learned) == 0:
        return
    box = []
    for metric, (low, high) in (("kl", ax.get_xlim()), ("reward", ax.get_ylim())):
        values = learned[metric].to_numpy(float)
        # The central quantiles, so that an outlier does not determine the magnification.
        first, last = np.quantile(values, [0.0, 1.0] if len(values) < 5 else [0.15, 0.9])
        room = max(last - first, 0.02 * (high - low))
        box.append((first - 0.35 * room, last + 0.35 * room, 1.7 * room / (high - low)))
    (x0, x1, share_x), (y0, y1, share_y) = box
    if share_x > 0.5 or share_y > 0.45:
        return
    inset = ax.inset_axes((0.44, 0.07, 0.54, 0.46))
    frontier(inset, curve, beta)
    method_points(inset, learned)
    inset.set(xlim=(x0, x1), ylim=(y0, y1), title="", xlabel="", ylabel="")
    inset.tick_params(labelsize=9)
    inset.locator_params(nbins=4)
    for spine in inset.spines.values():
        spine.set(visible=True, color="#888888")
    ax.indicate_inset_zoom(inset, edgecolor="#888888")


def _frame(ax: Axes, summary: pd.DataFrame, curve: pd.DataFrame, beta: float) -> None:
    """Set limits that show every point, intervals that are not too wide, and space for the legend."""
    at = np.abs(np.log(curve["beta"].to_numpy(float)) - np.log(beta)).argmin()
    ends = {}
    for metric in ("kl", "reward"):
        points = np.append(summary[metric].to_numpy(float), float(curve[metric].iloc[at]))
        low, high = np.nanmin(points), np.nanmax(points)
        room = max(high - low, 1e-6)
        columns = [c for c in (f"{metric}_low", f"{metric}_high") if c in summary.columns]
        values = np.append(summary[columns].to_numpy(float).ravel(), points)
        # With two or three seeds an interval can be ten times as wide as the range of all methods: it is cut off.
        ends[metric] = max(np.nanmin(values), low - 0.15 * room), min(np.nanmax(values), high + 0.15 * room)
    _, high = ends["kl"]
    ax.set_xlim(-0.03 * high, 1.12 * high)
    low, high = ends["reward"]
    ax.set_ylim(low - 0.08 * (high - low), high + 0.45 * (high - low))
