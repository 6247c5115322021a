r"""How far is a policy from π*, where π* cannot be enumerated? Weighted samples, and whether to believe them.

π*(y|x) = π_ref(y|x) exp(r(x, y)/β) / Z(x) is known up to Z(x), so that expectations under it are weighted means.
With n samples of a prompt, n_ref from π_ref and n_θ from π_θ, and q = (n_ref π_ref + n_θ π_θ)/n, the mixture that
they come from (the balance heuristic: Veach and Guibas 1995),

    w = π_ref(y) exp(r/β) / q(y),     v = π_θ(y) / q(y),     g = r/β + log π_ref − log π_θ,     log Ẑ = log mean w
    KL(π*‖π_θ) = E_π*[g] − log Z   ≈   Σ w g / Σ w − log Ẑ
    KL(π_θ‖π*) = log Z − E_πθ[g]   ≈   log Ẑ − Σ v g / Σ v
    regret     = J(π*) − J(π_θ)    =   β KL(π_θ‖π*)

Errors by the delta method; the leading bias, which is of order 1/n and does not shrink with more prompts, is
estimated by the same expansion and taken off (Owen, "Monte Carlo theory, methods and examples", 2.7, 9.2, 9.3).
Samples of both policies are best: those of π_θ alone seldom show a response that π_θ hardly gives and π* never.

All of it fails when a few samples carry all the weight. The effective sample size (Σ w)²/Σ w² (Kong 1992) says
so, and below `ENOUGH` the verdict is "not to be trusted". It cannot say what no sample can: that a response of
great reward was never drawn.
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
"""Effective samples of a prompt below which an estimate is not trusted. Below it, intervals on random bandits and
trees cover the true value clearly less often than they say (tests/evaluation/test_importance.py)."""
SHARE = 0.05
"""Share of prompts that may lie below `ENOUGH`."""


@dataclass(frozen=True, eq=False)
class Draws:
    """Samples of one policy, G to each of B prompts.

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
            raise LabError(f"rewards, log_ref and log_policy must all be (B, G) with G of 2 at least, not {shapes}.")
        for name in shapes:
            check_finite(getattr(self, name), name)


@dataclass(frozen=True)
class Distance:
    """How far π_θ is from π*, means over prompts."""

    log_partition: Estimate
    """log Z(x), nats."""
    kl_to_optimal: Estimate
    """KL(π_θ‖π*), nats."""
    kl_from_optimal: Estimate
    """KL(π*‖π_θ), nats."""
    regret: Estimate
    """J(π*) − J(π_θ), in units of reward."""
    effective: float
    """Effective samples of a prompt, mean over prompts."""
    smallest: float
    """Effective samples of the prompt that has fewest."""
    samples: int
    """Samples of a prompt."""
    trusted: bool
    """Whether errors and intervals may be taken at their word."""
    why: str
    """One sentence: why, or why not."""

    def __str__(self) -> str:
        lines = [
            f"KL(π‖π*) {self.kl_to_optimal}   KL(π*‖π) {self.kl_from_optimal}   regret {self.regret}",
            f"effective samples of {self.samples}: {self.effective:.1f} (fewest {self.smallest:.1f})",
            ("Trusted: " if self.trusted else "Not to be trusted: ") + self.why,
        ]
        return "\n".join(lines)


def covariance(u: Tensor, v: Tensor, sizes: Sequence[int]) -> Tensor:
    """Covariance of the means of u and v (B, n) over a prompt's samples, (B,).

    `sizes` are the numbers of samples from each source, side by side along n: only spread within a source counts.
    """
    out = torch.zeros(len(u), dtype=torch.float64)
    for a, b in zip(u.split(list(sizes), 1), v.split(list(sizes), 1), strict=True):
        spread = (a - a.mean(1, keepdim=True)) * (b - b.mean(1, keepdim=True))
        out += a.shape[1] * spread.sum(1) / (a.shape[1] - 1) / u.shape[1] ** 2
    return out


class Weighted(NamedTuple):
    """A self-normalised mean of each prompt.

    Attributes:
        mean: (B,), the leading bias taken off.
        moves: (B, n), how each sample moves the mean (its influence, of mean zero).
        weights: (B, n), of mean one.
        effective: (B,), the effective sample size.
    """

    mean: Tensor
    moves: Tensor
    weights: Tensor
    effective: Tensor


def weighted(log_w: Tensor, values: Tensor, sizes: Sequence[int]) -> Weighted:
    """Mean of `values` (B, n) under weights exp(log_w), (B, n), known up to a factor of each prompt."""
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
    """The distance from samples whose rewards and log-probabilities are known.

    Args:
        beta: β > 0 of the objective.
        from_reference: samples of π_ref. Either these, or `from_policy`, or both (best).
        from_policy: samples of π_θ for the same prompts; G may differ.
        prompts: "drawn": the prompts are a sample of those one cares about, and the error is over prompts. "fixed":
            they are all one cares about, and the error is that of sampling responses alone.

    Raises:
        LabError: no samples; different prompts; numbers that are not finite; one prompt where they are "drawn".
    """
    beta = check_beta(beta)
    parts = [part for part in (from_reference, from_policy) if part is not None]
    if not parts:
        raise LabError("Pass from_reference=Draws(…), from_policy=Draws(…), or both.")
    if len({len(part.rewards) for part in parts}) > 1:
        raise LabError(
            f"Samples of {' and '.join(str(len(part.rewards)) for part in parts)} prompts do not go together."
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
    # Under samples of π_θ alone these weights are one, and this is the plain mean.
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
            f"a few samples carry the weight: {below:.0%} of prompts have fewer than {ENOUGH:g} effective samples "
            f"(fewest {ess.min().item():.1f}). Draw more responses, also from the policy, or take a larger beta."
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
    """Sample both policies, and estimate how far `policy` is from π*. See `distance_to_optimal`.

    Args:
        policy: π_θ.
        reference: π_ref.
        reward: r, scores (B, G); π* is the optimum for this reward.
        prompts: (N, P).
        beta: β > 0.
        num_samples: responses drawn from each of the two, for each prompt.
        seed: of the samples.
        batch_size: prompts at a time.
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
