"""Token ids of large data in files that are mapped into memory, so that only the rows of a batch are padded.

A million pairs of AnthropicHH's lengths have about 300 million tokens. Here each token needs two bytes on the disk, or
four if the vocabulary has more than 65,536 tokens. In a padded tensor every row is as long as the longest one, and each
place needs nine bytes. A folder contains, for
`prompts` and for `responses`,

    NAME.ids       the ids of all sequences, one after the other
    NAME.lengths   the number of tokens of each sequence
    store.json     the numbers of rows, tokens and responses per prompt, the SHA-256 of the files, and a report
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import torch
from torch import Tensor

from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.errors import LabError

VERSION = 1
"""Version of the files. A store of another version is written again."""
PADDED_AT_ONCE = 4096
"""Selections of at most this many rows become padded `Tokens`. A larger selection remains in the files."""

_NAMES = ("prompts", "responses")


class StoredTokens(Tokens):
    """`Tokens` whose ids stay in an array without padding until rows are selected.

    It can be used wherever `Tokens` can. The attributes `ids` and `mask` pad all rows, which needs much memory.
    """

    def __init__(
        self,
        flat: np.ndarray,
        starts: np.ndarray,
        group: int | None = None,
        rows: np.ndarray | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Wrap an array of ids.

        Args:
            flat: ids of all sequences, one after the other.
            starts: position in `flat` at which each sequence begins, and at the end the length of `flat`.
            group: number G of sequences in each row, for responses. None for prompts.
            rows: the selected rows. None for all rows.
            device: where the padded rows are put.
        """
        number = (len(starts) - 1) // (group or 1)
        fields = {"_flat": flat, "_starts": starts, "_group": group, "_device": torch.device(device)}
        fields["_index"] = np.arange(number) if rows is None else rows
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    _flat: np.ndarray
    _starts: np.ndarray
    _group: int | None
    _index: np.ndarray
    _device: torch.device

    @property
    def ids(self) -> Tensor:
        """All rows, padded: (N, P) or (N, G, T)."""
        return self._padded(self._index).ids

    @property
    def mask(self) -> Tensor:
        """The mask of `ids`."""
        return self._padded(self._index).mask

    @property
    def lengths(self) -> Tensor:
        """Number of tokens of each sequence, (N,) or (N, G)."""
        return torch.from_numpy(self._lengths(self._index)).to(self._device)

    @property
    def shape(self) -> torch.Size:
        """Shape that the padded rows have."""
        lengths = self._lengths(self._index)
        return torch.Size([*lengths.shape, max(int(lengths.max(initial=0)), 1)])

    @property
    def device(self) -> torch.device:
        """The device of selected rows."""
        return self._device

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, rows: Any) -> Tokens:
        """Select rows: padded `Tokens` for at most `PADDED_AT_ONCE` rows, otherwise `StoredTokens`."""
        if isinstance(rows, Tensor):
            rows = rows.cpu().numpy()
        if isinstance(rows, int):
            if not -len(self) <= rows < len(self):
                raise IndexError(f"The data have {len(self)} rows, so they have no row {rows}.")
            rows = [rows]
        index = self._index[rows]
        if len(index) > PADDED_AT_ONCE:
            return StoredTokens(self._flat, self._starts, self._group, index, self._device)
        return self._padded(index)

    def to(self, device: torch.device | str) -> StoredTokens:
        """Return the same rows, which are put on `device` when they are selected."""
        return StoredTokens(self._flat, self._starts, self._group, self._index, device)

    def trim(self) -> StoredTokens:
        """Return the same rows. They have no common padding."""
        return self

    def digest(self) -> str:
        """Compute the SHA-256 of the lengths and ids of the rows."""
        found = hashlib.sha256()
        for start in range(0, len(self), PADDED_AT_ONCE):
            index = self._index[start : start + PADDED_AT_ONCE]
            found.update(self._lengths(index).astype("<i8").tobytes())
            if (np.diff(index) == 1).all():
                sequences = self._sequences(index)
                flat = self._flat[self._starts[sequences.min()] : self._starts[sequences.max() + 1]]
            else:
                part = self._padded(index)
                flat = part.ids[part.mask].cpu().numpy()
            found.update(flat.astype("<i8").tobytes())
        return found.hexdigest()

    def _sequences(self, index: np.ndarray) -> np.ndarray:
        return index if self._group is None else index[:, None] * self._group + np.arange(self._group)

    def _lengths(self, index: np.ndarray) -> np.ndarray:
        sequences = self._sequences(index)
        lengths: np.ndarray = (self._starts[sequences + 1] - self._starts[sequences]).astype(np.int64)
        return lengths

    def _padded(self, index: np.ndarray) -> Tokens:
        lengths = self._lengths(index)
        places = np.arange(max(int(lengths.max(initial=0)), 1))
        mask = places < lengths[..., None]
        ids = np.zeros(mask.shape, dtype=np.int64)
        ids[mask] = self._flat[(self._starts[self._sequences(index)][..., None] + places)[mask]]
        return Tokens(torch.from_numpy(ids), torch.from_numpy(mask)).to(self._device)


class PairWriter:
    """Writes the ids of pairs to a new folder, which appears under its name only when it is complete.

    with PairWriter(folder, vocabulary) as writer:
        writer.add(prompts, responses)
        writer.report = {...}
    """

    def __init__(self, folder: Path, vocabulary: int) -> None:
        """Prepare the files.

        Args:
            folder: the new folder.
            vocabulary: number of token ids, which decides between two and four bytes for each.
        """
        self.folder, self.dtype = folder, np.dtype("<u2" if vocabulary <= 2**16 else "<u4")
        self.report: dict[str, Any] = {}
        self.rows = 0
        self._part = folder.with_name(f".{folder.name}.{os.getpid()}")
        self._files: dict[str, IO[bytes]] = {}
        self._digests: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._part.mkdir(parents=True)
        for name in (f"{name}.{kind}" for name in _NAMES for kind in ("ids", "lengths")):
            self._files[name] = (self._part / name).open("wb")
            self._digests[name] = hashlib.sha256()
        return self

    def add(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[Sequence[int]]]) -> None:
        """Append rows: prompts, and the chosen and the rejected response of each."""
        self.rows += len(prompts)
        for name, sequences in zip(_NAMES, (prompts, [one for both in responses for one in both]), strict=True):
            lengths = [len(one) for one in sequences]
            flat = np.fromiter((token for one in sequences for token in one), self.dtype, sum(lengths))
            self._write(f"{name}.ids", flat.tobytes())
            self._write(f"{name}.lengths", np.asarray(lengths, "<u4").tobytes())

    def _write(self, name: str, data: bytes) -> None:
        self._files[name].write(data)
        self._digests[name].update(data)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()
        try:
            if kind is None:
                record = {
                    "version": VERSION, "rows": self.rows, "dtype": self.dtype.str, "report": self.report,
                    "sha256": {name: digest.hexdigest() for name, digest in self._digests.items()},
                }  # fmt: skip
                (self._part / "store.json").write_text(json.dumps(record), encoding="utf-8")
                # Another process may have written the same pairs in the meantime.
                if open_pairs(self.folder) is None:
                    shutil.rmtree(self.folder, ignore_errors=True)
                    os.replace(self._part, self.folder)
        except OSError as error:
            if open_pairs(self.folder) is None:
                raise LabError(
                    f"The token ids cannot be stored in {self.folder} ({error.strerror or error}). Free some space, or "
                    f"set RLHF_LAB_CACHE to another folder."
                ) from None
        finally:
            shutil.rmtree(self._part, ignore_errors=True)


def open_pairs(folder: Path) -> tuple[Pairs, dict[str, Any]] | None:
    """Return the pairs of a folder, mapped into memory, and their report; None if it is missing or damaged."""
    try:
        record = json.loads((folder / "store.json").read_text(encoding="utf-8"))
        if record["version"] != VERSION or not _intact(folder, record["sha256"].items()):
            return None
        parts = []
        for name, group in zip(_NAMES, (None, 2), strict=True):
            lengths = np.fromfile(folder / f"{name}.lengths", "<u4")
            starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
            flat = np.memmap(folder / f"{name}.ids", np.dtype(record["dtype"]), "r")
            if len(flat) != starts[-1] or len(lengths) != record["rows"] * (group or 1):
                return None
            parts.append(StoredTokens(flat, starts, group))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    prompts, responses = parts
    return Pairs(prompts, responses), record["report"]


def _intact(folder: Path, digests: Iterable[tuple[str, str]]) -> bool:
    for name, expected in digests:
        with (folder / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                return False
    return True
