"""Trajectories: where a policy stands while a method trains it, evaluated after its optimiser steps.

`record` calls a function after every optimiser step of one policy. It listens to torch's optimisers, so no method is
changed by it, and it draws no random number. `record_trajectories` uses it to compute the exact KL(π_θ‖π_ref) and
E_π_θ[r] of every method of the comparison after every few steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from rlhf_lab import exact
from rlhf_lab.errors import LabError
from rlhf_lab.experiments.compare import Compare, exact_setup, one_thread, train_compared
from rlhf_lab.experiments.methods import method_of
from rlhf_lab.experiments.setup_exact import ExactSetup
from rlhf_lab.policies.base import Policy
from rlhf_lab.worlds.finite_world import FiniteWorld


class Recorder:
    """Counts the optimiser steps of one policy and calls a function after each of them.

    Attributes:
        policy: the policy that is followed; None follows nothing.
        steps: its steps so far, of all optimisers together.
    """

    def __init__(self, see: Callable[[Policy, int], None]) -> None:
        """`see(policy, steps)` is called with 0 when a policy is first followed, and after each of its steps."""
        self.see = see
        self.policy: Policy | None = None
        self.steps = 0
        self._weights: set[int] = set()

    def follow(self, policy: Policy) -> None:
        """Follow `policy` from now on, and no other."""
        self.policy, self.steps = policy, 0
        self._weights = {id(weight) for weight in policy.parameters()}
        self.see(policy, 0)

    def __call__(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Handle one step of any optimiser."""
        moved = (id(weight) for group in optimizer.param_groups for weight in group["params"])
        if self.policy is not None and not self._weights.isdisjoint(moved):
            self.steps += 1
            self.see(self.policy, self.steps)


@contextmanager
def record(see: Callable[[Policy, int], None], policy: Policy | None = None) -> Iterator[Recorder]:
    """Call `see(policy, steps)` after every optimiser step of a policy within the context.

    Args:
        see: is called with 0 when a policy is first followed, and after each of its steps.
        policy: the policy to follow; None for none until `Recorder.follow` names one.
    """
    recorder = Recorder(see)
    handle = register_optimizer_step_post_hook(recorder)
    try:
        if policy is not None:
            recorder.follow(policy)
        yield recorder
    finally:
        handle.remove()


@dataclass(frozen=True)
class Trajectory:
    """One run of one method.

    Attributes:
        method: its key in `methods.METHODS` and `figures.style`.
        seed: of its labels and samples.
        kl: KL(π_θ‖π_ref), nats, mean over prompts, (S,): at π_ref, after every few steps, at the end.
        reward: E_π_θ[r] under the gold reward, mean over prompts, (S,).
        end: log π_θ(y|x) at the end, (X, K).
    """

    method: str
    seed: int
    kl: Tensor
    reward: Tensor
    end: Tensor


def record_trajectories(
    settings: Compare, world: FiniteWorld, methods: Sequence[str], every: int = 5, prompts: int = 500
) -> list[Trajectory]:
    """Record the trajectory of every method on `world`, for seeds 0 … `settings.seeds` − 1.

    Args:
        settings: steps, labels, rates and β, as in the comparison.
        world: the finite world.
        methods: keys of `methods.METHODS` that train a policy.
        every: optimiser steps between two evaluations.
        prompts: how many prompts, with repeats, a sampling method answers.

    Returns:
        seeds × methods trajectories, seed by seed.

    Raises:
        LabError: a key that is unknown or trains nothing; `every` below 1.
    """
    if every < 1:
        raise LabError(f"every must be at least 1 step, not {every}.")
    for key in methods:
        if method_of(key).trainer is None:
            raise LabError(f"The method {key!r} trains no policy, so it has no trajectory.")
    found = []
    with one_thread(settings.policy == "table"):
        for seed in range(settings.seeds):
            setup = exact_setup(settings, world, seed, prompts)
            found += [_trajectory(key, setup, every) for key in methods]
    return found


def _trajectory(key: str, setup: ExactSetup, every: int) -> Trajectory:
    world, places = setup.world, list[tuple[float, float]]()
    log_ref, gold = world.log_ref(), world.rewards()

    def evaluate(policy: Policy) -> Tensor:
        log_policy = world.log_probs(policy)
        kl = exact.kl(log_policy, log_ref).mean().item()
        places.append((kl, (log_policy.exp() * gold).sum(-1).mean().item()))
        return log_policy

    def see(policy: Policy, steps: int) -> None:
        if steps % every == 0:
            evaluate(policy)

    policy = setup.new_policy()
    with record(see, policy):
        train_compared(key, setup, policy)
    end = evaluate(policy)
    kl, reward = torch.tensor(places, dtype=torch.float64).unbind(-1)
    return Trajectory(key, setup.seed, kl, reward, end)
