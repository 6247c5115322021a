"""Claim 4, third part: for which restricted policies do pairs from π_r lower the regret, and for which not?

With γ = β and infinitely many pairs a policy that can represent everything reaches π* from any source of pairs. A
restricted one does not. Its limit is computed for pairs from π_ref, from π_r and from half of each, over the size and
the kind of what the policy class misses and over β (`misfit.py`). Every seed is a world.
"""

from __future__ import annotations

from typing import Any

import torch

from rlhf_lab.experiments import runner
from rlhf_lab.experiments.claims.rso_phase.misfit import KINDS, linear_world, regrets
from rlhf_lab.experiments.claims.rso_phase.report import decide, figure, summarise_runs
from rlhf_lab.experiments.claims.rso_phase.settings import RULE, RSOPhase
from rlhf_lab.experiments.runner import BestConfig, Experiment, Job


def _run(settings: RSOPhase, job: Job, best_config: BestConfig) -> list[dict[str, Any]]:
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
    claim=(
        "The maximum likelihood estimate of the optimal policy needs labelled pairs sampled from that policy (Liu et "
        "al., abstract). If the policy class contains π*, the limit of many pairs does not depend on their source, so "
        "the statement concerns restricted classes."
    ),
    source="Liu et al. 2024 (RSO), abstract; lecture, “Preference Data Distribution – Choices”",
    setup=(
        "The policies are log-linear in few features, γ = β, and infinitely many pairs are labelled by the reward, so "
        "that π_r is π* and only the restriction matters. The class misses a given share of the reward's variance: as "
        "independent noise, or because the reward saturates or accelerates along a direction of the class. The bandit "
        "has 40 responses with 3 random features, the tree 256 sequences with a feature for each token in each place. "
        "The source's policy is a language model with γ = 0.05 and a learned reward."
    ),
    rule=RULE,
    rule_commit="2463d9e70ac2291d67596f4c6c9677083502f8fa",
    redesigns=(
        "Regrets below 1e-12 have a floor: at small β some were rounding errors, whose logarithm does not exist. The "
        "rule's cell is not affected.",
    ),
    settings=RSOPhase,
    scales=("bandit", "tree"),
    jobs=lambda settings: [{"seed": seed} for seed in range(settings.seeds)],
    run=_run,
    summarise=summarise_runs,
    decide=decide,
    figure=figure,
    interval="95% Student-t over worlds, corrected for the number of cells",
)


def main(settings: RSOPhase) -> None:
    """The command `rlhf-lab experiment rso-phase`."""
    runner.main(EXPERIMENT, settings)
