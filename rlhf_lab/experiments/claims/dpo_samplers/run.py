"""Claim 11: from which pairs does DPO converge fastest? Exact gradients, sampled labels, and rounds of labels.

If the policy class contains π*, every sampler of pairs that covers all responses has the same limit. The samplers
differ in the number of steps and labels until it is reached. Every seed is a world.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlhf_lab.experiments.claims.dpo_samplers.report import decide, figure, summarise_runs
from rlhf_lab.experiments.claims.dpo_samplers.settings import (
    CONSECUTIVE,
    RULE,
    SAMPLERS,
    SEARCH_SEEDS,
    TARGET,
    DPOSamplers,
)
from rlhf_lab.experiments.claims.dpo_samplers.training import generator_of, sampler_setup
from rlhf_lab.experiments.runner import BestConfig, Experiment, JobSpec

if TYPE_CHECKING:
    import pandas as pd

PARTS = {"exact": ["steps_needed", "left"], "sampled": ["left"]}
"""The parts whose step sizes are searched for → the columns whose means decide, the first one first."""


def steps_to_target(curve: Tensor) -> int:
    """The number of steps until the regret stays at or below `TARGET` of its first value; all steps if it does not."""
    above = (curve > TARGET * curve[0]).nonzero()
    return min(int(above[-1]) + 1, len(curve) - 1)


def _rates(settings: DPOSamplers, part: str) -> tuple[float, ...]:
    return settings.rates if part == "exact" else (*(rate / 10 for rate in settings.rates), *settings.rates)


def _run(settings: DPOSamplers, job: JobSpec, best_config: BestConfig) -> list[dict[str, Any]]:
    setup = sampler_setup(settings.scale, job["seed"], settings.beta)
    part, sampler, seed = job["part"], job["sampler"], job["seed"]
    start = setup.regret(setup.start.unsqueeze(0)).item()
    if part == "rounds":
        found = setup.label_in_rounds(sampler, settings.rounds, settings.labels, generator_of(seed, part))
        return [{"at": (i + 1) * settings.labels, "left": regret / start} for i, regret in enumerate(found)]
    search = "rate" not in best_config.get(f"{part} {sampler}", {})
    rates = _rates(settings, part) if search else (best_config[f"{part} {sampler}"]["rate"],)
    steps, batch = (settings.steps, 0) if part == "exact" else (settings.sampled_steps, settings.batch)
    curves = setup.descend(sampler, torch.tensor(rates, dtype=torch.float64), steps, batch, generator_of(seed, part))
    rows: list[dict[str, Any]] = []
    for rate, curve in zip(rates, curves.T, strict=True):
        final = {"rate": rate, "steps_needed": steps_to_target(curve)}
        marks = [len(curve) - 1] if search else _marks(len(curve) - 1)
        rows += [
            {"at": at, "left": max(curve[at].item() / start, 1e-16)} | (final if at == marks[-1] else {})
            for at in marks
        ]
    return rows


def _marks(steps: int) -> list[int]:
    """The steps whose regret is stored: all of the first ten, then about ten in every factor of ten."""
    later = (round(10 ** (i / 10)) for i in range(10, 60))
    return sorted({*range(min(CONSECUTIVE, steps) + 1), *(step for step in later if step < steps), steps})


def _select(settings: DPOSamplers, search: pd.DataFrame) -> BestConfig:
    """Choose each sampler's step size by the number of exact steps, then by regret; with sampled labels by regret."""
    import numpy as np

    table = search.assign(steps_needed=np.log(search["steps_needed"]), left=np.log(search["left"]))
    means = table.groupby(["part", "sampler", "rate"], sort=False)[["steps_needed", "left"]].mean().reset_index()
    chosen: BestConfig = {}
    for part, columns in PARTS.items():
        best = means[means["part"] == part].sort_values(columns).groupby("sampler")["rate"].first()
        chosen |= {f"{part} {sampler}": {"rate": float(rate)} for sampler, rate in best.items()}
    return chosen


def _jobs(seeds: Iterable[int], parts: Iterable[str]) -> list[JobSpec]:
    return [
        {"part": part, "sampler": sampler, "seed": seed} for seed in seeds for part in parts for sampler in SAMPLERS
    ]


EXPERIMENT = Experiment(
    number=11,
    name="dpo-samplers",
    title="The pairs decide how fast DPO converges: a mixture beats uniform pairs, on-policy pairs beat those of π_ref",
    rule=RULE,
    rule_commit="dc4c961c1ef5dfc4330ac5a1d0e069899caf5d5c",
    settings=DPOSamplers,
    scales=("bandit", "tree"),
    jobs=lambda settings: _jobs(settings.seed_range, (*PARTS, "rounds")),
    run=_run,
    summarise=summarise_runs,
    decide=decide,
    figure=figure,
    interval="95% Student-t over worlds",
    search_trials=lambda settings: _jobs(SEARCH_SEEDS[: 1 if settings.quick else None], PARTS),
    select_best=_select,
)
