r"""The limits of GRPO and its variants on a bandit, by enumeration of all groups.

    w(y) = E[A_1 | y_1 = y]                  the expected advantage of a response in a group of G samples of π
    k3   π = β π_ref / (c − w)               the stationary point with β k3 in the loss, c(x) normalises it
    k2   π ∝ π_ref exp(w/β)                  the same with β k2 in the loss

The gradient of KL(π_ref‖π), which is that of the k3 term, is π − π_ref in the logits of a table, and that of the
advantages is π w. Where they balance, π has the first form. With a fixed reward in place of w it is the maximum of
E_π[r] − β KL(π_ref‖π). In general w depends on π, because a group is sampled from π, and the limit is a fixed point.

Shao et al. 2024 (GRPO), equations 3 and 4; Liu et al. 2025 (Dr. GRPO). Left out: responses of several tokens, for
which k3 is a sum over tokens and the limit is not a function of the responses' probabilities alone.
"""

import itertools
import math
from typing import Literal

import torch
from torch import Tensor

from rlhf_lab.errors import LabError, check_beta
from rlhf_lab.exact.policy import _check, optimal_policy
from rlhf_lab.rounding import centred, standardised

LARGEST = 2_000_000
"""The maximum number of scores that `expected_advantage` enumerates for a prompt."""
STEPS = 5_000
"""The maximum number of iterations of `grpo_limit`."""


def expected_advantage(log_policy: Tensor, reward: Tensor, samples: int, divide_by_std: bool = True) -> Tensor:
    r"""w(y) = E[A_1 | y_1 = y], (…, K): GRPO's expected advantage of a response, over the other G − 1 samples.

    A_i = (r_i − mean_j r_j) / std_j r_j with the population standard deviation, and 0 if all rewards are equal.
    The expected gradient of GRPO's surrogate is Σ_y π(y) w(y) ∇log π(y). Without the division,
    w = (G−1)/G (r − E_π[r]).

    Args:
        log_policy: log π, (…, K).
        reward: r, (…, K), finite.
        samples: G ≥ 2.
        divide_by_std: whether advantages are divided by the standard deviation of their group.

    Raises:
        LabError: samples below 2; more groups than can be enumerated; inputs as in `optimal_policy`.
    """
    _check(log_policy, reward)
    if samples < 2:
        raise LabError(
            f"samples must be at least 2, not {samples}. A response is compared with the others of its group."
        )
    log_policy, reward = torch.broadcast_tensors(log_policy, reward)
    size = reward.shape[-1]
    number = math.comb(samples - 1 + size - 1, size - 1)
    if number * size * samples > LARGEST:
        raise LabError(
            f"A group of {samples} samples out of {size} responses has {number:,} compositions, too many to enumerate. "
            f"Use fewer samples or responses."
        )
    others = torch.tensor(list(itertools.combinations_with_replacement(range(size), samples - 1)))  # (M, G − 1)
    counts = torch.nn.functional.one_hot(others, size).sum(1).to(reward.dtype)
    orders = torch.lgamma(counts.sum(-1) + 1) - torch.lgamma(counts + 1).sum(-1)
    # 0 · (−inf) is a response without mass that does not occur, and its factor is 1.
    mass = torch.where(counts > 0, counts * log_policy.unsqueeze(-2), 0.0).sum(-1)
    probability = (orders + mass).exp()  # (…, M)
    scores = reward[..., others].unsqueeze(-3)  # (…, 1, M, G − 1)
    first = reward[..., :, None, None].expand(*reward.shape, len(others), 1)
    groups = torch.cat([first, scores.expand(*first.shape[:-1], samples - 1)], -1)  # (…, K, M, G)
    advantage = standardised(groups) if divide_by_std else centred(groups)
    return (advantage[..., 0] * probability.unsqueeze(-2)).sum(-1)


def reverse_kl_optimum(log_ref: Tensor, reward: Tensor, beta: float) -> Tensor:
    r"""log of π = β π_ref/(c − r), (…, K), the maximum of E_π[r] − β KL(π_ref‖π); c(x) > max r normalises it.

    The optimum is not π*. Its ratio π/π_ref is rational in the reward, and not exponential.

    Args:
        log_ref: log π_ref, (…, K), finite: without mass at a response the divergence does not limit it.
        reward: r, (…, K), finite.
        beta: β > 0.

    Raises:
        LabError: beta not above zero; a response without mass; inputs as in `optimal_policy`.
    """
    beta = check_beta(beta)
    _check(log_ref, reward)
    if not torch.isfinite(log_ref).all():
        raise LabError("log_ref must be finite. KL(π_ref‖π) does not limit a response to which π_ref gives no mass.")
    log_ref, reward = torch.broadcast_tensors(log_ref, reward)
    gap = reward.amax(-1, keepdim=True) - reward  # c − r = offset + gap
    ref = log_ref.exp()
    high = torch.full_like(gap[..., :1], beta)
    low = (beta * ref - gap).amax(-1, keepdim=True).clamp(min=0.0)  # no term of the sum exceeds 1
    for _ in range(80):
        offset = (low + high) / 2
        too_small = (beta * ref / (offset + gap)).sum(-1, keepdim=True) > 1
        low, high = torch.where(too_small, offset, low), torch.where(too_small, high, offset)
    return (math.log(beta) + log_ref - torch.log(high + gap)).log_softmax(-1)


def grpo_limit(
    log_ref: Tensor,
    reward: Tensor,
    beta: float,
    samples: int,
    divide_by_std: bool = True,
    penalty: Literal["k2", "k3"] = "k3",
) -> Tensor:
    r"""log π at which GRPO's expected update on a bandit is zero, (…, K), found by iteration from π_ref.

    Each iteration moves half of the way, in log π, to the optimum for the expected advantages w of the current policy.

    Args:
        log_ref: log π_ref, (…, K), finite.
        reward: r, (…, K), finite.
        beta: β > 0.
        samples: G ≥ 2.
        divide_by_std: as in `expected_advantage`. Dr. GRPO does not divide.
        penalty: the KL term in the loss, whose gradient is ∇KL(π_ref‖π) (k3) or ∇KL(π‖π_ref) (k2).

    Raises:
        LabError: the iteration does not converge; inputs as in `expected_advantage` and `reverse_kl_optimum`.
    """
    optimum = reverse_kl_optimum if penalty == "k3" else optimal_policy
    log_policy = log_ref
    for _ in range(STEPS):
        target = optimum(log_ref, expected_advantage(log_policy, reward, samples, divide_by_std), beta)
        if (target - log_policy).abs().max() < 1e-11:
            return target
        log_policy = ((log_policy + target) / 2).log_softmax(-1)
    raise LabError(f"The limit of GRPO was not found in {STEPS} iterations at beta={beta}. Increase beta or samples.")
