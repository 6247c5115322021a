"""`rlhf-lab train kto`: train a language model on labels of single responses with `algorithms/kto.py`.

Data with the columns prompt, completion and label contain such labels. From preference pairs, both responses are used:
the chosen one is desirable and the rejected one is not.
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
    """Train a causal language model with KTO on responses that are labelled desirable or undesirable.

    From preference pairs, the chosen responses are desirable and the rejected ones are undesirable.
    """

    caches_reference: ClassVar[bool] = True

    kto: Annotated[KTO, Flat] = field(default_factory=KTO)
    learning_rate: Positive = 1e-6
    """Peak learning rate. Small models need larger ones, for example 1e-4 for lab-gpt2."""
    reference: str | None = None
    """Reference model. Default: the model itself before training."""


def train_kto(settings: TrainKTO) -> History:
    """Run the command; see `runner.run`."""
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
    return kto(job.policy, reference, verdicts, job.settings.kto, training, reference_log_probs=known)
