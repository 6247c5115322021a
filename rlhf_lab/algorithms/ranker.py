r"""The pairwise ranker: maximum likelihood of the labels, with both responses before its eyes.

    ℒ(ψ) = −E_{(x, y_w, y_l)~D} [ log ρ_ψ(x, y_w, y_l) ],     the order of the two shown being random

Liu et al. 2023 (RSO), section 3.1; Zhao et al. 2023 (SLiC-HF). A scorer (`reward_model.py`) is the special case
logit ρ = r(x, y_w) − r(x, y_l). Shown in one order only, a ranker learns "the first one wins".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from rlhf_lab import losses
from rlhf_lab.batch import Pairs
from rlhf_lab.errors import NonNegative, check_settings
from rlhf_lab.rounding import wins
from rlhf_lab.training import Loop, Training


@dataclass(frozen=True)
class Ranker:
    """Settings of the fit."""

    orders: Literal["random", "both"] = "random"
    """random: each pair's order is drawn at each step. both: each step shows both (twice the work, less noise)."""
    prior: NonNegative = 1e-3
    """λ ≥ 0: weight of the mean squared logit, as in the reward model. 0 is plain maximum likelihood."""

    def __post_init__(self) -> None:
        check_settings(self)


def order_loss(model: nn.Module, batch: Pairs, chosen_first: Tensor, prior: float) -> tuple[Tensor, dict]:
    """Mean negative log-likelihood of the labels when shown in these orders, plus λ E[f²].

    Args:
        model: ρ, whose `logits(prompts, first, second)` are (B, 1).
        batch: B pairs.
        chosen_first: (B,) whether the chosen response is shown first.
        prior: λ.

    Returns:
        the loss; and, for the log, the likelihood alone, accuracy, and how often the first is preferred; a logit of 0
        counts ½.
    """
    chosen_first = chosen_first.to(batch.responses.device)
    index = torch.stack([~chosen_first, chosen_first], -1).long()
    first, second = batch.responses.take(index[:, :1]), batch.responses.take(index[:, 1:])
    shown = model.logits(batch.prompts, first, second).squeeze(-1)  # type: ignore[operator]
    right = torch.where(chosen_first.to(shown.device), shown, -shown)
    loss = losses.weighted_mean(losses.bradley_terry(right, torch.zeros_like(right)), batch.weight)
    watched = {
        "likelihood_loss": loss.detach(),
        "accuracy": losses.weighted_mean(wins(right, 0.0), batch.weight),
        "first_preferred": wins(shown, 0.0).mean(),
    }
    return loss + prior * losses.weighted_mean(shown.square(), batch.weight), watched


def both_orders_loss(model: nn.Module, batch: Pairs, prior: float) -> tuple[Tensor, dict]:
    """The mean of `order_loss` over the two orders."""
    one = torch.ones(len(batch), dtype=torch.bool)
    parts = [order_loss(model, batch, order, prior) for order in (one, ~one)]
    watched = {key: (parts[0][1][key] + parts[1][1][key]) / 2 for key in parts[0][1]}
    return (parts[0][0] + parts[1][0]) / 2, watched


def ranker(
    model: nn.Module,
    pairs: Pairs,
    settings: Ranker = Ranker(),
    training: Training = Training(),
    name: str = "ranker",
) -> list[dict[str, float]]:
    """Train `model`, a `rlhf_lab.rewards.ranker.PairwiseRanker`, in place on labelled pairs.

    Args:
        model: ρ.
        pairs: N labelled pairs.
        settings: orders and prior.
        training: steps, batch size in pairs, rate, seed.
        name: text of the progress bar.

    Returns:
        the history: loss, its part without the prior, accuracy, and how often what is shown first is preferred.

    Raises:
        LabError: no pairs; a loss that is not finite.
    """
    training.check_rows(name, len(pairs) if settings.orders == "both" else None)
    with Loop(name, model, training, settings) as loop:
        for _, generator in loop:
            batch = pairs[loop.rows(len(pairs))]
            if settings.orders == "both":
                loop.update(partial(both_orders_loss, model, prior=settings.prior), (batch,))
            else:
                coin = torch.rand(len(batch), generator=generator, device=generator.device) < 0.5
                loop.update(partial(order_loss, model, prior=settings.prior), (batch, coin))
    return loop.history
