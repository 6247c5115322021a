"""Exercises of notebook 13: a non-static environment, and how long a label stays useful."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.derivations.best_window import Drifting, best_window_derivation
from rlhf_lab.exercises.checking import Case, Exercise, Task, as_tensor, double
from rlhf_lab.exercises.derive import NextLine
from rlhf_lab.exercises.edits import wrong_answers
from rlhf_lab.exercises.predictions import Prediction
from rlhf_lab.exercises.training_loops import TrainingLoop
from rlhf_lab.training import seeded
from rlhf_lab.worlds import nonstationary


def moving_regret(
    log_policy: Tensor, log_ref: Tensor, reward: Tensor, velocity: Tensor, angle: float, beta: float
) -> Tensor:
    """The regret of a policy after the rewards have turned by `angle`, (…)."""
    now = math.cos(angle) * reward + math.sin(angle) * velocity
    log_star = (log_ref + now / beta).log_softmax(-1)
    return beta * (log_policy.exp() * (log_policy - log_star)).sum(-1)


def window_cost(price: float, drift: float, labels: float, window: int, every: int) -> float:
    """The regret of a round with a fit to the last `window` rounds, made every `every` rounds."""
    ages = [(window + 1) / 2 + late for late in range(every)]
    return price / (labels * window) + drift * sum(age**2 for age in ages) / every


def best_window(price: float, drift: float, labels: float) -> int:
    """The number of rounds whose labels should be used, with a fit every round."""
    costs = {w: price / (labels * w) + drift * ((w + 1) / 2) ** 2 for w in range(1, 1001)}
    return min(costs, key=lambda w: costs[w])


def once_wins(price: float, late: float, rounds: int) -> list[float]:
    """Labels per round, and a turn of at least half a radian, for which fitting once has the lower regret."""
    return [2 * price / (late * rounds), 0.5]


def _eight_times_the_labels() -> str:
    """By which factor the best window changes if eight times as many labels arrive in every round."""
    before, after = (exact.drift.best_window(30.0, 0.0001, labels) for labels in (100.0, 800.0))
    factors = {"A": 1.0, "B": 1 / 2, "C": 1 / 8, "D": 2.0}
    return min(factors, key=lambda letter: abs(math.log(factors[letter] * before / after)))


def _variance(w: Drifting) -> Tensor:
    """Var_{π*}(u) in the first prompt."""
    star, u = w.star[0], w.velocity[0]
    return (star * (u - (star * u).sum()).square()).sum()


def window_curvature(w: Any) -> Any:
    """The second derivative of the regret in ω, for a fit to the last W rounds."""
    return ((w.window + 1) / 2) ** 2 * w.variance / w.beta


_ROUNDS = 12
_WORLD = nonstationary.nonstationary_bandit(1, 5, seed=0, kind="drift", rate=1.5 / _ROUNDS, rounds=_ROUNDS)


def _labels(number: int = 200) -> tuple[Tensor, Tensor]:
    """The chosen and the rejected response of the labels of rounds 0 … T − 1, (T, n) each."""
    generator = seeded(13)
    drawn = [_WORLD.sample_labels(number, t, generator) for t in range(_ROUNDS)]
    return torch.stack([one.chosen for one in drawn]), torch.stack([one.rejected for one in drawn])


def _regret_now(logits: Tensor) -> float:
    """The regret in the last round."""
    return _WORLD.regret(logits.log_softmax(-1).unsqueeze(0), _ROUNDS)


def _window_arguments() -> dict[str, Any]:
    chosen, rejected = _labels()
    log_ref = _WORLD.log_ref[0]
    return {
        "logits": log_ref.clone().requires_grad_(),
        "log_ref": log_ref,
        "chosen": chosen.flatten(),
        "rejected": rejected.flatten(),
        "age": torch.arange(_ROUNDS, 0, -1).repeat_interleave(chosen.shape[1]),
        "window": 3,
        "beta": _WORLD.beta,
        "steps": 100,
        "learning_rate": 10.0,
    }


def train_on_window(
    logits: Tensor,
    log_ref: Tensor,
    chosen: Tensor,
    rejected: Tensor,
    age: Tensor,
    window: int,
    beta: float,
    steps: int,
    learning_rate: float,
) -> list[float]:
    """DPO on the labels of the last `window` rounds."""
    recent = age <= window
    chosen, rejected = chosen[recent], rejected[recent]
    optimizer = torch.optim.SGD([logits], lr=learning_rate)
    losses = []
    for _ in range(steps):
        log_ratio = logits.log_softmax(-1) - log_ref
        margin = beta * (log_ratio[chosen] - log_ratio[rejected])
        loss = -torch.nn.functional.logsigmoid(margin).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _refit_arguments() -> dict[str, Any]:
    chosen, rejected = _labels()
    log_ref = _WORLD.log_ref[0]
    return {
        "logits": log_ref.clone().requires_grad_(),
        "log_ref": log_ref,
        "chosen": chosen,
        "rejected": rejected,
        "beta": _WORLD.beta,
        "steps": 20 * _ROUNDS,
        "learning_rate": 10.0,
    }


def refit(
    logits: Tensor, log_ref: Tensor, chosen: Tensor, rejected: Tensor, beta: float, steps: int, learning_rate: float
) -> list[float]:
    """DPO on the labels of the last three rounds, in every round; pairs are (rounds, n)."""
    rounds = len(chosen)
    optimizer = torch.optim.SGD([logits], lr=learning_rate)
    losses = []
    for step in range(steps):
        t = step * rounds // steps  # the newest round with labels
        newest = slice(max(t - 2, 0), t + 1)
        log_ratio = logits.log_softmax(-1) - log_ref
        delta = log_ratio[chosen[newest]] - log_ratio[rejected[newest]]
        loss = -torch.nn.functional.logsigmoid(beta * delta).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _least(cost: Callable[[int], float]) -> int:
    return min(range(1, 1001), key=cost)


def _grade(answer: object, price: float, late: float, rounds: int) -> str | None:
    """The complaint about a world in which fitting once should have the lower regret, or None."""
    numbers = as_tensor(answer)
    if numbers is None or numbers.shape != (2,):
        return "return two numbers: labels per round, and the turn over the deployment in radians."
    labels, turn = numbers.tolist()
    if not labels >= 1:
        return f"{labels:g} labels per round are too few: give at least 1. Labels come first, then the turn."
    if not 0.5 <= turn <= 3.15:
        return f"a turn of {turn:g} rad is not allowed: give a turn between 0.5 and π."
    drift = late * (turn / rounds) ** 2
    once = exact.drift.once_regret(price, drift, labels, rounds)
    kept = exact.drift.best_deployed(price, drift, labels, rounds)
    again = exact.drift.deployed_regret(price, drift, labels, rounds, kept)
    if once >= again:
        return (
            f"the mean regret of a round is {once:.3g} for fitting once and {again:.3g} for refitting with the best "
            "window. The first must be lower."
        )
    return None


_POLICY: dict[str, Any] = {
    "log_policy": double([0.2, 0.1, 0.3, 0.4]).log(),
    "log_ref": double([0.4, 0.3, 0.2, 0.1]).log(),
    "reward": double([-0.5, 0.0, 1.0, 1.5]),
    "velocity": double([1.0, -1.0, 0.5, -0.5]),
    "angle": 0.6,
    "beta": 0.5,
}
_SLOW = {"price": 30.0, "drift": 0.002, "labels": 100.0}

EXERCISES: tuple[Task, ...] = (
    Prediction(
        key="nb13.more_labels",
        title="The best window with more labels",
        objective="predict how the number of labels affects the window that should be used",
        difficulty=1,
        minutes=2,
        question=(
            "Preferences drift slowly and steadily. A policy is refitted in every round to the labels of the last $W$ "
            "rounds, and $W$ is chosen so that the regret in the long run is minimal. Now eight times as many labels "
            "arrive in every round. How does the best window change?"
        ),
        options={
            "A": "It stays the same, because the preferences drift as fast as before.",
            "B": "It becomes about half as long.",
            "C": "It becomes about an eighth as long, so that a fit uses as many labels as before.",
            "D": "It becomes about twice as long, because there are more labels to learn from.",
        },
        truth=_eight_times_the_labels,
        explanation=(
            "The regret from estimation falls as 1/(nW), and the regret from drift rises as the square of W. Their sum "
            "is minimal at a W that is proportional to the cube root of 1/n, and the cube root of 1/8 is 1/2."
        ),
        why_not={
            "A": "with more labels a short window is already precise, so that the age of the labels matters more.",
            "C": "a fit with as many labels as before lowers only the part due to drift. At the best window both parts "
            "of the regret fall, so a fit uses four times as many labels.",
            "D": "a longer window was useful because labels were few. With more labels in every round it is needed "
            "less.",
        },
    ),
    NextLine(
        key="nb13.window_curvature",
        title="The regret from drift of a fit to the last W rounds",
        objective="compute the regret that is caused by the age of the labels",
        difficulty=2,
        minutes=8,
        derivation=best_window_derivation,
        line=2,
        quantities=("window", "beta"),
        defined={"variance": ("$\\mathrm{Var}_{\\pi^*}(u)$", _variance)},
        solution=window_curvature,
        mistakes=wrong_answers(
            window_curvature,
            {
                "the oldest label": lambda w: w.window**2 * w.variance / w.beta,
                "the age is not squared": lambda w: (w.window + 1) / 2 * w.variance / w.beta,
                "value instead of second derivative": lambda w: ((w.window + 1) / 2) ** 2 * w.variance / (2 * w.beta),
                "β multiplies": lambda w: ((w.window + 1) / 2) ** 2 * w.variance * w.beta,
            },
            {
                "the oldest label": "the fit has the mean age of its labels, not the age of the oldest ones.",
                "the age is not squared": "the regret is quadratic in the delay, so the mean age must be squared.",
                "value instead of second derivative": "this is the coefficient of ω² in the regret. The second "
                "derivative is twice as large.",
                "β multiplies": "β is on the wrong side of the fraction. The logits are off by the error of the reward "
                "divided by β.",
            },
        ),
        hints=(
            "To first order in ω, the mean of $r_{t-1}, \\dots, r_{t-W}$ is the reward of one moment. How long ago was "
            "it?",
            "The mean of the ages $1, \\dots, W$ is $(W+1)/2$. Substitute $a = \\omega\\,(W+1)/2$ in the line above "
            "and use the chain rule twice.",
        ),
    ),
    TrainingLoop(
        key="nb13.train_on_window",
        title="DPO on the labels of a window",
        objective="write a training loop that uses only recent labels",
        difficulty=2,
        minutes=10,
        arguments=_window_arguments,
        distance=_regret_now,
        solution=train_on_window,
        mistakes=wrong_answers(
            train_on_window,
            {
                "all labels": "age <= window → age > 0",
                "old labels": "age <= window → age > window",
                "one round too few": "age <= window → age < window",
                "no reference": "log_softmax(-1) - log_ref → log_softmax(-1)",
                "no beta": "beta * (log_ratio → (log_ratio",
                "sign": "log_ratio[chosen] - log_ratio[rejected] → log_ratio[rejected] - log_ratio[chosen]",
                "gradients not reset": "optimizer.zero_grad() → pass",
            },
            {
                "all labels": "all labels are used, so that the policy is fitted to a mean of old and new preferences.",
                "old labels": "the labels outside the window are used. Recent labels have a low age.",
                "one round too few": "the labels of the oldest round of the window are missing. A label of age "
                "`window` belongs to it.",
                "no reference": "the log-probabilities of the reference policy are missing, so π_ref does not "
                "contribute to the limit.",
                "no beta": "β is missing. The policy converges to the optimum for β = 1.",
                "sign": "chosen and rejected are swapped.",
                "gradients not reset": "gradients add up over the steps, because they are not reset to zero.",
            },
            pairs=(("all labels", "no beta"),),
        ),
        hints=(
            "Select the pairs with `age <= window` once, before the first step. The rest is DPO.",
            "With `log_ratio = logits.log_softmax(-1) - log_ref`, the margin of a pair is `beta * (log_ratio[chosen] "
            "- log_ratio[rejected])`.",
            "The loss is `-torch.nn.functional.logsigmoid(margin).mean()`.",
        ),
    ),
    TrainingLoop(
        key="nb13.refit",
        title="The reference policy of a refit",
        objective="find a bug that makes the policy leave the reference policy further in every round",
        difficulty=2,
        minutes=8,
        arguments=_refit_arguments,
        distance=_regret_now,
        loss_falls=False,  # the labels change from round to round
        solution=refit,
        bug="moving reference",
        mistakes=wrong_answers(
            refit,
            {
                "moving reference": (
                    "rounds = len(chosen) → rounds, last = len(chosen), -1",
                    (
                        "newest = slice → "
                        "if t > last:  # a new round begins with the policy of the last one\n"
                        "            last, reference = t, logits.detach().log_softmax(-1)\n"
                        "        newest = slice"
                    ),
                    "- log_ref → - reference",
                ),
                "all labels": "slice(max(t - 2, 0), t + 1) → slice(0, t + 1)",
                "no reference": "log_softmax(-1) - log_ref → log_softmax(-1)",
                "sign": "chosen[newest]] - log_ratio[rejected[newest]] → rejected[newest]] - log_ratio[chosen[newest]]",
                "gradients not reset": "optimizer.zero_grad() → pass",
            },
            {
                "moving reference": "in every round the reference is replaced by the current policy. The KL penalty of "
                "the objective is measured from π_ref.",
                "all labels": "all labels are used, so that the policy is fitted to a mean of old and new preferences.",
                "no reference": "the log-probabilities of the reference policy are missing.",
                "sign": "chosen and rejected are swapped.",
                "gradients not reset": "gradients add up over the steps, because they are not reset to zero.",
            },
            pairs=(("moving reference", "all labels"), ("moving reference", "sign")),
        ),
        hints=(
            "Print the entropy of the policy in the last step of every round. It ends near 0, although the size of the "
            "rewards stays the same.",
            "Which policy is the reference in the objective $\\mathbb{E}[r]-\\beta\\,\\mathrm{KL}(\\pi\\|"
            "\\pi_\\text{ref})$? Does it change from round to round?",
        ),
    ),
    Exercise(
        key="nb13.moving_regret",
        title="Regret against a π* that has moved on",
        objective="evaluate a policy by the current reward, not by the reward to which it was fitted",
        difficulty=1,
        minutes=4,
        cases=(
            Case("one prompt, 0.6 rad", _POLICY),
            Case(
                "two prompts, 2 rad, β = 1.5",
                {
                    **{k: torch.stack([_POLICY[k], _POLICY[k].flip(0)]) for k in ("log_policy", "log_ref")},
                    "reward": double([[-0.5, 0.0, 1.0, 1.5], [0.3, -1.0, 0.0, 0.7]]),
                    "velocity": double([[1.0, -1.0, 0.5, -0.5], [0.0, 0.4, -0.9, 1.1]]),
                    "angle": 2.0,
                    "beta": 1.5,
                },
            ),
        ),
        solution=moving_regret,
        mistakes=wrong_answers(
            moving_regret,
            {
                "old reward": "now = math.cos(angle) * reward + math.sin(angle) * velocity → now = reward",
                "sine and cosine": "cos(angle) * reward + math.sin → sin(angle) * reward + math.cos",
                "backwards": "reward + math.sin → reward - math.sin",
                "no reference": "(log_ref + now / beta) → (now / beta)",
                "swapped KL": "log_policy.exp() * (log_policy - log_star) → log_star.exp() * (log_star - log_policy)",
                "no beta": "return beta * → return",
            },
            {
                "old reward": "this is the regret of round 0, but the reward has turned since.",
                "sine and cosine": "at angle 0 the reward must be the old one.",
                "backwards": "the reward turns towards its velocity, not away from it.",
                "no reference": "π_ref is missing in the current π*.",
                "swapped KL": "the arguments of the KL are swapped: the expectation is under the deployed policy.",
                "no beta": "this is in nats; regret is in units of reward.",
            },
        ),
        hints=(
            "First compute the current reward, $\\cos(a)\\,r+\\sin(a)\\,u$. Then compute the current π\\* from π_ref "
            "and that reward.",
            "Regret is $\\beta\\,\\mathrm{KL}(\\pi\\|\\pi^*_\\text{today})$; `log_softmax(-1)` normalises.",
        ),
    ),
    Exercise(
        key="nb13.window_cost",
        title="The regret of a round with a window and a refitting interval",
        objective="add the regret from estimation and the regret from drift",
        difficulty=2,
        minutes=8,
        cases=(
            Case("8 rounds of labels, a fit every 3 rounds", _SLOW | {"window": 8, "every": 3}),
            Case("5 rounds of labels, a fit every 4 rounds", _SLOW | {"labels": 40.0, "window": 5, "every": 4}),
        ),
        solution=window_cost,
        mistakes=wrong_answers(
            window_cost,
            {
                "always fresh": lambda p, d, n, w, k: p / (n * w) + d * ((w + 1) / 2) ** 2,
                "mean age squared": lambda p, d, n, w, k: p / (n * w) + d * ((w + k) / 2) ** 2,
                "one round's labels": lambda p, d, n, w, k: (
                    p / n + d * sum(((w + 1) / 2 + a) ** 2 for a in range(k)) / k
                ),
                "ages from zero": lambda p, d, n, w, k: (
                    p / (n * w) + d * sum(((w - 1) / 2 + a) ** 2 for a in range(k)) / k
                ),
                "added up": lambda p, d, n, w, k: p / (n * w) + d * sum(((w + 1) / 2 + a) ** 2 for a in range(k)),
            },
            {
                "always fresh": "the fit is used for several rounds, and is older in the last of them than in the "
                "first.",
                "mean age squared": "average the squared ages, not the ages: each round has its own regret.",
                "one round's labels": "the fit uses the labels of the whole window, not those of one round only.",
                "ages from zero": "the newest labels are one round old when they are used: those of the current round "
                "come too late.",
                "added up": "this is the drift regret of `every` rounds together; give that of one round.",
            },
        ),
        hints=(
            "In its first round a fit is $(W+1)/2$ rounds old on average, in the next one round older, and so on.",
            "Estimation: `price / (labels * window)`. Drift: `drift` times the mean of the squared ages of the "
            "`every` rounds.",
        ),
    ),
    Exercise(
        key="nb13.best_window",
        title="The number of rounds whose labels should be used",
        objective="choose a window from the asymptotic variance, the drift and the number of labels per round",
        difficulty=2,
        minutes=6,
        cases=(
            Case("100 labels per round", _SLOW),
            Case("12 labels per round, less drift", {"price": 30.0, "drift": 0.0004, "labels": 12.0}),
        ),
        solution=best_window,
        mistakes=wrong_answers(
            best_window,
            {
                "square root": lambda p, d, n: round((p / (n * d)) ** 0.5),
                "labels of one round": lambda p, d, n: _least(lambda w: p / w + d * ((w + 1) / 2) ** 2),
                "oldest label": lambda p, d, n: _least(lambda w: p / (n * w) + d * w**2),
                "age not squared": lambda p, d, n: _least(lambda w: p / (n * w) + d * (w + 1) / 2),
            },
            {
                "square root": "the two terms were set equal, or a derivative is wrong: the window follows a cube "
                "root.",
                "labels of one round": "n labels arrive in every round. How many does a window contain?",
                "oldest label": "the fit has the mean age of its labels, not the age of the oldest.",
                "age not squared": "a policy with twice the delay has four times the regret.",
            },
        ),
        hints=(
            "Write the regret of a round with a window of $W$ rounds, and try every $W$.",
            "Make a table of regrets by window and take its `min`: estimation `price / (labels * w)` and drift.",
        ),
    ),
    Exercise(
        key="nb13.once_wins",
        title="Find a case in which fitting once is better",
        objective="describe when refitting has a higher regret than fitting once",
        difficulty=3,
        minutes=10,
        cases=(
            Case("24 rounds", {"price": 30.0, "late": 0.6, "rounds": 24}),
            Case("12 rounds, cheaper labels", {"price": 6.0, "late": 0.3, "rounds": 12}),
        ),
        solution=once_wins,
        mistakes=wrong_answers(
            once_wins,
            {
                "too little drift": lambda p, late, rounds: [2 * p / (late * rounds), 0.1],
                "many labels": lambda p, late, rounds: [200 * p / (late * rounds), 0.5],
                "order": lambda p, late, rounds: [0.5, 2 * p / (late * rounds)],
            },
            {
                "too little drift": "the preferences hardly change. The turn must be at least half a radian.",
                "many labels": "with more labels, having all of them at the start is less of an advantage.",
                "order": "labels come first, then the turn.",
            },
        ),
        hints=(
            "Drift mostly raises the regret of fitting once, and few labels raise the regret of refitting. Which of "
            "the two numbers makes labels scarce?",
            "`exact.drift.break_even(price, labels, rounds)` is the drift at which both regrets are equal. Your drift "
            "is `late * (turn / rounds) ** 2`. Lower `labels` until your drift is the smaller one.",
        ),
        grader=_grade,
    ),
)
