r"""Block 1, the KL term: the expectations of k1, k2 and k3 as values, and their gradients as losses.

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
    """The expected gradient as a loss, for samples that are drawn from π and then fixed, (X, K)."""
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
    "The expectations of k1 and k3",
    lines=(
        Line(
            r"\mathbb{E}_{y\sim\pi}[k],\quad k = \log\tfrac{\pi(y)}{\pi_\text{ref}(y)}",
            "the KL is the expectation of k1",
            lambda w: _mean(w, kl.k1),
            left=r"\mathrm{KL}(\pi\|\pi_\text{ref})",
            left_value=lambda w: exact.kl(w.log_policy, w.log_ref),
        ),
        Line(
            r"\mathbb{E}_{y\sim\pi}[k] + \mathbb{E}_{y\sim\pi}\Big[\tfrac{\pi_\text{ref}(y)}{\pi(y)}\Big] - 1",
            r"add zero, because $\mathbb{E}_\pi[\pi_\text{ref}/\pi] = \sum_y\pi_\text{ref} = 1$",
            lambda w: _mean(w, kl.k1) + (w.policy * (w.ref / w.policy)).sum(-1) - 1,
        ),
        Line(
            r"\mathbb{E}_{y\sim\pi}\big[e^{-k} - 1 + k\big]",
            r"$\pi_\text{ref}/\pi = e^{-k}$: this is k3, which is never negative",
            lambda w: _mean(w, kl.k3),
        ),
    ),
    wrong=(
        Wrong(
            r"\mathbb{E}_{y\sim\pi}\Big[\log\tfrac{\pi_\text{ref}(y)}{\pi(y)}\Big]",
            "the ratio is inverted, so the penalty rewards distance from the reference",
            lambda w: -_mean(w, kl.k1),
            1,
        ),
        Wrong(
            r"\mathbb{E}_{y\sim\pi_\text{ref}}[k]",
            "the samples are from the reference, which gives −KL(π_ref‖π)",
            lambda w: (w.ref * w.log_ratio).sum(-1),
            1,
        ),
        Wrong(
            r"\mathbb{E}_{y\sim\pi}\big[\tfrac12 k^2\big]",
            "k2 is biased; it is correct only to second order in k",
            lambda w: _mean(w, kl.k2),
            3,
        ),
        Wrong(
            r"\mathbb{E}_{y\sim\pi}\big[e^{k} - 1 - k\big]",
            "this is k3 with the inverted ratio, for the same samples",
            lambda w: (w.policy * (w.log_ratio.exp() - 1 - w.log_ratio)).sum(-1),
            3,
        ),
    ),
    source="Schulman 2020, “Approximating KL divergence”; lecture, “Preliminaries”.",
)

kl_gradient_k1 = Derivation(
    "kl-gradient-k1",
    "k1 as a loss has the expected gradient zero",
    lines=(
        Line(
            r"\mathbb{E}_{y\sim\pi}[\nabla\log\pi]",
            r"$\pi_\text{ref}$ does not depend on θ; autograd computes the left side with fixed samples",
            lambda w: _scores(w, torch.ones_like(w.logits)),
            left=r"\mathbb{E}_{y\sim\pi}[\nabla k_1]",
            left_value=lambda w: _loss_gradient(w, kl.k1),
        ),
        Line(
            r"\sum_y \nabla\pi(y)",
            r"$\pi\nabla\log\pi = \nabla\pi$",
            lambda w: gradient(lambda theta: theta.softmax(-1).sum(-1), w.logits),
        ),
        Line(r"0", "probabilities sum to one", lambda w: torch.zeros_like(w.logits)),
    ),
    wrong=(
        Wrong(
            r"\nabla\,\mathrm{KL}(\pi\|\pi_\text{ref})",
            "“a correct value has a correct gradient” ignores that the distribution of the samples depends on θ",
            _forward,
            3,
        ),
    ),
    source="Schulman 2020 for the values; the gradients follow from $\\mathbb{E}_\\pi[\\nabla\\log\\pi] = 0$.",
)

kl_gradient_k2 = Derivation(
    "kl-gradient-k2",
    "k2 as a loss has the gradient of KL(π‖π_ref)",
    lines=(
        Line(
            r"\mathbb{E}_{y\sim\pi}[k\,\nabla\log\pi]",
            r"$\nabla\tfrac12k^2 = k\nabla k$; autograd computes the left side with fixed samples",
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
            "the product rule, from right to left; autograd computes this side too",
            _forward,
        ),
    ),
    wrong=(
        Wrong(
            r"\nabla\,\mathrm{KL}(\pi_\text{ref}\|\pi)",
            "this is the gradient of the KL with swapped arguments",
            _backward,
            3,
        ),
        Wrong(
            r"2\,\mathbb{E}_{y\sim\pi}[k\,\nabla\log\pi]",
            "the ½ is missing",
            lambda w: 2 * _scores(w, w.log_ratio),
            1,
        ),
    ),
    source="As for the gradient of k1.",
)

kl_gradient_k3 = Derivation(
    "kl-gradient-k3",
    "k3 as a loss has the gradient of KL(π_ref‖π)",
    lines=(
        Line(
            r"\mathbb{E}_{y\sim\pi}\big[(1 - e^{-k})\,\nabla\log\pi\big]",
            r"$\nabla(e^{-k} - 1 + k) = (1 - e^{-k})\nabla k$; autograd computes the left side with fixed samples",
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
            r"the part of this KL that depends on θ; autograd computes this side too",
            _backward,
        ),
    ),
    wrong=(
        Wrong(
            r"\nabla\,\mathrm{KL}(\pi\|\pi_\text{ref})",
            "“an unbiased value has an unbiased gradient” is false; this is the other divergence",
            _forward,
            3,
        ),
        Wrong(
            r"\mathbb{E}_{y\sim\pi}\big[(1 + e^{-k})\,\nabla\log\pi\big]",
            "the chain rule has a wrong sign",
            lambda w: _scores(w, 1 + (-w.log_ratio).exp()),
            1,
        ),
    ),
    source="As for the gradient of k1.",
)

kl_in_the_reward = Derivation(
    "kl-in-the-reward",
    "k1 in the reward has the gradient of KL(π‖π_ref)",
    lines=(
        Line(
            r"\mathbb{E}_{y\sim\pi}\big[k\,\nabla\log\pi\big] + \mathbb{E}_{y\sim\pi}[\nabla k]",
            "the distribution of the samples and k both depend on θ; autograd computes the left side",
            lambda w: _scores(w, w.log_ratio) + _loss_gradient(w, kl.k1),
            left=r"\nabla\,\mathrm{KL}(\pi\|\pi_\text{ref})",
            left_value=_forward,
        ),
        Line(
            r"\mathbb{E}_{y\sim\pi}\big[\mathrm{sg}(k)\,\nabla\log\pi\big]",
            "the second term is zero; sg means that k is detached, as a reward is",
            lambda w: gradient(lambda theta: (w.policy * w.log_ratio * theta.log_softmax(-1)).sum(-1), w.logits),
        ),
    ),
    wrong=(
        Wrong(
            r"\mathbb{E}_{y\sim\pi}\big[-\mathrm{sg}(k)\,\nabla\log\pi\big]",
            "the sign is wrong, so distance from the reference is rewarded",
            lambda w: -_scores(w, w.log_ratio),
            2,
        ),
        Wrong(
            r"\mathbb{E}_{y\sim\pi_\text{ref}}\big[\mathrm{sg}(k)\,\nabla\log\pi\big]",
            "the samples are from the reference",
            lambda w: gradient(lambda theta: (w.ref * w.log_ratio * theta.log_softmax(-1)).sum(-1), w.logits),
            2,
        ),
    ),
    source="Ouyang et al. 2022, eq. 2; Williams 1992.",
)
