r"""RLOO and GRPO: policy gradient in which the other responses of a group are the baseline, without a critic.

    max_θ E_{x~D, y~π_θ}[ r(x, y) ] − β KL(π_θ‖π_ref)

    rloo   A_i = s_i − mean_{j≠i} s_j               the actions are responses; Ahmadian et al. 2024, section 3
    grpo   A_i = (s_i − mean_j s_j) / std_j s_j     the actions are tokens; Shao et al. 2024, equations 3 and 4

The mean of the other scores does not change the expected gradient. The mean of all scores (grpo) makes the gradient of
the reward (G−1)/G as large, so that β counts G/(G−1) times. The place of the KL term decides its gradient (`kl.py`):

    reward   −β k1 of the whole response, in its score s: exactly ∇KL(π_θ‖π_ref), so π* is the optimum (RLOO)
    k2       β k2 of the whole response, in the loss: ∇KL(π_θ‖π_ref) too, for samples of the current policy
    k3       β Σ_t k3 of each token, in the loss: ∇KL(π_ref‖π_θ) per token, the *other* divergence (GRPO). On a bandit
             the optimum is then β π_ref/(c − r) with the c(x) that makes it sum to one, which is not π*

Two more parts of GRPO move its optimum (Liu et al. 2025, "Dr. GRPO"). Because of the division by the group's standard
deviation, β counts as β·std of each prompt's rewards under the current policy; with a small β the std shrinks with the
policy until the KL term has no effect. The division by |y| gives the tokens of long responses less weight. Both can be
switched off. Left out on purpose: a reward of each token (process supervision).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from rlhf_lab import kl, losses
from rlhf_lab.algorithms.on_policy import check_scores, check_training, sample
from rlhf_lab.batch import Tokens
from rlhf_lab.errors import Count, LabError, Positive, Range, Temperature, check_settings, refuse_unused
from rlhf_lab.policies.base import Policy, Reward
from rlhf_lab.rounding import MANY, rounding
from rlhf_lab.training import Evaluation, Loop, Metrics, Training

GroupMethod = Literal["rloo", "grpo"]
Penalty = Literal["reward", "k2", "k3"]


@dataclass(frozen=True)
class Group:
    """Settings of RLOO and GRPO. A setting of None has the value of the kind's paper."""

    kind: GroupMethod = "rloo"
    """rloo or grpo, as in the list at the top of the module."""
    beta: Positive = 0.1
    """β of the objective."""
    samples: Annotated[int, Range(2, fix="Each response is compared with the others of its prompt.")] = 8
    """G, responses sampled for each prompt of a step."""
    penalty: Penalty | None = None
    """Place of the KL term: reward (rloo), k3 (grpo), or k2, a loss with the gradient of KL(π_θ‖π_ref)."""
    divide_by_std: bool | None = None
    """Divide advantages by the standard deviation of their group. rloo: no; grpo: yes."""
    divide_by_length: bool | None = None
    """Take the mean over a response's tokens instead of the sum. grpo: yes; rloo has no tokens."""
    epochs: Count = 1
    """Passes over a step's samples."""
    minibatches: Count = 1
    """Parts of the step's prompts, one optimiser step each; at most as many as a step has prompts."""
    clip: Positive = 0.2
    """How far the probability ratio may move from 1 before its gradient is cut. With one epoch and one minibatch the
    ratio is always 1, and only the default is accepted."""
    temperature: Temperature = 1.0
    """Sampling temperature. The logits of policy and reference are divided by it as well."""
    top_k: Count | None = None
    """Sample among the k likeliest tokens only. The gradient ignores this and is then biased."""
    std: Literal["population", "sample"] = "population"
    """Which standard deviation. population divides by G; sample divides by G − 1 and adds 1e-6, as in CS336's
    assignment 5 and in code that calls `torch.std`."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.one_pass:
            refuse_unused(self, ["clip"], "where every sample is learned from once: raise epochs or minibatches")
        if not self.by_std:
            refuse_unused(self, ["std"], "where advantages are not divided by a standard deviation")
        if self.kind == "rloo" and self.divide_by_length:
            raise LabError("divide_by_length is for grpo: rloo weighs whole responses.")

    # Fields of None stay None, so that the command line can change `kind` alone.

    @property
    def kl_term(self) -> Penalty:
        """`penalty`, or that of the kind's paper."""
        return self.penalty or ("k3" if self.kind == "grpo" else "reward")

    @property
    def by_std(self) -> bool:
        """`divide_by_std`, or that of the kind's paper."""
        return self.kind == "grpo" if self.divide_by_std is None else self.divide_by_std

    @property
    def by_length(self) -> bool:
        """`divide_by_length`, or that of the kind's paper."""
        return self.kind == "grpo" if self.divide_by_length is None else self.divide_by_length

    @property
    def one_pass(self) -> bool:
        """Whether every sample is used once, by the policy that it was sampled from."""
        return self.epochs == 1 and self.minibatches == 1


def advantages(score: Tensor, settings: Group, doubt: Tensor | float = 0.0) -> Tensor:
    """Return the advantages (B, G) of scores (B, G) as the settings say; see `losses.group_advantages`."""
    divide_by: losses.Divisor = "nothing"
    if settings.by_std:
        divide_by = "population std" if settings.std == "population" else "sample std"
    return losses.group_advantages(score, settings.kind == "rloo", divide_by, doubt)


def group_loss(
    policy: Policy,
    prompts: Tokens,
    responses: Tokens,
    score: Tensor,
    log_ref: Tensor,
    old: Tensor | None,
    settings: Group,
) -> tuple[Tensor, Metrics]:
    """Return the mean loss of B groups, and metrics.

    Args:
        policy: π_θ.
        prompts: (B, P).
        responses: (B, G, T), sampled from the policy as it was.
        score: r(x, y), (B, G).
        log_ref: log π_ref of each token, (B, G, T).
        old: log π of each token under the policy that was sampled, (B, G, T); None: the current policy.
        settings: the method.

    Returns:
        the loss, a scalar whose gradient is minus the objective's estimate; and kl (k1, nats per response, of the
        policy that was sampled) and clip_fraction.
    """
    new = policy.token_log_probs(prompts, responses, settings.temperature)
    before = new.detach() if old is None else old
    drift = kl.k1(before, log_ref).sum(-1)
    signal, doubt = score.to(new.dtype), rounding(score).to(new.device)
    if settings.kl_term == "reward":
        signal = signal - settings.beta * drift
        doubt = doubt + settings.beta * rounding(1.0, before.sum(-1), log_ref.sum(-1), units=MANY)
    advantage = advantages(signal, settings, doubt.amax(-1, keepdim=True))
    # The actions are whole responses (rloo) or tokens (grpo).
    log_ratio = (new - before).sum(-1) if settings.kind == "rloo" else new - before
    advantage = advantage if settings.kind == "rloo" else advantage.unsqueeze(-1)
    loss = losses.clipped_surrogate(log_ratio, advantage, settings.clip)
    clipped = ((log_ratio.detach().exp() - 1).abs() > settings.clip).to(new.dtype)
    length = responses.lengths.to(new.device).clamp(min=1)
    mask = responses.mask.to(new.device)
    if settings.kind == "grpo":
        loss, clipped = (loss * mask).sum(-1), (clipped * mask).sum(-1) / length
    if settings.kl_term == "k3":
        loss = loss + settings.beta * (kl.k3(new, log_ref) * mask).sum(-1)
    elif settings.kl_term == "k2":
        loss = loss + settings.beta * kl.k2(new.sum(-1), log_ref.sum(-1))
    if settings.by_length:
        loss = loss / length
    return loss.mean(), {"kl": drift.mean(), "clip_fraction": clipped.mean()}


def group(
    policy: Policy,
    reference: Policy,
    reward: Reward,
    prompts: Tokens,
    settings: Group = Group(),
    training: Training = Training(),
    name: str | None = None,
    evaluation: Evaluation | None = None,
) -> list[dict[str, float]]:
    """Train `policy` in place on samples from the current policy.

    Args:
        policy: π_θ, usually `reference.copy()`.
        reference: π_ref, frozen.
        reward: scores (B, G).
        prompts: (N, P); a step draws `training.batch_size` of them.
        settings: which method, and how.
        training: here a step is one round of sampling and `epochs` passes of learning.
        name: text of the progress bar; the kind by default.
        evaluation: what is measured on held-out data, for example `on_policy.held_out_rewards`.

    Returns:
        the history: loss, score, kl (k1, nats per response), objective, clip_fraction.

    Raises:
        LabError: a score or a loss that is not finite; L-BFGS, which needs the same data in every step.
    """
    name = name or settings.kind
    check_training(name, training, settings.minibatches, prompts)

    def loss_of(
        x: Tokens, y: Tokens, score: Tensor, log_ref: Tensor, old: Tensor | None = None
    ) -> tuple[Tensor, Metrics]:
        loss, seen = group_loss(policy, x, y, score, log_ref, old, settings)
        mean = score.mean()
        return loss, {"score": mean, "objective": mean - settings.beta * seen["kl"], **seen}

    with Loop(name, policy, training, settings, evaluation) as loop:
        for step, generator in loop:
            x = prompts[loop.rows(len(prompts))]
            with torch.no_grad(), loop.autocast():
                y = sample(policy, x, settings.samples, generator, settings.temperature, settings.top_k)
                score = check_scores(reward(x, y), name, step)
                log_ref = reference.token_log_probs(x, y, settings.temperature)
                old = None if settings.one_pass else policy.token_log_probs(x, y, settings.temperature)
            score = score.to(log_ref.device)
            if old is None:
                loop.update(loss_of, (x, y, score, log_ref))
                continue
            for _ in range(settings.epochs):
                order = torch.randperm(len(x), generator=generator, device=generator.device).cpu()
                for rows in order.chunk(settings.minibatches):
                    loop.update(loss_of, (x[rows], y[rows], score[rows], log_ref[rows], old[rows]))
    return loop.history
