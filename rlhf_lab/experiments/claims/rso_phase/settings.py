"""Settings of the phase diagram of pairs from π_r, and its decision rule in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlhf_lab.errors import LabError, Positive, check_beta
from rlhf_lab.experiments.settings import Defaults, PerScale, Settings

CELL = (0.1, 0.5)
"""The rule reads the cell with this share of misfit, and with RSO's β."""

RULE = f"""The rule compares the regret of DPO's limit with pairs from π_r and with pairs from π_ref within worlds. It
does so at β = γ = {CELL[1]:g}, for a policy class that misses {CELL[0]:.0%} of the reward's variance, and for three
kinds of misfit: independent noise, a saturating reward and an accelerating reward. The mean log ratio of the two
regrets has one interval for each kind, and the three intervals are corrected by Holm's procedure. A kind counts for
the claim if its interval is below zero, and against it if the interval is above zero.

The claim is supported if all three kinds count for it and partly supported if some do. It is not supported if none
does and one counts against it, and otherwise it is inconclusive. The intervals of the whole map are corrected for the
number of its cells and do not decide."""


@dataclass(frozen=True, init=False, kw_only=True)
class RSOPhase(Settings):
    """Map where pairs from π_r lower the regret of a restricted policy, by size and kind of its misfit and by β."""

    shares: tuple[Positive, ...]
    """Shares of the reward's variance that the class misses."""
    betas: tuple[Positive, ...]
    """β of the objective, of π_r and of the loss, in units of the reward's standard deviation."""

    DEFAULTS: ClassVar[Defaults] = {
        "seeds": PerScale(100, 40),
        "shares": (0.01, 0.03, 0.1, 0.3, 0.6),
        "betas": (0.1, 0.2, 0.5, 1.0, 2.0),
    }
    QUICK: ClassVar[Defaults] = {"seeds": 3, "shares": (0.1, 0.6), "betas": (0.5, 2.0)}

    def check(self) -> None:
        """Refuse a map without the rule's cell, and shares of 1 or more."""
        for beta in self.betas:
            check_beta(beta)
        if CELL[0] not in self.shares or CELL[1] not in self.betas or max(self.shares) >= 1:
            raise LabError(f"shares must be below 1 and contain {CELL[0]:g}, and betas must contain {CELL[1]:g}.")
