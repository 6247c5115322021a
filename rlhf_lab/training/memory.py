"""Memory: what is said when there is not enough of it, and layers whose activations are not kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rlhf_lab.errors import LabError
from rlhf_lab.training.distributed import transformer_layers

_SIGNS = ("out of memory", "can't allocate memory", "DefaultCPUAllocator", "ALLOC_FAILED", "Cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is torch's or Python's word for too little memory, on a GPU or off it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def advice(settings: Any) -> str:
    """The three settings that help, with what they are now.

    Args:
        settings: a `Training`, or a command's settings, of which those are named that it has.
    """
    fewer = "fewer rows at a time"
    if (size := getattr(settings, "batch_size", None)) is not None:
        fewer = f"a smaller batch_size (now {size})"
    if (parts := getattr(settings, "accumulate", None)) is not None:
        fewer += f" or the same one in more parts, accumulate (now {parts})"
    checkpointing = (
        " and gradient_checkpointing on" if getattr(settings, "gradient_checkpointing", None) is False else ""
    )
    fp32 = getattr(settings, "precision", None) == "fp32"
    return (
        f"Three settings help: {fewer}; shorter prompts and responses{checkpointing}; "
        f"{'precision=bf16' if fp32 else 'a smaller model'}. `rlhf-lab plan` says beforehand what a run needs."
    )


@contextmanager
def oom_hint(settings: Any) -> Iterator[None]:
    """Within it too little memory ends as one sentence with `advice`, where no loop has said it already.

    Raises:
        LabError: in place of torch's or Python's own error.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        own = [settings, *getattr(settings, "__dict__", {}).values()]
        drawn = next((part.sampling_batch_size for part in own if hasattr(part, "sampling_batch_size")), None)
        fewer = f" While it samples: fewer sampling_batch_size (now {drawn})." if drawn is not None else ""
        raise LabError(f"Out of memory outside of the training steps. {advice(settings)}{fewer}") from None


@contextmanager
def checkpoint_activations(module: nn.Module, name: str) -> Iterator[None]:
    """Within it the layers of the language models in `module` keep their input alone for the backward pass.

    Chen et al. 2016, "Training deep nets with sublinear memory cost". The numbers are the same to the bit: the same
    operations run again. Policies compute with dropout off, for which transformers' own switch, bound to training
    mode, does nothing; so the layers are wrapped here.

    Raises:
        LabError: there is no transformer layer in `module`.
    """
    layers: list[Any] = transformer_layers(module)
    if not layers:
        raise LabError(f"{name}: gradient_checkpointing is for language models of transformers; leave it off here.")
    for layer in layers:
        layer.forward = _CheckpointedForward(layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


class _CheckpointedForward:
    """A layer's forward pass under `torch.utils.checkpoint`."""

    def __init__(self, forward: Any) -> None:
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # A layer that writes to a cache of keys and values would write twice.
        writes = any(hasattr(value, "get_seq_length") for value in (*args, *kwargs.values()))
        if writes or not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        return checkpoint(self.forward, *args, use_reentrant=False, **kwargs)
