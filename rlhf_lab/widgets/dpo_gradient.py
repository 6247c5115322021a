r"""DPO's gradient weight σ(r̂_l − r̂_w): how hard one pair pulls, under β and where its log-ratios stand.

    ∇ℒ = −β σ(r̂_l − r̂_w) (∇log π_θ(y_w|x) − ∇log π_θ(y_l|x)),   r̂ = β log π_θ/π_ref

Rafailov et al. 2023, section 4; lecture, "DPO Objective Function".
"""

from __future__ import annotations

import torch

from rlhf_lab import losses
from rlhf_lab.errors import check_beta
from rlhf_lab.figures.picture import Axis, Line, Number, Panel, Picture, Points, Rule
from rlhf_lab.widgets.explorer import Explorer, Slider

REACH = 10.0
"""Log-ratios of the sliders lie in [−REACH, REACH], margins therefore in twice that."""
BETAS = (0.01, 10.0)


def dpo_gradient_picture(beta: float, chosen: float, rejected: float) -> Picture:
    """The weight and the loss against the margin, and the whole pull β·weight against β.

    Args:
        beta: β > 0.
        chosen: log π_θ/π_ref of the chosen response, nats.
        rejected: the same of the rejected one.

    Returns:
        the picture; its numbers are Δ, the implicit margin β Δ, the weight, the pull and the loss.

    Raises:
        LabError: beta not above zero; a log-ratio that is not a number.
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
        "How much this pair counts",
        Axis("margin Δ [nats]", -2 * REACH, 2 * REACH),
        Axis("weight σ(r̂_l − r̂_w)", 0.0, 1.05),
        (
            Rule("reference", 0.0, label="π_ref"),
            Line("dpo", gaps, losses.dpo_gradient_weight(gaps, none, beta), "weight"),
            Points("policy", [gap], [weight], "now", big=True),
        ),
    )
    pull = Panel(
        "How hard it pulls in all",
        Axis("β", *BETAS, log=True),
        Axis("β × weight [1/nat]", 1e-3, 20.0, log=True),
        (
            Line("reference", betas, betas, "weight 1", dash="--"),
            Line("dpo", betas, betas * torch.sigmoid(-betas * gap), "this Δ"),
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
    return Picture(_words(beta, chosen, rejected, weight), (weights, pull), numbers)


def _words(beta: float, chosen: float, rejected: float, weight: float) -> str:
    gap = chosen - rejected
    if abs(gap) < 1e-9:
        order = "The implicit reward does not tell the two apart, as at the start"
    elif gap > 0:
        order = f"The pair is ranked as labelled, by {gap:.2f} nats"
    else:
        order = f"The pair is ranked against its label, by {-gap:.2f} nats"
    return (
        f"At β = {beta:.3g}: log-ratio of the chosen response {_signed(chosen)}, of the rejected {_signed(rejected)}. "
        f"{order}. It counts with a weight of {weight:.3f} and pulls with β × weight = {beta * weight:.3g}."
    )


def _signed(number: float) -> str:
    return f"{round(number, 2) + 0.0:+.2f}".replace("-", "−")


def dpo_gradient_explorer(beta: float = 0.5, chosen: float = 0.0, rejected: float = 0.0) -> Explorer:
    """DPO's weight and pull under live sliders.

    Args:
        beta: where the slider for β stands at first, in [0.01, 10].
        chosen: first log-ratio of the chosen response, in [−10, 10] nats.
        rejected: first log-ratio of the rejected one.
    """
    return Explorer(
        dpo_gradient_picture,
        {
            "beta": Slider(beta, *BETAS, label="β [reward per nat]", log=True),
            "chosen": Slider(chosen, -REACH, REACH, "log-ratio of y_w [nats]"),
            "rejected": Slider(rejected, -REACH, REACH, "log-ratio of y_l [nats]"),
        },
        "DPO's gradient weight",
        "Lower both log-ratios by the same amount: what changes? Then raise β, the pair ranked rightly and wrongly.",
    )
