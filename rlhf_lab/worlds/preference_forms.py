"""What a row of preference data means: a prompt with a chosen and a rejected response, in four forms.

- **plain**: columns `prompt`, `chosen`, `rejected`, each a text;
- **conversational**: `chosen` and `rejected` are lists of `{"role": …, "content": …}`; `prompt` is such a list, a
  text, or not there, where the two hold the whole conversation;
- **AnthropicHH** (Bai et al., 2022, "Training a helpful and harmless assistant with RLHF"): `chosen` and `rejected`
  are whole dialogues whose turns open with "\\n\\nHuman:" and "\\n\\nAssistant:";
- **comparisons** (Stiennon et al., 2020, "Learning to summarize from human feedback"): `info` with a post, two
  `summaries`, and `choice`, the better one's place. Prompts are written in that paper's form, see `post_prompt`.

In every form the response is the last turn of the assistant, and the prompt is all that stands before it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from rlhf_lab.checks import LabError
from rlhf_lab.worlds.preference_files import Row, near_columns

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"

MISSING = "a field is missing"
PART_BEFORE = "dialogues part before the last turn"
NO_ASSISTANT = "last turn is not the assistant's"
EMPTY_PROMPT = "empty prompt"
EMPTY_RESPONSE = "empty response"
EQUAL = "equal responses"
SPACE_ONLY = "responses differ only in white space"

COMPARISON = {"info", "summaries", "choice"}

Triple = tuple[str, str, str]
"""Prompt, chosen, rejected."""


def check_columns(columns: Collection[str], source: str) -> None:
    """Refuse data without the columns of any form.

    Raises:
        LabError: names the columns that are there, those that are expected, and what to rename.
    """
    if {"chosen", "rejected"} <= set(columns) or set(columns) >= COMPARISON:
        return
    wanted = ("chosen", "rejected") if "prompt" in columns else ("prompt", "chosen", "rejected")
    raise LabError(
        f"{source} has the columns {', '.join(sorted(columns))}; expected `chosen` and `rejected`, and `prompt` unless "
        f"these are whole dialogues. Rename the columns.{near_columns(wanted, columns)}"
    )


def pair_of(row: Row, source: str, has_prompt: bool, tokenizer: Any) -> tuple[str, Triple | str]:
    """The row's form, and its (prompt, chosen, rejected) or the reason why there is none.

    Args:
        row: the row.
        source: file or data set, for messages.
        has_prompt: whether the data have a column `prompt`, in this row or another.
        tokenizer: writes conversational prompts if it has a chat template.

    Raises:
        LabError: a field of another type than its form has; the message names file and row.
    """
    if row.fields.keys() >= COMPARISON and "chosen" not in row.fields:
        form, pair = "comparisons", _from_comparison(row, f"{source}, {row.place}")
    else:
        form, pair = _from_columns(row, source, has_prompt, tokenizer)
    return form, pair if isinstance(pair, str) else _unusable(*pair) or pair


def _unusable(prompt: str, chosen: str, rejected: str) -> str | None:
    if not prompt.strip():
        return EMPTY_PROMPT
    if not chosen.strip() or not rejected.strip():
        return EMPTY_RESPONSE
    if chosen == rejected:
        return EQUAL
    return SPACE_ONLY if chosen.split() == rejected.split() else None


def _from_columns(row: Row, source: str, has_prompt: bool, tokenizer: Any) -> tuple[str, Triple | str]:
    wanted = ("prompt", "chosen", "rejected") if has_prompt else ("chosen", "rejected")
    values: dict[str, Any] = {name: row.fields.get(name) for name in wanted}
    if any(value is None for value in values.values()):
        return "", MISSING
    for name, value in values.items():
        check_value(value, name, f"{source}, {row.place}")
    prompt: Any = values.get("prompt")
    chosen, rejected = values["chosen"], values["rejected"]
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise LabError(f"{source}, {row.place}: `chosen` and `rejected` are of two kinds, a text and a list of turns.")
    if not isinstance(chosen, str):
        return "conversational", _from_conversations(prompt, chosen, rejected, tokenizer)
    if not has_prompt:
        return "AnthropicHH", _from_dialogues(chosen, rejected)
    if not isinstance(prompt, str):
        one, two = answers([chosen, rejected], tokenizer)
        return "conversational", (write_turns(prompt, tokenizer), one, two)
    return "plain", (prompt, chosen, rejected)


def check_value(value: Any, name: str, place: str) -> None:
    """Refuse a field that is neither a text nor a list of turns."""
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


def post_prompt(info: dict[str, Any], place: str) -> str:
    """The prompt of a summary: a Reddit post with its title and subreddit, or an article.

    Raises:
        LabError: neither a post nor an article is there.
    """
    post, article = info.get("post"), info.get("article")
    if isinstance(article, str) and article.strip() and not post:
        return f"Article:\n{article}\n\nTL;DR:"
    if not isinstance(post, str):
        raise LabError(f"{place}: neither `post` nor `article` is a text.")
    return f"SUBREDDIT: r/{info.get('subreddit') or ''}\n\nTITLE: {info.get('title') or ''}\n\nPOST: {post}\n\nTL;DR:"


def _from_comparison(row: Row, place: str) -> Triple | str:
    info, summaries, choice = (row.fields[name] for name in ("info", "summaries", "choice"))
    if info is None or summaries is None or choice is None:
        return MISSING
    if isinstance(summaries, dict):  # a list of records stored by column
        texts = list(summaries.get("text") or [])
    else:
        texts = [entry.get("text") if isinstance(entry, dict) else entry for entry in summaries]
    if not isinstance(info, dict) or len(texts) != 2 or not all(isinstance(text, str) for text in texts):
        raise LabError(f"{place}: expected `info` with the post, and `summaries` with two objects that have a `text`.")
    if choice not in (0, 1) or isinstance(choice, bool):
        raise LabError(f"{place}: `choice` is {choice!r}; it says which of the two summaries is better, 0 or 1.")
    better, worse = (spaced(text) for text in (texts[choice], texts[1 - choice]))
    return post_prompt(info, place), better, worse


def spaced(text: str) -> str:
    """The response behind the space that follows "TL;DR:"; nothing stays nothing."""
    return " " + text.strip() if text.strip() else ""


def cut_dialogue(text: str) -> tuple[str, str] | None:
    """AnthropicHH's form: the dialogue up to its last "\\n\\nAssistant:" and the answer; None if a human is last."""
    cut = text.rfind(ASSISTANT)
    if cut < 0 or HUMAN in text[cut:]:
        return None
    return text[: cut + len(ASSISTANT)], text[cut + len(ASSISTANT) :]


def _from_dialogues(chosen: str, rejected: str) -> Triple | str:
    one, two = cut_dialogue(chosen), cut_dialogue(rejected)
    if one is None or two is None:
        return NO_ASSISTANT
    return (one[0], one[1], two[1]) if one[0] == two[0] else PART_BEFORE


def _from_conversations(prompt: Any, chosen: list, rejected: list, tokenizer: Any) -> Triple | str:
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
    chosen_text, rejected_text = answers([turns[-1].get("content") or "" for turns in whole], tokenizer)
    return write_turns(whole[0][:-1], tokenizer), chosen_text, rejected_text


def _template(tokenizer: Any) -> bool:
    return getattr(tokenizer, "chat_template", None) is not None


def answers(texts: list[str], tokenizer: Any) -> tuple[str, ...]:
    """Responses, behind the space that follows "\n\nAssistant:" where no chat template writes the turns."""
    lead = "" if _template(tokenizer) else " "
    return tuple(lead + text if text.strip() else "" for text in texts)


def write_turns(turns: list[dict[str, Any]], tokenizer: Any) -> str:
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
