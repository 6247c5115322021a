"""The pair losses of DPO and its relatives: one table of their names and properties, and the settings of `dpo`.

The formulas are in `rlhf_lab.losses`, with their sources and the policies that they converge to. An entry of the table
is all that a new loss needs besides its formula.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from rlhf_lab import losses
from rlhf_lab.algorithms.reward_shift import RewardShift
from rlhf_lab.errors import Finite, Fraction, LabError, NonNegative, Positive, Range, check_settings, refuse_unused

PairLoss = Literal[
    "sigmoid-norm", "cdpo", "robust", "ipo", "ipo-mean", "hinge-norm", "hinge", "chi", "dpo-length", "simpo", "orpo",
    "dpop", "dpo-nll", "apo-zero", "apo-down", "bco", "sppo"
]  # fmt: skip
"""Names of the pair losses. "norm" is RSO's word for *divided by π_ref*; "mean" and "length" say *divided by |y|*."""


def _identity(value: Tensor) -> Tensor:
    return value


@dataclass(frozen=True)
class LossSpec:
    """The properties of a pair loss that `DPO` needs.

    Attributes:
        function: the loss. Its arguments are the values of both responses, their lengths (`by_length`), the
            log-probability and the length of the chosen one (`likelihood`), β, and the settings of `uses`.
        reference: whether the values are log-ratios to π_ref and not log-probabilities.
        by_length: whether the loss divides by the numbers of tokens.
        likelihood: whether the loss of log-ratios also has the likelihood of the chosen response per token.
        uses: the settings of `DPO` that the loss has besides β.
        needs_smoothing: whether the loss without label_smoothing is plain DPO.
        link: the function of the value (a token, if `by_length`) of which the implicit reward is a multiple.
        scaled: whether that multiple is β; otherwise it is 1.
    """

    function: Callable[..., Tensor]
    reference: bool = True
    by_length: bool = False
    likelihood: bool = False
    uses: tuple[str, ...] = ()
    needs_smoothing: bool = False
    link: Callable[[Tensor], Tensor] = _identity
    scaled: bool = True


PAIR_LOSSES: dict[PairLoss, LossSpec] = {
    "sigmoid-norm": LossSpec(losses.dpo, uses=("label_smoothing",)),
    "cdpo": LossSpec(losses.dpo, uses=("label_smoothing",), needs_smoothing=True),
    "robust": LossSpec(losses.robust_dpo, uses=("label_smoothing",), needs_smoothing=True),
    "ipo": LossSpec(losses.ipo),
    "ipo-mean": LossSpec(losses.ipo_mean, by_length=True),
    "hinge-norm": LossSpec(losses.hinge_norm),
    "hinge": LossSpec(losses.hinge, reference=False),
    "chi": LossSpec(losses.chi_po, uses=("max_reward",), link=losses.chi_link),
    "dpo-length": LossSpec(losses.dpo_length, by_length=True),
    "simpo": LossSpec(losses.simpo, reference=False, by_length=True, uses=("target_margin",)),
    "orpo": LossSpec(losses.orpo, reference=False, by_length=True, link=losses.log_odds, scaled=False),
    "dpop": LossSpec(losses.dpop, uses=("chosen_penalty",)),
    "dpo-nll": LossSpec(losses.dpo_nll, likelihood=True, uses=("nll_weight",)),
    "apo-zero": LossSpec(losses.apo_zero),
    "apo-down": LossSpec(losses.apo_down),
    "bco": LossSpec(losses.bco, uses=("reward_shift",)),
    "sppo": LossSpec(losses.sppo),
}
"""Every pair loss by its name."""
Smoothing = Annotated[
    float,
    Range(0, 0.5, exclusive_maximum=True, fix="It is the rate of flipped labels; at ½ labels contain no information."),
]


@dataclass(frozen=True)
class DPO:
    """Settings of DPO: the loss and its parameters."""

    loss: PairLoss = "sigmoid-norm"
    """sigmoid-norm is DPO (with label_smoothing it is cdpo). cdpo and robust need a label_smoothing above 0. hinge
    (SLiC), simpo and orpo have no reference. ipo-mean, dpo-length, simpo and orpo divide by length. chi is χPO. dpo-nll
    is the loss of RPO and of iterative reasoning DPO. apo-zero, apo-down, bco and sppo compare each response with its
    reference probability, and not with the other response."""
    beta: Positive = 0.1
    """Parameter of the loss: β of DPO, which is also that of the objective; γ of RSO's losses; τ of IPO; λ of ORPO; 1/η
    of SPPO; β of SimPO, which multiplies a mean over tokens (the paper: 2 to 10)."""
    label_smoothing: Smoothing = 0.0
    """ε, the rate of flipped labels that cdpo (sigmoid-norm) or robust DPO assumes, below ½."""
    target_margin: NonNegative | None = None
    """γ of SimPO, in the units of β log π. None: half of beta."""
    max_reward: Positive | None = None
    """R of χPO, which clips differences of implicit rewards at 2R. None: no clip."""
    chosen_penalty: Positive = 50.0
    """λ of DPOP, the penalty per nat by which a chosen response is below its reference probability. If every response
    is sometimes chosen, a large λ keeps the reference policy; see `losses.dpop`."""
    nll_weight: Positive = 1.0
    """α of dpo-nll, the weight of the chosen response's negative log-likelihood per token."""
    reward_shift: Finite = 0.0
    """δ of BCO, which is subtracted from both implicit rewards."""
    shift_decay: Fraction | None = None
    """BCO: δ is a running mean of the implicit rewards, in which the weight of a batch is multiplied by this number at
    every later step. 1 is the mean over all batches, as in TRL. Default: δ is the constant reward_shift."""

    def __post_init__(self) -> None:
        check_settings(self)
        spec = self.spec
        for field in fields(self):
            losses_with = [loss for loss, other in PAIR_LOSSES.items() if field.name in other.uses]
            if losses_with and self.loss not in losses_with and getattr(self, field.name) != field.default:
                *others, last = losses_with
                having = f"{', '.join(others)} and {last}" if others else last
                raise LabError(f"{field.name} is for {having}; {self.loss} has none. Leave it out.")
        if self.shift_decay is not None:
            if "reward_shift" not in spec.uses:
                raise LabError(f"shift_decay is for bco; {self.loss} has none. Leave it out.")
            refuse_unused(self, ["reward_shift"], "with shift_decay, by which δ is a running mean")
        if spec.needs_smoothing and not self.label_smoothing:
            raise LabError(
                f"{self.loss} with label_smoothing=0 is plain DPO. Give label_smoothing, the rate of flipped labels, "
                f"for example 0.1, or use the loss sigmoid-norm."
            )
        # The function checks its settings here, before a long run, and not at its first step.
        self(*torch.zeros(2, 1), *torch.ones(2, 1), chosen_log_prob=torch.zeros(1))

    @property
    def spec(self) -> LossSpec:
        """The loss's entry in `PAIR_LOSSES`."""
        return PAIR_LOSSES[self.loss]

    @property
    def needs_reference(self) -> bool:
        """Whether the loss is a function of log-ratios to π_ref; otherwise it is one of log-probabilities."""
        return self.spec.reference

    def new_shift(self, device: torch.device | str) -> RewardShift | None:
        """Return the running mean that is BCO's δ, or None without `shift_decay`.

        Args:
            device: that of the policy.
        """
        return None if self.shift_decay is None else RewardShift(self.shift_decay, device)

    def __call__(
        self,
        chosen: Tensor,
        rejected: Tensor,
        chosen_length: Tensor | None = None,
        rejected_length: Tensor | None = None,
        *,
        chosen_log_prob: Tensor | None = None,
        reward_shift: Tensor | None = None,
    ) -> Tensor:
        """The loss of each pair.

        Args:
            chosen: log-ratio of the chosen response, any shape; its log-probability where no reference is needed.
            rejected: the same of the rejected one.
            chosen_length: its number of tokens, for the losses that divide by length.
            rejected_length: the same of the rejected one.
            chosen_log_prob: log-probability of the chosen response, for the loss dpo-nll.
            reward_shift: δ of bco, in place of the setting.

        Raises:
            LabError: lengths or chosen_log_prob missing where they are needed; as the loss.
        """
        spec = self.spec
        more: tuple[Tensor, ...] = ()
        if spec.by_length:
            if chosen_length is None or rejected_length is None:
                raise LabError(f"{self.loss} divides by the number of tokens: pass the lengths of both responses.")
            more = chosen_length, rejected_length
        elif spec.likelihood:
            if chosen_length is None or chosen_log_prob is None:
                raise LabError(f"{self.loss} has a likelihood: pass the chosen response's length and log-probability.")
            more = chosen_log_prob, chosen_length
        given: dict[str, Any] = {"target_margin": self.beta / 2} if self.target_margin is None else {}
        if reward_shift is not None:
            given["reward_shift"] = reward_shift
        others = [given.get(name, getattr(self, name)) for name in spec.uses]
        return spec.function(chosen, rejected, *more, self.beta, *others)

    def implicit_reward(self, value: Tensor, length: Tensor) -> Tensor:
        """Return the quantity by which the loss compares responses, in the shape of `value`; of DPO β log π_θ/π_ref.

        Args:
            value: the log-ratio, or the log-probability where the loss has no reference, any shape.
            length: number of tokens, same shape.
        """
        reward = self.spec.link(losses.per_token(value, length) if self.spec.by_length else value)
        return self.beta * reward if self.spec.scaled else reward
