r"""Block 2, the optimal policy: from the objective to π*, Gibbs, and the reward written by π*.

Lecture, "Optimal Solution to the KL-constrained Reward Maximization" (three slides) and "Re-organize Preference
Model". Everything is for one prompt; the expectation over prompts does not change the derivation.
"""

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.derivations.derivation import Derivation, Line, Wrong, finite_differences, gradient
from rlhf_lab.derivations.random_worlds import RandomWorld


def _mean(w: RandomWorld, inside: Tensor) -> Tensor:
    """E_π, (X,)."""
    return (w.policy * inside).sum(-1)


objective_to_optimum = Derivation(
    "objective-to-optimum",
    "From the objective to π*",
    lines=(
        Line(
            r"\mathbb{E}_{\pi}[r] - \beta\,\mathrm{KL}(\pi\|\pi_\text{ref})",
            "the objective, to be maximised over π",
            lambda w: _mean(w, w.reward) - w.beta * exact.kl(w.log_policy, w.log_ref),
            left=r"J(\pi)",
            left_value=lambda w: exact.objective(w.log_policy, w.log_ref, w.reward, w.beta),
        ),
        Line(
            r"\mathbb{E}_{\pi}\Big[r - \beta\log\frac{\pi}{\pi_\text{ref}}\Big]",
            "the KL is an expectation under π too",
            lambda w: _mean(w, w.reward - w.beta * (w.log_policy - w.log_ref)),
        ),
        Line(
            r"-\beta\,\mathbb{E}_{\pi}\Big[\log\frac{\pi}{\pi_\text{ref}} - \frac{1}{\beta}\,r\Big]",
            r"factor out $-\beta$: the maximum of $J$ is the minimum of the bracket (the lecture writes min and drops "
            "the factor)",
            lambda w: -w.beta * _mean(w, (w.log_policy - w.log_ref) - w.reward / w.beta),
        ),
        Line(
            r"-\beta\,\mathbb{E}_{\pi}\bigg[\log\frac{\pi}{\frac{1}{Z}\,\pi_\text{ref}\,"
            r"\exp\big(\frac{1}{\beta} r\big)} - \log Z\bigg]",
            r"$r/\beta = \log e^{r/\beta}$ goes into the fraction; insert $1/Z$ and compensate with $\log Z$",
            lambda w: (
                -w.beta
                * _mean(w, torch.log(w.policy / (w.ref * torch.exp(w.reward / w.beta) / w.z)) - w.log_z.unsqueeze(-1))
            ),
        ),
        Line(
            r"-\beta\,\Big(\mathbb{E}_{\pi}\Big[\log\frac{\pi}{\pi^*}\Big] - \log Z\Big)",
            r"the denominator is a distribution, which is called $\pi^*$, and $Z(x)$ does not depend on $y$",
            lambda w: -w.beta * (_mean(w, w.log_policy - w.log_star) - w.log_z),
        ),
        Line(
            r"\beta\log Z - \beta\,\mathrm{KL}(\pi\|\pi^*)",
            "the expectation of a log-ratio under its numerator is a KL",
            lambda w: w.beta * w.log_z - w.beta * exact.kl(w.log_policy, w.log_star),
        ),
        Line(
            r"\beta\log Z",
            "by Gibbs' inequality a KL is never negative",
            lambda w: w.beta * w.log_z,
            relation="≤",
        ),
        Line(
            r"\beta\log Z",
            r"at $\pi = \pi^*$ the KL is zero, so the bound is attained",
            lambda w: w.beta * w.log_z,
            left=r"J(\pi^*)",
            left_value=lambda w: exact.objective(w.log_star, w.log_ref, w.reward, w.beta),
        ),
    ),
    wrong=(
        Wrong(
            r"\mathbb{E}_{\pi}\Big[r + \beta\log\frac{\pi}{\pi_\text{ref}}\Big]",
            "the sign is wrong, so distance from the reference is rewarded",
            lambda w: _mean(w, w.reward + w.beta * w.log_ratio),
            2,
        ),
        Wrong(
            r"-\beta\,\mathbb{E}_{\pi}\Big[\log\frac{\pi}{\pi_\text{ref}} - r\Big]",
            "β was factored out of one term only",
            lambda w: -w.beta * _mean(w, w.log_ratio - w.reward),
            3,
        ),
        Wrong(
            r"-\beta\,\mathbb{E}_{\pi}\bigg[\log\bigg(\frac{\pi}{\frac{1}{Z}\,\pi_\text{ref}}\,"
            r"\exp\big(\tfrac{1}{\beta} r\big)\bigg) - \log Z\bigg]",
            "the exponential is beside the fraction instead of in the denominator, so the reward has the wrong sign",
            lambda w: -w.beta * _mean(w, w.log_ratio + w.reward / w.beta),
            4,
        ),
        Wrong(
            r"-\beta\,\Big(\mathbb{E}_{\pi}\Big[\log\frac{\pi}{\pi^*}\Big] + \log Z\Big)",
            r"the sign of $\log Z$ is wrong",
            lambda w: -w.beta * (_mean(w, w.log_policy - w.log_star) + w.log_z),
            5,
        ),
        Wrong(
            r"\beta\log Z - \beta\,\mathrm{KL}(\pi^*\|\pi)",
            "the arguments of the KL are swapped",
            lambda w: w.beta * w.log_z - w.beta * exact.kl(w.log_star, w.log_policy),
            6,
        ),
    ),
    source="Rafailov et al. 2023, appendix A.1, eqs. 11–14; lecture, “Optimal Solution to the KL-constrained Reward "
    "Maximization”.",
)

gibbs = Derivation(
    "gibbs",
    "Gibbs' inequality: a KL is never negative, and it is zero only for equal distributions",
    lines=(
        Line(
            r"-\mathbb{E}_{\pi}\Big[\log\frac{\pi^*}{\pi}\Big]",
            "invert the fraction, which changes the sign",
            lambda w: -_mean(w, torch.log(w.star / w.policy)),
            left=r"\mathrm{KL}(\pi\|\pi^*)",
            left_value=lambda w: exact.kl(w.log_policy, w.log_star),
        ),
        Line(
            r"-\mathbb{E}_{\pi}\Big[\frac{\pi^*}{\pi} - 1\Big]",
            r"$\log u \le u - 1$, with equality at $u = 1$ only",
            lambda w: -_mean(w, w.star / w.policy - 1),
            relation="≥",
        ),
        Line(
            r"1 - \sum_y \pi^*(y)",
            r"$\pi\cdot\pi^*/\pi = \pi^*$, and π sums to one",
            lambda w: 1 - w.star.sum(-1),
        ),
        Line(r"0", r"$\pi^*$ sums to one too, because of $Z$", lambda w: torch.zeros(len(w.reward))),
    ),
    wrong=(
        Wrong(
            r"\mathbb{E}_{\pi}\Big[\log\frac{\pi^*}{\pi}\Big]",
            "the fraction is inverted without changing the sign",
            lambda w: _mean(w, torch.log(w.star / w.policy)),
            1,
        ),
        Wrong(
            r"\mathrm{KL}(\pi^*\|\pi)",
            "“a distance is symmetric” is true, but the KL is not a distance",
            lambda w: exact.kl(w.log_star, w.log_policy),
            1,
        ),
        Wrong(
            r"1 - \sum_y \pi_\text{ref}(y)\,e^{r/\beta}",
            r"$Z$ is missing, so the numerator does not sum to one",
            lambda w: 1 - w.tilted.sum(-1),
            3,
        ),
    ),
    source="Gibbs' inequality; lecture, “Optimal Solution …”, third slide.",
)


def _objective_by_logits(w: RandomWorld) -> Tensor:
    """∇J with respect to the logits of π_θ, by autograd, (X, K)."""
    return gradient(lambda theta: exact.objective(theta.log_softmax(-1), w.log_ref, w.reward, w.beta), w.logits)


def _net_reward(w: RandomWorld) -> Tensor:
    """q = r − β log π/π_ref, (X, K)."""
    return w.reward - w.beta * w.log_ratio


objective_gradient = Derivation(
    "objective-gradient",
    "The gradient of the objective with respect to the logits",
    lines=(
        Line(
            r"\nabla\sum_y \pi(y)\,q(y),\quad q = r - \beta\log\tfrac{\pi}{\pi_\text{ref}}",
            "J is the expectation of $q$ under π; autograd computes the left side, finite differences the right",
            lambda w: finite_differences(
                lambda theta: (theta.softmax(-1) * (w.reward - w.beta * (theta.log_softmax(-1) - w.log_ref))).sum(-1),
                w.logits,
            ),
            left=r"\nabla J(\pi_\theta)",
            left_value=_objective_by_logits,
        ),
        Line(
            r"\sum_y \nabla\pi(y)\,q(y) - \beta\sum_y \pi(y)\,\nabla\log\pi(y)",
            "product rule, because $q$ depends on θ too",
            lambda w: gradient(
                lambda theta: (theta.softmax(-1) * _net_reward(w) - w.beta * w.policy * theta.log_softmax(-1)).sum(-1),
                w.logits,
            ),
        ),
        Line(
            r"\mathbb{E}_{\pi}\big[q\,\nabla\log\pi\big]",
            r"the second sum is $\sum_y\nabla\pi(y) = 0$, and $\nabla\pi = \pi\nabla\log\pi$",
            lambda w: gradient(lambda theta: (w.policy * _net_reward(w) * theta.log_softmax(-1)).sum(-1), w.logits),
        ),
        Line(
            r"\pi(y)\,\big(q(y) - J(\pi)\big)\ \text{ for the logit of } y",
            r"$\partial\log\pi(y')/\partial\theta_y = \mathbb{1}[y'=y] - \pi(y)$, and $\mathbb{E}_\pi[q] = J$",
            lambda w: w.policy * (_net_reward(w) - _mean(w, _net_reward(w)).unsqueeze(-1)),
        ),
    ),
    wrong=(
        Wrong(
            r"\sum_y \nabla\pi(y)\,q(y) + \beta\sum_y \nabla\pi(y)\,q(y)",
            "the second term of the product rule differentiates $q$, not π",
            lambda w: (1 + w.beta) * gradient(lambda theta: (theta.softmax(-1) * _net_reward(w)).sum(-1), w.logits),
            2,
        ),
        Wrong(
            r"\mathbb{E}_{\pi}\big[r\,\nabla\log\pi\big]",
            "this is the policy gradient of the reward alone, without the KL penalty",
            lambda w: gradient(lambda theta: (w.policy * w.reward * theta.log_softmax(-1)).sum(-1), w.logits),
            3,
        ),
        Wrong(
            r"\pi(y)\,q(y)",
            "the softmax is normalised, so a larger logit of $y$ lowers all other probabilities",
            lambda w: w.policy * _net_reward(w),
            4,
        ),
        Wrong(
            r"q(y) - J(\pi)",
            r"the factor $\pi(y)$ is missing; this is the direction of the natural gradient",
            lambda w: _net_reward(w) - _mean(w, _net_reward(w)).unsqueeze(-1),
            4,
        ),
    ),
    source="Williams 1992; Schulman et al. 2017, “Equivalence between policy gradients and soft Q-learning”.",
)

regret_is_a_kl = Derivation(
    "regret-is-a-kl",
    "The regret of a policy is β KL to π*",
    lines=(
        Line(
            r"\beta\log Z - \big(\beta\log Z - \beta\,\mathrm{KL}(\pi\|\pi^*)\big)",
            "the result of the derivation of π*, for π* and for π",
            lambda w: w.beta * w.log_z - (w.beta * w.log_z - w.beta * exact.kl(w.log_policy, w.log_star)),
            left=r"J(\pi^*) - J(\pi)",
            left_value=lambda w: (
                exact.objective(w.log_star, w.log_ref, w.reward, w.beta)
                - exact.objective(w.log_policy, w.log_ref, w.reward, w.beta)
            ),
        ),
        Line(
            r"\beta\,\mathrm{KL}(\pi\|\pi^*)",
            r"the intractable $Z$ cancels",
            lambda w: w.beta * _mean(w, w.log_policy - w.log_star),
        ),
    ),
    wrong=(
        Wrong(
            r"\mathrm{KL}(\pi\|\pi^*)",
            "β is missing, and nats are not units of reward",
            lambda w: exact.kl(w.log_policy, w.log_star),
            2,
        ),
        Wrong(
            r"\beta\,\mathrm{KL}(\pi^*\|\pi)",
            "the arguments of the KL are swapped",
            lambda w: w.beta * exact.kl(w.log_star, w.log_policy),
            2,
        ),
        Wrong(
            r"\mathbb{E}_{\pi^*}[r] - \mathbb{E}_{\pi}[r]",
            "this is the reward alone, but the KL penalty is part of J",
            lambda w: ((w.star - w.policy) * w.reward).sum(-1),
            2,
        ),
    ),
    source="Rafailov et al. 2023, appendix A.1; lecture, “Optimal Solution …”, second slide.",
)

reward_from_optimum = Derivation(
    "reward-from-optimum",
    "The reward in terms of its optimal policy",
    lines=(
        Line(
            r"\log\pi_\text{ref}(y|x) + \tfrac{1}{\beta}\,r(x,y) - \log Z(x)",
            r"take the logarithm of $\pi^* = \pi_\text{ref}\,e^{r/\beta}/Z$",
            lambda w: w.log_ref + w.reward / w.beta - w.log_z.unsqueeze(-1),
            left=r"\log\pi^*(y|x)",
            left_value=lambda w: exact.optimal_policy(w.log_ref, w.reward, w.beta),
        ),
        Line(
            r"r(x,y) - \beta\log Z(x)",
            r"move $\log\pi_\text{ref}$ to the left and multiply by β",
            lambda w: w.reward - w.beta * w.log_z.unsqueeze(-1),
            left=r"\beta\log\frac{\pi^*(y|x)}{\pi_\text{ref}(y|x)}",
            left_value=lambda w: exact.implicit_reward(w.log_star, w.log_ref, w.beta),
        ),
        Line(
            r"\beta\log\frac{\pi^*(y|x)}{\pi_\text{ref}(y|x)} + \beta\log Z(x)",
            r"solve for $r$",
            lambda w: w.beta * (w.log_star - w.log_ref) + w.beta * w.log_z.unsqueeze(-1),
            left=r"r(x,y)",
            left_value=lambda w: w.reward,
        ),
    ),
    wrong=(
        Wrong(
            r"\beta\log\frac{\pi_\text{ref}(y|x)}{\pi^*(y|x)} + \beta\log Z(x)",
            "the ratio is inverted",
            lambda w: w.beta * (w.log_ref - w.log_star) + w.beta * w.log_z.unsqueeze(-1),
            3,
        ),
        Wrong(
            r"\beta\log\frac{\pi^*(y|x)}{\pi_\text{ref}(y|x)} - \beta\log Z(x)",
            r"the sign of $\log Z$ is wrong",
            lambda w: w.beta * (w.log_star - w.log_ref) - w.beta * w.log_z.unsqueeze(-1),
            3,
        ),
        Wrong(
            r"\beta\log\frac{\pi^*(y|x)}{\pi_\text{ref}(y|x)} + \log Z(x)",
            r"β is missing before $\log Z$",
            lambda w: w.beta * (w.log_star - w.log_ref) + w.log_z.unsqueeze(-1),
            3,
        ),
    ),
    source="Rafailov et al. 2023, eqs. 4 and 5; lecture, “Re-organize Preference Model”.",
)


def _star_of(w: RandomWorld, inverse: Tensor) -> Tensor:
    """log π* at β = 1/inverse, `inverse` (X, 1), differentiable."""
    return (w.log_ref + w.reward * inverse).log_softmax(-1)


def _inverse_beta(w: RandomWorld) -> Tensor:
    return torch.full((len(w.reward), 1), 1 / w.beta, dtype=torch.float64)


def _variance(w: RandomWorld) -> Tensor:
    """Var_{π*}(r), (X, 1)."""
    mean = (w.star * w.reward).sum(-1, keepdim=True)
    return (w.star * (w.reward - mean).square()).sum(-1, keepdim=True)


def _reward_slope(w: RandomWorld) -> Tensor:
    """d E_{π*}[r] / d(1/β) by autograd, (X, 1)."""
    return gradient(lambda i: (_star_of(w, i).exp() * w.reward).sum(-1), _inverse_beta(w))


def _kl_slope(w: RandomWorld) -> Tensor:
    """d KL(π*‖π_ref) / d(1/β) by autograd, (X, 1)."""

    def divergence(inverse: Tensor) -> Tensor:
        log_star = _star_of(w, inverse)
        return (log_star.exp() * (log_star - w.log_ref)).sum(-1)

    return gradient(divergence, _inverse_beta(w))


beta_is_the_slope = Derivation(
    "beta-is-the-slope",
    "β is the slope of the frontier, reward per nat",
    lines=(
        Line(
            r"\mathrm{Var}_{\pi^*}(r)",
            r"π* is an exponential family in $1/\beta$; autograd computes the left side",
            _variance,
            left=r"\frac{d\,\mathbb{E}_{\pi^*}[r]}{d(1/\beta)}",
            left_value=_reward_slope,
        ),
        Line(
            r"\tfrac{1}{\beta}\,\mathrm{Var}_{\pi^*}(r)",
            r"$\mathrm{KL}(\pi^*\|\pi_\text{ref}) = \tfrac1\beta\mathbb{E}_{\pi^*}[r] - \log Z$, and "
            r"$\tfrac{d\log Z}{d(1/\beta)} = \mathbb{E}_{\pi^*}[r]$; autograd computes the left side",
            lambda w: _variance(w) / w.beta,
            left=r"\frac{d\,\mathrm{KL}(\pi^*\|\pi_\text{ref})}{d(1/\beta)}",
            left_value=_kl_slope,
        ),
        Line(
            r"\beta\,\frac{d\,\mathrm{KL}(\pi^*\|\pi_\text{ref})}{d(1/\beta)}",
            "divide the two. The reward rises by β times the increase of the KL. Autograd computes both sides",
            lambda w: w.beta * _kl_slope(w),
            left=r"\frac{d\,\mathbb{E}_{\pi^*}[r]}{d(1/\beta)}",
            left_value=_reward_slope,
        ),
    ),
    wrong=(
        Wrong(
            r"\frac{1}{\beta}\,\frac{d\,\mathrm{KL}(\pi^*\|\pi_\text{ref})}{d(1/\beta)}",
            "the slope is inverted",
            lambda w: _kl_slope(w) / w.beta,
            3,
        ),
        Wrong(
            r"\mathrm{Var}_{\pi_\text{ref}}(r)",
            "this is the variance under the reference, which is correct only for β → ∞",
            lambda w: (
                (w.ref * w.reward.square()).sum(-1, keepdim=True) - (w.ref * w.reward).sum(-1, keepdim=True).square()
            ),
            1,
        ),
        Wrong(
            r"\mathbb{E}_{\pi^*}[r^2]",
            "the mean is not subtracted",
            lambda w: (w.star * w.reward.square()).sum(-1, keepdim=True),
            1,
        ),
    ),
    source="Exponential families; the frontier of `rlhf_lab.exact.frontier`.",
)
