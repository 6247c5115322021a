r"""RAFT: sample K responses a prompt, keep the best, fine-tune on it. Again, if asked.

    y_best = argmax_{k ≤ K} r(x, y_k),  y_k ~ π,      then SFT on (x, y_best)

Dong et al. 2023; lecture, RSO's table. In the limit of data one round is best-of-K of the policy it sampled from
(`exact.best_of_n`), whose KL to it is at most log K − (K−1)/K. There is no β: K takes its place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_lab.algorithms.sft import sft
from rlhf_lab.batch import Tokens
from rlhf_lab.checks import LabError, check_finite, check_positive
from rlhf_lab.policies.base import Policy, Reward
from rlhf_lab.training import Training, seeded


@dataclass(frozen=True)
class RAFT:
    """How many samples, how often."""

    best_of: int = 8
    """K, responses drawn for each prompt of a round."""
    rounds: int = 1
    """Rounds of sampling from the policy as it is and fine-tuning it; each has the training's steps."""
    temperature: float = 1.0
    """Of sampling."""

    def __post_init__(self) -> None:
        check_positive(self.temperature, "temperature")
        for name in ("best_of", "rounds"):
            if getattr(self, name) < 1:
                raise LabError(f"{name} must be at least 1, not {getattr(self, name)}.")


def best_of(scores: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Position of the best of each row of scores (B, G), as (B, 1); ties by a fair draw."""
    check_finite(scores, "reward")
    tie_break = torch.rand(scores.shape, generator=generator, device=scores.device)
    top = scores == scores.amax(-1, keepdim=True)
    return torch.where(top, tie_break, -1.0).argmax(-1, keepdim=True)


def raft(
    policy: Policy,
    reward: Reward,
    prompts: Tokens,
    settings: RAFT = RAFT(),
    training: Training = Training(),  # noqa: B008
    name: str = "raft",
) -> list[dict[str, float]]:
    """Train `policy` in place on the best of its own samples.

    Args:
        policy: π_θ, where it starts from (the SFT policy).
        reward: scores (B, G).
        prompts: (N, P); each gets K samples and one target a round. Repeat them for more data.
        settings: RAFT's own.
        training: the SFT of every round.
        name: what the progress bar says.

    Returns:
        the history of all rounds: loss; `round` and the mean score of samples and of kept ones.
    """
    history: list[dict[str, float]] = []
    for turn in range(settings.rounds):
        generator = seeded(training.seed, 2, turn, device=policy.device)
        candidates = policy.sample(prompts, settings.best_of, generator, settings.temperature)
        scores = reward(prompts, candidates).detach()
        kept = best_of(scores, generator)
        rows = sft(policy, prompts, candidates.take(kept), training.stage(f"round-{turn}", turn), f"{name} {turn + 1}")
        seen = {"round": turn, "score": float(scores.mean()), "kept_score": float(scores.gather(1, kept).mean())}
        history += [row | seen for row in rows]
    return history
