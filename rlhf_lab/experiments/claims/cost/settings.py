"""Settings of claim 8, the numbers of its decision rule, and the rule in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlhf_lab.errors import LabError, Natural, Positive
from rlhf_lab.experiments.settings import Defaults, PerScale, Settings
from rlhf_lab.experiments.verdicts import BY_PARTS

MARGIN = 0.1
"""DPO saves memory if it needs less than PPO by more than this share."""

RULE = f"""The claim has three parts.

- Easy to train: DPO samples no response during training, and PPO does.
- Saves memory: the ratio of DPO's memory to PPO's has an interval below {1 - MARGIN:g}. The part is false if the
  interval lies above. On text the memory is the measured peak. On the bandit and the tree it is the size of networks,
  gradients and Adam's moments, which is exact.
- Mixed results: at the end of training the J of DPO is higher than that of one of PPO and RSO and lower than that of
  the other. The part is false if it is higher than both or lower than both.

The differences in J are taken within seeds. These two differences and the logarithm of the memory ratio have t
intervals, corrected for three comparisons by Holm's procedure at 95%. A part that is neither true nor false is open.
{BY_PARTS} The other methods are reported and do not decide."""


@dataclass(frozen=True, init=False, kw_only=True)
class Cost(Settings):
    """Compare time, memory, samples and the spread over seeds of the methods at equal reward."""

    beta: Positive
    """β of the objective."""
    labels: Natural
    """Number of preference labels."""
    responses: Natural
    """Responses in an optimiser step (two of them are a pair), and responses sampled at the same time."""
    steps: Natural
    """Optimiser steps of every method."""
    reward_steps: Natural
    """Optimiser steps of the reward model."""
    prompts: Natural
    """Number of prompts that RSO, RAFT and ReST answer."""
    evaluations: Natural
    """Number of evaluations during training."""
    rates: tuple[Positive, ...]
    """Learning rates of the search, the same for every method."""
    test_prompts: Natural
    """Text: number of test prompts of each evaluation."""
    test_samples: Natural
    """Text: responses to each test prompt."""
    memory_steps: Natural
    """Text: optimiser steps of the runs whose memory is measured."""
    world: str
    """Text: name of the text world."""

    DEFAULTS: ClassVar[Defaults] = {
        "seeds": PerScale(24, 24, 8),
        "first_seed": PerScale(200, 200, 0),
        "beta": 0.5,
        "labels": PerScale(2000, 5000, 512),
        "responses": PerScale(1024, 128, 32),
        "steps": PerScale(100, 80, 32),
        "reward_steps": PerScale(150, 80, 80),
        "prompts": PerScale(500, 500, 64),
        "evaluations": PerScale(25, 16, 4),
        "rates": PerScale((0.02, 0.05, 0.15), (0.001, 0.003), (0.0003, 0.001)),
        "test_prompts": 64,
        "test_samples": 2,
        "memory_steps": PerScale(1, 1, 4),
        "world": "sentiment",
    }
    QUICK: ClassVar[Defaults] = {
        "seeds": 2,
        "labels": PerScale(300, 64, 8),
        "responses": PerScale(128, 16, 8),
        "steps": PerScale(8, 2, 2),
        "reward_steps": PerScale(8, 2, 2),
        "prompts": PerScale(32, 4, 2),
        "evaluations": PerScale(4, 1, 1),
        "rates": PerScale((0.05, 0.15), (0.003,), (0.001,)),
        "test_prompts": PerScale(64, 64, 4),
        "memory_steps": PerScale(1, 1, 2),
    }

    def check(self) -> None:
        """Refuse numbers of responses that do not divide into batches, and too few labels."""
        if self.responses < 8 or self.responses % 8:
            raise LabError(f"responses must be a multiple of 8, not {self.responses}.")
        if self.labels < 8 or self.evaluations < 1 or not self.rates:
            raise LabError("cost needs at least 8 labels, one evaluation and one learning rate.")
