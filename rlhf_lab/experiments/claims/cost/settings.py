"""Settings of the experiment `cost`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhf_lab.errors import LabError, Natural, NonNegative, check_beta
from rlhf_lab.experiments.runner import EXACT_SCALES, Settings


@dataclass(frozen=True)
class Cost(Settings):
    """Seconds, memory, samples and luck of each method, at equal reward."""

    beta: NonNegative = 0.5
    """β of the objective."""
    labels: Natural = 0
    """Preference labels. 0: 2,000 on the bandit, 5,000 on the tree, 512 on text."""
    responses: Natural = 0
    """R, responses in an optimiser step (two of them are a pair), and drawn at a time. 0: 1,024, 128, 32."""
    steps: Natural = 0
    """Optimiser steps of every method. 0: 100 on the bandit, 80 on the tree, 32 on text."""
    reward_steps: Natural = 0
    """Optimiser steps of the reward model. 0: 150 on the bandit, 80 else."""
    prompts: Natural = 0
    """Prompts that RSO, RAFT and ReST answer. 0: 500, on text 64."""
    evaluations: Natural = 0
    """How often a policy is looked at on its way. 0: 25 on the bandit, 16 on the tree, 4 on text."""
    rates: tuple[NonNegative, ...] = ()
    """Learning rates of the search, the same for every method."""
    test_prompts: Natural = 64
    """Text: test prompts of each look."""
    test_samples: Natural = 2
    """Text: responses to each."""
    memory_steps: Natural = 0
    """Text: optimiser steps of the runs whose memory is measured. 0: 4."""
    world: str = "sentiment"
    """Text: which world."""

    def __post_init__(self) -> None:
        super().__post_init__()
        kind = self.scale if self.scale in EXACT_SCALES else "text"
        full: dict[str, tuple[Any, Any, Any]] = {
            "seeds": (10, 5, 3),
            "labels": (2000, 5000, 512),
            "responses": (1024, 128, 32),
            "steps": (100, 80, 32),
            "reward_steps": (150, 80, 80),
            "prompts": (500, 500, 64),
            "evaluations": (25, 16, 4),
            "rates": ((0.02, 0.05, 0.15), (0.001, 0.003), (0.0003, 0.001)),
            "memory_steps": (1, 1, 4),
        }
        quick: dict[str, tuple[Any, Any, Any]] = {
            "seeds": (2, 2, 2),
            "labels": (300, 64, 8),
            "responses": (128, 16, 8),
            "steps": (8, 2, 2),
            "reward_steps": (8, 2, 2),
            "prompts": (32, 4, 2),
            "evaluations": (4, 1, 1),
            "rates": ((0.05, 0.15), (0.003,), (0.001,)),
            "memory_steps": (1, 1, 2),
        }
        column = ("bandit", "tree", "text").index(kind)
        for name, values in (quick if self.quick else full).items():
            if not getattr(self, name):
                object.__setattr__(self, name, values[column])
        object.__setattr__(self, "rates", tuple(self.rates))
        if self.quick and kind == "text":
            object.__setattr__(self, "test_prompts", min(self.test_prompts, 4))
        check_beta(self.beta)
        if self.responses < 8 or self.responses % 8 or self.labels < 8 or min(self.rates) <= 0:
            raise LabError("cost needs a multiple of 8 responses a step, 8 labels at least, and rates above 0.")
