"""Exercises of notebook 04: the partition function."""

import math

import torch
from torch import Tensor

from rlhf_lab.exercises.checking import Case, Exercise, Mistake


def _double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def log_z_estimate(reward: Tensor, beta: float) -> Tensor:
    """log Ẑ of each prompt, (X,), from rewards of n draws of π_ref, (X, n)."""
    return torch.logsumexp(reward / beta, -1) - math.log(reward.shape[-1])


def samples_needed(log_ref: Tensor, reward: Tensor, beta: float, accuracy: float) -> Tensor:
    """n at which sd(Ẑ)/Z is `accuracy`, (…), from tables (…, K); not rounded."""
    log_z = torch.logsumexp(log_ref + reward / beta, -1)
    log_second = torch.logsumexp(log_ref + 2 * reward / beta, -1)
    return (torch.exp(log_second - 2 * log_z) - 1) / accuracy**2


def preference(log_policy: Tensor, log_ref: Tensor, beta: float) -> Tensor:
    """p(i ≻ j), (K, K), row against column, from π* and π_ref alone, (K,) each."""
    implicit = beta * (log_policy - log_ref)
    return torch.sigmoid(implicit.unsqueeze(-1) - implicit.unsqueeze(-2))


def log_z_chain(log_first: Tensor, log_next: Tensor, reward: Tensor, beta: float, length: int) -> Tensor:
    """log Z over all V^length sequences, without enumeration."""
    log_sum = log_first
    for _ in range(length - 1):
        log_sum = torch.logsumexp(log_sum.unsqueeze(-1) + log_next + reward / beta, 0)
    return torch.logsumexp(log_sum, -1)


def _chain(
    log_first: Tensor,
    log_next: Tensor,
    reward: Tensor,
    beta: float,
    steps: int,
    turned: bool = False,
    best: bool = False,
) -> Tensor:
    log_sum = log_first
    for _ in range(steps):
        joint = log_sum.unsqueeze(-1) + log_next + reward / beta
        if best:
            log_sum = joint.amax(0)
        else:
            log_sum = torch.logsumexp(joint, 1 if turned else 0)
    return log_sum.amax(-1) if best else torch.logsumexp(log_sum, -1)


_DRAWN = _double([[0.0, 1.0, 2.0, 0.5], [-1.0, 0.5, 1.5, -0.5]])
_REF = _double([[0.5, 0.3, 0.2], [0.1, 0.7, 0.2]]).log()
_REWARD = _double([[0.0, 1.0, 2.0], [-1.0, 0.5, 1.5]])
_CHAIN = {
    "log_first": _double([0.5, 0.3, 0.2]).log(),
    "log_next": _double([[0.1, 0.6, 0.3], [0.2, 0.2, 0.6], [0.7, 0.2, 0.1]]).log(),
    "reward": _double([[-1.0, 1.0, 0.0], [0.0, -1.0, 0.5], [0.5, 0.0, -1.0]]),
    "beta": 0.5,
    "length": 4,
}

EXERCISES = (
    Exercise(
        key="nb04.log_z_estimate",
        title="log Z from samples",
        objective="estimate log Z from rewards of samples, without overflow",
        difficulty=1,
        minutes=4,
        cases=(
            Case("two prompts, four samples each", {"reward": _DRAWN, "beta": 0.5}),
            Case("a β of a thousandth", {"reward": _DRAWN, "beta": 0.001}),
        ),
        solution=log_z_estimate,
        mistakes=(
            Mistake(
                "logarithm inside",
                "this is the mean of r/β, but the logarithm is taken after the mean. (By Jensen, this is never "
                "larger.)",
                lambda reward, beta: (reward / beta).mean(-1),
            ),
            Mistake(
                "sum for mean",
                "this is the sum over the samples instead of their mean. Subtract log n.",
                lambda reward, beta: torch.logsumexp(reward / beta, -1),
            ),
            Mistake(
                "overflow",
                "this is correct on paper, but exp(r/β) overflows at a small β. Use torch.logsumexp.",
                lambda reward, beta: torch.exp(reward / beta).mean(-1).log(),
            ),
            Mistake(
                "multiplied by β",
                "the reward is multiplied by β instead of divided.",
                lambda reward, beta: torch.logsumexp(reward * beta, -1) - math.log(reward.shape[-1]),
            ),
            Mistake(
                "missing β",
                "β is missing. Z is a mean of exp(r/β).",
                lambda reward, beta: torch.logsumexp(reward, -1) - math.log(reward.shape[-1]),
            ),
            Mistake(
                "wrong axis",
                "this is averaged over the prompts. Samples are the last axis, and every prompt has its own Z.",
                lambda reward, beta: torch.logsumexp(reward / beta, 0) - math.log(reward.shape[0]),
            ),
            Mistake(
                "Z for log Z",
                "this is Ẑ, but its logarithm is required.",
                lambda reward, beta: torch.exp(reward / beta).mean(-1),
            ),
        ),
        hints=(
            "Z is an expectation under π_ref. How do you estimate an expectation from samples of π_ref?",
            "The estimate is log((1/n) Σ exp(r/β)). `torch.logsumexp` is the logarithm of the sum, from which log n is "
            "subtracted.",
        ),
    ),
    Exercise(
        key="nb04.samples_needed",
        title="How many samples?",
        objective="turn the variance formula into the required number of samples",
        difficulty=2,
        minutes=7,
        cases=(
            Case("ten percent", {"log_ref": _REF, "reward": _REWARD, "beta": 0.5, "accuracy": 0.1}),
            Case(
                "an accuracy of a quarter, at a smaller β",
                {"log_ref": _REF, "reward": _REWARD, "beta": 0.2, "accuracy": 0.25},
            ),
        ),
        solution=samples_needed,
        mistakes=(
            Mistake(
                "accuracy not squared",
                "this is divided by the accuracy instead of its square. Standard deviations fall with √n.",
                lambda log_ref, reward, beta, accuracy: samples_needed(log_ref, reward, beta, accuracy) * accuracy,
            ),
            Mistake(
                "square of the mean missing",
                "E[w²]/Z² is the second moment. The variance is smaller by one.",
                lambda log_ref, reward, beta, accuracy: (
                    samples_needed(log_ref, reward, beta, accuracy) + 1 / accuracy**2
                ),
            ),
            Mistake(
                "β doubled",
                "exp(r/β)² is exp(2r/β), so β is halved and not doubled.",
                lambda log_ref, reward, beta, accuracy: (
                    (
                        torch.exp(
                            torch.logsumexp(log_ref + reward / (2 * beta), -1)
                            - 2 * torch.logsumexp(log_ref + reward / beta, -1)
                        )
                        - 1
                    )
                    / accuracy**2
                ),
            ),
            Mistake(
                "not relative",
                "this is the plain variance, but `accuracy` is relative to Z, so divide by Z².",
                lambda log_ref, reward, beta, accuracy: (
                    samples_needed(log_ref, reward, beta, accuracy)
                    * torch.exp(2 * torch.logsumexp(log_ref + reward / beta, -1))
                ),
            ),
            Mistake(
                "divided by Z once",
                "this is divided by Z instead of Z². The second moment has the unit of Z².",
                lambda log_ref, reward, beta, accuracy: (
                    (
                        torch.exp(
                            torch.logsumexp(log_ref + 2 * reward / beta, -1)
                            - torch.logsumexp(log_ref + reward / beta, -1)
                        )
                        - 1
                    )
                    / accuracy**2
                ),
            ),
            Mistake(
                "wrong axis",
                "the sum is over the prompts, but responses are the last axis.",
                lambda log_ref, reward, beta, accuracy: (
                    (
                        torch.exp(
                            torch.logsumexp(log_ref + 2 * reward / beta, 0)
                            - 2 * torch.logsumexp(log_ref + reward / beta, 0)
                        )
                        - 1
                    )
                    / accuracy**2
                ),
            ),
        ),
        hints=(
            "The derivation shows that Var(Ẑ)/Z² = (E[e^{2r/β}]/Z² − 1)/n. Set it equal to accuracy² and solve for n.",
            "Both moments are logsumexps, one of log_ref + r/β and one of log_ref + 2r/β. Subtract the logarithms "
            "first, and then use exp.",
        ),
    ),
    Exercise(
        key="nb04.preference",
        title="A preference without Z",
        objective="compute preferences from π* and π_ref alone",
        difficulty=2,
        minutes=5,
        cases=(
            Case(
                "three responses",
                {"log_policy": _double([0.1, 0.3, 0.6]).log(), "log_ref": _REF[0], "beta": 0.5},
            ),
        ),
        solution=preference,
        mistakes=(
            Mistake(
                "swapped pair",
                "the pair is swapped. Entry (i, j) is the probability that i beats j.",
                lambda log_policy, log_ref, beta: preference(log_policy, log_ref, beta).transpose(-1, -2),
            ),
            Mistake(
                "missing β",
                "β is missing. A log-ratio is in nats, and the reward is β times it.",
                lambda log_policy, log_ref, beta: preference(log_policy, log_ref, 1.0),
            ),
            Mistake(
                "missing reference",
                "the reference is missing. Z cancels between two responses, but π_ref(y|x) does not, because it "
                "depends on y.",
                lambda log_policy, log_ref, beta: preference(log_policy, torch.zeros_like(log_ref), beta),
            ),
            Mistake(
                "divided by β",
                "this is divided by β instead of multiplied. The reward is r = β log(π*/π_ref) + β log Z.",
                lambda log_policy, log_ref, beta: preference(log_policy, log_ref, 1 / beta),
            ),
            Mistake(
                "ratio of policies",
                "π(i)/(π(i) + π(j)) is how often the policy gives i rather than j, not how often people prefer i.",
                lambda log_policy, log_ref, beta: torch.sigmoid(log_policy.unsqueeze(-1) - log_policy.unsqueeze(-2)),
            ),
        ),
        hints=(
            "Write the reward in terms of its optimal policy. Which of the two terms depends on the response?",
            "It is σ of the difference of β(log π − log π_ref). `unsqueeze(-1)` makes the rows and `unsqueeze(-2)` the "
            "columns.",
        ),
    ),
    Exercise(
        key="nb04.log_z_chain",
        title="Z without enumeration",
        objective="sum over V^L sequences in L·V² steps, and see which structure this needs",
        difficulty=3,
        minutes=12,
        cases=(
            Case("81 sequences", _CHAIN),
            Case("a single token", {**_CHAIN, "length": 1}),
            Case("ten tokens, β = 1", {**_CHAIN, "length": 10, "beta": 1.0}),
        ),
        solution=log_z_chain,
        mistakes=(
            Mistake(
                "one step too many",
                "this is one step too many. The first token is given, so length − 1 steps remain.",
                lambda log_first, log_next, reward, beta, length: _chain(log_first, log_next, reward, beta, length),
            ),
            Mistake(
                "summed over the next token",
                "the sum is over the next token. Keep the next token, and sum over the previous one.",
                lambda log_first, log_next, reward, beta, length: _chain(
                    log_first, log_next, reward, beta, length - 1, turned=True
                ),
            ),
            Mistake(
                "maximum for sum",
                "this is the single largest term of Z (Viterbi), but Z is a sum.",
                lambda log_first, log_next, reward, beta, length: _chain(
                    log_first, log_next, reward, beta, length - 1, best=True
                ),
            ),
            Mistake(
                "missing β",
                "β is missing. The reward is divided by β.",
                lambda log_first, log_next, reward, beta, length: _chain(log_first, log_next, reward, 1.0, length - 1),
            ),
            Mistake(
                "missing reference",
                "the reference's transitions are missing. Every next token counts the same.",
                lambda log_first, log_next, reward, beta, length: _chain(
                    log_first, torch.zeros_like(log_next), reward, beta, length - 1
                ),
            ),
            Mistake(
                "tables transposed",
                "the tables are transposed. The row is the previous token, and the column is the next one.",
                lambda log_first, log_next, reward, beta, length: _chain(
                    log_first, log_next.T, reward.T, beta, length - 1
                ),
            ),
        ),
        hints=(
            "The future depends on a prefix only through its last token. How many last tokens are there?",
            "For each last token b, store the log of the sum over all prefixes that end in b. A next token c adds "
            "log_next[b, c] + reward[b, c]/β. Then sum over b with `torch.logsumexp(…, 0)`.",
        ),
    ),
)
