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
from rlhf_lab.training.config import Training
from rlhf_lab.training.parts import parts_of, sum_over_processes, weight_in

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

    def note_best(self, history: list[dict[str, float]], module: nn.Module, out: Path | None, run: str) -> None:
        """Remember a run's best measurement as `best`, if no other round has had a better one.

        Args:
            history: of the run.
            module: which it trains.
            out: its output folder, if it has one.
            run: its name.
        """
        if not (rows := self.measured(history)):
            return
        row = max(rows, key=self.value)
        # What is on the disk counts, should a GPU have measured something else before the run was stopped.
        folder, step, row = (None if out is None else checkpoint.best(out)) or (None, int(row["step"]), row)
        if self.best is None or self.value(row) > self.value(self.best.row):
            self.best = Best(step, row, module, folder, run)


@torch.no_grad()
def measure(evaluation: Evaluation, training: Training, precision: Callable[[], Any]) -> dict[str, float]:
    """Return the means of the held-out metrics over all rows, which the processes divide among themselves.

    Args:
        evaluation: what is measured.
        training: its `batch_size` rows are computed together, in `accumulate` parts.
        precision: makes the context in which the metrics are computed.
    """
    total, whole = dict[str, Any](), 0.0
    for rows in evaluation.chunks(training.batch_size):
        with precision():
            batch = evaluation.batch(rows)
        weight = weight_in(batch)
        size = float(len(rows) if weight is None else weight.sum())
        for part, share, _ in parts_of(batch, None, training.accumulate) if size else []:
            with precision():
                loss, seen = evaluation.measure(*part)
            for name, number in (seen if loss is None else {"loss": loss, **seen}).items():
                total[name] = torch.as_tensor(number).double() * (share * size) + total.get(name, 0.0)
        whole += size
    sums = sum_over_processes(list(total.values()))
    return plain_numbers({name: number / whole for name, number in zip(total, sums, strict=True)})


def plain_numbers(metrics: Metrics) -> dict[str, float]:
    """Return metrics as plain numbers. A loss in nats per response also becomes one in nats per token."""
    row = {k: float(v.detach()) if isinstance(v, Tensor) else float(v) for k, v in metrics.items()}
    if "loss" in row and row.get("response_tokens"):
        row["loss_per_token"] = row["loss"] / row["response_tokens"]
    return row


def once(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return `function` of rows with a memory, for values that do not change during training, such as log π_ref."""
    known: dict[tuple[int, ...], Tensor] = {}

    def look_up(rows: Tensor) -> Tensor:
        key = tuple(rows.tolist())
        if key not in known:
            known[key] = function(rows)
        return known[key]

    return look_up
