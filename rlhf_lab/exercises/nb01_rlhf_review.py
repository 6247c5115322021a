"""Exercises of notebook 01: review of RLHF."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.derivations.sft import cloning_is_kl
from rlhf_lab.exercises.checking import Case, Exercise, Task, double
from rlhf_lab.exercises.derive import NextLine
from rlhf_lab.exercises.edits import wrong_answers
from rlhf_lab.exercises.lecture_loop import BETA, LOG_REF, REWARD, loop_arguments, loop_regret
from rlhf_lab.exercises.predictions import Prediction
from rlhf_lab.exercises.training_loops import TrainingLoop


def sft_loss(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Mean of −log π(y|x) over responses; logits (B, T, V), ids and mask (B, T)."""
    log_p = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return -(log_p * mask[:, 1:]).sum(-1).mean()


def reward_distance(first: Tensor, second: Tensor) -> Tensor:
    """How far two rewards (X, K) are apart for each prompt, up to the best f(x): (X,)."""
    difference = first - second
    difference = difference - difference.mean(-1, keepdim=True)  # the best f(x) is the mean
    return difference.square().mean(-1).sqrt()


def token_rewards(score: Tensor, log_policy: Tensor, log_ref: Tensor, mask: Tensor, beta: float) -> Tensor:
    """The reward of every token, (B, G, T), from scores (B, G)."""
    rewards = -beta * (log_policy - log_ref) * mask
    last = mask.sum(-1, keepdim=True) - 1
    return rewards.scatter_add(-1, last, score.unsqueeze(-1))


def clipped_surrogate(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """PPO's objective of each token, to be maximised; the shape of ratio."""
    held = ratio.clamp(1 - clip, 1 + clip)
    return torch.minimum(ratio * advantage, held * advantage)


_TOKENS = {
    "score": double([[2.0, -1.0]]),
    "log_policy": double([[[-0.5, -1.0, -0.2, -0.1], [-2.0, -0.3, -9.0, -3.0]]]),
    "log_ref": double([[[-0.7, -0.4, -0.9, -0.3], [-1.0, -0.8, -1.0, -1.0]]]),
    "mask": torch.tensor([[[True, True, True, True], [True, True, False, False]]]),
    "beta": 0.1,
}


_SEQUENCES = {
    "ids": torch.tensor([[4, 1, 0, 2, 3], [5, 0, 2, 3, 0]]),
    "mask": torch.tensor([[False, False, True, True, True], [False, True, True, True, False]]),
}
"""Two sequences of five tokens: prompts of two and one tokens, responses of three, and padding at the end."""


def _sequence_logits(scale: float) -> Tensor:
    return scale * torch.sin(torch.arange(60, dtype=torch.float64)).reshape(2, 5, 6)


def sft_gradient(w: Any) -> Any:
    """The gradient of the SFT loss with respect to the logits."""
    return w.policy - w.ref


def _detectable() -> str:
    """Which changes of a reward change the probabilities of labels and π*: the offset, the scale, both or none."""
    log_ref, reward = LOG_REF, REWARD
    found = []
    for other in (reward + torch.tensor([[3.0], [0.0]]), 2 * reward):
        same_labels = torch.allclose(exact.preference(other), exact.preference(reward))
        same_optimum = torch.allclose(
            exact.optimal_policy(log_ref, other, BETA), exact.optimal_policy(log_ref, reward, BETA)
        )
        assert same_labels == same_optimum
        found.append(not same_labels)
    return {(True, True): "A", (False, True): "B", (True, False): "C", (False, False): "D"}[found[0], found[1]]


def actor_critic(
    logits: Tensor,
    log_ref: Tensor,
    reward: Tensor,
    beta: float,
    steps: int,
    learning_rate: float,
    samples: int,
    generator: torch.Generator,
) -> list[float]:
    """REINFORCE with a KL penalty and a critic: train `logits`, return the losses."""
    value = torch.zeros_like(log_ref[:, :1]).requires_grad_(True)
    optimizer = torch.optim.SGD([logits, value], lr=learning_rate)
    losses = []
    for _ in range(steps):
        log_policy = logits.log_softmax(-1)
        y = torch.multinomial(log_policy.detach().exp(), samples, True, generator=generator)
        log_prob = log_policy.gather(-1, y)
        log_ratio = (log_prob - log_ref.gather(-1, y)).detach()
        returns = reward.gather(-1, y) - beta * log_ratio
        advantages = returns - value.detach()
        loss = -(advantages * log_prob).mean() + (value - returns).square().mean() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def ppo_rounds(
    logits: Tensor,
    log_ref: Tensor,
    reward: Tensor,
    beta: float,
    steps: int,
    learning_rate: float,
    samples: int,
    generator: torch.Generator,
) -> list[float]:
    """PPO with a mean as baseline: train `logits`, return the last loss of each round."""
    optimizer = torch.optim.SGD([logits], lr=learning_rate)
    losses = []
    for _ in range(steps):
        log_old = logits.detach().log_softmax(-1)
        y = torch.multinomial(log_old.exp(), samples, True, generator=generator)
        old = log_old.gather(-1, y)
        returns = reward.gather(-1, y) - beta * (old - log_ref.gather(-1, y))
        advantages = returns - returns.mean(-1, keepdim=True)
        for _ in range(4):
            ratio = (logits.log_softmax(-1).gather(-1, y) - old).exp()
            held = ratio.clamp(0.8, 1.2)
            loss = -torch.minimum(ratio * advantages, held * advantages).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    return losses


_PENALTY = {
    "sign of the penalty": "the penalty has the wrong sign, so that moving away from the reference is rewarded.",
    "no beta": "β is missing from the penalty.",
}

EXERCISES: tuple[Task, ...] = (
    Prediction(
        key="nb01.what_labels_detect",
        title="What do labels detect?",
        objective="tell which changes to a reward model affect the labels and π*",
        difficulty=1,
        minutes=2,
        question=(
            "A reward model is changed in two ways. *First change*: 3 is added to the scores of all responses to "
            "prompt 1. *Second change*: all scores are multiplied by 2. Which change alters the probabilities of "
            "labels, and with them π\\*?"
        ),
        options={"A": "Both.", "B": "Only the second.", "C": "Only the first.", "D": "Neither."},
        truth=_detectable,
        explanation=(
            "Labels and π* depend only on differences of rewards of the same prompt. A constant cancels in them, and a "
            "factor does not."
        ),
        why_not={
            "A": "a constant that is added to all responses of a prompt cancels in every difference.",
            "C": "the constant cancels in every difference, and the factor 2 doubles every difference.",
            "D": "the factor 2 doubles every difference, so each label becomes more certain, and π* acts as if β were "
            "half as large.",
        },
    ),
    NextLine(
        key="nb01.sft_gradient",
        title="The gradient of SFT",
        objective="derive the gradient of the SFT loss with respect to the logits",
        difficulty=2,
        minutes=5,
        derivation=cloning_is_kl,
        line=3,
        quantities=("policy", "ref"),
        solution=sft_gradient,
        mistakes=wrong_answers(
            sft_gradient,
            {
                "normaliser forgotten": lambda w: -w.ref,
                "with respect to the probability": lambda w: -w.ref / w.policy,
                "softmax twice": lambda w: w.policy * (w.policy - w.ref),
            },
            {
                "normaliser forgotten": "this is the derivative of the logit alone. log π also contains −log of the "
                "sum of all exponentials.",
                "with respect to the probability": "this is the derivative with respect to the probability π(y), not "
                "with respect to the logit.",
                "softmax twice": "this has a factor π too many: log π is differentiated, not π.",
            },
        ),
        hints=(
            "log π(y) = θ_y − log Σ exp θ. What is the derivative of the second term with respect to θ_k?",
            "∂ log π(y)/∂θ_k = 1[y = k] − π(k). Take minus the mean of this over the demonstrator.",
        ),
    ),
    Exercise(
        key="nb01.sft_loss",
        title="The SFT loss of padded sequences",
        objective="compute log-probabilities from logits with shift, mask, sum and mean in the correct places",
        difficulty=2,
        minutes=8,
        cases=(
            Case("two sequences, the second one padded", {"logits": _sequence_logits(2.0), **_SEQUENCES}),
            Case("large logits", {"logits": _sequence_logits(1000.0), **_SEQUENCES}),
        ),
        solution=sft_loss,
        differentiate=("logits",),
        compare="both",
        mistakes=wrong_answers(
            sft_loss,
            {
                "no shift": (
                    "logits[:, :-1] → logits",
                    "ids[:, 1:, None] → ids[..., None]",
                    "mask[:, 1:] → mask",
                ),
                "mask not shifted": "mask[:, 1:] → mask[:, :-1]",
                "no mask": "(log_p * mask[:, 1:]) → log_p",
                "mean over tokens": ".sum(-1).mean() → .sum() / mask[:, 1:].sum()",
                "sum over the batch": ".sum(-1).mean() → .sum()",
                "no softmax": ".log_softmax(-1) → [:]",
                "sign": "return - → return +",
            },
            {
                "no shift": "the logits at position t are compared with the token at t. They predict the token at t + "
                "1.",
                "mask not shifted": "the mask belongs to the tokens, so it must be shifted like the labels.",
                "no mask": "all tokens count, also those of the prompt and the padding.",
                "mean over tokens": "this is the mean over tokens. log π(y|x) is a sum over the tokens, and the mean "
                "is taken over the responses.",
                "sum over the batch": "this is the sum over the responses instead of their mean; it would grow with "
                "the batch.",
                "no softmax": "these are logits and not log-probabilities: log_softmax is missing.",
                "sign": "the minus is lost: this is the log-likelihood, but a loss is minimised.",
            },
        ),
        hints=(
            "The logits at position t predict the token at t + 1. Which part of the logits, of the ids and of the mask "
            "do you need?",
            "`logits[:, :-1].log_softmax(-1)` are the log-probabilities of all tokens. `gather` takes those of "
            "`ids[:, 1:]`.",
            "Multiply by `mask[:, 1:]`, sum over the tokens, and take minus the mean over the responses.",
        ),
    ),
    Exercise(
        key="nb01.reward_distance",
        title="How far are two reward models apart?",
        objective="compare rewards up to the prompt-dependent offset that labels cannot determine",
        difficulty=2,
        minutes=6,
        cases=(
            Case(
                "two prompts, three responses",
                {
                    "first": double([[1.0, 2.0, 4.0], [0.0, -1.0, 0.5]]),
                    "second": double([[3.0, 3.0, 3.0], [1.0, 1.0, 0.0]]),
                },
            ),
            Case(
                "equal up to a function of the prompt",
                {
                    "first": double([[1.0, 2.0, 4.0], [0.0, 1.0, 0.5]]),
                    "second": double([[6.0, 7.0, 9.0], [-2.0, -1.0, -1.5]]),
                },
            ),
            Case(
                "equal up to a scale, which labels determine",
                {"first": double([[1.0, 2.0, 4.0]]), "second": double([[2.0, 4.0, 8.0]])},
            ),
        ),
        solution=reward_distance,
        mistakes=wrong_answers(
            reward_distance,
            {
                "offset kept": lambda first, second: (first - second).square().mean(-1).sqrt(),
                "one offset for all prompts": lambda first, second: (
                    (first - second - (first - second).mean()).square().mean(-1).sqrt()
                ),
                "wrong axis": lambda first, second: (
                    (first - second - (first - second).mean(0)).square().mean(-1).sqrt()
                ),
                "scale removed": lambda first, second: (_standard(first) - _standard(second)).square().mean(-1).sqrt(),
                "K − 1": lambda first, second: (first - second).std(-1),
                "no root": lambda first, second: (first - second).var(-1, correction=0),
                "mean over prompts": lambda first, second: (first - second).std(-1, correction=0).mean(),
            },
            {
                "offset kept": "the function of x is still included: two models that predict the same labels would "
                "have a distance.",
                "one offset for all prompts": "one constant was subtracted for all prompts: every prompt has its own "
                "f(x).",
                "wrong axis": "this is centred over the prompts, which subtracts a function of the response. Labels "
                "determine that function.",
                "scale removed": "the scale is removed too, but a factor changes the labels' probabilities, so it must "
                "count.",
                "K − 1": "this is divided by K − 1, as `std` does by default. The root mean square over K responses "
                "divides by K.",
                "no root": "this is the mean square without its root; its unit is reward squared.",
                "mean over prompts": "this is one number for all prompts. Give one for each.",
            },
        ),
        hints=(
            "Which constant c minimises the mean square of (difference − c)? Each prompt has its own c.",
            "It is the mean of the difference over the responses. Subtract `difference.mean(-1, keepdim=True)` first.",
        ),
    ),
    Exercise(
        key="nb01.token_rewards",
        title="PPO's reward of each token",
        objective="compute the penalty and the score of each token with the correct signs, β, mask and last token",
        difficulty=2,
        minutes=8,
        cases=(Case("two responses, the second one shorter", _TOKENS),),
        solution=token_rewards,
        mistakes=wrong_answers(
            token_rewards,
            {
                "sign of the penalty": "= -beta * → = beta *",
                "missing β": "-beta * → -",
                "no mask": "(log_policy - log_ref) * mask → (log_policy - log_ref)",
                "score in the last column": "keepdim=True) - 1 → keepdim=True).fill_(mask.shape[-1] - 1)",
                "score one too far": "keepdim=True) - 1 → keepdim=True).clamp(max=mask.shape[-1] - 1)",
                "score on every token": (
                    (
                        "rewards = -beta * (log_policy - log_ref) * mask → "
                        "rewards = (score.unsqueeze(-1) - beta * (log_policy - log_ref)) * mask"
                    ),
                    "rewards.scatter_add(-1, last, score.unsqueeze(-1)) → rewards",
                ),
                "mean for sum": "* mask → * mask / mask.sum(-1, keepdim=True)",
                "forgot the score": "rewards.scatter_add(-1, last, score.unsqueeze(-1)) → rewards",
            },
            {
                "sign of the penalty": "the sign of the penalty is lost: leaving the reference would be rewarded.",
                "missing β": "β is missing: the penalty is in nats, and β turns nats into reward.",
                "no mask": "padding is penalised: multiply by the mask.",
                "score in the last column": "the score is in the last column, where a shorter response has padding; "
                "its last token is earlier.",
                "score one too far": "the score is one place too far: counted from 0, the last of n tokens is number n "
                "− 1.",
                "score on every token": "the whole score is on every token: a response would get it once for each of "
                "its tokens.",
                "mean for sum": "the penalty is divided by the length, but its sum over the tokens must be −β times "
                "the whole log-ratio.",
                "forgot the score": "the score is missing; this is the penalty alone.",
            },
        ),
        hints=(
            "There are two parts: −β times the log-ratio at every real token, and the score at one place. Which place?",
            "`mask.sum(-1, keepdim=True) - 1` is the position of the last token; `scatter_add` adds at a position.",
        ),
    ),
    Exercise(
        key="nb01.clipped_surrogate",
        title="The clip",
        objective="write PPO's pessimistic objective and know which side of it is clipped",
        difficulty=3,
        minutes=8,
        cases=(
            Case(
                "both signs of the advantage, on both sides of the clip",
                {
                    "ratio": double([0.5, 0.9, 1.5, 0.5, 0.9, 1.5]),
                    "advantage": double([1.0, 1.0, 2.0, -1.0, -2.0, -1.0]),
                    "clip": 0.2,
                },
            ),
        ),
        solution=clipped_surrogate,
        differentiate=("ratio",),
        compare="both",
        mistakes=wrong_answers(
            clipped_surrogate,
            {
                "max for min": lambda ratio, a, clip: torch.maximum(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a),
                "only the clip": lambda ratio, a, clip: ratio.clamp(1 - clip, 1 + clip) * a,
                "no clip": lambda ratio, a, clip: ratio * a,
                "loss, not objective": lambda ratio, a, clip: -clipped_surrogate(ratio, a, clip),
                "minimum of the ratios": lambda ratio, a, clip: (
                    torch.minimum(ratio, ratio.clamp(1 - clip, 1 + clip)) * a
                ),
                "clipped around zero": lambda ratio, a, clip: torch.minimum(ratio * a, ratio.clamp(-clip, clip) * a),
                "mean": lambda ratio, a, clip: clipped_surrogate(ratio, a, clip).mean(),
            },
            {
                "max for min": "this is the maximum instead of the minimum: it rewards the steps that the clip should "
                "limit.",
                "only the clip": "this is the clipped term alone: a harmful step gets no gradient, so it cannot be "
                "undone.",
                "no clip": "the clip is missing: this is the plain importance-weighted advantage.",
                "loss, not objective": "the sign is wrong: this is the loss, but the exercise asks for the objective "
                "that PPO maximises.",
                "minimum of the ratios": "this is the minimum of the ratios instead of the products; a negative "
                "advantage reverses the order.",
                "clipped around zero": "this is clipped to ±ε around 0, but the ratio is near 1.",
                "mean": "this is averaged. Give the objective of each token; the training loop takes the mean.",
            },
        ),
        hints=(
            "There are two candidates: the plain product, and that with the ratio within 1 ± ε. Which is pessimistic?",
            "`ratio.clamp(1 - clip, 1 + clip)`; multiply both by the advantage first, then take the minimum.",
        ),
    ),
    TrainingLoop(
        key="nb01.actor_critic",
        title="REINFORCE with a critic",
        objective="write a policy-gradient loop in which a critic is trained together with the policy",
        difficulty=3,
        minutes=15,
        arguments=partial(loop_arguments, 60, 1.0, samples=128),
        distance=loop_regret,
        loss_falls=False,
        solution=actor_critic,
        mistakes=wrong_answers(
            actor_critic,
            {
                "sign of the penalty": "- beta * → + beta *",
                "no beta": "beta * log_ratio → log_ratio",
                "no penalty": "reward.gather(-1, y) - beta * log_ratio → reward.gather(-1, y)",
                "return not detached": "(log_prob - log_ref.gather(-1, y)).detach() → log_prob - log_ref.gather(-1, y)",
                "advantage not detached": "value.detach() → value",
                "critic not trained": "[logits, value] → [logits]",
                "sign of the loss": "loss = -(advantages → loss = (advantages",
                "gradients not reset": "optimizer.zero_grad() → pass",
            },
            {
                **_PENALTY,
                "no penalty": "the KL penalty is missing from the returns, so the policy maximises the reward alone.",
                "return not detached": "the gradient runs through the log-ratio inside the return. The return is a "
                "number.",
                "advantage not detached": "the gradient of the policy's loss runs into the critic. Detach the critic's "
                "prediction in the advantage.",
                "critic not trained": "the critic is not trained, so its prediction never changes.",
                "sign of the loss": "the sign is lost: descent on this loss makes good responses less probable.",
                "gradients not reset": "gradients add up over the steps, because they are not reset to zero.",
            },
            pairs=(("no penalty", "advantage not detached"), ("no beta", "critic not trained")),
        ),
        hints=(
            "Make a critic with one value for each prompt, such as `torch.zeros_like(log_ref[:, :1])`. It requires "
            "gradients.",
            "The returns are the reward minus β times the log-ratio, as numbers. The advantage is the return minus the "
            "critic's prediction, also as a number.",
            "The loss is minus the mean of advantage times log π, plus half the mean squared error of the critic. One "
            "optimiser trains both.",
        ),
    ),
    TrainingLoop(
        key="nb01.ppo_rounds",
        title="PPO whose KL penalty has no effect",
        objective="find the bug that makes a PPO loop drift away from the reference policy",
        difficulty=3,
        minutes=10,
        arguments=partial(loop_arguments, 60, 1.0, samples=128),
        distance=loop_regret,
        loss_falls=False,
        solution=ppo_rounds,
        bug="moving reference",
        mistakes=wrong_answers(
            ppo_rounds,
            {
                "moving reference": (
                    "losses = [] → reference = log_ref\n    losses = []",
                    "- log_ref.gather → - reference.gather",
                    "losses.append → reference = logits.detach().log_softmax(-1)\n        losses.append",
                ),
                "sign of the penalty": "- beta * → + beta *",
                "no beta": "- beta * (old → - (old",
                "old not fixed": "- old).exp() → - logits.detach().log_softmax(-1).gather(-1, y)).exp()",
                "ratio inverted": "- old).exp() → - old).neg().exp()",
                "sign of the loss": "(ratio * advantages, held → (-ratio * advantages, -held",
                "gradients not reset": "optimizer.zero_grad() → pass",
            },
            {
                "moving reference": "the reference is updated after every round, so that the log-ratio is always 0.",
                **_PENALTY,
                "old not fixed": "the ratio is taken to the current policy, so that it is always 1.",
                "ratio inverted": "the ratio is inverted.",
                "sign of the loss": "the sign is lost: descent on this loss makes good responses less probable.",
                "gradients not reset": "gradients add up over the steps, because they are not reset to zero.",
            },
            pairs=(("moving reference", "ratio inverted"), ("no beta", "ratio inverted")),
        ),
        hints=(
            "Print KL(π_θ‖π_ref) after every round, and the penalty that is subtracted from the reward.",
            "The penalty is 0 in every round after the first. Of which two policies is the log-ratio?",
            "π_ref is fixed for the whole training. Only the old policy changes from round to round.",
        ),
    ),
)


def _standard(reward: Tensor) -> Tensor:
    """Rewards with mean 0 and standard deviation 1 over the responses: the scale taken out, wrongly."""
    centred = reward - reward.mean(-1, keepdim=True)
    return centred / centred.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-12)
