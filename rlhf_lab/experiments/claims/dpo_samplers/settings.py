"""Settings of claim 11, on the samplers of pairs and DPO's speed of convergence, and its decision rule in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlhf_lab.errors import Count, LabError, Positive
from rlhf_lab.experiments.settings import SEARCH_SEED, Defaults, PerScale, Settings

SAMPLERS = ("uniform", "reference", "current", "optimal", "mixture")
"""Pairs of uniform responses, of π_ref, of the current policy and of π*; and uniform pairs together with pairs whose
responses are reweighted by exp(r̂) and exp(−r̂)."""
SEARCH_SEEDS = tuple(range(SEARCH_SEED, SEARCH_SEED + 4))
"""Worlds on which the step sizes are chosen. No result uses them."""
TARGET = 1e-4
"""A run has converged when its regret is this share of that of π_ref."""
CONSECUTIVE = 10
"""The regret is stored at each of the first so many exact steps, from which the order of convergence is computed."""

RULE = f"""Three comparisons are made within worlds. Each is the mean of a log ratio, and their intervals are
corrected by Holm's procedure.

- The number of exact gradient steps until the regret is {TARGET:g} of that of π_ref, with the mixture divided by that
  with uniform pairs. A run that does not get there counts with all its steps.
- The regret after rounds of labels with a fit in each round, with pairs of the current policy divided by that with
  pairs of π_ref.
- The regret after gradient steps on sampled labels, with the mixture divided by that with uniform pairs.

A comparison counts for the claim if its interval is below zero, and against it if the interval is above zero. The
claim is supported if all count for it and partly supported if some do. It is not supported if none does and one
counts against it, and otherwise it is inconclusive."""


@dataclass(frozen=True, init=False, kw_only=True)
class DPOSamplers(Settings):
    """Compare how fast DPO converges on pairs of five samplers: exact gradients, sampled labels, rounds of labels."""

    beta: Positive
    """β of the objective and of the loss."""
    steps: Count
    """Exact gradient steps."""
    sampled_steps: Count
    """Gradient steps on sampled labels, with a step size that falls linearly to zero."""
    batch: Count
    """Sampled labels in a step."""
    rounds: Count
    """Rounds of labels, with a fit to all labels after each."""
    labels: Count
    """Labels in a round."""
    rates: tuple[Positive, ...]
    """Step sizes which the search tries for each sampler, in units of 1/λ, where λ is the largest eigenvalue of the
    Hessian of its loss at π_ref. Sampled labels take a tenth of them as well."""

    DEFAULTS: ClassVar[Defaults] = {
        "seeds": PerScale(40, 20),
        "beta": 0.5,
        "steps": 1000,
        "sampled_steps": 500,
        "batch": 32,
        "rounds": 8,
        "labels": PerScale(100, 400),
        "rates": (0.5, 1.0, 2.0, 4.0, 8.0),
    }
    QUICK: ClassVar[Defaults] = {"seeds": 2, "steps": 20, "sampled_steps": 10, "rounds": 2, "rates": (1.0, 2.0)}

    def check(self) -> None:
        """Refuse an empty list of step sizes."""
        if not self.rates:
            raise LabError("rates must contain at least one step size.")
