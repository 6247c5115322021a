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


class Trajectory(Protocol):
    """The places of one run during training: its method, and KL and reward (S,) from the start to the end."""

    method: str
    kl: np.ndarray
    reward: np.ndarray


@style.use()
def trajectories_on_frontier(
    ax: Axes,
    trajectories: Sequence[Trajectory],
    curve: pd.DataFrame,
    beta: float,
    names: Mapping[str, str] | None = None,
) -> None:
    """Draw every trajectory as a thin line that ends in the method's marker, below the exact frontier.

    Args:
        ax: where to draw.
        trajectories: of several methods and seeds.
        curve: columns `beta`, `kl` (nats), `reward`: π* along β.
        beta: the β whose π* is marked by a star.
        names: names for the legend by method; the style's label where one is missing.

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
    _limits(ax, trajectories, optimum(curve, beta))
    ax.legend(loc="lower right", ncols=2)


def _limits(ax: Axes, trajectories: Sequence[Trajectory], star: tuple[float, float]) -> None:
    """Set limits that show every trajectory and π*, with little room beside them."""
    furthest = max(float(one.kl.max()) for one in trajectories)
    gains = [float(end) for one in trajectories for end in (one.reward.min(), one.reward.max())]
    low, high = min(gains), max([*gains, star[1]])
    ax.set_xlim(-0.03 * furthest, 1.08 * max(furthest, star[0]))
    ax.set_ylim(low - 0.06 * (high - low), high + 0.12 * (high - low))


@style.use()
def regret_split(
    ax: Axes, parts: Mapping[str, tuple[Sequence[float], Sequence[float]]], names: Mapping[str, str] | None = None
) -> None:
    """Draw each method's regret as a bar of two parts: lost below the frontier, and the wrong place on it.

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
    ax.bar(0, 0, color="#555555", label="lost below the frontier")
    ax.bar(0, 0, color="#555555", label="wrong place on it", **hatched)
    ax.set(xlim=(0, None), ylabel="", title="Where the regret comes from", xlabel="regret J(π*) − J(π) [reward]")
    # The legend is below the axes, because bars and intervals may be anywhere.
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)
