r"""Explorers of DPO's loss and of its gradient weight for one pair, as functions of β and of the pair's log-ratios.

    ℒ = −log σ(βΔ),   Δ = log π_θ/π_ref (y_w) − log π_θ/π_ref (y_l),   dℒ/d(βΔ) = −σ(−βΔ)
    ∇ℒ = −β σ(r̂_l − r̂_w) (∇log π_θ(y_w|x) − ∇log π_θ(y_l|x)),   r̂ = β log π_θ/π_ref

The slope of the loss is minus the gradient weight σ(r̂_l − r̂_w) = σ(−βΔ). Rafailov et al. 2023, section 4; lecture,
"DPO Objective Function".
"""

from __future__ import annotations

import math

import torch

from rlhf_lab import losses
from rlhf_lab.errors import check_beta
from rlhf_lab.figures.picture import Axis, Curve, Panel, Picture, Points, Readout, Rule
from rlhf_lab.intervals import typeset
from rlhf_lab.language import tr
from rlhf_lab.widgets.explorer import Explorer, Slider

REACH = 10.0
"""Log-ratios of the sliders are in [−REACH, REACH], so that margins are in [−2·REACH, 2·REACH]."""
BETAS = (0.01, 10.0)
NEAR, SMALL_BETAS = 4.0, (0.01, 1.0)
"""The same for the explorer of the loss, such that βΔ is in [−2·NEAR, 2·NEAR]."""


def dpo_loss_picture(beta: float, chosen: float, rejected: float) -> Picture:
    """Draw the loss −log σ(βΔ) with its tangent at this pair, and minus the tangent's slope: the gradient weight.

    Args:
        beta: β > 0.
        chosen: log π_θ/π_ref of the chosen response, nats.
        rejected: the same of the rejected one.

    Returns:
        the picture; its numbers are Δ, βΔ, σ(βΔ), the loss and the gradient weight.

    Raises:
        LabError: a β that is not above zero; a log-ratio that is not a number.
    """
    gap, weight, loss = _at(check_beta(beta), chosen, rejected)
    margin = beta * gap
    margins = torch.linspace(-2 * NEAR, 2 * NEAR, 161, dtype=torch.float64)
    none = torch.zeros_like(margins)
    # The tangent ends where it reaches zero, so that it stays inside the panel.
    ends = torch.tensor([-2 * NEAR, min(2 * NEAR, margin + loss / weight)], dtype=torch.float64)
    x = Axis("βΔ = r̂_w − r̂_l [reward]", -2 * NEAR, 2 * NEAR)
    curve = Panel(
        "Loss of a pair",
        x,
        Axis("−log σ(βΔ) [nats]", 0.0, 2 * NEAR + 0.4),
        (
            Curve("dpo", margins, losses.dpo(margins, none, 1.0), "loss"),
            Curve("policy", ends, loss - weight * (ends - margin), "tangent", dash="--"),
            Points("reference", [0.0], [math.log(2)], "start: π_θ = π_ref"),
            Points("policy", [margin], [loss], "this pair", big=True),
        ),
        width=1.2,
    )
    slope = Panel(
        "Gradient weight",
        x,
        Axis("σ(−βΔ)", 0.0, 1.05),
        (
            Curve("dpo", margins, losses.dpo_gradient_weight(margins, none, 1.0), "minus the slope"),
            Points("reference", [0.0], [0.5], "start"),
            Points("policy", [margin], [weight], "this pair", big=True),
        ),
    )
    numbers = (
        Readout("Δ", gap, "nats", 2),
        Readout("βΔ", margin, "reward"),
        Readout("σ(βΔ)", 1 - weight),
        Readout("loss", loss, "nats"),
        Readout("weight", weight),
    )
    text = tr(
        "At β = {beta:.3g} the pair has the log-ratios {chosen} (chosen) and {rejected} (rejected) in nats. {order} "
        "The loss is {loss:.3f} nats. Its tangent has the slope −{weight:.3f}, which is minus the gradient weight.",
        beta=beta, chosen=typeset(chosen, "+.2f"), rejected=typeset(rejected, "+.2f"), order=_order(gap),
        loss=loss, weight=weight,
    )  # fmt: skip
    return Picture(text, (curve, slope), numbers)


def _at(beta: float, chosen: float, rejected: float) -> tuple[float, float, float]:
    """Δ, the gradient weight and the loss of a pair."""
    now = torch.tensor([chosen, rejected], dtype=torch.float64)
    weight = float(losses.dpo_gradient_weight(now[0], now[1], beta))
    return chosen - rejected, weight, float(losses.dpo(now[0], now[1], beta))


def dpo_gradient_picture(beta: float, chosen: float, rejected: float) -> Picture:
    """Draw the weight against the margin, and the gradient's factor β·weight against β.

    Args:
        beta: β > 0.
        chosen: log π_θ/π_ref of the chosen response, nats.
        rejected: the same of the rejected one.

    Returns:
        the picture; its numbers are Δ, the implicit margin β Δ, the weight, β·weight and the loss.

    Raises:
        LabError: a β that is not above zero; a log-ratio that is not a number.
    """
    beta = check_beta(beta)
    gap, weight, loss = _at(beta, chosen, rejected)
    gaps = torch.linspace(-2 * REACH, 2 * REACH, 161, dtype=torch.float64)
    none = torch.zeros_like(gaps)
    betas = torch.logspace(-2, 1, 121, dtype=torch.float64)
    weights = Panel(
        "Weight of the pair",
        Axis("margin Δ [nats]", -2 * REACH, 2 * REACH),
        Axis("weight σ(r̂_l − r̂_w)", 0.0, 1.05),
        (
            Rule("reference", 0.0, label="π_ref"),
            Curve("dpo", gaps, losses.dpo_gradient_weight(gaps, none, beta), "weight"),
            Points("policy", [gap], [weight], "now", big=True),
        ),
    )
    factor = Panel(
        "Factor of the gradient",
        Axis("β", *BETAS, log=True),
        Axis("β × weight [1/nat]", 1e-3, 20.0, log=True),
        (
            Curve("reference", betas, betas, "weight 1", dash="--"),
            Curve("dpo", betas, betas * torch.sigmoid(-betas * gap), "this Δ"),
            Points("policy", [beta], [beta * weight], "now", big=True),
        ),
    )
    numbers = (
        Readout("Δ", gap, "nats", 2),
        Readout("βΔ", beta * gap, "reward", 2),
        Readout("weight", weight),
        Readout("β × weight", beta * weight, "per nat"),
        Readout("loss", loss, "nats"),
    )
    return Picture(_words(beta, chosen, rejected, weight), (weights, factor), numbers)


def _words(beta: float, chosen: float, rejected: float, weight: float) -> str:
    return tr(
        "At β = {beta:.3g} the log-ratio of the chosen response is {chosen}, that of the rejected one {rejected}. "
        "{order} The weight of the pair is {weight:.3f}, and its gradient has the factor β × weight = {factor:.3g}.",
        beta=beta, chosen=typeset(chosen, "+.2f"), rejected=typeset(rejected, "+.2f"),
        order=_order(chosen - rejected), weight=weight, factor=beta * weight,
    )  # fmt: skip


def _order(gap: float) -> str:
    if abs(gap) < 1e-9:
        return tr("The implicit rewards of the two are equal, as at the start of training.")
    right, wrong = (
        "The pair is ranked correctly, by {gap:.2f} nats.",
        "The pair is ranked incorrectly, by {gap:.2f} nats.",
    )
    return tr(right if gap > 0 else wrong, gap=abs(gap))


def dpo_gradient_explorer(beta: float = 0.5, chosen: float = 0.0, rejected: float = 0.0) -> Explorer:
    """Show DPO's gradient weight with sliders for β and both log-ratios.

    Args:
        beta: β at the start, in [0.01, 10].
        chosen: log-ratio of the chosen response at the start, in [−10, 10] nats.
        rejected: log-ratio of the rejected response at the start.
    """
    return Explorer(
        dpo_gradient_picture,
        {
            "beta": Slider(beta, *BETAS, label="β [reward per nat]", log=True),
            "chosen": Slider(chosen, -REACH, REACH, "log-ratio of y_w [nats]"),
            "rejected": Slider(rejected, -REACH, REACH, "log-ratio of y_l [nats]"),
        },
        "DPO's gradient weight",
        "Lower both log-ratios by the same amount: what changes? Then raise β, with the pair ranked correctly and "
        "incorrectly.",
    )


def dpo_loss_explorer(beta: float = 0.5, chosen: float = 0.0, rejected: float = 0.0) -> Explorer:
    """Show DPO's loss of one pair with its tangent, with sliders for β and both log-ratios.

    Args:
        beta: β at the start, in [0.01, 1].
        chosen: log-ratio of the chosen response at the start, in [−4, 4] nats.
        rejected: log-ratio of the rejected response at the start.
    """
    return Explorer(
        dpo_loss_picture,
        {
            "beta": Slider(beta, *SMALL_BETAS, label="β [reward per nat]", log=True),
            "chosen": Slider(chosen, -NEAR, NEAR, "log-ratio of y_w [nats]"),
            "rejected": Slider(rejected, -NEAR, NEAR, "log-ratio of y_l [nats]"),
        },
        "DPO's loss of one pair",
        "Swap the two log-ratios: how do loss and slope change? For which margins is the slope nearly constant?",
    )
