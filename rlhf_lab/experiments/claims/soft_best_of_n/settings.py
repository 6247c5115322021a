"""Settings of claim 14, on soft best-of-n and RSO, and its decision rule in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlhf_lab.errors import LabError, Natural, Positive
from rlhf_lab.experiments.settings import Defaults, PerScale, Settings

COMPARED = 8
"""Draws of π_ref per response at which the methods are compared. The paper's RSO accepts 8 of 64 candidates."""

RULE = f"""Three comparisons are made within worlds, and their intervals are corrected by Holm's procedure.

- The slope of log KL(π‖π*) in log n for soft best-of-n, over the largest numbers of candidates. It is compared with
  −1, the rate that the source proves.
- The logarithm of the regret of soft best-of-{COMPARED} divided by that of best-of-{COMPARED}, compared with 0.
- The logarithm of the regret of RSO divided by that of soft best-of-{COMPARED}, compared with 0. RSO accepts
  {COMPARED} of {COMPARED * COMPARED} candidates, so both take as many draws of π_ref for each response.

A comparison counts for the claim if its interval is below the value compared with, and against it if the interval is
above. The claim is supported if all count for it and partly supported if some do. It is not supported if none does
and one counts against it, and otherwise it is inconclusive."""


@dataclass(frozen=True, init=False, kw_only=True)
class SoftBestOfN(Settings):
    """Compare the exact distributions of best-of-n, soft best-of-n and RSO with π*."""

    beta: Positive
    """β of the objective, of soft best-of-n and of RSO's rejection sampling, in units of reward."""
    draws: tuple[Natural, ...]
    """Draws of π_ref per response. Best-of-n and soft best-of-n take 1 response of n, RSO `accepted` of n·accepted."""
    accepted: Natural
    """Responses that RSO accepts."""
    slope_from: Natural
    """The slope of the KL in n is fitted from this number of draws on."""

    DEFAULTS: ClassVar[Defaults] = {
        "seeds": PerScale(40, 20),
        "beta": 0.5,
        "draws": (1, 2, 4, 8, 16, 32, 64, 128, 256),
        "accepted": COMPARED,
        "slope_from": 32,
    }
    QUICK: ClassVar[Defaults] = {"seeds": 2, "draws": (1, 8, 32, 64)}

    def check(self) -> None:
        """Refuse numbers of draws without the compared one or without a slope."""
        if COMPARED not in self.draws or sum(n >= self.slope_from for n in self.draws) < 2:
            raise LabError(
                f"draws must contain {COMPARED}, and two numbers of at least slope_from ({self.slope_from})."
            )
