"""Exercises of notebook 14: the annotation budget."""

from typing import Any

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.derivations.label_value import label_price
from rlhf_lab.derivations.random_worlds import RandomWorld
from rlhf_lab.exercises.checking import Case, Exercise, Mistake, Task
from rlhf_lab.exercises.derive import NextLine
from rlhf_lab.exercises.predictions import Prediction


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
    both = torch.as_tensor(edges, dtype=torch.float64)
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


def _inverse_information(w: RandomWorld) -> Tensor:
    """I(μ)⁺ in the first prompt, (K, K)."""
    p = exact.preference(w.reward[0])
    inverse: Tensor = torch.linalg.pinv(_laplacian(w.pair_weights[0] * p * (1 - p)), hermitian=True)
    return inverse


def trace_line(w: Any) -> Any:
    """The limit of N times the regret as a trace."""
    return torch.trace(w.sigma @ w.inverse) / (2 * w.beta)


_VARIANCES, _BUDGET = _double([1.0, 9.0]), 400.0

EXERCISES: tuple[Task, ...] = (
    Prediction(
        key="nb14.labels_of_a_prompt",
        title="Labels for an expensive prompt",
        objective="predict how a budget should be distributed over two prompts",
        difficulty=1,
        minutes=3,
        question=(
            "Two prompts are equally frequent. Their asymptotic variances are 1 and 9, so that the regret with $n$ "
            "labels is $1/n$ for the first and $9/n$ for the second. You have 400 labels. How many of them should the "
            "second prompt get, so that the sum of the regrets is minimal? Give a number of labels."
        ),
        truth=lambda: share_labels(_VARIANCES, _BUDGET)[1].item(),
        explanation=(
            "At the minimum one more label lowers both regrets equally, so φ/n² is the same for both "
            "prompts and n is proportional to √φ. The ratio is 3 to 1."
        ),
        mistakes=(
            Mistake(
                "in proportion",
                "with labels in proportion to the variance both regrets are equal. What must be equal is the decrease "
                "by one more label.",
                lambda: (_BUDGET * _VARIANCES / _VARIANCES.sum())[1].item(),
            ),
            Mistake("evenly", "one more label has more effect at the second prompt.", lambda: _BUDGET / 2),
            Mistake(
                "inverted",
                "the prompt with the higher variance needs more labels, not fewer.",
                lambda: share_labels(_VARIANCES, _BUDGET)[0].item(),
            ),
        ),
        relative=0.02,
    ),
    NextLine(
        key="nb14.trace_line",
        title="The limit of N times the regret as a trace",
        objective="compute the mean of a quadratic form of a Gaussian error",
        difficulty=2,
        minutes=6,
        derivation=label_price,
        line=2,
        quantities=("beta",),
        defined={
            "sigma": ("$\\Sigma$, the covariance matrix of $\\pi^*$, (K, K)", lambda w: _matters(w.star[0])),
            "inverse": ("$I(\\mu)^+$, (K, K)", _inverse_information),
        },
        solution=trace_line,
        mistakes=(
            Mistake(
                "entries multiplied",
                "the diagonals are multiplied entry by entry. A trace of a product contains all pairs of entries.",
                lambda w: (w.sigma.diagonal() * w.inverse.diagonal()).sum() / (2 * w.beta),
            ),
            Mistake(
                "product of traces",
                "the trace of a product is not the product of the traces.",
                lambda w: torch.trace(w.sigma) * torch.trace(w.inverse) / (2 * w.beta),
            ),
        ),
        hints=(
            "For standard normal z, the mean of $z^\\top B z$ is the sum of the diagonal entries of B. What is B here?",
            "Use $\\mathrm{tr}(A^\\top\\Sigma A)=\\mathrm{tr}(\\Sigma AA^\\top)$ and substitute $AA^\\top$.",
        ),
    ),
    Exercise(
        key="nb14.share_labels",
        title="Labels for prompts of different variance",
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
                "all prompts get the same number, but one more label has more effect where the variance is high.",
                lambda prices, number: torch.full_like(prices, number / len(prices)),
            ),
            Mistake(
                "in proportion to the variance",
                "this makes every prompt's regret equal. The decrease by one more label must be equal instead.",
                lambda prices, number: number * prices / prices.sum(),
            ),
            Mistake(
                "inverted",
                "the prompt with the higher variance gets fewer labels here. The variance is on the wrong side.",
                lambda prices, number: number * prices.rsqrt() / prices.rsqrt().sum(),
            ),
            Mistake(
                "shares",
                "these are shares, which sum to 1. Give labels, which sum to `number`.",
                lambda prices, number: prices.sqrt() / prices.sqrt().sum(),
            ),
            Mistake(
                "squared",
                "n is proportional to φ² here. Solve φ/n² = constant for n.",
                lambda prices, number: number * prices.square() / prices.square().sum(),
            ),
        ),
        hints=(
            "Minimise Σ φ/n under the constraint Σ n = N. At the optimum the derivatives φ/n² are all equal.",
            "So n is proportional to the square root of φ. Scale it so that the sum is N.",
        ),
    ),
    Exercise(
        key="nb14.worth_of_a_label",
        title="The value of the next label",
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
                "the denominator 1 + w bᵀVb is missing: without it, one label of a pair of which nothing is "
                "known would lower the regret by more than the whole regret.",
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
                "no weight",
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
