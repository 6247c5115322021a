"""Every method's road on the map of KL and reward: walk along them, and move the goal with β."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.errors import LabError, check_beta
from rlhf_lab.experiments.trajectories import Road
from rlhf_lab.figures import style
from rlhf_lab.figures.picture import Axis, Layer, Line, Number, Panel, Picture, Points
from rlhf_lab.widgets.explorer import Choice, Explorer, Slider


@dataclass(frozen=True)
class Scene:
    """A world and the roads walked in it.

    Attributes:
        log_ref: log π_ref, (X, K), nats.
        reward: gold rewards, (X, K).
        roads: by style key, the places (kl, reward) of each method, (S,) each; means over seeds and prompts.
        beta: the β that the methods were trained for.
    """

    log_ref: Tensor
    reward: Tensor
    roads: Mapping[str, tuple[Tensor, Tensor]]
    beta: float


def scene(log_ref: Tensor, reward: Tensor, roads: Sequence[Road], beta: float) -> Scene:
    """Recorded roads as a scene: every method's places, averaged over its seeds.

    Args:
        log_ref: log π_ref, (X, K), nats.
        reward: gold rewards, (X, K).
        roads: what `experiments.roads.walk` recorded; a method's roads have the same number of places.
        beta: the β that the methods were trained for.

    Raises:
        LabError: no road; a method whose roads differ in length.
    """
    found: dict[str, list[Road]] = {}
    for road in roads:
        found.setdefault(road.method, []).append(road)
    if not found:
        raise LabError("There is no road to show: record some with experiments.roads.walk.")
    for key, several in found.items():
        lengths = {len(road.kl) for road in several}
        if len(lengths) > 1:
            raise LabError(f"The roads of {key!r} have {sorted(lengths)} places: record them with the same `every`.")
    means = {
        key: (torch.stack([r.kl for r in several]).mean(0), torch.stack([r.reward for r in several]).mean(0))
        for key, several in found.items()
    }
    return Scene(log_ref.detach().double(), reward.detach().double(), means, check_beta(beta))


def along(values: Tensor, share: float) -> float:
    """The value at `share` ∈ [0, 1] of the way through `values` (S,), linear between two places."""
    at = share * (len(values) - 1)
    before = min(int(at), max(len(values) - 2, 0))
    after = min(before + 1, len(values) - 1)
    return float(values[before] + (at - before) * (values[after] - values[before]))


def roads_picture(shown: Scene, percent: float, beta: float, curve: tuple[Tensor, Tensor] | None = None) -> Picture:
    """Where every method stands after `percent` of its training, and what it lacks if a nat costs `beta`.

    Args:
        shown: world and roads.
        percent: of the training, 0 to 100.
        beta: the price at which regret is counted; the methods were trained for `shown.beta`.
        curve: what `frontier_of` gives, where it is at hand.

    Returns:
        the picture; its numbers are the star's and the best method's.

    Raises:
        LabError: β not above zero.
    """
    frontier = curve if curve is not None else frontier_of(shown)
    log_star = exact.optimal_policy(shown.log_ref, shown.reward, beta)
    star_kl = float(exact.kl(log_star, shown.log_ref).mean())
    star_reward = float((log_star.exp() * shown.reward).sum(-1).mean())
    start = float((shown.log_ref.exp() * shown.reward).sum(-1).mean())
    value = star_reward - beta * star_kl
    share = min(max(percent / 100, 0.0), 1.0)
    lines: list[Layer] = [Line("optimal", *frontier, "π*, every β")]
    points: list[Layer] = [Points("reference", [0.0], [start], "π_ref")]
    sticks: list[Layer] = []
    now: dict[str, float] = {}
    highest = value - start
    for place, (key, (kl, reward)) in enumerate(shown.roads.items()):
        here = (along(kl, share), along(reward, share))
        # Both numbers are means over prompts, and so is regret: J(π*) − (E[r] − β KL).
        now[key] = value - (here[1] - beta * here[0])
        highest = max(highest, float((value - (reward - beta * kl)).max()))
        lines.append(Line(key, kl, reward, "", dash="-"))
        points.append(Points(key, [here[0]], [here[1]], ""))
        sticks.append(Points(key, [float(place)], [now[key]], "", low=[0.0], high=[now[key]]))
    reach = max([float(kl.max()) for kl, _ in shown.roads.values()] + [star_kl])
    everything = [r for _, rewards in shown.roads.values() for r in rewards.tolist()] + [start, star_reward]
    room = 0.08 * (max(everything) - min(everything)) or 1.0
    road_map = Panel(
        "Reward bought with KL",
        Axis("KL(π‖π_ref) [nats]", -0.03 * reach, 1.1 * reach),
        Axis("expected reward [reward]", min(everything) - room, max(everything) + 2 * room),
        (*lines, *points, Points("optimal", [star_kl], [star_reward], "π* now", big=True)),
        width=1.1,
    )
    names = tuple(_short(key) for key in shown.roads)
    left = Panel(
        "What each still lacks",
        Axis("method", names=names),
        Axis("regret J(π*) − J(π) [reward]", 0.0, 1.05 * max(highest, 1e-6)),
        tuple(sticks),
    )
    best = min(now, key=lambda key: now[key])
    ranked = ", ".join(f"{_short(key)} {_plain(now[key])}" for key in sorted(now, key=lambda key: now[key]))
    trained = "" if abs(beta - shown.beta) < 1e-9 else f" (they were trained for β = {shown.beta:.3g})"
    text = (
        f"After {percent:.0f}% of training, judged at β = {beta:.3g}{trained}: regret {ranked}. "
        f"π* has E[r] = {_plain(star_reward)} for {star_kl:.2f} nats."
    )
    numbers = (
        Number("J(π*)", value, "reward"),
        Number("KL(π*‖π_ref)", star_kl, "nats"),
        Number(f"least regret ({_short(best)})", now[best], "reward"),
    )
    return Picture(text, (road_map, left), numbers)


def frontier_of(shown: Scene) -> tuple[Tensor, Tensor]:
    """(KL, E[r]) of π* along β, means over prompts."""
    kl, reward = exact.frontier(shown.log_ref, shown.reward, torch.logspace(-2, 3, 121, dtype=torch.float64))
    return kl.mean(0), reward.mean(0)


def _short(key: str) -> str:
    return {"rso-rso-sample-rank": "RSO", "rso-sft-sample-rank": "RSO, sft"}.get(key, style.label(key))


def _plain(number: float) -> str:
    return f"{round(number, 2) + 0.0:.2f}".replace("-", "−")


def roads_explorer(scenes: Mapping[str, Scene], percent: int = 100, beta: float | None = None) -> Explorer:
    """All roads on one map, live.

    Args:
        scenes: by the name shown; the first one is shown first.
        percent: of the training at first.
        beta: where β stands at first, in [0.05, 5]; None takes the first scene's.

    Raises:
        LabError: no scene.
    """
    if not scenes:
        raise LabError("scenes is empty: give at least one world with its roads.")
    listed = list(scenes.values())
    curves = [frontier_of(shown) for shown in listed]

    def compute(percent: int, beta: float, world: int = 0) -> Picture:
        return roads_picture(listed[world], percent, beta, curves[world])

    first = listed[0].beta if beta is None else beta
    controls: dict[str, Slider | Choice] = {
        "percent": Slider(percent, 0, 100, "training done [%]", whole=True),
        "beta": Slider(first, 0.05, 5.0, "β [reward per nat]", log=True),
    }
    if len(listed) > 1:
        controls["world"] = Choice(0, {name: i for i, name in enumerate(scenes)}, "world")
    advice = "Walk from 0 to 100%. Then move β: which method would you have wanted at another price?"
    return Explorer(compute, controls, "All roads on one map", advice)
