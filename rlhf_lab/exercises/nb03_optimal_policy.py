"""Exercises of notebook 03: the optimal policy."""

import math

import torch
from torch import Tensor

from rlhf_lab.exercises.checking import Case, Exercise, Mistake


def _double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


_REF = _double([[0.5, 0.3, 0.2], [0.1, 0.7, 0.2]]).log()
_REWARD = _double([[0.0, 1.0, 2.0], [-1.0, 0.5, 1.5]])
_STAR = _double([[0.2, 0.3, 0.5], [0.05, 0.35, 0.6]]).log()
_POLICY = _double([[0.6, 0.3, 0.1], [0.3, 0.3, 0.4]]).log()


def regret(log_policy: Tensor, log_star: Tensor, beta: float) -> Tensor:
    """J(π*) − J(π) of (…, K) log-probabilities, in units of reward, (…)."""
    return beta * (log_policy.exp() * (log_policy - log_star)).sum(-1)


def optimal_policy(log_ref: Tensor, reward: Tensor, beta: float) -> Tensor:
    """log π*, (…, K), at any β that a float can hold."""
    return torch.log_softmax(log_ref + reward / beta, -1)


def soft_value(log_ref: Tensor, reward: Tensor, next_value: Tensor, beta: float) -> Tensor:
    """V(s) of prefixes s, (N,), from tables over the next token, (N, V) each."""
    return beta * torch.logsumexp(log_ref + (reward + next_value) / beta, -1)


def beta_for_kl(log_ref: Tensor, reward: Tensor, budget: float) -> float:
    """The β at which KL(π*‖π_ref) is `budget` nats; log_ref and reward are (K,)."""
    low, high = 1e-4, 1e4
    for _ in range(100):
        beta = math.sqrt(low * high)
        log_star = torch.log_softmax(log_ref + reward / beta, -1)
        divergence = (log_star.exp() * (log_star - log_ref)).sum()
        if divergence > budget:
            low = beta
        else:
            high = beta
    return beta


def _bisect(log_ref: Tensor, reward: Tensor, budget: float, swapped: bool = False, flipped: bool = False) -> float:
    """`beta_for_kl` with swapped KL arguments, or with the wrong half of the interval."""
    low, high = 1e-4, 1e4
    for _ in range(100):
        beta = math.sqrt(low * high)
        log_star = torch.log_softmax(log_ref + reward / beta, -1)
        one, other = (log_ref, log_star) if swapped else (log_star, log_ref)
        divergence = (one.exp() * (one - other)).sum()
        if (divergence > budget) != flipped:
            low = beta
        else:
            high = beta
    return beta


def _underflowed(got: object, want: Tensor) -> str:
    """A remark if `got` is wrong only where the probability rounds to 0 in float64."""
    if not isinstance(got, Tensor) or got.shape != want.shape:
        return ""
    gone = (want < math.log(torch.finfo(want.dtype).smallest_normal * torch.finfo(want.dtype).eps)) & (got == -math.inf)
    if not gone.any() or not torch.allclose(got[~gone], want[~gone], rtol=1e-5, atol=1e-7):
        return ""
    return (
        "Where a probability rounds to 0, your result has −∞ for its logarithm. As a probability this is correct up to "
        "rounding. log_softmax also gives the logarithm."
    )


def _naive(log_ref: Tensor, reward: Tensor, beta: float) -> Tensor:
    tilted = log_ref.exp() * torch.exp(reward / beta)
    return torch.log(tilted / tilted.sum(-1, keepdim=True))


_TREE = {
    "log_ref": _double([[0.6, 0.4], [0.3, 0.7]]).log(),
    "reward": _double([[0.5, -0.5], [0.0, 1.0]]),
    "next_value": _double([[1.0, 2.0], [0.5, -0.25]]),
    "beta": 0.5,
}

EXERCISES = (
    Exercise(
        key="nb03.regret",
        title="The regret of a policy",
        objective="write the regret of a policy as β times a KL",
        difficulty=1,
        minutes=4,
        cases=(Case("two prompts", {"log_policy": _POLICY, "log_star": _STAR, "beta": 0.5}),),
        solution=regret,
        mistakes=(
            Mistake(
                "missing β",
                "this is in nats and not in units of reward. The regret is β times the KL.",
                lambda log_policy, log_star, beta: (log_policy.exp() * (log_policy - log_star)).sum(-1),
            ),
            Mistake(
                "swapped KL",
                "this is β KL(π*‖π). J is a mean under π, so this KL is an expectation under π too.",
                lambda log_policy, log_star, beta: beta * (log_star.exp() * (log_star - log_policy)).sum(-1),
            ),
            Mistake(
                "sign",
                "the sign is wrong. No policy is better than π*, so a regret is never negative.",
                lambda log_policy, log_star, beta: beta * (log_policy.exp() * (log_star - log_policy)).sum(-1),
            ),
            Mistake(
                "mean for sum",
                "this is a mean over the responses instead of a sum. The probabilities are the weights already.",
                lambda log_policy, log_star, beta: beta * (log_policy.exp() * (log_policy - log_star)).mean(-1),
            ),
            Mistake(
                "wrong axis",
                "the sum is over the prompts. The responses are the last axis, and every prompt has its own regret.",
                lambda log_policy, log_star, beta: beta * (log_policy.exp() * (log_policy - log_star)).sum(0),
            ),
            Mistake(
                "divided by β",
                "this is divided by β instead of multiplied. β is the KL penalty per nat, in units of reward.",
                lambda log_policy, log_star, beta: (log_policy.exp() * (log_policy - log_star)).sum(-1) / beta,
            ),
        ),
        hints=(
            "The derivation ends with J(π) = β log Z − β KL(π‖π*). What is J(π*) − J(π)?",
            "It is β times Σ_y π(y) (log π(y) − log π*(y)), with the sum over the last axis.",
        ),
    ),
    Exercise(
        key="nb03.optimal_policy",
        title="π* at any β",
        objective="write π* without overflow for β → 0, where exp(r/β) is too large for a float",
        difficulty=2,
        minutes=5,
        cases=(
            Case("two prompts", {"log_ref": _REF, "reward": _REWARD, "beta": 0.5}),
            Case("a β of 0.001", {"log_ref": _REF, "reward": _REWARD, "beta": 0.001}),
        ),
        solution=optimal_policy,
        also=_underflowed,
        mistakes=(
            Mistake(
                "overflow",
                "this is correct on paper, but exp(r/β) overflows at a small β and ∞/∞ is not a number. Stay in "
                "logarithms.",
                _naive,
            ),
            Mistake(
                "sign",
                "the reward has the wrong sign. This policy prefers the worst response.",
                lambda log_ref, reward, beta: torch.log_softmax(log_ref - reward / beta, -1),
            ),
            Mistake(
                "multiplied by β",
                "the reward is multiplied by β. A large β would then move the policy further from the reference.",
                lambda log_ref, reward, beta: torch.log_softmax(log_ref + reward * beta, -1),
            ),
            Mistake(
                "missing β",
                "β is missing. The reward would have the same weight at every β.",
                lambda log_ref, reward, beta: torch.log_softmax(log_ref + reward, -1),
            ),
            Mistake(
                "missing reference",
                "the reference is missing. This is the optimum for a uniform π_ref.",
                lambda log_ref, reward, beta: torch.log_softmax(reward / beta, -1),
            ),
            Mistake(
                "missing Z",
                "the probabilities do not sum to one. log Z is missing.",
                lambda log_ref, reward, beta: log_ref + reward / beta,
            ),
            Mistake(
                "wrong axis",
                "this is normalised over the prompts, but Z(x) is a sum over responses, the last axis.",
                lambda log_ref, reward, beta: torch.log_softmax(log_ref + reward / beta, 0),
            ),
            Mistake(
                "probabilities",
                "these are probabilities, but log-probabilities are required.",
                lambda log_ref, reward, beta: torch.softmax(log_ref + reward / beta, -1),
            ),
        ),
        hints=(
            "Take the logarithm of π_ref exp(r/β)/Z. Which two of the three terms can you write down immediately?",
            "log Z is the logsumexp of the other two over the responses. `torch.log_softmax` subtracts it.",
        ),
    ),
    Exercise(
        key="nb03.soft_value",
        title="The soft value of a prefix",
        objective="compute the value of a prefix from those of its children",
        difficulty=2,
        minutes=6,
        cases=(
            Case("two prefixes, two next tokens each", _TREE),
            Case("the same at a β of 0.001", {**_TREE, "beta": 0.001}),
        ),
        solution=soft_value,
        mistakes=(
            Mistake(
                "overflow",
                "this is correct on paper, but exp(r/β) overflows at a small β. Use torch.logsumexp.",
                lambda log_ref, reward, next_value, beta: (
                    beta * (log_ref.exp() * torch.exp((reward + next_value) / beta)).sum(-1).log()
                ),
            ),
            Mistake(
                "hard maximum",
                "this is a hard maximum, the value for β → 0, where there is no KL penalty.",
                lambda log_ref, reward, next_value, beta: (reward + next_value).amax(-1),
            ),
            Mistake(
                "plain mean",
                "this is the mean under the reference, the value for β → ∞, where the policy stays at the reference.",
                lambda log_ref, reward, next_value, beta: (log_ref.exp() * (reward + next_value)).sum(-1),
            ),
            Mistake(
                "missing reference",
                "the reference is missing. Every next token has the same weight.",
                lambda log_ref, reward, next_value, beta: beta * torch.logsumexp((reward + next_value) / beta, -1),
            ),
            Mistake(
                "no later values",
                "the children's values are missing. This value includes only one token.",
                lambda log_ref, reward, next_value, beta: beta * torch.logsumexp(log_ref + reward / beta, -1),
            ),
            Mistake(
                "missing outer β",
                "this is V/β. It is in nats, and V is in units of reward.",
                lambda log_ref, reward, next_value, beta: torch.logsumexp(log_ref + (reward + next_value) / beta, -1),
            ),
            Mistake(
                "β under the reward alone",
                "β divides the reward alone, but the later value is reward too and must be divided by β as well.",
                lambda log_ref, reward, next_value, beta: (
                    beta * torch.logsumexp(log_ref + reward / beta + next_value, -1)
                ),
            ),
            Mistake(
                "wrong axis",
                "the sum is over the prefixes, but next tokens are the last axis.",
                lambda log_ref, reward, next_value, beta: (
                    beta * torch.logsumexp(log_ref + (reward + next_value) / beta, 0)
                ),
            ),
        ),
        hints=(
            "It is β log Z of a bandit whose responses are the next tokens. What is the total reward of a next token?",
            "It is r(s, a) + V(s·a). Write β log Σ_a π_ref(a|s) exp(that/β) with `torch.logsumexp`.",
        ),
    ),
    Exercise(
        key="nb03.beta_for_kl",
        title="Which β gives a certain KL?",
        objective="find the β that corresponds to a KL budget, before training",
        difficulty=3,
        minutes=10,
        cases=(
            Case("a small budget", {"log_ref": _REF[0], "reward": _REWARD[0], "budget": 0.1}),
            Case("a large budget", {"log_ref": _REF[1], "reward": _REWARD[1], "budget": 0.9}),
        ),
        solution=beta_for_kl,
        relative=1e-3,
        mistakes=(
            Mistake(
                "swapped KL",
                "this is the β for KL(π_ref‖π*), but the objective has KL(π*‖π_ref).",
                lambda log_ref, reward, budget: _bisect(log_ref, reward, budget, swapped=True),
            ),
            Mistake(
                "the wrong half",
                "the search ends at an end of the interval. A larger β gives a smaller KL, so increase β if the KL is "
                "too large.",
                lambda log_ref, reward, budget: _bisect(log_ref, reward, budget, flipped=True),
            ),
            Mistake(
                "1/β",
                "this is 1/β, but the exponent is r/β.",
                lambda log_ref, reward, budget: 1 / beta_for_kl(log_ref, reward, budget),
            ),
            Mistake(
                "the approximation",
                "√(Var_ref(r)/(2·budget)) is only the approximation for large β. Find the exact value.",
                lambda log_ref, reward, budget: math.sqrt(
                    float((log_ref.exp() * (reward - (log_ref.exp() * reward).sum()).square()).sum()) / 2 / budget
                ),
            ),
        ),
        hints=(
            "KL(π*‖π_ref) falls from −log π_ref(best) to 0 as β rises. An equation with a falling function can be "
            "solved by bisection.",
            "Start with low = 1e-4 and high = 1e4. Try β = √(low · high). If its KL exceeds the budget, it is the new "
            "low, otherwise the new high. Repeat this a hundred times.",
        ),
    ),
)
