"""`rlhf-lab train rest`: reinforced self-training (ReST) of a language model with `algorithms/rest.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from rlhf_lab.algorithms.rest import ReST, rest
from rlhf_lab.batch import Tokens
from rlhf_lab.cli.train.data import check_data, load_data, original_of
from rlhf_lab.cli.train.runner import History, Job, run
from rlhf_lab.cli.train.settings import Flat, SamplingSettings
from rlhf_lab.errors import Count, LabError, Natural, refuse_unused


@dataclass(frozen=True, kw_only=True)
class TrainReST(SamplingSettings):
    """Train a causal language model with ReST.

    The Grow step samples responses from the model. The Improve steps train it on responses above a rising threshold.
    """

    rest: Annotated[ReST, Flat] = field(default_factory=ReST)
    held_out: Natural = 0
    """Number of prompts, the last ones, that are not trained on. `patience` measures the reward on them."""
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
        if self.rest.patience is None:
            refuse_unused(self, ["held_out"], "without patience, which measures the reward on these prompts")
        if self.original is None:
            apart = [f"original_{name}" for name in ("split", "revision", "folder", "limit")]
            refuse_unused(self, apart, "without original, to which it belongs")


def train_rest(settings: TrainReST) -> History:
    """Run the command; see `runner.run`. Each Improve step has `steps` optimiser steps."""
    if settings.rest.patience is not None and settings.held_out < 1:
        raise LabError("patience measures the reward on held-out prompts. Give --held-out, for example 64.")
    if settings.original is not None:
        check_data(original_of(settings), settings.original_split is not None)
    return run(settings, "rest", "prompts", _fit)


def _fit(job: Job) -> History:
    prompts, settings = job.data.prompts, job.settings
    assert prompts is not None
    number = len(prompts) - settings.held_out
    if number < 1:
        raise LabError(
            f"held_out={settings.held_out} leaves none of the {len(prompts)} prompts for training. Lower it."
        )
    apart = prompts[number:] if settings.held_out else None
    original = _original(job)
    # An epoch of an Improve step has this many rows if every response passes the threshold.
    rows = number * settings.rest.samples + (0 if original is None else len(original[0]))
    return rest(
        job.drawing(job.policy),
        job.reward(),
        prompts[:number],
        settings.rest,
        job.training(rows),
        original,
        apart,
    )


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
