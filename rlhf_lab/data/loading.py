"""Read and tokenise the rows of a source for training, once: preference pairs, targets, labelled responses or prompts.

Many rows are stored in files and mapped into memory (`token_store`). The stored ids of a local file are used again
until the file, the tokenizer or a limit of length changes.
"""

from __future__ import annotations

import atexit
import hashlib
import itertools
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from filelock import FileLock
from tqdm.auto import tqdm

from rlhf_lab.data import sft, token_store
from rlhf_lab.data.conversations import TrainOn
from rlhf_lab.data.preferences import PAIRS, Encoder, Reading, TooLong, summary
from rlhf_lab.data.readers import Source, file_sha256, is_local
from rlhf_lab.data.token_store import Columns, StoredRows
from rlhf_lab.errors import LabError, check_path
from rlhf_lab.policies.end_tokens import chat_turn_end

Kind = Literal["pairs", "targets", "labelled", "prompts"]
KINDS = {"pairs": PAIRS, "targets": sft.EXAMPLES, "labelled": sft.LABELLED, "prompts": sft.PROMPTS}

IN_MEMORY = 20_000
"""Largest number of rows that are not stored in files."""
CHUNK = 2048
"""Number of rows that are tokenised together."""
KEY_VERSION = 4
"""Part of the key of stored ids. It must change when formats or tokenisation change."""


class LoadedRows(NamedTuple):
    """Rows, two lines of text about those that were read, dropped and truncated, and the numbers in these lines."""

    rows: StoredRows
    said: list[str]
    counts: dict[str, Any]


def load_rows(
    kind: Kind,
    source: Source | str,
    tokenizer: Any,
    max_prompt_tokens: int | None,
    max_response_tokens: int | None,
    end_token: int | None,
    folder: Path,
    progress: bool = False,
    too_long: TooLong = "cut",
    train_on: TrainOn = "last",
) -> LoadedRows:
    """Read and tokenise the rows of a source. More than `IN_MEMORY` rows are stored in files and mapped into memory.

    The ids of a local file are stored for the next time. Their key is the SHA-256 of the file, the kind of rows, the
    tokenizer, the limits and this package's version. Those of a data set on the Hub are stored only for this run. While
    one process tokenises a file, others that need the same ids wait for it.

    Args:
        kind: what is read from each row. For "labelled", `source` has labels.
        source: as for `load_preferences`.
        tokenizer: as for `preferences.tokenise`, as are the next three.
        max_prompt_tokens: maximum length of a prompt.
        max_response_tokens: maximum length of a response with its end token.
        end_token: id of the token that ends a response.
        folder: folder for the stored ids. Each data set has a folder in it.
        progress: show a progress bar.
        too_long: what happens to texts of more tokens than the limits.
        train_on: for targets, whether the loss contains the last answer of a conversation or all of them.

    Raises:
        LabError: the source cannot be read, columns are missing, a row is malformed, every row was dropped, or the
            folder cannot be written.
    """
    source, limits = Source.of(source), (max_prompt_tokens, max_response_tokens, end_token, too_long, train_on)
    encoder = Encoder(KINDS[kind].what, tokenizer, *limits)
    key = _key(kind, source, tokenizer, limits)
    known = token_store.open_store(folder / key) if key else None
    if known is not None:
        return LoadedRows(known[0], list(known[1]["lines"]), dict(known[1]["counts"]))
    reading = Reading(KINDS[kind], source, tokenizer)
    dtype, group = token_store.id_type(len(tokenizer)), KINDS[kind].responses
    with ExitStack() as stack:
        bar = stack.enter_context(tqdm(desc="tokenise", unit=" rows", disable=not progress, leave=False))
        parts, first = _encoded(reading, encoder, dtype, bar), list[Columns]()
        for part in parts:
            first.append(part)
            if encoder.kept > IN_MEMORY:
                break
        else:
            columns = {name: np.concatenate([part[name] for part in first]) for name in first[0]} if first else {}
            found = _report(reading, encoder)
            return LoadedRows(token_store.unpack(columns, group), found["lines"], found["counts"])
        try:
            folder.mkdir(parents=True, exist_ok=True)
            folder = folder / key if key else _temporary(folder)
            stack.enter_context(FileLock(folder.with_name(f".{folder.name}.lock")))
        except OSError as error:
            raise token_store.cannot_store(folder, error) from None
        # Another process may have stored the same rows in the meantime.
        if token_store.open_store(folder) is None:
            with token_store.StoreWriter(folder, group, dtype) as writer:
                for part in itertools.chain(first, parts):
                    writer.add(part)
                writer.report = _report(reading, encoder)
    stored = token_store.open_store(folder)
    if stored is None:
        raise LabError(f"The token ids in {folder} were changed while they were written. Run the command again.")
    return LoadedRows(stored[0], list(stored[1]["lines"]), dict(stored[1]["counts"]))


def _encoded(reading: Reading, encoder: Encoder, dtype: np.dtype[Any], bar: Any) -> Iterator[Columns]:
    rows = iter(reading)
    while chunk := list(itertools.islice(rows, CHUNK)):
        prompts, responses, kept, trained = encoder.encode(chunk)
        labels = [label for label in (chunk[place].label for place in kept) if label is not None]
        yield token_store.pack(prompts, responses, labels, dtype, trained)
        bar.update(len(chunk))


def _report(reading: Reading, encoder: Encoder) -> dict[str, Any]:
    """Two lines about the rows, and the numbers in them.

    Raises:
        LabError: every row was dropped.
    """
    name, number = reading.source.name, reading.forms.total()
    found = encoder.report(name)
    lines = [summary(name, reading.form, number, reading.kind.what, reading.dropped), found.summary()]
    return {"lines": lines, "counts": found.counts(reading.form, reading.dropped)}


def _key(kind: Kind, source: Source, tokenizer: Any, limits: tuple[int | str | None, ...]) -> str:
    """The key of the ids of a local file, or an empty text for other sources and for tokenizers without a file."""
    whole = getattr(tokenizer, "backend_tokenizer", None)
    if not is_local(source.name) or not check_path(source.name, "data").is_file() or whole is None:
        return ""
    parts = (
        KEY_VERSION, kind, file_sha256(source.name), source.split, source.limit, source.chat, limits, len(tokenizer),
        whole.to_str(), tokenizer.chat_template, tokenizer.bos_token_id, tokenizer.eos_token_id,
        chat_turn_end(tokenizer),
    )  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _temporary(folder: Path) -> Path:
    """A name for a folder that is removed when the program ends."""
    made = Path(tempfile.mkdtemp(prefix="run-", dir=folder))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made / "rows"
