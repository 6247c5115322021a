"""Exercises of notebook 00: start here."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.derivations.optimal_policy import objective_to_optimum
from rlhf_lab.derivations.random_worlds import RandomWorld
from rlhf_lab.exercises.checking import Case, Exercise, Task
from rlhf_lab.exercises.derive import NextLine
from rlhf_lab.exercises.edits import wrong_answers
from rlhf_lab.exercises.lecture_loop import LOG_REF, REWARD, loop_arguments, loop_regret
from rlhf_lab.exercises.predictions import Prediction
from rlhf_lab.exercises.training_loops import TrainingLoop


def optimal_policy(log_ref: Tensor, reward: Tensor, beta: float) -> Tensor:
    """log π* from log_ref and reward, both (prompts, responses)."""
    return torch.log_softmax(log_ref + reward / beta, -1)


_TABLES = {"log_ref": LOG_REF, "reward": REWARD}


def _effect_of_beta() -> str:
    """Whether β changes the order of two responses (C) and whether π* is π_ref at a small (A) or a large β (B)."""
    log_ref, reward = torch.full((2,), 0.5).double().log(), torch.tensor([0.0, 1.0]).double()
    small, large = (exact.optimal_policy(log_ref, reward, beta) for beta in (0.01, 100.0))
    if bool(small[1] > small[0]) != bool(large[1] > large[0]):
        return "C"
    return "B" if exact.kl(large, log_ref) < exact.kl(small, log_ref) else "A"


def _kl_to_optimum(w: RandomWorld) -> Tensor:
    return exact.kl(w.log_policy, w.log_star)


def objective_by_kl(w: Any) -> Any:
    """J(π), written with the KL from π to π*."""
    return w.beta * w.log_z - w.beta * w.kl_to_star


def maximise_objective(
    logits: Tensor, log_ref: Tensor, reward: Tensor, beta: float, steps: int, learning_rate: float
) -> list[float]:
    """Maximise J by gradient descent on −J: train `logits`, return the losses."""
    optimizer = torch.optim.SGD([logits], lr=learning_rate)
    losses = []
    for _ in range(steps):
        log_policy = logits.log_softmax(-1)
        kl = (log_policy.exp() * (log_policy - log_ref)).sum(-1)
        gain = (log_policy.exp() * reward).sum(-1)
        loss = -(gain - beta * kl).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def penalised_reward(
    logits: Tensor, log_ref: Tensor, reward: Tensor, beta: float, steps: int, learning_rate: float
) -> list[float]:
    """Maximise J by gradient descent on −J: train `logits`, return the losses."""
    optimizer = torch.optim.SGD([logits], lr=learning_rate)
    losses = []
    for _ in range(steps):
        log_policy = logits.log_softmax(-1)
        log_ratio = log_policy - log_ref
        value = reward - beta * log_ratio
        loss = -(log_policy.exp() * value).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


_MESSAGES = {
    "sign of the KL": "the KL has the wrong sign, so that distance from the reference is rewarded.",
    "KL swapped": "the arguments of the KL are swapped. The expectation is taken under the policy.",
    "no beta": "β is missing, so every nat costs 1.",
    "no KL": "the KL is missing, so that the policy moves to the best response alone.",
    "no expectation": "the reward is averaged over the responses without the policy's probabilities, so it has no "
    "gradient.",
    "sign": "the sign is lost: gradient descent on this loss lowers J.",
    "gradients not reset": "gradients add up over the steps, because they are not reset to zero.",
}
_PAIRS = (("sign of the KL", "no beta"), ("no beta", "KL swapped"), ("sign of the KL", "gradients not reset"))

EXERCISES: tuple[Task, ...] = (
    Prediction(
        key="nb00.effect_of_beta",
        title="What does β change?",
        objective="predict the effect of β on π*",
        difficulty=1,
        minutes=1,
        question=(
            "π_ref gives two responses the same probability, and the second one has the higher reward. Which statement "
            "about π\\* is true?"
        ),
        options={
            "A": "π\\* prefers the second response at every β, and it approaches π_ref as β becomes small.",
            "B": "π\\* prefers the second response at every β, and it approaches π_ref as β becomes large.",
            "C": "β decides which of the two responses π\\* prefers.",
        },
        truth=_effect_of_beta,
        explanation=(
            "The ratio of the two probabilities under π* is exp((r2 − r1)/β). It is above 1 for every β, and it "
            "approaches 1, its value under π_ref, as β becomes large."
        ),
        why_not={
            "A": "a small β makes KL cheap, so π* moves far from the reference.",
            "C": "the ratio of the two probabilities is exp((r2 − r1)/β), which is above 1 at every β.",
        },
    ),
    NextLine(
        key="nb00.objective_by_kl",
        title="The regret is a KL",
        objective="write the objective in terms of KL(π‖π*)",
        difficulty=1,
        minutes=4,
        derivation=objective_to_optimum,
        line=6,
        quantities=("beta", "log_z"),
        defined={"kl_to_star": ("KL(π‖π\\*) of each prompt, (X,)", _kl_to_optimum)},
        solution=objective_by_kl,
        mistakes=wrong_answers(
            objective_by_kl,
            {
                "sign of the KL": lambda w: w.beta * (w.log_z + w.kl_to_star),
                "no beta": lambda w: w.beta * w.log_z - w.kl_to_star,
                "no log Z": lambda w: -w.beta * w.kl_to_star,
            },
            {
                "sign of the KL": "the sign of the KL is lost.",
                "no beta": "β is missing from the KL.",
                "no log Z": "this is minus the regret: J(π*) = β log Z is missing.",
            },
        ),
        hints=(
            "An expectation of log π/π* under π is a KL. Which one?",
            "Insert it into the line above, and multiply −β into the bracket.",
        ),
    ),
    Exercise(
        key="nb00.optimal_policy",
        title="π* in one line",
        objective="express the policy that maximises J in terms of the reference and the reward",
        difficulty=1,
        minutes=3,
        cases=(
            Case("this notebook's two prompts at β = 0.3", {**_TABLES, "beta": 0.3}),
            Case("the same at β = 2", {**_TABLES, "beta": 2.0}),
        ),
        solution=optimal_policy,
        mistakes=wrong_answers(
            optimal_policy,
            {
                "reference": lambda log_ref, reward, beta: log_ref,
                "lost sign": lambda log_ref, reward, beta: torch.log_softmax(log_ref - reward / beta, -1),
                "β on the wrong side": lambda log_ref, reward, beta: torch.log_softmax(log_ref + reward * beta, -1),
                "β forgotten": lambda log_ref, reward, beta: torch.log_softmax(log_ref + reward, -1),
                "π_ref forgotten": lambda log_ref, reward, beta: torch.log_softmax(reward / beta, -1),
                "missing Z": lambda log_ref, reward, beta: log_ref + reward / beta,
                "wrong axis": lambda log_ref, reward, beta: torch.log_softmax(log_ref + reward / beta, 0),
                "one Z for all prompts": lambda log_ref, reward, beta: (
                    log_ref + reward / beta - torch.logsumexp((log_ref + reward / beta).flatten(), 0)
                ),
                "probabilities": lambda log_ref, reward, beta: torch.softmax(log_ref + reward / beta, -1),
                "π_ref for log π_ref": lambda log_ref, reward, beta: torch.log_softmax(
                    log_ref.exp() + reward / beta, -1
                ),
            },
            {
                "reference": "this is still π_ref; the reward is missing.",
                "lost sign": "the sign is lost, exp(−r/β): this policy prefers the worst answers.",
                "β on the wrong side": "β is on the wrong side, exp(β r). Compare with the formula in section 3.",
                "β forgotten": "β is missing, exp(r). Compare with the formula in section 3.",
                "π_ref forgotten": "π_ref is missing; without it this is the optimum for a uniform reference.",
                "missing Z": "the probabilities of a prompt do not sum to 1: log Z(x) is not subtracted.",
                "wrong axis": "Z is summed over the wrong axis: every prompt has its own Z(x), a sum over its "
                "responses.",
                "one Z for all prompts": "this has one Z for all prompts, but every prompt has its own Z(x), a sum "
                "over its responses.",
                "probabilities": "these are probabilities: return their logarithms.",
                "π_ref for log π_ref": "π_ref is added instead of log π_ref. In logarithms the product becomes a sum "
                "of logarithms.",
            },
        ),
        hints=(
            "In logarithms the product becomes a sum: log π* = log π_ref + r/β − log Z. Which function subtracts log "
            "Z?",
            "`torch.log_softmax(…, -1)` subtracts the logarithm of the sum of exponentials, and that sum is Z(x).",
        ),
    ),
    TrainingLoop(
        key="nb00.maximise_objective",
        title="Maximise J by gradient steps",
        objective="write a training loop and check that it converges to the π* of the formula",
        difficulty=2,
        minutes=8,
        arguments=partial(loop_arguments, 60, 2.0),
        distance=loop_regret,
        solution=maximise_objective,
        mistakes=wrong_answers(
            maximise_objective,
            {
                "sign of the KL": "gain - beta → gain + beta",
                "KL swapped": "log_policy.exp() * (log_policy - log_ref) → log_ref.exp() * (log_ref - log_policy)",
                "no beta": "beta * kl → kl",
                "no KL": "gain - beta * kl → gain",
                "no expectation": "(log_policy.exp() * reward).sum(-1) → reward.mean(-1)",
                "sign": "loss = -( → loss = (",
                "gradients not reset": "optimizer.zero_grad() → pass",
            },
            _MESSAGES,
            _PAIRS,
        ),
        hints=(
            "`logits.log_softmax(-1)` is log π. The expected reward is the sum of π times the reward.",
            "KL is the sum of π times (log π − log π_ref). The loss is minus the mean of E[r] − β KL.",
        ),
    ),
    TrainingLoop(
        key="nb00.penalised_reward",
        title="A loop that leaves the reference too far",
        objective="diagnose a bug in a training loop by looking at the policy to which it converges",
        difficulty=2,
        minutes=5,
        arguments=partial(loop_arguments, 60, 2.0),
        distance=loop_regret,
        solution=penalised_reward,
        bug="sign of the KL",
        mistakes=wrong_answers(
            penalised_reward,
            {
                "sign of the KL": "log_policy - log_ref → log_ref - log_policy",
                "KL swapped": "* log_ratio → * -(log_ref - log_policy).exp() * log_ratio",
                "no beta": "- beta * → - 1.0 *",
                "no KL": "reward - beta * log_ratio → reward",
                "no expectation": "value = reward → value = reward.mean(-1, keepdim=True)",
                "sign": "loss = -( → loss = (",
                "gradients not reset": "optimizer.zero_grad() → pass",
            },
            _MESSAGES,
            _PAIRS,
        ),
        hints=(
            "Print the KL to the reference after every step, and train once with a larger β.",
            "Is the log-ratio positive where the policy has increased a probability?",
        ),
    ),
)
