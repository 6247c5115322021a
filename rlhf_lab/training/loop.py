"""The training loop of all methods: optimiser steps, metrics, checkpoints, resumption, checks for nan, interruption.

A method contains its `for` statement, so that it reads like the lecture's pseudo-code:

    with Loop("dpo", policy, training, settings) as loop:
        for step, generator in loop:
            rows = loop.rows(len(data))
            loop.update(loss_of, batch=(data[rows],))

`loss_of(data)` returns the mean loss of some rows, and metrics. Because the loop gets the function and the rows
separately, it can divide the rows: into parts that are computed one after the other to save memory, and among several
processes. The gradient of each part is weighted by its fraction of the rows, so the step is the same up to rounding.

The generator of a step is seeded by (seed, step) and does not depend on earlier steps. A resumed run therefore draws
the same random numbers as an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from rlhf_lab.errors import LabError, count_of
from rlhf_lab.randomness import Stream
from rlhf_lab.training import checkpoint, distributed, finite, memory, output_folder
from rlhf_lab.training.config import Training
from rlhf_lab.training.evaluation import PREFIX, Evaluation, Metrics, measure, plain_numbers
from rlhf_lab.training.parts import BatchPart, parts_of, sum_over_processes, tokens_of
from rlhf_lab.training.rows import rows_at, seeded
from rlhf_lab.training.tracking import Trackers

Loss = Tensor | Callable[..., tuple[Tensor, Metrics]]
"""A loss, or a function that computes it and metrics."""


FIRST_SHOWN = ("loss", "loss_per_token", "reward", "score", "kl", "accuracy", "objective")
"""Metrics that the progress bar shows first."""
SPEED = "tokens_per_second"
"""The only number of the history that is not a function of the seed. Only a run with an output folder has it."""
FUSED = 2**18
"""Number of weights from which Adam's fused kernel is used. Smaller models do not become faster."""


class Loop:
    """The steps of one training run of `module`. Several modules are passed as an `nn.ModuleDict`.

    Attributes:
        history: one dictionary of numbers for each logged step, and one for each measurement on held-out data. `step`
            is the number of steps before it.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        training: Training,
        settings: Any = None,
        evaluation: Evaluation | None = None,
    ) -> None:
        """Prepare a run, and load its last checkpoint if it is resumed.

        Args:
            name: name of the run in the progress bar and in messages.
            module: module that is trained and saved.
            training: settings that all methods share.
            settings: settings of the method, which are stored with the run.
            evaluation: what is measured on held-out data. None: nothing.

        Raises:
            LabError: no parameter requires a gradient; the output folder contains another run; a checkpoint cannot be
                read; patience without an evaluation.
        """
        self.name, self.module, self.training, self.evaluation = name, module, training, evaluation
        if training.patience is not None and evaluation is None:
            raise LabError(f"{name}: patience={training.patience} needs held-out data. Pass evaluation=….")
        if not any(p.requires_grad for p in module.parameters()):
            raise LabError(f"{name}: nothing to train, no parameter requires a gradient. Pass policy.copy().")
        self.history: list[dict[str, float]] = []
        self.start = self.done = 0
        self._rows: Tensor | None = None
        self._metrics: Metrics = {}
        self._loss = torch.zeros(())
        self._tokens: Tensor | float = 0
        self._stop_asked = self._autocast_used = False
        self._has_dropout = any(getattr(part, "adapter_dropout", 0.0) > 0 for part in module.modules())
        self._open = ExitStack()
        distributed.init_process_group()
        out = training.out
        record = {"method": name, "training": training, "settings": settings}
        try:
            if out is not None and not output_folder.is_claimed(out):
                self._open.enter_context(output_folder.hold(out, record, training.resume))
            distributed.broadcast_parameters(module)
            self._open.enter_context(distributed.fully_sharded(module))
            self.parameters = [p for p in module.parameters() if p.requires_grad]
            self.optimizer = _optimizer(self.parameters, training)
            if training.gradient_checkpointing:
                self._open.enter_context(memory.checkpoint_activations(module, name))
            found = checkpoint.latest(out) if out is not None and training.resume else None
            if found is not None:
                state = checkpoint.load(found, module, self.optimizer)
                distributed.on_main_process(lambda: checkpoint.drop_old(found.parent))
                self.start = self.done = state["step"]
                self.history = state["history"]
                self._note_best()
            self.trackers = Trackers(training, name, checkpoint.plain(record))
        except BaseException:
            self._open.close()
            raise

    def __enter__(self) -> Loop:
        self.bar = tqdm(
            total=self.training.steps, initial=self.start, desc=self.name, leave=False,
            disable=not distributed.shows_progress(self.training.progress),
        )  # fmt: skip
        self._since = time.perf_counter()
        self._old_handler = None
        if self.training.out is not None and threading.current_thread() is threading.main_thread():
            # The first Ctrl-C ends the run after the current step, so that a complete step is saved.
            self._old_handler = signal.signal(signal.SIGINT, self._ask_to_stop)
        return self

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        self.bar.close()
        self.trackers.close()
        if self._old_handler is not None:
            signal.signal(signal.SIGINT, self._old_handler)
        self._open.__exit__(kind, value, trace)
        if value is not None and memory.is_out_of_memory(value):
            self.optimizer.zero_grad(set_to_none=True)
            raise LabError(
                f"{self.name}: out of memory at step {self.done}. {memory.advice(self.training)}"
                f"{self._last_checkpoint()}"
            ) from None

    def _ask_to_stop(self, number: int, frame: Any) -> None:
        if self._stop_asked:
            raise KeyboardInterrupt(
                f"{self.name} stopped in the middle of a step. {checkpoint.what_was_saved(self.training.out)}"
            )
        self._stop_asked = True

    def __iter__(self) -> Iterator[tuple[int, torch.Generator]]:
        out = self.training.out
        for step in range(self.start, self.training.steps):
            if self._ends_early(step):
                break
            for group in self.optimizer.param_groups if self.training.optimizer != "lbfgs" else []:
                group["lr"] = self.training.learning_rate * self.training.rate_at(step)
            device = self.parameters[0].device
            self._rows = None
            yield step, seeded(self.training.seed, Stream.STEP, step, device=device)
            self.done = step + 1
            last = self.done == self.training.steps
            if logged := self._is_logged(step):
                self._log(step)
            self.bar.update()
            if last and self.evaluation is not None:
                self._evaluate(self.evaluation, self.done)
            # Several processes exchange the request to stop only at logged steps, where they wait for each other.
            stop = (
                self._stop_asked if distributed.world_size() == 1 else logged and distributed.any_rank(self._stop_asked)
            )
            if out is not None and (self.done % self.training.save_every == 0 or last or stop):
                self._refuse_nonfinite(self._loss, wait=True)
                self._refuse_nonfinite_weights()
                self._save(out)
            if stop and not last:
                raise KeyboardInterrupt(
                    f"{self.name} stopped after step {self.done} of {self.training.steps}, which is saved in {out}. "
                    f"Run again with --resume to continue."
                )
        if out is not None:
            lines = "".join(json.dumps(row) + "\n" for row in self.history)
            distributed.on_main_process(lambda: checkpoint.write_text(out / "history.jsonl", lines))

    def _save(self, out: Path) -> None:
        checkpoint.save(out, self.done, self.module, self.optimizer, {"history": self.history})

    def _ends_early(self, step: int) -> bool:
        """Measure the weights before `step` on held-out data if it is time, and return whether the training ends."""
        evaluation, patience, out = self.evaluation, self.training.patience, self.training.out
        if evaluation is None or step % self.training.eval_every:
            return False
        # A run that ended early and is resumed has this measurement in its checkpoint.
        fresh = all(row["step"] != step for row in evaluation.measured(self.history))
        if fresh:
            self._evaluate(evaluation, step)
        if patience is None or evaluation.waited(self.history) < patience:
            return False
        times = count_of(patience, "time")
        self.say(f"{self.name}: stopped early. The held-out {evaluation.best_by} has not improved {times}.")
        if fresh and out is not None:
            self._save(out)
        return True

    def _evaluate(self, evaluation: Evaluation, step: int) -> None:
        """Measure the present weights on held-out data, and store them if they are the best ones."""
        start = time.perf_counter()
        row = measure(evaluation, self.training, self._precision)
        bad = [name for name, value in row.items() if not math.isfinite(value)]
        if bad:
            raise LabError(self._nonfinite(f"the held-out {bad[0]} became {row[bad[0]]}"))
        self.history.append({"step": step, **{PREFIX + name: value for name, value in row.items()}})
        improved = evaluation.waited(self.history) == 0
        if improved:
            if self.training.out is not None:
                checkpoint.save_best(self.training.out, step, self.module, self.history[-1])
            self._note_best()
        best = " (the best)" if improved else ""
        self.say(f"{self.name}: after {count_of(step, 'step')}, held out: {_words(row)}{best}")
        self.trackers.log({PREFIX + name: value for name, value in row.items()}, step)
        self._since += time.perf_counter() - start  # not part of the speed of training

    def _note_best(self) -> None:
        if self.evaluation is not None:
            self.evaluation.note_best(self.history, self.module, self.training.out, self.name)

    def _is_logged(self, step: int | None = None) -> bool:
        """Whether `step`, by default the current one, has an entry in the history."""
        step = self.done if step is None else step
        return step % self.training.log_every == 0 or step + 1 == self.training.steps

    @property
    def _is_timed(self) -> bool:
        return self.training.progress or self.training.out is not None

    def rows(self, number: int) -> Tensor:
        """Return the rows of the current step (see `rows_at`), and remember them for error messages.

        All processes get the same rows. `update` divides them among the processes.

        Args:
            number: number of rows of the data.
        """
        self._rows = rows_at(self.done, number, self.training.batch_size, self.training.seed)
        return self._rows

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Compute within the block in the precision of the settings. `update` does so without this block."""
        self._autocast_used = True
        with self._precision():
            yield

    def _precision(self) -> Any:
        if self.training.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.parameters[0].device.type, dtype=torch.bfloat16)

    def update(
        self,
        loss: Loss,
        batch: tuple[Any, ...] | None = None,
        weight: Tensor | None = None,
        tokens: Tensor | float | None = None,
        **metrics: Tensor | float,
    ) -> None:
        """Take one optimiser step.

        Args:
            loss: a scalar; or a function that computes it, and metrics, with the present weights. L-BFGS needs the
                function, because it evaluates the loss several times in a step.
            batch: arguments of the function: tensors, `Tokens` or `Pairs` of B rows each. The loss and each metric must
                be means over the rows. The rows are divided among the processes and into `training.accumulate` parts.
                None: every process computes the whole step.
            weight: non-negative weights of the rows in these means, (B,). None: the weights of `Pairs` in the batch, or
                equal weights.
            tokens: number of tokens in the step, for the progress bar. None: those of the batch.
            metrics: numbers to log. Tensors are read only when a step is logged, so that the program does not wait for
                the GPU in other steps.

        Raises:
            LabError: the loss or its gradient is not finite (the weights are those of the previous step); or the
                settings require parts or a precision, but the loss was computed by the caller.
        """
        if batch is None and self.training.accumulate > 1:
            raise LabError(f"{self.name} cannot cut its batch into parts. Set accumulate=1 and lower batch_size.")
        if not callable(loss) and self.training.precision != "fp32" and not self._autocast_used:
            raise LabError(f"{self.name} does not compute in bf16. Set precision=fp32.")
        parts = parts_of(batch, weight, self.training.accumulate)

        def evaluate() -> Tensor:
            self.optimizer.zero_grad(set_to_none=True)
            value, watched = self._backward(loss, parts)
            self._loss = value
            self._metrics = {"loss": value, **metrics, **watched}
            if self.training.max_grad_norm is not None:
                norm = nn.utils.clip_grad_norm_(self.parameters, self.training.max_grad_norm)
                self._metrics["grad_norm"] = distributed.full_tensor(norm)
            elif self._is_logged():
                norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
                self._metrics["grad_norm"] = distributed.full_tensor(norm)
            return value

        if isinstance(self.optimizer, torch.optim.LBFGS):
            if not callable(loss):
                raise LabError(f"{self.name} cannot use optimizer='lbfgs'. Choose 'adam'.")
            before = [p.detach().clone() for p in self.parameters]
            try:
                self.optimizer.step(evaluate)
            except LabError:  # in the middle of a line search
                with torch.no_grad():
                    for parameter, old in zip(self.parameters, before, strict=True):
                        parameter.copy_(old)
                raise
        else:
            evaluate()
            self.optimizer.step()
        if self._is_timed:
            self._tokens = self._tokens + (tokens_of(batch or ()) if tokens is None else tokens)

    def _backward(self, loss: Loss, parts: list[BatchPart]) -> tuple[Tensor, Metrics]:
        """Compute the loss, metrics and gradient of the whole step from the parts of all processes."""
        value, watched = None, dict[str, Any]()
        # FSDP averages gradients over processes, but the weights of the parts require their sum.
        scale = distributed.world_size() if distributed.uses_fsdp() else 1
        for batch, share, first in parts:
            seen: Metrics = {}
            if callable(loss):
                with self._precision(), self._dropout(first):
                    part, seen = loss(*batch)
            else:
                part = loss
            if distributed.world_size() == 1:
                self._refuse_nonfinite(part, loss, batch, first)
            one = isinstance(share, float) and share * scale == 1.0
            (part if one else part * (share * scale)).backward()
            part = part.detach()
            if len(parts) == 1 and distributed.world_size() == 1:
                value, watched = part, seen
                break
            value = part * share if value is None else value + part * share
            for key, number in seen.items():
                number = number.detach() if isinstance(number, Tensor) else number
                watched[key] = number * share + watched.get(key, 0.0)
        assert value is not None
        distributed.all_reduce_gradients(self.parameters)
        if distributed.world_size() > 1:
            value, *summed = sum_over_processes([value, *watched.values()])
            watched = dict(zip(watched, summed, strict=True))
            self._refuse_nonfinite(value)
        self._refuse_nonfinite_gradient(value)
        return value, watched

    @contextmanager
    def _dropout(self, first: int) -> Iterator[None]:
        """Seed torch's global generator, from which dropout draws, by the step. Its state is restored afterwards."""
        if not self._has_dropout:
            yield
            return
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            path = (self.training.seed, Stream.ADAPTER_DROPOUT, self.done, first)
            torch.manual_seed(seeded(*path).initial_seed())
            yield

    def _refuse_nonfinite(
        self,
        loss: Tensor,
        function: Loss | None = None,
        batch: tuple[Any, ...] = (),
        first: int = 0,
        wait: bool = False,
    ) -> None:
        # On a GPU the check would wait for the result. There it is made only when a step is logged or saved.
        if (wait or loss.device.type == "cpu") and not bool(torch.isfinite(loss)):
            raise LabError(self._nonfinite(f"the loss became {loss.item()}", finite.bad_rows(function, batch, first)))

    def _refuse_nonfinite_gradient(self, loss: Tensor) -> None:
        """Raise `LabError` for a gradient that is not finite. A finite loss can have one, for example √x at x = 0."""
        if loss.device.type == "cpu" and not finite.gradients_are_finite(self.parameters):
            raise LabError(self._nonfinite("the gradient became nan or infinite"))

    def _refuse_nonfinite_weights(self) -> None:
        """Raise `LabError` for weights that are not finite, since on a GPU the loss is not checked in every step."""
        if not finite.weights_are_finite(self.parameters):
            raise LabError(self._nonfinite("the weights became nan or infinite"))

    def _nonfinite(self, what: str, bad: list[int] = []) -> str:  # noqa: B006
        where = f" at step {self.done}"
        rows = self._rows.tolist() if self._rows is not None else None
        if bad and rows is not None:
            where += f", in {finite.rows_in_words([rows[i] for i in bad])} of the data"
        elif rows is not None:
            where += f", whose batch is {finite.rows_in_words(rows)} of the data"
        elif bad:
            where += f", in {finite.rows_in_words(bad)} of its batch"
        return (
            f"{self.name}: {what}{where}. Lower learning_rate (now {self.training.learning_rate:g}), set "
            f"max_grad_norm, or check the data and rewards.{self._last_checkpoint()}"
        )

    def _last_checkpoint(self) -> str:
        found = checkpoint.latest(self.training.out) if self.training.out is not None else None
        return f" The last complete checkpoint is {found}." if found is not None else ""

    def _log(self, step: int) -> None:
        row = plain_numbers(self._metrics)
        if "loss" in row and not math.isfinite(row["loss"]):
            raise LabError(self._nonfinite(f"the loss became {row['loss']}"))
        if self.training.optimizer != "lbfgs":
            row["learning_rate"] = float(self.optimizer.param_groups[0]["lr"])
        now = time.perf_counter()
        # Reading the number of tokens waits for the GPU, but so does reading the loss above.
        tokens = float(self._tokens)
        speed = {SPEED: tokens / max(now - self._since, 1e-9)} if tokens > 0 else {}
        self._tokens, self._since = 0, now
        self.history.append({"step": step, **row, **(speed if self.training.out is not None else {})})
        names = sorted(row, key=lambda k: FIRST_SHOWN.index(k) if k in FIRST_SHOWN else len(FIRST_SHOWN))
        shown = {k: f"{row[k]:.3g}" for k in names[:4]}
        if speed:
            shown["tokens/s"] = f"{speed[SPEED]:,.0f}"
        self.bar.set_postfix(shown, refresh=False)
        self.say(f"{self.name}: step {step + 1} of {self.training.steps}: {_words(row | speed)}", lines_only=True)
        self.trackers.log({**row, **speed}, step)

    def say(self, text: str, lines_only: bool = False) -> None:
        """Print a line on stderr: above the progress bar, or alone with `training.log_lines`.

        Args:
            text: the line.
            lines_only: print it only with `training.log_lines`, because the progress bar shows the same.
        """
        if distributed.is_main_process() and (self.training.log_lines or (self.training.progress and not lines_only)):
            tqdm.write(text, file=sys.stderr)


def _words(row: dict[str, float]) -> str:
    """Text such as "loss 0.693, accuracy 0.5"."""
    return ", ".join(f"{name} {value:.4g}" for name, value in row.items())


def _optimizer(parameters: list[nn.Parameter], training: Training) -> torch.optim.Optimizer:
    rate, epsilon = training.learning_rate, training.adam_epsilon
    # The fused kernel updates all weights together.
    plain = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    fused = plain and sum(p.numel() for p in parameters) >= FUSED
    if training.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=rate, eps=epsilon, fused=fused)
    if training.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, eps=epsilon, weight_decay=training.weight_decay, fused=fused)
    return torch.optim.LBFGS(
        parameters, lr=1.0, max_iter=50, history_size=50, line_search_fn="strong_wolfe",
        tolerance_grad=1e-14, tolerance_change=1e-18,
    )  # fmt: skip
