"""Settings of the experiment on RSO's Table 1, its conditions, and the decision rule in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlhf_lab.errors import LabError, Natural, NonNegative
from rlhf_lab.experiments.rso_common import LOSSES, SOURCES, Cell, RSOSettings, cells
from rlhf_lab.experiments.settings import Defaults, PerScale
from rlhf_lab.experiments.setup_text import UNITS

RULE = """The rule compares win rates by the judge in the paper's cell, with the loss sigmoid-norm and within seeds.
The paper's cell has γ = 0.05, hard labels, the reward model with many labels, and short training. The three
comparisons have t intervals over seeds, corrected by Holm's procedure at 95%.

- Comparison 1, the main one: rso-sample-rank minus sft-sample-rank.
- Comparison 2: sft-sample-rank minus direct.
- Comparison 3: rso-sample-rank minus RAFT.

The claim is supported if interval 1 is above zero and no other interval is below zero. It is not supported if
interval 1 is below zero and no other interval is above zero. It is partly supported if interval 1 excludes zero and
another interval lies on the other side of zero. It is inconclusive if interval 1 contains zero. With several tasks
the rule is applied to each, and the claim is partly supported if the tasks differ. Wins by the gold reward and by the
reward model, J, and all other cells are reported and do not decide."""


@dataclass(frozen=True)
class RowCondition:
    """One row of the table in one cell of the design."""

    row: str
    """One of reference, raft and rest, or a loss and a source of pairs with a space between."""
    cell: Cell
    """Settings of the loss, the labels, the reward model and the training."""

    @property
    def source(self) -> str:
        """The source of the pairs, or the row itself where there are none."""
        return self.row.partition(" ")[2] or self.row

    @property
    def loss(self) -> str:
        """The loss of the fit."""
        if self.source in SOURCES:
            return self.row.partition(" ")[0]
        return "none" if self.row == "reference" else "cross-entropy"

    @property
    def key(self) -> str:
        """The name of the condition in the tables: the row, and those settings of the cell on which it depends."""
        c = self.cell
        words: list[str] = [c.key]
        if self.source not in SOURCES:
            words = [] if self.row == "reference" else [c.reward_model, c.length]
        elif self.source == "direct":
            words = [f"γ={c.gamma:g}", c.length]
        return " ".join([self.row, *words])


@dataclass(frozen=True, init=False, kw_only=True)
class RSOTable(RSOSettings):
    """Rerun RSO's Table 1 (RAFT, ReST, three losses on three sources of pairs) at the paper's settings and others."""

    tasks: tuple[str, ...]
    """Text: the text worlds. Summaries and dialogue take the place of the paper's TL;DR and HH."""
    accepted: Natural
    """Number of the candidates that are paired. Eight make four first-round pairs, as in the paper."""
    threshold: NonNegative
    """Threshold of ReST's Improve step, on rewards scaled to [0, 1]. RAFT trains on the best candidate."""

    DEFAULTS: ClassVar[Defaults] = {
        **RSOSettings.DEFAULTS,
        "tasks": PerScale(("bandit",), ("tree",), ("summaries",)),
        "accepted": 8,
        "threshold": 0.7,
    }
    QUICK: ClassVar[Defaults] = {**RSOSettings.QUICK, "candidates": 16}

    def check(self) -> None:
        """Refuse tasks of another scale and numbers that contradict each other."""
        super().check()
        if self.exact and self.tasks != (self.scale,):
            raise LabError(f"tasks are for language models. The scale '{self.scale}' has none.")
        if unknown := [task for task in self.tasks if not self.exact and task not in UNITS]:
            raise LabError(f"Unknown tasks {', '.join(unknown)}. There are: {', '.join(UNITS)}.")
        if not 2 <= self.accepted <= self.candidates or self.accepted % 2:
            raise LabError(f"accepted must be even and between 2 and candidates ({self.candidates}).")
        if not self.threshold < 1:
            raise LabError(f"threshold must be less than 1, not {self.threshold}.")
        if self.pairs > self.labels:
            raise LabError(f"pairs ({self.pairs}) must be at most labels ({self.labels}).")

    @property
    def design(self) -> list[Cell]:
        """The cells: all combinations on exact scales; on text the paper's cell and one change at a time."""
        return cells(self.paper_gamma, self.beta, self.exact)

    @property
    def expected(self) -> list[Cell]:
        """The cells with a fit to infinitely many pairs: the paper's γ, and sampled labels, which have a limit."""
        return [Cell(self.paper_gamma, "sampled", "many", length) for length in ("short", "long")]

    @property
    def conditions(self) -> list[RowCondition]:
        """Every condition once: the whole table in the paper's cell, and RAFT and sigmoid-norm in the others."""
        paper = self.design[0]
        found = [RowCondition("reference", paper), RowCondition("raft", paper), RowCondition("rest", paper)]
        found += [RowCondition(f"{loss} {source}", paper) for loss in LOSSES for source in SOURCES]
        rows = ("raft", *(f"sigmoid-norm {source}" for source in SOURCES))
        found += [RowCondition(row, cell) for cell in self.design[1:] for row in rows]
        once: dict[str, RowCondition] = {}
        for one in found:
            once.setdefault(one.key, one)
        return list(once.values())
