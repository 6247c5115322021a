r"""How good a policy is from its samples, with standard errors.

A prompt with its G responses is one draw: responses to one prompt are alike, so errors are over prompts (a cluster
standard error; Liang and Zeger 1986, for means). Ratios of two such means get theirs by the delta method.
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
    """Degrees of freedom of the error: draws (prompts) − 1; infinite where the normal distribution serves."""

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.error:.2g}"

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The interval (low, high) that covers the true value in `level` of all repetitions, by Student's t."""
        half = quantile(level, self.freedom) * self.error
        return self.mean - half, self.mean + half

    def scaled(self, factor: float) -> Estimate:
        """The estimate of `factor` times the quantity."""
        return Estimate(self.mean * factor, self.error * abs(factor), self.freedom)


def quantile(level: float, freedom: float) -> float:
    """How many standard errors the two-sided interval of `level` reaches to each side."""
    from scipy import stats

    if not 0 < level < 1:
        raise LabError(f"level must lie between 0 and 1, not {level}: 0.95 is a 95% interval.")
    one_sided = 0.5 + level / 2
    return float(stats.norm.ppf(one_sided) if math.isinf(freedom) else stats.t.ppf(one_sided, freedom))


def over_prompts(values: Tensor, weight: Tensor | None = None) -> Estimate:
    """Σ values / Σ weight with its standard error over prompts, each row being one draw.

    Args:
        values: one number a response, (B, G), or a prompt, (B,). At least two prompts.
        weight: what each number is shared over, same shape (tokens, where `values` are sums over tokens); None
            for 1 each, which gives the plain mean.

    Raises:
        LabError: fewer than two prompts, or weights that sum to nothing.
    """
    if len(values) < 2:
        raise LabError("A standard error over prompts needs at least two prompts.")
    top = values.detach().cpu().double().reshape(len(values), -1)
    under = torch.ones_like(top) if weight is None else weight.cpu().double().reshape(top.shape)
    total = under.sum()
    if not total > 0:
        raise LabError("There is nothing to average over: all weights are zero.")
    mean = top.sum() / total
    # The delta method: each prompt moves the ratio by (its values − the ratio × its weights) / total.
    moves = (top - mean * under).sum(-1) / total
    count = len(moves)
    error = (moves.square().sum() * count / (count - 1)).sqrt()
    return Estimate(mean.item(), error.item(), count - 1)


@dataclass(frozen=True)
class Sampled:
    """A policy's numbers from its samples."""

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
    """E[r], KL(π‖π_ref) by k1, and J, from samples; errors are over prompts, each prompt's mean being one draw.

    Args:
        policy: any policy.
        reference: π_ref.
        reward: scores (B, G).
        prompts: (B, P), at least two.
        beta: β > 0.
        num_samples: G, responses a prompt.
        generator: source of randomness, on the policy's device.

    Raises:
        LabError: fewer than two prompts, which leave no standard error.
    """
    beta = check_beta(beta)
    if len(prompts) < 2:
        raise LabError("A standard error over prompts needs at least two prompts.")
    y = policy.sample(prompts, num_samples, generator)
    ratio = kl.k1(policy.log_prob(prompts, y), reference.log_prob(prompts, y)).double()
    score = reward(prompts, y).to(ratio.device).double()

    return Sampled(over_prompts(score), over_prompts(ratio), over_prompts(score - beta * ratio))


def mean_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """Mean of independent runs and its Student-t interval: (mean, low, high). One run has no interval: NaN ends.

    Args:
        values: one number a run, shape (n,).
        level: coverage of the interval if the runs' numbers are normal.
    """
    from scipy import stats

    values = np.asarray(values, dtype=float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf(0.5 + level / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half
