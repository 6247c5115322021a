r"""RLOO and GRPO: policy gradient with the other responses of the group as the baseline, and no critic.

    max_θ E_{x~D, y~π_θ}[ r(x, y) ] − β KL(π_θ‖π_ref)

The (B, G) rule is all they need: each of a prompt's G responses is weighed against the others.

    rloo   A_i = s_i − mean_{j≠i} s_j                  whole responses are the actions; Ahmadian et al. 2024, section 3
    grpo   A_i = (s_i − mean_j s_j) / std_j s_j        tokens are; Shao et al. 2024 (DeepSeekMath), equations 3 and 4

The group's mean without oneself leaves the gradient's mean as it is. With oneself in it (grpo) the reward's part comes
out (G−1)/G as large, so that β counts G/(G−1) times.

Where the KL term stands decides which gradient it has (see `rlhf_lab.kl`):

    reward   −β k1 of the whole response in its score s: ∇KL(π_θ‖π_ref), exactly; π* is the optimum. RLOO's.
    k2       β k2 of the whole response in the loss: ∇KL(π_θ‖π_ref) too, for samples of the policy as it is.
    k3       β Σ_t k3 of each token in the loss: per token ∇KL(π_ref‖π_θ), the *other* divergence. GRPO's. On a bandit
             the optimum is then β π_ref/(c − r), with c(x) that makes it sum to one; not π*.

Two more of GRPO's habits move its optimum (Liu et al. 2025, "Dr. GRPO"): the division by the group's standard
deviation makes β count as β·std of each prompt's rewards under the policy as it is (at a small β it feeds on itself:
the std shrinks with the policy, and nothing is left of the KL term), and the division by |y| weighs the tokens of
long responses less. Both can be turned off. Left out on purpose: a reward of each token (process supervision).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from rlhf_lab import kl
from rlhf_lab.algorithms.cached_rollouts import sample
from rlhf_lab.batch import Tokens
from rlhf_lab.errors import Count, LabError, Positive, Range, Temperature, check_settings, refuse_unused
from rlhf_lab.policies.base import Policy, Reward
from rlhf_lab.rounding import MANY, centred, rounding, standardised
from rlhf_lab.training import Loop, Training

Kind = Literal["rloo", "grpo"]
Penalty = Literal["reward", "k2", "k3"]


@dataclass(frozen=True)
class Group:
    """Settings of the group methods. What is None is as the kind's paper has it."""

    kind: Kind = "rloo"
    """See the module's head."""
    beta: Positive = 0.1
    """β of the objective."""
    samples: Annotated[int, Range(2, fix="Each response is compared with the others of its prompt.")] = 8
    """G, responses drawn for each prompt of a step."""
    penalty: Penalty | None = None
    """Where the KL term stands: reward (rloo), k3 (grpo), or k2, the one in the loss whose gradient is KL(π_θ‖π_ref)'s.
    """
    divide_by_std: bool | None = None
    """Advantages by the standard deviation of their group. rloo: no; grpo: yes."""
    divide_by_length: bool | None = None
    """Mean over a response's tokens instead of their sum. grpo: yes; rloo knows no tokens."""
    epochs: Count = 1
    """Passes over a step's samples."""
    minibatches: Count = 1
    """Parts of the step's prompts, one optimiser step each; at most as many as a step has prompts."""
    clip: Positive = 0.2
    """How far the probability ratio may move from 1 before its gradient is cut. In a first pass it is 1, so with one
    epoch and one minibatch there is nothing to clip, and another value than the default is refused."""
    temperature: Temperature = 1.0
    """Of sampling; the logits of policy and reference are divided by it too."""
    top_k: Count | None = None
    """Draw among the k likeliest tokens alone. The gradient does not know of it, and is no longer unbiased."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.one_pass:
            refuse_unused(self, ["clip"], "where every sample is learned from once: raise epochs or minibatches")
        if self.kind == "rloo" and self.divide_by_length:
            raise LabError("divide_by_length is for grpo: rloo weighs whole responses.")

    # What is None stays None in the fields, so that `kind` can be changed alone, as a command line does.

    @property
    def kl_term(self) -> Penalty:
        """Where the KL term stands, the kind's own place where `penalty` is None."""
        return self.penalty or ("k3" if self.kind == "grpo" else "reward")

    @property
    def by_std(self) -> bool:
        """`divide_by_std`, or as the kind has it."""
        return self.kind == "grpo" if self.divide_by_std is None else self.divide_by_std

    @property
    def by_length(self) -> bool:
        """`divide_by_length`, or as the kind has it."""
        return self.kind == "grpo" if self.divide_by_length is None else self.divide_by_length

    @property
    def one_pass(self) -> bool:
        """Whether every sample is learned from once, by the policy that drew it."""
        return self.epochs == 1 and self.minibatches == 1


def advantages(score: Tensor, settings: Group, doubt: Tensor | float = 0.0) -> Tensor:
    """How much better each response is than its group, (B, G) of scores (B, G).

    rloo: s_i − mean of the others. grpo: s_i − mean of all. Then, if asked for, divided by the group's standard
    deviation (correction 0). Where all scores of a group are equal within rounding the advantages are exactly 0;
    every other group counts fully, whatever the size of its scores.

    Args:
        score: (B, G).
        settings: the method.
        doubt: how far a difference of two scores may be off because of how they came about, (B, 1) or a number; see
            `rlhf_lab.rounding`.
    """
    group = score.shape[-1]
    out = standardised(score, doubt) if settings.by_std else centred(score, doubt)
    return out * (group / (group - 1)) if settings.kind == "rloo" else out


def group_loss(
    policy: Policy,
    prompts: Tokens,
    responses: Tokens,
    score: Tensor,
    log_ref: Tensor,
    old: Tensor | None,
    settings: Group,
) -> tuple[Tensor, dict]:
    """The mean loss of B groups, and what a reader wants to watch.

    Args:
        policy: π_θ.
        prompts: (B, P).
        responses: (B, G, T), drawn from the policy as it was.
        score: r(x, y), (B, G).
        log_ref: log π_ref of each token, (B, G, T).
        old: log π of each token under the policy that drew them, (B, G, T); None: it is the policy as it is.
        settings: the method.

    Returns:
        the loss, a scalar whose gradient is minus the objective's estimate; and kl (k1, nats a response, of the
        policy that drew) and clip_fraction.
    """
    new = policy.token_log_probs(prompts, responses, settings.temperature)
    before = new.detach() if old is None else old
    drift = kl.k1(before, log_ref).sum(-1)
    signal, doubt = score.to(new.dtype), rounding(score).to(new.device)
    if settings.kl_term == "reward":
        signal = signal - settings.beta * drift
        doubt = doubt + settings.beta * rounding(1.0, before.sum(-1), log_ref.sum(-1), units=MANY)
    advantage = advantages(signal, settings, doubt.amax(-1, keepdim=True))
    if settings.kind == "rloo":
        ratio = (new - before).sum(-1).exp()
    else:
        ratio, advantage = (new - before).exp(), advantage.unsqueeze(-1)
    cut = ratio.clamp(1 - settings.clip, 1 + settings.clip)
    value = torch.minimum(ratio * advantage, cut * advantage)
    beyond = ((ratio.detach() - 1).abs() > settings.clip).to(new.dtype)
    length = responses.lengths.to(new.device).clamp(min=1)
    mask = responses.mask.to(new.device)
    if settings.kind == "grpo":
        value, beyond = (value * mask).sum(-1), (beyond * mask).sum(-1) / length
    if settings.kl_term == "k3":
        value = value - settings.beta * (kl.k3(new, log_ref) * mask).sum(-1)
    elif settings.kl_term == "k2":
        value = value - settings.beta * kl.k2(new.sum(-1), log_ref.sum(-1))
    if settings.by_length:
        value = value / length
    return -value.mean(), {"kl": drift.mean(), "clip_fraction": beyond.mean()}


def group(
    policy: Policy,
    reference: Policy,
    reward: Reward,
    prompts: Tokens,
    settings: Group = Group(),
    training: Training = Training(),
    name: str | None = None,
) -> list[dict[str, float]]:
    """Train `policy` in place on its own samples.

    Args:
        policy: π_θ, usually `reference.copy()`.
        reference: π_ref, frozen.
        reward: scores (B, G).
        prompts: (N, P); a step draws `training.batch_size` of them.
        settings: which method, and how.
        training: here a step is one round of sampling and `epochs` passes of learning.
        name: text of the progress bar; the kind by default.

    Returns:
        the history: loss, score, kl (k1, nats a response), objective, clip_fraction.

    Raises:
        LabError: a score or a loss that is not finite; L-BFGS, which would follow one step's samples to the end.
    """
    name = name or settings.kind
    refuse_lbfgs(name, training)
    check_minibatches(settings.minibatches, training, prompts)

    def loss_of(x: Tokens, y: Tokens, score: Tensor, log_ref: Tensor, old: Tensor | None = None) -> tuple[Tensor, dict]:
        loss, seen = group_loss(policy, x, y, score, log_ref, old, settings)
        mean = score.mean()
        return loss, {"score": mean, "objective": mean - settings.beta * seen["kl"], **seen}

    with Loop(name, policy, training, settings) as loop:
        for step, generator in loop:
            x = prompts[loop.rows(len(prompts))]
            with torch.no_grad(), loop.autocast():
                y = sample(policy, x, settings.samples, generator, settings.temperature, settings.top_k)
                score = checked(reward(x, y), name, step)
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


def checked(score: Tensor, name: str, step: int) -> Tensor:
    """The scores of a step without gradient, or `LabError` where one is not finite."""
    if not bool(torch.isfinite(score).all()):
        raise LabError(f"{name}: the reward gave a score that is not finite at step {step}.")
    return score.detach()


def check_minibatches(minibatches: int, training: Training, prompts: Tokens) -> None:
    """Raise `LabError` unless a step has a prompt for each of its minibatches."""
    rows = min(training.batch_size, len(prompts))
    if minibatches > rows:
        raise LabError(f"minibatches={minibatches} is more than the {rows} prompts of a step. Give at most {rows}.")


def refuse_lbfgs(name: str, training: Training) -> None:
    """L-BFGS looks at a step's samples many times, which suits a fixed data set and not fresh samples."""
    if training.optimizer == "lbfgs":
        raise LabError(
            f"{name} learns from fresh samples at every step and cannot use optimizer='lbfgs'; choose 'adam'."
        )
