"""Held-out evaluation during training: what is measured, on which rows, and which measurement is the best one.

A method describes its evaluation by an `Evaluation`, which it passes to the `Loop`. The loop measures it before the
first step, after every `training.eval_every` steps and after the last one. It stores the weights of the best
measurement, and ends the training after `training.patience` measurements without a better one. The measurements are
rows of the history, in which the names of the metrics start with `eval_`. Both decisions are functions of the history,
so a resumed run decides as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_lab.training import checkpoint

Metrics = dict[str, Tensor | float]
"""Numbers to log, by name."""
PREFIX = "eval_"
"""Start of the names of held-out metrics in the history."""


@dataclass(frozen=True)
class Best:
    """The best measurement of a run.

    Attributes:
        step: number of optimiser steps before it.
        row: its entry of the history.
        module: the module that was trained.
        folder: its weights, a folder that `load` reads; None if the run has no output folder.
        run: name of the run or of its round.
    """

    step: int
    row: dict[str, float]
    module: nn.Module
    folder: Path | None
    run: str

    def load(self) -> None:
        """Load the weights into the module. The weights that it has now are lost."""
        assert self.folder is not None
        checkpoint.load_weights(self.folder, self.module)


@dataclass
class Evaluation:
    """What a training run measures on held-out data.

    Attributes:
        number: number of held-out rows.
        batch: `(rows) → arguments of measure` for some rows, whose first axis are the rows. All processes call it, with
            the same rows.
        measure: `(*arguments) → (loss, metrics)`, means over the rows, such as the loss function of the training. The
            loss is None where there is none.
        best_by: name of the metric, without `eval_`, that decides which weights are the best.
        higher: whether higher values of it are better.
        best: the best measurement up to now. Methods with several rounds share one `Evaluation`, so it is the best one
            of all rounds.
    """

    number: int
    batch: Callable[[Tensor], tuple[Any, ...]]
    measure: Callable[..., tuple[Tensor | None, Metrics]]
    best_by: str = "loss"
    higher: bool = False
    best: Best | None = None

    @classmethod
    def of_rows(cls, measure: Callable[..., tuple[Tensor | None, Metrics]], *data: Any, best_by: str) -> Evaluation:
        """Measure a function of the same rows of several data, such as the loss of held-out pairs.

        Args:
            measure: see the class.
            data: tensors, `Tokens` or `Pairs` with the same number of rows.
            best_by: see the class.
        """
        return cls(len(data[0]), lambda rows: tuple(part[rows] for part in data), measure, best_by)

    def chunks(self, size: int) -> Iterator[Tensor]:
        """Return the rows in order, `size` at a time."""
        return iter(torch.arange(self.number).split(size))

    def value(self, row: dict[str, float]) -> float:
        """Return the number that decides, as one of which more is better."""
        value = row[PREFIX + self.best_by]
        return value if self.higher else -value

    def measured(self, history: list[dict[str, float]]) -> list[dict[str, float]]:
        """Return the entries of a history that are measurements."""
        return [row for row in history if PREFIX + self.best_by in row]

    def waited(self, history: list[dict[str, float]]) -> int:
        """Return the number of measurements since the best one. Of equal ones the first counts."""
        values = [self.value(row) for row in self.measured(history)]
        return len(values) - 1 - values.index(max(values)) if values else 0


def once(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return `function` of rows with a memory, for values that do not change during training, such as log π_ref."""
    known: dict[tuple[int, ...], Tensor] = {}

    def look_up(rows: Tensor) -> Tensor:
        key = tuple(rows.tolist())
        if key not in known:
            known[key] = function(rows)
        return known[key]

    return look_up
