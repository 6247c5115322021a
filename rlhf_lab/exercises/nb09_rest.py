"""Exercises of notebook 09: ReST, RAFT and best-of-n."""

import torch
from torch import Tensor

from rlhf_lab.exercises.checking import Case, Exercise, Mistake


def _double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def improve_loss(score: Tensor, log_prob: Tensor, threshold: float) -> Tensor:
    """J(θ) of an Improve step with behaviour cloning, over B prompts with G samples each: a single number."""
    passes = (score > threshold).to(log_prob.dtype)
    return -(passes * log_prob).mean()


def filter_limit(log_ref: Tensor, reward: Tensor, threshold: float) -> Tensor:
    """The limit (X, K) of behaviour cloning on the samples that pass the filter, as probabilities."""
    passing = log_ref.exp() * (reward > threshold)
    return passing / passing.sum(-1, keepdim=True)


def best_of_n(p_ref: Tensor, reward: Tensor, n: int) -> Tensor:
    """The probabilities (K,) of the best of n draws; all rewards differ."""
    upto = (p_ref * (reward[None, :] <= reward[:, None])).sum(-1)
    return upto**n - (upto - p_ref) ** n


def least_regret(log_ref: Tensor, reward: Tensor, beta: float) -> float:
    """The minimum regret at β over all thresholds, for a single prompt, (K,)."""
    log_star = (log_ref + reward / beta).log_softmax(-1)
    regrets = []
    for lowest in reward:  # the lowest reward that passes
        log_tau = torch.where(reward >= lowest, log_ref, -torch.inf).log_softmax(-1)
        p = log_tau.exp()
        terms = torch.where(p > 0, p * (log_tau - log_star), 0.0)
        regrets.append(beta * terms.sum().item())
    return min(regrets)


def _limit(log_ref: Tensor, passes: Tensor, axis: int = -1) -> Tensor:
    passing = log_ref.exp() * passes
    return passing / passing.sum(axis, keepdim=True).clamp(min=1e-12)


def _cdf(p_ref: Tensor, reward: Tensor) -> Tensor:
    return (p_ref * (reward[None, :] <= reward[:, None])).sum(-1)


def _regrets(log_ref: Tensor, reward: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Regret and expected reward of every threshold, from the one that passes every response, (K,) each."""
    log_star = (log_ref + reward / beta).log_softmax(-1)
    regrets, gains = [], []
    for lowest in reward.sort().values:
        p = _limit(log_ref, reward >= lowest)
        regrets.append(beta * (torch.special.xlogy(p, p) - p * log_star).sum())
        gains.append((p * reward).sum())
    return torch.stack(regrets), torch.stack(gains)


def _forward(log_ref: Tensor, reward: Tensor, beta: float) -> float:
    """The minimum of β KL(π*‖π_τ), which is finite only if every response passes."""
    star = (log_ref + reward / beta).softmax(-1)
    return beta * (star * (star.log() - log_ref)).sum().item()


_SAMPLES = {
    "score": _double([[0.2, 0.7, 0.9], [0.7, 0.1, 0.95]]),
    "log_prob": _double([[-0.5, -1.5, -2.0], [-1.0, -0.2, -3.0]]),
    "threshold": 0.7,
}
_TWO = {
    "log_ref": _double([[0.4, 0.3, 0.2, 0.1], [0.1, 0.45, 0.15, 0.3]]).log(),
    "reward": _double([[-0.5, 0.0, 1.0, 1.5], [0.5, 0.0, 1.5, -1.0]]),
}
_ONE = {"log_ref": _double([0.4, 0.3, 0.2, 0.1]).log(), "reward": _double([0.5, -1.0, 1.5, 1.0])}

EXERCISES = (
    Exercise(
        key="nb09.improve_loss",
        title="The loss of an Improve step",
        objective="write the slide's J(θ) as code, with its filter and its expectation over the samples of the Grow "
        "step",
        difficulty=1,
        minutes=5,
        cases=(
            Case("two prompts with three samples each, two of them exactly at τ = 0.7", _SAMPLES),
            Case("the same at τ = 0.15", _SAMPLES | {"threshold": 0.15}),
        ),
        solution=improve_loss,
        differentiate=("log_prob",),
        compare="both",
        mistakes=(
            Mistake(
                "not strict",
                "a score equal to τ passes here. The slide's filter is 1[R > τ], a strict inequality.",
                lambda s, lp, t: -((s >= t) * lp).mean(),
            ),
            Mistake(
                "inverted filter",
                "the filter is inverted. F is 1 above the threshold.",
                lambda s, lp, t: -((s <= t) * lp).mean(),
            ),
            Mistake(
                "sign",
                "the minus sign is missing. The loss of behaviour cloning is −log π_θ. Minimising yours would lower "
                "the probability of the data.",
                lambda s, lp, t: ((s > t) * lp).mean(),
            ),
            Mistake(
                "mean over what passed",
                "this is the mean over the samples that pass. The slide's expectation is over all samples of the Grow "
                "step, and F is inside it.",
                lambda s, lp, t: -lp[s > t].mean(),
            ),
            Mistake(
                "sum for mean",
                "this is the sum over the samples, but the slide has an expectation, which is the mean.",
                lambda s, lp, t: -((s > t) * lp).sum(),
            ),
            Mistake(
                "no filter",
                "the filter is missing. This clones every sample, which gives the same policy again.",
                lambda s, lp, t: -lp.mean(),
            ),
            Mistake(
                "weighted by the score",
                "the samples that pass are weighted by their score, but F is 0 or 1.",
                lambda s, lp, t: -((s > t) * s * lp).mean(),
            ),
        ),
        hints=(
            "F is a mask. `score > threshold` gives True and False. What is False times a number?",
            "Multiply the mask by `-log_prob`, and take the mean over all samples, including those that failed.",
        ),
    ),
    Exercise(
        key="nb09.filter_limit",
        title="The limit of one filter",
        objective="write the policy to which cloning filtered samples converges, and see that it does not depend on β",
        difficulty=1,
        minutes=5,
        cases=(
            Case("two prompts, τ = 0, with a reward exactly at τ in both", _TWO | {"threshold": 0.0}),
            Case("two prompts, τ = −0.7", _TWO | {"threshold": -0.7}),
        ),
        solution=filter_limit,
        mistakes=(
            Mistake(
                "not strict",
                "a reward equal to τ passes here, but the filter is strict, r > τ.",
                lambda lr, r, t: _limit(lr, r >= t),
            ),
            Mistake(
                "not normalised",
                "the rows do not sum to one. Divide by P_ref(r > τ).",
                lambda lr, r, t: lr.exp() * (r > t),
            ),
            Mistake(
                "wrong axis",
                "this is normalised over the prompts. Each prompt has a distribution, so sum over the last axis.",
                lambda lr, r, t: _limit(lr, r > t, 0),
            ),
            Mistake(
                "no reference",
                "all responses that pass have the same probability here, but they are sampled from π_ref.",
                lambda lr, r, t: _limit(torch.zeros_like(lr), r > t),
            ),
            Mistake(
                "tilted",
                "the responses that pass are tilted by exp(r) here, but above τ the filter does not depend on the "
                "reward.",
                lambda lr, r, t: _limit(lr + r, r > t),
            ),
            Mistake(
                "inverted filter",
                "the filter is inverted. The responses above the threshold pass.",
                lambda lr, r, t: _limit(lr, r <= t),
            ),
        ),
        hints=(
            "Cloning converges to the distribution of the data. Which distribution do samples of π_ref with r > τ "
            "have?",
            "Multiply π_ref by the mask, and divide by the sum over the last axis (`keepdim=True`).",
        ),
    ),
    Exercise(
        key="nb09.best_of_n",
        title="The exact distribution of best-of-n",
        objective="write best-of-n's probabilities from the distribution function of the reward",
        difficulty=2,
        minutes=8,
        cases=(
            Case(
                "four responses, n = 3",
                {"p_ref": _double([0.4, 0.3, 0.2, 0.1]), "reward": _double([0.5, -1.0, 1.5, 1.0]), "n": 3},
            ),
            Case("two responses, n = 2", {"p_ref": _double([0.25, 0.75]), "reward": _double([2.0, -2.0]), "n": 2}),
        ),
        solution=best_of_n,
        mistakes=(
            Mistake(
                "density",
                "n π F^{n−1} is the formula for a density. In a finite set a response can be drawn twice, so these "
                "numbers do not sum to one.",
                lambda p, r, n: n * p * _cdf(p, r) ** (n - 1),
            ),
            Mistake(
                "no subtraction",
                "F^n is the chance that no draw is better than y, including the case that y was never drawn. "
                "Subtract the chance that all are worse.",
                lambda p, r, n: _cdf(p, r) ** n,
            ),
            Mistake(
                "worst of n",
                "this is the worst of n draws, because the comparison of the rewards is inverted.",
                lambda p, r, n: (1 - _cdf(p, r) + p) ** n - (1 - _cdf(p, r)) ** n,
            ),
            Mistake(
                "left in order",
                "the result is sorted by reward. Give the probabilities in the order of the input.",
                lambda p, r, n: best_of_n(p, r, n)[r.argsort()],
            ),
            Mistake(
                "one too many",
                "this is one draw too many, because n counts all draws.",
                lambda p, r, n: best_of_n(p, r, n + 1),
            ),
            Mistake(
                "tempered",
                "π_ref^n, normalised, does not depend on the reward. It is the reference at a lower temperature.",
                lambda p, r, n: p**n / (p**n).sum(),
            ),
        ),
        hints=(
            "The best of n is y if no draw is better than y, and not all draws are worse.",
            "Let F(y) = P_ref(r ≤ r(y)). All draws are at most as good as y with probability F^n, and all are worse "
            "with probability (F − π_ref)^n.",
            "`(p_ref * (reward[None, :] <= reward[:, None])).sum(-1)` is F.",
        ),
    ),
    Exercise(
        key="nb09.least_regret",
        title="The best threshold",
        objective="compute for a given β how near the filter can come to π* with the best threshold",
        difficulty=3,
        minutes=12,
        cases=(
            Case("four responses, β = 0.5", _ONE | {"beta": 0.5}),
            Case("four responses, β = 2", _ONE | {"beta": 2.0}),
        ),
        solution=least_regret,
        mistakes=(
            Mistake(
                "no beta",
                "β is missing. A KL is in nats, a regret in units of reward.",
                lambda lr, r, b: _regrets(lr, r, b)[0].min().item() / b,
            ),
            Mistake(
                "most reward",
                "this takes the threshold with the highest reward and ignores its KL.",
                lambda lr, r, b: _regrets(lr, r, b)[0][-1].item(),
            ),
            Mistake(
                "worst threshold",
                "this is the maximum regret over the thresholds, not the minimum.",
                lambda lr, r, b: _regrets(lr, r, b)[0].max().item(),
            ),
            Mistake(
                "mean over thresholds",
                "this is the mean over the thresholds. Choose the best one.",
                lambda lr, r, b: _regrets(lr, r, b)[0].mean().item(),
            ),
            Mistake(
                "swapped KL",
                "KL(π*‖π_τ) is infinite as soon as the filter drops a response. Regret is β KL(π_τ‖π*).",
                _forward,
            ),
        ),
        hints=(
            "Only K thresholds differ, one for each response that can be the lowest one to pass.",
            "Regret is β KL(π_τ‖π*), with π* the softmax of log π_ref + r/β. Where π_τ is zero, its term is zero.",
            "`torch.special.xlogy(p, p)` is p log p with 0 at p = 0.",
        ),
    ),
)
