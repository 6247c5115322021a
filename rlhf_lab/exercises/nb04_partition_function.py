"""Exercises of notebook 04: the partition function."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.derivations.partition import z_stays, z_variance
from rlhf_lab.derivations.random_worlds import RandomWorld
from rlhf_lab.exercises.checking import Case, Exercise, Task, double
from rlhf_lab.exercises.derive import NextLine
from rlhf_lab.exercises.edits import wrong_answers
from rlhf_lab.exercises.lecture_loop import loop_arguments, loop_regret
from rlhf_lab.exercises.predictions import Prediction
from rlhf_lab.exercises.training_loops import TrainingLoop


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


def _across(w: Any) -> Any:
    """The difference of the implicit rewards of two prompts, (K, K)."""
    return w.implicit[0][:, None] - w.implicit[1]


_DRAWN = double([[0.0, 1.0, 2.0, 0.5], [-1.0, 0.5, 1.5, -0.5]])
_REF = double([[0.5, 0.3, 0.2], [0.1, 0.7, 0.2]]).log()
_REWARD = double([[0.0, 1.0, 2.0], [-1.0, 0.5, 1.5]])
_CHAIN = {
    "log_first": double([0.5, 0.3, 0.2]).log(),
    "log_next": double([[0.1, 0.6, 0.3], [0.2, 0.2, 0.6], [0.7, 0.2, 0.1]]).log(),
    "reward": double([[-1.0, 1.0, 0.0], [0.0, -1.0, 0.5], [0.5, 0.0, -1.0]]),
    "beta": 0.5,
    "length": 4,
}


def _bias_of_log_z() -> str:
    """The sign of E[log Ẑ] − log Z for the mean of two samples, by enumeration: A above, B below, C zero."""
    log_ref, weight = _REF[0], (_REWARD[0] / 0.5).exp()
    estimates = ((weight.unsqueeze(-1) + weight) / 2).log()
    expected = ((log_ref.unsqueeze(-1) + log_ref).exp() * estimates).sum()
    bias = float(expected - exact.log_partition(log_ref, _REWARD[0], 0.5))
    return "C" if abs(bias) < 1e-12 else "A" if bias > 0 else "B"


def _implicit(w: RandomWorld) -> Tensor:
    """β log π*/π_ref, (X, K)."""
    return w.beta * (w.log_star - w.log_ref)


def two_prompts(w: Any) -> Any:
    """p((x₁, y₁) ≻ (x₂, y₂)) for all y₁ and y₂, (K, K)."""
    first, second = w.implicit[0], w.implicit[1]
    return torch.sigmoid(first[:, None] - second + w.beta * (w.log_z[0] - w.log_z[1]))


def variance_of_z(w: Any) -> Any:
    """Var(Ẑ)/Z² of the mean of n samples, (X,)."""
    return (torch.exp(w.log_z_half - 2 * w.log_z) - 1) / w.n


def fit_thumbs(
    logits: Tensor, log_ref: Tensor, p_up: Tensor, beta: float, steps: int, learning_rate: float
) -> list[float]:
    """Fit a policy to probabilities of a thumbs-up: train `logits`, return the losses."""
    offset = torch.zeros(len(logits), 1, dtype=logits.dtype, requires_grad=True)
    optimizer = torch.optim.SGD([logits, offset], lr=learning_rate)
    losses = []
    for _ in range(steps):
        implicit = beta * (logits.log_softmax(-1) - log_ref)
        predicted = torch.sigmoid(implicit + offset)
        loss = -(p_up * predicted.log() + (1 - p_up) * (1 - predicted).log()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def weighted_sft(
    logits: Tensor,
    log_ref: Tensor,
    reward: Tensor,
    beta: float,
    steps: int,
    learning_rate: float,
    samples: int,
    generator: torch.Generator,
) -> list[float]:
    """SFT on weighted samples, which fits π*: train `logits`, return the losses."""
    optimizer = torch.optim.SGD([logits], lr=learning_rate)
    losses = []
    for _ in range(steps):
        p = log_ref.exp()
        drawn = torch.multinomial(p, samples, True, generator=generator)
        weight = torch.softmax(reward.gather(-1, drawn) / beta, -1)
        log_prob = logits.log_softmax(-1).gather(-1, drawn)
        loss = -(weight * log_prob).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _thumbs_arguments() -> dict[str, Any]:
    """The probability of a thumbs-up of every response in place of its reward."""
    level = double([[1.0], [-1.0]])  # the labellers are more generous to the first prompt
    given = loop_arguments(300, 12.0)
    return {
        "logits": given.pop("logits"),
        "log_ref": given.pop("log_ref"),
        "p_up": torch.sigmoid(given.pop("reward") + level),
        **given,
    }


EXERCISES: tuple[Task, ...] = (
    Prediction(
        key="nb04.bias_of_log_z",
        title="Is the estimate of log Z unbiased?",
        objective="say in which direction an estimate of log Z is biased",
        difficulty=1,
        minutes=2,
        question=(
            "$\\hat Z$ is the mean of $e^{r(y_i)/\\beta}$ over a few samples from the reference, so "
            "$\\mathbb{E}[\\hat Z]=Z$. What is true of $\\log\\hat Z$?"
        ),
        options={
            "A": "Its expectation is larger than $\\log Z$.",
            "B": "Its expectation is smaller than $\\log Z$.",
            "C": "Its expectation is $\\log Z$, because $\\hat Z$ is unbiased.",
        },
        truth=_bias_of_log_z,
        explanation=(
            "The logarithm is concave, so by Jensen's inequality the expectation of the logarithm is smaller than the "
            "logarithm of the expectation. The bias vanishes as the number of samples grows."
        ),
        why_not={
            "A": "this would be true of a convex function, but the logarithm is concave.",
            "C": "an unbiased estimate stays unbiased under linear functions only, and the logarithm is not linear.",
        },
    ),
    NextLine(
        key="nb04.two_prompts",
        title="A preference between two prompts",
        objective="find the terms with Z that remain in a comparison across prompts",
        difficulty=2,
        minutes=6,
        derivation=z_stays,
        line=2,
        quantities=("log_z", "beta"),
        defined={"implicit": ("β log π*/π_ref, (X, K); row 0 is prompt x₁, row 1 is prompt x₂", _implicit)},
        solution=two_prompts,
        mistakes=wrong_answers(
            two_prompts,
            {
                "sign of Z": lambda w: torch.sigmoid(_across(w) - w.beta * (w.log_z[0] - w.log_z[1])),
                "β missing": lambda w: torch.sigmoid(_across(w) + (w.log_z[0] - w.log_z[1])),
                "one Z": lambda w: torch.sigmoid(_across(w) + w.beta * w.log_z[0]),
                "β twice": lambda w: torch.sigmoid(w.beta * (_across(w) + w.log_z[0] - w.log_z[1])),
                "swapped": lambda w: torch.sigmoid(-_across(w) - w.beta * (w.log_z[0] - w.log_z[1])),
            },
            {
                "sign of Z": "the sign of the terms with Z is wrong. The reward is β log π*/π_ref plus β log Z.",
                "β missing": "β is missing before log Z.",
                "one Z": "only the Z of the first prompt is included. Each reward contains the Z of its prompt.",
                "β twice": "the implicit reward is multiplied by β again. It contains β already.",
                "swapped": "the two responses are swapped. Row i, column j is the probability that response i to x₁ "
                "wins.",
            },
        ),
        hints=(
            "Insert r(x, y) = β log π*/π_ref + β log Z(x) for both rewards. Which terms cancel?",
            "`w.implicit[0][:, None] - w.implicit[1]` is a (K, K) table. Add β (log Z(x₁) − log Z(x₂)) and apply σ.",
        ),
    ),
    NextLine(
        key="nb04.variance_of_z",
        title="The variance of an estimate of Z",
        objective="express a second moment in terms of the partition function at a different β",
        difficulty=3,
        minutes=7,
        derivation=z_variance,
        line=2,
        quantities=(),
        defined={
            "log_z": ("log Z at β, (X,)", lambda w: w.log_z),
            "log_z_half": (
                "log Z at β/2, (X,)",
                lambda w: exact.log_partition(w.log_ref, w.reward, w.beta / 2),
            ),
            "log_z_double": (
                "log Z at 2β, (X,)",
                lambda w: exact.log_partition(w.log_ref, w.reward, 2 * w.beta),
            ),
            "n": ("the number of samples, 2", lambda w: 2),
        },
        solution=variance_of_z,
        mistakes=wrong_answers(
            variance_of_z,
            {
                "divided by Z once": lambda w: (torch.exp(w.log_z_half - w.log_z) - 1) / w.n,
                "square of the mean": lambda w: torch.exp(w.log_z_half - 2 * w.log_z) / w.n,
                "no 1/n": lambda w: torch.exp(w.log_z_half - 2 * w.log_z) - 1,
                "standard deviation": lambda w: (torch.exp(w.log_z_half - 2 * w.log_z) - 1) / math.sqrt(w.n),
                "logarithms": lambda w: (w.log_z_half - 2 * w.log_z - 1) / w.n,
            },
            {
                "divided by Z once": "this is divided by Z instead of Z².",
                "square of the mean": "the square of the mean is not subtracted. A variance is a second moment minus a "
                "squared mean.",
                "no 1/n": "this is the variance of one sample. The variance of a mean of n samples is n times smaller.",
                "standard deviation": "this is divided by √n, as for a standard deviation. A variance is divided by n.",
                "logarithms": "the logarithms are subtracted and divided, but the variance is a ratio of Z's. Use exp "
                "first.",
            },
        ),
        hints=(
            "(e^{r/β})² = e^{2r/β}. At which β is the mean of this under π_ref a partition function?",
            "2/β = 1/(β/2), so the second moment is Z at β/2. Write it with exp of a difference of logarithms.",
        ),
    ),
    TrainingLoop(
        key="nb04.fit_thumbs",
        title="Fit a policy to thumbs",
        objective="write a training loop in which Z does not cancel",
        difficulty=3,
        minutes=15,
        arguments=_thumbs_arguments,
        distance=loop_regret,
        solution=fit_thumbs,
        mistakes=wrong_answers(
            fit_thumbs,
            {
                "no offset": "[logits, offset] → [logits]",
                "one for all": "len(logits), 1, → 1, 1,",
                "one for each response": "len(logits), 1, → logits.shape,",
                "no beta": "beta * (logits → (logits",
                "no reference": "(logits.log_softmax(-1) - log_ref) → logits.log_softmax(-1)",
                "flipped labels": "p_up * predicted.log() + (1 - p_up) * → (1 - p_up) * predicted.log() + p_up *",
                "gradients not reset": "optimizer.zero_grad() → pass",
            },
            {
                "no offset": "the implicit reward is used as the reward, but β log Z(x) is missing. Learn a number for "
                "each prompt.",
                "one for all": "one offset is learned for all prompts, but β log Z(x) differs between prompts.",
                "one for each response": "an offset is learned for each response. It explains all labels, so the "
                "policy learns too little.",
                "no beta": "β is missing from the implicit reward.",
                "no reference": "the reference is missing from the log-ratio.",
                "flipped labels": "the labels are flipped. p_up is the probability of a thumbs-up.",
                "gradients not reset": "gradients add up over the steps, because they are not reset to zero.",
            },
            pairs=(("no offset", "no reference"), ("no beta", "flipped labels")),
        ),
        hints=(
            "The probability of a thumbs-up is σ(r). Which reward does a policy have, and which term of it is unknown?",
            "r = β log π/π_ref + β log Z(x). Replace β log Z(x) by a number for each prompt, with shape (X, 1), and "
            "train it together with the logits.",
            "The loss of a response is −p_up log σ(z) − (1 − p_up) log(1 − σ(z)) with z = β log π/π_ref + offset. Take "
            "the mean over all responses and prompts.",
        ),
    ),
    TrainingLoop(
        key="nb04.weighted_sft",
        title="Weighted SFT that forgets the reference",
        objective="find the bug in a loop that weights samples by exp(r/β)",
        difficulty=3,
        minutes=10,
        arguments=partial(loop_arguments, 60, 2.0, samples=128),
        distance=loop_regret,
        loss_falls=False,
        solution=weighted_sft,
        bug="samples of the policy",
        mistakes=wrong_answers(
            weighted_sft,
            {
                "samples of the policy": "p = log_ref.exp() → p = logits.detach().softmax(-1)",
                "no beta": "(-1, drawn) / beta → (-1, drawn)",
                "multiplied by beta": "/ beta → * beta",
                "sign of the reward": "softmax(reward → softmax(-reward",
                "normalised over prompts": "beta, -1) → beta, 0)",
                "no weights": "torch.softmax(reward.gather(-1, drawn) / beta, -1) → 1 / samples",
                "gradients not reset": "optimizer.zero_grad() → pass",
            },
            {
                "samples of the policy": "the samples come from the trained policy, but exp(r/β)/Z is the ratio of π* "
                "to the reference.",
                "no beta": "β is missing from the weights.",
                "multiplied by beta": "the reward is multiplied by β instead of divided.",
                "sign of the reward": "the reward has the wrong sign.",
                "normalised over prompts": "the weights are normalised over the prompts. Every prompt has a different "
                "Z, which is a sum over its responses.",
                "no weights": "the samples have equal weights, so the policy stays at the reference.",
                "gradients not reset": "gradients add up over the steps, because they are not reset to zero.",
            },
            pairs=(("samples of the policy", "no beta"), ("samples of the policy", "normalised over prompts")),
        ),
        hints=(
            "Print the policy after 10, 60 and 200 steps. To which policy does it converge?",
            "The loss should be an expectation under π*. With samples of which policy is exp(r/β)/Z the weight that "
            "gives it?",
        ),
    ),
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
        mistakes=wrong_answers(
            log_z_estimate,
            {
                "logarithm inside": lambda reward, beta: (reward / beta).mean(-1),
                "sum for mean": lambda reward, beta: torch.logsumexp(reward / beta, -1),
                "overflow": lambda reward, beta: torch.exp(reward / beta).mean(-1).log(),
                "multiplied by β": lambda reward, beta: torch.logsumexp(reward * beta, -1) - math.log(reward.shape[-1]),
                "missing β": lambda reward, beta: torch.logsumexp(reward, -1) - math.log(reward.shape[-1]),
                "wrong axis": lambda reward, beta: torch.logsumexp(reward / beta, 0) - math.log(reward.shape[0]),
                "Z for log Z": lambda reward, beta: torch.exp(reward / beta).mean(-1),
            },
            {
                "logarithm inside": "this is the mean of r/β, but the logarithm is taken after the mean. (By Jensen, "
                "this is never larger.)",
                "sum for mean": "this is the sum over the samples instead of their mean. Subtract log n.",
                "overflow": "this is correct on paper, but exp(r/β) overflows at a small β. Use torch.logsumexp.",
                "multiplied by β": "the reward is multiplied by β instead of divided.",
                "missing β": "β is missing. Z is a mean of exp(r/β).",
                "wrong axis": "this is averaged over the prompts. Samples are the last axis, and every prompt has its "
                "own Z.",
                "Z for log Z": "this is Ẑ, but its logarithm is required.",
            },
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
        mistakes=wrong_answers(
            samples_needed,
            {
                "accuracy not squared": "accuracy**2 → accuracy",
                "square of the mean missing": "2 * log_z) - 1) → 2 * log_z))",
                "β doubled": "2 * reward / beta → reward / (2 * beta)",
                "not relative": "exp(log_second - 2 * log_z) - 1) → exp(log_second) - torch.exp(2 * log_z))",
                "divided by Z once": "- 2 * log_z → - log_z",
                "wrong axis": (
                    "log_ref + reward / beta, -1) → log_ref + reward / beta, 0)",
                    "log_ref + 2 * reward / beta, -1) → log_ref + 2 * reward / beta, 0)",
                ),
            },
            {
                "accuracy not squared": "this is divided by the accuracy instead of its square. Standard deviations "
                "fall with √n.",
                "square of the mean missing": "E[w²]/Z² is the second moment. The variance is smaller by one.",
                "β doubled": "exp(r/β)² is exp(2r/β), so β is halved and not doubled.",
                "not relative": "this is the plain variance, but `accuracy` is relative to Z, so divide by Z².",
                "divided by Z once": "this is divided by Z instead of Z². The second moment has the unit of Z².",
                "wrong axis": "the sum is over the prompts, but responses are the last axis.",
            },
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
                {"log_policy": double([0.1, 0.3, 0.6]).log(), "log_ref": _REF[0], "beta": 0.5},
            ),
        ),
        solution=preference,
        mistakes=wrong_answers(
            preference,
            {
                "swapped pair": lambda log_policy, log_ref, beta: preference(log_policy, log_ref, beta).transpose(
                    -1, -2
                ),
                "missing β": lambda log_policy, log_ref, beta: preference(log_policy, log_ref, 1.0),
                "missing reference": lambda log_policy, log_ref, beta: preference(
                    log_policy, torch.zeros_like(log_ref), beta
                ),
                "divided by β": lambda log_policy, log_ref, beta: preference(log_policy, log_ref, 1 / beta),
                "ratio of policies": lambda log_policy, log_ref, beta: torch.sigmoid(
                    log_policy.unsqueeze(-1) - log_policy.unsqueeze(-2)
                ),
            },
            {
                "swapped pair": "the pair is swapped. Entry (i, j) is the probability that i beats j.",
                "missing β": "β is missing. A log-ratio is in nats, and the reward is β times it.",
                "missing reference": "the reference is missing. Z cancels between two responses, but π_ref(y|x) does "
                "not, because it depends on y.",
                "divided by β": "this is divided by β instead of multiplied. The reward is r = β log(π*/π_ref) + β log "
                "Z.",
                "ratio of policies": "π(i)/(π(i) + π(j)) is how often the policy gives i rather than j, not how often "
                "people prefer i.",
            },
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
        mistakes=wrong_answers(
            log_z_chain,
            {
                "one step too many": "length - 1 → length",
                "summed over the next token": "beta, 0) → beta, 1)",
                "maximum for sum": (
                    (
                        "torch.logsumexp(log_sum.unsqueeze(-1) + log_next + reward / beta, 0) → "
                        "(log_sum.unsqueeze(-1) + log_next + reward / beta).amax(0)"
                    ),
                    "torch.logsumexp(log_sum, -1) → log_sum.amax(-1)",
                ),
                "missing β": "reward / beta → reward",
                "missing reference": "+ log_next + → +",
                "tables transposed": "log_next + reward → log_next.T + reward.T",
            },
            {
                "one step too many": "this is one step too many. The first token is given, so length − 1 steps remain.",
                "summed over the next token": "the sum is over the next token. Keep the next token, and sum over the "
                "previous one.",
                "maximum for sum": "this is the single largest term of Z (Viterbi), but Z is a sum.",
                "missing β": "β is missing. The reward is divided by β.",
                "missing reference": "the reference's transitions are missing. Every next token counts the same.",
                "tables transposed": "the tables are transposed. The row is the previous token, and the column is the "
                "next one.",
            },
        ),
        hints=(
            "The future depends on a prefix only through its last token. How many last tokens are there?",
            "For each last token b, store the log of the sum over all prefixes that end in b. Appending the token c "
            "adds log_next[b, c] + reward[b, c]/β. Then sum over b with `torch.logsumexp(…, 0)`.",
        ),
    ),
)
