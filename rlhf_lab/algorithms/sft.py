r"""Supervised fine-tuning: behaviour cloning of given responses.

    ℒ_SFT(θ) = −E_{(x,y)~D} [ log π_θ(y|x) ],   log π_θ(y|x) = Σ_t log π_θ(y_t | x, y_<t)

Lecture, "Preliminaries", SFT phase. RAFT and ReST are this loss on data that the policy made itself. In the limit
of data π_θ is the distribution that the responses came from. Left out on purpose: packing several examples into a
row, which changes the speed and not the result.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from rlhf_lab import losses
from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.policies.base import Policy
from rlhf_lab.training import Loop, Training


def sft_loss(policy: Policy, prompts: Tokens, responses: Tokens) -> tuple[Tensor, dict]:
    """−mean log π_θ(y|x) over B prompts with G responses each, in nats a response; and nothing more to watch."""
    return losses.sft(policy.log_prob(prompts, responses)).mean(), {}


def sft(
    policy: Policy,
    prompts: Tokens,
    responses: Tokens,
    training: Training = Training(),
    name: str = "sft",
    stop: Callable[[int], bool] | None = None,
) -> list[dict[str, float]]:
    """Train `policy` in place to give `responses`.

    Args:
        policy: π_θ.
        prompts: (N, P).
        responses: (N, G, T): G targets a prompt, all equally weighted.
        training: steps, batch size in prompts, rate, seed.
        name: text of the progress bar.
        stop: asked before each step with its number; True ends the run early.

    Returns:
        the history: loss in nats a response.

    Raises:
        LabError: prompts and responses of different number; L-BFGS with batches of fewer prompts than there are; a loss
            that is not finite.
    """
    if len(prompts) != len(responses) or len(prompts) == 0:
        raise LabError(f"{len(prompts)} prompts came with responses for {len(responses)}; they must match, and exist.")
    training.check_rows(name, len(prompts))
    with Loop(name, policy, training) as loop:
        for step, _ in loop:
            if stop is not None and stop(step):
                break
            rows = loop.rows(len(prompts))
            loop.update(partial(sft_loss, policy), (prompts[rows], responses[rows]))
    return loop.history
