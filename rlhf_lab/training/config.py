"""The settings that every method shares: how long, how fast, from which seed, and where to."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from rlhf_lab.errors import (
    Count,
    LabError,
    Natural,
    NonNegative,
    Positive,
    Range,
    Seed,
    check_path,
    check_settings,
    refuse_unused,
)

Schedule = Literal["constant", "linear", "cosine"]
Epsilon = Annotated[float, Range(1e-30, fix="Adam divides by it where a gradient is zero.")]
Clip = Annotated[
    float, Range(0, exclusive_minimum=True, fix="None means that gradients are not clipped; 0 would stop training.")
]


@dataclass(frozen=True)
class Training:
    """One training run of any method."""

    steps: Count = 300
    """Number of optimiser steps (of PPO: rounds of sampling and learning)."""
    batch_size: Count = 64
    """Prompts (of DPO: pairs) in a step. Numbers above the data's size mean all of it, every step."""
    learning_rate: Positive = 1e-2
    """Peak learning rate. `lbfgs` does not use it: its line search finds the length of each step."""
    schedule: Schedule = "linear"
    """How the rate falls to zero after the warm-up."""
    warmup: Natural = 0
    """Steps over which the rate rises from zero to its peak; at most `steps`."""
    optimizer: Literal["adam", "adamw", "lbfgs"] = "adam"
    """`lbfgs` is for full-batch problems on tables, where it reaches machine precision."""
    adam_epsilon: Epsilon = 1e-8
    """Adam's ε, at least 1e-30, which float32 does not round to zero."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay. Only `adamw` has it."""
    max_grad_norm: Clip | None = None
    """Clip the gradient's norm to this number above 0. None means no clipping; 0 is refused, not taken for None."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: products of matrices in bfloat16 (autocast). Weights, optimiser and losses stay as they are."""
    accumulate: Count = 1
    """Parts a step's batch is cut into, one in memory at a time. The gradient is the same up to rounding."""
    gradient_checkpointing: bool = False
    """Keep no activations within a language model's layers; compute them again in the backward pass."""
    seed: Seed = 0
    """Seed of everything that is random in this run."""
    log_every: Count = 10
    """Steps between two entries of the history."""
    save_every: Count = 100
    """Steps between two checkpoints, where `out` is given."""
    out: Path | None = None
    """Folder of the run: settings, history, checkpoints, result. None writes nothing."""
    resume: bool = False
    """Go on from the last checkpoint in `out`."""
    progress: bool = True
    """Show a progress bar."""
    trackers: tuple[str, ...] = ()
    """Where logged steps go too, by accelerate's names: tensorboard, wandb, trackio, … The folder `out` is needed."""

    def __post_init__(self) -> None:
        if self.out is not None:
            object.__setattr__(self, "out", check_path(self.out, "out"))
        check_settings(self)
        if self.warmup > self.steps:
            raise LabError(
                f"warmup={self.warmup} is more than the run's {self.steps} steps, so the learning rate would never "
                f"reach its peak. Lower warmup or raise steps."
            )
        if self.optimizer != "adamw":
            refuse_unused(self, ["weight_decay"], f"with optimizer={self.optimizer!r}; adamw has it")
        if self.optimizer == "lbfgs":
            unused = ["schedule", "warmup", "adam_epsilon", "max_grad_norm"]
            refuse_unused(self, unused, "with optimizer='lbfgs', whose line search finds the length of each step")
        if self.accumulate > self.batch_size:
            raise LabError(
                f"accumulate={self.accumulate} cannot cut a batch of {self.batch_size} rows into so many parts; give "
                f"at most batch_size."
            )
        if self.accumulate > 1 and self.optimizer == "lbfgs":
            raise LabError("lbfgs looks at a whole batch many times in a step; leave accumulate at 1.")
        if self.trackers and self.out is None:
            raise LabError("trackers need out=…, the folder of the run, to write to.")
        if self.resume and self.out is None:
            raise LabError("resume=True needs out=…, the folder of the run to go on with.")

    def stage(self, name: str, number: int = 0, **changes: Any) -> Training:
        """The settings of one stage of a method that trains several times: a folder and a stream of its own.

        A resumed method goes on in the stage where it stopped: stages that were finished load their last
        checkpoint, stages that were never begun start.
        """
        out = None if self.out is None else self.out / name
        resume = self.resume and out is not None and (out / "run.json").is_file()
        return replace(self, out=out, resume=resume, seed=self.seed + 7919 * (number + 1), **changes)

    def check_rows(self, name: str, number: int | None) -> None:
        """Refuse L-BFGS unless every step has the same rows: its memory of gradients is of one function.

        Args:
            name: of the method.
            number: rows of the data; None where they are made afresh at each step.

        Raises:
            LabError: `lbfgs` with batches smaller than the data, or with fresh data.
        """
        if self.optimizer != "lbfgs":
            return
        if number is None:
            raise LabError(f"{name} makes fresh data at every step and cannot use optimizer='lbfgs'. Choose 'adam'.")
        if self.batch_size < number:
            raise LabError(
                f"{name}: lbfgs needs all {number} rows in every step, and batch_size is {self.batch_size}. Raise "
                f"batch_size to {number}, or choose optimizer='adam'."
            )

    def rate_at(self, step: int) -> float:
        """The learning rate's factor in [0, 1] at `step`, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.schedule == "constant":
            return 1.0
        left = 1.0 - (step - self.warmup) / max(self.steps - self.warmup, 1)
        if self.schedule == "linear":
            return left
        return 0.5 * (1.0 + math.cos(math.pi * (1.0 - left)))
