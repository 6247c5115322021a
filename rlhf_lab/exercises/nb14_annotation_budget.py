"""Exercises of notebook 14: the annotation budget."""

import torch
from torch import Tensor

from rlhf_lab.exercises.checking import Case, Exercise, Mistake


def _double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def share_labels(prices: Tensor, number: float) -> Tensor:
    """The number of labels for each prompt, `number` in total, that minimises the sum of price/labels."""
    weight = prices.sqrt()
    return number * weight / weight.sum()


def worth_of_a_label(matters: Tensor, told: Tensor, inverse: Tensor) -> Tensor:
    """The decrease of tr(Σ V) by one more label of the pair (i, j), for every pair, (K, K)."""

    def between(matrix: Tensor) -> Tensor:
        diagonal = matrix.diagonal()
        return diagonal[:, None] + diagonal[None, :] - matrix - matrix.T

    return told * between(inverse @ matters @ inverse) / (1 + told * between(inverse))


def regret_of_both(
    star: Tensor, demo: Tensor, information: Tensor, demonstrations: float, labels: float, demo_beta: float, beta: float
) -> Tensor:
    """The regret with D demonstrations and N labels in the limit, one number."""
    shown = (torch.diag(demo) - torch.outer(demo, demo)) / demo_beta**2
    known = demonstrations * shown + labels * information
    matters = torch.diag(star) - torch.outer(star, star)
    return torch.trace(matters @ torch.linalg.pinv(known)) / (2 * beta)


def _worth(matters: Tensor, told: Tensor, inverse: Tensor, mistake: str) -> Tensor:
    """`worth_of_a_label` with one mistake, pair by pair."""
    size = len(told)
    out = torch.zeros(size, size, dtype=told.dtype)
    for i in range(size):
        for j in range(size):
            b = torch.zeros(size, dtype=told.dtype)
            b[i] += 1
            b[j] += 1 if mistake == "sum" else -1
            v = inverse @ b
            middle = v @ v if mistake == "matters" else b @ matters @ v if mistake == "once" else v @ matters @ v
            w = 1.0 if mistake == "told" else told[i, j]
            out[i, j] = w * middle / (1 if mistake == "denominator" else 1 + w * (b @ v))
    return out


def _both(
    mistake: str, star: Tensor, demo: Tensor, information: Tensor, demonstrations: float, labels: float,
    demo_beta: float, beta: float,
) -> Tensor:  # fmt: skip
    """`regret_of_both` with one mistake."""

    def spread(p: Tensor) -> Tensor:
        return torch.diag(p) - torch.outer(p, p)

    power = 1 if mistake == "power" else 2
    shown = spread(star if mistake == "star" else demo) / demo_beta**power
    if mistake == "apart":
        return sum(
            torch.trace(spread(star) @ torch.linalg.pinv(part)) / (2 * beta)
            for part in (demonstrations * shown, labels * information)
        )  # type: ignore[return-value]
    known = demonstrations * shown + labels * information
    half = 1 if mistake == "half" else 2
    return torch.trace((spread(demo) if mistake == "demo" else spread(star)) @ torch.linalg.pinv(known)) / (half * beta)


def _laplacian(edges: object) -> Tensor:
    both = _double(edges)
    both = both + both.T
    return torch.diag(both.sum(-1)) - both


_STAR, _DEMO = _double([0.6, 0.3, 0.1]), _double([0.4, 0.35, 0.25])
_STAR_4, _DEMO_4 = _double([0.05, 0.15, 0.3, 0.5]), _double([0.1, 0.3, 0.2, 0.4])
_TOLD = _double([[0.0, 0.2, 0.1], [0.2, 0.0, 0.25], [0.1, 0.25, 0.0]])
_TOLD_4 = _double([[0.0, 0.2, 0.1, 0.05], [0.2, 0.0, 0.25, 0.15], [0.1, 0.25, 0.0, 0.22], [0.05, 0.15, 0.22, 0.0]])
_EDGES = [[0.0, 0.1, 0.05], [0.0, 0.0, 0.08], [0.0, 0.0, 0.0]]
_EDGES_4 = [[0.0, 0.05, 0.02, 0.03], [0.0, 0.0, 0.06, 0.01], [0.0, 0.0, 0.0, 0.04], [0.0, 0.0, 0.0, 0.0]]


def _matters(star: Tensor) -> Tensor:
    return torch.diag(star) - torch.outer(star, star)


def _inverse(edges: object, labels: float) -> Tensor:
    laplacian = labels * _laplacian(edges)
    inverse: Tensor = torch.linalg.inv(laplacian + torch.eye(len(laplacian), dtype=torch.float64) / 9)
    return inverse


EXERCISES = (
    Exercise(
        key="nb14.share_labels",
        title="Labels for prompts of different price",
        objective="distribute a budget over prompts that need different numbers of labels",
        difficulty=1,
        minutes=5,
        cases=(
            Case("three prompts", {"prices": _double([1.0, 4.0, 9.0]), "number": 60.0}),
            Case("four prompts", {"prices": _double([0.5, 2.0, 8.0, 8.0]), "number": 100.0}),
        ),
        solution=share_labels,
        mistakes=(
            Mistake(
                "evenly",
                "all prompts get the same number, but one more label has more effect where the price is high.",
                lambda prices, number: torch.full_like(prices, number / len(prices)),
            ),
            Mistake(
                "in proportion to the price",
                "this makes every prompt's regret equal. The decrease by one more label must be equal instead.",
                lambda prices, number: number * prices / prices.sum(),
            ),
            Mistake(
                "inverted prices",
                "the prompt with the higher price gets fewer labels here: the price is on the wrong side.",
                lambda prices, number: number * prices.rsqrt() / prices.rsqrt().sum(),
            ),
            Mistake(
                "shares",
                "these are shares, which sum to 1. Give labels, which sum to `number`.",
                lambda prices, number: prices.sqrt() / prices.sqrt().sum(),
            ),
        ),
        hints=(
            "Minimise Σ price/n under Σ n = N: at the optimum the derivatives price/n² are all equal.",
            "So n is proportional to the square root of the price; scale it to sum to N.",
        ),
    ),
    Exercise(
        key="nb14.worth_of_a_label",
        title="What is the next label worth?",
        objective="compute for all pairs at the same time by how much one more label lowers the regret",
        difficulty=3,
        minutes=12,
        cases=(
            Case(
                "three responses", {"matters": _matters(_STAR), "told": _TOLD, "inverse": _inverse(_EDGES, 8.0)}
            ),
            Case(
                "four responses",
                {"matters": _matters(_STAR_4), "told": _TOLD_4, "inverse": _inverse(_EDGES_4, 20.0)},
            ),
        ),
        solution=worth_of_a_label,
        mistakes=(
            Mistake(
                "denominator forgotten",
                "the denominator 1 + w bᵀVb is missing: without it a label on a pair of which nothing is known "
                "would be worth more than all there is to gain.",
                lambda m, t, v: _worth(m, t, v, "denominator"),
            ),
            Mistake(
                "Σ forgotten",
                "Σ is missing, as if errors of all rewards affected the policy equally.",
                lambda m, t, v: _worth(m, t, v, "matters"),
            ),
            Mistake(
                "V once",
                "V is on one side of Σ only, but the change is V b bᵀ V.",
                lambda m, t, v: _worth(m, t, v, "once"),
            ),
            Mistake(
                "all labels alike",
                "the weight w = p(1 − p) is missing: a label that is certain beforehand has no value.",
                lambda m, t, v: _worth(m, t, v, "told"),
            ),
            Mistake(
                "sum for difference",
                "b is e_i + e_j here, but a label depends on the difference of two rewards.",
                lambda m, t, v: _worth(m, t, v, "sum"),
            ),
        ),
        hints=(
            "With H → H + w b bᵀ, Sherman–Morrison gives V → V − w V b bᵀ V/(1 + w bᵀ V b). Take tr(Σ ·) of it.",
            "For all pairs: `M[i, i] + M[j, j] - 2 M[i, j]` is bᵀ M b, with M = V and with M = V Σ V.",
        ),
    ),
    Exercise(
        key="nb14.regret_of_both",
        title="Demonstrations and labels together",
        objective="measure two kinds of data on one scale, the information about the rewards",
        difficulty=2,
        minutes=8,
        cases=(
            Case(
                "three responses",
                {
                    "star": _STAR, "demo": _DEMO, "information": _laplacian(_EDGES), "demonstrations": 20.0,
                    "labels": 50.0, "demo_beta": 2.0, "beta": 0.5,
                },
            ),
            Case(
                "four responses",
                {
                    "star": _STAR_4, "demo": _DEMO_4, "information": _laplacian(_EDGES_4), "demonstrations": 5.0,
                    "labels": 200.0, "demo_beta": 0.7, "beta": 0.3,
                },
            ),
        ),
        solution=regret_of_both,
        mistakes=(
            Mistake(
                "β_demo not squared",
                "β_demo must be squared: log π_demo moves by dr/β_demo, and information is the square of that.",
                lambda *given: _both("power", *given),
            ),
            Mistake(
                "prices added",
                "two regrets were added, but information adds up: the regret with both is lower than with either "
                "alone.",
                lambda *given: _both("apart", *given),
            ),
            Mistake(
                "π* as the demonstrator",
                "the demonstrations are taken to come from π*: the demonstrator draws from `demo`.",
                lambda *given: _both("star", *given),
            ),
            Mistake(
                "½ forgotten",
                "the ½ of the quadratic form is missing.",
                lambda *given: _both("half", *given),
            ),
            Mistake(
                "errors weighed by the demonstrator",
                "errors are weighted by the demonstrator's policy, but the regret depends on π*.",
                lambda *given: _both("demo", *given),
            ),
        ),
        hints=(
            "One demonstration carries the information (diag(π_demo) − π_demo π_demoᵀ)/β_demo², as the Hessian of "
            "log softmax(log π_0 + r/β_demo) says.",
            "Add D of those to N times `information`, take `torch.linalg.pinv`, then tr(Σ ·)/(2β).",
        ),
    ),
)  # fmt: skip
