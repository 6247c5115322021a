"""Training with several processes: data parallelism and fully sharded data parallelism (FSDP).

If `accelerate launch` or torchrun starts several processes, all of them run the same program on the same data with the
same seeds. They differ in one place: each process computes a part of the rows of a step's batch, and the gradients are
summed (`loop.py`). Only the first process writes files. With a single process the functions here do nothing, and
accelerate is not imported.

The launcher's configuration chooses one of two ways to store the weights:
- Every process stores all weights (data parallelism, `configs/ddp.yaml`), and the gradients are summed after the
  backward pass.
- Every process stores a part of the weights (FSDP, `configs/fsdp.yaml`). They are gathered layer by layer for the
  computation (Zhao et al. 2023, "PyTorch FSDP"; here `fully_shard`, which shards each tensor).

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
"""Number of gradient values that are summed over the processes in one call."""


def init_process_group() -> None:
    """Connect to the other processes if there are any, and select the GPU of this process.

    A command calls it before it loads a model, so that the device `cuda` is the GPU of this process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not (dist.is_available() and dist.is_initialized()):
        from accelerate import PartialState

        PartialState()


def world_size() -> int:
    """Return the number of processes that train together; 1 without distributed training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, counted from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main_process() -> bool:
    """Return whether this process is the one that writes files and shows progress."""
    return rank() == 0


def shows_progress(progress: bool) -> bool:
    """Return whether this process shows progress: the first one, if the setting `progress` is on."""
    return progress and is_main_process()


def uses_fsdp() -> bool:
    """Return whether the launcher's configuration selects FSDP."""
    return world_size() > 1 and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in {"1", "true", "yes"}


def on_main_process(function: Callable[[], T]) -> T | None:
    """Run `function` on the first process while the others wait, and return its result there; None on the others.

    Raises:
        LabError: `function` raised an error. It is raised on every process, so that none waits for ever.
    """
    if world_size() == 1:
        return function()
    value, message = None, [None]
    if is_main_process():
        try:
            value = function()
        except LabError as error:
            message[0] = str(error)  # type: ignore[call-overload]
        except Exception as error:  # also for unexpected errors the other processes must not wait for ever
            message[0] = f"{type(error).__name__}: {error}"  # type: ignore[call-overload]
    dist.broadcast_object_list(message, src=0)
    if message[0] is not None:
        raise LabError(message[0])
    return value


def _device() -> torch.device:
    """The device on which tensors must be to be exchanged between processes."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def all_reduce_sum(value: Tensor) -> Tensor:
    """Return the sum of `value` over all processes, on every process and on the device of `value`."""
    if world_size() == 1:
        return value
    shared = value.detach().to(_device(), copy=True)
    dist.all_reduce(shared)
    return shared.to(value.device)


def any_rank(flag: bool) -> bool:
    """Return whether `flag` is True on any process."""
    return flag if world_size() == 1 else bool(all_reduce_sum(torch.tensor(float(flag))) > 0)


def local_rows(number: int) -> range:
    """Return the rows of 0 … number − 1 that this process computes. The processes' numbers differ by at most 1."""
    each, more = divmod(number, world_size())
    first = rank() * each + min(rank(), more)
    return range(first, first + each + (rank() < more))


@torch.no_grad()
def map_rows(function: Callable[..., Tensor], *batch: Any) -> Tensor:
    """Compute `function(*batch)` with the rows divided among the processes, and return the whole result on all of them.

    Args:
        function: returns a tensor whose first axis is the rows of the batch. Each row of the result depends only on the
            same row of the batch.
        *batch: the arguments: tensors, `Tokens` or `Pairs` with the same number of rows.
    """
    if world_size() == 1 or uses_fsdp():
        return function(*batch)
    number = len(batch[0])
    mine = local_rows(number)
    # A process without rows computes one row, because it needs the shape of the result.
    rows = torch.tensor(list(mine) or [0])
    part = function(*(b[rows] for b in batch))
    whole = part.new_zeros((number, *part.shape[1:]))
    if len(mine):
        whole[mine.start : mine.stop] = part
    return all_reduce_sum(whole)


@torch.no_grad()
def broadcast_parameters(module: nn.Module) -> None:
    """Copy the weights and buffers of the first process to all processes."""
    if world_size() == 1:
        return
    for tensor in [*module.parameters(), *module.buffers()]:
        if not _is_shard(tensor):
            shared = tensor.detach().to(_device(), copy=True).contiguous()
            dist.broadcast(shared, src=0)
            tensor.copy_(shared)


@torch.no_grad()
def all_reduce_gradients(parameters: list[nn.Parameter]) -> None:
    """Sum the gradients over the processes, in place. FSDP has already summed those of sharded parameters."""
    if world_size() == 1:
        return
    bucket: list[Tensor] = []
    for number, parameter in enumerate(parameters):
        if parameter.grad is not None and not _is_shard(parameter):
            bucket.append(parameter.grad)
        last = number == len(parameters) - 1
        if bucket and (last or sum(g.numel() for g in bucket) >= BUCKET):
            _sum_in_place(bucket)
            bucket = []


def _sum_in_place(tensors: list[Tensor]) -> None:
    for dtype in dict.fromkeys(t.dtype for t in tensors):  # in the same order on all processes
        alike = [t for t in tensors if t.dtype == dtype]
        flat = torch.cat([t.flatten() for t in alike])
        flat = all_reduce_sum(flat)
        for tensor, part in zip(alike, flat.split([t.numel() for t in alike]), strict=True):
            tensor.copy_(part.view_as(tensor))


# FSDP.


def _is_shard(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor; every process must call this. Other tensors are returned unchanged."""
    return tensor.full_tensor() if _is_shard(tensor) else tensor  # type: ignore[attr-defined]


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """Shard `value` in the same way as the tensor `like`; return it unchanged if `like` is not sharded."""
    if not _is_shard(like) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)  # type: ignore[attr-defined]


def local_tensor(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that is stored on this process."""
    return tensor.to_local() if _is_shard(tensor) else tensor  # type: ignore[attr-defined]


def transformer_layers(module: nn.Module) -> list[nn.Module]:
    """Return the transformer layers within `module`: those of the class that transformers uses for every layer."""
    name = "GradientCheckpointingLayer"
    return [m for m in module.modules() if any(kind.__name__ == name for kind in type(m).__mro__)]


@contextmanager
def fully_sharded(module: nn.Module) -> Iterator[None]:
    """Shard the weights of `module` within the block if FSDP is selected, and gather them at its end.

    After the block the policies and rewards in `module` are the same objects as before and can be sampled, evaluated,
    copied and saved as usual. References to their parts, such as `policy.model`, that were taken before are not valid.
    """
    if not uses_fsdp():
        yield
        return
    tops = list(module.children()) if isinstance(module, nn.ModuleDict) else [module]
    unsharded = [_copy_without_weights(top) for top in tops]
    with warnings.catch_warnings():
        # The warning concerns code that writes into a module's output, which no code here does.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
        for top in tops:
            _shard(top)
        yield
    # This is skipped after an error: if only this process has failed, the others would not take part in the gathering.
    for top, (twin, parameters) in zip(tops, unsharded, strict=True):
        with torch.no_grad():
            for name, parameter in top.named_parameters():
                parameters[name].data = full_tensor(parameter.detach())
            for name, buffer in top.named_buffers():
                twin.get_buffer(name).copy_(buffer)
        top.__class__, top.__dict__ = type(twin), twin.__dict__


def _copy_without_weights(module: nn.Module) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """A copy of a module with empty parameters, and these parameters by name. Tied parameters stay tied."""
    empty = {
        name: nn.Parameter(torch.empty(0, dtype=p.dtype, device=p.device), requires_grad=p.requires_grad)
        for name, p in module.named_parameters()
    }
    return copy.deepcopy(module, {id(p): empty[name] for name, p in module.named_parameters()}), empty


def _shard(top: nn.Module) -> None:
    """Shard a policy or reward. The weights of a layer are gathered together, and so are all other weights."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(_device().type, (world_size(),))
    for unit in [*transformer_layers(top), top]:
        fully_shard(unit, mesh=mesh)
    # Policies compute in methods other than forward, which FSDP does not know.
    for method in ("token_log_probs", "sample"):
        if hasattr(top, method):
            register_fsdp_forward_method(top, method)
