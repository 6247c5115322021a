"""Load preference pairs from a file or the Hub as texts, and tokenise them.

`formats.py` lists the formats of rows, and `readers.py` reads the files. Rows from which no pair can be made are
dropped and counted by reason. A malformed row is an error.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.data.formats import (  # the reasons are imported by callers that count dropped rows
    EMPTY_PROMPT,
    EMPTY_RESPONSE,
    EQUAL,
    MISSING,
    NO_ASSISTANT,
    PART_BEFORE,
    SPACE_ONLY,
    Triple,
    by_template,
    check_columns,
    pair_of,
    standard_row,
)
from rlhf_lab.data.readers import Source, near_columns, rows_of
from rlhf_lab.errors import LabError, check_utf8
from rlhf_lab.policies.end_tokens import chat_turn_end

__all__ = [
    "EMPTY_PROMPT", "EMPTY_RESPONSE", "EQUAL", "EQUAL_AFTER", "HOLDS_END", "MISSING", "NO_ASSISTANT", "PART_BEFORE",
    "SPACE_ONLY", "PreferenceTexts", "Source", "TokenReport", "load_preferences", "tokenise",
]  # fmt: skip

HOLDS_END = "the text of a response contains the end token"
"""The end token is followed by more text. At the end of a text it is allowed."""
EQUAL_AFTER = "equal responses after truncation"

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
        return (
            f"{self.source} ({self.form}): {len(self):,} pairs; dropped {self.dropped.total():,} rows: "
            f"{counts(self.dropped)}"
        )


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
    source = Source.of(source)
    name = source.name
    pairs: list[Triple] = []
    templated: list[bool] = []
    dropped: Counter[str] = Counter()
    forms: Counter[str] = Counter()
    columns: set[str] = set()
    seen, first = 0, ""
    for row in rows_of(source):
        row = standard_row(row, name)
        seen += 1
        columns |= row.fields.keys()
        if seen == LOOK and not pairs:
            check_columns(columns, name)
        form, pair = pair_of(row, name, "prompt" in columns, tokenizer)
        if isinstance(pair, str):
            dropped[pair] += 1
            first = first or f" (the first is {row.place})"
        else:
            pairs.append(pair)
            templated.append(by_template(form, tokenizer))
            forms[form] += 1
            if len(pairs) == source.limit:
                break
    if not pairs:
        check_columns(columns, name)
        near = "" if "info" in columns else near_columns(("prompt",), columns)
        raise LabError(f"None of the {seen:,} rows of {name} gives a pair: {counts(dropped)}{first}.{near}")
    prompts, chosen, rejected = (list(column) for column in zip(*pairs, strict=True))
    return PreferenceTexts(prompts, chosen, rejected, dropped, name, " and ".join(sorted(forms)), templated)


def tokenise(
    texts: PreferenceTexts,
    tokenizer: Any,
    max_prompt_tokens: int | None,
    max_response_tokens: int | None,
    end_token: int | None,
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

    Raises:
        LabError: a limit is below 1, or every pair was dropped.
    """
    check_limits(max_prompt_tokens, max_response_tokens)
    opening = opening_of(tokenizer)
    columns = [ids_of(column, tokenizer) for column in (texts.prompts, texts.chosen, texts.rejected)]
    ends = ends_of(tokenizer, end_token)
    prompts, responses, dropped = [], [], Counter[str]()
    short = {"prompts": 0, "responses": 0}
    for place, (prompt, *both) in enumerate(zip(*columns, strict=True)):
        templated = bool(texts.templated) and texts.templated[place]
        pair, endings = zip(*(split_end(response, ends, templated, tokenizer) for response in both), strict=True)
        if prompt and prompt[: len(opening)] != opening:
            prompt = opening + prompt
        if any(end in response for response in pair for end in ends):
            dropped[HOLDS_END] += 1
            continue
        asked = last(prompt, max_prompt_tokens, len(opening))
        answers = [(ids + ending)[:max_response_tokens] for ids, ending in zip(pair, endings, strict=True)]
        if not asked:
            dropped[EMPTY_PROMPT] += 1
        elif not all(answers) or [] in pair:
            dropped[EMPTY_RESPONSE] += 1
        elif answers[0] == answers[1]:
            # Different texts can have the same ids. Such a pair contains no preference either.
            dropped[EQUAL_AFTER] += 1
        else:
            prompts.append(asked)
            responses.append(answers)
            short["prompts"] += len(asked) < len(prompt)
            short["responses"] += sum(len(a) < len(b) + bool(ends) for a, b in zip(answers, pair, strict=True))
    if not prompts:
        raise LabError(
            f"No pair of {texts.source} remains after tokenisation: {counts(dropped)}.{end_token_hint(dropped)}"
        )
    longest = max(len(p) + max(map(len, r)) for p, r in zip(prompts, responses, strict=True))
    report = TokenReport(len(prompts), dropped, short["prompts"], short["responses"], longest)
    return Pairs(Tokens.from_lists(prompts), Tokens.from_lists(responses)), report


def check_limits(max_prompt_tokens: int | None, max_response_tokens: int | None) -> None:
    """Raise `LabError` for limits below one token."""
    for name, limit in (("max_prompt_tokens", max_prompt_tokens), ("max_response_tokens", max_response_tokens)):
        if limit is not None and limit < 1:
            raise LabError(f"{name} must be at least 1, not {limit}.")


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
