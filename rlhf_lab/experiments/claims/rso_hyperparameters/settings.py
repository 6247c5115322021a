"""Settings of claim 5, its conditions, and the decision rule in words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from rlhf_lab.errors import LabError, Natural, NonNegative, Positive, check_beta
from rlhf_lab.experiments.settings import Defaults, PerScale, Settings
from rlhf_lab.experiments.setup_text import UNITS
from rlhf_lab.preferences import Pairing

SFT = math.inf
"""β of the sampler at which no candidate is rejected, which is sft-sample-rank."""

RULE = (
    "The rule has four parts, paired within seeds. By the win rate of the judge: (1) β = 0.5 wins more than β = 0 and "
    "more than no rejection; (2) γ = 0.05 wins more than γ = β = 0.5; (3) with first-round pairs, rso-8 wins more than "
    "sft-8 and than sft-64. By the win rate of the reward model: (4) a tournament wins more than a first round with "
    "each of the three. A part is supported if all its 95% intervals are above zero, partly supported if some are, not "
    "supported if none is above and at least one is below zero, and otherwise inconclusive. The claim is supported if "
    "all four parts are. It is not supported if part 1 is not supported, or if no part is supported or partly "
    "supported and at least one is not supported. It is inconclusive if all parts are, and otherwise partly supported."
)


@dataclass(frozen=True)
class Condition:
    """One way to make pairs and to fit them. Everything else is the same in all conditions."""

    beta: float
    """β of the sampler; inf takes the candidates of π_ref without rejection."""
    gamma: float
    """γ, the slope of the loss."""
    accepted: int = 8
    """Number of responses that are paired."""
    pairing: Pairing = "first-round"
    """first-round or tournament."""

    @property
    def key(self) -> str:
        """The name of the condition in the tables."""
        return f"β={self.beta:g} γ={self.gamma:g} {self.accepted} {self.pairing}"


@dataclass(frozen=True, init=False, kw_only=True)
class RSOHyperparameters(Settings):
    """Vary RSO's β, γ, number of candidates, and ranking (first-round or tournament)."""

    task: str
    """Text: the text world."""
    beta: Positive
    """β of the objective. It is also the β of the sampler and the γ of the loss wherever these are not varied."""
    betas: tuple[NonNegative, ...]
    """Values of β of the sampler. 0, `beta` and no rejection are always run too."""
    gammas: tuple[Positive, ...]
    """Values of γ of the loss. `beta` and `paper_gamma` are always run too."""
    paper_gamma: Positive
    """The γ which the paper uses with β = 0.5."""
    labels: Natural
    """Number of preference labels."""
    prompts: Natural
    """Number of prompts to which responses are sampled."""
    candidates: Natural
    """Responses of π_ref to each prompt, a power of two."""
    steps: Natural
    """Optimiser steps of every fit."""
    batch: Natural
    """Pairs in an optimiser step."""
    rates: tuple[Positive, ...]
    """Learning rates which the search tries."""
    reward_steps: Natural
    """Optimiser steps of the reward model."""
    test_prompts: Natural
    """Text: number of test prompts."""
    test_samples: Natural
    """Text: responses to each test prompt."""

    DEFAULTS: ClassVar[Defaults] = {
        "seeds": PerScale(20, 5, 4),
        "task": PerScale("bandit", "tree", "summaries"),
        "beta": 0.5,
        "betas": PerScale((0.0, 0.1, 0.25, 0.5, 1.0, 2.0), (0.0, 0.1, 0.25, 0.5, 1.0, 2.0), (0.0, 0.5, 2.0)),
        "gammas": PerScale((0.05, 0.15, 0.25, 0.5, 1.0, 2.0), (0.05, 0.15, 0.25, 0.5, 1.0, 2.0), (0.05, 0.5, 2.0)),
        "paper_gamma": 0.05,
        "labels": PerScale(400, 5000, 384),
        "prompts": PerScale(500, 2000, 64),
        "candidates": 64,
        "steps": PerScale(150, 150, 24),
        "batch": PerScale(4096, 4096, 16),
        "rates": PerScale((0.02, 0.05, 0.15), (0.02, 0.05, 0.15), (1e-4, 3e-4, 1e-3)),
        "reward_steps": PerScale(150, 150, 80),
        "test_prompts": 64,
        "test_samples": 4,
    }
    QUICK: ClassVar[Defaults] = {
        "seeds": 2,
        "labels": PerScale(200, 200, 16),
        "prompts": PerScale(50, 50, 4),
        "steps": PerScale(5, 5, 1),
        "batch": PerScale(4096, 4096, 4),
        "rates": PerScale((0.05,), (0.05,), (3e-4,)),
        "reward_steps": PerScale(20, 20, 2),
        "test_prompts": 4,
        "test_samples": 2,
    }

    def check(self) -> None:
        """Refuse a number of candidates without a tournament, and an unknown task."""
        check_beta(self.beta)
        if self.candidates < 16 or self.candidates & (self.candidates - 1):
            raise LabError(
                f"candidates must be a power of two of at least 16, so that all can play a tournament, not "
                f"{self.candidates}."
            )
        if not self.exact and self.task not in UNITS:
            raise LabError(f"Unknown task '{self.task}'. There are: {', '.join(UNITS)}.")

    @property
    def samplers(self) -> tuple[float, ...]:
        """Every β of the sampler in increasing order; the last one rejects nothing."""
        return (*sorted({*self.betas, 0.0, self.beta}), SFT)

    @property
    def slopes(self) -> tuple[float, ...]:
        """Every γ in increasing order."""
        return tuple(sorted({*self.gammas, self.beta, self.paper_gamma}))

    @property
    def base(self) -> Condition:
        """rso-8, first-round, with β and γ equal to the β of the objective."""
        return Condition(self.beta, self.beta)

    @property
    def rankings(self) -> dict[str, Condition]:
        """The rows of the paper's Table 2: candidates and ranking."""
        kinds = {"sft-8": (SFT, 8), "rso-8": (self.beta, 8), "sft-64": (SFT, self.candidates)}
        pairings: tuple[Pairing, ...] = ("first-round", "tournament")
        return {
            f"{kind} {pairing}": Condition(beta, self.beta, accepted, pairing)
            for kind, (beta, accepted) in kinds.items()
            for pairing in pairings
        }

    @property
    def conditions(self) -> list[Condition]:
        """Every condition once, the base first."""
        every = [self.base, *(Condition(beta, self.beta) for beta in self.samplers)]
        every += [Condition(self.beta, gamma) for gamma in self.slopes]
        return list(dict.fromkeys([*every, *self.rankings.values()]))
