"""The one exercise of notebook 00: start here."""

import torch
from torch import Tensor

from rlhf_lab.exercises.checking import Case, Exercise, Mistake
from rlhf_lab.worlds import bandit


def optimal_policy(log_ref: Tensor, reward: Tensor, beta: float) -> Tensor:
    """log π* from log_ref and reward, both (prompts, responses)."""
    return torch.log_softmax(log_ref + reward / beta, -1)


_WORLD = bandit.lecture()
_TABLES = {"log_ref": _WORLD.log_ref(), "reward": _WORLD.rewards()}

EXERCISES = (
    Exercise(
        key="nb00.optimal_policy",
        title="π* in one line",
        objective="write the policy with the maximum J from the reference and the reward",
        difficulty=1,
        minutes=3,
        cases=(
            Case("this notebook's two prompts at β = 0.3", {**_TABLES, "beta": 0.3}),
            Case("the same at β = 2", {**_TABLES, "beta": 2.0}),
        ),
        solution=optimal_policy,
        mistakes=(
            Mistake(
                "reference",
                "this is still π_ref; the reward is missing.",
                lambda log_ref, reward, beta: log_ref,
            ),
            Mistake(
                "lost sign",
                "the sign is lost, exp(−r/β): this policy prefers the worst answers.",
                lambda log_ref, reward, beta: torch.log_softmax(log_ref - reward / beta, -1),
            ),
            Mistake(
                "β on the wrong side",
                "β is on the wrong side, exp(β r). Compare with the formula in section 3.",
                lambda log_ref, reward, beta: torch.log_softmax(log_ref + reward * beta, -1),
            ),
            Mistake(
                "β forgotten",
                "β is missing, exp(r). Compare with the formula in section 3.",
                lambda log_ref, reward, beta: torch.log_softmax(log_ref + reward, -1),
            ),
            Mistake(
                "π_ref forgotten",
                "π_ref is missing; without it this is the optimum for a uniform reference.",
                lambda log_ref, reward, beta: torch.log_softmax(reward / beta, -1),
            ),
            Mistake(
                "missing Z",
                "the probabilities of a prompt do not sum to 1: log Z(x) is not subtracted.",
                lambda log_ref, reward, beta: log_ref + reward / beta,
            ),
            Mistake(
                "wrong axis",
                "Z is summed over the wrong axis: every prompt has its own Z(x), a sum over its responses.",
                lambda log_ref, reward, beta: torch.log_softmax(log_ref + reward / beta, 0),
            ),
            Mistake(
                "one Z for all prompts",
                "this has one Z for all prompts, but every prompt has its own Z(x), a sum over its responses.",
                lambda log_ref, reward, beta: (
                    log_ref + reward / beta - torch.logsumexp((log_ref + reward / beta).flatten(), 0)
                ),
            ),
            Mistake(
                "probabilities",
                "these are probabilities: return their logarithms.",
                lambda log_ref, reward, beta: torch.softmax(log_ref + reward / beta, -1),
            ),
            Mistake(
                "π_ref for log π_ref",
                "π_ref is added instead of log π_ref. In logarithms the product becomes a sum of logarithms.",
                lambda log_ref, reward, beta: torch.log_softmax(log_ref.exp() + reward / beta, -1),
            ),
        ),
        hints=(
            "In logarithms the product becomes a sum: log π* = log π_ref + r/β − log Z. Which function subtracts log "
            "Z?",
            "`torch.log_softmax(…, -1)` subtracts the logarithm of the sum of exponentials, and that sum is Z(x).",
        ),
    ),
)
