r"""Importance-sampling estimates of the distance from a policy to π*, and a test of whether they can be trusted.

π*(y|x) = π_ref(y|x) exp(r(x, y)/β) / Z(x) is known up to Z(x), so expectations under it are weighted means. For each
prompt there are n samples, n_ref from π_ref and n_θ from π_θ. With their mixture q = (n_ref π_ref + n_θ π_θ)/n as the
proposal distribution (the balance heuristic; Veach and Guibas 1995),

    w = π_ref(y) exp(r/β) / q(y),     v = π_θ(y) / q(y),     g = r/β + log π_ref − log π_θ,     log Ẑ = log mean w
    KL(π*‖π_θ) = E_π*[g] − log Z   ≈   Σ w g / Σ w − log Ẑ
    KL(π_θ‖π*) = log Z − E_πθ[g]   ≈   log Ẑ − Σ v g / Σ v
    regret     = J(π*) − J(π_θ)    =   β KL(π_θ‖π*)

The standard errors follow by the delta method. The leading bias is of order 1/n and does not become smaller with more
prompts. It is estimated by the same expansion and subtracted (Owen, "Monte Carlo theory, methods and examples", 2.7,
9.2, 9.3). Samples of both policies are best, because samples of π_θ alone rarely contain the responses to which π*
gives much more probability than π_θ.

The estimates fail if a few samples have nearly all the weight. The effective sample size (Σ w)²/Σ w² (Kong 1992) shows
this, and an estimate with fewer than `ENOUGH` effective samples is not trusted. No test on the samples can show that a
response with a large reward was never drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError, check_beta, check_finite
from rlhf_lab.evaluation.sampled import Estimate, over_prompts
from rlhf_lab.policies.base import Policy, Reward
from rlhf_lab.randomness import Stream
from rlhf_lab.training import seeded

ENOUGH = 20.0
"""The effective sample size of a prompt below which an estimate is not trusted. Below it, intervals on random bandits
and trees cover the true value clearly less often than their level (tests/evaluation/test_importance.py)."""
SHARE = 0.05
"""The share of prompts that may have an effective sample size below `ENOUGH`."""


@dataclass(frozen=True, eq=False)
class Draws:
    """Samples of one policy, G for each of B prompts.

    Attributes:
        rewards: r(x, y), (B, G).
        log_ref: log π_ref(y|x), (B, G), nats.
        log_policy: log π_θ(y|x), (B, G), nats.
    """

    rewards: Tensor
    log_ref: Tensor
    log_policy: Tensor

    def __post_init__(self) -> None:
        shapes = {name: tuple(getattr(self, name).shape) for name in ("rewards", "log_ref", "log_policy")}
        if len(set(shapes.values())) > 1 or self.rewards.ndim != 2 or self.rewards.shape[1] < 2:
            raise LabError(f"rewards, log_ref and log_policy must all be (B, G) with G at least 2, not {shapes}.")
        for name in shapes:
            check_finite(getattr(self, name), name)


@dataclass(frozen=True)
class Distance:
    """The estimated distance from π_θ to π*, as means over prompts."""

    log_partition: Estimate
    """log Z(x), nats."""
    kl_to_optimal: Estimate
    """KL(π_θ‖π*), nats."""
    kl_from_optimal: Estimate
    """KL(π*‖π_θ), nats."""
    regret: Estimate
    """J(π*) − J(π_θ), in units of reward."""
    effective: float
    """The effective sample size, mean over prompts."""
    smallest: float
    """The smallest effective sample size of all prompts."""
    samples: int
    """Samples per prompt."""
    trusted: bool
    """Whether the standard errors and intervals can be trusted."""
    why: str
    """The reason, in one or two sentences."""

    def __str__(self) -> str:
        lines = [
            f"KL(π‖π*) {self.kl_to_optimal}   KL(π*‖π) {self.kl_from_optimal}   regret {self.regret}",
            f"effective samples of {self.samples}: {self.effective:.1f} (minimum {self.smallest:.1f})",
            ("Trusted: " if self.trusted else "Not to be trusted: ") + self.why,
        ]
        return "\n".join(lines)


def covariance(u: Tensor, v: Tensor, sizes: Sequence[int]) -> Tensor:
    """The covariance of the means of u and v (B, n) over the samples of a prompt, (B,).

    Args:
        u: one number per sample, (B, n).
        v: the same for the other mean.
        sizes: the numbers of samples from each source, in their order along n. Only the variance within each source
            counts.
    """
    out = torch.zeros(len(u), dtype=torch.float64)
    for a, b in zip(u.split(list(sizes), 1), v.split(list(sizes), 1), strict=True):
        spread = (a - a.mean(1, keepdim=True)) * (b - b.mean(1, keepdim=True))
        out += a.shape[1] * spread.sum(1) / (a.shape[1] - 1) / u.shape[1] ** 2
    return out


class Weighted(NamedTuple):
    """The self-normalised importance-sampling mean of each prompt.

    Attributes:
        mean: (B,), without the leading bias.
        moves: (B, n), the influence of each sample on the mean, with mean zero.
        weights: (B, n), with mean one.
        effective: (B,), the effective sample size.
    """

    mean: Tensor
    moves: Tensor
    weights: Tensor
    effective: Tensor


def weighted(log_w: Tensor, values: Tensor, sizes: Sequence[int]) -> Weighted:
    """Compute the mean of `values` under the weights exp(log_w), which are known up to a factor for each prompt.

    Args:
        log_w: logarithms of the weights, (B, n).
        values: (B, n).
        sizes: as in `covariance`.
    """
    w = log_w.softmax(1) * log_w.shape[1]
    mean = (w * values).mean(1)
    moves = w * (values - mean[:, None])
    return Weighted(mean + covariance(moves, w, sizes), moves, w, log_w.shape[1] ** 2 / w.square().sum(1))


def distance_to_optimal(
    beta: float,
    from_reference: Draws | None = None,
    from_policy: Draws | None = None,
    prompts: Literal["drawn", "fixed"] = "drawn",
) -> Distance:
    """Estimate the distance from samples whose rewards and log-probabilities are known.

    Args:
        beta: β > 0 of the objective.
        from_reference: samples of π_ref. Give these, `from_policy`, or preferably both.
        from_policy: samples of π_θ for the same prompts. G may differ.
        prompts: "drawn" if the prompts are a sample of a larger population; the standard error is then over prompts.
            "fixed" if they are the whole population; the error is then that of sampling the responses.

    Raises:
        LabError: no samples; different prompts; numbers that are not finite; one prompt where they are "drawn".
    """
    beta = check_beta(beta)
    parts = [part for part in (from_reference, from_policy) if part is not None]
    if not parts:
        raise LabError("Pass from_reference=Draws(…), from_policy=Draws(…), or both.")
    if len({len(part.rewards) for part in parts}) > 1:
        raise LabError(
            f"The two sets have samples of {' and '.join(str(len(part.rewards)) for part in parts)} prompts. "
            f"Give samples of the same prompts."
        )
    if prompts not in ("drawn", "fixed"):
        raise LabError(f"prompts must be 'drawn' or 'fixed', not {prompts!r}.")
    reward, log_ref, log_policy = (
        torch.cat([getattr(part, name).detach().cpu().double() for part in parts], 1)
        for name in ("rewards", "log_ref", "log_policy")
    )
    sizes = [part.rewards.shape[1] for part in parts]
    number = sum(sizes)
    sources = [log_ref] if from_reference is not None else []
    sources += [log_policy] if from_policy is not None else []
    log_q = torch.stack([s + math.log(n / number) for s, n in zip(sources, sizes, strict=True)]).logsumexp(0)

    g = reward / beta + log_ref - log_policy
    log_w = reward / beta + log_ref - log_q
    star = weighted(log_w, g, sizes)
    w, ess = star.weights, star.effective
    log_z = log_w.logsumexp(1) - math.log(number)
    z_bias = 0.5 * covariance(w, w, sizes)
    # With samples of π_θ alone these weights are one, and this is the plain mean.
    mean, policy_moves, _, other = weighted(log_policy - log_q, g, sizes)
    ess = torch.minimum(ess, other)

    def over(values: Tensor, moves: Tensor) -> Estimate:
        if prompts == "drawn":
            return over_prompts(values)
        return Estimate(values.mean().item(), covariance(moves, moves, sizes).sum().sqrt().item() / len(values))

    log_z_best = log_z + z_bias
    to = over(log_z_best - mean, w - 1 - policy_moves)
    trusted, why = _verdict(ess, z_bias, to)
    return Distance(
        log_partition=over(log_z_best, w - 1),
        kl_to_optimal=to,
        kl_from_optimal=over(star.mean - log_z_best, star.moves - (w - 1)),
        regret=to.scaled(beta),
        effective=ess.mean().item(),
        smallest=ess.min().item(),
        samples=number,
        trusted=trusted,
        why=why,
    )


def _verdict(ess: Tensor, bias: Tensor, found: Estimate) -> tuple[bool, str]:
    below = (ess < ENOUGH).double().mean().item()
    if below > SHARE:
        return False, (
            f"a few samples have nearly all the weight. {below:.0%} of prompts have fewer than {ENOUGH:g} effective "
            f"samples (minimum {ess.min().item():.1f}). Draw more responses, also from the policy, or use a larger "
            f"beta."
        )
    correction = bias.mean().item()
    if correction > max(found.error, 0.02):
        return False, (
            f"the correction for few samples ({correction:.2g} nats) is larger than the error ({found.error:.2g}). "
            f"Draw more responses to each prompt."
        )
    many = f"{1 - below:.0%} of prompts have" if below else "every prompt has"
    return True, f"{many} {ENOUGH:g} effective samples or more."


@torch.no_grad()
def distance(
    policy: Policy,
    reference: Policy,
    reward: Reward,
    prompts: Tokens,
    beta: float,
    num_samples: int = 64,
    seed: int = 0,
    batch_size: int = 16,
    prompts_are: Literal["drawn", "fixed"] = "drawn",
    progress: bool = False,
) -> Distance:
    """Sample from both policies and estimate the distance from `policy` to π*. See `distance_to_optimal`.

    Args:
        policy: π_θ.
        reference: π_ref.
        reward: r, scores (B, G); π* is optimal for this reward.
        prompts: (N, P).
        beta: β > 0.
        num_samples: responses that are drawn from each policy for each prompt.
        seed: seed of the samples.
        batch_size: prompts per batch.
        prompts_are: see `distance_to_optimal`.
        progress: show a progress bar.
    """
    check_beta(beta)
    drawn: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {"reference": [], "policy": []}
    for start in tqdm(range(0, len(prompts), batch_size), desc="distance", leave=False, disable=not progress):
        x = prompts[start : start + batch_size]
        for number, (name, source) in enumerate((("reference", reference), ("policy", policy))):
            y = source.sample(
                x, num_samples, seeded(seed, Stream.IMPORTANCE_SAMPLES, number, start, device=source.device)
            )
            scored = (reward(x, y), reference.log_prob(x, y), policy.log_prob(x, y))
            drawn[name].append((scored[0].cpu(), scored[1].cpu(), scored[2].cpu()))
    both = [Draws(*(torch.cat(column) for column in zip(*parts, strict=True))) for parts in drawn.values()]
    return distance_to_optimal(beta, both[0], both[1], prompts_are)
