r"""KTO (Kahneman–Tversky optimisation): fit the policy to single responses labelled desirable or undesirable.

    ℒ_KTO(θ) = E_{(x,y)~D} [ λ_y − v(x,y) ],   v = λ_D σ(β (k − z)) if y is desirable, else λ_U σ(β (z − k)),
    k = log π_θ(y|x)/π_ref(y|x),   z = max(0, mean of log π_θ(y'|x)/π_ref(y'|x))

Ethayarajh et al. 2024, equation 8. z is an estimate of KL(π_θ‖π_ref) without gradient. y' is a response to *another*
prompt. This makes the estimate cheap and biased, because y' is not a sample of π_θ. Here every row has one fixed y'
(`verdicts.mismatched`), so its log-probability under the reference is computed once. In a step z is the mean over all
rows of the batch, with the weights of the loss. If all rows have the same prompt, there is no y', and z is 0. The
optimum of the loss is not π*; see `losses.kto`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from rlhf_lab import losses
from rlhf_lab.algorithms.verdicts import Verdicts, mismatched
from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError, Positive, check_settings
from rlhf_lab.policies.base import Policy
from rlhf_lab.rounding import MANY, rounding, wins
from rlhf_lab.training import Loop, Metrics, Training, distributed

__all__ = ["KTO", "Verdicts", "kto", "kto_loss", "mismatched"]


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
    batch: Verdicts,
    log_ref: Tensor,
    reference_point: Tensor | float,
    settings: KTO,
    reference_point_doubt: Tensor | float = 0.0,
) -> tuple[Tensor, Metrics]:
    """Return the mean loss of a batch of verdicts, and metrics.

    Args:
        policy: π_θ.
        batch: B rows of G verdicts.
        log_ref: log π_ref of the responses, (B, G).
        reference_point: z, before it is clamped at 0.
        settings: β, λ_D and λ_U.
        reference_point_doubt: how far rounding may have moved z, of a shape that broadcasts; see `rlhf_lab.rounding`.

    Returns:
        the loss, a scalar; and accuracy, the fraction of desirable responses with k > z and undesirable ones with
        k < z. A k that equals z within rounding, as at the start of training, counts ½.
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
    return losses.weighted_mean(loss.mean(-1), batch.weight), {
        "accuracy": losses.weighted_mean(right.mean(-1), batch.weight)
    }


def kto(
    policy: Policy,
    reference: Policy,
    verdicts: Verdicts,
    settings: KTO = KTO(),
    training: Training = Training(),
    name: str = "kto",
    reference_log_probs: Tensor | None = None,
) -> list[dict[str, float]]:
    """Train `policy` in place on verdicts.

    Args:
        policy: π_θ, usually `reference.copy()`.
        reference: π_ref, frozen.
        verdicts: N ≥ 2 rows; `Verdicts.from_pairs` makes them from preference pairs.
        settings: those of KTO.
        training: steps, batch size in rows, learning rate, seed.
        name: text of the progress bar.
        reference_log_probs: log π_ref of the responses, (N, G), if they are already known. Those of the mismatched
            responses are computed in any case.

    Returns:
        the history: loss, accuracy, and reference_point, the z ≥ 0 of the loss, in nats.

    Raises:
        LabError: fewer than two rows; verdicts of one kind only; a loss that is not finite.
    """
    number = len(verdicts)
    if number < 2:
        raise LabError(f"KTO compares prompts with responses to other prompts and needs at least 2 rows, not {number}.")
    if bool(verdicts.desirable.all()) or not bool(verdicts.desirable.any()):
        kind = "desirable" if bool(verdicts.desirable.any()) else "undesirable"
        raise LabError(f"All verdicts are {kind}. KTO needs desirable and undesirable responses.")
    known = reference_log_probs
    if known is not None and known.shape != verdicts.desirable.shape:
        raise LabError(
            f"reference_log_probs has shape {tuple(known.shape)}; these verdicts need "
            f"{tuple(verdicts.desirable.shape)}."
        )
    other = mismatched(verdicts)

    def loss_of(batch: Verdicts, log_ref: Tensor, z: Tensor, doubt: Tensor) -> tuple[Tensor, Metrics]:
        return kto_loss(policy, batch, log_ref, z, settings, doubt)

    training.check_rows(name, number)
    loop = Loop(name, policy, training, settings)
    if loop.start < training.steps:
        with loop.autocast():
            if known is None:
                known = _log_probs(reference, verdicts.prompts, verdicts.responses, training)
            known_other = None if other is None else _log_probs(reference, verdicts.prompts, other, training)
    with loop:
        for _, _generator in loop:
            rows = loop.rows(number)
            batch = verdicts[rows]
            with torch.no_grad(), loop.autocast():
                assert known is not None
                if other is None or known_other is None:
                    z = doubt = known.new_zeros(())
                else:
                    here = distributed.map_rows(policy.log_prob, batch.prompts, other[rows])
                    there = known_other[rows.to(here.device)]
                    z = losses.weighted_mean((here - there).squeeze(-1), batch.weight)
                    doubt = losses.weighted_mean(rounding(1.0, here, there, units=MANY).squeeze(-1), batch.weight)
            # Every row gets the number of the whole batch, so that all parts of a batch use the same one.
            each, off = (number.expand(len(rows)).unsqueeze(-1) for number in (z, doubt))
            loop.update(
                loss_of, (batch, known[rows.to(known.device)], each, off), batch.weight, reference_point=z.clamp(min=0)
            )
    return loop.history


@torch.no_grad()
def _log_probs(reference: Policy, prompts: Tokens, responses: Tokens, training: Training) -> Tensor:
    """Compute log π_ref of (N, G) responses in batches."""
    starts = range(0, len(prompts), training.batch_size)
    shown = len(starts) > 1 and distributed.shows_progress(training.progress)
    parts = []
    for start in tqdm(starts, desc="reference", leave=False, disable=not shown):
        rows = slice(start, start + training.batch_size)
        parts.append(distributed.map_rows(reference.log_prob, prompts[rows], responses[rows]))
    return torch.cat(parts)
