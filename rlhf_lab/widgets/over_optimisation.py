r"""Over-optimisation: what the gold reward earns while a policy is tilted ever further towards a reward model.

Nothing is trained. Samples of π_ref, weighted by exp(r_proxy/β), stand for π_r ∝ π_ref exp(r_proxy/β): the policy
that optimises the proxy perfectly. As β falls, the proxy's own reward can only rise; the gold reward rises, stops, or
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
from rlhf_lab.figures.picture import Axis, Band, Line, Number, Panel, Picture, Points, Rule
from rlhf_lab.widgets.explorer import Choice, Explorer, Slider

BETAS = tuple(float(b) for b in torch.logspace(1.5, -1.5, 31, dtype=torch.float64))
"""The β of the roads, from hardly tilted to greatly; units of the proxy for a nat."""


@dataclass(frozen=True)
class Tilt:
    """The proxy's optimum at one β, from samples of the reference; means over prompts."""

    beta: float
    kl: Estimate
    """KL(π_r‖π_ref), nats."""
    gold: Estimate
    """What it earns."""
    promised: Estimate
    """What the proxy says that it earns, see `calibrated`."""
    effective: float
    """Effective samples of a prompt, mean over prompts."""
    trusted: bool
    """Whether enough prompts have enough of them."""


def calibrated(proxy: Tensor, gold: Tensor) -> Tensor:
    """The proxy in units of gold: the line through the samples of the reference that predicts gold best.

    A reward model is known up to a function of the prompt, so both are centred within prompts, and gold's mean over
    all is put back: on the reference itself the two agree in the mean.

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
    """The proxy's optimum at each β.

    Args:
        proxy: r_φ of G samples y ~ π_ref for each of B prompts, (B, G).
        gold: their gold reward, (B, G).
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
            f"proxy and gold must be (B, G) alike, two prompts and two samples at least, not {tuple(proxy.shape)} and "
            f"{tuple(gold.shape)}."
        )


def over_optimisation_picture(
    proxy: Tensor,
    gold: Tensor,
    beta: float,
    road: Sequence[Tilt] | None = None,
    best: Sequence[tuple[float, float]] | None = None,
    furthest: float | None = None,
) -> Picture:
    """What the proxy promises and what gold earns, against KL; and how many samples still carry the weight.

    Args:
        proxy: (B, G), scores of samples of the reference.
        gold: (B, G).
        beta: β > 0 in units of the proxy.
        road: `tilt(proxy, gold, BETAS)`, where it is at hand.
        best: `frontier(gold)`, where it is at hand.
        furthest: where the axis of KL ends, nats; None fits it to the road.

    Returns:
        the picture; its numbers are KL, gold, what was promised, and effective samples.
    """
    check_beta(beta)
    road = tilt(proxy, gold, BETAS) if road is None else road
    best = frontier(gold) if best is None else best
    (here,) = tilt(proxy, gold, [beta])
    xs = [t.kl.mean for t in road]
    low, high = zip(*(t.gold.interval() for t in road), strict=True)
    ends = here.gold.interval()
    earned = Panel(
        "What it promises, what it earns",
        Axis("KL(π_r‖π_ref) [nats]", 0.0, furthest),
        Axis("gold reward [reward]", float(gold.mean()) - 0.2 * float(gold.std()), float(gold.max())),
        (
            Band("policy", xs, low, high, ""),
            Line("optimal", [kl for kl, _ in best], [reward for _, reward in best], "π* of gold"),
            Line("reward", xs, [t.promised.mean for t in road], "proxy's promise", dash="--"),
            Line("policy", xs, [t.gold.mean for t in road], "gold of π_r"),
            Points("policy", [here.kl.mean], [here.gold.mean], "", [ends[0]], [ends[1]], big=True),
        ),
        width=1.4,
    )
    trust = Panel(
        "Samples that carry the weight",
        Axis("β [proxy per nat]", BETAS[-1], BETAS[0], log=True),
        Axis("effective samples of a prompt", 0.0, float(gold.shape[1])),
        (
            Line("reference", [t.beta for t in road], [t.effective for t in road], ""),
            Points("policy", [beta], [here.effective], "", big=True),
            Rule("wrong", ENOUGH, "y", ""),
        ),
    )
    verdict = "" if here.trusted else f" Fewer than {ENOUGH:g} samples carry the weight of a prompt: do not trust this."
    text = (
        f"At β = {beta:.3g} the proxy's optimum is {here.kl.mean:.2f} nats from π_ref. The proxy promises a gold "
        f"reward of {_plain(here.promised.mean)}; it is {_plain(here.gold.mean)}, 95% interval {_plain(ends[0])} to "
        f"{_plain(ends[1])}.{verdict}"
    )
    numbers = (
        Number("KL(π_r‖π_ref)", here.kl.mean, "nats"),
        Number("E[gold]", here.gold.mean, "reward"),
        Number("promised", here.promised.mean, "reward"),
        Number("effective samples", here.effective, digits=1),
    )
    return Picture(text, (earned, trust), numbers)


def frontier(gold: Tensor) -> list[tuple[float, float]]:
    """(KL, E[gold]) of gold's own optimum along β, in steps as `BETAS` in gold's standard deviations, while trusted."""
    scale = float(gold.double().std()) or 1.0
    found = tilted_frontier(gold, [scale * beta for beta in BETAS])
    return [(t.kl.mean, t.reward.mean) for t in found if t.trusted] or [(0.0, float(gold.double().mean()))]


def _plain(number: float) -> str:
    return f"{round(number, 2) + 0.0:.2f}".replace("-", "−")


def over_optimisation_explorer(proxies: Mapping[str, Tensor], gold: Tensor, beta: float = 1.0) -> Explorer:
    """Tilting the reference towards a proxy, live.

    Args:
        proxies: scores (B, G) of the same samples by name of the reward model.
        gold: (B, G).
        beta: where β stands at first, between the ends of `BETAS`.

    Raises:
        LabError: no proxy; shapes that differ.
    """
    if not proxies:
        raise LabError("proxies is empty: give the scores of a reward model at least.")
    scores = list(proxies.values())
    best, roads = frontier(gold), [tilt(score, gold, BETAS) for score in scores]
    furthest = 1.05 * max(t.kl.mean for road in roads for t in road)

    def compute(beta: float, which: int = 0) -> Picture:
        return over_optimisation_picture(scores[which], gold, beta, roads[which], best, furthest or None)

    controls: dict[str, Slider | Choice] = {
        "beta": Slider(beta, BETAS[-1], BETAS[0], "β [proxy per nat]", log=True),
    }
    if len(scores) > 1:
        controls["which"] = Choice(0, {name: i for i, name in enumerate(proxies)}, "reward model")
    advice = "Lower β: the promise can only rise. Where does gold stop following it?"
    return Explorer(compute, controls, "A reward model, optimised ever harder", advice)
