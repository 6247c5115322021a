r"""KTO (Kahneman–Tversky optimisation): fit the policy to single responses labelled desirable or undesirable.

    ℒ_KTO(θ) = E_{(x,y)~D} [ λ_y − v(x,y) ],   v = λ_D σ(β (k − z)) if y is desirable, else λ_U σ(β (z − k)),
    k = log π_θ(y|x)/π_ref(y|x),   z = max(0, mean of log π_θ(y'|x)/π_ref(y'|x))

Ethayarajh et al. 2024, equation 8. z is an estimate of KL(π_θ‖π_ref) without gradient. y' is a response to *another*
prompt. This makes the estimate cheap and biased, because y' is not a sample of π_θ. Here every row has one fixed y'
(`labelled_responses.mismatched`), so its log-probability under the reference is computed once. In a step z is the mean
over all rows of the batch, with the weights of the loss. If all rows have the same prompt, there is no y', and z is 0.
The optimum of the loss is not π*; see `losses.kto`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf_lab import losses
from rlhf_lab.algorithms.labelled_responses import LabelledResponses, check_labelled, mismatched
from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError, Positive, check_settings
from rlhf_lab.policies.base import Policy
from rlhf_lab.policies.reference_cache import ReferenceRows
from rlhf_lab.rounding import MANY, rounding, wins
from rlhf_lab.training import Evaluation, Loop, Metrics, Training, distributed
from rlhf_lab.training.rows import reference_rows

LogProbs = Tensor | Callable[[Tokens], Tensor | ReferenceRows] | None
"""log π_ref of responses, or a function of responses that returns it."""

__all__ = ["KTO", "LabelledResponses", "held_out_labelled", "kto", "kto_loss", "mismatched"]


@dataclass(frozen=True)
class KTO:
    """Settings of KTO."""

    beta: Positive = 0.1
    """β, the slope of the loss in the log-ratio."""
    desirable_weight: Positive = 1.0
    """λ_D, the weight of desirable responses. The paper recommends λ_D n_D / (λ_U n_U) between 1 and 4/3."""
    undesirable_weight: Positive = 1.0
    """λ_U, the weight of undesirable responses."""

    def __post_init__(self) -> None:
        check_settings(self)


def kto_loss(
    policy: Policy,
    batch: LabelledResponses,
    log_ref: Tensor,
    reference_point: Tensor | float,
    settings: KTO,
    reference_point_doubt: Tensor | float = 0.0,
) -> tuple[Tensor, Metrics]:
    """Return the mean loss of a batch of labelled responses, and metrics.

    Args:
        policy: π_θ.
        batch: B rows of G labelled responses.
        log_ref: log π_ref of the responses, (B, G).
        reference_point: z, before it is clamped at 0.
        settings: β, λ_D and λ_U.
        reference_point_doubt: how far rounding may have moved z, of a shape that broadcasts; see `rlhf_lab.rounding`.

    Returns:
        the loss, a scalar; and metrics. accuracy is the fraction of desirable responses with k > z and undesirable ones
        with k < z. A k that equals z within rounding, as at the start of training, counts ½. margin is the mean of
        β (k − z) of desirable responses and β (z − k) of undesirable ones.
    """
    log_prob = policy.log_prob(batch.prompts, batch.responses)
    log_ratio = log_prob - log_ref.to(log_prob.device)
    desirable = batch.desirable.to(log_ratio.device)
    loss = losses.kto(
        log_ratio, desirable, reference_point, settings.beta, settings.desirable_weight, settings.undesirable_weight
    )
    z = torch.as_tensor(reference_point, device=log_ratio.device).clamp(min=0)
    doubt = rounding(1.0, log_prob, log_ref.to(log_prob.device), units=MANY) + reference_point_doubt
    above = wins(log_ratio, z, doubt)
    right = torch.where(desirable, above, 1 - above)
    margin = settings.beta * torch.where(desirable, log_ratio - z, z - log_ratio).detach()
    return losses.weighted_mean(loss.mean(-1), batch.weight), {
        "accuracy": losses.weighted_mean(right.mean(-1), batch.weight),
        "margin": losses.weighted_mean(margin.mean(-1), batch.weight),
    }


def _reference_point(
    policy: Policy, batch: LabelledResponses, other: Tokens | None, log_ref: Tensor | None
) -> tuple[Tensor, Tensor]:
    """z of a batch before it is clamped, and how far rounding may have moved it, (B, 1) each.

    Every row gets the number of the whole batch, so that all parts of a batch use the same one.
    """
    if other is None or log_ref is None:
        zero = torch.zeros(len(batch), 1, device=batch.responses.device)
        return zero, zero
    here = distributed.map_rows(policy.log_prob, batch.prompts, other)
    there = log_ref.to(here.device)
    z = losses.weighted_mean((here - there).squeeze(-1), batch.weight)
    doubt = losses.weighted_mean(rounding(1.0, here, there, units=MANY).squeeze(-1), batch.weight)
    return z.expand(len(batch)).unsqueeze(-1), doubt.expand(len(batch)).unsqueeze(-1)


def held_out_labelled(
    policy: Policy,
    reference: Policy,
    labelled: LabelledResponses,
    settings: KTO = KTO(),
    reference_log_probs: LogProbs = None,
) -> Evaluation:
    """Measure loss, accuracy and margin on data that are not trained on, see `kto_loss`. Arguments as of `kto`.

    z is that of each batch, as in the training.
    """
    other = mismatched(labelled)
    known, known_other = _known(reference, labelled, other, reference_log_probs, Training(), held_out=True)

    def batch(rows: Tensor) -> tuple[LabelledResponses | Tensor, ...]:
        part = labelled[rows]
        return part, known[rows.to(known.device)], *_reference_point(policy, part, *_mixed(other, known_other, rows))

    def measure(batch: LabelledResponses, log_ref: Tensor, z: Tensor, doubt: Tensor) -> tuple[Tensor, Metrics]:
        loss, seen = kto_loss(policy, batch, log_ref, z, settings, doubt)
        return loss, {**seen, "reference_point": z.clamp(min=0).mean()}

    return Evaluation(len(labelled), batch, measure)


def kto(
    policy: Policy,
    reference: Policy,
    labelled: LabelledResponses,
    settings: KTO = KTO(),
    training: Training = Training(),
    name: str = "kto",
    reference_log_probs: LogProbs = None,
    evaluation: Evaluation | None = None,
) -> list[dict[str, float]]:
    """Train `policy` in place on labelled responses.

    Args:
        policy: π_θ, usually `reference.copy()`.
        reference: π_ref, frozen.
        labelled: N ≥ 2 rows; `LabelledResponses.from_pairs` makes them from preference pairs.
        settings: those of KTO.
        training: steps, batch size in rows, learning rate, seed.
        name: text of the progress bar.
        reference_log_probs: log π_ref of the responses, (N, G), if they are already known; or a function of responses
            (N, G, T) that returns it, which is also called for the mismatched ones. None: it is computed when a step
            first needs a row.
        evaluation: what is measured on held-out data, for example `held_out_labelled`.

    Returns:
        the history: loss, accuracy, margin, and reference_point, the z ≥ 0 of the loss, in nats.

    Raises:
        LabError: fewer than two rows; labels of one kind only; a loss that is not finite.
    """
    check_labelled(labelled)
    if isinstance(reference_log_probs, Tensor) and reference_log_probs.shape != labelled.desirable.shape:
        raise LabError(
            f"reference_log_probs has shape {tuple(reference_log_probs.shape)}; these data need "
            f"{tuple(labelled.desirable.shape)}."
        )
    other = mismatched(labelled)

    def loss_of(batch: LabelledResponses, log_ref: Tensor, z: Tensor, doubt: Tensor) -> tuple[Tensor, Metrics]:
        return kto_loss(policy, batch, log_ref, z, settings, doubt)

    training.check_rows(name, len(labelled))
    loop = Loop(name, policy, training, settings, evaluation)
    known, known_other = _known(reference, labelled, other, reference_log_probs, training, loop.autocast)
    with loop:
        for _, _generator in loop:
            rows = loop.rows(len(labelled))
            batch = labelled[rows]
            with torch.no_grad(), loop.autocast():
                z, doubt = _reference_point(policy, batch, *_mixed(other, known_other, rows))
                given = batch, known[rows.to(known.device)], z, doubt
            loop.update(loss_of, given, batch.weight, reference_point=z[0, 0].clamp(min=0))
    return loop.history


def _known(
    reference: Policy,
    labelled: LabelledResponses,
    other: Tokens | None,
    given: LogProbs,
    training: Training,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    held_out: bool = False,
) -> tuple[Tensor | ReferenceRows, Tensor | ReferenceRows | None]:
    """log π_ref of the responses and of the mismatched ones."""

    def computed(responses: Tokens) -> Tensor | ReferenceRows:
        if callable(given):
            return given(responses)
        return reference_rows(reference, (labelled.prompts, responses), training, context, held_out=held_out)

    known = given if isinstance(given, Tensor) else computed(labelled.responses)
    return known, None if other is None else computed(other)


def _mixed(
    other: Tokens | None, known: Tensor | ReferenceRows | None, rows: Tensor
) -> tuple[Tokens | None, Tensor | None]:
    """The mismatched responses of some rows and their log π_ref, if there are any."""
    return (None, None) if other is None or known is None else (other[rows], known[rows.to(known.device)])
