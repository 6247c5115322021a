"""Settings of claim 6, the names of its conditions, and its decision rule in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlhf_lab.errors import Count, LabError, NonNegative, Positive
from rlhf_lab.experiments.settings import Defaults, PerScale, Settings
from rlhf_lab.experiments.verdicts import BY_PARTS

LOSSES = ("weighted", "raft", "dpo")
"""Losses that replace the filter on the same samples: SFT weighted by exp(r/β), SFT on each prompt's best, and DPO."""
FRONTIER = (0.0, 0.03, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0)
"""Shares of the KL of the last filter's limit at which π* of the reward model is evaluated."""

RULE = f"""The claim has three parts. Each is a difference within seeds in r_φ, the reward by which ReST filters.

- Part 1: the last Improve step of the first Grow step minus SFT on all samples.
- Part 2: the end of the second Grow step minus the end of the first.
- Part 3: the end of the second Grow step minus PPO.

The differences have t intervals over seeds, corrected for three comparisons by Holm's procedure at 95%. A part is
true if its interval lies above 0, false if it lies below, and otherwise open. {BY_PARTS} The same differences in the
gold reward, the other losses and the limit of the filter are reported and do not decide."""


@dataclass(frozen=True, init=False, kw_only=True)
class ReSTTranslation(Settings):
    """Train ReST step by step and compare it with other losses, online RL, best-of-n and the limit of its filter."""

    beta: Positive
    """β of online RL, of the weighted losses and of regret, in the labeller's unit."""
    labels: Count
    """Preference labels on which the reward model is fitted."""
    prompts: Count
    """Prompts of a Grow step."""
    samples: Count
    """Responses to each prompt of a Grow step."""
    thresholds: tuple[NonNegative, ...]
    """Thresholds τ after the first Grow step, on [0, 1] by the range of its samples. The first one, 0, takes all."""
    second: tuple[NonNegative, ...]
    """Thresholds τ after the second Grow step, on [0, 1] by the range of its samples."""
    steps: Count
    """Optimiser steps of one Improve step. Other losses get the steps of all Improve steps together."""
    batch: Count
    """Responses in an optimiser step."""
    rate: Positive
    """Learning rate of every fit. ReST halves it from one Improve step to the next."""
    best_of: Count
    """n of best-of-n at test time."""
    reward_steps: Count
    """Optimiser steps of the reward model."""
    test_prompts: Count
    """Text: number of test prompts."""
    test_samples: Count
    """Text: responses to each test prompt."""

    DEFAULTS: ClassVar[Defaults] = {
        "seeds": PerScale(24, 24, 8),
        "first_seed": PerScale(200, 200, 3),
        "beta": 0.5,
        "labels": PerScale(500, 4000, 512),
        "prompts": PerScale(500, 500, 64),
        "samples": 16,
        "thresholds": (0.0, 0.7, 0.8, 0.9, 0.95),
        "second": (0.8, 0.9, 0.95),
        "steps": PerScale(60, 60, 16),
        "batch": PerScale(2048, 2048, 32),
        "rate": PerScale(0.05, 0.05, 3e-4),
        "best_of": 8,
        "reward_steps": PerScale(150, 150, 80),
        "test_prompts": 96,
        "test_samples": 4,
    }
    QUICK: ClassVar[Defaults] = {
        "seeds": 2,
        "labels": PerScale(200, 200, 32),
        "prompts": PerScale(50, 50, 8),
        "samples": PerScale(16, 16, 4),
        "steps": PerScale(5, 5, 1),
        "batch": PerScale(2048, 2048, 8),
        "reward_steps": PerScale(20, 20, 2),
        "test_prompts": 8,
        "test_samples": PerScale(4, 4, 2),
    }

    def check(self) -> None:
        """Refuse settings with which the reward model, ReST or DPO's pairs are not defined."""
        if self.labels < 8:
            raise LabError(f"The reward model needs at least 8 labels, not {self.labels}.")
        if self.samples % 2:
            raise LabError(f"samples must be even, not {self.samples}, because DPO pairs them.")
        for name in ("thresholds", "second"):
            values = getattr(self, name)
            if not values or list(values) != sorted(values) or not 0 <= values[0] <= values[-1] < 1:
                raise LabError(f"{name} must increase from 0 or more to less than 1, not {values}.")
        if len(self.thresholds) < 2 or self.thresholds[0] > 0:
            raise LabError(f"thresholds must begin with 0 and contain an Improve step after it, not {self.thresholds}.")

    @property
    def first_names(self) -> list[str]:
        """Conditions of the first Grow step: G for Grow, I for Improve; I0 takes all samples."""
        return [f"G1 I{number}" for number in range(len(self.thresholds))]

    @property
    def second_names(self) -> list[str]:
        """Conditions of the second Grow step."""
        return [f"G2 I{number + 1}" for number in range(len(self.second))]
