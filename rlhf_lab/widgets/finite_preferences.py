r"""Finite preference data: what DPO's exact optimum on N labels is, against π*.

A table can be any policy, so on a table DPO's optimum needs no training: r̂ = β log π_θ/π_ref is free up to a
constant, the loss is Bradley–Terry's likelihood of r̂, and the best policy is π̂ ∝ π_ref exp(r̂/β) with r̂ the
maximum-likelihood rewards of the labels. The rewards do not depend on β; only the way from them to π̂ does.
Rafailov et al. 2023, section 5; Bradley & Terry 1952; Ford 1957 (when the maximum exists).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import softplus

from rlhf_lab import exact
from rlhf_lab.errors import LabError, check_finite, check_log_distribution, check_responses_axis
from rlhf_lab.figures.picture import Axis, Bars, Line, Number, Panel, Picture, Points
from rlhf_lab.training import seeded
from rlhf_lab.widgets.explorer import Explorer, Slider

RIDGE = 1e-6
"""Weight of ½Σr̂² in the fit: it decides what labels leave open, and moves what they decide by about 1e-6."""
MOST = 30_000
"""Labels of the longest data set of the explorer."""
_GRID = (10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, MOST)


def reference_pairs(log_ref: Tensor) -> Tensor:
    """μ of two different responses drawn from π_ref, (…, K, K): what `World.preferences` asks about."""
    both = (log_ref.unsqueeze(-1) + log_ref.unsqueeze(-2)).exp()
    both = both * (1 - torch.eye(both.shape[-1], dtype=both.dtype))
    return both / both.sum((-1, -2), keepdim=True)


def expected_wins(reward: Tensor, pair_weights: Tensor, noise: float = 0.0) -> Tensor:
    """What a single label adds to the table of wins on average, (…, K, K), summing to 1.

    Args:
        reward: the true rewards, (…, K).
        pair_weights: μ, (…, K, K), summing to 1, with a zero diagonal.
        noise: ε, the chance that a label is turned round.
    """
    p = exact.preference(reward)
    asked = pair_weights + pair_weights.transpose(-1, -2)  # (i, j) and (j, i) are one question
    return asked * ((1 - noise) * p + noise * (1 - p))


def draw_wins(
    reward: Tensor,
    pair_weights: Tensor,
    numbers: Sequence[int],
    generator: torch.Generator,
    noise: float = 0.0,
) -> Tensor:
    """How often each response beat each other one among the first labels of one stream.

    Larger data sets contain the smaller ones, and more noise turns the same labels and more: moving one control
    changes one thing.

    Args:
        reward: r, (K,); labels are drawn with σ(r_i − r_j).
        pair_weights: μ, (K, K), non-negative, summing to 1.
        numbers: sizes of the data sets.
        generator: source of randomness.
        noise: ε in [0, ½].

    Returns:
        (len(numbers), K, K) float64; entry [n, i, j] counts the labels i ≻ j.

    Raises:
        LabError: noise out of range; a number below 1.
    """
    return _count(_draw_labels(reward, pair_weights, max(numbers), generator, noise), numbers, reward.shape[-1])


def _draw_labels(reward: Tensor, pair_weights: Tensor, number: int, generator: torch.Generator, noise: float) -> Tensor:
    """One code i·K + j for each label i ≻ j, (number,)."""
    if not 0 <= noise <= 0.5:
        raise LabError(f"noise must lie in [0, 0.5], not {noise}: it is the probability that a label is wrong.")
    size = reward.shape[-1]
    u = torch.rand(3, number, dtype=torch.float64, generator=generator)
    cdf = pair_weights.double().flatten().cumsum(0)
    pair = torch.searchsorted(cdf, u[0] * cdf[-1], right=True).clamp(max=size * size - 1)
    one, two = pair // size, pair % size
    first = (u[1] < torch.sigmoid(reward[one] - reward[two])) ^ (u[2] < noise)
    return torch.where(first, one * size + two, two * size + one)


def _count(codes: Tensor, numbers: Sequence[int], size: int) -> Tensor:
    if min(numbers) < 1:
        raise LabError(f"A data set needs at least one label, not {min(numbers)}.")
    return (
        torch.stack([torch.bincount(codes[:n], minlength=size * size) for n in numbers]).double().view(-1, size, size)
    )


def fit_wins(wins: Tensor, ridge: float = RIDGE, steps: int = 100) -> Tensor:
    r"""The rewards that minimise Σ_ij wins_ij · (−log σ(r_i − r_j)) + ½ ridge Σ r², by damped Newton steps.

    Fractional and even negative entries are allowed, as long as wins_ij + wins_ji ≥ 0, which keeps the sum
    convex. So cDPO and robust DPO are the same fit on other tables: (1−ε) W + ε Wᵀ and ((1−ε) W − ε Wᵀ)/(1−2ε).

    The ridge matters only where the labels decide nothing: a response never asked about keeps a reward of 0, and
    one that never lost goes up to about log(1/ridge) instead of to infinity.

    Args:
        wins: (…, K, K), any scale: counts or probabilities.
        ridge: above 0, against wins scaled to sum to 1.
        steps: at most so many.

    Returns:
        (…, K) float64, each row with mean 0.

    Raises:
        LabError: wins not finite, not square, all zero, or a pair with a negative sum.
    """
    wins = check_finite(wins.double(), "wins")
    if wins.ndim < 2 or wins.shape[-1] != wins.shape[-2]:
        raise LabError(f"wins must be (…, K, K), not {tuple(wins.shape)}.")
    asked = wins + wins.transpose(-1, -2)
    total = asked.sum((-1, -2), keepdim=True) / 2
    if bool((asked < 0).any()) or not bool((total > 0).all()):
        raise LabError("wins needs at least one label, and wins_ij + wins_ji must not be negative.")
    wins, asked = wins / total, asked / total
    eye = torch.eye(wins.shape[-1], dtype=torch.float64)

    def value(r: Tensor) -> Tensor:
        return (wins * softplus(r.unsqueeze(-2) - r.unsqueeze(-1))).sum((-1, -2)) + ridge / 2 * r.square().sum(-1)

    r = torch.zeros(wins.shape[:-1], dtype=torch.float64)
    here = value(r)
    for _ in range(steps):
        loses = torch.sigmoid(r.unsqueeze(-2) - r.unsqueeze(-1))  # σ(r_j − r_i): the believed chance that i loses
        pull = wins * loses
        slope = pull.sum(-2) - pull.sum(-1) + ridge * r
        edges = asked * loses * (1 - loses)
        bend = torch.diag_embed(edges.sum(-1)) - edges + ridge * eye
        move = -torch.linalg.solve(bend, slope.unsqueeze(-1)).squeeze(-1)
        # A Newton step may overshoot far from the optimum; halve it, row by row, until the sum is no larger.
        scale = torch.ones_like(here)
        for _ in range(40):
            there = value(r + scale.unsqueeze(-1) * move)
            worse = there > here + 1e-13 * here.abs()
            if not bool(worse.any()):
                break
            scale = torch.where(worse, scale / 2, scale)
        scale = torch.where(there > here + 1e-13 * here.abs(), 0.0, scale)
        r = r + scale.unsqueeze(-1) * move
        here = value(r)
        if float((scale * move.abs().amax(-1)).max()) < 1e-9:  # quadratic convergence: the next step is rounding
            break
    return r - r.mean(-1, keepdim=True)


def has_maximum(wins: Tensor) -> bool:
    """Whether the likelihood of (K, K) `wins` has a maximum: every response beats every other one at some remove.

    Ford 1957. Otherwise some margin of DPO has no end.
    """
    reach = (wins > 0) | torch.eye(wins.shape[-1], dtype=torch.bool)
    for _ in range(wins.shape[-1]):
        reach = (reach.double() @ reach.double()) > 0
    return bool(reach.all())


def finite_preferences_explorer(
    log_ref: Tensor, reward: Tensor, responses: Sequence[str], beta: float = 0.5, number: int = 100
) -> Explorer:
    """DPO's exact optimum on N labels beside π*, with sliders for N, the draw, noise and β.

    Args:
        log_ref: log π_ref of one prompt, (K,), nats.
        reward: true rewards, (K,), that draw the labels.
        responses: K names.
        beta: where the slider for β stands at first, in [0.05, 5].
        number: the first number of labels, in [10, 30,000].

    Raises:
        LabError: log_ref not normalised, reward not finite, numbers of names that do not match.
    """
    check_responses_axis(log_ref=log_ref, reward=reward)
    log_ref, reward = log_ref.detach().double(), check_finite(reward.detach().double(), "reward")
    check_log_distribution(log_ref, "log_ref")
    if log_ref.ndim != 1 or len(responses) != len(log_ref):
        raise LabError(f"log_ref must be (K,) with K names, not {tuple(log_ref.shape)} with {len(responses)}.")
    if bool((log_ref == -torch.inf).any()):
        raise LabError("log_ref holds -inf: a response that is never drawn is never labelled. Leave it out.")
    asked = reference_pairs(log_ref)

    @lru_cache(maxsize=16)
    def stream(seed: int, noise: float) -> Tensor:
        return _draw_labels(reward, asked, MOST, seeded(seed), noise)

    @lru_cache(maxsize=64)
    def road(seed: int, noise: float) -> Tensor:
        """r̂ on the first 10, 20, … labels of this draw, (len(_GRID), K)."""
        return fit_wins(_count(stream(seed, noise), _GRID, len(log_ref)))

    @lru_cache(maxsize=512)
    def fitted(seed: int, noise: float, labels: int) -> tuple[Tensor, bool]:
        wins = _count(stream(seed, noise), (labels,), len(log_ref))[0]
        return fit_wins(wins), has_maximum(wins)

    @lru_cache(maxsize=64)
    def limit(noise: float) -> Tensor:
        return fit_wins(expected_wins(reward, asked, noise))

    @lru_cache(maxsize=128)
    def price(b: float) -> float:
        return float(exact.label_price(log_ref, reward, b, asked))

    names = tuple(f"{name}\nr = {_signed(r)}" for name, r in zip(responses, reward.tolist(), strict=True))

    def lost(r_hat: Tensor, b: float) -> Tensor:
        return exact.regret(exact.optimal_policy(log_ref, r_hat, b), log_ref, reward, b)

    def compute(number: float, seed: int, noise: float, beta: float) -> Picture:
        labels, noise, beta = round(number), round(float(noise), 6), float(beta)
        r_hat, finite = fitted(seed, noise, labels)
        log_star, log_hat = exact.optimal_policy(log_ref, reward, beta), exact.optimal_policy(log_ref, r_hat, beta)
        now, rate = float(lost(r_hat, beta)), price(beta)
        # Clean labels end at π* itself; the fit's ridge would leave a 1e-10 to be shown.
        end = float(lost(limit(noise), beta)) if noise else 0.0
        sizes = torch.tensor(_GRID, dtype=torch.float64)
        bars = Panel(
            "Policies over the responses",
            Axis("response y and its true reward r", names=names),
            Axis("probability", 0.0, 1.0),
            (
                Bars("reference", log_ref.exp(), "π_ref"),
                Bars("dpo", log_hat.exp(), "DPO's optimum"),
                Bars("optimal", log_star.exp(), "π*"),
            ),
            width=1.1,
        )
        layers: tuple[Line | Points, ...] = (
            Line("optimal", sizes, rate / sizes, "price / N"),
            Line("dpo", sizes, lost(road(seed, noise), beta).clamp(min=_LEAST), "this draw"),
            Points("policy", [labels], [max(now, _LEAST)], "now", big=True),
        )
        if noise:
            layers += (Line("wrong", sizes, torch.full_like(sizes, max(end, _LEAST)), "N → ∞"),)
        curve = Panel(
            "What the labels leave of the regret",
            Axis("labels N", 10, MOST, log=True),
            Axis("regret J(π*) − J(π) [reward]", _LEAST, 10.0, log=True),
            layers,
        )
        top = int(log_hat.argmax())
        best = int(log_star.argmax())
        turned = f", {noise:.0%} of them turned round" if noise else ""
        text = (
            f"{labels} labels (draw {seed}{turned}), β = {beta:.3g}: DPO’s exact optimum gives “{responses[top]}” "
            f"{float(log_hat[top].exp()):.2f}; π* gives “{responses[best]}” {float(log_star[best].exp()):.2f}. "
            f"Its regret is {now:.3g}; the price of a label promises {rate / labels:.3g} on average over draws of "
            f"clean labels. "
            + ("" if finite else "Some response never won or never lost here, so some margin of DPO has no end. ")
            + (f"With this noise the regret ends at {end:.3g}, however many labels." if noise else "")
        ).strip()
        numbers = (
            Number("regret", now, "reward"),
            Number("KL(π̂‖π*)", now / beta, "nats"),
            Number("price / N", rate / labels, "reward"),
            Number("regret at N → ∞", end, "reward"),
        )
        return Picture(text, (bars, curve), numbers)

    return Explorer(
        compute,
        {
            "number": Slider(number, 10, MOST, "labels N", log=True),
            "seed": Slider(0, 0, 20, "draw (seed)", whole=True),
            "noise": Slider(0.0, 0.0, 0.4, "labels turned round ε", step=0.02),
            "beta": Slider(beta, 0.05, 5.0, "β [reward per nat]", log=True),
        },
        "What finite preference data can teach",
        "Draw again at 50 labels, then at 5,000. Turn some labels round: do more labels help? What does β change?",
    )


_LEAST = 1e-5
"""Regrets below it are drawn at the lower edge."""


def _signed(number: float) -> str:
    rounded = round(number, 2)
    return f"{rounded:+g}".replace("-", "−") if rounded else "0"
