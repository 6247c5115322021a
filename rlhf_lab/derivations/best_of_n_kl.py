r"""The KL of best-of-n to the reference and its bound log n − (n−1)/n. For notebook 09.

Write F(v) = P_ref(r ≤ v). A response y with a unique reward corresponds to the part (F₋, F] of the unit
interval, of length π_ref(y). The best of n draws is y with probability F^n − F₋^n, the integral of n u^{n−1} over it.
Beirami et al. 2024, "Theoretical guarantees on the alignment of best-of-n policy", theorem 1.
"""

import math

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.derivations.derivation import Derivation, Line, Wrong
from rlhf_lab.derivations.random_worlds import RandomWorld


def _stretches(w: RandomWorld) -> tuple[Tensor, Tensor]:
    """(F₋, F) of every response, (X, K) each, by comparing every reward with every other."""
    mass = w.ref.unsqueeze(-2)
    above, own = w.reward.unsqueeze(-1), w.reward.unsqueeze(-2)
    return (mass * (own < above)).sum(-1), (mass * (own <= above)).sum(-1)


def _kl(w: RandomWorld) -> Tensor:
    """KL(best-of-n‖π_ref), (X,)."""
    return exact.kl(exact.best_of_n(w.log_ref, w.reward, w.n), w.log_ref)


def _as_stretches(w: RandomWorld) -> Tensor:
    below, upto = _stretches(w)
    won = upto**w.n - below**w.n
    divergence: Tensor = torch.special.xlogy(won, won / (upto - below)).sum(-1)
    return divergence


def _density_kl(w: RandomWorld, low: Tensor, high: Tensor) -> Tensor:
    """∫ g log g du from low to high, g = n u^{n−1}, by Gauss–Legendre quadrature, without an antiderivative.

    At u = 0 the derivative of u^{n−1} log u is unbounded; the substitution u = s⁴ makes the integrand smooth.
    """
    nodes, weights = _legendre(64)
    low, high = low.unsqueeze(-1) ** 0.25, high.unsqueeze(-1) ** 0.25
    s = low + (high - low) * (nodes + 1) / 2
    g = w.n * s ** (4 * (w.n - 1))
    return (weights * g * g.log() * 4 * s**3).sum(-1) * ((high - low) / 2).squeeze(-1)


def _legendre(number: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss–Legendre on [−1, 1], by the eigenvalues of its Jacobi matrix (Golub & Welsch)."""
    k = torch.arange(1, number, dtype=torch.float64)
    side = k / torch.sqrt(4 * k**2 - 1)
    values, vectors = torch.linalg.eigh(torch.diag(side, 1) + torch.diag(side, -1))
    return values, 2 * vectors[0] ** 2


def _bound(w: RandomWorld) -> Tensor:
    return torch.full((len(w.ref),), math.log(w.n) - (w.n - 1) / w.n, dtype=torch.float64)


price_of_n = Derivation(
    "price-of-n",
    "The KL of best-of-n is at most log n − (n−1)/n nats",
    lines=(
        Line(
            r"\sum_y (F_y^n - F_{y-}^n)\,\log\frac{F_y^n - F_{y-}^n}{F_y - F_{y-}}",
            r"$F_y = P_\text{ref}(r \le r(y))$: the best of n is $y$ with probability $F_y^n - F_{y-}^n$, a single "
            r"draw with $F_y - F_{y-} = \pi_\text{ref}(y)$",
            _as_stretches,
            left=r"\mathrm{KL}(\text{best-of-}n\,\|\,\pi_\text{ref})",
            left_value=_kl,
        ),
        Line(
            r"\sum_y \int_{F_{y-}}^{F_y} n u^{n-1}\log\big(n u^{n-1}\big)\,du",
            r"Jensen: $t\log t$ is convex, and $F_y^n - F_{y-}^n$ is the integral of $n u^{n-1}$ over $y$'s interval",
            lambda w: _density_kl(w, *_stretches(w)).sum(-1),
            relation="≤",
        ),
        Line(
            r"\log n + (n-1)\int_0^1 n u^{n-1}\log u\,du",
            "the intervals of all responses together are the unit interval",
            lambda w: _density_kl(w, torch.zeros(len(w.ref)).double(), torch.ones(len(w.ref)).double()),
        ),
        Line(
            r"\log n - \frac{n-1}{n}",
            r"$\int_0^1 n u^{n-1}\log u\,du = -1/n$",
            _bound,
        ),
    ),
    wrong=(
        Wrong(
            r"\log n - \tfrac{n-1}{n}",
            "the bound is taken for the value; it is exact only if every response has a small probability",
            _bound,
            1,
        ),
        Wrong(
            r"\log n - \tfrac{n}{n-1}",
            "the fraction is inverted",
            lambda w: _bound(w) + (w.n - 1) / w.n - w.n / (w.n - 1),
            4,
        ),
        Wrong(
            r"\log n",
            "this is log n alone, which is a bound but too large by one nat for large n",
            lambda w: torch.full_like(_bound(w), math.log(w.n)),
            4,
        ),
    ),
    source="Beirami et al. 2024, theorem 1; lecture, RSO's table, in which RAFT clones best-of-n.",
)
