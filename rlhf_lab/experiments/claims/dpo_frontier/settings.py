"""Settings of claim 2, the numbers of its decision rule, and the rule in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlhf_lab.errors import Count, LabError, Positive
from rlhf_lab.experiments.settings import Defaults, PerScale, Settings

BUDGETS = 9
"""Number of KL budgets at which the methods are compared. They are evenly spaced in √KL."""
DECISIVE = (3, 6, 9)
"""The budgets, counted from 1, that decide: a third, two thirds and all of the largest √KL of both methods."""

RULE = f"""In each seed the frontier of a method is the concave envelope of its points and π_ref. The lead of DPO at a
KL budget is its reward minus that of PPO at the same budget and in the same seed. Three budgets decide. Their √KL is
one third, two thirds and all of the largest √KL that both methods reach in all seeds. The leads have t intervals over
seeds, corrected for three comparisons by Holm's procedure at 95%. DPO is ahead at a budget if the interval lies above
0, and behind if it lies below.

The claim is supported if DPO is ahead at all three budgets and partly supported if it is ahead at some. It is not
supported if DPO is ahead at none and behind at some, and otherwise it is inconclusive. The picture shows {BUDGETS}
budgets with uncorrected 95% intervals, which do not decide."""


@dataclass(frozen=True, init=False, kw_only=True)
class DPOFrontier(Settings):
    """Compare reward against KL of DPO and PPO over β, beside PPO on the gold reward and SFT on chosen responses."""

    betas: tuple[Positive, ...]
    """Values of β for DPO and PPO."""
    gold_betas: tuple[Positive, ...]
    """Values of β for PPO on the gold reward."""
    rates: tuple[Positive, ...]
    """Learning rates that the search tries for SFT, DPO and PPO."""
    search_seeds: Count
    """Number of seeds of the search."""
    labels: Count
    """Number of preference labels."""
    steps: Count
    """Optimiser steps of every run. PPO takes several of them on the same samples."""
    evaluations: Count
    """Number of points of each run, evenly spaced, the last at its end."""
    prompts: Count
    """Text: number of test prompts for each point, with four responses each."""

    DEFAULTS: ClassVar[Defaults] = {
        "seeds": PerScale(24, 12, 8),
        "first_seed": PerScale(200, 5, 3),
        "betas": PerScale((0.1, 0.3, 1.0, 3.0), (0.1, 0.3, 1.0, 3.0), (0.1, 0.5, 2.0)),
        "gold_betas": PerScale((0.1, 1.0), (0.1, 1.0), (0.1,)),
        "rates": PerScale((0.02, 0.05, 0.15), (0.02, 0.05, 0.15), (1e-4, 3e-4, 1e-3)),
        "search_seeds": PerScale(2, 2, 1),
        "labels": PerScale(1000, 20_000, 512),
        "steps": PerScale(240, 400, 44),
        "evaluations": PerScale(8, 8, 3),
        "prompts": 48,
    }
    QUICK: ClassVar[Defaults] = {
        "seeds": 2,
        "betas": PerScale((0.1, 0.3, 1.0, 3.0), (0.1, 0.3, 1.0, 3.0), (0.5,)),
        "gold_betas": (0.1,),
        "rates": PerScale((0.05, 0.15), (0.05, 0.15), (1e-3,)),
        "search_seeds": 1,
        "labels": PerScale(200, 200, 16),
        "steps": PerScale(8, 8, 2),
        "evaluations": 2,
        "prompts": 4,
    }

    def check(self) -> None:
        """Refuse runs that are shorter than their number of evaluations, and samples that are too small."""
        if not self.betas or not self.gold_betas or not self.rates:
            raise LabError("betas, gold_betas and rates need at least one value each.")
        if self.steps < self.evaluations:
            raise LabError(f"A run of {self.steps} steps cannot have {self.evaluations} evaluations.")
        if self.prompts < 2 or self.labels < 8:
            raise LabError("The frontier needs at least 2 prompts and 8 labels.")
