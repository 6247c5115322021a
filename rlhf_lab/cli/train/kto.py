"""`rlhf-lab train kto`: fit a language model to verdicts on single responses with `algorithms/kto.py`.

Data with the columns prompt, completion and label are such verdicts; of preference pairs both responses are taken,
the chosen one as desirable.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from rlhf_lab.algorithms.kto import KTO, Verdicts, kto
from rlhf_lab.cli.train.runner import History, Job, run
from rlhf_lab.cli.train.settings import Flat, PairSettings
from rlhf_lab.errors import Positive


@dataclass(frozen=True, kw_only=True)
class TrainKTO(PairSettings):
    """Fit a causal language model to responses that are marked desirable or not (or to both sides of pairs)."""

    caches_reference: ClassVar[bool] = True

    kto: Annotated[KTO, Flat] = field(default_factory=KTO)
    learning_rate: Positive = 1e-6
    """Peak learning rate. Small models take larger ones: 1e-4 for the shipped ones."""
    reference: str | None = None
    """Another model as the reference; by default the model itself, as it starts."""


def train_kto(settings: TrainKTO) -> History:
    """Run the command; see `job.run`."""
    return run(settings, "kto", "verdicts", _fit)


def _fit(job: Job) -> History:
    data = job.data
    if data.pairs is not None:
        verdicts = Verdicts.from_pairs(data.pairs)
    else:
        assert data.prompts is not None and data.targets is not None and data.labels is not None
        verdicts = Verdicts(data.prompts, data.targets, data.labels)
    reference = job.reference()
    known = job.reference_log_probs(reference, (verdicts.prompts, verdicts.responses))
    training = job.training(len(verdicts))
    return kto(job.policy, reference, verdicts, job.settings.kto, training, reference_log_probs=known, claimed=True)
