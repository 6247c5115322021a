"""Claim 5: RSO's β and γ (its Figure 3), and first-round against tournament ranking (its Table 2)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rlhf_lab import exact
from rlhf_lab.algorithms.dpo import DPO, dpo
from rlhf_lab.experiments import runner
from rlhf_lab.experiments.claims.rso_hyperparameters.report import decide, figure
from rlhf_lab.experiments.claims.rso_hyperparameters.settings import RULE, RSOHyperparameters
from rlhf_lab.experiments.published_results import RSO_TABLE_2
from rlhf_lab.experiments.rso_common import SEARCH_SEED, rso_setup
from rlhf_lab.experiments.runner import BestConfig, Experiment, Job
from rlhf_lab.experiments.setup_exact import ExactSetup
from rlhf_lab.experiments.statistics import summarise
from rlhf_lab.experiments.text_judge import judge_of
from rlhf_lab.randomness import Stream

if TYPE_CHECKING:
    import pandas as pd

LIMITS = ("judge_wins", "objective", "kl")
METRICS = ["proxy_wins", "gold_wins", "judge_wins", "reward", "kl", "objective", "regret"]


def _search_trials(settings: RSOHyperparameters) -> list[Job]:
    return [{"seed": SEARCH_SEED, "condition": settings.base.key, "rate": rate} for rate in settings.rates]


def _select_best(settings: RSOHyperparameters, search: pd.DataFrame) -> BestConfig:
    best = int(search["proxy_objective"].to_numpy().argmax())
    return {"rate": float(search["rate"].to_numpy()[best])}


def _jobs(settings: RSOHyperparameters) -> list[Job]:
    return [{"seed": s, "condition": one.key} for s in range(settings.seeds) for one in settings.conditions]


def _run(settings: RSOHyperparameters, job: Job, best_config: BestConfig) -> list[dict[str, Any]]:
    search = "rate" in job
    rate = float(job["rate"] if search else best_config.get("rate", settings.rates[0]))
    one = next(condition for condition in settings.conditions if condition.key == job["condition"])
    shared = rso_setup(settings, settings.task, job["seed"])
    setup, policy = shared.setup, shared.setup.new_policy()
    source = "sft-sample-rank" if math.isinf(one.beta) else "rso-sample-rank"
    pairs = shared.pairs(source, one.beta, one.accepted, one.pairing)
    # With β = 0 all accepted responses may be the same one. Then there are no pairs, and the policy remains π_ref.
    if len(pairs):
        dpo(
            policy,
            setup.reference,
            pairs,
            DPO("sigmoid-norm", one.gamma),
            setup.training(Stream.RSO_FIT, learning_rate=rate),
        )
    judge = None if search or settings.exact else judge_of(settings.scale, settings.task, settings.quick)
    row: dict[str, Any] = {"beta": str(one.beta), "gamma": one.gamma, "accepted": one.accepted}
    row |= {"pairing": one.pairing, "pairs": len(pairs)} | shared.evaluate(policy, settings.beta, search, judge)
    if isinstance(setup, ExactSetup):
        # With infinitely many labels of these pairs a table converges to π_ref exp(r_φ/γ) for every β.
        limit = exact.optimal_policy(setup.world.log_ref(), setup.learned_rewards, one.gamma)
        row |= {f"limit_{name}": value for name, value in shared.evaluator(limit).items() if name in LIMITS}
    return [row]


def _summarise(settings: RSOHyperparameters, runs: pd.DataFrame) -> pd.DataFrame:
    metrics = [*METRICS, "pairs", *(f"limit_{name}" for name in LIMITS)]
    table = summarise(runs, "condition", [metric for metric in metrics if metric in runs])
    known = {one.key: one for one in settings.conditions}
    for name in ("beta", "gamma", "accepted", "pairing"):
        table.insert(1, name, [getattr(known[key], name) for key in table["condition"]])
    names = {one.key: name for name, one in settings.rankings.items()}
    for metric in ("proxy", "judge"):
        published = [RSO_TABLE_2.get(names.get(key, "")) for key in table["condition"]]
        table[f"paper_{metric}_wins"] = [math.nan if row is None else getattr(row, metric) / 100 for row in published]
    return table


EXPERIMENT = Experiment(
    number=5,
    name="rso-hyperparameters",
    title="RSO's β and γ have an optimum between the extremes, and a tournament ranks better than a first round",
    claim=(
        "The paper accepts 8 of 64 candidates at β = 0.5 and fits at γ = 0.05. Its Figure 3 shows wins by the reward "
        "model on TL;DR. Of β = 0, 0.05, 0.5 and 5 the best is 0.5 (at γ = 0.05); of γ = 0.005, 0.05 and 0.5 the best "
        "is 0.05 (at β = 0.5). Its Table 2 shows wins by the reward model and by AutoSxS. With first-round pairs they "
        "are 88.63% and 68.51% for sft-8, 92.37% and 71.86% for rso-8, and 88.91% and 68.84% for sft-64. With a "
        "tournament they are 90.69% and 68.57%, 93.35% and 71.69%, and 91.14% and 71.08%. Tournaments therefore win "
        "more by the reward model but hardly more by AutoSxS (except for sft-64), and rejection wins more by both."
    ),
    source=(
        "Liu et al. 2024 (RSO), section 5.2, Figure 3 and Table 2; lecture, “How to sample from π_r? Rejection "
        "Sampling!”"
    ),
    setup=(
        "The loss is sigmoid-norm on 8 of 64 candidates. The β of the sampler varies from 0 (the best 8) to no "
        "rejection with γ = 0.5, and γ varies from 0.05 upwards with β = 0.5. The six rows of Table 2 are run too. All "
        "conditions of a seed share labels, reward model and candidates, and have the same number of optimiser steps "
        "for any number of pairs. The labels are drawn with probability σ(r₁ − r₂) of the reward model, and J uses β = "
        "0.5. On exact scales policies are tables, each seed has a different world, the judge is the gold labeller, "
        "who prefers by the Bradley–Terry model, and wins are against samples of π_ref. On text they are against the "
        "SFT target, on summaries. All conditions have the same learning rate, the best of three in the base condition "
        "on one additional seed, by E[r_φ] − β KL."
    ),
    rule=RULE,
    settings=RSOHyperparameters,
    scales=("bandit", "tree", "small"),
    jobs=_jobs,
    run=_run,
    summarise=_summarise,
    decide=decide,
    figure=figure,
    search_trials=_search_trials,
    select_best=_select_best,
)


def main(settings: RSOHyperparameters) -> None:
    """The command `rlhf-lab experiment rso-hyperparameters`."""
    runner.main(EXPERIMENT, settings)
