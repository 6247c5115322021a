r"""Group methods: the baselines of RLOO and GRPO, the limit of the k3 term, and the division by the length.

Groups have w.n samples, and expectations over them are sums over all ordered groups. Ahmadian et al. 2024 (RLOO),
Shao et al. 2024 (GRPO), Liu et al. 2025 (Dr. GRPO).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_lab import exact, kl, losses
from rlhf_lab.derivations.derivation import Derivation, Line, Wrong, gradient
from rlhf_lab.derivations.random_worlds import RandomWorld


def _over_groups(
    w: RandomWorld, value: Callable[[Tensor, Tensor], Tensor], divide: losses.Divisor = "nothing"
) -> Tensor:
    """E[(1/G) Σ_i value(A, y)_i ∇log π(y_i)] in the logits of a table, (X, K), over all ordered groups.

    `value` maps the advantages (X, groups, G), with the mean of all as the baseline, and the responses (groups, G).
    """
    size = w.reward.shape[-1]
    groups = torch.cartesian_prod(*[torch.arange(size)] * w.n)  # (K^G, G)
    p = w.policy[:, groups].prod(-1, keepdim=True)
    weight = p * value(losses.group_advantages(w.reward[:, groups], False, divide), groups) / w.n
    at = torch.nn.functional.one_hot(groups, size).double()  # ∇log π(y) = e_y − π
    return torch.einsum("xmg,mgk->xk", weight, at) - weight.sum((1, 2)).unsqueeze(-1) * w.policy


def _with_mean_of_all(w: RandomWorld) -> Tensor:
    return _over_groups(w, lambda advantage, y: advantage)


def _leave_one_out(w: RandomWorld) -> Tensor:
    return _over_groups(w, lambda advantage, y: advantage * w.n / (w.n - 1))


def _short(w: RandomWorld) -> float:
    return (w.n - 1) / w.n


def _reward_gradient(w: RandomWorld) -> Tensor:
    """∇E_π[r] by autograd, (X, K)."""
    return gradient(lambda theta: (theta.softmax(-1) * w.reward).sum(-1), w.logits)


group_baselines = Derivation(
    "group-baselines",
    "RLOO has the gradient of the expected reward, and GRPO’s baseline multiplies it by (G−1)/G",
    lines=(
        Line(
            r"\tfrac{G-1}{G}\;\mathbb{E}\Big[\tfrac1G\sum_i \big(r_i - \tfrac{1}{G-1}\textstyle\sum_{j\ne i} r_j\big)"
            r"\nabla\log\pi_\theta(y_i)\Big]",
            r"$r_i - \bar r = \frac{G-1}{G}\,(r_i - \text{mean of the others})$ in every group",
            lambda w: _short(w) * _leave_one_out(w),
            left=r"\mathbb{E}\Big[\tfrac1G\sum_i (r_i - \bar r)\,\nabla\log\pi_\theta(y_i)\Big]",
            left_value=_with_mean_of_all,
        ),
        Line(
            r"\tfrac{G-1}{G}\;\mathbb{E}_{\pi_\theta}\big[r(y)\,\nabla\log\pi_\theta(y)\big]",
            r"the other samples are independent of $y_i$, and $\mathbb{E}[\nabla\log\pi_\theta(y_i)] = 0$",
            lambda w: _short(w) * w.policy * (w.reward - (w.policy * w.reward).sum(-1, keepdim=True)),
        ),
        Line(
            r"\tfrac{G-1}{G}\;\nabla\,\mathbb{E}_{\pi_\theta}[r]",
            "the log-derivative trick; autograd computes the right side",
            lambda w: _short(w) * _reward_gradient(w),
        ),
    ),
    wrong=(
        Wrong(
            r"\nabla\,\mathbb{E}_{\pi_\theta}[r]",
            "“every baseline leaves the expected gradient unchanged”, but the mean of all contains $r_i$ itself",
            _reward_gradient,
            3,
        ),
        Wrong(
            r"\tfrac{G-1}{G}\;\mathbb{E}_{\pi_\theta}[r]\;\mathbb{E}_{\pi_\theta}[\nabla\log\pi_\theta(y)]",
            r"$r(y)$ and $\nabla\log\pi_\theta(y)$ are not independent, and this product is zero",
            lambda w: torch.zeros_like(w.policy),
            2,
        ),
    ),
    source="Ahmadian et al. 2024, section 3 (RLOO); Shao et al. 2024 (GRPO).",
)


def _k3_in_loss(w: RandomWorld) -> Tensor:
    """E_π[∇k3] with samples that do not depend on θ, (X, K)."""
    return gradient(lambda theta: (w.policy * kl.k3(theta.log_softmax(-1), w.log_ref)).sum(-1), w.logits)


def _k3_limit(w: RandomWorld) -> Tensor:
    """The stationary point of Dr. GRPO with β k3 for groups of w.n, (X, K)."""
    return exact.reverse_kl_optimum(w.log_ref, _short(w) * w.reward, w.beta).exp()


k3_limit = Derivation(
    "k3-limit",
    "With k3 in the loss and without a standard deviation the limit is β π_ref/(c − r), not π*",
    lines=(
        Line(
            r"\mathbb{E}_{\pi_\theta}\Big[\big(1 - \tfrac{\pi_\text{ref}(y)}{\pi_\theta(y)}\big)"
            r"\nabla\log\pi_\theta(y)\Big]",
            r"$k_3 = \frac{\pi_\text{ref}}{\pi_\theta} - \log\frac{\pi_\text{ref}}{\pi_\theta} - 1$; the samples are "
            "data, so only k3 is differentiated",
            lambda w: w.policy * (1 - w.ref / w.policy) - w.policy * (w.policy - w.ref).sum(-1, keepdim=True),
            left=r"\mathbb{E}_{\pi_\theta}\big[\nabla k_3(y)\big]",
            left_value=_k3_in_loss,
        ),
        Line(
            r"\nabla\,\mathrm{KL}(\pi_\text{ref}\|\pi_\theta)",
            r"$\mathbb{E}_{\pi_\theta}[\nabla\log\pi_\theta] = 0$, and the rest is $-\mathbb{E}_{\pi_\text{ref}}"
            r"[\nabla\log\pi_\theta]$; autograd computes the right side",
            lambda w: gradient(lambda theta: exact.kl(w.log_ref, theta.log_softmax(-1)), w.logits),
        ),
        Line(
            r"\pi_\theta - \pi_\text{ref}",
            r"$\nabla\log\pi_\theta(y) = e_y - \pi_\theta$ in a table",
            lambda w: w.policy - w.ref,
        ),
        Line(
            r"\pi_c\,\tfrac{G-1}{G}\,(r - \mathbb{E}_{\pi_c}[r])",
            r"at $\pi_c = \beta\,\pi_\text{ref}\,/\,(c - \frac{G-1}{G}r)$ the KL term and the reward balance",
            lambda w: _k3_limit(w) * _short(w) * (w.reward - (_k3_limit(w) * w.reward).sum(-1, keepdim=True)),
            left=r"\beta\,(\pi_c - \pi_\text{ref})",
            left_value=lambda w: w.beta * (_k3_limit(w) - w.ref),
        ),
    ),
    wrong=(
        Wrong(
            r"\nabla\,\mathrm{KL}(\pi_\theta\|\pi_\text{ref})",
            r"the mean of k3 is KL(π_θ‖π_ref), but the mean of its gradient is that of the other divergence",
            lambda w: gradient(lambda theta: exact.kl(theta.log_softmax(-1), w.log_ref), w.logits),
            2,
        ),
        Wrong(
            r"\pi^*\,\tfrac{G-1}{G}\,(r - \mathbb{E}_{\pi^*}[r])",
            "“GRPO converges to π*”, but the two gradients do not balance there",
            lambda w: w.star * _short(w) * (w.reward - (w.star * w.reward).sum(-1, keepdim=True)),
            4,
        ),
    ),
    source="Shao et al. 2024 (GRPO), equation 4; Schulman 2020, *Approximating KL Divergence* (k3).",
)


def _length(w: RandomWorld) -> Tensor:
    """A length of each response, (K,): response k has k + 1 tokens."""
    return torch.arange(1, w.reward.shape[-1] + 1, dtype=torch.float64)


def _by_length(w: RandomWorld) -> Tensor:
    return _over_groups(w, lambda advantage, y: advantage / _length(w)[y], "population std")


def _expected(w: RandomWorld) -> Tensor:
    """E[A_1 | y_1 = y], (X, K)."""
    return exact.expected_advantage(w.log_policy, w.reward, w.n)


length_bias = Derivation(
    "length-bias",
    "The division by |y| rewards short correct and long wrong responses",
    lines=(
        Line(
            r"\sum_y \pi_\theta(y)\,\frac{w(y)}{|y|}\,\nabla\log\pi_\theta(y),"
            r"\qquad w(y) = \mathbb{E}[A_1\,|\,y_1 = y]",
            "all samples of a group have the same distribution, so the first one is enough; then condition on it",
            lambda w: (
                w.policy * _expected(w) / _length(w)
                - w.policy * (w.policy * _expected(w) / _length(w)).sum(-1, keepdim=True)
            ),
            left=r"\mathbb{E}\Big[\tfrac1G\sum_i \tfrac{A_i}{|y_i|}\,\nabla\log\pi_\theta(y_i)\Big]",
            left_value=_by_length,
        ),
        Line(
            r"\nabla\,\mathbb{E}_{\pi_\theta}\Big[\frac{w(y)}{|y|}\Big]\;\text{ for a fixed } w",
            r"a policy gradient whose reward is $w(y)/|y|$; autograd computes the right side",
            lambda w: gradient(lambda theta: (theta.softmax(-1) * _expected(w) / _length(w)).sum(-1), w.logits),
        ),
    ),
    wrong=(
        Wrong(
            r"\nabla\,\mathbb{E}_{\pi_\theta}[w(y)]",
            "the division is a part of the loss and not only of its scale: without it the gradient has another "
            "direction",
            lambda w: gradient(lambda theta: (theta.softmax(-1) * _expected(w)).sum(-1), w.logits),
            2,
        ),
        Wrong(
            r"\frac{1}{\mathbb{E}_{\pi_\theta}[|y|]}\,\nabla\,\mathbb{E}_{\pi_\theta}[w(y)]",
            "“the division only replaces sums by means”: this holds only if all responses have the same length",
            lambda w: (
                gradient(lambda theta: (theta.softmax(-1) * _expected(w)).sum(-1), w.logits)
                / (w.policy * _length(w)).sum(-1, keepdim=True)
            ),
            2,
        ),
    ),
    source="Liu et al. 2025 (Dr. GRPO), section 3.",
)
