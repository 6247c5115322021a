"""Claim 4, second part: why should pairs from π_r help? Free labels, the policy's limits, or statistics.

On the exact scales every fit here is a convex one and is carried to its end: an implicit reward f = β log(π/π_ref) out
of a linear class, by maximum a posteriori of the labels. A reward model is the same fit with its own class. Nothing of
the optimiser is then in the answer, and what endless pairs would lead to is computed, not extrapolated.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from rlhf_lab.algorithms.dpo import DPO, dpo
from rlhf_lab.experiments import runner
from rlhf_lab.experiments.claims.rso_why.linear_classes import exact_rows
from rlhf_lab.experiments.claims.rso_why.report import (
    CAPACITY,
    FREE,
    POLICIES,
    SOURCE,
    STATISTICS,
    effects,
    figure,
    how,
    signed,
    text_of,
    words,
)
from rlhf_lab.experiments.claims.rso_why.settings import DIRECT, RSOWhy
from rlhf_lab.experiments.rso_common import RSOSetup, rso_setup
from rlhf_lab.experiments.runner import BestConfig, Experiment, Job, Worded
from rlhf_lab.experiments.setup_text import TextSetup
from rlhf_lab.experiments.statistics import summarise
from rlhf_lab.policies.base import Policy

if TYPE_CHECKING:
    import pandas as pd


SEARCH_SEED = 1000


# Language models.


@lru_cache(maxsize=1)
def _setup(settings: RSOWhy, seed: int) -> RSOSetup:
    return rso_setup(settings, settings.task, seed)


def limit(policy: Policy) -> Policy:
    """Leave only biases and norms to train, all else as it is (Ben Zaken et al. 2022, BitFit, and norms)."""
    for parameter in policy.parameters():
        parameter.requires_grad_(parameter.ndim == 1)
    return policy


def _run_text(settings: RSOWhy, job: Job, best_config: BestConfig) -> list[dict[str, Any]]:
    shared, searching = _setup(settings, job["seed"]), "rate" in job
    setup = shared.setup
    assert isinstance(setup, TextSetup)
    labeller, source, _ = job["condition"].split(" ")
    kind = "direct" if job["condition"] == DIRECT else "sft-sample-rank" if source == "ref" else "rso-sample-rank"
    pairs = shared.pairs(kind, settings.beta, settings.accepted, gold=labeller == "gold")
    policy = setup.new_policy()
    if job["policy"] == "limited":
        limit(policy)
    rate = float(job["rate"] if searching else best_config.get(job["policy"], settings.rates[0]))
    training = setup.training(1, learning_rate=rate)
    dpo(policy, setup.reference, pairs, DPO("sigmoid-norm", settings.beta), training)
    reward: Any = setup.reward_model
    found = setup.evaluate(policy, "validation" if searching else "test", proxy=reward, beta=settings.beta)
    row = {"pairs": len(pairs), "objective": found["objective"], "reward": found["reward"], "kl": found["kl"]}
    row |= {"gold_wins": found["gold_wins"], "proxy_objective": found["proxy"] - settings.beta * found["kl"]}
    return [row]


def _run(settings: RSOWhy, job: Job, best_config: BestConfig) -> list[dict[str, Any]]:
    return exact_rows(settings, job) if settings.exact else _run_text(settings, job, best_config)


def _search_trials(settings: RSOWhy) -> list[Job]:
    if settings.exact:
        return []  # convex fits have no rate
    return [
        {"seed": SEARCH_SEED, "policy": policy, "condition": "rm ref M", "rate": rate}
        for policy in POLICIES
        for rate in settings.rates
    ]


def _select_best(settings: RSOWhy, search: pd.DataFrame) -> BestConfig:
    if not len(search):
        return {}
    best = search.loc[search.groupby("policy")["proxy_objective"].idxmax()]
    return {str(policy): float(rate) for policy, rate in zip(best["policy"], best["rate"], strict=True)}


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


def _verdict(settings: RSOWhy, summary: pd.DataFrame, runs: pd.DataFrame) -> Worded:
    found = effects(settings, runs)
    helped = [policy for policy, one in found[SOURCE].items() if one.above]
    hurt = [policy for policy, one in found[SOURCE].items() if one.below]
    parts = "; ".join(
        f"{name} {how(found[name])} ("
        + ", ".join(f"{policy} {signed(one)}" for policy, one in found[name].items())
        + ")"
        for name in (FREE, CAPACITY, STATISTICS)
    )
    gains = ", ".join(f"{policy} policy {signed(one)}" for policy, one in found[SOURCE].items())
    sentence = f"Gain of J by pairs from π_r in place of π_ref: {gains}. Explanations: {parts}."
    if len(helped) == len(POLICIES):
        return Worded("supported", sentence)
    if helped:
        return Worded("partly supported", f"For the {helped[0]} policy alone. {sentence}")
    return Worded("not supported" if hurt else "inconclusive", sentence)


EXPERIMENT = Experiment(
    number=4,
    name="rso-why",
    title="Why pairs from π_r should help: free labels, a policy that cannot fit everything, or statistics",
    claim=(
        "The paper argues that the maximum likelihood estimate of the optimal policy needs labelled pairs sampled from "
        "that policy, and finds AutoSxS wins on TL;DR of 67.72% (direct), 69.02% (sft-sample-rank) and 71.86% "
        "(rso-sample-rank) with sigmoid-norm. The lecture: statistically rso-sample-rank is closer to π* than the two "
        "other choices. Neither separates what a reward model's labels bring from where the pairs come from."
    ),
    source="Liu et al. 2024 (RSO), abstract and Table 1; lecture, “Preference Data Distribution – Choices”",
    setup=(
        "A factorial design: labels of the gold reward or of r_φ (fitted to N gold labels); few or many pairs; from "
        "π_ref, π_r or π*; a policy that can represent everything, or a limited one. On the exact scales every fit is "
        "convex and carried to its end, pairs are drawn from π_r itself, each seed has a world of its own, and the "
        "limit of endless pairs is computed too, so that the gain by π_r's pairs falls apart into what the limited "
        "policy's capacity explains and what statistics leave. There the full policy is a table, the limited one has "
        "three random features a prompt (bandit) or a number for each token in its place, for a reward that also looks "
        "at neighbours (tree). On the language model the full policy trains all weights, the limited one biases and "
        "norms alone; one rate for each, the best of four on one search seed by E[r_φ] − β KL on validation prompts. "
        "Its pairs are on as many prompts as its labels. γ = β = 0.5 throughout."
    ),
    rule=(
        "The gain of J from π_ref's to π_r's pairs (both labelled by r_φ, M pairs), paired within seeds. Holds: its "
        "interval lies above zero for the full and for the limited policy. Holds when: for one of them. Does not "
        "hold: for neither, and below zero for one. Not decided: the rest. An explanation (free labels: from N gold "
        "labels to M labels of r_φ; limited capacity: the gain that is left with endless pairs, on the language "
        "model the limited policy's gain less the full one's; statistics: what remains) helps where its interval "
        "lies above zero, hurts where below, and is not decided else."
    ),
    settings=RSOWhy,
    scales=("bandit", "tree", "small"),
    jobs=_jobs,
    run=_run,
    summarise=_summarise,
    decide=_verdict,
    figure=figure,
    words=words,
    text=text_of,
    search_trials=_search_trials,
    select_best=_select_best,
)


def main(settings: RSOWhy) -> None:
    """The command `rlhf-lab experiment rso-why`."""
    runner.main(EXPERIMENT, settings)


__all__ = ["EXPERIMENT", "RSOWhy", "effects", "main"]
