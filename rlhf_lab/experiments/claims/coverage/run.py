r"""Claim 12: must the pairs cover what π* does? Pairs without some responses, and three ways to use as many labels.

Offline DPO uses labels on pairs of π_ref from which responses are masked. DPO in rounds starts with a part of them and
labels pairs of its own policy, in which masked responses can occur. RLHF fits a reward model to the labels of offline
DPO and maximises J exactly. All fits run to convergence from π_ref under the same prior, and every seed is a world.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rlhf_lab.bradley_terry import draw_wins, expected_wins, pair_distribution
from rlhf_lab.experiments.claims.coverage.fits import CoverageWorld, coverage_world
from rlhf_lab.experiments.claims.coverage.report import decide, figure, summarise_runs
from rlhf_lab.experiments.claims.coverage.settings import CLASSES, MASKS, RULE, Coverage
from rlhf_lab.experiments.runner import BestConfig, Experiment, JobSpec
from rlhf_lab.randomness import Stream
from rlhf_lab.training import seeded

MANY = 1e6
"""The labels that stand for infinitely many, each with its probability."""


def rounds(world: CoverageWorld, settings: Coverage, pairs: Tensor, generators: list[torch.Generator]) -> Tensor:
    """Return log π after DPO in rounds, (R, K): the first one on `pairs` (R, K, K), then on those of the policy."""
    wins, log_policy = torch.zeros_like(pairs), world.ref.expand(len(pairs), -1)
    for number in range(settings.rounds):
        source = pairs if number == 0 else pair_distribution(log_policy)
        new = [
            draw_wins(world.reward, one, [settings.labels // settings.rounds], generator)[0]
            for one, generator in zip(source, generators, strict=True)
        ]
        wins = wins + torch.stack(new)
        log_policy = world.log_policy(world.fit_dpo(wins, settings.prior))
    return log_policy


def policies(world: CoverageWorld, settings: Coverage, pairs: Tensor, seed: int) -> dict[tuple[str, float], Tensor]:
    """Return log π of every method on distributions of offline pairs (R, K, K), by its name and number of labels."""

    def generators() -> list[torch.Generator]:  # the same random numbers for every distribution
        return [seeded(seed, Stream.COVERAGE_LABELS) for _ in pairs]

    drawn = [draw_wins(world.reward, p, [settings.labels], g)[0] for p, g in zip(pairs, generators(), strict=True)]
    found = {}
    many = torch.stack([MANY * expected_wins(world.reward, p) for p in pairs])
    for number, wins in ((float(settings.labels), torch.stack(drawn)), (math.inf, many)):
        found["offline", number] = world.log_policy(world.fit_dpo(wins, settings.prior))
        found["rlhf", number] = world.best_policy(world.fit_reward(wins, settings.prior))
    found["rounds", float(settings.labels)] = rounds(world, settings, pairs, generators())
    return found


def _run(settings: Coverage, job: JobSpec, best_config: BestConfig) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name in CLASSES:
        world = coverage_world(settings.scale, name, job["seed"], settings.beta)
        cells = [(kind, one) for kind in MASKS for one in settings.coverages]
        pairs = torch.stack([world.pairs(*cell) for cell in cells])
        start = world.regret(world.ref.unsqueeze(0)).item()
        for (method, labels), log_policy in policies(world, settings, pairs, job["seed"]).items():
            for (kind, coverage), one, regret in zip(cells, log_policy, world.regret(log_policy).tolist(), strict=True):
                if coverage and labels == math.inf:
                    continue  # with infinitely many pairs only an uncovered response matters
                row = {"policies": name, "masked": kind, "coverage": coverage, "method": method, "labels": labels}
                mass = one.exp()[world.mask(kind)].sum().item()
                rows.append(row | {"left": max(regret / start, 1e-12), "mass": mass})
        if name == "table":
            for kind in MASKS:
                worst = {"offline": world.worst_offline(kind), "rlhf": world.worst_rlhf(kind)}
                row = {"policies": "worst", "masked": kind, "coverage": 0.0, "labels": math.inf}
                for key, log_p in (("mass_ref", world.ref), ("mass_optimal", world.log_star)):
                    row[key] = log_p.exp()[world.mask(kind)].sum().item()
                rows += [row | {"method": method, "left": regret / start} for method, regret in worst.items()]
    return rows


EXPERIMENT = Experiment(
    number=12,
    name="coverage",
    title="Offline DPO needs pairs that cover what π* does; on-policy rounds do not",
    rule=RULE,
    rule_commit="6bb86ef656fd658614df2c2b709400353dbf1ce7",
    settings=Coverage,
    scales=("bandit", "tree"),
    run=_run,
    summarise=summarise_runs,
    decide=decide,
    figure=figure,
    interval="95% Student-t over worlds",
)
