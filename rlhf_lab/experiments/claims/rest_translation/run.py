"""Claim 6: ReST on translation: its Improve steps, a second Grow step, and the limit of its filter.

Every condition of a seed has the same labels, reward model, prompts and samples of π_ref. The limit of the filter is
π_ref conditioned on r > τ. It is compared with the optimum of the same reward that has the same KL. On the exact scales
both are computed over all responses. On a language model they are computed over the samples of the first Grow step, as
if these were all responses.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from rlhf_lab.experiments.claims.rest_translation.report import decide, figure
from rlhf_lab.experiments.claims.rest_translation.settings import LOSSES, RULE, ReSTTranslation
from rlhf_lab.experiments.claims.rest_translation.training import (
    other_rows,
    ppo_rows,
    rest_rows,
    rest_setup,
    untrained_rows,
)
from rlhf_lab.experiments.runner import BestConfig, Experiment, JobSpec
from rlhf_lab.experiments.statistics import summarise


def jobs(settings: ReSTTranslation) -> list[JobSpec]:
    """Return the jobs of each seed: untrained policies, ReST, the other losses, PPO."""
    parts = ("untrained", "rest", *LOSSES, "ppo")
    return [{"seed": seed, "part": part} for seed in settings.seed_range for part in parts]


def run(settings: ReSTTranslation, job: JobSpec, best_config: BestConfig) -> list[dict[str, Any]]:
    """Return the rows of one job."""
    shared, part = rest_setup(settings, job["seed"]), job["part"]
    if part in LOSSES:
        return other_rows(shared, part)
    return {"untrained": untrained_rows, "rest": rest_rows, "ppo": ppo_rows}[part](shared)


def summarise_rows(settings: ReSTTranslation, rows: pd.DataFrame) -> pd.DataFrame:
    """Return means over seeds, with each condition's gain over π_ref on the same prompts, paired within the seed."""
    rows = with_gains(rows)
    names = ["proxy", "gold", "proxy_gain", "gold_gain", "kl", "gap", "gold_gap", "regret", "bleu", "right", "distinct",
             "kept", "samples"]  # fmt: skip
    return summarise(rows, "condition", [name for name in names if name in rows.columns])


def with_gains(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with `proxy_gain` and `gold_gain` over π_ref, with the same seed and on the same prompts."""
    rows = rows.copy()
    limit = rows["condition"].str.match("limit|frontier")
    for name in ("proxy", "gold"):
        base, sampled = (rows[rows["condition"] == start].set_index("seed")[name] for start in ("BC", "limit 0"))
        start = rows["seed"].map(base).where(~limit, rows["seed"].map(sampled))
        rows[f"{name}_gain"] = rows[name] - start
    return rows


EXPERIMENT = Experiment(
    number=6,
    name="rest-translation",
    title="ReST: Improve steps under rising thresholds raise the reward, a second Grow raises it further",
    rule=RULE,
    rule_commit="770c78f43f8e",
    settings=ReSTTranslation,
    jobs=jobs,
    run=run,
    summarise=summarise_rows,
    decide=decide,
    figure=figure,
)
