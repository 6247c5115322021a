"""Sampling from the current policy, and the checks of a step of PPO, RLOO or GRPO."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.policies.base import Policy
from rlhf_lab.training import Training


def sample(
    policy: Policy,
    prompts: Tokens,
    number: int,
    generator: torch.Generator,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> Tokens:
    """Sample responses: `policy.sample`, with `top_k` only where it is given, since some policies do not support it."""
    truncation = {} if top_k is None else {"top_k": top_k}
    return policy.sample(prompts, number, generator, temperature, **truncation)


def check_scores(scores: Tensor, name: str, step: int) -> Tensor:
    """Return the scores of a step without gradient, or raise `LabError` if one is not finite."""
    if not bool(torch.isfinite(scores).all()):
        raise LabError(f"{name}: the reward gave a score that is not finite at step {step}.")
    return scores.detach()


def check_training(name: str, training: Training, minibatches: int, prompts: Tokens) -> None:
    """Raise `LabError` for L-BFGS, and if a step has fewer prompts than minibatches."""
    training.check_rows(name, None)
    rows = min(training.batch_size, len(prompts))
    if minibatches > rows:
        raise LabError(f"minibatches={minibatches} is more than the {rows} prompts of a step. Give at most {rows}.")
