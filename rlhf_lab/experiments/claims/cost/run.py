"""Claim 8: DPO is easy to train and saves memory, with mixed results. Measured at equal reward.

Every method starts from π_ref, has the same labels (or the reward model fitted to them), as many optimiser steps,
and the same number R of responses in a step and in a draw. While it trains it is looked at, its clock stopped: so that
one can read at which cost it first reached a reward that was fixed before. Seconds are those of the processor on one
thread, which other programs hardly lengthen; they are of one machine. Memory is the peak that the system counts for a
process of its own (VmHWM).
"""

from __future__ import annotations

import gc
import json
import math
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rlhf_lab.errors import LabError
from rlhf_lab.experiments import runner
from rlhf_lab.experiments.claims.cost.report import against, figure, final, memory_ratio, text_of, words
from rlhf_lab.experiments.claims.cost.settings import Cost
from rlhf_lab.experiments.claims.cost.setup import BEST_OF, TRAINED, CostSetup, Meter, held_bytes, size_of, train
from rlhf_lab.experiments.methods import METHODS
from rlhf_lab.experiments.runner import EXACT_SCALES, BestConfig, Experiment, Job, Worded
from rlhf_lab.experiments.statistics import bootstrap, mean_interval, summarise
from rlhf_lab.experiments.trajectories import record
from rlhf_lab.policies.base import Policy
from rlhf_lab.randomness import Stream
from rlhf_lab.training import seeded

if TYPE_CHECKING:
    import pandas as pd


SEARCH_SEED = 1000


@lru_cache(maxsize=1)
def _setup(settings: Cost, seed: int, split: str = "test") -> CostSetup:
    return CostSetup(settings, seed, split)


# --------------------------------------------------------------------------------------------------------------- jobs


def _search_trials(settings: Cost) -> list[Job]:
    return [{"seed": SEARCH_SEED, "method": m, "rate": rate} for m in TRAINED for rate in settings.rates]


def _select_best(settings: Cost, search_trials: pd.DataFrame) -> BestConfig:
    """The rate with the highest J at the end, gold reward, on the search's seed."""
    best = search_trials.loc[search_trials.groupby("method")["objective"].idxmax()]
    return dict(zip(best["method"], best["rate"], strict=True))


def _jobs(settings: Cost) -> list[Job]:
    jobs: list[Job] = []
    for seed in range(settings.seeds):
        jobs += [{"seed": seed, "method": m} for m in (*TRAINED, "best-of-n")]
        if settings.scale not in EXACT_SCALES:
            measured = TRAINED if seed == 0 and not settings.quick else ("dpo", "ppo")
            jobs += [{"seed": seed, "method": m, "measure": "memory"} for m in measured]
    return jobs


def _run(settings: Cost, job: Job, best_config: BestConfig) -> list[dict[str, Any]]:
    if job.get("measure") == "memory":
        return [_memory(settings, job["seed"], job["method"])]
    if "rate" in job:
        shared = _setup(settings, job["seed"], "validation")
        return [_trajectory(settings, shared, job["method"], job["rate"], evaluations=1)[-1]]
    shared = _setup(settings, job["seed"])
    if job["method"] == "best-of-n":
        return [_best_of_n(shared)]
    return _trajectory(settings, shared, job["method"], best_config[job["method"]], settings.evaluations)


def _trajectory(settings: Cost, shared: CostSetup, method: str, rate: float, evaluations: int) -> list[dict[str, Any]]:
    """Train by `method` and evaluate the policy on the way; the last row is the end, with what it cost to get there."""
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
        if not rows or rows[-1]["step"] != recorder.steps:  # a method that shares its steps out may take a few less
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


# ------------------------------------------------------------------------------------------------------------- memory


def _memory(settings: Cost, seed: int, method: str) -> dict[str, Any]:
    """Peak memory of a few steps in a process of its own, above that of the process with its libraries."""
    told = {k: v for k, v in asdict(settings).items() if k not in ("out", "workers", "progress")}
    told |= {
        "labels": max(settings.responses, 16), "steps": settings.memory_steps, "reward_steps": 1,
        "prompts": max(settings.responses // 4, 2),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_lab.experiments.claims.cost.run", json.dumps([told, seed, method])],
        capture_output=True, text=True, timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
    )  # fmt: skip
    if done.returncode:
        raise LabError(f"The memory of {method} could not be measured: {done.stderr.strip().splitlines()[-1:]}")
    libraries, peak = json.loads(done.stdout.strip().splitlines()[-1])
    return {"when": "memory", "libraries": libraries, "peak": peak, "own": peak - libraries}


def _status(name: str) -> float:
    """A line of the system's account of this process, MiB; NaN where there is no such account (not Linux)."""
    path = Path("/proc/self/status")
    if not path.is_file():
        return math.nan
    line = next((line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith(name)), None)
    return math.nan if line is None else int(line.split()[1]) / 1024


def _forget_peak() -> None:
    """Let the count of the peak start again from what is held now, where the system allows it."""
    gc.collect()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def measured(told: dict[str, Any], seed: int, method: str) -> tuple[float, float]:
    """MiB of this process with its libraries, and its peak while it trains by `method`. For a process of its own."""
    import transformers  # noqa: F401  (counted among the libraries)

    torch.set_num_threads(1)
    told = {k: tuple(v) if isinstance(v, list) else v for k, v in told.items()}
    shared = CostSetup(Cost(**told, progress=False), seed)
    libraries = _status("VmRSS")
    setup = shared.setup
    _ = setup.pairs, setup.prompts
    if METHODS[method].reward_model:
        # The memory does not depend on the scores, so the reward model is not fitted. But a head of zeros would score
        # all responses alike, and none of them would pass ReST's threshold.
        model = setup.reference.new_reward_model().requires_grad_(False)
        torch.nn.init.normal_(model.head.weight, generator=seeded(seed, Stream.REWARD_HEAD))  # type: ignore[arg-type, union-attr]
        setup.reward_model = model
    policy = setup.new_policy()
    _forget_peak()
    train(method, shared, policy, told["rates"][0], Meter())
    return libraries, _status("VmHWM")


# ------------------------------------------------------------------------------------------------- summary and verdict

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
        luck = bootstrap(part["objective"].to_numpy(), lambda v: float(np.std(v, ddof=1)) if len(v) > 1 else math.nan)
        end.loc[row, ["spread", "spread_low", "spread_high"]] = list(luck)
        for name in ("to_seconds", "to_samples", "to_steps", "an_answer"):  # of the seeds that got there
            there = part[name].dropna().to_numpy()
            end.loc[row, [name, f"{name}_low", f"{name}_high"]] = mean_interval(there) if len(there) else math.nan
    tables = [steps, end]
    if (runs["when"] == "memory").any():
        tables.append(summarise(runs[runs["when"] == "memory"], ["method", "when"], ["own", "peak", "libraries"]))
    return pd.concat(tables, ignore_index=True)


def _names(methods: list[str]) -> str:
    from rlhf_lab.figures import style

    names = [style.label(m) for m in methods]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _judge(settings: Cost, summary: pd.DataFrame, runs: pd.DataFrame) -> Worded:
    ratio, gaps = memory_ratio(runs), against(runs)
    drawn = {m: final(summary, m, "samples").mean for m in ("dpo", "ppo")}
    easy = drawn["dpo"] == 0 and drawn["ppo"] > 0
    ahead, behind = [m for m, gap in gaps.items() if gap.above], [m for m, gap in gaps.items() if gap.below]
    cost = (
        f"DPO draws {drawn['dpo']:.0f} responses while it trains, PPO {drawn['ppo']:,.0f}, and holds {ratio.mean:.2f} "
        f"[{ratio.low:.2f}, {ratio.high:.2f}] of PPO's memory"
    )
    place = [f"clearly above {_names(ahead)}"] if ahead else []
    place += [f"clearly below {_names(behind)}"] if behind else []
    result = f"its J ends {' and '.join(place)}" if place else "its J is clearly apart from no other method's"
    if not easy or ratio.low > 1:
        return Worded("not supported", f"{cost}; {result}.")
    if not ratio.high < 1:
        return Worded("inconclusive", f"The interval of the memory's ratio reaches 1: {cost}; {result}.")
    if ahead and behind:
        return Worded("supported", f"{cost}; {result}.")
    if ahead or behind:
        return Worded("partly supported", f"when “mixed” is left out, for here the results are not: {cost}; {result}.")
    return Worded("partly supported", f"when “mixed” is left out, which these seeds do not decide: {cost}; {result}.")


EXPERIMENT = Experiment(
    number=8,
    name="cost",
    title="DPO is easy to train and saves memory; its results are mixed",
    claim="“Advantage: easy to train (no inference while training), saves GPU memory. Disadvantage: mixed results.” "
    "No number is "
    "given.",
    source="Lecture, “Compared to PPO”, “Conclusion”; Rafailov et al. 2023, sections 1 and 4.",
    setup="Seconds, responses drawn, labels, memory, and the spread over seeds of SFT, DPO, PPO, RSO, RAFT, ReST and "
    "online "
    "DPO, with best-of-n beside them, which pays when it answers. Costs are read where a method first reaches the same "
    "gold reward: halfway from π_ref to π* on finite worlds, to the best of 8 by the reward model on text. All take "
    "the same number of optimiser steps, with the same number of responses in each and drawn at a time.",
    rule="Three parts. Easy: DPO draws no response while it trains, and PPO does. Saves memory: DPO's memory over "
    "PPO's is "
    "below 1, on text the measured peak with its interval, on finite worlds the bytes of networks, gradients and Adam, "
    "which are exact. Mixed: at the end DPO's J is clearly above that of one other trained method and clearly below "
    "that of another (paired 95% intervals). All three: holds. The first two alone: “holds when”. One of the first two "
    "clearly the other way: does not hold. A memory ratio whose interval reaches 1: not decided.",
    settings=Cost,
    scales=("bandit", "tree", "small"),
    jobs=_jobs,
    run=_run,
    summarise=_summarise,
    decide=_judge,
    figure=figure,
    words=words,
    text=text_of,
    interval="95% Student-t over seeds; of the spread, percentile bootstrap",
    search_trials=_search_trials,
    select_best=_select_best,
)


def main(settings: Cost) -> None:
    """The command `rlhf-lab experiment cost`."""
    runner.main(EXPERIMENT, settings)


if __name__ == "__main__":
    print(json.dumps(measured(*json.loads(sys.argv[1]))))
