"""Claim 8: DPO is easy to train and saves memory, with mixed results. Costs are measured at equal reward.

Every method starts from π_ref and has the same labels (or the reward model fitted to them), as many optimiser steps,
and the same number of responses in a step and in a batch of samples. The policy is evaluated during training while the
clock is stopped, which gives the cost at which a method first reaches a reward that was fixed before. Times are
processor times of one thread on one machine, on which other programs have little effect.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from rlhf_lab.experiments.claims.cost.memory import measure
from rlhf_lab.experiments.claims.cost.report import decide, figure
from rlhf_lab.experiments.claims.cost.settings import RULE, Cost
from rlhf_lab.experiments.claims.cost.setup import BEST_OF, TRAINED, CostSetup, Meter, held_bytes, size_of, train
from rlhf_lab.experiments.methods import METHODS
from rlhf_lab.experiments.runner import BestConfig, Experiment, JobSpec, best_rates
from rlhf_lab.experiments.settings import SEARCH_SEED
from rlhf_lab.experiments.statistics import bootstrap, mean_interval, summarise
from rlhf_lab.experiments.trajectories import record
from rlhf_lab.policies.base import Policy

if TYPE_CHECKING:
    import pandas as pd


@lru_cache(maxsize=1)
def _setup(settings: Cost, seed: int, split: str = "test") -> CostSetup:
    return CostSetup(settings, seed, split)


def _search_trials(settings: Cost) -> list[JobSpec]:
    return [{"seed": SEARCH_SEED, "method": m, "rate": rate} for m in TRAINED for rate in settings.rates]


def _jobs(settings: Cost) -> list[JobSpec]:
    jobs: list[JobSpec] = []
    for seed in settings.seed_range:
        jobs += [{"seed": seed, "method": m} for m in (*TRAINED, "best-of-n")]
        if not settings.exact:
            measured = TRAINED if seed == settings.first_seed and not settings.quick else ("dpo", "ppo")
            jobs += [{"seed": seed, "method": m, "measure": "memory"} for m in measured]
    return jobs


def _run(settings: Cost, job: JobSpec, best_config: BestConfig) -> list[dict[str, Any]]:
    if job.get("measure") == "memory":
        return [measure(settings, job["seed"], job["method"])]
    if "rate" in job:
        shared = _setup(settings, job["seed"], "validation")
        return [_trajectory(settings, shared, job["method"], job["rate"], evaluations=1)[-1]]
    shared = _setup(settings, job["seed"])
    if job["method"] == "best-of-n":
        return [_best_of_n(shared)]
    return _trajectory(settings, shared, job["method"], best_config[job["method"]], settings.evaluations)


def _trajectory(settings: Cost, shared: CostSetup, method: str, rate: float, evaluations: int) -> list[dict[str, Any]]:
    """Train by `method` and evaluate during training. The last row is the end, with the costs until equal reward."""
    setup, needs, searching = shared.setup, METHODS[method], shared.split == "validation"
    before = shared.fitted[1] if needs.reward_model else 0.0
    start, level = (math.nan, math.nan) if searching else shared.level
    _ = setup.pairs, setup.prompts  # sampled before the clock starts: they are the same for all methods
    policy = setup.new_policy()
    every = max(settings.steps // evaluations, 1)
    rows: list[dict[str, Any]] = []
    meter = Meter(policy, setup.reference)

    def evaluate(now: Policy, step: int) -> None:
        with meter.stopped():
            numbers = {"seconds": before + meter.seconds, "samples": meter.samples, **shared.evaluate(now)}
        rows.append({"when": f"step {step}", "step": step, **numbers})

    def see(now: Policy, step: int) -> None:
        if step and step % every == 0 and not searching:
            evaluate(now, step)

    with record(see, policy) as recorder, meter:
        train(method, shared, policy, rate, meter)
        if not rows or rows[-1]["step"] != recorder.steps:  # a method with stages may take a few steps less
            evaluate(policy, recorder.steps)
    reached = next((row for row in rows if row["reward"] >= level), None)
    last = rows[-1]
    end = {
        **last, "when": "end", "start": start, "level": level, "reached": int(reached is not None),
        "to_seconds": reached["seconds"] if reached else math.nan,
        "to_samples": reached["samples"] if reached else math.nan,
        "to_steps": reached["step"] if reached else math.nan,
        "labels": settings.labels, "networks": needs.networks, "held": held_bytes(shared, method) / 2**20,
        "an_answer": 1,
    }  # fmt: skip
    return [*rows, end]


def _best_of_n(shared: CostSetup) -> dict[str, Any]:
    """Best-of-n trains nothing; its cost is that n responses are sampled and scored for every answer."""
    model, before = shared.fitted
    start, level = shared.level
    n = next((n for n, reward in shared.best_of.items() if n > 1 and reward >= level), None)
    reached = n is not None
    held = max(size_of(shared.setup.reference) + size_of(model), 4 * size_of(model))
    return {
        "when": "end", "step": 0, "seconds": before, "samples": 0, "reward": shared.best_of[BEST_OF],
        "kl": math.nan, "objective": math.nan, "start": start, "level": level, "reached": int(reached),
        "to_seconds": before if reached else math.nan, "to_samples": 0 if reached else math.nan,
        "to_steps": 0 if reached else math.nan, "labels": shared.settings.labels, "networks": 2,
        "held": held / 2**20, "an_answer": n if reached else math.nan,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ summary

METRICS = ["reward", "kl", "objective", "seconds", "samples", "step"]
AT_END = ["reached", "to_seconds", "to_samples", "to_steps", "held", "networks", "an_answer", "level", "start"]


def _summarise(settings: Cost, runs: pd.DataFrame) -> pd.DataFrame:
    import numpy as np
    import pandas as pd

    trained = runs[runs["when"] != "memory"]
    steps = summarise(trained[trained["when"] != "end"], ["method", "when"], METRICS)
    end = summarise(trained[trained["when"] == "end"], ["method", "when"], METRICS + AT_END)
    groups = trained[trained["when"] == "end"].groupby("method", sort=False)
    for row, (_, part) in zip(end.index, groups, strict=True):
        spread = bootstrap(part["objective"].to_numpy(), lambda v: float(np.std(v, ddof=1)) if len(v) > 1 else math.nan)
        end.loc[row, ["spread", "spread_low", "spread_high"]] = list(spread)
        for name in ("to_seconds", "to_samples", "to_steps", "an_answer"):  # of the seeds that reach the level
            there = part[name].dropna().to_numpy()
            end.loc[row, [name, f"{name}_low", f"{name}_high"]] = mean_interval(there) if len(there) else math.nan
    tables = [steps, end]
    if (runs["when"] == "memory").any():
        tables.append(summarise(runs[runs["when"] == "memory"], ["method", "when"], ["own", "peak", "libraries"]))
    return pd.concat(tables, ignore_index=True)


EXPERIMENT = Experiment(
    number=8,
    name="cost",
    title="DPO is easy to train and saves memory; its results are mixed",
    rule=RULE,
    rule_commit="ac159f97b903",
    settings=Cost,
    jobs=_jobs,
    run=_run,
    summarise=_summarise,
    decide=decide,
    figure=figure,
    interval="95% Student-t over seeds; of the spread, percentile bootstrap",
    search_trials=_search_trials,
    select_best=lambda settings, search: best_rates(search),
)
