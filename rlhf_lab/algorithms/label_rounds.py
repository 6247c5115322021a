r"""Labelling in rounds: choose pairs, have them labelled, fit Bradley–Terry rewards, and choose again.

`collect_labels` is the loop. It takes two functions: one chooses the pairs of the next round, the other one labels
them. `active.choose_actively` chooses by Bayesian design. The rules here serve as its baselines: pairs from a fixed
distribution, and pairs of responses that the current policy would sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.bradley_terry import Demonstrations, check_wins, fit_rewards, pair_distribution
from rlhf_lab.errors import LabError, check_beta, check_finite

Label = Callable[[Tensor, torch.Generator], Tensor]
"""Labels pairs: (number of labels of each pair i < j, (…, K, K) with zeros elsewhere; generator) → wins of row over
column, (…, K, K)."""


def round_totals(size: int, labels: int, rounds: int) -> list[int]:
    """Plan the total number of labels after each round. The totals grow geometrically.

    Args:
        size: K, the number of responses. The first round has 4 labels per response, but at most an even share.
        labels: the total after the last round.
        rounds: the number of rounds.

    Raises:
        LabError: fewer labels than rounds, or no round.
    """
    if rounds < 1 or labels < rounds:
        raise LabError(f"{labels} labels cannot be spread over {rounds} rounds; give each at least one.")
    first = min(4 * size, labels // rounds)
    growth = (labels / first) ** (1 / max(rounds - 1, 1))
    return [max(round(first * growth**k), k + 1) for k in range(rounds - 1)] + [labels]


@dataclass(frozen=True)
class LabelState:
    """The labels after a round, and the rewards fitted to them.

    Attributes:
        labels: total number of labels that have been spent.
        wins: how often row was preferred to column, (…, K, K).
        rewards: the fitted rewards r̂, (…, K).
        curvature: H, the negative Hessian of the log-posterior at r̂, (…, K, K).
    """

    labels: int
    wins: Tensor
    rewards: Tensor
    curvature: Tensor

    @property
    def counts(self) -> Tensor:
        """The number of labels of each pair, (…, K, K), above the diagonal."""
        return (self.wins + self.wins.transpose(-1, -2)).triu(1)


Choose = Callable[[LabelState, int, torch.Generator], Tensor]
"""Chooses pairs: (state, number of labels, generator) → number of labels of each pair i < j, (…, K, K)."""


def collect_labels(
    choose: Choose,
    label: Label,
    known: Tensor,
    totals: Sequence[int],
    prior: float = 3.0,
    generator: torch.Generator | None = None,
    demonstrations: Demonstrations | None = None,
) -> list[LabelState]:
    """Collect labels in rounds, and return the state after each round.

    Args:
        choose: chooses the pairs of a round, given the labels of the earlier rounds.
        label: labels the chosen pairs. It is the only source of information about the reward.
        known: wins before the first round, (…, K, K); zeros if there are none. They do not count as spent.
        totals: total number of labels after each round.
        prior: standard deviation s of the fits' normal prior.
        generator: source of randomness of choices and labels.
        demonstrations: demonstrations known beforehand, which are part of every fit.

    Raises:
        LabError: the totals do not increase; the number of labels differs from the number that was chosen.
    """
    if any(b <= a for a, b in zip([0, *totals], totals, strict=False)):
        raise LabError(f"totals must be above 0 and increase, not {list(totals)}.")
    generator = generator or torch.Generator().manual_seed(0)
    state = LabelState(0, known, *fit_rewards(known, prior, demonstrations))
    out: list[LabelState] = []
    for total in totals:
        fresh = choose(state, total - state.labels, generator)
        won = check_wins(label(fresh, generator), "the labels")
        if not torch.equal(won + won.transpose(-1, -2), fresh + fresh.transpose(-1, -2)):
            raise LabError("A pair has another number of labels than was chosen for it. Check the function `label`.")
        wins = state.wins + won
        state = LabelState(total, wins, *fit_rewards(wins, prior, demonstrations))
        out.append(state)
    return out


def choose_by_design(design: Tensor) -> Choose:
    """Return the rule that draws pairs from a fixed distribution, whatever the labels are.

    Args:
        design: non-negative weights of the pairs, (…, K, K). Those of (i, j) and (j, i) are added.
    """
    size = design.shape[-1]
    weights = (design + design.transpose(-1, -2)).triu(1).flatten(-2)

    def choose(state: LabelState, number: int, generator: torch.Generator) -> Tensor:
        return multinomial(weights, number, generator).reshape(*weights.shape[:-1], size, size)

    return choose


def choose_from_policy(log_ref: Tensor, beta: float) -> Choose:
    """Return the rule that samples both responses of a pair from the current policy, as in online DPO.

    The current policy is ∝ π_ref exp(r̂/β). Pairs of equal responses are drawn again.

    Args:
        log_ref: log π_ref, (…, K).
        beta: β > 0.
    """
    beta = check_beta(beta)

    def choose(state: LabelState, number: int, generator: torch.Generator) -> Tensor:
        return choose_by_design(pair_distribution((log_ref + state.rewards / beta).log_softmax(-1)))(
            state, number, generator
        )

    return choose


def multinomial(weights: Tensor, number: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw from the multinomial distribution: the number of times that each place is drawn, (…, n).

    The numbers are drawn one after the other, each from its binomial distribution given the earlier ones. This is exact
    and takes the same time for any number of draws.

    Args:
        weights: non-negative weights of the places, (…, n).
        number: number of draws.
        generator: source of randomness.
    """
    weights = weights.double()
    left = torch.full(weights.shape[:-1], float(number), dtype=torch.float64)
    rest = weights.flip(-1).cumsum(-1).flip(-1)
    out = torch.zeros_like(weights)
    for place in range(weights.shape[-1]):
        share = (weights[..., place] / rest[..., place].clamp(min=1e-300)).clamp(0, 1)
        # The last place with weight gets all draws that are left, even if rounding makes its share less than 1.
        last = (weights[..., place + 1 :] <= 0).all(-1) if place + 1 < weights.shape[-1] else share >= 0
        drawn = _binomial(left, torch.where(last, 1.0, share), generator)
        out[..., place] = torch.where(weights[..., place] > 0, drawn, 0.0)
        left = left - out[..., place]
    return out


def _binomial(counts: Tensor, chance: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw from binomial distributions, with the same result on every processor.

    For p ≤ 1/2 and n p ≥ 10 torch uses a different algorithm, which takes a different number of random numbers. Simple
    probabilities can give exactly n p = 10, for example 25 · 0.4. The last bit would then decide, and all later draws
    would differ. The probabilities are therefore moved by at most 2⁻³⁹, so that such a product is above 10.
    """
    grid = 2.0**-40
    near = (chance / grid).round() * grid
    inside = (near > 0) & (near < 1)
    return torch.binomial(counts, near + torch.where(inside, (0.5 - near).sign() * grid, 0.0), generator=generator)


def bradley_terry_labels(reward: Tensor) -> Label:
    """Return a labeller with rewards (…, K), which prefers row to column with probability σ(r_i − r_j).

    All labels are independent.
    """
    chance = exact.preference(check_finite(reward, "reward").double())

    def label(counts: Tensor, generator: torch.Generator) -> Tensor:
        won = _binomial(counts, chance.expand(counts.shape), generator)
        return won + (counts - won).transpose(-1, -2)

    return label
