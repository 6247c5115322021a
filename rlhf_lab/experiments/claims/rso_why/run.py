"""Claim 4, second part: why should pairs from π_r help? Additional labels, limited capacity, or statistics.

On exact scales every fit is convex and is solved to convergence. It is the maximum a posteriori estimate of an implicit
reward f = β log(π/π_ref) in a linear class, and a reward model is the same fit in its class. The result therefore does
not depend on an optimiser, and the limit of infinitely many pairs is computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlhf_lab.algorithms.dpo import DPO, dpo
from rlhf_lab.experiments import runner
from rlhf_lab.experiments.claims.rso_why.linear_classes import exact_rows
from rlhf_lab.experiments.claims.rso_why.report import decide, figure
from rlhf_lab.experiments.claims.rso_why.settings import DIRECT, POLICIES, RULE, RSOWhy
from rlhf_lab.experiments.rso_common import SEARCH_SEED, best_rates, rso_setup
from rlhf_lab.experiments.runner import BestConfig, Experiment, Job
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


def _run(settings: RSOWhy, job: Job, best_config: BestConfig) -> list[dict[str, Any]]:
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
    dpo(
        policy,
        setup.reference,
        pairs,
        DPO("sigmoid-norm", settings.beta),
        setup.training(Stream.RSO_FIT, learning_rate=rate),
    )
    found = shared.evaluate(policy, settings.beta, search)
    names = ("objective", "reward", "kl", "gold_wins", "proxy_objective")
    return [{"pairs": len(pairs), **{name: found[name] for name in names}}]


def _search_trials(settings: RSOWhy) -> list[Job]:
    if settings.exact:
        return []  # convex fits have no learning rate
    return [
        {"seed": SEARCH_SEED, "policy": policy, "condition": "rm ref M", "rate": rate}
        for policy in POLICIES
        for rate in settings.rates
    ]


def _jobs(settings: RSOWhy) -> list[Job]:
    if settings.exact:
        return [{"seed": seed, "policy": policy} for seed in range(settings.seeds) for policy in POLICIES]
    return [
        {"seed": seed, "policy": policy, "condition": condition}
        for seed in range(settings.seeds)
        for policy in POLICIES
        for condition in settings.conditions
    ]


def _summarise(settings: RSOWhy, runs: pd.DataFrame) -> pd.DataFrame:
    metrics = [name for name in ("objective", "regret", "kl", "reward", "gold_wins", "closed_form") if name in runs]
    return summarise(runs, ["policy", "condition"], metrics)


EXPERIMENT = Experiment(
    number=4,
    name="rso-why",
    title="Why pairs from π_r should help: additional labels, a policy of limited capacity, or statistics",
    claim=(
        "The paper argues that the maximum likelihood estimate of the optimal policy needs labelled pairs sampled from "
        "that policy. With sigmoid-norm on TL;DR it reports AutoSxS win rates of 67.72% (direct), 69.02% "
        "(sft-sample-rank) and 71.86% (rso-sample-rank). The lecture says that statistically rso-sample-rank is closer "
        "to π* than the two other choices. Neither separates the effect of a reward model's labels from that of the "
        "source of the pairs."
    ),
    source="Liu et al. 2024 (RSO), abstract and Table 1; lecture, “Preference Data Distribution – Choices”",
    setup=(
        "The design is factorial. The labels are those of the gold reward or of r_φ, which is fitted to N gold labels; "
        "the pairs are few or many; they come from π_ref, π_r or π*; and the policy can represent everything, or is "
        "limited. On exact scales every fit is convex and solved to convergence, pairs are sampled from π_r itself, "
        "and each seed has a different world. The limit of infinitely many pairs is also computed. It splits the gain "
        "from π_r's pairs into what the capacity of the limited policy explains, and the rest, which is statistics. "
        "The full policy is a table. The limited one has three random features for each prompt (bandit), or a number "
        "for each token in its place, while the reward also depends on neighbouring tokens (tree). On the language "
        "model the full policy trains all weights, and the limited one only biases and normalisation weights. Each has "
        "one learning rate, the best of four on an additional seed by E[r_φ] − β KL on validation prompts. There are "
        "as many prompts for its pairs as labels. The slope γ equals β = 0.5 everywhere."
    ),
    rule=RULE,
    settings=RSOWhy,
    scales=("bandit", "tree", "small"),
    jobs=_jobs,
    run=_run,
    summarise=_summarise,
    decide=decide,
    figure=figure,
    search_trials=_search_trials,
    select_best=lambda settings, search: best_rates(search, "policy") if len(search) else {},
)


def main(settings: RSOWhy) -> None:
    """The command `rlhf-lab experiment rso-why`."""
    runner.main(EXPERIMENT, settings)
