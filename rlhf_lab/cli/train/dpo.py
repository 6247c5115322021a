"""`rlhf-lab train dpo`: fit a language model to preference pairs with `algorithms/dpo.py` and any of its losses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from rlhf_lab.algorithms.dpo import DPO, dpo
from rlhf_lab.cli.train.runner import History, Job, run
from rlhf_lab.cli.train.settings import Flat, PairSettings, refuse_reference
from rlhf_lab.errors import Positive


@dataclass(frozen=True, kw_only=True)
class TrainDPO(PairSettings):
    """Fit a causal language model to preference pairs by direct preference optimisation, or a loss of its family."""

    caches_reference: ClassVar[bool] = True

    dpo: Annotated[DPO, Flat] = field(default_factory=DPO)
    learning_rate: Positive = 1e-6
    """Peak learning rate. Small models take larger ones: 1e-4 for the shipped ones."""
    reference: str | None = None
    """Another model as the reference; by default the model itself, as it starts. Not for losses without one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_reference(self, self.dpo.loss, self.dpo.needs_reference)


def train_dpo(settings: TrainDPO) -> History:
    """Run the command; see `job.run`."""
    return run(settings, "dpo", "pairs", _fit)


def _fit(job: Job) -> History:
    pairs, loss = job.data.pairs, job.settings.dpo
    assert pairs is not None
    reference = job.reference() if loss.needs_reference else None
    known = None if reference is None else job.reference_log_probs(reference, pairs)
    training = job.training(len(pairs))
    return dpo(job.policy, reference, pairs, loss, training, reference_log_probs=known, claimed=True)
