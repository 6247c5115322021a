"""Exercises of notebook 13: a non-static environment, and how long a label stays useful."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.exercises.checking import Case, Exercise, Mistake, as_tensor


def _double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


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


def _turned(mistake: str) -> Callable[..., Tensor]:
    """`moving_regret` with one mistake."""

    def wrong(
        log_policy: Tensor, log_ref: Tensor, reward: Tensor, velocity: Tensor, angle: float, beta: float
    ) -> Tensor:
        c, s = math.cos(angle), math.sin(angle)
        now = c * reward + s * velocity
        if mistake == "old":
            now = reward
        if mistake == "swapped":
            now = s * reward + c * velocity
        if mistake == "back":
            now = c * reward - s * velocity
        log_star = (log_ref + now / beta).log_softmax(-1)
        if mistake == "no ref":
            log_star = (now / beta).log_softmax(-1)
        if mistake == "turned":
            return beta * (log_star.exp() * (log_star - log_policy)).sum(-1)
        kl = (log_policy.exp() * (log_policy - log_star)).sum(-1)
        return kl if mistake == "no beta" else beta * kl

    return wrong


def _least(cost: Callable[[int], float]) -> int:
    return min(range(1, 1001), key=cost)


def _judge(answer: object, price: float, late: float, rounds: int) -> str | None:
    """The complaint about a world in which fitting once should have the lower regret, or None."""
    numbers = as_tensor(answer)
    if numbers is None or numbers.shape != (2,):
        return "return two numbers: labels per round, and the turn over the deployment in radians."
    labels, turn = numbers.tolist()
    if not labels >= 1:
        return f"{labels:g} labels a round: at least 1 is wanted. Labels come first, then the turn."
    if not 0.5 <= turn <= 3.15:
        return f"a turn of {turn:g} rad: between 0.5 and π is wanted."
    drift = late * (turn / rounds) ** 2
    once = exact.drift.once_regret(price, drift, labels, rounds)
    kept = exact.drift.best_deployed(price, drift, labels, rounds)
    again = exact.drift.deployed_regret(price, drift, labels, rounds, kept)
    if once >= again:
        return f"fitting once loses {once:.3g} a round, fitting again on the best window {again:.3g}."
    return None


_POLICY: dict[str, Any] = {
    "log_policy": _double([0.2, 0.1, 0.3, 0.4]).log(),
    "log_ref": _double([0.4, 0.3, 0.2, 0.1]).log(),
    "reward": _double([-0.5, 0.0, 1.0, 1.5]),
    "velocity": _double([1.0, -1.0, 0.5, -0.5]),
    "angle": 0.6,
    "beta": 0.5,
}
_SLOW = {"price": 30.0, "drift": 0.002, "labels": 100.0}

EXERCISES = (
    Exercise(
        key="nb13.moving_regret",
        title="Regret against a π* that has moved on",
        objective="evaluate a policy by the current reward, not by the one it was fitted to",
        difficulty=1,
        minutes=4,
        cases=(
            Case("one prompt, 0.6 rad", _POLICY),
            Case(
                "two prompts, 2 rad, β = 1.5",
                {
                    **{k: torch.stack([_POLICY[k], _POLICY[k].flip(0)]) for k in ("log_policy", "log_ref")},
                    "reward": _double([[-0.5, 0.0, 1.0, 1.5], [0.3, -1.0, 0.0, 0.7]]),
                    "velocity": _double([[1.0, -1.0, 0.5, -0.5], [0.0, 0.4, -0.9, 1.1]]),
                    "angle": 2.0,
                    "beta": 1.5,
                },
            ),
        ),
        solution=moving_regret,
        mistakes=(
            Mistake("old reward", "this is the regret of round 0, but the reward has turned since.", _turned("old")),
            Mistake("sine and cosine", "at angle 0 the reward must be the old one.", _turned("swapped")),
            Mistake("backwards", "the reward turns towards its velocity, not away from it.", _turned("back")),
            Mistake("no reference", "π_ref is missing in the current π*.", _turned("no ref")),
            Mistake(
                "swapped KL",
                "the arguments of the KL are swapped: the expectation is under the deployed policy.",
                _turned("turned"),
            ),
            Mistake("no beta", "this is in nats; regret is in units of reward.", _turned("no beta")),
        ),
        hints=(
            "First compute the current reward: $\\cos(a)\\,r+\\sin(a)\\,u$. Then compute the current π\\* from π_ref "
            "and that reward.",
            "Regret is $\\beta\\,\\mathrm{KL}(\\pi\\|\\pi^*_\\text{today})$; `log_softmax(-1)` normalises.",
        ),
    ),
    Exercise(
        key="nb13.window_cost",
        title="What a round costs",
        objective="add the regret from estimation and from drift for a window and a refitting interval",
        difficulty=2,
        minutes=8,
        cases=(
            Case("8 rounds of labels, a fit every 3 rounds", _SLOW | {"window": 8, "every": 3}),
            Case("5 rounds of labels, a fit every 4 rounds", _SLOW | {"labels": 40.0, "window": 5, "every": 4}),
        ),
        solution=window_cost,
        mistakes=(
            Mistake(
                "always fresh",
                "the fit is used for several rounds, and is older in the last of them than in the first.",
                lambda p, d, n, w, k: p / (n * w) + d * ((w + 1) / 2) ** 2,
            ),
            Mistake(
                "mean age squared",
                "average the squared ages, not the ages: each round has its own regret.",
                lambda p, d, n, w, k: p / (n * w) + d * ((w + k) / 2) ** 2,
            ),
            Mistake(
                "one round's labels",
                "the fit uses the labels of the whole window, not those of one round only.",
                lambda p, d, n, w, k: p / n + d * sum(((w + 1) / 2 + a) ** 2 for a in range(k)) / k,
            ),
            Mistake(
                "ages from zero",
                "the newest labels are one round old when they are used: those of the current round come too late.",
                lambda p, d, n, w, k: p / (n * w) + d * sum(((w - 1) / 2 + a) ** 2 for a in range(k)) / k,
            ),
            Mistake(
                "added up",
                "this is the drift regret of `every` rounds together; give that of one round.",
                lambda p, d, n, w, k: p / (n * w) + d * sum(((w + 1) / 2 + a) ** 2 for a in range(k)),
            ),
        ),
        hints=(
            "In its first round a fit is $(W+1)/2$ rounds old on average, in the next one round older, and so on.",
            "Estimation: `price / (labels * window)`. Drift: `drift` times the mean of the squared ages of the "
            "`every` rounds.",
        ),
    ),
    Exercise(
        key="nb13.best_window",
        title="How many rounds to keep",
        objective="choose a window from the limit of N · regret, the drift and the labels per round",
        difficulty=2,
        minutes=6,
        cases=(
            Case("100 labels a round", _SLOW),
            Case("12 labels a round, less drift", {"price": 30.0, "drift": 0.0004, "labels": 12.0}),
        ),
        solution=best_window,
        mistakes=(
            Mistake(
                "square root",
                "the two terms were set equal, or a derivative is wrong: the window follows a cube root.",
                lambda p, d, n: round((p / (n * d)) ** 0.5),
            ),
            Mistake(
                "price of one round",
                "n labels come in every round. How many does a window contain?",
                lambda p, d, n: _least(lambda w: p / w + d * ((w + 1) / 2) ** 2),
            ),
            Mistake(
                "oldest label",
                "the fit has the mean age of its labels, not the age of the oldest.",
                lambda p, d, n: _least(lambda w: p / (n * w) + d * w**2),
            ),
            Mistake(
                "age not squared",
                "a policy with twice the delay has four times the regret.",
                lambda p, d, n: _least(lambda w: p / (n * w) + d * (w + 1) / 2),
            ),
        ),
        hints=(
            "Write the regret of a round with a window of $W$ rounds, and try every $W$.",
            "Make a table of regrets by window and take its `min`: estimation `price / (labels * w)` and drift.",
        ),
    ),
    Exercise(
        key="nb13.once_wins",
        title="Find the regime: once is enough",
        objective="find when drift is too small for a second fit",
        difficulty=3,
        minutes=10,
        cases=(
            Case("24 rounds", {"price": 30.0, "late": 0.6, "rounds": 24}),
            Case("12 rounds, cheaper labels", {"price": 6.0, "late": 0.3, "rounds": 12}),
        ),
        solution=once_wins,
        mistakes=(
            Mistake(
                "too little drift",
                "the preferences hardly change. The turn must be at least half a radian.",
                lambda p, late, rounds: [2 * p / (late * rounds), 0.1],
            ),
            Mistake(
                "many labels",
                "with more labels, having all of them at the start is less of an advantage.",
                lambda p, late, rounds: [200 * p / (late * rounds), 0.5],
            ),
            Mistake(
                "order",
                "labels come first, then the turn.",
                lambda p, late, rounds: [0.5, 2 * p / (late * rounds)],
            ),
        ),
        hints=(
            "Drift harms only fitting once, few labels harm fitting again. Which of the two numbers makes labels "
            "scarce?",
            "`exact.drift.break_even(price, labels, rounds)` is the drift at which both lose alike, `late * (turn / "
            "rounds) ** 2` is yours. Lower `labels` until yours is the smaller.",
        ),
        judge=_judge,
    ),
)
