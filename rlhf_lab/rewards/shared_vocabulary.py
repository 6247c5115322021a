"""Checks that a reward model has the same vocabulary as the policy whose token ids it scores."""

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

    The reward model may have further tokens. How text is split into tokens is not compared, because a reward model
    reads ids.

    Args:
        policy_tokenizer: a Hugging Face tokenizer.
        reward_tokenizer: the tokenizer with which the reward model was trained.
        policy_name: the policy's name in the message.
        reward_name: the reward model's name in the message.
    """
    ours, theirs = policy_tokenizer.get_vocab(), reward_tokenizer.get_vocab()
    other = [token for token, number in ours.items() if theirs.get(token) != number]
    names = _named(policy_name, policy_tokenizer), _named(reward_name, reward_tokenizer)
    if other:
        token = min(other, key=ours.__getitem__)
        there = f"has the id {theirs[token]}" if token in theirs else "is unknown"
        raise LabError(
            f"{names[0]} and {names[1]} have different tokenizers: {len(other)} of {len(ours)} tokens differ. "
            f"{token!r} has the id {ours[token]} in the first and {there} in the second. Train a reward model with "
            f"this policy's tokenizer, or score texts with rlhf_lab.rewards.text.TextReward."
        )
    ends = policy_tokenizer.eos_token_id, reward_tokenizer.eos_token_id
    if ends[0] != ends[1]:
        raise LabError(
            f"{names[0]} and {names[1]} have different end tokens, {ends[0]} and {ends[1]}. Set the same eos_token in "
            f"both."
        )


def check_reward_vocabulary(
    policy: Any, reward: Any, policy_name: str = "the policy", reward_name: str = "the reward model"
) -> None:
    """Raise `LabError` if `reward` was trained with another vocabulary than that of `policy`.

    The tokenizers are compared if both have one, and otherwise the numbers of ids. Rewards that read texts and tabular
    rewards have no vocabulary and are accepted.

    Args:
        policy: a policy, with or without a `tokenizer`.
        reward: any reward.
        policy_name: the policy's name in the message.
        reward_name: the reward model's name in the message.
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
            f"{policy_name} has the ids 0 … {written - 1}, but {reward_name} has only 0 … {known - 1}. Train a reward "
            f"model on this policy's body."
        )


def _named(name: str, tokenizer: Any) -> str:
    where = getattr(tokenizer, "name_or_path", "")
    return f"{name} ({where})" if where else name
