"""`rlhf-lab train sft`: fine-tune a language model on target responses with `algorithms/sft.py`."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_lab.algorithms.sft import held_out_responses, sft
from rlhf_lab.cli.train.data import Data
from rlhf_lab.cli.train.runner import History, Job, run
from rlhf_lab.cli.train.settings import Common
from rlhf_lab.data.conversations import TrainOn
from rlhf_lab.errors import Positive
from rlhf_lab.training import Evaluation


@dataclass(frozen=True, kw_only=True)
class TrainSFT(Common):
    """Fine-tune a causal language model on prompts with target responses (SFT).

    From preference pairs, the chosen responses are used.
    """

    learning_rate: Positive = 2e-5
    """Peak learning rate (also `--lr`). Small models need larger ones, for example 1e-3 for lab-gpt2."""
    train_on: TrainOn = "last"
    """The answers of a conversation that are in the loss: the last turn of the assistant, or all of its turns. With
    all, the limit of a conversation of several answers is the sum of both limits of length."""


def train_sft(settings: TrainSFT) -> History:
    """Run the command; see `runner.run`."""
    return run(settings, "sft", "targets", _fit)


def _fit(job: Job) -> History:
    prompts, targets = job.data.prompts, job.data.targets
    assert prompts is not None and targets is not None

    def measure(held: Data) -> Evaluation:
        assert held.prompts is not None and held.targets is not None
        return held_out_responses(job.policy, held.prompts, held.targets, held.trained)

    training, evaluation = job.training(len(prompts)), job.evaluation_of(measure)
    return sft(job.policy, prompts, targets, training, evaluation=evaluation, trained=job.data.trained)
