"""`Training`: the settings of a training run that all methods share, such as steps, learning rate, seed and folder."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from rlhf_lab.errors import (
    Count,
    Fraction,
    LabError,
    Natural,
    NonNegative,
    Positive,
    Range,
    Seed,
    check_path,
    check_settings,
    count_of,
    refuse_unused,
)

Schedule = Literal["constant", "linear", "cosine", "inverse-sqrt"]
INVERSE_SQRT_STEPS = 10_000
"""Steps after which the rate of the schedule inverse-sqrt without a warm-up has fallen to 1/√2 of its peak."""
Epsilon = Annotated[float, Range(1e-30, fix="Adam divides by it where a gradient is zero.")]
Clip = Annotated[
    float, Range(0, exclusive_minimum=True, fix="None means that gradients are not clipped; 0 would stop training.")
]


@dataclass(frozen=True)
class Training:
    """Settings of a training run of any method."""

    steps: Count = 300
    """Number of optimiser steps. For PPO, RLOO and GRPO: number of rounds of sampling and learning."""
    batch_size: Count = 64
    """Prompts in a step, or pairs for methods that train on pairs. If it exceeds the data, every step uses all data."""
    learning_rate: Positive = 1e-2
    """Peak learning rate. `lbfgs` does not use it, because its line search finds the length of each step."""
    schedule: Schedule = "linear"
    """How the learning rate falls after the warm-up. linear and cosine: to `min_rate` at the last step. inverse-sqrt:
    as √(w/s) at step s, where w is the number of warm-up steps. Without a warm-up it is √(w/(w + s)) with w = 10,000.
    constant: it does not fall."""
    min_rate: Fraction = 0.0
    """The learning rate at the end as a fraction of its peak. With inverse-sqrt it is a lower bound."""
    warmup: Natural = 0
    """Steps over which the learning rate rises from zero to its peak; at most `steps`."""
    optimizer: Literal["adam", "adamw", "lbfgs"] = "adam"
    """`lbfgs` is for tabular policies trained on the full batch, where it reaches machine precision."""
    adam_epsilon: Epsilon = 1e-8
    """Adam's ε, at least 1e-30, which float32 does not round to zero."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay. Only `adamw` has it."""
    max_grad_norm: Clip | None = None
    """Maximum norm of the gradient, above 0; a larger gradient is scaled down. None: gradients are not clipped."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: matrix products are computed in bfloat16 (autocast). Weights, optimiser and losses keep their precision."""
    accumulate: Count = 1
    """Number of parts of a step's batch, which are in memory one after the other. The gradient is the same up to
    rounding."""
    gradient_checkpointing: bool = False
    """Do not store the activations inside a language model's layers, but recompute them in the backward pass."""
    seed: Seed = 0
    """Seed of all randomness in this run."""
    log_every: Count = 10
    """Steps between two entries of the history."""
    save_every: Count = 100
    """Steps between two checkpoints, if `out` is given."""
    eval_every: Count = 50
    """Steps between two measurements on held-out data, if the method gets an `Evaluation`."""
    patience: Count | None = None
    """Stop after this many measurements without a better one. None: train for all steps."""
    out: Path | None = None
    """Folder of the run: settings, history, checkpoints, result. None: nothing is written."""
    resume: bool = False
    """Continue from the last checkpoint in `out`."""
    progress: bool = True
    """Show a progress bar."""
    log_lines: bool = False
    """Print a line on stderr for each logged step, for output that is written to a file."""
    trackers: tuple[str, ...] = ()
    """Trackers that also receive the logged steps, by accelerate's names: tensorboard, wandb, trackio, … They require
    the folder `out`."""

    def __post_init__(self) -> None:
        if self.out is not None:
            object.__setattr__(self, "out", check_path(self.out, "out"))
        check_settings(self)
        if self.warmup > self.steps:
            raise LabError(
                f"warmup={self.warmup} is more than the run's {count_of(self.steps, 'step')}, so the learning rate "
                f"would never reach its peak. Lower warmup or raise steps."
            )
        if self.optimizer != "adamw":
            refuse_unused(self, ["weight_decay"], f"with optimizer={self.optimizer!r}; adamw has it")
        if self.optimizer == "lbfgs":
            unused = ["schedule", "min_rate", "warmup", "adam_epsilon", "max_grad_norm"]
            refuse_unused(self, unused, "with optimizer='lbfgs', whose line search finds the length of each step")
        if self.schedule == "constant":
            refuse_unused(self, ["min_rate"], "with schedule='constant', whose learning rate does not fall")
        if self.accumulate > self.batch_size:
            raise LabError(
                f"accumulate={self.accumulate} cannot cut a batch of {count_of(self.batch_size, 'row')} into so many "
                f"parts. Give at most batch_size."
            )
        if self.accumulate > 1 and self.optimizer == "lbfgs":
            raise LabError("lbfgs evaluates the whole batch several times in a step. Leave accumulate at 1.")
        if self.trackers and self.out is None:
            raise LabError("trackers write to the folder of the run. Give it as out=….")
        if self.resume and self.out is None:
            raise LabError("resume=True continues a run from its folder. Give the folder as out=….")

    def stage(self, name: str, number: int = 0, **changes: Any) -> Training:
        """Return the settings of one stage of a method that trains several times, with another folder and seed.

        A resumed method continues in the stage in which it was stopped. Finished stages load their last checkpoint, and
        stages that have no folder yet start from the beginning.

        Args:
            name: name of the stage's folder, within the folder of the run.
            number: position of the stage, which determines its seed.
            **changes: settings that differ in this stage.
        """
        out = None if self.out is None else self.out / name
        resume = self.resume and out is not None and (out / "run.json").is_file()
        return replace(self, out=out, resume=resume, seed=self.seed + 7919 * (number + 1), **changes)

    def check_rows(self, name: str, number: int | None) -> None:
        """Raise `LabError` for L-BFGS unless every step uses the same rows, because it combines gradients of all steps.

        Args:
            name: name of the method.
            number: number of rows of the data; None if every step has new data.

        Raises:
            LabError: `lbfgs` with batches smaller than the data, or with new data at every step.
        """
        if self.optimizer != "lbfgs":
            return
        if number is None:
            raise LabError(f"{name} has new data at every step and cannot use optimizer='lbfgs'. Choose 'adam'.")
        if self.batch_size < number:
            raise LabError(
                f"{name}: lbfgs needs all {number} rows in every step, and batch_size is {self.batch_size}. Raise "
                f"batch_size to {number}, or choose optimizer='adam'."
            )

    def rate_at(self, step: int) -> float:
        """Return the factor of the learning rate in [0, 1] at `step`, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.schedule == "constant":
            return 1.0
        done = step - self.warmup
        if self.schedule == "inverse-sqrt":
            scale = self.warmup or INVERSE_SQRT_STEPS
            return max(self.min_rate, math.sqrt(scale / (scale + done)))
        left = 1.0 - done / max(self.steps - self.warmup, 1)
        if self.schedule == "cosine":
            left = 0.5 * (1.0 + math.cos(math.pi * (1.0 - left)))
        return self.min_rate + (1.0 - self.min_rate) * left
