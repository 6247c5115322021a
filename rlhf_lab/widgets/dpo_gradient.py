r"""Explorer of DPO's gradient weight σ(r̂_l − r̂_w) for one pair, as a function of β and of its log-ratios.

    ∇ℒ = −β σ(r̂_l − r̂_w) (∇log π_θ(y_w|x) − ∇log π_θ(y_l|x)),   r̂ = β log π_θ/π_ref

Rafailov et al. 2023, section 4; lecture, "DPO Objective Function".
"""

from __future__ import annotations

import torch

from rlhf_lab import losses
from rlhf_lab.errors import check_beta
from rlhf_lab.figures.picture import Axis, Curve, Number, Panel, Picture, Points, Rule
from rlhf_lab.widgets.explorer import Explorer, Slider

REACH = 10.0
"""Log-ratios of the sliders are in [−REACH, REACH], so that margins are in [−2·REACH, 2·REACH]."""
BETAS = (0.01, 10.0)


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
    now = torch.tensor([chosen, rejected], dtype=torch.float64)
    weight = float(losses.dpo_gradient_weight(now[0], now[1], beta))
    loss = float(losses.dpo(now[0], now[1], beta))
    gap = chosen - rejected

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
        Number("Δ", gap, "nats", 2),
        Number("βΔ", beta * gap, "reward", 2),
        Number("weight", weight),
        Number("β × weight", beta * weight, "per nat"),
        Number("loss", loss, "nats"),
    )
    return Picture(_words(beta, chosen, rejected, weight), (weights, factor), numbers)


def _words(beta: float, chosen: float, rejected: float, weight: float) -> str:
    gap = chosen - rejected
    if abs(gap) < 1e-9:
        order = "The implicit rewards of the two are equal, as at the start of training"
    elif gap > 0:
        order = f"The pair is ranked correctly, by {gap:.2f} nats"
    else:
        order = f"The pair is ranked incorrectly, by {-gap:.2f} nats"
    return (
        f"At β = {beta:.3g} the log-ratio of the chosen response is {_signed(chosen)}, that of the rejected one "
        f"{_signed(rejected)}. {order}. The weight of the pair is {weight:.3f}, and its gradient has the factor "
        f"β × weight = {beta * weight:.3g}."
    )


def _signed(number: float) -> str:
    return f"{round(number, 2) + 0.0:+.2f}".replace("-", "−")


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
