r"""Online rounds: the policy answers, its answers are labelled afresh, the policy is fitted again.

    D_0 = {};   for k = 1 … R:   D_k = D_{k−1} ∪ { labelled pairs from π_{k−1} },   π_k = argmin ℒ_DPO(D_k)

Bai et al. 2022, section 4.5 (preferences and policy renewed in rounds); Guo et al. 2024 (online DPO); lecture,
"Non-static Environment". The labels go where the policy is now, not where the reference was. Each round starts from
the weights of the last and sees all labels so far: the labels of early rounds are still true.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from rlhf_lab.algorithms.dpo import DPO, dpo
from rlhf_lab.batch import Pairs, cat_pairs
from rlhf_lab.checks import LabError
from rlhf_lab.policies.base import Policy
from rlhf_lab.training import Training, seeded


@dataclass(frozen=True)
class Online:
    """How the labels are spread over rounds."""

    rounds: int = 4
    """R. One round is DPO on pairs from the reference."""
    labels: int = 1000
    """Labels in all, spread evenly."""
    forget: bool = False
    """Fit each round to its own labels only, for an environment that has moved on since."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.labels < self.rounds:
            raise LabError(f"{self.labels} labels cannot be spread over {self.rounds} rounds; give each at least one.")


def online(
    policy: Policy,
    reference: Policy,
    collect: Callable[[Policy, int, torch.Generator], Pairs],
    loss: DPO = DPO(),  # noqa: B008
    settings: Online = Online(),
    training: Training = Training(),  # noqa: B008
    name: str = "online",
) -> list[dict[str, float]]:
    """Train `policy` in place on labels of its own responses.

    Args:
        policy: π_θ, usually `reference.copy()`.
        reference: π_ref of the loss, frozen.
        collect: `(policy, number, generator) → Pairs`: lets the policy answer and someone label it, for example
            `lambda p, n, g: world.preferences(n, g, policy=p)`.
        loss: of `dpo`.
        settings: rounds and labels.
        training: of each round.
        name: what the progress bar says.

    Returns:
        the history of all rounds, see `dpo`, with `round` and `labels` so far.
    """
    history: list[dict[str, float]] = []
    seen: list[Pairs] = []
    spent = 0
    for turn in range(settings.rounds):
        number = (settings.labels - spent) // (settings.rounds - turn)
        fresh = collect(policy, number, seeded(training.seed, 6, turn, device=policy.device))
        spent += number
        seen = [fresh] if settings.forget else [*seen, fresh]
        rows = dpo(
            policy, reference, cat_pairs(seen), loss, training.stage(f"round-{turn}", turn), f"{name} {turn + 1}"
        )
        history += [row | {"round": turn, "labels": spent} for row in rows]
    return history
