"""Sampling from the current policy, the checks of a step of PPO, RLOO or GRPO, and the evaluation by sampling."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_lab import kl
from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError, check_finite, count_of
from rlhf_lab.policies.base import Policy, Reward
from rlhf_lab.randomness import Stream
from rlhf_lab.training import Evaluation, Metrics, Training, seeded


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
        prompts_of_step = count_of(rows, "prompt")
        raise LabError(f"minibatches={minibatches} is more than the {prompts_of_step} of a step. Give at most {rows}.")


def held_out_rewards(
    policy: Policy,
    reference: Policy,
    reward: Reward,
    prompts: Tokens,
    seed: int,
    beta: float | None = None,
    samples: int = 4,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> Evaluation:
    """Measure the reward of responses to prompts that are not trained on, and the KL to the reference.

    Every measurement uses the same random numbers. The metrics are score, kl (k1, nats per response), objective and
    response_tokens. With `top_k` there are no kl and no objective, because top_k changes the distribution.

    Args:
        policy: π_θ.
        reference: π_ref, frozen.
        reward: scores (B, G).
        prompts: (N, P).
        seed: the run's seed.
        beta: β of the objective, score − β kl, which then decides the best weights. None: the score decides.
        samples: G, responses to each prompt.
        temperature: sampling temperature. The logits of policy and reference are divided by it as well.
        top_k: sample among the k likeliest tokens only.
    """

    def batch(rows: Tensor) -> tuple[Tensor, ...]:
        generator = seeded(seed, Stream.HELD_OUT_RESPONSES, int(rows[0]), device=policy.device)
        x = prompts[rows]
        y = sample(policy, x, samples, generator, temperature, top_k)
        score = check_finite(reward(x, y).detach(), "reward")
        length = y.lengths.to(score)
        if top_k is not None:
            return score, length
        ours, theirs = (one.token_log_probs(x, y, temperature) for one in (policy, reference))
        return score, length, kl.k1(ours, theirs).sum(-1).to(score.device)

    def measure(score: Tensor, length: Tensor, drift: Tensor | None = None) -> tuple[None, Metrics]:
        seen: Metrics = {"score": score.mean(), "response_tokens": length.mean()}
        if drift is not None:
            seen["kl"] = drift.mean()
            if beta is not None:
                seen["objective"] = score.mean() - beta * drift.mean()
        return None, seen

    by = "score" if beta is None or top_k is not None else "objective"
    return Evaluation(len(prompts), batch, measure, by, higher=True)
