"""Exercises of notebook 01: review of RLHF."""

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
    """Distance of two rewards (X, K) for each prompt, minimised over functions f(x) of the prompt: (X,)."""
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
        objective="write ℒ_R with chosen and rejected responses in the correct places",
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
                "chosen and rejected are swapped: the loss would fall as the rejected response's score rises.",
                lambda chosen, rejected: -logsigmoid(rejected - chosen).mean(),
            ),
            Mistake(
                "sign",
                "the minus is lost: this is the log-likelihood, but a loss is minimised.",
                lambda chosen, rejected: logsigmoid(chosen - rejected).mean(),
            ),
            Mistake(
                "sum for mean",
                "this is the sum over the pairs instead of their mean; it would grow with the batch.",
                lambda chosen, rejected: -logsigmoid(chosen - rejected).sum(),
            ),
            Mistake(
                "no mean",
                "this gives one value for each pair; the mean over the pairs is missing.",
                lambda chosen, rejected: -logsigmoid(chosen - rejected),
            ),
            Mistake(
                "forgot the logarithm",
                "the logarithm is missing: this is minus the mean probability, not minus the mean log-probability.",
                lambda chosen, rejected: -torch.sigmoid(chosen - rejected).mean(),
            ),
            Mistake(
                "log of sigmoid in two steps",
                "this is correct on paper, but σ of a large negative number rounds to 0 and its logarithm is −∞: use "
                "logsigmoid.",
                lambda chosen, rejected: -torch.log(torch.sigmoid(chosen - rejected)).mean(),
            ),
        ),
        hints=(
            "The label's probability is σ(chosen − rejected). How does one turn a probability into a loss?",
            "`torch.nn.functional.logsigmoid` is log σ without overflow. The loss is minus its mean over the pairs.",
        ),
    ),
    Exercise(
        key="nb01.reward_distance",
        title="How far are two reward models apart?",
        objective="compare rewards up to the function of the prompt that labels cannot determine",
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
                "equal up to a scale, which labels determine",
                {"first": _double([[1.0, 2.0, 4.0]]), "second": _double([[2.0, 4.0, 8.0]])},
            ),
        ),
        solution=reward_distance,
        mistakes=(
            Mistake(
                "offset kept",
                "the function of x is still included: two models that predict the same labels would have a distance.",
                lambda first, second: (first - second).square().mean(-1).sqrt(),
            ),
            Mistake(
                "one offset for all prompts",
                "one constant was subtracted for all prompts: every prompt has its own f(x).",
                lambda first, second: (first - second - (first - second).mean()).square().mean(-1).sqrt(),
            ),
            Mistake(
                "wrong axis",
                "this is centred over the prompts, which subtracts a function of the response. Labels determine that "
                "function.",
                lambda first, second: (first - second - (first - second).mean(0)).square().mean(-1).sqrt(),
            ),
            Mistake(
                "scale removed",
                "the scale is removed too, but a factor changes the labels' probabilities, so it must count.",
                lambda first, second: (_standard(first) - _standard(second)).square().mean(-1).sqrt(),
            ),
            Mistake(
                "K − 1",
                "this is divided by K − 1, as `std` does by default. The root mean square over K responses divides by "
                "K.",
                lambda first, second: (first - second).std(-1),
            ),
            Mistake(
                "no root",
                "this is the mean square without its root; its unit is reward squared.",
                lambda first, second: (first - second).var(-1, correction=0),
            ),
            Mistake(
                "mean over prompts",
                "this is one number for all prompts. Give one for each.",
                lambda first, second: (first - second).std(-1, correction=0).mean(),
            ),
        ),
        hints=(
            "Which constant c minimises the mean square of (difference − c)? Each prompt has its own c.",
            "It is the mean of the difference over the responses. Subtract `difference.mean(-1, keepdim=True)` first.",
        ),
    ),
    Exercise(
        key="nb01.token_rewards",
        title="PPO's reward of each token",
        objective="compute penalty and score of each token with correct signs, β, mask and last token",
        difficulty=2,
        minutes=8,
        cases=(Case("two responses, the second one shorter", _TOKENS),),
        solution=token_rewards,
        mistakes=(
            Mistake(
                "sign of the penalty",
                "the sign of the penalty is lost: leaving the reference would be rewarded.",
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
                "the score is one place too far: counted from 0, the last of n tokens is number n − 1.",
                lambda score, p, ref, mask, beta: _put(
                    -beta * (p - ref) * mask, score, mask.sum(-1, keepdim=True).clamp(max=mask.shape[-1] - 1)
                ),
            ),
            Mistake(
                "score on every token",
                "the whole score is on every token: a response would get it once for each of its tokens.",
                lambda score, p, ref, mask, beta: (score.unsqueeze(-1) - beta * (p - ref)) * mask,
            ),
            Mistake(
                "mean for sum",
                "the penalty is divided by the length, but its sum over the tokens must be −β times the whole "
                "log-ratio.",
                lambda score, p, ref, mask, beta: _put(
                    -beta * (p - ref) * mask / mask.sum(-1, keepdim=True), score, _last(mask)
                ),
            ),
            Mistake(
                "forgot the score",
                "the score is missing; this is the penalty alone.",
                lambda score, p, ref, mask, beta: -beta * (p - ref) * mask,
            ),
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
                "this is the maximum instead of the minimum: it rewards the steps that the clip should limit.",
                lambda ratio, a, clip: torch.maximum(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a),
            ),
            Mistake(
                "only the clip",
                "this is the clipped term alone: a harmful step gets no gradient, so it cannot be undone.",
                lambda ratio, a, clip: ratio.clamp(1 - clip, 1 + clip) * a,
            ),
            Mistake(
                "no clip",
                "the clip is missing: this is the plain importance-weighted advantage.",
                lambda ratio, a, clip: ratio * a,
            ),
            Mistake(
                "loss, not objective",
                "the sign is wrong: this is the loss, but the exercise asks for the objective that PPO maximises.",
                lambda ratio, a, clip: -clipped_surrogate(ratio, a, clip),
            ),
            Mistake(
                "minimum of the ratios",
                "this is the minimum of the ratios instead of the products; a negative advantage reverses the order.",
                lambda ratio, a, clip: torch.minimum(ratio, ratio.clamp(1 - clip, 1 + clip)) * a,
            ),
            Mistake(
                "clipped around zero",
                "this is clipped to ±ε around 0, but the ratio is near 1.",
                lambda ratio, a, clip: torch.minimum(ratio * a, ratio.clamp(-clip, clip) * a),
            ),
            Mistake(
                "mean",
                "this is averaged. Give the objective of each token; the training loop takes the mean.",
                lambda ratio, a, clip: clipped_surrogate(ratio, a, clip).mean(),
            ),
        ),
        hints=(
            "There are two candidates: the plain product, and that with the ratio within 1 ± ε. Which is pessimistic?",
            "`ratio.clamp(1 - clip, 1 + clip)`; multiply both by the advantage first, then take the minimum.",
        ),
    ),
)


def _standard(reward: Tensor) -> Tensor:
    """Rewards with mean 0 and standard deviation 1 over the responses: the scale taken out, wrongly."""
    centred = reward - reward.mean(-1, keepdim=True)
    return centred / centred.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-12)
