r"""Finite worlds that change over time: the preferences drift, the prompts shift, or the policy leaves its reference.

Time is counted in rounds, t = 0, 1, … A deployment lasts T rounds, t = 1 … T. The policy of round t may use the labels
of earlier rounds. It is evaluated with the reward r_t, the prompt weights w_t and the β_t of round t. The kinds of
change are:

    none     nothing changes
    drift    r_t = cos(ωt) r_0 + sin(ωt) r_1, where r_1 is orthogonal to r_0 and has the same variance over responses
    sudden   r_t = r_0 for half of the deployment, and is then rotated by an angle in one step
    prompts  the weights move from the first half of the prompts to the second half
    policy   β_t falls, so the optimal policy moves away from π_ref, from which the labels come

π*_t ∝ π_ref exp(r_t/β_t) and the regret of round t, Σ_x w_t(x) β_t KL(π(·|x)‖π*_t(·|x)), are exact.

The closed forms of drifting rewards are in `exact.drift`. Bai et al. 2022, section 4.5, where reward models and
policies are updated about weekly; lecture, "Non-static Environment". Left out on purpose: models that extrapolate the
drift, such as a Kalman filter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

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

Change = Literal["none", "drift", "sudden", "prompts", "policy"]
KINDS: tuple[Change, ...] = ("none", "drift", "sudden", "prompts", "policy")
SECOND_TREE = 70_000
"""The second reward of a tree is that of the random tree whose seed is larger by this number."""


def standard(reward: Tensor) -> Tensor:
    """The rewards scaled to mean 0 and variance 1 over the responses of each prompt, (…, K); 0 if they are equal."""
    apart = centred(reward)
    spread = apart.square().mean(-1, keepdim=True).sqrt()
    return apart / torch.where(spread > 0, spread, 1.0)


def orthogonal(first: Tensor, other: Tensor) -> Tensor:
    """The part of `other` that is uncorrelated with the standard rewards `first`, made `standard`, (…, K).

    Raises:
        LabError: fewer than three responses, or `other` is a multiple of `first`.
    """
    if first.shape[-1] < 3:
        raise LabError("Rewards can rotate only if there are at least three responses. Give more responses.")
    away = other - other.mean(-1, keepdim=True)
    rest = away - first * (first * away).mean(-1, keepdim=True)
    if bool((rest.square().mean(-1) <= 1e-12 * away.square().mean(-1).clamp(min=1e-300)).any()):
        raise LabError("The second reward is a multiple of the first. Rewards cannot rotate towards it.")
    return standard(rest)


def turned(first: Tensor, other: Tensor, angle: Tensor | float) -> Tensor:
    """cos(angle) · first + sin(angle) · other, with the angle in radians, broadcast with (…, K)."""
    angle = torch.as_tensor(angle, dtype=first.dtype)
    return angle.cos() * first + angle.sin() * other


class LabelledPairs(NamedTuple):
    """Labelled pairs of a finite world, as numbers of prompts and responses, (N,) each.

    Attributes:
        prompts: the prompt of each pair.
        chosen: the preferred response.
        rejected: the other response.
    """

    prompts: Tensor
    chosen: Tensor
    rejected: Tensor


@dataclass(frozen=True, eq=False)
class NonstationaryWorld:
    """A finite world that changes over time.

    Attributes:
        world: the prompts, the responses and π_ref, which do not change.
        first: r_0, (X, K), standard (see `standard`).
        other: r_1, (X, K), standard, orthogonal to `first`.
        kind: what changes, see the module's docstring.
        rounds: T of the deployment.
        rate: for "drift", ω in radians per round; for "sudden", the angle in radians; otherwise not used.
        beta: β of the objective at the start, in units of reward per nat.
        last_beta: for "policy", β in round T. β falls by the same factor in each round.
        share: for "prompts", the total weight of the first half of the prompts at the start, and of the second half in
            round T. In the other kinds all prompts have equal weights.
    """

    world: FiniteWorld
    first: Tensor
    other: Tensor
    kind: Change = "drift"
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
            raise LabError(f"rounds must be at least 1 and share in [0, 1], not {self.rounds} and {self.share}.")
        if self.kind == "prompts" and self.world.num_prompts < 2:
            raise LabError('The kind "prompts" needs at least two prompts, but the world has only one.')

    @cached_property
    def log_ref(self) -> Tensor:
        """log π_ref, (X, K)."""
        return self.world.log_ref()

    def angle(self, t: float) -> float:
        """The angle by which the reward has rotated in round t, radians."""
        if self.kind == "drift":
            return self.rate * t
        return self.rate if self.kind == "sudden" and t > self.rounds / 2 else 0.0

    def rewards(self, t: float) -> Tensor:
        """r_t, (X, K)."""
        return turned(self.first, self.other, self.angle(t))

    def velocity(self, t: float) -> Tensor:
        """The derivative of the reward with respect to the angle in round t, (X, K)."""
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
        return self.beta * math.pow(self.last_beta / self.beta, min(max(t / self.rounds, 0.0), 1.0))

    def tilt(self, reward: Tensor, t: float) -> Tensor:
        """log of π_ref exp(reward/β_t)/Z, (X, K), the optimal policy for `reward` in round t."""
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
    def sample_labels(
        self, number: int, t: float, generator: torch.Generator | None = None, log_policy: Tensor | None = None
    ) -> LabelledPairs:
        """Draw labelled pairs in round t: a prompt by its weight, two different responses, and a label.

        Args:
            number: how many labels.
            t: the round, whose reward decides the labels.
            generator: source of randomness.
            log_policy: the policy from which the responses are drawn, (X, K); π_ref by default.

        Raises:
            LabError: the policy gives all probability to one response.
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
            parts.append(LabelledPairs(here, torch.where(wins, one, two), torch.where(wins, two, one)))
        return LabelledPairs(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def different(mass: Tensor, number: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Draw pairs of two independent responses, conditioned on the two being different, (number,) each.

    Args:
        mass: the probabilities of the responses, (K,).
        number: how many pairs.
        generator: source of randomness.

    Raises:
        LabError: all mass is on one response.
    """
    if int((mass > 0).sum()) < 2:
        raise LabError("The policy gives the same response every time, so there is nothing to compare. Raise beta.")
    both = torch.multinomial(mass, 2 * number, replacement=True, generator=generator).view(2, number)
    one, two = both[:, both[0] != both[1]]
    left = number - len(one)
    if left:
        # The rest is drawn directly: i with m_i (1 − m_i), then j ≠ i with m_j. This also works for a peaked policy.
        first = torch.multinomial(mass * (mass.sum() - mass), left, replacement=True, generator=generator)
        others = mass.repeat(left, 1).scatter(1, first.unsqueeze(1), 0.0)
        second = torch.multinomial(others, 1, generator=generator).squeeze(1)
        one, two = torch.cat([one, first]), torch.cat([two, second])
    return one, two


def nonstationary_bandit(num_prompts: int = 4, num_arms: int = 6, seed: int = 0, **changes: Any) -> NonstationaryWorld:
    """A random bandit that changes over time. `changes` are fields of `NonstationaryWorld`."""
    world = bandit.random(num_prompts, num_arms, seed)
    first = standard(world.rewards())
    drawn = torch.randn(first.shape, dtype=torch.float64, generator=seeded(seed, Stream.SECOND_REWARD))
    return NonstationaryWorld(world, first, orthogonal(first, drawn), **changes)


def nonstationary_tree(
    vocab_size: int = 6, depth: int = 4, num_prompts: int = 2, seed: int = 0, **changes: Any
) -> NonstationaryWorld:
    """A random token tree that changes over time, with additive and bigram rewards.

    `changes` are fields of `NonstationaryWorld`.
    """
    world = token_tree.random(vocab_size, depth, num_prompts, seed)
    first = standard(world.rewards())
    drawn = token_tree.random(vocab_size, depth, num_prompts, SECOND_TREE + seed).rewards()
    return NonstationaryWorld(world, first, orthogonal(first, drawn), **changes)


def basis(parts: Tensor) -> Tensor:
    """A basis of the span of `parts` (K, m) without constants, orthonormal in the mean over the responses, (K, d)."""
    length: float = len(parts) ** 0.5
    return orthonormal(parts.double() - parts.double().mean(0)) * length


def orthonormal(columns: Tensor) -> Tensor:
    """An orthonormal basis of the span of `columns` (K, m), by the Gram–Schmidt process, (K, d).

    A column that depends on the earlier ones is left out. The result is the Q of the QR decomposition whose R has a
    positive diagonal, which is unique. The signs in the Q of `torch.linalg.qr` are not determined by the mathematics,
    and neither are the signs of singular vectors, or their directions where singular values are equal. These differ
    between processors.
    """
    found: list[Tensor] = []
    smallest = 1e-9 * columns.norm(dim=0).max()
    for column in columns.unbind(1):
        rest = column
        for _ in range(2):  # the second pass removes the rounding errors of the first
            for other in found:
                rest = rest - other * (other @ rest)
        length = rest.norm()
        if length > smallest:
            found.append(rest / length)
    return torch.stack(found, 1)
