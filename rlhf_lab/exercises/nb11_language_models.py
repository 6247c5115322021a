"""Exercises of notebook 11: evaluation of a language model that was trained on a reward model."""

import torch
from torch import Tensor

from rlhf_lab.exercises.checking import Case, Exercise, Mistake


def _double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def response_kl(log_policy: Tensor, log_ref: Tensor, mask: Tensor) -> Tensor:
    """KL(π‖π_ref) of whole responses in nats, a single number, from the log-probabilities of drawn tokens (B, G, T)."""
    return ((log_policy - log_ref) * mask).sum(-1).mean()


def error_over_prompts(scores: Tensor) -> Tensor:
    """Standard error of the mean of `scores` (B, G), for sampled prompts with G sampled responses each."""
    means = scores.mean(1)
    return means.std() / len(means) ** 0.5  # type: ignore[no-any-return]


def gold_under_tilt(proxy: Tensor, gold: Tensor, beta: float) -> Tensor:
    """E[gold] under π_r ∝ π_ref exp(proxy/β), a mean over prompts, from samples of π_ref; all of shape (B, G)."""
    weights = (proxy / beta).softmax(-1)
    return (weights * gold).sum(-1).mean()


_TOKENS = {
    "log_policy": _double([[[-0.5, -1.0, -0.2], [-0.7, -0.4, -9.0]], [[-1.5, -7.0, -8.0], [-0.3, -0.6, -0.1]]]),
    "log_ref": _double([[[-1.0, -1.2, -0.9], [-0.6, -1.1, -2.0]], [[-2.5, -3.0, -1.0], [-0.5, -0.4, -1.1]]]),
    "mask": torch.tensor([[[True, True, True], [True, True, False]], [[True, False, False], [True, True, True]]]),
}
_ONE = {
    "log_policy": _double([[[-0.4, -0.8, -5.0, -5.0], [-0.1, -0.3, -0.9, -0.2], [-2.0, -6.0, -6.0, -6.0]]]),
    "log_ref": _double([[[-0.9, -0.7, -1.0, -2.0], [-0.8, -0.9, -0.4, -0.6], [-1.0, -3.0, -1.0, -1.0]]]),
    "mask": torch.tensor([[[True, True, False, False], [True] * 4, [True, False, False, False]]]),
}
_SCORES = _double([[0.9, 0.7, 0.8, 0.6], [-0.5, -0.2, -0.6, -0.1], [0.3, 0.1, 0.4, 0.2]])
_TILT = {
    "proxy": _double([[2.0, 0.5, -1.0, 0.0], [1.0, 1.5, -0.5, 3.0]]),
    "gold": _double([[0.8, 0.9, -0.7, 0.1], [0.2, 0.6, -0.4, -0.3]]),
}


def _weighted(weights: Tensor, gold: Tensor) -> Tensor:
    return (weights * gold).sum(-1).mean()


EXERCISES = (
    Exercise(
        key="nb11.response_kl",
        title="KL of whole responses",
        objective="estimate a language model's KL to its reference from the tokens that it drew",
        difficulty=1,
        minutes=5,
        cases=(Case("two prompts, two responses each", _TOKENS), Case("one prompt, three responses", _ONE)),
        solution=response_kl,
        mistakes=(
            Mistake(
                "no mask",
                "padding is included here, but places where the mask is False are not tokens.",
                lambda p, q, m: (p - q).sum(-1).mean(),
            ),
            Mistake(
                "mean over tokens",
                "this is the KL of a token. A response's log-ratio is the sum over its tokens, not their mean.",
                lambda p, q, m: (((p - q) * m).sum(-1) / m.sum(-1)).mean(),
            ),
            Mistake(
                "mean over all tokens",
                "this is the mean over all tokens of all responses. Take the sum over a response and the mean over "
                "responses.",
                lambda p, q, m: (p - q)[m].mean(),
            ),
            Mistake(
                "sign",
                "the sign is wrong: the policy drew the tokens, so its log-probability comes first.",
                lambda p, q, m: ((q - p) * m).sum(-1).mean(),
            ),
            Mistake(
                "weighted twice",
                "the tokens were drawn from the policy already; weighting them by its probability counts it twice.",
                lambda p, q, m: (p.exp() * (p - q) * m).sum(-1).mean(),
            ),
            Mistake(
                "sum over responses",
                "this grows with the number of responses: the KL is a mean over them.",
                lambda p, q, m: ((p - q) * m).sum(),
            ),
        ),
        hints=(
            "log π(y|x) is a sum over the tokens of y. Which places of the (B, G, T) tensors are tokens?",
            "Multiply the difference of the log-probabilities by the mask, sum over T, and take the mean over the "
            "rest.",
        ),
    ),
    Exercise(
        key="nb11.error_over_prompts",
        title="The error bar that knows about prompts",
        objective="give a mean over prompts and responses its standard error",
        difficulty=2,
        minutes=5,
        cases=(
            Case("three prompts, four responses each", {"scores": _SCORES}),
            Case("four prompts, two responses each", {"scores": _SCORES.T[:, :2] + _double([[0.0, 0.2]])}),
        ),
        solution=error_over_prompts,
        mistakes=(
            Mistake(
                "all independent",
                "all responses are taken as independent. Those to one prompt are alike, so the bar is too short: a "
                "prompt with all its responses is one draw.",
                lambda s: s.std() / s.numel() ** 0.5,
            ),
            Mistake(
                "deviation",
                "this is the standard deviation over prompts. The error of their mean is smaller and shrinks with more "
                "prompts.",
                lambda s: s.mean(1).std(),
            ),
            Mistake(
                "over responses",
                "the axes are swapped: average over the responses of a prompt first, then over prompts.",
                lambda s: s.mean(0).std() / s.shape[1] ** 0.5,
            ),
            Mistake(
                "within prompts",
                "this is the spread within prompts. It does not include the differences between prompts.",
                lambda s: s.std(1).mean() / s.shape[1] ** 0.5,
            ),
            Mistake(
                "population",
                "the deviation is divided by B instead of B − 1: the mean was estimated from the same prompts.",
                lambda s: s.mean(1).std(correction=0) / len(s) ** 0.5,
            ),
        ),
        hints=(
            "Which samples change when the experiment is repeated: responses, or prompts too?",
            "Compute one number for each prompt (the mean of its responses), then the standard error of these B "
            "numbers.",
        ),
    ),
    Exercise(
        key="nb11.gold_under_tilt",
        title="What the proxy's optimum is worth",
        objective="estimate the gold reward of the optimal policy of a reward model",
        difficulty=2,
        minutes=8,
        cases=(
            Case("two prompts, four samples, β = 1", _TILT | {"beta": 1.0}),
            Case("the same at β = 0.4", _TILT | {"beta": 0.4}),
        ),
        solution=gold_under_tilt,
        mistakes=(
            Mistake(
                "tilted by gold",
                "the weights are those of the gold reward, but the policy is optimised for the proxy. Gold is used for "
                "evaluation only.",
                lambda p, g, b: _weighted((g / b).softmax(-1), g),
            ),
            Mistake(
                "judged by the proxy",
                "this is the proxy reward of the optimal policy of the proxy, not its gold reward.",
                lambda p, g, b: _weighted((p / b).softmax(-1), p),
            ),
            Mistake(
                "wrong axis",
                "the weights sum to one over prompts. Z belongs to a prompt: normalise over its samples.",
                lambda p, g, b: _weighted((p / b).softmax(0), g),
            ),
            Mistake(
                "one Z for all",
                "this has one Z for all prompts, which gives a prompt with high rewards more weight than another.",
                lambda p, g, b: ((p / b).flatten().softmax(0) * g.flatten()).sum(),
            ),
            Mistake(
                "times beta",
                "the reward is multiplied by β, but a small β must tilt more, not less.",
                lambda p, g, b: _weighted((p * b).softmax(-1), g),
            ),
            Mistake(
                "no beta",
                "β is missing: this is the optimum at β = 1.",
                lambda p, g, b: _weighted(p.softmax(-1), g),
            ),
            Mistake(
                "not normalised",
                "the weights are not divided by their sum, which estimates G · Z(x).",
                lambda p, g, b: ((p / b).exp() * g).mean(),
            ),
        ),
        hints=(
            "The samples came from π_ref. By which factor must each be weighted to stand for π_r, and what is divided "
            "out?",
            "Weights exp(proxy/β), normalised within a prompt: a softmax over its G samples. Then weigh the gold.",
        ),
    ),
)
