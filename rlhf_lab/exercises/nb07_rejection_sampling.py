"""Exercises of notebook 07: statistical rejection sampling."""

from typing import Any

import torch
from torch import Tensor

from rlhf_lab import sampling
from rlhf_lab.derivations.random_worlds import RandomWorld
from rlhf_lab.derivations.rejection import accepted_are_exact
from rlhf_lab.exercises.checking import Case, Exercise, GeneratorSeed, Mistake, Task, double
from rlhf_lab.exercises.derive import NextLine
from rlhf_lab.exercises.edits import wrong_answers
from rlhf_lab.exercises.lecture_loop import BETA, LOG_REF, REWARD, WORLD, loop_regret
from rlhf_lab.exercises.predictions import Prediction
from rlhf_lab.exercises.training_loops import TrainingLoop


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


_REWARDS = double([[0.0, 1.0, 0.4, -0.7], [2.0, -1.0, 0.5, 1.9]])
_UNIFORM = double([[0.62, 0.21, 0.91, 0.35], [0.07, 0.93, 0.85, 0.02]])
_WIDE = double([[1.2, -0.3, 0.8]])

_CANDIDATES = 64


def _accepted_of_64() -> float:
    """The expected number of accepted candidates for the first prompt."""
    return _CANDIDATES * sampling.acceptance_rate(LOG_REF[0], REWARD[0], BETA).item()


def _acceptance_under_target() -> float:
    log_star = WORLD.optimal(BETA)[0]
    return _CANDIDATES * (log_star.exp() * acceptance(REWARD[0], BETA)).sum().item()


def _acceptance_of(w: RandomWorld) -> Tensor:
    return acceptance(w.reward, w.beta)


def first_accepted(w: Any) -> Any:
    """P(first accepted = y) after the geometric series is summed."""
    both = w.ref * w.acceptance
    return both / both.sum(-1, keepdim=True)


def train_on_accepted(
    logits: Tensor,
    log_sft: Tensor,
    reward: Tensor,
    beta: float,
    steps: int,
    learning_rate: float,
    draws: int,
    generator: torch.Generator,
) -> list[float]:
    """Fine-tune on accepted draws from π_sft, with new draws in every step."""
    optimizer = torch.optim.SGD([logits], lr=learning_rate)
    probability = torch.exp((reward - reward.amax(-1, keepdim=True)) / beta)
    losses = []
    for _ in range(steps):
        y = torch.multinomial(log_sft.exp(), draws, True, generator=generator)
        u = torch.rand(y.shape, dtype=reward.dtype, generator=generator)
        accepted = u < probability.gather(-1, y)
        log_prob = logits.log_softmax(-1).gather(-1, y)
        loss = -log_prob[accepted].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def train_on_best(
    logits: Tensor,
    log_sft: Tensor,
    reward: Tensor,
    beta: float,
    steps: int,
    learning_rate: float,
    candidates: int,
    generator: torch.Generator,
) -> list[float]:
    """Fine-tune on one of `candidates`, drawn by weights exp(r/β), 32 times a step."""
    optimizer = torch.optim.SGD([logits], lr=learning_rate)
    scores = reward[:, None].expand(-1, 32, -1)
    losses = []
    for _ in range(steps):
        policy = log_sft.exp()
        y = torch.multinomial(policy, 32 * candidates, True, generator=generator)
        y = y.reshape(len(reward), 32, candidates)
        u = torch.rand(y.shape, dtype=reward.dtype, generator=generator)
        noisy = scores.gather(-1, y) / beta - torch.log(-torch.log(u))
        accepted = y.gather(-1, noisy.argmax(-1, keepdim=True)).squeeze(-1)
        loss = -logits.log_softmax(-1).gather(-1, accepted).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _accepted_arguments() -> dict[str, object]:
    log_sft = LOG_REF
    return {
        "logits": log_sft.clone().requires_grad_(True),
        "log_sft": log_sft,
        "reward": REWARD,
        "beta": BETA,
        "steps": 60,
        "learning_rate": 2.0,
        "draws": 2000,
        "generator": GeneratorSeed(0),
    }


def _candidate_arguments() -> dict[str, object]:
    given = _accepted_arguments()
    del given["draws"], given["generator"]
    return given | {"candidates": 64, "generator": GeneratorSeed(0)}


EXERCISES: tuple[Task, ...] = (
    Prediction(
        key="nb07.accepted_of_64",
        title="How many of 64 draws are accepted",
        objective="predict the cost of rejection sampling from M",
        difficulty=1,
        minutes=3,
        question=(
            f"The four responses of section 1 have M = {_CANDIDATES / _accepted_of_64():.3f} at β = {BETA}. How many "
            f"of {_CANDIDATES} independent draws from the SFT policy does rejection sampling accept on average? The "
            "maximum reward is the maximum over all four responses. Give a number."
        ),
        truth=_accepted_of_64,
        explanation="A draw is accepted with probability 1/M, so that 64/M = {truth} draws are accepted on average.",
        mistakes=(
            Mistake(
                "draws for one sample",
                "this is M, the average number of draws for one accepted response.",
                lambda: _CANDIDATES / _accepted_of_64(),
            ),
            Mistake(
                "best response only",
                "this counts only the draws of the best response. Other responses are accepted with a smaller "
                "probability, which is not zero.",
                lambda: _CANDIDATES * LOG_REF[0].exp()[-1].item(),
            ),
            Mistake(
                "mean under the target",
                "this is the mean of the acceptance probability under π_r. The draws come from π_sft.",
                _acceptance_under_target,
            ),
        ),
    ),
    NextLine(
        key="nb07.first_accepted",
        title="The distribution of the first accepted draw",
        objective="sum a geometric series over the number of rejected draws",
        difficulty=2,
        minutes=6,
        derivation=accepted_are_exact,
        line=2,
        quantities=("ref",),
        defined={"acceptance": ("exp((r − r_max)/β), the acceptance probability, (X, K)", _acceptance_of)},
        solution=first_accepted,
        mistakes=wrong_answers(
            first_accepted,
            {
                "rejections in the denominator": lambda w: (
                    w.ref * w.acceptance / (1 - (w.ref * w.acceptance).sum(-1, keepdim=True))
                ),
                "first draw only": lambda w: w.ref * w.acceptance,
                "π_sft forgotten": lambda w: w.acceptance / w.acceptance.sum(-1, keepdim=True),
                "rejections of y only": lambda w: w.ref,
            },
            {
                "rejections in the denominator": "this divides by the probability that a draw is rejected. The "
                "geometric series of q is 1/(1 − q).",
                "first draw only": "this is the probability that the first draw is y and is accepted. Later draws may "
                "be accepted too.",
                "π_sft forgotten": "π_sft is missing. The response y must be drawn before it can be accepted.",
                "rejections of y only": "only the rejections of y itself are summed. Earlier draws may be any "
                "response.",
            },
        ),
        hints=(
            "P(reject) does not depend on y or on t. Which factor remains when the sum over t is taken?",
            "The sum of P(reject)^(t−1) is 1/P(accept), and P(accept) is the sum of π_sft times the acceptance "
            "probability over all responses.",
        ),
    ),
    TrainingLoop(
        key="nb07.train_on_accepted",
        title="Fine-tune on accepted draws",
        objective="write rejection sampling inside a training loop",
        difficulty=2,
        minutes=10,
        arguments=_accepted_arguments,
        distance=loop_regret,
        solution=train_on_accepted,
        mistakes=wrong_answers(
            train_on_accepted,
            {
                "no maximum": "(reward - reward.amax(-1, keepdim=True)) → reward",
                "beta on the wrong side": "/ beta → * beta",
                "draws from the policy": "log_sft.exp() → logits.detach().softmax(-1)",
                "inverted": "u < probability → u >= probability",
                "nothing rejected": "log_prob[accepted] → log_prob",
                "sign": "-log_prob[accepted] → log_prob[accepted]",
                "gradients not reset": "optimizer.zero_grad() → pass",
            },
            {
                "no maximum": "r_max is missing, so that every response with a reward above zero is accepted.",
                "beta on the wrong side": "β multiplies the difference of the rewards, but it is divided by β.",
                "draws from the policy": "the draws come from the current policy, so that each step tilts it again. "
                "Draw from π_sft.",
                "inverted": "the rejected draws are used. A draw is accepted if u is below its probability.",
                "nothing rejected": "every draw is used, so that the policy stays at π_sft.",
                "sign": "the sign is lost, so that descent lowers the probability of the accepted draws.",
                "gradients not reset": "gradients add up over the steps, because they are not reset to zero.",
            },
            pairs=(("inverted", "beta on the wrong side"),),
        ),
        hints=(
            "Compute the acceptance probability of every response once. In each step draw responses and uniform "
            "numbers, and keep the accepted draws.",
            "`accepted = u < probability.gather(-1, y)` is a mask of the shape of y, (X, draws).",
            "The loss is the mean of −log π_θ over the accepted draws, `-log_prob[accepted].mean()`.",
        ),
    ),
    TrainingLoop(
        key="nb07.train_on_best",
        title="A policy that does not stop moving",
        objective="find out why a sampling loop overshoots its target",
        difficulty=3,
        minutes=8,
        arguments=_candidate_arguments,
        distance=loop_regret,
        solution=train_on_best,
        bug="candidates from the policy",
        mistakes=wrong_answers(
            train_on_best,
            {
                "candidates from the policy": "policy = log_sft.exp() → policy = logits.detach().softmax(-1)",
                "no noise": "y) / beta - torch.log(-torch.log(u)) → y) / beta",
                "sign of the noise": "- torch.log(- → + torch.log(-",
                "no beta": "y) / beta → y)",
                "gradients not reset": "optimizer.zero_grad() → pass",
            },
            {
                "candidates from the policy": "the candidates come from the current policy. They are tilted by "
                "exp(r/β) in every step, so that only the best response remains in the end.",
                "no noise": "the best candidate is always accepted. Without Gumbel noise this is best-of-n.",
                "sign of the noise": "Gumbel noise has the wrong sign.",
                "no beta": "β is missing from the scores.",
                "gradients not reset": "gradients add up over the steps, because they are not reset to zero.",
            },
            pairs=(("candidates from the policy", "no noise"), ("candidates from the policy", "no beta")),
        ),
        hints=(
            "The regret first falls and then rises again. Which distribution do the accepted candidates follow in the "
            "second step?",
            "Rejection sampling tilts the distribution of the candidates by exp(r/β). For π_r the candidates must come "
            "from π_sft in every step.",
        ),
    ),
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
        mistakes=wrong_answers(
            acceptance,
            {
                "no maximum": lambda r, beta: torch.exp(r / beta),
                "wrong axis": lambda r, beta: torch.exp((r - r.max()) / beta),
                "maximum over prompts": lambda r, beta: torch.exp((r - r.amax(0, keepdim=True)) / beta),
                "beta on the wrong side": lambda r, beta: torch.exp((r - r.amax(-1, keepdim=True)) * beta),
                "no beta": lambda r, beta: torch.exp(r - r.amax(-1, keepdim=True)),
                "sign": lambda r, beta: torch.exp((r.amax(-1, keepdim=True) - r) / beta),
                "softmax": lambda r, beta: torch.softmax(r / beta, -1),
            },
            {
                "no maximum": "r_max is missing. exp(r/β) is not a probability, and every candidate with a positive "
                "reward would be accepted.",
                "wrong axis": "the maximum is over several prompts, but each prompt has a separate M, over its "
                "candidates.",
                "maximum over prompts": "the maximum is over the prompts. The candidates are the last axis.",
                "beta on the wrong side": "β multiplies the gap, but the reward is divided by β.",
                "no beta": "β is missing.",
                "sign": "the sign is wrong. The best candidate must be accepted with probability one, the others with "
                "less.",
                "softmax": "these sum to one over the candidates, but the acceptance probability of the best candidate "
                "is exactly one.",
            },
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
                    "log_sft": double([[0.4, 0.3, 0.2, 0.1], [0.1, 0.45, 0.15, 0.3]]).log(),
                    "reward": _REWARDS,
                    "beta": 0.5,
                },
            ),
            Case(
                "one prompt, a large β",
                {"log_sft": double([[0.2, 0.5, 0.3]]).log(), "reward": _WIDE, "beta": 3.0},
            ),
        ),
        solution=acceptance_rate,
        mistakes=wrong_answers(
            acceptance_rate,
            {
                "upside down": "return (log_sft → return 1 / (log_sft",
                "π_sft forgotten": (
                    "(log_sft.exp() * torch.exp((reward - best) / beta)).sum(-1) → "
                    "torch.exp((reward - best) / beta).mean(-1)"
                ),
                "mean under the target": "log_sft.exp() → (log_sft + reward / beta).softmax(-1)",
                "no maximum": "(reward - best) → reward",
                "beta on the wrong side": "/ beta → * beta",
                "log-probabilities as weights": "log_sft.exp() → log_sft",
            },
            {
                "upside down": "this is M, the mean number of draws for one sample. The rate is its inverse and at "
                "most one.",
                "π_sft forgotten": "all responses have the same weight here, but draws come from π_sft, which gives "
                "the weights.",
                "mean under the target": "the mean is under π_r, but the draws come from π_sft. Only the accepted ones "
                "follow π_r.",
                "no maximum": "r_max is missing. This is Z, which can be above one.",
                "beta on the wrong side": "β multiplies the gap, but a small β must make acceptance rarer, not more "
                "frequent.",
                "log-probabilities as weights": "the weights are log-probabilities. Take `.exp()` before you average.",
            },
        ),
        hints=(
            "Of the draws equal to y, the share exp((r(y) − r_max)/β) is accepted. How often is a draw y?",
            "It is an expectation under π_sft: `(log_sft.exp() * …).sum(-1)`, with the acceptance probability inside.",
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
        mistakes=wrong_answers(
            gumbel_top_k,
            {
                "sign of the noise": "+ gumbel → - gumbel",
                "no beta": "reward / beta → reward",
                "beta on the wrong side": "reward / beta → reward * beta",
                "uniform noise": "+ gumbel → + uniform",
                "no noise": "beta + gumbel → beta",
                "lowest": "(reward / beta + gumbel) → (-reward / beta - gumbel)",
            },
            {
                "sign of the noise": "the noise has the wrong sign. Gumbel noise is −log(−log u), with two minus "
                "signs.",
                "no beta": "β is missing. The noise is of order one, so the rewards must be in nats, r/β.",
                "beta on the wrong side": "β multiplies the reward, but with a small β the reward must decide, not the "
                "noise.",
                "uniform noise": "the noise is uniform, but only Gumbel noise gives probabilities proportional to "
                "exp(r/β).",
                "no noise": "the noise is missing. This is best-of-n, the limit β → 0.",
                "lowest": "these are the lowest noisy scores, but the highest are accepted.",
            },
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
        mistakes=wrong_answers(
            two_accepted,
            {
                "with replacement": (
                    "first[None, :] / (1 - first[:, None]) → first[None, :]",
                    "both * (1 - torch.eye(len(reward), dtype=reward.dtype)) → both",
                ),
                "not renormalised": "first[None, :] / (1 - first[:, None]) → first[None, :]",
                "diagonal": "both * (1 - torch.eye(len(reward), dtype=reward.dtype)) → both",
                "transposed": "return both → return both.T",
                "order lost": "return both → return (both + both.T)",
                "beta on the wrong side": "reward / beta → reward * beta",
            },
            {
                "with replacement": "these are two draws with replacement, but an accepted candidate is removed and "
                "cannot be accepted again.",
                "not renormalised": "the diagonal is zero, but the rest does not sum to one. The second probabilities "
                "must be renormalised.",
                "diagonal": "the diagonal is not zero, but a candidate cannot be both first and second.",
                "transposed": "rows and columns are swapped. Row i is the first accepted candidate.",
                "order lost": "both orders are added, but (i, j) and (j, i) are different events, and the table sums "
                "to one.",
                "beta on the wrong side": "β multiplies the reward.",
            },
        ),
        hints=(
            "The first is a softmax of r/β over all candidates. The second is a softmax over the remaining ones. What "
            "is its denominator?",
            "P(j second | i first) = p_j/(1 − p_i) for j ≠ i. As a table this is "
            "`p[:, None] * p[None, :] / (1 - p[:, None])`. Then set the diagonal to zero.",
        ),
    ),
)
