"""Preference data as the ecosystem writes it, turned into prompts with a chosen and a rejected response.

`preference_forms.py` says which forms are read, from a file or from the Hub (`preference_files.py`). Rows from which
no pair can be made are dropped, counted and explained; a row that is malformed is an error.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.data.formats import (  # some are named here for those who count what was dropped
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
    usual_form,
)
from rlhf_lab.data.readers import Source, near_columns, rows_of
from rlhf_lab.errors import LabError, check_utf8
from rlhf_lab.policies.end_tokens import chat_turn_end

__all__ = [
    "EMPTY_PROMPT", "EMPTY_RESPONSE", "EQUAL", "EQUAL_AFTER", "HOLDS_END", "MISSING", "NO_ASSISTANT", "PART_BEFORE",
    "SPACE_ONLY", "PreferenceTexts", "Source", "TokenReport", "load_preferences", "tokenise",
]  # fmt: skip

HOLDS_END = "the text of a response holds the end token"
"""With more text behind it: an end token at the text's end is the response's own."""
EQUAL_AFTER = "equal responses after truncation"

LOOK = 1000
"""Rows after which data without the expected columns are given up."""


def counts(dropped: Counter[str]) -> str:
    """`3 with an empty prompt, 1 …`, or `none`."""
    return ", ".join(f"{number:,} {reason}" for reason, number in sorted(dropped.items())) or "none"


@dataclass(frozen=True)
class PreferenceTexts:
    """Preference pairs as texts. prompt + response is the whole text: nothing stands between them.

    Attributes:
        prompts: one text a pair.
        chosen: the preferred response of each pair.
        rejected: the other response.
        dropped: reason → number of rows from which no pair was made.
        source: the file or data set.
        form: the form that was found: plain, conversational, AnthropicHH or comparisons.
        templated: whether the chat template wrote a pair's prompt, one a pair; empty where it wrote none.
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
        """The first `number` pairs, with the counts of the whole file."""
        cut = slice(0, number)
        return PreferenceTexts(
            self.prompts[cut], self.chosen[cut], self.rejected[cut], self.dropped, self.source, self.form,
            self.templated[cut],
        )  # fmt: skip

    def summary(self) -> str:
        """One line: how many pairs, from where, and what was dropped why."""
        return (
            f"{self.source} ({self.form}): {len(self):,} pairs; dropped {self.dropped.total():,} rows: "
            f"{counts(self.dropped)}"
        )


@dataclass(frozen=True)
class TokenReport:
    """What happened to pairs (or examples, or prompts) on their way to tokens.

    Attributes:
        kept: pairs that are left.
        dropped: reason → number of pairs.
        truncated_prompts: kept pairs whose prompt lost tokens at its beginning.
        truncated_responses: responses of kept pairs that lost their end, and with it the end token.
        longest: most tokens in a kept prompt + response.
        what: what was counted.
    """

    kept: int
    dropped: Counter[str]
    truncated_prompts: int
    truncated_responses: int
    longest: int
    what: str = "pairs"

    def summary(self) -> str:
        """One line for a person."""
        return (
            f"{self.kept:,} {self.what} of at most {self.longest:,} tokens; {self.truncated_prompts:,} prompts and "
            f"{self.truncated_responses:,} responses truncated; dropped {self.dropped.total():,} {self.what}: "
            f"{counts(self.dropped)}"
        )


def load_preferences(source: Source | str, tokenizer: Any = None) -> PreferenceTexts:
    """Read preference pairs from a file or from the Hub.

    Args:
        source: where from, and how many.
        tokenizer: with a chat template, conversational prompts are written by it; without one, or without a
            tokenizer, in AnthropicHH's form.

    Raises:
        LabError: the source cannot be reached or read, columns are missing, a row is malformed, or no pair is
            left. The message names file and row.
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
        row = usual_form(row, name)
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
        raise LabError(f"No pair is left of the {seen:,} rows of {name}: {counts(dropped)}{first}.{near}")
    prompts, chosen, rejected = (list(column) for column in zip(*pairs, strict=True))
    return PreferenceTexts(prompts, chosen, rejected, dropped, name, " and ".join(sorted(forms)), templated)


def tokenise(
    texts: PreferenceTexts,
    tokenizer: Any,
    max_prompt_tokens: int | None,
    max_response_tokens: int | None,
    end_token: int | None,
) -> tuple[Pairs, TokenReport]:
    """Turn texts into `Pairs` of ids.

    Prompt and response are tokenised apart and joined, so that the boundary between them cannot move. Each response
    ends with one end token, whether or not its text brings one, as texts do that a chat template wrote. Behind a
    prompt that the tokenizer's chat template wrote, it is the one with which the template closes a turn. A prompt that
    is too long loses its beginning, a response its end (and so its end token: it did not end there). Where the
    tokenizer opens a text with a token of its own, as Llama's does, the prompt keeps it.

    Args:
        texts: the pairs.
        tokenizer: a Hugging Face tokenizer.
        max_prompt_tokens: longest prompt kept whole; None for no limit.
        max_response_tokens: longest response kept whole, the end token included; None for no limit.
        end_token: id that ends a response where no chat template wrote its prompt; None to add none.

    Raises:
        LabError: a limit below 1, or no pair is left.
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
            # Two texts can also have the same ids; both come to the same pair that says nothing.
            dropped[EQUAL_AFTER] += 1
        else:
            prompts.append(asked)
            responses.append(answers)
            short["prompts"] += len(asked) < len(prompt)
            short["responses"] += sum(len(a) < len(b) + bool(ends) for a, b in zip(answers, pair, strict=True))
    if not prompts:
        raise LabError(f"No pair of {texts.source} is left after tokenisation: {counts(dropped)}.{way_out(dropped)}")
    longest = max(len(p) + max(map(len, r)) for p, r in zip(prompts, responses, strict=True))
    report = TokenReport(len(prompts), dropped, short["prompts"], short["responses"], longest)
    return Pairs(Tokens.from_lists(prompts), Tokens.from_lists(responses)), report


def check_limits(max_prompt_tokens: int | None, max_response_tokens: int | None) -> None:
    """Refuse limits below one token."""
    for name, limit in (("max_prompt_tokens", max_prompt_tokens), ("max_response_tokens", max_response_tokens)):
        if limit is not None and limit < 1:
            raise LabError(f"{name} must be at least 1, not {limit}.")


def opening_of(tokenizer: Any) -> list[int]:
    """The token with which this tokenizer opens every text, as Llama's does; or nothing."""
    first = tokenizer("a")["input_ids"][:1]
    return first if first == [tokenizer.bos_token_id] else []


def ids_of(texts: list[str], tokenizer: Any) -> list[list[int]]:
    """Ids without special tokens; no warning that a text is longer than the context: truncation is counted.

    Raises:
        LabError: a text holds a lone surrogate. Rows that were read have been checked with their place.
    """
    for number, text in enumerate(texts):
        check_utf8(text, f"Text {number}")
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]


def ends_of(tokenizer: Any, end_token: int | None) -> list[int]:
    """The end of a plain response, then that of a turn that the chat template closes; one id where they are the same.

    Empty where `end_token` is None.
    """
    if end_token is None:
        return []
    turn = chat_turn_end(tokenizer)
    return [end_token] if turn in (None, end_token) else [end_token, turn]


def split_end(ids: list[int], ends: list[int], templated: bool, tokenizer: Any) -> tuple[list[int], list[int]]:
    """A response without its end, and the end that it gets.

    Args:
        ids: the response's text; it may bring an end token that has nothing but white space, or other end tokens,
            behind it.
        ends: as `ends_of` returns them.
        templated: the chat template wrote the prompt. The end is then the template's; else it is the one that the
            text brings, or the first of `ends`.
        tokenizer: decodes what stands behind the end token.
    """
    usual = ends[-1:] if templated else ends[:1]
    place = next((i for i, token in enumerate(ids) if token in ends), None)
    if place is None:
        return ids, usual
    behind = [token for token in ids[place + 1 :] if token == ids[place] or token not in ends]
    if tokenizer.decode(behind).strip():
        return ids, usual
    return ids[:place], usual if templated else [ids[place]]


def way_out(dropped: Counter[str]) -> str:
    """What to do where texts hold the end token; empty where none does."""
    return " The end token may stand at the end of a response alone." if dropped[HOLDS_END] else ""


def last(ids: list[int], limit: int | None, opening: int) -> list[int]:
    """The end of `ids`, at most `limit` of them, behind the `opening` tokens that every text has."""
    if limit is None or len(ids) <= limit:
        return ids
    kept = ids[:opening][:limit]
    return kept + ids[len(ids) - (limit - len(kept)) :]
