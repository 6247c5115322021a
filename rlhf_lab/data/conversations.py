"""Conversations: write turns as the text of a prompt, shorten such a prompt, and find the answers in it.

The chat template of the tokenizer writes the turns. Without a template they are written in AnthropicHH's format. The
turns stay with the text (`Written`), so that a prompt of too many tokens can be written again without its oldest turns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from rlhf_lab.errors import LabError
from rlhf_lab.policies.end_tokens import chat_turn_end

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"

LOST_TURNS, LOST_BEGINNING = "lost whole turns", "lost the beginning of a turn"
"""What a prompt has lost that was written from turns and cut."""
NO_ROOM = "no room for a turn beside the system's turn and the role markers"
"""The reason why a row is dropped whose prompt cannot be cut."""

TrainOn = Literal["last", "all"]
"""The answers of a conversation that are in the loss of SFT."""

Turns = list[dict[str, Any]]
"""A conversation: objects with `role` and `content`."""

_MARKERS = {"user": HUMAN, "human": HUMAN, "assistant": ASSISTANT}
_SYSTEM = ("system", "developer")
_End = Literal["add_generation_prompt", "continue_final_message", "neither"]
"""How a text ends: with the opening of an answer, within the last turn, or after it."""


class Written(str):
    """The text of a prompt that was written from turns, and these turns.

    Attributes:
        turns: the conversation before the response.
        tools: functions that were passed to the chat template, or None.
        continued: whether the last turn is the assistant's and the response continues it.
        place: file and row, for messages.
    """

    turns: Turns
    tools: list[Any] | None
    continued: bool
    place: str


def write_turns(
    turns: Turns,
    tokenizer: Any,
    place: str = "The conversation",
    tools: list[Any] | None = None,
    continued: bool = False,
) -> str:
    """Return the text of a prompt, up to the beginning of the assistant's answer.

    Args:
        turns: the conversation before the answer.
        tokenizer: its chat template writes the turns. Without one, they are written in AnthropicHH's format.
        place: file and row, for messages.
        tools: functions that are passed to the template.
        continued: whether the last turn is the assistant's and the answer continues it.

    Returns:
        A `Written` text, or an empty text without turns.

    Raises:
        LabError: the chat template refuses the turns, or a turn calls a tool and no template can write the call.
    """
    if not turns:
        return ""
    end: _End = "continue_final_message" if continued else "add_generation_prompt"
    text = Written(_text(turns, tokenizer, place, tools, end))
    text.turns, text.tools, text.continued, text.place = turns, tools, continued, place
    return text


def has_template(tokenizer: Any) -> bool:
    """Return whether the tokenizer has a chat template."""
    return getattr(tokenizer, "chat_template", None) is not None


def knows(tokenizer: Any, word: str) -> bool:
    """Return whether the chat template contains `word`."""
    return has_template(tokenizer) and word in str(tokenizer.chat_template)


def answers(texts: list[str], tokenizer: Any, continued: bool = False) -> tuple[str, ...]:
    """Return responses as they follow the prompt. Without a chat template a space separates them from "Assistant:".

    Args:
        texts: the responses.
        tokenizer: as for `write_turns`.
        continued: whether they continue a turn of the prompt. Then there is no space.
    """
    lead = "" if continued or has_template(tokenizer) else " "
    return tuple(lead + text if text.strip() else "" for text in texts)


def answer_of(turns: Turns, prompt: str, tokenizer: Any, place: str, tools: list[Any] | None, continued: bool) -> str:
    """Return the text of the last turn, as it follows `prompt`, which `write_turns` made of the other turns.

    Raises:
        LabError: the turn calls a tool, and the chat template does not write this call after the prompt.
    """
    if not turns[-1].get("tool_calls"):
        return answers([turns[-1].get("content") or ""], tokenizer, continued)[0]
    whole = _text(turns, tokenizer, place, tools, "neither")
    if continued or not whole.startswith(prompt):
        raise LabError(
            f"{place}: the chat template does not write the answer's tool calls after its prompt. Remove the row."
        )
    return whole[len(prompt) :].rstrip()


def is_dialogue(text: str) -> bool:
    """Return whether a text is a prompt of AnthropicHH's format, which ends with the opening of an answer."""
    return text.startswith(HUMAN) and text.rstrip().endswith(ASSISTANT.strip())


def turns_of_dialogue(text: str) -> Turns:
    """Return the turns of a prompt for which `is_dialogue` is true."""
    names = {HUMAN: "user", ASSISTANT: "assistant"}
    return [{"role": names[marker], "content": content.strip()} for marker, content in _marked(text)][:-1]


def _marked(dialogue: str) -> list[tuple[str, str]]:
    """The turns of a dialogue as pairs of the marker and the text after it."""
    parts = re.split(f"({HUMAN}|{ASSISTANT})", dialogue)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def without_oldest_turns(prompt: str, tokenizer: Any) -> Iterator[str]:
    """Yield shorter and shorter versions of a conversation, each without one exchange more.

    An exchange is a turn of the user with everything up to the user's next turn. Turns of the system at the beginning
    remain, and so does the last exchange.

    Args:
        prompt: a `Written` prompt, or a dialogue of AnthropicHH's format. Other prompts have no shorter version.
        tokenizer: as for `write_turns`.
    """
    if isinstance(prompt, Written):
        turns, first = prompt.turns, _after_system(prompt.turns)
        for start in range(first + 1, len(turns)):
            if turns[start]["role"] in ("user", "human"):
                rest = [*turns[:first], *turns[start:]]
                yield write_turns(rest, tokenizer, prompt.place, prompt.tools, prompt.continued)
    elif is_dialogue(prompt):
        yield from (prompt[found.start() :] for found in re.finditer(HUMAN, prompt) if found.start() > 0)


def with_shorter_text(prompt: Written, tokenizer: Any, fits: Callable[[str], bool]) -> Written | None:
    """Remove the beginning of the oldest text after the system's turns, and no more of it than necessary.

    Args:
        prompt: a prompt that does not fit.
        tokenizer: as for `write_turns`.
        fits: whether a prompt is short enough.

    Returns:
        The prompt with the rest of this text, or None if it does not even fit with a single character of it.
    """
    turns, first = prompt.turns, _after_system(prompt.turns)
    place = next((i for i in range(first, len(turns)) if (turns[i].get("content") or "").strip()), None)
    if place is None:
        return None
    text = turns[place]["content"].rstrip()

    def written(length: int) -> Written:
        rest = [*turns[:place], {**turns[place], "content": text[-length:]}, *turns[place + 1 :]]
        found = write_turns(rest, tokenizer, prompt.place, prompt.tools, prompt.continued)
        assert isinstance(found, Written)
        return found

    if not fits(written(1)):
        return None
    # The length is doubled before it is bisected, so that a text of a megabyte is not tokenised again and again.
    low, high = 1, 2
    while high < len(text) and fits(written(high)):
        low, high = high, 2 * high
    high = min(high, len(text))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(written(middle)) else (low, middle)
    return written(low)


def shortened(
    prompt: Written, tokenizer: Any, encoded: Callable[[str], list[int]], limit: int
) -> tuple[list[int], tuple[str, ...]]:
    """Return the ids of a prompt that is too long, at most `limit` of them, and what it has lost.

    The prompt loses its oldest exchanges. If the last one is still too long, the oldest text in it loses its beginning.
    The turns of the system, all role markers and the opening of the answer remain.

    Args:
        prompt: a prompt of more than `limit` ids.
        tokenizer: as for `write_turns`.
        encoded: returns the ids of a text.
        limit: maximum number of ids.

    Returns:
        the ids, and `LOST_TURNS`, `LOST_BEGINNING` or both; or an empty list and `NO_ROOM`.
    """
    shorter: str = prompt
    lost: tuple[str, ...] = ()
    for shorter in without_oldest_turns(prompt, tokenizer):
        lost = (LOST_TURNS,)
        if len(ids := encoded(shorter)) <= limit:
            return ids, lost
    assert isinstance(shorter, Written)
    found = with_shorter_text(shorter, tokenizer, lambda text: len(encoded(text)) <= limit)
    return ([], (NO_ROOM,)) if found is None else (encoded(found), (*lost, LOST_BEGINNING))


def _after_system(turns: Turns) -> int:
    """The number of the system's turns at the beginning."""
    return next((i for i, turn in enumerate(turns) if turn["role"] not in _SYSTEM), len(turns))


def turn_end_text(tokenizer: Any) -> str:
    """Return the token with which the chat template ends a turn, as text, or an empty text."""
    end = chat_turn_end(tokenizer)
    return "" if end is None else str(tokenizer.convert_ids_to_tokens(end))


def split_at_answers(prompt: str, tokenizer: Any, turn_end: str) -> list[str]:
    """Split a prompt at the assistant's turns in it, which are found by writing the conversation up to each of them.

    A turn with which the conversation begins, an empty one, and one that the response continues are not split off.

    Args:
        prompt: a `Written` prompt or a dialogue of AnthropicHH's format. Other prompts are not split.
        tokenizer: as for `write_turns`.
        turn_end: the result of `turn_end_text`.

    Returns:
        An odd number of texts whose concatenation is the prompt. Every second one is an answer, with the end token of
        the chat template if it has one.

    Raises:
        LabError: the template writes a turn of the assistant differently when other turns follow.
    """
    if not isinstance(prompt, Written):
        return _split_dialogue(prompt) if is_dialogue(prompt) else [prompt]
    turns, tools, place = prompt.turns, prompt.tools, prompt.place
    parts, done = list[str](), 0
    for number, turn in enumerate(turns[: len(turns) - prompt.continued]):
        empty = not (turn.get("content") or "").strip() and not turn.get("tool_calls")
        if number == 0 or turn["role"] != "assistant" or empty:
            continue
        before = _text(turns[:number], tokenizer, place, tools, "add_generation_prompt")
        behind = _text(turns[: number + 1], tokenizer, place, tools, "neither")
        if not (prompt.startswith(behind) and behind.startswith(before)):
            raise LabError(
                f"{place}: the chat template of {getattr(tokenizer, 'name_or_path', '') or 'the tokenizer'} writes "
                f"turn {number + 1}, an answer, differently when other turns follow, so train_on=all cannot find it. "
                f"Use --train-on last, or set a chat_template in the tokenizer that leaves earlier turns unchanged."
            )
        answer = _answer_in(behind[len(before) :], turn, turn_end)
        parts += [prompt[done : len(before)], answer]
        done = len(before) + len(answer)
    return [*parts, prompt[done:]]


def _answer_in(text: str, turn: dict[str, Any], end: str) -> str:
    """The part of a written turn that a model generates: up to the end token, or else to the end of the content."""
    if end and end in text:
        return text[: text.rfind(end) + len(end)]
    content = (turn.get("content") or "").strip()
    if content and content in text and not turn.get("tool_calls"):
        return text[: text.rfind(content) + len(content)]
    return text.rstrip()


def _split_dialogue(prompt: str) -> list[str]:
    parts = [""]
    for marker, text in _marked(prompt):
        parts[-1] += marker
        if marker == ASSISTANT and text.strip():
            parts += [text, ""]
        else:
            parts[-1] += text
    return parts


def _text(turns: Turns, tokenizer: Any, place: str, tools: list[Any] | None, end: _End) -> str:
    """The text of turns, by the chat template or in AnthropicHH's format."""
    calls = any(turn.get("tool_calls") for turn in turns)
    if not has_template(tokenizer) and not calls:
        return _marked_text(turns) + (ASSISTANT if end == "add_generation_prompt" else "")
    if calls and not knows(tokenizer, "tool_calls"):
        raise LabError(
            f"{place}: a turn calls a tool, and {'the' if has_template(tokenizer) else 'there is no'} chat template "
            f"{'does not write' if has_template(tokenizer) else 'to write'} such calls. Use a model whose template "
            f"writes them, or remove the row."
        )
    # In Parquet every turn has all fields, with None for missing ones. Templates check whether a field exists.
    present = [{k: v for k, v in turn.items() if v is not None} for turn in turns]
    for turn in present:
        turn.setdefault("content", None if turn.get("tool_calls") else "")
    how = {} if end == "neither" else {end: True}
    try:
        return str(tokenizer.apply_chat_template(present, tools=tools, tokenize=False, **how))
    except Exception as error:  # a template may raise any exception
        words = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()
        raise LabError(
            f"{place}: the chat template refuses the conversation ({words}). Change its turns as the template "
            f"needs, remove the row, or set another chat_template in the tokenizer."
        ) from None


def _marked_text(turns: Turns) -> str:
    """Turns in AnthropicHH's format."""
    parts = []
    for turn in turns:
        marker, content = _MARKERS.get(turn["role"]), turn.get("content") or ""
        parts.append(f"{marker} {content}" if marker else content)
    return "".join(parts)


class Answered(NamedTuple):
    """A conversation in which several answers are trained on.

    Attributes:
        prompt: ids of everything before the first answer.
        response: ids of everything after it, with the last answer.
        trained: for each id of the response whether it belongs to an answer.
        answers: the ids of the answers but for the last one.
        lost: `LOST_TURNS` if the conversation was cut.
    """

    prompt: list[int]
    response: list[int]
    trained: list[bool]
    answers: list[list[int]]
    lost: tuple[str, ...]


def with_all_answers(
    prompt: str,
    last: list[int],
    tokenizer: Any,
    encoded: Callable[[str], list[int]],
    opened: Callable[[list[int]], list[int]],
    limit: float,
    turn_end: str,
) -> Answered | None:
    """Return a conversation in which every answer is trained on, without as many of the oldest turns as necessary.

    The texts of the user and of the assistant are tokenised separately, so that every answer is preceded by the tokens
    after which it would be sampled.

    Args:
        prompt: everything before the last answer.
        last: ids of the last answer with its end token.
        tokenizer: as for `write_turns`.
        encoded: returns the ids of a text.
        opened: adds the token that opens every text, where there is one.
        limit: maximum number of ids of the whole conversation.
        turn_end: the result of `turn_end_text`.

    Returns:
        the conversation, or None if it has only one answer, or if only one would be left of it.

    Raises:
        LabError: as `split_at_answers`.
    """
    for number, shorter in enumerate((prompt, *without_oldest_turns(prompt, tokenizer))):
        parts = split_at_answers(shorter, tokenizer, turn_end)
        if len(parts) == 1:
            return None
        first, *rest = map(encoded, parts)
        first = opened(first)
        response, trained = list[int](), list[bool]()
        for place, ids in enumerate([*rest, last]):
            response += ids
            trained += [place % 2 == 0] * len(ids)
        if len(first) + len(response) <= limit:
            return Answered(first, response, trained, rest[::2], (LOST_TURNS,) if number else ())
    return None
