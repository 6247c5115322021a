"""Several processes that train one model: who am I, which rows are mine, whose word is written down.

Started by `accelerate launch` (or torchrun) with more than one process, every process runs the same program on the
same data with the same seeds. They differ in one place: of each step's batch a process computes its own share of the
rows, and the gradients are summed (`loop.py`). Only the first process writes. Alone, all of this is nothing:
accelerate is not even imported.

Two ways to hold the weights, as the launcher's configuration says:
- each process holds them all (data parallel: `configs/ddp.yaml`), and sums gradients after the backward pass;
- each process holds a part (FSDP: `configs/fsdp.yaml`), gathered layer by layer when a layer computes
  (Zhao et al. 2023, "PyTorch FSDP"; here the version that shards each tensor, `fully_shard`).

Left out on purpose: overlapping the sum of gradients with the backward pass, tensor and pipeline parallelism.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlhf_lab.errors import LabError

T = TypeVar("T")

BUCKET = 2**25
"""Numbers summed over processes at a time."""


def init_process_group() -> None:
    """Join the other processes, if this one was launched with others; and take the accelerator that is ours.

    A command calls it before it loads a model, so that `cuda` means this process's own GPU.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not (dist.is_available() and dist.is_initialized()):
        from accelerate import PartialState

        PartialState()


def world_size() -> int:
    """How many processes train together; 1 when alone."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main_process() -> bool:
    """Whether this process writes files and shows progress."""
    return rank() == 0


def shows_progress(progress: bool) -> bool:
    """Whether this process shows progress: the first one, where it was asked for."""
    return progress and is_main_process()


def uses_fsdp() -> bool:
    """Whether the launcher asked for FSDP."""
    return world_size() > 1 and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in {"1", "true", "yes"}


def on_main_process(function: Callable[[], T]) -> T | None:
    """Run `function` on the first process while the others wait; None on the others.

    Raises:
        LabError: on every process, where it was raised on the first: nobody is left waiting.
    """
    if world_size() == 1:
        return function()
    value, message = None, [None]
    if is_main_process():
        try:
            value = function()
        except LabError as error:
            message[0] = str(error)  # type: ignore[call-overload]
        except Exception as error:  # the others must not wait for ever
            message[0] = f"{type(error).__name__}: {error}"  # type: ignore[call-overload]
    dist.broadcast_object_list(message, src=0)
    if message[0] is not None:
        raise LabError(message[0])
    return value


def _device() -> torch.device:
    """Where tensors must lie to be exchanged."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def all_reduce_sum(value: Tensor) -> Tensor:
    """The sum of `value` over the processes, on all of them, where `value` lies."""
    if world_size() == 1:
        return value
    shared = value.detach().to(_device(), copy=True)
    dist.all_reduce(shared)
    return shared.to(value.device)


def any_rank(flag: bool) -> bool:
    """Whether `flag` is True on any process."""
    return flag if world_size() == 1 else bool(all_reduce_sum(torch.tensor(float(flag))) > 0)


def local_rows(number: int) -> range:
    """This process's share of the rows 0 … number − 1: whole, in order, as even as can be."""
    each, more = divmod(number, world_size())
    first = rank() * each + min(rank(), more)
    return range(first, first + each + (rank() < more))


@torch.no_grad()
def map_rows(function: Callable[..., Tensor], *batch: Any) -> Tensor:
    """`function(*batch)`, each process computing its own rows, put together on all of them.

    Args:
        function: gives a tensor whose first axis is the batch's rows, each row a function of its own row alone.
        *batch: what it is called with: tensors, `Tokens` or `Pairs` of one length.
    """
    if world_size() == 1 or uses_fsdp():
        return function(*batch)
    number = len(batch[0])
    mine = local_rows(number)
    # A process without rows computes one all the same, for its shape.
    rows = torch.tensor(list(mine) or [0])
    part = function(*(b[rows] for b in batch))
    whole = part.new_zeros((number, *part.shape[1:]))
    if len(mine):
        whole[mine.start : mine.stop] = part
    return all_reduce_sum(whole)


@torch.no_grad()
def broadcast_parameters(module: nn.Module) -> None:
    """The first process's weights and buffers to all."""
    if world_size() == 1:
        return
    for tensor in [*module.parameters(), *module.buffers()]:
        if not _is_shard(tensor):
            shared = tensor.detach().to(_device(), copy=True).contiguous()
            dist.broadcast(shared, src=0)
            tensor.copy_(shared)


@torch.no_grad()
def all_reduce_gradients(parameters: list[nn.Parameter]) -> None:
    """Sum the gradients over the processes, in place. Those of a sharded parameter are summed already."""
    if world_size() == 1:
        return
    waiting: list[Tensor] = []
    for number, parameter in enumerate(parameters):
        if parameter.grad is not None and not _is_shard(parameter):
            waiting.append(parameter.grad)
        last = number == len(parameters) - 1
        if waiting and (last or sum(g.numel() for g in waiting) >= BUCKET):
            _sum_in_place(waiting)
            waiting = []


def _sum_in_place(tensors: list[Tensor]) -> None:
    for dtype in dict.fromkeys(t.dtype for t in tensors):  # in an order that all processes share
        alike = [t for t in tensors if t.dtype == dtype]
        flat = torch.cat([t.flatten() for t in alike])
        flat = all_reduce_sum(flat)
        for tensor, part in zip(alike, flat.split([t.numel() for t in alike]), strict=True):
            tensor.copy_(part.view_as(tensor))


# FSDP.


def _is_shard(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def full_tensor(tensor: Tensor) -> Tensor:
    """The tensor of which this process holds a part; all processes must ask. Any other tensor as it is."""
    return tensor.full_tensor() if _is_shard(tensor) else tensor  # type: ignore[attr-defined]


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """The part of `value` that this process holds of `like`."""
    if not _is_shard(like) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)  # type: ignore[attr-defined]


def local_tensor(tensor: Tensor) -> Tensor:
    """The numbers that this process holds of a tensor."""
    return tensor.to_local() if _is_shard(tensor) else tensor  # type: ignore[attr-defined]


def transformer_layers(module: nn.Module) -> list[nn.Module]:
    """The transformer layers within `module`, by the mark that transformers puts on them."""
    mark = "GradientCheckpointingLayer"
    return [m for m in module.modules() if any(kind.__name__ == mark for kind in type(m).__mro__)]


@contextmanager
def fully_sharded(module: nn.Module) -> Iterator[None]:
    """Within it each process holds a part of the weights, if the launcher asked for FSDP; after it, all of them.

    Afterwards the policies and rewards in `module` are the same objects, and ordinary ones to whoever samples,
    evaluates, copies or saves them. (What was taken out of them before, such as `policy.model`, is not.)
    """
    if not uses_fsdp():
        yield
        return
    tops = list(module.children()) if isinstance(module, nn.ModuleDict) else [module]
    plain = [_hollow(top) for top in tops]
    with warnings.catch_warnings():
        # Nobody writes into what a policy returns.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
        for top in tops:
            _shard(top)
        yield
    # Not after an error, which may be this process's alone: the others would not answer.
    for top, (twin, places) in zip(tops, plain, strict=True):
        with torch.no_grad():
            for name, parameter in top.named_parameters():
                places[name].data = full_tensor(parameter.detach())
            for name, buffer in top.named_buffers():
                twin.get_buffer(name).copy_(buffer)
        top.__class__, top.__dict__ = type(twin), twin.__dict__


def _hollow(module: nn.Module) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """A copy of a module without its weights, and by their names the places where they go. What is tied stays so."""
    places = {
        name: nn.Parameter(torch.empty(0, dtype=p.dtype, device=p.device), requires_grad=p.requires_grad)
        for name, p in module.named_parameters()
    }
    return copy.deepcopy(module, {id(p): places[name] for name, p in module.named_parameters()}), places


def _shard(top: nn.Module) -> None:
    """Spread a policy or reward over the processes: each layer is gathered as a whole, the rest as another."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(_device().type, (world_size(),))
    for unit in [*transformer_layers(top), top]:
        fully_shard(unit, mesh=mesh)
    # Policies compute in methods that are not called forward.
    for method in ("token_log_probs", "sample"):
        if hasattr(top, method):
            register_fsdp_forward_method(top, method)
