r"""Claim 1: with enough preference data DPO finds π*, without a reward model and without sampling.

The lecture's outline to the letter: pairs from π_ref, one label each, then the DPO loss. The number of labels N grows,
everything else stays. On finite worlds the distance J(π*) − J(π_θ) is exact, and for a table its limit is known before
any label is drawn: labels fall on the pair (i, j) of prompt x with probability s_x · 2 π_ref(i) π_ref(j) / c_x, where
c_x = 1 − Σ π_ref² (equal pairs are drawn again, with a fresh prompt) and s_x = c_x / Σ c; so that

    N · E[regret]  →  mean over x of  label_price(x) / s_x.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from rlhf_lab import bradley_terry, exact
from rlhf_lab.algorithms.dpo import DPO, dpo, pair_loss
from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.evaluation import Draws, distance_to_optimal, evaluate
from rlhf_lab.experiments.claims.enough_labels.report import decide, figure
from rlhf_lab.experiments.claims.enough_labels.settings import RULE, EnoughLabels
from rlhf_lab.experiments.runner import Experiment, JobSpec
from rlhf_lab.experiments.scales import set_up
from rlhf_lab.experiments.setup import SetupBudget
from rlhf_lab.experiments.setup_exact import ExactSetup, random_world
from rlhf_lab.experiments.setup_text import TextSetup
from rlhf_lab.experiments.statistics import summarise
from rlhf_lab.experiments.trajectories import record
from rlhf_lab.policies.base import Policy
from rlhf_lab.randomness import Stream
from rlhf_lab.training import seeded
from rlhf_lab.worlds import bandit, token_tree
from rlhf_lab.worlds.finite_world import FiniteWorld

NEWTON = 20
"""Iterations of a table's fit, the same for all: ten reach the optimum where it is finite."""


def table_world(scale: str, seed: int) -> FiniteWorld:
    """A seed's own world: a bandit of 4 prompts × 10 arms, or the tree of 4 tokens to depth 2 (16 responses)."""
    return bandit.random(4, 10, seed) if scale == "bandit" else token_tree.random(4, 2, 1, seed)


def limit(world: FiniteWorld, beta: float) -> float:
    """lim N · E[regret], mean over prompts, for N labels of `world.preferences`: see the module's head."""
    log_ref = world.log_ref()
    chance = log_ref.exp()
    joint = chance.unsqueeze(-1) * chance.unsqueeze(-2)
    joint = joint - torch.diag_embed(joint.diagonal(dim1=-2, dim2=-1))
    different = joint.sum((-1, -2))
    price = exact.label_price(log_ref, world.rewards(), beta, joint / different[:, None, None])
    return (price / (different / different.sum())).mean().item()


def win_counts(world: FiniteWorld, pairs: Pairs, labels: tuple[int, ...]) -> Tensor:
    """How often i won against j among the first N labels, (len(labels), X, K, K)."""
    winner, loser = world.tree.index(pairs.responses).unbind(-1)
    prompt = world.tree.prompt_index(pairs.prompts)
    size = world.tree.num_responses
    return bradley_terry.win_counts(winner, loser, size, labels, prompt, world.num_prompts)


def fit_tables(log_ref: Tensor, wins: Tensor, beta: float) -> Tensor:
    """log π_θ of the table of logits that minimises the DPO loss on labels, (…, K).

    The number of Newton steps is the same for every table. Where no finite table is best, the rewards of responses
    that never won fall by about 1 in a step, and after `NEWTON` steps their probability is negligible. The ridge is as
    small as rounding allows, so that it does not move the optimum.

    Args:
        log_ref: (…, K).
        wins: how often i won against j, (…, K, K).
        beta: β > 0.
    """
    return exact.optimal_policy(log_ref, bradley_terry.maximum_likelihood(wins, 0.0, NEWTON, 0.0), beta)


def _tables(settings: EnoughLabels, seed: int) -> list[dict[str, Any]]:
    world = table_world(settings.scale, seed)
    pairs = world.preferences(settings.labels[-1], seeded(seed, Stream.LABELS))
    counts = win_counts(world, pairs, settings.labels)
    log_ref, reward, price = world.log_ref(), world.rewards(), limit(world, settings.beta)
    fitted = fit_tables(log_ref, counts, settings.beta)
    start = exact.regret(log_ref, log_ref, reward, settings.beta).mean().item()
    finite = bradley_terry.has_finite_optimum(counts).double().mean(-1)
    rows = []
    for number, log_p, share in zip(settings.labels, fitted, finite, strict=True):
        regret = exact.regret(log_p, log_ref, reward, settings.beta).mean().item()
        numbers = {"regret": regret, "left": regret / start, "limit": price / number, "ratio": regret * number / price}
        rows.append({"labels": number, "when": "end", **numbers, "finite": share.item()})
    return rows


@lru_cache(maxsize=1)
def _net_world() -> FiniteWorld:
    return random_world("tree", 0, "gpt2")


def _net(settings: EnoughLabels, job: JobSpec) -> list[dict[str, Any]]:
    """A transformer on N fixed labels, or on new labels at every step.

    A tenth of the fixed labels is held out for early stopping.
    """
    world, fresh = _net_world(), job["kind"] == "fresh"
    seed, number = job["seed"], job["labels"]
    budget = SetupBudget(
        beta=settings.beta, steps=settings.steps, batch_size=settings.batch, learning_rate=settings.rate,
        max_grad_norm=1.0,
    )  # fmt: skip
    setup = ExactSetup(world, budget, seed)
    policy, loss = setup.new_policy(), DPO(beta=settings.beta)
    held = world.preferences(min(max(number // 10, 2), 2048), seeded(seed, Stream.LABELS))
    data = None if fresh else world.preferences(number - len(held), seeded(seed, Stream.TRAINING_LABELS))
    start = evaluate(world.reference, world, settings.beta).regret
    every = max(settings.steps // settings.evaluations, 1)
    measured = {"held_out": held} if data is None else {"loss": data[:1024], "held_out": held}
    log_ref = {name: world.reference.log_prob(some.prompts, some.responses) for name, some in measured.items()}
    rows: list[dict[str, Any]] = []

    @torch.no_grad()
    def see(policy: Policy, step: int) -> None:
        if step % every == 0 or step == settings.steps:
            regret = evaluate(policy, world, settings.beta).regret
            losses = {name: pair_loss(policy, some, log_ref[name], loss)[0].item() for name, some in measured.items()}
            rows.append({"when": f"step {step}", "step": step, "regret": regret, "left": regret / start, **losses})

    def fresh_pairs(generator: torch.Generator) -> Pairs:
        return world.preferences(settings.batch, generator)

    with record(see, policy):
        dpo(policy, world.reference, fresh_pairs if data is None else data, loss, setup.training(Stream.LABEL_FIT))
    stopped = min(rows, key=lambda row: row["held_out"])
    return [*rows, {**rows[-1], "when": "end"}, {**stopped, "when": "stopped"}]


@lru_cache(maxsize=1)
def _text(settings: EnoughLabels, seed: int) -> tuple[TextSetup, Tokens, Tokens, Tensor, Tensor]:
    """A seed's set-up, test prompts, responses of π_ref to them, their rewards and log-probabilities."""
    setup = set_up(
        settings.scale, seed, settings.world, labels=settings.labels[-1], beta=settings.beta, steps=settings.steps,
        batch_size=settings.batch, learning_rate=settings.rate,
    )  # fmt: skip
    assert isinstance(setup, TextSetup)
    task = setup.task
    x = task.world.prompts(task.tokenizer, "test", settings.prompts)
    generator = seeded(seed, Stream.REFERENCE_RESPONSES, device=task.reference.device)
    y = task.reference.sample(x, settings.samples, generator)
    return setup, x, y, task.gold(x, y), task.reference.log_prob(x, y).double().cpu()


def _on_text(settings: EnoughLabels, job: JobSpec) -> list[dict[str, Any]]:
    """DPO on the first N labels of a seed, and an estimate of the distance to π*."""
    setup, x, y_ref, r_ref, log_ref_of_ref = _text(settings, job["seed"])
    policy = setup.new_policy()
    pairs = setup.pairs[: job["labels"]]
    dpo(policy, setup.reference, pairs, DPO(beta=settings.beta), setup.training(Stream.LABEL_FIT))
    with torch.no_grad():
        y = policy.sample(x, settings.samples, seeded(setup.seed, Stream.POLICY_RESPONSES, device=policy.device))
        reward, log_ref = setup.gold(x, y), setup.reference.log_prob(x, y).double().cpu()
        log_policy = policy.log_prob(x, y).double().cpu()
        from_reference = Draws(r_ref, log_ref_of_ref, policy.log_prob(x, y_ref).double().cpu())
    found = distance_to_optimal(settings.beta, from_reference, Draws(reward, log_ref, log_policy), prompts="fixed")
    mean, kl = reward.mean().item(), (log_policy - log_ref).mean().item()
    objective = mean - settings.beta * kl
    start, regret = r_ref.mean().item(), found.regret.mean
    numbers = {
        "gold": mean * setup.task.unit, "reward": mean, "kl": kl, "objective": objective, "gain": objective - start,
        "regret": regret, "left": regret / (regret + objective - start), "effective": found.effective,
        "trusted": int(found.trusted),
    }  # fmt: skip
    return [{"labels": job["labels"], "when": "end", **numbers}]


def _jobs(settings: EnoughLabels) -> list[JobSpec]:
    if not settings.exact:
        return [{"seed": s, "kind": "text", "labels": n} for s in settings.seed_range for n in settings.labels]
    jobs: list[JobSpec] = [{"seed": s, "kind": "table"} for s in settings.seed_range]
    for seed in range(settings.first_seed, settings.first_seed + settings.net_seeds):
        jobs += [{"seed": seed, "kind": "transformer", "labels": n} for n in settings.net_labels]
        jobs.append({"seed": seed, "kind": "fresh", "labels": settings.steps * settings.batch})
    return jobs


def _run(settings: EnoughLabels, job: JobSpec, best_config: dict[str, Any]) -> list[dict[str, Any]]:
    if job["kind"] == "table":
        return _tables(settings, job["seed"])
    return _on_text(settings, job) if job["kind"] == "text" else _net(settings, job)


METRICS = ["regret", "left", "limit", "ratio", "finite", "loss", "held_out"]
TEXT_METRICS = ["objective", "gain", "gold", "reward", "kl", "regret", "left", "effective", "trusted"]


def _summarise(settings: EnoughLabels, runs: pd.DataFrame) -> pd.DataFrame:
    wanted = METRICS if settings.exact else TEXT_METRICS
    return summarise(runs, ["kind", "labels", "when"], [name for name in wanted if name in runs])


EXPERIMENT = Experiment(
    number=1,
    name="enough-labels",
    title="With enough preference data DPO finds π*, without a reward model or sampling",
    rule=RULE,
    rule_commit="79c7d384a46b",
    settings=EnoughLabels,
    jobs=_jobs,
    run=_run,
    summarise=_summarise,
    decide=decide,
    figure=figure,
)
