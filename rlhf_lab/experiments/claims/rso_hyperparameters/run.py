"""Claim 5: RSO's β and γ (its Figure 3), and first-round against tournament ranking (its Table 2)."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rlhf_lab import exact
from rlhf_lab.algorithms.dpo import DPO, dpo
from rlhf_lab.experiments.claims.rso_hyperparameters.report import decide, figure
from rlhf_lab.experiments.claims.rso_hyperparameters.settings import RULE, RSOHyperparameters
from rlhf_lab.experiments.published_results import RSO_TABLE_2
from rlhf_lab.experiments.rso_common import rso_setup
from rlhf_lab.experiments.runner import BestConfig, Experiment, JobSpec
from rlhf_lab.experiments.statistics import summarise
from rlhf_lab.experiments.text_judge import judge_of
from rlhf_lab.randomness import Stream

if TYPE_CHECKING:
    import pandas as pd

LIMITS = ("judge_wins", "objective", "kl")
METRICS = ["judge_wins", "gold_wins", "proxy_wins", "objective", "kl", "reward", "regret", "pairs"]


def _jobs(settings: RSOHyperparameters) -> list[JobSpec]:
    return [{"seed": s, "condition": one.key} for s in settings.seed_range for one in settings.conditions]


def _run(settings: RSOHyperparameters, job: JobSpec, best_config: BestConfig) -> list[dict[str, Any]]:
    one = next(condition for condition in settings.conditions if condition.key == job["condition"])
    shared, cell = rso_setup(settings, settings.task, job["seed"]), one.cell
    if cell.reward_model == "few":
        shared = shared.with_labels(settings.few_labels)
    setup, policy = shared.setup, shared.setup.new_policy()
    source = "sft-sample-rank" if math.isinf(one.beta) else "rso-sample-rank"
    pairs = shared.pairs(source, one.beta, one.accepted, one.pairing, labels=cell.ranks, number=settings.pairs)
    steps = settings.steps if cell.length == "short" else settings.long_steps
    # With β = 0 all accepted responses may be the same one. Then there are no pairs, and the policy remains π_ref.
    if len(pairs):
        training = setup.training(Stream.RSO_FIT, learning_rate=settings.rate, steps=steps)
        dpo(policy, setup.reference, pairs, DPO("sigmoid-norm", cell.gamma), training)
    judge = None if settings.exact else judge_of(settings.scale, settings.task, settings.quick)
    row: dict[str, Any] = {"beta": str(one.beta), "accepted": one.accepted, "pairing": one.pairing, **asdict(cell)}
    row |= {"pairs": len(pairs)} | shared.evaluate(policy, settings.beta, False, judge)
    if settings.exact:
        # With infinitely many sampled labels of these pairs a table converges to π_ref exp(r_φ/γ) for every β.
        limit = exact.optimal_policy(shared.world.log_ref(), shared.learned, cell.gamma)
        row |= {f"limit_{name}": value for name, value in shared.evaluate_exactly(limit).items() if name in LIMITS}
    return [row]


def _summarise(settings: RSOHyperparameters, runs: pd.DataFrame) -> pd.DataFrame:
    metrics = [*METRICS, *(f"limit_{name}" for name in LIMITS)]
    names = ["condition", "beta", "accepted", "pairing", "gamma", "ranks", "reward_model", "length"]
    table = summarise(runs, names, [metric for metric in metrics if metric in runs])
    rankings = {one.key: name for name, one in settings.rankings.items()}
    for metric in ("proxy", "judge"):
        published = [RSO_TABLE_2.get(rankings.get(key, "")) for key in table["condition"]]
        table[f"paper_{metric}_wins"] = [math.nan if row is None else getattr(row, metric) / 100 for row in published]
    return table


EXPERIMENT = Experiment(
    number=5,
    name="rso-hyperparameters",
    title="RSO works best at a β of its sampler between the extremes and at a γ of its loss far below β",
    rule=RULE,
    rule_commit="4d1a96dc039ac366436f2fd9d578c493deadc130",
    settings=RSOHyperparameters,
    jobs=_jobs,
    run=_run,
    summarise=_summarise,
    decide=decide,
    figure=figure,
)
