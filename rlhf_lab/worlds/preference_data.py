"""Preference data as the ecosystem writes it, turned into prompts with a chosen and a rejected response.

Three forms are read, from a file or from the Hub (`preference_files.py`):

- **plain**: columns `prompt`, `chosen`, `rejected`, each a text;
- **conversational**: `chosen` and `rejected` are lists of `{"role": …, "content": …}`; `prompt` is such a list, a
  text, or not there, where the two hold the whole conversation;
- **AnthropicHH** (Bai et al., 2022, "Training a helpful and harmless assistant with RLHF"): `chosen` and `rejected`
  are whole dialogues whose turns open with "\\n\\nHuman:" and "\\n\\nAssistant:".

In every form the response is the last turn of the assistant, and the prompt is all that stands before it. Rows
from which no pair can be made are dropped, counted and explained; a row that is malformed is an error.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.checks import LabError
from rlhf_lab.worlds.preference_files import Row, read_rows

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"

MISSING = "a field is missing"
PART_BEFORE = "dialogues part before the last turn"
NO_ASSISTANT = "last turn is not the assistant's"
EMPTY_PROMPT = "empty prompt"
EMPTY_RESPONSE = "empty response"
EQUAL = "equal responses"
HOLDS_END = "the text of a response holds the end token"
EQUAL_AFTER = "equal responses after truncation"


def _counts(dropped: Counter[str]) -> str:
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
        form: the form that was found: plain, conversational or AnthropicHH.
    """

    prompts: list[str]
    chosen: list[str]
    rejected: list[str]
    dropped: Counter[str] = field(default_factory=Counter)
    source: str = ""
    form: str = "plain"

    def __len__(self) -> int:
        return len(self.prompts)

    def first(self, number: int) -> PreferenceTexts:
        """The first `number` pairs, with the counts of the whole file."""
        cut = slice(0, number)
        return PreferenceTexts(
            self.prompts[cut], self.chosen[cut], self.rejected[cut], self.dropped, self.source, self.form
        )

    def summary(self) -> str:
        """One line: how many pairs, from where, and what was dropped why."""
        return (
            f"{self.source} ({self.form}): {len(self):,} pairs; dropped {self.dropped.total():,} rows: "
            f"{_counts(self.dropped)}"
        )


@dataclass(frozen=True)
class TokenReport:
    """What happened to pairs on their way to tokens.

    Attributes:
        kept: pairs that are left.
        dropped: reason → number of pairs.
        truncated_prompts: kept pairs whose prompt lost tokens at its beginning.
        truncated_responses: responses of kept pairs that lost their end, and with it the end token.
        longest: most tokens in a kept prompt + response.
    """

    kept: int
    dropped: Counter[str]
    truncated_prompts: int
    truncated_responses: int
    longest: int

    def summary(self) -> str:
        """One line for a person."""
        return (
            f"{self.kept:,} pairs of at most {self.longest:,} tokens; {self.truncated_prompts:,} prompts and "
            f"{self.truncated_responses:,} responses truncated; dropped {self.dropped.total():,} pairs: "
            f"{_counts(self.dropped)}"
        )


def load_preferences(
    source: str,
    split: str = "train",
    revision: str | None = None,
    folder: str | None = None,
    tokenizer: Any = None,
) -> PreferenceTexts:
    """Read preference pairs from a file or from the Hub.

    Args:
        source: a .json, .jsonl, .csv or .parquet file, each also with .gz, or a data set's name on the Hub.
        split: split of a data set on the Hub.
        revision: its branch, tag or commit.
        folder: folder within it, such as `harmless-base` of Anthropic/hh-rlhf.
        tokenizer: with a chat template, conversational prompts are written by it; without one, or without a
            tokenizer, in AnthropicHH's form.

    Raises:
        LabError: the source cannot be reached or read, columns are missing, a row is malformed, or no pair is
            left. The message names file and row.
    """
    rows = read_rows(source, split, revision, folder)
    columns = sorted({name for row in rows for name in row.fields})
    if not {"chosen", "rejected"} <= set(columns):
        raise LabError(
            f"{source} has the columns {', '.join(columns)}; expected `chosen` and `rejected`, and `prompt` unless "
            f"these are whole dialogues. Rename the columns."
        )
    pairs: list[tuple[str, str, str]] = []
    dropped: Counter[str] = Counter()
    forms: Counter[str] = Counter()
    for row in rows:
        form, pair = _pair(row, source, "prompt" in columns, tokenizer)
        if isinstance(pair, str):
            dropped[pair] += 1
        elif (reason := _unusable(*pair)) is not None:
            dropped[reason] += 1
        else:
            pairs.append(pair)
            forms[form] += 1
    if not pairs:
        raise LabError(f"No pair is left of the {len(rows):,} rows of {source}: {_counts(dropped)}.")
    prompts, chosen, rejected = (list(column) for column in zip(*pairs, strict=True))
    return PreferenceTexts(prompts, chosen, rejected, dropped, source, " and ".join(sorted(forms)))


def _unusable(prompt: str, chosen: str, rejected: str) -> str | None:
    if not prompt.strip():
        return EMPTY_PROMPT
    if not chosen.strip() or not rejected.strip():
        return EMPTY_RESPONSE
    return EQUAL if chosen == rejected else None


def _pair(row: Row, source: str, has_prompt: bool, tokenizer: Any) -> tuple[str, tuple[str, str, str] | str]:
    """The row's form, and its (prompt, chosen, rejected) or the reason why there is none."""
    wanted = ("prompt", "chosen", "rejected") if has_prompt else ("chosen", "rejected")
    values: dict[str, Any] = {name: row.fields.get(name) for name in wanted}
    if any(value is None for value in values.values()):
        return "", MISSING
    for name, value in values.items():
        _check_value(value, name, f"{source}, {row.place}")
    prompt: Any = values.get("prompt")
    chosen, rejected = values["chosen"], values["rejected"]
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise LabError(f"{source}, {row.place}: `chosen` and `rejected` are of two kinds, a text and a list of turns.")
    if not isinstance(chosen, str):
        return "conversational", _from_conversations(prompt, chosen, rejected, tokenizer)
    if not has_prompt:
        return "AnthropicHH", _from_dialogues(chosen, rejected)
    if not isinstance(prompt, str):
        return "conversational", (_write(prompt, tokenizer), *_answers([chosen, rejected], tokenizer))
    return "plain", (prompt, chosen, rejected)


def _check_value(value: Any, name: str, place: str) -> None:
    if isinstance(value, str):
        return
    if isinstance(value, list):
        for turn in value:
            if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
                raise LabError(f"{place}: a turn of `{name}` is not an object with `role` and `content`.")
            if not isinstance(turn.get("content"), str | None):
                raise LabError(f"{place}: the `content` of a turn of `{name}` is not a text.")
        return
    raise LabError(
        f"{place}: `{name}` is of type {type(value).__name__}; expected a text, or a list of objects with `role` and "
        f"`content`."
    )


def _from_dialogues(chosen: str, rejected: str) -> tuple[str, str, str] | str:
    """AnthropicHH's form: cut both after the last "\\n\\nAssistant:", before which they must agree."""
    cuts = [text.rfind(ASSISTANT) for text in (chosen, rejected)]
    if min(cuts) < 0 or any(HUMAN in text[cut:] for text, cut in zip((chosen, rejected), cuts, strict=True)):
        return NO_ASSISTANT
    a, b = (cut + len(ASSISTANT) for cut in cuts)
    if chosen[:a] != rejected[:b]:
        return PART_BEFORE
    return chosen[:a], chosen[a:], rejected[b:]


def _from_conversations(prompt: Any, chosen: list, rejected: list, tokenizer: Any) -> tuple[str, str, str] | str:
    """Lists of turns: all but the last are the prompt, in which chosen and rejected must agree."""
    if not chosen or not rejected:
        return EMPTY_RESPONSE
    before = [] if prompt is None else [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    whole = []
    for turns in (chosen, rejected):
        # A whole conversation beside an explicit prompt repeats it; a lone answer does not.
        repeats = turns[: len(before)] == before or (isinstance(prompt, str) and turns[0]["role"] != "assistant")
        whole.append(turns if repeats else [*before, *turns])
    if any(turns[-1]["role"] != "assistant" for turns in whole):
        return NO_ASSISTANT
    key = [[(turn["role"], turn.get("content")) for turn in turns[:-1]] for turns in whole]
    if key[0] != key[1]:
        return PART_BEFORE
    if not key[0]:
        return EMPTY_PROMPT
    chosen_text, rejected_text = _answers([turns[-1].get("content") or "" for turns in whole], tokenizer)
    return _write(whole[0][:-1], tokenizer), chosen_text, rejected_text


def _template(tokenizer: Any) -> bool:
    return getattr(tokenizer, "chat_template", None) is not None


def _answers(answers: list[str], tokenizer: Any) -> tuple[str, str]:
    """The two responses, behind the space that follows "\n\nAssistant:" where no template writes the turns."""
    lead = "" if _template(tokenizer) else " "
    chosen, rejected = (lead + answer if answer.strip() else "" for answer in answers)
    return chosen, rejected


def _write(turns: list[dict[str, Any]], tokenizer: Any) -> str:
    """The prompt's text, up to where the assistant's answer begins."""
    if not turns:
        return ""
    if _template(tokenizer):
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    names = {"user": HUMAN, "human": HUMAN, "assistant": ASSISTANT}
    parts = []
    for turn in turns:
        opening = names.get(turn["role"])
        parts.append(f"{opening} {turn.get('content') or ''}" if opening else (turn.get("content") or ""))
    return "".join(parts) + ASSISTANT


def tokenise(
    texts: PreferenceTexts,
    tokenizer: Any,
    max_prompt_tokens: int | None,
    max_response_tokens: int | None,
    end_token: int | None,
) -> tuple[Pairs, TokenReport]:
    """Turn texts into `Pairs` of ids.

    Prompt and response are tokenised apart and joined, so that the boundary between them cannot move. The end
    token is added once to each response. A prompt that is too long loses its beginning, a response its end (and
    so its end token: it did not end there). Where the tokenizer opens a text with a token of its own, as Llama's
    does, the prompt keeps it.

    Args:
        texts: the pairs.
        tokenizer: a Hugging Face tokenizer.
        max_prompt_tokens: longest prompt kept whole; None for no limit.
        max_response_tokens: longest response kept whole, the end token included; None for no limit.
        end_token: id that ends a response; None to add none.

    Raises:
        LabError: a limit below 1, or no pair is left.
    """
    for name, limit in (("max_prompt_tokens", max_prompt_tokens), ("max_response_tokens", max_response_tokens)):
        if limit is not None and limit < 1:
            raise LabError(f"{name} must be at least 1, not {limit}.")
    opening = tokenizer("a")["input_ids"][:1]
    opening = opening if opening == [tokenizer.bos_token_id] else []
    columns = [_ids(column, tokenizer) for column in (texts.prompts, texts.chosen, texts.rejected)]
    ending = [] if end_token is None else [end_token]
    prompts, responses, dropped = [], [], Counter[str]()
    short = {"prompts": 0, "responses": 0}
    for prompt, *pair in zip(*columns, strict=True):
        if opening and prompt[:1] != opening:
            prompt = opening + prompt
        if end_token is not None and any(end_token in response for response in pair):
            dropped[HOLDS_END] += 1
            continue
        asked = _last(prompt, max_prompt_tokens, len(opening))
        answers = [(response + ending)[:max_response_tokens] for response in pair]
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
            short["responses"] += sum(len(a) < len(b) + len(ending) for a, b in zip(answers, pair, strict=True))
    if not prompts:
        raise LabError(f"No pair of {texts.source} is left after tokenisation: {_counts(dropped)}.")
    longest = max(len(p) + max(map(len, r)) for p, r in zip(prompts, responses, strict=True))
    report = TokenReport(len(prompts), dropped, short["prompts"], short["responses"], longest)
    return Pairs(Tokens.from_lists(prompts), Tokens.from_lists(responses)), report


def _ids(texts: list[str], tokenizer: Any) -> list[list[int]]:
    # verbose=False: no warning that a text is longer than the model's context; truncation is counted here.
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]


def _last(ids: list[int], limit: int | None, opening: int) -> list[int]:
    """The end of `ids`, at most `limit` of them, behind the `opening` tokens that every text has."""
    if limit is None or len(ids) <= limit:
        return ids
    kept = ids[:opening][:limit]
    return kept + ids[len(ids) - (limit - len(kept)) :]
