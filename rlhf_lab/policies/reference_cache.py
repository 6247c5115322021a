"""log π_ref of given responses: computed when they are first needed, and stored on disk for the next run.

The name of a file is the SHA-256 of everything that determines the numbers: the reference's weights and architecture,
the ids of prompts and responses, the blocks in which they are computed, and a version of this code. If a file is
damaged or has another shape, the numbers are computed and written again. Writing is atomic, so that an interrupted run
leaves the old file or none.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.errors import LabError, check_finite, check_path
from rlhf_lab.policies.base import Policy

SAVE_AFTER = 4096
"""`ReferenceRows` writes what it knows after this many new rows, or after a twentieth of all rows if that is more."""
VERSION = "1"
"""Part of the key. It must change when the computation of log-probabilities changes."""


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
    rows = ReferenceRows(reference, data, None, batch_size, folder)
    found = rows.all(progress)
    rows.save()
    return found


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
        if hasattr(tokens, "digest"):  # stored tokens are not padded for this
            digest.update(f"{name} {tokens.digest()}".encode())
        else:
            _add(digest, f"{name} mask", tokens.mask)
            _add(digest, name, tokens.ids.where(tokens.mask, 0))
    return digest.hexdigest()


class ReferenceRows:
    """log π_ref(y|x) of responses, computed when a row is first needed, and stored in the cache.

    A training step of the first epoch computes the rows of its batch together. These batches are the blocks of the
    rows: whenever a number is missing, its whole block is computed. The numbers therefore do not depend on what is
    stored already, and a resumed run has those of an uninterrupted one to the last bit.

    Indexing with row numbers (B,) returns (B, G) in nats, on the CPU.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        reference: Policy,
        data: Pairs | tuple[Tokens, Tokens],
        order: Tensor | None,
        batch_size: int,
        folder: str | Path | None,
        accumulate: int = 1,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
        log_prob: Callable[[Tokens, Tokens], Tensor] | None = None,
    ) -> None:
        """Read what is stored.

        Args:
            reference: the frozen policy.
            data: N pairs; or prompts (N, P) and responses (N, G, T).
            order: the rows 0 … N − 1 in the order of the first epoch. None: in the order of the data.
            batch_size: number of rows of a training step.
            folder: of the cache; None stores nothing.
            accumulate: number of parts in which a block is computed, to save memory.
            context: precision in which the numbers are computed.
            log_prob: computes log π_ref of some rows. None: `reference.log_prob`.

        Raises:
            LabError: there is no data, or the folder cannot be written.
        """
        prompts, responses = (data.prompts, data.responses) if isinstance(data, Pairs) else data
        if len(prompts) == 0:
            raise LabError(
                "There are no pairs or prompts of which to compute reference log-probabilities. Give some data."
            )
        if batch_size < 1:
            raise LabError(f"batch_size must be at least 1, not {batch_size}.")
        self._prompts, self._responses, self._context = prompts, responses, context
        self._log_prob = reference.log_prob if log_prob is None else log_prob
        self._batch_size, self._accumulate = min(batch_size, len(prompts)), accumulate
        self.shape = responses.shape[:2]
        self._order = torch.arange(len(prompts)) if order is None else order
        self._place = torch.empty_like(self._order)
        self._place[self._order] = torch.arange(len(prompts))
        double = any(tensor.dtype == torch.float64 for tensor in reference.state_dict().values())
        self._dtype = torch.float64 if double else torch.float32
        self._values = torch.full(self.shape, torch.nan, dtype=self._dtype)
        self._unsaved = 0
        self._file: Path | None = None
        if folder is not None:
            digest = hashlib.sha256(cache_key(reference, prompts, responses).encode())
            _add(digest, f"blocks {self._batch_size} {accumulate}", self._order)
            self._key = digest.hexdigest()
            self._file = check_path(folder, "folder") / f"{self._key}.safetensors"
            known = _read(self._file, self._key, tuple(self.shape))
            self._values = self._values if known is None else known

    def __getitem__(self, rows: Tensor) -> Tensor:
        missing = rows[self._values[rows].isnan().any(-1)]
        for block in (self._place[missing] // self._batch_size).unique().tolist():
            self._compute(self._order[block * self._batch_size : (block + 1) * self._batch_size])
        return self._values[rows]

    @torch.no_grad()
    def _compute(self, rows: Tensor) -> None:
        with self._context():
            for part in rows.tensor_split(min(self._accumulate, len(rows))):
                found = self._log_prob(self._prompts[part], self._responses[part])
                self._values[part] = check_finite(found.to("cpu", self._dtype), "log π_ref")
        self._unsaved += len(rows)
        if self._unsaved >= max(SAVE_AFTER, len(self._order) // 20):
            self.save()

    def all(self, progress: bool = False) -> Tensor:
        """Return the numbers of all rows, (N, G). `progress` shows a progress bar."""
        blocks = self._order.split(self._batch_size)
        for rows in tqdm(blocks, desc="reference", leave=False, disable=not progress or len(blocks) == 1):
            self[rows]
        return self._values

    def save(self) -> None:
        """Write the numbers that are known so far to the cache.

        Raises:
            LabError: the folder cannot be written.
        """
        if self._file is not None and self._unsaved:
            _write(self._file, self._key, self._values)
            self._unsaved = 0


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
