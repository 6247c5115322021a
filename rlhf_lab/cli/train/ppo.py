"""`rlhf-lab train ppo`: train a language model on a reward with `algorithms/ppo.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from rlhf_lab.algorithms.ppo import PPO, ppo
from rlhf_lab.cli.train.runner import History, Job, new_critic, run
from rlhf_lab.cli.train.settings import Epochs, Flat, SamplingSettings
from rlhf_lab.training.config import Epsilon


@dataclass(frozen=True, kw_only=True)
class TrainPPO(SamplingSettings):
    """Train a causal language model on a reward with PPO, with a critic and a KL penalty per token."""

    uses_ratio: ClassVar[bool] = True

    ppo: Annotated[PPO, Flat] = field(default_factory=PPO)
    epochs: Epochs = 1.0
    """Number of passes over the prompts, if `steps` is not given."""
    adam_epsilon: Epsilon = 1e-5
    """The ε of Adam."""
    reference: str | None = None
    """Reference model. Default: the model itself before training."""


def train_ppo(settings: TrainPPO) -> History:
    """Run the command; see `runner.run`."""
    return run(settings, "ppo", "prompts", _fit)


def _fit(job: Job) -> History:
    prompts = job.data.prompts
    assert prompts is not None
    reward = job.reward()
    critic = new_critic(job.policy, reward)
    training = job.training(len(prompts))
    policy, reference, settings = job.drawing(job.policy), job.reference(), job.settings.ppo
    evaluation = job.reward_evaluation(policy, reward, settings, settings.beta, reference)
    return ppo(policy, reference, reward, critic, prompts, settings, training, evaluation=evaluation)
