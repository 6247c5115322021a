"""Claim 7: when a proxy reward is optimised ever harder, it keeps rising while the gold reward peaks and falls.

A trajectory is a sequence of policies with more and more proxy reward: those of PPO, DPO and RSO during training at a
small β, and of best-of-n as n grows. On the exact scales the optimum of the proxy as β falls is recorded as well. No
method can have more proxy reward at the same KL, and everything is enumerated.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from rlhf_lab.experiments.claims.over_optimisation.report import DECISIVE_KIND, KINDS, decide, figure
from rlhf_lab.experiments.claims.over_optimisation.settings import RULE, OverOptimisation
from rlhf_lab.experiments.claims.over_optimisation.trajectories import (
    POINT,
    TRAINED,
    TRAJECTORY,
    best_of_n_on_text,
    exact_trajectories,
    trained,
)
from rlhf_lab.experiments.runner import BestConfig, Experiment, JobSpec
from rlhf_lab.experiments.statistics import summarise


def jobs(settings: OverOptimisation) -> list[JobSpec]:
    """Return one job for each trajectory and seed. On text RSO is trained with the fewest labels only."""
    few, many = settings.labels[0], settings.labels[-1]
    if settings.exact:
        conditions = [("exact", n, kind) for kind in KINDS for n in settings.labels]
        conditions += [(name, n, kind) for kind in ("full", DECISIVE_KIND) for n in (few, many) for name in TRAINED]
    else:
        conditions = [(name, few, "full") for name in TRAINED]
        conditions += [("ppo", many, "full"), ("dpo", many, "full"), ("best-of-n", 0, "full")]
    return [
        {"seed": seed, "method": method, "labels": labels, "kind": kind}
        for seed in settings.seed_range
        for method, labels, kind in conditions
    ]


def run(settings: OverOptimisation, job: JobSpec, best_config: BestConfig) -> list[dict[str, Any]]:
    """Return one row for each point of a trajectory, from π_ref to its end."""
    if job["method"] == "exact":
        return exact_trajectories(settings, job["seed"], job["labels"], job["kind"])
    return best_of_n_on_text(settings, job["seed"]) if job["method"] == "best-of-n" else trained(settings, job)


def summarise_rows(settings: OverOptimisation, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the means over seeds at every point of every trajectory."""
    by = [TRAJECTORY, "kind", "labels", POINT]
    rows = rows.assign(root_kl=rows["kl"].clip(lower=0) ** 0.5)
    names = ["kl", "root_kl", "gold", "proxy", *[name for name in ("tokens", "distinct") if name in rows.columns]]
    first = rows.groupby(by, sort=False)["pressure"].first().reset_index()
    return summarise(rows, by, names).merge(first, on=by)


EXPERIMENT = Experiment(
    number=7,
    name="over-optimisation",
    title="When a proxy reward is optimised ever harder, the gold reward peaks and falls; more labels delay this",
    rule=RULE,
    rule_commit="f3492faf7a4e",
    settings=OverOptimisation,
    jobs=jobs,
    run=run,
    summarise=summarise_rows,
    decide=decide,
    figure=figure,
)
