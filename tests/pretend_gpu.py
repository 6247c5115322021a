"""A GPU that is not there: its tensors say they lie on cuda:0, compute on the CPU, and refuse what CUDA refuses.

Nothing about speed or rounding can be learned from it. What it finds is the commonest slip of code that was written
on a CPU: two tensors of one operation that lie on two devices.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from rlhf_lab.policies.transformer import flex_attention

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten


class TwoDevices(RuntimeError):
    """What CUDA would say of an operation whose tensors lie on two devices."""


class Pretend(Tensor):
    """A tensor on the pretended GPU. To torch's own code it is without numbers (meta), as in its fake tensors."""

    @staticmethod
    def __new__(cls, real: Tensor):
        return Tensor._make_wrapper_subclass(
            cls, real.size(), strides=real.stride(), storage_offset=real.storage_offset(), dtype=real.dtype,
            device="meta", requires_grad=False,
        )  # fmt: skip

    def __init__(self, real: Tensor) -> None:
        self.held = real

    @property
    def device(self):
        return CUDA

    @property
    def is_cuda(self):
        return True

    @property
    def is_meta(self):
        return False

    def tolist(self):
        return self.held.tolist()

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def __repr__(self):
        return f"pretended on cuda:0: {self.held!r}"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


class PretendMode(TorchDispatchMode):
    """Sees the operations that make a tensor on cuda:0 out of nothing or of one on the CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


def check_devices(func, args, kwargs) -> None:
    """CUDA's rule: all on one device, but for copies, indices that may lie on the CPU, and single numbers there."""
    name = func.overloadpacket.__name__
    if name in ("copy_", "_to_copy"):
        return
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        args = (args[0], *args[2:])
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    there = [t for t in tensors if isinstance(t, Pretend)]
    here = [t for t in tensors if not isinstance(t, Pretend) and (t.dim() or name in ("cat", "stack"))]
    if there and here:
        raise TwoDevices(f"{func}: tensors of shape {[tuple(t.shape) for t in there]} on cuda:0 and "
                         f"{[tuple(t.shape) for t in here]} on cpu")  # fmt: skip


def computed(func, args, kwargs):
    """The operation on the CPU, its result where CUDA would have put it."""
    check_devices(func, args, kwargs)
    leaves = tree_leaves((args, kwargs))
    gpu = any(isinstance(t, Pretend) for t in leaves)
    asked = kwargs.get("device")
    if asked is not None:
        gpu = torch.device(asked).type in ("cuda", "meta")  # torch's own code asks for the device that it sees
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if func in (aten.copy_.default,):
        gpu = isinstance(args[0], Pretend)
    if func is aten._local_scalar_dense.default:
        gpu = False
    generator = kwargs.get("generator")
    if generator is not None and lives(generator) != ("cuda:0" if gpu else "cpu"):
        raise TwoDevices(f"{func}: a generator on {lives(generator)}, the tensor elsewhere")
    inner_args, inner_kwargs = tree_map(lambda t: t.held if isinstance(t, Pretend) else t, (args, kwargs))
    out = func(*inner_args, **inner_kwargs)
    if not gpu:
        return out
    out = tree_map(lambda t: Pretend(t) if isinstance(t, Tensor) and not isinstance(t, Pretend) else t, out)
    return return_and_correct_aliasing(func, args, kwargs, out)


def _tensor(data, *, device=None, **more) -> Tensor:
    """`torch.tensor`, which would ask for a real device before any mode sees it."""
    made = _torch_tensor(data, **more)
    return made if device is None else made.to(device)


_torch_tensor = torch.tensor


class PretendGenerator(torch.Generator):
    """A generator that says it lives on cuda:0."""

    device = CUDA


class _Kind(type):
    def __instancecheck__(cls, thing):
        return isinstance(thing, _torch_generator)


class Generators(metaclass=_Kind):
    """What stands for `torch.Generator`: on the CPU the ordinary one."""

    def __new__(cls, device="cpu"):
        if torch.device(device).type != "cuda":
            return _torch_generator()
        _there.append(PretendGenerator())
        return _there[-1]


_there: list[torch.Generator] = []
"""Generators that say they live on cuda:0. Operations are given another object for the same one, so it is found by its
address; kept alive, so that no address is used twice."""


def lives(generator: torch.Generator) -> str:
    """Where a generator would be."""
    return "cuda:0" if any(generator._cdata == known._cdata for known in _there) else "cpu"


_torch_generator = torch.Generator


@contextmanager
def pretended_gpu() -> Iterator[torch.device]:
    """Within it, tensors and modules can be moved to the device that it gives, and made there.

    No kernel can be compiled for it. A CUDA build of torch brings Triton and a CPU build does not, so the lab is told
    that there is none: both builds then test the same code.
    """
    before = torch.cuda._lazy_init, torch.tensor, torch.Generator, flex_attention.available
    torch.cuda._lazy_init, torch.tensor, torch.Generator = (lambda: None), _tensor, Generators
    flex_attention.available = lambda device: False
    try:
        with PretendMode():
            yield CUDA
    finally:
        torch.cuda._lazy_init, torch.tensor, torch.Generator, flex_attention.available = before
        _there.clear()
