"""Exercises of notebook 08: RSO and its pair sources."""

import math

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.exercises.checking import Case, Exercise, Mistake, as_tensor


def _double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def fitted_policy(log_sft: Tensor, reward: Tensor, beta: float, gamma: float) -> Tensor:
    """The limit of sigmoid-norm at slope γ, as log π, for infinitely many labelled pairs from π_r at β."""
    return torch.log_softmax(log_sft + reward / gamma, -1)


def first_round(log_source: Tensor) -> Tensor:
    """The share of labels on the ordered pair (i, j), (K, K), without pairs of equal responses."""
    p = log_source.exp()
    pairs = p[:, None] * p[None, :] * (1 - torch.eye(len(p), dtype=p.dtype))
    return pairs / pairs.sum()


def information(reward: Tensor, pairs: Tensor) -> Tensor:
    """Fisher information of one label about the rewards, (K, K)."""
    p = torch.sigmoid(reward[:, None] - reward[None, :])
    edges = (pairs + pairs.T) * p * (1 - p)
    edges = edges * (1 - torch.eye(len(reward), dtype=reward.dtype))
    return torch.diag(edges.sum(-1)) - edges


def where_rso_loses(factor: float) -> tuple[Tensor, Tensor, float]:
    """π_sft, r and β for which pairs from π_r need `factor` times the labels that pairs from π_sft need."""
    log_sft = torch.full((4,), 0.25, dtype=torch.float64).log()
    bad = -5 - math.log(factor)  # two good responses, and two that π_r hardly ever gives
    reward = torch.tensor([0.0, 0.0, bad, bad], dtype=torch.float64)
    return log_sft, reward, 0.5


def label_ratio(log_sft: Tensor, reward: Tensor, beta: float) -> float:
    """The number of labels that pairs from π_r need for a given regret, divided by that of pairs from π_sft."""
    log_r = exact.optimal_policy(log_sft, reward, beta)
    prices = [exact.label_price(log_sft, reward, beta, first_round(source)) for source in (log_r, log_sft)]
    return float(prices[0] / prices[1])


def _judge(answer: object, factor: float) -> str | None:
    """The complaint about a world in which RSO's pairs should need `factor` times the labels, or None."""
    if not isinstance(answer, list) or len(answer) != 3:
        return "return three things: log_sft, reward, beta."
    log_sft, reward, beta = map(as_tensor, answer)
    if log_sft is None or reward is None or beta is None:
        return "log_sft and reward are tensors of K numbers, and beta is one number."
    if log_sft.ndim != 1 or log_sft.shape != reward.shape or beta.ndim != 0:
        return (
            f"log_sft and reward have one number for each response, shape (K,), and beta is one number. Yours have the "
            f"shapes {tuple(log_sft.shape)}, {tuple(reward.shape)} and {tuple(beta.shape)}."
        )
    try:
        ratio = label_ratio(log_sft, reward, beta.item())
    except ValueError as error:
        return f"this is not a valid world: {error}"
    if not ratio >= factor:
        return (
            f"pairs from π_r need {ratio:.3g} times as many labels as pairs from π_sft. It must be at least {factor:g}."
        )
    return None


def _first(log_source: Tensor, mistake: str) -> Tensor:
    """`first_round` with one mistake."""
    p = log_source if mistake == "log" else log_source.exp()
    pairs = p[:, None] * p[None, :]
    apart = 1 - torch.eye(len(p), dtype=p.dtype)
    if mistake == "diagonal":
        return pairs
    if mistake == "not renormalised":
        return pairs * apart
    if mistake == "replacement":
        return pairs * apart / (1 - p[:, None])
    if mistake == "uniform":
        return apart / apart.sum()
    pairs = pairs * apart
    return pairs / (pairs.sum() / 2 if mistake == "twice" else pairs.sum())


def _information(reward: Tensor, pairs: Tensor, mistake: str) -> Tensor:
    """`information` with one mistake."""
    p = torch.sigmoid(reward[:, None] - reward[None, :])
    both = pairs if mistake == "one order" else pairs + pairs.T
    information = {"even": torch.ones_like(p), "wins": p}.get(mistake, p * (1 - p))
    edges = both * information * (1 - torch.eye(len(reward), dtype=reward.dtype))
    if mistake == "edges":
        return edges
    laplacian = torch.diag(edges.sum(-1)) - edges
    return -laplacian if mistake == "sign" else torch.diag(edges.sum(-1)) if mistake == "diagonal" else laplacian


def _world(reward: object, beta: float) -> tuple[Tensor, Tensor, float]:
    return torch.full((4,), 0.25, dtype=torch.float64).log(), _double(reward), beta


_SFT, _REWARD = _double([0.5, 0.3, 0.2]).log(), _double([0.0, 1.0, -0.5])
_FOUR, _REWARD_4 = _double([0.1, 0.2, 0.3, 0.4]).log(), _double([0.3, -1.2, 0.8, 1.1])
_PAIRS = _double([[0.0, 0.3, 0.1], [0.2, 0.0, 0.05], [0.15, 0.2, 0.0]])
_PAIRS_2 = _double([[0.0, 0.9], [0.1, 0.0]])

EXERCISES = (
    Exercise(
        key="nb08.fitted_policy",
        title="β or γ?",
        objective="state which of RSO's two parameters determines the limit of the fit",
        difficulty=1,
        minutes=4,
        cases=(
            Case("the paper's β and γ", {"log_sft": _SFT, "reward": _REWARD, "beta": 0.5, "gamma": 0.05}),
            Case("γ above β", {"log_sft": _FOUR, "reward": _REWARD_4, "beta": 0.4, "gamma": 1.5}),
        ),
        solution=fitted_policy,
        mistakes=(
            Mistake(
                "beta taken for gamma",
                "this is π_r, from which the pairs come. At the limit of the fit the implicit reward is r; see section "
                "2.",
                lambda s, r, beta, gamma: (s + r / beta).log_softmax(-1),
            ),
            Mistake(
                "tilted twice",
                "the tilt is applied twice, by the sampler and by the loss. The distribution of the pairs does not "
                "change the limit.",
                lambda s, r, beta, gamma: (s + r / beta + r / gamma).log_softmax(-1),
            ),
            Mistake(
                "gamma multiplies",
                "γ multiplies the reward: γ · log-ratio = r, so the log-ratio is r divided by γ.",
                lambda s, r, beta, gamma: (s + r * gamma).log_softmax(-1),
            ),
            Mistake(
                "reference forgotten",
                "π_sft is missing. The “norm” of sigmoid-norm is the division by it.",
                lambda s, r, beta, gamma: (r / gamma).log_softmax(-1),
            ),
            Mistake(
                "not normalised",
                "the probabilities do not sum to one, because Z is missing.",
                lambda s, r, beta, gamma: s + r / gamma,
            ),
            Mistake(
                "probabilities",
                "these are probabilities. Return their logarithms.",
                lambda s, r, beta, gamma: (s + r / gamma).softmax(-1),
            ),
        ),
        hints=(
            "At the minimum γ log π/π_sft differs from r only by a constant. Solve for log π.",
            "It is the formula of π* with γ instead of β.",
        ),
    ),
    Exercise(
        key="nb08.first_round",
        title="How often a pair is labelled",
        objective="compute how often two responses are compared",
        difficulty=2,
        minutes=6,
        cases=(
            Case("three responses", {"log_source": _SFT}),
            Case("two responses, one rare", {"log_source": _double([0.95, 0.05]).log()}),
        ),
        solution=first_round,
        mistakes=(
            Mistake(
                "diagonal",
                "pairs of equal responses are included, but they contain no information and are dropped.",
                lambda log_source: _first(log_source, "diagonal"),
            ),
            Mistake(
                "not renormalised",
                "the table does not sum to one. A dropped pair needs no label and is replaced by another one.",
                lambda log_source: _first(log_source, "not renormalised"),
            ),
            Mistake(
                "second drawn again",
                "the second response is redrawn until it differs, which gives rare first responses too much weight. "
                "Drop the whole pair.",
                lambda log_source: _first(log_source, "replacement"),
            ),
            Mistake(
                "uniform",
                "all pairs have the same weight, but the frequency of a pair depends on the source.",
                lambda log_source: _first(log_source, "uniform"),
            ),
            Mistake(
                "log-probabilities",
                "log-probabilities are multiplied. Take `.exp()` first.",
                lambda log_source: _first(log_source, "log"),
            ),
            Mistake(
                "sums to two",
                "the table sums to two. (i, j) and (j, i) are both included, and together they are one pair.",
                lambda log_source: _first(log_source, "twice"),
            ),
        ),
        hints=(
            "Two independent draws are (i, j) with probability p_i p_j. What happens if i = j?",
            "Compute `p[:, None] * p[None, :]`, set its diagonal to zero, and divide it by its sum.",
        ),
    ),
    Exercise(
        key="nb08.information",
        title="The information of a label",
        objective="build the information matrix of preference labels, whose inverse determines the regret",
        difficulty=2,
        minutes=8,
        cases=(
            Case("three responses", {"reward": _REWARD, "pairs": _PAIRS}),
            Case("two responses", {"reward": _double([0.0, 2.0]), "pairs": _PAIRS_2}),
        ),
        solution=information,
        mistakes=(
            Mistake(
                "all labels alike",
                "p(1 − p) is missing. A label that is certain beforehand contains no information.",
                lambda r, pairs: _information(r, pairs, "even"),
            ),
            Mistake(
                "p for p(1 − p)",
                "this has p instead of p(1 − p), the variance of a label, which is the same for both orders of the "
                "pair.",
                lambda r, pairs: _information(r, pairs, "wins"),
            ),
            Mistake(
                "one order",
                "(i, j) and (j, i) are the same comparison, so their weights must be added.",
                lambda r, pairs: _information(r, pairs, "one order"),
            ),
            Mistake(
                "sign",
                "the sign is wrong, because information on the diagonal is positive.",
                lambda r, pairs: _information(r, pairs, "sign"),
            ),
            Mistake(
                "no diagonal",
                "these are only the off-diagonal entries. Each b bᵀ has ones on the diagonal too, and rows must sum to "
                "zero.",
                lambda r, pairs: _information(r, pairs, "edges"),
            ),
            Mistake(
                "diagonal only",
                "the off-diagonal entries are missing. A label depends on the difference of two rewards.",
                lambda r, pairs: _information(r, pairs, "diagonal"),
            ),
        ),
        hints=(
            "For one pair, b bᵀ with b = e_i − e_j is +1 at two places of the diagonal and −1 at two places off it. "
            "Sum over all pairs.",
            "With symmetric `edges`, the sum is `torch.diag(edges.sum(-1)) - edges`.",
        ),
    ),
    Exercise(
        key="nb08.where_rso_loses",
        title="A world in which pairs from π_r need more labels",
        objective="explain when pairs from π_r waste labels, and build a world that shows it",
        difficulty=3,
        minutes=12,
        cases=(
            Case("three times the labels", {"factor": 3.0}),
            Case("ten times the labels", {"factor": 10.0}),
        ),
        solution=where_rso_loses,
        mistakes=(
            Mistake(
                "nothing to learn",
                "all rewards are equal, so π_r is π_sft and both sources give the same pairs.",
                lambda factor: _world([0.0, 0.0, 0.0, 0.0], 0.5),
            ),
            Mistake(
                "large β",
                "β is large, so π_r hardly differs from π_sft and both sources give nearly the same pairs.",
                lambda factor: _world([0.0, 0.0, -6.0, -6.0], 20.0),
            ),
            Mistake(
                "one favourite",
                "π_r nearly always gives the same response. Pairs of equal responses cost no label, so the labels "
                "compare this response with each of the others, which is informative.",
                lambda factor: _world([0.0, 0.0, 0.0, 6.0], 0.5),
            ),
        ),
        hints=(
            "A label is wasted on a pair whose difference is already known well enough, as long as a bad response is "
            "not yet recognised as bad. Which responses does π_r hardly ever give?",
            "Choose two good responses and one or two very bad ones, with β ≤ 0.5. With π_r nearly all labels compare "
            "the two good ones. Print `label_ratio` and lower the bad rewards until it is large enough.",
        ),
        judge=_judge,
    ),
)
