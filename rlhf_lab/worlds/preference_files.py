"""Rows of preference data from a local file or the Hub, each with the name of the place it came from.

Only reading is done here; `preference_data.py` says what a row means. What cannot be read is refused with the
file and the line.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_lab.checks import LabError
from rlhf_lab.policies import hub

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")


class Row(NamedTuple):
    """One row as it was read, and where: `line 7`, `row 7`."""

    place: str
    fields: dict[str, Any]


def is_local(source: str) -> bool:
    """Whether `source` means a file rather than a name on the Hub."""
    path = Path(source).expanduser()
    return path.exists() or _suffix(path) in SUFFIXES or not hub.is_hub_name(source)


def check_source(source: str, revision: str | None = None) -> bool:
    """Find out, without loading anything, whether the data can be had; True if the network may be used.

    Raises:
        LabError: the file is missing, empty or of another kind, or the Hub has no data set of that name.
    """
    if not is_local(source):
        return hub.reachable("dataset", source, revision)
    path = Path(source).expanduser()
    if not path.exists():
        raise LabError(f"There is no data file {source}, and no data set of that name can be on the Hub.")
    if path.is_dir():
        raise LabError(f"{source} is a folder; give one data file in it.")
    if _suffix(path) not in SUFFIXES:
        raise LabError(f"{path.name}: unknown kind of file. Known are {', '.join(SUFFIXES)}, each also with .gz.")
    if path.stat().st_size == 0:
        raise LabError(f"{source} is empty.")
    return False


def read_rows(source: str, split: str, revision: str | None = None, folder: str | None = None) -> list[Row]:
    """All rows of a local file, or of a data set on the Hub.

    Args:
        source: a file (.json, .jsonl, .csv, .parquet, each also .gz) or a name on the Hub.
        split: which split of a data set on the Hub; a file is one split.
        revision: branch, tag or commit on the Hub.
        folder: folder within the data set on the Hub, such as Anthropic/hh-rlhf's `harmless-base`.

    Raises:
        LabError: it cannot be had or read; the message names file and line.
    """
    online = check_source(source, revision)
    if not is_local(source):
        return _from_hub(source, split, revision, folder, online)
    path = Path(source).expanduser()
    data = _bytes(path)
    kind = _suffix(path)
    if kind == ".parquet":
        rows = _parquet(data, source)
    else:
        text = _text(data, source)
        rows = {".json": _json, ".jsonl": _jsonl, ".csv": _csv}[kind](text, source)
    if not rows:
        raise LabError(f"{source} holds no rows.")
    return rows


def _suffix(path: Path) -> str:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LabError(f"{path} cannot be read: {error.strerror}.") from None
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise LabError(f"{path} is not a whole gzip file ({error}). Fetch it again.") from None
    if not data.strip():
        raise LabError(f"{path} is empty.")
    return data


def _text(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise LabError(
            f"{source}, line {line}: the byte 0x{data[error.start]:02x} is not UTF-8. Save the file as UTF-8 "
            f"(iconv -f latin1 -t utf-8, if it is Latin-1)."
        ) from None


def _row(fields: Any, place: str, source: str) -> Row:
    if not isinstance(fields, dict):
        raise LabError(f"{source}, {place}: expected an object with named fields, found {type(fields).__name__}.")
    return Row(place, fields)


def _jsonl(text: str, source: str) -> list[Row]:
    rows = []
    # Split at newlines alone: splitlines() would also cut at U+2028, which may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                fields = json.loads(line)
            except json.JSONDecodeError as error:
                raise LabError(
                    f"{source}, line {number}: malformed JSON at column {error.colno} ({error.msg}). Each line must "
                    f"be one whole object."
                ) from None
            rows.append(_row(fields, f"line {number}", source))
    return rows


def _json(text: str, source: str) -> list[Row]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            return _jsonl(text, source)  # objects line by line, under the other ending
        raise LabError(
            f"{source}, line {error.lineno}: malformed JSON at column {error.colno} ({error.msg}). Expected a list of "
            f"objects."
        ) from None
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise LabError(f"{source}: expected a list of objects, found {type(value).__name__}.")
    return [_row(fields, f"row {number}", source) for number, fields in enumerate(value, 1)]


def _csv(text: str, source: str) -> list[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    limit = csv.field_size_limit(2**31 - 1)
    rows = []
    try:
        for fields in reader:
            place = f"line {reader.line_num}"
            if None in fields:
                raise LabError(
                    f"{source}, {place}: more cells than the header's {len(reader.fieldnames or [])}. Put quotes round "
                    f"texts that hold commas."
                )
            rows.append(Row(place, dict(fields)))
    except csv.Error as error:
        raise LabError(f"{source}, line {reader.line_num}: malformed CSV ({error}).") from None
    finally:
        csv.field_size_limit(limit)
    return rows


def _parquet(data: bytes, source: str) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
    except (pyarrow.ArrowException, OSError) as error:
        raise LabError(f"{source} is not a readable parquet file ({str(error).splitlines()[0]}).") from None
    return [Row(f"row {number}", fields) for number, fields in enumerate(table.to_pylist(), 1)]


def _from_hub(name: str, split: str, revision: str | None, folder: str | None, online: bool) -> list[Row]:
    import datasets

    more = {"data_dir": folder} if folder else {}
    try:
        if online:
            data = datasets.load_dataset(name, split=split, revision=revision, **more)
        else:
            with hub.offline():
                data = datasets.load_dataset(name, split=split, revision=revision, **more)
    except Exception as error:
        if not online:
            raise hub.unreachable("dataset", name) from None
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise LabError(f"The data set '{name}' (split '{split}') cannot be loaded: {reason}") from None
    return [Row(f"row {number}", dict(fields)) for number, fields in enumerate(data, 1)]
