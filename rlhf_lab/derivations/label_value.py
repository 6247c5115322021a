r"""Block 5, the value of a label: the expected regret with N Bradley–Terry labels, to leading order in 1/N.

    N · E[J(π*) − J(π̂)] → tr(Σ I(μ)⁺) / (2β),   Σ = diag(π*) − π*π*ᵀ

The delta method in three steps: the regret's curvature, the labels' information, and the mean of a quadratic form. The
last derivation compares DPO's curvature on pairs from π* with that of the regret, for a restricted policy class.
Lecture, "Future Direction": given a budget of labels, how to design the whole training? Only the first prompt is used.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_lab import exact, losses
from rlhf_lab.derivations.derivation import Derivation, Line, Wrong, gradient
from rlhf_lab.derivations.random_worlds import RandomWorld


def _hessian(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Second derivatives by autograd, (K, K)."""
    second: Tensor = torch.autograd.functional.hessian(function, at.clone())
    return second


def _plug_in_regret(w: RandomWorld, estimate: Tensor) -> Tensor:
    """Regret of π̂ ∝ π_ref exp(r̂/β) in the first prompt."""
    log_hat = (w.log_ref[0] + estimate / w.beta).log_softmax(-1)
    return exact.regret(log_hat, w.log_ref[0], w.reward[0], w.beta)


def _covariance(w: RandomWorld) -> Tensor:
    """Σ = diag(π*) − π*π*ᵀ, (K, K)."""
    star = w.star[0]
    return torch.diag(star) - star.unsqueeze(-1) * star


def _divergence(w: RandomWorld, estimate: Tensor) -> Tensor:
    """β KL(π̂‖π*), written out."""
    log_hat = (w.log_ref[0] + estimate / w.beta).log_softmax(-1)
    return w.beta * (log_hat.exp() * (log_hat - w.log_star[0])).sum()


regret_curvature = Derivation(
    "regret-curvature",
    "Near the true reward the regret is a quadratic form",
    lines=(
        Line(
            r"0",
            r"$\hat\pi\propto\pi_\text{ref}e^{\hat r/\beta}$ is optimal at $\hat r = r$; autograd computes the left "
            "side",
            lambda w: torch.zeros_like(w.reward[0]),
            left=r"\nabla_{\hat r}\big[J(\pi^*) - J(\hat\pi)\big]_{\hat r = r}",
            left_value=lambda w: gradient(lambda r: _plug_in_regret(w, r), w.reward[0]),
        ),
        Line(
            r"\nabla^2_{\hat r}\,\beta\,\mathrm{KL}(\hat\pi\|\pi^*)\,\Big|_{\hat r = r}",
            "the regret is β times a KL; autograd computes the second derivatives of both sides",
            lambda w: _hessian(lambda r: _divergence(w, r), w.reward[0]),
            left=r"\nabla^2_{\hat r}\big[J(\pi^*) - J(\hat\pi)\big]_{\hat r = r}",
            left_value=lambda w: _hessian(lambda r: _plug_in_regret(w, r), w.reward[0]),
        ),
        Line(
            r"\frac{1}{\beta}\,\Sigma,\quad \Sigma = \mathrm{diag}(\pi^*) - \pi^*\pi^{*\top}",
            r"the curvature of the KL in the logits is Σ, and the logits are $\hat r/\beta$, which gives "
            r"$\beta\cdot\beta^{-2}$",
            lambda w: _covariance(w) / w.beta,
        ),
    ),
    wrong=(
        Wrong(r"\beta\,\Sigma", "the factor $1/\\beta^2$ is missing", lambda w: w.beta * _covariance(w), 3),
        Wrong(
            r"\frac{1}{\beta}\,\mathrm{diag}(\pi^*)",
            "the normaliser is missing, so that a shift of all rewards would cause regret",
            lambda w: torch.diag(w.star[0]) / w.beta,
            3,
        ),
        Wrong(
            r"\frac{1}{2\beta}\,\Sigma",
            "the ½ of the quadratic form is included in its matrix",
            lambda w: _covariance(w) / (2 * w.beta),
            3,
        ),
    ),
    source="Delta method; `rlhf_lab.exact.label_price`.",
)


def _laplacian(edges: Tensor) -> Tensor:
    """Σ_{i<j} e_ij b_ij b_ijᵀ for symmetric edges with zero diagonal, (K, K)."""
    return torch.diag(edges.sum(-1)) - edges


def _edges(w: RandomWorld) -> Tensor:
    """(μ_ij + μ_ji) p_ij (1 − p_ij), (K, K): (i, j) and (j, i) are the same comparison."""
    p = exact.preference(w.reward[0])
    return (w.pair_weights[0] + w.pair_weights[0].T) * p * (1 - p)


def _information(w: RandomWorld) -> Tensor:
    return _laplacian(_edges(w))


fisher_information = Derivation(
    "fisher-information",
    "The information of one label is a weighted graph Laplacian",
    lines=(
        Line(
            r"0",
            "at the true reward the expected gradient vanishes; autograd computes the left side",
            lambda w: torch.zeros_like(w.reward[0]),
            left=r"\nabla_{r}\,\mathbb{E}\big[-\log\sigma(r_w - r_l)\big]",
            left_value=lambda w: gradient(lambda r: _label_loss(w, r), w.reward[0]),
        ),
        Line(
            r"\sum_{i<j}(\mu_{ij} + \mu_{ji})\,p_{ij}(1 - p_{ij})\,b_{ij}b_{ij}^\top,\quad b_{ij} = e_i - e_j",
            r"$\sigma' = \sigma(1-\sigma)$, and a pair depends only on the difference; autograd computes the Hessian "
            "on the left",
            _information,
            left=r"\nabla^2_{r}\,\mathbb{E}\big[-\log\sigma(r_w - r_l)\big]",
            left_value=lambda w: _hessian(lambda r: _label_loss(w, r), w.reward[0]),
        ),
        Line(
            r"0",
            "a shift of all rewards changes no label, so nothing is learned in that direction",
            lambda w: torch.zeros_like(w.reward[0]),
            left=r"I(\mu)\,\mathbf{1}",
            left_value=lambda w: _information(w) @ torch.ones_like(w.reward[0]),
        ),
    ),
    wrong=(
        Wrong(
            r"\sum_{i<j}(\mu_{ij} + \mu_{ji})\,b_{ij}b_{ij}^\top",
            r"$p(1-p)$ is missing, so that predictable labels would be as informative as any others",
            lambda w: _laplacian(w.pair_weights[0] + w.pair_weights[0].T),
            2,
        ),
        Wrong(
            r"\sum_{i<j}\mu_{ij}\,p_{ij}(1 - p_{ij})\,b_{ij}b_{ij}^\top",
            "pairs in the other order are not counted",
            lambda w: _information(w) / 2,
            2,
        ),
    ),
    source="Fisher information of Bradley–Terry; Ford 1957 for when it determines the rewards.",
)


def _label_loss(w: RandomWorld, estimate: Tensor) -> Tensor:
    """The expected loss of one label: the pair (i, j) has probability μ_ij; i wins with p_ij, j with p_ji."""
    p = exact.preference(w.reward[0])
    loss = losses.bradley_terry(estimate.unsqueeze(-1), estimate.unsqueeze(-2))
    return (w.pair_weights[0] * (p * loss + p.T * loss.T)).sum()


def _pseudo_inverse(w: RandomWorld) -> Tensor:
    """I(μ)⁺, (K, K). I(μ) is zero only along the shift 1, which is added before and removed after the inverse."""
    shift = torch.full_like(_information(w), 1 / w.reward.shape[-1])
    inverse: Tensor = torch.linalg.inv(_information(w) + shift)
    return inverse - shift


def _root(w: RandomWorld) -> Tensor:
    """A with A Aᵀ = I(μ)⁺, (K, K), by eigenvectors: r̂ − r is A times independent standard normals, over √N."""
    values, vectors = torch.linalg.eigh(_pseudo_inverse(w))
    root: Tensor = vectors * values.clamp(min=0).sqrt()
    return root


label_price = Derivation(
    "label-price",
    "The limit of N times the regret",
    lines=(
        Line(
            r"\tfrac12\,\mathbb{E}\big[z^\top A^\top\,\tfrac1\beta\Sigma\,A z\big],\quad AA^\top = I(\mu)^+",
            r"$\sqrt N(\hat r - r) \to \mathcal{N}(0, I(\mu)^+)$, substituted into the quadratic form; $z$ is standard "
            "normal",
            lambda w: (_root(w).T @ _covariance(w) @ _root(w)).diagonal().sum() / (2 * w.beta),
            left=r"\lim_{N\to\infty} N\,\mathbb{E}\big[J(\pi^*) - J(\hat\pi)\big]",
            left_value=lambda w: exact.label_price(w.log_ref[0], w.reward[0], w.beta, w.pair_weights[0]),
        ),
        Line(
            r"\frac{1}{2\beta}\,\mathrm{tr}\big(\Sigma\,I(\mu)^+\big)",
            r"$\mathbb{E}[z^\top B z] = \mathrm{tr}\,B$, and a trace is invariant under cyclic permutation",
            lambda w: torch.trace(_covariance(w) @ _pseudo_inverse(w)) / (2 * w.beta),
        ),
    ),
    wrong=(
        Wrong(
            r"\frac{1}{\beta}\,\mathrm{tr}\big(\Sigma\,I(\mu)^+\big)",
            "the ½ of the Taylor expansion is missing",
            lambda w: torch.trace(_covariance(w) @ _pseudo_inverse(w)) / w.beta,
            2,
        ),
        Wrong(
            r"\frac{1}{2\beta}\,\mathrm{tr}\big(I(\mu)^+\big)",
            "Σ is missing, as if all rewards affected the policy equally",
            lambda w: torch.trace(_pseudo_inverse(w)) / (2 * w.beta),
            2,
        ),
        Wrong(
            r"\frac{\beta}{2}\,\mathrm{tr}\big(\Sigma\,I(\mu)^+\big)",
            "β is on the wrong side of the fraction",
            lambda w: torch.trace(_covariance(w) @ _pseudo_inverse(w)) * w.beta / 2,
            2,
        ),
    ),
    source="Delta method; lecture, “Future Direction”.",
)


def _direction(w: RandomWorld) -> Tensor:
    """An arbitrary error e of the implicit reward, (K,)."""
    return w.log_ratio[0]


def _form(matrix: Tensor, e: Tensor) -> Tensor:
    return e @ matrix @ e


def _dpo_curvature(w: RandomWorld, pairs: Tensor) -> Tensor:
    """∇²_f of DPO's expected loss at f = r, by autograd, for pairs (i, j) with the probabilities `pairs`, (K, K)."""
    p = exact.preference(w.reward[0])

    def loss(f: Tensor) -> Tensor:
        ratio = f / w.beta
        each = losses.dpo(ratio.unsqueeze(-1), ratio.unsqueeze(-2), w.beta)
        return (pairs * (p * each + p.T * each.T)).sum()

    return _hessian(loss, w.reward[0])


def _pairs_of(log_policy: Tensor) -> Tensor:
    """π(i) π(j), (K, K). A pair of equal responses has a constant loss."""
    return log_policy.exp().unsqueeze(-1) * log_policy.exp()


def _regret_curvature(w: RandomWorld) -> Tensor:
    return _hessian(lambda r: _plug_in_regret(w, r), w.reward[0])


def _label_variance(w: RandomWorld) -> Tensor:
    """p(1 − p) of every pair, (K, K)."""
    p = exact.preference(w.reward[0])
    return p * (1 - p)


pairs_of_the_optimum = Derivation(
    "pairs-of-the-optimum",
    "On pairs from π*, DPO's loss is the regret's quadratic form up to the variance of the labels",
    lines=(
        Line(
            r"\sum_{i,j}\pi^*_i\pi^*_j\,p_{ij}(1-p_{ij})\,(e_i-e_j)^2",
            r"both responses are drawn from $\pi^*$ and $e$ is an error of the implicit reward; autograd computes the "
            "left side",
            lambda w: (
                _pairs_of(w.log_star[0]) * _label_variance(w) * (_direction(w).unsqueeze(-1) - _direction(w)).square()
            ).sum(),
            left=r"e^\top\nabla^2_f\,\mathcal{L}_\text{DPO}\,\Big|_{f=r}\,e",
            left_value=lambda w: _form(_dpo_curvature(w, _pairs_of(w.log_star[0])), _direction(w)),
        ),
        Line(
            r"\tfrac14\sum_{i,j}\pi^*_i\pi^*_j\,(e_i-e_j)^2",
            r"$p(1-p)\le\frac14$, and equal if both responses have the same reward",
            lambda w: (_pairs_of(w.log_star[0]) * (_direction(w).unsqueeze(-1) - _direction(w)).square()).sum() / 4,
            relation="≤",
        ),
        Line(
            r"\tfrac12\,\mathrm{Var}_{\pi^*}(e)",
            "the mean squared difference of two independent draws is twice the variance",
            lambda w: _form(_covariance(w), _direction(w)) / 2,
        ),
        Line(
            r"\tfrac{\beta}{2}\;e^\top\nabla^2_f\big[J(\pi^*)-J(\pi_f)\big]_{f=r}\,e",
            r"the regret of $\pi_f\propto\pi_\text{ref}e^{f/\beta}$ has the curvature $\Sigma/\beta$; autograd "
            "computes the right side",
            lambda w: w.beta / 2 * _form(_regret_curvature(w), _direction(w)),
        ),
        Line(
            r"2\beta\,\min_{ij}p_{ij}(1-p_{ij})\;e^\top\nabla^2_f\big[J(\pi^*)-J(\pi_f)\big]_{f=r}\,e",
            r"the same steps with the minimum of $p(1-p)$ in place of $\frac14$: for rewards that differ little, the "
            "two bounds meet",
            lambda w: 2 * w.beta * _label_variance(w).min() * _form(_regret_curvature(w), _direction(w)),
            left=r"e^\top\nabla^2_f\,\mathcal{L}_\text{DPO}\,\Big|_{f=r}\,e",
            left_value=lambda w: _form(_dpo_curvature(w, _pairs_of(w.log_star[0])), _direction(w)),
            relation="≥",
        ),
        Line(
            r"\tfrac{\beta}{2}\,\nabla^2_f\big[J(\pi^*)-J(\pi_f)\big]_{f=r}",
            r"pairs with the probabilities $\pi^*_i\pi^*_j/4p_{ij}(1-p_{ij})$ make the two forms equal for every $e$",
            lambda w: w.beta / 2 * _regret_curvature(w),
            left=r"\nabla^2_f\,\mathcal{L}_\text{reweighted}\,\Big|_{f=r}",
            left_value=lambda w: _dpo_curvature(w, _pairs_of(w.log_star[0]) / (4 * _label_variance(w))),
        ),
    ),
    wrong=(
        Wrong(
            r"\sum_{i,j}\pi_{\text{ref},i}\,\pi_{\text{ref},j}\,p_{ij}(1-p_{ij})\,(e_i-e_j)^2",
            r"pairs from $\pi_\text{ref}$ weigh the errors differently",
            lambda w: (
                _pairs_of(w.log_ref[0]) * _label_variance(w) * (_direction(w).unsqueeze(-1) - _direction(w)).square()
            ).sum(),
            1,
        ),
        Wrong(
            r"\mathrm{Var}_{\pi^*}(e)",
            "the ¼ of the labels is multiplied by 4 instead of 2",
            lambda w: _form(_covariance(w), _direction(w)),
            3,
        ),
        Wrong(
            r"\tfrac{1}{2}\;e^\top\nabla^2_f\big[J(\pi^*)-J(\pi_f)\big]_{f=r}\,e",
            "β is missing: the logits are $f/\\beta$, and the regret is β times a KL",
            lambda w: _form(_regret_curvature(w), _direction(w)) / 2,
            4,
        ),
    ),
    source="Second-order expansion; lecture, “Preference Data Distribution – Choices”; Liu et al. 2024 (RSO).",
)
