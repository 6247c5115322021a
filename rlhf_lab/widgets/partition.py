r"""Explorer of Monte Carlo estimates of the partition function: their spread around the exact log Z.

    Ẑ = (1/n) Σ_i exp(r(y_i)/β),  y_i ~ π_ref          Var(Ẑ)/Z² = χ²(π*‖π_ref)/n

The estimates for all n use the same draws, which depend neither on β nor on the reward. They are drawn once, and moving
a slider costs one small matrix product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.errors import LabError, check_beta, check_finite, check_log_distribution, check_positive
from rlhf_lab.figures.picture import Axis, Band, Curve, Panel, Picture, Readout, Rule
from rlhf_lab.intervals import typeset
from rlhf_lab.language import tr
from rlhf_lab.randomness import Stream
from rlhf_lab.training import seeded
from rlhf_lab.widgets.explorer import Explorer, Slider

DOUBLINGS = 14
"""The largest number of samples is 2^14 = 16,384."""


def word_levels(words: int = 20, good: float = 0.25) -> tuple[Tensor, Tensor]:
    r"""A world of 2^words responses, grouped by the number of good words: π_ref and score of each group.

    Every word is good with probability `good` under the reference, and the reward is R times the share of good
    words. All responses with the same number of good words have the same reward, so the sum over 2^words
    responses is a sum over words + 1 levels: Z = (1 − good + good·exp(R/(words·β)))^words.

    Args:
        words: L, 1 to 1000.
        good: the reference's probability of a good word, in (0, 1).

    Returns:
        log π_ref of each level, (L + 1,), nats; the score, (L + 1,), in [0, 1].

    Raises:
        LabError: an argument out of its range.
    """
    if not 1 <= words <= 1000 or not 0 < good < 1:
        raise LabError(f"words must be in 1 … 1000 and good in (0, 1), not {words} and {good}.")
    k = torch.arange(words + 1, dtype=torch.float64)
    whole = torch.tensor(float(words), dtype=torch.float64)
    ways = torch.lgamma(whole + 1) - torch.lgamma(k + 1) - torch.lgamma(whole - k + 1)
    return (ways + k * math.log(good) + (whole - k) * math.log1p(-good)).log_softmax(-1), k / words


@dataclass(frozen=True)
class DrawCounts:
    """Counts of each response in independent runs of up to 2^m draws from π_ref.

    Attributes:
        counts: (m + 1, runs, K) float64: after 1, 2, 4, …, 2^m draws of each run.
    """

    counts: Tensor

    @property
    def numbers(self) -> Tensor:
        """n: 1, 2, 4, …, (m + 1,)."""
        return self.counts[:, 0].sum(-1)

    def estimates(self, reward: Tensor, beta: float) -> Tensor:
        """log Ẑ of every run after every number of draws, (m + 1, runs), nats. `reward` is (K,)."""
        beta = check_beta(beta)
        best = reward.max()  # subtracted against overflow, and added again to the logarithm
        total = self.counts @ torch.exp((reward - best) / beta)
        if total.min() > 1e-290:
            log_total = best / beta + total.log()
        else:
            # The sum of a run without a good response may underflow. The sum in logarithms does not, but is slower.
            log_total = torch.logsumexp(self.counts.log() + reward / beta, -1)
        return log_total - self.numbers.log().unsqueeze(-1)


def draw(log_ref: Tensor, runs: int = 200, seed: int = 0, doublings: int = DOUBLINGS) -> DrawCounts:
    """`runs` runs of 2^doublings draws from π_ref, (K,).

    Raises:
        LabError: log_ref is not one normalised row; runs below 1; doublings below 0.
    """
    check_log_distribution(log_ref, "log_ref")
    if log_ref.ndim != 1 or runs < 1 or doublings < 0:
        raise LabError(
            f"log_ref must be (K,), runs at least 1 and doublings at least 0, not {tuple(log_ref.shape)}, {runs} "
            f"and {doublings}."
        )
    ends = log_ref.double().exp().cumsum(-1)
    uniform = (
        torch.rand(runs, 2**doublings, dtype=torch.float64, generator=seeded(seed, Stream.PARTITION_DRAWS)) * ends[-1]
    )
    drawn = torch.searchsorted(ends, uniform, right=True).clamp(max=len(log_ref) - 1)
    counts, sofar, start = [], torch.zeros(runs, len(log_ref), dtype=torch.float64), 0
    for k in range(doublings + 1):
        part = drawn[:, start : 2**k]
        sofar = sofar.scatter_add(1, part, torch.ones_like(part, dtype=torch.float64))
        counts.append(sofar)
        start = 2**k
    return DrawCounts(torch.stack(counts))


def partition_picture(
    log_ref: Tensor, score: Tensor, draws: DrawCounts, doublings: int, beta: float, reward_range: float
) -> Picture:
    """Draw the estimates of log Z by number of samples, and the distributions of the samples and of the terms of Z.

    Args:
        log_ref: log π_ref of the responses (or of levels of equal reward), (K,).
        score: (K,), in [0, 1], in ascending order; the reward is `reward_range` times it.
        draws: from `draw(log_ref)`.
        doublings: k, for n = 2^k samples, as far as the draws go.
        beta: β > 0, reward per nat.
        reward_range: R > 0, reward.

    Returns:
        the picture; its numbers are the exact log Z, the median estimate, the exact relative standard deviation of
        Ẑ, and the number of samples for 10%.

    Raises:
        LabError: β or R not above zero; no such number of doublings.
    """
    if not 0 <= doublings < len(draws.counts):
        raise LabError(f"doublings must be in 0 … {len(draws.counts) - 1}, not {doublings}.")
    reward = check_positive(reward_range, "reward_range") * score
    log_z = float(exact.log_partition(log_ref, reward, beta))
    variance = float(exact.relative_variance(log_ref, reward, beta))
    levels = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)
    low, middle, high = torch.quantile(draws.estimates(reward, beta) - log_z, levels, dim=-1)
    n, at = draws.numbers, doublings
    now = int(n[at])
    scatter = Panel(
        tr("Error of {runs} estimates", runs=draws.counts.shape[1]),
        Axis("samples n", 1.0, float(n[-1]), log=True),
        Axis("log Ẑ − log Z [nats]", -8.0, 3.0),
        (
            Band("reward", n, low, high, "90% of estimates"),
            Curve("reward", n, middle, "median"),
            Rule("optimal", 0.0, "y", "exact", "-"),
            Rule("reward", now, "x", f"n = {now:,}", ":"),
        ),
    )
    log_star = exact.optimal_policy(log_ref, reward, beta)
    top = max(float(log_ref.max().exp()), float(log_star.max().exp()))
    why = Panel(
        "Samples and terms of Z",
        Axis("reward r [reward]"),
        Axis("share", 0.0, max(0.3, 1.1 * top)),
        (
            Curve("reference", reward, log_ref.exp(), "samples, π_ref"),
            Curve("optimal", reward, log_star.exp(), "terms of Z, π*"),
        ),
    )
    error = math.sqrt(variance / now)
    needed = max(1.0, 100 * variance)
    words = tr(
        "With R/β = {ratio:.3g} and n = {now} samples, 90% of the estimates of log Z are between {low} and {high} nats "
        "of the exact {log_z:.2f}. The relative standard deviation of Ẑ is {error:.2g}; 10% requires n = {needed}.",
        ratio=reward_range / beta, now=now, low=typeset(float(low[at]), "+.2g"), high=typeset(float(high[at]), "+.2g"),
        log_z=log_z, error=error, needed=_count(needed),
    )  # fmt: skip
    numbers = (
        Readout("log Z", log_z, "nats", 2),
        Readout("median log Ẑ", log_z + float(middle[at]), "nats", 2),
        Readout("sd(Ẑ)/Z", error),
        Readout("n for 10%", needed, "samples", 0),
    )
    return Picture(words, (scatter, why), numbers)


def _count(number: float) -> str:
    return f"{number:,.0f}" if number < 1e6 else f"{number:.1e}"


def partition_explorer(
    log_ref: Tensor | None = None,
    score: Tensor | None = None,
    beta: float = 0.4,
    reward_range: float = 8.0,
    runs: int = 200,
    seed: int = 0,
) -> Explorer:
    """Show Monte Carlo estimates of Z with sliders for the number of samples, β, and the range of the reward.

    Args:
        log_ref: log π_ref, (K,), K ≤ 400; None for a million responses of twenty words (`word_levels`).
        score: r over its range, (K,), from 0 to 1; None with `log_ref` None.
        beta: β at the start, in [0.25, 8].
        reward_range: R at the start, in [1, 8].
        runs: number of estimates.
        seed: seed of the draws.

    Raises:
        LabError: one of log_ref and score without the other; shapes that differ; too many responses; a score
            outside [0, 1].
    """
    if (log_ref is None) != (score is None):
        raise LabError("Give both log_ref and score, or neither.")
    if log_ref is None or score is None:
        log_ref, score = word_levels()
    log_ref, score = log_ref.detach().double(), score.detach().double()
    if log_ref.ndim != 1 or log_ref.shape != score.shape or len(log_ref) > 400:
        raise LabError(
            f"log_ref {tuple(log_ref.shape)} and score {tuple(score.shape)} must both be (K,) with K ≤ 400. "
            f"Merge responses of equal reward."
        )
    check_finite(score, "score")
    if float(score.min()) < 0 or float(score.max()) > 1:
        raise LabError("score must be in [0, 1]. The explorer multiplies it by the range of the reward.")
    order = score.argsort(stable=True)
    log_ref, score = log_ref[order], score[order]
    draws = draw(log_ref, runs, seed)

    def compute(doublings: int, beta: float, reward_range: float) -> Picture:
        return partition_picture(log_ref, score, draws, doublings, beta, reward_range)

    controls = {
        "doublings": Slider(8, 0, DOUBLINGS, "k, for n = 2ᵏ samples", whole=True),
        "beta": Slider(beta, 0.25, 8.0, "β [reward per nat]", log=True),
        "reward_range": Slider(reward_range, 1.0, 8.0, "range R of the reward [reward]", step=0.5),
    }
    return Explorer(compute, controls, "Monte Carlo estimates of Z")
