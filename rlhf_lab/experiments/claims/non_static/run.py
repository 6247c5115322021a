r"""Question 9: a non-stationary world. When do fresh labels beat many labels at the start, and how often to refit?

The lecture leaves this open (discussion, "Non-static Environment") and points to Bai et al. 2022, section 4.5, where
reward models and policies are updated about weekly. Here the world changes by a law that we choose, so that π*_t and
the regret of every round are exact (`worlds/nonstationary.py`; the closed forms are in `exact/drift.py`).

Every strategy has the same number of labels. `offline` has all of them before round 1. The others get n labels per
round, and the policy of round t uses those of the rounds before t. All fit one reward model, by maximum a posteriori
with a unit prior, and use the exact optimum for it. On a table or a log-linear policy DPO finds the same optimum from
the same labels. The strategies therefore differ in the labels alone: how old they are, and whose responses they
compare. On a language model every fit is DPO from π_ref with the same number of steps.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from rlhf_lab import exact
from rlhf_lab.experiments.claims.non_static.report import decide, figure
from rlhf_lab.experiments.claims.non_static.run_text import run_text
from rlhf_lab.experiments.claims.non_static.settings import (
    OTHER_CHANGES,
    PIECES,
    RULE,
    TEXT_STRATEGIES,
    NonStatic,
)
from rlhf_lab.experiments.claims.non_static.strategies import DriftSetup, deploy, drift_setup, steady
from rlhf_lab.experiments.runner import BestConfig, Experiment, JobSpec
from rlhf_lab.experiments.statistics import summarise

if TYPE_CHECKING:
    import pandas as pd


def _size(settings: NonStatic) -> tuple[int, ...]:
    """The size of a random world: prompts and arms of a bandit, or vocabulary, length and prompts of a tree."""
    if settings.scale == "bandit":
        return (4, 6)
    return (4, 3, 2) if settings.quick else (6, 4, 2)


def jobs(settings: NonStatic) -> list[JobSpec]:
    """Return a seed's long runs and deployments on the exact scales, and its deployments by strategy on text."""
    if settings.exact:
        parts: list[JobSpec] = [{"part": "steady", "rate": rate, "more": 1} for rate in settings.drifts]
        middle = settings.drifts[len(settings.drifts) // 2]
        parts.append({"part": "steady", "rate": middle / math.sqrt(settings.more), "more": settings.more})
        parts += [{"part": "deploy", "change": "drift", "turn": turn} for turn in settings.turns]
        parts += [{"part": "deploy", "change": change, "turn": 0.0} for change in OTHER_CHANGES]
    else:
        compared = [(change, strategy) for change, strategies in TEXT_STRATEGIES.items() for strategy in strategies]
        parts = [{"part": "deploy", "change": change, "strategy": strategy} for change, strategy in compared]
    return [{**part, "seed": seed} for seed in settings.seed_range for part in parts]


def run(settings: NonStatic, job: JobSpec, best_config: BestConfig) -> list[dict[str, Any]]:
    """Return the rows of one job."""
    if not settings.exact:
        return run_text(settings, job)
    setup = drift_setup(settings.scale, _size(settings), job["seed"], settings.beta, settings.rounds)
    return (_long_run if job["part"] == "steady" else _deployment)(settings, job, setup)


def _long_run(settings: NonStatic, job: JobSpec, setup: DriftSetup) -> list[dict[str, Any]]:
    """Rows of one drift: the regret at each window and number of rounds between fits, and its closed form."""
    price, late = setup.cost(steps=8)
    n, drift = settings.labels * job["more"], late * job["rate"] ** 2
    at = replace(setup.at, kind="drift", rate=job["rate"])
    # With more labels only windows near the best one, and a fit in every round.
    windows = settings.windows if job["more"] == 1 else tuple(w for w in settings.windows if w <= settings.window)
    every = settings.every if job["more"] == 1 else settings.every[:1]
    found = steady(at, setup.features, n, windows, every, settings.fits, job["seed"])
    rows: list[dict[str, Any]] = []
    for (window, k), regret in found.items():
        limit = exact.drift.window_regret(price, drift, n, window, k)
        best = exact.drift.best_window(price, drift, n, k)
        rows.append({"window": window, "every": k, "regret": regret, "limit": limit, "best": best})
    return rows


def _deployment(settings: NonStatic, job: JobSpec, setup: DriftSetup) -> list[dict[str, Any]]:
    """Rows of one change: the regret of each strategy, as a mean over all rounds and over each part of them."""
    change, turn, n, rounds = job["change"], job["turn"], settings.labels, settings.rounds
    changes: dict[str, dict[str, Any]] = {
        "drift": {"kind": "drift" if turn else "none", "rate": turn / rounds},
        "sudden": {"kind": "sudden", "rate": math.pi / 2},
        "prompts": {"kind": "prompts"},
        # The policy begins near π_ref, with a large β, and moves further in every round as β falls.
        "policy": {"kind": "policy", "beta": 4 * settings.beta, "last_beta": settings.beta / 2},
    }
    at = replace(setup.at, **changes[change.removesuffix("-narrow")])
    features = setup.narrow if change == "policy-narrow" else setup.features
    price, late = setup.cost()
    window = settings.window
    if change == "drift":
        window = exact.drift.best_deployed(price, late * (turn / rounds) ** 2, n, rounds)
    even = math.sqrt(exact.drift.break_even(price, n, rounds) / late) * rounds
    rows: list[dict[str, Any]] = []
    for strategy, regrets in deploy(at, features, n, window, job["seed"]).items():
        pieces = torch.tensor(regrets, dtype=torch.float64).view(PIECES, -1).mean(1).tolist()
        row: dict[str, Any] = {"strategy": strategy, "kept": window, "even": even, "regret": sum(regrets) / rounds}
        rows.append(row | {f"quarter_{i + 1}": value for i, value in enumerate(pieces)})
    return rows


def summarise_runs(settings: NonStatic, runs: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each condition; on the exact scales they are of two kinds, which `part` names."""
    import pandas as pd

    if not settings.exact:
        metrics, by = ["objective", "reward", "kl", "gold", "words"], ["change", "strategy"]
        each = runs.groupby([*by, "seed"], sort=False)[metrics].mean().reset_index()
        rounds = summarise(runs, [*by, "round"], metrics)
        return pd.concat([summarise(each, by, metrics).assign(round="all"), rounds], ignore_index=True)
    runs = runs.assign(ratio=runs["regret"] / runs["limit"])
    parts = {part: runs[runs["part"] == part] for part in ("deploy", "steady")}
    metrics = ["regret", *(f"quarter_{i + 1}" for i in range(PIECES)), "kept", "even"]
    short = summarise(parts["deploy"], ["part", "change", "turn", "strategy"], metrics)
    by = ["part", "rate", "more", "window", "every"]
    long = summarise(parts["steady"], by, ["regret", "limit", "best", "ratio"])
    return pd.concat([short, long], ignore_index=True)


EXPERIMENT = Experiment(
    number=9,
    name="non-static",
    title="A world that moves: fresh labels every round beat as many labels at the start",
    rule=RULE,
    rule_commit="666d0bd48539",
    settings=NonStatic,
    jobs=jobs,
    run=run,
    summarise=summarise_runs,
    decide=decide,
    figure=figure,
)
