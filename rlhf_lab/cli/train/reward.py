"""What `--reward` names: a trained reward model or ranker in a folder, or a world's gold reward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlhf_lab.cli.train.data import gold_reward, load_world
from rlhf_lab.errors import LabError, check_path
from rlhf_lab.policies.base import Policy, Reward
from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.policies.lora import LoraPolicy
from rlhf_lab.rewards.language_model import LanguageModelReward
from rlhf_lab.rewards.ranker import BaselineReward, PairwiseRanker
from rlhf_lab.rewards.saving import RECORD

GOLD = "gold"


def _gold_world(reward: str, world: str | None) -> str | None:
    """The world whose gold reward is meant; None where `reward` is a folder."""
    if reward != GOLD and not reward.startswith(f"{GOLD}:"):
        return None
    name = reward.partition(":")[2] or world
    if name is None:
        raise LabError("The reward gold belongs to a world: use --data world:NAME, or name it, --reward gold:NAME.")
    return name


def reward_folder(reward: str) -> Path:
    """The folder that holds the reward itself: the one given, or model/ in it, where it is a run's output.

    Raises:
        LabError: there is no such folder, or it holds none.
    """
    path = check_path(reward, "reward")
    for folder in (path, path / "model"):
        if (folder / RECORD).is_file():
            return folder
    if not path.exists():
        raise LabError(f"There is no reward folder {reward}: give what `rlhf-lab train reward-model` wrote, or gold.")
    raise LabError(f"{reward} holds no reward model: give the folder that `rlhf-lab train reward-model` wrote.")


def check_reward(settings: Any) -> None:
    """Refuse a reward that cannot be had, before anything is loaded."""
    reward = getattr(settings, "reward", None)
    if reward is None:
        return
    world = _gold_world(reward, settings.world)
    if world is not None:
        load_world(world)
    else:
        reward_folder(reward)


def load_reward(settings: Any, policy: LanguageModelPolicy, tokenizer: Any) -> Reward:
    """The reward on ids.

    Raises:
        LabError: it cannot be loaded, or was trained with another tokenizer than the policy's.
    """
    world = _gold_world(settings.reward, settings.world)
    if world is not None:
        return gold_reward(world, tokenizer)
    return read_reward(settings.reward, policy, tokenizer, settings.seed)


def start_of(policy: LanguageModelPolicy) -> Policy:
    """The policy as it is before training, frozen: under LoRA the same weights without adapters, else a copy."""
    return policy.reference() if isinstance(policy, LoraPolicy) else policy.frozen()


def read_reward(name: str, policy: LanguageModelPolicy, tokenizer: Any, seed: int = 0) -> Reward:
    """The reward in a folder. A ranker becomes one by baseline responses that the policy, as it is now, draws.

    Raises:
        LabError: as `load_reward`.
    """
    folder = reward_folder(name)
    try:
        kind = json.loads((folder / RECORD).read_text(encoding="utf-8")).get("kind")
    except (OSError, ValueError, AttributeError) as error:
        raise LabError(f"{folder / RECORD} is damaged ({type(error).__name__}); train the reward again.") from None
    if kind == PairwiseRanker.kind:
        ranker = PairwiseRanker.from_pretrained(folder, tokenizer, policy.device)
        return BaselineReward(ranker, start_of(policy), seed)
    reward = LanguageModelReward.from_pretrained(folder, tokenizer, policy.device)
    return reward.requires_grad_(False)
