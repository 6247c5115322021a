"""`rlhf-lab plan`: what a model, a method and a batch need in memory and time, before anything is loaded.

The machine's own speed is measured in a second (products of matrices, and copying). A GPU that is not here is taken
from its maker's data sheet. Numbers are estimates: memory of tensors is meant to be right within 15%, time within a
factor of two. What an allocator holds between tensors comes on top, so that not all that is free is counted on. Times
of GPUs are not yet measured against real runs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rlhf_lab.cli.resource_estimate import METHODS, Load, memory, operations, shape_of, traffic
from rlhf_lab.errors import Count, LabError, Positive, check_settings

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """A device's speed and memory."""

    name: str
    fp32: float
    """Operations a second in float32 products, as torch runs them by default."""
    bf16: float
    """In bfloat16 products."""
    bandwidth: float
    """Bytes a second that can be read."""
    memory: float
    """Bytes there are for us."""
    measured: bool = False


CARDS = {
    # NVIDIA's data sheets, dense: float32 without tensor cores, bfloat16 with (V100 and T4 have none: float32's).
    "t4": Device("T4", 8.1e12, 8.1e12, 0.32e12, 15 * GIB),
    "v100": Device("V100 32 GB", 15.7e12, 15.7e12, 0.9e12, 31 * GIB),
    "l4": Device("L4", 30.3e12, 121e12, 0.3e12, 22 * GIB),
    "rtx4090": Device("RTX 4090", 82.6e12, 165e12, 1.01e12, 23 * GIB),
    "a100": Device("A100 80 GB", 19.5e12, 312e12, 2.04e12, 79 * GIB),
    "h100": Device("H100 80 GB", 67e12, 989e12, 3.35e12, 79 * GIB),
    "h200": Device("H200", 67e12, 989e12, 4.8e12, 139 * GIB),
}
EFFICIENCY = 0.5
"""Part of the products' own rate that a step reaches: the aim of this project's passes, see docs/benchmarks.md."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Say what a run needs in memory and time, beforehand."""

    model: str = "gpt2"
    """gpt2 … gpt2-xl, pythia-70m … pythia-12b, smollm2, lab-gpt2, lab-pythia, or a folder with a config.json."""
    method: Literal[
        "sft", "reward-model", "ranker", "dpo", "kto", "rso", "raft", "rest", "iterated-dpo", "ppo", "rloo", "grpo"
    ] = "dpo"
    """The method."""
    batch_size: Count = 32
    """Rows of a step over all devices: prompts, or pairs, as the method has it."""
    prompt_tokens: Count | None = None
    """Tokens of a usual long prompt. By default 256, or three quarters of a shorter context."""
    response_tokens: Count | None = None
    """Tokens of a usual long response. By default 64, or a quarter of a shorter context."""
    samples: Count | None = None
    """Responses drawn for a prompt, where the method draws; None for its default."""
    steps: Count = 1000
    """Optimiser steps (of ppo: rounds)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """As in training."""
    accumulate: Count = 1
    """As in training."""
    gradient_checkpointing: bool = False
    """As in training."""
    lora_rank: Count | None = None
    """Adapters of this rank; None: all weights are trained."""
    device: str = "auto"
    """auto: the GPU here, else the CPU; cpu; or a card that is not here: t4, v100, l4, rtx4090, a100, h100, h200."""
    num_devices: Count = 1
    """Devices that train together."""
    fsdp: bool = False
    """Weights, gradients and optimiser state spread over the devices (configs/fsdp.yaml)."""
    memory_gb: Positive | None = None
    """Memory of a device in GiB, instead of what is found."""

    def __post_init__(self) -> None:
        check_settings(self)

    def tokens(self, context: int) -> tuple[int, int]:
        """Tokens of a prompt and of a response, in a context of so many."""
        return (
            min(256, context * 3 // 4) if self.prompt_tokens is None else self.prompt_tokens,
            min(64, context // 4) if self.response_tokens is None else self.response_tokens,
        )

    def load(self) -> Load:
        """The run as `needs` counts it.

        Raises:
            LabError: a number that cannot be used; a model that is not known; more tokens than its context holds.
        """
        if self.accumulate > self.batch_size:
            raise LabError(f"accumulate={self.accumulate} cannot cut a batch of {self.batch_size} rows. Lower it.")
        if self.fsdp and self.num_devices == 1:
            raise LabError("fsdp spreads weights over several devices; set num_devices.")
        if self.method not in METHODS:
            raise LabError(f"There is no method {self.method!r}; there are {', '.join(METHODS)}.")
        shape, method = shape_of(self.model), METHODS[self.method]
        if self.lora_rank is not None and self.method in ("reward-model", "ranker"):
            raise LabError(f"lora_rank is for policies; {self.method} trains a whole body and its head. Leave it out.")
        if self.lora_rank is not None and self.lora_rank > shape.hidden:
            raise LabError(f"lora_rank must be at most {shape.hidden}, the model's hidden size, not {self.lora_rank}.")
        prompt, response = self.tokens(shape.context)
        if prompt + response > shape.context:
            raise LabError(
                f"{prompt} and {response} tokens are more than the {shape.context} that {self.model}'s context holds."
            )
        if self.samples is not None:
            if not method.at_once:
                raise LabError(f"samples={self.samples} has no effect: {self.method} draws none. Leave it out.")
            factor = self.samples / method.at_once
            learned = self.samples if self.method in ("ppo", "rloo", "grpo") else method.learned
            drawn = method.drawn if self.method == "rest" else method.drawn * factor
            method = replace(method, at_once=self.samples, learned=learned, drawn=drawn)
        return Load(
            shape, method, self.batch_size, prompt, response, self.precision == "bf16",
            self.accumulate, self.gradient_checkpointing, self.lora_rank or 0, self.num_devices, self.fsdp,
        )  # fmt: skip


@dataclass(frozen=True)
class Report:
    """What a plan came to.

    Attributes:
        parameters: weights of the model.
        trained: weights that are trained.
        memory: bytes on each device, by what they are for.
        available: bytes that a device has for us.
        operations: floating-point operations of a step.
        seconds: of a step.
        steps: how many.
        device: what was reckoned with.
        changes: settings that would help, each with the bytes it would take.
    """

    parameters: int
    trained: int
    memory: dict[str, int]
    available: float
    operations: dict[str, float]
    seconds: float
    steps: int
    device: Device
    changes: dict[str, int]

    @property
    def peak(self) -> int:
        """Bytes on each device at the worst moment."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether they are there, with `spare` left for what an allocator holds between tensors."""
        return self.fitting(self.peak)

    def fitting(self, peak: float) -> bool:
        """Whether so many bytes of tensors would fit."""
        return peak <= (1 - self.spare) * self.available

    @property
    def spare(self) -> float:
        """The share of the memory that is not counted on: a tenth on a GPU, a fifth on a CPU (docs/scaling.md)."""
        return 0.2 if self.device.name == "CPU" else 0.1


def plan(settings: Plan) -> Report:
    """Reckon, print the table, and return what it says."""
    report = reckon(settings, machine(settings.device))
    print(table(settings, report))
    return report


def reckon(settings: Plan, device: Device) -> Report:
    """Needs of a run on a device.

    Raises:
        LabError: see `Plan.load`.
    """
    load = settings.load()
    if settings.memory_gb is not None:
        device = replace(device, memory=settings.memory_gb * GIB)
    needed = memory(load, _process(device))
    report = Report(
        parameters=load.shape.parameters(),
        trained=load.trained,
        memory=needed,
        available=device.memory,
        operations=operations(load),
        seconds=_seconds(load, device),
        steps=settings.steps,
        device=device,
        changes={},
    )
    return report if report.fits else replace(report, changes=_changes(settings, device))


def _process(device: Device) -> int:
    """Bytes before anything is computed: torch and transformers in main memory, or a CUDA context on a card."""
    return int((0.45 if device.name == "CPU" else 0.6) * GIB)


def _seconds(load: Load, device: Device) -> float:
    """Products at half their own rate, and beside them what memory must move."""
    rate = device.bf16 if load.bf16 else device.fp32
    work = sum(operations(load).values()) / (EFFICIENCY * rate)
    return (work + traffic(load) / device.bandwidth) / load.devices


def _changes(settings: Plan, device: Device) -> dict[str, int]:
    """Settings that need less memory, each with its peak: one at a time, then together."""
    each: list[tuple[str, dict[str, Any]]] = []
    if settings.batch_size > settings.accumulate * settings.num_devices:
        each.append((f"accumulate={settings.batch_size // settings.num_devices}", {
            "accumulate": max(settings.batch_size // settings.num_devices, 1)}))  # fmt: skip
    if not settings.gradient_checkpointing:
        each.append(("gradient_checkpointing", {"gradient_checkpointing": True}))
    if settings.precision == "fp32":
        each.append(("precision=bf16", {"precision": "bf16"}))
    load = settings.load()
    half = max(load.prompt // 2, 1), max(load.response // 2, 1)
    each.append(("prompts and responses half as long", {"prompt_tokens": half[0], "response_tokens": half[1]}))
    if METHODS[settings.method].at_once and settings.batch_size > 1:
        each.append(("batch_size=1", {"batch_size": 1, "accumulate": 1}))
    if settings.lora_rank is None:
        each.append(("lora_rank=16", {"lora_rank": 16}))
    if not settings.fsdp:
        number = max(settings.num_devices, 4)
        each.append((f"num_devices={number} with fsdp", {"num_devices": number, "fsdp": True}))

    def peak(change: dict[str, Any]) -> int:
        return sum(memory(replace(settings, **change).load(), _process(device)).values())

    now, found = peak({}), dict[str, tuple[dict[str, Any], int]]()
    for name, change in each:
        # bf16, for one, needs more where weights outweigh activations: it keeps a copy of them.
        if (needed := peak(change)) < now:
            found[name] = change, needed
    usual = [name for name in found if name.startswith(("accumulate", "gradient", "precision"))]
    for names in (usual, [*usual, *(name for name in found if name.startswith("lora"))]):
        if len(names) > 1:
            together = {key: value for name in names for key, value in found[name][0].items()}
            found.setdefault(", ".join(names), (together, peak(together)))
    return {name: needed for name, (_, needed) in found.items()}


def machine(name: str = "auto") -> Device:
    """The device's speed and memory: measured if it is here, else from its data sheet.

    Raises:
        LabError: neither here nor known.
    """
    if name in CARDS:
        return CARDS[name]
    from rlhf_lab.policies.loading import pick_device

    return _measure(pick_device(name))


def _measure(device: Any) -> Device:
    """A second of products and copies."""
    import torch

    def rate(function: Any, amount: float, budget: float = 0.25) -> float:
        function()
        best, end = float("inf"), time.perf_counter() + budget
        while time.perf_counter() < end:
            start = time.perf_counter()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best = min(best, time.perf_counter() - start)
        return amount / best

    size = 8192 if device.type == "cuda" else 768
    rates = []
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
        rates.append(rate(lambda a=a, b=b: a @ b, 2.0 * size**3))
    block = torch.ones(2**28 if device.type == "cuda" else 2**24, device=device)
    target = torch.empty_like(block)
    moved = rate(lambda: target.copy_(block), 2.0 * block.numel() * block.element_size())
    if device.type == "cuda":
        name, free = torch.cuda.get_device_name(device), float(torch.cuda.mem_get_info(device)[0])
    else:
        name, free = "CPU", _free_memory()
    return Device(name, rates[0], rates[1], moved, free, measured=True)


def _free_memory() -> float:
    """Main memory that is free, within the limit that a container sets."""
    import psutil

    free = float(psutil.virtual_memory().available)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            free = min(
                free, float(Path(limit).read_text(encoding="utf-8")) - float(Path(used).read_text(encoding="utf-8"))
            )
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return max(free, 1.0)


def table(settings: Plan, report: Report) -> str:
    """The report as a person reads it."""
    device, method, load = report.device, METHODS[settings.method], settings.load()
    several = f"{settings.num_devices} × " if settings.num_devices > 1 else ""
    spread = ", weights spread by FSDP" if settings.fsdp else ""
    trained = "" if report.trained >= report.parameters * 0.5 else f", {report.trained:,} of them trained"
    lines = [
        f"{settings.model}: {report.parameters:,} weights{trained}; {settings.method}, {settings.batch_size} "
        f"{method.row} of {load.prompt} + {load.response} tokens a step, {settings.precision}",
        f"on {several}{device.name}{spread} ({'measured' if device.measured else 'data sheet'}: "
        f"{_si(device.fp32)}FLOP/s in fp32, {_si(device.bf16)}FLOP/s in bf16, {_si(device.bandwidth)}B/s)",
        "",
        f"memory{' of each device' if settings.num_devices > 1 else ''}",
        *(f"  {name:<36}{_gib(value):>12}" for name, value in report.memory.items()),
        f"  {'all':<36}{_gib(report.peak):>12}   of {_gib(report.available)} free",
        "",
        "work of a step",
        *(f"  {name:<36}{_si(value):>9}FLOP" for name, value in report.operations.items()),
        f"  {'time':<36}{_time(report.seconds):>12}   {settings.steps:,} steps: {_time(report.seconds * report.steps)}",
        "",
    ]
    if report.fits:
        lines.append(f"It fits, with {_gib(report.available - report.peak)} to spare.")
    else:
        kept = "a fifth" if report.spare == 0.2 else "a tenth"
        lines.append(f"It does not fit ({kept} is kept free). Settings that need less:")
        for name, peak in report.changes.items():
            verdict = "fits" if report.fitting(peak) else "not enough"
            lines.append(f"  {name:<58}{_gib(peak):>12}   {verdict}")
    lines.append(
        "Estimates: tensors within 15%, and the allocator holds some more; time within a factor of two; times of GPUs "
        "not yet measured."
    )
    return "\n".join(lines)


def _gib(value: float) -> str:
    return f"{value / GIB:,.2f} GiB" if value >= 0.1 * GIB else f"{value / 2**20:,.1f} MiB"


def _si(value: float) -> str:
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:,.3g} {letter}"
    return f"{value:,.3g} "


def _time(seconds: float) -> str:
    for size, unit in ((86400.0, "days"), (3600.0, "h"), (60.0, "min"), (1.0, "s")):
        if seconds >= size:
            return f"{seconds / size:,.3g} {unit}"
    return f"{seconds * 1000:,.3g} ms"
