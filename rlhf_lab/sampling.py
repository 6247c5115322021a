r"""Statistical rejection sampling: from candidates of π_sft to samples of π_r ∝ π_sft exp(r/β).

A candidate y is accepted when u < exp((r(y) − r_max)/β), u ~ U[0,1]; r_max is the largest reward among the
candidates not yet accepted, so that 1/M = exp(…) is as large as it may be. Liu et al. 2023 (RSO), section 3.2 and
Algorithm 1; lecture, "How to sample from π_r? Rejection Sampling!".

With r_max taken afresh after every acceptance the procedure *is* sampling without replacement with weights
exp(r/β): each round accepts candidate i with probability proportional to exp(r_i/β) among those left. And that
is Gumbel-top-k on r/β (Kool, van Hoof & Welling 2019): add independent Gumbel noise, take the largest.
`rejection_sample` does the second, all prompts at once; `algorithm_1` the first, as printed.

β → 0 is best-of-n (top-k); β → ∞ is sampling from the reference. Pure functions of rewards: candidates are named
by their index.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from rlhf_lab.errors import (
    LabError,
    check_finite,
    check_float,
    check_log_distribution,
    check_responses_axis,
)
from rlhf_lab.randomness import uniform
from rlhf_lab.rounding import rounding


def _check(rewards: Tensor, num_samples: int, beta: float) -> float:
    check_float(rewards, "rewards")
    if rewards.ndim != 2:
        raise LabError(f"rewards must have shape (B, G), not {tuple(rewards.shape)}; add a prompt axis with [None].")
    check_finite(rewards, "rewards")
    whole = isinstance(num_samples, int | float) and not isinstance(num_samples, bool)
    if not (whole and math.isfinite(num_samples) and int(num_samples) == num_samples and num_samples >= 1):
        raise LabError(f"num_samples must be a whole number of at least 1, not {num_samples!r}.")
    if num_samples > rewards.shape[1]:
        raise LabError(
            f"{num_samples} distinct samples asked of {rewards.shape[1]} candidates: draw more candidates or ask "
            f"for fewer samples."
        )
    return _check_beta_closed(beta)


def _check_beta_closed(beta: float) -> float:
    """β with both its limits: 0 (best-of-n) and inf (the reference) are meant and exact."""
    try:
        number = float(beta)
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number) or number < 0:
        raise LabError(f"beta must lie in [0, inf], not {beta!r}: 0 is best-of-n, inf is the reference.")
    return number


@torch.no_grad()
def rejection_sample(
    rewards: Tensor, num_samples: int, beta: float, generator: torch.Generator | None = None
) -> Tensor:
    r"""Accepted candidates of each prompt, in the order of acceptance: Gumbel-top-k on r/β.

    Args:
        rewards: (B, G) scores of G candidates from the SFT policy, finite.
        num_samples: how many to accept, 1 … G.
        beta: β in [0, inf]. At 0 the best, ties within rounding in random order; at inf uniform.
        generator: source of randomness, on the rewards' device.

    Returns:
        (B, num_samples) int64, distinct in each row. P(first = i) ∝ exp(r_i/β), and so on among those left.

    Raises:
        LabError: fewer candidates than samples; rewards not finite or not (B, G); beta negative or NaN.
    """
    beta = _check(rewards, num_samples, beta)
    batch, candidates = rewards.shape
    noise = uniform((batch, candidates), generator, rewards.device)
    # −log(−log u); u = 0 would give −inf, an ordinary last place.
    gumbel = -torch.log(-torch.log(noise))
    best = rewards.amax(-1, keepdim=True)
    gap = rewards.double() - best.double()
    if beta == 0:
        score = torch.where(gap.abs() <= rounding(rewards, best), 0.0, gap)
    elif math.isinf(beta):
        score = gumbel
    else:
        score = gap / beta + gumbel
    if beta > 0 and score.amin() > -1e6:
        return score.topk(num_samples, -1).indices
    # So far down doubles hold little or nothing of the noise, and candidates that tie would come out by
    # position: shuffle by the noise first, and let a stable sort keep that order among ties. So too at β = 0.
    order = gumbel.argsort(dim=-1, descending=True)
    order = order.gather(-1, score.gather(-1, order).argsort(dim=-1, descending=True, stable=True))
    return order[:, :num_samples]


@torch.no_grad()
def algorithm_1(
    rewards: Tensor,
    num_samples: int,
    beta: float,
    generator: torch.Generator | None = None,
    *,
    shuffle: bool = True,
    maximum: Literal["remaining", "pass"] = "remaining",
) -> Tensor:
    r"""RSO's Algorithm 1, candidate by candidate: for reading, teaching and testing `rejection_sample` against.

    What the printed loop does, and what became of it here:
        (a) it merges equal strings: candidates are indices here, distinct by construction;
        (b) it never ends when fewer distinct candidates than samples are there: refused at once;
        (c) it divides 0 by 0 at β = 0: there exactly the candidates at the maximum are accepted;
        (d) it scans in order and stops early, so early candidates are favoured: `shuffle=True` draws the
            candidate at random each time, `False` scans as printed;
        (e) it takes the maximum once a pass: `maximum="remaining"` takes it afresh after every acceptance,
            `"pass"` as printed.
    With the defaults the result has exactly the distribution of `rejection_sample`; with `shuffle=False,
    maximum="pass"` it is the printed loop, which has not.

    Args and errors as in `rejection_sample`. The expected number of draws for one acceptance is at most G.
    """
    beta = _check(rewards, num_samples, beta)
    if maximum not in ("remaining", "pass"):
        raise LabError(f"maximum must be 'remaining' or 'pass', not {maximum!r}.")
    accepted = [
        _algorithm_1_one(row, num_samples, beta, generator, shuffle, maximum) for row in rewards.double().cpu().tolist()
    ]
    return torch.tensor(accepted, device=rewards.device)


def _algorithm_1_one(
    rewards: list[float],
    num_samples: int,
    beta: float,
    generator: torch.Generator | None,
    shuffle: bool,
    maximum: str,
) -> list[int]:
    device = generator.device if generator is not None else "cpu"

    def coin() -> float:
        return torch.rand((), dtype=torch.float64, generator=generator, device=device).item()

    left = list(range(len(rewards)))
    accepted: list[int] = []
    while len(accepted) < num_samples:
        r_max = max(rewards[i] for i in left)
        for place in range(len(left)) if not shuffle else range(1):
            i = left[int(coin() * len(left))] if shuffle else left[place]
            if i in accepted:
                continue
            if maximum == "remaining":
                r_max = max(rewards[j] for j in left if j not in accepted)
            if coin() < _acceptance(rewards[i] - r_max, beta):
                accepted.append(i)
                if len(accepted) == num_samples:
                    break
        left = [i for i in left if i not in accepted]
    return accepted


def _acceptance(gap: float, beta: float) -> float:
    if beta == 0:
        return float(gap >= 0)
    return math.exp(min(gap / beta, 0.0))


def acceptance_rate(log_ref: Tensor, reward: Tensor, beta: float) -> Tensor:
    r"""E_ref[exp((r − r_max)/β)] = 1/M: the chance that a draw from the reference is accepted, shape (…).

    Args:
        log_ref: log π_ref, (…, K).
        reward: r, (…, K), finite. r_max is over the responses that the reference can draw.
        beta: β in [0, inf]. At 0 it is the mass of the best responses; at inf it is 1.

    Raises:
        LabError: log_ref not normalised; reward not finite; beta negative or NaN; shapes.
    """
    beta = _check_beta_closed(beta)
    check_float(reward, "reward")
    check_responses_axis(log_ref=log_ref, reward=reward)
    check_log_distribution(log_ref, "log_ref")
    check_finite(reward, "reward")
    best = torch.where(log_ref > -torch.inf, reward, -torch.inf).amax(-1, keepdim=True)
    if beta == 0:
        exponent = torch.where(reward >= best, 0.0, -torch.inf)
    else:
        exponent = (reward - best).clamp(max=0.0) / beta
    return (log_ref + exponent).exp().sum(-1).clamp(max=1.0)
