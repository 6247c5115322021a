r"""Evaluation of a policy from its samples, with standard errors.

Responses to one prompt are correlated. Therefore a prompt with its G responses counts as one draw, and standard errors
are computed over prompts (cluster standard errors; Liang and Zeger 1986). The error of a ratio of two means follows by
the delta method.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlhf_lab import kl
from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError, check_beta
from rlhf_lab.policies.base import Policy, Reward


@dataclass(frozen=True)
class Estimate:
    """A mean over sampled responses, and its standard error."""

    mean: float
    error: float
    freedom: float = math.inf
    """Degrees of freedom of the error, the number of prompts − 1; infinite for the normal distribution."""

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.error:.2g}"

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The confidence interval (low, high) of this level, by Student's t distribution."""
        half = quantile(level, self.freedom) * self.error
        return self.mean - half, self.mean + half

    def scaled(self, factor: float) -> Estimate:
        """The estimate of `factor` times the quantity."""
        return Estimate(self.mean * factor, self.error * abs(factor), self.freedom)


def quantile(level: float, freedom: float) -> float:
    """The half width of the two-sided interval of this level, in standard errors."""
    from scipy import stats

    if not 0 < level < 1:
        raise LabError(f"level must lie between 0 and 1, not {level}. For example, 0.95 is a 95% interval.")
    one_sided = 0.5 + level / 2
    return float(stats.norm.ppf(one_sided) if math.isinf(freedom) else stats.t.ppf(one_sided, freedom))


def over_prompts(values: Tensor, weight: Tensor | None = None) -> Estimate:
    """Compute Σ values / Σ weight with its standard error over prompts. Each row is one draw.

    Args:
        values: one number per response, (B, G), or per prompt, (B,), for at least two prompts.
        weight: the denominators, same shape, for example numbers of tokens where `values` are sums over tokens. None
            means 1 for each value and gives the plain mean.

    Raises:
        LabError: fewer than two prompts, or weights whose sum is zero.
    """
    if len(values) < 2:
        raise LabError("A standard error over prompts needs at least two prompts.")
    top = values.detach().cpu().double().reshape(len(values), -1)
    under = torch.ones_like(top) if weight is None else weight.cpu().double().reshape(top.shape)
    total = under.sum()
    if not total > 0:
        raise LabError("All weights are zero, so there is nothing to average over.")
    mean = top.sum() / total
    # Delta method: the influence of a prompt on the ratio is (its values − the ratio × its weights) / total.
    moves = (top - mean * under).sum(-1) / total
    count = len(moves)
    error = (moves.square().sum() * count / (count - 1)).sqrt()
    return Estimate(mean.item(), error.item(), count - 1)


@dataclass(frozen=True)
class Sampled:
    """The numbers of a policy, estimated from its samples."""

    reward: Estimate
    kl: Estimate
    objective: Estimate


@torch.no_grad()
def estimate(
    policy: Policy,
    reference: Policy,
    reward: Reward,
    prompts: Tokens,
    beta: float,
    num_samples: int = 8,
    generator: torch.Generator | None = None,
) -> Sampled:
    """Estimate E[r], KL(π‖π_ref) by k1, and J from samples. Standard errors are over prompts.

    Args:
        policy: any policy.
        reference: π_ref.
        reward: scores (B, G).
        prompts: (B, P), at least two.
        beta: β > 0.
        num_samples: G, responses per prompt.
        generator: source of randomness, on the policy's device.

    Raises:
        LabError: fewer than two prompts, for which there is no standard error.
    """
    beta = check_beta(beta)
    if len(prompts) < 2:
        raise LabError("A standard error over prompts needs at least two prompts.")
    y = policy.sample(prompts, num_samples, generator)
    ratio = kl.k1(policy.log_prob(prompts, y), reference.log_prob(prompts, y)).double()
    score = reward(prompts, y).to(ratio.device).double()

    return Sampled(over_prompts(score), over_prompts(ratio), over_prompts(score - beta * ratio))


def mean_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """The mean of independent runs and its Student-t interval, (mean, low, high). The ends are NaN for one run.

    Args:
        values: one number per run, shape (n,).
        level: coverage of the interval if the numbers are normally distributed.
    """
    from scipy import stats

    values = np.asarray(values, dtype=float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf(0.5 + level / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half
