"""Exercises of notebook 11: evaluation of a language model that was trained on a reward model."""

from typing import Any

import torch
from torch import Tensor

from rlhf_lab import evaluation
from rlhf_lab.derivations.optimal_policy import regret_is_a_kl
from rlhf_lab.exercises.checking import Case, Exercise, GeneratorSeed, Mistake, Task, double
from rlhf_lab.exercises.derive import NextLine
from rlhf_lab.exercises.edits import wrong_answers
from rlhf_lab.exercises.predictions import Prediction
from rlhf_lab.exercises.training_loops import TrainingLoop
from rlhf_lab.training import seeded
from rlhf_lab.worlds import bandit


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
    "log_policy": double([[[-0.5, -1.0, -0.2], [-0.7, -0.4, -9.0]], [[-1.5, -7.0, -8.0], [-0.3, -0.6, -0.1]]]),
    "log_ref": double([[[-1.0, -1.2, -0.9], [-0.6, -1.1, -2.0]], [[-2.5, -3.0, -1.0], [-0.5, -0.4, -1.1]]]),
    "mask": torch.tensor([[[True, True, True], [True, True, False]], [[True, False, False], [True, True, True]]]),
}
_ONE = {
    "log_policy": double([[[-0.4, -0.8, -5.0, -5.0], [-0.1, -0.3, -0.9, -0.2], [-2.0, -6.0, -6.0, -6.0]]]),
    "log_ref": double([[[-0.9, -0.7, -1.0, -2.0], [-0.8, -0.9, -0.4, -0.6], [-1.0, -3.0, -1.0, -1.0]]]),
    "mask": torch.tensor([[[True, True, False, False], [True] * 4, [True, False, False, False]]]),
}
_SCORES = double([[0.9, 0.7, 0.8, 0.6], [-0.5, -0.2, -0.6, -0.1], [0.3, 0.1, 0.4, 0.2]])
_TILT = {
    "proxy": double([[2.0, 0.5, -1.0, 0.0], [1.0, 1.5, -0.5, 3.0]]),
    "gold": double([[0.8, 0.9, -0.7, 0.1], [0.2, 0.6, -0.4, -0.3]]),
}


def _weighted(weights: Tensor, gold: Tensor) -> Tensor:
    return (weights * gold).sum(-1).mean()


def regret_as_kl(w: Any) -> Any:
    """J(π*) − J(π) = β KL(π‖π*), (X,)."""
    return w.beta * (w.policy * (w.log_policy - w.log_star)).sum(-1)


def train_reward_head(head: Tensor, states: Tensor, lengths: Tensor, steps: int, learning_rate: float) -> list[float]:
    """Bradley–Terry fit of a linear reward; states (N, 2, T, D), chosen first."""
    optimizer = torch.optim.SGD([head], lr=learning_rate)
    last = (lengths - 1)[..., None, None].expand(-1, -1, 1, states.shape[-1])
    final_states = states.gather(2, last).squeeze(2)
    losses = []
    for _ in range(steps):
        reward = final_states @ head
        loss = -torch.nn.functional.logsigmoid(reward[:, 0] - reward[:, 1]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def train_on_filtered(
    logits: Tensor,
    proxy: Tensor,
    samples: int,
    share: float,
    steps: int,
    learning_rate: float,
    generator: torch.Generator,
) -> list[float]:
    """Imitate the given share of the samples, those with the highest proxy rewards."""
    y = torch.multinomial(logits.detach().softmax(-1), samples, True, generator=generator)
    score = proxy.gather(-1, y)
    passes = score >= score.quantile(1 - share, dim=-1, keepdim=True)
    optimizer = torch.optim.SGD([logits], lr=learning_rate)
    losses = []
    for _ in range(steps):
        log_prob = logits.log_softmax(-1).gather(-1, y)
        loss = -(log_prob * passes).sum() / passes.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


_GOLD_HEAD = double([1.0, -0.5, 0.8])
_LOG_REF = bandit.lecture().log_ref()[:1].expand(4, -1)
_PROXY = bandit.lecture().rewards()[:1] + 3 * torch.arange(4, dtype=torch.float64)[:, None]
"""A proxy reward of four prompts. A reward is known up to a function of the prompt, here 0, 3, 6 and 9."""


def _head_arguments() -> dict[str, object]:
    generator, number, longest = seeded(0), 2000, 5
    states = torch.randn(number, 2, longest, 3, dtype=torch.float64, generator=generator)
    lengths = torch.randint(2, longest + 1, (number, 2), generator=generator)
    rows = torch.arange(number)
    one, two = (states[rows, i, lengths[:, i] - 1] @ _GOLD_HEAD for i in (0, 1))
    flip = torch.rand(number, dtype=torch.float64, generator=generator) > torch.sigmoid(one - two)
    order = torch.stack([flip.long(), 1 - flip.long()], 1)
    return {
        "head": torch.zeros(3, dtype=torch.float64, requires_grad=True),
        "states": states[rows[:, None], order],
        "lengths": lengths.gather(1, order),
        "steps": 60,
        "learning_rate": 2.0,
    }


def _filter_arguments() -> dict[str, object]:
    return {
        "logits": _LOG_REF.clone().requires_grad_(True),
        "proxy": _PROXY,
        "samples": 400,
        "share": 0.2,
        "steps": 60,
        "learning_rate": 4.0,
        "generator": GeneratorSeed(0),
    }


def _filter_kl(logits: Tensor) -> float:
    """KL from the distribution of the samples that pass, in the limit of many samples, mean over prompts."""
    order = _PROXY.argsort(-1, descending=True)
    above = _LOG_REF.exp().gather(-1, order).cumsum(-1)
    above = above - _LOG_REF.exp().gather(-1, order)  # probability of a strictly higher reward
    passes = torch.zeros_like(above, dtype=torch.bool).scatter(-1, order, above < 0.2)
    target = torch.where(passes, _LOG_REF, -torch.inf).log_softmax(-1)
    return (target.exp() * (target.clamp(min=-1e3) - logits.log_softmax(-1))).sum(-1).mean().item()


def _effective(weights: Tensor) -> float:
    """Effective samples of one prompt with these weights, (G,)."""
    [found] = evaluation.tilted_frontier(weights.log().expand(2, -1), [1.0])
    return found.effective


_ONE_HALF = torch.full((64,), 0.5 / 63, dtype=torch.float64).index_fill(0, torch.tensor([0]), 0.5)


EXERCISES: tuple[Task, ...] = (
    Prediction(
        key="nb11.effective_samples",
        title="Effective samples",
        objective="predict the effective sample size of unequal weights",
        difficulty=1,
        minutes=3,
        question=(
            "An estimate uses 64 samples. After weighting, one sample has half of the weight, and the other 63 share "
            "the other half equally. How many effective samples, $(\\sum w)^2/\\sum w^2$, does the estimate have?"
        ),
        truth=lambda: _effective(_ONE_HALF),
        explanation=(
            "The sum of the squared weights is 0.25 + 63 · (0.5/63)² = 0.254, and its reciprocal is {truth}. The other "
            "63 samples have nearly no effect on it."
        ),
        mistakes=(
            Mistake(
                "all samples",
                "this would be the number if all weights were equal.",
                lambda: float(len(_ONE_HALF)),
            ),
            Mistake(
                "half of the samples",
                "half of the weight is on one sample, but the number depends on the squares of the weights.",
                lambda: len(_ONE_HALF) / 2,
            ),
            Mistake(
                "reciprocal of the maximum",
                "this is one divided by the largest weight. Its square is needed, and the other weights too.",
                lambda: 1 / _ONE_HALF.max().item(),
            ),
        ),
    ),
    NextLine(
        key="nb11.regret_as_kl",
        title="The regret without Z",
        objective="write the regret so that it can be estimated without the partition function",
        difficulty=1,
        minutes=4,
        derivation=regret_is_a_kl,
        line=2,
        quantities=("policy", "log_policy", "log_star", "beta"),
        solution=regret_as_kl,
        mistakes=wrong_answers(
            regret_as_kl,
            {
                "sign": lambda w: w.beta * (w.policy * (w.log_star - w.log_policy)).sum(-1),
                "log-ratio not averaged": lambda w: w.beta * (w.log_policy - w.log_star).sum(-1),
                "divided by beta": lambda w: (w.policy * (w.log_policy - w.log_star)).sum(-1) / w.beta,
            },
            {
                "sign": "the sign is wrong. A regret is never negative.",
                "log-ratio not averaged": "the log-ratio is summed over all responses without their probabilities "
                "under π.",
                "divided by beta": "the KL is divided by β, but nats become reward by multiplying with β.",
            },
        ),
        hints=(
            "β log Z occurs twice with opposite signs. Which term remains?",
            "The remaining term is β KL(π‖π*), the mean of log π − log π* under π, with one number for each prompt.",
        ),
    ),
    TrainingLoop(
        key="nb11.train_reward_head",
        title="A reward model on token states",
        objective="fit a reward model to pairs of padded responses",
        difficulty=2,
        minutes=10,
        arguments=_head_arguments,
        distance=lambda head: (head - _GOLD_HEAD).norm().item(),
        quantity="the distance to the gold weights",
        solution=train_reward_head,
        mistakes=wrong_answers(
            train_reward_head,
            {
                "padding": "states.gather(2, last).squeeze(2) → states[:, :, -1]",
                "first token": "states.gather(2, last).squeeze(2) → states[:, :, 0]",
                "mean over positions": "states.gather(2, last).squeeze(2) → states.mean(2)",
                "swapped pair": "reward[:, 0] - reward[:, 1] → reward[:, 1] - reward[:, 0]",
                "no logarithm": "torch.nn.functional.logsigmoid → torch.sigmoid",
                "gradients not reset": "optimizer.zero_grad() → pass",
            },
            {
                "padding": "the reward is read at the last position, which is padding for most responses.",
                "first token": "the reward is read at the first token, before the response is complete.",
                "mean over positions": "the reward is a mean over all positions, padding included.",
                "swapped pair": "chosen and rejected are swapped.",
                "no logarithm": "the loss contains the probability of the label instead of its logarithm.",
                "gradients not reset": "gradients add up over the steps, because they are not reset to zero.",
            },
            pairs=(("padding", "swapped pair"), ("swapped pair", "no logarithm")),
        ),
        hints=(
            "A reward model gives one number for a response, at its last token. At which index of T is it?",
            "`states[rows, side, lengths[:, side] - 1]` selects these states, with `rows = torch.arange(N)` and side 0 "
            "for the chosen and 1 for the rejected responses. Their product with `head` is the reward.",
        ),
    ),
    TrainingLoop(
        key="nb11.train_on_filtered",
        title="Prompts that are never trained",
        objective="find a bug in a reward filter",
        difficulty=2,
        minutes=8,
        arguments=_filter_arguments,
        distance=_filter_kl,
        quantity="the KL from the filtered distribution",
        solution=train_on_filtered,
        bug="one threshold",
        mistakes=wrong_answers(
            train_on_filtered,
            {
                "one threshold": "1 - share, dim=-1, keepdim=True → 1 - share",
                "lowest": "score = proxy → score = -proxy",
                "no filter": "score >= score.quantile(1 - share, dim=-1, keepdim=True) → torch.ones_like(score)",
                "probabilities": "log_prob * passes → log_prob.exp() * passes",
                "gradients not reset": "optimizer.zero_grad() → pass",
            },
            {
                "one threshold": "all prompts have the same threshold, but a learned reward is only determined up to a "
                "function of the prompt.",
                "lowest": "the samples with the lowest rewards pass.",
                "no filter": "all samples pass.",
                "probabilities": "the loss contains probabilities instead of their logarithms.",
                "gradients not reset": "gradients add up over the steps, because they are not reset to zero.",
            },
            pairs=(("one threshold", "lowest"), ("one threshold", "gradients not reset")),
        ),
        hints=(
            "Count the samples that pass for each prompt. The rewards of different prompts may differ by any constant.",
            "The quantile must be computed for each prompt: `score.quantile(1 - share, dim=-1, keepdim=True)`.",
        ),
    ),
    Exercise(
        key="nb11.response_kl",
        title="KL of whole responses",
        objective="estimate a language model's KL to its reference from the tokens that it sampled",
        difficulty=1,
        minutes=5,
        cases=(Case("two prompts, two responses each", _TOKENS), Case("one prompt, three responses", _ONE)),
        solution=response_kl,
        mistakes=wrong_answers(
            response_kl,
            {
                "no mask": lambda p, q, m: (p - q).sum(-1).mean(),
                "mean over tokens": lambda p, q, m: (((p - q) * m).sum(-1) / m.sum(-1)).mean(),
                "mean over all tokens": lambda p, q, m: (p - q)[m].mean(),
                "sign": lambda p, q, m: ((q - p) * m).sum(-1).mean(),
                "weighted twice": lambda p, q, m: (p.exp() * (p - q) * m).sum(-1).mean(),
                "sum over responses": lambda p, q, m: ((p - q) * m).sum(),
            },
            {
                "no mask": "padding is included here, but places where the mask is False are not tokens.",
                "mean over tokens": "this is the KL of a token. A response's log-ratio is the sum over its tokens, not "
                "their mean.",
                "mean over all tokens": "this is the mean over all tokens of all responses. Take the sum over a "
                "response and the mean over responses.",
                "sign": "the sign is wrong: the policy drew the tokens, so its log-probability comes first.",
                "weighted twice": "the tokens were drawn from the policy already; weighting them by its probability "
                "counts it twice.",
                "sum over responses": "this grows with the number of responses: the KL is a mean over them.",
            },
        ),
        hints=(
            "log π(y|x) is a sum over the tokens of y. Which places of the (B, G, T) tensors are tokens?",
            "Multiply the difference of the log-probabilities by the mask, sum over T, and take the mean over the "
            "rest.",
        ),
    ),
    Exercise(
        key="nb11.error_over_prompts",
        title="A standard error over prompts",
        objective="compute the standard error of a mean over prompts and responses",
        difficulty=2,
        minutes=5,
        cases=(
            Case("three prompts, four responses each", {"scores": _SCORES}),
            Case("four prompts, two responses each", {"scores": _SCORES.T[:, :2] + double([[0.0, 0.2]])}),
        ),
        solution=error_over_prompts,
        mistakes=wrong_answers(
            error_over_prompts,
            {
                "all independent": lambda s: s.std() / s.numel() ** 0.5,
                "deviation": lambda s: s.mean(1).std(),
                "over responses": lambda s: s.mean(0).std() / s.shape[1] ** 0.5,
                "within prompts": lambda s: s.std(1).mean() / s.shape[1] ** 0.5,
                "population": lambda s: s.mean(1).std(correction=0) / len(s) ** 0.5,
            },
            {
                "all independent": "all responses are taken as independent. Those to one prompt are alike, so the bar "
                "is too short: a prompt with all its responses is one draw.",
                "deviation": "this is the standard deviation over prompts. The error of their mean is smaller and "
                "shrinks with more prompts.",
                "over responses": "the axes are swapped: average over the responses of a prompt first, then over "
                "prompts.",
                "within prompts": "this is the spread within prompts. It does not include the differences between "
                "prompts.",
                "population": "the deviation is divided by B instead of B − 1: the mean was estimated from the same "
                "prompts.",
            },
        ),
        hints=(
            "Which samples change when the experiment is repeated: responses, or prompts too?",
            "Compute one number for each prompt (the mean of its responses), then the standard error of these B "
            "numbers.",
        ),
    ),
    Exercise(
        key="nb11.gold_under_tilt",
        title="The gold reward of the proxy's optimal policy",
        objective="estimate the gold reward of the optimal policy of a reward model",
        difficulty=2,
        minutes=8,
        cases=(
            Case("two prompts, four samples, β = 1", _TILT | {"beta": 1.0}),
            Case("the same at β = 0.4", _TILT | {"beta": 0.4}),
        ),
        solution=gold_under_tilt,
        mistakes=wrong_answers(
            gold_under_tilt,
            {
                "tilted by gold": lambda p, g, b: _weighted((g / b).softmax(-1), g),
                "judged by the proxy": lambda p, g, b: _weighted((p / b).softmax(-1), p),
                "wrong axis": lambda p, g, b: _weighted((p / b).softmax(0), g),
                "one Z for all": lambda p, g, b: ((p / b).flatten().softmax(0) * g.flatten()).sum(),
                "times beta": lambda p, g, b: _weighted((p * b).softmax(-1), g),
                "no beta": lambda p, g, b: _weighted(p.softmax(-1), g),
                "not normalised": lambda p, g, b: ((p / b).exp() * g).mean(),
            },
            {
                "tilted by gold": "the weights are those of the gold reward, but the policy is optimised for the "
                "proxy. Gold is used for evaluation only.",
                "judged by the proxy": "this is the proxy reward of the optimal policy of the proxy, not its gold "
                "reward.",
                "wrong axis": "the weights sum to one over prompts. Z belongs to a prompt: normalise over its samples.",
                "one Z for all": "this has one Z for all prompts, which gives a prompt with high rewards more weight "
                "than another.",
                "times beta": "the reward is multiplied by β, but a small β must tilt more, not less.",
                "no beta": "β is missing: this is the optimum at β = 1.",
                "not normalised": "the weights are not divided by their sum, which estimates G · Z(x).",
            },
        ),
        hints=(
            "The samples came from π_ref. By which factor must each be weighted to stand for π_r, and what is divided "
            "out?",
            "Weights exp(proxy/β), normalised within a prompt: a softmax over its G samples. Then weigh the gold.",
        ),
    ),
)
