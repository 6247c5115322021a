r"""Block 3, statistical rejection sampling: its exactness, its acceptance rate, and its Gumbel form.

π_r ∝ π_sft exp(r/β); a draw y of π_sft is accepted when u < π_r(y)/(M π_sft(y)) = exp((r(y) − r_max)/β). In the
code π_sft is the reference. Lecture, "How to sample from π_r? Rejection Sampling!".
"""

import torch
from torch import Tensor

from rlhf_lab import exact, sampling
from rlhf_lab.derivations.derivation import Derivation, Line, Wrong
from rlhf_lab.derivations.random_worlds import RandomWorld


def _m(w: RandomWorld) -> Tensor:
    """M = max_y π_r/π_sft, (X, 1)."""
    return (w.star / w.ref).amax(-1, keepdim=True)


def _accept(w: RandomWorld) -> Tensor:
    """exp((r − r_max)/β), (X, K)."""
    return torch.exp((w.reward - w.reward.amax(-1, keepdim=True)) / w.beta)


acceptance = Derivation(
    "acceptance",
    "A draw is accepted with probability 1/M",
    lines=(
        Line(
            r"\sum_y \pi_\text{sft}(y)\,\frac{\pi_r(y)}{M\,\pi_\text{sft}(y)}",
            r"a draw is accepted if $u \sim U[0,1]$ is below the ratio; the left side is `sampling.acceptance_rate`",
            lambda w: (w.ref * (w.star / (_m(w) * w.ref))).sum(-1),
            left=r"P(\text{accept})",
            left_value=lambda w: sampling.acceptance_rate(w.log_ref, w.reward, w.beta),
        ),
        Line(
            r"\frac{1}{M},\quad M = \max_y\frac{\pi_r(y)}{\pi_\text{sft}(y)}",
            r"$\pi_\text{sft}$ cancels and $\pi_r$ sums to one",
            lambda w: 1 / _m(w).squeeze(-1),
        ),
        Line(
            r"Z\,e^{-r_\text{max}/\beta}",
            r"$\pi_r/\pi_\text{sft} = e^{r/\beta}/Z$ is maximal where $r$ is maximal",
            lambda w: w.z.squeeze(-1) * torch.exp(-w.reward.amax(-1) / w.beta),
        ),
        Line(
            r"\mathbb{E}_{\pi_\text{sft}}\big[e^{(r - r_\text{max})/\beta}\big]",
            r"$Z$ is an expectation under $\pi_\text{sft}$; a small β gives a small acceptance rate",
            lambda w: (w.ref * _accept(w)).sum(-1),
        ),
    ),
    wrong=(
        Wrong(r"M", "the fraction is inverted, which gives a probability above one", lambda w: _m(w).squeeze(-1), 2),
        Wrong(
            r"\frac{1}{M},\quad M = \max_y\frac{\pi_\text{sft}(y)}{\pi_r(y)}",
            "the ratio is inverted; the envelope is that of the wrong distribution",
            lambda w: 1 / (w.ref / w.star).amax(-1),
            2,
        ),
        Wrong(
            r"\mathbb{E}_{\pi_r}\big[e^{(r - r_\text{max})/\beta}\big]",
            "this is the mean under the target, from which we cannot draw yet",
            lambda w: (w.star * _accept(w)).sum(-1),
            4,
        ),
        Wrong(
            r"\mathbb{E}_{\pi_\text{sft}}\big[e^{\beta(r - r_\text{max})}\big]",
            "β is on the wrong side of the fraction",
            lambda w: (w.ref * torch.exp(w.beta * (w.reward - w.reward.amax(-1, keepdim=True)))).sum(-1),
            4,
        ),
    ),
    source="Liu et al. 2024 (RSO), section 3.2; lecture, “How to sample from π_r? Rejection Sampling!”.",
)


def _absorbed(w: RandomWorld) -> Tensor:
    """P(the first accepted is y) of the absorbing Markov chain of draws, by a linear system, (X, K)."""
    size = w.reward.shape[-1]
    go_on = (1 - _accept(w)).unsqueeze(-1) * w.ref.unsqueeze(-2)  # y is refused, y' is offered next
    ends: Tensor = torch.linalg.solve(torch.eye(size, dtype=torch.float64) - go_on, torch.diag_embed(_accept(w)))
    return (w.ref.unsqueeze(-2) @ ends).squeeze(-2)


def _after_many_rounds(w: RandomWorld, rounds: int = 40) -> Tensor:
    """P(the first accepted is y), summed over the first 2^`rounds` draws, (X, K)."""
    one = w.ref * _accept(w)  # accepted in the first round
    still = 1 - one.sum(-1, keepdim=True)  # nothing accepted so far
    total = one
    for _ in range(rounds):  # P in 2n rounds = P in n + P(nothing in n) · P in n
        total, still = total + still * total, still * still
    return total


accepted_are_exact = Derivation(
    "accepted-are-exact",
    "Accepted draws follow π_r exactly",
    lines=(
        Line(
            r"\sum_{t=1}^{\infty} P(\text{reject})^{t-1}\,\pi_\text{sft}(y)\,e^{(r(y) - r_\text{max})/\beta}",
            "y is accepted at draw t if no earlier draw was accepted (summed up to t = 2⁴⁰; the left side solves the "
            "Markov chain)",
            _after_many_rounds,
            left=r"P(\text{first accepted} = y)",
            left_value=_absorbed,
        ),
        Line(
            r"\frac{\pi_\text{sft}(y)\,e^{(r(y) - r_\text{max})/\beta}}{P(\text{accept})}",
            r"geometric series: $\sum_t q^{t-1} = 1/(1-q)$",
            lambda w: w.ref * _accept(w) / sampling.acceptance_rate(w.log_ref, w.reward, w.beta).unsqueeze(-1),
        ),
        Line(
            r"\frac{\pi_\text{sft}(y)\cdot\pi_r(y)/(M\pi_\text{sft}(y))}{1/M}",
            r"$P(\text{accept}) = 1/M$, and the acceptance is $\pi_r/(M\pi_\text{sft})$",
            lambda w: w.ref * (w.star / (_m(w) * w.ref)) / (1 / _m(w)),
        ),
        Line(
            r"\pi_r(y)",
            r"$\pi_\text{sft}$ and $M$ cancel",
            lambda w: exact.optimal_policy(w.log_ref, w.reward, w.beta).exp(),
        ),
    ),
    wrong=(
        Wrong(
            r"\propto\;\pi_\text{sft}(y)\,e^{\beta(r(y) - r_\text{max})}",
            "β is on the wrong side in the acceptance",
            lambda w: (w.log_ref + w.beta * w.reward).softmax(-1),
            4,
        ),
        Wrong(
            r"\propto\;\pi_\text{sft}(y)\,\min\big(1, e^{r(y)/\beta}\big)",
            r"$r_\text{max}$ is missing, so that every reward above zero is accepted equally",
            lambda w: _normalised(w.ref * torch.exp(w.reward / w.beta).clamp(max=1.0)),
            4,
        ),
        Wrong(
            r"\propto\;e^{(r(y) - r_\text{max})/\beta}",
            r"the factor $\pi_\text{sft}$ of the draws is missing",
            lambda w: (w.reward / w.beta).softmax(-1),
            4,
        ),
    ),
    source="von Neumann 1951; Liu et al. 2024, appendix A; lecture, “How to sample from π_r?”.",
)


def _normalised(weights: Tensor) -> Tensor:
    return weights / weights.sum(-1, keepdim=True)


def _weights(w: RandomWorld) -> Tensor:
    """exp(r/β) of the first prompt's candidates, (K,), proportional to their acceptance probabilities."""
    return torch.exp(w.reward[0] / w.beta)


_GRID = torch.linspace(-8.0, 45.0, 2401, dtype=torch.float64)


def _race(w: RandomWorld) -> tuple[Tensor, Tensor, Tensor]:
    """Of each candidate's noisy score r/β + Gumbel on a grid of scores: P(below), P(above), density, (K, grid)."""
    shift = (_weights(w).log() - _weights(w).log().mean()).unsqueeze(-1)
    away = torch.exp(-(_GRID - shift))
    return torch.exp(-away), -torch.expm1(-away), away * torch.exp(-away)


def _first_by_integral(w: RandomWorld) -> Tensor:
    """P(candidate i has the highest noisy score), by the trapezoid rule on the densities, (K,)."""
    below, _, density = _race(w)
    size = len(below)
    others = torch.stack([below[[k for k in range(size) if k != i]].prod(0) for i in range(size)])
    return (density * others).sum(-1) * (_GRID[1] - _GRID[0])


def _two_by_integral(w: RandomWorld) -> Tensor:
    """P(i has the highest, j the second highest noisy score): i above, j at, the rest below, (K, K)."""
    below, above, density = _race(w)
    size = len(below)
    chance = torch.zeros(size, size, dtype=torch.float64)
    for i in range(size):
        for j in range(size):
            if i != j:
                rest = below[[k for k in range(size) if k not in (i, j)]].prod(0)
                chance[i, j] = (above[i] * density[j] * rest).sum() * (_GRID[1] - _GRID[0])
    return chance


def _in_turn(w: RandomWorld, replace: bool = False) -> Tensor:
    """w_i/W · w_j/(W − w_i), (K, K), zero diagonal; with `replace`, w_i/W · w_j/W with its diagonal."""
    p = _weights(w) / _weights(w).sum()
    if replace:
        return p.unsqueeze(-1) * p
    chance = p.unsqueeze(-1) * p / (1 - p.unsqueeze(-1))
    return chance - torch.diag(chance.diagonal())


def _by_rejection(w: RandomWorld) -> Tensor:
    """Two acceptances of Algorithm 1, with r_max over the remaining candidates, which are drawn uniformly, (K, K)."""
    reward, size = w.reward[0], w.reward.shape[-1]
    chance = torch.zeros(size, size, dtype=torch.float64)
    first = torch.exp((reward - reward.amax()) / w.beta)
    for i in range(size):
        left = [k for k in range(size) if k != i]
        second = torch.exp((reward[left] - reward[left].amax()) / w.beta)
        chance[i, left] = first[i] / first.sum() * second / second.sum()
    return chance


gumbel_top_k = Derivation(
    "gumbel-top-k",
    "Gumbel-top-k is equivalent to rejection sampling: two accepted candidates",
    lines=(
        Line(
            r"\frac{w_i}{\sum_k w_k},\quad w_k = e^{r_k/\beta}",
            r"the Gumbel-max trick; the left side is a numerical integral of the densities",
            lambda w: _weights(w) / _weights(w).sum(),
            left=r"P\big(i = \arg\max_k\,(\tfrac{r_k}{\beta} + G_k)\big)",
            left_value=_first_by_integral,
        ),
        Line(
            r"\frac{w_i}{\sum_k w_k}\cdot\frac{w_j}{\sum_{k\ne i} w_k}",
            "the second largest is the largest of the remaining ones; the left side is integrated numerically",
            _in_turn,
            left=r"P(i \text{ highest},\; j \text{ second})",
            left_value=_two_by_integral,
        ),
        Line(
            r"\frac{e^{(r_i - r_\text{max})/\beta}}{\sum_k e^{(r_k - r_\text{max})/\beta}}\cdot"
            r"\frac{e^{(r_j - r'_\text{max})/\beta}}{\sum_{k\ne i} e^{(r_k - r'_\text{max})/\beta}}",
            r"rejection sampling with $r_\text{max}$ over the remaining candidates; any maximum cancels",
            _by_rejection,
        ),
    ),
    wrong=(
        Wrong(
            r"\frac{w_i}{\sum_k w_k}\cdot\frac{w_j}{\sum_k w_k}",
            "this is with replacement, so that the same candidate could be accepted twice",
            lambda w: _in_turn(w, replace=True),
            2,
        ),
        Wrong(
            r"\frac{w_i}{\sum_k w_k},\quad w_k = e^{\beta r_k}",
            "β is on the wrong side of the fraction",
            lambda w: (w.beta * w.reward[0]).softmax(-1),
            1,
        ),
        Wrong(
            r"\frac{w_i}{\sum_k w_k},\quad w_k = \pi_\text{sft}(k)\,e^{r_k/\beta}",
            r"$\pi_\text{sft}$ is counted twice; the candidates were drawn from it already",
            lambda w: w.star[0],
            1,
        ),
    ),
    source="Kool, van Hoof & Welling 2019, section 2; Liu et al. 2024, algorithm 1.",
)


def _best_by_listing(w: RandomWorld) -> Tensor:
    """P(best of n draws = y) by enumeration of all K^n draws, (X, K)."""
    size = w.reward.shape[-1]
    chance = torch.zeros_like(w.reward)
    draws = torch.cartesian_prod(*[torch.arange(size)] * w.n)
    for x in range(len(w.reward)):
        winner = draws.gather(1, w.reward[x][draws].argmax(-1, keepdim=True)).squeeze(-1)
        chance[x].index_add_(0, winner, w.ref[x][draws].prod(-1))
    return chance


def _cdf(w: RandomWorld) -> tuple[Tensor, Tensor]:
    """F(y) = P_ref(r ≤ r(y)) and F⁻(y) = P_ref(r < r(y)), (X, K) each."""
    other = w.reward.unsqueeze(-2)
    own = w.reward.unsqueeze(-1)
    mass = w.ref.unsqueeze(-2)
    return (mass * (other <= own)).sum(-1), (mass * (other < own)).sum(-1)


best_of_n = Derivation(
    "best-of-n",
    "Best-of-n: its probabilities and its KL",
    lines=(
        Line(
            r"P(\text{all } r(y_i) \le r(y)) - P(\text{all } r(y_i) < r(y))",
            "the best is y if no draw is better and not all are worse; the left side enumerates all draws",
            lambda w: exact.best_of_n(w.log_ref, w.reward, w.n).exp(),
            left=r"P(\text{best of } n = y)",
            left_value=_best_by_listing,
        ),
        Line(
            r"F(y)^n - F^-(y)^n",
            r"the draws are independent; $F(y) = P_{\pi_\text{ref}}(r \le r(y))$, and $F^-$ with $<$ (no ties here)",
            lambda w: _cdf(w)[0] ** w.n - _cdf(w)[1] ** w.n,
        ),
        Line(
            r"\log n - \frac{n-1}{n}",
            "this is an upper bound; it is tight only if every response has a small probability",
            lambda w: torch.tensor(w.n, dtype=torch.float64).log() - (w.n - 1) / w.n,
            left=r"\mathrm{KL}(\text{best-of-}n\|\pi_\text{ref})",
            left_value=lambda w: exact.kl(exact.best_of_n(w.log_ref, w.reward, w.n), w.log_ref),
            relation="≤",
        ),
    ),
    wrong=(
        Wrong(
            r"n\,\pi_\text{ref}(y)\,F(y)^{n-1}",
            "this is the formula for a density, but draws from a finite set can repeat",
            lambda w: w.n * w.ref * _cdf(w)[0] ** (w.n - 1),
            2,
        ),
        Wrong(
            r"F(y)^n",
            r"$F^-$ is not subtracted",
            lambda w: _cdf(w)[0] ** w.n,
            2,
        ),
        Wrong(
            r"\pi^*(y)\text{ at some }\beta\text{, here }\beta = 1/n",
            "“best-of-n is π* for a suitable β”, but it depends only on the order of the rewards",
            lambda w: (w.log_ref + w.n * w.reward).softmax(-1),
            2,
        ),
    ),
    source="Beirami et al. 2024, for the bound; Stiennon et al. 2020, appendix G.3.",
)
