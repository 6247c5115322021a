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
        spent = (log_star.exp() * (log_star - log_ref)).sum()
        if spent > budget:
            low = beta
        else:
            high = beta
    return beta


def _bisect(log_ref: Tensor, reward: Tensor, budget: float, turned: bool = False, flipped: bool = False) -> float:
    """`beta_for_kl` with the KL turned round, or with the halves taken the wrong way."""
    low, high = 1e-4, 1e4
    for _ in range(100):
        beta = math.sqrt(low * high)
        log_star = torch.log_softmax(log_ref + reward / beta, -1)
        one, other = (log_ref, log_star) if turned else (log_star, log_ref)
        spent = (one.exp() * (one - other)).sum()
        if (spent > budget) != flipped:
            low = beta
        else:
            high = beta
    return beta


def _underflowed(got: object, want: Tensor) -> str:
    """Whether `got` is right but for log-probabilities so low that the probability itself is 0 in float64."""
    if not isinstance(got, Tensor) or got.shape != want.shape:
        return ""
    gone = (want < math.log(torch.finfo(want.dtype).smallest_normal * torch.finfo(want.dtype).eps)) & (got == -math.inf)
    if not gone.any() or not torch.allclose(got[~gone], want[~gone], rtol=1e-5, atol=1e-7):
        return ""
    return (
        "Where a probability rounds to 0, yours gives −∞ for its logarithm: right to rounding as a probability. "
        "log_softmax keeps the logarithm too."
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
        title="What a policy lacks",
        objective="write the regret of a policy as a KL, with its price",
        difficulty=1,
        minutes=4,
        cases=(Case("two prompts", {"log_policy": _POLICY, "log_star": _STAR, "beta": 0.5}),),
        solution=regret,
        mistakes=(
            Mistake(
                "missing β",
                "nats, not reward: the regret is the KL times its price β.",
                lambda log_policy, log_star, beta: (log_policy.exp() * (log_policy - log_star)).sum(-1),
            ),
            Mistake(
                "KL turned round",
                "this is β KL(π*‖π). J is a mean under π, so the KL that is left is one under π too.",
                lambda log_policy, log_star, beta: beta * (log_star.exp() * (log_star - log_policy)).sum(-1),
            ),
            Mistake(
                "sign",
                "the sign is lost: nothing beats π*, so a regret is never negative.",
                lambda log_policy, log_star, beta: beta * (log_policy.exp() * (log_star - log_policy)).sum(-1),
            ),
            Mistake(
                "mean for sum",
                "a mean over the responses where a sum belongs: the probabilities are the weights already.",
                lambda log_policy, log_star, beta: beta * (log_policy.exp() * (log_policy - log_star)).mean(-1),
            ),
            Mistake(
                "wrong axis",
                "summed over the prompts: the responses are the last axis, every prompt has a regret of its own.",
                lambda log_policy, log_star, beta: beta * (log_policy.exp() * (log_policy - log_star)).sum(0),
            ),
            Mistake(
                "divided by β",
                "divided by β where it multiplies: β is the price of a nat, in units of reward.",
                lambda log_policy, log_star, beta: (log_policy.exp() * (log_policy - log_star)).sum(-1) / beta,
            ),
        ),
        hints=(
            "The derivation ends in J(π) = β log Z − β KL(π‖π*). What is J(π*) − J(π), then?",
            "β times Σ_y π(y) (log π(y) − log π*(y)), over the last axis.",
        ),
    ),
    Exercise(
        key="nb03.optimal_policy",
        title="π* at any β",
        objective="write π* so that it survives β → 0, where exp(r/β) does not fit a number",
        difficulty=2,
        minutes=5,
        cases=(
            Case("two prompts", {"log_ref": _REF, "reward": _REWARD, "beta": 0.5}),
            Case("a β of a thousandth", {"log_ref": _REF, "reward": _REWARD, "beta": 0.001}),
        ),
        solution=optimal_policy,
        also=_underflowed,
        mistakes=(
            Mistake(
                "overflow",
                "right on paper, but exp(r/β) overflows at a small β and ∞/∞ is not a number. Stay in logarithms.",
                _naive,
            ),
            Mistake(
                "sign",
                "the reward's sign is lost: this policy looks for the worst response.",
                lambda log_ref, reward, beta: torch.log_softmax(log_ref - reward / beta, -1),
            ),
            Mistake(
                "multiplied by β",
                "the reward is multiplied by β: then a high price would move the policy further, not less.",
                lambda log_ref, reward, beta: torch.log_softmax(log_ref + reward * beta, -1),
            ),
            Mistake(
                "missing β",
                "β is missing: without it the reward weighs the same at every price.",
                lambda log_ref, reward, beta: torch.log_softmax(log_ref + reward, -1),
            ),
            Mistake(
                "missing reference",
                "the reference is missing: this is the optimum for a uniform π_ref.",
                lambda log_ref, reward, beta: torch.log_softmax(reward / beta, -1),
            ),
            Mistake(
                "missing Z",
                "it does not sum to one: log Z is missing.",
                lambda log_ref, reward, beta: log_ref + reward / beta,
            ),
            Mistake(
                "wrong axis",
                "normalised over the prompts: Z(x) is a sum over responses, the last axis.",
                lambda log_ref, reward, beta: torch.log_softmax(log_ref + reward / beta, 0),
            ),
            Mistake(
                "probabilities",
                "these are probabilities; log-probabilities were asked for.",
                lambda log_ref, reward, beta: torch.softmax(log_ref + reward / beta, -1),
            ),
        ),
        hints=(
            "Take the logarithm of π_ref exp(r/β)/Z. Which of the three terms can you write down at once?",
            "log Z is the logsumexp of the other two over the responses; `torch.log_softmax` takes it off for you.",
        ),
    ),
    Exercise(
        key="nb03.soft_value",
        title="One step back",
        objective="compute the value of a prefix from those of its children",
        difficulty=2,
        minutes=6,
        cases=(
            Case("two prefixes, two next tokens each", _TREE),
            Case("the same at a β of a thousandth", {**_TREE, "beta": 0.001}),
        ),
        solution=soft_value,
        mistakes=(
            Mistake(
                "overflow",
                "right on paper, but exp(r/β) overflows at a small β: use torch.logsumexp.",
                lambda log_ref, reward, next_value, beta: (
                    beta * (log_ref.exp() * torch.exp((reward + next_value) / beta)).sum(-1).log()
                ),
            ),
            Mistake(
                "hard maximum",
                "a hard maximum: that is the value at β → 0, where KL costs nothing.",
                lambda log_ref, reward, next_value, beta: (reward + next_value).amax(-1),
            ),
            Mistake(
                "plain mean",
                "the plain mean under the reference: that is the value at β → ∞, of a policy that never moves.",
                lambda log_ref, reward, next_value, beta: (log_ref.exp() * (reward + next_value)).sum(-1),
            ),
            Mistake(
                "missing reference",
                "the reference is missing: every next token counts the same.",
                lambda log_ref, reward, next_value, beta: beta * torch.logsumexp((reward + next_value) / beta, -1),
            ),
            Mistake(
                "blind to what comes after",
                "the children's values are missing: this prefix looks one token ahead and no further.",
                lambda log_ref, reward, next_value, beta: beta * torch.logsumexp(log_ref + reward / beta, -1),
            ),
            Mistake(
                "missing outer β",
                "this is V/β: it is in nats, and V is in units of reward.",
                lambda log_ref, reward, next_value, beta: torch.logsumexp(log_ref + (reward + next_value) / beta, -1),
            ),
            Mistake(
                "β under the reward alone",
                "β divides the reward alone: what comes after is reward too, and is divided by β as well.",
                lambda log_ref, reward, next_value, beta: (
                    beta * torch.logsumexp(log_ref + reward / beta + next_value, -1)
                ),
            ),
            Mistake(
                "wrong axis",
                "summed over the prefixes: next tokens are the last axis.",
                lambda log_ref, reward, next_value, beta: (
                    beta * torch.logsumexp(log_ref + (reward + next_value) / beta, 0)
                ),
            ),
        ),
        hints=(
            "It is β log Z of a bandit whose responses are the next tokens. What does a next token earn in all?",
            "It earns r(s, a) + V(s·a). Write β log Σ_a π_ref(a|s) exp(that/β) with `torch.logsumexp`.",
        ),
    ),
    Exercise(
        key="nb03.beta_for_kl",
        title="Which β spends a given KL?",
        objective="turn a budget of KL into a β, as one does before training",
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
                "KL turned round",
                "this β spends KL(π_ref‖π*); the objective's price is on KL(π*‖π_ref).",
                lambda log_ref, reward, budget: _bisect(log_ref, reward, budget, turned=True),
            ),
            Mistake(
                "the wrong half",
                "it runs into an end of the interval: a larger β spends less, so raise β where too much is spent.",
                lambda log_ref, reward, budget: _bisect(log_ref, reward, budget, flipped=True),
            ),
            Mistake(
                "1/β",
                "this is 1/β: the exponent is r/β.",
                lambda log_ref, reward, budget: 1 / beta_for_kl(log_ref, reward, budget),
            ),
            Mistake(
                "the approximation",
                "√(Var_ref(r)/(2·budget)), the approximation for large β: only a start. Close in on the exact one.",
                lambda log_ref, reward, budget: math.sqrt(
                    float((log_ref.exp() * (reward - (log_ref.exp() * reward).sum()).square()).sum()) / 2 / budget
                ),
            ),
        ),
        hints=(
            "KL(π*‖π_ref) falls from −log π_ref(best) to 0 while β rises. A falling function is solved by bisection.",
            "Keep low = 1e-4 and high = 1e4. Try β = √(low · high); if it spends more than the budget, it is the new "
            "low, else the new high. A hundred times.",
        ),
    ),
)
