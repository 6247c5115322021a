"""Token ids of data without padding, in main memory or in files that are mapped into it. Only selected rows are padded.

A million pairs of AnthropicHH's lengths have about 300 million tokens. Here each token needs two bytes, or four if the
vocabulary has more than 65,536 tokens. In a padded tensor every row is as long as the longest one, and each place needs
nine bytes. A folder contains, for `prompts` and, if there are any, for `responses`,

    NAME.ids       the ids of all sequences, one after the other
    NAME.lengths   the number of tokens of each sequence
    labels         for labelled responses, one byte each
    trained        for conversations in which all answers are trained on, one byte for each id of the responses
    store.json     the number of responses per prompt, the type and the SHA-256 of the files, and a report
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from rlhf_lab.batch import Tokens, row_key
from rlhf_lab.errors import LabError

VERSION = 2
"""Version of the files. A store of another version is written again."""
PADDED_AT_ONCE = 4096
"""Selections of at most this many rows become padded `Tokens`. A larger selection is not padded."""

Columns = dict[str, np.ndarray]
"""Rows as flat arrays, under the names of their files."""


class StoredTokens(Tokens):
    """`Tokens` whose ids stay in an array without padding until rows are selected.

    It can be used wherever `Tokens` can. The attributes `ids` and `mask` pad all rows, which needs much memory.
    """

    def __init__(
        self,
        flat: Any,
        starts: np.ndarray,
        index: np.ndarray,
        content: str | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Wrap an array of ids.

        Args:
            flat: ids of all sequences, one after the other.
            starts: position in `flat` at which each sequence begins, and at the end the length of `flat`.
            index: the sequence of each prompt, (N,), or of each response, (N, G).
            content: the SHA-256 of `flat` and of the lengths, if it is known.
            device: where the padded rows are put.
        """
        fields = {"_flat": flat, "_starts": starts, "_index": index, "_device": torch.device(device)}
        for name, value in {**fields, "_content": content}.items():
            object.__setattr__(self, name, value)

    _flat: Any
    _starts: np.ndarray
    _index: np.ndarray
    _content: str | None
    _device: torch.device

    @property
    def ids(self) -> Tensor:
        """All rows, padded: (N, P) or (N, G, T)."""
        return self._padded().ids

    @property
    def mask(self) -> Tensor:
        """The mask of `ids`."""
        return self._padded().mask

    @property
    def lengths(self) -> Tensor:
        """Number of tokens of each sequence, (N,) or (N, G)."""
        return torch.from_numpy(self._lengths()).to(self._device)

    @property
    def shape(self) -> torch.Size:
        """Shape that the padded rows have."""
        return torch.Size([*self._index.shape, max(int(self._lengths().max(initial=0)), 1)])

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
        part = self._with(self._index[rows])
        return part if len(part) > PADDED_AT_ONCE else part._padded()

    def take(self, index: Tensor) -> StoredTokens:
        """Select responses by `index` (N, m) along the G axis of (N, G, T), without padding."""
        return self._with(np.take_along_axis(self._index, index.cpu().numpy(), 1))

    def to(self, device: torch.device | str) -> StoredTokens:
        """Return the same rows, which are put on `device` when they are selected."""
        return StoredTokens(self._flat, self._starts, self._index, self._content, device)

    def trim(self) -> StoredTokens:
        """Return the same rows. They have no common padding."""
        return self

    def keys(self) -> list[bytes]:
        """Return a digest of each row, as `Tokens.keys` does."""
        index = self._index.reshape(len(self), -1)
        return [row_key(self._flat[self._starts[one] : self._starts[one + 1]] for one in row) for row in index]

    def digest(self) -> str:
        """Return a SHA-256 of the ids and of the selection of rows. That of the ids is not computed if it is known."""
        content = self._content
        if content is None:
            content = _sha256(self._flat) + _sha256(np.diff(self._starts).astype("<u4"))
        return hashlib.sha256(
            f"{content} {self._index.shape}".encode() + self._index.astype("<i8").tobytes()
        ).hexdigest()

    def _with(self, index: np.ndarray) -> StoredTokens:
        return StoredTokens(self._flat, self._starts, index, self._content, self._device)

    def _lengths(self) -> np.ndarray:
        lengths: np.ndarray = (self._starts[self._index + 1] - self._starts[self._index]).astype(np.int64)
        return lengths

    def _padded(self) -> Tokens:
        lengths = self._lengths()
        places = np.arange(max(int(lengths.max(initial=0)), 1))
        mask = places < lengths[..., None]
        ids = np.zeros(mask.shape, dtype=np.int64)
        ids[mask] = self._flat[(self._starts[self._index][..., None] + places)[mask]]
        return Tokens(torch.from_numpy(ids), torch.from_numpy(mask)).to(self._device)


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


class _Joined:
    """Arrays of ids, one after the other, which are read as if they were one array."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, places: slice | np.ndarray) -> np.ndarray:
        wanted = np.arange(*places.indices(len(self))) if isinstance(places, slice) else places
        owner, found = np.searchsorted(self._ends, wanted, "right"), np.zeros(len(wanted), np.int64)
        for number, part in enumerate(self._parts):
            here = owner == number
            found[here] = part[wanted[here] - (self._ends[number] - len(part))]
        return found


def _joined(parts: Sequence[StoredTokens]) -> StoredTokens:
    starts, index = [np.zeros(1, np.int64)], []
    for part in parts:
        index.append(part._index + sum(map(len, starts)) - 1)
        starts.append(part._starts[1:] + starts[-1][-1])
    content = " ".join(part.digest() for part in parts)
    flat = _Joined([part._flat for part in parts])
    return StoredTokens(flat, np.concatenate(starts), np.concatenate(index), content, parts[0].device)


class StoredRows(NamedTuple):
    """Rows of data.

    Attributes:
        prompts: (N, P).
        responses: (N, G, T); None for prompts alone.
        labels: whether each response is desirable, (N, 1) booleans; None without labels.
        trained: 1 for each token of a response that is trained on, (N, 1, T); None if all are.
    """

    prompts: StoredTokens
    responses: StoredTokens | None
    labels: Tensor | None
    trained: StoredTokens | None = None


def join(parts: Sequence[StoredRows]) -> StoredRows:
    """Return the rows of several data, of the same kind, one after the other. No ids are copied."""
    prompts, responses, labels, trained = zip(*parts, strict=True)
    return StoredRows(
        _joined(prompts),
        None if responses[0] is None else _joined(responses),
        None if labels[0] is None else torch.cat(labels),
        None if trained[0] is None else _joined(trained),
    )


def id_type(vocabulary: int) -> np.dtype[Any]:
    """Return the type of ids for a number of tokens: two bytes if they are enough, otherwise four."""
    return np.dtype("<u2" if vocabulary <= 2**16 else "<u4")


def pack(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[Sequence[int]]],
    labels: Sequence[bool],
    dtype: np.dtype[Any],
    trained: Sequence[Sequence[bool]] = (),
) -> Columns:
    """Return rows as flat arrays.

    Args:
        prompts: ids of N prompts.
        responses: ids of the responses of each.
        labels: labels of N responses, or none.
        dtype: type of the ids.
        trained: for each of N responses whether each of its ids is trained on, or none.
    """
    columns = {"labels": np.asarray(labels, bool)} if labels else {}
    if trained:
        columns["trained"] = np.fromiter((mark for one in trained for mark in one), bool)
    for name, sequences in (("prompts", prompts), ("responses", [one for row in responses for one in row])):
        lengths = np.fromiter(map(len, sequences), "<u4", len(sequences))
        columns[f"{name}.lengths"] = lengths
        columns[f"{name}.ids"] = np.fromiter((token for one in sequences for token in one), dtype, int(lengths.sum()))
    return columns


def unpack(columns: Columns, group: int, digests: dict[str, str] | None = None) -> StoredRows:
    """Return flat arrays as rows.

    Args:
        columns: as `pack` makes them.
        group: number of responses of each prompt.
        digests: the SHA-256 of each array, if it is known.

    Raises:
        ValueError: the numbers of ids, sequences or labels do not agree.
    """
    found: dict[str, StoredTokens] = {}
    number = len(columns["prompts.lengths"])
    for name, shape in (("prompts", (number,)), ("responses", (number, group))):
        flat, lengths = columns[f"{name}.ids"], columns[f"{name}.lengths"]
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        if len(flat) != starts[-1]:
            raise ValueError(f"{len(flat)} {name} ids for {starts[-1]} places")
        content = None if digests is None else digests[f"{name}.ids"] + digests[f"{name}.lengths"]
        found[name] = StoredTokens(flat, starts, np.arange(len(lengths)).reshape(shape), content)
    labels, trained = columns.get("labels"), columns.get("trained")
    marks = None
    if trained is not None:
        places = found["responses"]
        if len(trained) != places._starts[-1]:
            raise ValueError(f"{len(trained)} marks for {places._starts[-1]} ids")
        content = None if digests is None else digests["trained"] + digests["responses.lengths"]
        marks = StoredTokens(trained, places._starts, places._index, content)
    desirable = None if labels is None else torch.from_numpy(labels.astype(bool).reshape(number, 1))
    return StoredRows(found["prompts"], found["responses"] if group else None, desirable, marks)


class StoreWriter:
    """Writes rows to a new folder, which appears under its name only when it is complete.

    with StoreWriter(folder, group, dtype) as writer:
        writer.add(pack(prompts, responses, labels, dtype))
        writer.report = {...}

    One process at a time may write a folder. What an interrupted one has left is removed by the next.
    """

    def __init__(self, folder: Path, group: int, dtype: np.dtype[Any]) -> None:
        """Prepare the files.

        Args:
            folder: the new folder.
            group: number of responses of each prompt.
            dtype: type of the ids.
        """
        self.folder, self.group, self.dtype = folder, group, dtype
        self.report: dict[str, Any] = {}
        self._part = folder.with_name(f".{folder.name}.part")
        self._files: dict[str, IO[bytes]] = {}
        self._digests: dict[str, Any] = {}

    def __enter__(self) -> Self:
        shutil.rmtree(self._part, ignore_errors=True)
        try:
            self._part.mkdir(parents=True)
        except OSError as error:
            raise cannot_store(self.folder, error) from None
        return self

    def add(self, columns: Columns) -> None:
        """Append rows."""
        for name, array in columns.items():
            if name not in self._files:
                self._files[name] = (self._part / name).open("wb")
                self._digests[name] = hashlib.sha256()
            self._files[name].write(array.tobytes())
            self._digests[name].update(array.tobytes())

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for file in self._files.values():
                file.close()
            if kind is None:
                record = {
                    "version": VERSION, "group": self.group, "dtype": self.dtype.str, "report": self.report,
                    "sha256": {name: digest.hexdigest() for name, digest in self._digests.items()},
                }  # fmt: skip
                (self._part / "store.json").write_text(json.dumps(record), encoding="utf-8")
                shutil.rmtree(self.folder, ignore_errors=True)
                os.replace(self._part, self.folder)
        except OSError as error:
            raise cannot_store(self.folder, error) from None
        finally:
            shutil.rmtree(self._part, ignore_errors=True)


def cannot_store(folder: Path, error: OSError) -> LabError:
    """Return the error for a folder that cannot be written."""
    return LabError(
        f"The token ids cannot be stored in {folder} ({error.strerror or error}). Free some space, or set "
        f"RLHF_LAB_CACHE to another folder."
    )


def open_store(folder: Path) -> tuple[StoredRows, dict[str, Any]] | None:
    """Return the rows of a folder, mapped into memory, and their report; None if it is missing or damaged."""
    try:
        record = json.loads((folder / "store.json").read_text(encoding="utf-8"))
        if record["version"] != VERSION:
            return None
        columns: Columns = {}
        for name, expected in record["sha256"].items():
            with (folder / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                    return None
            if name.endswith(".ids") and (folder / name).stat().st_size:
                columns[name] = np.memmap(folder / name, np.dtype(record["dtype"]), "r")
            else:
                columns[name] = np.fromfile(folder / name, "<u4" if name.endswith(".lengths") else "u1")
        return unpack(columns, record["group"], record["sha256"]), record["report"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
