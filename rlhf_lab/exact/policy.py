r"""The KL-regularised objective J, its optimum π*, the partition function Z, the regret and the frontier.

    J(π)    = E_π[r] − β KL(π‖π_ref)
    π*(y|x) = π_ref(y|x) exp(r(x,y)/β) / Z(x),   Z(x) = Σ_y π_ref(y|x) exp(r(x,y)/β)
    J(π*) − J(π) = β KL(π‖π*)

Rafailov et al. 2023, equations 3–5 and appendix A.1; lecture, "Optimal Solution to the KL-constrained Reward
Maximization". Left out on purpose: the expectation over prompts, which is the caller's mean over leading axes.
"""

import torch
from torch import Tensor

from rlhf_lab.errors import (
    LabError,
    check_beta,
    check_finite,
    check_float,
    check_log_distribution,
    check_no_nan,
    check_responses_axis,
)


def _check(log_ref: Tensor, reward: Tensor) -> None:
    check_float(log_ref, "log_ref")
    check_float(reward, "reward")
    check_responses_axis(log_ref=log_ref, reward=reward)
    check_log_distribution(log_ref, "log_ref")
    check_finite(reward, "reward")


def _tilt(log_ref: Tensor, reward: Tensor, beta: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """Return log π_ref + (r − m)/β, its logsumexp (…, 1), and m, the maximum reward on the support of π_ref (…, 1).

    After m is subtracted, the exponent of the best response is exactly 0. Nothing then overflows at small β, and no
    digits are lost at large β. m cancels in every result, so it is detached from the gradient.
    """
    best = torch.where(log_ref > -torch.inf, reward, -torch.inf).detach().amax(-1, keepdim=True)
    # The reward of a response outside the support of π_ref must not matter, and −∞ + ∞ would be NaN.
    reward = torch.where(log_ref > -torch.inf, reward, best)
    tilted = log_ref + (reward - best) / beta
    return tilted, tilted.logsumexp(-1, keepdim=True), best


def log_partition(log_ref: Tensor, reward: Tensor, beta: float) -> Tensor:
    r"""log Z(x) = log Σ_y π_ref(y|x) exp(r(x,y)/β).

    Args:
        log_ref: log π_ref, (…, K), nats.
        reward: r, (…, K), finite.
        beta: β > 0, the KL penalty per nat in units of reward.

    Returns:
        (…), nats. β log Z is J(π*), the maximum of the objective.

    Raises:
        LabError: beta not above zero; log_ref not normalised; reward not finite; shapes that do not match.
    """
    beta = check_beta(beta)
    _check(log_ref, reward)
    _, total, best = _tilt(log_ref, reward, beta)
    return (best / beta + total).squeeze(-1)


def relative_variance(log_ref: Tensor, reward: Tensor, beta: float) -> Tensor:
    r"""Var(exp(r/β))/Z² of one draw from π_ref: Z_{β/2}/Z_β² − 1 = χ²(π*‖π_ref). Divide by n for a mean of n draws.

    Args:
        log_ref: log π_ref, (…, K), nats.
        reward: r, (…, K).
        beta: β > 0.

    Returns:
        (…), ≥ 0; infinite if it overflows float64.

    Raises:
        LabError: as `log_partition`.
    """
    half = log_partition(log_ref, reward, beta / 2)
    return torch.expm1((half - 2 * log_partition(log_ref, reward, beta)).clamp(min=0.0))


def optimal_policy(log_ref: Tensor, reward: Tensor, beta: float) -> Tensor:
    r"""log π*(y|x) = log π_ref(y|x) + r(x,y)/β − log Z(x), shape (…, K).

    Arguments and errors are those of `log_partition`. A function of x that is added to the reward does not change π*.
    """
    beta = check_beta(beta)
    _check(log_ref, reward)
    tilted, total, _ = _tilt(log_ref, reward, beta)
    return tilted - total


def implicit_reward(log_policy: Tensor, log_ref: Tensor, beta: float) -> Tensor:
    r"""r̂(x,y) = β log(π(y|x)/π_ref(y|x)), shape (…, K), the implicit reward of a policy.

    It is the reward for which π is optimal, up to a function of x (Rafailov et al. 2023, section 5; lecture,
    "Re-organize Preference Model"). A response to which neither policy gives any mass has the implicit reward `-inf`,
    because nothing is known about its reward.

    Raises:
        LabError: beta not above zero; NaN; the policy has mass where the reference has none; shapes that do not match.
    """
    beta = check_beta(beta)
    check_responses_axis(log_policy=log_policy, log_ref=log_ref)
    check_no_nan(log_policy, "log_policy")
    check_no_nan(log_ref, "log_ref")
    outside = log_ref == -torch.inf
    if (outside & (log_policy > -torch.inf)).any():
        raise LabError(
            "log_policy has mass on a response where log_ref is -inf: no finite reward makes it optimal. "
            "Give both the same support."
        )
    ratio = torch.where(outside, -torch.inf, log_policy - torch.where(outside, 0.0, log_ref))
    return beta * ratio


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    r"""KL(p‖q) = Σ_y p(y) log(p(y)/q(y)), nats, shape (…).

    The term of a response is 0 where p has no mass. The result is +inf where p has mass and q has none.

    Args:
        log_p: (…, K), normalised.
        log_q: (…, K), normalised.

    Raises:
        LabError: not normalised; shapes that do not match.
    """
    check_responses_axis(log_p=log_p, log_q=log_q)
    check_log_distribution(log_p, "log_p")
    check_log_distribution(log_q, "log_q")
    return _kl(log_p, log_q)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    empty = log_p == -torch.inf
    outside = ~empty & (log_q == -torch.inf)
    # Both logarithms are replaced where p is zero, because inf − inf would be NaN in the value and in the gradient.
    # They are also replaced where only q is zero, because a p that rounds to 0 would give 0 · inf.
    aside = empty | outside
    gap = torch.where(aside, 0.0, log_p) - torch.where(aside, 0.0, log_q)
    finite = (torch.where(aside, 0.0, log_p.exp()) * gap).sum(-1)
    return torch.where(outside.any(-1), torch.inf, finite)


def objective(log_policy: Tensor, log_ref: Tensor, reward: Tensor, beta: float) -> Tensor:
    r"""J(π) = E_π[r] − β KL(π‖π_ref), in units of reward, shape (…).

    It is `-inf` for a policy with mass outside the support of the reference. Lecture, "Preliminaries", RL fine-tuning
    phase.

    Raises:
        LabError: as in `log_partition`; log_policy not normalised.
    """
    beta = check_beta(beta)
    _check(log_ref, reward)
    check_responses_axis(log_policy=log_policy, log_ref=log_ref, reward=reward)
    check_log_distribution(log_policy, "log_policy")
    return (log_policy.exp() * reward).sum(-1) - beta * _kl(log_policy, log_ref)


def regret(log_policy: Tensor, log_ref: Tensor, reward: Tensor, beta: float) -> Tensor:
    r"""J(π*) − J(π) = β KL(π‖π*) ≥ 0, in units of reward, shape (…).

    It is computed as the KL, which keeps its digits near the optimum, where the difference J(π*) − J(π) loses them.
    Arguments and errors are those of `objective`.
    """
    beta = check_beta(beta)
    _check(log_ref, reward)
    check_responses_axis(log_policy=log_policy, log_ref=log_ref, reward=reward)
    check_log_distribution(log_policy, "log_policy")
    tilted, total, _ = _tilt(log_ref, reward, beta)
    return beta * _kl(log_policy, tilted - total)


def frontier(log_ref: Tensor, reward: Tensor, betas: Tensor) -> tuple[Tensor, Tensor]:
    r"""The points (KL(π*_β‖π_ref), E_{π*_β}[r]) of the reward–KL frontier for each β in `betas`.

    No policy with the same KL has a larger expected reward.

    Args:
        log_ref: (…, K).
        reward: (…, K).
        betas: (n,), each above zero, in any order.

    Returns:
        kl (…, n) in nats, and expected reward (…, n).

    Raises:
        LabError: as in `log_partition`.
    """
    _check(log_ref, reward)
    betas = torch.as_tensor(betas, dtype=torch.promote_types(log_ref.dtype, reward.dtype), device=reward.device)
    if betas.ndim != 1 or len(betas) == 0:
        raise LabError(f"betas must be a list of numbers, shape (n,), not {tuple(betas.shape)}.")
    for value in betas.tolist():
        check_beta(value)
    log_ref, reward = torch.broadcast_tensors(log_ref, reward)
    log_ref, reward = log_ref.unsqueeze(-2), reward.unsqueeze(-2)
    tilted, total, _ = _tilt(log_ref, reward, betas.unsqueeze(-1))
    log_star = tilted - total
    return _kl(log_star, log_ref), (log_star.exp() * reward).sum(-1)


def preference(reward: Tensor) -> Tensor:
    r"""p(i ≻ j) = σ(r_i − r_j), shape (…, K, K), the Bradley–Terry probability that row i is preferred to column j.

    The diagonal is ½. Lecture, "Preliminaries", reward-modelling phase.

    Raises:
        LabError: reward not finite.
    """
    check_float(reward, "reward")
    check_responses_axis(reward=reward)
    check_finite(reward, "reward")
    return torch.sigmoid(reward.unsqueeze(-1) - reward.unsqueeze(-2))
