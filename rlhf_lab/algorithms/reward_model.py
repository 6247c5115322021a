r"""The Bradley–Terry reward model: maximum likelihood of the labels.

    ℒ_R(φ) = −E_{(x, y_w, y_l)~D} [ log σ( r_φ(x, y_w) − r_φ(x, y_l) ) ]

Lecture, "Preliminaries", reward-modelling phase. The loss contains only differences of rewards of the same prompt, so
r_φ is determined up to a function of x. A small prior, λ E[r_φ²], selects the function of x for which the rewards are
near 0. It also keeps finite the rewards of responses that won or lost all their comparisons.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from rlhf_lab import losses
from rlhf_lab.batch import Pairs
from rlhf_lab.errors import NonNegative, check_settings
from rlhf_lab.rounding import MANY, rounding, wins
from rlhf_lab.training import Evaluation, Loop, Metrics, Training


@dataclass(frozen=True)
class RewardModel:
    """Settings of the fit."""

    prior: NonNegative = 1e-3
    """λ ≥ 0, the weight of the mean squared reward in the loss. 0 is maximum likelihood without a prior."""

    def __post_init__(self) -> None:
        check_settings(self)


def bradley_terry_loss(model: nn.Module, batch: Pairs, prior: float) -> tuple[Tensor, Metrics]:
    """Return the mean negative log-likelihood of a batch's labels plus λ times the mean squared reward, and metrics.

    The metrics are likelihood_loss (without the prior), accuracy (equal scores count ½), and margin, the mean
    difference of the two scores.
    """
    scores = model(batch.prompts, batch.responses)
    chosen, rejected = scores.unbind(-1)
    loss = losses.weighted_mean(losses.bradley_terry(chosen, rejected), batch.weight)
    accuracy = losses.weighted_mean(wins(chosen, rejected, rounding(chosen, rejected, units=MANY)), batch.weight)
    size = losses.weighted_mean(scores.square().mean(-1), batch.weight)
    margin = losses.weighted_mean((chosen - rejected).detach(), batch.weight)
    return loss + prior * size, {"likelihood_loss": loss.detach(), "accuracy": accuracy, "margin": margin}


def held_out_pairs(model: nn.Module, pairs: Pairs) -> Evaluation:
    """Measure the likelihood of labels that are not trained on, see `bradley_terry_loss`. The loss has no prior."""
    return Evaluation.of_rows(partial(bradley_terry_loss, model, prior=0.0), pairs, best_by="likelihood_loss")


def reward_model(
    model: nn.Module,
    pairs: Pairs,
    settings: RewardModel = RewardModel(),
    training: Training = Training(),
    name: str = "reward model",
    evaluation: Evaluation | None = None,
) -> list[dict[str, float]]:
    """Train `model`, r_φ(prompts, responses) → (B, G), in place on labelled pairs.

    Args:
        model: from `policy.new_reward_model()`, or any module of that form.
        pairs: N labelled pairs.
        settings: the prior.
        training: steps, batch size in pairs, learning rate, seed.
        name: text of the progress bar.
        evaluation: what is measured on held-out data, for example `held_out_pairs`.

    Returns:
        the history: loss, and the metrics of `bradley_terry_loss`.

    Raises:
        LabError: no pairs; a loss that is not finite.
    """
    training.check_rows(name, len(pairs))
    with Loop(name, model, training, settings, evaluation) as loop:
        for _ in loop:
            loop.update(partial(bradley_terry_loss, model, prior=settings.prior), (pairs[loop.rows(len(pairs))],))
    return loop.history
