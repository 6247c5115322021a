"""Settings of claim 5, its conditions, and the decision rule in words."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from rlhf_lab.errors import LabError, Natural, NonNegative, Positive
from rlhf_lab.experiments.rso_common import Cell, RSOSettings, cells
from rlhf_lab.experiments.settings import Defaults, PerScale
from rlhf_lab.experiments.setup_text import UNITS
from rlhf_lab.preferences import Pairing

SFT = math.inf
"""β of the sampler at which no candidate is rejected, which is sft-sample-rank."""

RULE = """The rule makes three comparisons of the paper's Figure 3 by its metric, the win rate by the reward model.
They are made within seeds, and their t intervals are corrected by Holm's procedure at 95%.

- Comparison 1: β = 0.5 minus β = 0 of the sampler, in the paper's cell (γ = 0.05, hard labels, the reward model with
  many labels, short training).
- Comparison 2: β = 0.5 minus β = 5 of the sampler, in the same cell.
- Comparison 3: γ = 0.05 minus γ = 0.5 of the loss, at β = 0.5, after long training on sampled labels. With hard
  labels or short training both values of γ lead to the same KL, so nothing would be tested.

The claim is supported if at least two intervals are above zero and none is below. It is not supported if at least two
are below zero and none is above. It is inconclusive if at most one interval excludes zero, and otherwise partly
supported. Wins by the judge and by the gold reward, J, all other cells, and the rows of Table 2 are reported and do
not decide."""


@dataclass(frozen=True)
class Condition:
    """One way to make pairs and to fit them. Everything else is the same in all conditions."""

    beta: float
    """β of the sampler; inf takes the candidates of π_ref without rejection."""
    cell: Cell
    """Slope of the loss, labels, reward model and length of training."""
    accepted: int = 8
    """Number of responses that are paired."""
    pairing: Pairing = "first-round"
    """first-round or tournament."""

    @property
    def key(self) -> str:
        """The name of the condition in the tables."""
        return f"β={self.beta:g} {self.cell.key} {self.accepted} {self.pairing}"


@dataclass(frozen=True, init=False, kw_only=True)
class RSOHyperparameters(RSOSettings):
    """Vary RSO's β and γ (its Figure 3), and candidates and ranking (its Table 2)."""

    task: str
    """Text: the text world."""
    betas: tuple[NonNegative, ...]
    """Values of β of the sampler. `beta` is always run too."""
    gammas: tuple[Positive, ...]
    """Values of γ of the loss. `beta` and `paper_gamma` are always run too."""
    candidates: Natural
    """Responses of π_ref to each prompt, a power of two."""

    DEFAULTS: ClassVar[Defaults] = {
        **RSOSettings.DEFAULTS,
        "task": PerScale("bandit", "tree", "summaries"),
        "betas": (0.0, 0.05, 0.5, 5.0),
        "gammas": (0.005, 0.05, 0.5),
    }

    def check(self) -> None:
        """Refuse a number of candidates without a tournament, and an unknown task."""
        super().check()
        if self.candidates < 16 or self.candidates & (self.candidates - 1):
            raise LabError(
                f"candidates must be a power of two of at least 16, so that all can play a tournament, not "
                f"{self.candidates}."
            )
        if not self.exact and self.task not in UNITS:
            raise LabError(f"Unknown task '{self.task}'. There are: {', '.join(UNITS)}.")

    @property
    def samplers(self) -> tuple[float, ...]:
        """Every β of the sampler in increasing order."""
        return tuple(sorted({*self.betas, self.beta}))

    @property
    def slopes(self) -> tuple[float, ...]:
        """Every γ in increasing order."""
        return tuple(sorted({*self.gammas, self.beta, self.paper_gamma}))

    @property
    def gamma_cell(self) -> Cell:
        """The cell in which the rule compares two values of γ: sampled labels and long training."""
        return Cell(self.paper_gamma, "sampled", "many", "long")

    @property
    def design(self) -> list[Cell]:
        """The cells, all at the paper's γ: the paper's first, then on exact scales all, on text `gamma_cell`."""
        every = cells(self.paper_gamma, self.beta, every=True)
        return [
            one for one in every if one.gamma == self.paper_gamma and (self.exact or one in (every[0], self.gamma_cell))
        ]

    @property
    def rankings(self) -> dict[str, Condition]:
        """The rows of the paper's Table 2 in the paper's cell: candidates and ranking."""
        kinds = {"sft-8": (SFT, 8), "rso-8": (self.beta, 8), "sft-64": (SFT, self.candidates)}
        pairings: tuple[Pairing, ...] = ("first-round", "tournament")
        return {
            f"{kind} {pairing}": Condition(beta, self.design[0], accepted, pairing)
            for kind, (beta, accepted) in kinds.items()
            for pairing in pairings
        }

    def figure_3(self, cell: Cell) -> list[Condition]:
        """Return the conditions of the paper's Figure 3 in a cell: every β of the sampler, and every γ of the loss."""
        found = [Condition(beta, cell) for beta in self.samplers]
        return found + [Condition(self.beta, replace(cell, gamma=gamma)) for gamma in self.slopes]

    @property
    def conditions(self) -> list[Condition]:
        """Every condition once, those of the paper's cell first."""
        every = [*self.figure_3(self.design[0]), *self.rankings.values()]
        for cell in self.design[1:]:
            every += self.figure_3(cell)
        return list(dict.fromkeys(every))
