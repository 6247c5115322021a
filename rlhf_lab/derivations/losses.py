r"""Block 2, the relatives of DPO's loss under noisy and under certain labels: cDPO, robust DPO, IPO.

A label is flipped with probability ε; ℒ(w,l) is DPO's loss of a pair, Δ its difference of log-ratios. Every
line is a vector over the prompts' pairs.
"""

import torch
from torch import Tensor

from rlhf_lab import losses
from rlhf_lab.derivations.derivation import Derivation, Line, Wrong, gradient
from rlhf_lab.derivations.random_worlds import RandomWorld


def _ratios(w: RandomWorld) -> tuple[Tensor, Tensor]:
    """log-ratio of y_w and of y_l, (X,) each."""
    return w.of_pair(w.log_ratio)


def _delta(w: RandomWorld) -> Tensor:
    """Δ, (X,)."""
    chosen, rejected = _ratios(w)
    return chosen - rejected


def _right(w: RandomWorld) -> Tensor:
    """ℒ(w,l)."""
    return losses.dpo(*_ratios(w), w.beta)


def _swapped(w: RandomWorld) -> Tensor:
    """ℒ(l,w)."""
    chosen, rejected = _ratios(w)
    return losses.dpo(rejected, chosen, w.beta)


def _preference(w: RandomWorld) -> Tensor:
    """p = p*(y_w ≻ y_l), from the true reward, (X,)."""
    better, worse = w.of_pair(w.reward)
    return torch.sigmoid(better - worse)


cdpo = Derivation(
    "cdpo",
    "cDPO: smoothed labels and a finite margin",
    lines=(
        Line(
            r"-(1-\varepsilon)\log\sigma(\beta\Delta) - \varepsilon\log\sigma(-\beta\Delta)",
            "the mean of DPO's loss over a label that is flipped with probability ε",
            lambda w: (
                -(1 - w.epsilon) * torch.sigmoid(w.beta * _delta(w)).log()
                - w.epsilon * torch.sigmoid(-w.beta * _delta(w)).log()
            ),
            left=r"\mathcal{L}_\text{cDPO}",
            left_value=lambda w: losses.dpo(*_ratios(w), w.beta, w.epsilon),
        ),
        Line(
            r"\mathcal{L}(w,l) + \varepsilon\,\beta\Delta",
            r"$\log\sigma(u) - \log\sigma(-u) = u$",
            lambda w: _right(w) + w.epsilon * w.beta * _delta(w),
        ),
        Line(
            r"-\beta\,\big(\sigma(-\beta\Delta) - \varepsilon\big)",
            "differentiate; autograd computes the left side",
            lambda w: -w.beta * (torch.sigmoid(-w.beta * _delta(w)) - w.epsilon),
            left=r"\frac{d}{d\Delta}\mathcal{L}_\text{cDPO}",
            left_value=lambda w: gradient(lambda d: losses.dpo(d, torch.zeros_like(d), w.beta, w.epsilon), _delta(w)),
        ),
        Line(
            r"0",
            r"at $\beta\Delta = \log\tfrac{1-\varepsilon}{\varepsilon}$: finite even if the label is certain",
            lambda w: 0.0,
            left=r"\frac{d}{d\Delta}\mathcal{L}_\text{cDPO}\,"
            r"\Big|_{\beta\Delta = \log\frac{1-\varepsilon}{\varepsilon}}",
            left_value=lambda w: gradient(
                lambda d: losses.dpo(d, torch.zeros_like(d), w.beta, w.epsilon),
                torch.tensor([(1 - w.epsilon) / w.epsilon], dtype=torch.float64).log() / w.beta,
            ),
        ),
    ),
    wrong=(
        Wrong(
            r"-\varepsilon\log\sigma(\beta\Delta) - (1-\varepsilon)\log\sigma(-\beta\Delta)",
            "ε and 1 − ε are swapped, so that the flipped label is believed",
            lambda w: (1 - w.epsilon) * _swapped(w) + w.epsilon * _right(w),
            1,
        ),
        Wrong(
            r"\mathcal{L}(w,l) - \varepsilon\,\beta\Delta",
            "the sign is lost, so that noise would raise the margin",
            lambda w: _right(w) - w.epsilon * w.beta * _delta(w),
            2,
        ),
        Wrong(
            r"-\beta\,\sigma(-\beta\Delta)",
            "this is the derivative of DPO; ε is missing",
            lambda w: -w.beta * torch.sigmoid(-w.beta * _delta(w)),
            3,
        ),
    ),
    source="Mitchell 2023, “A note on DPO with noisy preferences”.",
)


def _robust(w: RandomWorld, first: Tensor, second: Tensor) -> Tensor:
    """((1−ε) first − ε second) / (1 − 2ε)."""
    return ((1 - w.epsilon) * first - w.epsilon * second) / (1 - 2 * w.epsilon)


def _over_flips(w: RandomWorld, unflipped: Tensor, flipped: Tensor) -> Tensor:
    """The mean over the flip of a label."""
    return (1 - w.epsilon) * unflipped + w.epsilon * flipped


robust_is_unbiased = Derivation(
    "robust-is-unbiased",
    "Robust DPO: an unbiased loss under noise",
    lines=(
        Line(
            r"\frac{(1-\varepsilon)\,\mathcal{L}(w,l) - \varepsilon\,\mathcal{L}(l,w)}{1 - 2\varepsilon}",
            "definition: the contribution of flipped labels is subtracted",
            lambda w: _robust(w, _right(w), _swapped(w)),
            left=r"\mathcal{L}_\text{rob}(w,l)",
            left_value=lambda w: losses.robust_dpo(*_ratios(w), w.beta, w.epsilon),
        ),
        Line(
            r"(1-\varepsilon)\,\mathcal{L}_\text{rob}(w,l) + \varepsilon\,\mathcal{L}_\text{rob}(l,w)",
            "the mean over flipped labels",
            lambda w: _over_flips(w, _robust(w, _right(w), _swapped(w)), _robust(w, _swapped(w), _right(w))),
            left=r"\mathbb{E}_\text{flips}[\mathcal{L}_\text{rob}]",
            left_value=lambda w: _over_flips(
                w,
                losses.robust_dpo(*_ratios(w), w.beta, w.epsilon),
                losses.robust_dpo(*_ratios(w)[::-1], w.beta, w.epsilon),
            ),
        ),
        Line(
            r"\frac{(1-\varepsilon)^2 - \varepsilon^2}{1 - 2\varepsilon}\,\mathcal{L}(w,l)"
            r" + \frac{\varepsilon(1-\varepsilon) - \varepsilon(1-\varepsilon)}{1 - 2\varepsilon}\,\mathcal{L}(l,w)",
            "collect the terms",
            lambda w: (
                ((1 - w.epsilon) ** 2 - w.epsilon**2) / (1 - 2 * w.epsilon) * _right(w)
                + (w.epsilon * (1 - w.epsilon) - w.epsilon * (1 - w.epsilon)) / (1 - 2 * w.epsilon) * _swapped(w)
            ),
        ),
        Line(
            r"\mathcal{L}(w,l)",
            r"$(1-\varepsilon)^2 - \varepsilon^2 = 1 - 2\varepsilon$: the clean loss",
            _right,
        ),
    ),
    wrong=(
        Wrong(
            r"\frac{(1-\varepsilon)\,\mathcal{L}(w,l) + \varepsilon\,\mathcal{L}(l,w)}{1 - 2\varepsilon}",
            "the sign is lost; this is cDPO's mixture, scaled",
            lambda w: _over_flips(w, _right(w), _swapped(w)) / (1 - 2 * w.epsilon),
            1,
        ),
        Wrong(
            r"(1-\varepsilon)\,\mathcal{L}(w,l) - \varepsilon\,\mathcal{L}(l,w)",
            r"the divisor $1 - 2\varepsilon$ is missing",
            lambda w: (1 - w.epsilon) * _right(w) - w.epsilon * _swapped(w),
            1,
        ),
        Wrong(
            r"\mathcal{L}_\text{cDPO}(w,l)",
            "“cDPO is unbiased too” ignores that a flipped label is smoothed twice",
            lambda w: losses.dpo(*_ratios(w), w.beta, w.epsilon),
            4,
        ),
    ),
    source="Chowdhury, Kini & Natarajan 2024, eq. 12.",
)


def _ipo_loss(w: RandomWorld, delta: Tensor) -> Tensor:
    """E over the label: p ℒ(w,l) + (1−p) ℒ(l,w), (X,)."""
    zero, p = torch.zeros_like(delta), _preference(w)
    return p * losses.ipo(delta, zero, w.tau) + (1 - p) * losses.ipo(zero, delta, w.tau)


ipo = Derivation(
    "ipo",
    "IPO: a finite target for the margin, even under certain labels",
    lines=(
        Line(
            r"p\Big(\Delta - \frac{1}{2\tau}\Big)^2 + (1-p)\Big(\Delta + \frac{1}{2\tau}\Big)^2",
            r"the mean over the label, $p = p^*(y_w \succ y_l)$",
            lambda w: (
                _preference(w) * (_delta(w) - 1 / (2 * w.tau)) ** 2
                + (1 - _preference(w)) * (_delta(w) + 1 / (2 * w.tau)) ** 2
            ),
            left=r"\mathbb{E}[\mathcal{L}_\text{IPO}]",
            left_value=lambda w: _ipo_loss(w, _delta(w)),
        ),
        Line(
            r"2\Delta - \frac{2p - 1}{\tau}",
            "differentiate; autograd computes the left side",
            lambda w: 2 * _delta(w) - (2 * _preference(w) - 1) / w.tau,
            left=r"\frac{d}{d\Delta}\mathbb{E}[\mathcal{L}_\text{IPO}]",
            left_value=lambda w: gradient(lambda d: _ipo_loss(w, d), _delta(w)),
        ),
        Line(
            r"0",
            r"at $\Delta = \frac{p - 1/2}{\tau}$, at most $\frac{1}{2\tau}$, even if $p = 1$",
            lambda w: 0.0,
            left=r"\frac{d}{d\Delta}\mathbb{E}[\mathcal{L}_\text{IPO}]\,\Big|_{\Delta = (p - \frac12)/\tau}",
            left_value=lambda w: gradient(lambda d: _ipo_loss(w, d), (_preference(w) - 0.5) / w.tau),
        ),
        Line(
            r"0",
            r"DPO's minimum is at $\Delta = \frac1\beta\log\frac{p}{1-p}$, which goes to infinity as $p \to 1$",
            lambda w: 0.0,
            left=r"\frac{d}{d\Delta}\mathbb{E}[\mathcal{L}_\text{DPO}]\,"
            r"\Big|_{\Delta = \frac1\beta\log\frac{p}{1-p}}",
            left_value=lambda w: gradient(
                lambda d: (
                    _preference(w) * losses.dpo(d, torch.zeros_like(d), w.beta)
                    + (1 - _preference(w)) * losses.dpo(torch.zeros_like(d), d, w.beta)
                ),
                torch.logit(_preference(w)) / w.beta,
            ),
        ),
    ),
    wrong=(
        Wrong(
            r"2\Delta - \frac{1}{\tau}",
            "the noise of the label is missing, as if every label were certain",
            lambda w: 2 * _delta(w) - 1 / w.tau,
            2,
        ),
        Wrong(
            r"2\Delta - 2\tau(2p - 1)",
            r"τ is on the wrong side of the fraction, and the ½ is lost",
            lambda w: 2 * _delta(w) - 2 * w.tau * (2 * _preference(w) - 1),
            2,
        ),
        Wrong(
            r"\frac{d}{d\Delta}\mathbb{E}[\mathcal{L}_\text{IPO}]\,"
            r"\Big|_{\Delta = \frac1\tau\log\frac{p}{1-p}}",
            "DPO's minimum is taken for IPO's",
            lambda w: gradient(lambda d: _ipo_loss(w, d), torch.logit(_preference(w)) / w.tau),
            3,
        ),
    ),
    source="Azar et al. 2023, eq. 17.",
)
