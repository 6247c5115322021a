"""Settings of claim 1, the numbers of its decision rule, and the rule in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlhf_lab.errors import LabError, Natural, Positive
from rlhf_lab.experiments.settings import Defaults, PerScale, Settings

MAX_SLOPE = -0.9
"""The interval of the slope of log regret in log N must lie below this; the theory's slope is −1."""
SLOPE_RANGE = 10.0
"""The slope is fitted over the numbers of labels within this factor of the largest."""
MAX_LEFT = 0.1
"""On text, π* counts as found where the interval of the remaining share of the way to π* lies below this."""

DECADES = (100, 300, 1000, 3000, 10_000, 30_000, 100_000)

RULE = (
    f"Bandit: supported if a table's regret is lower at the largest N than at the smallest (with disjoint "
    f"intervals), the 95% interval of its slope in N (on logarithmic axes, over the last factor of {SLOPE_RANGE:g}) "
    f"lies below {MAX_SLOPE:g}, and the interval of N · regret / limit at the largest N contains 1. Partly supported "
    f"if the regret falls and one of the other two conditions fails; not supported if the regret rises. Tree: the "
    f"same, and the transformer's regret must be lower at its largest N than at its smallest, both at the end of "
    f"training and when training is stopped by held-out labels; otherwise partly supported. Text: J must rise and "
    f"the estimated regret fall from the smallest to the largest N with disjoint intervals, the estimate must be "
    f"trusted in all runs at the largest N, and less than {MAX_LEFT:.0%} of the way from π_ref to π* must remain, "
    f"with its whole interval. Partly supported if J rises and one of the other conditions fails; not supported if J "
    f"falls. Inconclusive if the intervals overlap."
)


@dataclass(frozen=True, init=False, kw_only=True)
class EnoughLabels(Settings):
    """Train DPO on more and more labels and measure how fast it approaches π*."""

    beta: Positive
    """β of the objective and of the DPO loss."""
    labels: tuple[Natural, ...]
    """Numbers of labels N, in increasing order."""
    net_labels: tuple[Natural, ...]
    """Tree: numbers of labels for the transformer."""
    net_seeds: Natural
    """Tree: number of runs of the transformer."""
    steps: Natural
    """Optimiser steps of a transformer, the same for every number of labels."""
    batch: Natural
    """Pairs in an optimiser step."""
    rate: Positive
    """Learning rate of a transformer."""
    evaluations: Natural
    """Tree: number of evaluations during the training of a transformer."""
    prompts: Natural
    """Text: number of test prompts on which the distance to π* is estimated."""
    samples: Natural
    """Text: responses to each test prompt, drawn from π_ref and again from π_θ."""
    world: str
    """Text: name of the text world."""

    DEFAULTS: ClassVar[Defaults] = {
        "seeds": PerScale(200, 200, 3),
        # On text β = 1, so that the distance to π* can be estimated from few samples.
        "beta": PerScale(0.5, 0.5, 1.0),
        "labels": PerScale(DECADES, DECADES, (64, 360, 2048)),
        "net_labels": PerScale((), (500, 4000, 32_000), ()),
        "net_seeds": PerScale(0, 5, 0),
        "steps": PerScale(200, 200, 128),
        # On text the largest number of labels is one pass over the data.
        "batch": PerScale(256, 256, 16),
        "rate": PerScale(3e-3, 3e-3, 3e-4),
        "evaluations": 10,
        "prompts": 32,
        "samples": 32,
        "world": "sentiment",
    }
    QUICK: ClassVar[Defaults] = {
        "seeds": PerScale(3, 3, 2),
        "labels": PerScale(DECADES[:5:2], DECADES[:5:2], (24, 96)),
        "net_labels": PerScale((), (200, 800), ()),
        "net_seeds": PerScale(0, 2, 0),
        "steps": PerScale(12, 12, 6),
        "batch": PerScale(64, 64, 16),
        "evaluations": 3,
        "prompts": 4,
        "samples": 8,
    }

    def check(self) -> None:
        """Refuse numbers of labels of which no slope can be fitted."""
        for name in ("labels", "net_labels"):
            numbers = getattr(self, name)
            if any(n < 20 for n in numbers) or list(numbers) != sorted(set(numbers)):
                raise LabError(f"{name} must increase and start at 20 or more, not {numbers}.")
        if len(self.labels) < 2:
            raise LabError("The experiment needs at least two numbers of labels, such as --labels 100 1000.")
