r"""Claim 2: at every KL, DPO has more reward than PPO.

The experiment repeats the sentiment figure of the DPO paper. Each method is trained with several settings, every run
gives points (KL(π‖π_ref), reward), and the method whose points are higher has the better frontier. Here a method's
frontier in one seed is the concave envelope of its points and of π_ref. It is the maximum reward that the method
reaches with at most that KL if two of its policies may be mixed at random: the mixture has the mean of their rewards
and at most the mean of their KLs. On finite worlds both numbers are exact, and so is the frontier of all policies.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from rlhf_lab import evaluation, exact
from rlhf_lab.experiments.claims.dpo_frontier.frontiers import METHODS, summarise_runs
from rlhf_lab.experiments.claims.dpo_frontier.report import decide, figure
from rlhf_lab.experiments.claims.dpo_frontier.settings import RULE, DPOFrontier
from rlhf_lab.experiments.methods import train
from rlhf_lab.experiments.runner import BestConfig, Experiment, JobSpec, best_rates
from rlhf_lab.experiments.scales import set_up
from rlhf_lab.experiments.settings import SEARCH_SEED
from rlhf_lab.experiments.setup import Setup
from rlhf_lab.experiments.setup_exact import ExactSetup
from rlhf_lab.experiments.setup_text import TextSetup
from rlhf_lab.experiments.trajectories import record
from rlhf_lab.policies.base import Policy
from rlhf_lab.randomness import Stream
from rlhf_lab.training import seeded

WORLD = "sentiment"
"""The text world."""


@lru_cache(maxsize=1)
def _setup(settings: DPOFrontier, seed: int) -> Setup:
    if settings.exact:
        return set_up(settings.scale, seed, labels=settings.labels, steps=settings.steps)
    quick: dict[str, Any] = {"reward_steps": 2, "batch_size": 4, "prompts": 8, "test_samples": 2}
    sizes = {"labels": settings.labels, "steps": settings.steps, "test_prompts": settings.prompts}
    return set_up(settings.scale, seed, WORLD, **sizes, **(quick if settings.quick else {"reward_steps": 100}))


def jobs(settings: DPOFrontier) -> list[JobSpec]:
    """Return the jobs of each seed: π_ref, every method at every β, and the frontier of all policies.

    On text that frontier is estimated once, with the first seed.
    """
    once = dict.fromkeys(("reference", "optimal", "sft"), (0.0,))
    betas = {**once, "dpo": settings.betas, "ppo": settings.betas, "ppo-gold": settings.gold_betas}
    return [
        {"seed": seed, "method": method, "beta": beta}
        for seed in settings.seed_range
        for method in betas
        if method != "optimal" or settings.exact or seed == settings.first_seed
        for beta in betas[method]
    ]


def search_trials(settings: DPOFrontier) -> list[JobSpec]:
    """Return the same learning rates for each method at the middle β. PPO on the gold reward has the rate of PPO."""
    middle = sorted(settings.betas)[len(settings.betas) // 2]
    return [
        {"seed": SEARCH_SEED + seed, "method": method, "beta": middle, "rate": rate}
        for seed in range(settings.search_seeds)
        for method in ("sft", "dpo", "ppo")
        for rate in settings.rates
    ]


def run(settings: DPOFrontier, job: JobSpec, best_config: BestConfig) -> list[dict[str, Any]]:
    """Return the points of one run, or the frontier of all policies."""
    method, seed, beta = job["method"], job["seed"], job["beta"]
    setup, searching = _setup(settings, seed), "rate" in job
    if method == "optimal":
        points = _exact_frontier(setup) if isinstance(setup, ExactSetup) else _text_frontier(settings, setup)
        return [{"look": i, "trusted": int(known), "kl": kl, "reward": r} for i, (known, kl, r) in enumerate(points)]

    def position(policy: Policy) -> dict[str, float]:
        found = setup.evaluate(policy, "validation" if searching else "test")
        return {"kl": found["kl"], "reward": found["reward"]}

    if method == "reference":
        return [{"look": 0, "trusted": 1, **position(setup.reference)}]
    key, changes = method.removesuffix("-gold"), dict[str, Any]()
    if method == "ppo-gold":
        changes["reward"] = setup.gold
    if key == "ppo":
        changes |= {"epochs": 4} if isinstance(setup, ExactSetup) else {"epochs": 2, "samples": 2}
    # PPO takes whole rounds of `epochs` steps, so it may end a few steps early.
    epochs = changes.get("epochs", 1)
    steps = settings.steps // epochs * epochs
    when = {round(steps * (number + 1) / settings.evaluations): number + 1 for number in range(settings.evaluations)}
    if searching:
        when = {steps: settings.evaluations}
    rows: list[dict[str, Any]] = []

    def see(policy: Policy, step: int) -> None:
        if step in when:
            found = position(policy)
            rows.append({"look": when[step], "trusted": 1, **found, "objective": found["reward"] - beta * found["kl"]})

    policy = setup.new_policy()
    training = setup.training(METHODS[method], learning_rate=job["rate"] if searching else best_config[key])
    with record(see, policy):
        train(key, setup, training, policy, beta, **changes)
    return rows


def _exact_frontier(setup: ExactSetup) -> list[tuple[bool, float, float]]:
    """Points of the frontier, each with whether it is trusted, its KL and its reward."""
    betas = torch.logspace(1.5, -2.5, 41, dtype=torch.float64)
    kl, reward = exact.frontier(setup.world.log_ref(), setup.world.rewards(), betas)
    return [(True, *point) for point in zip(kl.mean(0).tolist(), reward.mean(0).tolist(), strict=True)]


def _text_frontier(settings: DPOFrontier, setup: Setup) -> list[tuple[bool, float, float]]:
    """The same points, estimated by weighting samples of π_ref and trusted where this is reliable."""
    assert isinstance(setup, TextSetup)
    task, seed = setup.task, setup.seed
    prompts = task.world.prompts(task.tokenizer, "test", settings.prompts)
    generator = seeded(seed, Stream.FRONTIER_TILT, device=task.reference.device)
    number = 8 if settings.quick else 48
    with torch.no_grad():
        parts = [prompts[i : i + 16] for i in range(0, len(prompts), 16)]
        rewards = torch.cat([task.gold(x, task.reference.sample(x, number, generator)).cpu() for x in parts])
    found = evaluation.tilted_frontier(rewards, torch.logspace(1.2, -1.0, 23).tolist())
    return [(one.trusted, one.kl.mean, one.reward.mean) for one in found]


EXPERIMENT = Experiment(
    number=2,
    name="dpo-frontier",
    title="DPO's frontier of reward and KL lies above PPO's",
    rule=RULE,
    rule_commit="d209872b8d69",
    settings=DPOFrontier,
    jobs=jobs,
    run=run,
    summarise=summarise_runs,
    decide=decide,
    figure=figure,
    search_trials=search_trials,
    select_best=lambda settings, search: best_rates(search),
)
