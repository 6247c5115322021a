r"""What a budget of labels buys, by simulation on finite worlds: shared by experiment, planner, explorer, notebook 14.

Everything is in units that compare over worlds: N · regret over the price of the best design. It is the number of
labels spent over the number that the best design, which knows the rewards, needs in the limit for the same regret.

Demonstrations are draws from π_demo ∝ π_0 exp(r/β_demo). They say of the rewards what log π_demo = log π_0 + r/β_demo
says, so D of them carry the information D (diag(π_demo) − π_demo π_demoᵀ)/β_demo², and a purchase of both leaves

    regret → tr(Σ (D Σ_demo/β_demo² + N I(μ))⁺) / (2β).

The reference of the objective stays π_0 all the while: SFT on demonstrations is a way to learn, and does not move
what is to be learned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rlhf_lab import bradley_terry, exact
from rlhf_lab.algorithms import active, label_rounds
from rlhf_lab.errors import LabError, check_beta, check_positive
from rlhf_lab.randomness import Stream
from rlhf_lab.training import seeded

Pairs = Literal["reference", "uniform", "optimal", "design", "online", "active"]
PAIRS: dict[str, str] = {
    "reference": "two draws from π_ref",
    "uniform": "all pairs evenly",
    "optimal": "two draws from π* (knows the rewards)",
    "design": "best design (knows the rewards)",
    "online": "two draws from the present policy",
    "active": "active: the next labels that matter most",
}
"""Where pairs come from, and what to call it."""
LOOK = {
    "reference": "reference", "uniform": "sft", "optimal": "optimal", "design": "best-of-n", "online": "online",
    "active": "policy",
}  # fmt: skip
"""The style of each, see `figures.style`."""
SHORT = {
    "reference": "π_ref", "uniform": "evenly", "optimal": "π*", "design": "best design", "online": "present policy",
    "active": "active",
}  # fmt: skip
"""What to call it where there is little room."""
IN_THE_LIMIT = {"online": "optimal", "active": "design"}
"""What those that learn come to ask, when they know the rewards in the end."""
ORACLES = ("optimal", "design")
"""Those that know the true rewards: bounds, not methods."""


@dataclass(frozen=True, eq=False)
class Finite:
    """Finite worlds, one a row: log π_ref and r*, (W, K) each, and β of the objective."""

    log_ref: Tensor
    reward: Tensor
    beta: float

    def repeat(self, runs: int) -> Finite:
        """Every world `runs` times, all worlds first: (runs · W, K)."""
        return Finite(self.log_ref.repeat(runs, 1), self.reward.repeat(runs, 1), self.beta)

    def regret(self, rewards: Tensor) -> Tensor:
        """What the policy ∝ π_ref exp(r̂/β) loses, (W,)."""
        log_hat = exact.optimal_policy(self.log_ref, rewards, self.beta)
        return exact.regret(log_hat, self.log_ref, self.reward, self.beta).clamp(min=0)

    @cached_property
    def best_design(self) -> Tensor:
        """The best design, (W, K, K), certified to 0.5%."""
        return exact.optimal_pair_design(self.log_ref, self.reward, self.beta, tolerance=5e-3)

    def design(self, pairs: str) -> Tensor:
        """μ of a source of pairs that is fixed beforehand, (W, K, K)."""
        if pairs == "reference":
            return bradley_terry.pair_distribution(self.log_ref)
        if pairs == "optimal":
            return bradley_terry.pair_distribution(exact.optimal_policy(self.log_ref, self.reward, self.beta))
        if pairs == "uniform":
            return bradley_terry.pair_distribution(torch.zeros_like(self.log_ref))
        if pairs == "design":
            return self.best_design
        raise LabError(f"Pairs '{pairs}' are not fixed beforehand; there are {', '.join(PAIRS)}.")

    def price(self, pairs: str) -> Tensor:
        """The limit of N · regret, (W,); of sources that learn, that of what they come to ask in the end."""
        pairs = IN_THE_LIMIT.get(pairs, pairs)
        return exact.label_price(self.log_ref, self.reward, self.beta, self.design(pairs))


def choice(world: Finite, pairs: str, settings: active.Active | None = None) -> label_rounds.Choose:
    """How a source chooses its pairs.

    Raises:
        LabError: an unknown source.
    """
    if pairs not in PAIRS:
        raise LabError(f"There are no pairs '{pairs}'; there are {', '.join(PAIRS)}.")
    if pairs == "active":
        return active.choose_actively(world.log_ref, world.beta, settings or active.Active())
    if pairs == "online":
        return label_rounds.choose_from_policy(world.log_ref, world.beta)
    return label_rounds.choose_by_design(world.design(pairs))


def simulate(
    world: Finite,
    pairs: str,
    totals: Sequence[int],
    runs: int,
    generator: torch.Generator,
    prior: float = 3.0,
    settings: active.Active | None = None,
) -> Tensor:
    """Regret after each of `totals` labels, (runs, len(totals), W): labels afresh in each run.

    Args:
        world: W worlds.
        pairs: a source, see `PAIRS`.
        totals: labels after each round; sources that do not learn only draw on.
        runs: repetitions.
        generator: of labels and choices.
        prior: of the fits.
        settings: of active labels.
    """
    many = world.repeat(runs)
    # The design is found once a world, not once a run.
    fixed = pairs in PAIRS and pairs not in ("online", "active")
    choose = (
        label_rounds.choose_by_design(world.design(pairs).repeat(runs, 1, 1))
        if fixed
        else choice(many, pairs, settings)
    )
    size = world.log_ref.shape[-1]
    known = torch.zeros(len(many.log_ref), size, size, dtype=torch.float64)
    label = label_rounds.bradley_terry_labels(many.reward)
    states = label_rounds.collect_labels(choose, label, known, totals, prior, generator)
    return torch.stack([many.regret(state.rewards).reshape(runs, -1) for state in states], 1)


QUICKLY = active.Active(draws=16, greedy_steps=16)
"""Active labels with coarser batches, where many purchases are compared."""

# --- demonstrations and preferences --------------------------------------------------------------------------


@dataclass(frozen=True)
class Purchase:
    """What is bought for a budget, and how it is used.

    Attributes:
        demonstrations: D.
        labels: N.
        rounds: batches of labels.
        pairs: "sft": two draws from the SFT policy (what the demonstrations made of π_0); or a source of `PAIRS`.
        demo_beta: β_demo of the demonstrator.
        assumed: what the fit takes it for; None: the true one.
    """

    demonstrations: int
    labels: int
    rounds: int = 1
    pairs: str = "sft"
    demo_beta: float = 1.0
    assumed: float | None = None


def buy(world: Finite, what: Purchase, runs: int, generator: torch.Generator, prior: float = 3.0) -> Tensor:
    """Regret after a purchase, (runs, W)."""
    return world.repeat(runs).regret(bought(world, what, runs, generator, prior).rewards).reshape(runs, -1)


def bought(
    world: Finite, what: Purchase, runs: int, generator: torch.Generator, prior: float = 3.0
) -> label_rounds.LabelState:
    """What is known after a purchase, every world `runs` times (rows as in `Finite.repeat`).

    Demonstrations first, then labels; the rewards are fitted to both at once (see `bradley_terry.fit_rewards`).
    """
    many = world.repeat(runs)
    size = world.log_ref.shape[-1]
    shown = None
    log_sft = many.log_ref
    if what.demonstrations:
        log_demo = exact.optimal_policy(many.log_ref, many.reward, what.demo_beta)
        counts = label_rounds.multinomial(log_demo.exp(), what.demonstrations, generator)
        shown = bradley_terry.Demonstrations(counts, many.log_ref, what.assumed or what.demo_beta)
        log_sft = sft_policy(many.log_ref, counts)
    known = torch.zeros(len(log_sft), size, size, dtype=torch.float64)
    if not what.labels:
        return label_rounds.LabelState(0, known, *bradley_terry.fit_rewards(known, prior, shown))
    choose = (
        label_rounds.choose_by_design(bradley_terry.pair_distribution(log_sft))
        if what.pairs == "sft"
        else choice(many, what.pairs, QUICKLY)
    )
    totals = label_rounds.round_totals(size, what.labels, what.rounds)
    label = label_rounds.bradley_terry_labels(many.reward)
    return label_rounds.collect_labels(choose, label, known, totals, prior, generator, shown)[-1]


def sft_policy(log_base: Tensor, counts: Tensor) -> Tensor:
    """log π_sft, (…, K): the demonstrations' shares, with π_0 counted as K demonstrations more.

    A table that only copied the demonstrations would never say what was not shown; a fit that starts from π_0 and is
    stopped in time still does.
    """
    size = log_base.shape[-1]
    return ((counts + size * log_base.exp()) / (counts.sum(-1, keepdim=True) + size)).log()


def price_of_both(world: Finite, demonstrations: Tensor, labels: Tensor, demo_beta: float, mu: Tensor) -> Tensor:
    """The limit of the regret after D demonstrations and N labels on pairs drawn from μ, (W, …).

    Args:
        world: W worlds.
        demonstrations: D, (…).
        labels: N, of the same shape; D and N not both zero.
        demo_beta: β_demo.
        mu: (W, K, K).
    """
    beta, demo_beta = check_beta(world.beta), check_positive(demo_beta, "demo_beta")
    star = exact.optimal_policy(world.log_ref, world.reward, beta).exp()
    demo = exact.optimal_policy(world.log_ref, world.reward, demo_beta).exp()
    p = exact.preference(world.reward)
    edges = (mu + mu.transpose(-1, -2)) * p * (1 - p)
    told = bradley_terry.laplacian(edges)
    shown = bradley_terry.covariance(demo) / demo_beta**2
    out = []
    for d, n in zip(demonstrations.flatten().tolist(), labels.flatten().tolist(), strict=True):
        both = d * shown + n * told
        # A shift of all rewards is in neither, and matters to neither: filled, it makes the matrix invertible.
        filled = both + both.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None] / star.shape[-1]
        error = torch.linalg.solve(filled, bradley_terry.covariance(star))
        out.append(error.diagonal(dim1=-2, dim2=-1).sum(-1) / (2 * beta))
    return torch.stack(out, -1).reshape(len(star), *demonstrations.shape)


# --- a policy that cannot say everything -----------------------------------------------------------------------


def limited_by_dpo(log_ref: Tensor, features: Tensor, wins: Tensor, beta: float, prior: float = 3.0) -> Tensor:
    """DPO straight on the labels in the class log π = log π_ref + φ·w + const; log π, (R, K).

    Args:
        log_ref: (R, K).
        features: φ, (R, K, d).
        wins: (R, K, K).
        beta: β.
        prior: of β φ·w for a feature of size 1: what keeps separable labels finite.
    """
    return (log_ref + reward_in_features(features, wins, prior) / beta).log_softmax(-1)


def limited_by_reward(
    log_ref: Tensor, features: Tensor, reward: Tensor, beta: float, steps: int = 250, starts: int = 6
) -> Tensor:
    """The class's best policy for a given reward by natural gradient steps on J: endless free samples; log π, (R, K).

    The natural gradient of J at w is the least-squares fit of φ to (r/β − φ·w), weighted by the policy itself. J has
    several maxima in w where a class is small and β too: of some starts (the reference, and others at random, always
    the same) the best is taken. What is best is judged by the reward that was given, not by the true one.
    """
    number, _, width = features.shape
    log_ref, features, reward = (t.repeat(starts, *[1] * (t.ndim - 1)) for t in (log_ref, features, reward))
    far = torch.arange(starts).repeat_interleave(number) > 0
    weight = (
        3
        * far[:, None, None]
        * torch.randn(len(far), width, 1, dtype=torch.float64, generator=seeded(0, Stream.NATURAL_GRADIENT_STARTS))
    )
    eye = 1e-9 * torch.eye(width, dtype=torch.float64)

    def policy_of(weight: Tensor) -> Tensor:
        return (log_ref + (features @ weight).squeeze(-1)).log_softmax(-1)

    log_policy = policy_of(weight)
    for _ in range(steps):
        policy = log_policy.exp().unsqueeze(-1)
        centred = features - (policy * features).sum(-2, keepdim=True)
        left = (reward / beta).unsqueeze(-1) - features @ weight
        left = left - (policy * left).sum(-2, keepdim=True)
        weighted = policy * centred
        step = torch.linalg.solve(centred.transpose(-1, -2) @ weighted + eye, weighted.transpose(-1, -2) @ left)
        # No log-probability ratio moves by more than 1 at once.
        size = (features @ step).abs().amax((-1, -2))[:, None, None] / 2
        weight = weight + 0.5 * step / size.clamp(min=1.0)
        log_policy = policy_of(weight)
    value = exact.objective(log_policy, log_ref, reward, beta).reshape(starts, number)
    chosen = value.argmax(0) * number + torch.arange(number)
    return log_policy[chosen]


def reward_in_features(features: Tensor, wins: Tensor, prior: float = 3.0) -> Tensor:
    """A reward model r = φ·w fitted to labels, (R, K)."""
    weight = bradley_terry.fit_features(features, wins, prior)
    return (features @ weight.unsqueeze(-1)).squeeze(-1)


def random_worlds(
    number: int, size: int, beta: float, seed: int, spread: float = 1.0, reference: float = 1.0
) -> Finite:
    """Normal rewards of standard deviation `spread`, normal reference logits of standard deviation `reference`."""
    generator = seeded(seed, Stream.BUDGET_WORLDS)
    log_ref = (reference * torch.randn(number, size, dtype=torch.float64, generator=generator)).log_softmax(-1)
    return Finite(log_ref, spread * torch.randn(number, size, dtype=torch.float64, generator=generator), beta)


# --- pilot comparisons -------------------------------------------------------------------------------------------

SPREADS = tuple(float(f"{10**exponent:.3g}") for exponent in np.linspace(math.log10(0.1), math.log10(6), 28))
"""Standard deviations of the rewards for which `likely_spread` computes the likelihood."""


def likely_spread(wins: Sequence[Tensor]) -> tuple[float, float, float]:
    """Return the most likely standard deviation of the rewards, and its 95% likelihood interval.

    The rewards have a normal prior and are integrated out by Laplace's method:
    log p(labels | s) ≈ ℓ(r̂) − |r̂|²/2s² − ½ log det(s² H). The interval contains the values whose likelihood is at least
    e^−1.92 times the maximum.

    Args:
        wins: for each prompt, the number of times that the row's response won against the column's, (K, K).
    """
    evidence = []
    for spread in SPREADS:
        total = 0.0
        for matrix in wins:
            rewards, curvature = bradley_terry.fit_rewards(matrix, spread)
            likely = (matrix * torch.nn.functional.logsigmoid(rewards.unsqueeze(-1) - rewards)).sum()
            volume = torch.logdet(curvature) + 2 * len(rewards) * math.log(spread)
            total += float(likely - rewards.square().sum() / (2 * spread**2) - volume / 2)
        evidence.append(total)
    best = max(evidence)
    inside = [s for s, value in zip(SPREADS, evidence, strict=True) if value >= best - 1.92]
    return SPREADS[evidence.index(best)], inside[0], inside[-1]


def label_values(wins: Tensor, spread: float, beta: float) -> Tensor:
    """Return by how much one more label on each pair lowers the expected regret, (K, K).

    The reference policy is uniform over the responses.

    Args:
        wins: the number of times that the row's response won against the column's, (K, K).
        spread: standard deviation of the rewards' prior.
        beta: β of the objective.
    """
    rewards, curvature = bradley_terry.fit_rewards(wins, spread)
    uniform = torch.zeros(len(wins), dtype=torch.float64).log_softmax(-1)
    generator = seeded(0, Stream.BUDGET_BELIEF)
    matters, information = active.posterior_means(rewards, curvature, uniform, beta, 256, generator)
    return active.gains(matters, information, torch.linalg.inv(curvature)) / (2 * beta)
