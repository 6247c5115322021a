"""Frozen weights in 4 bits for LoRA (QLoRA, Dettmers et al. 2023, arXiv:2305.14314), by bitsandbytes.

    W ≈ W₄ = scale · NF4[code],     y = W₄ x + (α/r) B A x

The matrices of the layers are stored as codes of 4 bits (NF4), with a scale for each block of 64 weights. The scales
are stored in 8 bits (double quantisation). Embeddings, norms, biases and the head stay in float32. Training computes
with W₄, so the policy that was trained is W₄ + (α/r) B A. `dequantised` returns it with matrices in float32.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_lab.errors import LabError

LAYER = "Linear4bit"
"""Name of bitsandbytes' class of a linear layer with a matrix in 4 bits."""


def check_bitsandbytes() -> None:
    """Raise `LabError` if bitsandbytes or peft is not installed."""
    if missing := [name for name in ("bitsandbytes", "peft") if find_spec(name) is None]:
        raise LabError(
            f"load_in_4bit needs the package {' and the package '.join(missing)}, which is not installed. Run "
            f"pip install 'rlhf-lab[qlora]'."
        )


def load_options(device: torch.device, half: bool) -> dict[str, Any]:
    """Return the arguments with which transformers' `from_pretrained` loads the matrices of the layers in 4 bits.

    Args:
        device: on which the weights will be. bitsandbytes cannot move them between kinds of devices.
        half: compute in bfloat16, otherwise in float32.

    Raises:
        LabError: bitsandbytes is not installed.
    """
    check_bitsandbytes()
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if half else torch.float32,
    )
    return {"quantization_config": settings, "device_map": {"": device}}


def layers(model: nn.Module) -> dict[str, Any]:
    """Return the layers with matrices in 4 bits, by their names."""
    found = {name: module for name, module in model.named_modules() if type(module).__name__ == LAYER}
    # peft's layer around such a layer has the same name.
    return {name: module for name, module in found.items() if not hasattr(module, "base_layer")}


def is_quantised(model: nn.Module) -> bool:
    """Return whether a model has matrices in 4 bits."""
    return bool(layers(model))


def computes_in_half(model: nn.Module) -> bool:
    """Return whether a model has matrices in 4 bits whose products are computed in 16 bits."""
    return any(getattr(layer.compute_dtype, "itemsize", 4) < 4 for layer in layers(model).values())


ROUNDING = 0.15
"""Largest relative error of NF4 on normal weights that is accepted. With correct arithmetic it is 0.09."""


def check_rounding(model: nn.Module) -> None:
    """Raise `LabError` if bitsandbytes rounds matrices of this model's widths too coarsely on their device.

    Version 0.50 does so on CPUs if the number of inputs is not a multiple of 64. It reads its codes with the scales of
    other blocks, and the relative error is then 0.2 to 0.5.
    """
    found = layers(model).values()
    for device in {layer.weight.device for layer in found}:
        check_widths({layer.in_features for layer in found}, device)


def widths(model: Any) -> set[int]:
    """Return the numbers of inputs of the matrices that are loaded in 4 bits, those of linear layers but the head."""
    kinds = ("Linear", "Conv1D")  # GPT-2 stores its matrices as (in, out)
    head = model.get_output_embeddings()
    found = [part for part in model.modules() if type(part).__name__ in kinds and part is not head]
    return {part.weight.shape[0 if type(part).__name__ == "Conv1D" else 1] for part in found}


def check_widths(widths: Collection[int], device: torch.device) -> None:
    """Raise the error of `check_rounding` for matrices with these numbers of inputs."""
    functional: Any = importlib.import_module("bitsandbytes").functional
    for width in sorted(widths):
        weight = torch.randn(64, width, generator=torch.Generator().manual_seed(0)).to(device)
        read = functional.dequantize_4bit(*functional.quantize_4bit(weight, quant_type="nf4"))
        if not (read - weight).norm() < ROUNDING * weight.norm():
            raise LabError(
                f"load_in_4bit cannot be used with this model on {device.type}, because bitsandbytes reads matrices of "
                f"{width} inputs incorrectly there. Use a model whose widths are multiples of 64, or leave it out."
            )


def keep_gradients(model: nn.Module) -> None:
    """Prevent bitsandbytes from packing the matrices on processors with AVX512-BF16, as packed ones have no gradient.

    It packs a matrix for good when it is first used without gradients. The next training step would then lose the
    gradients of all adapters below it.
    """
    for layer in layers(model).values():
        layer.support_avx512bf16_for_cpu = False


def dequantised(model: Any, changes: Mapping[str, Tensor]) -> Any:
    """Replace the layers in 4 bits by layers of their original class with float32 matrices W₄ + ΔW, in place.

    Args:
        model: a causal language model without adapters.
        changes: ΔW of some of the layers, (out, in), by their names.

    Returns:
        The model, whose configuration no longer mentions the quantisation.
    """
    functional: Any = importlib.import_module("bitsandbytes").functional
    for name, layer in layers(model).items():
        weight = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
        if name in changes:
            weight = weight + changes[name].to(weight)
        # GPT-2 stores its matrices as (in, out).
        kind, (width_out, width_in) = layer.source_cls, weight.shape
        transposed = kind.__name__ == "Conv1D"
        with torch.device("meta"):  # which draws no initial weights
            plain = kind(width_out, width_in) if transposed else kind(width_in, width_out, layer.bias is not None)
        plain.weight = nn.Parameter(weight.T.contiguous() if transposed else weight)
        if layer.bias is not None:
            plain.bias = nn.Parameter(layer.bias.data.float())
        model.set_submodule(name, plain)
    for holder, name in (
        (model, "hf_quantizer"), (model, "quantization_method"), (model.config, "quantization_config"),
    ):  # fmt: skip
        if hasattr(holder, name):
            delattr(holder, name)
    model.is_loaded_in_4bit = model.is_quantized = False
    return model
