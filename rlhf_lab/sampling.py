r"""Statistical rejection sampling (RSO): samples of π_r ∝ π_sft exp(r/β) from candidates of π_sft.

A candidate y is accepted if u < exp((r(y) − r_max)/β), where u ~ U[0,1] and r_max is the maximum reward of the
candidates that are not accepted yet. Liu et al. 2023 (RSO), section 3.2 and Algorithm 1; lecture, "How to sample from
π_r? Rejection Sampling!".

If r_max is computed again after every acceptance, this is sampling without replacement with the weights exp(r/β). Among
the remaining candidates, the next accepted one is i with a probability proportional to exp(r_i/β). The same
distribution has a faster algorithm, Gumbel-top-k (Kool, van Hoof & Welling 2019), which adds independent Gumbel noise
to r/β and takes the k largest sums. `rejection_sample` uses Gumbel-top-k for all prompts together. `algorithm_1` is the
loop of the paper.

The limit β → 0 is best-of-n (top-k), and the limit β → ∞ is sampling from the reference. The functions depend on the
rewards only, and a candidate is given by its index.
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
            f"{rewards.shape[1]} candidates do not contain {num_samples} distinct samples. Draw more candidates, or "
            f"accept fewer samples."
        )
    return _check_beta_closed(beta)


def _check_beta_closed(beta: float) -> float:
    """Return β as a number, or raise `LabError`. The limits 0 (best-of-n) and inf (the reference) are allowed."""
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
    r"""Draw the accepted candidates of each prompt, in the order of acceptance, by Gumbel-top-k on r/β.

    Args:
        rewards: (B, G) scores of G candidates from the SFT policy, finite.
        num_samples: how many candidates to accept, 1 … G.
        beta: β in [0, inf]. At 0 the best candidates are accepted, with ties (within rounding) in random order. At inf
            all candidates are equally likely.
        generator: source of randomness, on the rewards' device.

    Returns:
        indices (B, num_samples) int64, distinct in each row. P(first = i) ∝ exp(r_i/β), and the same holds for each
        further one among the remaining candidates.

    Raises:
        LabError: fewer candidates than samples; rewards not finite or not (B, G); beta negative or NaN.
    """
    beta = _check(rewards, num_samples, beta)
    batch, candidates = rewards.shape
    noise = uniform((batch, candidates), generator, rewards.device)
    # u = 0 gives −inf, which is ranked last.
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
    # Scores as low as this, in float64, lose the noise in rounding, and tied candidates would be ordered by their
    # position. So the candidates are shuffled by the noise first, and a stable sort keeps this order among ties. The
    # same is done at β = 0.
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
    r"""RSO's Algorithm 1, candidate by candidate, for reading and for testing `rejection_sample`.

    The printed loop has five properties that are treated here as follows:
        (a) It merges equal strings. Here candidates are indices, which are always distinct.
        (b) It never ends if there are fewer distinct candidates than samples. Here this is an error.
        (c) It divides 0 by 0 at β = 0. Here exactly the candidates with the maximum reward are accepted.
        (d) It goes through the candidates in order and stops early, so early candidates are more likely to be
            accepted. `shuffle=True` draws a candidate at random each time; `shuffle=False` is the printed order.
        (e) It computes the maximum once per pass. `maximum="remaining"` computes it after every acceptance;
            `maximum="pass"` is the printed rule.
    With the defaults the result has exactly the distribution of `rejection_sample`. The printed loop, `shuffle=False`
    and `maximum="pass"`, has another distribution. The expected number of draws per acceptance is at most G.

    Args:
        rewards: as in `rejection_sample`.
        num_samples: as in `rejection_sample`.
        beta: as in `rejection_sample`.
        generator: source of randomness.
        shuffle: see (d).
        maximum: see (e).

    Returns:
        indices (B, num_samples) int64, in the order of acceptance.

    Raises:
        LabError: as in `rejection_sample`; an unknown `maximum`.
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

    def draw() -> float:
        return torch.rand((), dtype=torch.float64, generator=generator, device=device).item()

    left = list(range(len(rewards)))
    accepted: list[int] = []
    while len(accepted) < num_samples:
        r_max = max(rewards[i] for i in left)
        for place in range(len(left)) if not shuffle else range(1):
            i = left[int(draw() * len(left))] if shuffle else left[place]
            if i in accepted:
                continue
            if maximum == "remaining":
                r_max = max(rewards[j] for j in left if j not in accepted)
            if draw() < _acceptance(rewards[i] - r_max, beta):
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
    r"""The probability E_ref[exp((r − r_max)/β)] that a draw from the reference is accepted, shape (…).

    Args:
        log_ref: log π_ref, (…, K).
        reward: r, (…, K), finite. r_max is the maximum over the responses that the reference can draw.
        beta: β in [0, inf]. At 0 the result is the mass of the best responses, and at inf it is 1.

    Raises:
        LabError: log_ref not normalised; reward not finite; beta negative or NaN; shapes that do not match.
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
