"""Claim 4, first part: RSO's Table 1. RAFT, ReST, and three losses on three sources of pairs.

The preference labels serve for the reward model and for the rows "direct". Every other row learns from the same
candidates of π_ref, which the reward model scores. All rows have the same number of pairs and of optimiser steps. The
table is run at the paper's settings (the cell "paper"), and with other values of γ, kinds of labels, reward models and
lengths of training.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from rlhf_lab import exact
from rlhf_lab.algorithms.dpo import DPO, dpo
from rlhf_lab.algorithms.raft import best_of
from rlhf_lab.algorithms.rest import reward_filter
from rlhf_lab.algorithms.sft import sft
from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.experiments.claims.rso_table.expected_fit import expected_fit
from rlhf_lab.experiments.claims.rso_table.report import decide, figure
from rlhf_lab.experiments.claims.rso_table.settings import RULE, RowCondition, RSOTable
from rlhf_lab.experiments.published_results import RSO_TABLE_1
from rlhf_lab.experiments.rso_common import SOURCES, RSOSetup, rso_setup
from rlhf_lab.experiments.runner import BestConfig, Experiment, JobSpec
from rlhf_lab.experiments.statistics import summarise
from rlhf_lab.experiments.text_judge import judge_of
from rlhf_lab.policies.base import Policy
from rlhf_lab.randomness import Stream
from rlhf_lab.rounding import unit_interval, wins
from rlhf_lab.training import seeded

if TYPE_CHECKING:
    import pandas as pd

METRICS = [
    "judge_wins", "gold_wins", "proxy_wins", "objective", "kl", "reward", "regret", "kl_to_optimal", "limit_kl",
    "limit_judge_wins", "limit_objective", "best_gamma", "expected_kl", "right", "reach", "pairs",
]  # fmt: skip


def _jobs(settings: RSOTable) -> list[JobSpec]:
    return [
        {"seed": seed, "task": task, "condition": one.key}
        for seed in settings.seed_range
        for task in settings.tasks
        for one in settings.conditions
    ]


def setup_of(settings: RSOTable, task: str, seed: int, one: RowCondition) -> RSOSetup:
    """Return the set-up of one seed with the reward model of a condition."""
    shared = rso_setup(settings, task, seed)
    return shared if one.cell.reward_model == "many" else shared.with_labels(settings.few_labels)


def pairs_of(shared: RSOSetup, settings: RSOTable, one: RowCondition) -> Pairs:
    """Return the pairs of a condition, `settings.pairs` of them if there are so many of different responses."""
    return shared.pairs(one.source, settings.beta, settings.accepted, labels=one.cell.ranks, number=settings.pairs)


def fit(shared: RSOSetup, settings: RSOTable, one: RowCondition) -> Policy:
    """Train the policy of one condition. "reference" is π_ref."""
    if one.row == "reference":
        return shared.setup.reference
    policy = shared.setup.new_policy()
    steps = settings.steps if one.cell.length == "short" else settings.long_steps
    training = shared.setup.training(Stream.RSO_FIT, learning_rate=settings.rate, steps=steps)
    if one.source in SOURCES:
        pairs = pairs_of(shared, settings, one)
        dpo(policy, shared.setup.reference, pairs, DPO(one.loss, one.cell.gamma), training)  # type: ignore[arg-type]
        return policy
    y, scores, prompts = shared.responses, shared.scores, shared.setup.prompts
    if one.row == "raft":
        best = best_of(scores, seeded(shared.setup.seed, Stream.BEST_OF_N))
        sft(policy, prompts, y.take(best), training)
        return policy
    flat = scores.flatten()
    keep = reward_filter(unit_interval(flat, flat.min().item(), flat.max().item()), settings.threshold)
    every = Tokens(y.ids.flatten(0, 1).unsqueeze(1), y.mask.flatten(0, 1).unsqueeze(1))
    sft(policy, prompts.repeat(settings.candidates)[keep], every[keep], training)
    return policy


def _run(settings: RSOTable, job: JobSpec, best_config: BestConfig) -> list[dict[str, Any]]:
    one = next(condition for condition in settings.conditions if condition.key == job["condition"])
    shared = setup_of(settings, job["task"], job["seed"], one)
    policy = fit(shared, settings, one)
    judge = None if settings.exact else judge_of(settings.scale, job["task"], settings.quick)
    out: dict[str, Any] = {"row": one.row, "loss": one.loss, "source": one.source, **asdict(one.cell)}
    out |= shared.evaluate(policy, settings.beta, False, judge)
    number = len(pairs_of(shared, settings, one)) if one.source in SOURCES else math.nan
    out |= {"right": label_accuracy(shared, settings, one), "reach": shared.reach(settings.beta), "pairs": number}
    if settings.exact:
        out |= limit_of(shared, one) | expected_of(shared, settings, one)
    return [out]


def limit_of(shared: RSOSetup, one: RowCondition) -> dict[str, float]:
    """Return numbers of π_ref exp(r_φ/γ)/Z, to which sigmoid-norm on sampled labels converges on a table."""
    found = shared.evaluate_exactly(exact.optimal_policy(shared.world.log_ref(), shared.learned, one.cell.gamma))
    limits = {f"limit_{name}": found[name] for name in ("judge_wins", "objective", "kl")}
    return limits | {"best_gamma": shared.best_gamma}


def expected_of(shared: RSOSetup, settings: RSOTable, one: RowCondition) -> dict[str, float]:
    """Return the KL that the steps of a condition reach with infinitely many pairs of its source.

    It is computed for sigmoid-norm on labels of the reward model in the cells `settings.expected`, and NaN elsewhere.
    """
    cell, world = one.cell, shared.world
    if one.loss != "sigmoid-norm" or one.source == "direct" or cell not in settings.expected:
        return {"expected_kl": math.nan}
    log_ref, learned = world.log_ref(), shared.learned
    source = exact.optimal_policy(log_ref, learned, settings.beta) if one.source == "rso-sample-rank" else log_ref
    steps = settings.steps if cell.length == "short" else settings.long_steps
    log_fit = expected_fit(world, source, learned, cell.gamma, cell.ranks, steps, settings.rate)
    return {"expected_kl": exact.kl(log_fit, log_ref).mean().item()}


def label_accuracy(shared: RSOSetup, settings: RSOTable, one: RowCondition) -> float:
    """Return how often the label of a pair prefers the response with the larger gold reward, ties counted half.

    Rows without pairs give NaN.
    """
    if one.source not in SOURCES:
        return math.nan
    pairs = pairs_of(shared, settings, one)
    with torch.no_grad():
        chosen, rejected = shared.setup.gold(pairs.prompts, pairs.responses).unbind(-1)
    return wins(chosen, rejected).double().mean().item()


def _summarise(settings: RSOTable, runs: pd.DataFrame) -> pd.DataFrame:
    names = ["task", "condition", "row", "loss", "source", "gamma", "ranks", "reward_model", "length"]
    table = summarise(runs, names, [m for m in METRICS if m in runs])
    paper = table["condition"].isin([one.key for one in settings.conditions if one.cell == settings.design[0]])
    for metric in ("proxy", "gold", "judge"):
        numbers = [RSO_TABLE_1.get(task, {}).get(row) for task, row in zip(table["task"], table["row"], strict=True)]
        found = [math.nan if one is None else getattr(one, metric) / 100 for one in numbers]
        table[f"paper_{metric}_wins"] = [one if known else math.nan for one, known in zip(found, paper, strict=True)]
    return table


EXPERIMENT = Experiment(
    number=4,
    name="rso-table",
    title="Pairs from π_r, labelled by a reward model, beat pairs from π_sft, and these beat the preference labels",
    rule=RULE,
    rule_commit="17fa7f0a31987631680e8c73c2d9fd9ae4ada403",
    settings=RSOTable,
    jobs=_jobs,
    run=_run,
    summarise=_summarise,
    decide=decide,
    figure=figure,
)
