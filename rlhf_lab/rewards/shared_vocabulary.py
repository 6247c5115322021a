"""A reward model reads a policy's ids. If they mean other words to it, its scores mean nothing."""

from __future__ import annotations

from typing import Any

from rlhf_lab.errors import LabError


def check_same_tokenizer(
    policy_tokenizer: Any,
    reward_tokenizer: Any,
    policy_name: str = "the policy",
    reward_name: str = "the reward model",
) -> None:
    """Raise `LabError` unless every token of the policy has the same id in the reward model's vocabulary.

    Tokens that only the reward model has do no harm. How text is cut into tokens is not compared: a reward model is
    given ids.

    Args:
        policy_tokenizer: a Hugging Face tokenizer.
        reward_tokenizer: the tokenizer that the reward model was trained with.
        policy_name: how to name the one in the message.
        reward_name: how to name the other.
    """
    ours, theirs = policy_tokenizer.get_vocab(), reward_tokenizer.get_vocab()
    other = [token for token, number in ours.items() if theirs.get(token) != number]
    names = _named(policy_name, policy_tokenizer), _named(reward_name, reward_tokenizer)
    if other:
        token = min(other, key=ours.__getitem__)
        there = f"has the id {theirs[token]}" if token in theirs else "is unknown"
        raise LabError(
            f"{names[0]} and {names[1]} have different tokenizers: {len(other)} of {len(ours)} tokens differ; "
            f"{token!r}, {ours[token]} in the one, {there} in the other. Train a reward model on this policy's "
            f"tokenizer, or score texts through rlhf_lab.rewards.text.TextReward."
        )
    ends = policy_tokenizer.eos_token_id, reward_tokenizer.eos_token_id
    if ends[0] != ends[1]:
        raise LabError(
            f"{names[0]} ends a text with the id {ends[0]}, {names[1]} with {ends[1]}: they have different tokenizers. "
            f"Set the same eos_token in both."
        )


def check_reward_vocabulary(
    policy: Any, reward: Any, policy_name: str = "the policy", reward_name: str = "the reward model"
) -> None:
    """Raise `LabError` if `reward` was made for another vocabulary than `policy` writes in.

    By their tokenizers where both have one, else by the number of ids. Rewards that read texts, and tables, have
    neither, and pass.

    Args:
        policy: a policy, with or without a `tokenizer`.
        reward: anything that scores responses.
        policy_name: how to name the one in the message.
        reward_name: how to name the other.
    """
    body = getattr(reward, "body", None)
    if body is None:
        return
    tokenizers = getattr(policy, "tokenizer", None), getattr(reward, "tokenizer", None)
    if tokenizers[0] is not None and tokenizers[1] is not None:
        check_same_tokenizer(*tokenizers, policy_name, reward_name)
    known, written = body.config.vocab_size, getattr(policy, "vocab_size", 0)
    if known < written:
        raise LabError(
            f"{policy_name} writes ids 0 … {written - 1}, {reward_name} knows 0 … {known - 1}: it was made for another "
            f"vocabulary. Train a reward model on this policy's body."
        )


def _named(name: str, tokenizer: Any) -> str:
    where = getattr(tokenizer, "name_or_path", "")
    return f"{name} ({where})" if where else name
