"""Settings of the experiment on RSO's Table 1, the number of its decision rule, and the rule in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from rlhf_lab.errors import LabError, Natural, NonNegative, Positive, check_beta
from rlhf_lab.experiments.settings import Defaults, PerScale, Settings
from rlhf_lab.experiments.setup_text import UNITS

MARGIN = 0.02
"""A loss is not worse than hinge if its win rate is less than this below hinge's, with the whole interval."""

RULE = (
    f"The rule compares win rates by the judge, paired within seeds. It has four parts. (1) rso-sample-rank wins more "
    f"than sft-sample-rank with each loss. (2) sft-sample-rank wins more than direct with each loss. (3) On "
    f"rso-sample-rank, sigmoid-norm and hinge-norm are less than {MARGIN:.0%} below hinge. (4) RSO (sigmoid-norm on "
    f"rso-sample-rank) wins more than RAFT and ReST. A part is supported if this is true of all its 95% intervals, "
    f"partly supported if it is true of some, not supported if it is true of none and false of at least one whole "
    f"interval, and otherwise inconclusive. The claim is supported if all four parts are. It is not supported if part "
    f"1 is not supported, or if no part is supported or partly supported and at least one is not supported. It is "
    f"inconclusive if all parts are, and otherwise partly supported. With several tasks the rule is applied to each. "
    f"If the tasks differ, the claim is partly supported if it is supported or partly supported on one of them, and "
    f"otherwise inconclusive."
)


@dataclass(frozen=True, init=False, kw_only=True)
class RSOTable(Settings):
    """Rerun RSO's Table 1: RAFT, ReST, and three losses on three sources of pairs."""

    tasks: tuple[str, ...]
    """Text: the text worlds. Summaries and dialogue take the place of the paper's TL;DR and HH."""
    beta: Positive
    """β of π_r and of the objective, in logits of a label."""
    gamma: Positive
    """γ, the slope of every loss. The default is β, with which sigmoid-norm aims at π*; the paper uses 0.05."""
    labels: Natural
    """Number of preference labels."""
    prompts: Natural
    """Number of prompts to which responses are sampled."""
    candidates: Natural
    """Responses of π_ref to each prompt. RAFT trains on the best one, and ReST on those above its threshold."""
    accepted: Natural
    """Number of the candidates that are paired. Eight make four first-round pairs, as in the paper."""
    ranks: Literal["sampled", "hard"]
    """How the reward model labels a pair: sampled with probability σ(r₁ − r₂), or hard, by the larger reward."""
    threshold: NonNegative
    """Threshold of ReST's Improve step, on rewards scaled to [0, 1]."""
    steps: Natural
    """Optimiser steps of every fit."""
    batch: Natural
    """Pairs or responses in an optimiser step."""
    rates: tuple[Positive, ...]
    """Learning rates which the search tries for every row."""
    reward_steps: Natural
    """Optimiser steps of the reward model."""
    test_prompts: Natural
    """Text: number of test prompts."""
    test_samples: Natural
    """Text: responses to each test prompt."""

    # The sizes on text were chosen on seed 2000, which neither the results nor the search use, by how far the fits move
    # from π_ref and by which learning rates are too high. Every fit sees as many pairs as the reward model labels.
    DEFAULTS: ClassVar[Defaults] = {
        "seeds": PerScale(20, 5, 4),
        "tasks": PerScale(("bandit",), ("tree",), ("summaries", "dialogue")),
        "beta": 0.5,
        "labels": PerScale(400, 5000, 256),
        "prompts": PerScale(500, 2000, 128),
        "candidates": 64,
        "accepted": 8,
        "ranks": "sampled",
        "threshold": 0.7,
        "steps": PerScale(150, 150, 32),
        "batch": PerScale(4096, 4096, 16),
        "rates": PerScale((0.02, 0.05, 0.15), (0.02, 0.05, 0.15), (2e-5, 6e-5, 1.5e-4, 4e-4, 1e-3)),
        "reward_steps": PerScale(150, 150, 48),
        "test_prompts": 64,
        "test_samples": 4,
    }
    QUICK: ClassVar[Defaults] = {
        "seeds": 2,
        "tasks": PerScale(("bandit",), ("tree",), ("summaries",)),
        "labels": PerScale(200, 200, 16),
        "prompts": PerScale(100, 100, 8),
        "candidates": 16,
        "steps": PerScale(5, 5, 1),
        "batch": PerScale(4096, 4096, 4),
        "rates": PerScale((0.05,), (0.05,), (6e-5,)),
        "reward_steps": PerScale(20, 20, 2),
        "test_prompts": 4,
        "test_samples": 2,
    }

    @classmethod
    def derived(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return γ = β."""
        return {"gamma": values["beta"]}

    def check(self) -> None:
        """Refuse tasks of another scale and numbers that contradict each other."""
        check_beta(self.beta)
        if self.exact and self.tasks != (self.scale,):
            raise LabError(f"tasks are for language models. The scale '{self.scale}' has none.")
        if unknown := [task for task in self.tasks if not self.exact and task not in UNITS]:
            raise LabError(f"Unknown tasks {', '.join(unknown)}. There are: {', '.join(UNITS)}.")
        if not 2 <= self.accepted <= self.candidates or self.accepted % 2:
            raise LabError(f"accepted must be even and between 2 and candidates ({self.candidates}).")
        if not self.threshold < 1:
            raise LabError(f"threshold must be less than 1, not {self.threshold}.")
