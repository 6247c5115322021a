"""Settings of the experiment `non-static`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rlhf_lab.errors import LabError, Natural, NonNegative
from rlhf_lab.experiments.runner import EXACT_SCALES, Settings

PIECES = 4
"""Into so many parts a deployment is cut: the regret of each is kept."""


@dataclass(frozen=True)
class NonStatic(Settings):
    """Drift, shift and sudden change: labels once, or labels every round?"""

    beta: NonNegative = 0.5
    """β of the objective."""
    labels: Natural = 0
    """Labels a round. 0: 120 on the bandit, 500 on the tree, 160 on a language model."""
    rounds: Natural = 0
    """Rounds of a deployment. 0: 24; on a language model 3."""
    turns: tuple[NonNegative, ...] = ()
    """Radians that preferences turn over a deployment. Default: seven from 0 to π/2; on a language model π/2."""
    windows: tuple[Natural, ...] = ()
    """Windows, in rounds, that are tried against the closed form. Default: 1 to 32."""
    every: tuple[Natural, ...] = ()
    """Rounds between fits that are tried. Default: 1 to 8."""
    drifts: tuple[NonNegative, ...] = ()
    """Radians a round at which windows are tried. Default: 0.02, 0.04 and 0.08."""
    fits: Natural = 0
    """Fits for each window, spread over one turn of the preferences. 0: 64 on the bandit, 10 on the tree."""
    more: Natural = 0
    """The windows are tried once more with so many times the labels at the root of that less drift: the best window is
    the same, all errors are smaller, and the closed form must be met. 0: 25 on the bandit, 4 on the tree."""
    window: Natural = 8
    """Rounds whose labels are kept where no closed form says how many."""
    cost: NonNegative = 0.2
    """Of one retraining, in reward summed over rounds: for the best rhythm. It takes no new runs."""
    steps: Natural = 32
    """Optimiser steps of every DPO fit on a language model."""

    def __post_init__(self) -> None:
        exact_scale = self.scale in EXACT_SCALES
        bandit, quick = self.scale == "bandit", self.quick
        usual: dict[str, Any] = {
            "seeds": 2 if quick else (12 if bandit else 5 if exact_scale else 3),
            "labels": 16 if quick and not exact_scale else (120 if bandit else 500 if exact_scale else 160),
            "rounds": (8 if quick else 24) if exact_scale else (2 if quick else 3),
            "turns": (0.0, math.pi / 2) if quick else (0.0, 0.1, 0.2, 0.4, 0.8, 1.2, math.pi / 2),
            "windows": (1, 4) if quick else (1, 2, 3, 4, 6, 8, 12, 16, 24, 32),
            "every": (1, 2) if quick else (1, 2, 4, 8),
            "drifts": (0.08,) if quick else (0.02, 0.04, 0.08),
            "more": 4 if quick or not bandit else 25,
            "fits": 2 if quick else (64 if bandit else 10),
        }
        if not exact_scale:
            usual |= {"turns": (math.pi / 2,), "windows": (1,), "every": (1,), "drifts": (0.0,), "fits": 1, "more": 1}
        for name, value in usual.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)
        if quick and self.steps == 32:
            object.__setattr__(self, "steps", 2)
        super().__post_init__()
        if self.rounds < 1 or self.labels < 8 or self.fits < 1 or min(*self.windows, *self.every, self.window) < 1:
            raise LabError("A world that moves needs a round, 8 labels a round, and windows of at least one round.")
        if exact_scale and self.rounds % PIECES:
            raise LabError(f"rounds must be a multiple of {PIECES}, not {self.rounds}: so the curves are averaged.")
        if exact_scale and max(self.drifts) * (max(self.windows) + max(self.every)) > 12:
            raise LabError("drifts times windows is more than two turns: such a window knows nothing of any round.")
