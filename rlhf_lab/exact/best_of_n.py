r"""Best-of-n, soft best-of-n and RSO: the exact distributions of what they keep of n draws from π_ref.

    best of n        π_n(y) = π_ref(y) · (F(r(y))^n − F(r(y)−)^n) / P_ref(r = r(y)),   F(v) = P_ref(r ≤ v)
    soft best of n   π(y) = n π_ref(y) ∫ w_y e^{−t w_y} M(t)^(n−1) dt,   w = exp(r/β),   M(t) = E_ref[e^{−t w}]

Best-of-n, which is also the target of RAFT, reweights π_ref by a function of the reward's rank, where π* reweights by
exp(r/β). Soft best-of-n draws one of the n candidates with probability proportional to exp(r/β). It is best-of-n for
β → 0, and π* for n → ∞. RSO accepts k of the n candidates by the same rule without replacement, so that soft best-of-n
is its case k = 1. Dong et al. 2023 (RAFT); Beirami et al. 2024 (the bound on the KL divergence of best-of-n); Verdun et
al. 2025 (soft best-of-n); Liu et al. 2024 (RSO, Algorithm 1).
"""

import math

import torch
from torch import Tensor

from rlhf_lab.errors import LabError, check_beta
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
    n = _whole(n, "n")
    _check(log_ref, reward)
    log_ref, reward = torch.broadcast_tensors(log_ref, reward)
    level = levels(reward)
    gain = _log_win_over_mass(_log_mass(log_ref, level), n)
    return log_ref + gain.gather(-1, level)


def soft_best_of_n(log_ref: Tensor, reward: Tensor, beta: float, n: int, accepted: int = 1) -> Tensor:
    r"""Exact log-probabilities of soft best-of-n, or of one of the responses that RSO accepts, shape (…, K).

    `n` candidates are drawn from π_ref, and `accepted` of them are taken without replacement with weights exp(r/β). The
    result is the distribution of a random one of those. The candidates are taken in the order of independent waiting
    times with the rates exp(r/β), so y is among the first k where at most k − 1 of the n − 1 others were faster:

        π(y) = (n/k) π_ref(y) ∫ w_y e^{−t w_y} P(Binomial(n − 1, 1 − M(t)) ≤ k − 1) dt

    For many candidates KL(π‖π*) tends to ((k+1)/2n)² Var_{π*}(π*/π_ref)/2. The integral is computed by the trapezoid
    rule in log t, whose error is of the size of rounding. Its time grows with the range of the rewards divided by β.

    Args:
        log_ref: (…, K).
        reward: (…, K), finite.
        beta: β > 0, in units of reward.
        n: number of candidates, at least 1.
        accepted: k, from 1 (soft best-of-n) to n (the result is π_ref).

    Raises:
        LabError: n or accepted not whole or out of range; beta not above zero; log_ref not normalised; reward not
            finite; shapes that do not match.
    """
    n, accepted, beta = _whole(n, "n"), _whole(accepted, "accepted"), check_beta(beta)
    if accepted > n:
        raise LabError(f"{n} candidates do not contain {accepted} responses to accept. Raise n or lower accepted.")
    _check(log_ref, reward)
    dtype = torch.promote_types(log_ref.dtype, reward.dtype)
    log_ref, reward = torch.broadcast_tensors(log_ref.double(), reward.double())
    best = torch.where(log_ref > -torch.inf, reward, -torch.inf).detach().amax(-1, keepdim=True)
    weight = torch.where(log_ref > -torch.inf, reward - best, 0.0) / beta  # log w, at most 0
    counts = torch.arange(accepted, dtype=torch.float64, device=log_ref.device)
    ways = ((n - counts) / counts.clamp(min=1)).log().where(counts > 0, 0.0).cumsum(0)  # log of the binomials
    # Beyond these ends every response's integral has less than 1e-17 of its value.
    low, high = -math.log(n) - 42.0, math.log(45.0) - float(weight.detach().min())
    step = min(0.2, 0.6 / math.sqrt(accepted))
    parts = []
    for log_t in torch.arange(low, high + step, step, dtype=torch.float64, device=log_ref.device).split(256):
        # (…, K, T): log(t w), limited so that exp stays finite.
        clock = (weight.unsqueeze(-1) + log_t).clamp(max=700.0)
        # log(1 − exp(−t w)), which is log(t w) where t w is small.
        won = torch.where(clock < -30, clock, torch.log(-torch.expm1(-clock.clamp(min=-30.0).exp())))
        early = (log_ref.unsqueeze(-1) + won).logsumexp(-2, keepdim=True)  # log(1 − M)
        late = (log_ref.unsqueeze(-1) - clock.exp()).logsumexp(-2, keepdim=True)  # log M; near M = 1 from 1 − M
        late = torch.where(early < -0.7, torch.log1p(-early.clamp(max=-0.7).exp()), late)
        # (…, 1, T): the probability that at most k − 1 others were faster, a sum over their number.
        few = (ways + counts * early.unsqueeze(-1) + (n - 1 - counts) * late.unsqueeze(-1)).logsumexp(-1)
        parts.append((clock - clock.exp() + few).logsumexp(-1))
    log_gain = torch.stack(parts, -1).logsumexp(-1) + math.log(step * n / accepted)
    return (log_ref + log_gain).to(dtype)


def _whole(number: int, name: str) -> int:
    """Return a whole number of at least 1, or raise `LabError`."""
    known = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
    if not (known and number == int(number) >= 1):
        raise LabError(f"{name} must be a whole number of at least 1, not {number!r}.")
    return int(number)


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
