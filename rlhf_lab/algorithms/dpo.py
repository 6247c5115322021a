r"""Direct preference optimisation: fit the policy to preferences, with no reward model and no sampling.

    ℒ_DPO(θ) = −E_{(x, y_w, y_l)~D} [ log σ( β log π_θ(y_w|x)/π_ref(y_w|x) − β log π_θ(y_l|x)/π_ref(y_l|x) ) ]

Rafailov et al. 2023, equation 7; lecture, "DPO Objective Function" and "DPO Outline". Any pair loss of
`rlhf_lab.losses` can stand in its place; there is what each of them aims at. Reference log-probabilities are computed
once, before the first step, or handed in; losses that know no reference compute none.
Left out on purpose: everything that is not the loss; `rlhf_lab.training` has it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from rlhf_lab import losses
from rlhf_lab.batch import Pairs
from rlhf_lab.errors import LabError, NonNegative, Positive, Range, check_settings
from rlhf_lab.policies.base import Policy
from rlhf_lab.rounding import MANY, rounding, wins
from rlhf_lab.training import Loop, Training, distributed

PairLoss = Literal[
    "sigmoid-norm", "cdpo", "robust", "ipo", "ipo-mean", "hinge-norm", "hinge", "chi", "dpo-length", "simpo", "orpo"
]
"""Names of the pair losses. "norm" is RSO's word for *divided by π_ref*; "mean" and "length" say *divided by |y|*."""
Smoothing = Annotated[
    float,
    Range(
        0,
        0.5,
        exclusive_maximum=True,
        fix="It is the rate of wrong labels; labels that are wrong half of the time say nothing.",
    ),
]
SMOOTHED = ("sigmoid-norm", "cdpo", "robust")
WITHOUT_REFERENCE = ("hinge", "simpo", "orpo")
BY_LENGTH = ("ipo-mean", "dpo-length", "simpo", "orpo")


@dataclass(frozen=True)
class DPO:
    """Which loss, and how steep."""

    loss: PairLoss = "sigmoid-norm"
    """sigmoid-norm is DPO's own (with label_smoothing it is cdpo). cdpo and robust need a label_smoothing above 0.
    hinge (SLiC), simpo and orpo have no reference; ipo-mean, dpo-length, simpo and orpo divide by length; chi is χPO.
    """
    beta: Positive = 0.1
    """The loss's slope in the log-ratio: β of DPO (then also of the objective), γ of RSO's losses, τ of IPO; of
    SimPO β of a mean over tokens (the paper: 2 to 10); of ORPO λ."""
    label_smoothing: Smoothing = 0.0
    """ε, the rate of wrong labels that cdpo (sigmoid-norm) or robust DPO assumes, below ½."""
    target_margin: NonNegative | None = None
    """γ of SimPO, in the units of β log π. None: half of beta."""
    max_reward: Positive | None = None
    """R of χPO, which clips differences of implicit rewards at 2R. None: no clip."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.label_smoothing and self.loss not in SMOOTHED:
            raise LabError(
                f"label_smoothing is for {', '.join(SMOOTHED[:-1])} and {SMOOTHED[-1]}; {self.loss} has none. Set it "
                f"to 0."
            )
        if self.loss in SMOOTHED[1:] and not self.label_smoothing:
            raise LabError(
                f"{self.loss} with label_smoothing=0 is plain DPO. Give label_smoothing, the rate of wrong labels, for "
                f"example 0.1, or take the loss sigmoid-norm."
            )
        if self.target_margin is not None and self.loss != "simpo":
            raise LabError(f"target_margin is for simpo; {self.loss} has none. Leave it out.")
        if self.max_reward is not None and self.loss != "chi":
            raise LabError(f"max_reward is for chi; {self.loss} has none. Leave it out.")
        # Said now, not at the first step of a long run.
        self(torch.zeros(1), torch.zeros(1), torch.ones(1), torch.ones(1))

    @property
    def needs_reference(self) -> bool:
        """Whether the loss is of log-ratios to π_ref; else of log-probabilities."""
        return self.loss not in WITHOUT_REFERENCE

    def __call__(
        self,
        chosen: Tensor,
        rejected: Tensor,
        chosen_length: Tensor | None = None,
        rejected_length: Tensor | None = None,
    ) -> Tensor:
        """The loss of each pair.

        Args:
            chosen: log-ratio of the chosen response, any shape; its log-probability where no reference is needed.
            rejected: the same of the rejected one.
            chosen_length: its number of tokens, for the losses that divide by length.
            rejected_length: the same of the rejected one.

        Raises:
            LabError: lengths missing where they are needed; as the loss.
        """
        beta = self.beta
        if self.loss in SMOOTHED[:2]:
            return losses.dpo(chosen, rejected, beta, self.label_smoothing)
        if self.loss == "robust":
            return losses.robust_dpo(chosen, rejected, beta, self.label_smoothing)
        if self.loss == "ipo":
            return losses.ipo(chosen, rejected, beta)
        if self.loss == "hinge-norm":
            return losses.hinge_norm(chosen, rejected, beta)
        if self.loss == "hinge":
            return losses.hinge(chosen, rejected, beta)
        if self.loss == "chi":
            return losses.chi_po(chosen, rejected, beta, self.max_reward)
        if chosen_length is None or rejected_length is None:
            raise LabError(f"{self.loss} divides by the number of tokens: pass the lengths of both responses.")
        pair = chosen, rejected, chosen_length, rejected_length
        if self.loss == "ipo-mean":
            return losses.ipo_mean(*pair, beta)
        if self.loss == "dpo-length":
            return losses.dpo_length(*pair, beta)
        if self.loss == "simpo":
            return losses.simpo(*pair, beta, beta / 2 if self.target_margin is None else self.target_margin)
        return losses.orpo(*pair, beta)

    def implicit_reward(self, value: Tensor, length: Tensor) -> Tensor:
        """What the loss compares the responses by, shape of `value`: of DPO β log π_θ/π_ref.

        Args:
            value: log-ratio, or log-probability where the loss has no reference, any shape.
            length: number of tokens, same shape.
        """
        if self.loss in BY_LENGTH:
            value = losses.per_token(value, length)
        if self.loss == "orpo":
            return losses.log_odds(value)
        return self.beta * (losses.chi_link(value) if self.loss == "chi" else value)


def pair_loss(policy: Policy, batch: Pairs, log_ref: Tensor | None, settings: DPO) -> tuple[Tensor, dict]:
    """The mean loss of a batch of pairs, and what a reader wants to watch.

    Args:
        policy: π_θ.
        batch: B pairs.
        log_ref: log π_ref of both responses, (B, 2); None where the loss needs none.
        settings: the loss.

    Returns:
        the loss, a scalar; and loss-free numbers: accuracy (a margin that is 0 within rounding counts ½) and margin of
        the implicit reward, and its parts: chosen_log_ratio and rejected_log_ratio (chosen_log_prob and
        rejected_log_prob where there is no log_ref).
    """
    log_prob = policy.log_prob(batch.prompts, batch.responses)
    length = batch.responses.lengths.to(log_prob.device)
    # Numbers that were handed in, from a file for one, may lie elsewhere.
    log_ref = None if log_ref is None else log_ref.to(log_prob.device)
    value = log_prob - log_ref if log_ref is not None and settings.needs_reference else log_prob
    loss = settings(*value.unbind(-1), *length.unbind(-1))
    with torch.no_grad():
        better, worse = settings.implicit_reward(value.detach(), length).unbind(-1)
        margin = better - worse
        # How far the last digits of log π and log π_ref may move the margin, through whatever link the loss has.
        off = rounding(1.0, log_prob, *([] if log_ref is None else [log_ref]), units=MANY)
        high, low = (settings.implicit_reward(value.detach() + sign * off, length) for sign in (1, -1))
        doubt = (high - low).sum(-1) / 2
        shown = value.detach() if log_ref is None or settings.needs_reference else value.detach() - log_ref
        kind = "log_prob" if log_ref is None else "log_ratio"
        watched = {
            "accuracy": mean(wins(better, worse, doubt), batch.weight),
            "margin": mean(margin, batch.weight),
            f"chosen_{kind}": mean(shown[..., 0], batch.weight),
            f"rejected_{kind}": mean(shown[..., 1], batch.weight),
        }
    return mean(loss, batch.weight), watched


def dpo(
    policy: Policy,
    reference: Policy | None,
    pairs: Pairs | Callable[[torch.Generator], Pairs],
    settings: DPO = DPO(),
    training: Training = Training(),
    name: str = "dpo",
    reference_log_probs: Tensor | None = None,
) -> list[dict[str, float]]:
    """Train `policy` in place on preference pairs.

    Args:
        policy: π_θ, usually `reference.copy()`.
        reference: π_ref, frozen. Never asked where the loss needs none, or its answers are handed in; then it may
            be None.
        pairs: N labelled pairs; or a function that makes fresh ones from a step's generator.
        settings: the loss.
        training: steps, batch size in pairs, rate, seed.
        name: text of the progress bar.
        reference_log_probs: log π_ref of both responses of every pair, (N, 2), if they are known already.

    Returns:
        the history: loss, accuracy (how often the implicit reward ranks the pair as labelled, ties ½), margin (mean
        difference of implicit rewards), chosen and rejected log-ratios, in nats (log-probabilities where the loss has
        no reference).

    Raises:
        LabError: no pairs; no reference where the loss needs one; a loss that is not finite.
    """
    _check_reference(reference, pairs, settings, reference_log_probs)

    def loss_of(batch: Pairs, log_ref: Tensor | None = None) -> tuple[Tensor, dict]:
        return pair_loss(policy, batch, log_ref, settings)

    training.check_rows(name, len(pairs) if isinstance(pairs, Pairs) else None)
    loop = Loop(name, policy, training, settings)
    dataset = pairs if isinstance(pairs, Pairs) else None
    known = reference_log_probs
    if dataset is not None and settings.needs_reference and known is None and loop.start < training.steps:
        assert reference is not None
        with loop.autocast():
            each = partial(_reference_of, reference, batch_size=training.batch_size, progress=training.progress)
            known = distributed.map_rows(each, dataset)
    with loop:
        for _, generator in loop:
            if dataset is not None:
                rows = loop.rows(len(dataset))
                batch, log_ref = dataset[rows], None if known is None else known[rows.to(known.device)]
            else:
                batch, log_ref = pairs(generator), None  # type: ignore[operator]
                if settings.needs_reference:
                    assert reference is not None
                    with loop.autocast():
                        log_ref = _reference_of(reference, batch, max(len(batch), 1))
            loop.update(loss_of, (batch,) if log_ref is None else (batch, log_ref))
    return loop.history


def _check_reference(
    reference: Policy | None,
    pairs: Pairs | Callable[[torch.Generator], Pairs],
    settings: DPO,
    log_ref: Tensor | None,
) -> None:
    if isinstance(pairs, Pairs) and len(pairs) == 0:
        raise LabError("There are no pairs to train on.")
    if log_ref is not None:
        if not isinstance(pairs, Pairs):
            raise LabError(
                "reference_log_probs are of given pairs; pairs that are made afresh have none. Leave it out."
            )
        if log_ref.shape != (len(pairs), 2):
            raise LabError(
                f"reference_log_probs has shape {tuple(log_ref.shape)}; {len(pairs)} pairs need ({len(pairs)}, 2)."
            )
    elif reference is None and settings.needs_reference:
        raise LabError(f"{settings.loss} needs a reference: pass the policy that training starts from.")


def mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """The mean over pairs, weighted where the pairs carry weights."""
    if weight is None:
        return values.mean()
    weight = weight.to(values.device, values.dtype)
    total = weight.sum()
    # A part of a batch may hold rows without weight alone: it adds nothing, and not 0/0.
    return (values * weight).sum() / torch.where(total > 0, total, 1.0)


@torch.no_grad()
def reference_log_probs(reference: Policy, pairs: Pairs, batch_size: int, progress: bool = False) -> Tensor:
    """log π_ref of both responses of every pair, (N, 2)."""
    if len(pairs) == 0:
        raise LabError("There are no pairs to train on.")
    starts = tqdm(
        range(0, len(pairs), batch_size),
        desc="reference",
        leave=False,
        disable=not distributed.shows_progress(progress) or len(pairs) <= batch_size,
    )
    parts = [pairs[start : start + batch_size] for start in starts]
    return torch.cat([reference.log_prob(part.prompts, part.responses) for part in parts])


_reference_of = reference_log_probs
"""The function, under a name that `dpo`'s argument does not hide."""
