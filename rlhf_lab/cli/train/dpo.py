"""`rlhf-lab train dpo`: train a language model on preference pairs with `algorithms/dpo.py`, by any of its losses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from rlhf_lab.algorithms.dpo import DPO, dpo, held_out_pairs
from rlhf_lab.algorithms.reward_shift import RewardShift
from rlhf_lab.cli.train.data import Data
from rlhf_lab.cli.train.runner import History, Job, run
from rlhf_lab.cli.train.settings import Flat, PairSettings, refuse_reference
from rlhf_lab.errors import Positive
from rlhf_lab.policies.base import Policy
from rlhf_lab.training import Evaluation


@dataclass(frozen=True, kw_only=True)
class TrainDPO(PairSettings):
    """Train a causal language model on preference pairs with DPO or a related loss."""

    caches_reference: ClassVar[bool] = True

    dpo: Annotated[DPO, Flat] = field(default_factory=DPO)
    learning_rate: Positive = 1e-6
    """Peak learning rate (also `--lr`). Small models need larger ones, for example 1e-4 for lab-gpt2."""
    reference: str | None = None
    """Reference model. Default: the model itself before training. Not for losses without a reference."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_reference(self, self.dpo.loss, self.dpo.needs_reference)


def train_dpo(settings: TrainDPO) -> History:
    """Run the command; see `runner.run`."""
    return run(settings, "dpo", "pairs", _fit)


def _fit(job: Job) -> History:
    pairs, loss = job.data.pairs, job.settings.dpo
    assert pairs is not None
    reference = job.reference() if loss.needs_reference else None
    shift = loss.new_shift(job.device)
    training, evaluation = job.training(len(pairs)), pair_evaluation(job, reference, loss, shift)
    known = None if reference is None else job.reference_rows(reference, pairs)
    return dpo(
        job.policy, reference, pairs, loss, training,
        reference_log_probs=known, evaluation=evaluation, shift=shift,
    )  # fmt: skip


def pair_evaluation(
    job: Job, reference: Policy | None, loss: DPO, shift: RewardShift | None = None
) -> Evaluation | None:
    """Return the evaluation by the loss on held-out pairs, or None without such pairs.

    Args:
        job: the run.
        reference: π_ref, or None if the loss needs none.
        loss: the loss.
        shift: the running mean of BCO, which `dpo` updates.
    """

    def make(held: Data) -> Evaluation:
        assert held.pairs is not None
        known = None if reference is None else job.reference_rows(reference, held.pairs, held_out=True)
        return held_out_pairs(job.policy, reference, held.pairs, loss, known, shift)

    return job.evaluation_of(make)
