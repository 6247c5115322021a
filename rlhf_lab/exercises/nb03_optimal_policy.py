"""Exercises of notebook 03: the optimal policy."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.derivations.optimal_policy import objective_gradient, objective_to_optimum
from rlhf_lab.exercises.checking import Case, Exercise, Mistake, Task, double
from rlhf_lab.exercises.derive import NextLine
from rlhf_lab.exercises.edits import wrong_answers
from rlhf_lab.exercises.lecture_loop import loop_arguments, loop_regret
from rlhf_lab.exercises.predictions import Prediction
from rlhf_lab.exercises.training_loops import TrainingLoop

_REF = double([[0.5, 0.3, 0.2], [0.1, 0.7, 0.2]]).log()
_REWARD = double([[0.0, 1.0, 2.0], [-1.0, 0.5, 1.5]])
_STAR = double([[0.2, 0.3, 0.5], [0.05, 0.35, 0.6]]).log()
_POLICY = double([[0.6, 0.3, 0.1], [0.3, 0.3, 0.4]]).log()


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


def _kl(log_p: Any, log_q: Any) -> Any:
    """KL(p‖q), (X,)."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _centred(w: Any, value: Any) -> Any:
    """π times the difference of a value from its mean under π, (X, K)."""
    return w.policy * (value - (w.policy * value).sum(-1, keepdim=True))


_TREE = {
    "log_ref": double([[0.6, 0.4], [0.3, 0.7]]).log(),
    "reward": double([[0.5, -0.5], [0.0, 1.0]]),
    "next_value": double([[1.0, 2.0], [0.5, -0.25]]),
    "beta": 0.5,
}


def _better_of_two(beta: float = 0.5) -> float:
    """π* of the better of two responses with rewards 0 and 1, which are equally probable under the reference."""
    log_ref = double([0.5, 0.5]).log()
    return exact.optimal_policy(log_ref, double([0.0, 1.0]), beta).exp()[1].item()


def objective_by_kl(w: Any) -> Any:
    """J(π) as a constant minus a KL divergence, (X,)."""
    divergence = (w.log_policy.exp() * (w.log_policy - w.log_star)).sum(-1)
    return w.beta * w.log_z - w.beta * divergence


def gradient_of_j(w: Any) -> Any:
    """∇J with respect to the logits of π, (X, K)."""
    net_reward = w.reward - w.beta * w.log_ratio
    objective = (w.policy * net_reward).sum(-1, keepdim=True)
    return w.policy * (net_reward - objective)


def gradient_ascent(
    logits: Tensor, log_ref: Tensor, reward: Tensor, beta: float, steps: int, learning_rate: float
) -> list[float]:
    """Gradient ascent on J, without sampling: train `logits`, return the losses, −J."""
    optimizer = torch.optim.SGD([logits], lr=learning_rate)
    losses = []
    for _ in range(steps):
        log_policy = logits.log_softmax(-1)
        policy = log_policy.exp()
        divergence = (policy * (log_policy - log_ref)).sum(-1)
        objective = (policy * reward).sum(-1) - beta * divergence
        loss = -objective.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def natural_gradient(
    logits: Tensor, log_ref: Tensor, reward: Tensor, beta: float, steps: int, learning_rate: float
) -> list[float]:
    """Natural gradient ascent on J: train `logits`, return the losses, −J."""
    losses = []
    for _ in range(steps):
        log_policy = logits.detach().log_softmax(-1)
        net_reward = reward - beta * (log_policy - log_ref)
        objective = (log_policy.exp() * net_reward).sum(-1, keepdim=True)
        with torch.no_grad():
            logits += learning_rate * (net_reward - objective)
        losses.append(-objective.mean().item())
    return losses


EXERCISES: tuple[Task, ...] = (
    Prediction(
        key="nb03.better_of_two",
        title="π* of two responses",
        objective="estimate the optimal policy without a computer",
        difficulty=1,
        minutes=3,
        question=(
            "Two responses are equally probable under the reference. Their rewards are 0 and 1, and β = 0.5. Which "
            "probability does π\\* give to the better response?"
        ),
        truth=_better_of_two,
        explanation=(
            "The odds of the two responses under π* are the odds under the reference, 1, times e^{(1−0)/β} = e² ≈ 7.4. "
            "The probability is σ(1/β) = σ(2) = {truth}."
        ),
        mistakes=(
            Mistake(
                "multiplied by β",
                "this is σ(β). The difference of the rewards is divided by β, not multiplied.",
                lambda: 1 / (1 + math.exp(-0.5)),
            ),
            Mistake("β missing", "this is σ(1), the probability at β = 1.", lambda: _better_of_two(1.0)),
            Mistake("the maximum", "this is the limit β → 0, in which the KL is not penalised.", lambda: 1.0),
            Mistake("the reference", "this is the limit β → ∞, in which π* is the reference.", lambda: 0.5),
        ),
    ),
    NextLine(
        key="nb03.objective_by_kl",
        title="J as a constant minus a KL",
        objective="write the objective in a form from which its maximum can be read off",
        difficulty=2,
        minutes=6,
        derivation=objective_to_optimum,
        line=6,
        quantities=("log_policy", "log_star", "log_z", "beta"),
        solution=objective_by_kl,
        mistakes=wrong_answers(
            objective_by_kl,
            {
                "sign of the constant": lambda w: -w.beta * w.log_z - w.beta * _kl(w.log_policy, w.log_star),
                "constant without β": lambda w: w.log_z - w.beta * _kl(w.log_policy, w.log_star),
                "KL without β": lambda w: w.beta * w.log_z - _kl(w.log_policy, w.log_star),
                "sign of the KL": lambda w: w.beta * w.log_z + w.beta * _kl(w.log_policy, w.log_star),
                "no constant": lambda w: -w.beta * _kl(w.log_policy, w.log_star),
                "divided by β": lambda w: (w.log_z - _kl(w.log_policy, w.log_star)) / w.beta,
            },
            {
                "sign of the constant": "the sign of log Z is wrong. The factor −β multiplies the bracket, which "
                "contains −log Z.",
                "constant without β": "β is missing before log Z. The factor −β multiplies the whole bracket.",
                "KL without β": "β is missing before the KL. The factor −β multiplies the whole bracket.",
                "sign of the KL": "the sign of the KL is wrong. J would then be larger than its maximum β log Z.",
                "no constant": "log Z is missing. It does not depend on π, but it is part of the value of J.",
                "divided by β": "the expression is divided by β instead of multiplied.",
            },
        ),
        hints=(
            "The expectation of log π − log π* under π is a KL divergence. Which arguments does it have, and in which "
            "order?",
            "Multiply both terms of the bracket by −β. `(p.exp() * (p - q)).sum(-1)` is KL(p‖q) of log-probabilities.",
        ),
    ),
    NextLine(
        key="nb03.gradient_of_j",
        title="The gradient of J",
        objective="derive the policy gradient of the KL-regularised objective for a softmax",
        difficulty=2,
        minutes=8,
        derivation=objective_gradient,
        line=4,
        quantities=("policy", "log_ratio", "reward", "beta"),
        solution=gradient_of_j,
        mistakes=wrong_answers(
            gradient_of_j,
            {
                "1 of the product rule": lambda w: w.policy * (w.reward - w.beta * w.log_ratio - w.beta),
                "reward alone": lambda w: w.policy * (w.reward - (w.policy * w.reward).sum(-1, keepdim=True)),
                "reward as the mean": lambda w: (
                    w.policy * (w.reward - w.beta * w.log_ratio - (w.policy * w.reward).sum(-1, keepdim=True))
                ),
                "sign of the penalty": lambda w: _centred(w, w.reward + w.beta * w.log_ratio),
                "β missing": lambda w: _centred(w, w.reward - w.log_ratio),
            },
            {
                "1 of the product rule": "the −β of the product rule remains, and the mean of q is missing. Both "
                "errors ignore that the probabilities sum to one.",
                "reward alone": "the KL penalty is missing. This is the policy gradient of the expected reward.",
                "reward as the mean": "the mean of the reward is subtracted instead of the mean of r − β log π/π_ref, "
                "which is J.",
                "sign of the penalty": "the sign of the penalty is wrong. A response whose probability has grown has a "
                "smaller q.",
                "β missing": "β is missing before the log-ratio.",
            },
        ),
        hints=(
            "The derivative of log π(y') with respect to the logit of y is 1[y' = y] − π(y). Insert it into the "
            "expectation.",
            "E_π[q (1[y' = y] − π(y))] = π(y) q(y) − π(y) E_π[q] with q = r − β log π/π_ref.",
        ),
    ),
    TrainingLoop(
        key="nb03.gradient_ascent",
        title="Gradient ascent on J",
        objective="write a training loop that converges to the optimal policy",
        difficulty=2,
        minutes=10,
        arguments=partial(loop_arguments, 60, 3.0),
        distance=loop_regret,
        solution=gradient_ascent,
        mistakes=wrong_answers(
            gradient_ascent,
            {
                "sign": "-objective.mean() → objective.mean()",
                "sign of the penalty": "- beta * → + beta *",
                "swapped KL": "policy * (log_policy - log_ref) → log_ref.exp() * (log_ref - log_policy)",
                "expectation under the reference": "policy * (log_policy → log_ref.exp() * (log_policy",
                "no beta": "beta * divergence → divergence",
                "no reference": "(log_policy - log_ref) → log_policy",
                "gradients not reset": "optimizer.zero_grad() → pass",
            },
            {
                "sign": "J is minimised. An optimiser descends, so the loss is −J.",
                "sign of the penalty": "the penalty has the wrong sign, so distance from the reference is rewarded.",
                "swapped KL": "this is KL(π_ref‖π), but the objective has KL(π‖π_ref).",
                "expectation under the reference": "the log-ratio is averaged under the reference. The KL is an "
                "expectation under π.",
                "no beta": "β is missing from the penalty.",
                "no reference": "the reference is missing, so the entropy of π is rewarded instead of a small KL.",
                "gradients not reset": "gradients add up over the steps, because they are not reset to zero.",
            },
            pairs=(("sign", "sign of the penalty"), ("no beta", "no reference")),
        ),
        hints=(
            "J is the expected reward minus β times the KL. Both are sums over the responses, weighted by π.",
            "With `log_policy = logits.log_softmax(-1)` the KL is the sum of "
            "`log_policy.exp() * (log_policy - log_ref)`.",
            "The loss is minus J, averaged over the prompts. Then come zero_grad, backward and step.",
        ),
    ),
    TrainingLoop(
        key="nb03.natural_gradient",
        title="A policy that ignores β",
        objective="find the bug in a loop that always converges to the best response",
        difficulty=2,
        minutes=8,
        arguments=partial(loop_arguments, 30, 0.5),
        distance=loop_regret,
        loss_falls=False,
        solution=natural_gradient,
        bug="updated reference",
        mistakes=wrong_answers(
            natural_gradient,
            {
                "updated reference": ("losses.append → log_ref = log_policy\n        losses.append"),
                "sign of the penalty": "- beta * → + beta *",
                "sign of the reward": "net_reward = reward → net_reward = -reward",
                "no beta": "beta * (log_policy → (log_policy",
                "no reference": "(log_policy - log_ref) → log_policy",
                "plain gradient": "* (net_reward - objective) → * log_policy.exp() * (net_reward - objective)",
            },
            {
                "updated reference": "the reference is replaced by the policy of the last step, so the penalty acts on "
                "the size of one step only.",
                "sign of the penalty": "the penalty has the wrong sign, so distance from the reference is rewarded.",
                "sign of the reward": "the reward has the wrong sign.",
                "no beta": "β is missing from the penalty.",
                "no reference": "the reference is missing, so the entropy of π is rewarded instead of a small KL.",
                "plain gradient": "the direction is multiplied by π. This is the plain gradient, which is much slower.",
            },
            pairs=(("updated reference", "no beta"), ("no beta", "sign of the reward")),
        ),
        hints=(
            "Run the loop with two values of β and compare the policies. Which of the arguments does the loop use in "
            "the last step?",
            "KL(π‖π_ref) has a fixed second argument. Which variable changes that should not?",
        ),
    ),
    Exercise(
        key="nb03.regret",
        title="The regret of a policy",
        objective="write the regret of a policy as β times a KL",
        difficulty=1,
        minutes=4,
        cases=(Case("two prompts", {"log_policy": _POLICY, "log_star": _STAR, "beta": 0.5}),),
        solution=regret,
        mistakes=wrong_answers(
            regret,
            {
                "missing β": lambda log_policy, log_star, beta: (log_policy.exp() * (log_policy - log_star)).sum(-1),
                "swapped KL": lambda log_policy, log_star, beta: (
                    beta * (log_star.exp() * (log_star - log_policy)).sum(-1)
                ),
                "sign": lambda log_policy, log_star, beta: beta * (log_policy.exp() * (log_star - log_policy)).sum(-1),
                "mean for sum": lambda log_policy, log_star, beta: (
                    beta * (log_policy.exp() * (log_policy - log_star)).mean(-1)
                ),
                "wrong axis": lambda log_policy, log_star, beta: (
                    beta * (log_policy.exp() * (log_policy - log_star)).sum(0)
                ),
                "divided by β": lambda log_policy, log_star, beta: (
                    (log_policy.exp() * (log_policy - log_star)).sum(-1) / beta
                ),
            },
            {
                "missing β": "this is in nats and not in units of reward. The regret is β times the KL.",
                "swapped KL": "this is β KL(π*‖π). J is a mean under π, so this KL is an expectation under π too.",
                "sign": "the sign is wrong. No policy is better than π*, so a regret is never negative.",
                "mean for sum": "this is a mean over the responses instead of a sum. The probabilities are the weights "
                "already.",
                "wrong axis": "the sum is over the prompts. The responses are the last axis, and every prompt has its "
                "own regret.",
                "divided by β": "this is divided by β instead of multiplied. β is the KL penalty per nat, in units of "
                "reward.",
            },
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
        mistakes=wrong_answers(
            optimal_policy,
            {
                "overflow": _naive,
                "sign": lambda log_ref, reward, beta: torch.log_softmax(log_ref - reward / beta, -1),
                "multiplied by β": lambda log_ref, reward, beta: torch.log_softmax(log_ref + reward * beta, -1),
                "missing β": lambda log_ref, reward, beta: torch.log_softmax(log_ref + reward, -1),
                "missing reference": lambda log_ref, reward, beta: torch.log_softmax(reward / beta, -1),
                "missing Z": lambda log_ref, reward, beta: log_ref + reward / beta,
                "wrong axis": lambda log_ref, reward, beta: torch.log_softmax(log_ref + reward / beta, 0),
                "probabilities": lambda log_ref, reward, beta: torch.softmax(log_ref + reward / beta, -1),
            },
            {
                "overflow": "this is correct on paper, but exp(r/β) overflows at a small β and ∞/∞ is not a number. "
                "Stay in logarithms.",
                "sign": "the reward has the wrong sign. This policy prefers the worst response.",
                "multiplied by β": "the reward is multiplied by β. A large β would then move the policy further from "
                "the reference.",
                "missing β": "β is missing. The reward would have the same weight at every β.",
                "missing reference": "the reference is missing. This is the optimum for a uniform π_ref.",
                "missing Z": "the probabilities do not sum to one. log Z is missing.",
                "wrong axis": "this is normalised over the prompts, but Z(x) is a sum over responses, the last axis.",
                "probabilities": "these are probabilities, but log-probabilities are required.",
            },
        ),
        hints=(
            "Take the logarithm of π_ref exp(r/β)/Z. Which two of the three terms can you write down immediately?",
            "log Z is the logsumexp, over the responses, of the sum of the other two. "
            "`torch.log_softmax` subtracts it.",
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
        mistakes=wrong_answers(
            soft_value,
            {
                "overflow": lambda log_ref, reward, next_value, beta: (
                    beta * (log_ref.exp() * torch.exp((reward + next_value) / beta)).sum(-1).log()
                ),
                "hard maximum": lambda log_ref, reward, next_value, beta: (reward + next_value).amax(-1),
                "plain mean": lambda log_ref, reward, next_value, beta: (log_ref.exp() * (reward + next_value)).sum(-1),
                "missing reference": lambda log_ref, reward, next_value, beta: (
                    beta * torch.logsumexp((reward + next_value) / beta, -1)
                ),
                "no later values": lambda log_ref, reward, next_value, beta: (
                    beta * torch.logsumexp(log_ref + reward / beta, -1)
                ),
                "missing outer β": lambda log_ref, reward, next_value, beta: torch.logsumexp(
                    log_ref + (reward + next_value) / beta, -1
                ),
                "β under the reward alone": "(reward + next_value) / beta → reward / beta + next_value",
                "wrong axis": "beta, -1) → beta, 0)",
            },
            {
                "overflow": "this is correct on paper, but exp(r/β) overflows at a small β. Use torch.logsumexp.",
                "hard maximum": "this is a hard maximum, the value for β → 0, where there is no KL penalty.",
                "plain mean": "this is the mean under the reference, the value for β → ∞, where the policy stays at "
                "the reference.",
                "missing reference": "the reference is missing. Every next token has the same weight.",
                "no later values": "the children's values are missing. This value includes only one token.",
                "missing outer β": "this is V/β. It is in nats, and V is in units of reward.",
                "β under the reward alone": "β divides the reward alone, but the later value is reward too and must be "
                "divided by β as well.",
                "wrong axis": "the sum is over the prefixes, but next tokens are the last axis.",
            },
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
        mistakes=wrong_answers(
            beta_for_kl,
            {
                "swapped KL": "log_star.exp() * (log_star - log_ref) → log_ref.exp() * (log_ref - log_star)",
                "the wrong half": "divergence > budget → divergence <= budget",
                "1/β": lambda log_ref, reward, budget: 1 / beta_for_kl(log_ref, reward, budget),
                "the approximation": lambda log_ref, reward, budget: math.sqrt(
                    float((log_ref.exp() * (reward - (log_ref.exp() * reward).sum()).square()).sum()) / 2 / budget
                ),
            },
            {
                "swapped KL": "this is the β for KL(π_ref‖π*), but the objective has KL(π*‖π_ref).",
                "the wrong half": "the search ends at an end of the interval. A larger β gives a smaller KL, so "
                "increase β if the KL is too large.",
                "1/β": "this is 1/β, but the exponent is r/β.",
                "the approximation": "√(Var_ref(r)/(2·budget)) is only the approximation for large β. Find the exact "
                "value.",
            },
        ),
        hints=(
            "KL(π*‖π_ref) falls from −log π_ref(best) to 0 as β rises. An equation with a falling function can be "
            "solved by bisection.",
            "Start with low = 1e-4 and high = 1e4. Try β = √(low · high). If its KL exceeds the budget, "
            "set low = β. Otherwise set high = β. Repeat this a hundred times.",
        ),
    ),
)
