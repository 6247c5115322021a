"""`rlhf-lab train raft`: fine-tune a language model on its best samples with `algorithms/raft.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from rlhf_lab.algorithms.raft import RAFT, raft
from rlhf_lab.cli.train.runner import History, Job, run
from rlhf_lab.cli.train.settings import Flat, SamplingSettings


@dataclass(frozen=True, kw_only=True)
class TrainRAFT(SamplingSettings):
    """Fine-tune a causal language model on the best of several sampled responses, once or in rounds (RAFT)."""

    extends: ClassVar[bool] = False

    raft: Annotated[RAFT, Flat] = field(default_factory=RAFT)


def train_raft(settings: TrainRAFT) -> History:
    """Run the command; see `runner.run`. Each round has `steps` steps."""
    return run(settings, "raft", "prompts", _fit)


def _fit(job: Job) -> History:
    prompts = job.data.prompts
    assert prompts is not None
    policy, reward, settings = job.drawing(job.policy), job.reward(), job.settings.raft
    evaluation = job.reward_evaluation(policy, reward, settings)
    return raft(policy, reward, prompts, settings, job.training(len(prompts)), evaluation=evaluation)
