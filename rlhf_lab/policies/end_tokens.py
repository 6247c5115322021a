"""The tokens that end a response: often more than one.

A chat model closes its turn with one token (`<|im_end|>`, `<|eot_id|>`) and a text with another (`<|endoftext|>`).
Sampling must stop at either of them; otherwise the model goes on with the user's next turn.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

_ANSWER = "The answer is yes."


def chat_turn_end(tokenizer: Any) -> int | None:
    """The special token with which the tokenizer's chat template closes a turn of the assistant.

    The template writes a conversation of two turns. The token is the special one that directly follows the answer's
    text, white space aside.

    Returns:
        its id; None if there is no chat template, it refuses the conversation, or no special token follows.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        return None
    turns = [{"role": "user", "content": "Is it so?"}, {"role": "assistant", "content": _ANSWER}]
    try:
        whole = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # a template raises what it likes; where it is needed, `write_turns` reports its words
        return None
    _, found, behind = whole.rpartition(_ANSWER)
    behind = behind.lstrip()
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    follows = [token for token in special | set(tokenizer.all_special_tokens) if token and behind.startswith(token)]
    return tokenizer.convert_tokens_to_ids(max(follows, key=len)) if found and follows else None


def generation_end_tokens(model: Any) -> list[int]:
    """`eos_token_id` of the model's `generation_config`, which is an id, a list of ids, or absent."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def find_end_tokens(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """All ids that end a response: the tokenizer's end token first, then the generation's and the chat template's.

    Ids that the tokenizer does not have are left out: no response holds them.
    """
    found = [tokenizer.eos_token_id, *generation_end_tokens(model), chat_turn_end(tokenizer)]
    return tuple(dict.fromkeys(i for i in found if i is not None and 0 <= i < len(tokenizer)))


def strip_end_token(ids: list[int], ends: Collection[int]) -> list[int]:
    """The ids of a response up to the token that ends it, if one of `ends` does."""
    return ids[:-1] if ids and ids[-1] in ends else ids
