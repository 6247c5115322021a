"""`rlhf-lab train NAME --dry-run`: what a run would do, from its settings, its data and the sizes of its model.

The memory and the time are those of `rlhf-lab plan` for the longest prompt and the longest response of the data.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from rlhf_lab.algorithms.dpo import DPO
from rlhf_lab.cli import plan
from rlhf_lab.cli.resource_estimate import Workload
from rlhf_lab.cli.train import sampling_batch
from rlhf_lab.cli.train.checks import longest_row
from rlhf_lab.cli.train.data import Data
from rlhf_lab.cli.train.reward import find_reward
from rlhf_lab.errors import LabError, count_of
from rlhf_lab.training import Training, checkpoint, distributed

WIDTH = 80
"""Columns of the output. Only a path may be longer."""


def describe(
    settings: Any, method: str, data: Data, held_out: Data | None, training: Training | None, limits: tuple[int, int]
) -> str:
    """Return what a run would do, as lines of text.

    Args:
        settings: of the command.
        method: the name of the method on the command line.
        data: the data that are trained on. It is empty if pairs are sampled from the model.
        held_out: the data that are measured, or None.
        training: settings of the training loop; None if the number of rows is known only after responses are sampled.
        limits: maximum lengths of a prompt and of a response, in tokens.
    """
    lines = [f"Dry run of `rlhf-lab train {method}`. Nothing was trained or written."]
    lines += [f"data      {line}" for line in [*data.said, *(held_out.said if held_out is not None else [])]]
    # Methods that train several times have the steps in each round or stage.
    rounds = "" if settings.extends else " in each round or stage"
    done = checkpoint.finished_steps(settings.out) if settings.resume and settings.extends else 0
    if training is None:
        lines.append("steps     as many as the pairs give, whose number is known after responses are sampled")
    else:
        rows = len(data) or settings.limit
        each = min(settings.batch_size, rows) if rows and settings.extends else settings.batch_size
        lines.append(f"steps     {training.steps:,}{rounds}, of {count_of(each, 'row')} each")
        if settings.resume and settings.extends:
            lines[-1] += f"; {done:,} are done and {max(training.steps - done, 0):,} remain"
        if rows and settings.extends:
            epochs = f"{training.steps * each / rows:.3g}"
            lines.append(f"epochs    {epochs} pass{'es' * (epochs != '1')} over {count_of(rows, 'row')}")
        lines.append(
            f"rate      {training.learning_rate:g} at its peak, {count_of(training.warmup, 'step')} of warm-up, then "
            f"{training.schedule}"
        )
    lines += [f"estimate  {line}" for line in _estimate(settings, method, data, training, limits, done)]
    state = "continued" if settings.resume else "new or empty, and it would be written"
    lines.append(f"output    {settings.out} ({state})")
    wrap = partial(textwrap.wrap, width=WIDTH, subsequent_indent=" " * 10, break_long_words=False)
    return "\n".join(part for line in lines for part in wrap(line, break_on_hyphens=False))


def _estimate(
    settings: Any, method: str, data: Data, training: Training | None, limits: tuple[int, int], done: int
) -> list[str]:
    """Memory and time as `rlhf-lab plan` estimates them, or why it cannot. `done` steps are not counted."""
    prompts, responses = (
        (data.prompts, data.targets) if data.pairs is None else (data.pairs.prompts, data.pairs.responses)
    )
    longest = [
        limit if part is None or len(part) == 0 else int(part.lengths.max())
        for part, limit in zip((prompts, responses), limits, strict=True)
    ]
    if getattr(settings, "train_on", "last") == "all":  # both limits are those of prompt and response together
        longest[1] = min(longest[1], max(longest_row(data, limits[1]) - longest[0], 1))
    left = 1 if training is None else max(training.steps - done, 0)
    try:
        found = plan.report_of(_workload(settings, method, longest), plan.machine(settings.device), left)
    except LabError as error:
        return [f"none ({error})"]
    memory = f"{plan.gib(found.peak)} of memory, and {plan.gib(found.available)} are free on {found.device.name}"
    if not found.fits:
        memory += ". The run does not fit; `rlhf-lab plan` lists settings that need less"
    if training is None:
        return [memory]
    step, whole = plan.duration(found.seconds), plan.duration(found.seconds * left)
    which = "all" if settings.extends else "those of a round or stage"
    which = f"the remaining {left:,}" if settings.resume and settings.extends else which
    return [memory, f"{step} for a step, {whole} for {which} (within a factor of 2)"]


def _workload(settings: Any, method: str, longest: Sequence[int]) -> Workload:
    """The run in the form that `resource_estimate` takes. `longest` has the tokens of a prompt and of a response."""
    continues = settings.adapter == "continue"
    wanted = plan.ResourcePlan(
        model=settings.model,
        method=method,  # type: ignore[arg-type]
        batch_size=settings.batch_size,
        prompt_tokens=longest[0],
        response_tokens=longest[1],
        samples=_samples(settings),
        precision=settings.precision,
        accumulate=settings.accumulate,
        gradient_checkpointing=settings.gradient_checkpointing,
        lora_rank=None if continues else settings.lora_rank,
        adapter=settings.adapter,
        load_in_4bit=settings.load_in_4bit,
        num_devices=distributed.world_size(),
        fsdp=distributed.uses_fsdp(),
    )
    load = wanted.workload()
    cost, group = load.method, getattr(settings, "group", None) or getattr(settings, "ppo", None)
    if (loss := getattr(settings, "dpo", None)) is not None:
        cost = replace(cost, reference=loss.needs_reference)
    if (rso := getattr(settings, "rso", None)) is not None:
        pairs = rso.accepted - 1 if rso.pairing == "tournament" else rso.accepted // 2
        cost = replace(cost, reference=DPO(rso.loss).needs_reference, sampled=cost.samples_per_prompt / pairs)
        if rso.source == "direct":
            cost = replace(cost, sampled=0.0, samples_per_prompt=0)
    if group is not None:
        cost = replace(cost, epochs=group.epochs)
    reward = getattr(settings, "reward", None)
    other = getattr(settings, "reference", None) is not None
    cost = replace(cost, reward=reward is not None and find_reward(reward) is not None)
    return replace(load, method=cost, own_reference=other)


def _samples(settings: Any) -> int | None:
    """Responses that are sampled to a prompt at the same time, if it is a setting."""
    for name, number in sampling_batch.RESPONSES.items():
        if (group := getattr(settings, name, None)) is not None:
            return None if getattr(group, "source", "") == "direct" else number(group)
    group = getattr(settings, "group", None) or getattr(settings, "ppo", None)
    return None if group is None else int(group.samples)
