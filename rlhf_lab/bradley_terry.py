r"""Bradley–Terry maximum likelihood: win counts of labels, the fit of rewards to them, and when the maximum is finite.

A label says which of two responses is preferred. Under the Bradley–Terry model with rewards r,

    p(i ≻ j) = σ(r_i − r_j),

the log-likelihood of labels depends on `wins` alone, the number of times that response i was preferred to j:

    ℓ(r) = Σ_ij wins_ij log σ(r_i − r_j) − |r|²/(2s²).

The second term is a normal prior N(0, s²) on each reward. ℓ is concave. Its negative Hessian is a weighted graph
Laplacian plus the prior's 1/s², so Newton's method needs a few steps. Every fit of this package of rewards that are
linear in their parameters is computed here. Policies of a class whose log-probabilities are not linear in its
parameters are fitted to labels in `experiments/claims/coverage`.

    fit_rewards           a reward for each response, with a prior; also fits demonstrations
    maximum_likelihood    a reward for each response, with a prior that is negligible
    fit_features          rewards that are linear in features, from a table of wins
    fit_listed            the same from a list of labelled pairs, for many responses
    fit_function          rewards that are any linear function of many parameters, by L-BFGS

Without a prior a finite maximum exists only where the wins connect all responses in both directions
(`has_finite_optimum`; Ford 1957). On a table of logits DPO's loss is the same likelihood with
r_i = β log(π_θ(i)/π_ref(i)), so the DPO optimum is π ∝ π_ref exp(r̂/β).

Bradley & Terry 1952; Ford 1957; Hunter 2004, "MM algorithms for generalized Bradley–Terry models"; Rafailov et al.
2023, section 4. Left out on purpose: ties between responses, and the Plackett–Luce model of longer rankings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from rlhf_lab.errors import LabError, check_finite, check_positive

Derivatives = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Parameters (…, d) → gradient (…, d) and negative Hessian (…, d, d) of a concave function."""


# --- labels ----------------------------------------------------------------------------------------------------


def pair_distribution(log_policy: Tensor) -> Tensor:
    """The probability of each pair (i, j) when a policy draws two responses, and draws again while they are equal.

    Args:
        log_policy: log π, (…, K).

    Returns:
        (…, K, K), symmetric, with a zero diagonal, summing to 1 over the last two axes.
    """
    log_pair = log_policy.unsqueeze(-1) + log_policy.unsqueeze(-2)
    log_pair = log_pair.masked_fill(torch.eye(log_policy.shape[-1], dtype=torch.bool), -torch.inf)
    return log_pair.flatten(-2).softmax(-1).reshape(log_pair.shape)


def expected_wins(reward: Tensor, pair_weights: Tensor, noise: float = 0.0) -> Tensor:
    """The expected table of wins of one label.

    Args:
        reward: the true rewards, (…, K).
        pair_weights: μ, the probability that a label compares the pair (i, j); (…, K, K), summing to 1, with a zero
            diagonal.
        noise: ε, the probability that a label is flipped.

    Returns:
        (…, K, K), summing to 1 over the last two axes.
    """
    p = _win_probability(reward)
    both = pair_weights + pair_weights.transpose(-1, -2)  # (i, j) and (j, i) are the same pair
    return both * ((1 - noise) * p + noise * (1 - p))


def draw_labels(
    reward: Tensor, pair_weights: Tensor, number: int, generator: torch.Generator, noise: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Draw pairs and a Bradley–Terry label for each of them.

    With more noise the same labels are flipped, and some more.

    Args:
        reward: r, (K,).
        pair_weights: μ, (K, K), non-negative, summing to 1.
        number: how many labels.
        generator: source of randomness.
        noise: ε in [0, ½], the probability that a label is flipped.

    Returns:
        the preferred and the other response of each label, (number,) int64 each.

    Raises:
        LabError: noise out of range.
    """
    if not 0 <= noise <= 0.5:
        raise LabError(f"noise must lie in [0, 0.5], not {noise}: it is the probability that a label is flipped.")
    size = reward.shape[-1]
    u = torch.rand(3, number, dtype=torch.float64, generator=generator)
    cdf = pair_weights.double().flatten().cumsum(0)
    pair = torch.searchsorted(cdf, u[0] * cdf[-1], right=True).clamp(max=size * size - 1)
    one, two = pair // size, pair % size
    first = (u[1] < torch.sigmoid(reward[one] - reward[two])) ^ (u[2] < noise)
    return torch.where(first, one, two), torch.where(first, two, one)


def win_counts(
    winner: Tensor,
    loser: Tensor,
    num_responses: int,
    first: Sequence[int] | None = None,
    prompt: Tensor | None = None,
    num_prompts: int = 1,
) -> Tensor:
    """Count how often each response was preferred to each other one.

    Args:
        winner: the preferred response of each label, (N,) int64.
        loser: the other response, (N,).
        num_responses: K.
        first: numbers of labels. The result then has a table for each n, made of the first n labels only.
        prompt: the prompt of each label, (N,). The result then has a table for each prompt.
        num_prompts: X.

    Returns:
        wins, (K, K) float64, where entry [i, j] counts the labels i ≻ j. `prompt` puts an axis X in front of it, and
        `first` an axis in front of that.

    Raises:
        LabError: a number of labels below 1.
    """
    if first is not None and min(first) < 1:
        raise LabError(f"A data set needs at least one label, not {min(first)}.")
    size = num_responses
    cell = winner * size + loser if prompt is None else (prompt * size + winner) * size + loser
    length = num_prompts * size * size
    counts = torch.stack([torch.bincount(cell[:n], minlength=length) for n in (first or [len(cell)])]).double()
    lead = ([len(first)] if first is not None else []) + ([num_prompts] if prompt is not None else [])
    return counts.view(*lead, size, size)


def draw_wins(
    reward: Tensor,
    pair_weights: Tensor,
    numbers: Sequence[int],
    generator: torch.Generator,
    noise: float = 0.0,
) -> Tensor:
    """Tables of wins of simulated data sets, where each larger data set contains the smaller ones.

    Args:
        reward: r, (K,).
        pair_weights: μ, (K, K), non-negative, summing to 1.
        numbers: sizes of the data sets.
        generator: source of randomness.
        noise: ε in [0, ½], the probability that a label is flipped.

    Returns:
        (len(numbers), K, K) float64; entry [n, i, j] counts the labels i ≻ j.

    Raises:
        LabError: noise out of range; a number below 1.
    """
    winner, loser = draw_labels(reward, pair_weights, max(numbers), generator, noise)
    return win_counts(winner, loser, reward.shape[-1], numbers)


# --- existence of the maximum ----------------------------------------------------------------------------------


def has_finite_optimum(wins: Tensor) -> Tensor:
    """Whether finite rewards maximise the likelihood of a table of wins (Ford 1957).

    The condition: however the responses are divided into two groups, some response of each group was preferred at
    least once to some response of the other. In other words, the directed graph of wins is strongly connected. Where
    it is not, some difference of rewards grows without bound while the likelihood rises.

    Args:
        wins: (…, K, K), non-negative.

    Returns:
        booleans, (…).
    """
    size = wins.shape[-1]
    reach = (wins > 0) | torch.eye(size, dtype=torch.bool)
    for _ in range(max(size - 1, 1).bit_length()):  # each product doubles the length of the chains
        reach = (reach.double() @ reach.double()) > 0
    return reach.all(-1).all(-1)


# --- fits by Newton's method -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Demonstrations:
    """Demonstrations as evidence of the rewards: draws from π_demo ∝ π_0 exp(r/β_demo).

    Attributes:
        counts: how often each response was demonstrated, (…, K).
        log_base: log π_0, (…, K).
        beta: β_demo > 0. A demonstrator with a small β_demo chooses carefully.
    """

    counts: Tensor
    log_base: Tensor
    beta: float

    def __post_init__(self) -> None:
        check_positive(self.beta, "the demonstrations' beta")


def fit_rewards(
    wins: Tensor, prior: float = 3.0, demonstrations: Demonstrations | None = None, tolerance: float = 1e-8
) -> tuple[Tensor, Tensor]:
    """Fit rewards to labels under a normal prior: the posterior mode, and the curvature of the posterior there.

    Args:
        wins: how often the row was preferred to the column, (…, K, K), not negative. The diagonal is ignored.
        prior: s of the prior N(0, s²) of each reward. It also fixes the constant that labels leave undetermined.
        demonstrations: adds their likelihood.
        tolerance: what the last step may still gain, in nats of log-likelihood. 1e-8 is a ten-thousandth of a
            standard error.

    Returns:
        r̂, (…, K) float64, and the negative Hessian H, (…, K, K), positive definite. The posterior is about N(r̂, H⁻¹).

    Raises:
        LabError: wins not square, negative or not finite; prior not above zero; no convergence.
    """
    wins, prior = check_wins(wins), check_positive(prior, "prior")
    table, precision = _table_derivatives(wins), 1 / prior**2
    eye = torch.eye(wins.shape[-1], dtype=torch.float64)

    def derivatives(rewards: Tensor) -> tuple[Tensor, Tensor]:
        slope, curvature = table(rewards)
        slope, curvature = slope - precision * rewards, curvature + precision * eye
        if demonstrations is not None:
            more_slope, more_curvature = _demonstration_derivatives(rewards, demonstrations)
            slope, curvature = slope + more_slope, curvature + more_curvature
        return slope, curvature

    return _converged(derivatives, torch.zeros(wins.shape[:-1], dtype=torch.float64), tolerance)


def maximum_likelihood(wins: Tensor, ridge: float = 1e-6, max_steps: int = 100, tolerance: float = 1e-20) -> Tensor:
    """Fit rewards to labels by maximum likelihood.

    Fractional and even negative entries are allowed as long as wins_ij + wins_ji ≥ 0, which keeps the problem
    convex. cDPO and robust DPO are therefore the same fit of the tables (1−ε) W + ε Wᵀ and ((1−ε) W − ε Wᵀ)/(1−2ε).

    A ridge ½ ridge |r|² takes effect only where the labels decide nothing. A response without labels gets the reward
    0, and one that never lost is about log(1/ridge) above the others. Without a ridge it is as far above them as
    `max_steps` steps of size 1 reach.

    Args:
        wins: (…, K, K), on any scale: counts or probabilities. Each table is divided by its sum first.
        ridge: above 0; it applies to wins that sum to 1.
        max_steps: the maximum number of Newton steps, which are of size 1 at most where there is no ridge. No error is
            raised where they are used up, because without a finite optimum (`has_finite_optimum`) the rewards do not
            converge.
        tolerance: what the last step may still gain, in nats per label; 0 takes all `max_steps`.

    Returns:
        (…, K) float64, each row with mean 0.

    Raises:
        LabError: wins not finite, not square or all zero; a pair with a negative sum.
    """
    wins = check_finite(wins.double(), "wins")
    if wins.ndim < 2 or wins.shape[-1] != wins.shape[-2]:
        raise LabError(f"wins must be (…, K, K), not {tuple(wins.shape)}.")
    if bool((wins + wins.transpose(-1, -2) < 0).any()) or not bool((wins != 0).any()):
        raise LabError("wins needs at least one label, and wins_ij + wins_ji must not be negative.")
    total = wins.sum((-1, -2), keepdim=True)
    shares = wins / torch.where(total > 0, total, 1.0)
    table = _table_derivatives(shares)
    eye = torch.eye(wins.shape[-1], dtype=torch.float64)

    def derivatives(rewards: Tensor) -> tuple[Tensor, Tensor]:
        slope, curvature = table(rewards)
        # The 1e-13 makes the matrix invertible where there is no ridge, and changes nothing but the constant.
        return slope - ridge * rewards, curvature + (ridge + 1e-13) * eye

    def value(rewards: Tensor) -> Tensor:
        gap = rewards.unsqueeze(-1) - rewards.unsqueeze(-2)
        return (shares * logsigmoid(gap)).sum((-1, -2)) - ridge / 2 * rewards.square().sum(-1)

    start = torch.zeros(wins.shape[:-1], dtype=torch.float64)
    rewards, _, _ = _newton(derivatives, start, max_steps, tolerance, centre=True, value=value if ridge else None)
    return rewards - rewards.mean(-1, keepdim=True)


def fit_features(features: Tensor, wins: Tensor, prior: float = 3.0, tolerance: float = 1e-8) -> Tensor:
    """Fit rewards r_i = φ_i·w to a table of wins, with the prior N(0, s²) on each component of w.

    Args:
        features: φ, (…, K, d).
        wins: (…, K, K), not negative; leading axes broadcast with those of `features`.
        prior: s. It keeps w finite where the labels are separable.
        tolerance: as in `fit_rewards`.

    Returns:
        w, (…, d) float64. The rewards are `features @ w`.

    Raises:
        LabError: as `fit_rewards`.
    """
    wins, prior = check_wins(wins), check_positive(prior, "prior")
    table, precision = _table_derivatives(wins), 1 / prior**2
    eye = torch.eye(features.shape[-1], dtype=torch.float64)
    across = features.transpose(-1, -2)

    def derivatives(weight: Tensor) -> tuple[Tensor, Tensor]:
        slope, curvature = table((features @ weight.unsqueeze(-1)).squeeze(-1))
        slope = (across @ slope.unsqueeze(-1)).squeeze(-1) - precision * weight
        return slope, across @ curvature @ features + precision * eye

    start = torch.zeros(*wins.shape[:-2], features.shape[-1], dtype=torch.float64)
    # The size of a step is the change of the rewards, whatever the scale of the features.
    return _converged(derivatives, start, tolerance, lambda step: (features @ step.unsqueeze(-1)).abs().amax(-2))[0]


def fit_listed(
    differences: Tensor, weights: Tensor, prior: float, start: Tensor | None = None, tolerance: float = 1e-8
) -> Tensor:
    """Fit rewards r_i = φ_i·w to a list of labelled pairs, as `fit_features` does to a table.

    Args:
        differences: φ_chosen − φ_rejected of each label, (M, d).
        weights: of the labels, (M,), not negative.
        prior: s of the prior N(0, s²) on each component of w.
        start: w to begin from, (d,); zeros by default.
        tolerance: as in `fit_rewards`.

    Returns:
        w, (d,) float64.

    Raises:
        LabError: prior not above zero; no convergence.
    """
    precision = 1 / check_positive(prior, "prior") ** 2
    eye = torch.eye(differences.shape[-1], dtype=torch.float64)

    def derivatives(weight: Tensor) -> tuple[Tensor, Tensor]:
        lost = torch.sigmoid(-(differences @ weight))  # the predicted probability of the opposite label
        edges = weights * lost * (1 - lost)
        curvature = differences.T @ (differences * edges.unsqueeze(-1)) + precision * eye
        return (weights * lost) @ differences - precision * weight, curvature

    start = torch.zeros(differences.shape[-1], dtype=torch.float64) if start is None else start
    return _converged(
        derivatives, start, tolerance, lambda step: (differences @ step).abs().amax(-1, keepdim=True) / 2
    )[0]


def _newton(
    derivatives: Derivatives,
    start: Tensor,
    max_steps: int,
    tolerance: float,
    centre: bool = False,
    size: Callable[[Tensor], Tensor] | None = None,
    value: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor, bool]:
    """Maximise a concave function by Newton's method.

    Far from the maximum the logistic curve is flat and a whole Newton step is too long. A step whose size exceeds 1 is
    therefore scaled to size 1. Where `value` is given, the step is instead halved until the value does not fall, so
    that a distant maximum is reached too.

    Args:
        derivatives: the function's gradient and negative Hessian.
        start: where to begin, (…, d).
        max_steps: how many steps to take at most.
        tolerance: what the last step may still gain.
        centre: whether the mean is taken out of every step.
        size: step (…, d) → its size (…, 1); by default the largest absolute component.
        value: point (…, d) → the function (…).

    Returns:
        the point, the curvature before the last step, and whether the search converged.
    """
    point, curvature = start, start
    for _ in range(max_steps):
        slope, curvature = derivatives(point)
        step = torch.linalg.solve(curvature, slope.unsqueeze(-1)).squeeze(-1)
        gain = float((step * slope).sum(-1).max())
        if centre:
            step = step - step.mean(-1, keepdim=True)
        if value is not None:
            point = point + _halved(value, point, step)
        else:
            length = step.abs().amax(-1, keepdim=True) if size is None else size(step)
            point = point + step / length.clamp(min=1.0)
        if gain < tolerance:
            return point, curvature, True
    return point, curvature, False


def _halved(value: Callable[[Tensor], Tensor], point: Tensor, step: Tensor) -> Tensor:
    """The step, halved in each row until the value does not fall by more than rounding; zero where it always falls."""
    here = value(point)
    least = here - 1e-13 * here.abs()
    scale = torch.ones_like(here)
    for _ in range(40):
        falls = value(point + scale.unsqueeze(-1) * step) < least
        if not bool(falls.any()):
            return scale.unsqueeze(-1) * step
        scale = torch.where(falls, scale / 2, scale)
    return torch.where(falls, 0.0, scale).unsqueeze(-1) * step


def _converged(
    derivatives: Derivatives, start: Tensor, tolerance: float, size: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    point, curvature, converged = _newton(derivatives, start, 200, tolerance, size=size)
    if not converged:
        raise LabError("The fit of the rewards did not converge in 200 steps of Newton's method. Lower prior.")
    return point, curvature


def _table_derivatives(wins: Tensor) -> Derivatives:
    """The gradient of Σ_ij wins_ij log σ(r_i − r_j) and its negative Hessian, a weighted graph Laplacian."""
    wins = wins * (1 - torch.eye(wins.shape[-1], dtype=torch.float64))
    labels = wins + wins.transpose(-1, -2)

    def derivatives(rewards: Tensor) -> tuple[Tensor, Tensor]:
        gap = rewards.unsqueeze(-1) - rewards.unsqueeze(-2)
        # σ(−gap), not 1 − σ(gap), which loses its digits where the gap is large.
        lost = torch.sigmoid(-gap)
        pull = wins * lost
        return pull.sum(-1) - pull.sum(-2), laplacian(labels * torch.sigmoid(gap) * lost)

    return derivatives


def _demonstration_derivatives(rewards: Tensor, shown: Demonstrations) -> tuple[Tensor, Tensor]:
    """Gradient and negative Hessian of Σ_i counts_i log softmax(log π_0 + r/β_demo)_i."""
    likely = (shown.log_base + rewards / shown.beta).softmax(-1)
    number = shown.counts.sum(-1, keepdim=True)
    slope = (shown.counts - number * likely) / shown.beta
    return slope, number.unsqueeze(-1) * covariance(likely) / shown.beta**2


def _win_probability(reward: Tensor) -> Tensor:
    return torch.sigmoid(reward.unsqueeze(-1) - reward.unsqueeze(-2))


def laplacian(edges: Tensor) -> Tensor:
    """The weighted graph Laplacian Σ_{i<j} e_ij (e_i − e_j)(e_i − e_j)ᵀ of symmetric edge weights, (…, K, K)."""
    return torch.diag_embed(edges.sum(-1)) - edges


def covariance(probability: Tensor) -> Tensor:
    """diag(π) − ππᵀ, the covariance of a one-hot draw from π and the Hessian of logsumexp; (…, K) to (…, K, K)."""
    return torch.diag_embed(probability) - probability.unsqueeze(-1) * probability.unsqueeze(-2)


def check_wins(wins: Tensor, name: str = "wins") -> Tensor:
    """Return a table of wins as float64, or raise `LabError` unless it is (…, K, K), finite and not negative."""
    wins = check_finite(wins.double(), name)
    if wins.ndim < 2 or wins.shape[-1] != wins.shape[-2]:
        raise LabError(f"{name} must have shape (…, K, K), not {tuple(wins.shape)}.")
    if (wins < 0).any():
        raise LabError(f"{name} must not be negative.")
    return wins


# --- a fit with many parameters --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparisons:
    """Pairs of responses with the probability that the first one is preferred.

    Attributes:
        prompt: the prompt of each pair, (N,) int64.
        first: its first response, (N,).
        second: its second response, (N,).
        wins: the probability that the first is preferred, (N,) float64; 0 or 1 for a label.
        weight: of each pair in the mean, (N,); None for equal weights.
    """

    prompt: Tensor
    first: Tensor
    second: Tensor
    wins: Tensor
    weight: Tensor | None = None


def fit_function(rewards: Callable[[Tensor], Tensor], variance: Tensor, pairs: Comparisons, penalty: float) -> Tensor:
    """Fit rewards that are a linear function of many parameters θ, by L-BFGS run to convergence.

    It minimises the pairs' weighted mean of −log-likelihood plus `penalty` · ½ Σ θ²/variance.

    Args:
        rewards: θ (n,) → rewards (X, K), linear in θ.
        variance: the prior variance of each component of θ, (n,).
        pairs: the comparisons, with N pairs.
        penalty: weight of the prior beside the mean; 1/N gives the posterior mode.

    Returns:
        the fitted rewards, (X, K).
    """
    theta = torch.zeros(len(variance), dtype=torch.float64, requires_grad=True)
    weight = pairs.weight if pairs.weight is not None else torch.full_like(pairs.wins, 1 / len(pairs.wins))
    optimizer = torch.optim.LBFGS(
        [theta],
        max_iter=300,
        history_size=20,
        tolerance_grad=1e-8,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        fitted = rewards(theta)
        gap = fitted[pairs.prompt, pairs.first] - fitted[pairs.prompt, pairs.second]
        miss = softplus(-gap) + (1 - pairs.wins) * gap
        value = (weight * miss).sum() + penalty * 0.5 * (theta.square() / variance).sum()
        value.backward()
        return value

    optimizer.step(closure)
    with torch.no_grad():
        return rewards(theta)
