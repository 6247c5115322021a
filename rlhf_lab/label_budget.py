r"""Annotation budgets: the regret that a number of labels and demonstrations leaves, by simulation on finite worlds.

The command `rlhf-lab budget`, the claim on the annotation budget, its explorer and notebook 14 use this module. Results
of different worlds are comparable as N · regret, divided by the limit of N · regret for the best design. This ratio is
the number of labels used, divided by the number that the best design, which knows the rewards, needs in the limit for
the same regret.

Demonstrations are draws from π_demo ∝ π_0 exp(r/β_demo). D demonstrations have the Fisher information
D Σ_demo/β_demo² about the rewards, where Σ_demo = diag(π_demo) − π_demo π_demoᵀ. With D demonstrations and N labels

    regret → tr(Σ (D Σ_demo/β_demo² + N I(μ))⁺) / (2β),

where Σ and I(μ) are those of `exact.label_value`. The reference policy of the objective is always π_0. SFT on the
demonstrations changes the policy, but not the objective.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from rlhf_lab import bradley_terry, exact
from rlhf_lab.algorithms import active, label_rounds
from rlhf_lab.errors import LabError, check_beta, check_positive
from rlhf_lab.randomness import Stream
from rlhf_lab.training import seeded

PAIR_SOURCES: dict[str, str] = {
    "reference": "two draws from π_ref",
    "uniform": "all pairs evenly",
    "optimal": "two draws from π* (knows the rewards)",
    "design": "best design (knows the rewards)",
    "online": "two draws from the current policy",
    "active": "active: the next labels that matter most",
}
"""The sources of pairs, each with its name."""
STYLES = {
    "reference": "reference", "uniform": "sft", "optimal": "optimal", "design": "best-of-n", "online": "online",
    "active": "policy",
}  # fmt: skip
"""The style of each source in pictures, see `figures.style`."""
NAMES = {
    "reference": "π_ref", "uniform": "evenly", "optimal": "π*", "design": "best design", "online": "current policy",
    "active": "active",
}  # fmt: skip
"""A short name of each source, for legends."""
LIMITING_SOURCE = {"online": "optimal", "active": "design"}
"""Sources that learn from labels, each with the source that it converges to with many labels."""


@dataclass(frozen=True, eq=False)
class FiniteWorlds:
    """W finite worlds with K responses each, one world per row.

    Attributes:
        log_ref: log π_ref, (W, K).
        reward: the true rewards r*, (W, K).
        beta: β of the objective.
    """

    log_ref: Tensor
    reward: Tensor
    beta: float

    def repeat(self, runs: int) -> FiniteWorlds:
        """Repeat the list of worlds `runs` times, (runs · W, K)."""
        return FiniteWorlds(self.log_ref.repeat(runs, 1), self.reward.repeat(runs, 1), self.beta)

    def regret(self, rewards: Tensor) -> Tensor:
        """The regret of the policy ∝ π_ref exp(r̂/β) for estimated rewards r̂, (W,)."""
        log_hat = exact.optimal_policy(self.log_ref, rewards, self.beta)
        return exact.regret(log_hat, self.log_ref, self.reward, self.beta).clamp(min=0)

    @cached_property
    def best_design(self) -> Tensor:
        """The best design, (W, K, K), with a certificate that it is within 0.5% of the minimum."""
        return exact.optimal_pair_design(self.log_ref, self.reward, self.beta, tolerance=5e-3)

    def design(self, pairs: str) -> Tensor:
        """The probabilities μ of the pairs of a source that does not learn, (W, K, K).

        Raises:
            LabError: a source that learns, or an unknown one.
        """
        if pairs == "reference":
            return bradley_terry.pair_distribution(self.log_ref)
        if pairs == "optimal":
            return bradley_terry.pair_distribution(exact.optimal_policy(self.log_ref, self.reward, self.beta))
        if pairs == "uniform":
            return bradley_terry.pair_distribution(torch.zeros_like(self.log_ref))
        if pairs == "design":
            return self.best_design
        fixed = ", ".join(name for name in PAIR_SOURCES if name not in LIMITING_SOURCE)
        raise LabError(f"The source of pairs '{pairs}' has no fixed probabilities. Sources that have: {fixed}.")

    def price(self, pairs: str) -> Tensor:
        """The limit of N · regret, (W,). A source that learns has that of the source to which it converges."""
        pairs = LIMITING_SOURCE.get(pairs, pairs)
        return exact.label_price(self.log_ref, self.reward, self.beta, self.design(pairs))


def pair_chooser(world: FiniteWorlds, pairs: str, settings: active.Active | None = None) -> label_rounds.Choose:
    """Return the function by which a source chooses its pairs.

    Raises:
        LabError: an unknown source.
    """
    if pairs not in PAIR_SOURCES:
        raise LabError(f"There is no source of pairs '{pairs}'. The sources are {', '.join(PAIR_SOURCES)}.")
    if pairs == "active":
        return active.choose_actively(world.log_ref, world.beta, settings or active.Active())
    if pairs == "online":
        return label_rounds.choose_from_policy(world.log_ref, world.beta)
    return label_rounds.choose_by_design(world.design(pairs))


def simulate(
    world: FiniteWorlds,
    pairs: str,
    totals: Sequence[int],
    runs: int,
    generator: torch.Generator,
    prior: float = 3.0,
    settings: active.Active | None = None,
) -> Tensor:
    """Simulate labels, and return the regret after each number of them, (runs, len(totals), W).

    Args:
        world: W worlds.
        pairs: a source, see `PAIR_SOURCES`.
        totals: the number of labels after each round. A source that learns chooses its pairs anew in each round.
        runs: number of repetitions, each with new labels.
        generator: source of randomness for labels and choices.
        prior: standard deviation of the rewards' prior in the fits.
        settings: settings of the source "active".
    """
    many = world.repeat(runs)
    # The design is computed once per world, not once per run.
    fixed = pairs in PAIR_SOURCES and pairs not in ("online", "active")
    choose = (
        label_rounds.choose_by_design(world.design(pairs).repeat(runs, 1, 1))
        if fixed
        else pair_chooser(many, pairs, settings)
    )
    size = world.log_ref.shape[-1]
    known = torch.zeros(len(many.log_ref), size, size, dtype=torch.float64)
    label = label_rounds.bradley_terry_labels(many.reward)
    states = label_rounds.collect_labels(choose, label, known, totals, prior, generator)
    return torch.stack([many.regret(state.rewards).reshape(runs, -1) for state in states], 1)


COARSE = active.Active(draws=16, greedy_steps=16)
"""Settings of the source "active" with coarser batches, for comparisons of many purchases."""

# --- demonstrations and preferences --------------------------------------------------------------------------


@dataclass(frozen=True)
class Purchase:
    """A number of demonstrations and labels, and how they are collected.

    Attributes:
        demonstrations: D.
        labels: N.
        rounds: number of batches of labels.
        pairs: a source of `PAIR_SOURCES`, or "sft" for two draws from the policy after SFT on the demonstrations.
        demo_beta: β_demo of the demonstrator.
        assumed: the β_demo that the fit assumes; None for the true one.
    """

    demonstrations: int
    labels: int
    rounds: int = 1
    pairs: str = "sft"
    demo_beta: float = 1.0
    assumed: float | None = None


def purchase_regret(
    world: FiniteWorlds, what: Purchase, runs: int, generator: torch.Generator, prior: float = 3.0
) -> Tensor:
    """Regret after a purchase, (runs, W)."""
    return world.repeat(runs).regret(fit_purchase(world, what, runs, generator, prior).rewards).reshape(runs, -1)


def fit_purchase(
    world: FiniteWorlds, what: Purchase, runs: int, generator: torch.Generator, prior: float = 3.0
) -> label_rounds.LabelState:
    """Simulate a purchase in every world `runs` times, and fit the rewards to it.

    The demonstrations are collected first, then the labels. The rewards are fitted to both together (see
    `bradley_terry.fit_rewards`). The rows of the result are those of `FiniteWorlds.repeat`.
    """
    many = world.repeat(runs)
    size = world.log_ref.shape[-1]
    shown = None
    log_sft = many.log_ref
    if what.demonstrations:
        log_demo = exact.optimal_policy(many.log_ref, many.reward, what.demo_beta)
        counts = label_rounds.multinomial(log_demo.exp(), what.demonstrations, generator)
        shown = bradley_terry.Demonstrations(counts, many.log_ref, what.assumed or what.demo_beta)
        log_sft = sft_policy(many.log_ref, counts)
    known = torch.zeros(len(log_sft), size, size, dtype=torch.float64)
    if not what.labels:
        return label_rounds.LabelState(0, known, *bradley_terry.fit_rewards(known, prior, shown))
    choose = (
        label_rounds.choose_by_design(bradley_terry.pair_distribution(log_sft))
        if what.pairs == "sft"
        else pair_chooser(many, what.pairs, COARSE)
    )
    totals = label_rounds.round_totals(size, what.labels, what.rounds)
    label = label_rounds.bradley_terry_labels(many.reward)
    return label_rounds.collect_labels(choose, label, known, totals, prior, generator, shown)[-1]


def sft_policy(log_base: Tensor, counts: Tensor) -> Tensor:
    """log π_sft, (…, K): the shares of the responses among the demonstrations and K further ones distributed as π_0.

    The shares among the demonstrations alone would give probability 0 to every response that was not demonstrated.
    Fine-tuning that starts from π_0 and stops early does not.
    """
    size = log_base.shape[-1]
    return ((counts + size * log_base.exp()) / (counts.sum(-1, keepdim=True) + size)).log()


def regret_limit(world: FiniteWorlds, demonstrations: Tensor, labels: Tensor, demo_beta: float, mu: Tensor) -> Tensor:
    """The limit of the regret after D demonstrations and N labels on pairs drawn from μ, (W, …).

    Args:
        world: W worlds.
        demonstrations: D, (…).
        labels: N, of the same shape; D and N not both zero.
        demo_beta: β_demo.
        mu: (W, K, K).
    """
    beta, demo_beta = check_beta(world.beta), check_positive(demo_beta, "demo_beta")
    star = exact.optimal_policy(world.log_ref, world.reward, beta).exp()
    demo = exact.optimal_policy(world.log_ref, world.reward, demo_beta).exp()
    p = exact.preference(world.reward)
    edges = (mu + mu.transpose(-1, -2)) * p * (1 - p)
    by_label = bradley_terry.laplacian(edges)
    by_demonstration = bradley_terry.covariance(demo) / demo_beta**2
    out = []
    for d, n in zip(demonstrations.flatten().tolist(), labels.flatten().tolist(), strict=True):
        both = d * by_demonstration + n * by_label
        # Adding a constant to all rewards changes nothing. Filling this direction makes the matrix invertible.
        filled = both + both.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None] / star.shape[-1]
        error = torch.linalg.solve(filled, bradley_terry.covariance(star))
        out.append(error.diagonal(dim1=-2, dim2=-1).sum(-1) / (2 * beta))
    return torch.stack(out, -1).reshape(len(star), *demonstrations.shape)


# --- a limited policy class ------------------------------------------------------------------------------------


def fit_class_to_labels(log_ref: Tensor, features: Tensor, wins: Tensor, beta: float, prior: float = 3.0) -> Tensor:
    """Fit a policy of the class log π = log π_ref + φ·w + const to labels by DPO; log π, (R, K).

    Args:
        log_ref: (R, K).
        features: φ, (R, K, d).
        wins: (R, K, K).
        beta: β.
        prior: standard deviation of the prior on β w. It keeps w finite where the labels are separable.
    """
    return (log_ref + fit_linear_reward(features, wins, prior) / beta).log_softmax(-1)


def fit_class_to_reward(
    log_ref: Tensor, features: Tensor, reward: Tensor, beta: float, steps: int = 250, starts: int = 6
) -> Tensor:
    """The best policy of the same class for a given reward, by natural-gradient steps on the exact J; log π, (R, K).

    The natural gradient of J at w is the least-squares fit of φ to (r/β − φ·w), weighted by the policy. For a small
    class and a small β, J has several maxima in w. The search therefore has several starting points, the reference and
    others that are random but always the same, and the result with the largest J is returned. J uses the given reward,
    which need not be the true one.
    """
    number, _, width = features.shape
    log_ref, features, reward = (t.repeat(starts, *[1] * (t.ndim - 1)) for t in (log_ref, features, reward))
    far = torch.arange(starts).repeat_interleave(number) > 0
    weight = (
        3
        * far[:, None, None]
        * torch.randn(len(far), width, 1, dtype=torch.float64, generator=seeded(0, Stream.NATURAL_GRADIENT_STARTS))
    )
    eye = 1e-9 * torch.eye(width, dtype=torch.float64)

    def policy_of(weight: Tensor) -> Tensor:
        return (log_ref + (features @ weight).squeeze(-1)).log_softmax(-1)

    log_policy = policy_of(weight)
    for _ in range(steps):
        policy = log_policy.exp().unsqueeze(-1)
        centred = features - (policy * features).sum(-2, keepdim=True)
        left = (reward / beta).unsqueeze(-1) - features @ weight
        left = left - (policy * left).sum(-2, keepdim=True)
        weighted = policy * centred
        step = torch.linalg.solve(centred.transpose(-1, -2) @ weighted + eye, weighted.transpose(-1, -2) @ left)
        # No log-ratio changes by more than 1 in a step.
        size = (features @ step).abs().amax((-1, -2))[:, None, None] / 2
        weight = weight + 0.5 * step / size.clamp(min=1.0)
        log_policy = policy_of(weight)
    value = exact.objective(log_policy, log_ref, reward, beta).reshape(starts, number)
    chosen = value.argmax(0) * number + torch.arange(number)
    return log_policy[chosen]


def fit_linear_reward(features: Tensor, wins: Tensor, prior: float = 3.0) -> Tensor:
    """Fit a reward model r = φ·w to labels, and return the rewards, (R, K)."""
    weight = bradley_terry.fit_features(features, wins, prior)
    return (features @ weight.unsqueeze(-1)).squeeze(-1)


def random_worlds(
    number: int, size: int, beta: float, seed: int, spread: float = 1.0, reference: float = 1.0
) -> FiniteWorlds:
    """Draw worlds with normal rewards and normal reference logits.

    Args:
        number: W.
        size: K.
        beta: β of the objective.
        seed: of the draws.
        spread: standard deviation of the rewards.
        reference: standard deviation of the reference logits.
    """
    generator = seeded(seed, Stream.BUDGET_WORLDS)
    log_ref = (reference * torch.randn(number, size, dtype=torch.float64, generator=generator)).log_softmax(-1)
    return FiniteWorlds(log_ref, spread * torch.randn(number, size, dtype=torch.float64, generator=generator), beta)


# --- pilot comparisons -------------------------------------------------------------------------------------------

SPREADS = tuple(float(f"{10**exponent:.3g}") for exponent in np.linspace(math.log10(0.1), math.log10(6), 28))
"""Standard deviations of the rewards for which `likely_spread` computes the likelihood."""


def likely_spread(wins: Sequence[Tensor]) -> tuple[float, float, float]:
    """Return the most likely standard deviation of the rewards, and its 95% likelihood interval.

    The rewards have a normal prior and are integrated out by Laplace's method:
    log p(labels | s) ≈ ℓ(r̂) − |r̂|²/2s² − ½ log det(s² H). The interval contains the values whose likelihood is at least
    e^−1.92 times the maximum.

    Args:
        wins: for each prompt, the number of times that the row's response won against the column's, (K, K).
    """
    evidence = []
    for spread in SPREADS:
        total = 0.0
        for matrix in wins:
            rewards, curvature = bradley_terry.fit_rewards(matrix, spread)
            likely = (matrix * torch.nn.functional.logsigmoid(rewards.unsqueeze(-1) - rewards)).sum()
            volume = torch.logdet(curvature) + 2 * len(rewards) * math.log(spread)
            total += float(likely - rewards.square().sum() / (2 * spread**2) - volume / 2)
        evidence.append(total)
    best = max(evidence)
    inside = [s for s, value in zip(SPREADS, evidence, strict=True) if value >= best - 1.92]
    return SPREADS[evidence.index(best)], inside[0], inside[-1]


def label_values(wins: Tensor, spread: float, beta: float) -> Tensor:
    """Return by how much one more label on each pair lowers the expected regret, (K, K).

    The reference policy is uniform over the responses.

    Args:
        wins: the number of times that the row's response won against the column's, (K, K).
        spread: standard deviation of the rewards' prior.
        beta: β of the objective.
    """
    rewards, curvature = bradley_terry.fit_rewards(wins, spread)
    uniform = torch.zeros(len(wins), dtype=torch.float64).log_softmax(-1)
    generator = seeded(0, Stream.BUDGET_BELIEF)
    matters, information = active.posterior_means(rewards, curvature, uniform, beta, 256, generator)
    return active.gains(matters, information, torch.linalg.inv(curvature)) / (2 * beta)
