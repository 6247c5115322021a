"""Load the reward of `--reward`: a trained reward model or ranker from a folder, or the gold reward of a world."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from rlhf_lab.cli.train.data import gold_reward, load_world
from rlhf_lab.errors import LabError, check_path
from rlhf_lab.policies.base import Policy, Reward
from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.policies.loading import SHIPPED, SMOLLM2
from rlhf_lab.policies.lora import LoraPolicy
from rlhf_lab.rewards.language_model import LanguageModelReward
from rlhf_lab.rewards.ranker import BaselineReward, PairwiseRanker
from rlhf_lab.rewards.saving import HEAD, RECORD

GOLD = "gold"


def _gold_world(reward: str, world: str | None) -> str | None:
    """Return the name of the world whose gold reward is meant, or None if `reward` is a folder."""
    if reward != GOLD and not reward.startswith(f"{GOLD}:"):
        return None
    name = reward.partition(":")[2] or world
    if name is None:
        raise LabError("The reward gold needs a world. Use --data world:NAME, or --reward gold:NAME.")
    return name


def find_reward(name: str) -> Path | None:
    """Return the folder of a reward model or ranker: `name` or its subfolder model/. None if there is none."""
    path = Path(name)
    return next((folder for folder in (path, path / "model") if (folder / RECORD).is_file()), None)


def reward_folder(reward: str) -> Path:
    """Return the folder that contains the reward: the given one, or its subfolder model/ if it is a run's output.

    Raises:
        LabError: the folder does not exist, contains no reward, or lacks one of its files.
    """
    path = check_path(reward, "reward")
    fix = "Give the output folder of `rlhf-lab train reward-model` or `train ranker`, or gold for a world."
    if (folder := find_reward(str(path))) is not None:
        if (kind := reward_kind(folder)) not in (LanguageModelReward.kind, PairwiseRanker.kind):
            raise LabError(f"reward={reward} contains a {kind}, which is no reward. {fix}")
        if missing := [name for name in ("config.json", "model.safetensors", HEAD) if not _has(folder, name)]:
            raise LabError(f"The reward in {folder} has no {missing[0]}. Train the reward again.")
        return folder
    names = ("config.json", "model/config.json", "adapter_config.json")
    if reward in (*SHIPPED, SMOLLM2) or any((path / name).is_file() for name in names):
        raise LabError(f"reward={reward} contains a language model, which gives no reward. {fix}")
    if not path.exists():
        raise LabError(f"There is no reward folder {reward}. {fix}")
    raise LabError(f"reward={reward} contains no reward model. {fix}")


def _has(folder: Path, name: str) -> bool:
    """Whether a folder has a file. The weights of a large model are in several files, which an index lists."""
    return (folder / name).is_file() or (folder / f"{name}.index.json").is_file()


def reward_kind(folder: Path) -> str:
    """Return the kind of the model with a head in a folder, such as "reward model"."""
    try:
        return str(json.loads((folder / RECORD).read_text(encoding="utf-8"))["kind"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise LabError(f"{folder / RECORD} is damaged ({type(error).__name__}). Train the reward again.") from None


def check_reward(settings: Any) -> None:
    """Raise `LabError` if the reward does not exist. Nothing is loaded."""
    reward = getattr(settings, "reward", None)
    if reward is None:
        return
    world = _gold_world(reward, settings.world)
    if world is not None:
        load_world(world)
    else:
        reward_folder(reward)


def load_reward(settings: Any, policy: LanguageModelPolicy, tokenizer: Any) -> Reward:
    """Return the reward of `--reward`, as a function of token ids.

    Raises:
        LabError: the reward cannot be loaded, or it was trained with another tokenizer than the policy's.
    """
    world = _gold_world(settings.reward, settings.world)
    if world is not None:
        return gold_reward(world, tokenizer)
    return read_reward(settings.reward, policy, tokenizer, settings.seed)


def frozen_start(policy: LanguageModelPolicy) -> Policy:
    """Return the frozen policy before training: under LoRA the same weights without adapters, otherwise a copy."""
    return policy.reference() if isinstance(policy, LoraPolicy) else policy.frozen()


def read_reward(name: str, policy: LanguageModelPolicy, tokenizer: Any, seed: int = 0) -> Reward:
    """Return the reward in a folder. A ranker scores a response against baseline responses sampled from the policy.

    Raises:
        LabError: as `load_reward`.
    """
    found = load_reward_model(reward_folder(name), policy.device, tokenizer)
    if isinstance(found, PairwiseRanker):
        return BaselineReward(found, frozen_start(policy), seed)
    return found.requires_grad_(False)


def load_reward_model(
    folder: Path, device: torch.device, tokenizer: Any = None
) -> LanguageModelReward | PairwiseRanker:
    """Return the reward model or ranker in a folder. With a tokenizer, its vocabulary must be that of the reward.

    Raises:
        LabError: as `load_reward`.
    """
    found = PairwiseRanker if reward_kind(folder) == PairwiseRanker.kind else LanguageModelReward
    return found.from_pretrained(folder, tokenizer, device)
