r"""Block 2, DPO: the loss as maximum likelihood, its minimum, its gradient, and its effect on the chosen response.

Lecture, "DPO Objective Function". Here θ is a table of logits.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_lab import exact, losses
from rlhf_lab.derivations.derivation import Derivation, Line, Wrong, finite_differences, gradient
from rlhf_lab.derivations.random_worlds import RandomWorld, random_world


def _gaps(table: Tensor) -> Tensor:
    """first − second of all pairs, (X, K, K)."""
    return table.unsqueeze(-1) - table.unsqueeze(-2)


def _implicit(w: RandomWorld) -> Tensor:
    """r̂ = β log π_θ/π_ref, (X, K)."""
    return w.beta * w.log_ratio


def _over_labels(w: RandomWorld, values: Tensor) -> Tensor:
    """The mean over labelled pairs and their labels: Σ_ij μ_ij (p_ij value_ij + p_ji value_ji), (X,)."""
    of_winner = exact.preference(w.reward) * values  # value_ij: i is the chosen one
    return (w.pair_weights * (of_winner + of_winner.transpose(-1, -2))).sum((-1, -2))


def _population_loss(w: RandomWorld, log_policy: Tensor) -> Tensor:
    """ℒ_DPO with every pair and both labels at their probabilities, by `losses.dpo`, (X,)."""
    ratio = log_policy - w.log_ref
    return _over_labels(w, losses.dpo(ratio.unsqueeze(-1), ratio.unsqueeze(-2), w.beta))


_R_HAT = r"\hat r_\theta = \beta\log\tfrac{\pi_\theta}{\pi_\text{ref}}"

dpo_is_likelihood = Derivation(
    "dpo-is-likelihood",
    "DPO's loss is a negative log-likelihood, and π* minimises it",
    lines=(
        Line(
            r"-\mathbb{E}\Big[\log\sigma\Big(\beta\log\frac{\pi_\theta(y_w|x)}{\pi_\text{ref}(y_w|x)}"
            r" - \beta\log\frac{\pi_\theta(y_l|x)}{\pi_\text{ref}(y_l|x)}\Big)\Big]",
            "the lecture's formula, with every label weighted by its probability; the left side is `losses.dpo`",
            lambda w: -_over_labels(w, logsigmoid(_gaps(_implicit(w)))),
            left=r"\mathcal{L}_\text{DPO}(\theta)",
            left_value=lambda w: _population_loss(w, w.log_policy),
        ),
        Line(
            r"-\mathbb{E}\big[\log p_\theta(y_w \succ y_l)\big]",
            rf"$p_\theta$: Bradley–Terry with the reward ${_R_HAT}$",
            lambda w: -_over_labels(w, exact.preference(_implicit(w)).log()),
        ),
        Line(
            r"\mathbb{E}\big[H(p^*)\big] + \mathbb{E}\big[\mathrm{KL}(p^*\|p_\theta)\big]",
            r"a cross-entropy is the entropy of the labels plus the KL to the model",
            lambda w: (
                -_over_labels(w, exact.preference(w.reward).log())
                + _over_labels(w, (exact.preference(w.reward) / exact.preference(_implicit(w))).log())
            ),
        ),
        Line(
            r"\mathbb{E}\big[H(p^*)\big]",
            "a KL is never negative (Gibbs’ inequality)",
            lambda w: -_over_labels(w, exact.preference(w.reward).log()),
            relation="≥",
        ),
        Line(
            r"\mathbb{E}\big[H(p^*)\big]",
            r"at $\pi^*$ the reward $\hat r$ is $r$ up to a function of $x$, so $p_\theta = p^*$: the minimum is "
            "attained",
            lambda w: -_over_labels(w, exact.preference(w.reward).log()),
            left=r"\mathcal{L}_\text{DPO}(\pi^*)",
            left_value=lambda w: _population_loss(w, w.log_star),
        ),
    ),
    wrong=(
        Wrong(
            r"-\mathbb{E}\Big[\log\sigma\Big(\beta\log\frac{\pi_\theta(y_l|x)}{\pi_\text{ref}(y_l|x)}"
            r" - \beta\log\frac{\pi_\theta(y_w|x)}{\pi_\text{ref}(y_w|x)}\Big)\Big]",
            "chosen and rejected are swapped",
            lambda w: -_over_labels(w, logsigmoid(-_gaps(_implicit(w)))),
            1,
        ),
        Wrong(
            r"-\mathbb{E}\Big[\log\sigma\big(\beta\log\pi_\theta(y_w|x) - \beta\log\pi_\theta(y_l|x)\big)\Big]",
            "the reference is missing",
            lambda w: -_over_labels(w, logsigmoid(w.beta * _gaps(w.log_policy))),
            1,
        ),
        Wrong(
            r"-\mathbb{E}\Big[\log\sigma\Big(\log\frac{\pi_\theta(y_w|x)}{\pi_\text{ref}(y_w|x)}"
            r" - \log\frac{\pi_\theta(y_l|x)}{\pi_\text{ref}(y_l|x)}\Big)\Big]",
            "β is missing",
            lambda w: -_over_labels(w, logsigmoid(_gaps(w.log_ratio))),
            1,
        ),
        Wrong(
            r"-\mathbb{E}\big[p_\theta(y_w \succ y_l)\big]",
            "the logarithm is missing; the mean probability is not a log-likelihood",
            lambda w: -_over_labels(w, exact.preference(_implicit(w))),
            2,
        ),
    ),
    source="Rafailov et al. 2023, eq. 7; lecture, “DPO Objective Function”.",
)

dpo_minimum = Derivation(
    "dpo-minimum",
    "At π* DPO's gradient is zero, whatever pairs are labelled",
    lines=(
        Line(
            r"-\beta\,\mathbb{E}_{\mu}\big[(p^*_{12} - p_{\theta,12})\,(e_{y_1} - e_{y_2})\big]",
            r"the two labels of a pair are combined; $e_y$ is the unit vector of the logit of $y$. Autograd computes "
            "the left side",
            lambda w: _population_gradient(w, exact.preference(_implicit(w))),
            left=r"\nabla_\theta\mathcal{L}_\text{DPO}(\theta)",
            left_value=lambda w: gradient(lambda theta: _population_loss(w, theta.log_softmax(-1)), w.logits),
        ),
        Line(
            r"-\beta\,\mathbb{E}_{\mu}\big[(p^*_{12} - p^*_{12})\,(e_{y_1} - e_{y_2})\big]",
            r"the same at $\pi_\theta = \pi^*$, where $p_\theta = p^*$",
            lambda w: _population_gradient(w, exact.preference(w.reward)),
            left=r"\nabla_\theta\mathcal{L}_\text{DPO}\,\Big|_{\pi_\theta = \pi^*}",
            left_value=lambda w: gradient(lambda theta: _population_loss(w, theta.log_softmax(-1)), w.log_star),
        ),
        Line(r"0", "this is true for every μ, so the labelled pairs affect the noise but not the limit", lambda w: 0.0),
    ),
    wrong=(
        Wrong(
            r"-\beta\,\mathbb{E}_{\mu}\big[p^*_{12}\,(e_{y_1} - e_{y_2})\big]",
            "the model's probability is not subtracted, so the gradient would never vanish",
            lambda w: _population_gradient(w, torch.zeros_like(w.pair_weights)),
            1,
        ),
        Wrong(
            r"-\mathbb{E}_{\mu}\big[(p^*_{12} - p_{\theta,12})\,(e_{y_1} - e_{y_2})\big]",
            "β is missing",
            lambda w: _population_gradient(w, exact.preference(_implicit(w))) / w.beta,
            1,
        ),
    ),
    source="Rafailov et al. 2023, section 4; lecture, “DPO Objective Function”.",
)


def _population_gradient(w: RandomWorld, believed: Tensor) -> Tensor:
    """−β Σ_{i<j} (μ_ij + μ_ji)(p*_ij − believed_ij)(e_i − e_j), (X, K)."""
    pull = w.pair_weights * (exact.preference(w.reward) - believed)
    # Each unordered pair is listed twice, once from either side, with pulls of opposite sign.
    return -w.beta * (pull - pull.transpose(-1, -2)).sum(-1)


def _margin(w: RandomWorld, log_policy: Tensor) -> Tensor:
    """u = r̂_w − r̂_l, (X, 1)."""
    chosen, rejected = w.of_pair(w.beta * (log_policy - w.log_ref))
    return (chosen - rejected).unsqueeze(-1)


def _score(w: RandomWorld, y: Tensor) -> Tensor:
    """∇_θ log π_θ(y|x) by autograd, (X, K)."""
    rows = torch.arange(len(y))
    return gradient(lambda theta: theta.log_softmax(-1)[rows, y], w.logits)


def _scores_apart(w: RandomWorld) -> Tensor:
    """∇ log π(y_w) − ∇ log π(y_l), (X, K)."""
    return _score(w, w.chosen) - _score(w, w.rejected)


def _pair_loss(w: RandomWorld, theta: Tensor) -> Tensor:
    chosen, rejected = w.of_pair(theta.log_softmax(-1) - w.log_ref)
    return losses.dpo(chosen, rejected, w.beta)


_PULL = r"\big[\nabla\log\pi_\theta(y_w|x) - \nabla\log\pi_\theta(y_l|x)\big]"

dpo_gradient = Derivation(
    "dpo-gradient",
    "DPO's gradient has the largest weight on incorrectly ranked pairs",
    lines=(
        Line(
            r"-\frac{\sigma'(u)}{\sigma(u)}\,\nabla_\theta u,\quad u = \hat r_\theta(x,y_w) - \hat r_\theta(x,y_l)",
            "chain rule; autograd computes the left side",
            lambda w: (
                -torch.sigmoid(_margin(w, w.log_policy))
                * torch.sigmoid(-_margin(w, w.log_policy))
                / torch.sigmoid(_margin(w, w.log_policy))
                * gradient(lambda theta: _margin(w, theta.log_softmax(-1)), w.logits)
            ),
            left=r"\nabla_\theta\big[-\log\sigma(u)\big]",
            left_value=lambda w: gradient(lambda theta: _pair_loss(w, theta), w.logits),
        ),
        Line(
            r"-\sigma(-u)\,\nabla_\theta u",
            r"$\sigma'(u) = \sigma(u)\,\sigma(-u)$",
            lambda w: (
                -torch.sigmoid(-_margin(w, w.log_policy))
                * gradient(lambda theta: _margin(w, theta.log_softmax(-1)), w.logits)
            ),
        ),
        Line(
            rf"-\beta\,\sigma\big(\hat r_\theta(x,y_l) - \hat r_\theta(x,y_w)\big)\,{_PULL}",
            rf"$-u = \hat r_l - \hat r_w$; ${_R_HAT}$, and the reference has no gradient",
            lambda w: -w.beta * torch.sigmoid(-_margin(w, w.log_policy)) * _scores_apart(w),
        ),
        Line(
            r"\text{finite differences}",
            "finite differences of the loss, without calculus",
            lambda w: finite_differences(lambda theta: _pair_loss(w, theta), w.logits),
        ),
    ),
    wrong=(
        Wrong(
            rf"-\beta\,\sigma\big(\hat r_\theta(x,y_w) - \hat r_\theta(x,y_l)\big)\,{_PULL}",
            "the weight is swapped, so that correctly ranked pairs would count most",
            lambda w: -w.beta * torch.sigmoid(_margin(w, w.log_policy)) * _scores_apart(w),
            3,
        ),
        Wrong(
            rf"\beta\,\sigma\big(\hat r_\theta(x,y_l) - \hat r_\theta(x,y_w)\big)\,{_PULL}",
            "the sign is lost, so that gradient descent would raise the loss",
            lambda w: w.beta * torch.sigmoid(-_margin(w, w.log_policy)) * _scores_apart(w),
            3,
        ),
        Wrong(
            rf"-\sigma\big(\hat r_\theta(x,y_l) - \hat r_\theta(x,y_w)\big)\,{_PULL}",
            "β is missing; the weight is only a part of the factor",
            lambda w: -torch.sigmoid(-_margin(w, w.log_policy)) * _scores_apart(w),
            3,
        ),
        Wrong(
            r"-\beta\,\sigma\big(\hat r_\theta(x,y_l) - \hat r_\theta(x,y_w)\big)\,\nabla\log\pi_\theta(y_w|x)",
            "the term of the rejected response is missing",
            lambda w: -w.beta * torch.sigmoid(-_margin(w, w.log_policy)) * _score(w, w.chosen),
            3,
        ),
    ),
    source="Rafailov et al. 2023, section 4 and appendix A.4; lecture, “DPO Objective Function”, second slide.",
)


@dataclass(frozen=True)
class Shared:
    """A policy whose responses share parameters: logits φ(y)·θ, the simplest case of a network.

    Attributes:
        world: the prompts, of which the first is used.
        features: φ, (K, 3).
        theta: (3,).
    """

    world: RandomWorld
    features: Tensor
    theta: Tensor

    def log_policy(self, theta: Tensor) -> Tensor:
        """log π_θ, (K,)."""
        return (self.features @ theta).log_softmax(-1)

    @property
    def weight(self) -> Tensor:
        """β σ(−u) of the first prompt's pair."""
        w = self.world
        ratio = self.log_policy(self.theta) - w.log_ref[0]
        return w.beta * losses.dpo_gradient_weight(ratio[w.chosen[0]], ratio[w.rejected[0]], w.beta)

    def score(self, y: Tensor) -> Tensor:
        """g_y = ∇ log π_θ(y) = φ(y) − E_π[φ], (3,)."""
        return self.features[y] - self.log_policy(self.theta).exp() @ self.features

    @property
    def chosen_score(self) -> Tensor:
        """g_w."""
        return self.score(self.world.chosen[0])

    @property
    def rejected_score(self) -> Tensor:
        """g_l."""
        return self.score(self.world.rejected[0])

    def speed(self) -> Tensor:
        """How fast log π(y_w) moves along −∇ of the loss: both gradients by autograd."""
        w = self.world

        def loss(theta: Tensor) -> Tensor:
            ratio = self.log_policy(theta) - w.log_ref[0]
            return losses.dpo(ratio[w.chosen[0]], ratio[w.rejected[0]], w.beta)

        uphill = gradient(lambda theta: self.log_policy(theta)[w.chosen[0]], self.theta)
        return -(uphill * gradient(loss, self.theta)).sum()


def random_shared(generator: torch.Generator) -> Shared:
    """A random world with three random features per response."""
    world = random_world(generator)
    size = world.reward.shape[-1]
    features = torch.randn(size, 3, dtype=torch.float64, generator=generator)
    return Shared(world, features, torch.randn(3, dtype=torch.float64, generator=generator))


chosen_may_fall = Derivation(
    "chosen-may-fall",
    "Why the chosen response's probability can fall while the loss improves",
    lines=(
        Line(
            r"-\nabla\log\pi_\theta(y_w)\cdot\nabla\mathcal{L}",
            "the rate of change of a function along gradient descent; autograd computes the gradients",
            lambda s: s.speed(),
            left=r"\frac{d}{dt}\log\pi_\theta(y_w)",
            left_value=lambda s: _by_steps(s),
        ),
        Line(
            r"\beta\sigma(-u)\; g_w\cdot(g_w - g_l),\quad g_y = \nabla\log\pi_\theta(y)",
            "substitute DPO's gradient",
            lambda s: s.weight * (s.chosen_score @ (s.chosen_score - s.rejected_score)),
        ),
        Line(
            r"\beta\sigma(-u)\,\big(\|g_w\|^2 - g_w\cdot g_l\big)",
            r"this is negative if $g_w\cdot g_l > \|g_w\|^2$: the two gradients are similar, and that of the rejected "
            "response is longer",
            lambda s: s.weight * (s.chosen_score.square().sum() - (s.chosen_score * s.rejected_score).sum()),
        ),
        Line(
            r"\beta\sigma(-u)\,\|g_w - g_l\|^2",
            "the margin, in contrast, always rises (the same two steps for the difference)",
            lambda s: s.weight * (s.chosen_score - s.rejected_score).square().sum(),
            left=r"\frac{d}{dt}\big[\log\pi_\theta(y_w) - \log\pi_\theta(y_l)\big]",
            left_value=lambda s: _by_steps(s, margin=True),
        ),
    ),
    wrong=(
        Wrong(
            r"\beta\sigma(-u)\,\|g_w\|^2",
            "“the chosen response is pushed up” ignores the parameters that it shares with the rejected one, which are "
            "pushed down too",
            lambda s: s.weight * s.chosen_score.square().sum(),
            3,
        ),
        Wrong(
            r"\beta\sigma(-u)\,\big(\|g_w\|^2 + g_w\cdot g_l\big)",
            "the sign is lost",
            lambda s: s.weight * (s.chosen_score.square().sum() + (s.chosen_score * s.rejected_score).sum()),
            3,
        ),
    ),
    source="Pal et al. 2024 (DPO-Positive) and Razin et al. 2025 for the effect; Rafailov et al. 2023, section 4.",
    world=random_shared,
)


def _by_steps(s: Shared, margin: bool = False) -> Tensor:
    """The rate of change along −∇ of the loss, by central differences."""
    w = s.world
    ratio_loss = gradient(
        lambda theta: losses.dpo(
            s.log_policy(theta)[w.chosen[0]] - w.log_ref[0, w.chosen[0]],
            s.log_policy(theta)[w.rejected[0]] - w.log_ref[0, w.rejected[0]],
            w.beta,
        ),
        s.theta,
    )

    def watched(time: Tensor) -> Tensor:
        log_policy = s.log_policy(s.theta - time * ratio_loss)
        return log_policy[w.chosen[0]] - (log_policy[w.rejected[0]] if margin else 0.0)

    # The step in time is short where the gradient is long, so that the step in θ is the same.
    step = 5e-3 / max(1.0, ratio_loss.norm().item())
    return finite_differences(watched, torch.zeros(1, dtype=torch.float64), step)[0]
