r"""Direct preference optimisation: fit the policy to preferences, with no reward model and no sampling.

    ℒ_DPO(θ) = −E_{(x, y_w, y_l)~D} [ log σ( β log π_θ(y_w|x)/π_ref(y_w|x) − β log π_θ(y_l|x)/π_ref(y_l|x) ) ]

Rafailov et al. 2023, equation 7; lecture, "DPO Objective Function" and "DPO Outline". Any loss of
`rlhf_lab.losses` can stand in its place. Reference log-probabilities are computed once, before the first step.
Left out on purpose: everything that is not the loss; `rlhf_lab.training` has it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from rlhf_lab import losses
from rlhf_lab.batch import Pairs
from rlhf_lab.checks import LabError, check_positive
from rlhf_lab.policies.base import Policy
from rlhf_lab.training import Loop, Training, rows_at

PairLoss = Literal["sigmoid-norm", "robust", "ipo", "hinge-norm", "hinge"]


@dataclass(frozen=True)
class DPO:
    """Which loss, and how steep."""

    loss: PairLoss = "sigmoid-norm"
    """sigmoid-norm is DPO's own (cDPO where label_smoothing is above 0); hinge is SLiC's and has no reference."""
    beta: float = 0.1
    """The loss's slope in the log-ratio: β of DPO (then also of the objective), γ of RSO's losses, τ of IPO."""
    label_smoothing: float = 0.0
    """ε, the rate of wrong labels that cDPO (sigmoid-norm) or robust DPO assumes."""

    def __post_init__(self) -> None:
        check_positive(self.beta, "beta")
        # Said now, not at the first step of a long run.
        self(torch.zeros(1), torch.zeros(1))

    def __call__(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """The loss of each pair, of log-ratios (for `hinge`: log-probabilities), any shape."""
        if self.loss == "sigmoid-norm":
            return losses.dpo(chosen, rejected, self.beta, self.label_smoothing)
        if self.loss == "robust":
            return losses.robust_dpo(chosen, rejected, self.beta, self.label_smoothing)
        if self.label_smoothing:
            raise LabError(f"label_smoothing is for sigmoid-norm and robust; {self.loss} has none. Set it to 0.")
        if self.loss == "ipo":
            return losses.ipo(chosen, rejected, self.beta)
        if self.loss == "hinge-norm":
            return losses.hinge_norm(chosen, rejected, self.beta)
        if self.loss == "hinge":
            return losses.hinge(chosen, rejected, self.beta)
        raise LabError(f"loss must be sigmoid-norm, robust, ipo, hinge-norm or hinge, not {self.loss!r}.")


def pair_loss(policy: Policy, batch: Pairs, log_ref: Tensor, settings: DPO) -> tuple[Tensor, dict]:
    """The mean loss of a batch of pairs, and what a reader wants to watch.

    Args:
        policy: π_θ.
        batch: B pairs.
        log_ref: log π_ref of both responses, (B, 2).
        settings: the loss.

    Returns:
        the loss, a scalar; and loss-free numbers: accuracy, margin, chosen_log_ratio, rejected_log_ratio.
    """
    log_prob = policy.log_prob(batch.prompts, batch.responses)
    log_ratio = log_prob - log_ref
    loss = settings(*(log_prob if settings.loss == "hinge" else log_ratio).unbind(-1))
    chosen, rejected = log_ratio.detach().unbind(-1)
    margin = settings.beta * (chosen - rejected)
    watched = {
        "accuracy": mean((margin > 0).to(margin.dtype) + 0.5 * (margin == 0), batch.weight),
        "margin": mean(margin, batch.weight),
        "chosen_log_ratio": mean(chosen, batch.weight),
        "rejected_log_ratio": mean(rejected, batch.weight),
    }
    return mean(loss, batch.weight), watched


def dpo(
    policy: Policy,
    reference: Policy,
    pairs: Pairs | Callable[[torch.Generator], Pairs],
    settings: DPO = DPO(),
    training: Training = Training(),  # noqa: B008
    name: str = "dpo",
) -> list[dict[str, float]]:
    """Train `policy` in place on preference pairs.

    Args:
        policy: π_θ, usually `reference.copy()`.
        reference: π_ref, frozen.
        pairs: N labelled pairs; or a function that makes fresh ones from a step's generator.
        settings: the loss.
        training: steps, batch size in pairs, rate, seed.
        name: what the progress bar says.

    Returns:
        the history: loss, accuracy (how often the implicit reward ranks the pair as labelled), margin (mean
        β Δ), chosen and rejected log-ratios, in nats.

    Raises:
        LabError: no pairs; a loss that is not finite.
    """
    loop = Loop(name, policy, training, settings)
    dataset = pairs if isinstance(pairs, Pairs) else None
    known: Tensor | None = None
    if dataset is not None and loop.start < training.steps:
        known = reference_log_probs(reference, dataset, training.batch_size, training.progress)
    with loop:
        for step, generator in loop:
            if dataset is not None and known is not None:
                rows = rows_at(step, len(dataset), training.batch_size, training.seed)
                batch, log_ref = dataset[rows], known[rows.to(known.device)]
            else:
                batch = pairs(generator)  # type: ignore[operator]
                log_ref = reference_log_probs(reference, batch, max(len(batch), 1))
            loop.update(partial(pair_loss, policy, batch, log_ref, settings))
    return loop.history


def mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """The mean over pairs, weighted where the pairs carry weights."""
    if weight is None:
        return values.mean()
    weight = weight.to(values.device, values.dtype)
    return (values * weight).sum() / weight.sum()


@torch.no_grad()
def reference_log_probs(reference: Policy, pairs: Pairs, batch_size: int, progress: bool = False) -> Tensor:
    """log π_ref of both responses of every pair, (N, 2)."""
    if len(pairs) == 0:
        raise LabError("There are no pairs to train on.")
    starts = tqdm(
        range(0, len(pairs), batch_size),
        desc="reference",
        leave=False,
        disable=not progress or len(pairs) <= batch_size,
    )
    parts = [pairs[start : start + batch_size] for start in starts]
    return torch.cat([reference.log_prob(part.prompts, part.responses) for part in parts])
