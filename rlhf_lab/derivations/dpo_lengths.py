r"""Block 2, sum or mean: the minimum of DPO's loss if log-probabilities are averaged over tokens instead of summed.

    r̂(y) = β/|y| · log π_θ(y)/π_ref(y)   maximises the likelihood at   π_mean = π_ref exp(|y| (r + c)/β),

with c(x) such that the probabilities sum to one. This is π* only if every response has one token.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rlhf_lab import exact, losses
from rlhf_lab.derivations.derivation import Derivation, Line, Wrong, gradient
from rlhf_lab.derivations.random_worlds import RandomWorld, random_world


def mean_offset(log_ref: Tensor, reward: Tensor, lengths: Tensor, beta: float) -> Tensor:
    """c(x), (…, 1), for which π_ref exp(|y| (r + c)/β) sums to one, by bisection.

    Args:
        log_ref: log π_ref, (…, K).
        reward: r, (…, K).
        lengths: |y| ≥ 1 in tokens, (…, K).
        beta: β > 0.
    """
    low, high = -reward.amax(-1, keepdim=True), -reward.amin(-1, keepdim=True)  # all exponents ≤ 0, all ≥ 0
    for _ in range(64):
        middle = (low + high) / 2
        large = (log_ref + lengths * (reward + middle) / beta).logsumexp(-1, keepdim=True) > 0
        low, high = torch.where(large, low, middle), torch.where(large, middle, high)
    return (low + high) / 2


@dataclass(frozen=True)
class Lengths:
    """A world whose responses have lengths.

    Attributes:
        world: prompts, rewards, pairs.
        lengths: |y|, (X, K), from 1 to 4; a prompt has at least two different lengths.
    """

    world: RandomWorld
    lengths: Tensor

    @cached_property
    def offset(self) -> Tensor:
        """c(x), (X, 1)."""
        w = self.world
        return mean_offset(w.log_ref, w.reward, self.lengths, w.beta)

    @cached_property
    def log_mean(self) -> Tensor:
        """log π_mean, (X, K)."""
        w = self.world
        return w.log_ref + self.lengths * (w.reward + self.offset) / w.beta

    def loss(self, log_policy: Tensor) -> Tensor:
        """DPO's loss with mean log-ratios, every pair and label at its probability, (X,)."""
        w = self.world
        ratio = (log_policy - w.log_ref) / self.lengths
        values = exact.preference(w.reward) * losses.dpo(ratio.unsqueeze(-1), ratio.unsqueeze(-2), w.beta)
        return (w.pair_weights * (values + values.transpose(-1, -2))).sum((-1, -2))


def random_lengths(generator: torch.Generator) -> Lengths:
    """A random world with lengths from 1 to 4; the first two responses have different lengths."""
    world = random_world(generator)
    lengths = torch.randint(1, 5, world.reward.shape, generator=generator)
    lengths[:, 1] = lengths[:, 0] % 4 + 1
    return Lengths(world, lengths.double())


def _gaps(table: Tensor) -> Tensor:
    return table.unsqueeze(-1) - table.unsqueeze(-2)


_PER_TOKEN = r"\tfrac{\beta}{|y|}\log\tfrac{\pi_\text{mean}(y)}{\pi_\text{ref}(y)}"

mean_optimum = Derivation(
    "mean-optimum",
    "The minimum of DPO's loss with means instead of sums",
    lines=(
        Line(
            r"1",
            r"$c(x)$ is chosen so that $\pi_\text{mean} = \pi_\text{ref}\,e^{|y|(r+c)/\beta}$ is a policy; "
            "it replaces $-\\beta\\log Z$, but is multiplied by the length",
            lambda s: 1.0,
            left=r"\sum_y \pi_\text{ref}(y)\,e^{|y|\,(r(y) + c)/\beta}",
            left_value=lambda s: s.log_mean.exp().sum(-1),
        ),
        Line(
            r"r(y) + c",
            "take the logarithm, divide by the length: the implicit reward per token",
            lambda s: s.world.reward + s.offset,
            left=_PER_TOKEN,
            left_value=lambda s: s.world.beta / s.lengths * (s.log_mean - s.world.log_ref),
        ),
        Line(
            r"p^*(y_1\succ y_2)",
            "$c$ cancels within a pair, so the labels are predicted correctly",
            lambda s: exact.preference(s.world.reward),
            left=r"\sigma\big(\hat r_\text{mean}(y_1) - \hat r_\text{mean}(y_2)\big)",
            left_value=lambda s: torch.sigmoid(
                _gaps(s.world.beta / s.lengths * (s.log_mean.log_softmax(-1) - s.world.log_ref))
            ),
        ),
        Line(
            r"0",
            "so the likelihood has its maximum there; autograd computes the left side",
            lambda s: 0.0,
            left=r"\nabla_\theta\mathcal{L}_\text{mean}\,\Big|_{\pi_\theta = \pi_\text{mean}}",
            left_value=lambda s: gradient(lambda theta: s.loss(theta.log_softmax(-1)), s.log_mean),
        ),
        Line(
            r"\frac{(|y|-1)\,r(y) + |y|\,c}{\beta} + \log Z",
            r"compare with $\log\pi^* = \log\pi_\text{ref} + r/\beta - \log Z$: the difference is zero only if all "
            "lengths are 1",
            lambda s: (
                ((s.lengths - 1) * s.world.reward + s.lengths * s.offset) / s.world.beta + s.world.log_z.unsqueeze(-1)
            ),
            left=r"\log\frac{\pi_\text{mean}(y)}{\pi^*(y)}",
            left_value=lambda s: s.log_mean - s.world.log_star,
        ),
    ),
    wrong=(
        Wrong(
            r"\frac{r(y) + c}{|y|}",
            "the length is on the wrong side",
            lambda s: (s.world.reward + s.offset) / s.lengths,
            2,
        ),
        Wrong(
            r"0",
            "“a mean is only a sum on another scale”, but the scale depends on the length, which gives another policy",
            lambda s: torch.zeros_like(s.log_mean),
            5,
        ),
        Wrong(
            r"\frac{(|y|-1)\,r(y)}{\beta}",
            "the normaliser is missing; $c$ cannot be left out as $Z$ can",
            lambda s: (s.lengths - 1) * s.world.reward / s.world.beta,
            5,
        ),
    ),
    source="Derived here from Rafailov et al. 2023, section 4; Meng et al. 2024 (SimPO) take means, without a "
    "reference.",
    world=random_lengths,
)
