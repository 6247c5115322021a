r"""Block 1, the KL term: what k1, k2 and k3 estimate as values, and what they do as losses.

With k = log π − log π_ref and y ~ π: k1 = k, k2 = k²/2, k3 = e^{−k} − 1 + k. Schulman 2020, "Approximating KL
divergence". The expectations are sums over all responses; nothing is sampled.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_lab import exact, kl
from rlhf_lab.derivations.derivation import Derivation, Line, Wrong, gradient
from rlhf_lab.derivations.random_worlds import RandomWorld

Estimator = Callable[[Tensor, Tensor], Tensor]


def _mean(w: RandomWorld, estimator: Estimator) -> Tensor:
    """E_π of an estimator's value, (X,)."""
    return (w.policy * estimator(w.log_policy, w.log_ref)).sum(-1)


def _loss_gradient(w: RandomWorld, estimator: Estimator) -> Tensor:
    """The expected gradient in a loss: the samples are drawn from π and then held fixed, (X, K)."""
    fixed = w.policy
    return gradient(lambda theta: (fixed * estimator(theta.log_softmax(-1), w.log_ref)).sum(-1), w.logits)


def _forward(w: RandomWorld) -> Tensor:
    """∇ KL(π_θ‖π_ref) by autograd."""
    return gradient(lambda theta: exact.kl(theta.log_softmax(-1), w.log_ref), w.logits)


def _backward(w: RandomWorld) -> Tensor:
    """∇ KL(π_ref‖π_θ) by autograd."""
    return gradient(lambda theta: exact.kl(w.log_ref, theta.log_softmax(-1)), w.logits)


def _scores(w: RandomWorld, weight: Tensor) -> Tensor:
    """E_π[weight ∇ log π] for a table of logits, (X, K)."""
    weighted = w.policy * weight
    return weighted - w.policy * weighted.sum(-1, keepdim=True)


kl_values = Derivation(
    "kl-values",
    "What k1 and k3 are worth on average",
    lines=(
        Line(
            r"\mathbb{E}_{y\sim\pi}[k],\quad k = \log\tfrac{\pi(y)}{\pi_\text{ref}(y)}",
            "KL is an expectation; its integrand is k1",
            lambda w: _mean(w, kl.k1),
            left=r"\mathrm{KL}(\pi\|\pi_\text{ref})",
            left_value=lambda w: exact.kl(w.log_policy, w.log_ref),
        ),
        Line(
            r"\mathbb{E}_{y\sim\pi}[k] + \mathbb{E}_{y\sim\pi}\Big[\tfrac{\pi_\text{ref}(y)}{\pi(y)}\Big] - 1",
            r"$\mathbb{E}_\pi[\pi_\text{ref}/\pi] = \sum_y\pi_\text{ref} = 1$: a control variate for nothing",
            lambda w: _mean(w, kl.k1) + (w.policy * (w.ref / w.policy)).sum(-1) - 1,
        ),
        Line(
            r"\mathbb{E}_{y\sim\pi}\big[e^{-k} - 1 + k\big]",
            r"$\pi_\text{ref}/\pi = e^{-k}$: that is k3, and no term of it is negative",
            lambda w: _mean(w, kl.k3),
        ),
    ),
    wrong=(
        Wrong(
            r"\mathbb{E}_{y\sim\pi}\Big[\log\tfrac{\pi_\text{ref}(y)}{\pi(y)}\Big]",
            "the ratio turned round: the penalty becomes a prize for drift",
            lambda w: -_mean(w, kl.k1),
            1,
        ),
        Wrong(
            r"\mathbb{E}_{y\sim\pi_\text{ref}}[k]",
            "samples of the reference: that is minus the other KL",
            lambda w: (w.ref * w.log_ratio).sum(-1),
            1,
        ),
        Wrong(
            r"\mathbb{E}_{y\sim\pi}\big[\tfrac12 k^2\big]",
            "k2 is biased: right only to second order in k",
            lambda w: _mean(w, kl.k2),
            3,
        ),
        Wrong(
            r"\mathbb{E}_{y\sim\pi}\big[e^{k} - 1 - k\big]",
            "k3 with the ratio turned round, under the same samples",
            lambda w: (w.policy * (w.log_ratio.exp() - 1 - w.log_ratio)).sum(-1),
            3,
        ),
    ),
    source="Schulman 2020, “Approximating KL divergence”; lecture, “Preliminaries”.",
)

kl_gradient_k1 = Derivation(
    "kl-gradient-k1",
    "k1 in a loss does nothing on average",
    lines=(
        Line(
            r"\mathbb{E}_{y\sim\pi}[\nabla\log\pi]",
            r"$\pi_\text{ref}$ does not depend on θ; the left side is autograd's, samples held fixed",
            lambda w: _scores(w, torch.ones_like(w.logits)),
            left=r"\mathbb{E}_{y\sim\pi}[\nabla k_1]",
            left_value=lambda w: _loss_gradient(w, kl.k1),
        ),
        Line(
            r"\sum_y \nabla\pi(y)",
            r"$\pi\nabla\log\pi = \nabla\pi$",
            lambda w: gradient(lambda theta: theta.softmax(-1).sum(-1), w.logits),
        ),
        Line(r"0", "probabilities always sum to one", lambda w: torch.zeros_like(w.logits)),
    ),
    wrong=(
        Wrong(
            r"\nabla\,\mathrm{KL}(\pi\|\pi_\text{ref})",
            "“the right value has the right gradient”: the samples depend on θ too",
            _forward,
            3,
        ),
    ),
    source="Schulman 2020 for the values; the gradients follow from $\\mathbb{E}_\\pi[\\nabla\\log\\pi] = 0$.",
)

kl_gradient_k2 = Derivation(
    "kl-gradient-k2",
    "k2 in a loss pulls along KL(π‖π_ref)",
    lines=(
        Line(
            r"\mathbb{E}_{y\sim\pi}[k\,\nabla\log\pi]",
            r"$\nabla\tfrac12k^2 = k\nabla k$; the left side is autograd's, samples held fixed",
            lambda w: _scores(w, w.log_ratio),
            left=r"\mathbb{E}_{y\sim\pi}[\nabla k_2]",
            left_value=lambda w: _loss_gradient(w, kl.k2),
        ),
        Line(
            r"\sum_y \big(k\,\nabla\pi + \pi\,\nabla k\big)",
            r"$\pi\nabla\log\pi = \nabla\pi$, and the second sum is $\sum_y\nabla\pi = 0$",
            lambda w: gradient(
                lambda theta: (theta.softmax(-1) * w.log_ratio + w.policy * theta.log_softmax(-1)).sum(-1), w.logits
            ),
        ),
        Line(
            r"\nabla\sum_y \pi\,k = \nabla\,\mathrm{KL}(\pi\|\pi_\text{ref})",
            "product rule, read backwards; autograd once more",
            _forward,
        ),
    ),
    wrong=(
        Wrong(
            r"\nabla\,\mathrm{KL}(\pi_\text{ref}\|\pi)",
            "the other KL",
            _backward,
            3,
        ),
        Wrong(
            r"2\,\mathbb{E}_{y\sim\pi}[k\,\nabla\log\pi]",
            "the ½ forgotten",
            lambda w: 2 * _scores(w, w.log_ratio),
            1,
        ),
    ),
    source="As the gradient of k1.",
)

kl_gradient_k3 = Derivation(
    "kl-gradient-k3",
    "k3 in a loss pulls along the other KL",
    lines=(
        Line(
            r"\mathbb{E}_{y\sim\pi}\big[(1 - e^{-k})\,\nabla\log\pi\big]",
            r"$\nabla(e^{-k} - 1 + k) = (1 - e^{-k})\nabla k$; the left side is autograd's, samples held fixed",
            lambda w: _scores(w, 1 - (-w.log_ratio).exp()),
            left=r"\mathbb{E}_{y\sim\pi}[\nabla k_3]",
            left_value=lambda w: _loss_gradient(w, kl.k3),
        ),
        Line(
            r"-\sum_y \pi_\text{ref}\,\nabla\log\pi",
            r"$\mathbb{E}_\pi[\nabla\log\pi] = 0$ and $\pi e^{-k} = \pi_\text{ref}$",
            lambda w: -gradient(lambda theta: (w.ref * theta.log_softmax(-1)).sum(-1), w.logits),
        ),
        Line(
            r"\nabla\,\mathrm{KL}(\pi_\text{ref}\|\pi)",
            r"the part of that KL which depends on θ; autograd once more",
            _backward,
        ),
    ),
    wrong=(
        Wrong(
            r"\nabla\,\mathrm{KL}(\pi\|\pi_\text{ref})",
            "“unbiased value, so unbiased gradient”",
            _forward,
            3,
        ),
        Wrong(
            r"\mathbb{E}_{y\sim\pi}\big[(1 + e^{-k})\,\nabla\log\pi\big]",
            "a lost sign in the chain rule",
            lambda w: _scores(w, 1 + (-w.log_ratio).exp()),
            1,
        ),
    ),
    source="As the gradient of k1.",
)

kl_in_the_reward = Derivation(
    "kl-in-the-reward",
    "k1 in the reward does pull along KL(π‖π_ref)",
    lines=(
        Line(
            r"\mathbb{E}_{y\sim\pi}\big[k\,\nabla\log\pi\big] + \mathbb{E}_{y\sim\pi}[\nabla k]",
            "the samples move with θ, and so does k; the left side is autograd's",
            lambda w: _scores(w, w.log_ratio) + _loss_gradient(w, kl.k1),
            left=r"\nabla\,\mathrm{KL}(\pi\|\pi_\text{ref})",
            left_value=_forward,
        ),
        Line(
            r"\mathbb{E}_{y\sim\pi}\big[\mathrm{sg}(k)\,\nabla\log\pi\big]",
            "the second term is zero; sg: k is a number here, detached as a reward is",
            lambda w: gradient(lambda theta: (w.policy * w.log_ratio * theta.log_softmax(-1)).sum(-1), w.logits),
        ),
    ),
    wrong=(
        Wrong(
            r"\mathbb{E}_{y\sim\pi}\big[-\mathrm{sg}(k)\,\nabla\log\pi\big]",
            "a lost sign: it pays for drift",
            lambda w: -_scores(w, w.log_ratio),
            2,
        ),
        Wrong(
            r"\mathbb{E}_{y\sim\pi_\text{ref}}\big[\mathrm{sg}(k)\,\nabla\log\pi\big]",
            "samples of the reference",
            lambda w: gradient(lambda theta: (w.ref * w.log_ratio * theta.log_softmax(-1)).sum(-1), w.logits),
            2,
        ),
    ),
    source="Ouyang et al. 2022, eq. 2; Williams 1992.",
)
