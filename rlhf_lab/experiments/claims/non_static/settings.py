"""Settings of question 9, the compared strategies and changes, and its decision rule in words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from rlhf_lab.errors import LabError, Natural, NonNegative
from rlhf_lab.experiments.settings import Defaults, PerScale, Settings

PIECES = 4
"""The regret of a deployment is averaged over this many parts of equal length."""
CLOSED_FORM = 0.1
"""The closed form is met if simulated regret over closed form equals 1 up to this margin."""
OTHER_CHANGES = ("sudden", "prompts", "policy", "policy-narrow")
"""Exact scales: changes other than drift. Preferences turn suddenly; prompts shift; the policy moves on from π_ref,
with a full reward model and with one that has half of the features."""
TEXT_STRATEGIES = {
    "none": ("offline", "online-all"),
    "drift": ("offline", "refit-all", "window", "online", "online-all"),
    "prompts": ("offline", "online-all"),
}
"""Text: the strategies that are compared under each change."""

RULE = (
    f"Fresh labels in every round are compared with as many labels of π_ref's responses at the start, within seeds. "
    f"Bandit and tree, by the mean regret of a round, in three cases: (1) preferences drift by the largest tested "
    f"turn, and the fresh labels are the newest ones of π_ref's responses, in the closed form's window; (2) the policy "
    f"itself moves, as in the cited work, and the fresh labels are all those of its own responses so far; (3) the same "
    f"with a reward model that is too small for the reward. Text, by J averaged over the rounds, in two cases: "
    f"preferences drift, with the newest labels of the policy's own responses; and only the policy moves, with all "
    f"labels of its own responses. The intervals are t intervals over seeds, corrected for the number of cases by "
    f"Holm's procedure at 95%. Fresh labels are better in a case if the interval of the difference lies on their side "
    f"of 0, and worse if it lies on the other side. Supported if they are better in all cases; partly supported if in "
    f"some; not supported if better in none and worse in some; otherwise inconclusive. Smaller drifts, changes of "
    f"prompts and the closed form do not decide. The closed form counts as met if simulated regret over closed form, "
    f"at its best window and with the larger number of labels, equals 1 within {CLOSED_FORM:.0%} (its 95% interval "
    f"lies within this margin), and as missed if the interval lies outside."
)

_TURNS = (0.0, 0.1, 0.2, 0.4, 0.8, 1.2, math.pi / 2)
_WINDOWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""What was changed after a first result, and why."""


@dataclass(frozen=True, init=False, kw_only=True)
class NonStatic(Settings):
    """Compare labels at the start with fresh labels in every round, in worlds that drift, shift or change suddenly."""

    beta: NonNegative
    """β of the objective."""
    labels: Natural
    """Labels per round."""
    rounds: Natural
    """Rounds of a deployment."""
    turns: tuple[NonNegative, ...]
    """Angles in radians by which preferences turn during a deployment."""
    windows: tuple[Natural, ...]
    """Windows, in rounds, that are compared with the closed form."""
    every: tuple[Natural, ...]
    """Numbers of rounds between two fits that are compared with the closed form."""
    drifts: tuple[NonNegative, ...]
    """Drifts in radians per round at which windows are compared."""
    fits: Natural
    """Fits for each window, spread over half a turn of the preferences."""
    more: Natural
    """The windows are also tested with this many times the labels, at a drift lower by the root of the factor. The best
    window stays the same, all errors become smaller, and the closed form must be met."""
    window: Natural
    """Window in rounds where no closed form gives one."""
    cost: NonNegative
    """Cost of one retraining, in reward summed over rounds, for the best rhythm. It needs no new runs."""
    steps: Natural
    """Text: optimiser steps of every DPO fit."""

    DEFAULTS: ClassVar[Defaults] = {
        "seeds": PerScale(12, 5, 3),
        "beta": 0.5,
        "labels": PerScale(120, 500, 160),
        "rounds": PerScale(24, 24, 3),
        "turns": PerScale(_TURNS, _TURNS, (math.pi / 2,)),
        "windows": PerScale(_WINDOWS, _WINDOWS, (1,)),
        "every": PerScale((1, 2, 4, 8), (1, 2, 4, 8), (1,)),
        "drifts": PerScale((0.02, 0.04, 0.08), (0.02, 0.04, 0.08), (0.0,)),
        "fits": PerScale(64, 10, 1),
        "more": PerScale(25, 4, 1),
        "window": 8,
        "cost": 0.2,
        "steps": 32,
    }
    QUICK: ClassVar[Defaults] = {
        "seeds": 2,
        "labels": PerScale(120, 500, 16),
        "rounds": PerScale(8, 8, 2),
        "turns": PerScale((0.0, math.pi / 2), (0.0, math.pi / 2), (math.pi / 2,)),
        "windows": PerScale((1, 4), (1, 4), (1,)),
        "every": PerScale((1, 2), (1, 2), (1,)),
        "drifts": PerScale((0.08,), (0.08,), (0.0,)),
        "fits": PerScale(2, 2, 1),
        "more": PerScale(4, 4, 1),
        "steps": 2,
    }

    def check(self) -> None:
        """Refuse settings with which a deployment or the comparison with the closed form is not defined."""
        for name in ("turns", "windows", "every", "drifts"):
            if not getattr(self, name):
                raise LabError(f"{name} must contain at least one number.")
        if self.labels < 8:
            raise LabError(f"labels must be at least 8 labels per round, not {self.labels}.")
        if min(self.rounds, self.fits, self.more, self.window, *self.windows, *self.every) < 1:
            raise LabError("rounds, fits, more, window and the numbers in windows and every must be at least 1.")
        if self.exact and self.rounds % PIECES:
            raise LabError(f"rounds must be a multiple of {PIECES}, not {self.rounds}, because regret is averaged so.")
        if self.exact and max(self.drifts) * (max(self.windows) + max(self.every)) > 12:
            raise LabError(
                "The largest drift times the longest window is more than two turns. The labels of such a window "
                "contain no information about any round; lower drifts or windows."
            )
