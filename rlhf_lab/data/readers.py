"""Read rows from a .json, .jsonl, .csv or .parquet file, or from a data set on the Hub.

`formats.py` interprets the rows. Files are read row by row, so a limit reads only the rows that it needs. An error
names the file and the line.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import hashlib
import io
import itertools
import json
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from rlhf_lab.data import hub
from rlhf_lab.errors import LabError, check_path, check_utf8, spaces_hint
from rlhf_lab.policies import hub_lookup

Chat = Literal["auto", "on", "off"]
"""Which rows a chat template writes. auto: conversations and dialogues of AnthropicHH's format. on: every row, and a
text is a turn of the user. off: no row, and conversations are written in AnthropicHH's format. Without a template, auto
is off."""

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")

LONGEST_LINE = 32 * 2**20
"""Largest number of bytes in a line. A longer text is a mistake, and only a few hundred of its tokens would be used."""

_ALSO_CALLED = {
    "prompt": ("question", "query", "instruction", "input", "context", "post", "x"),
    "chosen": ("accepted", "preferred", "better", "winner", "win", "good", "positive", "response_chosen", "y_w"),
    "rejected": ("dispreferred", "worse", "loser", "lose", "bad", "negative", "response_rejected", "y_l"),
    "completion": ("response", "answer", "output", "target", "reply", "summary", "text", "y"),
}


class Row(NamedTuple):
    """The fields of one row, and its place in the file, such as `line 7` or `row 7`."""

    place: str
    fields: dict[str, Any]


@dataclass(frozen=True)
class Source:
    """The source of rows, and how many are needed. Loaders accept a name alone in place of a `Source` with defaults."""

    name: str
    """A .json, .jsonl, .csv or .parquet file (also .gz), or the name of a data set on the Hub."""
    split: str = "train"
    """Split of a data set on the Hub or of a .json file with several splits. Other files have no splits."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    folder: str | None = None
    """Folder inside a data set on the Hub, such as `harmless-base` of Anthropic/hh-rlhf."""
    limit: int | None = None
    """Stop after this number of usable rows. From the Hub, rows are then streamed and stored for the next time. Without
    a limit, a data set on the Hub is downloaded completely."""
    chat: Chat = "auto"
    """Which rows the model's chat template writes, see `Chat`."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise LabError(f"limit must be at least 1, not {self.limit}.")

    @classmethod
    def of(cls, source: Source | str) -> Source:
        """Return `source` itself, or a `Source` with that name."""
        return cls(source) if isinstance(source, str) else source


def is_local(source: str) -> bool:
    """Return whether `source` is a file and not a name on the Hub."""
    path = check_path(source, "data")
    return path.exists() or _suffix(path) in SUFFIXES or not hub_lookup.is_hub_name(source)


def check_source(source: str, revision: str | None = None) -> bool:
    """Check that the data exist, without loading them. Returns whether the network may be used.

    Raises:
        LabError: the file is missing, empty or of an unknown type, or the Hub has no data set with that name.
    """
    if not is_local(source):
        return hub_lookup.can_download("dataset", source, revision)
    path = check_path(source, "data")
    if not path.exists():
        raise LabError(
            f"There is no data file {source}, and the name cannot belong to a data set on the Hub. Check the path."
            + spaces_hint(source)
        )
    if path.is_dir():
        raise LabError(f"{source} is a folder. Give one data file in it.")
    if _suffix(path) not in SUFFIXES:
        raise LabError(f"{path.name}: unknown type of file. Known types are {', '.join(SUFFIXES)}, each also with .gz.")
    if path.stat().st_size == 0:
        raise LabError(f"{source} is empty. Give a file with rows.")
    return False


def file_sha256(source: str) -> str:
    """Return the SHA-256 of a local file. A file that has not changed is read only once in a process."""
    path = check_path(source, "data").resolve()
    status = path.stat()
    return _sha256_of(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256_of(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def holds_splits(source: str) -> bool:
    """Return whether a local file has several splits, as a .json file with an object of lists can have."""
    path = Path(source).expanduser()
    if _suffix(path) != ".json":
        return False
    with _open(path) as file:
        try:
            return _are_splits(json.loads(file.read()))
        except (ValueError, RecursionError):  # the reader will report what is wrong
            return False


def rows_of(source: Source | str) -> Iterator[Row]:
    """Yield the rows of a local file or of a data set on the Hub.

    The limit is not applied here. The caller stops when it has enough usable rows.

    Raises:
        LabError: the data cannot be read. The message names file and line.
    """
    source = Source.of(source)
    online = check_source(source.name, source.revision)
    if not is_local(source.name):
        fields_of_rows = hub.rows(source.name, source.split, source.revision, source.folder, online, source.limit)
        for number, fields in enumerate(fields_of_rows, 1):
            yield _checked(Row(f"row {number}", fields), source.name)
        return
    path = check_path(source.name, "data")
    readers: dict[str, Callable[[IO[bytes], str], Iterator[Row]]] = {
        ".parquet": _parquet, ".json": partial(_json, split=source.split), ".jsonl": _jsonl, ".csv": _csv,
    }  # fmt: skip
    found = False
    with _open(path) as file:
        for row in readers[_suffix(path)](file, source.name):
            found = True
            yield _checked(row, source.name)
    if not found:
        raise LabError(f"{source.name} contains no rows.")


def near_columns(wanted: Collection[str], columns: Collection[str]) -> str:
    """Return a sentence that proposes how to rename columns, or an empty text without a proposal.

    Args:
        wanted: names of the needed columns.
        columns: names of the columns in the data.
    """
    lower = {name.lower(): name for name in columns}
    found = []
    for name in wanted:
        if name in columns:
            continue
        near = [other for other in _ALSO_CALLED.get(name, ()) if other in lower]
        near = near or difflib.get_close_matches(name, list(lower), 1, 0.7)
        if near:
            found.append(f"`{lower[near[0]]}` to `{name}`")
    return f" Perhaps rename {' and '.join(found)}." if found else ""


def _suffix(path: Path) -> str:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, unpacked if it is a gzip file. Errors while it is read name the file."""
    try:
        with path.open("rb") as file:
            if path.suffix == ".gz":
                with gzip.open(file) as unpacked:
                    yield unpacked  # type: ignore[misc]
            else:
                yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise LabError(f"{path} is not a complete gzip file ({error}). Download it again.") from None
    except OSError as error:
        raise LabError(f"{path} cannot be read: {error.strerror or error}. Check its permissions.") from None


def _lines(file: IO[bytes], source: str) -> Iterator[tuple[int, str]]:
    """Yield numbered lines as text. They end only at newlines, because a JSON string may contain U+2028."""
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise LabError(
                f"{source}, line {number}: longer than {LONGEST_LINE // 2**20} MB. If the file is one JSON list, "
                f"give it the ending .json. Otherwise shorten the text of that line."
            )
        if number == 1:
            line = _without_mark(line, source)
        yield number, _decode(line, source, number)


def _without_mark(data: bytes, source: str) -> bytes:
    """Remove the byte order mark of UTF-8 from the beginning of a file.

    Raises:
        LabError: a byte order mark or zero bytes show that the file is UTF-16, UTF-32 or binary.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:4096]:
        raise LabError(f"{source} is UTF-16 or binary, not UTF-8. Save it as UTF-8 (iconv -f utf-16 -t utf-8).")
    return data.removeprefix(b"\xef\xbb\xbf")


def _decode(data: bytes, source: str, line: int = 1) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line += data[: error.start].count(b"\n")
        raise LabError(
            f"{source}, line {line}: the byte 0x{data[error.start]:02x} is not UTF-8. Save the file as UTF-8 "
            f"(iconv -f latin1 -t utf-8, if it is Latin-1)."
        ) from None


def _checked(row: Row, source: str) -> Row:
    """Return `row` if all its texts can be encoded as UTF-8."""
    for name, value in row.fields.items():
        _check_texts(value, f"{source}, {row.place}: `{name}`")
    return row


def _check_texts(value: Any, what: str) -> None:
    if isinstance(value, str):
        check_utf8(value, what)
    elif isinstance(value, list):
        for part in value:
            _check_texts(part, what)
    elif isinstance(value, dict):
        for part in value.values():
            _check_texts(part, what)


def _refuse_repeated(names: Iterable[str], place: str, what: str) -> None:
    """Raise `LabError` for two columns or fields with the same name."""
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise LabError(f"{place}: the {what} `{repeated[0]}` appears more than once. Rename or remove one of them.")


def _parsed(text: str, source: str, line: int, expected: str) -> Any:
    """Return the JSON value of `text`.

    Args:
        text: the JSON text.
        source: file, for messages.
        line: the line of the file at which the text begins, or 0 if the text is the whole file.
        expected: a sentence on the expected structure, for messages.

    Raises:
        LabError: the text is malformed, or an object has two fields with the same name.
        json.JSONDecodeError: the whole file contains more than one value.
    """

    def one_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            _refuse_repeated((name for name, _ in pairs), f"{source}, line {line}" if line else source, "field")
        return fields

    try:
        return json.loads(text, object_pairs_hook=one_object)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and not line:
            raise
        raise LabError(
            f"{source}, line {line or error.lineno}: malformed JSON at column {error.colno} ({error.msg}). {expected}"
        ) from None
    except RecursionError:
        place = f"{source}, line {line}" if line else source
        raise LabError(f"{place}: the JSON is nested too deeply. Expected are rows of texts.") from None
    except LabError:
        raise
    except ValueError as error:  # a number of thousands of digits
        raise LabError(f"{source}, line {line or 1}: malformed JSON ({error}). {expected}") from None


def _row(fields: Any, place: str, source: str) -> Row:
    if not isinstance(fields, dict):
        raise LabError(f"{source}, {place}: expected an object with named fields, found {type(fields).__name__}.")
    return Row(place, fields)


def _jsonl(file: IO[bytes], source: str) -> Iterator[Row]:
    empty = True
    for number, line in _lines(file, source):
        if not line.strip():
            continue
        empty = False
        fields = _parsed(line, source, number, "Each line must be one complete object.")
        yield _row(fields, f"line {number}", source)
    if empty:
        raise LabError(f"{source} is empty. Give a file with rows.")


def _json(file: IO[bytes], source: str, split: str) -> Iterator[Row]:
    text = _decode(_without_mark(file.read(), source), source)
    if not text.strip():
        raise LabError(f"{source} is empty. Give a file with rows.")
    try:
        value = _parsed(text, source, 0, "Expected a list of objects.")
    except json.JSONDecodeError as error:
        if not text.lstrip().startswith("{"):
            raise LabError(
                f"{source}, line {error.lineno}: malformed JSON at column {error.colno} ({error.msg}). Expected a list "
                f"of objects."
            ) from None
        # The file contains one object per line, like a .jsonl file.
        yield from _jsonl(io.BytesIO(text.encode()), source)
        return
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    if _are_splits(value):
        if split not in value:
            raise LabError(
                f"{source} has the splits {', '.join(value)}, but no split '{split}'. Choose one with --data-split."
            )
        value = value[split]
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise LabError(f"{source}: expected a list of objects, found {type(value).__name__}.")
    for number, fields in enumerate(value, 1):
        yield _row(fields, f"row {number}", source)


def _are_splits(value: Any) -> bool:
    """Whether a JSON value is an object with a list of rows for each split, and not one row with lists of turns."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(rows, list) and rows and isinstance(rows[0], dict) for rows in value.values())
        and not any(rows[0].keys() & {"role", "from"} for rows in value.values())
    )


def _csv(file: IO[bytes], source: str) -> Iterator[Row]:
    reader = csv.DictReader((line for _, line in _lines(file, source)), strict=True)
    limit = csv.field_size_limit(LONGEST_LINE)
    empty = True
    try:
        _refuse_repeated(reader.fieldnames or [], f"{source}, line 1", "column")
        for fields in reader:
            empty = False
            place = f"line {reader.line_num}"
            if None in fields:
                raise LabError(
                    f"{source}, {place}: more cells than the header's {len(reader.fieldnames or [])}. Put texts "
                    f"with commas in quotes."
                )
            yield Row(place, dict(fields))
    except csv.Error as error:
        raise LabError(f"{source}, line {reader.line_num}: malformed CSV ({error}).") from None
    finally:
        csv.field_size_limit(limit)
    if empty and not any(name.strip() for name in reader.fieldnames or []):
        raise LabError(f"{source} is empty. Give a file with rows.")


def _parquet(file: IO[bytes], source: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        # The index of a parquet file is at its end, which a gzip file cannot reach directly.
        whole = io.BytesIO(file.read()) if isinstance(file, gzip.GzipFile) else file
        opened = pyarrow.parquet.ParquetFile(whole)
        _refuse_repeated(opened.schema_arrow.names, source, "column")
        batches = opened.iter_batches(batch_size=1024)
        rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
        for number, fields in enumerate(rows, 1):
            yield Row(f"row {number}", fields)
    except UnicodeDecodeError as error:
        raise LabError(
            f"{source}: a text is not UTF-8 (the byte 0x{error.object[error.start]:02x}). Save it as UTF-8."
        ) from None
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, gzip.BadGzipFile):
            raise
        raise LabError(
            f"{source} is not a readable parquet file ({str(error).splitlines()[0]}). Save it again."
        ) from None
