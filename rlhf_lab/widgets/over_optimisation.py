r"""Explorer of over-optimisation: the gold reward of the optimal policy of a proxy reward model as β falls.

Nothing is trained. Samples of π_ref, weighted by exp(r_proxy/β), represent π_r ∝ π_ref exp(r_proxy/β), which is the
optimal policy of the proxy. As β falls, the proxy reward can only rise; the gold reward rises, stops, or
falls (Gao et al. 2023, "Scaling laws for reward model overoptimization", where best-of-n and PPO do the tilting).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_lab.errors import LabError, check_beta, check_finite
from rlhf_lab.evaluation.frontier import tilted_frontier
from rlhf_lab.evaluation.importance import ENOUGH
from rlhf_lab.evaluation.sampled import Estimate, over_prompts
from rlhf_lab.figures.picture import Axis, Band, Curve, Panel, Picture, Points, Readout, Rule
from rlhf_lab.intervals import typeset
from rlhf_lab.language import tr
from rlhf_lab.widgets.explorer import Choice, Explorer, Slider

BETAS = tuple(float(b) for b in torch.logspace(1.5, -1.5, 31, dtype=torch.float64))
"""The β of the curves, from weak to strong optimisation; proxy reward per nat."""


@dataclass(frozen=True)
class Tilt:
    """The optimal policy of the proxy at one β, from samples of the reference; means over prompts."""

    beta: float
    kl: Estimate
    """KL(π_r‖π_ref), nats."""
    gold: Estimate
    """Its gold reward."""
    promised: Estimate
    """The gold reward that the proxy predicts for it, see `calibrated`."""
    effective: float
    """Effective samples of a prompt, mean over prompts."""
    trusted: bool
    """Whether enough prompts have enough effective samples."""


def calibrated(proxy: Tensor, gold: Tensor) -> Tensor:
    """The proxy in units of the gold reward, by least squares on samples of the reference.

    A reward model is known up to a function of the prompt. Both are therefore centred within prompts, and the mean of
    the gold reward is added again, so that both have the same mean on the reference.

    Args:
        proxy: (B, G).
        gold: (B, G).

    Returns:
        (B, G).
    """
    _check(proxy, gold)
    p, g = (t.double() - t.double().mean(1, keepdim=True) for t in (proxy, gold))
    return gold.double().mean() + p * (p * g).sum() / p.square().sum().clamp(min=1e-12)


def tilt(proxy: Tensor, gold: Tensor, betas: Sequence[float]) -> list[Tilt]:
    """The optimal policy of the proxy at each β.

    Args:
        proxy: r_φ of G samples y ~ π_ref for each of B prompts, (B, G).
        gold: their gold rewards, (B, G).
        betas: each above 0, in units of the proxy.

    Raises:
        LabError: shapes that differ; numbers that are not finite; a β that is not above 0.
    """
    _check(proxy, gold)
    promise, out = calibrated(proxy, gold), []
    for beta, found in zip(betas, tilted_frontier(proxy, betas), strict=True):
        weights = (proxy.double() / beta).softmax(1)
        earned, said = ((weights * values.double()).sum(1) for values in (gold, promise))
        out.append(
            Tilt(float(beta), found.kl, over_prompts(earned), over_prompts(said), found.effective, found.trusted)
        )
    return out


def _check(proxy: Tensor, gold: Tensor) -> None:
    check_finite(proxy, "proxy")
    check_finite(gold, "gold")
    if proxy.shape != gold.shape or proxy.ndim != 2 or min(proxy.shape) < 2:
        raise LabError(
            f"proxy and gold must have the same shape (B, G) with B ≥ 2 and G ≥ 2, not {tuple(proxy.shape)} and "
            f"{tuple(gold.shape)}."
        )


def over_optimisation_picture(
    proxy: Tensor,
    gold: Tensor,
    beta: float,
    curve: Sequence[Tilt] | None = None,
    best: Sequence[tuple[float, float]] | None = None,
    furthest: float | None = None,
) -> Picture:
    """Draw the predicted and the true gold reward against KL, and the number of effective samples against β.

    Args:
        proxy: (B, G), scores of samples of the reference.
        gold: (B, G).
        beta: β > 0, proxy reward per nat.
        curve: `tilt(proxy, gold, BETAS)`; None computes it.
        best: `frontier(gold)`; None computes it.
        furthest: end of the KL axis, nats; None fits it to the curve.

    Returns:
        the picture; its numbers are KL, gold reward, predicted gold reward, and effective samples.
    """
    check_beta(beta)
    curve = tilt(proxy, gold, BETAS) if curve is None else curve
    best = frontier(gold) if best is None else best
    (here,) = tilt(proxy, gold, [beta])
    xs = [t.kl.mean for t in curve]
    low, high = zip(*(t.gold.interval() for t in curve), strict=True)
    ends = here.gold.interval()
    earned = Panel(
        "Predicted and true gold reward",
        Axis("KL(π_r‖π_ref) [nats]", 0.0, furthest),
        Axis("gold reward [reward]", float(gold.mean()) - 0.2 * float(gold.std()), float(gold.max())),
        (
            Band("policy", xs, low, high, ""),
            Curve("optimal", [kl for kl, _ in best], [reward for _, reward in best], "π* of gold"),
            Curve("reward", xs, [t.promised.mean for t in curve], "predicted by proxy", dash="--"),
            Curve("policy", xs, [t.gold.mean for t in curve], "gold reward of π_r"),
            Points("policy", [here.kl.mean], [here.gold.mean], "", [ends[0]], [ends[1]], big=True),
        ),
        width=1.4,
    )
    trust = Panel(
        "Effective samples",
        Axis("β [proxy per nat]", BETAS[-1], BETAS[0], log=True),
        Axis("effective samples per prompt", 0.0, float(gold.shape[1])),
        (
            Curve("reference", [t.beta for t in curve], [t.effective for t in curve], ""),
            Points("policy", [beta], [here.effective], "", big=True),
            Rule("wrong", ENOUGH, "y", ""),
        ),
    )
    text = tr(
        "At β = {beta:.3g} the optimal policy of the proxy is {kl:.2f} nats from π_ref. The proxy predicts a gold "
        "reward of {promised}; the true one is {gold}, with the 95% interval {low} to {high}.",
        beta=beta, kl=here.kl.mean, promised=typeset(here.promised.mean, ".2f"), gold=typeset(here.gold.mean, ".2f"),
        low=typeset(ends[0], ".2f"), high=typeset(ends[1], ".2f"),
    )  # fmt: skip
    if not here.trusted:
        text += tr(
            " There are fewer than {enough:g} effective samples per prompt, so these numbers are unreliable.",
            enough=ENOUGH,
        )
    numbers = (
        Readout("KL(π_r‖π_ref)", here.kl.mean, "nats"),
        Readout("E[gold]", here.gold.mean, "reward"),
        Readout("predicted", here.promised.mean, "reward"),
        Readout("effective samples", here.effective, digits=1),
    )
    return Picture(text, (earned, trust), numbers)


def frontier(gold: Tensor) -> list[tuple[float, float]]:
    """(KL, E[gold]) of the gold reward's optimum along β, where the estimate is reliable.

    The values of β are `BETAS` times the standard deviation of the gold reward.
    """
    scale = float(gold.double().std()) or 1.0
    found = tilted_frontier(gold, [scale * beta for beta in BETAS])
    return [(t.kl.mean, t.reward.mean) for t in found if t.trusted] or [(0.0, float(gold.double().mean()))]


def over_optimisation_explorer(proxies: Mapping[str, Tensor], gold: Tensor, beta: float = 1.0) -> Explorer:
    """Show the optimal policy of a proxy, with a slider for β.

    Args:
        proxies: scores (B, G) of the same samples, by the name of the reward model.
        gold: (B, G).
        beta: β at the start, between the ends of `BETAS`.

    Raises:
        LabError: no proxy; shapes that differ.
    """
    if not proxies:
        raise LabError("proxies is empty. Give the scores of at least one reward model.")
    scores = list(proxies.values())
    best, curves = frontier(gold), [tilt(score, gold, BETAS) for score in scores]
    furthest = 1.05 * max(t.kl.mean for curve in curves for t in curve)

    def compute(beta: float, which: int = 0) -> Picture:
        return over_optimisation_picture(scores[which], gold, beta, curves[which], best, furthest or None)

    controls: dict[str, Slider | Choice] = {
        "beta": Slider(beta, BETAS[-1], BETAS[0], "β [proxy per nat]", log=True),
    }
    if len(scores) > 1:
        controls["which"] = Choice(0, {name: i for i, name in enumerate(proxies)}, "reward model")
    advice = "Lower β: the prediction can only rise. Where does the gold reward stop following it?"
    return Explorer(compute, controls, "Over-optimisation of a reward model", advice)
