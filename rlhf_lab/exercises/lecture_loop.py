"""The bandit of the lecture slides, as the arguments of a training loop and as its regret.

Most exercises of `training_loops` train a table of logits that starts at π_ref of this bandit.
"""

from typing import Any

from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.exercises.checking import GeneratorSeed
from rlhf_lab.worlds import bandit

WORLD, BETA = bandit.lecture(), 0.5
LOG_REF, REWARD = WORLD.log_ref(), WORLD.rewards()
"""log π_ref and the gold rewards, (2, 4) each."""


def loop_arguments(steps: int, learning_rate: float, samples: int = 0) -> dict[str, Any]:
    """Return fresh arguments of a loop: logits at π_ref, log π_ref, rewards, β, steps and learning rate.

    Args:
        steps: number of steps.
        learning_rate: of plain SGD.
        samples: samples for each prompt in a step. With 0 the arguments `samples` and `generator` are left out.
    """
    drawn = {"samples": samples, "generator": GeneratorSeed(0)} if samples else {}
    return {
        "logits": LOG_REF.clone().requires_grad_(True),
        "log_ref": LOG_REF,
        "reward": REWARD,
        "beta": BETA,
        "steps": steps,
        "learning_rate": learning_rate,
        **drawn,
    }


def loop_regret(logits: Tensor) -> float:
    """The regret at β = 0.5, mean over prompts."""
    return exact.regret(logits.log_softmax(-1), LOG_REF, REWARD, BETA).mean().item()
