r"""Active labels: choose the next pairs to label by Bayesian experimental design, without knowing the reward.

A round consists of three steps for K responses with labels of the Bradley–Terry model:

    fit        r̂ = argmax Σ_ij wins_ij log σ(r_i − r_j) − |r|²/(2s²), with demonstrations if there are any
    posterior  r ~ N(r̂, H⁻¹), H = −∇² of the above (Laplace);  Σ̂ = E[diag(π*) − π*π*ᵀ],  ĉ_ij = E[p_ij(1 − p_ij)]
    choose     the next labels n_ij (integers) that minimise tr(Σ̂ (H + Σ n_ij ĉ_ij b_ij b_ijᵀ)⁻¹)

The trace is proportional to the expected regret after all labels, past and next ones (`exact.label_price`). It is
minimised greedily, label by label, and each step is exact by the Sherman–Morrison formula. A part of every round is
spread evenly over all pairs, in case the posterior is wrong. The algorithm sees only labels and never the true reward.
Chaloner & Verdinelli 1995 review such Bayesian designs. Das et al. 2024 ("Active preference optimization") and
Mukherjee et al. 2024 ("Optimal design for human preference elicitation") apply design to preferences. Lecture, "Future
Direction".

All functions work on batches with leading axes, for example runs, worlds or prompts. Left out on purpose: rewards that
share features between responses (H would be Φᵀ H Φ), and prompts whose labels have different costs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_lab.algorithms.label_rounds import Choose, LabelState
from rlhf_lab.bradley_terry import laplacian
from rlhf_lab.errors import (
    Count,
    Fraction,
    LabError,
    Natural,
    check_beta,
    check_float,
    check_log_distribution,
    check_settings,
)


@dataclass(frozen=True)
class Active:
    """Settings of the choice of the next labels."""

    explore: Fraction = 0.05
    """Fraction of a round's labels that is spread evenly over all pairs."""
    draws: Natural = 32
    """Number of posterior draws of the rewards over which the design is averaged. 0: only the estimate r̂ is used."""
    greedy_steps: Count = 32
    """Number of greedy choices in a round. Each one gives 1/greedy_steps of the round's labels to one pair."""

    def __post_init__(self) -> None:
        check_settings(self)


def posterior_means(
    rewards: Tensor,
    curvature: Tensor,
    log_ref: Tensor,
    beta: float,
    draws: int = 32,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Return Σ̂ and ĉ, the posterior means of the covariance of π* and of the information of a label.

    Args:
        rewards: r̂, (…, K).
        curvature: H, (…, K, K).
        log_ref: log π_ref, (…, K).
        beta: β > 0.
        draws: number of draws from N(r̂, H⁻¹); 0: r̂ is used in their place.
        generator: source of randomness.

    Returns:
        E[diag(π*) − π*π*ᵀ] and E[p(1 − p)], (…, K, K) each.
    """
    beta = check_beta(beta)
    if draws:
        root = torch.linalg.cholesky(curvature)
        normal = torch.randn(*rewards.shape, draws, dtype=torch.float64, generator=generator)
        deviation = torch.linalg.solve_triangular(root.transpose(-1, -2), normal, upper=True)
        rewards = rewards.unsqueeze(-2) + deviation.transpose(-1, -2)
    else:
        rewards = rewards.unsqueeze(-2)
    star = (log_ref.unsqueeze(-2) + rewards / beta).softmax(-1)
    number = star.shape[-2]
    covariance = torch.diag_embed(star.mean(-2)) - star.transpose(-1, -2) @ star / number
    p = torch.sigmoid(rewards.unsqueeze(-1) - rewards.unsqueeze(-2))
    return covariance, (p * (1 - p)).mean(-3)


def gains(covariance: Tensor, weight: Tensor, inverse: Tensor) -> Tensor:
    """Return the decrease of tr(Σ̂ V) by a label on each pair, V = H⁻¹: (…, K, K), never negative.

    Sherman–Morrison: a label adds w b bᵀ to H, so V becomes V − w V b bᵀ V/(1 + w bᵀ V b).

    Args:
        covariance: Σ̂, (…, K, K).
        weight: w of each pair, (…, K, K): ĉ times the number of labels that are placed together.
        inverse: V, (…, K, K).
    """
    return weight * _between(inverse @ covariance @ inverse) / (1 + weight * _between(inverse))


def next_labels(
    covariance: Tensor,
    information: Tensor,
    curvature: Tensor,
    number: int,
    explore: float = 0.0,
    greedy_steps: int = 32,
) -> Tensor:
    """Choose how many labels each pair gets next: minimise tr(Σ̂ (H + Σ n ĉ b bᵀ)⁻¹) greedily.

    Args:
        covariance: Σ̂, (…, K, K).
        information: ĉ, (…, K, K).
        curvature: H of the labels up to now, with the prior, (…, K, K), positive definite.
        number: number of labels to place.
        explore: fraction of them that is spread evenly over all pairs.
        greedy_steps: number of greedy choices.

    Returns:
        integers as float64 (…, K, K), above the diagonal, summing to `number`.
    """
    size = covariance.shape[-1]
    above = torch.ones(size, size, dtype=torch.bool).triu(1)
    counts = torch.zeros(covariance.shape, dtype=torch.float64)
    spread = int(number * explore)
    if spread:
        counts = counts + apportion(above.double() / above.sum(), spread)
    edges = counts * information
    inverse = torch.linalg.inv(curvature + laplacian(edges + edges.transpose(-1, -2)))
    left, choices = number - spread, min(number - spread, greedy_steps)
    shape = counts.shape
    covariance, inverse, information = (t.reshape(-1, size, size) for t in (covariance, inverse, information))
    counts, rows = counts.reshape(-1, size, size).clone(), torch.arange(inverse.shape[0])
    for choice in range(choices):
        labels = left // (choices - choice)
        left -= labels
        weight = labels * information
        variance = _between(inverse)
        gain = gains(covariance, weight, inverse)
        best = gain.masked_fill(~above, -torch.inf).flatten(1).argmax(-1)
        i, j = best // size, best % size
        column = inverse[rows, :, i] - inverse[rows, :, j]
        factor = weight[rows, i, j] / (1 + weight[rows, i, j] * variance[rows, i, j])
        inverse = inverse - factor[:, None, None] * column.unsqueeze(-1) * column.unsqueeze(-2)
        counts[rows, i, j] += labels
    return counts.reshape(shape)


def choose_actively(log_ref: Tensor, beta: float, settings: Active = Active()) -> Choose:
    """Return the rule of this module for `collect_labels`.

    Args:
        log_ref: log π_ref, (…, K); the leading axes are separate runs.
        beta: β > 0 of the objective.
        settings: exploration, posterior draws, greedy steps.

    Raises:
        LabError: log_ref is not a distribution, or has only one response.
    """
    beta = check_beta(beta)
    check_float(log_ref, "log_ref")
    check_log_distribution(log_ref, "log_ref")
    log_ref = log_ref.double()
    if log_ref.shape[-1] < 2:
        raise LabError("A pair needs two responses: log_ref has only one.")

    def choose(state: LabelState, number: int, generator: torch.Generator) -> Tensor:
        covariance, information = posterior_means(
            state.rewards, state.curvature, log_ref, beta, settings.draws, generator
        )
        return next_labels(covariance, information, state.curvature, number, settings.explore, settings.greedy_steps)

    return choose


def _between(matrix: Tensor) -> Tensor:
    """bᵀ M b of every pair with b = e_i − e_j, (…, K, K)."""
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    return diagonal.unsqueeze(-1) + diagonal.unsqueeze(-2) - matrix - matrix.transpose(-1, -2)


def apportion(weights: Tensor, number: int) -> Tensor:
    """Divide `number` labels in proportion to `weights` (…, K, K) and round to integers by largest remainders."""
    flat = weights.flatten(-2).double()
    exactly = number * flat / flat.sum(-1, keepdim=True)
    whole = exactly.floor()
    missing = (number - whole.sum(-1, keepdim=True)).round()
    # `rank` orders the remainders by size. The `missing` largest ones are rounded up.
    rank = (exactly - whole).argsort(dim=-1, descending=True, stable=True).argsort(-1)
    return (whole + (rank < missing)).reshape(weights.shape)
