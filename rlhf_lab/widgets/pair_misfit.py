r"""Explorer of pairs from π_r for a restricted policy: where they lower the regret, and where they raise it.

The policy's implicit reward is linear in three features, and DPO with γ = β sees infinitely many pairs. The worlds and
the limits are those of the experiment rso-phase (`experiments/claims/rso_phase/misfit.py`).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from rlhf_lab.errors import LabError
from rlhf_lab.evaluation import mean_interval
from rlhf_lab.experiments.claims.rso_phase.misfit import (
    KINDS,
    LinearWorld,
    dpo_limit,
    linear_world,
    regrets,
    sources,
    stacked,
)
from rlhf_lab.figures.picture import Axis, Band, Curve, Panel, Picture, Points, Readout, Rule
from rlhf_lab.language import tr
from rlhf_lab.widgets.explorer import Choice, Explorer, Slider

BETAS = tuple(float(f"{10**e:.3g}") for e in torch.linspace(-1, math.log10(2), 9).tolist())
"""The β at which the curves are computed."""
NAMES = {"noise": "independent noise", "saturating": "reward saturates", "accelerating": "reward accelerates"}
STYLES = {"r": "rso-rso-sample-rank", "mixture": "online"}
LABELS = {"r": "from π_r", "mixture": "half of each"}
LOWEST, HIGHEST = 0.01, 5.0


@lru_cache(maxsize=2)
def _worlds(number: int, responses: int) -> LinearWorld:
    return stacked([linear_world("bandit", seed, responses) for seed in range(number)])


def regret_ratios(world: LinearWorld, kind: str, share: float, beta: float) -> dict[str, tuple[float, float, float]]:
    """The regret with pairs of π_r and of the mixture over that with pairs of π_ref: geometric means with intervals."""
    found = regrets(world, world.reward(kind, share), beta)[0].log()
    return {
        name: tuple(math.exp(one) for one in mean_interval((found[i] - found[0]).numpy()))  # type: ignore[misc]
        for i, name in ((1, "r"), (2, "mixture"))
    }


def fits(world: LinearWorld, kind: str, share: float, beta: float) -> tuple[Tensor, Tensor]:
    """The reward (K,) of the first world, and the implicit rewards of its fits to pairs of π_ref and of π_r, (2, K).

    A constant is added to each fit, so that it agrees with the reward in its mean under π*.
    """
    one = LinearWorld(world.log_ref[0], world.basis[0], world.linear[0], world.noise[0])
    reward = one.reward(kind, share)
    log_sources = sources(one.log_ref, reward, beta)
    star, found = log_sources[1].exp(), dpo_limit(one.basis, log_sources, reward.expand_as(log_sources))[:2]
    return reward, found + ((reward - found) * star).sum(-1, keepdim=True)


def pair_misfit_picture(kind: str, share: float, beta: float, worlds: int = 40, responses: int = 20) -> Picture:
    """Draw the fits in one world, and the regret by source of the pairs over β.

    Args:
        kind: noise, saturating or accelerating; what the class misses of the reward.
        share: of the reward's variance, in (0, 1).
        beta: β = γ, in units of the reward's standard deviation.
        worlds: number of random worlds of the intervals, at least 2.
        responses: in a world.

    Returns:
        the picture; its numbers are the regrets relative to pairs from π_ref.

    Raises:
        LabError: an unknown kind, or a share or number of worlds out of range.
    """
    if kind not in KINDS or not 0 < share < 1 or worlds < 2:
        raise LabError(f"kind must be one of {', '.join(KINDS)}, share in (0, 1), and worlds at least 2.")
    world = _worlds(worlds, responses)
    reward, found = fits(world, kind, share, beta)
    low, high = float(reward.min()) - 0.5, float(reward.max()) + 0.5
    lowest, highest = _ends(kind, share, worlds, responses)
    here = regret_ratios(world, kind, share, beta)
    scatter = Panel(
        "Fits in one world, by source of pairs",
        Axis("reward r(y) [SD]", low, high),
        Axis("implicit reward f(y) [SD]", lowest - 0.5, highest + 0.5),
        (
            Curve("optimal", [low, high], [low, high], "f = r", "--"),
            Points("reference", reward, found[0], "from π_ref"),
            Points(STYLES["r"], reward, found[1], LABELS["r"]),
        ),
    )
    layers: list[Band | Curve | Points | Rule] = [Rule("reference", 1.0, "y", "from π_ref")]
    for name, curve in _curves(kind, share, worlds, responses).items():
        mean, lower, upper = torch.tensor(curve).clamp(LOWEST, HIGHEST).T
        layers += [
            Band(STYLES[name], BETAS, lower, upper, ""),
            Curve(STYLES[name], BETAS, mean, LABELS[name]),
            Points(STYLES[name], [beta], [min(max(here[name][0], LOWEST), HIGHEST)], "", big=name == "r"),
        ]
    ratios = Panel(
        "Regret, relative to π_ref's pairs",
        Axis("β = γ [SD of the reward]", 0.0, BETAS[-1]),
        Axis("ratio of regrets", LOWEST, HIGHEST, log=True),
        tuple(layers),
    )
    mean, lower, upper = here["r"]
    effect = "lower" if upper < 1 else "raise" if lower > 1 else "do not clearly change"
    text = tr(
        "The class misses {share:.0%} of the reward's variance ({kind}). At β = {beta:.2g}, pairs from π_r {effect} "
        "the regret: it is {mean:.2g} times that with pairs from π_ref, with the interval {lower:.2g} to {upper:.2g} "
        "over {worlds} worlds. With half of each it is {half:.2g} times.",
        share=share, kind=tr(NAMES[kind]), beta=beta, effect=tr(effect), mean=mean, lower=lower, upper=upper,
        worlds=worlds, half=here["mixture"][0],
    )  # fmt: skip
    numbers = (
        Readout("regret, π_r / π_ref", mean),
        Readout("lower end", lower),
        Readout("upper end", upper),
        Readout("regret, half / π_ref", here["mixture"][0]),
    )
    return Picture(text, (scatter, ratios), numbers)


@lru_cache(maxsize=64)
def _curves(kind: str, share: float, worlds: int, responses: int) -> dict[str, list[tuple[float, float, float]]]:
    """`regret_ratios` at every β of `BETAS`, by source."""
    found = [regret_ratios(_worlds(worlds, responses), kind, share, beta) for beta in BETAS]
    return {name: [one[name] for one in found] for name in STYLES}


@lru_cache(maxsize=64)
def _ends(kind: str, share: float, worlds: int, responses: int) -> tuple[float, float]:
    """The smallest and the largest value among the reward and its fits at every β of `BETAS`."""
    world = _worlds(worlds, responses)
    values = torch.cat([torch.cat([reward, *found]) for reward, found in (fits(world, kind, share, b) for b in BETAS)])
    return float(values.min()), float(values.max())


def pair_misfit_explorer(kind: str = "noise", share: float = 0.1, beta: float = 0.5) -> Explorer:
    """Show where pairs from π_r help, with controls for the kind and the size of the misfit and for β.

    Args:
        kind: at the start.
        share: of the reward's variance that the class misses, at the start; 0.01, 0.03, 0.1, 0.3 or 0.6.
        beta: at the start, in [0.1, 2].
    """
    return Explorer(
        pair_misfit_picture,
        {
            "kind": Choice(kind, {name: key for key, name in NAMES.items()}, "what the policy misses"),
            "share": Choice(share, {f"{s:.0%}": s for s in (0.01, 0.03, 0.1, 0.3, 0.6)}, "share of the variance"),
            "beta": Slider(beta, BETAS[0], BETAS[-1], "β = γ [SD of the reward]", log=True),
        },
        "Pairs from π_r for a restricted policy",
    )
