r"""Best-of-n: the exact distribution of the best of n draws from π_ref, which is also the target of RAFT.

    π_n(y) = π_ref(y) · (F(r(y))^n − F(r(y)−)^n) / P_ref(r = r(y)),   F(v) = P_ref(r ≤ v)

It reweights π_ref by a function of the reward's rank, where π* reweights by exp(r/β). Dong et al. 2023 (RAFT);
Beirami et al. 2024 (the bound on its KL divergence).
"""

import math

import torch
from torch import Tensor

from rlhf_lab.errors import LabError
from rlhf_lab.exact.policy import _check
from rlhf_lab.rounding import levels


def best_of_n(log_ref: Tensor, reward: Tensor, n: int) -> Tensor:
    r"""Exact log-probabilities of the best of `n` independent draws from π_ref, shape (…, K).

    The best draw has the reward v with probability F(v)^n − F(v−)^n, where F(v) = P_ref(r ≤ v). Responses with equal
    rewards share this probability in proportion to π_ref. Rewards that are equal within rounding count as equal.
    KL(best-of-n‖π_ref) is at most log n − (n−1)/n (Beirami et al. 2024).

    Args:
        log_ref: (…, K).
        reward: (…, K), finite.
        n: number of draws, at least 1. With n = 1 the result is π_ref.

    Raises:
        LabError: n below 1 or not whole; log_ref not normalised; reward not finite; shapes that do not match.
    """
    if isinstance(n, bool) or not isinstance(n, int | float) or not math.isfinite(n) or int(n) != n or n < 1:
        raise LabError(f"n must be a whole number of at least 1, not {n!r}.")
    _check(log_ref, reward)
    log_ref, reward = torch.broadcast_tensors(log_ref, reward)
    level = levels(reward)
    gain = _log_win_over_mass(_log_mass(log_ref, level), int(n))
    return log_ref + gain.gather(-1, level)


def _log_mass(log_p: Tensor, level: Tensor) -> Tensor:
    """Log of the mass of each reward level, (…, K) indexed by level; `-inf` for a level without mass."""
    top = torch.full_like(log_p, -torch.inf).scatter_reduce(-1, level, log_p.detach(), "amax")
    top = torch.where(top == -torch.inf, 0.0, top)
    total = torch.zeros_like(log_p).scatter_add(-1, level, (log_p - top.gather(-1, level)).exp())
    return torch.where(total > 0, torch.where(total > 0, total, 1.0).log() + top, -torch.inf)


def _log_win_over_mass(log_mass: Tensor, n: int) -> Tensor:
    """log((F^n − F_below^n) / mass) of each level, in ascending order; 0 for a level without mass.

    F^n − F_below^n = F^n (1 − (1 − mass/F)^n), with every factor as a logarithm. log F is computed from the sum of the
    levels below if F is small, and from 1 − (the sum of the levels above) if F is near 1, so that it keeps its digits.
    """
    empty = log_mass == -torch.inf
    mass = log_mass.exp()
    above = torch.nn.functional.pad(mass.flip(-1).cumsum(-1).flip(-1)[..., 1:], (0, 1))
    # The derivative of logcumsumexp is NaN at -inf; exp(-10000) is 0 in either precision.
    log_below = torch.where(empty, -1e4, log_mass).logcumsumexp(-1)
    log_cdf = torch.where(above < 0.5, torch.log1p(-above.clamp(max=0.75)), log_below)

    log_ratio = torch.where(empty, -1.0, log_mass - log_cdf)
    tiny = log_ratio < -60.0  # mass/F is below 1e-26, so the first term of the expansion is exact
    ratio = torch.where(tiny, 0.5, log_ratio).exp().clamp(max=1 - torch.finfo(log_mass.dtype).eps)
    log_share = torch.log(-torch.expm1(n * torch.log1p(-ratio)))
    log_share = torch.where(tiny, math.log(n) + log_ratio, log_share)
    return torch.where(empty, 0.0, n * log_cdf + log_share - torch.where(empty, 0.0, log_mass))
