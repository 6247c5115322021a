r"""Worlds that move: preferences drift, prompts shift, and the policy leaves the place where labels were collected.

Time is counted in rounds, t = 0, 1, … A deployment lasts T rounds, t = 1 … T. The policy of round t may use labels of
the rounds before t, and is judged by the reward r_t, the prompts and the β of round t:

    drift    r_t = cos(ωt) r_0 + sin(ωt) r_1, r_1 ⊥ r_0 and as large: the spread of rewards over the responses stays
    sudden   r_t = r_0 until half of the deployment is over, from then on turned by an angle at once
    prompts  the weights of the prompts go from one half of the prompts to the other half
    policy   β_t falls: the policy goes further and further from π_ref, from where the labels come

π*_t ∝ π_ref exp(r_t/β_t) and the regret of round t, Σ_x w_t(x) β_t KL(π(·|x)‖π*_t(·|x)), stay exact.

The closed forms of such worlds are in `exact.drift`. Bai et al. 2022, section 4.5 (reward models and policies renewed
about weekly); lecture, "Non-static Environment". Left out on purpose: models of the drift itself, such as a Kalman
filter, which would extrapolate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.errors import LabError, check_beta, check_positive
from rlhf_lab.preferences import sample_preferences
from rlhf_lab.randomness import Stream
from rlhf_lab.rounding import centred
from rlhf_lab.training import seeded
from rlhf_lab.worlds import bandit, token_tree
from rlhf_lab.worlds.finite_world import FiniteWorld

Kind = Literal["none", "drift", "sudden", "prompts", "policy"]
KINDS: tuple[Kind, ...] = ("none", "drift", "sudden", "prompts", "policy")


def standard(reward: Tensor) -> Tensor:
    """Each prompt's rewards with mean 0 and variance 1 over its responses, (…, K); 0 where all are equal."""
    apart = centred(reward)
    spread = apart.square().mean(-1, keepdim=True).sqrt()
    return apart / torch.where(spread > 0, spread, 1.0)


def orthogonal(first: Tensor, other: Tensor) -> Tensor:
    """`other` made standard and uncorrelated with the standard rewards `first`, prompt by prompt, (…, K).

    Raises:
        LabError: fewer than three responses, or nothing of `other` is left.
    """
    if first.shape[-1] < 3:
        raise LabError("Two responses have one difference: rewards that turn need at least three responses.")
    away = other - other.mean(-1, keepdim=True)
    rest = away - first * (first * away).mean(-1, keepdim=True)
    if bool((rest.square().mean(-1) <= 1e-12 * away.square().mean(-1).clamp(min=1e-300)).any()):
        raise LabError("The second reward is a multiple of the first: there is nothing to turn towards.")
    return standard(rest)


def turned(first: Tensor, other: Tensor, angle: Tensor | float) -> Tensor:
    """cos(angle) · first + sin(angle) · other; the angle in radians, broadcast in front of (…, K)."""
    angle = torch.as_tensor(angle, dtype=first.dtype)
    return angle.cos() * first + angle.sin() * other


class Asked(NamedTuple):
    """Labelled pairs by number: prompt, preferred response, other response, (N,) each."""

    prompts: Tensor
    chosen: Tensor
    rejected: Tensor


@dataclass(frozen=True, eq=False)
class MovingWorld:
    """A finite world in motion.

    Attributes:
        world: prompts, responses and π_ref, which do not move.
        first: r_0, (X, K), standard (see `standard`).
        other: r_1, (X, K), standard, orthogonal to `first`.
        kind: what moves.
        rounds: T of the deployment.
        rate: of a drift, ω in radians a round; of a sudden change, its angle in radians; else not used.
        beta: β of the objective at the start, units of reward for a nat.
        last_beta: β in round T, where the kind is "policy"; it falls by the same factor every round.
        share: of all prompts asked that belong to the first half of the list at the start, and to the second half
            in round T, where the kind is "prompts". Elsewhere all prompts are equally likely.
    """

    world: FiniteWorld
    first: Tensor
    other: Tensor
    kind: Kind = "drift"
    rounds: int = 24
    rate: float = 0.05
    beta: float = 0.5
    last_beta: float = 0.25
    share: float = 0.95

    def __post_init__(self) -> None:
        check_beta(self.beta)
        check_positive(self.last_beta, "last_beta", "It is a β.")
        if self.kind not in KINDS:
            raise LabError(f"kind must be one of {', '.join(KINDS)}, not {self.kind!r}.")
        if self.rounds < 1 or not 0 <= self.share <= 1:
            raise LabError(f"A deployment needs a round and a share in [0, 1], not {self.rounds} and {self.share}.")
        if self.kind == "prompts" and self.world.num_prompts < 2:
            raise LabError("Prompts cannot shift where there is only one.")

    @cached_property
    def log_ref(self) -> Tensor:
        """log π_ref, (X, K)."""
        return self.world.log_ref()

    def angle(self, t: float) -> float:
        """How far the reward has turned in round t, radians."""
        if self.kind == "drift":
            return self.rate * t
        return self.rate if self.kind == "sudden" and t > self.rounds / 2 else 0.0

    def rewards(self, t: float) -> Tensor:
        """r_t, (X, K)."""
        return turned(self.first, self.other, self.angle(t))

    def velocity(self, t: float) -> Tensor:
        """dr/dangle in round t, (X, K): where the reward is going, a quarter of a turn ahead of it."""
        return turned(self.first, self.other, self.angle(t) + math.pi / 2)

    def weights(self, t: float) -> Tensor:
        """The prompts' probabilities in round t, (X,)."""
        number = self.world.num_prompts
        if self.kind != "prompts":
            return torch.full((number,), 1 / number, dtype=torch.float64)
        early = torch.arange(number) < number // 2
        first = torch.where(early, self.share / early.sum(), (1 - self.share) / (~early).sum()).double()
        last = torch.where(early, (1 - self.share) / early.sum(), self.share / (~early).sum()).double()
        way = min(max(t / self.rounds, 0.0), 1.0)
        return (1 - way) * first + way * last

    def beta_at(self, t: float) -> float:
        """β_t."""
        if self.kind != "policy":
            return self.beta
        return self.beta * (self.last_beta / self.beta) ** min(max(t / self.rounds, 0.0), 1.0)

    def tilt(self, reward: Tensor, t: float) -> Tensor:
        """log of π_ref exp(reward/β_t)/Z, (X, K): the best policy for a reward model of that round."""
        return exact.optimal_policy(self.log_ref, reward, self.beta_at(t))

    def optimal(self, t: float) -> Tensor:
        """log π*_t, (X, K)."""
        return self.tilt(self.rewards(t), t)

    def regret(self, log_policy: Tensor, t: float) -> float:
        """J_t(π*_t) − J_t(π) over the prompts of round t, units of reward.

        Args:
            log_policy: log π, (X, K), normalised.
            t: the round.
        """
        each = exact.regret(log_policy, self.log_ref, self.rewards(t), self.beta_at(t))
        return float((self.weights(t) * each).sum())

    @torch.no_grad()
    def ask(
        self, number: int, t: float, generator: torch.Generator | None = None, log_policy: Tensor | None = None
    ) -> Asked:
        """`number` labels of round t: a prompt by the round's weights, two different responses, one label each.

        Args:
            number: how many.
            t: the round, whose reward labels.
            generator: source of randomness.
            log_policy: who answers, (X, K); π_ref by default.

        Raises:
            LabError: the policy gives one response only.
        """
        mass = (self.log_ref if log_policy is None else log_policy).exp()
        reward, parts = self.rewards(t), []
        prompts = torch.multinomial(self.weights(t), number, replacement=True, generator=generator)
        for x, count in enumerate(torch.bincount(prompts, minlength=len(mass)).tolist()):
            if not count:
                continue
            one, two = different(mass[x], count, generator)
            wins = sample_preferences(reward[x][one], reward[x][two], generator)
            here = torch.full_like(one, x)
            parts.append(Asked(here, torch.where(wins, one, two), torch.where(wins, two, one)))
        return Asked(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def different(mass: Tensor, number: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """`number` pairs of independent draws from `mass` (K,), given that the two differ, (number,) each.

    Raises:
        LabError: all mass is on one response.
    """
    if int((mass > 0).sum()) < 2:
        raise LabError("The policy gives the same response every time: there is nothing to compare. Raise beta.")
    both = torch.multinomial(mass, 2 * number, replacement=True, generator=generator).view(2, number)
    one, two = both[:, both[0] != both[1]]
    left = number - len(one)
    if left:
        # Two that differ, directly: i with m_i (1 − m_i), then j ≠ i with m_j. A peaked policy is no trouble.
        first = torch.multinomial(mass * (mass.sum() - mass), left, replacement=True, generator=generator)
        others = mass.repeat(left, 1).scatter(1, first.unsqueeze(1), 0.0)
        second = torch.multinomial(others, 1, generator=generator).squeeze(1)
        one, two = torch.cat([one, first]), torch.cat([two, second])
    return one, two


def moving_bandit(num_prompts: int = 4, num_arms: int = 6, seed: int = 0, **changes: object) -> MovingWorld:
    """A random bandit in motion; `changes` are fields of `MovingWorld`."""
    world = bandit.random(num_prompts, num_arms, seed)
    first = standard(world.rewards())
    drawn = torch.randn(first.shape, dtype=torch.float64, generator=seeded(seed, Stream.SECOND_REWARD))
    return MovingWorld(world, first, orthogonal(first, drawn), **changes)  # type: ignore[arg-type]


def moving_tree(
    vocab_size: int = 6, depth: int = 4, num_prompts: int = 2, seed: int = 0, **changes: object
) -> MovingWorld:
    """A random token tree in motion, both rewards additive and bigram; `changes` are fields of `MovingWorld`."""
    world = token_tree.random(vocab_size, depth, num_prompts, seed)
    first = standard(world.rewards())
    drawn = token_tree.random(vocab_size, depth, num_prompts, seed + 70_000).rewards()
    return MovingWorld(world, first, orthogonal(first, drawn), **changes)  # type: ignore[arg-type]


def basis(parts: Tensor) -> Tensor:
    """Columns that span `parts` (K, m) without constants, orthonormal in the mean over responses, (K, d)."""
    return orthonormal(parts.double() - parts.double().mean(0)) * len(parts) ** 0.5


def orthonormal(columns: Tensor) -> Tensor:
    """Orthonormal columns that span `columns` (K, m), one after another (Gram–Schmidt), (K, d).

    A column that depends on those before it is left out. This is the Q of the QR decomposition whose R has a positive
    diagonal, and the only one. The Q of `torch.linalg.qr` has signs, and the singular vectors of `torch.linalg.svd`
    have signs and (where singular values are equal, as those of a table are) directions, that the mathematics leaves
    open: each processor gives others.
    """
    found: list[Tensor] = []
    smallest = 1e-9 * columns.norm(dim=0).max()
    for column in columns.unbind(1):
        rest = column
        for _ in range(2):  # the second pass removes what rounding left of the first
            for other in found:
                rest = rest - other * (other @ rest)
        length = rest.norm()
        if length > smallest:
            found.append(rest / length)
    return torch.stack(found, 1)
