"""Settings of question 9, the compared strategies and changes, and its decision rule in words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from rlhf_lab.errors import Count, LabError, NonNegative, Range
from rlhf_lab.experiments.settings import Defaults, PerScale, Settings

PIECES = 4
"""The regret of a deployment is averaged over this many parts of equal length."""
CLOSED_FORM = 0.1
"""The closed form is met if simulated regret over closed form equals 1 up to this margin."""
OTHER_CHANGES = {
    "sudden": "preferences\nturn at once",
    "prompts": "prompts\nshift",
    "policy": "policy\nmoves",
    "policy-narrow": "policy moves,\nsmall model",
}
"""Exact scales: changes other than drift → their names in the picture. The small model has half of the features."""
TEXT_STRATEGIES = {
    "none": ("offline", "online-all"),
    "drift": ("offline", "refit-all", "window", "online", "online-all"),
    "prompts": ("offline", "online-all"),
}
"""Text: the strategies that are compared under each change."""

RULE = f"""Fresh labels in every round are compared within seeds with as many labels of π_ref's responses at the
start. On the bandit and the tree the mean regret of a round is compared in three cases.

- Case 1: preferences drift by the largest tested turn. The fresh labels are the newest ones of π_ref's responses, in
  the window of the closed form.
- Case 2: the policy itself moves, as in the cited work. The fresh labels are all labels of its responses until then.
- Case 3: as case 2, with a reward model that is too small for the reward.

On text J, averaged over the rounds, is compared in two cases. In the first preferences drift, and the fresh labels
are the newest ones of the policy's responses. In the second only the policy moves, and the fresh labels are all
labels of its responses.

The differences have t intervals over seeds, corrected for the number of cases by Holm's procedure at 95%. In a case
fresh labels are better if the interval lies on their side of 0, and worse if it lies on the other side. The claim is
supported if they are better in all cases and partly supported if in some. It is not supported if they are better in
none and worse in some, and otherwise it is inconclusive. Smaller drifts, changes of prompts and the closed form do
not decide. The closed form is met if the 95% interval of the simulated regret divided by it
lies within {CLOSED_FORM:.0%} of 1, at its best window and with the larger number of labels. It is missed if the
interval lies outside this margin."""

_TURNS = (0.0, 0.1, 0.2, 0.4, 0.8, 1.2, math.pi / 2)
_WINDOWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


@dataclass(frozen=True, init=False, kw_only=True)
class NonStatic(Settings):
    """Compare labels at the start with fresh labels in every round, in worlds that drift, shift or change suddenly."""

    beta: NonNegative
    """β of the objective."""
    labels: Annotated[int, Range(8)]
    """Labels per round."""
    rounds: Count
    """Rounds of a deployment."""
    turns: tuple[NonNegative, ...]
    """Angles in radians by which preferences turn during a deployment."""
    windows: tuple[Count, ...]
    """Windows, in rounds, that are compared with the closed form."""
    every: tuple[Count, ...]
    """Numbers of rounds between two fits that are compared with the closed form."""
    drifts: tuple[NonNegative, ...]
    """Drifts in radians per round at which windows are compared."""
    fits: Count
    """Fits for each window, spread over half a turn of the preferences."""
    more: Count
    """The windows are also tested with this many times the labels, at a drift lower by the root of the factor. The best
    window stays the same, all errors become smaller, and the closed form must be met."""
    window: Count
    """Window in rounds where no closed form gives one."""
    cost: NonNegative
    """Cost of one retraining, in reward summed over rounds, for the best rhythm. It needs no new runs."""
    steps: Count
    """Text: optimiser steps of every DPO fit."""

    DEFAULTS: ClassVar[Defaults] = {
        "seeds": PerScale(24, 24, 8),
        "first_seed": PerScale(200, 200, 3),
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
        if self.exact and self.rounds % PIECES:
            raise LabError(f"rounds must be a multiple of {PIECES}, not {self.rounds}, because regret is averaged so.")
        if self.exact and max(self.drifts) * (max(self.windows) + max(self.every)) > 12:
            raise LabError(
                "The largest drift times the longest window is more than two turns. The labels of such a window "
                "contain no information about any round; lower drifts or windows."
            )
