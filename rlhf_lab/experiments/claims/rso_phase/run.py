"""Claim 4, third part: for which restricted policies do pairs from π_r lower the regret, and for which not?

With γ = β and infinitely many pairs a policy that can represent everything reaches π* from any source of pairs. A
restricted one does not. Its limit is computed for pairs from π_ref, from π_r and from half of each, over the size and
the kind of what the policy class misses and over β (`misfit.py`). Every seed is a world.
"""

from __future__ import annotations

from typing import Any

import torch

from rlhf_lab.experiments.claims.rso_phase.misfit import KINDS, linear_world, regrets
from rlhf_lab.experiments.claims.rso_phase.report import decide, figure, summarise_runs
from rlhf_lab.experiments.claims.rso_phase.settings import RULE, RSOPhase
from rlhf_lab.experiments.runner import BestConfig, Experiment, JobSpec


def _run(settings: RSOPhase, job: JobSpec, best_config: BestConfig) -> list[dict[str, Any]]:
    world, rows = linear_world(settings.scale, job["seed"]), []
    for kind in KINDS:
        reward = torch.stack([world.reward(kind, share) for share in settings.shares])
        outside = world.share_outside(reward)
        for beta in settings.betas:
            found, second = regrets(world, reward, beta)
            for i, share in enumerate(settings.shares):
                ref, r, mixture = found[:, i].tolist()
                rows.append(
                    {
                        "kind": kind, "share": share, "beta": beta, "outside": outside[i].item(), "regret_ref": ref,
                        "regret_r": r, "regret_mixture": mixture,
                        "second_order": (second[1, i] / second[0, i]).log().item(),
                    }
                )  # fmt: skip
    return rows


EXPERIMENT = Experiment(
    number=4,
    name="rso-phase",
    title="Where pairs from π_r lower the regret of a restricted policy, and where they raise it",
    rule=RULE,
    rule_commit="2463d9e70ac2291d67596f4c6c9677083502f8fa",
    settings=RSOPhase,
    scales=("bandit", "tree"),
    run=_run,
    summarise=summarise_runs,
    decide=decide,
    figure=figure,
    interval="95% Student-t over worlds, corrected for the number of cells",
)
