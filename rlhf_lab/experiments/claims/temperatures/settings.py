"""Settings of claim 3 and its decision rule in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlhf_lab.errors import Count, LabError, NonNegative, Positive
from rlhf_lab.experiments.settings import Defaults, PerScale, Settings
from rlhf_lab.experiments.verdicts import BY_PARTS

TIE = 0.03
"""Two win rates tie if the interval of their difference lies within ± this. The paper's DPO leads PPO by 0.047."""

RULE = f"""The claim has three parts. Each is a difference of win rates by the gold reward, taken within a seed.

- (a) The win rate of DPO at temperature 0 minus that of PPO at its best temperature.
- (b) The fall of PPO's win rate from temperature 0 to temperature 1 minus the fall of DPO's.
- (c) The win rate of DPO at its best temperature minus that of best-of-n at its best n and temperature.

The best n and temperature of a seed are those with the highest mean over the other seeds, so that no method gains
from a selection on the seed that is measured. The differences have t intervals over seeds, corrected for three
comparisons by Holm's procedure at 95%. On the bandit and the tree every seed has a different world. On text every
seed has different test prompts, so the intervals include the error that comes from the choice of prompts. A part is
true if its interval lies above 0. It is false if the interval lies below 0, or within ±{TIE:.0%}, which is a tie.
Otherwise it is open. {BY_PARTS}"""


@dataclass(frozen=True, init=False, kw_only=True)
class Temperatures(Settings):
    """Compare the win rates of DPO, PPO, SFT and best-of-n at several sampling temperatures."""

    temperatures: tuple[NonNegative, ...]
    """Sampling temperatures, increasing from 0 to 1. Temperature 0 takes the most likely token each time."""
    best_of: tuple[Count, ...]
    """Values of n of best-of-n, which chooses by the reward model."""
    beta: Positive
    """β of DPO and PPO."""
    rates: tuple[Positive, ...]
    """Learning rates that the search tries for each of SFT, DPO and PPO."""
    search_seeds: Count
    """Number of seeds of the search."""
    labels: Count
    """Number of preference labels."""
    steps: Count
    """Optimiser steps of every run. PPO uses each batch of samples for several steps."""
    prompts: Count
    """Text: number of test prompts of a seed. Each is answered once at every temperature."""

    DEFAULTS: ClassVar[Defaults] = {
        "seeds": PerScale(24, 24, 8),
        "first_seed": PerScale(200, 200, 0),
        "temperatures": (0.0, 0.25, 0.5, 0.75, 1.0),
        "best_of": PerScale((8, 128), (8, 128), (4, 16)),
        "beta": 0.5,
        "rates": PerScale((0.02, 0.05, 0.15), (0.02, 0.05, 0.15), (3e-4, 1e-3)),
        "search_seeds": PerScale(2, 2, 1),
        "labels": PerScale(1000, 20_000, 512),
        "steps": PerScale(240, 400, 44),
        "prompts": PerScale(80, 80, 64),
    }
    QUICK: ClassVar[Defaults] = {
        "seeds": 2,
        "temperatures": (0.0, 0.5, 1.0),
        "best_of": PerScale((8, 128), (8, 128), (2,)),
        "rates": PerScale((0.05, 0.15), (0.05, 0.15), (1e-3,)),
        "search_seeds": 1,
        "labels": PerScale(200, 200, 16),
        "steps": PerScale(8, 8, 2),
        "prompts": 4,
    }

    def check(self) -> None:
        """Refuse temperatures that do not increase from 0 to 1, and too few samples, prompts or labels."""
        increasing = list(self.temperatures) == sorted(set(self.temperatures))
        if not increasing or self.temperatures[:1] != (0.0,) or self.temperatures[-1] != 1.0:
            raise LabError(f"temperatures must increase from 0 to 1, not {self.temperatures}.")
        if not self.best_of or min(self.best_of) < 2 or not self.rates:
            raise LabError("best_of needs at least one n, each at least 2, and rates at least one learning rate.")
        if self.prompts < 2 or self.labels < 8:
            raise LabError("The experiment needs at least 2 prompts and 8 labels.")
