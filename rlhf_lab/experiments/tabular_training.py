"""Tables on the exact scales, as several experiments train them: a seed has a world of its own."""

from __future__ import annotations

from dataclasses import replace

from rlhf_lab.algorithms.dpo import DPO, dpo
from rlhf_lab.algorithms.ppo import PPO, ppo
from rlhf_lab.algorithms.sft import sft
from rlhf_lab.batch import Tokens
from rlhf_lab.experiments.compare import Compare, Run
from rlhf_lab.policies.base import Policy, Reward
from rlhf_lab.training import Training

SAMPLES = 256
"""Responses of a round of PPO, shared among the prompts."""
EPOCHS = 4
"""PPO's optimiser steps for one round of samples."""


def table_run(scale: str, seed: int, labels: int, steps: int, beta: float = 0.5) -> Run:
    """A seed of an exact scale: a world of its own, its labels, its reward model. Policies are tables.

    Args:
        scale: bandit or tree.
        seed: of world, labels and reward model.
        labels: preference labels.
        steps: optimiser steps of every fit.
        beta: of the objective.
    """
    made = Compare(
        world="tree" if scale == "tree" else "bandit",
        policy="table",
        beta=beta,
        labels=labels,
        world_seed=seed,
        steps=steps,
        progress=False,
    )
    return Run(made, made.make_world(), seed)


def train_table(
    run: Run, policy: Policy, method: str, beta: float, training: Training, reward: Reward | None = None
) -> None:
    """Train `policy` in place.

    Args:
        run: the seed.
        policy: starts at π_ref.
        method: "sft" on the chosen responses, "dpo" on the labels, anything else PPO.
        beta: of DPO and PPO.
        training: settings; PPO takes as many optimiser steps in whole rounds.
        reward: what PPO maximises; None for the seed's reward model, from which its critic starts in any case.
    """
    world, pairs = run.world, run.pairs
    if method == "sft":
        sft(policy, pairs.prompts, Tokens(pairs.responses.ids[:, :1], pairs.responses.mask[:, :1]), training)
    elif method == "dpo":
        dpo(policy, world.reference, pairs, DPO(beta=beta), training)
    else:
        own = PPO(beta=beta, samples=max(SAMPLES // world.num_prompts, 1), epochs=EPOCHS)
        rounds = replace(training, steps=max(training.steps // EPOCHS, 1))
        critic = policy.new_critic(run.reward)
        ppo(policy, world.reference, run.reward if reward is None else reward, critic, world.prompts, own, rounds)
