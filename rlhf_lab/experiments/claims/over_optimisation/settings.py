"""Settings of the experiment `over-optimisation`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhf_lab.errors import LabError, Natural, NonNegative, check_beta
from rlhf_lab.experiments import runner
from rlhf_lab.experiments.runner import Settings


@dataclass(frozen=True)
class OverOptimisation(Settings):
    """Gold and proxy along the roads of PPO, DPO, RSO and best of n, for reward models of few and of many labels."""

    labels: tuple[Natural, ...] = ()
    """Labels of the reward models, rising. (): 50 200 800 3200; tree 500 2000 8000; a language model 64 512."""
    noise: NonNegative = 0.25
    """Share of labels turned round for the kind "noisy", exact scales only."""
    beta: NonNegative = 0.0
    """β at which PPO, DPO and RSO train: small, so that they go far. 0: 0.05."""
    steps: Natural = 0
    """Optimiser steps of DPO and RSO, rounds of PPO. 0: 200; a language model 64, PPO half of it."""
    places: Natural = 0
    """Places of a trained road, evenly spread over its steps. 0: 20; a language model 4."""
    rate: NonNegative = 0.0
    """Learning rate of every fit. 0: 0.05; a language model 3e-4."""
    reward_steps: Natural = 0
    """Optimiser steps of a reward model. 0: 200; a language model 80."""
    prompts: Natural = 0
    """Prompts that PPO and RSO answer. 0: 500; a language model 64."""
    most: Natural = 0
    """Largest n of best of n. 0: 4,096 (exact); a language model 64."""
    test_prompts: Natural = 0
    """Test prompts of a language model. 0: 64."""
    test_samples: Natural = 0
    """Responses to each, at every place. 0: 4."""

    def __post_init__(self) -> None:
        exactly, tree, quick = self.scale in runner.EXACT_SCALES, self.scale == "tree", self.quick
        if not self.labels:
            usual = ((500, 2000, 8000) if tree else (50, 200, 800, 3200)) if exactly else (64, 512)
            object.__setattr__(self, "labels", ((50, 200) if exactly else (16, 32)) if quick else usual)
        defaults: dict[str, Any] = {
            "seeds": 2 if quick else 12 if self.scale == "bandit" else 5 if tree else 3,
            "beta": 0.05,
            "steps": (20 if exactly else 2) if quick else 200 if exactly else 64,
            "places": (4 if exactly else 1) if quick else 20 if exactly else 4,
            "rate": 0.05 if exactly else 3e-4,
            "reward_steps": (20 if exactly else 2) if quick else 200 if exactly else 80,
            "prompts": (30 if exactly else 4) if quick else 500 if exactly else 64,
            "most": (64 if exactly else 4) if quick else 4096 if exactly else 64,
            "test_prompts": 4 if quick else 64,
            "test_samples": 2 if quick else 4,
        }
        for name, value in defaults.items():
            if getattr(self, name) == 0:
                object.__setattr__(self, name, value)
        super().__post_init__()
        check_beta(self.beta)
        if len(self.labels) < 2 or list(self.labels) != sorted(set(self.labels)) or self.labels[0] < 8:
            raise LabError(f"labels must be two numbers or more, rising from 8 or more, not {self.labels}.")
        if not 0 <= self.noise < 0.5:
            raise LabError(f"noise must be between 0 and 0.5, not {self.noise}: at 0.5 labels say nothing.")
        for name in ("steps", "places", "reward_steps", "prompts", "most", "test_prompts", "test_samples"):
            if getattr(self, name) < 1:
                raise LabError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.places > max(self.steps // (1 if exactly else 2), 1):
            raise LabError(f"{self.places} places do not fit into {self.steps} steps.")
