"""Settings of claim 8, the numbers of its decision rule, and the rule in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlhf_lab.errors import LabError, Natural, Positive
from rlhf_lab.experiments.settings import Defaults, PerScale, Settings

MAX_MEMORY_RATIO = 1.0
"""DPO saves memory if the ratio of its memory to PPO's lies below this, with its whole interval."""
MIN_LEAD = 0.0
"""DPO's J is higher than another method's if the interval of the difference lies above this, lower if it lies below."""

RULE = (
    f"The claim has three parts. Easy to train: DPO samples no response during training, and PPO does. Saves memory: "
    f"the ratio of DPO's memory to PPO's is below {MAX_MEMORY_RATIO:g}. On text this is the measured peak with its "
    f"interval; on finite worlds it is the size of networks, gradients and Adam's moments, which is exact. Mixed "
    f"results: at the end of training DPO's J is higher than that of one other trained method and lower than that of "
    f"another (paired 95% intervals). The claim is supported if all three parts are true, and partly supported if only "
    f"the first two are. It is not supported if PPO samples nothing, DPO samples something, or the interval of the "
    f"memory ratio lies above {MAX_MEMORY_RATIO:g}. It is inconclusive if this interval contains {MAX_MEMORY_RATIO:g}."
)


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
        "seeds": PerScale(10, 5, 3),
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
