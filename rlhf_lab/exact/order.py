r"""Policies that only the order of the rewards shapes: best-of-n (RAFT's target) and ReST's filter.

Both are π_ref reweighted, like π*, but by a function of the reward's rank, not by exp(r/β). Dong et al. 2023
(RAFT); Gulcehre et al. 2023 (ReST), the filter F(x,y;τ) = 1[R(x,y) > τ]; lecture, "Reinforced Self-Training
Algorithm".
"""

import math

import torch
from torch import Tensor

from rlhf_lab.errors import LabError, first_true_index
from rlhf_lab.exact.policy import _check
from rlhf_lab.rounding import levels, wins


def best_of_n(log_ref: Tensor, reward: Tensor, n: int) -> Tensor:
    r"""Exact log-probabilities of the best of `n` independent draws from π_ref, shape (…, K).

    With F(v) = P_ref(r ≤ v), a reward level v wins with probability F(v)^n − F(v−)^n, and the responses of one
    level share that in proportion to π_ref; rewards that are equal within rounding are one level.
    KL(best-of-n‖π_ref) is at most log n − (n−1)/n (Beirami et al. 2024).

    Args:
        log_ref: (…, K).
        reward: (…, K), finite.
        n: number of draws, at least 1; n = 1 gives π_ref back.

    Raises:
        LabError: n below 1 or not whole; log_ref not normalised; reward not finite; shapes.
    """
    if isinstance(n, bool) or not isinstance(n, int | float) or not math.isfinite(n) or int(n) != n or n < 1:
        raise LabError(f"n must be a whole number of at least 1, not {n!r}.")
    _check(log_ref, reward)
    log_ref, reward = torch.broadcast_tensors(log_ref, reward)
    level = levels(reward)
    gain = _log_win_over_mass(_log_mass(log_ref, level), int(n))
    return log_ref + gain.gather(-1, level)


def _log_mass(log_p: Tensor, level: Tensor) -> Tensor:
    """Log of the mass of each level, (…, K) indexed by level; `-inf` for a level with none."""
    top = torch.full_like(log_p, -torch.inf).scatter_reduce(-1, level, log_p.detach(), "amax")
    top = torch.where(top == -torch.inf, 0.0, top)
    total = torch.zeros_like(log_p).scatter_add(-1, level, (log_p - top.gather(-1, level)).exp())
    return torch.where(total > 0, torch.where(total > 0, total, 1.0).log() + top, -torch.inf)


def _log_win_over_mass(log_mass: Tensor, n: int) -> Tensor:
    """log((F^n − F_below^n) / mass) of each level, in ascending order; 0 for a level without mass.

    F^n − F_below^n = F^n (1 − (1 − mass/F)^n), every factor as a logarithm. log F is read from the side on
    which it keeps its digits: from the sum below when F is small, from 1 − (the sum above) when F is near 1.
    """
    empty = log_mass == -torch.inf
    mass = log_mass.exp()
    above = torch.nn.functional.pad(mass.flip(-1).cumsum(-1).flip(-1)[..., 1:], (0, 1))
    # logcumsumexp's derivative does not bear -inf; e^-10000 is as good as nothing.
    log_below = torch.where(empty, -1e4, log_mass).logcumsumexp(-1)
    log_cdf = torch.where(above < 0.5, torch.log1p(-above.clamp(max=0.75)), log_below)

    log_ratio = torch.where(empty, -1.0, log_mass - log_cdf)
    tiny = log_ratio < -60.0  # mass/F below 1e-26: the first term of the expansion is exact
    ratio = torch.where(tiny, 0.5, log_ratio).exp().clamp(max=1 - torch.finfo(log_mass.dtype).eps)
    log_share = torch.log(-torch.expm1(n * torch.log1p(-ratio)))
    log_share = torch.where(tiny, math.log(n) + log_ratio, log_share)
    return torch.where(empty, 0.0, n * log_cdf + log_share - torch.where(empty, 0.0, log_mass))


def filtered(log_ref: Tensor, reward: Tensor, threshold: Tensor | float) -> Tensor:
    r"""log of π_ref conditioned on r > τ, shape (…, K): where one filter and cloning end, in the limit of data.

    It is not π*: above the threshold it keeps π_ref's proportions, however much better one response is.

    Args:
        log_ref: (…, K).
        reward: (…, K), finite.
        threshold: τ, a number or a tensor that broadcasts to (…, 1), in units of reward. The inequality is strict,
            and a reward that equals τ within rounding does not pass.

    Raises:
        LabError: nothing with mass passes in some row (its index, best reward and τ are named); inputs as in
            `best_of_n`.
    """
    _check(log_ref, reward)
    threshold = torch.as_tensor(threshold, dtype=reward.dtype, device=reward.device)
    if torch.isnan(threshold).any():
        raise LabError("threshold is nan; give a number in units of reward.")
    log_ref, reward = torch.broadcast_tensors(log_ref, reward)
    passes = (wins(reward, threshold) == 1) & (log_ref > -torch.inf)
    none = ~passes.any(-1)
    if none.any():
        best = torch.where(log_ref > -torch.inf, reward, -torch.inf).amax(-1)[none][0].item()
        tau = torch.broadcast_to(threshold, reward.shape)[..., 0][none][0].item()
        place = f" at {first_true_index(none)}" if none.ndim else ""
        raise LabError(
            f"No response passes the filter{place}: the best reward is {best:g} and the threshold {tau:g} "
            f"(r > threshold is strict). Lower the threshold."
        )
    kept = torch.where(passes, log_ref, -torch.inf)
    return kept - kept.logsumexp(-1, keepdim=True)
