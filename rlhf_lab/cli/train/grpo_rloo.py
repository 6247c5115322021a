"""The common part of `rlhf-lab train rloo` and `rlhf-lab train grpo`, which both use `algorithms/grpo_rloo.py`."""

from __future__ import annotations

from typing import Any

from rlhf_lab.algorithms.grpo_rloo import group
from rlhf_lab.cli.train.runner import History, Job, run
from rlhf_lab.errors import LabError


def run_group(settings: Any, method: str) -> History:
    """Run one of the two commands; see `runner.run`.

    Raises:
        LabError: `--kind` names the other method.
    """
    if settings.group.kind != method:
        raise LabError(
            f"`train {method}` needs kind={method}. For {settings.group.kind}, use `train {settings.group.kind}`."
        )
    return run(settings, method, "prompts", _fit)


def _fit(job: Job) -> History:
    prompts = job.data.prompts
    assert prompts is not None
    training = job.training(len(prompts))
    policy, reference, reward, settings = job.drawing(job.policy), job.reference(), job.reward(), job.settings.group
    evaluation = job.reward_evaluation(policy, reward, settings, settings.beta, reference)
    return group(policy, reference, reward, prompts, settings, training, evaluation=evaluation)
