r"""Iterated (online) DPO: each round samples the policy, labels its responses, and fits the policy again.

    D_0 = {};   for k = 1 … R:   D_k = D_{k−1} ∪ { labelled pairs from π_{k−1} },   π_k = argmin ℒ_DPO(D_k)

Bai et al. 2022, section 4.5 (preferences and policy are renewed in rounds); Guo et al. 2024 (online DPO); lecture,
"Non-static Environment". The labels are spent on responses of the current policy and not of the reference. Each round
starts from the weights of the previous round and is fitted to the labels of all rounds up to then, because earlier
labels are still true. Left out on purpose: a choice of the most informative pairs (`active.py` makes one).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from rlhf_lab.algorithms.cached_rollouts import Shard, claim_output, from_pairs, in_shards, to_pairs
from rlhf_lab.algorithms.dpo import DPO, dpo
from rlhf_lab.batch import Pairs, cat_pairs
from rlhf_lab.errors import Count, LabError, check_settings, count_of
from rlhf_lab.policies.base import Policy
from rlhf_lab.randomness import Stream
from rlhf_lab.training import Evaluation, Training, seeded


@dataclass(frozen=True)
class Online:
    """Settings of iterated DPO: how the labels are spread over rounds."""

    rounds: Count = 4
    """R. One round is DPO on pairs from the reference."""
    labels: Count = 1000
    """Number of labels, spread evenly over the rounds."""
    forget: bool = False
    """Fit each round to its own labels only, for an environment that has changed since the earlier rounds."""
    labels_at_once: Count | None = None
    """Labels that are collected and stored on disk together. None: all labels of a round."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.labels < self.rounds:
            labels = count_of(self.labels, "label")
            raise LabError(f"{labels} cannot be spread over {self.rounds} rounds; give each at least one.")


def online(
    policy: Policy,
    reference: Policy | None,
    collect: Callable[[Policy, int, torch.Generator], Pairs],
    loss: DPO = DPO(),
    settings: Online = Online(),
    training: Training = Training(),
    name: str = "online",
    evaluation: Evaluation | None = None,
) -> list[dict[str, float]]:
    """Train `policy` in place on labelled responses of the current policy.

    Args:
        policy: π_θ, usually `reference.copy()`.
        reference: π_ref of the loss, frozen; None where the loss needs none.
        collect: `(policy, number, generator) → Pairs` samples the policy and labels its responses, for example
            `lambda p, n, g: world.preferences(n, g, policy=p)`. It may return fewer pairs, for example if responses
            were equal. With an output folder the labels are stored there, and a resumed run collects none again.
        loss: of `dpo`.
        settings: rounds and labels.
        training: of each round.
        name: text of the progress bar.
        evaluation: what is measured on held-out data, for example `on_policy.held_out_rewards`.

    Returns:
        the history of all rounds, see `dpo`, with `round` and the total number of `labels` after it.

    Raises:
        LabError: a round collects no pair; as `dpo`.
    """
    history: list[dict[str, float]] = []
    seen: list[Pairs] = []
    spent = 0
    with claim_output(name, training, {"loss": loss, "online": settings}) as out:
        for turn in range(settings.rounds):
            number = (settings.labels - spent) // (settings.rounds - turn)
            folder = None if out is None else out / "labels" / f"round-{turn}"
            stream, title = (training.seed, Stream.ITERATED_DPO, turn), f"{name} {turn + 1}"
            size = settings.labels_at_once or number
            fresh = _collect(policy, collect, number, size, stream, folder, f"{title}: labels", training.progress)
            if len(fresh) == 0:
                wanted = count_of(number, "pair")
                raise LabError(f"{name}: round {turn} asked for {wanted} and got none. Are all responses equal?")
            spent += number
            seen = [fresh] if settings.forget else [*seen, fresh]
            stage = training.stage(f"round-{turn}", turn)
            rows = dpo(policy, reference, cat_pairs(seen), loss, stage, title, evaluation=evaluation)
            history += [row | {"round": turn, "labels": spent} for row in rows]
    return history


def _collect(
    policy: Policy,
    collect: Callable[[Policy, int, torch.Generator], Pairs],
    number: int,
    size: int,
    stream: tuple[int, ...],
    folder: Path | None,
    description: str,
    progress: bool,
) -> Pairs:
    """The labelled pairs of one round, collected `size` labels at a time."""

    def make(start: int, stop: int) -> Shard:
        # The first shard's generator is that of the whole round.
        generator = seeded(*stream, *([start] if start else []), device=policy.device)
        return from_pairs(collect(policy, stop - start, generator))

    return cat_pairs([to_pairs(shard) for shard in in_shards(make, number, size, folder, description, progress)])
