"""`rlhf-lab train rest`: reinforced self-training of a language model with `algorithms/rest.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from rlhf_lab.algorithms.rest import ReST, rest
from rlhf_lab.checks import LabError
from rlhf_lab.commands.train.job import History, Job, run
from rlhf_lab.commands.train.settings import Flat, SamplingSettings


@dataclass(frozen=True, kw_only=True)
class TrainReST(SamplingSettings):
    """Train a causal language model by ReST: grow a data set from it, improve it on what passes a rising threshold."""

    rest: Annotated[ReST, Flat] = field(default_factory=ReST)
    held_out: int = 0
    """Prompts, the last ones, kept apart for `patience` to watch the reward on."""


def train_rest(settings: TrainReST) -> History:
    """Run the command; see `job.run`. An Improve step has `steps` steps, over responses."""
    if settings.rest.patience is not None and settings.held_out < 1:
        raise LabError("patience needs prompts to watch the reward on: give --held-out, for example 64.")
    return run(settings, "rest", "prompts", _fit)


def _fit(job: Job) -> History:
    prompts, settings = job.data.prompts, job.settings
    assert prompts is not None
    number = len(prompts) - settings.held_out
    if number < 1:
        raise LabError(f"held_out {settings.held_out} leaves none of {len(prompts)} prompts to train on.")
    apart = prompts[number:] if settings.held_out else None
    # One epoch of an Improve step would see every grown response if all passed.
    training = job.training(number * settings.rest.samples)
    return rest(job.policy, job.reward(), prompts[:number], settings.rest, training, held_out=apart, claimed=True)
