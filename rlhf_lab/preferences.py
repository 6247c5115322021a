r"""Preference pairs from scores: Bradley–Terry labels with noise, and the pairings "first-round" and "tournament".

These are pure functions of rewards. A response is given by its position among the G responses to its prompt, and a pair
by the positions (chosen, rejected). Lecture, "Preliminaries" and "Preference Data Distribution – Choices"; Liu et al.
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
    r"""Draw for each pair whether the first response is preferred, with p(1 ≻ 2) = σ(r_1 − r_2).

    Args:
        reward_1: scores of the first responses, any shape, finite.
        reward_2: scores of the second, same shape.
        generator: source of randomness.
        labels: "sampled" draws from Bradley–Terry. "hard" always prefers the larger score, and decides ties (scores
            that are equal within rounding) at random.
        noise: ε in [0, ½], the probability that a label is flipped afterwards.

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
        raise LabError(f"noise must lie in [0, 0.5], not {noise}: it is the probability that a label is flipped.")
    gap = reward_1 - reward_2

    def draw() -> Tensor:
        return uniform(gap.shape, generator, gap.device)

    if labels == "sampled":
        won = draw() < torch.sigmoid(gap.double())
    elif labels == "hard":
        # A number in [0, 1) is below 1 (a win) always, below 0 (a loss) never, and below ½ (a tie) half of the time.
        won = draw() < wins(reward_1, reward_2)
    else:
        raise LabError(f"labels must be 'sampled' or 'hard', not {labels!r}.")
    return won ^ (draw() < noise) if noise else won


@torch.no_grad()
def make_pairs(
    rewards: Tensor,
    generator: torch.Generator | None = None,
    pairing: Pairing = "first-round",
    labels: Labels = "sampled",
    noise: float = 0.0,
) -> Tensor:
    r"""Pair the G responses of each prompt and label every pair.

    `first-round` pairs them at random and gives G/2 pairs. `tournament` pairs the winners again until one response is
    left. It gives G − 1 pairs, each between responses that have won equally many rounds, so the responses of later
    pairs are better and closer to each other.

    Args:
        rewards: (B, G) scores that decide the labels. G is even, and a power of two for a tournament.
        generator: source of randomness.
        pairing: "first-round" or "tournament".
        labels: as in `sample_preferences`.
        noise: as in `sample_preferences`.

    Returns:
        (B, n, 2) int64 positions along G, the chosen one first.

    Raises:
        LabError: G odd, below 2 or, for a tournament, not a power of two; scores not finite.
    """
    check_float(rewards, "rewards")
    if rewards.ndim != 2 or rewards.shape[1] < 2 or rewards.shape[1] % 2:
        raise LabError(f"rewards must have shape (B, G) with an even G, not {tuple(rewards.shape)}.")
    if pairing not in ("first-round", "tournament"):
        raise LabError(f"pairing must be 'first-round' or 'tournament', not {pairing!r}.")
    batch, number = rewards.shape
    if pairing == "tournament" and number & (number - 1):
        raise LabError(f"A tournament needs 2, 4, 8, … responses per prompt, not {number}.")
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
