r"""The best window of labels while preferences drift. For notebook 13.

Rewards drift, r_{t−a} = cos(ωa) r − sin(ωa) u: a rounds ago the reward was rotated backwards, against its velocity u. A
reward model is fitted to n labels per round of the last W rounds, and its optimal policy is deployed in round t.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.derivations.derivation import Derivation, Line, Wrong
from rlhf_lab.derivations.random_worlds import RandomWorld, random_world


@dataclass(frozen=True)
class Drifting(RandomWorld):
    """A world whose rewards drift.

    Attributes:
        velocity: u = dr/d(ωt), (X, K).
        omega: ω, radians per round.
        labels: n, labels per round.
        window: W, a whole number of rounds.
    """

    velocity: Tensor
    omega: float
    labels: float
    window: int

    @cached_property
    def price(self) -> Tensor:
        """P, the asymptotic variance in the first prompt."""
        return exact.label_price(self.log_ref[0], self.reward[0], self.beta, self.pair_weights[0])


def drifting(generator: torch.Generator) -> Drifting:
    """A random world with at least three responses, so that rewards can rotate; only the first prompt is used."""
    w = random_world(generator)
    while w.reward.shape[-1] < 3:
        w = random_world(generator)
    draw = torch.rand(3, dtype=torch.float64, generator=generator).tolist()
    kept = {field.name: getattr(w, field.name) for field in fields(RandomWorld)}
    velocity = torch.randn(w.reward.shape, dtype=torch.float64, generator=generator)
    return Drifting(
        **kept, velocity=velocity, omega=0.01 * 10 ** draw[0], labels=10 ** (1 + draw[1]), window=2 + int(8 * draw[2])
    )


def _curvature(f: object) -> Tensor:
    """f''(0) by autograd, twice."""
    x = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(f(x), x, create_graph=True)  # type: ignore[operator]
    return torch.autograd.grad(slope, x)[0]


def _regret_of(w: Drifting, estimate: Tensor) -> Tensor:
    """Regret in the first prompt of the optimum for an estimated reward, (K,)."""
    return exact.regret(exact.optimal_policy(w.log_ref[0], estimate, w.beta), w.log_ref[0], w.reward[0], w.beta)


def _ago(w: Drifting, turned: Tensor) -> Tensor:
    """The reward before it was rotated by `turned` radians."""
    return turned.cos() * w.reward[0] - turned.sin() * w.velocity[0]


def _variance(w: Drifting) -> Tensor:
    """Var_{π*}(u)."""
    star, u = w.star[0], w.velocity[0]
    return (star * u.square()).sum() - (star * u).sum() ** 2


def _window_mean(w: Drifting, omega: Tensor) -> Tensor:
    """The mean reward over the last W rounds, which is the limit of a fit to slowly drifting labels."""
    return torch.stack([_ago(w, omega * age) for age in range(1, w.window + 1)]).mean(0)


def _drift(w: Drifting) -> Tensor:
    """D = ω² Var_{π*}(u)/(2β)."""
    return w.omega**2 * _variance(w) / (2 * w.beta)


def _total(w: Drifting, window: Tensor) -> Tensor:
    return w.price / (w.labels * window) + _drift(w) * ((window + 1) / 2) ** 2


def _root(w: Drifting, power: float = 2.0) -> Tensor:
    """The W with W^power (W + 1) = 2P/(nD), by halving."""
    wanted = float(2.0 * w.price / (w.labels * _drift(w)))
    low, high = 0.0, max(wanted, 1.0)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if middle**power * (middle + 1) < wanted else (low, middle)
    return torch.tensor((low + high) / 2, dtype=torch.float64)


def _share(w: Drifting) -> Tensor:
    """The regret from drift divided by that from estimation, at the best window."""
    best = _root(w)
    return _drift(w) * ((best + 1) / 2) ** 2 / (w.price / (w.labels * best))


best_window_derivation = Derivation(
    "best-window",
    "The best number of rounds of labels",
    world=drifting,
    lines=(
        Line(
            r"\frac{1}{\beta}\,\mathrm{Var}_{\pi^*}(u)",
            r"the logits of a policy that is late by an angle $a$ are off by $a\,u/\beta$; the KL has the curvature "
            r"Σ, and $u^\top\Sigma u$ is a variance. Autograd computes the left side",
            lambda w: _variance(w) / w.beta,
            left=r"\frac{d^2}{da^2}\Big|_0\, \mathrm{regret}\big(\pi^*_{r\cos a - u\sin a}\big)",
            left_value=lambda w: _curvature(lambda a: _regret_of(w, _ago(w, a))),
        ),
        Line(
            r"\Big(\frac{W+1}{2}\Big)^2\,\frac{1}{\beta}\,\mathrm{Var}_{\pi^*}(u)",
            r"the labels of the last $W$ rounds are $1, \dots, W$ rounds old, and the fit has their mean age",
            lambda w: ((w.window + 1) / 2) ** 2 * _variance(w) / w.beta,
            left=r"\frac{d^2}{d\omega^2}\Big|_0\, \mathrm{regret}\big(\pi^*_{\bar r_W}\big),"
            r"\quad \bar r_W = \frac1W\sum_{a=1}^W r_{t-a}",
            left_value=lambda w: _curvature(lambda omega: _regret_of(w, _window_mean(w, omega))),
        ),
        Line(
            r"0,\quad W_*^2\,(W_*+1) = \frac{2P}{nD}",
            r"estimation falls with $W$, drift rises: $P/(nW_*^2) = D\,(W_*+1)/2$, with $D = "
            r"\omega^2\,\mathrm{Var}_{\pi^*}(u)/(2\beta)$ and $P$ the asymptotic variance",
            lambda w: torch.zeros((), dtype=torch.float64),
            left=r"\frac{d}{dW}\Big|_{W_*}\Big[\frac{P}{nW} + D\Big(\frac{W+1}{2}\Big)^2\Big]\Big/\frac{P}{nW_*^2}",
            left_value=lambda w: _slope(w, _root(w)),
        ),
        Line(
            r"\frac12\cdot\frac{W_*+1}{W_*}",
            r"substitute $P/(nW_*) = D\,W_*(W_*+1)/2$: at the best window the regret from drift is about half of that "
            "from estimation",
            lambda w: (_root(w) + 1) / (2 * _root(w)),
            left=r"D\Big(\frac{W_*+1}{2}\Big)^2\Big/\frac{P}{nW_*}",
            left_value=_share,
        ),
    ),
    wrong=(
        Wrong(
            r"\frac1\beta\,\mathbb{E}_{\pi^*}[u^2]",
            "the mean is not subtracted, so that a drift of all rewards by the same amount would cause regret",
            lambda w: (w.star[0] * w.velocity[0].square()).sum() / w.beta,
            1,
        ),
        Wrong(
            r"\beta\,\mathrm{Var}_{\pi^*}(u)",
            r"β is on the wrong side; with a small β the policy is sharp, and a delay causes more regret",
            lambda w: w.beta * _variance(w),
            1,
        ),
        Wrong(
            r"\frac{(W+1)(2W+1)}{6}\,\frac1\beta\,\mathrm{Var}_{\pi^*}(u)",
            "the squared ages are averaged, which is the regret of W policies, one for each age, and not of one fit",
            lambda w: (w.window + 1) * (2 * w.window + 1) / 6 * _variance(w) / w.beta,
            2,
        ),
        Wrong(
            r"\Big(\frac{W-1}{2}\Big)^2\,\frac1\beta\,\mathrm{Var}_{\pi^*}(u)",
            "the ages are counted from 0, but the labels of round t do not exist yet when round t begins",
            lambda w: ((w.window - 1) / 2) ** 2 * _variance(w) / w.beta,
            2,
        ),
        Wrong(
            r"0,\quad W_*(W_*+1) = \frac{2P}{nD}",
            "this has a square root instead of a cube root; the slope of the estimation term is $1/W^2$, not $1/W$",
            lambda w: _slope(w, _root(w)) - _slope(w, _root(w, 1.0)),
            3,
        ),
        Wrong(
            r"1",
            "the two parts are set equal, but their sum has its minimum elsewhere",
            lambda w: torch.ones((), dtype=torch.float64),
            4,
        ),
    ),
    source="Delta method, as for the asymptotic variance (notebook 08); Bai et al. 2022, section 4.5, for practice; "
    "lecture, “Non-static Environment”.",
)


def _slope(w: Drifting, window: Tensor) -> Tensor:
    """The derivative of the total with respect to W, divided by that of the estimation term."""
    at = window.detach().clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(_total(w, at), at)
    return slope / (w.price / (w.labels * window**2))
