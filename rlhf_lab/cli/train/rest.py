"""`rlhf-lab train rest`: reinforced self-training (ReST) of a language model with `algorithms/rest.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from rlhf_lab.algorithms.rest import ReST, rest
from rlhf_lab.batch import Tokens
from rlhf_lab.cli.train.data import check_data, load_data, original_of
from rlhf_lab.cli.train.runner import History, Job, run
from rlhf_lab.cli.train.settings import Flat, SamplingSettings
from rlhf_lab.errors import Count, refuse_unused


@dataclass(frozen=True, kw_only=True)
class TrainReST(SamplingSettings):
    """Train a causal language model with ReST.

    The Grow step samples responses from the model. The Improve steps train it on responses above a rising threshold.
    """

    extends: ClassVar[bool] = False

    rest: Annotated[ReST, Flat] = field(default_factory=ReST)
    original: str | None = None
    """SFT data that are added to the sampled responses, and scored and filtered like them: a file, a data set on the
    Hub, or world:NAME, in the formats of `train sft`."""
    original_split: str | None = None
    """Split of `original`. Default: that of `data`."""
    original_revision: str | None = None
    """Branch, tag or commit of `original` on the Hub."""
    original_folder: str | None = None
    """Folder inside `original` on the Hub."""
    original_limit: Count | None = None
    """Use only this number of rows of `original`, the first usable ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.original is None:
            apart = [f"original_{name}" for name in ("split", "revision", "folder", "limit")]
            refuse_unused(self, apart, "without original, to which it belongs")


def train_rest(settings: TrainReST) -> History:
    """Run the command; see `runner.run`. Each Improve step has `steps` optimiser steps."""
    if settings.original is not None:
        check_data(original_of(settings), settings.original_split is not None)
    return run(settings, "rest", "prompts", _fit, rows=lambda job: _rows(job, _original(job)))


def _fit(job: Job) -> History:
    prompts, settings = job.data.prompts, job.settings
    assert prompts is not None
    original = _original(job)
    reward = job.reward()
    policy, training = job.drawing(job.policy), job.training(_rows(job, original))
    evaluation = job.reward_evaluation(policy, reward, settings.rest)
    return rest(policy, reward, prompts, settings.rest, training, original, evaluation=evaluation)


def _rows(job: Job, original: tuple[Tokens, Tokens] | None) -> int:
    """The rows of an epoch of an Improve step if every response passes the threshold."""
    wanted: ReST = job.settings.rest
    return len(job.data) * wanted.samples + (0 if original is None else len(original[0]))


def _original(job: Job) -> tuple[Tokens, Tokens] | None:
    """Load the data of `--original`, with the same limits on tokens as the other data."""
    settings = original_of(job.settings)
    if settings is None:
        return None
    data = load_data(settings, "targets", job.tokenizer, job.limits)
    assert data.prompts is not None and data.targets is not None
    for line in data.said:
        job.say(f"original: {line}")
    return data.prompts, data.targets
