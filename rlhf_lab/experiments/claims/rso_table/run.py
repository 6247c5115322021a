"""Claim 4, first part: RSO's Table 1. RAFT, ReST, and three losses on three sources of pairs.

The preference labels serve for the reward model and for the rows "direct". Every other row learns from the same
candidates of π_ref, which the reward model scores. All rows have the same number of optimiser steps.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from rlhf_lab.algorithms.dpo import DPO, dpo
from rlhf_lab.algorithms.raft import best_of
from rlhf_lab.algorithms.rest import reward_filter
from rlhf_lab.algorithms.sft import sft
from rlhf_lab.batch import Tokens
from rlhf_lab.experiments import runner
from rlhf_lab.experiments.claims.rso_table.report import decide, figure
from rlhf_lab.experiments.claims.rso_table.settings import RULE, RSOTable
from rlhf_lab.experiments.published_results import RSO_TABLE_1
from rlhf_lab.experiments.rso_common import LOSSES, SEARCH_SEED, SOURCES, RSOSetup, best_rates, rso_setup
from rlhf_lab.experiments.runner import BestConfig, Experiment, Job
from rlhf_lab.experiments.statistics import summarise
from rlhf_lab.experiments.text_judge import judge_of
from rlhf_lab.policies.base import Policy
from rlhf_lab.randomness import Stream
from rlhf_lab.rounding import unit_interval, wins
from rlhf_lab.training import seeded

if TYPE_CHECKING:
    import pandas as pd

ROWS = ("raft", "rest", *(f"{loss} {source}" for loss in LOSSES for source in SOURCES))
"""The rows of the table: RAFT, ReST, and "loss source"."""
METRICS = ["proxy_wins", "gold_wins", "judge_wins", "reward", "kl", "objective", "regret", "kl_to_optimal", "right"]


def _search_trials(settings: RSOTable) -> list[Job]:
    # On text the search uses the first task only, because it costs as much as one seed of a task.
    task = settings.tasks[0]
    return [{"seed": SEARCH_SEED, "task": task, "row": row, "rate": rate} for row in ROWS for rate in settings.rates]


def _jobs(settings: RSOTable) -> list[Job]:
    return [
        {"seed": seed, "task": task, "row": row}
        for seed in range(settings.seeds)
        for task in settings.tasks
        for row in ("reference", *ROWS)
    ]


def fit(shared: RSOSetup, settings: RSOTable, row: str, rate: float) -> Policy:
    """Train the policy of one row. "reference" is π_ref."""
    if row == "reference":
        return shared.setup.reference
    policy = shared.setup.new_policy()
    training = shared.setup.training(Stream.RSO_FIT, learning_rate=rate)
    if row in ("raft", "rest"):
        (y, scores), prompts = shared.sampled, shared.setup.prompts
        if row == "raft":
            best = best_of(scores, seeded(shared.setup.seed, Stream.BEST_OF_N))
            sft(policy, prompts, y.take(best), training)
            return policy
        flat = scores.flatten()
        keep = reward_filter(unit_interval(flat, flat.min().item(), flat.max().item()), settings.threshold)
        every = Tokens(y.ids.flatten(0, 1).unsqueeze(1), y.mask.flatten(0, 1).unsqueeze(1))
        sft(policy, prompts.repeat(settings.candidates)[keep], every[keep], training)
        return policy
    loss, source = row.split(" ")
    pairs = shared.pairs(source, settings.beta, settings.accepted, labels=settings.ranks)
    dpo(policy, shared.setup.reference, pairs, DPO(loss, settings.gamma), training)  # type: ignore[arg-type]
    return policy


def _run(settings: RSOTable, job: Job, best_config: BestConfig) -> list[dict[str, Any]]:
    row, task, search = job["row"], job["task"], "rate" in job
    rate = float(job["rate"] if search else best_config.get(row, settings.rates[0]))
    shared = rso_setup(settings, task, job["seed"])
    policy = fit(shared, settings, row, rate)
    loss, _, source = row.partition(" ")
    out: dict[str, Any] = {"loss": loss if source else "none" if row == "reference" else "cross-entropy"}
    out |= {"source": source or row} | ({} if search else {"rate": rate})
    judge = None if search or settings.exact else judge_of(settings.scale, task, settings.quick)
    out |= shared.evaluate(policy, settings.beta, search, judge)
    if not settings.exact:
        out |= {"right": label_accuracy(shared, settings, source), "reach": shared.reach(settings.beta)}
    return [out]


def label_accuracy(shared: RSOSetup, settings: RSOTable, source: str) -> float:
    """Return how often the label of a pair prefers the response with the larger reward, ties counted half.

    The reward is the one that labels: r* for "direct", and otherwise r_φ. Rows without pairs give NaN.
    """
    if source not in SOURCES:
        return math.nan
    pairs = shared.pairs(source, settings.beta, settings.accepted, labels=settings.ranks)
    score: Any = shared.setup.gold if source == "direct" else shared.setup.reward_model
    with torch.no_grad():
        chosen, rejected = score(pairs.prompts, pairs.responses).unbind(-1)
    return wins(chosen, rejected).double().mean().item()


def _summarise(settings: RSOTable, runs: pd.DataFrame) -> pd.DataFrame:
    table = summarise(runs, ["task", "row", "loss", "source"], [m for m in METRICS if m in runs])
    for metric in ("proxy", "gold", "judge"):
        paper = [RSO_TABLE_1.get(task, {}).get(row) for task, row in zip(table["task"], table["row"], strict=True)]
        table[f"paper_{metric}_wins"] = [math.nan if one is None else getattr(one, metric) / 100 for one in paper]
    return table


EXPERIMENT = Experiment(
    number=4,
    name="rso-table",
    title="Pairs from π_r, labelled by a reward model, beat pairs from π_sft, and these beat the preference labels",
    claim=(
        "The source reports win rates against the SFT target. On TL;DR, by AutoSxS, RSO (sigmoid-norm on "
        "rso-sample-rank) reaches 71.86%, sft-sample-rank 69.02% and direct (DPO) 67.72%. SLiC's hinge loss on the "
        "same three sources reaches 69.26%, 67.34% and 60.54%, RAFT 53.77% and ReST 34.36%. On HH the numbers of "
        "sigmoid-norm are 40.98%, 39.56% and 24.01%, with 24.99% for RAFT and 15.58% for ReST. The order of the three "
        "sources is the same with every loss, by reward model, gold reward and AutoSxS."
    ),
    source="Liu et al. 2024 (RSO), Table 1; lecture, “Statistical Rejection Sampling Improves Preference Optimization”",
    setup=(
        "All eleven rows of the table are trained from the same labels, the same reward model and the same 64 "
        "responses of π_ref to each prompt, with the same number of optimiser steps. The experiment reports wins by "
        "the reward model, by the gold reward and by a judge that shares neither weights nor labels with it. It adds "
        "KL and J, and on exact scales the regret. Summaries and dialogue take the place of TL;DR and HH. Seven things "
        "differ from the paper. Its direct pairs are responses of other policies; ours are from π_ref, so that direct "
        "and sft-sample-rank differ only in who labels. Its reward model has fourteen times as many weights as its "
        "policy; ours has as many as the policy. It selects the checkpoint that its reward model prefers; we use the "
        "last one. Our slope γ equals β = 0.5, in logits of a label, so that sigmoid-norm aims at π*; the paper uses γ "
        "= 0.05. Our reward model samples its labels with probability σ(r₁ − r₂), where `--ranks hard` would always "
        "prefer the larger reward. Our candidates are sampled at temperature 1. Our language model takes a few dozen "
        "optimiser steps on a few hundred pairs. On exact scales the policies are tables, each seed has a different "
        "world, wins are against samples of π_ref, and the judge is the gold labeller, who prefers by the "
        "Bradley–Terry model. Every row is searched over the same learning rates on one additional seed (on text: "
        "validation prompts of summaries), and the one with the largest E[r_φ] − β KL is used."
    ),
    rule=RULE,
    settings=RSOTable,
    scales=("bandit", "tree", "small"),
    jobs=_jobs,
    run=_run,
    summarise=_summarise,
    decide=decide,
    figure=figure,
    search_trials=_search_trials,
    select_best=lambda settings, search: best_rates(search, "row"),
)


def main(settings: RSOTable) -> None:
    """The command `rlhf-lab experiment rso-table`."""
    runner.main(EXPERIMENT, settings)
