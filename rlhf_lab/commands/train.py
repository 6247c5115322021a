"""`rlhf-lab train dpo`: fit a language model to a file of preferences with `algorithms/dpo.py`, unchanged.

What can be known to be wrong is said first: the settings, the output folder, the data, the model's name and its
context. Only then is the model loaded. The output folder afterwards:

    run.json         settings, and the data's SHA-256
    history.jsonl    loss, accuracy, margin and log-ratios along the way
    model/           weights and tokenizer; AutoModelForCausalLM.from_pretrained reads it
    README.md        what was done with what
    training/        checkpoints, from which --resume goes on
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

import rlhf_lab
from rlhf_lab.algorithms.dpo import DPO, dpo
from rlhf_lab.checks import LabError
from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.policies.loading import (
    check_language_model,
    load_config,
    load_language_model,
    load_tokenizer,
    pick_device,
)
from rlhf_lab.policies.packing import context_of
from rlhf_lab.training import Training, checkpoint
from rlhf_lab.worlds.preference_data import load_preferences, tokenise
from rlhf_lab.worlds.preference_files import check_source, is_local


@dataclass(frozen=True)
class TrainDPO:
    """Fit a causal language model to preference pairs by direct preference optimisation."""

    model: str
    """Folder of a causal language model with its tokenizer, or its name on the Hub."""
    data: str
    """Preference pairs: a .json, .jsonl, .csv or .parquet file (also .gz), or a data set's name on the Hub."""
    out: Path
    """Folder for the result. One that holds another run is refused."""
    dpo: Annotated[DPO, tyro.conf.arg(name="")] = field(default_factory=DPO)
    steps: int | None = None
    """Optimiser steps; by default as many as `epochs` needs."""
    epochs: float = 1.0
    """Passes over the pairs, where `steps` is not given."""
    batch_size: int = 32
    """Pairs in a step."""
    learning_rate: float = 1e-6
    """Peak learning rate."""
    warmup: int = 0
    """Steps over which the rate rises from zero."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How the rate falls to zero after the warm-up."""
    max_grad_norm: float | None = 10.0
    """Clip the gradient's norm to this."""
    max_prompt_tokens: int = 256
    """Longer prompts lose their beginning."""
    max_response_tokens: int = 256
    """Longer responses lose their end. The end token is counted."""
    limit: int | None = None
    """Use the first so many pairs alone."""
    seed: int = 0
    """Order of the pairs."""
    model_revision: str | None = None
    """Branch, tag or commit of a model on the Hub."""
    data_revision: str | None = None
    """Branch, tag or commit of a data set on the Hub."""
    data_split: str = "train"
    """Split of a data set on the Hub."""
    data_folder: str | None = None
    """Folder within a data set on the Hub, such as harmless-base of Anthropic/hh-rlhf."""
    device: str = "auto"
    """cpu, cuda, cuda:1, …; auto takes a GPU if there is one."""
    log_every: int = 10
    """Steps between two entries of history.jsonl."""
    save_every: int = 100
    """Steps between two checkpoints."""
    resume: bool = False
    """Go on with the run in `out`, which was stopped."""
    progress: bool = True
    """Show a progress bar."""

    def training(self, num_pairs: int) -> Training:
        """The loop's settings, the number of steps worked out from the number of pairs.

        Raises:
            LabError: a number that cannot be used.
        """
        if self.epochs <= 0:
            raise LabError(f"epochs must be above 0, not {self.epochs}.")
        each = max(min(self.batch_size, num_pairs), 1)
        steps = self.steps if self.steps is not None else max(round(self.epochs * num_pairs / each), 1)
        folder = self.out / "training"
        return Training(
            steps=steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            schedule=self.schedule,
            warmup=self.warmup,
            optimizer="adamw",
            max_grad_norm=self.max_grad_norm,
            seed=self.seed,
            log_every=self.log_every,
            save_every=self.save_every,
            out=folder,
            # A run stopped before its first step has nothing there yet, and simply begins.
            resume=self.resume and (folder / "run.json").is_file(),
            progress=self.progress,
        )


def train_dpo(settings: TrainDPO) -> list[dict[str, float]]:
    """Run the command.

    Returns:
        the history of `algorithms.dpo.dpo`.

    Raises:
        LabError: something in the settings, the folder, the data or the model is not as it must be.
        KeyboardInterrupt: stopped by Ctrl-C; the last whole step is saved, and the message says how to go on.
    """
    out = settings.out
    settings.training(num_pairs=1)
    if settings.limit is not None and settings.limit < 1:
        raise LabError(f"limit must be at least 1, not {settings.limit}.")
    device = pick_device(settings.device)
    check_source(settings.data, settings.data_revision)
    record = _record(settings)
    if settings.resume or out.exists():
        # Looked at now, taken only when data and model have proved usable: a refused run leaves no trace.
        _refuse_taken(out, record, settings.resume)
    check_language_model(settings.model, settings.model_revision)

    tokenizer = load_tokenizer(settings.model, settings.model_revision)
    config = load_config(settings.model, settings.model_revision)
    _check_context(settings, config)
    texts = load_preferences(
        settings.data, settings.data_split, settings.data_revision, settings.data_folder, tokenizer
    )
    used = texts if settings.limit is None else texts.first(settings.limit)
    pairs, report = tokenise(
        used, tokenizer, settings.max_prompt_tokens, settings.max_response_tokens, tokenizer.eos_token_id
    )
    _say(settings, f"{texts.summary()}\n{report.summary()}")

    model, tokenizer = load_language_model(settings.model, device, revision=settings.model_revision)
    checkpoint.claim(out, record, settings.resume)
    policy = LanguageModelPolicy(model, tokenizer.eos_token_id, settings.max_response_tokens, len(tokenizer), tokenizer)
    history = dpo(policy, policy.frozen(), pairs, settings.dpo, settings.training(len(pairs)))
    _save(policy, out)
    card = _card(settings, record, texts.summary(), report.summary(), history, str(device))
    (out / "README.md").write_text(card, encoding="utf-8")
    _say(settings, f"Done: {out / 'model'}")
    return history


def _record(settings: TrainDPO) -> dict[str, Any]:
    """What run.json holds, and what a resumed run must agree with."""
    record = {"method": "dpo", **checkpoint.plain(settings)}
    # The device may differ between a run and its resumption.
    del record["device"]
    if is_local(settings.data):
        with Path(settings.data).expanduser().open("rb") as file:
            record["data_sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return record


def _refuse_taken(out: Path, record: dict[str, Any], resume: bool) -> None:
    if resume or not out.is_dir() or any(out.iterdir()):
        checkpoint.claim(out, record, resume)


def _check_context(settings: TrainDPO, config: Any) -> None:
    limit = context_of(config)
    wanted = settings.max_prompt_tokens + settings.max_response_tokens
    if limit is not None and wanted > limit:
        raise LabError(
            f"max_prompt_tokens {settings.max_prompt_tokens} and max_response_tokens {settings.max_response_tokens} "
            f"are {wanted} together; the context of {settings.model} holds {limit}. Lower one of them."
        )


def _save(policy: LanguageModelPolicy, out: Path) -> None:
    """Write model/ under another name first, so that a half-written one is never there under its own."""
    part, folder = out / ".model.part", out / "model"
    shutil.rmtree(part, ignore_errors=True)
    policy.save_pretrained(part)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
    shutil.copyfile(out / "training" / "history.jsonl", out / "history.jsonl")


def _card(
    settings: TrainDPO, record: dict[str, Any], texts: str, tokens: str, history: list[dict[str, float]], device: str
) -> str:
    """The README of the output folder."""
    import torch
    import transformers

    rows = [f"| {name} | {value} |" for name, value in _flat(record) if value is not None and name != "method"]
    last = {k: f"{v:.4g}" for k, v in history[-1].items()} if history else {}
    return "\n".join(
        [
            "# A language model fitted to preferences by DPO",
            "",
            f"`{settings.model}`, fitted to `{settings.data}` by `rlhf-lab train dpo` of rlhf_lab "
            f"{rlhf_lab.__version__} (torch {torch.__version__}, transformers {transformers.__version__}, {device}).",
            "`model/` loads with `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`.",
            "",
            "## Data",
            f"- {texts}",
            f"- {tokens}",
            "",
            "## Settings",
            "| setting | value |",
            "|---|---|",
            *rows,
            "",
            "## Last step",
            *[f"- {name}: {value}" for name, value in last.items()],
            "",
            "Nothing was evaluated: this says what was done, not how good it is. The licences of the model and the "
            "data hold for the result.",
            "",
        ]
    )


def _flat(record: dict[str, Any], key: str = "") -> list[tuple[str, Any]]:
    out = []
    for name, value in record.items():
        whole = f"{key}.{name}" if key else name
        out += _flat(value, whole) if isinstance(value, dict) else [(whole, value)]
    return out


def _say(settings: TrainDPO, text: str) -> None:
    if settings.progress:
        print(text, file=sys.stderr, flush=True)
