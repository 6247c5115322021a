"""`rlhf-lab train reward-model`: fit a reward model to preference pairs with `algorithms/reward_model.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from rlhf_lab.algorithms.reward_model import RewardModel, held_out_pairs, reward_model
from rlhf_lab.cli.train.data import Data
from rlhf_lab.cli.train.runner import History, Job, run
from rlhf_lab.cli.train.settings import Flat, PairSettings
from rlhf_lab.rewards.language_model import LanguageModelReward
from rlhf_lab.training import Evaluation

READS = (
    "`model/` can be loaded with `rlhf_lab.rewards.language_model.LanguageModelReward.from_pretrained`. Give this "
    "folder to --reward."
)


@dataclass(frozen=True, kw_only=True)
class TrainRewardModel(PairSettings):
    """Fit a reward model to preference pairs by the Bradley-Terry likelihood.

    The reward model is a language model with a linear head in place of its output layer.
    """

    reward_model: Annotated[RewardModel, Flat] = field(default_factory=RewardModel)


def train_reward_model(settings: TrainRewardModel) -> History:
    """Run the command; see `runner.run`."""
    trained: list[LanguageModelReward] = []

    def fit(job: Job) -> History:
        assert job.data.pairs is not None
        # The body is that of the policy, because the command needs no policy beside the reward model.
        trained.append(LanguageModelReward(job.policy.model, job.tokenizer, copied=False))
        trained[0].adapter_dropout = settings.lora_dropout
        pairs = job.data.pairs

        def measure(held: Data) -> Evaluation:
            assert held.pairs is not None
            return held_out_pairs(trained[0], held.pairs)

        training, evaluation = job.training(len(pairs)), job.evaluation_of(measure)
        return reward_model(trained[0], pairs, settings.reward_model, training, evaluation=evaluation)

    def save(job: Job, folder: Path) -> str:
        trained[0].save_pretrained(folder)
        return READS

    return run(settings, "reward-model", "pairs", fit, save)
