"""What every `rlhf-lab train METHOD` can be told: the model, the data, the output folder, the loop, the machine.

A method's settings are these and its algorithm's own dataclass, whose fields become options of the same rank.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from rlhf_lab.errors import (
    Count,
    Natural,
    NonNegative,
    Positive,
    Range,
    Seed,
    check_settings,
    refuse_unused,
)
from rlhf_lab.training import Training, checkpoint
from rlhf_lab.training.config import Clip, Epsilon, Schedule

WORLD = "world:"
"""What a text world's name stands behind, where data are asked for."""

Sampler = Literal["lab", "graphs", "vllm"]
"""Who draws responses."""

Flat = tyro.conf.arg(name="")
"""A method's own settings stand beside the others."""


@dataclass(frozen=True, kw_only=True)
class Common:
    """The settings of all methods."""

    caches_reference: ClassVar[bool] = False
    """Whether the method keeps the reference's log-probabilities of given data, in `reference_cache`."""

    model: str
    """Model to start from: a folder, a .gguf file, lab-gpt2, lab-pythia, smollm2, or a name on the Hub."""
    data: str
    """A .json, .jsonl, .csv or .parquet file (also .gz), a data set's name on the Hub, or world:NAME (sentiment,
    summaries, dialogue, translation)."""
    out: Path
    """Folder for the result. One that holds another run is refused."""
    config: Path | None = None
    """YAML file with any of these settings; the command line wins over it."""
    steps: Count | None = None
    """Optimiser steps; by default as many as `epochs` needs."""
    epochs: Positive = 1.0
    """Passes over the data, where `steps` is not given."""
    batch_size: Count = 32
    """Rows of data (pairs, examples or prompts) in a step."""
    learning_rate: Positive = 1e-5
    """Peak learning rate. Small models take larger ones: 1e-3 for the shipped ones."""
    warmup: Natural = 0
    """Steps over which the rate rises from zero; at most as many as the run has."""
    schedule: Schedule = "linear"
    """How the rate falls to zero after the warm-up."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay of AdamW."""
    adam_epsilon: Epsilon = 1e-8
    """Adam's ε."""
    max_grad_norm: Clip | None = 10.0
    """Clip the gradient's norm to this number above 0; None for no clipping. 0 is refused, not taken for None."""
    max_prompt_tokens: Count | None = None
    """Longer prompts lose their beginning. By default 256, the world's longest, or what the context leaves."""
    max_response_tokens: Count | None = None
    """Longer responses lose their end, and none longer is drawn. The end token is counted. Default as for prompts."""
    limit: Count | None = None
    """Use the first so many usable rows alone; data from the Hub are then streamed. For pairs of a world: how many
    to draw (default 1,000)."""
    seed: Seed = 0
    """Of everything that is random in this run."""
    model_revision: str | None = None
    """Branch, tag or commit of a model on the Hub."""
    data_revision: str | None = None
    """Branch, tag or commit of a data set on the Hub."""
    data_split: str = "train"
    """Split of a data set on the Hub, of a world, or of a .json file that has lists by split."""
    data_folder: str | None = None
    """Folder within a data set on the Hub, such as harmless-base of Anthropic/hh-rlhf."""
    device: str = "auto"
    """cpu, cuda, cuda:1, …; auto takes a GPU if there is one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: products of matrices in bfloat16; weights and optimiser stay in float32."""
    accumulate: Count = 1
    """Parts a step's batch is cut into for memory; the gradient is the same."""
    gradient_checkpointing: bool = False
    """Less memory for more time: activations are computed again in the backward pass."""
    lora_rank: Count | None = None
    """Train low-rank adapters of this rank (package peft) instead of all weights; model/ holds the merged result. At
    most the model's hidden size."""
    lora_alpha: Positive | None = None
    """Scale of the adapters, with `lora_rank`; by default twice the rank."""
    lora_targets: tuple[str, ...] = ()
    """Names of the layers that get adapters, with `lora_rank`; by default those usual for the architecture."""
    reference_cache: Path | None = None
    """Folder for the reference's log-probabilities of given data, which are computed once; by default the lab's. For
    dpo, kto and rso."""
    log_every: Count = 10
    """Steps between two entries of history.jsonl."""
    save_every: Count = 100
    """Steps between two checkpoints."""
    trackers: tuple[str, ...] = ()
    """Where logged steps go too: tensorboard, wandb, trackio, … None by default."""
    resume: bool = False
    """Go on with the run in `out`, which was stopped."""
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.lora_rank is None:
            refuse_unused(self, ["lora_alpha", "lora_targets"], "without lora_rank")
        if not self.caches_reference:
            refuse_unused(self, ["reference_cache"], "for this method, which keeps no log-probabilities of a reference")
        # Without `steps`, how many there are is known when the data are, and only then whether the warm-up fits.
        warmup = self.warmup if self.steps is not None else 0
        self.training(rows=1, warmup=warmup, out=None, resume=False, trackers=())

    @property
    def world(self) -> str | None:
        """The text world's name, where the data come from one."""
        return self.data.removeprefix(WORLD) if self.data.startswith(WORLD) else None

    def training(self, rows: int, **changes: Any) -> Training:
        """The loop's settings, the number of steps worked out from the number of rows.

        Args:
            rows: of data that one epoch sees.
            changes: settings of the loop that this command does not leave to its user.

        Raises:
            LabError: a number that cannot be used.
        """
        each = max(min(self.batch_size, rows), 1)
        steps = self.steps if self.steps is not None else max(round(self.epochs * rows / each), 1)
        names = {field.name for field in dataclasses.fields(Training)} & {f.name for f in dataclasses.fields(Common)}
        shared = {name: getattr(self, name) for name in names}
        return Training(**{**shared, "optimizer": "adamw", "steps": steps, **changes})


@dataclass(frozen=True, kw_only=True)
class PairSettings(Common):
    """The settings of methods that learn from preference pairs."""

    label_noise: Annotated[float, Range(0, 0.5)] = 0.0
    """With a world's data: how often a label is flipped, at most ½."""
    label_beta: Positive = 1.0
    """With a world's data: the gold reward is divided by it before the labels are drawn from Bradley-Terry."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.world is None:
            refuse_unused(self, ["label_noise", "label_beta"], "on data that have labels; they are for data of a world")


@dataclass(frozen=True, kw_only=True)
class DrawingSettings(Common):
    """The settings of methods that sample."""

    sampler: Sampler = "lab"
    """Who draws responses. graphs (a GPU): the lab, a step's kernels recorded once and replayed as a CUDA graph. vllm
    (package vllm, Linux and a GPU, one process) has weights of its own, which are brought up to date before it draws;
    its draws are others than the lab's."""


@dataclass(frozen=True, kw_only=True)
class SamplingSettings(DrawingSettings):
    """The settings of methods that sample and are told a reward."""

    reward: str
    """Folder of a trained reward model or ranker, or gold with a world's data (gold:NAME with other data)."""


Epochs = Annotated[Positive, tyro.conf.arg(name="data-epochs")]
"""For a method that has epochs of its own."""


def refuse_reference(settings: Any, loss: str, needed: bool) -> None:
    """Raise `LabError` where a reference, or a cache for it, is named and the loss needs none."""
    if not needed:
        refuse_unused(settings, ["reference", "reference_cache"], f"with the loss {loss}, which has no reference")


def record_of(settings: Common, method: str) -> dict[str, Any]:
    """What run.json holds, and what a resumed run must agree with. The device may differ."""
    record = {"method": method, **checkpoint.plain(settings)}
    for name in ("device", "config"):
        del record[name]
    return record
