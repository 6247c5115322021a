"""The tokens that end a response, of which a model may have several.

A chat model ends its turn with one token (`<|im_end|>`, `<|eot_id|>`) and a text with another (`<|endoftext|>`).
Sampling must stop at either of them. Otherwise the model continues with the user's next turn.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

_ANSWER = "The answer is yes."


def chat_turn_end(tokenizer: Any) -> int | None:
    """Find the special token with which the tokenizer's chat template ends a turn of the assistant.

    The template is applied to a conversation of two turns. The result is the special token that follows the text of the
    answer, possibly after white space.

    Args:
        tokenizer: a Hugging Face tokenizer.

    Returns:
        The token's id; None if there is no chat template, if it refuses the conversation, or if no special token
        follows the answer.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        return None
    turns = [{"role": "user", "content": "Is it so?"}, {"role": "assistant", "content": _ANSWER}]
    try:
        whole = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # a template may raise any error; `write_turns` reports it when the template is needed
        return None
    _, found, behind = whole.rpartition(_ANSWER)
    behind = behind.lstrip()
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    follows = [token for token in special | set(tokenizer.all_special_tokens) if token and behind.startswith(token)]
    return tokenizer.convert_tokens_to_ids(max(follows, key=len)) if found and follows else None


def generation_end_tokens(model: Any) -> list[int]:
    """The ids in `eos_token_id` of the model's `generation_config`, where it is one id, a list of ids, or missing."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def find_end_tokens(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """All ids that end a response: those of the tokenizer, of the generation configuration and of the chat template.

    Args:
        model: a Hugging Face model.
        tokenizer: its tokenizer.

    Returns:
        The ids, with the tokenizer's end token first. Ids that the tokenizer does not have are left out.
    """
    found = [tokenizer.eos_token_id, *generation_end_tokens(model), chat_turn_end(tokenizer)]
    return tuple(dict.fromkeys(i for i in found if i is not None and 0 <= i < len(tokenizer)))


def strip_end_token(ids: list[int], ends: Collection[int]) -> list[int]:
    """The ids of a response without its last token, if that is one of `ends`."""
    return ids[:-1] if ids and ids[-1] in ends else ids
