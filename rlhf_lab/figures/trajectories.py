"""Roads below the frontier: where every method went, and how its regret splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from rlhf_lab.errors import LabError
from rlhf_lab.figures import style
from rlhf_lab.figures.frontier import frontier

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


class Road(Protocol):
    """What is drawn of a run: `experiments.roads.Road` is one."""

    method: str
    kl: np.ndarray
    reward: np.ndarray


@style.use()
def roads_on_frontier(
    ax: Axes, roads: Sequence[Road], curve: pd.DataFrame, beta: float, names: Mapping[str, str] | None = None
) -> None:
    """Draw every road as a thin line and its end as the method's marker, below the exact frontier.

    Args:
        ax: where to draw.
        roads: of several methods and seeds.
        curve: columns `beta`, `kl` (nats), `reward`: π* along β.
        beta: where the star stands.
        names: names for the legend by method; the style's own where one is missing.

    Raises:
        LabError: no road.
    """
    if not roads:
        raise LabError("roads is empty: record some with experiments.roads.walk.")
    frontier(ax, curve, beta)
    seen: set[str] = set()
    for road in roads:
        look = style.of(road.method)
        ax.plot(road.kl, road.reward, color=look.light, lw=1.1, alpha=0.6, zorder=3)
        label = None if road.method in seen else (names or {}).get(road.method, look.label)
        seen.add(road.method)
        ax.plot(
            [road.kl[-1]], [road.reward[-1]], look.marker, color=look.light, ms=9, mec="white", mew=0.8, zorder=5,
            ls="", label=label,
        )  # fmt: skip
    start = style.of("reference")
    ax.plot([roads[0].kl[0]], [roads[0].reward[0]], start.marker, color=start.light, ms=9, zorder=5, label=start.label)
    furthest = max(float(road.kl.max()) for road in roads)
    gains = [float(end) for road in roads for end in (road.reward.min(), road.reward.max())]
    logs = np.log(curve["beta"].to_numpy(float))
    order = np.argsort(logs)
    star = [np.interp(np.log(beta), logs[order], curve[c].to_numpy(float)[order]) for c in ("kl", "reward")]
    low, high = min(gains), max([*gains, star[1]])
    ax.set_xlim(-0.03 * furthest, 1.08 * max(furthest, star[0]))
    ax.set_ylim(low - 0.06 * (high - low), high + 0.12 * (high - low))
    ax.legend(loc="lower right", ncols=2)


@style.use()
def regret_split(
    ax: Axes, parts: Mapping[str, tuple[Sequence[float], Sequence[float]]], names: Mapping[str, str] | None = None
) -> None:
    """Draw each method's regret as a bar of two parts: lost below the frontier, and the wrong place on it.

    Args:
        ax: where to draw.
        parts: by method, the two parts of every seed in units of reward. The bar shows means, its line the 95%
            interval of their sum over seeds.
        names: names by method; the style's own where one is missing.

    Raises:
        LabError: no method.
    """
    from rlhf_lab.evaluation import mean_interval

    if not parts:
        raise LabError("parts is empty: give at least one method.")
    order = sorted(parts, key=lambda key: float(np.mean(np.add(*parts[key]))), reverse=True)
    labels = []
    for place, key in enumerate(order):
        look = style.of(key)
        below, off = (np.asarray(values, float) for values in parts[key])
        _, low, high = mean_interval(below + off)
        first, second = below.mean(), off.mean()
        ax.barh(place, first, color=look.light, height=0.6)
        ax.barh(place, second, left=first, color=look.light, alpha=0.35, height=0.6, hatch="//", edgecolor="white")
        if low == low:
            ax.plot([max(low, 0.0), high], [place, place], color="#222222", lw=1.6, zorder=5)
        labels.append((names or {}).get(key, look.label))
    ax.set_yticks(range(len(order)), labels)
    ax.grid(visible=False, axis="y")
    ax.bar(0, 0, color="#555555", label="lost below the frontier")
    ax.bar(0, 0, color="#555555", alpha=0.35, hatch="//", edgecolor="white", label="wrong place on it")
    ax.set_xlim(left=0)
    ax.set(title="Where the regret comes from", xlabel="regret J(π*) − J(π) [reward]")
    # Below the axes: bars and intervals may reach anywhere.
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)
