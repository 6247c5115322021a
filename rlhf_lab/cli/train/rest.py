"""`rlhf-lab train rest`: reinforced self-training of a language model with `algorithms/rest.py`."""

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
    """Train a causal language model by ReST: grow a data set from it, improve it on what passes a rising threshold."""

    rest: Annotated[ReST, Flat] = field(default_factory=ReST)
    held_out: Natural = 0
    """Prompts, the last ones, kept apart for `patience` to watch the reward on."""
    original: str | None = None
    """SFT data that stay in the mix, scored and filtered like what is grown: a file, a data set on the Hub, or
    world:NAME, in the forms that `train sft` reads."""
    original_split: str | None = None
    """Its split; by default that of `data`."""
    original_revision: str | None = None
    """Its branch, tag or commit, if it is on the Hub."""
    original_folder: str | None = None
    """Folder within it, if it is on the Hub."""
    original_limit: Count | None = None
    """Its first so many usable rows alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rest.patience is None:
            refuse_unused(self, ["held_out"], "without patience, which watches the reward on those prompts")
        if self.original is None:
            apart = [f"original_{name}" for name in ("split", "revision", "folder", "limit")]
            refuse_unused(self, apart, "without original, the data that it belongs to")


def train_rest(settings: TrainReST) -> History:
    """Run the command; see `job.run`. An Improve step has `steps` steps, over responses."""
    if settings.rest.patience is not None and settings.held_out < 1:
        raise LabError("patience needs prompts to watch the reward on: give --held-out, for example 64.")
    if settings.original is not None:
        check_data(original_of(settings), settings.original_split is not None)
    return run(settings, "rest", "prompts", _fit)


def _fit(job: Job) -> History:
    prompts, settings = job.data.prompts, job.settings
    assert prompts is not None
    number = len(prompts) - settings.held_out
    if number < 1:
        raise LabError(f"held_out {settings.held_out} leaves none of {len(prompts)} prompts to train on.")
    apart = prompts[number:] if settings.held_out else None
    original = _original(job)
    # One epoch of an Improve step would see every response if all passed.
    rows = number * settings.rest.samples + (0 if original is None else len(original[0]))
    return rest(
        job.drawing(job.policy),
        job.reward(),
        prompts[:number],
        settings.rest,
        job.training(rows),
        original,
        apart,
        claimed=True,
    )


def _original(job: Job) -> tuple[Tokens, Tokens] | None:
    """The SFT data that stay in the mix, cut to the same limits as all else."""
    theirs = original_of(job.settings)
    if theirs is None:
        return None
    data = load_data(theirs, "targets", job.tokenizer, job.limits)
    assert data.prompts is not None and data.targets is not None
    for line in data.said:
        job.say(f"original: {line}")
    return data.prompts, data.targets
