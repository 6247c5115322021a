"""Exercises of notebook 07: statistical rejection sampling."""

import torch
from torch import Tensor

from rlhf_lab.exercises.checking import Case, Exercise, Mistake


def _double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def acceptance(reward: Tensor, beta: float) -> Tensor:
    """exp((r − r_max)/β) of every candidate of every prompt."""
    return torch.exp((reward - reward.amax(-1, keepdim=True)) / beta)


def acceptance_rate(log_sft: Tensor, reward: Tensor, beta: float) -> Tensor:
    """1/M, the share of draws from π_sft that is accepted, of every prompt."""
    best = reward.amax(-1, keepdim=True)
    return (log_sft.exp() * torch.exp((reward - best) / beta)).sum(-1)


def gumbel_top_k(reward: Tensor, beta: float, uniform: Tensor, number: int) -> Tensor:
    """The accepted candidates of every prompt, from the uniform numbers given."""
    gumbel = -torch.log(-torch.log(uniform))
    return (reward / beta + gumbel).topk(number, -1).indices


def two_accepted(reward: Tensor, beta: float) -> Tensor:
    """P(candidate i is accepted first and j second), (K, K)."""
    first = torch.softmax(reward / beta, -1)
    both = first[:, None] * first[None, :] / (1 - first[:, None])
    return both * (1 - torch.eye(len(reward), dtype=reward.dtype))


def _rate(log_sft: Tensor, reward: Tensor, beta: float, mistake: str) -> Tensor:
    """`acceptance_rate` with one mistake."""
    gap = reward - (0.0 if mistake == "maximum" else reward.amax(-1, keepdim=True))
    chance = torch.exp(gap * beta if mistake == "beta" else gap / beta)
    if mistake == "uniform":
        return chance.mean(-1)
    if mistake == "target":
        return ((log_sft + reward / beta).softmax(-1) * chance).sum(-1)
    rate = (log_sft.exp() * chance).sum(-1)
    return 1 / rate if mistake == "upside down" else rate


def _top(reward: Tensor, beta: float, uniform: Tensor, number: int, mistake: str) -> Tensor:
    """`gumbel_top_k` with one mistake."""
    gumbel = -torch.log(-torch.log(uniform))
    scores = {
        "sign": reward / beta - gumbel,
        "beta": reward + gumbel,
        "upside down": reward * beta + gumbel,
        "noise": reward / beta + uniform,
        "none": reward / beta,
        "lowest": -(reward / beta + gumbel),
    }
    return scores[mistake].topk(number, -1).indices


def _two(reward: Tensor, beta: float, mistake: str) -> Tensor:
    """`two_accepted` with one mistake."""
    first = torch.softmax(reward * beta if mistake == "beta" else reward / beta, -1)
    apart = 1 - torch.eye(len(reward), dtype=reward.dtype)
    if mistake == "replacement":
        return first[:, None] * first[None, :]
    if mistake == "zeroed":
        return first[:, None] * first[None, :] * apart
    both = first[:, None] * first[None, :] / (1 - first[:, None])
    if mistake == "diagonal":
        return both
    if mistake == "transposed":
        return (both * apart).T
    both = both * apart
    return both + both.T if mistake == "sets" else both


_REWARDS = _double([[0.0, 1.0, 0.4, -0.7], [2.0, -1.0, 0.5, 1.9]])
_UNIFORM = _double([[0.62, 0.21, 0.91, 0.35], [0.07, 0.93, 0.85, 0.02]])
_WIDE = _double([[1.2, -0.3, 0.8]])

EXERCISES = (
    Exercise(
        key="nb07.acceptance",
        title="The acceptance probability",
        objective="write the acceptance probability for candidates of several prompts at the same time",
        difficulty=1,
        minutes=4,
        cases=(
            Case("two prompts, four candidates each", {"reward": _REWARDS, "beta": 0.5}),
            Case("one prompt, a large β", {"reward": _WIDE, "beta": 3.0}),
        ),
        solution=acceptance,
        mistakes=(
            Mistake(
                "no maximum",
                "r_max is missing. exp(r/β) is not a probability, and every candidate with a positive reward would "
                "be accepted.",
                lambda r, beta: torch.exp(r / beta),
            ),
            Mistake(
                "wrong axis",
                "the maximum is over several prompts, but each prompt has a separate M, over its candidates.",
                lambda r, beta: torch.exp((r - r.max()) / beta),
            ),
            Mistake(
                "maximum over prompts",
                "the maximum is over the prompts. The candidates are the last axis.",
                lambda r, beta: torch.exp((r - r.amax(0, keepdim=True)) / beta),
            ),
            Mistake(
                "beta on the wrong side",
                "β multiplies the gap, but the reward is divided by β.",
                lambda r, beta: torch.exp((r - r.amax(-1, keepdim=True)) * beta),
            ),
            Mistake(
                "no beta",
                "β is missing.",
                lambda r, beta: torch.exp(r - r.amax(-1, keepdim=True)),
            ),
            Mistake(
                "sign",
                "the sign is wrong. The best candidate must be accepted with probability one, the others with less.",
                lambda r, beta: torch.exp((r.amax(-1, keepdim=True) - r) / beta),
            ),
            Mistake(
                "softmax",
                "these sum to one over the candidates, but the acceptance probability of the best candidate is exactly "
                "one.",
                lambda r, beta: torch.softmax(r / beta, -1),
            ),
        ),
        hints=(
            "u is compared with π_r/(M π_sft). Which part of that does not depend on y, and cancels in M?",
            "`reward.amax(-1, keepdim=True)` is r_max of each prompt. The best candidate has the probability exp(0).",
        ),
    ),
    Exercise(
        key="nb07.acceptance_rate",
        title="The cost of a sample",
        objective="compute the share of draws that is accepted, without drawing",
        difficulty=2,
        minutes=5,
        cases=(
            Case(
                "two prompts, four responses each",
                {
                    "log_sft": _double([[0.4, 0.3, 0.2, 0.1], [0.1, 0.45, 0.15, 0.3]]).log(),
                    "reward": _REWARDS,
                    "beta": 0.5,
                },
            ),
            Case(
                "one prompt, a large β",
                {"log_sft": _double([[0.2, 0.5, 0.3]]).log(), "reward": _WIDE, "beta": 3.0},
            ),
        ),
        solution=acceptance_rate,
        mistakes=(
            Mistake(
                "upside down",
                "this is M, the mean number of draws for one sample. The rate is its inverse and at most one.",
                lambda log_sft, r, beta: _rate(log_sft, r, beta, "upside down"),
            ),
            Mistake(
                "π_sft forgotten",
                "all responses have the same weight here, but draws come from π_sft, which gives the weights.",
                lambda log_sft, r, beta: _rate(log_sft, r, beta, "uniform"),
            ),
            Mistake(
                "mean under the target",
                "the mean is under π_r, but the draws come from π_sft. Only the accepted ones follow π_r.",
                lambda log_sft, r, beta: _rate(log_sft, r, beta, "target"),
            ),
            Mistake(
                "no maximum",
                "r_max is missing. This is Z, which can be above one.",
                lambda log_sft, r, beta: _rate(log_sft, r, beta, "maximum"),
            ),
            Mistake(
                "beta on the wrong side",
                "β multiplies the gap, but a small β must make acceptance rarer, not more frequent.",
                lambda log_sft, r, beta: _rate(log_sft, r, beta, "beta"),
            ),
            Mistake(
                "log-probabilities as weights",
                "the weights are log-probabilities. Take `.exp()` before you average.",
                lambda log_sft, r, beta: (log_sft * acceptance(r, beta)).sum(-1),
            ),
        ),
        hints=(
            "Of the draws equal to y, the share exp((r(y) − r_max)/β) is accepted. How often is a draw y?",
            "An expectation under π_sft: `(log_sft.exp() * …).sum(-1)`, with your answer to the first exercise inside.",
        ),
    ),
    Exercise(
        key="nb07.gumbel_top_k",
        title="Rejection sampling as a sort",
        objective="write rejection sampling without replacement as a sort",
        difficulty=2,
        minutes=6,
        cases=(
            Case(
                "two prompts, two of four candidates",
                {"reward": _REWARDS, "beta": 0.5, "uniform": _UNIFORM, "number": 2},
            ),
            Case(
                "the same at a large β",
                {"reward": _REWARDS, "beta": 4.0, "uniform": _UNIFORM, "number": 3},
            ),
        ),
        solution=gumbel_top_k,
        mistakes=(
            Mistake(
                "sign of the noise",
                "the noise has the wrong sign. Gumbel noise is −log(−log u), with two minus signs.",
                lambda r, beta, u, n: _top(r, beta, u, n, "sign"),
            ),
            Mistake(
                "no beta",
                "β is missing. The noise is of order one, so the rewards must be in nats, r/β.",
                lambda r, beta, u, n: _top(r, beta, u, n, "beta"),
            ),
            Mistake(
                "beta on the wrong side",
                "β multiplies the reward, but with a small β the reward must decide, not the noise.",
                lambda r, beta, u, n: _top(r, beta, u, n, "upside down"),
            ),
            Mistake(
                "uniform noise",
                "the noise is uniform, but only Gumbel noise gives probabilities proportional to exp(r/β).",
                lambda r, beta, u, n: _top(r, beta, u, n, "noise"),
            ),
            Mistake(
                "no noise",
                "the noise is missing. This is best-of-n, the limit β → 0.",
                lambda r, beta, u, n: _top(r, beta, u, n, "none"),
            ),
            Mistake(
                "lowest",
                "these are the lowest noisy scores, but the highest are accepted.",
                lambda r, beta, u, n: _top(r, beta, u, n, "lowest"),
            ),
        ),
        hints=(
            "Make Gumbel noise from the uniform numbers, −log(−log u), and add it to the rewards in nats.",
            "`scores.topk(number, -1).indices` gives the positions of the largest scores, the largest first.",
        ),
    ),
    Exercise(
        key="nb07.two_accepted",
        title="Which candidate is accepted first, and which second",
        objective="derive the exact distribution against which a sampler without replacement is tested",
        difficulty=3,
        minutes=10,
        cases=(
            Case("four candidates", {"reward": _REWARDS[0], "beta": 0.5}),
            Case("three candidates, a large β", {"reward": _WIDE[0], "beta": 3.0}),
        ),
        solution=two_accepted,
        mistakes=(
            Mistake(
                "with replacement",
                "these are two draws with replacement, but an accepted candidate is removed and cannot be accepted "
                "again.",
                lambda r, beta: _two(r, beta, "replacement"),
            ),
            Mistake(
                "not renormalised",
                "the diagonal is zero, but the rest does not sum to one. The second probabilities must be "
                "renormalised.",
                lambda r, beta: _two(r, beta, "zeroed"),
            ),
            Mistake(
                "diagonal",
                "the diagonal is not zero, but a candidate cannot be both first and second.",
                lambda r, beta: _two(r, beta, "diagonal"),
            ),
            Mistake(
                "transposed",
                "rows and columns are swapped. Row i is the first accepted candidate.",
                lambda r, beta: _two(r, beta, "transposed"),
            ),
            Mistake(
                "order lost",
                "both orders are added, but (i, j) and (j, i) are different events, and the table sums to one.",
                lambda r, beta: _two(r, beta, "sets"),
            ),
            Mistake(
                "beta on the wrong side",
                "β multiplies the reward.",
                lambda r, beta: _two(r, beta, "beta"),
            ),
        ),
        hints=(
            "The first is a softmax of r/β over all candidates. The second is a softmax over the remaining ones. What "
            "is its denominator?",
            "P(j second | i first) = p_j/(1 − p_i) for j ≠ i. As a table this is "
            "`p[:, None] * p[None, :] / (1 - p[:, None])`. Then set the diagonal to zero.",
        ),
    ),
)
