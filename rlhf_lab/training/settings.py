"""The settings that every method shares: how long, how fast, from which seed, and where to."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rlhf_lab.checks import LabError, check_positive, usable_path


@dataclass(frozen=True)
class Training:
    """One training run of any method."""

    steps: int = 300
    """Number of optimiser steps (of PPO: rounds of sampling and learning)."""
    batch_size: int = 64
    """Prompts (of DPO: pairs) in a step. Numbers above the data's size mean all of it, every step."""
    learning_rate: float = 1e-2
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How the rate falls to zero after the warm-up."""
    warmup: int = 0
    """Steps over which the rate rises from zero to its peak."""
    optimizer: Literal["adam", "adamw", "lbfgs"] = "adam"
    """`lbfgs` is for full-batch problems on tables, where it reaches machine precision."""
    adam_epsilon: float = 1e-8
    """Adam's ε."""
    weight_decay: float = 0.0
    """Decoupled weight decay, with `adamw`."""
    max_grad_norm: float | None = None
    """Clip the gradient's norm to this; None for no clipping."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: products of matrices in bfloat16 (autocast). Weights, optimiser and losses stay as they are."""
    accumulate: int = 1
    """Parts a step's batch is cut into, one in memory at a time. The gradient is the same up to rounding."""
    gradient_checkpointing: bool = False
    """Keep no activations within a language model's layers; compute them again in the backward pass."""
    seed: int = 0
    """Seed of everything that is random in this run."""
    log_every: int = 10
    """Steps between two entries of the history."""
    save_every: int = 100
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
            object.__setattr__(self, "out", usable_path(self.out, "out"))
        check_positive(self.learning_rate, "learning_rate")
        for name in ("steps", "batch_size", "log_every", "save_every", "accumulate"):
            if getattr(self, name) < 1:
                raise LabError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.seed < 0:
            raise LabError(f"seed must not be negative, not {self.seed}.")
        if self.precision not in ("fp32", "bf16"):
            raise LabError(f"precision must be fp32 or bf16, not {self.precision!r}.")
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
