"""Claim 4, second part: why should pairs from π_r help? Additional labels, limited capacity, or statistics.

On exact scales every fit is convex and is solved to convergence. It is the maximum a posteriori estimate of an implicit
reward f = β log(π/π_ref) in a linear class, and a reward model is the same fit in its class. The result therefore does
not depend on an optimiser, and the limit of infinitely many pairs is computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlhf_lab.algorithms.dpo import DPO, dpo
from rlhf_lab.experiments.claims.rso_why.linear_classes import exact_rows
from rlhf_lab.experiments.claims.rso_why.report import decide, figure
from rlhf_lab.experiments.claims.rso_why.settings import DIRECT, POLICIES, RULE, RSOWhy
from rlhf_lab.experiments.rso_common import rso_setup
from rlhf_lab.experiments.runner import BestConfig, Experiment, JobSpec, best_rates
from rlhf_lab.experiments.settings import SEARCH_SEED
from rlhf_lab.experiments.statistics import summarise
from rlhf_lab.policies.base import Policy
from rlhf_lab.randomness import Stream

if TYPE_CHECKING:
    import pandas as pd


def limit(policy: Policy) -> Policy:
    """Train only the biases and normalisation weights of a policy (after BitFit, Ben Zaken et al. 2022)."""
    for parameter in policy.parameters():
        parameter.requires_grad_(parameter.ndim == 1)
    return policy


def _run(settings: RSOWhy, job: JobSpec, best_config: BestConfig) -> list[dict[str, Any]]:
    if settings.exact:
        return exact_rows(settings, job)
    shared, search = rso_setup(settings, settings.task, job["seed"]), "rate" in job
    setup = shared.setup
    labeller, source, _ = job["condition"].split(" ")
    kind = "direct" if job["condition"] == DIRECT else "sft-sample-rank" if source == "ref" else "rso-sample-rank"
    pairs = shared.pairs(kind, settings.beta, settings.accepted, gold=labeller == "gold")
    policy = setup.new_policy()
    if job["policy"] == "limited":
        limit(policy)
    rate = float(job["rate"] if search else best_config.get(job["policy"], settings.rates[0]))
    training = setup.training(Stream.RSO_FIT, learning_rate=rate)
    dpo(policy, setup.reference, pairs, DPO("sigmoid-norm", settings.beta), training)
    found = shared.evaluate(policy, settings.beta, search)
    names = ("objective", "reward", "kl", "gold_wins", "proxy_objective")
    return [{"pairs": len(pairs), **{name: found[name] for name in names}}]


def _search_trials(settings: RSOWhy) -> list[JobSpec]:
    if settings.exact:
        return []  # convex fits have no learning rate
    return [
        {"seed": SEARCH_SEED, "policy": policy, "condition": "rm ref M", "rate": rate}
        for policy in POLICIES
        for rate in settings.rates
    ]


def _jobs(settings: RSOWhy) -> list[JobSpec]:
    # On exact scales one job has all conditions.
    conditions = [{}] if settings.exact else [{"condition": condition} for condition in settings.conditions]
    return [
        {"seed": seed, "policy": policy, **condition}
        for seed in settings.seed_range
        for policy in POLICIES
        for condition in conditions
    ]


def _summarise(settings: RSOWhy, runs: pd.DataFrame) -> pd.DataFrame:
    metrics = [name for name in ("objective", "regret", "kl", "reward", "gold_wins", "closed_form") if name in runs]
    return summarise(runs, ["policy", "condition"], metrics)


EXPERIMENT = Experiment(
    number=4,
    name="rso-why",
    title="Why pairs from π_r should help: additional labels, a policy of limited capacity, or statistics",
    rule=RULE,
    rule_commit="612b4cec3d76",
    settings=RSOWhy,
    jobs=_jobs,
    run=_run,
    summarise=_summarise,
    decide=decide,
    figure=figure,
    search_trials=_search_trials,
    select_best=lambda settings, search: best_rates(search, "policy", "proxy_objective") if len(search) else {},
)
