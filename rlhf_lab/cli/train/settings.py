"""The settings that all `rlhf-lab train` commands share: model, data, output folder, training loop and device.

The settings of a method are these and the dataclass of its algorithm, whose fields also become options.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from rlhf_lab.data.preferences import TooLong
from rlhf_lab.data.readers import Chat
from rlhf_lab.errors import (
    Count,
    Fraction,
    LabError,
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
from rlhf_lab.training.output_folder import Rules

WORLD = "world:"
"""Prefix of `--data` for the name of a text world."""

Sampler = Literal["lab", "graphs", "vllm"]
"""Implementation of sampling."""

Flat = tyro.conf.arg(name="")
"""Marks a nested dataclass whose fields become options without a prefix."""


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The settings that determine the data which a model is trained on."""

    model: str
    """Model to start from: a folder, the output folder of a run, a folder of LoRA adapters, a .gguf file, lab-gpt2,
    lab-pythia, smollm2, or a name on the Hub."""
    data: Annotated[str | tuple[str, ...], tyro.conf.arg(metavar="DATA [DATA …]")]
    """Training data: a .json, .jsonl, .csv or .parquet file (also .gz), a data set on the Hub, or world:NAME for a text
    world (sentiment, summaries, dialogue, translation). Several files and data sets on the Hub are mixed."""
    data_weights: tuple[Positive, ...] = ()
    """Share of each of several `data` in the rows of an epoch, in their order. They are divided by their sum. The epoch
    is as long as it can be without a repeated row. Default: all rows of all data."""
    model_revision: str | None = None
    """Branch, tag or commit of the model on the Hub."""
    data_revision: str | None = None
    """Branch, tag or commit of the data set on the Hub."""
    data_split: str = "train"
    """Split of the data set, of the world, or of a .json file with several splits."""
    data_folder: str | None = None
    """Folder inside the data set on the Hub, such as harmless-base of Anthropic/hh-rlhf."""
    max_prompt_tokens: Count | None = None
    """Maximum length of a prompt. Longer prompts are cut, see `too_long`. Default: the longest prompt of the world, or
    256 tokens if the context has room for them."""
    max_response_tokens: Count | None = None
    """Maximum length of a response, with its end token. Longer responses lose their end. Default: as for prompts."""
    too_long: TooLong = "cut"
    """What happens to texts of more tokens: cut, or drop the row. A response loses its end. A conversation loses its
    oldest turns but not the system's, and any other prompt its beginning. The README of the run counts them."""
    chat: Chat = "auto"
    """Which rows the model's chat template writes. auto: conversations and dialogues of AnthropicHH's format. on: every
    row, and a text is a turn of the user. off: no row. Without a template, auto is off."""
    limit: Count | None = None
    """Use only this number of rows, the first usable ones; of several `data`, of each. Data from the Hub are then
    streamed. For pairs of a world: the number of pairs to sample (default 1,000)."""

    def _check_data(self) -> None:
        names = self.sources
        if not names:
            raise LabError("data names no data. Give a file, a data set on the Hub, or world:NAME.")
        if len(names) == 1:
            object.__setattr__(self, "data", names[0])
            refuse_unused(self, ["data_weights"], f"on one source of data, {names[0]}")
        elif worlds := [name for name in names if name.startswith(WORLD)]:
            raise LabError(f"{worlds[0]} cannot be mixed with other data. Give files or data sets on the Hub.")
        elif self.data_weights and len(self.data_weights) != len(names):
            raise LabError(
                f"data_weights needs one number for each of the {len(names)} data ({', '.join(names)}), in the same "
                f"order, and it has {len(self.data_weights)}."
            )

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of `data`."""
        return (self.data,) if isinstance(self.data, str) else self.data

    @property
    def world(self) -> str | None:
        """Name of the text world, or None if the data are not from a world."""
        name = self.sources[0]
        return name.removeprefix(WORLD) if name.startswith(WORLD) else None


@dataclass(frozen=True, kw_only=True)
class Common(DataSettings):
    """The settings of all methods."""

    caches_reference: ClassVar[bool] = False
    """Whether the method stores the reference's log-probabilities of its data in `reference_cache`."""
    extends: ClassVar[bool] = True
    """Whether a run can be resumed with more steps. Methods that train several times cannot."""

    uses_ratio: ClassVar[bool] = False
    """Whether the loss compares the policy with itself before the step, as PPO's does."""

    out: Path
    """Output folder. It must be empty or new, unless a run is resumed."""
    config: Path | None = None
    """YAML file with any of these settings. Options of the command line override it."""
    steps: Count | None = None
    """Number of optimiser steps. Default: as many as `epochs` needs."""
    epochs: Positive = 1.0
    """Number of passes over the data, if `steps` is not given."""
    batch_size: Count = 32
    """Rows of data (pairs, examples or prompts) in each optimiser step, over all parts of `accumulate` and all
    processes."""
    learning_rate: Positive = 1e-5
    """Peak learning rate (also `--lr`). Small models need larger ones, for example 1e-3 for lab-gpt2."""
    warmup: Natural = 0
    """Number of steps over which the learning rate rises from zero, at most the number of all steps."""
    warmup_ratio: Fraction | None = None
    """The warm-up as a fraction of all steps, in place of `warmup`."""
    schedule: Schedule = "linear"
    """How the learning rate falls after the warm-up. linear and cosine: to `min_rate` at the last step. inverse-sqrt:
    as 1/√step. constant: it does not fall."""
    min_rate: Fraction = 0.0
    """Learning rate at the end, as a fraction of its peak."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay of AdamW."""
    adam_epsilon: Epsilon = 1e-8
    """Adam's ε."""
    max_grad_norm: Clip | None = 10.0
    """Clip the norm of the gradient to this positive number. None disables clipping."""
    eval_data: str | None = None
    """Held-out data, in the formats of `data`. The model is measured on them before, during and after training. The
    folder best/ then contains the model of the best measurement."""
    eval_split: str = "test"
    """Split of `eval_data`."""
    eval_limit: Count | None = None
    """Use only this number of rows of `eval_data`, the first usable ones."""
    eval_fraction: Annotated[float, Range(0, 1, exclusive_minimum=True, exclusive_maximum=True)] | None = None
    """Hold out this fraction of the rows of `data`, between 0 and 1, in place of `eval_data`. `seed` decides which.
    Rows with the same prompt stay together."""
    eval_every: Count = 50
    """Number of steps between two measurements on held-out data."""
    patience: Count | None = None
    """Stop early after this many measurements without a better one. Methods with rounds stop each round. Default: never
    stop early."""
    seed: Seed = 0
    """Random seed of the run."""
    device: str = "auto"
    """Device: cpu, cuda, cuda:1, …, or auto, which uses a GPU if there is one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of matrix products. With bf16, weights and optimiser stay in float32."""
    save_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number type of the weights in model/. auto: that of the model's files. Training itself uses float32. bfloat16
    rounds to three significant digits, which may be more than a short run with a small learning rate changes."""
    accumulate: Count = 1
    """Number of parts into which each batch is split to save memory. The batch is not multiplied by it, and the
    gradient is the same."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass. This saves memory and costs time."""
    lora_rank: Count | None = None
    """Train LoRA adapters of this rank (package peft) in place of all weights. The folder model/ contains the merged
    weights. At most the hidden size of the model."""
    lora_alpha: Positive | None = None
    """Scale of the adapters, with `lora_rank`. Default: twice the rank."""
    lora_targets: tuple[str, ...] = ()
    """Names of the layers that get adapters, with `lora_rank`. Default: the usual layers of the architecture."""
    lora_dropout: Annotated[float, Range(0, 1, exclusive_maximum=True)] = 0.0
    """Dropout of the adapters' inputs in training steps, with `lora_rank`. Not for ppo, rloo and grpo, and not with
    `gradient_checkpointing`."""
    lora_rank_stabilised: bool = False
    """Scale the adapters by alpha/√rank (rsLoRA) in place of alpha/rank, with `lora_rank`."""
    adapter: Literal["merge", "continue"] = "merge"
    """What happens to LoRA adapters that `model` names. merge: they become part of the weights. continue: they are
    trained further, and all other weights are frozen. The reference is the model with the adapters as they were."""
    load_in_4bit: bool = False
    """Load the frozen matrices in 4 bits (QLoRA), with `lora_rank` or `adapter=continue` (package bitsandbytes)."""
    reference_cache: Path | None = None
    """Folder in which dpo, kto and rso store the log-probabilities of the reference model, so that they are computed
    once. Default: a folder in the cache of the lab."""
    log_every: Count = 10
    """Number of steps between two rows of history.jsonl."""
    save_every: Count = 100
    """Number of steps between two checkpoints."""
    trackers: tuple[str, ...] = ()
    """Trackers that also receive the logged numbers: tensorboard, wandb, trackio, … Default: none."""
    resume: bool = False
    """Continue the stopped run in `out`. With more steps or epochs than before, a run is extended (not for raft, rest,
    rso and iterated-dpo), and the learning rate follows the schedule of the longer run."""
    dry_run: bool = False
    """Check the settings, the data and the files of the models, print what the run would do, and stop. Nothing is
    trained or written."""
    progress: bool = True
    """Show a progress bar. --no-progress prints one line for each logged step instead."""

    def __post_init__(self) -> None:
        check_settings(self)
        self._check_data()
        if not self.has_adapters:
            lora = ["lora_alpha", "lora_targets", "lora_dropout", "lora_rank_stabilised"]
            refuse_unused(self, lora, "without lora_rank")
            if self.load_in_4bit:
                raise LabError(
                    "load_in_4bit needs adapters, because weights of 4 bits cannot be trained. Give lora_rank, for "
                    "example 16, or continue adapters with adapter=continue."
                )
        if self.lora_dropout and self.gradient_checkpointing:
            raise LabError(
                "lora_dropout cannot be used with gradient_checkpointing, whose recomputation would draw another "
                "dropout. Leave one of them out."
            )
        if self.lora_dropout and self.uses_ratio:
            raise LabError(
                "lora_dropout cannot be used with this method: its ratio π/π_old would be that of two different "
                "dropouts. Leave it out."
            )
        if not self.caches_reference:
            refuse_unused(
                self, ["reference_cache"], "for this method, which stores no log-probabilities of a reference"
            )
        self._check_held_out()
        if self.warmup_ratio is not None:
            refuse_unused(self, ["warmup"], "with warmup_ratio, which determines it")
        # Without `steps`, the number of steps depends on the data, so the warm-up is checked later.
        warmup = self.warmup if self.steps is not None else 0
        self.training(rows=1, warmup=warmup, out=None, resume=False, trackers=())

    def _check_held_out(self) -> None:
        if self.eval_data is not None and self.eval_fraction is not None:
            raise LabError("eval_data and eval_fraction both say what is held out. Give only one of them.")
        if self.eval_data is None:
            refuse_unused(self, ["eval_split", "eval_limit"], "without eval_data")
        if self.eval_data is None and self.eval_fraction is None:
            unused = ["eval_every", "patience", "eval_samples"]
            refuse_unused(self, unused, "without held-out data, which eval_data or eval_fraction gives")

    @property
    def has_adapters(self) -> bool:
        """Whether adapters are trained in place of all weights."""
        return self.lora_rank is not None or self.adapter == "continue"

    def training(self, rows: int, **changes: Any) -> Training:
        """Return the settings of the training loop.

        Args:
            rows: number of rows in one epoch, from which the number of steps follows.
            changes: settings of the loop that replace those of the user.

        Raises:
            LabError: a number cannot be used.
        """
        each = max(min(self.batch_size, rows), 1)
        steps = self.steps if self.steps is not None else max(round(self.epochs * rows / each), 1)
        names = {field.name for field in dataclasses.fields(Training)} & {f.name for f in dataclasses.fields(Common)}
        shared = {name: getattr(self, name) for name in names}
        if self.warmup_ratio is not None:
            shared["warmup"] = math.ceil(self.warmup_ratio * steps)
        fixed = {"optimizer": "adamw", "log_lines": not self.progress, "steps": steps}
        return Training(**{**shared, **fixed, **changes})


@dataclass(frozen=True, kw_only=True)
class PairSettings(Common):
    """The settings of methods that learn from preference pairs."""

    label_noise: Annotated[float, Range(0, 0.5)] = 0.0
    """Probability that a label is flipped, at most 0.5. Only for data of a world."""
    label_beta: Positive = 1.0
    """Divides the gold reward before labels are sampled from the Bradley-Terry model. Only for data of a world."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.world is None:
            refuse_unused(
                self, ["label_noise", "label_beta"], "on data that already have labels; it is for data of a world"
            )


@dataclass(frozen=True, kw_only=True)
class SamplerSettings(Common):
    """The settings of methods that may sample responses."""

    sampler: Sampler = "lab"
    """Implementation of sampling. lab: the lab's own. graphs: the lab's own with CUDA graphs, on a GPU (experimental).
    vllm: the package vllm, on Linux with a GPU and one process (experimental). vllm samples other responses from the
    same distribution."""
    eval_samples: Count = 4
    """Number of responses that are sampled to each held-out prompt, whose rewards are measured."""


@dataclass(frozen=True, kw_only=True)
class SamplingSettings(SamplerSettings):
    """The settings of methods that sample responses and score them with a reward."""

    reward: str
    """Reward: the folder of a trained reward model or ranker, or gold for the gold reward of the data's world
    (gold:NAME with other data)."""


Epochs = Annotated[Positive, tyro.conf.arg(name="data-epochs")]
"""For a method whose algorithm also has a setting `epochs`."""


def refuse_reference(settings: Any, loss: str, needed: bool) -> None:
    """Raise `LabError` if a reference model, or a cache for it, is given and the loss needs none."""
    if not needed:
        refuse_unused(
            settings, ["reference", "reference_cache"], f"with the loss {loss}, which uses no reference model"
        )


def record_of(settings: Common, method: str) -> dict[str, Any]:
    """Return the content of run.json, which a resumed run must agree with. The device may differ."""
    record = {"method": method, **checkpoint.plain(settings)}
    for name in _NOT_IN_RECORD:
        del record[name]
    return record


_NOT_IN_RECORD = ("device", "config", "dry_run")


def resume_rules(settings: Common) -> Rules:
    """Return how a resumption may differ from the run in the folder."""
    defaults = {}
    for field in dataclasses.fields(settings):
        if field.name in _NOT_IN_RECORD:
            continue
        if field.default is not dataclasses.MISSING:
            defaults[field.name] = checkpoint.plain(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            defaults[field.name] = checkpoint.plain(field.default_factory())
    return Rules(defaults, settings.extends)
