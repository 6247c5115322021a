"""Training trajectories of each method below the exact frontier, and the two parts of each method's regret."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from rlhf_lab.errors import LabError
from rlhf_lab.figures import style
from rlhf_lab.figures.frontier import frontier, optimum
from rlhf_lab.figures.statistical import interval_bars

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


class DrawnTrajectory(Protocol):
    """The places of one run during training: its method, and KL and reward (S,) from the start to the end."""

    method: str
    kl: np.ndarray
    reward: np.ndarray


@style.use()
def trajectories_on_frontier(
    ax: Axes,
    trajectories: Sequence[DrawnTrajectory],
    curve: pd.DataFrame,
    beta: float,
    names: Mapping[str, str] | None = None,
    limits: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    """Draw every trajectory as a thin line that ends in the method's marker, below the exact frontier.

    Args:
        ax: where to draw.
        trajectories: of several methods and seeds.
        curve: columns `beta`, `kl` (nats), `reward`: π* along β.
        beta: the β whose π* is marked by a star.
        names: names for the legend by method; the style's label where one is missing.
        limits: by method, KL and reward of the policy to which it converges, drawn as the method's marker in a ring.

    Raises:
        LabError: no trajectory.
    """
    if not trajectories:
        raise LabError("trajectories is empty. Record some with experiments.trajectories.")
    frontier(ax, curve, beta)
    seen: set[str] = set()
    for one in trajectories:
        look = style.of(one.method)
        label = None if one.method in seen else (names or {}).get(one.method, look.label)
        seen.add(one.method)
        ax.plot(one.kl, one.reward, color=look.light, lw=1.1, alpha=0.6, zorder=3)
        ax.plot(one.kl[-1:], one.reward[-1:], ms=9, zorder=5, label=label, **{**look.line(), "linestyle": "none"})
    first, start = trajectories[0], style.of("reference")
    ax.plot(first.kl[:1], first.reward[:1], start.marker, color=start.light, ms=9, zorder=5, label=start.label)
    ring: dict[str, Any] = {"marker": "o", "markerfacecolor": "none", "linestyle": "none", "ms": 17, "mew": 1.2}
    for key, (kl, reward) in (limits or {}).items():
        look = style.of(key)
        ax.plot([kl], [reward], ms=8, zorder=4, **{**look.line(), "linestyle": "none"})
        ax.plot([kl], [reward], color=look.light, zorder=4, **ring)
    if limits:
        ax.plot([], [], color="#555555", label="limit of the method", **ring)
    star = style.of("optimal")
    ax.plot([], [], star.marker, color=star.light, ms=14, mew=1.4, mfc="none", label=f"π* at β = {beta:g}")
    ax.plot([], [], color=star.light, lw=2, label="frontier")
    _set_limits(ax, trajectories, [optimum(curve, beta), *(limits or {}).values()])
    # The legend is below the axes, because trajectories may be anywhere.
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3)


def _set_limits(ax: Axes, trajectories: Sequence[DrawnTrajectory], points: Sequence[tuple[float, float]]) -> None:
    """Set limits that show every trajectory and every point, with little room beside them."""
    kls, rewards = (list(values) for values in zip(*points, strict=True))
    kls.append(max(float(one.kl.max()) for one in trajectories))
    rewards += [float(end) for one in trajectories for end in (one.reward.min(), one.reward.max())]
    low, high = min(rewards), max(rewards)
    ax.set_xlim(-0.03 * max(kls), 1.08 * max(kls))
    ax.set_ylim(low - 0.06 * (high - low), high + 0.12 * (high - low))


@style.use()
def regret_split(
    ax: Axes, parts: Mapping[str, tuple[Sequence[float], Sequence[float]]], names: Mapping[str, str] | None = None
) -> None:
    """Draw each method's regret as a bar of two parts: the loss below the frontier, and that from the place on it.

    Args:
        ax: where to draw.
        parts: by method, the two parts of every seed in units of reward. The bar shows means, its line the 95%
            interval of their sum over seeds.
        names: names by method; the style's label where one is missing.

    Raises:
        LabError: no method.
    """
    import pandas as pd

    if not parts:
        raise LabError("parts is empty. Give at least one method.")
    order = sorted(parts, key=lambda key: float(np.mean(np.add(*parts[key]))))
    rows = [{"method": key, "below": a, "regret": a + b} for key in order for a, b in zip(*parts[key], strict=True)]
    frame = pd.DataFrame(rows)
    hatched: dict[str, Any] = {"alpha": 0.35, "hatch": "//", "edgecolor": "white"}
    interval_bars(ax, frame, "regret", "method", bars=hatched)
    interval_bars(ax, frame, "below", "method", bars={"errorbar": None})
    ax.set_yticks(range(len(order)), [(names or {}).get(key, style.label(key)) for key in order])
    ax.bar(0, 0, color="#555555", label="loss below the frontier")
    ax.bar(0, 0, color="#555555", label="loss from the place on it", **hatched)
    ax.set(xlim=(0, None), ylabel="", title="Where the regret comes from", xlabel="regret J(π*) − J(π) [reward]")
    # The legend is below the axes, because bars and intervals may be anywhere.
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)


def comparison(
    trajectories: Sequence[DrawnTrajectory],
    parts: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    curve: pd.DataFrame,
    beta: float,
    names: Mapping[str, str] | None = None,
    limits: Mapping[str, tuple[float, float]] | None = None,
) -> style.Shown:
    """Draw `trajectories_on_frontier` beside `regret_split`, with a text that ranks the methods.

    Args:
        trajectories: see `trajectories_on_frontier`.
        parts: see `regret_split`.
        curve: see `trajectories_on_frontier`.
        beta: see `trajectories_on_frontier`.
        names: names by method; the style's label where one is missing.
        limits: see `trajectories_on_frontier`.

    Raises:
        LabError: no trajectory; no method.
    """
    drawing, axes = style.subplots(1, 2, width=12, height=5.6)
    trajectories_on_frontier(axes[0], trajectories, curve, beta, names, limits)
    regret_split(axes[1], parts, names)
    rows = sorted(((sum(below) + sum(place)) / len(below), sum(below), key) for key, (below, place) in parts.items())
    ranked = [
        f"{(names or {}).get(key, style.label(key))} {regret:.2f} ({below / len(parts[key][0]) / regret:.0%} below)"
        for regret, below, key in rows
    ]
    return style.show(drawing, f"Regret, and its share below the frontier: {', '.join(ranked)}.")
