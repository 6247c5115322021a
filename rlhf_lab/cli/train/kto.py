"""`rlhf-lab train kto`: train a language model on labels of single responses with `algorithms/kto.py`.

Data with the columns prompt, completion and label contain such labels. From preference pairs, both responses are used:
the chosen one is desirable and the rejected one is not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, ClassVar

from rlhf_lab.algorithms.kto import KTO, held_out_labelled, kto
from rlhf_lab.algorithms.labelled_responses import LabelledResponses, check_labelled
from rlhf_lab.batch import Tokens
from rlhf_lab.cli.train.data import Data
from rlhf_lab.cli.train.runner import History, Job, run
from rlhf_lab.cli.train.settings import Flat, PairSettings
from rlhf_lab.errors import Positive
from rlhf_lab.policies.reference_cache import ReferenceRows
from rlhf_lab.training import Evaluation


@dataclass(frozen=True, kw_only=True)
class TrainKTO(PairSettings):
    """Train a causal language model with KTO on responses that are labelled desirable or undesirable.

    From preference pairs, the chosen responses are desirable and the rejected ones are undesirable.
    """

    caches_reference: ClassVar[bool] = True

    kto: Annotated[KTO, Flat] = field(default_factory=KTO)
    learning_rate: Positive = 1e-6
    """Peak learning rate (also `--lr`). Small models need larger ones, for example 1e-4 for lab-gpt2."""
    reference: str | None = None
    """Reference model. Default: the model itself before training."""


def train_kto(settings: TrainKTO) -> History:
    """Run the command; see `runner.run`."""
    return run(settings, "kto", "labelled", _fit, rows=_rows)


def _rows(job: Job) -> int:
    labelled = _labelled(job.data)
    check_labelled(labelled)
    return len(labelled)


def _fit(job: Job) -> History:
    labelled, settings = _labelled(job.data), job.settings.kto
    reference = job.reference()

    def measure(held: Data) -> Evaluation:
        apart = _labelled(held)
        log_probs = partial(known, apart, held_out=True)
        return held_out_labelled(job.policy, reference, apart, settings, log_probs)

    def known(labelled: LabelledResponses, responses: Tokens, held_out: bool = False) -> ReferenceRows:
        return job.reference_rows(reference, (labelled.prompts, responses), held_out)

    training, evaluation = job.training(len(labelled)), job.evaluation_of(measure)
    return kto(
        job.policy, reference, labelled, settings, training,
        reference_log_probs=partial(known, labelled), evaluation=evaluation,
    )  # fmt: skip


def _labelled(data: Data) -> LabelledResponses:
    """The labelled responses; of preference pairs the chosen ones are desirable."""
    if data.pairs is not None:
        return LabelledResponses.from_pairs(data.pairs)
    assert data.prompts is not None and data.targets is not None and data.labels is not None
    return LabelledResponses(data.prompts, data.targets, data.labels)
