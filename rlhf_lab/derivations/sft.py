r"""The loss of supervised fine-tuning: the KL from the demonstrator plus an entropy that does not depend on θ.

Lecture, "Preliminaries", SFT phase. The rest of the review is in `rlhf_review.py`.
"""

import torch

from rlhf_lab import exact
from rlhf_lab.derivations.derivation import Derivation, Line, Wrong, gradient
from rlhf_lab.derivations.random_worlds import RandomWorld


def _shown(w: RandomWorld) -> torch.Tensor:
    """E_demo[−log π_θ], (X,); the demonstrations come from the world's reference."""
    return -(w.ref * w.log_policy).sum(-1)


def _entropy(w: RandomWorld) -> torch.Tensor:
    return -(w.ref * w.log_ref).sum(-1)


cloning_is_kl = Derivation(
    "cloning-is-kl",
    "SFT minimises the KL from the demonstrator to the policy",
    lines=(
        Line(
            r"\mathbb{E}_{y\sim\pi_\text{demo}}\Big[\log\frac{\pi_\text{demo}(y)}{\pi_\theta(y)}\Big]"
            r" - \mathbb{E}_{y\sim\pi_\text{demo}}[\log\pi_\text{demo}(y)]",
            r"add and subtract $\log\pi_\text{demo}$",
            lambda w: (w.ref * (w.log_ref - w.log_policy)).sum(-1) - (w.ref * w.log_ref).sum(-1),
            left=r"-\,\mathbb{E}_{y\sim\pi_\text{demo}}[\log\pi_\theta(y)]",
            left_value=_shown,
        ),
        Line(
            r"\mathrm{KL}(\pi_\text{demo}\|\pi_\theta) + H(\pi_\text{demo})",
            "the entropy H does not depend on θ, so only the KL is minimised",
            lambda w: exact.kl(w.log_ref, w.log_policy) + _entropy(w),
        ),
        Line(
            r"\pi_\theta(y) - \pi_\text{demo}(y)",
            "for a table of logits; autograd computes the left side. It is zero only at the demonstrator",
            lambda w: w.policy - w.ref,
            left=r"\frac{\partial}{\partial\theta_y}\,\mathbb{E}_\text{demo}[-\log\pi_\theta]",
            left_value=lambda w: gradient(lambda theta: -(w.ref * theta.log_softmax(-1)).sum(-1), w.logits),
        ),
    ),
    wrong=(
        Wrong(
            r"\mathrm{KL}(\pi_\theta\|\pi_\text{demo}) + H(\pi_\text{demo})",
            "the arguments of the KL are swapped; this KL needs samples of the policy and probabilities of the "
            "demonstrator",
            lambda w: exact.kl(w.log_policy, w.log_ref) + _entropy(w),
            2,
        ),
        Wrong(
            r"\mathrm{KL}(\pi_\text{demo}\|\pi_\theta)",
            "the entropy is missing; the minimum of the loss is not zero",
            lambda w: exact.kl(w.log_ref, w.log_policy),
            2,
        ),
        Wrong(
            r"\pi_\text{demo}(y) - \pi_\theta(y)",
            "the sign is lost, so that gradient descent would move away from the demonstrations",
            lambda w: w.ref - w.policy,
            3,
        ),
    ),
    source="Maximum likelihood; Ouyang et al. 2022, section 3.5 (SFT); lecture, “Preliminaries”, SFT phase.",
)
