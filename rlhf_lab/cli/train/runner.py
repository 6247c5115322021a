"""The steps of `rlhf-lab train` that all methods share: check the settings, load model and data, train, save.

The settings, the output folder, the data, the model's name and its context are checked before the model is loaded. The
output folder contains in the end:

    run.json         settings and the SHA-256 of the data
    settings.yaml    the settings in the form that --config reads
    history.jsonl    loss and other numbers of the training
    checkpoints/     the states from which --resume continues; methods with rounds have one folder per round
    best/            the same for the best measurement on held-out data
    model/           weights and tokenizer, for from_pretrained
    pairs/           preference pairs, if the method made some
    README.md        a model card
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rlhf_lab.algorithms import on_policy
from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.cli import yaml_config
from rlhf_lab.cli.train import dry_run, model_card, sampling_batch
from rlhf_lab.cli.train.checks import check_contexts, check_start, start_of
from rlhf_lab.cli.train.data import (
    WORLD_PAIRS,
    Data,
    Kind,
    data_mark,
    held_out_of,
    hold_out,
    load_data,
    sample_pairs,
    token_limits,
)
from rlhf_lab.cli.train.reward import frozen_start, load_reward
from rlhf_lab.cli.train.settings import Common, PairSettings, record_of, resume_rules
from rlhf_lab.errors import LabError, check_paths, count_of
from rlhf_lab.policies import hub_lookup
from rlhf_lab.policies.base import Policy, Reward
from rlhf_lab.policies.end_tokens import find_end_tokens
from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.policies.loading import (
    adapter_base,
    check_same_vocabulary,
    load_language_model,
    pick_device,
    show_progress_bars,
)
from rlhf_lab.policies.lora import (
    AdapterReference,
    LoraPolicy,
    continue_lora,
    with_lora,
)
from rlhf_lab.policies.reference_cache import ReferenceRows
from rlhf_lab.policies.vllm import VllmSampler
from rlhf_lab.randomness import Stream
from rlhf_lab.training import Evaluation, Training, checkpoint, distributed, memory, output_folder, rows
from rlhf_lab.training.evaluation import PREFIX

History = list[dict[str, float]]

POLICY = "`model/` can be loaded with `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`."


class Job:
    """Everything that the `fit` function of a method needs.

    Attributes:
        settings: the settings of the command.
        method: the name of the method on the command line.
        tokenizer: the tokenizer of the model.
        policy: π_θ, which is trained in place; None in a dry run.
        data: data of the kind that the method needs.
        held_out: data of the same kind that are not trained on, or None.
        evaluation: what is measured on them, after `evaluation_of`.
        limits: maximum lengths of a prompt and of a response, in tokens.
        device: device of the policy.
        said: lines about the data for the model card.
        former: former values of the settings by which a resumed run is extended.
        save_dtype: number type of the weights that are saved.
    """

    def __init__(
        self,
        settings: Any,
        method: str,
        policy: Any,
        tokenizer: Any,
        data: Data,
        limits: tuple[int, int],
        held_out: Data | None = None,
        former: dict[str, Any] | None = None,
        save_dtype: torch.dtype = torch.float32,
    ) -> None:
        """Keep the arguments as attributes; the policy and the data give the others."""
        self.settings, self.method, self.policy, self.tokenizer, self.data = settings, method, policy, tokenizer, data
        self.limits, self.former, self.save_dtype = limits, former, save_dtype
        self.device: torch.device = getattr(policy, "device", torch.device("cpu"))
        self.said = [*data.said, *(held_out.said if held_out is not None else [])]
        self.held_out = held_out
        self.evaluation: Evaluation | None = None
        self._reference_rows: list[ReferenceRows] = []

    def evaluation_of(self, make: Callable[[Data], Evaluation]) -> Evaluation | None:
        """Return the evaluation that `make` makes of the held-out data, or None without such data."""
        self.evaluation = None if self.held_out is None else make(self.held_out)
        return self.evaluation

    def reward_evaluation(
        self, policy: Policy, reward: Reward, method: Any, beta: float | None = None, reference: Policy | None = None
    ) -> Evaluation | None:
        """Return the evaluation of the policy by the reward of its samples, or None without held-out prompts.

        Args:
            policy: the policy that is trained, as `drawing` returns it.
            reward: scores (B, G).
            method: settings of the method, whose `temperature` and `top_k` are used if it has them.
            beta: β of the objective, or None for a method without one.
            reference: π_ref, or None for the policy before training.
        """

        def make(held: Data) -> Evaluation:
            assert held.prompts is not None
            start = self.reference() if reference is None else reference
            temperature, top_k = getattr(method, "temperature", 1.0), getattr(method, "top_k", None)
            settings = self.settings
            return on_policy.held_out_rewards(
                policy, start, reward, held.prompts, settings.seed, beta, settings.eval_samples, temperature, top_k
            )

        return self.evaluation_of(make)

    def reference(self) -> Policy:
        """Return π_ref, frozen: the model of `--reference`, or the policy itself before training.

        Raises:
            LabError: the vocabulary of the model differs from the policy's.
        """
        name = getattr(self.settings, "reference", None)
        if name is None:
            return frozen_start(self.policy)
        model, tokenizer = load_language_model(name, self.device)
        check_same_vocabulary(self.tokenizer, tokenizer, self.settings.model, name)
        policy = self.policy
        return LanguageModelPolicy(
            model, policy.end_token, policy.max_new_tokens, policy.vocab_size, tokenizer, policy.cuda_graphs,
            policy.end_tokens,
        ).frozen()  # fmt: skip

    def reference_rows(
        self, reference: Policy, data: Pairs | tuple[Tokens, Tokens], held_out: bool = False
    ) -> ReferenceRows:
        """Return log π_ref of responses, computed when a step or a measurement first needs a row, and stored.

        Args:
            reference: the frozen policy.
            data: pairs; or prompts (N, P) and responses (N, G, T).
            held_out: whether they are not trained on.
        """
        # The precision is that of the training loop, so that the policy's log-ratio to the reference starts at zero.
        precision = partial(torch.autocast, self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16")
        training = self.settings.training(1, warmup=0)
        known = rows.reference_rows(reference, data, training, precision, self._reference_folder(), held_out)
        self._reference_rows.append(known)
        return known

    def save_reference_rows(self) -> None:
        """Store all that is known of log π_ref."""
        for known in self._reference_rows:
            known.save()

    def _reference_folder(self) -> Path:
        settings: Common = self.settings
        return (settings.reference_cache or hub_lookup.cache_folder() / "reference") / settings.precision

    def drawing(self, policy: Policy) -> Policy:
        """Return `policy` with the sampler of `--sampler`. Training the result trains `policy`.

        Raises:
            LabError: vLLM is not installed.
        """
        if self.settings.sampler != "vllm":
            return policy  # the policy itself uses CUDA graphs
        if isinstance(policy, AdapterReference):
            policy = policy.copy()  # a model with disabled adapters cannot be written to a file
        assert isinstance(policy, LanguageModelPolicy)
        return VllmSampler.load(policy, dtype="bfloat16" if self.settings.precision == "bf16" else "float32")

    def reward(self) -> Reward:
        """Return the reward of `--reward`.

        Raises:
            LabError: the reward cannot be loaded, or it belongs to another tokenizer.
        """
        return load_reward(self.settings, self.policy, self.tokenizer)

    def training(self, rows: int, **changes: Any) -> Training:
        """Return the settings of the training loop for `rows` rows of data."""
        training: Training = self.settings.training(rows, **changes)
        if self.former:
            old: Training = dataclasses.replace(self.settings, **self.former).training(rows, **changes)
            if training.steps < old.steps:
                raise LabError(
                    f"{self.settings.out} contains a run of {old.steps:,} steps, and it cannot be resumed with "
                    f"{training.steps:,}. Give at least as many steps."
                )
            steps = count_of(training.steps, "step")
            ended, now = (t.learning_rate * t.rate_at(s) for t, s in ((old, old.steps - 1), (training, old.steps)))
            self.say(
                f"The run is extended from {old.steps:,} to {steps}. The learning rate follows the schedule of "
                f"{steps}. It was {ended:.3g} at the end of the shorter run, and there "
                f"it is {now:.3g} now."
            )
        return training

    def say(self, text: str) -> None:
        """Add a line to the model card and print it."""
        self.said.append(text)
        _say(text)


def run(
    settings: Common,
    method: str,
    kind: Kind,
    fit: Callable[[Job], History],
    save: Callable[[Job, Path], str] | None = None,
    rows: Callable[[Job], int | None] = lambda job: len(job.data),
) -> History:
    """Run a method.

    Args:
        settings: the settings of the command.
        method: the name of the method on the command line.
        kind: the kind of data that the method learns from.
        fit: function that trains `job.policy`, or another model, and returns the history.
        save: function that writes the result to a folder and returns a sentence on how to read it. By default the
            policy is saved.
        rows: number of rows of one epoch for `--dry-run`; None if it is known only after responses are sampled. By
            default all rows of the data.

    Returns:
        the history, which is empty after `--dry-run`.

    Raises:
        LabError: the settings, the folder, the data or the model cannot be used.
        KeyboardInterrupt: stopped by Ctrl-C. The message tells what is saved and how to continue.
    """
    settings = check_paths(settings)
    try:
        with ExitStack() as held:
            return _run(settings, method, kind, fit, save, rows, held)
    except KeyboardInterrupt as stop:
        if not str(stop):
            stop.args = (f"{method} stopped. {checkpoint.what_was_saved(settings.out)}",)
        raise


def _run(
    settings: Common,
    method: str,
    kind: Kind,
    fit: Callable[[Job], History],
    save: Callable[[Job, Path], str] | None,
    rows: Callable[[Job], int | None],
    held: ExitStack,
) -> History:
    """Run a method; `held` keeps the lock of the output folder until the result is saved."""
    start = time.perf_counter()
    distributed.init_process_group()
    show_progress_bars(distributed.shows_progress(settings.progress))
    out = settings.out
    device = pick_device(settings.device)
    tokenizer, sizes = check_start(settings)
    limits = token_limits(settings, sizes, tokenizer)
    settings = sampling_batch.with_sampling_batch(settings, sizes, limits)
    record = {**record_of(settings, method), **data_mark(settings)}
    rules = resume_rules(settings)
    former = _refuse_taken(out, record, settings.resume, rules)
    sampled = any(_samples_pairs(one) for one in (settings, held_out_of(settings)))
    data, apart = load_data(settings, kind, tokenizer, limits), None
    if not sampled:
        data, apart = hold_out(settings, data, lambda other: load_data(other, kind, tokenizer, limits))
        check_contexts(settings, [data, *([] if apart is None else [apart])], limits[1])
    if settings.dry_run:
        _print_plan(Job(settings, method, None, tokenizer, data, limits, apart, former), kind, rows, sampled)
        return []
    for line in [*data.said, *(apart.said if apart is not None else [])]:
        _say(line)
    policy, tokenizer = _load_policy(settings, device, limits, reference=save is None)
    held.enter_context(output_folder.claim_output(out, record, settings.resume, rules))
    _write(out / "settings.yaml", f"# rlhf-lab train {method} --config THIS-FILE\n{yaml_config.write(settings)}")
    try:
        with memory.oom_hint(settings):
            if sampled:
                data, apart = _with_samples(settings, kind, data, policy, tokenizer, limits)
            dtype = _save_dtype(settings, sizes)
            job = Job(settings, method, policy, tokenizer, data, limits, apart, former, dtype)
            if settings.adapter == "continue":
                job.say(f"The adapters in {start_of(settings)} are trained further.")
            try:
                history = fit(job)
            finally:
                job.save_reference_rows()
    except LabError:
        _remove_unstarted(out)
        raise
    _save_result(job, record, history, save, start)
    return history


def _print_plan(job: Job, kind: Kind, rows: Callable[[Job], int | None], sampled: bool) -> None:
    """Print what the run would do."""
    settings = job.settings
    if sampled:
        number = settings.limit or WORLD_PAIRS if _samples_pairs(settings) else rows(job)
        if _samples_pairs(settings):
            most = count_of(number or 0, "pair")
            job.data.said.append(f"{settings.data}: up to {most}, which are sampled from {settings.model}")
        if (other := held_out_of(settings)) is not None and not _samples_pairs(other):
            held = load_data(other, kind, job.tokenizer, job.limits)
            job.data.said += [f"held out: {line}" for line in held.said]
    else:
        number = rows(job)
    training = None if number is None and settings.steps is None else job.training(number or 1)
    group = getattr(settings, "ppo", None) or getattr(settings, "group", None)
    if group is not None and training is not None and job.data.prompts is not None:
        on_policy.check_training(job.method, training, group.minibatches, job.data.prompts)
    if distributed.is_main_process():
        print(dry_run.describe(settings, job.method, job.data, job.held_out, training, job.limits))


def _samples_pairs(settings: Any) -> bool:
    """Whether the pairs are sampled from the model: those of a world are."""
    return isinstance(settings, PairSettings) and settings.world is not None


def _with_samples(
    settings: Common, kind: Kind, data: Data, policy: LanguageModelPolicy, tokenizer: Any, limits: tuple[int, int]
) -> tuple[Data, Data | None]:
    """Return the training data and the held-out data, of which at least one are pairs sampled in a world."""

    def load(other: Any) -> Data:
        if _samples_pairs(other):
            return sample_pairs(other, policy, tokenizer, Stream.HELD_OUT_PAIRS)
        return load_data(other, kind, tokenizer, limits)

    said = list(data.said)
    if isinstance(settings, PairSettings) and settings.world is not None:
        data = sample_pairs(settings, policy, tokenizer)
    data, held = hold_out(settings, data, load)
    for line in [*data.said, *(held.said if held is not None else [])]:
        if line not in said:
            _say(line)
    return data, held


def _load_policy(
    settings: Any, device: torch.device, limits: tuple[int, int], reference: bool
) -> tuple[LanguageModelPolicy, Any]:
    """Load the model; return it as a policy, with LoRA adapters if wanted, and its tokenizer.

    Reward models and rankers need no `reference`, which would be a copy of adapters that are trained further.
    """
    start = start_of(settings)
    base = start if settings.adapter == "merge" else str(adapter_base(start))
    four_bits = settings.precision if settings.load_in_4bit else None
    with memory.oom_hint(settings):
        model, tokenizer = load_language_model(base, device, None, settings.model_revision, four_bits)
    graphs = getattr(settings, "sampler", "lab") == "graphs"
    ends = find_end_tokens(model, tokenizer)
    policy = LanguageModelPolicy(model, ends[0], limits[1], len(tokenizer), tokenizer, graphs, ends)
    if settings.adapter == "continue":
        policy = continue_lora(policy, start, base, settings.lora_dropout, reference)
    elif settings.lora_rank is not None:
        policy = with_lora(
            policy, settings.lora_rank, settings.lora_alpha, settings.lora_targets or None, settings.seed,
            settings.lora_dropout, settings.lora_rank_stabilised,
        )  # fmt: skip
    return policy, tokenizer


def _save_result(
    job: Job,
    record: dict[str, Any],
    history: History,
    save: Callable[[Job, Path], str] | None,
    start: float,
) -> None:
    """Write the trained model, the history and the README."""
    settings, out = job.settings, job.settings.out
    if isinstance(job.policy, LoraPolicy) and save is None:  # adapters alone are no reward model
        distributed.on_main_process(partial(job.policy.save_adapter, out / "adapters"))
    reads = _save(job, out / "model", save)
    _save_best(job, save)
    _write(out / "history.jsonl", "".join(json.dumps(row) + "\n" for row in history))
    seconds = time.perf_counter() - start
    card = model_card.model_card(
        job.method, record, settings.model, settings.sources, job.said, history, str(job.device), seconds, reads
    )
    _write(out / "README.md", card)
    _say(f"Done in {seconds:,.0f} s. The result is in {out / 'model'}.")


def _save_best(job: Job, save: Callable[[Job, Path], str] | None) -> None:
    """Write the model of the best held-out measurement. The weights in memory are then those of this model."""
    evaluation, out = job.evaluation, job.settings.out
    best = None if evaluation is None else evaluation.best
    if evaluation is None or best is None:
        return
    if distributed.is_main_process():
        best.load()
    _save(job, out / "best", save)
    value = best.row[PREFIX + evaluation.best_by]
    job.say(
        f"The best held-out {evaluation.best_by} is {value:.4g}, measured after {count_of(best.step, 'step')} of "
        f"{best.run}. The model of that moment is in {out / 'best'}."
    )


def _refuse_taken(out: Path, record: dict[str, Any], resume: bool, rules: output_folder.Rules) -> dict[str, Any]:
    """Check the folder without writing to it, so that a run that is refused later leaves no files.

    Returns the former values of the settings by which a resumed run is extended.
    """
    if resume or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        return output_folder.claim(out, record, resume, rules, write=False)
    return {}


def _remove_unstarted(out: Path) -> None:
    """Remove the folder of a run that was refused before its first step, so that the next run can use it."""
    ours = {"run.json", "settings.yaml"}
    if distributed.is_main_process() and {path.name for path in out.iterdir() if not path.name.startswith(".")} <= ours:
        shutil.rmtree(out)


def _save(job: Job, folder: Path, save: Callable[[Job, Path], str] | None) -> str:
    """Write the folder under a temporary name and rename it, so that it never exists half-written."""
    part = folder.with_name(f".{folder.name}.part")

    def write() -> str:
        shutil.rmtree(part, ignore_errors=True)
        if save is None:
            job.policy.save_pretrained(part)
            reads = POLICY
        else:
            reads = save(job, part)
        _cast(part, job.save_dtype)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)
        return reads

    def write_or_raise() -> str:
        try:
            return write()
        except (OSError, SafetensorError) as error:
            shutil.rmtree(part, ignore_errors=True)
            raise LabError(
                f"The result cannot be written to {folder} ({str(error).splitlines()[0]}). "
                f"{checkpoint.what_was_saved(folder.parent)}"
            ) from None

    return distributed.on_main_process(write_or_raise) or ""


def _save_dtype(settings: Common, config: Any) -> torch.dtype:
    """The number type of `--save-dtype`; auto: that of the model's files, float32 if they do not say."""
    name = settings.save_dtype
    if name == "auto":
        name = str(getattr(config.get_text_config(), "dtype", None) or "float32").removeprefix("torch.")  # type: ignore
    found = getattr(torch, name, torch.float32)
    return found if found in (torch.float32, torch.bfloat16, torch.float16) else torch.float32


def _cast(folder: Path, dtype: torch.dtype) -> None:
    """Convert the float32 weights of a saved model to `dtype`, file by file. The head of a reward model is small."""
    if dtype == torch.float32:
        return
    for file in folder.glob("model*.safetensors"):
        save_file(
            {k: v.to(dtype) if v.dtype == torch.float32 else v for k, v in load_file(file).items()},
            file,
            {"format": "pt"},
        )
    config = folder / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(
        json.dumps({**settings, "dtype": str(dtype).removeprefix("torch.")}, indent=2) + "\n", encoding="utf-8"
    )


def _write(path: Path, text: str) -> None:
    if distributed.is_main_process():
        checkpoint.write_text(path, text)


def _say(text: str) -> None:
    if distributed.is_main_process():
        print(text, file=sys.stderr, flush=True)


def new_critic(policy: Policy, reward: Reward) -> Any:
    """Return a critic for `policy`, which starts from the reward model if the reward is a language model."""
    from rlhf_lab.rewards.language_model import LanguageModelReward

    return policy.new_critic(reward if isinstance(reward, LanguageModelReward) else None)
