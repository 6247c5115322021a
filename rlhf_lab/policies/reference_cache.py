"""Cache on disk for the reference policy's log-probabilities, so that they are computed only once for the same data.

The name of a file is the SHA-256 of everything that determines the numbers: the reference's weights and architecture,
the ids and masks of prompts and responses, and a version of this code. If a file is damaged or has another shape, the
numbers are computed and written again. Writing is atomic, so that an interrupted run leaves the old file or none.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.errors import LabError, check_path
from rlhf_lab.policies.base import Policy

VERSION = "1"
"""Part of the key. It must change when the computation of log-probabilities changes."""


@torch.no_grad()
def cached_reference_log_probs(
    reference: Policy,
    data: Pairs | tuple[Tokens, Tokens],
    folder: str | Path | None,
    batch_size: int,
    progress: bool = False,
) -> Tensor:
    """Read log π_ref(y|x) of every response from the cache, or compute and store it.

    Args:
        reference: the frozen policy.
        data: pairs; or prompts (N, P) and responses (N, G, T).
        folder: of the cache; None stores nothing.
        batch_size: number of prompts in a batch.
        progress: show a progress bar.

    Returns:
        (N, G) in nats, on the CPU; (N, 2) for pairs, with the chosen response first.

    Raises:
        LabError: there is no data, or the folder cannot be written.
    """
    prompts, responses = (data.prompts, data.responses) if isinstance(data, Pairs) else data
    if len(prompts) == 0:
        raise LabError("There are no pairs or prompts of which to compute reference log-probabilities. Give some data.")
    if folder is None:
        return _compute(reference, prompts, responses, batch_size, progress)
    key = cache_key(reference, prompts, responses)
    file = check_path(folder, "folder") / f"{key}.safetensors"
    known = _read(file, key, tuple(responses.shape[:2]))
    if known is None:
        known = _compute(reference, prompts, responses, batch_size, progress)
        _write(file, key, known)
    return known


def cache_key(reference: nn.Module, prompts: Tokens, responses: Tokens) -> str:
    """The SHA-256 of the reference's class, settings and weights, and of the data.

    Args:
        reference: the frozen policy.
        prompts: (N, P). Padding does not change the key.
        responses: (N, G, T), likewise.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(f"{VERSION} {type(reference).__name__} {_settings(reference)}".encode())
    for name, tensor in sorted(reference.state_dict().items()):
        _add(digest, name, tensor)
    # Padding is not part of the data.
    for name, tokens in (("prompts", prompts.trim()), ("responses", responses.trim())):
        _add(digest, f"{name} mask", tokens.mask)
        _add(digest, name, tokens.ids.where(tokens.mask, 0))
    return digest.hexdigest()


def _settings(reference: nn.Module) -> str:
    """What determines a policy's numbers besides its weights: its configuration, if it has one, and its vocabulary."""
    config: Any = getattr(getattr(reference, "model", None), "config", None)
    parts = [config.to_json_string(use_diff=False)] if hasattr(config, "to_json_string") else []
    return " ".join([*parts, str(getattr(reference, "vocab_size", "")), str(getattr(reference, "cache_note", ""))])


def _add(digest: Any, name: str, tensor: Tensor) -> None:
    tensor = tensor.detach().cpu().contiguous()
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    # The tensor is converted to bytes, because numpy has no bfloat16.
    digest.update(tensor.flatten().view(torch.uint8).numpy() if tensor.numel() else b"")


def _compute(reference: Policy, prompts: Tokens, responses: Tokens, batch_size: int, progress: bool) -> Tensor:
    if batch_size < 1:
        raise LabError(f"batch_size must be at least 1, not {batch_size}.")
    starts = range(0, len(prompts), batch_size)
    bar = tqdm(starts, desc="reference", leave=False, disable=not progress or len(starts) == 1)
    return torch.cat(
        [reference.log_prob(prompts[i : i + batch_size], responses[i : i + batch_size]).cpu() for i in bar]
    )


def _read(file: Path, key: str, shape: tuple[int, ...]) -> Tensor | None:
    """The stored numbers, or None if there is no undamaged file."""
    from safetensors import SafetensorError, safe_open

    if not file.exists():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            found, checksum = opened.get_tensor("log_probs"), (opened.metadata() or {}).get("sha256")
    except (SafetensorError, OSError, ValueError, KeyError):
        return None
    good = tuple(found.shape) == shape and checksum == _checksum(found, key)
    return found if good else None


def _checksum(values: Tensor, key: str) -> str:
    digest = hashlib.sha256(key.encode())
    _add(digest, "log_probs", values)
    return digest.hexdigest()


def _write(file: Path, key: str, values: Tensor) -> None:
    from safetensors.torch import save

    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as stream:
            stream.write(save({"log_probs": values.contiguous()}, {"sha256": _checksum(values, key)}))
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise LabError(
            f"The reference log-probabilities could not be written to {file.parent}: {error}. Free some space or pass "
            f"another folder. With folder=None they are not stored."
        ) from error
