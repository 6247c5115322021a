"""Load preference pairs from a file or the Hub as texts, and tokenise them.

`formats.py` lists the formats of rows, and `readers.py` reads the files. Rows from which no pair can be made are
dropped and counted by reason. A malformed row is an error.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.data.conversations import Answered, TrainOn, Written, shortened, turn_end_text, with_all_answers
from rlhf_lab.data.formats import (  # the reasons are imported by callers that count dropped rows
    EMPTY_PROMPT,
    EMPTY_RESPONSE,
    EQUAL,
    MISSING,
    NO_ASSISTANT,
    PART_BEFORE,
    SPACE_ONLY,
    by_chat,
    by_template,
    check_columns,
    pair_of,
    standard_row,
    writer_of,
)
from rlhf_lab.data.readers import Row, Source, near_columns, rows_of
from rlhf_lab.errors import LabError, check_utf8, count_of
from rlhf_lab.policies.end_tokens import chat_turn_end

__all__ = [
    "EMPTY_PROMPT", "EMPTY_RESPONSE", "EQUAL", "EQUAL_AFTER", "HOLDS_END", "MISSING", "NO_ASSISTANT", "PART_BEFORE",
    "SPACE_ONLY", "PreferenceTexts", "Source", "TokenReport", "load_preferences", "tokenise",
]  # fmt: skip

HOLDS_END = "the text of a response contains the end token"
"""The end token is followed by more text. At the end of a text it is allowed."""
EQUAL_AFTER = "equal responses after truncation"
TOO_LONG = "longer than the limits of length"
REPEATED = "repeated prompt"
LOST_TEXT = "lost the beginning"
"""What a prompt has lost that was not written from turns and was cut."""

TooLong = Literal["cut", "drop"]
"""What happens to a prompt or response of more tokens than its limit: it is cut, or its row is dropped."""

LOOK = 1000
"""Number of rows after which data without the expected columns are refused."""


def counts(dropped: Counter[str]) -> str:
    """Return reasons and the number of rows for each as text, such as "empty prompt (3)", or `none`."""
    return ", ".join(f"{reason} ({number:,})" for reason, number in sorted(dropped.items())) or "none"


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
        return summary(self.source, self.form, len(self), "pair", self.dropped)


def summary(source: str, form: str, number: int, what: str, dropped: Counter[str]) -> str:
    """Return a line about the rows of a source: how many were read, and how many were dropped, by reason."""
    return f"{source} ({form}): {count_of(number, what)}; dropped {count_of(dropped.total(), 'row')}: {counts(dropped)}"


@dataclass(frozen=True)
class TokenReport:
    """How many pairs (or examples, or prompts) were kept, dropped and truncated by tokenisation.

    Attributes:
        kept: number of pairs that were kept.
        dropped: number of dropped pairs, by reason.
        truncated_prompts: number of kept pairs whose prompt was cut.
        truncated_responses: number of responses in kept pairs that lost their end, with the end token.
        longest: largest number of tokens in a kept prompt + response.
        what: what is counted, in the singular.
        cuts: number of kept prompts by what they lost. A prompt may have lost turns and the beginning of another one.
    """

    kept: int
    dropped: Counter[str]
    truncated_prompts: int
    truncated_responses: int
    longest: int
    what: str = "pair"
    cuts: Counter[str] = field(default_factory=Counter)

    def counts(self, form: str, dropped: Counter[str]) -> dict[str, Any]:
        """Return the numbers of rows as JSON can write them.

        Args:
            form: the formats of the rows.
            dropped: number of rows that were dropped before tokenisation, by reason.
        """
        return {
            "form": form, "what": f"{self.what}s", "read": self.kept + self.dropped.total() + dropped.total(),
            "kept": self.kept, "dropped": dict(dropped + self.dropped), "cut_prompts": self.truncated_prompts,
            "cuts": dict(self.cuts), "cut_responses": self.truncated_responses,
        }  # fmt: skip

    def summary(self) -> str:
        """Return the numbers as a line of text."""
        turns = Counter({name: number for name, number in self.cuts.items() if name != LOST_TEXT})
        return (
            f"{count_of(self.kept, self.what)} of at most {count_of(self.longest, 'token')}; "
            f"{count_of(self.truncated_prompts, 'prompt')} and {count_of(self.truncated_responses, 'response')} "
            f"truncated{f' (prompts: {counts(turns)})' if turns else ''}; "
            f"dropped {count_of(self.dropped.total(), self.what)}: {counts(self.dropped)}"
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
    reading = Reading(PAIRS, source, tokenizer)
    examples = list(reading)
    prompts, chosen, rejected = (list(column) for column in zip(*(one.texts for one in examples), strict=True))
    templated = [one.templated for one in examples]
    return PreferenceTexts(prompts, chosen, rejected, reading.dropped, reading.source.name, reading.form, templated)


class Example(NamedTuple):
    """A usable row.

    Attributes:
        texts: the prompt and its responses.
        templated: whether the chat template wrote the prompt.
        label: whether the response is desirable, if the data have labels.
    """

    texts: tuple[str, ...]
    templated: bool = False
    label: bool | None = None


class RowKind(NamedTuple):
    """What is read from each row of a source.

    Attributes:
        what: a word for one usable row.
        responses: number of responses of each prompt.
        read: `(row, source, columns, tokenizer) -> (format, texts)`, with a reason in place of the texts if the row is
            dropped.
        check: `(columns, source)` raises `LabError` if the columns of the data do not fit.
        label: `(row, source) -> label`, which is None if it is missing. None: the data have no labels.
        distinct: whether rows with a prompt that was read already are dropped.
    """

    what: str
    responses: int
    read: Callable[[Row, str, set[str], Any], tuple[str, tuple[str, ...] | str]]
    check: Callable[[set[str], str], None]
    label: Callable[[Row, str], bool | None] | None = None
    distinct: bool = False


def _read_pair(row: Row, source: str, columns: set[str], tokenizer: Any) -> tuple[str, tuple[str, ...] | str]:
    return pair_of(row, source, "prompt" in columns, tokenizer)


PAIRS = RowKind("pair", 2, _read_pair, check_columns)


class Reading:
    """The usable rows of a source, and counts of all rows.

    Attributes:
        source: the source.
        dropped: number of rows so far from which no example was made, by reason.
        forms: number of examples so far by format.
    """

    def __init__(self, kind: RowKind, source: Source | str, tokenizer: Any) -> None:
        self.kind, self.source = kind, Source.of(source)
        self.tokenizer = writer_of(self.source, tokenizer)
        self.dropped: Counter[str] = Counter()
        self.forms: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Example]:
        name, columns, first, known = self.source.name, set[str](), "", set[bytes]()
        for seen, row in enumerate(rows_of(self.source), 1):
            row = standard_row(row, name)
            columns |= row.fields.keys()
            if seen == LOOK and not self.forms:
                self.kind.check(columns, name)
            form, texts = self.kind.read(row, name, columns, self.tokenizer)
            label = None if self.kind.label is None or isinstance(texts, str) else self.kind.label(row, name)
            reason = texts if isinstance(texts, str) else self._unusable(texts, label, known)
            if reason is not None or isinstance(texts, str):
                self.dropped[str(reason)] += 1
                first = first or f"; the first is {row.place}"
                continue
            form, texts = by_chat(
                form, texts[: 1 + self.kind.responses], self.source, self.tokenizer, f"{name}, {row.place}"
            )
            self.forms[form if label is None else f"{form} with label"] += 1
            yield Example(texts, by_template(form, self.tokenizer), label)
            if self.forms.total() == self.source.limit:
                break
        if not self.forms:
            self.kind.check(columns, name)
            near = near_columns(("prompt",), columns) if self.kind.responses == 2 and "info" not in columns else ""
            raise LabError(
                f"{name} gives no {self.kind.what}. Dropped {count_of(self.dropped.total(), 'row')}: "
                f"{counts(self.dropped)}{first}.{near}"
            )

    def _unusable(self, texts: tuple[str, ...], label: bool | None, known: set[bytes]) -> str | None:
        """The reason why a row is dropped, or None."""
        if self.kind.label is not None and label is None:
            return MISSING
        empty = [not text.strip() for text in texts[: 1 + self.kind.responses]]
        if any(empty):
            return EMPTY_PROMPT if empty[0] else EMPTY_RESPONSE
        if self.kind.distinct:
            key = hashlib.blake2b(texts[0].encode(), digest_size=16).digest()
            if key in known:
                return REPEATED
            known.add(key)
        return None

    @property
    def form(self) -> str:
        """The formats of the rows so far."""
        return " and ".join(sorted(self.forms))


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
    the token with which the template closes a turn. A prompt that is too long is cut by `Encoder`. A response that
    is too long loses its end and its end token. If the tokenizer opens every text with a special token, as Llama's
    does, the prompt keeps this token.

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
    encoder = Encoder(PAIRS.what, tokenizer, max_prompt_tokens, max_response_tokens, end_token, too_long)
    texts_of = zip(texts.prompts, texts.chosen, texts.rejected, strict=True)
    found = encoder.encode(examples_of(texts_of, texts.templated))
    report = encoder.report(texts.source)
    return Pairs(Tokens.from_lists(found.prompts), Tokens.from_lists(found.responses)), report


def examples_of(texts: Iterable[tuple[str, ...]], templated: Sequence[bool]) -> list[Example]:
    """Return rows as examples. An empty `templated` means that the chat template wrote none of the prompts."""
    return [Example(one, bool(templated) and templated[place]) for place, one in enumerate(texts)]


class Encoded(NamedTuple):
    """Token ids of rows.

    Attributes:
        prompts: ids of N prompts.
        responses: ids of the responses of each.
        kept: the positions of the N rows among those that were given.
        trained: for conversations with `train_on="all"`, whether each id of a response is trained on. Otherwise empty.
    """

    prompts: list[list[int]]
    responses: list[list[list[int]]]
    kept: list[int]
    trained: list[list[bool]]


class Encoder:
    """Tokenises prompts with their responses as `tokenise` does, some at a time, and counts what is dropped and cut."""

    def __init__(
        self,
        what: str,
        tokenizer: Any,
        max_prompt_tokens: int | None,
        max_response_tokens: int | None,
        end_token: int | None,
        too_long: TooLong,
        train_on: TrainOn = "last",
    ) -> None:
        check_limits(max_prompt_tokens, max_response_tokens)
        self.what, self.tokenizer, self.too_long, self.train_on = what, tokenizer, too_long, train_on
        self.max_prompt_tokens, self.max_response_tokens = max_prompt_tokens, max_response_tokens
        self._opening, self._ends = opening_of(tokenizer), ends_of(tokenizer, end_token)
        self._turn_end = turn_end_text(tokenizer) if train_on == "all" else ""
        self.dropped: Counter[str] = Counter()
        self.cuts: Counter[str] = Counter()
        self.kept = self.longest = self.short_prompts = self.short_responses = 0

    def encode(self, examples: Sequence[Example]) -> Encoded:
        """Return the ids of the rows that are kept."""
        found = Encoded([], [], [], [])
        columns = [
            ids_of(list(column), self.tokenizer) for column in zip(*(one.texts for one in examples), strict=True)
        ]
        for place, (prompt, *whole) in enumerate(zip(*columns, strict=True)):
            text = examples[place].texts[0]
            parts = [split_end(ids, self._ends, examples[place].templated, self.tokenizer) for ids in whole]
            bodies = [body for body, _ in parts]
            several = self._all_answers(text, parts[0]) if self.train_on == "all" else None
            if several is None:
                asked, lost = self._fit_prompt(text, prompt)
                answers = [(body + ending)[: self.max_response_tokens] for body, ending in parts]
            else:
                asked, lost, answers = several.prompt, several.lost, [several.response]
                bodies += [ids[:-1] for ids in several.answers if len(ids) > 1]
            cut = [several is None and was_cut(answer, *part) for answer, part in zip(answers, parts, strict=True)]
            reason = self._unusable(asked, bodies, answers, lost, any(cut))
            if reason is not None:
                self.dropped[reason] += 1
                continue
            found.prompts.append(asked)
            found.responses.append(answers)
            found.kept.append(place)
            if self.train_on == "all":
                found.trained.append([True] * len(answers[0]) if several is None else several.trained)
            self.longest = max(self.longest, len(asked) + max(map(len, answers), default=0))
            self.short_prompts += bool(lost)
            self.cuts.update(lost)
            self.short_responses += sum(cut)
        self.kept += len(found.kept)
        return found

    def _all_answers(self, text: str, last: tuple[list[int], list[int]]) -> Answered | None:
        """The conversation with all answers, if it has several that fit into the sum of both limits."""
        limits = self.max_prompt_tokens, self.max_response_tokens
        limit = math.inf if None in limits else sum(limit or 0 for limit in limits)
        answer = [*last[0], *last[1]]
        found = with_all_answers(text, answer, self.tokenizer, self._encoded, self._opened, limit, self._turn_end)
        return None if found is not None and found.lost and self.too_long == "drop" else found

    def _encoded(self, text: str) -> list[int]:
        return ids_of([text], self.tokenizer)[0]

    def _opened(self, ids: list[int]) -> list[int]:
        """A prompt with the token that opens every text."""
        return self._opening + ids if ids and ids[: len(self._opening)] != self._opening else ids

    def _fit_prompt(self, text: str, ids: list[int]) -> tuple[list[int], tuple[str, ...]]:
        """Return at most `max_prompt_tokens` ids of a prompt, and what it has lost.

        A prompt that was written from turns is cut by `conversations.shortened`. Any other prompt loses its beginning.
        If the row must be dropped, the ids are empty, and the words are the reason.
        """
        whole, limit = self._opened(ids), self.max_prompt_tokens
        if limit is None or len(whole) <= limit:
            return whole, ()
        if self.too_long == "drop":
            return [], (TOO_LONG,)
        if isinstance(text, Written):
            return shortened(text, self.tokenizer, lambda text: self._opened(self._encoded(text)), limit)
        return last(whole, limit, len(self._opening)), (LOST_TEXT,)

    def _unusable(
        self,
        asked: list[int],
        bodies: list[list[int]],
        answers: list[list[int]],
        lost: tuple[str, ...],
        cut: bool,
    ) -> str | None:
        """The reason why a row is dropped, or None."""
        if any(end in body for body in bodies for end in self._ends):
            return HOLDS_END
        if not asked:
            return lost[0] if lost else EMPTY_PROMPT
        if [] in bodies:
            return EMPTY_RESPONSE
        if cut and self.too_long == "drop":
            return TOO_LONG
        # Different texts can have the same ids. Such a pair contains no preference either.
        return EQUAL_AFTER if len(answers) == 2 and answers[0] == answers[1] else None

    def report(self, source: str) -> TokenReport:
        """Return the counts.

        Raises:
            LabError: every row was dropped.
        """
        if not self.kept:
            reasons, hint = counts(self.dropped), end_token_hint(self.dropped)
            raise LabError(f"No {self.what} of {source} remains after tokenisation: {reasons}.{hint}")
        return TokenReport(
            self.kept, self.dropped, self.short_prompts, self.short_responses, self.longest, self.what, self.cuts
        )


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
