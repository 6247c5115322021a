"""Settings of the experiment on why RSO's pairs should help, its conditions, and its decision rule in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from rlhf_lab.errors import Count, LabError, Natural, Positive, check_beta
from rlhf_lab.experiments.scales import scale_of
from rlhf_lab.experiments.settings import Defaults, PerScale, Settings
from rlhf_lab.experiments.setup_text import UNITS

POLICIES = ("full", "limited")
DIRECT = "gold ref N"
"""The condition "direct". A condition names who labels (gold, or rm for r_φ), the source of the pairs (ref, r for π_r,
star for π*), and how many pairs there are: N, M, or inf for infinitely many."""
MANY = ("rm ref M", "rm r M", "gold ref M", "gold star M")
INFINITE = ("rm ref inf", "rm r inf", "gold ref inf", "gold star inf")
FEW = ("rm ref N", "gold r N", "gold star N")

RULE = """The rule makes two comparisons within seeds: J with pairs from π_r minus J with pairs from π_ref, for the full
policy and for the limited one. In both cases r_φ labels M pairs. The differences have t intervals over seeds, corrected
by Holm's procedure at 95%. A comparison counts for the claim if its interval is above zero, and against it if the
interval is below. The claim is supported if both count for it and partly supported if one does. It is not supported if
none does and one counts against it, and otherwise it is inconclusive.

Three explanations are reported with 95% intervals that are not corrected, and do not decide.

- Additional labels: the gain from N gold labels to M labels of r_φ.
- Limited capacity: the gain that remains with infinitely many pairs. On text it is the gain of the limited policy
  minus that of the full policy.
- Statistics: the rest of the gain."""


@dataclass(frozen=True, init=False, kw_only=True)
class RSOWhy(Settings):
    """Separate the reasons why pairs from π_r should help: additional labels, limited capacity, or statistics."""

    task: str
    """Text: the text world."""
    beta: Positive
    """β of π_r, of the loss and of the objective, in logits of a label."""
    labels: Natural
    """N, the number of labels of the gold reward."""
    pairs: Natural
    """M, the number of pairs that the reward model labels. The default is ten times N, and on text what `prompts` and
    `accepted` give."""
    features: Count
    """Bandit: parameters of the limited policy for each prompt. The full policy has 10."""
    soft_pairs: Natural
    """Tree: number of pairs, labelled with their probabilities, that approximate infinitely many pairs."""
    prompts: Natural
    """Text: number of prompts to which responses are sampled."""
    candidates: Natural
    """Text: responses of π_ref to each prompt."""
    accepted: Natural
    """Text: number of the candidates that are paired."""
    steps: Natural
    """Text: optimiser steps of a fit."""
    batch: Natural
    """Text: pairs in an optimiser step."""
    rates: tuple[Positive, ...]
    """Text: learning rates which the search tries for each policy."""
    reward_steps: Natural
    """Text: optimiser steps of the reward model."""
    test_prompts: Natural
    """Text: number of test prompts."""
    test_samples: Natural
    """Text: responses to each test prompt."""

    DEFAULTS: ClassVar[Defaults] = {
        "seeds": PerScale(100, 24, 8),
        "first_seed": PerScale(40, 6, 4),
        "task": PerScale("bandit", "tree", "summaries"),
        "beta": 0.5,
        "labels": PerScale(400, 2000, 192),
        "features": 3,
        "soft_pairs": 100_000,
        # As many prompts as labels, and twice as many pairs.
        "prompts": 192,
        "candidates": 16,
        "accepted": 4,
        "steps": 20,
        "batch": 16,
        "rates": (1e-4, 3e-4, 1e-3, 3e-3),
        "reward_steps": 60,
        "test_prompts": 64,
        "test_samples": 4,
    }
    QUICK: ClassVar[Defaults] = {
        "seeds": 2,
        "labels": PerScale(200, 200, 16),
        "soft_pairs": 5000,
        "prompts": 4,
        "candidates": 8,
        "steps": 1,
        "rates": (1e-3,),
        "reward_steps": 2,
        "test_prompts": 4,
        "test_samples": 2,
    }

    @classmethod
    def derived(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the number of pairs."""
        if scale_of(values["scale"]).exact:
            return {"pairs": values["labels"] * (2 if values["quick"] else 10)}
        return {"pairs": values["prompts"] * values["accepted"] // 2}

    def check(self) -> None:
        """Refuse too few pairs, and numbers that contradict each other."""
        check_beta(self.beta)
        if self.pairs < 8 or self.labels < 8:
            raise LabError(f"labels ({self.labels}) and pairs ({self.pairs}) must be at least 8.")
        if not 2 <= self.accepted <= self.candidates or self.accepted % 2:
            raise LabError(f"accepted must be even and between 2 and candidates ({self.candidates}).")
        if not self.exact and self.task not in UNITS:
            raise LabError(f"Unknown task '{self.task}'. There are: {', '.join(UNITS)}.")

    @property
    def conditions(self) -> tuple[str, ...]:
        """The conditions of the scale."""
        return (DIRECT, *MANY, *INFINITE, *FEW) if self.exact else (DIRECT, *MANY)
