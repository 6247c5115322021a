"""Exercises of notebook 01: RLHF reviewed."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_lab.exercises.checking import Case, Exercise, Mistake


def _double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def bradley_terry_loss(chosen_reward: Tensor, rejected_reward: Tensor) -> Tensor:
    """Mean loss of the pairs whose scores are given, (B,) each; one number."""
    return -torch.nn.functional.logsigmoid(chosen_reward - rejected_reward).mean()


def reward_distance(first: Tensor, second: Tensor) -> Tensor:
    """How far two rewards (X, K) are apart, after the best f(x), for each prompt: (X,)."""
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


def _put(penalty: Tensor, score: Tensor, at: Tensor) -> Tensor:
    return penalty.scatter_add(-1, at, score.unsqueeze(-1))


def _last(mask: Tensor) -> Tensor:
    return mask.sum(-1, keepdim=True) - 1


_TOKENS = {
    "score": _double([[2.0, -1.0]]),
    "log_policy": _double([[[-0.5, -1.0, -0.2, -0.1], [-2.0, -0.3, -9.0, -3.0]]]),
    "log_ref": _double([[[-0.7, -0.4, -0.9, -0.3], [-1.0, -0.8, -1.0, -1.0]]]),
    "mask": torch.tensor([[[True, True, True, True], [True, True, False, False]]]),
    "beta": 0.1,
}

EXERCISES = (
    Exercise(
        key="nb01.bradley_terry_loss",
        title="The reward model's loss",
        objective="write ℒ_R with the winner in its place",
        difficulty=1,
        minutes=3,
        cases=(
            Case(
                "three pairs",
                {"chosen_reward": _double([1.0, 0.2, -0.5]), "rejected_reward": _double([0.0, 1.0, -2.0])},
            ),
            Case("rewards far apart", {"chosen_reward": _double([-800.0]), "rejected_reward": _double([800.0])}),
        ),
        solution=bradley_terry_loss,
        differentiate=("chosen_reward", "rejected_reward"),
        compare="both",
        mistakes=(
            Mistake(
                "swapped pair",
                "chosen and rejected have changed places: the loss would fall as the loser's score rises.",
                lambda chosen, rejected: -logsigmoid(rejected - chosen).mean(),
            ),
            Mistake(
                "sign",
                "the minus is lost: this is the log-likelihood, and a loss is to be minimised.",
                lambda chosen, rejected: logsigmoid(chosen - rejected).mean(),
            ),
            Mistake(
                "sum for mean",
                "a sum over the pairs where their mean is asked for: the loss would grow with the batch.",
                lambda chosen, rejected: -logsigmoid(chosen - rejected).sum(),
            ),
            Mistake(
                "no mean",
                "one value for each pair: the mean over the pairs is missing.",
                lambda chosen, rejected: -logsigmoid(chosen - rejected),
            ),
            Mistake(
                "forgot the logarithm",
                "the logarithm is missing: this is minus the mean probability, not minus the mean log-probability.",
                lambda chosen, rejected: -torch.sigmoid(chosen - rejected).mean(),
            ),
            Mistake(
                "log of sigmoid in two steps",
                "right on paper, but σ of a large negative number rounds to 0 and its logarithm is −∞: use logsigmoid.",
                lambda chosen, rejected: -torch.log(torch.sigmoid(chosen - rejected)).mean(),
            ),
        ),
        hints=(
            "The label's probability is σ(chosen − rejected). What do you take of a probability to get a loss?",
            "`torch.nn.functional.logsigmoid` is log σ, safe for large arguments. Minus its mean over the pairs.",
        ),
    ),
    Exercise(
        key="nb01.reward_distance",
        title="How far are two reward models apart?",
        objective="compare rewards without being fooled by what labels can't tell",
        difficulty=2,
        minutes=6,
        cases=(
            Case(
                "two prompts, three responses",
                {
                    "first": _double([[1.0, 2.0, 4.0], [0.0, -1.0, 0.5]]),
                    "second": _double([[3.0, 3.0, 3.0], [1.0, 1.0, 0.0]]),
                },
            ),
            Case(
                "equal up to a function of the prompt",
                {
                    "first": _double([[1.0, 2.0, 4.0], [0.0, 1.0, 0.5]]),
                    "second": _double([[6.0, 7.0, 9.0], [-2.0, -1.0, -1.5]]),
                },
            ),
            Case(
                "equal up to a scale, which labels do tell",
                {"first": _double([[1.0, 2.0, 4.0]]), "second": _double([[2.0, 4.0, 8.0]])},
            ),
        ),
        solution=reward_distance,
        mistakes=(
            Mistake(
                "offset kept",
                "the function of x is still in it: two models that predict the same labels would be called different.",
                lambda first, second: (first - second).square().mean(-1).sqrt(),
            ),
            Mistake(
                "one offset for all prompts",
                "one constant was taken off for all prompts: every prompt has an f(x) of its own.",
                lambda first, second: (first - second - (first - second).mean()).square().mean(-1).sqrt(),
            ),
            Mistake(
                "wrong axis",
                "centred over the prompts: that takes off a function of the response, which labels do tell.",
                lambda first, second: (first - second - (first - second).mean(0)).square().mean(-1).sqrt(),
            ),
            Mistake(
                "scale removed",
                "the scale is taken out too: a factor changes the labels' probabilities, so it must count.",
                lambda first, second: (_standard(first) - _standard(second)).square().mean(-1).sqrt(),
            ),
            Mistake(
                "K − 1",
                "divided by K − 1: `std` does so by default. The root mean square over K responses divides by K.",
                lambda first, second: (first - second).std(-1),
            ),
            Mistake(
                "no root",
                "the mean square, without its root: the unit would be reward squared.",
                lambda first, second: (first - second).var(-1, correction=0),
            ),
            Mistake(
                "mean over prompts",
                "one number for all prompts: give one for each.",
                lambda first, second: (first - second).std(-1, correction=0).mean(),
            ),
        ),
        hints=(
            "Which constant c makes the mean square of (difference − c) smallest? Each prompt has its own.",
            "The mean of the difference over the responses: subtract `difference.mean(-1, keepdim=True)` first.",
        ),
    ),
    Exercise(
        key="nb01.token_rewards",
        title="PPO's reward of each token",
        objective="put penalty and score where they belong: signs, β, mask, last token",
        difficulty=2,
        minutes=8,
        cases=(Case("two responses, the second one shorter", _TOKENS),),
        solution=token_rewards,
        mistakes=(
            Mistake(
                "sign of the penalty",
                "the penalty's sign is lost: tokens would be paid for leaving the reference.",
                lambda score, p, ref, mask, beta: _put(beta * (p - ref) * mask, score, _last(mask)),
            ),
            Mistake(
                "missing β",
                "β is missing: the penalty is in nats, and β turns nats into reward.",
                lambda score, p, ref, mask, beta: _put(-(p - ref) * mask, score, _last(mask)),
            ),
            Mistake(
                "no mask",
                "padding is penalised: multiply by the mask.",
                lambda score, p, ref, mask, beta: _put(-beta * (p - ref), score, _last(mask)),
            ),
            Mistake(
                "score in the last column",
                "the score is in the last column, where a shorter response has padding; its last token is earlier.",
                lambda score, p, ref, mask, beta: _put(
                    -beta * (p - ref) * mask, score, torch.full_like(_last(mask), mask.shape[-1] - 1)
                ),
            ),
            Mistake(
                "score one too far",
                "the score is one place off: counted from 0, the last of n tokens is number n − 1.",
                lambda score, p, ref, mask, beta: _put(
                    -beta * (p - ref) * mask, score, mask.sum(-1, keepdim=True).clamp(max=mask.shape[-1] - 1)
                ),
            ),
            Mistake(
                "score on every token",
                "the whole score stands on every token: a response would be paid once for each of its tokens.",
                lambda score, p, ref, mask, beta: (score.unsqueeze(-1) - beta * (p - ref)) * mask,
            ),
            Mistake(
                "mean for sum",
                "the penalty is divided by the length: its sum over the tokens has to be −β times the whole log-ratio.",
                lambda score, p, ref, mask, beta: _put(
                    -beta * (p - ref) * mask / mask.sum(-1, keepdim=True), score, _last(mask)
                ),
            ),
            Mistake(
                "forgot the score",
                "the score is missing: only the penalty is there.",
                lambda score, p, ref, mask, beta: -beta * (p - ref) * mask,
            ),
        ),
        hints=(
            "Two parts: −β times the log-ratio at every real token, and the score at one place. Which place?",
            "`mask.sum(-1, keepdim=True) - 1` is the position of the last token; `scatter_add` adds at a position.",
        ),
    ),
    Exercise(
        key="nb01.clipped_surrogate",
        title="The clip",
        objective="write PPO's pessimistic objective and know which side of it is cut",
        difficulty=3,
        minutes=8,
        cases=(
            Case(
                "both signs of the advantage, on both sides of the clip",
                {
                    "ratio": _double([0.5, 0.9, 1.5, 0.5, 0.9, 1.5]),
                    "advantage": _double([1.0, 1.0, 2.0, -1.0, -2.0, -1.0]),
                    "clip": 0.2,
                },
            ),
        ),
        solution=clipped_surrogate,
        differentiate=("ratio",),
        compare="both",
        mistakes=(
            Mistake(
                "max for min",
                "the maximum where the minimum belongs: an optimist, who is paid for what the clip should cut.",
                lambda ratio, a, clip: torch.maximum(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a),
            ),
            Mistake(
                "only the clip",
                "the clipped term alone: a step that did harm gets no gradient, so it can never be undone.",
                lambda ratio, a, clip: ratio.clamp(1 - clip, 1 + clip) * a,
            ),
            Mistake(
                "no clip",
                "no clip at all: this is the plain importance-weighted advantage.",
                lambda ratio, a, clip: ratio * a,
            ),
            Mistake(
                "loss, not objective",
                "the sign is turned: this is the loss. Asked for is what PPO maximises.",
                lambda ratio, a, clip: -clipped_surrogate(ratio, a, clip),
            ),
            Mistake(
                "minimum of the ratios",
                "the minimum is over the ratios: it belongs over the products: a negative advantage turns the order.",
                lambda ratio, a, clip: torch.minimum(ratio, ratio.clamp(1 - clip, 1 + clip)) * a,
            ),
            Mistake(
                "clipped around zero",
                "clipped to ±ε around 0: the ratio lives around 1.",
                lambda ratio, a, clip: torch.minimum(ratio * a, ratio.clamp(-clip, clip) * a),
            ),
            Mistake(
                "mean",
                "averaged: give the objective of each token, the mean is the loop's.",
                lambda ratio, a, clip: clipped_surrogate(ratio, a, clip).mean(),
            ),
        ),
        hints=(
            "Two candidates: the plain product, and that with the ratio held within 1 ± ε. Which takes a pessimist?",
            "`ratio.clamp(1 - clip, 1 + clip)`; multiply both by the advantage first, then take the smaller.",
        ),
    ),
)


def _standard(reward: Tensor) -> Tensor:
    """Rewards with mean 0 and standard deviation 1 over the responses: the scale taken out, wrongly."""
    centred = reward - reward.mean(-1, keepdim=True)
    return centred / centred.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-12)
