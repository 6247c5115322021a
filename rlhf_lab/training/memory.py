"""Memory: what is said when there is not enough of it, and layers whose activations are not kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rlhf_lab.checks import LabError
from rlhf_lab.training.processes import layers_of
from rlhf_lab.training.settings import Training

_SIGNS = ("out of memory", "can't allocate memory", "DefaultCPUAllocator", "ALLOC_FAILED", "Cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is torch's or Python's word for too little memory, on a GPU or off it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def advice(training: Training) -> str:
    """The three settings that help, with what they are now."""
    checkpointing = " and gradient_checkpointing on" if not training.gradient_checkpointing else ""
    fp32 = training.precision == "fp32"
    return (
        f"Three settings help: a smaller batch_size (now {training.batch_size}) or the same one in more parts, "
        f"accumulate (now {training.accumulate}); shorter prompts and responses{checkpointing}; "
        f"{'precision=bf16' if fp32 else 'a smaller model'}. `rlhf-lab plan` says beforehand what a run needs."
    )


@contextmanager
def recomputed(module: nn.Module, name: str) -> Iterator[None]:
    """Within it the layers of the language models in `module` keep their input alone for the backward pass.

    Chen et al. 2016, "Training deep nets with sublinear memory cost". The numbers are the same to the bit: the same
    operations run again. Policies compute with dropout off, for which transformers' own switch, bound to training
    mode, does nothing; so the layers are wrapped here.

    Raises:
        LabError: there is no transformer layer in `module`.
    """
    layers: list[Any] = layers_of(module)
    if not layers:
        raise LabError(f"{name}: gradient_checkpointing is for language models of transformers; leave it off here.")
    for layer in layers:
        layer.forward = _Recomputed(layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


class _Recomputed:
    """A layer's forward pass under `torch.utils.checkpoint`."""

    def __init__(self, forward: Any) -> None:
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # A layer that writes to a cache of keys and values would write twice.
        writes = any(hasattr(value, "get_seq_length") for value in (*args, *kwargs.values()))
        if writes or not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        return checkpoint(self.forward, *args, use_reentrant=False, **kwargs)
