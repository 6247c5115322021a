r"""The pairwise ranker, a preference model whose input contains both responses: maximum likelihood of the labels.

    ℒ(ψ) = −E_{(x, y_w, y_l)~D} [ log ρ_ψ(x, y_w, y_l) ],     with the two responses in random order

Liu et al. 2023 (RSO), section 3.1; Zhao et al. 2023 (SLiC-HF). A reward model (`reward_model.py`) is the special case
logit ρ = r(x, y_w) − r(x, y_l). If the chosen response always came first in the input, the ranker would learn to prefer
the first response.
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
from rlhf_lab.training import Evaluation, Loop, Metrics, Training


@dataclass(frozen=True)
class Ranker:
    """Settings of the fit."""

    orders: Literal["random", "both"] = "random"
    """random: the order of each pair is drawn anew at each step. both: each step uses both orders, which takes twice
    the computation and makes the gradient less noisy."""
    prior: NonNegative = 1e-3
    """λ ≥ 0, the weight of the mean squared logit in the loss. 0 is maximum likelihood without a prior."""

    def __post_init__(self) -> None:
        check_settings(self)


def order_loss(model: nn.Module, batch: Pairs, chosen_first: Tensor, prior: float) -> tuple[Tensor, Metrics]:
    """Return the mean negative log-likelihood of the labels for given orders, plus λ times the mean squared logit.

    Args:
        model: ρ, whose `logits(prompts, first, second)` are (B, 1).
        batch: B pairs.
        chosen_first: (B,) booleans, whether the chosen response comes first in the input.
        prior: λ.

    Returns:
        the loss, a scalar; and metrics: likelihood_loss (without the prior), accuracy, margin (the mean logit of the
        chosen response), and first_preferred, the fraction of pairs in which the first response is preferred. A logit
        of 0 counts ½.
    """
    chosen_first = chosen_first.to(batch.responses.device)
    index = torch.stack([~chosen_first, chosen_first], -1).long()
    first, second = batch.responses.take(index[:, :1]), batch.responses.take(index[:, 1:])
    shown = model.logits(batch.prompts, first, second).squeeze(-1)  # type: ignore[operator]
    right = torch.where(chosen_first.to(shown.device), shown, -shown)
    loss = losses.weighted_mean(losses.bradley_terry(right, torch.zeros_like(right)), batch.weight)
    watched: Metrics = {
        "likelihood_loss": loss.detach(),
        "accuracy": losses.weighted_mean(wins(right, 0.0), batch.weight),
        "margin": losses.weighted_mean(right.detach(), batch.weight),
        "first_preferred": wins(shown, 0.0).mean(),
    }
    return loss + prior * losses.weighted_mean(shown.square(), batch.weight), watched


def both_orders_loss(model: nn.Module, batch: Pairs, prior: float) -> tuple[Tensor, Metrics]:
    """Return the mean of `order_loss` over the two orders."""
    one = torch.ones(len(batch), dtype=torch.bool)
    parts = [order_loss(model, batch, order, prior) for order in (one, ~one)]
    watched = {key: (parts[0][1][key] + parts[1][1][key]) / 2 for key in parts[0][1]}
    return (parts[0][0] + parts[1][0]) / 2, watched


def held_out_pairs(model: nn.Module, pairs: Pairs) -> Evaluation:
    """Measure the likelihood of labels that are not trained on, in both orders. The loss has no prior."""
    return Evaluation.of_rows(partial(both_orders_loss, model, prior=0.0), pairs, best_by="likelihood_loss")


def ranker(
    model: nn.Module,
    pairs: Pairs,
    settings: Ranker = Ranker(),
    training: Training = Training(),
    name: str = "ranker",
    evaluation: Evaluation | None = None,
) -> list[dict[str, float]]:
    """Train `model`, a `rlhf_lab.rewards.ranker.PairwiseRanker`, in place on labelled pairs.

    Args:
        model: ρ.
        pairs: N labelled pairs.
        settings: orders and prior.
        training: steps, batch size in pairs, learning rate, seed.
        name: text of the progress bar.
        evaluation: what is measured on held-out data, for example `held_out_pairs`.

    Returns:
        the history: loss, and the metrics of `order_loss`.

    Raises:
        LabError: no pairs; a loss that is not finite.
    """
    training.check_rows(name, len(pairs) if settings.orders == "both" else None)
    with Loop(name, model, training, settings, evaluation) as loop:
        for _, generator in loop:
            batch = pairs[loop.rows(len(pairs))]
            if settings.orders == "both":
                loop.update(partial(both_orders_loss, model, prior=settings.prior), (batch,))
            else:
                chosen_first = torch.rand(len(batch), generator=generator, device=generator.device) < 0.5
                loop.update(partial(order_loss, model, prior=settings.prior), (batch, chosen_first))
    return loop.history
