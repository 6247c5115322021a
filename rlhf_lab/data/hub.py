"""Rows of a data set on the Hub: streamed when a few are wanted, downloaded whole when all are.

What was streamed is kept as JSON lines in the lab's cache (`hub_lookup.cache_folder`), under the data set's name, the
revision that was asked for, split, folder and commit. A stream that broke goes on behind the rows it brought. Without
a network what was kept, or what the `datasets` library has in its own cache, is used.
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
"""The branch where the Hub keeps a Parquet copy of a data set whose own form is a script, which is never run."""


def rows(
    name: str, split: str, revision: str | None, folder: str | None, online: bool, limit: int | None
) -> Iterator[dict[str, Any]]:
    """The rows of one split, as dictionaries.

    Args:
        name: of the data set.
        split: such as `train`; the library's slices (`train[:1%]`) work without a limit.
        revision: branch, tag or commit; None is the default branch.
        folder: folder within the data set.
        online: whether the network may be used.
        limit: None where all rows will be wanted; with a number they are streamed, until no more are asked for.

    Raises:
        LabError: it cannot be had.
    """
    if limit is None or "[" in split:
        yield from _whole(name, split, revision, folder, online)
        return
    kept = _kept_at(name, split, revision, folder)
    commit = hub_lookup.hub_commit("dataset", name, revision) if online else None
    state = _read_state(kept)
    if commit is not None and state["commit"] != commit:
        kept.unlink(missing_ok=True)
        state = {"commit": commit, "complete": False}
        _write_state(kept, state)
    # Complete lines only: a process that was killed may have left half of one.
    have = _whole_lines(kept)
    if not online and have == 0:
        # Nothing was streamed before; perhaps the whole set was downloaded.
        yield from _whole(name, split, revision, folder, online)
        return
    yield from _stored(kept)
    if state["complete"] or not online:
        return
    with kept.open("a", encoding="utf-8") as file:
        # Whoever asks stops when there is enough; then this generator is closed here, and the file with it.
        for fields in _stream(name, split, revision, folder, have):
            # As ASCII, which also holds the lone surrogates of a broken text.
            file.write(json.dumps(fields, default=str) + "\n")
            yield fields
    state["complete"] = True
    _write_state(kept, state)


def _kept_at(name: str, split: str, revision: str | None, folder: str | None) -> Path:
    parts = (name.replace("/", "--"), revision or "main", f"{folder or 'all'}-{split}.jsonl")
    return hub_lookup.cache_folder().joinpath("data", *(re.sub(r"[^\w.-]", "-", part) for part in parts))


def _read_state(kept: Path) -> dict[str, Any]:
    try:
        state = json.loads(kept.with_suffix(".state.json").read_text(encoding="utf-8"))
        return {"commit": state["commit"], "complete": bool(state["complete"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {"commit": None, "complete": False}


def _write_state(kept: Path, state: dict[str, Any]) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.with_suffix(".state.json").write_text(json.dumps(state) + "\n", encoding="utf-8")


def _whole_lines(kept: Path) -> int:
    """How many whole lines are kept; half a line at the end is cut off."""
    if not kept.is_file():
        return 0
    count = end = 0
    with kept.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            count, end = count + 1, end + len(line)
    if end < kept.stat().st_size:
        os.truncate(kept, end)
    return count


def _stored(kept: Path) -> Iterator[dict[str, Any]]:
    if kept.is_file():
        with kept.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    fields = dict(json.loads(line))
                except (ValueError, TypeError) as error:
                    raise LabError(
                        f"{kept}, line {number}, is damaged ({error}). Remove the file to fetch it anew."
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
            f"The stream of '{name}' broke ({type(error).__name__}: {_first_line(error)}). What came is kept; run the "
            f"command again to go on."
        ) from None


def _whole(name: str, split: str, revision: str | None, folder: str | None, online: bool) -> Iterator[dict[str, Any]]:
    for fields in _load(name, split, revision, folder, online):
        yield dict(fields)


def _load(
    name: str, split: str, revision: str | None, folder: str | None, online: bool, streaming: bool = False
) -> Any:
    """`datasets.load_dataset`, without its code execution, and without half a minute of retries when offline."""
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
