r"""Active labels: which pairs to ask about next, by someone who does not know the reward.

For K responses, of which labels tell by Bradley–Terry, a round is:

    fit       r̂ = argmax Σ_ij wins_ij log σ(r_i − r_j) − |r|²/(2s²)          (and demonstrations, where there are any)
    believe   r ~ N(r̂, H⁻¹), H = −∇² of the above (Laplace);  Σ̂ = E[diag(π*) − π*π*ᵀ],  ĉ_ij = E[p_ij(1 − p_ij)]
    ask       the next labels n_ij (integers) that make tr(Σ̂ (H + Σ n_ij ĉ_ij b_ij b_ijᵀ)⁻¹) least

The last line is the price of a label (`exact.label_price`) of all labels together, those spent and those to come,
at what is believed now. It is minimised label by label (greedily, each step exact by Sherman–Morrison); a part of
every round goes evenly to all pairs, as a guard against a belief that is wrong. The true reward is never seen: what
comes in are labels. Chaloner & Verdinelli 1995 review such Bayesian designs; Das et al. 2024 ("Active preference
optimization") and Mukherjee et al. 2024 ("Optimal design for human preference elicitation") apply design to
preferences. Lecture, "Future Direction".

Everything is batched over leading axes: runs, worlds, prompts. Left out on purpose: rewards that share features over
responses (H would be Φᵀ H Φ), and labels spread over prompts of different price.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.bradley_terry import Demonstrations, check_wins, fit_rewards, laplacian, pair_distribution
from rlhf_lab.errors import (
    Count,
    Fraction,
    LabError,
    Natural,
    check_beta,
    check_finite,
    check_float,
    check_log_distribution,
    check_settings,
)

Label = Callable[[Tensor, torch.Generator], Tensor]
"""(how often to ask each pair i < j, (…, K, K) with zeros elsewhere; generator) → how often row beat column."""


@dataclass(frozen=True)
class Active:
    """How the next labels are chosen."""

    explore: Fraction = 0.05
    """Part of every batch that goes evenly to all pairs."""
    draws: Natural = 32
    """Draws of the rewards from what is believed, over which the design is averaged. 0: the estimate alone."""
    at_once: Count = 32
    """Greedy choices in a batch; each places a batch's 1/at_once part on one pair."""

    def __post_init__(self) -> None:
        check_settings(self)


def believed(
    rewards: Tensor,
    curvature: Tensor,
    log_ref: Tensor,
    beta: float,
    draws: int = 32,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Σ̂ and ĉ: what matters and what a label tells, averaged over what is believed.

    Args:
        rewards: r̂, (…, K).
        curvature: H, (…, K, K).
        log_ref: log π_ref, (…, K).
        beta: β > 0.
        draws: from N(r̂, H⁻¹); 0 puts the estimate in their place.
        generator: source of randomness.

    Returns:
        E[diag(π*) − π*π*ᵀ] and E[p(1 − p)], (…, K, K) each.
    """
    beta = check_beta(beta)
    if draws:
        root = torch.linalg.cholesky(curvature)
        normal = torch.randn(*rewards.shape, draws, dtype=torch.float64, generator=generator)
        away = torch.linalg.solve_triangular(root.transpose(-1, -2), normal, upper=True)
        rewards = rewards.unsqueeze(-2) + away.transpose(-1, -2)
        log_ref = log_ref.unsqueeze(-2)
    else:
        rewards, log_ref = rewards.unsqueeze(-2), log_ref.unsqueeze(-2)
    star = (log_ref + rewards / beta).softmax(-1)
    number = star.shape[-2]
    matters = torch.diag_embed(star.mean(-2)) - star.transpose(-1, -2) @ star / number
    gap = torch.sigmoid(rewards.unsqueeze(-1) - rewards.unsqueeze(-2))
    return matters, (gap * (1 - gap)).mean(-3)


def gains(matters: Tensor, told: Tensor, inverse: Tensor) -> Tensor:
    """By how much tr(Σ̂ V) falls for a label on each pair, V = H⁻¹: (…, K, K), never negative.

    Sherman–Morrison: a label adds w b bᵀ to H, so V becomes V − w V b bᵀ V/(1 + w bᵀ V b).

    Args:
        matters: Σ̂, (…, K, K).
        told: w of each pair, (…, K, K): ĉ, times the labels where several are placed at once.
        inverse: V, (…, K, K).
    """
    return told * _between(inverse @ matters @ inverse) / (1 + told * _between(inverse))


def next_labels(
    matters: Tensor, information: Tensor, curvature: Tensor, number: int, explore: float = 0.0, at_once: int = 32
) -> Tensor:
    """How often to ask each pair next: greedily the least tr(Σ̂ (H + Σ n ĉ b bᵀ)⁻¹).

    Args:
        matters: Σ̂, (…, K, K).
        information: ĉ, (…, K, K).
        curvature: H of what was asked before, with the prior, (…, K, K), positive definite.
        number: labels to place.
        explore: part that goes evenly to all pairs.
        at_once: greedy choices.

    Returns:
        integers as float64 (…, K, K), above the diagonal, summing to `number`.
    """
    size = matters.shape[-1]
    lead = matters.shape[:-2]
    above = torch.ones(size, size, dtype=torch.bool).triu(1)
    counts = torch.zeros(matters.shape, dtype=torch.float64)
    spread = int(number * explore)
    if spread:
        counts = counts + apportion(above.double() / above.sum(), spread)
    edges = counts * information
    inverse = torch.linalg.inv(curvature + laplacian(edges + edges.transpose(-1, -2)))
    left, choices = number - spread, min(number - spread, at_once)
    matters, inverse, information = (t.reshape(-1, size, size) for t in (matters, inverse, information))
    counts, rows = counts.reshape(-1, size, size).clone(), torch.arange(inverse.shape[0])
    for turn in range(choices):
        labels = left // (choices - turn)
        left -= labels
        told = labels * information
        error = _between(inverse)
        gain = gains(matters, told, inverse)
        best = gain.masked_fill(~above, -torch.inf).flatten(1).argmax(-1)
        i, j = best // size, best % size
        across = inverse[rows, :, i] - inverse[rows, :, j]
        weight = told[rows, i, j] / (1 + told[rows, i, j] * error[rows, i, j])
        inverse = inverse - weight[:, None, None] * across.unsqueeze(-1) * across.unsqueeze(-2)
        counts[rows, i, j] += labels
    return counts.reshape(*lead, size, size)


def _between(matrix: Tensor) -> Tensor:
    """bᵀ M b of every pair, b = e_i − e_j: (…, K, K)."""
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    return diagonal.unsqueeze(-1) + diagonal.unsqueeze(-2) - matrix - matrix.transpose(-1, -2)


def apportion(weights: Tensor, number: int) -> Tensor:
    """`number` labels in whole numbers, as near to `weights` (…, K, K) as can be: largest remainders first."""
    flat = weights.flatten(-2).double()
    exactly = number * flat / flat.sum(-1, keepdim=True)
    whole = exactly.floor()
    missing = (number - whole.sum(-1, keepdim=True)).round()
    # The rank of each remainder; the `missing` largest are rounded up.
    order = (exactly - whole).argsort(dim=-1, descending=True, stable=True).argsort(-1)
    return (whole + (order < missing)).reshape(weights.shape)


def batches(size: int, labels: int, rounds: int) -> list[int]:
    """Labels spent after each of `rounds`: first 4 a response (at most an even share), then growing geometrically.

    Raises:
        LabError: fewer labels than rounds, or no round.
    """
    if rounds < 1 or labels < rounds:
        raise LabError(f"{labels} labels cannot be spread over {rounds} rounds; give each at least one.")
    first = min(4 * size, labels // rounds)
    growth = (labels / first) ** (1 / max(rounds - 1, 1))
    return [max(round(first * growth**k), k + 1) for k in range(rounds - 1)] + [labels]


@dataclass(frozen=True)
class Asked:
    """What is known after a round.

    Attributes:
        labels: spent so far.
        wins: how often row beat column so far, (…, K, K).
        rewards: r̂ after them, (…, K).
        curvature: H there, (…, K, K).
    """

    labels: int
    wins: Tensor
    rewards: Tensor
    curvature: Tensor

    @property
    def counts(self) -> Tensor:
        """How often each pair was asked, (…, K, K), above the diagonal."""
        return (self.wins + self.wins.transpose(-1, -2)).triu(1)


Choose = Callable[[Asked, int, torch.Generator], Tensor]
"""(what is known, how many labels, generator) → how often to ask each pair i < j, (…, K, K)."""


def ask_in_rounds(
    choose: Choose,
    label: Label,
    known: Tensor,
    totals: Sequence[int],
    prior: float = 3.0,
    generator: torch.Generator | None = None,
    demonstrations: Demonstrations | None = None,
) -> list[Asked]:
    """Choose pairs, have them labelled, fit; the state at each of `totals`.

    Args:
        choose: which pairs, knowing the labels so far.
        label: asks for the labels; all that is learned of the reward comes from it.
        known: wins before the first round, (…, K, K); zeros where there were none. They are not counted as spent.
        totals: labels spent after each round.
        prior: of the fits.
        generator: of choices and labels.
        demonstrations: known beforehand; they count in every fit.

    Raises:
        LabError: totals that do not grow; labels that are not as many as were asked for.
    """
    if any(b <= a for a, b in zip([0, *totals], totals, strict=False)):
        raise LabError(f"totals must grow from above 0, not {list(totals)}.")
    generator = generator or torch.Generator().manual_seed(0)
    state = Asked(0, known, *fit_rewards(known, prior, demonstrations))
    out: list[Asked] = []
    for total in totals:
        fresh = choose(state, total - state.labels, generator)
        won = check_wins(label(fresh, generator), "the labels")
        if not torch.equal(won + won.transpose(-1, -2), fresh + fresh.transpose(-1, -2)):
            raise LabError("The labels are not as many as were asked for, pair by pair.")
        wins = state.wins + won
        state = Asked(total, wins, *fit_rewards(wins, prior, demonstrations))
        out.append(state)
    return out


def choose_actively(log_ref: Tensor, beta: float, settings: Active = Active()) -> Choose:
    """The choice of this file's head, for `ask_in_rounds`.

    Args:
        log_ref: log π_ref, (…, K); every leading axis is a run of its own.
        beta: β > 0 of the objective.
        settings: exploration, draws.

    Raises:
        LabError: log_ref not a distribution, or over one response.
    """
    beta = check_beta(beta)
    check_float(log_ref, "log_ref")
    check_log_distribution(log_ref, "log_ref")
    log_ref = log_ref.double()
    if log_ref.shape[-1] < 2:
        raise LabError("A pair needs two responses: log_ref has only one.")

    def choose(state: Asked, number: int, generator: torch.Generator) -> Tensor:
        matters, told = believed(state.rewards, state.curvature, log_ref, beta, settings.draws, generator)
        return next_labels(matters, told, state.curvature, number, settings.explore, settings.at_once)

    return choose


def choose_by_design(design: Tensor) -> Choose:
    """Pairs drawn from `design` (…, K, K), whatever was learned; non-negative, (i, j) and (j, i) one pair."""
    size = design.shape[-1]
    weights = (design + design.transpose(-1, -2)).triu(1).flatten(-2)

    def choose(state: Asked, number: int, generator: torch.Generator) -> Tensor:
        return multinomial(weights, number, generator).reshape(*weights.shape[:-1], size, size)

    return choose


def choose_from_policy(log_ref: Tensor, beta: float) -> Choose:
    """Pairs that the present policy ∝ π_ref exp(r̂/β) would give: two draws, equal ones drawn again (online DPO)."""
    beta = check_beta(beta)

    def choose(state: Asked, number: int, generator: torch.Generator) -> Tensor:
        return choose_by_design(pair_distribution((log_ref + state.rewards / beta).log_softmax(-1)))(
            state, number, generator
        )

    return choose


def multinomial(weights: Tensor, number: int, generator: torch.Generator | None = None) -> Tensor:
    """How often each place is drawn in `number` draws, (…, n), by one binomial a place: exact, and fast for many."""
    weights = weights.double()
    left = torch.full(weights.shape[:-1], float(number), dtype=torch.float64)
    rest = weights.flip(-1).cumsum(-1).flip(-1)
    out = torch.zeros_like(weights)
    for place in range(weights.shape[-1]):
        share = (weights[..., place] / rest[..., place].clamp(min=1e-300)).clamp(0, 1)
        # Rounding of the running sum must not leave labels over at the last place that has weight.
        last = (weights[..., place + 1 :] <= 0).all(-1) if place + 1 < weights.shape[-1] else share >= 0
        drawn = _binomial(left, torch.where(last, 1.0, share), generator)
        out[..., place] = torch.where(weights[..., place] > 0, drawn, 0.0)
        left = left - out[..., place]
    return out


def _binomial(counts: Tensor, chance: Tensor, generator: torch.Generator | None) -> Tensor:
    """How often each event occurs in `counts` trials, the same on every processor.

    torch takes another algorithm, and another number of random numbers, from n p = 10 on, p ≤ 1/2. Simple chances meet
    this exactly (25 · 0.4), so the last bit would decide, and all later draws would differ. The chances are moved by at
    most 2⁻³⁹ so that such a product is above 10.
    """
    grid = 2.0**-40
    near = (chance / grid).round() * grid
    inside = (near > 0) & (near < 1)
    return torch.binomial(counts, near + torch.where(inside, (0.5 - near).sign() * grid, 0.0), generator=generator)


def bradley_terry_labels(reward: Tensor) -> Label:
    """A labeller with rewards (…, K): row beats column with p = σ(r_i − r_j), every label on its own."""
    chance = exact.preference(check_finite(reward, "reward").double())

    def label(counts: Tensor, generator: torch.Generator) -> Tensor:
        won = _binomial(counts, chance.expand(counts.shape), generator)
        return won + (counts - won).transpose(-1, -2)

    return label
