r"""Supervised fine-tuning: behaviour cloning of given responses.

    ℒ_SFT(θ) = −E_{(x,y)~D} [ log π_θ(y|x) ],   log π_θ(y|x) = Σ_t log π_θ(y_t | x, y_<t)

Lecture, "Preliminaries", SFT phase. RAFT and ReST minimise this loss on responses that were sampled from the policy.
With infinite data π_θ converges to the distribution of the responses. In a conversation of several turns, the sum may
run over the tokens of all answers (`trained`), each of which is predicted from everything before it. Left out on
purpose: packing several examples into one row, which changes the speed and not the result.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from rlhf_lab import losses
from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.policies.base import Policy
from rlhf_lab.training import Evaluation, Loop, Metrics, Training


def sft_loss(
    policy: Policy, prompts: Tokens, responses: Tokens, trained: Tensor | None = None
) -> tuple[Tensor, Metrics]:
    """Return the mean of −log π_θ(y|x) over B prompts with G responses each, in nats per response; and metrics.

    The metric is response_tokens, the mean number of tokens of a response. The training loop divides the loss by it,
    which gives loss_per_token, in nats per token.

    Args:
        policy: π_θ.
        prompts: (B, P).
        responses: (B, G, T).
        trained: (B, G, T) booleans, the tokens over which log π_θ(y_t | x, y_<t) is summed and that are counted. None:
            all tokens of the responses.
    """
    if trained is None:
        log_prob, lengths = policy.log_prob(prompts, responses), responses.lengths
    else:
        by_token = policy.token_log_probs(prompts, responses)
        log_prob, lengths = (by_token * trained.to(by_token)).sum(-1), trained.sum(-1)
    return losses.sft(log_prob).mean(), {"response_tokens": lengths.to(log_prob).mean()}


def held_out_responses(policy: Policy, prompts: Tokens, responses: Tokens, trained: Tokens | None = None) -> Evaluation:
    """Measure the loss on responses that are not trained on, (N, G, T); see `sft` for the arguments."""

    def batch(rows: Tensor) -> tuple[Any, ...]:
        return _batch(prompts, responses, trained, rows)

    return Evaluation(len(prompts), batch, partial(sft_loss, policy), best_by="loss")


def _batch(prompts: Tokens, responses: Tokens, trained: Tokens | None, rows: Tensor) -> tuple[Any, ...]:
    """The arguments of `sft_loss` after the policy."""
    some = (prompts[rows], responses[rows])
    return some if trained is None else (*some, trained[rows].ids.bool())


def sft(
    policy: Policy,
    prompts: Tokens,
    responses: Tokens,
    training: Training = Training(),
    name: str = "sft",
    evaluation: Evaluation | None = None,
    trained: Tokens | None = None,
) -> list[dict[str, float]]:
    """Train `policy` in place on given responses.

    Args:
        policy: π_θ.
        prompts: (N, P).
        responses: (N, G, T), G equally weighted targets for each prompt.
        training: steps, batch size in prompts, learning rate, seed.
        name: text of the progress bar.
        evaluation: what is measured on held-out data, for example `held_out_responses`.
        trained: as many tokens as `responses`, whose ids are 1 where a token of the response is trained on, and
            otherwise 0. None: the loss contains all tokens.

    Returns:
        the history: loss in nats per response, loss_per_token, response_tokens.

    Raises:
        LabError: the numbers of prompts and responses differ, or are 0; L-BFGS with batches smaller than the data; a
            loss that is not finite.
    """
    if len(prompts) != len(responses) or len(prompts) == 0:
        raise LabError(
            f"{len(prompts)} prompts came with responses for {len(responses)}. The numbers must be equal, and not 0."
        )
    training.check_rows(name, len(prompts))
    with Loop(name, policy, training, evaluation=evaluation) as loop:
        for _ in loop:
            rows = loop.rows(len(prompts))
            loop.update(partial(sft_loss, policy), _batch(prompts, responses, trained, rows))
    return loop.history
