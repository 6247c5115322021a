r"""Block 1, review of RLHF: Bradley–Terry, its undetermined function of the prompt, and the two gradients behind PPO.

Lecture, "Review of RLHF: Preliminaries".
"""

import torch
from torch import Tensor

from rlhf_lab import exact, losses
from rlhf_lab.derivations.derivation import Derivation, Line, Wrong, finite_differences, gradient
from rlhf_lab.derivations.random_worlds import RandomWorld


def _gaps(reward: Tensor) -> Tensor:
    """r_1 − r_2 of all pairs, (X, K, K)."""
    return reward.unsqueeze(-1) - reward.unsqueeze(-2)


def _row(reward: Tensor) -> Tensor:
    """r_1 of all pairs, (X, K, 1); its transpose is r_2."""
    return reward.unsqueeze(-1)


def _column(reward: Tensor) -> Tensor:
    return reward.unsqueeze(-2)


bradley_terry = Derivation(
    "bradley-terry",
    "Bradley–Terry depends only on the difference of two rewards",
    lines=(
        Line(
            r"\frac{\exp(r(x,y_1))}{\exp(r(x,y_1)) + \exp(r(x,y_2))}",
            "Bradley and Terry's model of a choice between two",
            lambda w: _row(w.reward.exp()) / (_row(w.reward.exp()) + _column(w.reward.exp())),
            left=r"p(y_1 \succ y_2 \mid x)",
            left_value=lambda w: exact.preference(w.reward),
        ),
        Line(
            r"\frac{1}{1 + \exp(r(x,y_2) - r(x,y_1))}",
            r"divide both by $\exp(r(x,y_1))$",
            lambda w: 1 / (1 + torch.exp(-_gaps(w.reward))),
        ),
        Line(
            r"\sigma\big(r(x,y_1) - r(x,y_2)\big)",
            r"$\sigma(u) = 1/(1 + e^{-u})$",
            lambda w: torch.sigmoid(_gaps(w.reward)),
        ),
    ),
    wrong=(
        Wrong(
            r"\sigma\big(r(x,y_2) - r(x,y_1)\big)",
            "the pair is swapped, so that the worse response wins more often",
            lambda w: torch.sigmoid(-_gaps(w.reward)),
            3,
        ),
        Wrong(
            r"\frac{r(x,y_1)}{r(x,y_1) + r(x,y_2)}",
            "the exponentials are missing",
            lambda w: _row(w.reward) / (_row(w.reward) + _column(w.reward)),
            1,
        ),
    ),
    source="Bradley & Terry 1952; Rafailov et al. 2023, eq. 1; lecture, “Preliminaries”.",
)

reward_up_to_f = Derivation(
    "reward-up-to-f",
    "A reward is determined only up to a function of the prompt",
    lines=(
        Line(
            r"\sigma\big(r(x,y_1) + f(x) - r(x,y_2) - f(x)\big)",
            r"Bradley–Terry with the reward $r + f$",
            lambda w: torch.sigmoid(_row(w.reward + w.offset) - _column(w.reward + w.offset)),
            left=r"p_{r+f}(y_1 \succ y_2 \mid x)",
            left_value=lambda w: exact.preference(w.reward + w.offset),
        ),
        Line(
            r"p_r(y_1 \succ y_2 \mid x)",
            r"$f(x)$ cancels, so no label distinguishes $r$ from $r + f$",
            lambda w: exact.preference(w.reward),
        ),
        Line(
            r"\frac{\pi_\text{ref}(y|x)\,e^{r(x,y)/\beta}\,e^{f(x)/\beta}}"
            r"{\sum_{y'} \pi_\text{ref}(y'|x)\,e^{r(x,y')/\beta}\,e^{f(x)/\beta}}",
            r"the optimal policy of the reward $r + f$",
            lambda w: (
                w.tilted * (w.offset / w.beta).exp() / (w.tilted * (w.offset / w.beta).exp()).sum(-1, keepdim=True)
            ),
            left=r"\pi^*_{r+f}(y|x)",
            left_value=lambda w: exact.optimal_policy(w.log_ref, w.reward + w.offset, w.beta).exp(),
        ),
        Line(
            r"\pi^*_r(y|x)",
            r"$e^{f(x)/\beta}$ factors out of the sum and cancels",
            lambda w: exact.optimal_policy(w.log_ref, w.reward, w.beta).exp(),
        ),
    ),
    wrong=(
        Wrong(
            r"p_{2r}(y_1 \succ y_2 \mid x)",
            "“up to a scale, too” is false; a factor above 1 makes every label more certain",
            lambda w: exact.preference(2 * w.reward),
            2,
        ),
        Wrong(
            r"\pi^*_{2r}(y|x)",
            r"a scale changes the policy; the factor 2 halves β",
            lambda w: exact.optimal_policy(w.log_ref, 2 * w.reward, w.beta).exp(),
            4,
        ),
        Wrong(
            r"\pi^*_{r + f(y)}(y|x)",
            "an offset that depends on the response gives another reward",
            lambda w: exact.optimal_policy(w.log_ref, w.reward + w.logits, w.beta).exp(),
            4,
        ),
    ),
    source="Rafailov et al. 2023, section 5.1, lemmas 1 and 2; lecture, “Preliminaries”.",
)


def _pair_loss(w: RandomWorld, reward: Tensor) -> Tensor:
    return losses.bradley_terry(*w.of_pair(reward))


def _pair_direction(w: RandomWorld) -> Tensor:
    """+1 at y_w, −1 at y_l, (X, K)."""
    size = w.reward.shape[-1]
    return torch.nn.functional.one_hot(w.chosen, size) - torch.nn.functional.one_hot(w.rejected, size)


def _won(w: RandomWorld) -> Tensor:
    """r_w − r_l, (X, 1)."""
    chosen, rejected = w.of_pair(w.reward)
    return (chosen - rejected).unsqueeze(-1)


reward_gradient = Derivation(
    "reward-gradient",
    "The reward model's gradient weights a pair by how incorrectly it is ranked",
    lines=(
        Line(
            r"-\frac{\sigma'(r_w - r_l)}{\sigma(r_w - r_l)}\,\nabla(r_w - r_l)",
            "chain rule; autograd computes the left side",
            lambda w: -torch.sigmoid(_won(w)) * torch.sigmoid(-_won(w)) / torch.sigmoid(_won(w)) * _pair_direction(w),
            left=r"\nabla\big[-\log\sigma(r_w - r_l)\big]",
            left_value=lambda w: gradient(lambda r: _pair_loss(w, r), w.reward),
        ),
        Line(
            r"-\sigma(r_l - r_w)\,\nabla(r_w - r_l)",
            r"$\sigma'(u) = \sigma(u)\,\sigma(-u)$",
            lambda w: -torch.sigmoid(-_won(w)) * _pair_direction(w),
        ),
        Line(
            r"\text{finite differences}",
            "finite differences of the loss, without calculus",
            lambda w: finite_differences(lambda r: _pair_loss(w, r), w.reward),
        ),
    ),
    wrong=(
        Wrong(
            r"-\sigma(r_w - r_l)\,\nabla(r_w - r_l)",
            "the sign in the weight is lost, so that correctly ranked pairs would count most",
            lambda w: -torch.sigmoid(_won(w)) * _pair_direction(w),
            2,
        ),
        Wrong(
            r"+\sigma(r_l - r_w)\,\nabla(r_w - r_l)",
            "the minus is lost, so that gradient descent would lower the reward of the chosen response",
            lambda w: torch.sigmoid(-_won(w)) * _pair_direction(w),
            2,
        ),
    ),
    source="Rafailov et al. 2023, eq. 2; lecture, “Preliminaries”, ℒ_R.",
)


def _log_jacobian(w: RandomWorld) -> Tensor:
    """∂ log π(y)/∂θ_k for a table of logits: 1[y = k] − π(k), (X, K, K)."""
    size = w.logits.shape[-1]
    return torch.eye(size, dtype=torch.float64) - w.policy.unsqueeze(-2)


def _expected_score(w: RandomWorld, weight: Tensor) -> Tensor:
    """E_π[weight(y) ∇ log π(y)], (X, K)."""
    return ((w.policy * weight).unsqueeze(-1) * _log_jacobian(w)).sum(-2)


def _advantage(w: RandomWorld) -> Tensor:
    """r − β log π/π_ref, the reward with the KL penalty, (X, K)."""
    return w.reward - w.beta * w.log_ratio


policy_gradient = Derivation(
    "policy-gradient",
    "The gradient of the RL objective, with the KL in the reward",
    lines=(
        Line(
            r"\sum_y \nabla\pi_\theta(y)\,\Big[r - \beta\log\tfrac{\pi_\theta}{\pi_\text{ref}}\Big]"
            r" - \beta\,\mathbb{E}_{\pi_\theta}[\nabla\log\pi_\theta]",
            "product rule; autograd computes the left side",
            lambda w: _expected_score(w, _advantage(w)) - w.beta * _expected_score(w, torch.ones_like(w.reward)),
            left=r"\nabla_\theta J(\pi_\theta)",
            left_value=lambda w: gradient(
                lambda theta: exact.objective(theta.log_softmax(-1), w.log_ref, w.reward, w.beta), w.logits
            ),
        ),
        Line(
            r"\mathbb{E}_{\pi_\theta}\Big[\big(r - \beta\log\tfrac{\pi_\theta}{\pi_\text{ref}}\big)"
            r"\nabla\log\pi_\theta\Big]",
            r"$\nabla\pi = \pi\nabla\log\pi$, and $\mathbb{E}_\pi[\nabla\log\pi] = \nabla\sum_y\pi = 0$",
            lambda w: _expected_score(w, _advantage(w)),
        ),
        Line(
            r"\mathbb{E}_{\pi_\theta}\Big[\big(r - \beta\log\tfrac{\pi_\theta}{\pi_\text{ref}} - b(x)\big)"
            r"\nabla\log\pi_\theta\Big]",
            "a baseline that does not depend on y changes only the variance",
            lambda w: _expected_score(w, _advantage(w) - w.offset),
        ),
    ),
    wrong=(
        Wrong(
            r"\mathbb{E}_{\pi_\theta}\big[r\,\nabla\log\pi_\theta\big]",
            "the KL is missing; this is the gradient of the reward alone",
            lambda w: _expected_score(w, w.reward),
            2,
        ),
        Wrong(
            r"\mathbb{E}_{\pi_\theta}\Big[\big(r + \beta\log\tfrac{\pi_\theta}{\pi_\text{ref}}\big)"
            r"\nabla\log\pi_\theta\Big]",
            "the sign is lost, so that drift is rewarded",
            lambda w: _expected_score(w, w.reward + w.beta * w.log_ratio),
            2,
        ),
        Wrong(
            r"\mathbb{E}_{\pi_\theta}\Big[\big(r - \beta\log\tfrac{\pi_\theta}{\pi_\text{ref}} - b(x,y)\big)"
            r"\nabla\log\pi_\theta\Big]",
            "a baseline that depends on the response changes the gradient",
            lambda w: _expected_score(w, _advantage(w) - w.log_ref),
            3,
        ),
    ),
    source="Williams 1992; Ouyang et al. 2022, eq. 2; lecture, “Preliminaries”, RL fine-tuning phase.",
)


def _surrogate(w: RandomWorld, log_policy: Tensor, old: Tensor) -> Tensor:
    """E_old[(π_θ/π_old) r], (X,)."""
    return (old.exp() * (log_policy - old).exp() * w.reward).sum(-1)


importance_ratio = Derivation(
    "importance-ratio",
    "PPO's ratio reweights samples of the old policy",
    lines=(
        Line(
            r"\sum_y \pi_\text{old}(y)\,\frac{\pi_\theta(y)}{\pi_\text{old}(y)}\,r(y)",
            r"multiply and divide by $\pi_\text{old}$ (here the reference)",
            lambda w: (w.ref * (w.policy / w.ref) * w.reward).sum(-1),
            left=r"\mathbb{E}_{\pi_\theta}[r]",
            left_value=lambda w: (w.policy * w.reward).sum(-1),
        ),
        Line(
            r"\mathbb{E}_{\pi_\text{old}}\big[\rho\,r\big],\quad \rho = e^{\log\pi_\theta - \log\pi_\text{old}}",
            "the expectation is now over the sampled responses",
            lambda w: _surrogate(w, w.log_policy, w.log_ref),
        ),
        Line(
            r"\mathbb{E}_{\pi_\theta}\big[r\,\nabla\log\pi_\theta\big]",
            r"at $\theta = \theta_\text{old}$ the surrogate has the gradient of the policy (autograd computes the left "
            "side)",
            lambda w: _expected_score(w, w.reward),
            left=r"\nabla_\theta\,\mathbb{E}_{\pi_\text{old}}[\rho\,r]\,\Big|_{\theta = \theta_\text{old}}",
            left_value=lambda w: gradient(lambda theta: _surrogate(w, theta.log_softmax(-1), w.log_policy), w.logits),
        ),
    ),
    wrong=(
        Wrong(
            r"\mathbb{E}_{\pi_\text{old}}\big[r\big]",
            "the ratio is missing; this is the reward of the old policy",
            lambda w: (w.ref * w.reward).sum(-1),
            2,
        ),
        Wrong(
            r"\mathbb{E}_{\pi_\text{old}}\big[\rho\,r\big],\quad \rho = e^{\log\pi_\text{old} - \log\pi_\theta}",
            "the ratio is inverted",
            lambda w: (w.ref * (w.log_ref - w.log_policy).exp() * w.reward).sum(-1),
            2,
        ),
    ),
    source="Schulman et al. 2017, eqs. 6 and 7 (without the clipping, which is not an identity).",
)
