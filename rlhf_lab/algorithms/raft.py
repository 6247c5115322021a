r"""RAFT: sample K responses a prompt, keep the best, fine-tune on it. Again, if asked.

    y_best = argmax_{k ≤ K} r(x, y_k),  y_k ~ π,      then SFT on (x, y_best)

Dong et al. 2023; lecture, RSO's table. In the limit of data one round is best-of-K of the policy it sampled from
(`exact.best_of_n`), whose KL to it is at most log K − (K−1)/K. There is no β: K takes its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rlhf_lab.algorithms.cached_rollouts import (
    Block,
    ask,
    from_tokens,
    in_blocks,
    join,
    own,
    to_tokens,
)
from rlhf_lab.algorithms.sft import sft
from rlhf_lab.batch import Tokens, cat
from rlhf_lab.errors import Count, Temperature, check_finite, check_settings
from rlhf_lab.policies.base import Policy, Reward
from rlhf_lab.randomness import Stream, uniform
from rlhf_lab.rounding import wins
from rlhf_lab.training import Training, seeded


@dataclass(frozen=True)
class RAFT:
    """How many samples, how often."""

    best_of: Count = 8
    """K, responses drawn for each prompt of a round."""
    rounds: Count = 1
    """Rounds of sampling from the policy as it is and fine-tuning it; each has the training's steps."""
    temperature: Temperature = 1.0
    """Of sampling."""
    top_k: Count | None = None
    """Draw among the k likeliest tokens alone."""
    sampling_batch_size: Count | None = None
    """Prompts answered and scored at a time. Fewer need less memory, and are other draws.
    None: 512; on the command line as many as fit into 1 GiB."""

    def __post_init__(self) -> None:
        check_settings(self)


def best_of(scores: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Position of the best of each row of scores (B, G), as (B, 1); ties within rounding by a fair draw."""
    check_finite(scores, "reward")
    tie_break = uniform(scores.shape, generator, scores.device, torch.float32)
    top = wins(scores, scores.amax(-1, keepdim=True)) == 0.5
    return torch.where(top, tie_break, -1.0).argmax(-1, keepdim=True)


def raft(
    policy: Policy,
    reward: Reward,
    prompts: Tokens,
    settings: RAFT = RAFT(),
    training: Training = Training(),  # noqa: B008
    name: str = "raft",
    claimed: bool = False,
) -> list[dict[str, float]]:
    """Train `policy` in place on the best of its own samples.

    Args:
        policy: π_θ, where it starts from (the SFT policy).
        reward: scores (B, G).
        prompts: (N, P); each gets K samples and one target a round. Repeat them for more data.
        settings: RAFT's own.
        training: the SFT of every round.
        name: what the progress bar says.
        claimed: the caller has taken the output folder (see `checkpoint.claim`).

    Returns:
        the history of all rounds: loss; `round` and the mean score of samples and of kept ones.

    Raises:
        LabError: no prompts; scores that are not finite; a loss that is not finite.
    """
    out = own(name, training, settings, claimed)
    history: list[dict[str, float]] = []
    for turn in range(settings.rounds):
        stage = training.stage(f"round-{turn}", turn)
        blocks = in_blocks(
            partial(_best_of_block, policy, reward, prompts, settings, training, turn),
            len(prompts),
            settings.sampling_batch_size or 512,
            None if out is None else out / "samples" / f"round-{turn}",
            f"{name} {turn + 1}: samples",
            training.progress,
        )
        kept, scores = cat([to_tokens("kept", block) for block in blocks]), join(blocks, "scores")
        rows = sft(policy, prompts, kept, stage, f"{name} {turn + 1}")
        seen = {"round": turn, "score": float(scores.mean()), "kept_score": float(join(blocks, "kept_score").mean())}
        history += [row | seen for row in rows]
    return history


@torch.no_grad()
def _best_of_block(
    policy: Policy,
    reward: Reward,
    prompts: Tokens,
    settings: RAFT,
    training: Training,
    turn: int,
    start: int,
    stop: int,
) -> Block:
    # The first block's generator is the round's own.
    generator = seeded(training.seed, Stream.RAFT_RESPONSES, turn, *([start] if start else []), device=policy.device)
    x = prompts[start:stop]
    candidates = ask(policy, x, settings.best_of, generator, settings.temperature, settings.top_k)
    scores = reward(x, candidates).detach()
    kept = best_of(scores, generator)
    return from_tokens("kept", candidates.take(kept)) | {"scores": scores, "kept_score": scores.gather(1, kept)}
