"""Rows of a data set on the Hub. They are streamed if a limit is given, and otherwise downloaded completely.

Streamed rows are stored as JSON lines in the lab's cache (`hub_lookup.cache_folder`), by name, revision, split, folder
and commit of the data set. An interrupted stream continues after the stored rows. Without a network, the stored rows
are used, or else the cache of the `datasets` library.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_lab.errors import LabError
from rlhf_lab.policies import hub_lookup

CONVERTED = "refs/convert/parquet"
"""The branch of the Hub with a Parquet copy of a data set that is defined by a script. Scripts are never run."""


def rows(
    name: str, split: str, revision: str | None, folder: str | None, online: bool, limit: int | None
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one split, as dictionaries.

    Args:
        name: name of the data set.
        split: a split such as `train`, or without a limit a slice such as `train[:1%]`.
        revision: branch, tag or commit. None means the default branch.
        folder: folder inside the data set.
        online: whether the network may be used.
        limit: if a number is given, rows are streamed until the caller stops. None downloads all rows.

    Raises:
        LabError: the data set cannot be loaded.
    """
    if limit is None or "[" in split:
        yield from _whole(name, split, revision, folder, online)
        return
    stored = _stored_file(name, split, revision, folder)
    commit = hub_lookup.hub_commit("dataset", name, revision) if online else None
    state = _read_state(stored)
    if commit is not None and state["commit"] != commit:
        stored.unlink(missing_ok=True)
        state = {"commit": commit, "complete": False}
        _write_state(stored, state)
    # A process that was killed may have left half a line, which is removed.
    have = _complete_lines(stored)
    if not online and have == 0:
        # Nothing was streamed before. The whole data set may be in the cache of `datasets`.
        yield from _whole(name, split, revision, folder, online)
        return
    yield from _stored_rows(stored)
    if state["complete"] or not online:
        return
    with stored.open("a", encoding="utf-8") as file:
        # The caller stops when it has enough rows. Python then closes this generator and the file.
        for fields in _stream(name, split, revision, folder, have):
            # ASCII can also represent the lone surrogates of a broken text.
            file.write(json.dumps(fields, default=str) + "\n")
            yield fields
    state["complete"] = True
    _write_state(stored, state)


def _stored_file(name: str, split: str, revision: str | None, folder: str | None) -> Path:
    parts = (name.replace("/", "--"), revision or "main", f"{folder or 'all'}-{split}.jsonl")
    return hub_lookup.cache_folder().joinpath("data", *(re.sub(r"[^\w.-]", "-", part) for part in parts))


def _read_state(stored: Path) -> dict[str, Any]:
    try:
        state = json.loads(stored.with_suffix(".state.json").read_text(encoding="utf-8"))
        return {"commit": state["commit"], "complete": bool(state["complete"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {"commit": None, "complete": False}


def _write_state(stored: Path, state: dict[str, Any]) -> None:
    stored.parent.mkdir(parents=True, exist_ok=True)
    stored.with_suffix(".state.json").write_text(json.dumps(state) + "\n", encoding="utf-8")


def _complete_lines(stored: Path) -> int:
    """Remove half a line at the end of the file, and return the number of lines."""
    if not stored.is_file():
        return 0
    count = end = 0
    with stored.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            count, end = count + 1, end + len(line)
    if end < stored.stat().st_size:
        os.truncate(stored, end)
    return count


def _stored_rows(stored: Path) -> Iterator[dict[str, Any]]:
    if stored.is_file():
        with stored.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    fields = dict(json.loads(line))
                except (ValueError, TypeError) as error:
                    raise LabError(
                        f"{stored}, line {number}, is damaged ({error}). Remove this file to download it again."
                    ) from None
                yield fields


def _stream(name: str, split: str, revision: str | None, folder: str | None, skip: int) -> Iterator[dict[str, Any]]:
    data = _load(name, split, revision, folder, online=True, streaming=True)
    data = data.skip(skip) if skip else data
    try:
        for fields in data:
            yield dict(fields)
    except LabError:
        raise
    except Exception as error:
        raise LabError(
            f"The download of '{name}' was interrupted ({type(error).__name__}: {_first_line(error)}). The rows so far "
            f"are stored. Run the command again to continue."
        ) from None


def _whole(name: str, split: str, revision: str | None, folder: str | None, online: bool) -> Iterator[dict[str, Any]]:
    for fields in _load(name, split, revision, folder, online):
        yield dict(fields)


def _load(
    name: str, split: str, revision: str | None, folder: str | None, online: bool, streaming: bool = False
) -> Any:
    """Call `datasets.load_dataset` without running code of the data set, and without retries when offline."""
    import datasets

    more: dict[str, Any] = {"data_dir": folder} if folder else {}
    if streaming:
        more["streaming"] = True

    def load(revision: str | None) -> Any:
        try:
            return datasets.load_dataset(name, split=split, revision=revision, **more)
        except RuntimeError as error:
            if "scripts are no longer supported" in str(error) and revision is None:
                return load(CONVERTED)
            raise

    try:
        if online:
            return load(revision)
        with hub_lookup.offline_mode():
            return load(revision)
    except Exception as error:
        if not online:
            raise hub_lookup.not_available("dataset", name) from None
        raise LabError(f"The data set '{name}' (split '{split}') cannot be loaded: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
