r"""Online rounds: the policy answers, its answers are labelled afresh, the policy is fitted again.

    D_0 = {};   for k = 1 … R:   D_k = D_{k−1} ∪ { labelled pairs from π_{k−1} },   π_k = argmin ℒ_DPO(D_k)

Bai et al. 2022, section 4.5 (preferences and policy renewed in rounds); Guo et al. 2024 (online DPO); lecture,
"Non-static Environment". The labels go where the policy is now, not where the reference was. Each round starts from
the weights of the last and sees all labels so far: the labels of early rounds are still true.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from rlhf_lab.algorithms.cached_rollouts import Block, from_pairs, in_blocks, own, to_pairs
from rlhf_lab.algorithms.dpo import DPO, dpo
from rlhf_lab.batch import Pairs, cat_pairs
from rlhf_lab.errors import Count, LabError, check_settings
from rlhf_lab.policies.base import Policy
from rlhf_lab.randomness import Stream
from rlhf_lab.training import Training, seeded


@dataclass(frozen=True)
class Online:
    """How the labels are spread over rounds."""

    rounds: Count = 4
    """R. One round is DPO on pairs from the reference."""
    labels: Count = 1000
    """Labels in all, spread evenly."""
    forget: bool = False
    """Fit each round to its own labels only, for an environment that has moved on since."""
    labels_at_once: Count | None = None
    """Labels collected, and kept on disk, at a time. None: a round's all at once."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.labels < self.rounds:
            raise LabError(f"{self.labels} labels cannot be spread over {self.rounds} rounds; give each at least one.")


def online(
    policy: Policy,
    reference: Policy | None,
    collect: Callable[[Policy, int, torch.Generator], Pairs],
    loss: DPO = DPO(),  # noqa: B008
    settings: Online = Online(),
    training: Training = Training(),  # noqa: B008
    name: str = "online",
    claimed: bool = False,
) -> list[dict[str, float]]:
    """Train `policy` in place on labels of its own responses.

    Args:
        policy: π_θ, usually `reference.copy()`.
        reference: π_ref of the loss, frozen; None where the loss needs none.
        collect: `(policy, number, generator) → Pairs`: lets the policy answer and someone label it, for example
            `lambda p, n, g: world.preferences(n, g, policy=p)`. It may return fewer, say where both responses were
            equal. With an output folder labels are kept there, and a resumed run asks for none twice.
        loss: of `dpo`.
        settings: rounds and labels.
        training: of each round.
        name: what the progress bar says.
        claimed: the caller has taken the output folder (see `checkpoint.claim`).

    Returns:
        the history of all rounds, see `dpo`, with `round` and `labels` so far.

    Raises:
        LabError: a round whose labels are none; as `dpo`.
    """
    out = own(name, training, {"loss": loss, "online": settings}, claimed)
    history: list[dict[str, float]] = []
    seen: list[Pairs] = []
    spent = 0
    for turn in range(settings.rounds):
        number = (settings.labels - spent) // (settings.rounds - turn)
        blocks = in_blocks(
            partial(_collect_block, policy, collect, training.seed, turn),
            number,
            settings.labels_at_once or number,
            None if out is None else out / "labels" / f"round-{turn}",
            f"{name} {turn + 1}: labels",
            training.progress,
        )
        fresh = cat_pairs([to_pairs(block) for block in blocks])
        if len(fresh) == 0:
            raise LabError(f"{name}: round {turn} collected no pair of {number} asked for; are all responses equal?")
        spent += number
        seen = [fresh] if settings.forget else [*seen, fresh]
        rows = dpo(
            policy, reference, cat_pairs(seen), loss, training.stage(f"round-{turn}", turn), f"{name} {turn + 1}"
        )
        history += [row | {"round": turn, "labels": spent} for row in rows]
    return history


def _collect_block(
    policy: Policy,
    collect: Callable[[Policy, int, torch.Generator], Pairs],
    seed: int,
    turn: int,
    start: int,
    stop: int,
) -> Block:
    # The first block's generator is the round's own.
    generator = seeded(seed, Stream.ITERATED_DPO, turn, *([start] if start else []), device=policy.device)
    return from_pairs(collect(policy, stop - start, generator))
