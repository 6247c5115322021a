r"""Block 4, ReST and RAFT: what a filter, rising filters, and best-of-n converge to.

Lecture, "Reinforced Self-Training Algorithm": F(x,y;τ) = 1[R(x,y) > τ], J(θ) = E[F(x,y;τ) ℒ(x,y;θ)], with
behaviour cloning, ℒ = −log π_θ, as the loss.
"""

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.derivations.derivation import Derivation, Line, Wrong, gradient
from rlhf_lab.derivations.random_worlds import RandomWorld
from rlhf_lab.derivations.rejection import _best_by_listing


def _passes(w: RandomWorld) -> Tensor:
    """F(x,y;τ), (X, K)."""
    return (w.reward > w.threshold).double()


def _share(w: RandomWorld) -> Tensor:
    """P_ref(r > τ), (X, 1)."""
    return (w.ref * _passes(w)).sum(-1, keepdim=True)


def _kept(w: RandomWorld) -> Tensor:
    """π_ref(·| r > τ), (X, K)."""
    return w.ref * _passes(w) / _share(w)


def _entropy(w: RandomWorld) -> Tensor:
    """H of it, (X,)."""
    entropy: Tensor = -torch.special.xlogy(_kept(w), _kept(w)).sum(-1)
    return entropy


def _cloning(w: RandomWorld, log_policy: Tensor) -> Tensor:
    """E_ref[F log π], (X,)."""
    return (w.ref * _passes(w) * log_policy).sum(-1)


filter_limit = Derivation(
    "filter-limit",
    "One filter converges to the filtered reference",
    lines=(
        Line(
            r"P(r > \tau)\;\mathbb{E}_{\pi_\text{ref}}\big[\log\pi_\theta(y)\,\big|\,r > \tau\big]",
            "an expectation with an indicator is a probability times a conditional expectation",
            lambda w: (_share(w) * _kept(w) * w.log_policy).sum(-1),
            left=r"\mathbb{E}_{\pi_\text{ref}}\big[F(x,y;\tau)\log\pi_\theta(y)\big]",
            left_value=lambda w: _cloning(w, w.log_policy),
        ),
        Line(
            r"-P(r > \tau)\,\big(H(\pi_\tau) + \mathrm{KL}(\pi_\tau\|\pi_\theta)\big),\quad"
            r" \pi_\tau = \pi_\text{ref}(\cdot\,|\,r > \tau)",
            "a cross-entropy is an entropy plus a KL; the right side uses `exact.filtered`",
            lambda w: (
                -_share(w).squeeze(-1)
                * (_entropy(w) + exact.kl(exact.filtered(w.log_ref, w.reward, w.threshold), w.log_policy))
            ),
        ),
        Line(
            r"-P(r > \tau)\,H(\pi_\tau)",
            r"Gibbs’ inequality: the KL is zero only at $\pi_\theta = \pi_\tau$",
            lambda w: -_share(w).squeeze(-1) * _entropy(w),
            relation="≤",
        ),
        Line(
            r"P(r > \tau)\,(\pi_\tau - \pi_\theta)",
            "the gradient in the logits of a table; autograd computes the left side",
            lambda w: _share(w) * (_kept(w) - w.policy),
            left=r"\nabla_\theta\,\mathbb{E}_{\pi_\text{ref}}\big[F\log\pi_\theta\big]",
            left_value=lambda w: gradient(lambda theta: _cloning(w, theta.log_softmax(-1)), w.logits),
        ),
    ),
    wrong=(
        Wrong(
            r"\mathbb{E}_{\pi_\text{ref}}\big[\log\pi_\theta(y)\,\big|\,r > \tau\big]",
            "the share that passes is missing (it determines the weights of the prompts)",
            lambda w: (_kept(w) * w.log_policy).sum(-1),
            1,
        ),
        Wrong(
            r"P(r > \tau)\,(\pi^* - \pi_\theta)",
            "“filtering leads to π*”, but above the threshold the proportions of the reference remain",
            lambda w: _share(w) * (w.star - w.policy),
            4,
        ),
        Wrong(
            r"\pi_\text{ref}\,F - \pi_\theta",
            "the filtered reference is not normalised",
            lambda w: w.ref * _passes(w) - w.policy,
            4,
        ),
    ),
    source="Gulcehre et al. 2023 (ReST), section 3; lecture, “Reinforced Self-Training Algorithm”.",
)


def _higher(w: RandomWorld) -> Tensor:
    """A second threshold, which only the best response passes, (X, 1)."""
    top = w.reward.sort(-1).values
    return torch.maximum(w.threshold, (top[:, -1:] + top[:, -2:-1]) / 2)


rising_thresholds = Derivation(
    "rising-thresholds",
    "Rising thresholds have the same limit as the last threshold alone",
    lines=(
        Line(
            r"\pi_\text{ref}(y\,|\,r > \tau_1 \text{ and } r > \tau_2)",
            "conditioning twice is conditioning on both",
            lambda w: _normalised(w.ref * _passes(w) * (w.reward > _higher(w))),
            left=r"\pi_{\tau_1}(y\,|\,r > \tau_2)",
            left_value=lambda w: exact.filtered(
                exact.filtered(w.log_ref, w.reward, w.threshold), w.reward, _higher(w)
            ).exp(),
        ),
        Line(
            r"\pi_\text{ref}(y\,|\,r > \tau_2)",
            r"$\tau_1 \le \tau_2$: the first condition follows from the second (for infinite data)",
            lambda w: exact.filtered(w.log_ref, w.reward, _higher(w)).exp(),
        ),
    ),
    wrong=(
        Wrong(
            r"\pi^*(y)",
            "“rising thresholds lead to π*”, but they lead to the best response alone",
            lambda w: w.star,
            2,
        ),
        Wrong(
            r"\pi_{\text{ref}}(y)\,1[r > \tau_2]",
            "not normalised",
            lambda w: w.ref * (w.reward > _higher(w)),
            2,
        ),
    ),
    source="Gulcehre et al. 2023, section 3, Improve; lecture, “Reinforced Self-Training Algorithm”.",
)


def _normalised(weights: Tensor) -> Tensor:
    return weights / weights.sum(-1, keepdim=True)


def _best_log_likelihood(w: RandomWorld, log_policy: Tensor) -> Tensor:
    """E[log π_θ(best of n draws)], over all draws, (X,)."""
    return (_best_by_listing(w) * log_policy).sum(-1)


raft = Derivation(
    "raft",
    "RAFT converges to best-of-n, and after two rounds to best-of-n²",
    lines=(
        Line(
            r"\mathbb{E}\big[e_{y^\star} - \pi_\theta\big]",
            r"$y^\star$ is the best of n draws, $\nabla\log\pi_\theta(y) = e_y - \pi_\theta$ in a table; autograd "
            "and enumeration of all draws give the left side",
            lambda w: _best_by_listing(w) - w.policy,
            left=r"\nabla_\theta\,\mathbb{E}\big[\log\pi_\theta(y^\star)\big]",
            left_value=lambda w: gradient(lambda theta: _best_log_likelihood(w, theta.log_softmax(-1)), w.logits),
        ),
        Line(
            r"\text{best-of-}n - \pi_\theta",
            "so the gradient vanishes where the policy is best-of-n",
            lambda w: exact.best_of_n(w.log_ref, w.reward, w.n).exp() - w.policy,
        ),
        Line(
            r"\text{best-of-}n^2 \text{ of } \pi_\text{ref}",
            r"a second round gives $(F^n)^n = F^{n^2}$; with more rounds only the best response remains",
            lambda w: exact.best_of_n(w.log_ref, w.reward, w.n**2).exp(),
            left=r"\text{best-of-}n \text{ of best-of-}n",
            left_value=lambda w: exact.best_of_n(exact.best_of_n(w.log_ref, w.reward, w.n), w.reward, w.n).exp(),
        ),
    ),
    wrong=(
        Wrong(
            r"\pi^* - \pi_\theta",
            "“the best samples lead to π*” is false",
            lambda w: w.star - w.policy,
            2,
        ),
        Wrong(
            r"\text{best-of-}(n+1) \text{ of } \pi_\text{ref}",
            "a round does not add just one draw",
            lambda w: exact.best_of_n(w.log_ref, w.reward, w.n + 1).exp(),
            3,
        ),
    ),
    source="Dong et al. 2023 (RAFT), algorithm 1.",
)
