r"""Question 9: a world that moves. When do fresh labels beat many labels at the start, and how often should one refit?

The lecture leaves it open (discussion, "Non-static Environment") and points to Bai et al. 2022, section 4.5, where
reward models and policies are renewed about weekly. Here the world moves by a law that we choose, so that π*_t and the
regret of every round are exact (`worlds/nonstationary.py`, where the closed forms stand too).

Every strategy may spend the same labels. `offline` has them all before round 1; the others get n a round, and those
of the rounds before t serve in round t. All fit one reward model, by maximum a posteriori with a unit prior, and use
the exact optimum for it, which on a table or a log-linear policy is what DPO on the same labels finds as well. So what
differs is the labels alone: how old they are, and whose responses they are about. On a language model the same is
done by DPO, every fit from π_ref with as many steps.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from rlhf_lab import exact
from rlhf_lab.experiments import runner
from rlhf_lab.experiments.claims.non_static.report import (
    CHANGES,
    LANGUAGE,
    at_best,
    figure,
    gain,
    language_gain,
    text,
    words,
)
from rlhf_lab.experiments.claims.non_static.run_text import run_language
from rlhf_lab.experiments.claims.non_static.settings import PIECES, NonStatic
from rlhf_lab.experiments.claims.non_static.strategies import LOOKS, deploy, drift_setup, steady
from rlhf_lab.experiments.runner import EXACT_SCALES, BestConfig, Experiment, Job, Worded
from rlhf_lab.experiments.statistics import summarise

if TYPE_CHECKING:
    import pandas as pd


def _size(settings: NonStatic) -> tuple[int, ...]:
    """What random world a scale is: prompts and arms, or vocabulary, length, prompts."""
    if settings.scale == "bandit":
        return (4, 6)
    return (4, 3, 2) if settings.quick else (6, 4, 2)


# Jobs


def jobs(settings: NonStatic) -> list[Job]:
    """On exact scales a seed's deployments and long runs; on a language model a seed's deployments by strategy."""
    out: list[Job] = []
    for seed in range(settings.seeds):
        if settings.scale not in EXACT_SCALES:
            for change, strategies in LANGUAGE.items():
                out += [{"part": "deploy", "change": change, "strategy": s, "seed": seed} for s in strategies]
            continue
        out += [{"part": "steady", "rate": rate, "more": 1, "seed": seed} for rate in settings.drifts]
        middle = settings.drifts[len(settings.drifts) // 2]
        less = middle / math.sqrt(settings.more)
        out.append({"part": "steady", "rate": less, "more": settings.more, "seed": seed})
        out += [{"part": "deploy", "change": "drift", "turn": turn, "seed": seed} for turn in settings.turns]
        others = [change for change in CHANGES if change not in ("none", "drift")]
        out += [{"part": "deploy", "change": change, "turn": 0.0, "seed": seed} for change in others]
    return out


def run(settings: NonStatic, job: Job, best_config: BestConfig) -> list[dict[str, Any]]:
    """One job's rows."""
    if settings.scale not in EXACT_SCALES:
        return run_language(settings, job)
    made = drift_setup(settings.scale, _size(settings), job["seed"], settings.beta, settings.rounds)
    n, rounds = settings.labels, settings.rounds
    if job["part"] == "steady":
        price, late = made.cost(steps=8)
        n, drift = n * job["more"], late * job["rate"] ** 2
        at = replace(made.at, kind="drift", rate=job["rate"])
        # With more labels only windows near the best one, of a policy that is always fresh.
        windows = settings.windows if job["more"] == 1 else tuple(w for w in settings.windows if w <= settings.window)
        every = settings.every if job["more"] == 1 else settings.every[:1]
        found = steady(at, made.features, n, windows, every, settings.fits, job["seed"])
        rows: list[dict[str, Any]] = []
        for (window, k), regret in found.items():
            limit = exact.drift.window_regret(price, drift, n, window, k)
            best = exact.drift.best_window(price, drift, n, k)
            rows.append({"window": window, "every": k, "regret": regret, "limit": limit, "best": best})
        return rows
    change, turn = job["change"], job["turn"]
    price, late = made.cost()
    window, features, at = settings.window, made.features, made.at
    if change == "drift":
        rate = turn / rounds
        at = replace(at, kind="drift" if turn else "none", rate=rate)
        window = exact.drift.best_deployed(price, late * rate**2, n, rounds)
    elif change == "sudden":
        at = replace(at, kind="sudden", rate=math.pi / 2)
    elif change == "prompts":
        at = replace(at, kind="prompts")
    else:
        # The same end as elsewhere, β, but four times as dear a nat at the start.
        at = replace(at, kind="policy", beta=4 * settings.beta, last_beta=settings.beta / 2)
        features = made.narrow if change == "policy-narrow" else features
    even = math.sqrt(exact.drift.break_even(price, n, rounds) / late) * rounds
    deployed: list[dict[str, Any]] = []
    for strategy, regrets in deploy(at, features, n, window, job["seed"]).items():
        pieces = torch.tensor(regrets, dtype=torch.float64).view(PIECES, -1).mean(1).tolist()
        row: dict[str, Any] = {"strategy": strategy, "kept": window, "even": even, "regret": sum(regrets) / rounds}
        deployed.append(row | {f"quarter_{i + 1}": value for i, value in enumerate(pieces)})
    return deployed


# What it comes to


def summary_of(settings: NonStatic, runs: pd.DataFrame) -> pd.DataFrame:
    """One row a condition; see the columns' names. On exact scales of two kinds, by `part`."""
    import pandas as pd

    if settings.scale not in EXACT_SCALES:
        metrics = ["objective", "reward", "kl", "gold", "words"]
        by = ["change", "strategy"]
        each = runs.groupby([*by, "seed"], sort=False)[metrics].mean().reset_index()
        return pd.concat(
            [
                summarise(each, by, metrics).assign(round="all"),
                summarise(runs, [*by, "round"], metrics),
            ],
            ignore_index=True,
        )
    runs = runs.assign(ratio=runs["regret"] / runs["limit"])
    long = summarise(
        runs[runs["part"] == "steady"],
        ["part", "rate", "more", "window", "every"],
        ["regret", "limit", "best", "ratio"],
    )
    metrics = ["regret", *(f"quarter_{i + 1}" for i in range(PIECES)), "kept", "even"]
    short = summarise(runs[runs["part"] == "deploy"], ["part", "change", "turn", "strategy"], metrics)
    return pd.concat([short, long], ignore_index=True)


def judge(settings: NonStatic, summary: pd.DataFrame, runs: pd.DataFrame) -> Worded:
    """The rule, see `RULE`."""
    if settings.scale not in EXACT_SCALES:
        return _judge_language(runs)
    gains = {turn: gain(runs, "drift", turn) for turn in sorted(settings.turns)}
    better = [turn for turn, found in gains.items() if found.below]
    worse = [turn for turn, found in gains.items() if found.above]
    ratio = at_best(runs, max(settings.more, 1))
    met = ratio.low >= 0.9 and ratio.high <= 1.1
    form = (
        f"With {settings.more} times the labels the regret at the closed form's best window is {ratio} of the closed "
        f"form, which is {'met' if met else 'not met'} (within 10%)."
    )
    turns = list(gains)
    # The first drift from which on every interval lies below zero.
    start = next((i for i in range(len(turns)) if all(gains[turn].below for turn in turns[i:])), None)
    if start == 0:
        return Worded(
            "supported", f"Refitting on the newest labels has the smaller regret at every drift tried. {form}"
        )
    if start is not None:
        before = f"; up to {max(worse):.2g} rad fitting once is better" if worse else ""
        found = gains[turns[start]]
        return Worded(
            "partly supported",
            f"the preferences turn by at least {turns[start]:.2g} rad over the deployment: there the regret of a round "
            f"is smaller by {-found.mean:.2g} [{-found.high:.2g}, {-found.low:.2g}]{before}. {form}",
        )
    if better:
        return Worded("inconclusive", f"Refitting is better at some drifts, but not from one of them on. {form}")
    if worse:
        return Worded("not supported", f"At no drift is the regret of refitting smaller, at some it is larger. {form}")
    return Worded("inconclusive", f"At no drift does the interval of the difference leave out zero. {form}")


def _judge_language(runs: pd.DataFrame) -> Worded:
    drift, still = language_gain(runs, "drift", "online"), language_gain(runs, "none", "online-all")
    told = (
        f"Online less offline in J, mean over the rounds: {drift} where the taste turns, {still} where nothing moves."
    )
    if drift.above and still.above:
        return Worded("supported", told)
    if drift.above:
        return Worded("partly supported", f"preferences drift. {told}")
    if drift.below:
        return Worded("not supported", told)
    return Worded("inconclusive", told)


RULE = (
    "Refitting every round to the newest labels (as many rounds of them as the closed form says) is compared with "
    "fitting once to as many labels at the start: mean regret of a round, difference paired within the seed. The "
    "claim holds if the difference's interval lies below 0 at every drift tried, none included; it holds when the "
    "preferences turn by at least X if that is so from X on and not before; it does not hold if the interval lies "
    "below 0 nowhere and above 0 somewhere; all else is not decided. The closed form is called met if simulation over "
    "formula, at the formula's best window and with the most labels, lies in 0.9 … 1.1 with its interval. On a "
    "language model: J of online (newest labels of own responses) less offline under drift must lie above 0; if online "
    "(all labels) does not lie above offline where nothing moves, the claim holds when preferences drift."
)

EXPERIMENT = Experiment(
    number=9,
    name="non-static",
    title="A world that moves: fresh labels every round beat as many labels at the start",
    claim="Preference models and policies that are renewed weekly with fresh human feedback efficiently improve data "
    "and models (Bai et al. 2022, abstract). When that pays, and at what rhythm, the lecture leaves open.",
    source="Bai et al. 2022 (arXiv 2204.05862), abstract and section 4.5; lecture, “Non-static Environment”.",
    setup="Worlds whose preferences drift or turn at once, whose prompts shift, and whose policy moves on, with an "
    "exact moving π*. Strategies of equal label budgets: fitted once; refitted to all, to the newest, to fading "
    "labels; labels of the policy's own responses. Regret of every round, and the best window and rhythm against a "
    "closed form. The source's models have up to 52B parameters and what moves there is the policy; here the change is "
    "a law that we set.",
    rule=RULE,
    settings=NonStatic,
    scales=("bandit", "tree", "small"),
    jobs=jobs,
    run=run,
    summarise=summary_of,
    decide=judge,
    figure=figure,
    words=words,
    text=text,
)


def main(settings: NonStatic) -> None:
    """The command `rlhf-lab experiment non-static`."""
    runner.main(EXPERIMENT, settings)


__all__ = ["EXPERIMENT", "LOOKS", "NonStatic", "deploy", "drift_setup", "main", "steady"]
