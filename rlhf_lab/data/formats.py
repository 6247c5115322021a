"""What a row of preference data means: a prompt with a chosen and a rejected response, in four forms.

- **plain**: columns `prompt`, `chosen`, `rejected`, each a text;
- **conversational**: `chosen` and `rejected` are lists of `{"role": …, "content": …}`; `prompt` is such a list, a
  text, or not there, where the two hold the whole conversation;
- **AnthropicHH** (Bai et al., 2022, "Training a helpful and harmless assistant with RLHF"): `chosen` and `rejected`
  are whole dialogues whose turns open with "\\n\\nHuman:" and "\\n\\nAssistant:";
- **comparisons** (Stiennon et al., 2020, "Learning to summarize from human feedback"): `info` with a post, two
  `summaries`, and `choice`, the better one's place. Prompts are written in that paper's form, see `post_prompt`.

In every form the response is the last turn of the assistant, and the prompt is all that stands before it. A `prompt`
whose last turn is the assistant's is continued: the response follows that turn without a new one being opened.

Two further forms are turned into these by `usual_form`: **ShareGPT** (turns with `from` and `value`) and **Alpaca**
(`instruction`, `input`, `output`). A column `tools` is handed to the chat template.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from rlhf_lab.data.readers import Row, near_columns
from rlhf_lab.errors import LabError

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"

MISSING = "a field is missing"
PART_BEFORE = "dialogues part before the last turn"
NO_ASSISTANT = "last turn is not the assistant's"
EMPTY_PROMPT = "empty prompt"
EMPTY_RESPONSE = "empty response"
EQUAL = "equal responses"
SPACE_ONLY = "responses differ only in white space"

TURNS = ("messages", "conversations", "conversation")
"""Names of a column that holds a whole conversation."""

_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant",
    "system": "system", "tool": "tool", "observation": "tool", "function_response": "tool",
}  # fmt: skip
"""ShareGPT's names of who speaks, and the usual ones."""

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
    form = with_tools(form, tools_of(row, source), tokenizer)
    return form, pair if isinstance(pair, str) else _unusable(*pair) or pair


def usual_form(row: Row, source: str) -> Row:
    """A row of ShareGPT's or Alpaca's form as `messages`, or as `prompt` with what answers it; any other as it is.

    - ShareGPT: turns with `from` and `value` become turns with `role` and `content`. A conversation beside `chosen`
      and `rejected` is their prompt.
    - Alpaca: `instruction`, and `input` behind an empty line, are a user's turn; `output`, or `chosen` and `rejected`,
      answer it.

    In both, a text in a column `system` is the conversation's first turn.

    Raises:
        LabError: a turn of ShareGPT's form is not a text, or by an unknown speaker.
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
        asked, more = fields.pop("instruction"), fields.pop("input", None)
        for name, value in (("instruction", asked), ("input", more)):
            if not isinstance(value, str | None):
                raise LabError(f"{place}: `{name}` is of type {type(value).__name__}; expected a text.")
        text = None if asked is None else f"{asked}\n\n{more}" if more and more.strip() else asked
        fields["prompt"] = text if text is None else [{"role": "user", "content": text}] if text.strip() else ""
        known = True
    system, begins = fields.get("system"), next((name for name in ("prompt", *TURNS) if name in fields), None)
    if known and isinstance(system, str) and system.strip() and begins is not None and fields[begins]:
        fields[begins] = [{"role": "system", "content": system}, *fields[begins]]
    return Row(row.place, fields)


def _from_sharegpt(turn: Any, name: str, place: str) -> dict[str, Any]:
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
        raise LabError(f"{place}: a turn of `{name}` is not an object with `from` and a text as `value`.")
    role = _ROLES.get(str(turn.get("from")).lower())
    if role is None:
        raise LabError(
            f"{place}: a turn of `{name}` is from {turn.get('from')!r}; known are {', '.join(_ROLES)}. Rename it, or "
            f"write the turns with `role` and `content`."
        )
    return {"role": role, "content": turn["value"]}


def tools_of(row: Row, source: str) -> list[Any] | None:
    """The functions in the row's column `tools`, a list or its JSON text; None where there are none.

    Raises:
        LabError: it is neither.
    """
    tools = row.fields.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools or "null")
        except ValueError as error:
            raise LabError(f"{source}, {row.place}: `tools` is not JSON ({error}).") from None
    if not tools:
        return None
    if not isinstance(tools, list):
        raise LabError(
            f"{source}, {row.place}: `tools` is of type {type(tools).__name__}; expected a list of functions, or its "
            f"JSON text."
        )
    return tools


def with_tools(form: str, tools: list[Any] | None, tokenizer: Any) -> str:
    """The name of a row's form, with what became of its column `tools`."""
    if not tools:
        return form
    written = form.endswith(("conversational", "messages")) and _knows(tokenizer, "tools")
    return f"{form} with tools" if written else f"{form}, whose `tools` are not used: no chat template writes them"


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
        summaries = summaries.get("text")
    entries = summaries if isinstance(summaries, list) else []
    texts = [entry.get("text") if isinstance(entry, dict) else entry for entry in entries]
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


def _from_conversations(
    prompt: Any, chosen: list, rejected: list, tokenizer: Any, place: str, tools: list[Any] | None
) -> Triple | str:
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
    key = [[(turn["role"], turn.get("content") or "", turn.get("tool_calls") or []) for turn in w[:-1]] for w in whole]
    if key[0] != key[1]:
        return PART_BEFORE
    if not key[0]:
        return EMPTY_PROMPT
    continued = len(before) == len(key[0]) and before[-1]["role"] == "assistant"
    text = write_turns(whole[0][:-1], tokenizer, place, tools, continued)
    one, two = (answer_of(turns, text, tokenizer, place, tools, continued) for turns in whole)
    return text, one, two


def _template(tokenizer: Any) -> bool:
    return getattr(tokenizer, "chat_template", None) is not None


def by_template(form: str, tokenizer: Any) -> bool:
    """Whether the chat template wrote the prompts of rows of this form."""
    return _template(tokenizer) and ("conversational" in form or "messages" in form)


def _knows(tokenizer: Any, word: str) -> bool:
    """Whether the chat template speaks of `word`."""
    return _template(tokenizer) and word in str(tokenizer.chat_template)


def answers(texts: list[str], tokenizer: Any, continued: bool = False) -> tuple[str, ...]:
    """Responses, behind the space that follows "\n\nAssistant:" where no chat template writes the turns.

    Args:
        texts: the responses.
        tokenizer: as for `write_turns`.
        continued: they continue a turn of the prompt, and nothing is put before them.
    """
    lead = "" if continued or _template(tokenizer) else " "
    return tuple(lead + text if text.strip() else "" for text in texts)


def answer_of(
    turns: list[dict[str, Any]], prompt: str, tokenizer: Any, place: str, tools: list[Any] | None, continued: bool
) -> str:
    """The text of the last of `turns`, as it stands behind `prompt`, which `write_turns` wrote of the others.

    Raises:
        LabError: it calls a tool, and the chat template does not write that call behind the prompt.
    """
    if not turns[-1].get("tool_calls"):
        return answers([turns[-1].get("content") or ""], tokenizer, continued)[0]
    whole = _written(turns, tokenizer, place, tools)
    if continued or not whole.startswith(prompt):
        raise LabError(f"{place}: the chat template does not write the answer's tool calls behind its prompt.")
    return whole[len(prompt) :].rstrip()


def write_turns(
    turns: list[dict[str, Any]],
    tokenizer: Any,
    place: str = "The conversation",
    tools: list[Any] | None = None,
    continued: bool = False,
) -> str:
    """The prompt's text, up to where the assistant's answer begins.

    Args:
        turns: the conversation before the answer.
        tokenizer: its chat template writes the turns; without one, AnthropicHH's form does.
        place: file and row, for messages.
        tools: functions that the template is told of.
        continued: the last turn is the assistant's, and the answer goes on with it.

    Raises:
        LabError: the chat template refuses the turns, or there is none that could write a tool call.
    """
    if not turns:
        return ""
    if _template(tokenizer) or any(turn.get("tool_calls") for turn in turns):
        how = "continue_final_message" if continued else "add_generation_prompt"
        return _written(turns, tokenizer, place, tools, **{how: True})
    names = {"user": HUMAN, "human": HUMAN, "assistant": ASSISTANT}
    parts = []
    for turn in turns:
        opening = names.get(turn["role"])
        parts.append(f"{opening} {turn.get('content') or ''}" if opening else (turn.get("content") or ""))
    return "".join(parts) + ("" if continued else ASSISTANT)


def _written(turns: list[dict[str, Any]], tokenizer: Any, place: str, tools: list[Any] | None, **how: bool) -> str:
    if any(turn.get("tool_calls") for turn in turns) and not _knows(tokenizer, "tool_calls"):
        raise LabError(
            f"{place}: a turn calls a tool, and {'the' if _template(tokenizer) else 'there is no'} chat template "
            f"{'does not write' if _template(tokenizer) else 'to write'} such calls. Give a model whose template does, "
            f"or remove the row."
        )
    # Parquet gives every turn all fields, empty ones as None, and templates ask whether a field is there.
    said = [{k: v for k, v in turn.items() if v is not None} for turn in turns]
    for turn in said:
        turn.setdefault("content", None if turn.get("tool_calls") else "")
    try:
        return tokenizer.apply_chat_template(said, tools=tools, tokenize=False, **how)
    except Exception as error:  # a template raises what it likes
        words = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()
        raise LabError(
            f"{place}: the chat template refuses the conversation ({words}). Change its turns to what the template "
            f"accepts, remove it, or give the tokenizer another chat_template."
        ) from None
