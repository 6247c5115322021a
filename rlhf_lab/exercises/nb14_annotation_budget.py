"""Exercises of notebook 14: the annotation budget."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.derivations.label_value import label_price
from rlhf_lab.derivations.random_worlds import RandomWorld
from rlhf_lab.exercises.checking import Case, Exercise, Mistake, Task, double
from rlhf_lab.exercises.derive import NextLine
from rlhf_lab.exercises.edits import wrong_answers
from rlhf_lab.exercises.lecture_loop import BETA, LOG_REF, REWARD
from rlhf_lab.exercises.predictions import Prediction
from rlhf_lab.exercises.training_loops import TrainingLoop
from rlhf_lab.training import seeded


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


def _laplacian(edges: object) -> Tensor:
    both = torch.as_tensor(edges, dtype=torch.float64)
    both = both + both.T
    return torch.diag(both.sum(-1)) - both


_STAR, _DEMO = double([0.6, 0.3, 0.1]), double([0.4, 0.35, 0.25])
_STAR_4, _DEMO_4 = double([0.05, 0.15, 0.3, 0.5]), double([0.1, 0.3, 0.2, 0.4])
_TOLD = double([[0.0, 0.2, 0.1], [0.2, 0.0, 0.25], [0.1, 0.25, 0.0]])
_TOLD_4 = double([[0.0, 0.2, 0.1, 0.05], [0.2, 0.0, 0.25, 0.15], [0.1, 0.25, 0.0, 0.22], [0.05, 0.15, 0.22, 0.0]])
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


_DEMO_BETA = 2.0


def _wins(labels: Sequence[Sequence[int]], seed: int) -> Tensor:
    """How often i was preferred to j, (4, 4), with `labels[i][j]` Bradley–Terry labels of the pair i < j."""
    number = double(labels)
    drawn = torch.rand(int(number.max()), 4, 4, dtype=torch.float64, generator=seeded(14, seed))
    counted = torch.arange(len(drawn))[:, None, None] < number
    won = (counted & (drawn < exact.preference(REWARD[0]))).double().sum(0)
    return won + (number - won).T


def _plug_in_regret(rewards: Tensor) -> float:
    """The regret of the policy that is optimal for the fitted rewards."""
    return exact.regret(exact.optimal_policy(LOG_REF[0], rewards, BETA), LOG_REF[0], REWARD[0], BETA).item()


def _both_arguments() -> dict[str, Any]:
    """Demonstrations, and labels on two pairs that have no response in common."""
    demo = exact.optimal_policy(LOG_REF[0], REWARD[0], _DEMO_BETA).exp()
    shown = torch.multinomial(demo, 100, True, generator=seeded(14))
    return {
        "rewards": torch.zeros(4, dtype=torch.float64, requires_grad=True),
        "log_ref": LOG_REF[0],
        "demonstrations": torch.bincount(shown, minlength=4).double(),
        "wins": _wins([[0, 1000, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1000], [0, 0, 0, 0]], 1),
        "demo_beta": _DEMO_BETA,
        "steps": 200,
        "learning_rate": 5.0,
    }


def fit_both(
    rewards: Tensor,
    log_ref: Tensor,
    demonstrations: Tensor,
    wins: Tensor,
    demo_beta: float,
    steps: int,
    learning_rate: float,
) -> list[float]:
    """Fit rewards to demonstrations and labels by maximum likelihood."""
    optimizer = torch.optim.SGD([rewards], lr=learning_rate)
    total = demonstrations.sum() + wins.sum()
    losses = []
    for _ in range(steps):
        log_demo = (log_ref + rewards / demo_beta).log_softmax(-1)
        difference = rewards[:, None] - rewards[None, :]  # row minus column
        log_wins = torch.nn.functional.logsigmoid(difference)
        loss = -((demonstrations * log_demo).sum() + (wins * log_wins).sum()) / total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _count_arguments() -> dict[str, Any]:
    """Many labels on three pairs and a single label on each of the others."""
    return {
        "rewards": torch.zeros(4, dtype=torch.float64, requires_grad=True),
        "wins": _wins([[0, 300, 1, 1], [0, 0, 300, 1], [0, 0, 0, 300], [0, 0, 0, 0]], 2),
        "steps": 200,
        "learning_rate": 5.0,
    }


def fit_counts(rewards: Tensor, wins: Tensor, steps: int, learning_rate: float) -> list[float]:
    """Fit rewards to labels by maximum likelihood."""
    optimizer = torch.optim.SGD([rewards], lr=learning_rate)
    losses = []
    for _ in range(steps):
        difference = rewards[:, None] - rewards[None, :]  # row minus column
        log_wins = torch.nn.functional.logsigmoid(difference)
        loss = -(wins * log_wins).sum() / wins.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


_VARIANCES, _BUDGET = double([1.0, 9.0]), 400.0

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
        mistakes=wrong_answers(
            trace_line,
            {
                "entries multiplied": lambda w: (w.sigma.diagonal() * w.inverse.diagonal()).sum() / (2 * w.beta),
                "product of traces": lambda w: torch.trace(w.sigma) * torch.trace(w.inverse) / (2 * w.beta),
            },
            {
                "entries multiplied": "the diagonals are multiplied entry by entry. A trace of a product contains all "
                "pairs of entries.",
                "product of traces": "the trace of a product is not the product of the traces.",
            },
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
            Case("three prompts", {"prices": double([1.0, 4.0, 9.0]), "number": 60.0}),
            Case("four prompts", {"prices": double([0.5, 2.0, 8.0, 8.0]), "number": 100.0}),
        ),
        solution=share_labels,
        mistakes=wrong_answers(
            share_labels,
            {
                "evenly": lambda prices, number: torch.full_like(prices, number / len(prices)),
                "in proportion to the variance": lambda prices, number: number * prices / prices.sum(),
                "inverted": lambda prices, number: number * prices.rsqrt() / prices.rsqrt().sum(),
                "shares": lambda prices, number: prices.sqrt() / prices.sqrt().sum(),
                "squared": lambda prices, number: number * prices.square() / prices.square().sum(),
            },
            {
                "evenly": "all prompts get the same number, but one more label has more effect where the variance is "
                "high.",
                "in proportion to the variance": "this makes every prompt's regret equal. The decrease by one more "
                "label must be equal instead.",
                "inverted": "the prompt with the higher variance gets fewer labels here. The variance is on the wrong "
                "side.",
                "shares": "these are shares, which sum to 1. Give labels, which sum to `number`.",
                "squared": "n is proportional to φ² here. Solve φ/n² = constant for n.",
            },
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
            Case("three responses", {"matters": _matters(_STAR), "told": _TOLD, "inverse": _inverse(_EDGES, 8.0)}),
            Case(
                "four responses",
                {"matters": _matters(_STAR_4), "told": _TOLD_4, "inverse": _inverse(_EDGES_4, 20.0)},
            ),
        ),
        solution=worth_of_a_label,
        mistakes=wrong_answers(
            worth_of_a_label,
            {
                "denominator forgotten": "@ inverse) / (1 + told * between(inverse)) → @ inverse)",
                "Σ forgotten": "inverse @ matters @ inverse → inverse @ inverse",
                "V once": "inverse @ matters @ inverse → matters @ inverse",
                "no weight": (
                    "return told * → return",
                    "1 + told * → 1 +",
                ),
                "sum for difference": "- matrix - matrix.T → + matrix + matrix.T",
            },
            {
                "denominator forgotten": "the denominator 1 + w bᵀVb is missing: without it, one label of a pair of "
                "which nothing is known would lower the regret by more than the whole regret.",
                "Σ forgotten": "Σ is missing, as if errors of all rewards affected the policy equally.",
                "V once": "V is on one side of Σ only, but the change is V b bᵀ V.",
                "no weight": "the weight w = p(1 − p) is missing: a label that is certain beforehand has no value.",
                "sum for difference": "b is e_i + e_j here, but a label depends on the difference of two rewards.",
            },
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
                    "star": _STAR,
                    "demo": _DEMO,
                    "information": _laplacian(_EDGES),
                    "demonstrations": 20.0,
                    "labels": 50.0,
                    "demo_beta": 2.0,
                    "beta": 0.5,
                },
            ),
            Case(
                "four responses",
                {
                    "star": _STAR_4,
                    "demo": _DEMO_4,
                    "information": _laplacian(_EDGES_4),
                    "demonstrations": 5.0,
                    "labels": 200.0,
                    "demo_beta": 0.7,
                    "beta": 0.3,
                },
            ),
        ),
        solution=regret_of_both,
        mistakes=wrong_answers(
            regret_of_both,
            {
                "β_demo not squared": "demo_beta**2 → demo_beta",
                "prices added": (
                    (
                        "known = demonstrations * shown + labels * information → "
                        "parts = (demonstrations * shown, labels * information)"
                    ),
                    (
                        "torch.trace(matters @ torch.linalg.pinv(known)) → "
                        "sum(torch.trace(matters @ torch.linalg.pinv(part)) for part in parts)"
                    ),
                ),
                "π* as the demonstrator": "diag(demo) - torch.outer(demo, demo) → diag(star) - torch.outer(star, star)",
                "½ forgotten": "(2 * beta) → beta",
                "errors weighed by the demonstrator": (
                    "diag(star) - torch.outer(star, star) → diag(demo) - torch.outer(demo, demo)"
                ),
            },
            {
                "β_demo not squared": "β_demo must be squared: log π_demo moves by dr/β_demo, and information is the "
                "square of that.",
                "prices added": "two regrets were added, but information adds up: the regret with both is lower than "
                "with either alone.",
                "π* as the demonstrator": "the demonstrations are taken to come from π*: the demonstrator draws from "
                "`demo`.",
                "½ forgotten": "the ½ of the quadratic form is missing.",
                "errors weighed by the demonstrator": "errors are weighted by the demonstrator's policy, but the "
                "regret depends on π*.",
            },
        ),
        hints=(
            "One demonstration carries the information (diag(π_demo) − π_demo π_demoᵀ)/β_demo², as the Hessian of "
            "log softmax(log π_0 + r/β_demo) says.",
            "Add D of those to N times `information`, take `torch.linalg.pinv`, then tr(Σ ·)/(2β).",
        ),
    ),
    TrainingLoop(
        key="nb14.fit_both",
        title="Rewards from demonstrations and labels",
        objective="fit one set of rewards to two kinds of data",
        difficulty=3,
        minutes=15,
        arguments=_both_arguments,
        distance=_plug_in_regret,
        share=0.01,
        solution=fit_both,
        mistakes=wrong_answers(
            fit_both,
            {
                "no demonstrations": "(demonstrations * log_demo).sum() + (wins → (wins",
                "no labels": "log_demo).sum() + (wins * log_wins).sum() → log_demo).sum()",
                "no demonstrator's beta": "rewards / demo_beta → rewards",
                "no reference": "log_ref + rewards → rewards",
                "two means": (
                    "-((demonstrations * log_demo).sum() + (wins * log_wins).sum()) / total → "
                    "-(demonstrations * log_demo).sum() / demonstrations.sum() - (wins * log_wins).sum() / wins.sum()"
                ),
                "swapped": "wins * log_wins → wins.T * log_wins",
                "sign": "loss.backward() → (-loss).backward()",
                "gradients not reset": "optimizer.zero_grad() → pass",
            },
            {
                "no demonstrations": "the demonstrations are not used. The labels alone do not compare the two halves "
                "of the responses.",
                "no labels": "the labels are not used.",
                "no demonstrator's beta": "β_demo is missing: the demonstrator's log-ratio is r/β_demo.",
                "no reference": "the demonstrator's policy starts from π_0, so log_ref must be added to r/β_demo.",
                "two means": "each kind of data is averaged separately. In a likelihood each demonstration and each "
                "label counts once.",
                "swapped": "rows and columns of wins are swapped.",
                "sign": "the sign is lost, so that descent lowers the likelihood.",
                "gradients not reset": "gradients add up over the steps, because they are not reset to zero.",
            },
            pairs=(("no demonstrator's beta", "no reference"),),
        ),
        hints=(
            "The logarithm of the likelihood is a sum over demonstrations and labels. Descend on its negative, divided "
            "by their number.",
            "A demonstration y contributes log π_demo(y), with π_demo ∝ π_0 exp(r/β_demo). A label contributes "
            "log σ(r_i − r_j), where i was preferred.",
            "With `difference = rewards[:, None] - rewards[None, :]` the labels contribute "
            "`(wins * torch.nn.functional.logsigmoid(difference)).sum()`.",
        ),
    ),
    TrainingLoop(
        key="nb14.fit_counts",
        title="A fit in which one label counts as much as 300",
        objective="find a bug in the weights of a fit",
        difficulty=2,
        minutes=8,
        arguments=_count_arguments,
        distance=_plug_in_regret,
        share=0.02,
        solution=fit_counts,
        bug="rates",
        mistakes=wrong_answers(
            fit_counts,
            {
                "rates": (
                    "losses = [] → labels = (wins + wins.T).clamp(min=1)\n    rate = wins / labels\n    losses = []",
                    "(wins * log_wins).sum() / wins.sum() → (rate * log_wins).sum() / rate.sum()",
                ),
                "half of the table": ("optimizer = → wins = wins.triu()\n    optimizer ="),
                "labels of both": ("optimizer = → wins = wins + wins.T\n    optimizer ="),
                "swapped": ("optimizer = → wins = wins.T\n    optimizer ="),
                "sign": "loss.backward() → (-loss).backward()",
                "gradients not reset": "optimizer.zero_grad() → pass",
            },
            {
                "rates": "the loss contains shares of wins instead of counts, so that each pair has the same weight.",
                "half of the table": "only the labels for which the response with the lower number won are used.",
                "labels of both": "wins and losses are added, so that the loss does not depend on which response won.",
                "swapped": "rows and columns of wins are swapped.",
                "sign": "the sign is lost, so that descent lowers the likelihood.",
                "gradients not reset": "gradients add up over the steps, because they are not reset to zero.",
            },
            pairs=(("rates", "swapped"),),
        ),
        hints=(
            "Three pairs have 300 labels each, and three have a single one. Which weight does each pair have in the "
            "loss, and which one should it have?",
            "A likelihood is a product over labels. A pair with 300 labels occurs in it 300 times.",
        ),
    ),
)
