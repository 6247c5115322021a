r"""Claim 3: DPO wins more often than PPO and best-of-n, and is more robust to the sampling temperature.

As in the TL;DR figure of the DPO paper, every policy answers the same prompts at temperatures from 0 to 1. On text the
answers are summaries. They are compared with the world's targets by the gold reward, and by a judge that shares
neither labels nor weights with any reward model of a run. On finite worlds policies are tables, a temperature divides
the logits after every prefix, and the opponent is a sample of π_ref, so win rates are sums over all responses:

    W(π_T) = Σ_y π_T(y) [ P_ref(r* < r*(y)) + ½ P_ref(r* = r*(y)) ],    π_T(a|s) ∝ π(a|s)^{1/T}
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.experiments.claims.temperatures.report import decide, figure, metrics
from rlhf_lab.experiments.claims.temperatures.settings import RULE, Temperatures
from rlhf_lab.experiments.methods import BestOf, train
from rlhf_lab.experiments.rso_common import chance_to_win
from rlhf_lab.experiments.runner import BestConfig, Experiment, JobSpec, best_rates
from rlhf_lab.experiments.scales import set_up
from rlhf_lab.experiments.settings import SEARCH_SEED
from rlhf_lab.experiments.setup import Setup
from rlhf_lab.experiments.setup_exact import ExactSetup
from rlhf_lab.experiments.setup_text import TextSetup
from rlhf_lab.experiments.statistics import summarise
from rlhf_lab.experiments.text_judge import judge_of
from rlhf_lab.policies.base import Policy
from rlhf_lab.policies.tabular import TabularPolicy
from rlhf_lab.randomness import Stream

TRAINED = {"sft": Stream.SFT_FIT, "dpo": Stream.TUNED_DPO, "ppo": Stream.TUNED_PPO}
"""The methods that train a policy, each with its random stream."""
WORLD = "summaries"


@lru_cache(maxsize=1)
def _setup(settings: Temperatures, seed: int) -> Setup:
    sizes: dict[str, Any] = {"labels": settings.labels, "beta": settings.beta, "steps": settings.steps}
    if not settings.exact:
        sizes |= {"reward_steps": 100, "test_prompts": settings.prompts, "test_samples": 1}
        if settings.quick:
            sizes |= {"reward_steps": 2, "batch_size": 4, "prompts": 8}
    return set_up(settings.scale, seed, WORLD, **sizes)


def jobs(settings: Temperatures) -> list[JobSpec]:
    """One job for each seed and method: the method is trained once and evaluated at all temperatures."""
    methods = ("reference", *TRAINED, "best-of-n")
    return [{"seed": seed, "method": method} for seed in settings.seed_range for method in methods]


def search_trials(settings: Temperatures) -> list[JobSpec]:
    """The trials of the search, with the same learning rates for every method."""
    return [
        {"seed": SEARCH_SEED + seed, "method": method, "rate": rate}
        for seed in range(settings.search_seeds)
        for method in TRAINED
        for rate in settings.rates
    ]


def run(settings: Temperatures, job: JobSpec, best_config: BestConfig) -> list[dict[str, Any]]:
    """One row for each temperature; in a search only J of the trained policy."""
    method, setup, searching = job["method"], _setup(settings, job["seed"]), "rate" in job
    policy = setup.reference
    if method in TRAINED:
        changes = {"samples": 2} if method == "ppo" and isinstance(setup, TextSetup) else {}
        training = setup.training(TRAINED[method], learning_rate=job["rate"] if searching else best_config[method])
        policy = setup.new_policy()
        train(method, setup, training, policy, **changes)
    if searching:
        return [{"objective": setup.evaluate(policy, "validation")["objective"]}]
    if isinstance(setup, ExactSetup):
        return _exact_rows(settings, setup, method, policy)
    assert isinstance(setup, TextSetup)
    return _text_rows(settings, setup, method, policy)


def sharpened(tables: list[Tensor], temperature: float) -> Tensor:
    """log π_T of every response, (X, K): the logits after every prefix are divided by T.

    Args:
        tables: log π(a|s) at each depth, (X, c^t, V).
        temperature: T ≥ 0. With 0 the most likely token after every prefix has probability 1.
    """
    if temperature == 0:
        best = [torch.zeros_like(t).scatter(-1, t.argmax(-1, keepdim=True), 1.0) for t in tables]
        return exact.path_sums([t.log() for t in best])
    return exact.path_sums([(t.double() / temperature).log_softmax(-1) for t in tables])


@torch.no_grad()
def _exact_rows(settings: Temperatures, setup: ExactSetup, method: str, policy: Policy) -> list[dict[str, Any]]:
    assert isinstance(policy, TabularPolicy)
    tables = [table.double().log_softmax(-1) for table in policy.log_tables()]
    reward = setup.world.rewards()
    wins = chance_to_win(setup.world.log_ref(), reward)
    rows = []
    for temperature in settings.temperatures:
        log_p = sharpened(tables, temperature)
        named = {method: log_p}
        if method == "best-of-n":
            named = {f"best-of-{n}": exact.best_of_n(log_p, setup.learned_rewards, n) for n in settings.best_of}
        for name, log_q in named.items():
            gold_wins, mean = ((log_q.exp() * values).sum(-1).mean().item() for values in (wins, reward))
            rows.append({"method": name, "temperature": temperature, "gold_wins": gold_wins, "reward": mean})
    return rows


def _text_rows(settings: Temperatures, setup: TextSetup, method: str, policy: Policy) -> list[dict[str, Any]]:
    policies = {method: policy}
    if method == "best-of-n":
        policies = {
            f"best-of-{n}": BestOf(policy, setup.reward_model, n, sampling_batch_size=16) for n in settings.best_of
        }
    judge = judge_of(settings.scale, WORLD, settings.quick)
    # Every seed has other test prompts, as long as there are enough.
    sets = len(setup.task.world.examples("test")) // settings.prompts
    first = setup.seed % sets * settings.prompts
    rows = []
    for name, one in policies.items():
        for temperature in settings.temperatures:
            found = setup.evaluate(one, temperature=temperature, judge=judge, first=first)
            saved = {key: found[key] for key in ("gold_wins", "judge_wins", "reward", "tokens", "distinct_2")}
            rows.append({"method": name, "temperature": temperature, **saved})
    return rows


def summarise_runs(settings: Temperatures, runs: pd.DataFrame) -> pd.DataFrame:
    """One row for each method and temperature. `gain` is the reward minus that of π_ref at temperature 1."""
    start = runs[(runs["method"] == "reference") & (runs["temperature"] == 1)].set_index("seed")["reward"]
    runs = runs.assign(gain=runs["reward"] - runs["seed"].map(start))
    out = summarise(runs, ["method", "temperature"], metrics(settings))
    # A win rate is between 0 and 1, but Student's interval of few seeds can be wider.
    ends = [column for column in out if "_wins_" in str(column)]
    return out.assign(**{str(column): out[column].clip(0, 1) for column in ends})


EXPERIMENT = Experiment(
    number=3,
    name="temperatures",
    title="DPO beats PPO and best-of-n at their best temperatures and is more robust to the temperature",
    rule=RULE,
    rule_commit="da8cecbaabe6",
    settings=Temperatures,
    jobs=jobs,
    run=run,
    summarise=summarise_runs,
    decide=decide,
    figure=figure,
    search_trials=search_trials,
    select_best=lambda settings, search: best_rates(search),
)
