"""`rlhf-lab plan`: estimate the memory and the time that a training run needs, before anything is loaded.

The speed of this machine is measured in about a second, with matrix products and copies. The speed of a GPU that this
machine does not have is taken from its data sheet. The estimates aim to be within 15% for the memory of tensors and
within a factor of two for time. The allocator holds further memory between tensors, so a part of the free memory is
kept in reserve. Times on GPUs have not been compared with real runs yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import indent
from typing import Any, Literal

from rlhf_lab.cli.resource_estimate import METHODS, Workload, memory, operations, shape_of, traffic
from rlhf_lab.errors import Count, LabError, Positive, check_settings, count_of, refuse_unused
from rlhf_lab.policies.loading import adapters_folder, count_adapter_weights

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """The speed and the memory of a device."""

    name: str
    fp32: float
    """Operations per second of float32 matrix products, as torch computes them by default."""
    bf16: float
    """Operations per second of bfloat16 matrix products."""
    bandwidth: float
    """Memory bandwidth in bytes per second."""
    memory: float
    """Bytes available to the run."""
    measured: bool = False
    """Whether the numbers were measured, not taken from a data sheet."""


CARDS = {
    # From NVIDIA's data sheets, without sparsity. float32 is without tensor cores and bfloat16 with them. V100 and T4
    # have no bfloat16, so their float32 rate is given.
    "t4": Device("T4", 8.1e12, 8.1e12, 0.32e12, 15 * GIB),
    "v100": Device("V100 32 GB", 15.7e12, 15.7e12, 0.9e12, 31 * GIB),
    "l4": Device("L4", 30.3e12, 121e12, 0.3e12, 22 * GIB),
    "rtx4090": Device("RTX 4090", 82.6e12, 165e12, 1.01e12, 23 * GIB),
    "a100": Device("A100 80 GB", 19.5e12, 312e12, 2.04e12, 79 * GIB),
    "h100": Device("H100 80 GB", 67e12, 989e12, 3.35e12, 79 * GIB),
    "h200": Device("H200", 67e12, 989e12, 4.8e12, 139 * GIB),
}
EFFICIENCY = 0.5
"""Share of the rate of matrix products that a training step is assumed to reach; see docs/benchmarks.md."""


@dataclass(frozen=True, kw_only=True)
class ResourcePlan:
    """Estimate the memory and the time that a training run needs."""

    model: str = "gpt2"
    """Model: gpt2 … gpt2-xl, pythia-70m … pythia-12b, smollm2, lab-gpt2, lab-pythia, or a folder with a config.json."""
    method: Literal[
        "sft", "reward-model", "ranker", "dpo", "kto", "rso", "raft", "rest", "iterated-dpo", "ppo", "rloo", "grpo"
    ] = "dpo"
    """Training method."""
    batch_size: Count = 32
    """Rows of a step over all devices. A row is a prompt, a pair or a response, depending on the method."""
    prompt_tokens: Count | None = None
    """Tokens of a typical long prompt. Default: 256, or three quarters of the context if the context is short."""
    response_tokens: Count | None = None
    """Tokens of a typical long response. Default: 64, or a quarter of the context if the context is short."""
    samples: Count | None = None
    """Responses sampled for each prompt, for methods that sample. Default: that of the method."""
    steps: Count = 1000
    """Optimiser steps. For PPO, the number of rounds."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of matrix products, as in `rlhf-lab train`."""
    accumulate: Count = 1
    """Number of parts into which a batch is split, as in `rlhf-lab train`."""
    gradient_checkpointing: bool = False
    """Whether activations are recomputed in the backward pass, as in `rlhf-lab train`."""
    lora_rank: Count | None = None
    """Rank of LoRA adapters. Default: all weights are trained."""
    adapter: Literal["merge", "continue"] = "merge"
    """Whether the LoRA adapters that `model` names are trained further, as in `rlhf-lab train`."""
    load_in_4bit: bool = False
    """Whether the frozen matrices are in 4 bits, as in `rlhf-lab train`."""
    device: str = "auto"
    """Device: auto (this machine's GPU if it has one, else its CPU), cpu, or one of t4, v100, l4, rtx4090, a100, h100,
    h200, whose data sheet is used."""
    num_devices: Count = 1
    """Number of devices that train together."""
    fsdp: bool = False
    """Spread weights, gradients and optimiser state over the devices (configs/fsdp.yaml)."""
    memory_gb: Positive | None = None
    """Memory of each device in GiB. Default: the memory that was found."""

    def __post_init__(self) -> None:
        check_settings(self)

    def tokens(self, context: int) -> tuple[int, int]:
        """Return the numbers of tokens of a prompt and of a response.

        Args:
            context: number of tokens in the model's context.
        """
        return (
            min(256, context * 3 // 4) if self.prompt_tokens is None else self.prompt_tokens,
            min(64, context // 4) if self.response_tokens is None else self.response_tokens,
        )

    def workload(self) -> Workload:
        """Return the run in the form that `resource_estimate` takes.

        Raises:
            LabError: a setting cannot be used, the model is not known, or its context is too short.
        """
        if self.accumulate > self.batch_size:
            rows = count_of(self.batch_size, "row")
            raise LabError(f"accumulate={self.accumulate} cannot split a batch of {rows}. Lower it.")
        if self.fsdp and self.num_devices == 1:
            raise LabError("fsdp spreads weights over several devices. Set num_devices to at least 2.")
        if self.method not in METHODS:
            raise LabError(f"There is no method {self.method!r}. The methods are {', '.join(METHODS)}.")
        shape, method = shape_of(self.model), METHODS[self.method]
        saved = 0
        if self.adapter == "continue":
            refuse_unused(self, ["lora_rank"], "with adapter=continue, since the adapters have their rank")
            saved = count_adapter_weights(adapters_folder(self.model))
        if self.load_in_4bit and (not (self.lora_rank or saved) or self.fsdp):
            raise LabError(
                "load_in_4bit needs lora_rank or adapter=continue. It cannot be used with fsdp, which spreads the "
                "weights."
            )
        if self.lora_rank is not None and self.lora_rank > shape.hidden:
            raise LabError(f"lora_rank must be at most {shape.hidden}, the model's hidden size, not {self.lora_rank}.")
        prompt, response = self.tokens(shape.context)
        if prompt + response > shape.context:
            raise LabError(
                f"{count_of(prompt, 'prompt token')} and {count_of(response, 'response token')} are more than the "
                f"{shape.context} tokens of {self.model}'s context. Lower one of them."
            )
        if self.samples is not None:
            if not method.samples_per_prompt:
                raise LabError(
                    f"samples={self.samples} has no effect, because {self.method} does not sample. Leave it out."
                )
            factor = self.samples / method.samples_per_prompt
            responses = self.samples if self.method in ("ppo", "rloo", "grpo") else method.responses
            sampled = method.sampled if self.method == "rest" else method.sampled * factor
            method = replace(method, samples_per_prompt=self.samples, responses=responses, sampled=sampled)
        return Workload(
            shape, method, self.batch_size, prompt, response, self.precision == "bf16",
            self.accumulate, self.gradient_checkpointing, self.lora_rank, saved, False, self.load_in_4bit,
            self.num_devices, self.fsdp,
        )  # fmt: skip


@dataclass(frozen=True)
class ResourceReport:
    """The estimate for a run.

    Attributes:
        parameters: number of weights of the model.
        trained: number of trained weights.
        memory: bytes on each device, by purpose.
        available: bytes that are available on a device.
        operations: floating-point operations of a step, by purpose.
        seconds: time of a step.
        steps: number of steps.
        device: the device that the estimate is for.
        changes: settings that need less memory, each with its peak in bytes. Empty if the run fits.
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
        """Largest number of bytes on a device at any time."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether the run fits into the memory with `reserve` left over."""
        return self.fitting(self.peak)

    def fitting(self, peak: float) -> bool:
        """Return whether `peak` bytes of tensors fit."""
        return peak <= (1 - self.reserve) * self.available

    @property
    def reserve(self) -> float:
        """Share of the memory kept for the allocator: a tenth on a GPU, a fifth on a CPU (docs/scaling.md)."""
        return 0.2 if self.device.name == "CPU" else 0.1


def plan(settings: ResourcePlan) -> ResourceReport:
    """Run the command: estimate, print the table and return the estimate."""
    report = estimate(settings, machine(settings.device))
    print(table(settings, report))
    return report


def estimate(settings: ResourcePlan, device: Device) -> ResourceReport:
    """Return the estimate of a run on a device.

    Raises:
        LabError: see `ResourcePlan.workload`.
    """
    if settings.memory_gb is not None:
        device = replace(device, memory=settings.memory_gb * GIB)
    report = report_of(settings.workload(), device, settings.steps)
    return report if report.fits else replace(report, changes=_changes(settings, device))


def report_of(load: Workload, device: Device, steps: int) -> ResourceReport:
    """Return the estimate of a workload on a device, without changes that need less memory."""
    return ResourceReport(
        parameters=load.shape.parameters(),
        trained=load.trained,
        memory=memory(load, _process(device)),
        available=device.memory,
        operations=operations(load),
        seconds=_seconds(load, device),
        steps=steps,
        device=device,
        changes={},
    )


def _process(device: Device) -> int:
    """Bytes before anything is computed, for torch and transformers in main memory or for the CUDA context on a GPU."""
    return int((0.45 if device.name == "CPU" else 0.6) * GIB)


def _seconds(load: Workload, device: Device) -> float:
    """Time of a step: operations at `EFFICIENCY` of the device's rate, plus the memory traffic."""
    rate = device.bf16 if load.bf16 else device.fp32
    work = sum(operations(load).values()) / (EFFICIENCY * rate)
    return (work + traffic(load) / device.bandwidth) / load.devices


def _possible_changes(settings: ResourcePlan) -> list[tuple[str, dict[str, Any]]]:
    """Settings that may need less memory: in words, and as changes of the plan."""
    each: list[tuple[str, dict[str, Any]]] = []
    if settings.batch_size > settings.accumulate * settings.num_devices:
        each.append((f"accumulate={settings.batch_size // settings.num_devices}", {
            "accumulate": max(settings.batch_size // settings.num_devices, 1)}))  # fmt: skip
    if not settings.gradient_checkpointing:
        each.append(("gradient_checkpointing", {"gradient_checkpointing": True}))
    if settings.precision == "fp32":
        each.append(("precision=bf16", {"precision": "bf16"}))
    load = settings.workload()
    half = max(load.prompt // 2, 1), max(load.response // 2, 1)
    each.append(("prompts and responses half as long", {"prompt_tokens": half[0], "response_tokens": half[1]}))
    if METHODS[settings.method].samples_per_prompt and settings.batch_size > 1:
        each.append(("batch_size=1", {"batch_size": 1, "accumulate": 1}))
    if not load.adapted:
        each.append(("lora_rank=16", {"lora_rank": 16}))
    elif not settings.load_in_4bit and not settings.fsdp:
        each.append(("load_in_4bit", {"load_in_4bit": True}))
    if not settings.fsdp and not settings.load_in_4bit:
        number = max(settings.num_devices, 4)
        each.append((f"num_devices={number} with fsdp", {"num_devices": number, "fsdp": True}))
    return each


def _changes(settings: ResourcePlan, device: Device) -> dict[str, int]:
    """Settings that need less memory, each with its peak: first one change at a time, then several together."""

    def peak(change: dict[str, Any]) -> int:
        return sum(memory(replace(settings, **change).workload(), _process(device)).values())

    now, found = peak({}), dict[str, tuple[dict[str, Any], int]]()
    for name, change in _possible_changes(settings):
        # A change can also need more memory. bf16 does if weights outweigh activations, since it keeps a copy of them.
        if (needed := peak(change)) < now:
            found[name] = change, needed
    usual = [name for name in found if name.startswith(("accumulate", "gradient", "precision"))]
    for names in (usual, [*usual, *(name for name in found if name.startswith("lora"))]):
        if len(names) > 1:
            together = {key: value for name in names for key, value in found[name][0].items()}
            found.setdefault(", ".join(names), (together, peak(together)))
    return {name: needed for name, (_, needed) in found.items()}


def machine(name: str = "auto") -> Device:
    """Return the speed and memory of a device, from its data sheet or, for a device of this machine, measured.

    Raises:
        LabError: this machine has no such device, and the name is not in `CARDS`.
    """
    if name in CARDS:
        return CARDS[name]
    from rlhf_lab.policies.loading import pick_device

    return _measure(pick_device(name))


def _measure(device: Any) -> Device:
    """Measure matrix products and copies for about a second."""
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
    """Bytes of free main memory, within the limit of the container."""
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


def table(settings: ResourcePlan, report: ResourceReport) -> str:
    """Return the estimate as text."""
    method, load = METHODS[settings.method], settings.workload()
    trained = "" if report.trained >= report.parameters * 0.5 else f", {report.trained:,} of them trained"
    seconds, all_seconds = duration(report.seconds), duration(report.seconds * report.steps)
    lines = [
        f"{settings.model}: {report.parameters:,} weights{trained}; {settings.method}, "
        f"{count_of(settings.batch_size, method.row)} of {load.prompt} + {load.response} tokens in a step, "
        f"{settings.precision}",
        _device_line(settings, report.device),
        "",
        f"memory{' of each device' if settings.num_devices > 1 else ''}",
        _columns({**report.memory, "sum": report.peak}, gib),
        f"  {gib(report.available)} are available.",
        "",
        "operations of a step",
        _columns(report.operations, lambda value: f"{_si(value)}FLOP"),
        f"  A step takes {seconds}" + f", and {settings.steps:,} steps take {all_seconds}" * (settings.steps > 1) + ".",
        "",
    ]
    if report.fits:
        lines.append(f"The run fits. {gib(report.available - report.peak)} remain free.")
    else:
        reserve = "a fifth" if report.reserve == 0.2 else "a tenth"
        lines.append(f"The run does not fit, because {reserve} of the memory is kept free. These settings need less:")
        fits = {name: "fits" if report.fitting(peak) else "does not fit" for name, peak in report.changes.items()}
        lines.append(_columns(report.changes, gib, fits))
    lines.append(
        "These are estimates, within 15% for tensors, to which the allocator adds, and a factor of two for time. "
        "Times on GPUs have not been measured yet."
    )
    return "\n".join(lines)


def _device_line(settings: ResourcePlan, device: Device) -> str:
    several = f"{settings.num_devices} × " if settings.num_devices > 1 else ""
    sharded = ", weights spread by FSDP" if settings.fsdp else ""
    return (
        f"on {several}{device.name}{sharded} ({'measured' if device.measured else 'data sheet'}: "
        f"{_si(device.fp32)}FLOP/s in fp32, {_si(device.bf16)}FLOP/s in bf16, {_si(device.bandwidth)}B/s)"
    )


def _columns(
    values: Mapping[str, float], written: Callable[[float], str], notes: Mapping[str, str] | None = None
) -> str:
    """Names, values and, if given, notes in aligned columns."""
    import pandas as pd

    columns = {"value": [written(value) for value in values.values()]}
    if notes is not None:
        columns["note"] = [notes[name] for name in values]
    return indent(pd.DataFrame(columns, index=list(values)).to_string(header=False), "  ")


def gib(value: float) -> str:
    """Return a number of bytes as text, in GiB or MiB."""
    return f"{value / GIB:,.2f} GiB" if value >= 0.1 * GIB else f"{value / 2**20:,.1f} MiB"


def _si(value: float) -> str:
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:,.3g} {letter}"
    return f"{value:,.3g} "


def duration(seconds: float) -> str:
    """Return a time as text, in a unit in which it is at least 1."""
    for size, unit in ((86400.0, "days"), (3600.0, "h"), (60.0, "min"), (1.0, "s")):
        if seconds >= size:
            return f"{seconds / size:,.3g} {unit}"
    return f"{seconds * 1000:,.3g} ms"
