"""Settings of claim 12, on pairs that do not cover all responses, and its decision rule in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlhf_lab.errors import Count, Fraction, LabError, Positive
from rlhf_lab.experiments.settings import Defaults, PerScale, Settings

CLASSES = ("table", "shared")
"""Policy classes: a logit for each next token of each prefix, or logits that share parameters."""
MASKS = ("optimal", "rest", "rare")
"""Masked responses: the likeliest of π* with together at least `HALF` of its mass; the least likely of π* with together
at most `LITTLE` of its mass; the least likely of the mean of π_ref and π* with together at most `LITTLE` of its mass.
One response at least and half of all responses at most are masked. In the second case the pairs cover what π* does, and
in the third also what π_ref does."""
HALF, LITTLE = 0.5, 0.05
METHODS = ("offline", "rounds", "rlhf")
"""Offline DPO, DPO in rounds, and RLHF: a reward model of the same labels as offline DPO, then the exact optimum."""

RULE = f"""Three comparisons of regrets are made within worlds, each by the mean of a log ratio at equal numbers of
labels, and their intervals are corrected by Holm's procedure.

- DPO in rounds is compared with offline DPO, with tables. The masked responses have at least {HALF:.0%} of the mass of
  π*, and no offline pair contains them.
- The same comparison is made with policies that share parameters.
- RLHF is compared with offline DPO, with tables. The masked responses have at most {LITTLE:.0%} of the mean mass of
  π_ref and π*, so that the pairs cover both.

A comparison counts for the claim if its interval is below zero, and against it if the interval is above. The claim is
supported if all count for it and partly supported if some do. It is not supported if none does and one counts against
it, and otherwise it is inconclusive."""


@dataclass(frozen=True, init=False, kw_only=True)
class Coverage(Settings):
    """Compare offline DPO, DPO in rounds and RLHF on pairs from which responses are masked."""

    beta: Positive
    """β of the objective, of the loss and of RLHF."""
    coverages: tuple[Fraction, ...]
    """Factors of the probability with which a masked response is drawn for the offline pairs: 0 leaves it out, and 1
    draws pairs from π_ref."""
    labels: Count
    """Labels of each method. DPO in rounds takes equal parts of them in each round, the first part offline."""
    rounds: Count
    """Rounds of DPO. The first one has offline pairs, a further one pairs of the policy fitted to all labels so far."""
    prior: Positive
    """Standard deviation of the normal prior on every parameter, in units of reward. It keeps all fits finite."""

    DEFAULTS: ClassVar[Defaults] = {
        "seeds": PerScale(100, 40),
        "beta": 0.5,
        "coverages": (0.0, 0.01, 0.1, 1.0),
        "labels": PerScale(400, 1600),
        "rounds": 4,
        "prior": 3.0,
    }
    QUICK: ClassVar[Defaults] = {"seeds": 2, "coverages": (0.0, 1.0), "labels": PerScale(100, 200), "rounds": 2}

    def check(self) -> None:
        """Refuse coverages without the rule's, and labels that cannot be divided among the rounds."""
        if 0.0 not in self.coverages or self.labels % self.rounds:
            raise LabError(
                f"coverages must contain 0, and labels ({self.labels}) must be a multiple of rounds ({self.rounds})."
            )
