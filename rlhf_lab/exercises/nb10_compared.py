"""Exercises of notebook 10: KL, reward and regret of all methods compared."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rlhf_lab.exercises.checking import Case, Exercise, Mistake


def _double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def regret_of_place(kl: Tensor, reward: Tensor, log_z: float, beta: float) -> Tensor:
    """The regret of policies from KL and E[r] alone, in the same shape."""
    return beta * log_z - (reward - beta * kl)


def equal_price(kl_a: float, reward_a: float, kl_b: float, reward_b: float) -> float:
    """The β at which policies a and b are equally good."""
    return (reward_a - reward_b) / (kl_a - kl_b)


def twin_beta(log_ref: Tensor, reward: Tensor, kl: float) -> float:
    """The β' for which KL(π*‖π_ref) is `kl` nats; a single prompt, (K,)."""
    low, high = 1e-4, 1e4
    for _ in range(100):
        beta = (low * high) ** 0.5
        log_star = (log_ref + reward / beta).log_softmax(-1)
        spent = (log_star.exp() * (log_star - log_ref)).sum().item()
        if spent > kl:
            low = beta  # the KL is too large: raise β
        else:
            high = beta
    return float((low * high) ** 0.5)


def regret_in_two(
    log_policy: Tensor, log_ref: Tensor, reward: Tensor, beta: float, twin: float
) -> tuple[Tensor, Tensor]:
    """Regret lost below the frontier, and by the wrong place on it; `twin` is β' of the policy's twin."""
    log_star = (log_ref + reward / beta).log_softmax(-1)
    log_twin = (log_ref + reward / twin).log_softmax(-1)
    below = twin * (log_policy.exp() * (log_policy - log_twin)).sum(-1)
    place = beta * (log_twin.exp() * (log_twin - log_star)).sum(-1)
    return below, place


def _spent(log_ref: Tensor, reward: Tensor, beta: float, turned: bool = False) -> float:
    log_star = (log_ref + reward / beta).log_softmax(-1)
    one, other = (log_ref, log_star) if turned else (log_star, log_ref)
    return (one.exp() * (one - other)).sum().item()


def _search(log_ref: Tensor, reward: Tensor, kl: float, mistake: str) -> float:
    """`twin_beta` with one mistake."""
    low, high = 1e-4, 1e4
    for _ in range(100):
        beta = (low * high) ** 0.5
        at = 1 / beta if mistake == "product" else beta
        spent = _spent(log_ref, reward, at, mistake == "turned")
        spent = spent / math.log(2) if mistake == "bits" else spent
        grows = spent > kl
        if grows != (mistake in ("wrong half", "product")):
            low = beta
        else:
            high = beta
    return float((low * high) ** 0.5)


def _parts(
    log_policy: Tensor, log_ref: Tensor, reward: Tensor, beta: float, twin: float, mistake: str
) -> tuple[Any, ...]:
    """`regret_in_two` with one mistake."""
    log_star = (log_ref + reward / beta).log_softmax(-1)
    log_twin = (log_ref + reward / twin).log_softmax(-1)

    def kl(p: Tensor, q: Tensor) -> Tensor:
        return (p.exp() * (p - q)).sum(-1)

    below, place = twin * kl(log_policy, log_twin), beta * kl(log_twin, log_star)
    if mistake == "beta twice":
        below = beta * kl(log_policy, log_twin)
    if mistake == "twin twice":
        place = twin * kl(log_twin, log_star)
    if mistake == "turned":
        place = beta * kl(log_star, log_twin)
    if mistake == "no beta":
        below, place = kl(log_policy, log_twin), kl(log_twin, log_star)
    if mistake == "to the star":
        below = beta * kl(log_policy, log_star)
    return (place, below) if mistake == "swapped" else (below, place)


_PLACES = {"kl": _double([0.0, 0.4, 1.5]), "reward": _double([0.3, 0.8, 1.1]), "log_z": 1.4, "beta": 0.5}
_BANDIT = {"log_ref": _double([0.4, 0.3, 0.2, 0.1]).log(), "reward": _double([-0.5, 0.0, 1.0, 1.5])}
_SPLIT = {
    "log_policy": _double([0.2, 0.1, 0.3, 0.4]).log(),
    **_BANDIT,
    "beta": 0.5,
    "twin": 0.8,
}

EXERCISES = (
    Exercise(
        key="nb10.regret_of_place",
        title="Regret read off the map",
        objective="compute a policy's regret from its KL and its reward alone",
        difficulty=1,
        minutes=4,
        cases=(
            Case("three points, β = 0.5", _PLACES),
            Case("the same at β = 2", _PLACES | {"beta": 2.0, "log_z": 0.25}),
        ),
        solution=regret_of_place,
        mistakes=(
            Mistake(
                "sign of the KL",
                "the KL has the wrong sign: J = E[r] − β KL, so a larger KL gives a larger regret.",
                lambda kl, r, lz, b: b * lz - (r + b * kl),
            ),
            Mistake(
                "no beta at the KL",
                "β is missing: the KL is in nats, and β turns nats into reward.",
                lambda kl, r, lz, b: b * lz - (r - kl),
            ),
            Mistake(
                "no beta at log Z",
                "log Z is in nats: the best value of J is β log Z.",
                lambda kl, r, lz, b: lz - (r - b * kl),
            ),
            Mistake(
                "sign",
                "the sign is wrong: regret is J(π*) − J(π) and never negative.",
                lambda kl, r, lz, b: (r - b * kl) - b * lz,
            ),
            Mistake(
                "objective",
                "this is J, not the regret J(π*) − J.",
                lambda kl, r, lz, b: r - b * kl,
            ),
        ),
        hints=(
            "Regret is J(π*) − J(π). Which of the two follows from KL and reward, and which from Z?",
            "J(π) = E[r] − β KL(π‖π_ref), and J(π*) = β log Z.",
        ),
    ),
    Exercise(
        key="nb10.equal_price",
        title="At which β would you change sides?",
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
        mistakes=(
            Mistake(
                "upside down",
                "the fraction is inverted: β is reward per nat, the slope of the line between the two.",
                lambda ka, ra, kb, rb: (ka - kb) / (ra - rb),
            ),
            Mistake(
                "sign",
                "β is negative: both differences must be taken in the same order.",
                lambda ka, ra, kb, rb: (ra - rb) / (kb - ka),
            ),
            Mistake(
                "average price",
                "this compares the reward per nat of each. Compare the additional reward with the additional nats.",
                lambda ka, ra, kb, rb: ra / ka - rb / kb,
            ),
            Mistake(
                "sums",
                "these are sums instead of differences: at equal J the difference of rewards is β times the difference "
                "of KLs.",
                lambda ka, ra, kb, rb: (ra + rb) / (ka + kb),
            ),
        ),
        hints=(
            "Write J(a) = J(b), and solve for β.",
            "E_a[r] − β KL_a = E_b[r] − β KL_b. In the plane of KL and reward it is the slope of the line through both "
            "points.",
        ),
    ),
    Exercise(
        key="nb10.twin_beta",
        title="The twin on the frontier",
        objective="find the β for which π* has a given KL",
        difficulty=2,
        minutes=10,
        cases=(
            Case("four responses, 0.5 nats", _BANDIT | {"kl": 0.5}),
            Case("four responses, 1.2 nats", _BANDIT | {"kl": 1.2}),
        ),
        solution=twin_beta,
        relative=1e-3,
        mistakes=(
            Mistake(
                "swapped KL",
                "this matches KL(π_ref‖π*). The objective's KL is KL(π‖π_ref): the expectation is under the policy.",
                partial(_search, mistake="turned"),
            ),
            Mistake(
                "1/β",
                "this is 1/β: π* is π_ref exp(r/β)/Z, not π_ref exp(β r)/Z.",
                partial(_search, mistake="product"),
            ),
            Mistake(
                "bits",
                "the KL is in bits here: use the natural logarithm.",
                partial(_search, mistake="bits"),
            ),
            Mistake(
                "wrong half",
                "the search ends at an end of its range: if the KL of π* is too large, β must be raised.",
                partial(_search, mistake="wrong half"),
            ),
        ),
        hints=(
            "The KL of π* falls as β rises. So halve an interval: which half holds the β you want?",
            "Search between 1e-4 and 1e4, and take the geometric mean as the middle, because the scale of β is "
            "unknown.",
            "`log_star = (log_ref + reward / beta).log_softmax(-1)`; its KL is `(log_star.exp() * (log_star - "
            "log_ref)).sum()`. If that is too large, `low = beta`.",
        ),
    ),
    Exercise(
        key="nb10.regret_in_two",
        title="Two ways to fall short",
        objective="split a method's regret into the loss below the frontier and the loss from its place on it",
        difficulty=3,
        minutes=10,
        cases=(
            Case("four responses, β = 0.5, β′ = 0.8", _SPLIT),
            Case("the same with β = 2", _SPLIT | {"beta": 2.0}),
        ),
        solution=regret_in_two,
        mistakes=(
            Mistake(
                "swapped",
                "the parts are swapped: the first is the loss below the frontier, from the policy to its twin.",
                partial(_parts, mistake="swapped"),
            ),
            Mistake(
                "β twice",
                "both parts have the factor β here, but below the frontier it is β′, the slope at the twin.",
                partial(_parts, mistake="beta twice"),
            ),
            Mistake(
                "β′ twice",
                "both parts have the factor β′ here, but the regret of the twin is at β.",
                partial(_parts, mistake="twin twice"),
            ),
            Mistake(
                "swapped KL",
                "the arguments of the second KL are swapped: the twin is the first argument, because its regret to π* "
                "is computed.",
                partial(_parts, mistake="turned"),
            ),
            Mistake(
                "no β",
                "these are nats. Regret is in units of reward: each KL has its factor.",
                partial(_parts, mistake="no beta"),
            ),
            Mistake(
                "whole regret",
                "the first part is the whole regret here, β KL(π‖π*): use the KL to the twin, not to π*.",
                partial(_parts, mistake="to the star"),
            ),
        ),
        hints=(
            "Go through the twin: from π to π*_β′, and from there to π*_β. Each step is a β times a KL.",
            "Below: β′ KL(π‖π*_β′). Wrong place: β KL(π*_β′‖π*_β).",
        ),
    ),
)
