"""Out-of-memory errors with advice, and activation checkpointing."""

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
    """Return whether `error` says that there is too little memory, on a GPU or a CPU, in torch or in Python."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def advice(settings: Any) -> str:
    """Return a text that names the settings which reduce memory, with their present values.

    Args:
        settings: a `Training`, or the settings of a command. Settings that it does not have are not named.
    """
    fewer = "fewer rows at a time"
    if (size := getattr(settings, "batch_size", None)) is not None:
        fewer = f"a smaller batch_size (now {size})"
    if (parts := getattr(settings, "accumulate", None)) is not None:
        fewer += f", or the same one in more parts with accumulate (now {parts})"
    checkpointing = (
        " and gradient_checkpointing on" if getattr(settings, "gradient_checkpointing", None) is False else ""
    )
    fp32 = getattr(settings, "precision", None) == "fp32"
    return (
        f"Three settings help: {fewer}; shorter prompts and responses{checkpointing}; "
        f"{'precision=bf16' if fp32 else 'a smaller model'}. `rlhf-lab plan` estimates the memory of a run."
    )


@contextmanager
def oom_hint(settings: Any) -> Iterator[None]:
    """Turn out-of-memory errors within the block into a `LabError` with `advice`. Inside a `Loop`, the loop does this.

    Raises:
        LabError: in place of the error of torch or Python.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        parts = [settings, *getattr(settings, "__dict__", {}).values()]
        size = next((part.sampling_batch_size for part in parts if hasattr(part, "sampling_batch_size")), None)
        fewer = f" For sampling, lower sampling_batch_size (now {size})." if size is not None else ""
        raise LabError(f"Out of memory outside of the training steps. {advice(settings)}{fewer}") from None


@contextmanager
def checkpoint_activations(module: nn.Module, name: str) -> Iterator[None]:
    """Within the block, transformer layers store only their input and recompute their activations in the backward pass.

    Chen et al. 2016, "Training deep nets with sublinear memory cost". The results are bit-identical, because the same
    operations run again. The layers are wrapped here and not by transformers, whose checkpointing works only in
    training mode. Policies are in evaluation mode, which turns dropout off.

    Raises:
        LabError: there is no transformer layer in `module`.
    """
    layers: list[Any] = transformer_layers(module)
    if not layers:
        raise LabError(f"{name}: gradient_checkpointing needs a language model of transformers. Leave it off here.")
    for layer in layers:
        layer.forward = _CheckpointedForward(layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


class _CheckpointedForward:
    """A layer's forward pass with `torch.utils.checkpoint`."""

    def __init__(self, forward: Any) -> None:
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # With a cache, the recomputation would append the layer's keys and values a second time.
        has_cache = any(hasattr(value, "get_seq_length") for value in (*args, *kwargs.values()))
        if has_cache or not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        return checkpoint(self.forward, *args, use_reentrant=False, **kwargs)
