"""The one loop under every method: progress, metrics, a finite loss, checkpoints, resume, a clean stop.

An algorithm keeps its own `for`, so that it reads like the lecture's pseudo-code:

    with Loop("dpo", policy, training, settings) as loop:
        for step, generator in loop:
            batch = ...
            loop.update(loss, margin=margin.mean())

The generator of a step is seeded by (seed, step) and by nothing that came before. That is all a resumed run
needs to draw the same numbers as one that was never stopped.
"""

from __future__ import annotations

import json
import math
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from rlhf_lab.checks import LabError
from rlhf_lab.training import checkpoint
from rlhf_lab.training.settings import Training


def seeded(seed: int, *path: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose numbers are a function of `seed` and `path` alone.

    The parts are mixed (splitmix64's finaliser), so that neighbouring seeds and steps are unrelated streams.
    """
    word = 0x9E3779B97F4A7C15
    for part in (seed, *path):
        word = (word ^ (part + 0x9E3779B97F4A7C15 + (word << 6) + (word >> 2))) & 0xFFFFFFFFFFFFFFFF
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        word ^= word >> 31
    return torch.Generator(device).manual_seed(word & 0x7FFFFFFFFFFFFFFF)


def rows_at(step: int, num_rows: int, batch_size: int, seed: int) -> Tensor:
    """The rows of `step`: every row once an epoch, each epoch in its own order, as a function of the step.

    A batch may straddle two epochs, so that all steps have the same size. With `batch_size >= num_rows` every
    step has all rows, in order.
    """
    if num_rows < 1:
        raise LabError("There are no rows to train on.")
    if batch_size >= num_rows:
        return torch.arange(num_rows)
    first = step * batch_size
    parts, wanted = [], batch_size
    while wanted > 0:
        epoch, start = divmod(first, num_rows)
        order = torch.randperm(num_rows, generator=seeded(seed, 1, epoch))
        part = order[start : start + wanted]
        parts.append(part)
        first, wanted = first + len(part), wanted - len(part)
    return torch.cat(parts)


Metrics = dict[str, Tensor | float]


class Loop:
    """Steps of one training run over `module` (several modules: an `nn.ModuleDict`).

    Attributes:
        history: one dictionary of numbers for each logged step.
    """

    def __init__(
        self, name: str, module: nn.Module, training: Training, settings: Any = None, claimed: bool = False
    ) -> None:
        """Prepare a run, and refuse an output folder that holds another one before any work is done.

        Args:
            name: what the progress bar and messages call this run.
            module: what is trained and saved.
            training: the shared settings.
            settings: the method's own settings, saved with the run.
            claimed: the caller has already taken the output folder (see `checkpoint.claim`).
        """
        self.name, self.module, self.training = name, module, training
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        if not self.parameters:
            raise LabError(f"{name}: nothing to train, no parameter requires a gradient. Pass policy.copy().")
        self.optimizer = _optimizer(self.parameters, training)
        self.history: list[dict[str, float]] = []
        self.start = self.done = 0
        self._metrics: Metrics = {}
        self._loss = torch.zeros(())
        self._stop_asked = False
        if training.out is not None:
            if not claimed:
                record = {"method": name, "training": training, "settings": settings}
                checkpoint.claim(training.out, record, training.resume)
            found = checkpoint.latest(training.out) if training.resume else None
            if found is not None:
                state = checkpoint.load(found, module, self.optimizer)
                self.start = self.done = state["step"]
                self.history = state["history"]

    def __enter__(self) -> Loop:
        self.bar = tqdm(
            total=self.training.steps, initial=self.start, desc=self.name, leave=False,
            disable=not self.training.progress,
        )  # fmt: skip
        self._old_handler = None
        if self.training.out is not None and threading.current_thread() is threading.main_thread():
            # A first Ctrl-C ends the run after the step in hand, so that what is saved is a whole step.
            self._old_handler = signal.signal(signal.SIGINT, self._ask_to_stop)
        return self

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        self.bar.close()
        if self._old_handler is not None:
            signal.signal(signal.SIGINT, self._old_handler)

    def _ask_to_stop(self, number: int, frame: Any) -> None:
        if self._stop_asked:
            raise KeyboardInterrupt
        self._stop_asked = True

    def __iter__(self) -> Iterator[tuple[int, torch.Generator]]:
        out = self.training.out
        for step in range(self.start, self.training.steps):
            for group in self.optimizer.param_groups if self.training.optimizer != "lbfgs" else []:
                group["lr"] = self.training.learning_rate * self.training.rate_at(step)
            device = self.parameters[0].device
            yield step, seeded(self.training.seed, 0, step, device=device)
            self.done = step + 1
            last = self.done == self.training.steps
            if step % self.training.log_every == 0 or last:
                self._log(step)
            self.bar.update()
            if out is not None and (self.done % self.training.save_every == 0 or last or self._stop_asked):
                self._refuse_nonfinite(self._loss, wait=True)
                checkpoint.save(out, self.done, self.module, self.optimizer, {"history": self.history})
            if self._stop_asked and not last:
                raise KeyboardInterrupt(
                    f"{self.name} stopped after step {self.done} of {self.training.steps}; "
                    f"{out} holds it. Run again with --resume to go on."
                )
        if out is not None:
            lines = "".join(json.dumps(row) + "\n" for row in self.history)
            (out / "history.jsonl").write_text(lines, encoding="utf-8")

    def update(self, loss: Tensor | Callable[[], tuple[Tensor, Metrics]], **metrics: Tensor | float) -> None:
        """One optimiser step.

        Args:
            loss: a scalar; or a function that computes it, and metrics, from the weights as they are. L-BFGS needs
                the function, since it looks at several points in a step.
            metrics: numbers to log. They are kept as tensors and read only when a step is logged, so that nothing
                waits on a device.

        Raises:
            LabError: the loss, or its gradient, is not finite. The weights are those of the step before.
        """

        def evaluate() -> Tensor:
            nonlocal metrics
            value = loss
            if callable(loss):
                value, metrics = loss()
            assert isinstance(value, Tensor)
            self._refuse_nonfinite(value)
            self.optimizer.zero_grad(set_to_none=True)
            value.backward()
            self._refuse_nonfinite_gradient(value)
            self._loss = value.detach()
            if self.training.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(self.parameters, self.training.max_grad_norm)
            return value

        if isinstance(self.optimizer, torch.optim.LBFGS):
            if not callable(loss):
                raise LabError(f"{self.name} cannot use optimizer='lbfgs'; choose 'adam'.")
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
        self._metrics = {"loss": self._loss, **metrics}

    def _refuse_nonfinite(self, loss: Tensor, wait: bool = False) -> None:
        # On a device the check would wait for the result; there it is made when a step is logged or saved.
        if (wait or loss.device.type == "cpu") and not bool(torch.isfinite(loss)):
            raise LabError(self._nonfinite(f"the loss became {loss.item()}"))

    def _refuse_nonfinite_gradient(self, loss: Tensor) -> None:
        """A finite loss can have a gradient that is not (√ at 0, for one); it must not reach a weight."""
        if loss.device.type == "cpu" and not all(
            bool(torch.isfinite(p.grad).all()) for p in self.parameters if p.grad is not None
        ):
            raise LabError(self._nonfinite("the gradient became nan or infinite"))

    def _nonfinite(self, what: str) -> str:
        found = checkpoint.latest(self.training.out) if self.training.out is not None else None
        kept = f" The last good checkpoint is {found}." if found is not None else ""
        return (
            f"{self.name}: {what} at step {self.done}. A lower learning_rate (now {self.training.learning_rate:g}), a "
            f"max_grad_norm or a look at the rewards helps.{kept}"
        )

    def _log(self, step: int) -> None:
        row = {k: float(v.detach()) if isinstance(v, Tensor) else float(v) for k, v in self._metrics.items()}
        if "loss" in row and not math.isfinite(row["loss"]):
            raise LabError(self._nonfinite(f"the loss became {row['loss']}"))
        self.history.append({"step": step, **row})
        shown = {k: f"{v:.3g}" for k, v in list(row.items())[:4]}
        self.bar.set_postfix(shown, refresh=False)


def _optimizer(parameters: list[nn.Parameter], training: Training) -> torch.optim.Optimizer:
    rate, epsilon = training.learning_rate, training.adam_epsilon
    if training.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=rate, eps=epsilon)
    if training.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, eps=epsilon, weight_decay=training.weight_decay)
    return torch.optim.LBFGS(
        parameters, lr=1.0, max_iter=50, history_size=50, line_search_fn="strong_wolfe",
        tolerance_grad=1e-14, tolerance_change=1e-18,
    )  # fmt: skip
