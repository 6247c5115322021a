r"""Block 3, the minima of RSO's losses: γ sets the target of sigmoid-norm for any pairs; hinge-norm has none.

β belongs to the sampler (`RandomWorld.beta`), γ to the loss (`RandomWorld.tau`), and μ are first-round pairs of π_r.
"""

import torch
from torch import Tensor

from rlhf_lab import exact, losses
from rlhf_lab.derivations.derivation import Derivation, Line, Wrong, gradient
from rlhf_lab.derivations.random_worlds import RandomWorld


def _at_gamma(w: RandomWorld) -> Tensor:
    """log π_γ, π_γ ∝ π_sft exp(r/γ), (X, K)."""
    return (w.log_ref + w.reward / w.tau).log_softmax(-1)


def _gradient_at(w: RandomWorld, log_policy: Tensor) -> Tensor:
    """∇_θ of the expected sigmoid-norm loss at slope γ on pairs from π_r, at a policy, by autograd, (X, K)."""
    labels = w.star.unsqueeze(-1) * w.star.unsqueeze(-2) * exact.preference(w.reward)

    def loss(theta: Tensor) -> Tensor:
        ratio = theta.log_softmax(-1) - w.log_ref
        return (labels * losses.dpo(ratio.unsqueeze(-1), ratio.unsqueeze(-2), w.tau)).sum((-1, -2))

    return gradient(loss, log_policy)


def _gap(w: RandomWorld, table: Tensor) -> Tensor:
    """An entry of y_w minus that of y_l, (X,)."""
    one, other = w.of_pair(table)
    return one - other


gamma_is_the_target = Derivation(
    "gamma-is-the-target",
    "γ determines the minimum of sigmoid-norm, β only the pairs",
    lines=(
        Line(
            r"0",
            r"at $\pi_\gamma \propto \pi_\text{sft}\,e^{r/\gamma}$, on pairs from $\pi_r$ at another β; by autograd",
            lambda w: torch.zeros_like(w.reward),
            left=r"\nabla_\theta\,\mathbb{E}_{y_1, y_2\sim\pi_r}[\mathcal{L}_\gamma]\,\Big|_{\pi_\theta = \pi_\gamma}",
            left_value=lambda w: _gradient_at(w, _at_gamma(w)),
        ),
        Line(
            r"r(y_1) - r(y_2)",
            "at this policy the implicit rewards have the same differences as the rewards",
            lambda w: _gap(w, w.reward),
            left=r"\gamma\log\frac{\pi_\gamma(y_1)}{\pi_\text{sft}(y_1)}"
            r" - \gamma\log\frac{\pi_\gamma(y_2)}{\pi_\text{sft}(y_2)}",
            left_value=lambda w: w.tau * _gap(w, _at_gamma(w) - w.log_ref),
        ),
        Line(
            r"\frac{\gamma}{\beta}\,\big(r(y_1) - r(y_2)\big)",
            r"at $\pi_r$ the differences are scaled by γ/β; they are equal to those of the rewards only if γ = β",
            lambda w: w.tau / w.beta * _gap(w, w.reward),
            left=r"\gamma\log\frac{\pi_r(y_1)}{\pi_\text{sft}(y_1)} - \gamma\log\frac{\pi_r(y_2)}{\pi_\text{sft}(y_2)}",
            left_value=lambda w: w.tau * _gap(w, w.log_star - w.log_ref),
        ),
    ),
    wrong=(
        Wrong(
            r"\nabla_\theta\,\mathbb{E}_{y_1, y_2\sim\pi_r}[\mathcal{L}_\gamma]\,\Big|_{\pi_\theta = \pi_r}",
            r"“pairs from $\pi_r$ lead to $\pi_r$”, but the gradient there is not zero",
            lambda w: _gradient_at(w, w.log_star),
            1,
        ),
        Wrong(
            r"r(y_1) - r(y_2)",
            "β and γ are confused",
            lambda w: _gap(w, w.reward),
            3,
        ),
    ),
    source="Liu et al. 2024 (RSO), equations 4 and 8; lecture, “Preference Data Distribution – Choices”.",
)


def _chance(w: RandomWorld) -> Tensor:
    """p*(y_w ≻ y_l), (X,)."""
    return torch.sigmoid(_gap(w, w.reward))


def _hinge(w: RandomWorld, delta: Tensor) -> Tensor:
    """E over the label of hinge-norm at a difference of log-ratios Δ, (X,)."""
    zero = torch.zeros_like(delta)
    given, flipped = losses.hinge_norm(delta, zero, w.tau), losses.hinge_norm(zero, delta, w.tau)
    return _chance(w) * given + (1 - _chance(w)) * flipped


def _least(w: RandomWorld) -> Tensor:
    """2 min(p, 1 − p), (X,)."""
    return 2 * torch.minimum(_chance(w), 1 - _chance(w))


hinge_forgets_how_much = Derivation(
    "hinge-forgets-how-much",
    "Hinge-norm learns which response is better, not by how much",
    lines=(
        Line(
            r"p\,\max(0, 1-\gamma\Delta) + (1-p)\,\max(0, 1+\gamma\Delta)",
            r"the mean over the label, $p = p^*(y_w\succ y_l)$",
            lambda w: (
                _chance(w) * (1 - w.tau * _gap(w, w.log_ratio)).clamp(min=0)
                + (1 - _chance(w)) * (1 + w.tau * _gap(w, w.log_ratio)).clamp(min=0)
            ),
            left=r"\mathbb{E}[\mathcal{L}_\text{hinge-norm}(\Delta)]",
            left_value=lambda w: _hinge(w, _gap(w, w.log_ratio)),
        ),
        Line(
            r"-\gamma\,(2p-1)",
            r"for $|\Delta| < 1/\gamma$: the same slope at every Δ; autograd computes the left side at $0.3/\gamma$",
            lambda w: -w.tau * (2 * _chance(w) - 1),
            left=r"\frac{d}{d\Delta}\mathbb{E}[\mathcal{L}_\text{hinge-norm}]",
            left_value=lambda w: gradient(lambda d: _hinge(w, d), torch.full_like(_chance(w), 0.3 / w.tau)),
        ),
        Line(
            r"2\min(p, 1-p)",
            r"so the minimum is at the kink $\Delta = \pm1/\gamma$, with the sign of $p-\frac12$",
            _least,
            left=r"\mathbb{E}[\mathcal{L}_\text{hinge-norm}]\,\Big|_{\Delta = \pm 1/\gamma}",
            left_value=lambda w: _hinge(w, torch.sign(_chance(w) - 0.5) / w.tau),
        ),
        Line(
            r"2\min(p, 1-p)",
            "and no other Δ has a lower loss, for example that of a random policy: a preference of 51% gets the same "
            "margin as one of 99%",
            _least,
            left=r"\mathbb{E}[\mathcal{L}_\text{hinge-norm}(\Delta)]",
            left_value=lambda w: _hinge(w, _gap(w, w.log_ratio)),
            relation="≥",
        ),
    ),
    wrong=(
        Wrong(
            r"-\gamma\,\big(p - \sigma(\gamma\Delta)\big)",
            "this is the slope of sigmoid-norm, which vanishes where the margin matches the odds of the label",
            lambda w: -w.tau * (_chance(w) - torch.sigmoid(torch.tensor(0.3, dtype=torch.float64))),
            2,
        ),
        Wrong(
            r"\mathbb{E}[\mathcal{L}_\text{hinge-norm}]\,\Big|_{\Delta = \frac1\gamma\log\frac{p}{1-p}}",
            "“its minimum is at the log-odds, like that of sigmoid-norm”",
            lambda w: _hinge(w, torch.logit(_chance(w)) / w.tau),
            3,
        ),
    ),
    source="Liu et al. 2024 (RSO), equation 10; Zhao et al. 2023 (SLiC-HF), equation 1.",
)
