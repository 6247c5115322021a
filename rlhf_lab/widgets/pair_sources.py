r"""Explorer of RSO's pair sources: which responses form the pairs, and how much a label on such a pair is worth.

    direct            pairs of an unknown mixture; here half π_sft, half the uniform policy
    sft-sample-rank   both responses from π_sft
    rso-sample-rank   both from π_r ∝ π_sft exp(r/β)

The value of a label follows from `exact.label_price`: with N labels the expected regret is price/N. It does not depend
on the labeller. Lecture, "Preference Data Distribution – Choices".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.algorithms.rso import PairSource
from rlhf_lab.errors import LabError, check_log_distribution
from rlhf_lab.figures.picture import Axis, Bars, Curve, Panel, Picture, Points, Readout, Rule
from rlhf_lab.language import tr
from rlhf_lab.widgets.explorer import Choice, Explorer, Slider, by_prompt

SOURCES = ("direct", "sft-sample-rank", "rso-sample-rank")
"""The three sources of the lecture slides, in their order."""
BETAS = tuple(float(f"{10**e:.3g}") for e in torch.linspace(math.log10(0.25), math.log10(4), 13).tolist())
"""The β at which the curves are computed."""


def source_policy(source: str, log_sft: Tensor, reward: Tensor, beta: float) -> Tensor:
    """The log-probabilities from which `source` draws the responses of a pair, (…, K).

    Args:
        source: one of `SOURCES`.
        log_sft: log π_sft, (…, K).
        reward: r, (…, K).
        beta: β of π_r; used by rso-sample-rank alone.

    Raises:
        LabError: no such source; as `exact.optimal_policy`.
    """
    if source == "rso-sample-rank":
        return exact.optimal_policy(log_sft, reward, beta)
    if source == "sft-sample-rank":
        return log_sft
    if source == "direct":
        uniform = torch.full_like(log_sft, -math.log(log_sft.shape[-1]))
        return torch.logaddexp(log_sft, uniform) - math.log(2)
    raise LabError(f"source must be one of {', '.join(SOURCES)}, not {source!r}.")


def pair_weights(log_source: Tensor, reward: Tensor, rounds: int = 1) -> Tensor:
    r"""The share of labels on each pair when independent draws are paired, (…, K, K).

    One round is first-round pairing. With more, 2^rounds draws play a tournament: a winner follows
    w(i) = 2 m(i) Σ_j m(j) p(i ≻ j) where m is what the round's players follow, and the next round pairs two winners.
    Pairs of equal responses are dropped, so the diagonal is zero.

    Args:
        log_source: log-probabilities of the responses that are paired, (…, K).
        reward: r, (…, K); decides the winners.
        rounds: 1 or more.

    Returns:
        symmetric, summing to 1 over the last two axes.

    Raises:
        LabError: rounds below 1; log_source not normalised; no two different responses.
    """
    if rounds < 1:
        raise LabError(f"rounds must be at least 1, not {rounds}.")
    check_log_distribution(log_source, "log_source")
    players, wins = log_source.exp(), exact.preference(reward)
    total = torch.zeros_like(wins)
    for round_ in range(rounds):
        total = total + players.unsqueeze(-1) * players.unsqueeze(-2) / 2**round_
        players = 2 * players * (wins @ players.unsqueeze(-1)).squeeze(-1)
    total = total * (1 - torch.eye(total.shape[-1], dtype=total.dtype))
    mass = total.sum((-1, -2), keepdim=True)
    if bool((mass <= 0).any()):
        raise LabError("The source gives only one response, so there is nothing to compare.")
    return total / mass


@dataclass(frozen=True)
class PriceCurves:
    """`exact.label_price` at every β of `BETAS`, for one prompt and one kind of pairing.

    Attributes:
        best: for the best design, (13,), reward × labels.
        of: by source, (13,) each.
    """

    best: Tensor
    of: dict[str, Tensor]


def best_prices(log_sft: Tensor, reward: Tensor) -> Tensor:
    """The minimum of `exact.label_price` over all designs at every β of `BETAS`, (13,), to 0.1%. log_sft is (K,)."""
    found = []
    for beta in BETAS:
        design = exact.optimal_pair_design(log_sft, reward, beta, tolerance=1e-3)
        found.append(exact.label_price(log_sft, reward, beta, design))
    return torch.stack(found)


def price_curves(log_sft: Tensor, reward: Tensor, rounds: int, best: Tensor | None = None) -> PriceCurves:
    """`PriceCurves` of one prompt, (K,). `best` is `best_prices`; None computes it."""
    curves: dict[str, Tensor] = {}
    for source in SOURCES:
        prices = []
        for beta in BETAS:
            weights = pair_weights(source_policy(source, log_sft, reward, beta), reward, rounds)
            prices.append(exact.label_price(log_sft, reward, beta, weights))
        curves[source] = torch.stack(prices)
    return PriceCurves(best_prices(log_sft, reward) if best is None else best, curves)


def pair_sources_picture(
    log_sft: Tensor,
    reward: Tensor,
    beta: float,
    source: str,
    rounds: int,
    responses: Sequence[str],
    prices: PriceCurves | None = None,
) -> Picture:
    """Draw the responses in the pairs of `source`, and how many more labels it needs than the best design.

    Args:
        log_sft: log π_sft of one prompt, (K,), nats.
        reward: r(x, ·), (K,), used for acceptance and for labels.
        beta: β > 0 of the objective and of π_r.
        source: one of `SOURCES`.
        rounds: 1 for first-round pairing, more for tournaments of 2^rounds.
        responses: K names.
        prices: `price_curves(log_sft, reward, rounds)`; None computes them.

    Returns:
        the picture; its numbers are the limit of N × regret, the number of labels for an expected regret of 0.01, how
        often the better response wins, and the mean of p(1 − p), the information in a label.

    Raises:
        LabError: as `source_policy`, `pair_weights` and `exact.label_price`.
    """
    prices = prices or price_curves(log_sft, reward, rounds)
    log_star = exact.optimal_policy(log_sft, reward, beta)
    weights = pair_weights(source_policy(source, log_sft, reward, beta), reward, rounds)
    price = float(exact.label_price(log_sft, reward, beta, weights))
    wins = exact.preference(reward)
    sure = float((weights * torch.maximum(wins, wins.T)).sum())
    information = float((weights * wins * (1 - wins)).sum())
    who = Panel(
        "Responses in the pairs",
        Axis("response y", names=tuple(responses)),
        Axis("share", 0.0, 1.0),
        (
            Bars("reference", log_sft.exp(), "π_sft"),
            Bars(f"rso-{source}", weights.sum(-1), "pairs"),
            Bars("optimal", log_star.exp(), "π*"),
        ),
    )
    lines = [Curve(f"rso-{name}", BETAS, curve / prices.best, name.split("-")[0]) for name, curve in prices.of.items()]
    highest = float(torch.stack([curve / prices.best for curve in prices.of.values()]).max())
    at = _between(beta, prices.of[source] / prices.best)
    cost = Panel(
        "Labels needed, relative to the best design",
        Axis("β [reward per nat]", 0.0, BETAS[-1]),
        Axis("ratio of numbers of labels", 1.0, max(3.0, 1.1 * highest)),
        (*lines, Rule("optimal", beta, "x", "", ":"), Points(f"rso-{source}", [beta], [at], "", big=True)),
    )
    top = int(weights.sum(-1).argmax())
    pairing = tr("first-round pairs") if rounds == 1 else tr("tournaments of {players}", players=2**rounds)
    text = tr(
        "With {source} at β = {beta:.3g} and {pairing}, “{response}” is the most frequent response in the pairs. The "
        "better response wins {sure:.0%} of the labels. An expected regret of 0.01 needs about {labels:.0f} labels, "
        "{ratio:.2f} times as many as the best design.",
        source=source, beta=beta, pairing=pairing, response=tr(responses[top]), sure=sure, labels=100 * price, ratio=at,
    )  # fmt: skip
    numbers = (
        Readout("N × regret", price, "reward × labels", 2),
        Readout("N for regret 0.01", 100 * price, "labels", 0),
        Readout("P(better wins)", sure),
        Readout("mean p(1 − p)", information),
    )
    return Picture(text, (who, cost), numbers)


def _between(beta: float, curve: Tensor) -> float:
    """The curve's value at β: straight lines between the points of `BETAS` on logarithmic axes."""
    logs = torch.tensor(BETAS, dtype=torch.float64).log()
    where = min(max(math.log(beta), float(logs[0])), float(logs[-1]))
    right = int(torch.searchsorted(logs, where).clamp(1, len(BETAS) - 1))
    share = (where - float(logs[right - 1])) / float(logs[right] - logs[right - 1])
    return math.exp((1 - share) * math.log(curve[right - 1]) + share * math.log(curve[right]))


def pair_sources_explorer(
    log_sft: Tensor,
    reward: Tensor,
    responses: Sequence[str],
    prompts: Sequence[str] = (),
    beta: float = 0.5,
    source: PairSource = "rso-sample-rank",
) -> Explorer:
    """Show the pair sources with controls for the source, β and the pairing.

    Args:
        log_sft: log π_sft, (K,) or (X, K), nats.
        reward: r, of the same shape.
        responses: K names.
        prompts: X names. Default: x1, x2, …
        beta: β at the start, in [0.25, 4].
        source: the source at the start.

    Raises:
        LabError: shapes or numbers of names that do not match.
    """
    log_sft, reward, names = by_prompt(log_sft, reward, responses, prompts)
    # Computed in advance, so that moving a control does not wait for a convex problem.
    best = [best_prices(p, r) for p, r in zip(log_sft, reward, strict=True)]
    known = {
        (prompt, rounds): price_curves(log_sft[prompt], reward[prompt], rounds, best[prompt])
        for prompt in range(len(names))
        for rounds in (1, 2, 3)
    }

    def compute(source: str, beta: float, rounds: int, prompt: int = 0) -> Picture:
        prices = known[prompt, rounds]
        return pair_sources_picture(log_sft[prompt], reward[prompt], beta, source, rounds, responses, prices)

    controls: dict[str, Slider | Choice] = {
        "source": Choice(source, {name: name for name in SOURCES}, "pairs from"),
        "beta": Slider(beta, BETAS[0], BETAS[-1], "β [reward per nat]", log=True),
        "rounds": Choice(1, {"first-round": 1, "tournament of 4": 2, "tournament of 8": 3}, "pairing"),
    }
    if len(names) > 1:
        controls["prompt"] = Choice(0, {name: i for i, name in enumerate(names)}, "prompt")
    return Explorer(compute, controls, "Where pairs come from")
