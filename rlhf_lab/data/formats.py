"""Formats of rows: turn a row of data into a prompt with a chosen and a rejected response.

Four formats of preference data are recognised:

- **plain**: the columns `prompt`, `chosen` and `rejected` are texts.
- **conversational**: `chosen` and `rejected` are lists of `{"role": …, "content": …}`. `prompt` is such a list or a
  text. Without a `prompt`, both lists contain the whole conversation.
- **AnthropicHH** (Bai et al., 2022, "Training a helpful and harmless assistant with RLHF"): `chosen` and `rejected`
  are whole dialogues, whose turns begin with "\\n\\nHuman:" and "\\n\\nAssistant:".
- **comparisons** (Stiennon et al., 2020, "Learning to summarize from human feedback"): `info` with a post, two
  `summaries`, and `choice`, the index of the better one. Prompts are written as in the paper, see `post_prompt`.

In every format the response is the last turn of the assistant, and the prompt is the text before it. If the last turn
of `prompt` is the assistant's, the response continues this turn.

`standard_row` turns two further formats into these: **ShareGPT** (turns with `from` and `value`) and **Alpaca**
(`instruction`, `input`, `output`, `history`). `conversations.py` writes turns as text. A column `tools` is passed to
the chat template.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, TypeVar, cast

from rlhf_lab.data.conversations import (
    ASSISTANT,
    HUMAN,
    answer_of,
    answers,
    has_template,
    is_dialogue,
    knows,
    turns_of_dialogue,
    write_turns,
)
from rlhf_lab.data.readers import Row, Source, near_columns
from rlhf_lab.errors import LabError

MISSING = "a field is missing"
PART_BEFORE = "dialogues differ before the last turn"
NO_ASSISTANT = "last turn is not the assistant's"
EMPTY_PROMPT = "empty prompt"
EMPTY_RESPONSE = "empty response"
EQUAL = "equal responses"
SPACE_ONLY = "responses differ only in white space"

TURNS = ("messages", "conversations", "conversation")
"""Names of a column that contains a whole conversation."""

_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant",
    "system": "system", "tool": "tool", "observation": "tool", "function_response": "tool",
}  # fmt: skip
"""Role of a turn, by the speaker's name in ShareGPT data."""

COMPARISON = {"info", "summaries", "choice"}

BY_TEMPLATE = "written by the chat template"
"""Part of the name of a format whose texts became turns."""

Texts = TypeVar("Texts", bound=tuple[str, ...])
Triple = tuple[str, str, str]
"""Prompt, chosen, rejected."""


def check_columns(columns: Collection[str], source: str) -> None:
    """Raise `LabError` for data whose columns belong to no format.

    Args:
        columns: names of the columns.
        source: file or data set, for the message.
    """
    if {"chosen", "rejected"} <= set(columns) or set(columns) >= COMPARISON:
        return
    if {"prompt", "completion"} <= set(columns):
        use = "`rlhf-lab train sft` learns from such data, and so does `train kto` if they have a column `label`."
        if "label" in columns:
            use = "`rlhf-lab train kto` learns from such data, and `train sft` from the desirable responses."
        raise LabError(f"{source} has single responses and no pairs of chosen and rejected ones. {use}")
    wanted = ("chosen", "rejected") if "prompt" in columns else ("prompt", "chosen", "rejected")
    raise LabError(
        f"{source} has the columns {', '.join(sorted(columns))}. Expected are `chosen` and `rejected`, and `prompt` "
        f"unless these are whole dialogues. Rename the columns.{near_columns(wanted, columns)}"
    )


def pair_of(row: Row, source: str, has_prompt: bool, tokenizer: Any) -> tuple[str, Triple | str]:
    """Return the format of a row, and its (prompt, chosen, rejected) or the reason why it is dropped.

    Args:
        row: the row.
        source: file or data set, for messages.
        has_prompt: whether the data have a column `prompt`, in this row or another.
        tokenizer: writes conversational prompts if it has a chat template.

    Raises:
        LabError: a field has the wrong type. The message names file and row.
    """
    if row.fields.keys() >= COMPARISON and "chosen" not in row.fields:
        form, pair = "comparisons", _from_comparison(row, f"{source}, {row.place}")
    else:
        form, pair = _from_columns(row, source, has_prompt, tokenizer)
    form = with_tools(form, tools_of(row, source), tokenizer)
    return form, pair if isinstance(pair, str) else _unusable(*pair) or pair


def standard_row(row: Row, source: str) -> Row:
    """Return a row of ShareGPT's or Alpaca's format as turns with `role` and `content`, and any other row unchanged.

    - ShareGPT: turns with `from` and `value` become turns with `role` and `content`. A conversation beside `chosen`
      and `rejected` is their prompt.
    - Alpaca: `instruction`, an empty line and `input` are a turn of the user. `output`, or `chosen` and `rejected`, is
      the answer. `history`, a list of pairs of an instruction and an answer, becomes the turns before it.

    In both formats, a text in a column `system` becomes the first turn.

    Args:
        row: the row.
        source: file or data set, for messages.

    Raises:
        LabError: a field has the wrong type, or the speaker of a turn is unknown.
    """
    fields = dict(row.fields)
    place = f"{source}, {row.place}"
    known = False
    for name in (*TURNS, "prompt", "chosen", "rejected"):
        value = fields.get(name)
        if isinstance(value, dict) and ("from" in value or "role" in value):
            value = fields[name] = [value]
        if isinstance(value, list) and any(isinstance(turn, dict) and "from" in turn for turn in value):
            fields[name] = [_from_sharegpt(turn, name, place) for turn in value]
            known = True
    turns_in = next((name for name in TURNS if name in fields), None)
    if turns_in is not None and "chosen" in fields and "prompt" not in fields:
        fields["prompt"] = fields.pop(turns_in)
    elif "instruction" in fields and "prompt" not in fields and fields.keys() & {"output", "chosen"}:
        fields["prompt"] = _from_alpaca(fields, place)
        known = True
    if known:
        _add_system(fields)
    return Row(row.place, fields)


def _add_system(fields: dict[str, Any]) -> None:
    """Put the text of the column `system` before the first turn."""
    system, begins = fields.get("system"), next((name for name in ("prompt", *TURNS) if name in fields), None)
    if isinstance(system, str) and system.strip() and begins is not None and fields[begins]:
        fields[begins] = [{"role": "system", "content": system}, *fields[begins]]


def _from_alpaca(fields: dict[str, Any], place: str) -> list[dict[str, str]] | str | None:
    """Take `instruction`, `input` and `history` out of a row, and return the turns before the answer."""
    instruction, more, history = (fields.pop(name, None) for name in ("instruction", "input", "history"))
    for name, value in (("instruction", instruction), ("input", more)):
        if not isinstance(value, str | None):
            raise LabError(f"{place}: `{name}` is of type {type(value).__name__}; expected a text.")
    turns = []
    for pair in _history(history, place):
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    if instruction is None:
        return None
    text = f"{instruction}\n\n{more}" if more and more.strip() else instruction
    return [*turns, {"role": "user", "content": text}] if text.strip() else ""


def _history(history: Any, place: str) -> list[tuple[str, str]]:
    """The earlier pairs of an instruction and an answer in a row of Alpaca's format: a list, or its JSON text."""
    if isinstance(history, str):
        try:
            history = json.loads(history) if history.strip() else None
        except ValueError as error:
            raise LabError(f"{place}: `history` is not JSON ({error}). Correct it, or remove the column.") from None
    if history is None:
        return []
    good = isinstance(history, list) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        for pair in history
    )
    if not good:
        raise LabError(f"{place}: `history` must be a list of pairs [instruction, answer] of texts.")
    return [(pair[0], pair[1]) for pair in history]


def _from_sharegpt(turn: Any, name: str, place: str) -> dict[str, Any]:
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
        raise LabError(f"{place}: a turn of `{name}` is not an object with `from` and a text as `value`.")
    role = _ROLES.get(str(turn.get("from")).lower())
    if role is None:
        raise LabError(
            f"{place}: a turn of `{name}` is from {turn.get('from')!r}. Known speakers are {', '.join(_ROLES)}. Rename "
            f"it, or write the turns with `role` and `content`."
        )
    return {"role": role, "content": turn["value"]}


def tools_of(row: Row, source: str) -> list[Any] | None:
    """Return the functions in the column `tools`, which is a list or its JSON text, or None if there are none.

    Raises:
        LabError: the column is neither.
    """
    tools = row.fields.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools or "null")
        except ValueError as error:
            raise LabError(
                f"{source}, {row.place}: `tools` is not JSON ({error}). Correct it, or remove the column."
            ) from None
    if not tools:
        return None
    if not isinstance(tools, list):
        raise LabError(
            f"{source}, {row.place}: `tools` is of type {type(tools).__name__}; expected a list of functions, or its "
            f"JSON text."
        )
    return tools


def with_tools(form: str, tools: list[Any] | None, tokenizer: Any) -> str:
    """Return the name of a row's format, with a note on whether its `tools` are used."""
    if not tools:
        return form
    written = form.endswith(("conversational", "messages")) and knows(tokenizer, "tools")
    return (
        f"{form} with tools" if written else f"{form}, whose `tools` are not used, because no chat template writes them"
    )


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
        raise LabError(f"{source}, {row.place}: `chosen` and `rejected` must both be texts, or both be lists of turns.")
    place, tools = f"{source}, {row.place}", tools_of(row, source)
    if not isinstance(chosen, str):
        return "conversational", _from_conversations(prompt, chosen, rejected, tokenizer, place, tools)
    if not has_prompt:
        return "AnthropicHH", _from_dialogues(chosen, rejected)
    if not isinstance(prompt, str):
        if not prompt:
            return "conversational", EMPTY_PROMPT
        continued = prompt[-1]["role"] == "assistant"
        one, two = answers([chosen, rejected], tokenizer, continued)
        return "conversational", (write_turns(prompt, tokenizer, place, tools, continued), one, two)
    return "plain", (prompt, chosen, rejected)


def check_value(value: Any, name: str, place: str) -> None:
    """Raise `LabError` for a field that is neither a text nor a list of turns."""
    if isinstance(value, str):
        return
    if isinstance(value, list):
        for turn in value:
            if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
                raise LabError(f"{place}: a turn of `{name}` must be an object with `role` and `content`.")
            if not isinstance(turn.get("content"), str | None):
                raise LabError(f"{place}: the `content` of a turn of `{name}` must be a text.")
        return
    raise LabError(
        f"{place}: `{name}` is of type {type(value).__name__}; expected a text, or a list of objects with `role` and "
        f"`content`."
    )


def post_prompt(info: dict[str, Any], place: str) -> str:
    """Return the prompt for a summary: a Reddit post with its title and subreddit, or an article.

    Raises:
        LabError: there is neither a post nor an article.
    """
    post, article = info.get("post"), info.get("article")
    if isinstance(article, str) and article.strip() and not post:
        return f"Article:\n{article}\n\nTL;DR:"
    if not isinstance(post, str):
        raise LabError(f"{place}: neither `post` nor `article` is a text. A comparison needs one of them.")
    return f"SUBREDDIT: r/{info.get('subreddit') or ''}\n\nTITLE: {info.get('title') or ''}\n\nPOST: {post}\n\nTL;DR:"


def _from_comparison(row: Row, place: str) -> Triple | str:
    info, summaries, choice = (row.fields[name] for name in ("info", "summaries", "choice"))
    if info is None or summaries is None or choice is None:
        return MISSING
    if isinstance(summaries, dict):  # a list of records that is stored by column
        summaries = summaries.get("text")
    entries = summaries if isinstance(summaries, list) else []
    texts = [entry.get("text") if isinstance(entry, dict) else entry for entry in entries]
    if not isinstance(info, dict) or len(texts) != 2 or not all(isinstance(text, str) for text in texts):
        raise LabError(f"{place}: expected `info` with a post, and `summaries` with two objects that have a `text`.")
    if choice not in (0, 1) or isinstance(choice, bool):
        raise LabError(f"{place}: `choice` is {choice!r}. It must be 0 or 1, the index of the better summary.")
    better, worse = (with_space(text) for text in (texts[choice], texts[1 - choice]))
    return post_prompt(info, place), better, worse


def with_space(text: str) -> str:
    """Return the response with the space that follows "TL;DR:", or an empty text if it is empty."""
    return " " + text.strip() if text.strip() else ""


def cut_dialogue(text: str) -> tuple[str, str] | None:
    """Split a dialogue of AnthropicHH's format after its last "\\n\\nAssistant:"; None if a human has the last turn."""
    cut = text.rfind(ASSISTANT)
    if cut < 0 or HUMAN in text[cut:]:
        return None
    return text[: cut + len(ASSISTANT)], text[cut + len(ASSISTANT) :]


def _from_dialogues(chosen: str, rejected: str) -> Triple | str:
    one, two = cut_dialogue(chosen), cut_dialogue(rejected)
    if one is None or two is None:
        return NO_ASSISTANT
    return (one[0], one[1], two[1]) if one[0] == two[0] else PART_BEFORE


def _from_conversations(
    prompt: Any, chosen: list[Any], rejected: list[Any], tokenizer: Any, place: str, tools: list[Any] | None
) -> Triple | str:
    """Lists of turns. All but the last turn are the prompt, which must be the same in chosen and rejected."""
    if not chosen or not rejected:
        return EMPTY_RESPONSE
    before = [] if prompt is None else [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    whole = []
    for turns in (chosen, rejected):
        # Beside an explicit prompt, a whole conversation repeats it, and an answer alone does not.
        repeats = turns[: len(before)] == before or (isinstance(prompt, str) and turns[0]["role"] != "assistant")
        whole.append(turns if repeats else [*before, *turns])
    if any(turns[-1]["role"] != "assistant" for turns in whole):
        return NO_ASSISTANT
    key = [[(turn["role"], turn.get("content") or "", turn.get("tool_calls") or []) for turn in w[:-1]] for w in whole]
    if key[0] != key[1]:
        return PART_BEFORE
    if not key[0]:
        return EMPTY_PROMPT
    continued = len(before) == len(key[0]) and before[-1]["role"] == "assistant"
    text = write_turns(whole[0][:-1], tokenizer, place, tools, continued)
    one, two = (answer_of(turns, text, tokenizer, place, tools, continued) for turns in whole)
    return text, one, two


def writer_of(source: Source, tokenizer: Any) -> Any:
    """Return the tokenizer whose chat template writes conversations; None if no template does.

    Raises:
        LabError: `chat` is on, and there is no template.
    """
    if source.chat == "on" and not has_template(tokenizer):
        raise LabError(
            "The tokenizer has no chat template, so chat cannot be on. Leave it out, or set it to auto or off."
        )
    return None if source.chat == "off" else tokenizer


def by_chat(form: str, texts: Texts, source: Source, tokenizer: Any, place: str) -> tuple[str, Texts]:
    """Let the chat template write a row of texts, if `source.chat` asks for it; other rows are unchanged.

    Args:
        form: the format of the row.
        texts: its prompt and its responses.
        source: the data.
        tokenizer: the result of `writer_of`.
        place: file and row, for messages.

    Raises:
        LabError: the chat template refuses the turns.
    """
    dialogue = is_dialogue(texts[0])
    if not has_template(tokenizer) or by_template(form, tokenizer) or not (dialogue or source.chat == "on"):
        return form, texts
    turns = turns_of_dialogue(texts[0]) if dialogue else [{"role": "user", "content": texts[0].strip()}]
    written = (write_turns(turns, tokenizer, place), *(text.strip() for text in texts[1:]))
    return f"{form} {BY_TEMPLATE}", cast("Texts", written)


def by_template(form: str, tokenizer: Any) -> bool:
    """Return whether the chat template wrote the prompts of rows of this format."""
    return has_template(tokenizer) and any(word in form for word in ("conversational", "messages", BY_TEMPLATE))
