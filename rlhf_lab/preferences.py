r"""From scores to preference pairs: Bradley–Terry labels with noise, first-round and tournament pairing.

Pure functions of rewards; responses are named by their position among the G of their prompt. A pair comes back as
(chosen, rejected) positions. Lecture, "Preliminaries" and "Preference Data Distribution – Choices"; Liu et al.
2023 (RSO), section 3.3 and Table 2 (first-round, tournament).
"""

from typing import Literal

import torch
from torch import Tensor

from rlhf_lab.errors import LabError, check_finite, check_float, check_same_shape
from rlhf_lab.randomness import uniform
from rlhf_lab.rounding import wins

Labels = Literal["sampled", "hard"]
Pairing = Literal["first-round", "tournament"]


@torch.no_grad()
def sample_preferences(
    reward_1: Tensor,
    reward_2: Tensor,
    generator: torch.Generator | None = None,
    labels: Labels = "sampled",
    noise: float = 0.0,
) -> Tensor:
    r"""Whether the first response of each pair is preferred: a draw from p(1 ≻ 2) = σ(r_1 − r_2).

    Args:
        reward_1: scores of the first responses, any shape, finite.
        reward_2: scores of the second, same shape.
        generator: source of randomness.
        labels: "sampled" draws from Bradley–Terry; "hard" always prefers the larger score (ties, also within
            rounding, by a coin).
        noise: ε in [0, ½]: each label is then turned round with this probability, whatever the scores.

    Returns:
        booleans of the same shape.

    Raises:
        LabError: scores not finite; noise out of range; shapes that do not match.
    """
    check_float(reward_1, "reward_1")
    check_float(reward_2, "reward_2")
    check_same_shape(reward_1=reward_1, reward_2=reward_2)
    check_finite(reward_1, "reward_1")
    check_finite(reward_2, "reward_2")
    if not 0 <= noise <= 0.5:
        raise LabError(f"noise must lie in [0, 0.5], not {noise}: it is the probability that a label is wrong.")
    gap = reward_1 - reward_2

    def coin() -> Tensor:
        return uniform(gap.shape, generator, gap.device)

    if labels == "sampled":
        won = coin() < torch.sigmoid(gap.double())
    elif labels == "hard":
        # 0, ½ or 1 against a number in [0, 1): a win always is above it, a loss never, a tie half the time.
        won = coin() < wins(reward_1, reward_2)
    else:
        raise LabError(f"labels must be 'sampled' or 'hard', not {labels!r}.")
    return won ^ (coin() < noise) if noise else won


@torch.no_grad()
def make_pairs(
    rewards: Tensor,
    generator: torch.Generator | None = None,
    pairing: Pairing = "first-round",
    labels: Labels = "sampled",
    noise: float = 0.0,
) -> Tensor:
    r"""Pair the G responses of each prompt and label every pair.

    `first-round` pairs them at random, G/2 pairs. `tournament` lets the winners meet again until one is left:
    G − 1 pairs, each between winners of equally many rounds, so that late pairs are harder and better.

    Args:
        rewards: (B, G) scores that decide the labels, G even (for a tournament, a power of two).
        generator: source of randomness.
        pairing: see above.
        labels: as in `sample_preferences`.
        noise: as in `sample_preferences`.

    Returns:
        (B, n, 2) int64 positions along G, the chosen one first.

    Raises:
        LabError: G odd, below 2, or, for a tournament, not a power of two; scores not finite.
    """
    check_float(rewards, "rewards")
    if rewards.ndim != 2 or rewards.shape[1] < 2 or rewards.shape[1] % 2:
        raise LabError(f"rewards must have shape (B, G) with an even G, not {tuple(rewards.shape)}.")
    if pairing not in ("first-round", "tournament"):
        raise LabError(f"pairing must be 'first-round' or 'tournament', not {pairing!r}.")
    batch, number = rewards.shape
    if pairing == "tournament" and number & (number - 1):
        raise LabError(f"A tournament needs 2, 4, 8, … responses a prompt, not {number}.")
    shuffle = uniform((batch, number), generator, rewards.device, torch.float32).argsort(-1)
    rounds, players = [], shuffle
    while players.shape[1] >= 2:
        one, two = players[:, 0::2], players[:, 1::2]
        won = sample_preferences(rewards.gather(1, one), rewards.gather(1, two), generator, labels, noise)
        winners, losers = torch.where(won, one, two), torch.where(won, two, one)
        rounds.append(torch.stack([winners, losers], -1))
        if pairing == "first-round":
            break
        players = winners
    return torch.cat(rounds, 1)
