"""Explorer of every method's training trajectory in the plane of KL and reward, with the optimum π* for any β."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.errors import LabError, check_beta
from rlhf_lab.experiments.trajectories import Trajectory
from rlhf_lab.figures import style
from rlhf_lab.figures.picture import Axis, Curve, Layer, Panel, Picture, Points, Readout
from rlhf_lab.intervals import typeset
from rlhf_lab.language import tr
from rlhf_lab.widgets.explorer import Choice, Explorer, Slider


@dataclass(frozen=True)
class RecordedWorld:
    """A world and the training trajectories recorded in it.

    Attributes:
        log_ref: log π_ref, (X, K), nats.
        reward: gold rewards, (X, K).
        trajectories: by style key, (kl, reward) of each method during training, (S,) each, as means over seeds
            and prompts.
        beta: the β that the methods were trained for.
    """

    log_ref: Tensor
    reward: Tensor
    trajectories: Mapping[str, tuple[Tensor, Tensor]]
    beta: float


def recorded_world(log_ref: Tensor, reward: Tensor, trajectories: Sequence[Trajectory], beta: float) -> RecordedWorld:
    """Average the recorded trajectories of each method over its seeds.

    Args:
        log_ref: log π_ref, (X, K), nats.
        reward: gold rewards, (X, K).
        trajectories: recorded by `experiments.trajectories`; all trajectories of one method have the same length.
        beta: the β that the methods were trained for.

    Raises:
        LabError: no trajectory; a method whose trajectories differ in length.
    """
    found: dict[str, list[Trajectory]] = {}
    for one in trajectories:
        found.setdefault(one.method, []).append(one)
    if not found:
        raise LabError("There is no trajectory to show. Record some with experiments.trajectories.")
    for key, several in found.items():
        lengths = {len(one.kl) for one in several}
        if len(lengths) > 1:
            raise LabError(
                f"The trajectories of {key!r} have the lengths {sorted(lengths)}. Record them with the same `every`."
            )
    means = {
        key: (torch.stack([r.kl for r in several]).mean(0), torch.stack([r.reward for r in several]).mean(0))
        for key, several in found.items()
    }
    return RecordedWorld(log_ref.detach().double(), reward.detach().double(), means, check_beta(beta))


def along(values: Tensor, share: float) -> float:
    """The value at `share` ∈ [0, 1] of the way through `values` (S,), linear between two places."""
    at = share * (len(values) - 1)
    before = min(int(at), max(len(values) - 2, 0))
    after = min(before + 1, len(values) - 1)
    return float(values[before] + (at - before) * (values[after] - values[before]))


def trajectories_picture(
    shown: RecordedWorld, percent: float, beta: float, curve: tuple[Tensor, Tensor] | None = None
) -> Picture:
    """Draw every method after `percent` of its training, and its regret at `beta`.

    Args:
        shown: the world and the trajectories.
        percent: share of the training, 0 to 100.
        beta: β of the regret; the methods were trained for `shown.beta`.
        curve: `frontier_of(shown)`, if it has been computed.

    Returns:
        the picture; its numbers are those of π* and of the best method.

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
    lines: list[Layer] = [Curve("optimal", *frontier, "π*, every β")]
    points: list[Layer] = [Points("reference", [0.0], [start], "π_ref")]
    sticks: list[Layer] = []
    now: dict[str, float] = {}
    highest = value - start
    for place, (key, (kl, reward)) in enumerate(shown.trajectories.items()):
        here = (along(kl, share), along(reward, share))
        # Both numbers are means over prompts, and so is regret: J(π*) − (E[r] − β KL).
        now[key] = value - (here[1] - beta * here[0])
        highest = max(highest, float((value - (reward - beta * kl)).max()))
        lines.append(Curve(key, kl, reward, "", dash="-"))
        points.append(Points(key, [here[0]], [here[1]], ""))
        sticks.append(Points(key, [float(place)], [now[key]], "", low=[0.0], high=[now[key]]))
    reach = max([float(kl.max()) for kl, _ in shown.trajectories.values()] + [star_kl])
    everything = [r for _, rewards in shown.trajectories.values() for r in rewards.tolist()] + [start, star_reward]
    room = 0.08 * (max(everything) - min(everything)) or 1.0
    plane = Panel(
        "Reward against KL",
        Axis("KL(π‖π_ref) [nats]", -0.03 * reach, 1.1 * reach),
        Axis("expected reward [reward]", min(everything) - room, max(everything) + 2 * room),
        (*lines, *points, Points("optimal", [star_kl], [star_reward], "π* at β", big=True)),
        width=0.8,  # the names below the other panel need the room
    )
    names = tuple(_short(key) for key in shown.trajectories)
    lacking = Panel(
        "Regret of each method",
        Axis("method", names=names),
        Axis("regret J(π*) − J(π) [reward]", 0.0, 1.05 * max(highest, 1e-6)),
        tuple(sticks),
    )
    best = min(now, key=lambda key: now[key])
    ranked = tr(", ").join(f"{_short(key)} {typeset(now[key], '.2f')}" for key in sorted(now, key=lambda key: now[key]))
    trained = tr(" (the methods were trained for β = {trained:.3g})", trained=shown.beta)
    text = tr(
        "After {percent:.0f}% of training, the regrets at β = {beta:.3g}{trained} are: {ranked}. π* has E[r] = {star} "
        "at a KL of {star_kl:.2f} nats.",
        percent=percent, beta=beta, trained="" if abs(beta - shown.beta) < 1e-9 else trained, ranked=ranked,
        star=typeset(star_reward, ".2f"), star_kl=star_kl,
    )  # fmt: skip
    numbers = (
        Readout("J(π*)", value, "reward"),
        Readout("KL(π*‖π_ref)", star_kl, "nats"),
        Readout(tr("minimum regret ({method})", method=_short(best)), now[best], "reward"),
    )
    return Picture(text, (plane, lacking), numbers)


def frontier_of(shown: RecordedWorld) -> tuple[Tensor, Tensor]:
    """(KL, E[r]) of π* along β, means over prompts."""
    kl, reward = exact.frontier(shown.log_ref, shown.reward, torch.logspace(-2, 3, 121, dtype=torch.float64))
    return kl.mean(0), reward.mean(0)


def _short(key: str) -> str:
    short = {"rso-rso-sample-rank": "RSO", "rso-sft-sample-rank": "RSO, sft", "rso-paper": "RSO, γ = 0.05"}
    return tr(short.get(key, style.label(key)))


def trajectories_explorer(
    worlds: Mapping[str, RecordedWorld], percent: int = 100, beta: float | None = None
) -> Explorer:
    """Show all trajectories in one plane, with sliders for the progress of training and for β.

    Args:
        worlds: by the name shown. The first one is shown at the start.
        percent: share of the training at the start.
        beta: β at the start, in [0.05, 5]; None takes that of the first world.

    Raises:
        LabError: no world.
    """
    if not worlds:
        raise LabError("worlds is empty. Give at least one world with its trajectories.")
    listed = list(worlds.values())
    curves = [frontier_of(shown) for shown in listed]

    def compute(percent: int, beta: float, world: int = 0) -> Picture:
        return trajectories_picture(listed[world], percent, beta, curves[world])

    first = listed[0].beta if beta is None else beta
    controls: dict[str, Slider | Choice] = {
        "percent": Slider(percent, 0, 100, "training done [%]", whole=True),
        "beta": Slider(first, 0.05, 5.0, "β [reward per nat]", log=True),
    }
    if len(listed) > 1:
        controls["world"] = Choice(0, {name: i for i, name in enumerate(worlds)}, "world")
    advice = (
        "Move the training from 0 to 100%. Then change β: which method has the lowest regret at another KL penalty?"
    )
    return Explorer(compute, controls, "All trajectories in one plane", advice)
