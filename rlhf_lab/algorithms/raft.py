r"""RAFT: sample K responses to each prompt, keep the best one, fine-tune on it; repeat for several rounds.

    y_best = argmax_{k ≤ K} r(x, y_k),  y_k ~ π,      then SFT on (x, y_best)

Dong et al. 2023; lecture, RSO's table. In the limit of data one round gives best-of-K of the policy that was sampled
(`exact.best_of_n`), whose KL to that policy is at most log K − (K−1)/K. RAFT has no β; K takes its place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_lab.algorithms.cached_rollouts import claim_output, sample_and_score
from rlhf_lab.algorithms.sft import sft
from rlhf_lab.batch import Tokens
from rlhf_lab.errors import Count, Temperature, check_finite, check_settings
from rlhf_lab.policies.base import Policy, Reward
from rlhf_lab.randomness import Stream, uniform
from rlhf_lab.rounding import wins
from rlhf_lab.training import Evaluation, Training


@dataclass(frozen=True)
class RAFT:
    """Settings of RAFT."""

    best_of: Count = 8
    """K, responses sampled for each prompt in a round."""
    rounds: Count = 1
    """Rounds of sampling from the current policy and fine-tuning it. Each round has the training's number of steps."""
    temperature: Temperature = 1.0
    """Sampling temperature."""
    top_k: Count | None = None
    """Sample among the k likeliest tokens only."""
    sampling_batch_size: Count | None = None
    """Prompts whose responses are sampled and scored together. It changes the memory needed and the samples drawn.
    None: 512; on the command line as many as fit into 1 GiB."""

    def __post_init__(self) -> None:
        check_settings(self)


def best_of(scores: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return the position of the best response in each row of scores (B, G), as (B, 1).

    Scores that are equal within rounding are a tie, which is decided by a fair draw.
    """
    check_finite(scores, "reward")
    tie_break = uniform(scores.shape, generator, scores.device, torch.float32)
    top = wins(scores, scores.amax(-1, keepdim=True)) == 0.5
    return torch.where(top, tie_break, -1.0).argmax(-1, keepdim=True)


def raft(
    policy: Policy,
    reward: Reward,
    prompts: Tokens,
    settings: RAFT = RAFT(),
    training: Training = Training(),
    name: str = "raft",
    evaluation: Evaluation | None = None,
) -> list[dict[str, float]]:
    """Train `policy` in place on the best of the samples from the current policy.

    Args:
        policy: π_θ at its starting point (the SFT policy).
        reward: scores (B, G).
        prompts: (N, P); each gets K samples and one target in a round. Repeat them for more data.
        settings: those of RAFT.
        training: the SFT of every round.
        name: text of the progress bar.
        evaluation: what is measured on held-out data, for example `on_policy.held_out_rewards`.

    Returns:
        the history of all rounds: loss, round, score (the mean of all samples) and kept_score (of the best ones).

    Raises:
        LabError: there are no prompts; a score or the loss is not finite.
    """
    history: list[dict[str, float]] = []
    with claim_output(name, training, settings) as out:
        for turn in range(settings.rounds):
            folder = None if out is None else out / "samples" / f"round-{turn}"
            stream, title = (Stream.RAFT_RESPONSES, turn), f"{name} {turn + 1}"
            best = sample_and_score(
                policy, reward, prompts, settings.best_of, settings, training, stream, folder, title, select=best_of
            )
            rows = sft(policy, prompts, best.responses, training.stage(f"round-{turn}", turn), title, evaluation)
            kept = best.scores.gather(1, best.selected)
            seen = {"round": turn, "score": float(best.scores.mean()), "kept_score": float(kept.mean())}
            history += [row | seen for row in rows]
    return history
