"""Settings of claim 7, the numbers of its decision rule, and the rule in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlhf_lab.errors import Count, Fraction, LabError, Positive
from rlhf_lab.experiments.settings import Defaults, PerScale, Settings

MARGIN = 0.1
"""A trajectory stays high if its fall is less than this share of what the gold reward gained on it."""
REACH = 0.9
"""Share of the proxy's optimum that a trajectory must reach before it can be said to stay high."""

RULE = f"""The rule judges the trajectories of best-of-n and of PPO with the fewest labels. On the bandit and the tree
they are taken from the world in which the source's conditions hold: the reward model extrapolates from features, and
the gold reward saturates.

- A trajectory turns if the gold reward falls and the proxy reward rises from the peak of the gold reward to the end,
  with both intervals above zero. The peak of a seed is that of the mean over the other seeds, so that it is not
  selected on the seed whose fall is measured.
- A trajectory stays high if its proxy reward ends at {REACH:.0%} or more of its maximum, and the interval of the fall
  ends below {MARGIN:.0%} of what the gold reward had gained. The maximum is the largest proxy reward of any
  trajectory of the seed, which on the bandit and the tree is that of the proxy's optimum.
- Otherwise a trajectory is open.

The third comparison is the shift of the peak, which is √KL at the peak with the most labels minus that with the
fewest labels, averaged over the two methods. Both falls and the shift have t intervals over seeds, corrected for
three comparisons by Holm's procedure at 95%.

The claim is supported if both trajectories turn and the peak shifts up, and partly supported if some of these three
are true. It is not supported if none is true, and a trajectory stays high or the peak shifts down. It is inconclusive
if all three are open. The other reward models, DPO and RSO are reported and do not decide."""


@dataclass(frozen=True, init=False, kw_only=True)
class OverOptimisation(Settings):
    """Measure gold and proxy reward along the trajectories of PPO, DPO, RSO and best-of-n, with few and many labels."""

    labels: tuple[Count, ...]
    """Numbers of labels of the reward models, in increasing order."""
    noise: Fraction
    """Exact scales: share of flipped labels for the reward models of the kind "noisy"."""
    beta: Positive
    """β at which PPO, DPO and RSO train. It is small, so that the policies move far from π_ref."""
    steps: Count
    """Optimiser steps of DPO and RSO, and rounds of PPO. On text PPO takes half as many steps."""
    places: Count
    """Number of points, after π_ref, at which a trained trajectory is evaluated, evenly spread over its steps."""
    rate: Positive
    """Learning rate of every fit."""
    reward_steps: Count
    """Optimiser steps of a reward model."""
    prompts: Count
    """Number of prompts that PPO and RSO answer."""
    most: Count
    """Largest n of best-of-n."""
    most_prompts: Count
    """Text: number of test prompts of best-of-n, each with `most` responses."""
    test_prompts: Count
    """Text: number of test prompts of the trained methods."""
    test_samples: Count
    """Text: responses to each test prompt at every point of a trajectory."""

    DEFAULTS: ClassVar[Defaults] = {
        "seeds": PerScale(24, 24, 8),
        "first_seed": PerScale(12, 5, 3),
        "labels": PerScale((50, 200, 800, 3200), (500, 2000, 8000), (64, 512)),
        "noise": 0.25,
        "beta": 0.05,
        "steps": PerScale(200, 200, 64),
        "places": PerScale(20, 20, 4),
        "rate": PerScale(0.05, 0.05, 3e-4),
        "reward_steps": PerScale(200, 200, 80),
        "prompts": PerScale(500, 500, 64),
        "most": PerScale(4096, 4096, 1024),
        "most_prompts": PerScale(64, 64, 16),
        "test_prompts": 64,
        "test_samples": 4,
    }
    QUICK: ClassVar[Defaults] = {
        "seeds": 2,
        "labels": PerScale((50, 200), (50, 200), (16, 32)),
        "steps": PerScale(20, 20, 2),
        "places": PerScale(4, 4, 1),
        "reward_steps": PerScale(20, 20, 2),
        "prompts": PerScale(30, 30, 4),
        "most": PerScale(64, 64, 4),
        "most_prompts": 4,
        "test_prompts": 4,
        "test_samples": 2,
    }

    def check(self) -> None:
        """Refuse labels that do not increase, labels without information, and more points than steps."""
        if len(self.labels) < 2 or list(self.labels) != sorted(set(self.labels)) or self.labels[0] < 8:
            raise LabError(f"labels must be at least two increasing numbers from 8 on, not {self.labels}.")
        if self.noise >= 0.5:
            raise LabError(f"noise must be below 0.5, not {self.noise}: at 0.5 labels contain no information.")
        if self.places > max(self.steps // (1 if self.exact else 2), 1):
            raise LabError(f"A trajectory of {self.steps} steps cannot be evaluated at {self.places} points.")
