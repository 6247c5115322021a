r"""The KL-regularised objective and its optimum.

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
    """log π_ref + (r − m)/β, its logsumexp (…, 1), and m = the largest supported reward (…, 1).

    With m taken off first, the best response's exponent is exactly zero: nothing overflows at small β, and
    nothing is lost at large β. m is a constant of the calculus (it cancels), so no gradient runs through it.
    """
    best = torch.where(log_ref > -torch.inf, reward, -torch.inf).detach().amax(-1, keepdim=True)
    # A response that π_ref cannot give has no part in it, however large its reward: −∞ + ∞ would be NaN.
    reward = torch.where(log_ref > -torch.inf, reward, best)
    tilted = log_ref + (reward - best) / beta
    return tilted, tilted.logsumexp(-1, keepdim=True), best


def log_partition(log_ref: Tensor, reward: Tensor, beta: float) -> Tensor:
    r"""log Z(x) = log Σ_y π_ref(y|x) exp(r(x,y)/β).

    Args:
        log_ref: log π_ref, (…, K), nats.
        reward: r, (…, K), finite.
        beta: β > 0, the price of a nat of KL in units of reward.

    Returns:
        (…), nats. β log Z is J(π*), the best value of the objective.

    Raises:
        LabError: beta not above zero; log_ref not normalised; reward not finite; shapes that do not match.
    """
    beta = check_beta(beta)
    _check(log_ref, reward)
    _, total, best = _tilt(log_ref, reward, beta)
    return (best / beta + total).squeeze(-1)


def optimal_policy(log_ref: Tensor, reward: Tensor, beta: float) -> Tensor:
    r"""log π*(y|x) = log π_ref(y|x) + r(x,y)/β − log Z(x), shape (…, K).

    Arguments and errors as in `log_partition`. Unchanged when a function of x is added to the reward.
    """
    beta = check_beta(beta)
    _check(log_ref, reward)
    tilted, total, _ = _tilt(log_ref, reward, beta)
    return tilted - total


def implicit_reward(log_policy: Tensor, log_ref: Tensor, beta: float) -> Tensor:
    r"""r̂(x,y) = β log(π(y|x)/π_ref(y|x)), shape (…, K): the reward for which π would be optimal, up to a
    function of x (Rafailov et al. 2023, section 5; lecture, "Re-organize Preference Model").

    Responses outside the reference's support get `-inf` where the policy has no mass either: nothing is known
    of their reward. A policy with mass there is refused.

    Raises:
        LabError: beta not above zero; NaN; the policy has mass where the reference has none; shapes.
    """  # noqa: D205
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

    Where p has no mass the term is 0; where p has mass and q has none the result is +inf.

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
    # Both logs are replaced where p is zero, so that neither value nor gradient sees inf − inf; and where only q
    # is zero, because a mass so small that it rounds to 0 would make 0 · inf.
    aside = empty | outside
    gap = torch.where(aside, 0.0, log_p) - torch.where(aside, 0.0, log_q)
    finite = (torch.where(aside, 0.0, log_p.exp()) * gap).sum(-1)
    return torch.where(outside.any(-1), torch.inf, finite)


def objective(log_policy: Tensor, log_ref: Tensor, reward: Tensor, beta: float) -> Tensor:
    r"""J(π) = E_π[r] − β KL(π‖π_ref), in units of reward, shape (…).

    Lecture, "Preliminaries", RL fine-tuning phase. `-inf` where the policy leaves the reference's support.

    Raises:
        LabError: as `log_partition`, and for a log_policy that is not normalised.
    """
    beta = check_beta(beta)
    _check(log_ref, reward)
    check_responses_axis(log_policy=log_policy, log_ref=log_ref, reward=reward)
    check_log_distribution(log_policy, "log_policy")
    return (log_policy.exp() * reward).sum(-1) - beta * _kl(log_policy, log_ref)


def regret(log_policy: Tensor, log_ref: Tensor, reward: Tensor, beta: float) -> Tensor:
    r"""J(π*) − J(π) = β KL(π‖π*) ≥ 0, in units of reward, shape (…).

    Computed as the KL, which keeps its digits near the optimum where the difference of two J's has none left.
    Arguments and errors as in `objective`.
    """
    beta = check_beta(beta)
    _check(log_ref, reward)
    check_responses_axis(log_policy=log_policy, log_ref=log_ref, reward=reward)
    check_log_distribution(log_policy, "log_policy")
    tilted, total, _ = _tilt(log_ref, reward, beta)
    return beta * _kl(log_policy, tilted - total)


def frontier(log_ref: Tensor, reward: Tensor, betas: Tensor) -> tuple[Tensor, Tensor]:
    r"""(KL(π*_β‖π_ref), E_{π*_β}[r]) along `betas`: no policy with that KL has more reward.

    Args:
        log_ref: (…, K).
        reward: (…, K).
        betas: (n,), each above zero, in any order.

    Returns:
        kl (…, n) in nats, and expected reward (…, n).

    Raises:
        LabError: as `log_partition`.
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
    r"""p(i ≻ j) = σ(r_i − r_j), shape (…, K, K): the Bradley–Terry probability that row beats column.

    Lecture, "Preliminaries", reward-modelling phase. The diagonal is ½.

    Raises:
        LabError: reward not finite.
    """
    check_float(reward, "reward")
    check_responses_axis(reward=reward)
    check_finite(reward, "reward")
    return torch.sigmoid(reward.unsqueeze(-1) - reward.unsqueeze(-2))
