r"""Claim 13: DPO raises a margin. What happens to the probability of the chosen response, and why?

Policies are trained on one pair for each prompt until the mean margin is the same for every loss: tables, in which no
two prompts share a parameter, and policies that share all parameters. All responses are enumerated, so that the changes
of probability are exact, and the step from π_ref is compared with its gradients (`training`).
"""

from __future__ import annotations

from typing import Any

from rlhf_lab.evaluation import evaluate
from rlhf_lab.experiments.claims.chosen_probability.report import decide, figure, summarise_runs
from rlhf_lab.experiments.claims.chosen_probability.settings import CLASSES, LOSSES, RULE, ChosenProbability
from rlhf_lab.experiments.claims.chosen_probability.training import pair_setup, predicted
from rlhf_lab.experiments.runner import BestConfig, Experiment, JobSpec


def _run(settings: ChosenProbability, job: JobSpec, best_config: BestConfig) -> list[dict[str, Any]]:
    setup = pair_setup(settings, job["seed"])
    world, log_ref = setup.world, setup.world.log_ref()
    rows: list[dict[str, Any]] = []
    for beta in settings.betas:
        limit = setup.change_to_optimum(beta)
        rows.append({"part": "optimum", "beta": beta, "chosen": limit[0], "rejected": limit[1]})
    before = evaluate(log_ref, world, settings.beta)
    mass_before = setup.pairs(log_ref.exp())
    for policies in CLASSES:
        gradients = setup.gradients(policies)
        own, every = predicted(*gradients)
        overlap = (gradients[0] * gradients[1]).sum(-1) / gradients[0].square().sum(-1)
        for loss in LOSSES:
            log_policy, steps = setup.train(policies, loss, settings)
            chosen, rejected = setup.pairs(log_policy - log_ref)
            mass = setup.pairs(log_policy.exp())
            found = evaluate(log_policy, world, settings.beta)
            means = {
                "chosen": chosen, "rejected": rejected, "margin": chosen - rejected, "falling": (chosen < 0).double(),
                "mass_chosen": mass[0] - mass_before[0], "mass_rejected": mass[1] - mass_before[1],
            }  # fmt: skip
            row = {"part": "training", "policies": policies, "loss": loss, "steps": steps}
            row |= {name: values.mean().item() for name, values in means.items()}
            rows.append(row | {"reward": found.reward - before.reward, "kl": found.kl})
            if loss == "dpo":
                columns = {
                    "chosen": chosen, "rejected": rejected, "ches": setup.ches(), "overlap": overlap, "own": own,
                    "predicted": every, "shared_tokens": setup.shared_tokens(),
                }  # fmt: skip
                rows += [
                    {"part": "pair", "policies": policies, "pair": i}
                    | {name: values[i].item() for name, values in columns.items()}
                    for i in range(settings.prompts)
                ]
    return rows


EXPERIMENT = Experiment(
    number=13,
    name="chosen-probability",
    title="DPO lowers the probability of chosen responses where similar pairs share parameters; DPOP prevents it",
    rule=RULE,
    rule_commit="ed7923cff845461cd5ddebb5780047af0ca12c83",
    settings=ChosenProbability,
    scales=("bandit", "tree"),
    run=_run,
    summarise=summarise_runs,
    decide=decide,
    figure=figure,
    interval="95% Student-t over worlds",
)
