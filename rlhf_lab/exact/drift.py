r"""Slowly drifting rewards: the regret of a fit to old labels, the best window of labels, and when to fit again.

The reward moves with the angular speed ω, in radians per round. Each round brings n labels, and the policy is the
optimum of a reward fitted to the labels of the last W rounds. A new fit is made every k rounds. Labels of age a are
labels of the reward of a rounds ago, so the mean age of what the policy knows is (W+k)/2 rounds. By the delta method
the expected regret of a round is

    P/(nW)  +  D [((W+k)/2)² + (k²−1)/12],     P = tr(Σ I⁺)/(2β),   D = ω² Var_{π*}(dr/dωt) / (2β).

The first term is the estimation error, with P from `exact.label_price`, and the second is the drift. At k = 1 the best
window solves W²(W+1) = 2P/(nD). It is about (2P/(nD))^{1/3}, and the drift term is then half of the estimation term.

The setting is that of Bai et al. 2022, section 4.5, and of the lecture, "Non-static Environment". Left out
on purpose: models that extrapolate the drift, and labels that are spent where they are needed most.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlhf_lab.errors import LabError, check_beta
from rlhf_lab.exact.policy import optimal_policy, preference


def pair_information(features: Tensor, mass: Tensor, reward: Tensor) -> Tensor:
    r"""The Fisher information of one label about θ, where r = Φθ; (…, d, d).

    It is Σ_{i≠j} m_i m_j p_ij p_ji Δ Δᵀ / (1 − Σ m²) with Δ = φ_i − φ_j. A pair is two different responses drawn from
    `mass`.

    Args:
        features: Φ, (K, d).
        mass: the probabilities of the policy that responds, (…, K), summing to 1.
        reward: the true reward, (…, K).
    """
    p = preference(reward)
    edges = mass.unsqueeze(-1) * mass.unsqueeze(-2) * p * (1 - p)
    both: Tensor = features * edges.sum(-1, keepdim=True) - edges @ features
    return 2 * features.mT @ both / (1 - mass.square().sum(-1))[..., None, None]


def spread(features: Tensor, log_policy: Tensor) -> Tensor:
    """Φᵀ Σ Φ with Σ = diag(π) − ππᵀ, (…, d, d): the covariance of the features under the policy."""
    mass = log_policy.exp()
    mean = mass @ features
    return features.mT @ (features * mass.unsqueeze(-1)) - mean.unsqueeze(-1) * mean.unsqueeze(-2)


def price(features: Tensor, log_ref: Tensor, reward: Tensor, beta: float, mass: Tensor | None = None) -> Tensor:
    """P = tr(ΦᵀΣΦ I⁺)/(2β), (…): `exact.label_price` for a linear reward model, in units of reward × labels.

    Args:
        features: Φ, (K, d). No linear combination of the columns may be constant over the responses.
        log_ref: log π_ref, (…, K).
        reward: the true reward, (…, K).
        beta: β > 0.
        mass: the probabilities of the policy from which pairs are drawn, (…, K); π_ref by default.
    """
    beta = check_beta(beta)
    star = optimal_policy(log_ref, reward, beta)
    information = pair_information(features, log_ref.exp() if mass is None else mass, reward)
    solved: Tensor = torch.linalg.solve(information, spread(features, star))
    return solved.diagonal(dim1=-2, dim2=-1).sum(-1) / (2 * beta)


def drift_cost(log_ref: Tensor, reward: Tensor, velocity: Tensor, beta: float) -> Tensor:
    """Var_{π*}(velocity)/(2β), (…): the regret of a policy that is one radian late, to leading order.

    D is ω² times this number.
    """
    mass = optimal_policy(log_ref, reward, beta).exp()
    mean = (mass * velocity).sum(-1, keepdim=True)
    return (mass * (velocity - mean).square()).sum(-1) / (2 * check_beta(beta))


def window_regret(price: float, drift: float, labels: float, window: float, every: float = 1) -> float:
    """The long-run expected regret of a round, with a fit to the last `window` rounds made every `every` rounds.

    Args:
        price: P, units of reward × labels.
        drift: D, units of reward per round².
        labels: n per round.
        window: W, rounds.
        every: k, rounds.
    """
    return price / (labels * window) + drift * (((window + every) / 2) ** 2 + (every**2 - 1) / 12)


def forgetting_regret(price: float, drift: float, labels: float, keep: float) -> float:
    """The same regret if a label of age a has the weight keep^(a−1), with a fit every round and `keep` in (0, 1)."""
    return price / labels * (1 - keep) / (1 + keep) + drift / (1 - keep) ** 2


def best_window(price: float, drift: float, labels: float, every: float = 1) -> float:
    """The W that minimises `window_regret`, not rounded: the root of W²(W + k) = 2P/(nD). Infinite without drift."""
    if drift <= 0:
        return math.inf
    wanted = 2 * price / (labels * drift)
    low, high = 0.0, math.pow(wanted, 1 / 3)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if middle**2 * (middle + every) < wanted else (low, middle)
    return (low + high) / 2


def best_rhythm(price: float, drift: float, labels: float, cost: float, most: int = 1000) -> tuple[int, int, float]:
    """The window W and the rounds k between fits that minimise regret plus retraining cost, and that minimum per round.

    With an expensive fit, k is about (3 cost/(2 D))^{1/3} for any number of labels.

    Args:
        price: P.
        drift: D > 0.
        labels: n per round.
        cost: of one retraining, in units of reward summed over rounds.
        most: the maximum k that is tried.
    """
    if drift <= 0:
        raise LabError("Without drift there is no best rhythm. Fit whenever labels arrive, and keep all of them.")
    best = (1, 1, math.inf)
    for every in range(1, most + 1):
        middle = best_window(price, drift, labels, every)
        for window in {max(1, math.floor(middle)), max(1, math.ceil(middle))}:
            total = window_regret(price, drift, labels, window, every) + cost / every
            if total < best[2]:
                best = (window, every, total)
        if every > 3 + 3 * best[1]:
            break
    return best


def once_regret(price: float, drift: float, labels: float, rounds: int) -> float:
    """The mean regret of a round where all n·T labels are collected and fitted before round 1."""
    return price / (labels * rounds) + drift * (rounds + 1) * (2 * rounds + 1) / 6


def deployed_regret(price: float, drift: float, labels: float, rounds: int, window: float) -> float:
    """The mean regret of a round where n labels arrive in each round and those of the last `window` rounds are used."""
    return sum(window_regret(price, drift, labels, min(t, window)) for t in range(1, rounds + 1)) / rounds


def best_deployed(price: float, drift: float, labels: float, rounds: int) -> int:
    """The whole window that minimises `deployed_regret`."""
    return min(range(1, rounds + 1), key=lambda window: deployed_regret(price, drift, labels, rounds, window))


def break_even(price: float, labels: float, rounds: int) -> float:
    """The drift D above which labels spread over the rounds have less regret than as many labels at the start.

    It is 0 for a single round. In units of P/(nT³) it depends on T alone, so with more labels a smaller drift suffices.
    """
    scale = price / (labels * rounds**3)

    def gain(drift: float) -> float:
        window = best_deployed(price, drift, labels, rounds)
        return once_regret(price, drift, labels, rounds) - deployed_regret(price, drift, labels, rounds, window)

    low, high = 0.0, scale
    while gain(high) < 0:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if gain(middle) > 0 else (middle, high)
    return (low + high) / 2
