"""The random worlds on which both sides of a derivation's lines are computed.

Small, float64, and of every kind that the lines may meet: two or three prompts, two to six responses, β from
0.25 to 4, rewards and logits of order one. What a world derives (π*, Z) is computed from the definition, term by
term, not by `rlhf_lab.exact`, so that a line which compares with the library compares two things.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomWorld:
    """X prompts, K responses.

    Attributes:
        log_ref: log π_ref, (X, K).
        reward: r, (X, K).
        beta: β.
        logits: θ of the policy π_θ, (X, K).
        offset: f(x), a function of the prompt alone, (X, 1).
        chosen: y_w of one pair a prompt, (X,).
        rejected: y_l, never y_w, (X,).
        pair_weights: μ, (X, K, K), symmetric, zero diagonal, summing to 1: the share of labels on each pair.
        epsilon: ε in (0.05, 0.4), the rate of flipped labels.
        tau: τ of IPO, positive.
        threshold: τ of the filter, (X, 1): at least one response passes, at least one does not.
        n: number of samples of a group or of best-of-n, 2 or 3.
    """

    log_ref: Tensor
    reward: Tensor
    beta: float
    logits: Tensor
    offset: Tensor
    chosen: Tensor
    rejected: Tensor
    pair_weights: Tensor
    epsilon: float
    tau: float
    threshold: Tensor
    n: int

    @property
    def log_policy(self) -> Tensor:
        """log π_θ, (X, K)."""
        return self.logits.log_softmax(-1)

    @property
    def policy(self) -> Tensor:
        """π_θ, (X, K)."""
        return self.log_policy.exp()

    @property
    def ref(self) -> Tensor:
        """π_ref, (X, K)."""
        return self.log_ref.exp()

    @property
    def tilted(self) -> Tensor:
        """π_ref exp(r/β), (X, K): π* before it is normalised."""
        return self.ref * torch.exp(self.reward / self.beta)

    @property
    def z(self) -> Tensor:
        """Z(x) = Σ_y π_ref(y|x) exp(r/β), (X, 1)."""
        return self.tilted.sum(-1, keepdim=True)

    @property
    def star(self) -> Tensor:
        """π* = π_ref exp(r/β) / Z, (X, K)."""
        return self.tilted / self.z

    @property
    def log_star(self) -> Tensor:
        """log π*, (X, K)."""
        return self.star.log()

    @property
    def log_z(self) -> Tensor:
        """log Z(x), (X,)."""
        return self.z.squeeze(-1).log()

    @property
    def log_ratio(self) -> Tensor:
        """log π_θ/π_ref, (X, K)."""
        return self.log_policy - self.log_ref

    def of_pair(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """The entries of a (X, K) table at y_w and at y_l, (X,) each."""
        rows = torch.arange(len(table))
        return table[rows, self.chosen], table[rows, self.rejected]


def random_world(generator: torch.Generator) -> RandomWorld:
    """A world by its generator: same generator, same world."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), dtype=torch.float64, generator=generator).item()

    def whole(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    prompts, size = whole(2, 3), whole(2, 6)
    reward = normal(prompts, size)
    order = torch.stack([torch.randperm(size, generator=generator) for _ in range(prompts)])
    weights = normal(prompts, size, size).exp() * (1 - torch.eye(size, dtype=torch.float64))
    weights = weights + weights.transpose(-1, -2)
    ranked = reward.sort(-1).values
    below = whole(1, size - 1)  # so many responses do not pass
    return RandomWorld(
        log_ref=normal(prompts, size).log_softmax(-1),
        reward=reward,
        beta=4.0 ** uniform(-1, 1),
        logits=normal(prompts, size),
        offset=normal(prompts, 1),
        chosen=order[:, 0],
        rejected=order[:, 1],
        pair_weights=weights / weights.sum((-1, -2), keepdim=True),
        epsilon=uniform(0.05, 0.4),
        tau=4.0 ** uniform(-1, 1),
        threshold=(ranked[:, below - 1] + ranked[:, below]).unsqueeze(-1) / 2,
        n=whole(2, 3),
    )
