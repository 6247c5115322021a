"""Exercises of notebook 08: RSO and its pair sources."""

import math
from typing import Any

import torch
from torch import Tensor

from rlhf_lab import exact, losses
from rlhf_lab.derivations.pair_losses import hinge_forgets_how_much
from rlhf_lab.derivations.random_worlds import RandomWorld
from rlhf_lab.exercises.checking import Case, Exercise, GeneratorSeed, Task, as_tensor, double
from rlhf_lab.exercises.derive import NextLine
from rlhf_lab.exercises.edits import wrong_answers
from rlhf_lab.exercises.lecture_loop import BETA, LOG_REF, REWARD, loop_regret
from rlhf_lab.exercises.predictions import Prediction
from rlhf_lab.exercises.training_loops import TrainingLoop
from rlhf_lab.training import seeded


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


def _grade(answer: object, factor: float) -> str | None:
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


def _world(reward: object, beta: float) -> tuple[Tensor, Tensor, float]:
    return torch.full((4,), 0.25, dtype=torch.float64).log(), double(reward), beta


_SFT, _REWARD = double([0.5, 0.3, 0.2]).log(), double([0.0, 1.0, -0.5])
_FOUR, _REWARD_4 = double([0.1, 0.2, 0.3, 0.4]).log(), double([0.3, -1.2, 0.8, 1.1])
_PAIRS = double([[0.0, 0.3, 0.1], [0.2, 0.0, 0.05], [0.15, 0.2, 0.0]])
_PAIRS_2 = double([[0.0, 0.9], [0.1, 0.0]])

_GAMMA = 0.05


def _limit_of_the_fit() -> str:
    """Which policy makes the expected gradient of sigmoid-norm zero, at the paper's β and γ: A is π_r, B is π_γ."""
    log_sft, reward = LOG_REF[0], REWARD[0]
    log_r = exact.optimal_policy(log_sft, reward, BETA)
    labels = first_round(log_r) * exact.preference(reward)

    def slope(log_policy: Tensor) -> float:
        at = log_policy.clone().requires_grad_(True)
        ratio = at.log_softmax(-1) - log_sft
        (labels * losses.dpo(ratio[:, None], ratio[None, :], _GAMMA)).sum().backward()
        assert at.grad is not None
        return at.grad.abs().max().item()

    log_gamma = exact.optimal_policy(log_sft, reward, _GAMMA)
    slopes = {"A": slope(log_r), "B": slope(log_gamma), "C": slope((log_r + log_gamma).mul(0.5).log_softmax(-1))}
    return min(slopes, key=lambda letter: slopes[letter])


def _win_probability(w: RandomWorld) -> Tensor:
    one, other = w.of_pair(w.reward)
    return torch.sigmoid(one - other)


def hinge_slope(w: Any) -> Any:
    """The derivative of the expected hinge-norm loss with respect to Δ, for |Δ| < 1/γ."""
    return -w.gamma * (2 * w.p - 1)


def train_rso(
    logits: Tensor,
    log_sft: Tensor,
    reward: Tensor,
    beta: float,
    gamma: float,
    steps: int,
    learning_rate: float,
    candidates: int,
    generator: torch.Generator,
) -> list[float]:
    """RSO: each step accepts an eighth of new candidates and fits to labelled pairs."""
    optimizer = torch.optim.SGD([logits], lr=learning_rate)
    losses = []
    for _ in range(steps):
        y = torch.multinomial(log_sft.exp(), candidates, True, generator=generator)
        score = reward.gather(-1, y)
        u = torch.rand(y.shape, dtype=reward.dtype, generator=generator)
        top = (score / beta - torch.log(-torch.log(u))).topk(candidates // 8).indices
        y, score = y.gather(-1, top), score.gather(-1, top)
        one, two = y[:, 0::2], y[:, 1::2]
        u = torch.rand(one.shape, dtype=reward.dtype, generator=generator)
        first_wins = u < torch.sigmoid(score[:, 0::2] - score[:, 1::2])
        chosen = torch.where(first_wins, one, two)
        rejected = torch.where(first_wins, two, one)
        log_ratio = logits.log_softmax(-1) - log_sft
        delta = log_ratio.gather(-1, chosen) - log_ratio.gather(-1, rejected)
        loss = -torch.nn.functional.logsigmoid(gamma * delta).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def fit_accepted(
    logits: Tensor,
    log_sft: Tensor,
    candidates: Tensor,
    scores: Tensor,
    beta: float,
    accepted: int,
    steps: int,
    learning_rate: float,
    generator: torch.Generator,
) -> list[float]:
    """RSO on given candidates and scores, (X, N). Pairs are made before the first step."""
    u = torch.rand(scores.shape, dtype=scores.dtype, generator=generator)
    top = (scores / beta - torch.log(-torch.log(u))).topk(accepted).indices
    y, score = candidates.gather(-1, top), scores.gather(-1, top)
    u = torch.rand(len(y), accepted // 2, dtype=scores.dtype, generator=generator)
    first_wins = u < torch.sigmoid(score[:, 0::2] - score[:, 1::2])
    chosen = torch.where(first_wins, y[:, 0::2], y[:, 1::2])
    rejected = torch.where(first_wins, y[:, 1::2], y[:, 0::2])
    optimizer = torch.optim.SGD([logits], lr=learning_rate)
    losses = []
    for _ in range(steps):
        log_ratio = logits.log_softmax(-1) - log_sft
        delta = log_ratio.gather(-1, chosen) - log_ratio.gather(-1, rejected)
        loss = -torch.nn.functional.logsigmoid(beta * delta).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _loop_arguments() -> dict[str, object]:
    log_sft = LOG_REF
    return {
        "logits": log_sft.clone().requires_grad_(True),
        "log_sft": log_sft,
        "reward": REWARD,
        "beta": BETA,
        "gamma": BETA,
        "steps": 80,
        "learning_rate": 10.0,
        "candidates": 512,
        "generator": GeneratorSeed(0),
    }


def _offline_arguments() -> dict[str, object]:
    log_sft, reward = LOG_REF, REWARD
    candidates = torch.multinomial(log_sft.exp(), 4000, True, generator=seeded(0))
    return {
        "logits": log_sft.clone().requires_grad_(True),
        "log_sft": log_sft,
        "candidates": candidates,
        "scores": reward.gather(-1, candidates),
        "beta": BETA,
        "accepted": 1000,
        "steps": 60,
        "learning_rate": 20.0,
        "generator": GeneratorSeed(0),
    }


EXERCISES: tuple[Task, ...] = (
    Prediction(
        key="nb08.limit_of_the_fit",
        title="The limit of RSO's fit",
        objective="predict what the parameters of the sampler and of the loss determine",
        difficulty=1,
        minutes=2,
        question=(
            "As in the paper, the pairs come from $\\pi_r$ with β = 0.5, and sigmoid-norm is fitted to them with "
            "γ = 0.05. There are infinitely many labels, and training runs until the loss is minimal. To which policy "
            "does it converge?"
        ),
        options={
            "A": "To $\\pi_r$, the optimal policy for β = 0.5, from which the pairs come.",
            "B": "To the optimal policy for γ = 0.05.",
            "C": "To a policy between the two.",
        },
        truth=_limit_of_the_fit,
        explanation=(
            "The gradient is zero where γ log π/π_sft matches the odds of every label. These odds do not depend on how "
            "often a pair occurs, so β has no effect on the limit."
        ),
        why_not={
            "A": "β determines which pairs are labelled, but not the labels. At π_r the implicit reward is γ/β times "
            "the reward, which is too small.",
            "C": "the pairs of the sampler are not a target towards which the fit is pulled. One policy matches the "
            "odds of all labels.",
        },
    ),
    NextLine(
        key="nb08.hinge_slope",
        title="The slope of the expected hinge loss",
        objective="differentiate an expected loss over the two possible labels",
        difficulty=2,
        minutes=6,
        derivation=hinge_forgets_how_much,
        line=2,
        quantities=(),
        defined={
            "p": ("p, the probability that the first response of the pair of each prompt wins, (X,)", _win_probability),
            "gamma": ("γ, the slope of the loss", lambda w: w.tau),
        },
        solution=hinge_slope,
        mistakes=wrong_answers(
            hinge_slope,
            {
                "sign": lambda w: w.gamma * (2 * w.p - 1),
                "flipped label forgotten": lambda w: -w.gamma * w.p,
                "no gamma": lambda w: -(2 * w.p - 1),
                "log-odds": lambda w: -w.gamma * torch.logit(w.p),
            },
            {
                "sign": "the sign is wrong. If the first response wins more often, a larger Δ lowers the loss.",
                "flipped label forgotten": "only the label in favour of the first response is differentiated. With "
                "probability 1 − p the other one wins, and its loss rises with Δ.",
                "no gamma": "γ is missing. The chain rule gives a factor γ for each of the two losses.",
                "log-odds": "this contains the log-odds of the label, which belong to a likelihood. The hinge loss is "
                "linear.",
            },
        ),
        hints=(
            "For |Δ| < 1/γ both maxima are positive, so the expected loss is p (1 − γΔ) + (1 − p)(1 + γΔ).",
            "The derivative of the first term is −γp, and that of the second is γ(1 − p). Add them.",
        ),
    ),
    TrainingLoop(
        key="nb08.train_rso",
        title="RSO from scratch",
        objective="write RSO's training loop in plain PyTorch",
        difficulty=3,
        minutes=15,
        arguments=_loop_arguments,
        distance=loop_regret,
        solution=train_rso,
        mistakes=wrong_answers(
            train_rso,
            {
                "candidates from the policy": "log_sft.exp() → logits.detach().softmax(-1)",
                "no noise": "score / beta - torch.log(-torch.log(u)) → score / beta",
                "beta on the wrong side": "score / beta → score * beta",
                "hard labels": "u < torch.sigmoid(score[:, 0::2] - score[:, 1::2]) → score[:, 0::2] > score[:, 1::2]",
                "swapped pair": "u < torch.sigmoid → u >= torch.sigmoid",
                "no reference": "log_softmax(-1) - log_sft → log_softmax(-1)",
                "no gamma": "gamma * delta → delta",
                "gradients not reset": "optimizer.zero_grad() → pass",
            },
            {
                "candidates from the policy": "the candidates come from the current policy, but RSO's candidates come "
                "from π_sft.",
                "no noise": "the candidates with the highest rewards are accepted. Without Gumbel noise this is the "
                "limit β → 0.",
                "beta on the wrong side": "β multiplies the reward in the sampler, but the reward is divided by β.",
                "hard labels": "the better response always wins. The reward model's labels are drawn with probability "
                "σ(r_1 − r_2).",
                "swapped pair": "chosen and rejected are swapped, so that the policy learns to prefer the rejected.",
                "no reference": "π_sft is missing from the log-ratio.",
                "no gamma": "γ is missing from the margin.",
                "gradients not reset": "gradients add up over the steps, because they are not reset to zero.",
            },
            pairs=(("no reference", "no gamma"), ("swapped pair", "no gamma")),
        ),
        hints=(
            "One step has three parts: accept some of the candidates, label pairs of them, and take a step on DPO's "
            "loss with slope γ.",
            "`torch.multinomial(log_sft.exp(), candidates, True, generator=generator)` draws the candidates, (X, N). "
            "`(score / beta - torch.log(-torch.log(u))).topk(number).indices` are the positions of those accepted.",
            "Pair `y[:, 0::2]` with `y[:, 1::2]`. The first wins if `u < torch.sigmoid(score_1 - score_2)`, with the "
            "scores of the *accepted* candidates, `score.gather(-1, top)`.",
        ),
    ),
    TrainingLoop(
        key="nb08.fit_accepted",
        title="Labels without effect",
        objective="find a bug in the data fed to a preference loss",
        difficulty=3,
        minutes=10,
        arguments=_offline_arguments,
        distance=loop_regret,
        solution=fit_accepted,
        bug="scores of other candidates",
        mistakes=wrong_answers(
            fit_accepted,
            {
                "scores of other candidates": "scores.gather(-1, top) → scores[:, :accepted]",
                "swapped pair": "u < torch.sigmoid → u >= torch.sigmoid",
                "moving reference": "- log_sft → - logits.detach().log_softmax(-1)",
                "no beta": "beta * delta → delta",
                "gradients not reset": "optimizer.zero_grad() → pass",
            },
            {
                "scores of other candidates": "the labels are drawn from the scores of the first candidates, not of "
                "the accepted ones.",
                "swapped pair": "chosen and rejected are swapped.",
                "moving reference": "the log-ratio is taken to the current policy instead of π_sft, so that every "
                "margin is 0 in every step.",
                "no beta": "the slope of the loss is missing from the margin.",
                "gradients not reset": "gradients add up over the steps, because they are not reset to zero.",
            },
            pairs=(
                ("scores of other candidates", "no beta"),
                ("scores of other candidates", "gradients not reset"),
            ),
        ),
        hints=(
            "The regret hardly falls, so the labels seem to contain no information about the pairs. For which two "
            "responses is each label drawn?",
            "`y` contains the accepted candidates. The scores in the label must belong to the same candidates, in the "
            "same order: `scores.gather(-1, top)`.",
        ),
    ),
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
        mistakes=wrong_answers(
            fitted_policy,
            {
                "beta taken for gamma": lambda s, r, beta, gamma: (s + r / beta).log_softmax(-1),
                "tilted twice": lambda s, r, beta, gamma: (s + r / beta + r / gamma).log_softmax(-1),
                "gamma multiplies": lambda s, r, beta, gamma: (s + r * gamma).log_softmax(-1),
                "reference forgotten": lambda s, r, beta, gamma: (r / gamma).log_softmax(-1),
                "not normalised": lambda s, r, beta, gamma: s + r / gamma,
                "probabilities": lambda s, r, beta, gamma: (s + r / gamma).softmax(-1),
            },
            {
                "beta taken for gamma": "this is π_r, from which the pairs come. At the limit of the fit the implicit "
                "reward is r; see section 2.",
                "tilted twice": "the tilt is applied twice, by the sampler and by the loss. The distribution of the "
                "pairs does not change the limit.",
                "gamma multiplies": "γ multiplies the reward: γ · log-ratio = r, so the log-ratio is r divided by γ.",
                "reference forgotten": "π_sft is missing. The “norm” of sigmoid-norm is the division by it.",
                "not normalised": "the probabilities do not sum to one, because Z is missing.",
                "probabilities": "these are probabilities. Return their logarithms.",
            },
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
            Case("two responses, one rare", {"log_source": double([0.95, 0.05]).log()}),
        ),
        solution=first_round,
        mistakes=wrong_answers(
            first_round,
            {
                "diagonal": "p[None, :] * (1 - torch.eye(len(p), dtype=p.dtype)) → p[None, :]",
                "not renormalised": "pairs / pairs.sum() → pairs",
                "second drawn again": "pairs / pairs.sum() → pairs / (1 - p[:, None])",
                "uniform": "p[:, None] * p[None, :] * → 1.0 *",
                "log-probabilities": "log_source.exp() → log_source",
                "sums to two": "return pairs → return 2 * pairs",
            },
            {
                "diagonal": "pairs of equal responses are included, but they contain no information and are dropped.",
                "not renormalised": "the table does not sum to one. A dropped pair needs no label and is replaced by "
                "another one.",
                "second drawn again": "the second response is redrawn until it differs, which gives rare first "
                "responses too much weight. Drop the whole pair.",
                "uniform": "all pairs have the same weight, but the frequency of a pair depends on the source.",
                "log-probabilities": "log-probabilities are multiplied. Take `.exp()` first.",
                "sums to two": "the table sums to two. (i, j) and (j, i) are both included, and together they are one "
                "pair.",
            },
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
            Case("two responses", {"reward": double([0.0, 2.0]), "pairs": _PAIRS_2}),
        ),
        solution=information,
        mistakes=wrong_answers(
            information,
            {
                "all labels alike": "(pairs + pairs.T) * p * (1 - p) → pairs + pairs.T",
                "p for p(1 − p)": "* p * (1 - p) → * p",
                "one order": "(pairs + pairs.T) → pairs",
                "sign": "torch.diag(edges.sum(-1)) - edges → edges - torch.diag(edges.sum(-1))",
                "no diagonal": "torch.diag(edges.sum(-1)) - edges → edges",
                "diagonal only": "torch.diag(edges.sum(-1)) - edges → torch.diag(edges.sum(-1))",
            },
            {
                "all labels alike": "p(1 − p) is missing. A label that is certain beforehand contains no information.",
                "p for p(1 − p)": "this has p instead of p(1 − p), the variance of a label, which is the same for both "
                "orders of the pair.",
                "one order": "(i, j) and (j, i) are the same comparison, so their weights must be added.",
                "sign": "the sign is wrong, because information on the diagonal is positive.",
                "no diagonal": "these are only the off-diagonal entries. Each b bᵀ has ones on the diagonal too, and "
                "rows must sum to zero.",
                "diagonal only": "the off-diagonal entries are missing. A label depends on the difference of two "
                "rewards.",
            },
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
        mistakes=wrong_answers(
            where_rso_loses,
            {
                "nothing to learn": lambda factor: _world([0.0, 0.0, 0.0, 0.0], 0.5),
                "large β": lambda factor: _world([0.0, 0.0, -6.0, -6.0], 20.0),
                "one favourite": lambda factor: _world([0.0, 0.0, 0.0, 6.0], 0.5),
            },
            {
                "nothing to learn": "all rewards are equal, so π_r is π_sft and both sources give the same pairs.",
                "large β": "β is large, so π_r hardly differs from π_sft and both sources give nearly the same pairs.",
                "one favourite": "π_r nearly always gives the same response. Pairs of equal responses cost no label, "
                "so the labels compare this response with each of the others, which is informative.",
            },
        ),
        hints=(
            "A label is wasted on a pair whose difference is already known well enough, as long as a bad response is "
            "not yet recognised as bad. Which responses does π_r hardly ever give?",
            "Choose two good responses and one or two very bad ones, with β ≤ 0.5. With π_r nearly all labels compare "
            "the two good ones. Print `label_ratio` and lower the bad rewards until it is large enough.",
        ),
        grader=_grade,
    ),
)
