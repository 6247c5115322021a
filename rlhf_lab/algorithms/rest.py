r"""Reinforced self-training: Grow a data set from the policy, Improve the policy on the part above a threshold.

    Grow      D_g = { (x, y) : x ~ D, y ~ π_θ(y|x) },  scored by R(x, y)
    Improve   J(θ) = E_{(x,y)~D_g} [ F(x, y; τ) ℒ(x, y; θ) ],   F(x, y; τ) = 1[R(x, y) > τ]

Gulcehre et al. 2023, Algorithm 1; lecture, "Reinforced Self-Training Algorithm". Grow is rare and dear; the
Improve steps after it are several, with rising τ and a falling rate, each from the weights that the one before left.
ℒ is behaviour cloning, the loss that the paper found best. In the limit of data one filter gives π_ref conditioned
on R > τ (`exact.filtered`), which is not π*: above the threshold nothing is preferred to anything.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

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
from rlhf_lab.errors import Count, Finite, LabError, Range, Temperature, check_finite, check_settings, refuse_unused
from rlhf_lab.policies.base import Policy, Reward
from rlhf_lab.randomness import Stream
from rlhf_lab.rounding import unit_interval, wins
from rlhf_lab.training import Training, checkpoint, distributed, seeded


@dataclass(frozen=True)
class ReST:
    """Settings of ReST."""

    grows: Count = 1
    """Grow steps."""
    thresholds: tuple[Finite, ...] = (0.0, 0.7, 0.8, 0.9)
    """τ of the Improve steps after each Grow, rising, in the units of `scale`; with minmax all below 1."""
    samples: Count = 64
    """Responses that a Grow step draws for each prompt."""
    scale: Literal["minmax", "none"] = "minmax"
    """minmax: rewards to [0, 1] by the first grown set's range; none: τ in the reward's own units."""
    rate_decay: Annotated[float, Range(0, 1, exclusive_minimum=True)] = 0.5
    """Factor of the learning rate from one Improve step to the next, at most 1."""
    patience: Count | None = None
    """With held-out prompts: checks without a better held-out reward after which an Improve step ends."""
    check_every: Count = 20
    """Steps between two such checks."""
    temperature: Temperature = 1.0
    """Of sampling."""
    top_k: Count | None = None
    """Draw among the k likeliest tokens alone."""
    sampling_batch_size: Count | None = None
    """Prompts answered and scored at a time. Fewer need less memory, and are other draws.
    None: 512; on the command line as many as fit into 1 GiB."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.patience is None:
            refuse_unused(self, ["check_every"], "without patience, which is what ends an Improve step early")
        if not self.thresholds or list(self.thresholds) != sorted(self.thresholds):
            raise LabError(f"thresholds must rise, not {self.thresholds}: a lower one would let weaker data back in.")
        if self.scale == "minmax" and self.thresholds[-1] >= 1:
            raise LabError(
                f"thresholds must be below 1 with scale='minmax', not {self.thresholds}: the best sample is at 1, and "
                f"only what exceeds a threshold passes it. For rewards in their own units set scale='none'."
            )


def passing(scores: Tensor, threshold: float) -> Tensor:
    """F(x, y; τ) = 1[R(x, y) > τ] for scores (B, G).

    At τ = 0 on the [0, 1] scale everything is let through, the lowest score too: the paper's first Improve step
    trains on the whole grown set. A score that equals τ within rounding does not pass.

    Raises:
        LabError: nothing passes.
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
    training: Training = Training(),  # noqa: B008
    original: tuple[Tokens, Tokens] | None = None,
    held_out: Tokens | None = None,
    name: str = "rest",
    claimed: bool = False,
) -> list[dict[str, float]]:
    """Train `policy` in place on the samples of it that pass the filter.

    Args:
        policy: π_θ, where it starts from (the SFT policy).
        reward: R, scores (B, G).
        prompts: (N, P), each sampled `settings.samples` times a Grow step.
        settings: ReST's own.
        training: of each Improve step; batch size counts responses.
        original: prompts (M, P) and responses (M, G', T) of the SFT data, which stay in the mix, filtered too.
        held_out: prompts on which `patience` watches the mean reward.
        name: what the progress bar says.
        claimed: the caller has taken the output folder (see `checkpoint.claim`).

    Returns:
        the history of all Improve steps: loss, grow, improve, threshold, kept (fraction that passed).

    Raises:
        LabError: no prompts; nothing passes a threshold; scores that are not finite.
    """
    if settings.patience is not None and held_out is None:
        raise LabError("patience needs held_out prompts to watch the reward on.")
    if original is not None and len(original[0]) != len(original[1]):
        raise LabError(
            f"original has {len(original[0])} prompts and responses for {len(original[1])}; they must match."
        )
    out = own(name, training, settings, claimed)
    old = None if original is None else _scored(reward, *original, settings, training.progress)
    history: list[dict[str, float]] = []
    low = high = None
    for grow in range(settings.grows):
        blocks = in_blocks(
            partial(_grown_block, policy, reward, prompts, settings, training, grow),
            len(prompts),
            settings.sampling_batch_size or 512,
            None if out is None else out / "samples" / f"grow-{grow}",
            f"{name} {grow + 1}: samples",
            training.progress,
        )
        grown, scores = cat([to_tokens("grown", block) for block in blocks]), join(blocks, "scores")
        x, y, r = prompts.repeat(settings.samples), grown.reshape(scores.numel(), 1), scores.flatten()
        if original is not None and old is not None:
            x = cat([x, original[0].repeat(old.shape[1])])
            y, r = cat([y, original[1].reshape(old.numel(), 1)]), torch.cat([r, old.flatten()])
        if low is None or high is None:
            low, high = (float(r.min()), float(r.max())) if settings.scale == "minmax" else (0.0, 1.0)
        scaled = unit_interval(r, low, high) if settings.scale == "minmax" else r
        for improve, threshold in enumerate(settings.thresholds):
            everything = settings.scale == "minmax" and threshold <= 0
            keep = (torch.ones_like(r, dtype=torch.bool) if everything else passing(scaled, threshold)).cpu()
            number = grow * len(settings.thresholds) + improve
            stage = training.stage(
                f"grow-{grow}-improve-{improve}",
                number,
                learning_rate=training.learning_rate * settings.rate_decay**improve,
            )
            stop = None
            if settings.patience is not None and held_out is not None:
                record = None if out is None else out / f"held-out-grow-{grow}-improve-{improve}.json"
                stop = _Patience(policy, reward, held_out, settings, training.seed, record)
            rows = sft(policy, x[keep], y[keep], stage, f"{name} {grow + 1}.{improve + 1}", stop)
            seen = {"grow": grow, "improve": improve, "threshold": threshold, "kept": float(keep.float().mean())}
            history += [row | seen for row in rows]
    return history


@torch.no_grad()
def _grown_block(
    policy: Policy,
    reward: Reward,
    prompts: Tokens,
    settings: ReST,
    training: Training,
    grow: int,
    start: int,
    stop: int,
) -> Block:
    # The first block's generator is the Grow step's own.
    generator = seeded(training.seed, Stream.REST_GROW, grow, *([start] if start else []), device=policy.device)
    x = prompts[start:stop]
    grown = ask(policy, x, settings.samples, generator, settings.temperature, settings.top_k)
    scores = check_finite(reward(x, grown).detach(), "reward")
    return from_tokens("grown", grown) | {"scores": scores}


@torch.no_grad()
def _scored(reward: Reward, prompts: Tokens, responses: Tokens, settings: ReST, progress: bool) -> Tensor:
    """Scores of given responses, (N, G)."""

    def block(start: int, stop: int) -> Block:
        return {"scores": check_finite(reward(prompts[start:stop], responses[start:stop]).detach(), "reward")}

    return join(in_blocks(block, len(prompts), settings.sampling_batch_size or 512, None, "scores", progress), "scores")


class _Patience:
    """Says stop when the held-out reward has not risen for `patience` checks. The same draws at every check.

    Checks are written to `record`, so that a resumed run has been as patient as one never interrupted.
    """

    def __init__(
        self, policy: Policy, reward: Reward, held_out: Tokens, settings: ReST, seed: int, record: Path | None
    ) -> None:
        self.policy, self.reward, self.held_out, self.settings, self.seed = policy, reward, held_out, settings, seed
        self.record = record
        self.scores: dict[int, float] = {}
        if record is not None and distributed.any_rank(record.is_file()):
            try:
                self.scores = {int(k): float(v) for k, v in json.loads(record.read_text(encoding="utf-8")).items()}
            except (ValueError, AttributeError, TypeError) as error:
                raise LabError(f"{record} is damaged ({error}). Remove it: the checks are made again.") from None

    def __call__(self, step: int) -> bool:
        if step % self.settings.check_every:
            return False
        if step not in self.scores:
            generator = seeded(self.seed, Stream.REST_CHECK, device=self.policy.device)
            drawn = ask(
                self.policy,
                self.held_out,
                self.settings.samples,
                generator,
                self.settings.temperature,
                self.settings.top_k,
            )
            self.scores[step] = float(self.reward(self.held_out, drawn).detach().mean())
            record = self.record
            if record is not None:
                distributed.on_main_process(lambda: checkpoint.write_json(record, self.scores))
        best, waited = -float("inf"), 0
        for _, score in sorted((at, score) for at, score in self.scores.items() if at <= step):
            waited = 0 if score > best else waited + 1
            best = max(best, score)
        return waited >= (self.settings.patience or 0)
