"""Bandits: finite worlds with K responses to each prompt, each of a single token. Every run takes under a second."""

from __future__ import annotations

import torch

from rlhf_lab.errors import LabError, check_no_nan
from rlhf_lab.policies.tabular import TabularPolicy, TabularReward
from rlhf_lab.randomness import Stream
from rlhf_lab.response_tree import ResponseTree
from rlhf_lab.training import seeded
from rlhf_lab.worlds.finite_world import FiniteWorld


def make(
    log_ref: torch.Tensor,
    reward: torch.Tensor,
    name: str = "bandit",
    prompt_names: list[str] | None = None,
    response_names: list[str] | None = None,
) -> FiniteWorld:
    """Make a bandit of given numbers.

    Args:
        log_ref: log π_ref or logits, (X, K). They are normalised.
        reward: the gold reward, (X, K).
        name: name for titles and files.
        prompt_names: X names for display.
        response_names: K names for display.

    Raises:
        LabError: shapes that differ or are not (X, K); rewards that are not finite; a log_ref with NaN or with a row
            without mass.
    """
    if log_ref.ndim != 2 or log_ref.shape != reward.shape:
        raise LabError(f"log_ref {tuple(log_ref.shape)} and reward {tuple(reward.shape)} must both be (X, K).")
    if not torch.isfinite(reward).all():
        raise LabError("reward must be finite.")
    log_ref = log_ref.double().log_softmax(-1)
    check_no_nan(log_ref, "log_ref")
    prompts, arms = reward.shape
    tree = ResponseTree(arms, 1)
    reference = TabularPolicy(tree, [log_ref.unsqueeze(1)]).frozen()
    gold = TabularReward(tree, [reward.double().unsqueeze(1)]).frozen()
    return FiniteWorld(name, tree, reference, gold, prompts, prompt_names or [], response_names or [])


def random(num_prompts: int = 4, num_arms: int = 10, seed: int = 0, reward_scale: float = 1.0) -> FiniteWorld:
    """Make a random bandit with normal reference logits and normal rewards.

    Args:
        num_prompts: X.
        num_arms: K.
        seed: seed of the logits and rewards.
        reward_scale: standard deviation of the rewards.
    """
    if num_prompts < 1 or num_arms < 2:
        raise LabError(f"A bandit needs at least one prompt and two arms, not {num_prompts} and {num_arms}.")
    generator = seeded(seed, Stream.BANDIT_WORLD)
    shape = (num_prompts, num_arms)
    log_ref = torch.randn(shape, dtype=torch.float64, generator=generator)
    reward = torch.randn(shape, dtype=torch.float64, generator=generator) * reward_scale
    return make(log_ref, reward, f"random bandit, {num_prompts} × {num_arms}, seed {seed}")


def lecture() -> FiniteWorld:
    """Make a small example by hand: two prompts with four responses each, and a reward that disagrees with π_ref.

    The reference policy often avoids a clear answer. The labeller prefers a short and correct answer.
    """
    probabilities = torch.tensor([[0.40, 0.30, 0.20, 0.10], [0.10, 0.45, 0.15, 0.30]], dtype=torch.float64)
    reward = torch.tensor([[-0.5, 0.0, 1.0, 1.5], [0.5, 0.0, 1.5, -1.0]], dtype=torch.float64)
    return make(
        probabilities.log(),
        reward,
        "lecture bandit",
        ["What is the capital of France?", "Summarise: the cat sat on the mat, then slept."],
        ["a hedge", "a long answer", "a short answer", "a cited answer"],
    )
