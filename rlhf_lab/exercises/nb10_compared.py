"""Exercises of notebook 10: KL, reward and regret of all methods compared."""

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.derivations.optimal_policy import beta_is_the_slope
from rlhf_lab.derivations.random_worlds import RandomWorld
from rlhf_lab.exercises.checking import Case, Exercise, Task, double
from rlhf_lab.exercises.derive import NextLine
from rlhf_lab.exercises.edits import wrong_answers
from rlhf_lab.exercises.lecture_loop import BETA, LOG_REF, REWARD, loop_arguments
from rlhf_lab.exercises.predictions import Prediction
from rlhf_lab.exercises.training_loops import TrainingLoop


def regret_of_place(kl: Tensor, reward: Tensor, log_z: float, beta: float) -> Tensor:
    """The regret of policies from KL and E[r] alone, in the same shape."""
    return beta * log_z - (reward - beta * kl)


def equal_price(kl_a: float, reward_a: float, kl_b: float, reward_b: float) -> float:
    """The β at which policies a and b are equally good."""
    return (reward_a - reward_b) / (kl_a - kl_b)


def regret_in_two(
    log_policy: Tensor, log_ref: Tensor, reward: Tensor, beta: float, twin: float
) -> tuple[Tensor, Tensor]:
    """The loss below the frontier, and the loss from the place on it."""
    log_star = (log_ref + reward / beta).log_softmax(-1)
    log_twin = (log_ref + reward / twin).log_softmax(-1)
    below = twin * (log_policy.exp() * (log_policy - log_twin)).sum(-1)
    place = beta * (log_twin.exp() * (log_twin - log_star)).sum(-1)
    return below, place


def _twin_beta(log_ref: Tensor, reward: Tensor, kl: float) -> float:
    """The β' for which KL(π*‖π_ref), the mean over prompts, is `kl` nats."""
    low, high = 1e-4, 1e4
    for _ in range(100):
        middle = (low * high) ** 0.5
        larger = exact.kl(exact.optimal_policy(log_ref, reward, middle), log_ref).mean().item() > kl
        low, high = (middle, high) if larger else (low, middle)
    return float(middle)


def _parts_of_a_limit() -> str:
    """Which part of the regret at β = 0.5 the limit for γ = 0.05 has."""
    log_policy = exact.optimal_policy(LOG_REF, REWARD, 0.05)
    twin = _twin_beta(LOG_REF, REWARD, exact.kl(log_policy, LOG_REF).mean().item())
    below = exact.regret(log_policy, LOG_REF, REWARD, twin).mean().item() > 1e-6
    place = exact.regret(exact.optimal_policy(LOG_REF, REWARD, twin), LOG_REF, REWARD, BETA).mean().item() > 1e-6
    return {(True, False): "A", (False, True): "B", (True, True): "C", (False, False): "D"}[below, place]


def kl_slope(w: Any) -> Any:
    """The derivative of KL(π*‖π_ref) with respect to 1/β, (X, 1)."""
    return w.variance / w.beta


def _mean(w: RandomWorld) -> Tensor:
    return (w.star * w.reward).sum(-1, keepdim=True)


def train_to_kl(
    logits: Tensor, log_ref: Tensor, reward: Tensor, target: float, steps: int, learning_rate: float
) -> list[float]:
    """Gradient ascent on J with a β that is adapted until KL(π‖π_ref) is `target`."""
    optimizer = torch.optim.SGD([logits], lr=learning_rate)
    beta, losses = 1.0, []
    for _ in range(steps):
        log_policy = logits.log_softmax(-1)
        kl = (log_policy.exp() * (log_policy - log_ref)).sum(-1).mean()
        gain = (log_policy.exp() * reward).sum(-1).mean()
        loss = -(gain - beta * kl)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        error = (kl.item() - target) / target
        beta *= 1 + 0.1 * min(max(error, -0.2), 0.2)
        losses.append(loss.item())
    return losses


_TARGET = 1.0


def _target_arguments() -> dict[str, Any]:
    given = loop_arguments(200, 2.0)
    rest = {"steps": given["steps"], "learning_rate": given["learning_rate"]}
    return {name: given[name] for name in ("logits", "log_ref", "reward")} | {"target": _TARGET, **rest}


@cache
def _at_target() -> Tensor:
    """log π* with the target's KL, (2, 4)."""
    return exact.optimal_policy(LOG_REF, REWARD, _twin_beta(LOG_REF, REWARD, _TARGET))


def _from_twin(logits: Tensor) -> float:
    return exact.kl(logits.log_softmax(-1), _at_target()).mean().item()


_OTHER_BETA = 0.4
"""With two prompts and β = 0.5 a loop without β would be the loop that sums over prompts."""


def over_prompts(
    logits: Tensor, log_ref: Tensor, reward: Tensor, beta: float, steps: int, learning_rate: float
) -> list[float]:
    """Gradient ascent on J, the mean over prompts."""
    optimizer = torch.optim.SGD([logits], lr=learning_rate)
    losses = []
    for _ in range(steps):
        log_policy = logits.log_softmax(-1)
        kl = log_policy.exp() * (log_policy - log_ref)
        gain = log_policy.exp() * reward
        loss = beta * kl.sum(-1).mean() - gain.sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


_PLACES = {"kl": double([0.0, 0.4, 1.5]), "reward": double([0.3, 0.8, 1.1]), "log_z": 1.4, "beta": 0.5}
_BANDIT = {"log_ref": double([0.4, 0.3, 0.2, 0.1]).log(), "reward": double([-0.5, 0.0, 1.0, 1.5])}
_SPLIT = {
    "log_policy": double([0.2, 0.1, 0.3, 0.4]).log(),
    **_BANDIT,
    "beta": 0.5,
    "twin": 0.8,
}

EXERCISES: tuple[Task, ...] = (
    NextLine(
        key="nb10.kl_slope",
        title="How fast the KL of π* grows",
        objective="differentiate the KL of the optimal policy",
        difficulty=2,
        minutes=6,
        derivation=beta_is_the_slope,
        line=2,
        quantities=("beta",),
        defined={
            "variance": (
                "$\\mathrm{Var}_{\\pi^*}(r)$, (X, 1)",
                lambda w: (w.star * (w.reward - _mean(w)).square()).sum(-1, keepdim=True),
            ),
            "mean": ("$\\mathbb{E}_{\\pi^*}[r]$, (X, 1)", _mean),
            "log_z": ("$\\log Z$, (X, 1)", lambda w: w.z.log()),
        },
        solution=kl_slope,
        mistakes=wrong_answers(
            kl_slope,
            {
                "no product rule": lambda w: w.variance / w.beta - w.mean,
                "log Z is constant": lambda w: w.variance / w.beta + w.mean,
                "inverted": lambda w: w.variance * w.beta,
                "slope of the reward": lambda w: w.variance,
            },
            {
                "no product rule": "the derivative of $\\frac1\\beta\\mathbb{E}_{\\pi^*}[r]$ has two terms. The mean "
                "itself is missing.",
                "log Z is constant": "log Z depends on β as well. Its derivative must be subtracted.",
                "inverted": "β is on the wrong side of the fraction.",
                "slope of the reward": "this is the derivative of the reward, the line above. The KL has another one.",
            },
        ),
        hints=(
            "Write $\\mathrm{KL}(\\pi^*\\|\\pi_\\text{ref})=\\frac1\\beta\\mathbb{E}_{\\pi^*}[r]-\\log Z$ and "
            "differentiate both terms with respect to $t=1/\\beta$. The first one is a product.",
            "$\\frac{d\\log Z}{dt}=\\mathbb{E}_{\\pi^*}[r]$, so two terms cancel.",
        ),
    ),
    Prediction(
        key="nb10.parts_of_a_limit",
        title="Where the regret of a small γ comes from",
        objective="predict which part of its regret a method has in the limit",
        difficulty=2,
        minutes=3,
        question=(
            "DPO with γ = 0.05 in its loss gets infinitely many labels and is trained until its loss is minimal. The "
            "regret of the resulting policy is evaluated at β = 0.5. Which of its two parts is above zero?"
        ),
        options={
            "A": "Only the loss below the frontier.",
            "B": "Only the loss from the wrong place on the frontier.",
            "C": "Both.",
            "D": "Neither: DPO with infinitely many labels converges to π\\*.",
        },
        truth=_parts_of_a_limit,
        explanation=(
            "The limit is π* at 0.05, the γ of the loss. It is on the frontier, so no reward is lost below it. Its KL "
            "is much larger than that of π* at β = 0.5."
        ),
        why_not={
            "A": "the limit of DPO is π* at γ, and no policy has a higher reward at its KL.",
            "C": "there is no label noise in the limit, and π* at γ = 0.05 is on the frontier.",
            "D": "it converges to π* at β = 0.05, but the regret is that at β = 0.5.",
        },
    ),
    Exercise(
        key="nb10.regret_of_place",
        title="Regret from KL and reward",
        objective="compute a policy's regret from its KL and its reward alone",
        difficulty=1,
        minutes=4,
        cases=(
            Case("three points, β = 0.5", _PLACES),
            Case("the same at β = 2", _PLACES | {"beta": 2.0, "log_z": 0.25}),
        ),
        solution=regret_of_place,
        mistakes=wrong_answers(
            regret_of_place,
            {
                "sign of the KL": lambda kl, r, lz, b: b * lz - (r + b * kl),
                "no beta at the KL": lambda kl, r, lz, b: b * lz - (r - kl),
                "no beta at log Z": lambda kl, r, lz, b: lz - (r - b * kl),
                "sign": lambda kl, r, lz, b: (r - b * kl) - b * lz,
                "objective": lambda kl, r, lz, b: r - b * kl,
            },
            {
                "sign of the KL": "the KL has the wrong sign: J = E[r] − β KL, so a larger KL gives a larger regret.",
                "no beta at the KL": "β is missing: the KL is in nats, and β turns nats into reward.",
                "no beta at log Z": "log Z is in nats: the best value of J is β log Z.",
                "sign": "the sign is wrong: regret is J(π*) − J(π) and never negative.",
                "objective": "this is J, not the regret J(π*) − J.",
            },
        ),
        hints=(
            "Regret is J(π*) − J(π). Which of the two follows from KL and reward, and which from Z?",
            "J(π) = E[r] − β KL(π‖π_ref), and J(π*) = β log Z.",
        ),
    ),
    Exercise(
        key="nb10.equal_price",
        title="The β at which two policies are equally good",
        objective="find the β for which two policies have the same objective",
        difficulty=2,
        minutes=5,
        cases=(
            Case(
                "b has more KL and more reward",
                {"kl_a": 0.3, "reward_a": 0.8, "kl_b": 1.1, "reward_b": 1.2},
            ),
            Case("a has more KL", {"kl_a": 2.0, "reward_a": 1.5, "kl_b": 0.5, "reward_b": 0.2}),
        ),
        solution=equal_price,
        mistakes=wrong_answers(
            equal_price,
            {
                "upside down": lambda ka, ra, kb, rb: (ka - kb) / (ra - rb),
                "sign": lambda ka, ra, kb, rb: (ra - rb) / (kb - ka),
                "average reward per nat": lambda ka, ra, kb, rb: ra / ka - rb / kb,
                "sums": lambda ka, ra, kb, rb: (ra + rb) / (ka + kb),
                "logarithm": lambda ka, ra, kb, rb: math.log(ra / rb) / math.log(ka / kb),
            },
            {
                "upside down": "the fraction is inverted: β is reward per nat, the slope of the line between the two.",
                "sign": "β is negative: both differences must be taken in the same order.",
                "average reward per nat": "this compares the reward per nat of each. Compare the additional reward "
                "with the additional nats.",
                "sums": "these are sums instead of differences: at equal J the difference of rewards is β times the "
                "difference of KLs.",
                "logarithm": "this is a ratio of logarithms. The line through both points has its slope in the units "
                "of the map.",
            },
        ),
        hints=(
            "Write J(a) = J(b), and solve for β.",
            "E_a[r] − β KL_a = E_b[r] − β KL_b. In the plane of KL and reward it is the slope of the line through both "
            "points.",
        ),
    ),
    Exercise(
        key="nb10.regret_in_two",
        title="The two parts of the regret",
        objective="split a method's regret into the loss below the frontier and the loss from its place on it",
        difficulty=3,
        minutes=10,
        cases=(
            Case("four responses, β = 0.5, β′ = 0.8", _SPLIT),
            Case("the same with β = 2", _SPLIT | {"beta": 2.0}),
        ),
        solution=regret_in_two,
        mistakes=wrong_answers(
            regret_in_two,
            {
                "swapped": "return below, place → return place, below",
                "β twice": "below = twin * → below = beta *",
                "β′ twice": "place = beta * → place = twin *",
                "swapped KL": "log_twin.exp() * (log_twin - log_star) → log_star.exp() * (log_star - log_twin)",
                "no β": (
                    "below = twin * → below =",
                    "place = beta * → place =",
                ),
                "whole regret": (
                    "below = twin * → below = beta *",
                    "log_policy - log_twin → log_policy - log_star",
                ),
            },
            {
                "swapped": "the parts are swapped: the first is the loss below the frontier, from the policy to its "
                "twin.",
                "β twice": "both parts have the factor β here, but below the frontier it is β′, the slope at the twin.",
                "β′ twice": "both parts have the factor β′ here, but the regret of the twin is at β.",
                "swapped KL": "the arguments of the second KL are swapped: the twin is the first argument, because its "
                "regret to π* is computed.",
                "no β": "these are nats. Regret is in units of reward: each KL has its factor.",
                "whole regret": "the first part is the whole regret here, β KL(π‖π*): use the KL to the twin, not to "
                "π*.",
            },
        ),
        hints=(
            "The first part is the regret of π at β′, and the second one is the regret of the twin π*_β′ at β.",
            "Each regret is a KL times its β: β′ KL(π‖π*_β′) and β KL(π*_β′‖π*_β).",
        ),
    ),
    TrainingLoop(
        key="nb10.train_to_kl",
        title="Training to a given KL",
        objective="write a training loop that makes methods comparable at the same KL",
        difficulty=3,
        minutes=15,
        arguments=_target_arguments,
        distance=_from_twin,
        quantity="KL(π_θ‖twin)",
        share=0.02,
        solution=train_to_kl,
        mistakes=wrong_answers(
            train_to_kl,
            {
                "fixed beta": "beta *= 1 + 0.1 * min(max(error, -0.2), 0.2) → pass",
                "sign of the control": "(kl.item() - target) → (target - kl.item())",
                "no penalty": "gain - beta * kl → gain",
                "swapped KL": "log_policy.exp() * (log_policy - log_ref) → log_ref.exp() * (log_ref - log_policy)",
                "sign": "loss = -(gain → loss = (gain",
                "gradients not reset": "optimizer.zero_grad() → pass",
            },
            {
                "fixed beta": "β stays at its first value, so that the KL does not reach the target.",
                "sign of the control": "β falls when the KL is too large. It must rise then.",
                "no penalty": "the loss contains no KL, so that β has no effect.",
                "swapped KL": "this is KL(π_ref‖π). The objective has KL(π‖π_ref), the expectation under the policy.",
                "sign": "the sign is lost, so that descent lowers J.",
                "gradients not reset": "gradients add up over the steps, because they are not reset to zero.",
            },
            pairs=(("fixed beta", "swapped KL"),),
        ),
        hints=(
            "One step: compute KL and reward, both means over prompts, descend on −(E[r] − β KL), and then adapt β.",
            "If the KL is above the target, multiply β by a number a little above 1. If it is below, by one below 1.",
            "`error = (kl.item() - target) / target` and `beta *= 1 + 0.1 * min(max(error, -0.2), 0.2)`",
        ),
    ),
    TrainingLoop(
        key="nb10.over_prompts",
        title="A loop that stops too close to the reference",
        objective="use the two parts of the regret to find a bug",
        difficulty=2,
        minutes=6,
        arguments=lambda: loop_arguments(60, 2.0) | {"beta": _OTHER_BETA},
        distance=lambda logits: exact.regret(logits.log_softmax(-1), LOG_REF, REWARD, _OTHER_BETA).mean().item(),
        share=0.02,
        solution=over_prompts,
        bug="sum over prompts",
        mistakes=wrong_answers(
            over_prompts,
            {
                "sum over prompts": "kl.sum(-1).mean() → kl.sum()",
                "mean over responses": "kl.sum(-1).mean() → kl.mean()",
                "swapped KL": "log_policy.exp() * (log_policy - log_ref) → log_ref.exp() * (log_ref - log_policy)",
                "sign of the KL": "beta * kl → -beta * kl",
                "no beta": "beta * kl → kl",
                "gradients not reset": "optimizer.zero_grad() → pass",
            },
            {
                "sum over prompts": "the KL is summed over prompts, but the reward is averaged. So β is multiplied by "
                "the number of prompts.",
                "mean over responses": "the KL is averaged over the responses. It is a sum over them.",
                "swapped KL": "this is KL(π_ref‖π). The objective has KL(π‖π_ref), the expectation under the policy.",
                "sign of the KL": "the KL has the wrong sign, so that distance from the reference is rewarded.",
                "no beta": "β is missing.",
                "gradients not reset": "gradients add up over the steps, because they are not reset to zero.",
            },
            pairs=(("sum over prompts", "no beta"), ("sum over prompts", "swapped KL")),
        ),
        hints=(
            "All of the regret is due to the place on the frontier, so the trade-off between reward and KL is wrong, "
            "and nothing else is.",
            "Which β does the loop use effectively, if there are two prompts? Compare the two sums in the loss.",
        ),
    ),
)
