r"""Claim 14: from best-of-n to π*. How near do n draws of π_ref come to π*, and which use of them is best?

Best-of-n keeps the best of n candidates, soft best-of-n one of them with weights exp(r/β), and RSO k of them by the
same rule without replacement. `exact.best_of_n` and `exact.soft_best_of_n` compute their distributions, so that nothing
is sampled here and intervals are over random worlds. Rejection sampling with the true maximum of the reward reaches π*
itself, with 1/E_ref[exp((r − r_max)/β)] draws per response on average. All rewards are gold rewards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.evaluation import evaluate
from rlhf_lab.experiments.claims.soft_best_of_n.report import decide, figure
from rlhf_lab.experiments.claims.soft_best_of_n.settings import RULE, SoftBestOfN
from rlhf_lab.experiments.runner import BestConfig, Experiment, JobSpec
from rlhf_lab.experiments.setup_exact import random_world
from rlhf_lab.experiments.statistics import summarise_geometric

if TYPE_CHECKING:
    import pandas as pd


def limit(log_ref: Tensor, log_star: Tensor, n: int, accepted: int) -> Tensor:
    """Return the leading term of KL(π‖π*) for `accepted` of n candidates, (…). See `exact.soft_best_of_n`."""
    ratio, p = (log_star - log_ref).exp(), log_star.exp()
    variance = (p * ratio.square()).sum(-1) - (p * ratio).sum(-1).square()
    return ((accepted + 1) / (2 * n)) ** 2 * variance / 2


def _run(settings: SoftBestOfN, job: JobSpec, best_config: BestConfig) -> list[dict[str, Any]]:
    world, beta = random_world(settings.scale, job["seed"]), settings.beta
    log_ref, reward = world.log_ref(), world.rewards()
    log_star = exact.optimal_policy(log_ref, reward, beta)
    start = evaluate(log_ref, world, beta).regret
    rows: list[dict[str, Any]] = []
    for m in settings.draws:
        candidates = m * settings.accepted
        policies = {
            "best-of-n": (exact.best_of_n(log_ref, reward, m), torch.full(log_ref.shape[:-1], torch.nan)),
            "soft": (exact.soft_best_of_n(log_ref, reward, beta, m), limit(log_ref, log_star, m, 1)),
            "rso": (
                exact.soft_best_of_n(log_ref, reward, beta, candidates, settings.accepted),
                limit(log_ref, log_star, candidates, settings.accepted),
            ),
        }
        for method, (policy, leading) in policies.items():
            found = evaluate(policy, world, beta)
            row = {"method": method, "draws": m, "kl_to_optimal": found.kl_to_optimal, "regret": found.regret}
            row |= {"left": found.regret / start, "limit": leading.mean().item(), "kl": found.kl}
            rows.append(row | {"reward": found.reward})
    best = reward.amax(-1, keepdim=True)
    needed = (-(log_ref + (reward - best) / beta).logsumexp(-1)).exp().mean().item()
    found = evaluate(log_star, world, beta)
    return [*rows, {"method": "rejection", "draws": needed, "regret": 0.0, "kl": found.kl, "reward": found.reward}]


def _summarise(settings: SoftBestOfN, runs: pd.DataFrame) -> pd.DataFrame:
    """Return means by method and number of draws; geometric ones of the KL to π*, its limit and the share of regret."""
    curves, by = runs[runs["method"] != "rejection"], ["method", "draws"]
    return summarise_geometric(curves, by, ["kl_to_optimal", "limit", "left"], ["kl", "reward"])


EXPERIMENT = Experiment(
    number=14,
    name="soft-best-of-n",
    title="Soft best-of-n and RSO approach π* with the number of candidates; best-of-n does not",
    rule=RULE,
    rule_commit="e09755c7bfd8784d38ae9109dcd70a84a83f3c98",
    settings=SoftBestOfN,
    scales=("bandit", "tree"),
    run=_run,
    summarise=_summarise,
    decide=decide,
    figure=figure,
    interval="95% Student-t over worlds",
)
