"""`rlhf-lab train iterated-dpo`: DPO in rounds, each on new labels of the policy's responses.

The algorithm is `algorithms/iterated_dpo.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch

from rlhf_lab import preferences
from rlhf_lab.algorithms.dpo import DPO
from rlhf_lab.algorithms.iterated_dpo import Online, online
from rlhf_lab.batch import Pairs, cat_pairs, pick_pairs
from rlhf_lab.cli.train.runner import History, Job, run
from rlhf_lab.cli.train.settings import Flat, SamplingSettings, refuse_reference
from rlhf_lab.errors import Positive, check_finite
from rlhf_lab.policies.base import Policy, Reward


@dataclass(frozen=True, kw_only=True)
class TrainIteratedDPO(SamplingSettings):
    """Train a causal language model with DPO in rounds.

    In each round the model's responses are sampled and labelled by a reward.
    """

    extends: ClassVar[bool] = False

    iterated_dpo: Annotated[Online, Flat] = field(default_factory=Online)
    dpo: Annotated[DPO, Flat] = field(default_factory=DPO)
    learning_rate: Positive = 1e-6
    """Peak learning rate (also `--lr`). Small models need larger ones, for example 1e-4 for lab-gpt2."""
    reference: str | None = None
    """Reference model. Default: the model itself before training. Not for losses without a reference."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_reference(self, self.dpo.loss, self.dpo.needs_reference)


def train_iterated_dpo(settings: TrainIteratedDPO) -> History:
    """Run the command; see `runner.run`. Each round has `steps` steps."""
    return run(settings, "iterated-dpo", "prompts", _fit, rows=_rows)


def _rows(job: Job) -> int:
    """The labelled responses of a round."""
    wanted: Online = job.settings.iterated_dpo
    return wanted.labels // wanted.rounds


def _fit(job: Job) -> History:
    prompts, settings = job.data.prompts, job.settings
    assert prompts is not None
    reward: Reward = job.reward()
    size = settings.batch_size

    @torch.no_grad()
    def collect(policy: Policy, number: int, generator: torch.Generator) -> Pairs:
        """Sample `number` prompts and two responses to each, labelled by the Bradley-Terry model on the reward."""
        rows = torch.randint(len(prompts), (number,), generator=generator, device=generator.device).cpu()
        parts = []
        for start in range(0, number, size):
            x = prompts[rows[start : start + size]]
            y = policy.sample(x, 2, generator)
            scores = check_finite(reward(x, y).to(generator.device), "reward")
            parts.append(pick_pairs(x.to(y.device), y, preferences.make_pairs(scores, generator).to(y.device))[0])
        return cat_pairs(parts)

    policy, reference, loss = job.drawing(job.policy), job.reference(), settings.dpo
    # A loss without a reference has no β of a KL penalty.
    evaluation = job.reward_evaluation(policy, reward, settings, loss.beta if loss.needs_reference else None, reference)
    training = job.training(_rows(job))
    return online(policy, reference, collect, loss, settings.iterated_dpo, training, evaluation=evaluation)
