"""Settings of the experiment `rest-translation`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhf_lab.errors import LabError, Natural, NonNegative, check_beta
from rlhf_lab.experiments import runner
from rlhf_lab.experiments.runner import Settings


@dataclass(frozen=True)
class ReSTTranslation(Settings):
    """ReST step by step, beside other losses, online RL, best of n, and its own limit."""

    beta: NonNegative = 0.5
    """β of online RL, of the weighted losses and of regret, in the labeller's unit."""
    labels: Natural = 0
    """Preference labels under the reward model. 0: 500; tree 4,000; a language model 512."""
    prompts: Natural = 0
    """Prompts that are answered in a Grow step. 0: 500; a language model 64."""
    samples: Natural = 16
    """Responses to each."""
    thresholds: tuple[NonNegative, ...] = (0.0, 0.7, 0.8, 0.9, 0.95)
    """τ after the first Grow, on [0, 1] by the range of the first grown set; the first takes everything."""
    second: tuple[NonNegative, ...] = (0.8, 0.9, 0.95)
    """τ after the second Grow, on [0, 1] by the range of the second grown set."""
    steps: Natural = 0
    """Optimiser steps of one Improve step. 0: 60; a language model 16. Other losses get those of all Improve steps."""
    batch: Natural = 0
    """Responses in an optimiser step. 0: 2,048; a language model 32."""
    rate: NonNegative = 0.0
    """Learning rate of every fit; ReST halves it from one Improve step to the next. 0: 0.05; a language model 3e-4."""
    best_of: Natural = 8
    """n of best-of-n at test time."""
    reward_steps: Natural = 0
    """Optimiser steps of the reward model. 0: 150; a language model 80."""
    test_prompts: Natural = 0
    """Test prompts of a language model. 0: 96."""
    test_samples: Natural = 4
    """Responses to each."""

    def __post_init__(self) -> None:
        exactly = self.scale in runner.EXACT_SCALES
        tree, quick = self.scale == "tree", self.quick
        defaults: dict[str, Any] = {
            "seeds": 2 if quick else 20 if self.scale == "bandit" else 5 if tree else 3,
            "labels": (200 if exactly else 32) if quick else (4000 if tree else 500) if exactly else 512,
            "prompts": (50 if exactly else 8) if quick else 500 if exactly else 64,
            "steps": (5 if exactly else 1) if quick else 60 if exactly else 16,
            "batch": 2048 if exactly else 8 if quick else 32,
            "rate": 0.05 if exactly else 3e-4,
            "reward_steps": (20 if exactly else 2) if quick else 150 if exactly else 80,
            "test_prompts": 8 if quick else 96,
        }
        if quick and not exactly and self.samples == 16:
            defaults["samples"] = 4
            object.__setattr__(self, "samples", 0)
            object.__setattr__(self, "test_samples", 2)
        for name, value in defaults.items():
            if getattr(self, name) == 0:
                object.__setattr__(self, name, value)
        super().__post_init__()
        check_beta(self.beta)
        if self.samples < 2 or self.samples % 2:
            raise LabError(f"samples must be even and at least 2, not {self.samples}: DPO pairs them.")
        for name in ("labels", "prompts", "steps", "batch", "reward_steps", "test_prompts", "test_samples", "best_of"):
            if getattr(self, name) < 1:
                raise LabError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("thresholds", "second"):
            values = getattr(self, name)
            if not values or list(values) != sorted(values) or not 0 <= values[0] <= values[-1] < 1:
                raise LabError(f"{name} must rise from 0 or more to less than 1, not {values}.")
        if len(self.thresholds) < 2 or self.thresholds[0] > 0:
            raise LabError(f"thresholds must begin with 0 and have an Improve step after it, not {self.thresholds}.")
