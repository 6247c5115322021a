"""Load preference pairs from a file or the Hub as texts, and tokenise them.

`formats.py` lists the formats of rows, and `readers.py` reads the files. Rows from which no pair can be made are
dropped and counted by reason. A malformed row is an error.
"""

from __future__ import annotations

import atexit
import hashlib
import itertools
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tqdm.auto import tqdm

from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.data import token_store
from rlhf_lab.data.formats import (  # the reasons are imported by callers that count dropped rows
    EMPTY_PROMPT,
    EMPTY_RESPONSE,
    EQUAL,
    MISSING,
    NO_ASSISTANT,
    PART_BEFORE,
    SPACE_ONLY,
    Triple,
    by_chat,
    by_template,
    check_columns,
    pair_of,
    standard_row,
    writer_of,
)
from rlhf_lab.data.readers import Source, is_local, near_columns, rows_of
from rlhf_lab.errors import LabError, check_path, check_utf8
from rlhf_lab.policies.end_tokens import chat_turn_end

__all__ = [
    "EMPTY_PROMPT", "EMPTY_RESPONSE", "EQUAL", "EQUAL_AFTER", "HOLDS_END", "MISSING", "NO_ASSISTANT", "PART_BEFORE",
    "SPACE_ONLY", "PreferenceTexts", "Source", "TokenReport", "load_pairs", "load_preferences", "tokenise",
]  # fmt: skip

HOLDS_END = "the text of a response contains the end token"
"""The end token is followed by more text. At the end of a text it is allowed."""
EQUAL_AFTER = "equal responses after truncation"
TOO_LONG = "longer than the limits of length"

TooLong = Literal["cut", "drop"]
"""What happens to a prompt or response of more tokens than its limit: it is cut, or its row is dropped."""

IN_MEMORY = 20_000
"""Largest number of pairs that `load_pairs` pads in memory."""
CHUNK = 2048
"""Number of pairs that are tokenised together."""
KEY_VERSION = 1
"""Part of the key of stored ids. It must change when formats or tokenisation change."""

LOOK = 1000
"""Number of rows after which data without the expected columns are refused."""


def counts(dropped: Counter[str]) -> str:
    """Return the numbers of dropped rows by reason as text, or `none`."""
    return ", ".join(f"{number:,} {reason}" for reason, number in sorted(dropped.items())) or "none"


@dataclass(frozen=True)
class PreferenceTexts:
    """Preference pairs as texts. The whole text is prompt + response, with nothing between them.

    Attributes:
        prompts: the prompt of each pair.
        chosen: the preferred response of each pair.
        rejected: the other response of each pair.
        dropped: number of rows from which no pair was made, by reason.
        source: the file or data set.
        form: the format of the rows: plain, conversational, AnthropicHH or comparisons.
        templated: whether the chat template wrote the prompt of each pair. Empty if it wrote none.
    """

    prompts: list[str]
    chosen: list[str]
    rejected: list[str]
    dropped: Counter[str] = field(default_factory=Counter)
    source: str = ""
    form: str = "plain"
    templated: list[bool] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.prompts)

    def first(self, number: int) -> PreferenceTexts:
        """Return the first `number` pairs, with the counts of all rows."""
        cut = slice(0, number)
        return PreferenceTexts(
            self.prompts[cut], self.chosen[cut], self.rejected[cut], self.dropped, self.source, self.form,
            self.templated[cut],
        )  # fmt: skip

    def summary(self) -> str:
        """Return a line with the source, the number of pairs, and the numbers of dropped rows."""
        return _summary(self.source, self.form, len(self), self.dropped)


def _summary(source: str, form: str, pairs: int, dropped: Counter[str]) -> str:
    return f"{source} ({form}): {pairs:,} pairs; dropped {dropped.total():,} rows: {counts(dropped)}"


@dataclass(frozen=True)
class TokenReport:
    """How many pairs (or examples, or prompts) were kept, dropped and truncated by tokenisation.

    Attributes:
        kept: number of pairs that were kept.
        dropped: number of dropped pairs, by reason.
        truncated_prompts: number of kept pairs whose prompt lost its beginning.
        truncated_responses: number of responses in kept pairs that lost their end, with the end token.
        longest: largest number of tokens in a kept prompt + response.
        what: what is counted.
    """

    kept: int
    dropped: Counter[str]
    truncated_prompts: int
    truncated_responses: int
    longest: int
    what: str = "pairs"

    def summary(self) -> str:
        """Return the numbers as a line of text."""
        return (
            f"{self.kept:,} {self.what} of at most {self.longest:,} tokens; {self.truncated_prompts:,} prompts and "
            f"{self.truncated_responses:,} responses truncated; dropped {self.dropped.total():,} {self.what}: "
            f"{counts(self.dropped)}"
        )


def load_preferences(source: Source | str, tokenizer: Any = None) -> PreferenceTexts:
    """Read preference pairs from a file or from the Hub.

    Args:
        source: the file or data set, and the number of pairs.
        tokenizer: its chat template writes conversational prompts. Without a template, or without a tokenizer, they are
            written in AnthropicHH's format.

    Raises:
        LabError: the source cannot be read, columns are missing, a row is malformed, or every row was dropped. The
            message names file and row.
    """
    reading = _Reading(Source.of(source), tokenizer)
    return reading.texts(list(reading))


class _Reading:
    """The usable pairs of a source, each with whether the chat template wrote its prompt, and counts of all rows.

    Attributes:
        source: the source.
        dropped: number of rows so far from which no pair was made, by reason.
        forms: number of pairs so far by format.
    """

    def __init__(self, source: Source, tokenizer: Any) -> None:
        self.source, self.tokenizer = source, writer_of(source, tokenizer)
        self.dropped: Counter[str] = Counter()
        self.forms: Counter[str] = Counter()

    def __iter__(self) -> Iterator[tuple[Triple, bool]]:
        name, columns, first = self.source.name, set[str](), ""
        for seen, row in enumerate(rows_of(self.source), 1):
            row = standard_row(row, name)
            columns |= row.fields.keys()
            if seen == LOOK and not self.forms:
                check_columns(columns, name)
            form, pair = pair_of(row, name, "prompt" in columns, self.tokenizer)
            if isinstance(pair, str):
                self.dropped[pair] += 1
                first = first or f" (the first is {row.place})"
                continue
            form, pair = by_chat(form, pair, self.source, self.tokenizer, f"{name}, {row.place}")
            self.forms[form] += 1
            yield pair, by_template(form, self.tokenizer)
            if self.forms.total() == self.source.limit:
                break
        if not self.forms:
            check_columns(columns, name)
            near = "" if "info" in columns else near_columns(("prompt",), columns)
            number, reasons = self.dropped.total(), counts(self.dropped)
            raise LabError(f"None of the {number:,} rows of {name} gives a pair: {reasons}{first}.{near}")

    def texts(self, pairs: Sequence[tuple[Triple, bool]]) -> PreferenceTexts:
        """Return pairs as columns, with the present counts."""
        prompts, chosen, rejected = (list(column) for column in zip(*(pair for pair, _ in pairs), strict=True))
        forms = " and ".join(sorted(self.forms))
        templated = [by for _, by in pairs]
        return PreferenceTexts(prompts, chosen, rejected, self.dropped, self.source.name, forms, templated)


def tokenise(
    texts: PreferenceTexts,
    tokenizer: Any,
    max_prompt_tokens: int | None,
    max_response_tokens: int | None,
    end_token: int | None,
    too_long: TooLong = "cut",
) -> tuple[Pairs, TokenReport]:
    """Turn texts into `Pairs` of token ids.

    Prompt and response are tokenised separately, so that the boundary between them is fixed. Each response ends with
    exactly one end token, even if its text already contains one. After a prompt that the chat template wrote, this is
    the token with which the template closes a turn. A prompt that is too long loses its beginning. A response that is
    too long loses its end and its end token. If the tokenizer opens every text with a special token, as Llama's does,
    the prompt keeps this token.

    Args:
        texts: the pairs.
        tokenizer: a Hugging Face tokenizer.
        max_prompt_tokens: maximum length of a prompt. None means no limit.
        max_response_tokens: maximum length of a response with its end token. None means no limit.
        end_token: id of the token that ends a response if no chat template wrote its prompt. None adds no end token.
        too_long: what happens to texts of more tokens than the limits.

    Raises:
        LabError: a limit is below 1, or every pair was dropped.
    """
    check_limits(max_prompt_tokens, max_response_tokens)
    rows = _Rows(tokenizer, max_prompt_tokens, max_response_tokens, end_token, too_long)
    prompts, responses = rows.tokenised(texts)
    report = rows.report(texts.source)
    return Pairs(Tokens.from_lists(prompts), Tokens.from_lists(responses)), report


class _Rows:
    """Tokenises pairs as `tokenise` does, some at a time, and counts what was dropped and truncated."""

    def __init__(
        self,
        tokenizer: Any,
        max_prompt_tokens: int | None,
        max_response_tokens: int | None,
        end_token: int | None,
        too_long: TooLong,
    ) -> None:
        self.tokenizer, self.limits = tokenizer, (max_prompt_tokens, max_response_tokens)
        self.end_token, self.too_long = end_token, too_long
        self.dropped: Counter[str] = Counter()
        self.kept = self.longest = self.short_prompts = self.short_responses = 0

    def tokenised(self, texts: PreferenceTexts) -> tuple[list[list[int]], list[list[list[int]]]]:
        """Return the ids of the prompts and of both responses of the pairs that are kept."""
        tokenizer, (max_prompt_tokens, max_response_tokens) = self.tokenizer, self.limits
        opening = opening_of(tokenizer)
        columns = [ids_of(column, tokenizer) for column in (texts.prompts, texts.chosen, texts.rejected)]
        ends = ends_of(tokenizer, self.end_token)
        prompts, responses = [], []
        for place, (prompt, *both) in enumerate(zip(*columns, strict=True)):
            templated = bool(texts.templated) and texts.templated[place]
            pair, endings = zip(*(split_end(response, ends, templated, tokenizer) for response in both), strict=True)
            if prompt and prompt[: len(opening)] != opening:
                prompt = opening + prompt
            if any(end in response for response in pair for end in ends):
                self.dropped[HOLDS_END] += 1
                continue
            asked = last(prompt, max_prompt_tokens, len(opening))
            answers = [(ids + ending)[:max_response_tokens] for ids, ending in zip(pair, endings, strict=True)]
            if not asked:
                self.dropped[EMPTY_PROMPT] += 1
            elif not all(answers) or [] in pair:
                self.dropped[EMPTY_RESPONSE] += 1
            elif self.too_long == "drop" and (len(asked) < len(prompt) or any(map(was_cut, answers, pair, endings))):
                self.dropped[TOO_LONG] += 1
            elif answers[0] == answers[1]:
                # Different texts can have the same ids. Such a pair contains no preference either.
                self.dropped[EQUAL_AFTER] += 1
            else:
                prompts.append(asked)
                responses.append(answers)
                self.longest = max(self.longest, len(asked) + max(map(len, answers)))
                self.short_prompts += len(asked) < len(prompt)
                self.short_responses += sum(len(a) < len(b) + bool(ends) for a, b in zip(answers, pair, strict=True))
        self.kept += len(prompts)
        return prompts, responses

    def report(self, source: str) -> TokenReport:
        """Return the counts.

        Raises:
            LabError: every pair was dropped.
        """
        if not self.kept:
            reasons, hint = counts(self.dropped), end_token_hint(self.dropped)
            raise LabError(f"No pair of {source} remains after tokenisation: {reasons}.{hint}")
        return TokenReport(self.kept, self.dropped, self.short_prompts, self.short_responses, self.longest)


def load_pairs(
    source: Source | str,
    tokenizer: Any,
    max_prompt_tokens: int | None,
    max_response_tokens: int | None,
    end_token: int | None,
    folder: Path,
    progress: bool = False,
    too_long: TooLong = "cut",
) -> tuple[Pairs, list[str]]:
    """Read and tokenise pairs. More than `IN_MEMORY` pairs are stored in files and mapped into memory.

    The ids of a local file are stored for the next time. Their key is the SHA-256 of the file, the tokenizer, the
    limits and this package's version. Those of a data set on the Hub are stored only for this run.

    Args:
        source: as for `load_preferences`.
        tokenizer: as for `tokenise`.
        max_prompt_tokens: as for `tokenise`.
        max_response_tokens: as for `tokenise`.
        end_token: as for `tokenise`.
        folder: folder for the stored ids. Each data set has a folder in it.
        progress: show a progress bar.
        too_long: as for `tokenise`.

    Returns:
        the pairs, whose tokens are `StoredTokens` if there are more than `IN_MEMORY`; and two lines of text about the
        rows that were read, dropped and truncated.

    Raises:
        LabError: as `load_preferences` and `tokenise`; or the folder cannot be written.
    """
    source = Source.of(source)
    check_limits(max_prompt_tokens, max_response_tokens)
    limits = (max_prompt_tokens, max_response_tokens, end_token, too_long)
    key = _key(source, tokenizer, limits)
    known = token_store.open_pairs(folder / key) if key else None
    if known is not None:
        return known[0], list(known[1]["lines"])
    reading = _Reading(source, tokenizer)
    rows = _Rows(tokenizer, *limits)
    pairs = iter(reading)
    first = list(itertools.islice(pairs, IN_MEMORY + 1))
    if len(first) <= IN_MEMORY:
        texts = reading.texts(first)
        found, report = tokenise(texts, tokenizer, *limits)
        return found, [texts.summary(), report.summary()]
    folder = folder / key if key else _temporary(folder)
    bar = tqdm(desc="tokenise", unit=" pairs", disable=not progress)
    with bar, token_store.PairWriter(folder, len(tokenizer)) as writer:
        pairs = itertools.chain(first, pairs)
        del first
        while chunk := list(itertools.islice(pairs, CHUNK)):
            texts = reading.texts(chunk)
            writer.add(*rows.tokenised(texts))
            bar.update(len(chunk))
        said = _summary(source.name, texts.form, reading.forms.total(), reading.dropped)
        writer.report = {"lines": [said, rows.report(source.name).summary()]}
    stored = token_store.open_pairs(folder)
    if stored is None:
        raise LabError(f"The token ids in {folder} were changed while they were written. Run the command again.")
    return stored[0], list(stored[1]["lines"])


def _key(source: Source, tokenizer: Any, limits: tuple[int | str | None, ...]) -> str:
    """The key of the ids of a local file, or an empty text for other sources and for tokenizers without a file."""
    whole = getattr(tokenizer, "backend_tokenizer", None)
    if not is_local(source.name) or not check_path(source.name, "data").is_file() or whole is None:
        return ""
    with check_path(source.name, "data").open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    parts = (
        KEY_VERSION, content, source.split, source.limit, source.chat, limits, len(tokenizer), whole.to_str(),
        tokenizer.chat_template, tokenizer.bos_token_id, tokenizer.eos_token_id, chat_turn_end(tokenizer),
    )  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _temporary(folder: Path) -> Path:
    """A name for a folder that is removed when the program ends."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix="run-", dir=folder))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made / "pairs"


def check_limits(max_prompt_tokens: int | None, max_response_tokens: int | None) -> None:
    """Raise `LabError` for limits below one token."""
    for name, limit in (("max_prompt_tokens", max_prompt_tokens), ("max_response_tokens", max_response_tokens)):
        if limit is not None and limit < 1:
            raise LabError(f"{name} must be at least 1, not {limit}.")


def was_cut(shown: list[int], ids: list[int], ending: list[int]) -> bool:
    """Return whether a response `ids` with its end token lost tokens."""
    return len(shown) < len(ids) + len(ending)


def opening_of(tokenizer: Any) -> list[int]:
    """Return the special token with which the tokenizer opens every text, as a list that may be empty."""
    first: list[int] = tokenizer("a")["input_ids"][:1]
    return first if first == [tokenizer.bos_token_id] else []


def ids_of(texts: list[str], tokenizer: Any) -> list[list[int]]:
    """Return the ids of texts without special tokens and without a warning about their length.

    Raises:
        LabError: a text contains a lone surrogate.
    """
    for number, text in enumerate(texts):
        check_utf8(text, f"Text {number}")
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def ends_of(tokenizer: Any, end_token: int | None) -> list[int]:
    """Return the end token of a plain response and that of a chat template's turn, or one id if they are equal.

    The list is empty if `end_token` is None.
    """
    if end_token is None:
        return []
    turn = chat_turn_end(tokenizer)
    return [end_token] if turn in (None, end_token) else [end_token, turn]


def split_end(ids: list[int], ends: list[int], templated: bool, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return a response without its end token, and the end token that it gets.

    Args:
        ids: the ids of the response. They may contain an end token that is followed only by white space or by other end
            tokens.
        ends: the result of `ends_of`.
        templated: whether the chat template wrote the prompt. If so, the response gets the template's end token.
            Otherwise it gets the end token in its text, or the first of `ends`.
        tokenizer: decodes the ids after the end token.
    """
    usual = ends[-1:] if templated else ends[:1]
    place = next((i for i, token in enumerate(ids) if token in ends), None)
    if place is None:
        return ids, usual
    after = [token for token in ids[place + 1 :] if token == ids[place] or token not in ends]
    if tokenizer.decode(after).strip():
        return ids, usual
    return ids[:place], usual if templated else [ids[place]]


def end_token_hint(dropped: Counter[str]) -> str:
    """Return a sentence for texts that contain the end token, or an empty text if there are none."""
    return " The end token may only be the last token of a response." if dropped[HOLDS_END] else ""


def last(ids: list[int], limit: int | None, opening: int) -> list[int]:
    """Return the first `opening` ids and the last ones, at most `limit` in all."""
    if limit is None or len(ids) <= limit:
        return ids
    kept = ids[:opening][:limit]
    return kept + ids[len(ids) - (limit - len(kept)) :]
