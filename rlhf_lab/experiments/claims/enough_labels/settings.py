"""Settings of claim 1, the numbers of its decision rule, and the rule in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlhf_lab.errors import Count, LabError, Natural, Positive
from rlhf_lab.experiments.settings import Defaults, PerScale, Settings
from rlhf_lab.experiments.verdicts import BY_PARTS

MARGIN = 0.1
"""Margin within which the slope must equal −1 and the ratio of regret and limit must equal 1."""
SLOPE_RANGE = 10.0
"""The slope is fitted over the numbers of labels within this factor of the largest."""
MAX_LEFT = 0.1
"""On text, π* counts as found where the interval of the remaining share of the way to π* lies below this."""

DECADES = (100, 300, 1000, 3000, 10_000, 30_000, 100_000)

RULE = f"""The parts of the claim depend on the scale. N is the number of labels.

- Bandit and tree, part 1: the slope of a table's log regret in log N is −1 within {MARGIN:.0%}, over the last factor
  of {SLOPE_RANGE:g} in N.
- Bandit and tree, part 2: N times the regret, divided by its theoretical limit, is 1 within {MARGIN:.0%} at the
  largest N.
- Tree, part 3: the regret of a transformer falls from the smallest to the largest N, if held-out labels stop its
  training.
- Text, parts 1 and 2: from the smallest to the largest N, J rises and the estimated regret falls.
- Text, part 3: at the largest N less than {MAX_LEFT:.0%} of the way from π_ref to π* remains.

A part with a margin is true if its interval lies within the margin, and false if it lies outside. Any other part is
true if the whole interval lies on the claimed side, and false if it lies on the other side. Otherwise a part is open.
On text, parts 2 and 3 are also open if the estimate of the regret is not trusted in all runs at the largest N.
Differences are paired within seeds. The t intervals of all parts hold together at 95%. {BY_PARTS}"""


@dataclass(frozen=True, init=False, kw_only=True)
class EnoughLabels(Settings):
    """Train DPO on more and more labels and measure how fast it approaches π*."""

    beta: Positive
    """β of the objective and of the DPO loss."""
    labels: tuple[Count, ...]
    """Numbers of labels N, in increasing order."""
    net_labels: tuple[Count, ...]
    """Tree: numbers of labels for the transformer."""
    net_seeds: Natural
    """Tree: number of runs of the transformer."""
    steps: Count
    """Optimiser steps of a transformer, the same for every number of labels."""
    batch: Count
    """Pairs in an optimiser step."""
    rate: Positive
    """Learning rate of a transformer."""
    evaluations: Count
    """Tree: number of evaluations during the training of a transformer."""
    prompts: Count
    """Text: number of test prompts on which the distance to π* is estimated."""
    samples: Count
    """Text: responses to each test prompt, drawn from π_ref and again from π_θ."""
    world: str
    """Text: name of the text world."""

    DEFAULTS: ClassVar[Defaults] = {
        "seeds": PerScale(800, 800, 8),
        "first_seed": PerScale(200, 200, 3),
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
        if self.net_labels and self.net_seeds == 0:
            raise LabError("net_labels are those of the transformer, which has no runs. Raise net_seeds to at least 1.")
