r"""Reinforced self-training (ReST): Grow a data set by sampling the policy, Improve the policy on its best part.

    Grow      D_g = { (x, y) : x ~ D, y ~ π_θ(y|x) },  scored by R(x, y)
    Improve   J(θ) = E_{(x,y)~D_g} [ F(x, y; τ) ℒ(x, y; θ) ],   F(x, y; τ) = 1[R(x, y) > τ]

Gulcehre et al. 2023, Algorithm 1; lecture, "Reinforced Self-Training Algorithm". A Grow step is rare and expensive.
Several Improve steps follow it, with rising thresholds τ and falling learning rates, each starting from the weights of
the one before. ℒ is behaviour cloning, which the paper found to be the best loss. In the limit of data one filter gives
π_ref conditioned on R > τ (`exact.filtered`). This is not π*, because all responses above the threshold count equally.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from rlhf_lab.algorithms.cached_rollouts import claim_output, sample_and_score, score_in_shards
from rlhf_lab.algorithms.sft import sft
from rlhf_lab.batch import Tokens, cat
from rlhf_lab.errors import Count, Finite, LabError, Range, Temperature, check_settings
from rlhf_lab.policies.base import Policy, Reward
from rlhf_lab.randomness import Stream
from rlhf_lab.rounding import unit_interval, wins
from rlhf_lab.training import Evaluation, Training


@dataclass(frozen=True)
class ReST:
    """Settings of ReST."""

    grows: Count = 1
    """Number of Grow steps."""
    thresholds: tuple[Finite, ...] = (0.0, 0.7, 0.8, 0.9)
    """τ of the Improve steps after each Grow step, rising, in the units of `scale`; below 1 with minmax."""
    samples: Count = 64
    """Responses that a Grow step samples for each prompt."""
    scale: Literal["minmax", "none"] = "minmax"
    """minmax: rewards are mapped to [0, 1] by the range of the first Grow step. none: τ has the reward's own units."""
    rate_decay: Annotated[float, Range(0, 1, exclusive_minimum=True)] = 0.5
    """Factor of the learning rate from one Improve step to the next, at most 1."""
    temperature: Temperature = 1.0
    """Sampling temperature."""
    top_k: Count | None = None
    """Sample among the k likeliest tokens only."""
    sampling_batch_size: Count | None = None
    """Prompts whose responses are sampled and scored together. It changes the memory needed and the samples drawn.
    None: 512; on the command line as many as fit into 1 GiB."""

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.thresholds or list(self.thresholds) != sorted(self.thresholds):
            raise LabError(
                f"thresholds must rise, not {self.thresholds}: a lower threshold would admit worse samples again."
            )
        if self.scale == "minmax" and self.thresholds[-1] >= 1:
            raise LabError(
                f"thresholds must be below 1 with scale='minmax', not {self.thresholds}: the best sample has the "
                f"scaled reward 1, and only samples above the threshold pass. For unscaled rewards set scale='none'."
            )


def reward_filter(scores: Tensor, threshold: float) -> Tensor:
    """F(x, y; τ) = 1[R(x, y) > τ] of scores of any shape.

    A score that equals τ within rounding does not pass.

    Raises:
        LabError: no sample passes.
    """
    passes = wins(scores, threshold) == 1
    if not bool(passes.any()):
        raise LabError(
            f"No sample passes the threshold {threshold:g}: the best score is {float(scores.max()):g}. Lower the "
            f"thresholds or draw more samples."
        )
    return passes


def rest(
    policy: Policy,
    reward: Reward,
    prompts: Tokens,
    settings: ReST = ReST(),
    training: Training = Training(),
    original: tuple[Tokens, Tokens] | None = None,
    name: str = "rest",
    evaluation: Evaluation | None = None,
) -> list[dict[str, float]]:
    """Train `policy` in place on the samples from the policy that pass the filter.

    Args:
        policy: π_θ at its starting point (the SFT policy).
        reward: R, scores (B, G).
        prompts: (N, P), each sampled `settings.samples` times in a Grow step.
        settings: those of ReST.
        training: of each Improve step; the batch size counts responses.
        original: prompts (M, P) and responses (M, G', T) of the SFT data, which are filtered and trained on too.
        name: text of the progress bar.
        evaluation: what is measured on held-out data, for example `on_policy.held_out_rewards`. With
            `training.patience` it ends each Improve step early.

    Returns:
        the history of all Improve steps: loss, grow, improve, threshold, `kept` (the fraction of samples that passed).

    Raises:
        LabError: there are no prompts; no sample passes a threshold; a score is not finite.
    """
    if original is not None and len(original[0]) != len(original[1]):
        raise LabError(
            f"original has {len(original[0])} prompts and responses for {len(original[1])}; the numbers must be equal."
        )
    with claim_output(name, training, settings) as out:
        old = None if original is None else _rows(*original, score_in_shards(reward, *original, settings, training))
        history: list[dict[str, float]] = []
        reward_range: tuple[float, float] | None = None
        for grow in range(settings.grows):
            folder = None if out is None else out / "samples" / f"grow-{grow}"
            stream, title = (Stream.REST_GROW, grow), f"{name} {grow + 1}"
            grown = sample_and_score(
                policy, reward, prompts, settings.samples, settings, training, stream, folder, title
            )
            x, y, r = _rows(prompts, grown.responses, grown.scores)
            if old is not None:
                x, y, r = cat([x, old[0]]), cat([y, old[1]]), torch.cat([r, old[2]])
            reward_range = reward_range or (float(r.min()), float(r.max()))
            scaled = unit_interval(r, *reward_range) if settings.scale == "minmax" else r
            for improve, threshold in enumerate(settings.thresholds):
                # The paper's first Improve step, τ = 0, trains on all samples, so the lowest reward passes too.
                all_pass = settings.scale == "minmax" and threshold <= 0
                keep = (torch.ones_like(r, dtype=torch.bool) if all_pass else reward_filter(scaled, threshold)).cpu()
                stage = training.stage(
                    f"grow-{grow}-improve-{improve}",
                    grow * len(settings.thresholds) + improve,
                    learning_rate=training.learning_rate * settings.rate_decay**improve,
                )
                rows = sft(policy, x[keep], y[keep], stage, f"{title}.{improve + 1}", evaluation)
                seen = {"grow": grow, "improve": improve, "threshold": threshold, "kept": float(keep.float().mean())}
                history += [row | seen for row in rows]
    return history


def _rows(prompts: Tokens, responses: Tokens, scores: Tensor) -> tuple[Tokens, Tokens, Tensor]:
    """One row for each of the N·G responses: its prompt, the response as (N·G, 1, T), and its score."""
    return prompts.repeat(scores.shape[1]), responses.reshape(scores.numel(), 1), scores.flatten()
