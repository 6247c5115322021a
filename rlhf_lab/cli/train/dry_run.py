"""`rlhf-lab train NAME --dry-run`: what a run would do, from its settings, its data and the sizes of its model.

The memory and the time are those of `rlhf-lab plan` for the longest prompt and the longest response of the data.
"""

from __future__ import annotations

import textwrap
from functools import partial
from typing import Any

from rlhf_lab.cli import plan
from rlhf_lab.cli.train.data import Data
from rlhf_lab.errors import LabError
from rlhf_lab.training import Training, distributed

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
    rounds = "" if settings.extends else " in each round or stage"
    if training is None:
        lines.append("steps     as many as the pairs give, whose number is known after responses are sampled")
    else:
        rows = len(data) or settings.limit
        each = min(settings.batch_size, rows) if rows and settings.extends else settings.batch_size
        lines.append(f"steps     {training.steps:,}{rounds}, of {each:,} rows each")
        if rows and settings.extends:
            lines.append(f"epochs    {training.steps * each / rows:.3g} passes over {rows:,} rows")
        lines.append(
            f"rate      {training.learning_rate:g} at its peak, {training.warmup:,} steps of warm-up, then "
            f"{training.schedule}"
        )
    lines += [f"estimate  {line}" for line in _estimate(settings, method, data, training, limits)]
    state = "continued" if settings.resume else "new or empty, and it would be written"
    lines.append(f"output    {settings.out} ({state})")
    wrap = partial(textwrap.wrap, width=WIDTH, subsequent_indent=" " * 10, break_long_words=False)
    return "\n".join(part for line in lines for part in wrap(line, break_on_hyphens=False))


def _estimate(settings: Any, method: str, data: Data, training: Training | None, limits: tuple[int, int]) -> list[str]:
    """Memory and time as `rlhf-lab plan` estimates them, or why it cannot."""
    prompts, responses = (
        (data.prompts, data.targets) if data.pairs is None else (data.pairs.prompts, data.pairs.responses)
    )
    longest = [
        limit if part is None or len(part) == 0 else int(part.lengths.max())
        for part, limit in zip((prompts, responses), limits, strict=True)
    ]
    try:
        wanted = plan.ResourcePlan(
            model=settings.model,
            method=method,  # type: ignore[arg-type]
            batch_size=settings.batch_size,
            prompt_tokens=longest[0],
            response_tokens=longest[1],
            steps=1 if training is None else training.steps,
            precision=settings.precision,
            accumulate=settings.accumulate,
            gradient_checkpointing=settings.gradient_checkpointing,
            lora_rank=settings.lora_rank,
            num_devices=distributed.world_size(),
        )
        found = plan.estimate(wanted, plan.machine(settings.device))
    except LabError as error:
        return [f"none ({error})"]
    memory = f"{plan.gib(found.peak)} of memory, and {plan.gib(found.available)} are free on {found.device.name}"
    if not found.fits:
        memory += ". The run does not fit; `rlhf-lab plan` lists settings that need less"
    if training is None:
        return [memory]
    seconds = plan.duration(found.seconds)
    return [
        memory,
        f"{seconds} for a step, {plan.duration(found.seconds * training.steps)} for all (within a factor of 2)",
    ]
