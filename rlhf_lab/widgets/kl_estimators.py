"""Explorer of the KL estimators k1, k2 and k3: their bias and variance as values, their gradients as losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from rlhf_lab import exact, kl
from rlhf_lab.errors import LabError, check_responses_axis
from rlhf_lab.figures.picture import Axis, Bars, Panel, Picture, Points, Readout, Rule
from rlhf_lab.intervals import typeset
from rlhf_lab.language import tr
from rlhf_lab.randomness import Stream
from rlhf_lab.training import seeded
from rlhf_lab.widgets.explorer import Choice, Explorer, Slider

ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": kl.k1, "k2": kl.k2, "k3": kl.k3}
LOOKS = {"k1": "ppo", "k2": "rest", "k3": "dpo"}
"""The style of each estimator: k1 has that of PPO, whose penalty it is."""


def moments(log_policy: Tensor, log_ref: Tensor, name: str) -> tuple[float, float]:
    """Mean and standard deviation of an estimator's value under y ~ π, by enumeration, in nats.

    Args:
        log_policy: log π, (K,), every entry finite.
        log_ref: log π_ref, (K,).
        name: `k1`, `k2` or `k3`.
    """
    p, values = log_policy.exp(), ESTIMATORS[name](log_policy, log_ref)
    mean = (p * values).sum()
    return float(mean), math.sqrt(float((p * (values - mean).square()).sum()))


def expected_loss_gradient(log_policy: Tensor, log_ref: Tensor, name: str) -> Tensor:
    """E_{y~π}[∇ k(y)] in the logits of a table when the samples carry no gradient (a loss), (K,).

    By autograd: π, as the samples' distribution, is held fixed; log π in the estimator is not.

    Args:
        log_policy: log π, (K,), also the logits.
        log_ref: log π_ref, (K,).
        name: `k1`, `k2` or `k3`.
    """
    fixed, logits = log_policy.detach().exp(), log_policy.detach().clone().requires_grad_(True)
    loss = (fixed * ESTIMATORS[name](logits.log_softmax(-1), log_ref)).sum()
    return torch.autograd.grad(loss, logits)[0]


def divergence_gradient(log_policy: Tensor, log_ref: Tensor, reverse: bool = False) -> Tensor:
    """∇KL(π‖π_ref) in the logits of a table, or with `reverse` ∇KL(π_ref‖π), by autograd, (K,)."""
    logits = log_policy.detach().clone().requires_grad_(True)
    now = logits.log_softmax(-1)
    value = exact.kl(log_ref, now) if reverse else exact.kl(now, log_ref)
    return torch.autograd.grad(value, logits)[0]


def drifted(log_ref: Tensor, reward: Tensor, drift: float) -> Tensor:
    """π ∝ π_ref exp(drift · r), (K,): for drift > 0 this is π* at β = 1/drift; 0 is the reference."""
    return (log_ref + drift * reward).log_softmax(-1)


def kl_values_picture(
    log_policy: Tensor, log_ref: Tensor, samples: int, seed: int, responses: Sequence[str]
) -> Picture:
    """Draw the means of k1, k2 and k3 over `samples` draws beside the exact KL(π‖π_ref).

    Args:
        log_policy: log π, (K,), nats, finite.
        log_ref: log π_ref, (K,), finite.
        samples: N, draws from π.
        seed: seed of the draws.
        responses: K names.

    Returns:
        the picture; the intervals are the exact mean ± 1.96 standard deviations of a mean of N draws.
    """
    truth = float(exact.kl(log_policy, log_ref))
    drawn = torch.multinomial(log_policy.exp(), samples, replacement=True, generator=seeded(seed, Stream.KL_DRAWS))
    layers: list[Rule | Points] = [Rule("optimal", truth, "y", "KL(π‖π_ref)")]
    told, spread, got = [], {}, []
    for place, (name, estimate) in enumerate(ESTIMATORS.items()):
        mean, spread[name] = moments(log_policy, log_ref, name)
        half = 1.96 * spread[name] / math.sqrt(samples)
        got.append(float(estimate(log_policy, log_ref)[drawn].mean()))
        layers.append(Points(LOOKS[name], [place], [mean], name, [mean - half], [mean + half]))
        told.append(f"{name} {typeset(got[-1], '.3f')}")
    layers.append(Points("policy", [0, 1, 2], got, "one set of draws"))
    values = Panel(
        tr("Mean of {samples} draws: 95% range", samples=samples),
        Axis("estimator", names=("k1", "k2", "k3")),
        Axis("KL estimate [nats]"),
        tuple(layers),
        width=1.2,
    )
    text = tr(
        "KL(π‖π_ref) is {truth:.3f} nats. The means of {samples} draws are: {means}. The standard deviation of a "
        "single value is {spread[k1]:.2f} nats for k1 and {spread[k3]:.2f} for k3. The expectation of k2 is {k2:.3f}.",
        truth=truth, samples=samples, means=tr(", ").join(told), spread=spread,
        k2=moments(log_policy, log_ref, "k2")[0],
    )  # fmt: skip
    numbers = (
        Readout("KL(π‖π_ref)", truth, "nats"),
        Readout("sd of k1", spread["k1"], "nats"),
        Readout("sd of k3", spread["k3"], "nats"),
        Readout("bias of k2", moments(log_policy, log_ref, "k2")[0] - truth, "nats"),
    )
    return Picture(text, (_bars(log_policy, log_ref, responses), values), numbers)


def kl_gradients_picture(log_policy: Tensor, log_ref: Tensor, responses: Sequence[str]) -> Picture:
    """Draw the expected gradients of k1, k2 and k3 as losses beside those of the two divergences.

    Args:
        log_policy: log π, (K,), nats, finite.
        log_ref: log π_ref, (K,), finite.
        responses: K names.
    """
    forward, back = divergence_gradient(log_policy, log_ref), divergence_gradient(log_policy, log_ref, True)
    got = {name: expected_loss_gradient(log_policy, log_ref, name) for name in ESTIMATORS}
    at = torch.arange(len(responses), dtype=torch.float64)
    gradients = Panel(
        "Expected gradients in a loss",
        Axis("logit of response y", names=tuple(responses)),
        Axis("∂/∂θ_y [nats]"),
        (
            Bars("optimal", forward, "∇KL(π‖π_ref)"),
            Bars("reference", back, "∇KL(π_ref‖π)"),
            Points(LOOKS["k1"], at, got["k1"], "k1"),
            Points(LOOKS["k2"], at - 0.2, got["k2"], "k2"),
            Points(LOOKS["k3"], at + 0.2, got["k3"], "k3"),
        ),
        width=1.6,
    )
    far = {name: float((got[name] - target).abs().max()) for name, target in (("k2", forward), ("k3", back))}
    text = tr(
        "As a loss, k1 has an expected gradient of at most {k1:.3f}. The gradient of k2 differs from ∇KL(π‖π_ref) by "
        "at most {far[k2]:.3f}, that of k3 from ∇KL(π_ref‖π) by at most {far[k3]:.3f}. The gradients of the two "
        "divergences differ by up to {apart:.3f} nats.",
        k1=float(got["k1"].abs().max()), far=far, apart=float((forward - back).abs().max()),
    )  # fmt: skip
    numbers = (
        Readout("|∇KL(π‖π_ref)|", float(forward.norm()), "nats"),
        Readout("|k1|", float(got["k1"].norm()), "nats"),
        Readout("|k2|", float(got["k2"].norm()), "nats"),
        Readout("|k3|", float(got["k3"].norm()), "nats"),
    )
    return Picture(text, (_bars(log_policy, log_ref, responses), gradients), numbers)


def _bars(log_policy: Tensor, log_ref: Tensor, responses: Sequence[str]) -> Panel:
    return Panel(
        "Policies",
        Axis("response y", names=tuple(responses)),
        Axis("probability", 0.0, 1.0),
        (Bars("reference", log_ref.exp(), "π_ref"), Bars("policy", log_policy.exp(), "π")),
    )


def kl_estimators_explorer(
    log_ref: Tensor,
    reward: Tensor,
    responses: Sequence[str],
    drift: float = 1.0,
    view: Literal["value", "gradient"] = "value",
) -> Explorer:
    """Show k1, k2 and k3 of a policy that drifts away from its reference along a reward.

    Args:
        log_ref: log π_ref of one prompt, (K,), nats, finite everywhere.
        reward: the direction of the drift, (K,), finite.
        responses: K names.
        drift: the drift at the start, in [−3, 3]; at 1/β the policy is π*.
        view: the view at the start.

    Raises:
        LabError: shapes or numbers of names that do not match; a response without reference mass.
    """
    check_responses_axis(log_ref=log_ref, reward=reward)
    if log_ref.ndim != 1 or log_ref.shape != reward.shape or len(responses) != len(reward):
        raise LabError(
            f"log_ref {tuple(log_ref.shape)} and reward {tuple(reward.shape)} must both be (K,), with K names, not "
            f"{len(responses)}."
        )
    if not torch.isfinite(log_ref).all():
        raise LabError("log_ref must be finite. The estimator k3 is unbiased only where both policies have mass.")
    log_ref, reward = log_ref.detach().double(), reward.detach().double()

    def compute(drift: float, view: str, samples: int, seed: int) -> Picture:
        log_policy = drifted(log_ref, reward, drift)
        if view == "gradient":
            return kl_gradients_picture(log_policy, log_ref, responses)
        return kl_values_picture(log_policy, log_ref, samples, seed, responses)

    controls: dict[str, Slider | Choice] = {
        "drift": Slider(drift, -3.0, 3.0, "drift 1/β [nats per reward]", step=0.1),
        "view": Choice(view, {"values": "value", "gradients as losses": "gradient"}, "show"),
        "samples": Choice(64, {str(n): n for n in (1, 4, 16, 64, 256, 1024)}, "draws N"),
        "seed": Slider(0, 0, 9, "seed", whole=True),
    }
    return Explorer(compute, controls, "Estimators of KL(π‖π_ref)")
