r"""DPO on the pairs of a sampler: exact gradient steps, steps on sampled labels, and rounds of labels.

With the implicit reward f_i = β log π_θ(i)/π_ref(i) and pairs weighted by w_ij, DPO's expected loss has the gradient

    ∂L/∂f_i = −2 Σ_j w_ij (σ(r_i − r_j) − σ(f_i − f_j)),

where w is held fixed in the step even if it follows the policy. The mixture weighs a pair by 2 + e^{f_i − f_j} +
e^{f_j − f_i}, which is 1/σ'(f_i − f_j). A step of the right size is then Newton's up to second order, so it converges
quadratically where θ is a logit for each response. The weights of the mixture are not normalised again as they grow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.bradley_terry import draw_labels, draw_wins, fit_rewards, laplacian, pair_distribution
from rlhf_lab.randomness import Stream
from rlhf_lab.training import seeded
from rlhf_lab.worlds import bandit, token_tree


@dataclass(frozen=True, eq=False)
class SamplerSetup:
    """One prompt: its reference, reward and parametrisation, which is a logit for every next token of every prefix.

    Attributes:
        shapes: (prefixes, tokens) of every depth; a bandit has the depth 1.
        log_ref: log π_ref, (K,).
        reward: r, (K,).
        beta: β.
    """

    shapes: tuple[tuple[int, int], ...]
    log_ref: Tensor
    reward: Tensor
    beta: float

    @cached_property
    def log_star(self) -> Tensor:
        """log π*, (K,)."""
        return exact.optimal_policy(self.log_ref, self.reward, self.beta)

    @cached_property
    def start(self) -> Tensor:
        """The parameters of π_ref, (P,)."""
        tables = exact.prefix_tables(self.log_ref.unsqueeze(0), self.shapes)
        return torch.cat([table.flatten() for table in tables])

    def log_policy(self, theta: Tensor) -> Tensor:
        """log π_θ, (R, K), for parameters (R, P)."""
        parts = theta.split([nodes * tokens for nodes, tokens in self.shapes], -1)
        tables = [part.view(-1, *shape).log_softmax(-1) for part, shape in zip(parts, self.shapes, strict=True)]
        return exact.path_sums(tables)

    def implicit_reward(self, theta: Tensor) -> Tensor:
        """f, (R, K)."""
        return self.beta * (self.log_policy(theta) - self.log_ref)

    def weights(self, sampler: str, implicit: Tensor) -> Tensor:
        """The weights of all pairs for policies of the given implicit rewards (R, K): (R, K, K)."""
        uniform = torch.full_like(implicit, -math.log(implicit.shape[-1]))
        if sampler == "mixture":
            gap = (implicit.unsqueeze(-1) - implicit.unsqueeze(-2)).clamp(-10, 10)  # a step that is too long ends here
            return pair_distribution(uniform) * (2 + gap.exp() + (-gap).exp()) / 4
        source = {
            "uniform": uniform,
            "reference": self.log_ref.expand_as(implicit),
            "optimal": self.log_star.expand_as(implicit),
            "current": (self.log_ref + implicit / self.beta).log_softmax(-1),
        }[sampler]
        return pair_distribution(source)

    def sharpness(self, sampler: str) -> float:
        """The largest eigenvalue of the Hessian of the sampler's loss in θ at π_ref."""
        jacobian = torch.autograd.functional.jacobian(
            lambda theta: self.implicit_reward(theta.unsqueeze(0))[0], self.start
        )
        weights = self.weights(sampler, torch.zeros_like(self.log_ref).unsqueeze(0))[0]
        hessian = jacobian.T @ laplacian(weights / 2) @ jacobian  # σ' = ¼, and each pair is counted in both orders
        return float(torch.linalg.eigvalsh(hessian)[-1])

    def regret(self, theta: Tensor) -> Tensor:
        """J(π*) − J(π_θ), (R,)."""
        with torch.no_grad():
            log_policy = self.log_policy(theta).log_softmax(-1)
            return exact.regret(log_policy, self.log_ref, self.reward, self.beta)

    def descend(
        self, sampler: str, rates: Tensor, steps: int, batch: int = 0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Descend with each of several step sizes.

        Args:
            sampler: one of `SAMPLERS`.
            rates: in units of 1/`sharpness`, (R,).
            steps: number of steps.
            batch: sampled labels in a step; 0 takes the exact gradient. With sampled labels the step size falls
                linearly to zero.
            generator: of the labels.

        Returns:
            the regret before every step and after the last one, (steps + 1, R).
        """
        theta = self.start.expand(len(rates), -1).clone().requires_grad_(True)
        size = (rates / self.sharpness(sampler)).unsqueeze(-1)
        wins = exact.preference(self.reward)
        found = [self.regret(theta)]
        for step in range(steps):
            implicit = self.implicit_reward(theta)
            with torch.no_grad():
                weights = self.weights(sampler, implicit)
                miss = wins - torch.sigmoid(implicit.unsqueeze(-1) - implicit.unsqueeze(-2))
                if batch:
                    assert generator is not None
                    slope = torch.stack([
                        self._sampled_slope(w, f, batch, generator) for w, f in zip(weights, implicit, strict=True)
                    ])  # fmt: skip
                else:
                    slope = -2 * (weights * miss).sum(-1)
            (gradient,) = torch.autograd.grad((implicit * slope).sum(), theta)
            with torch.no_grad():
                theta -= size * gradient * ((1 - step / steps) if batch else 1.0)
            found.append(self.regret(theta))
        return torch.stack(found)

    def _sampled_slope(self, weights: Tensor, implicit: Tensor, batch: int, generator: torch.Generator) -> Tensor:
        """An unbiased estimate of ∂L/∂f from sampled labels, (K,)."""
        mass = weights.sum()
        winner, loser = draw_labels(self.reward, weights / mass, batch, generator)
        pull = mass / batch * torch.sigmoid(implicit[loser] - implicit[winner])
        slope = torch.zeros_like(implicit)
        return slope.index_add(0, winner, -pull).index_add(0, loser, pull)

    def label_in_rounds(self, sampler: str, rounds: int, labels: int, generator: torch.Generator) -> list[float]:
        """The regret after each round: the sampler's pairs are labelled, and a table is fitted to all labels so far."""
        implicit = torch.zeros_like(self.log_ref)
        wins = torch.zeros(len(implicit), len(implicit), dtype=torch.float64)
        found = []
        for _ in range(rounds):
            weights = self.weights(sampler, implicit.unsqueeze(0))[0]
            wins = wins + draw_wins(self.reward, weights / weights.sum(), [labels], generator)[0]
            implicit = fit_rewards(wins)[0]
            log_policy = (self.log_ref + implicit / self.beta).log_softmax(-1)
            found.append(exact.regret(log_policy, self.log_ref, self.reward, self.beta).item())
        return found


def sampler_setup(scale: str, seed: int, beta: float) -> SamplerSetup:
    """Make the world of a seed: 10 arms, or the 64 sequences of 3 tokens over 4."""
    world = bandit.random(1, 10, seed) if scale == "bandit" else token_tree.random(4, 3, 1, seed)
    return SamplerSetup(tuple(world.tree.shapes), world.log_ref()[0], world.rewards()[0], beta)


def generator_of(seed: int, part: str) -> torch.Generator:
    """The random numbers of a seed's sampled labels, the same for every sampler."""
    return seeded(seed, Stream.SAMPLER_STEPS if part == "sampled" else Stream.SAMPLER_ROUNDS)
