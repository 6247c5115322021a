"""Roads: where a policy stands on the map of KL and reward, step by step, while any method trains it.

The comparison shows where each method ends. A road shows how it got there: after every few optimiser steps the
policy is enumerated and its exact KL(π_θ‖π_ref) and E_π_θ[r] are written down. No method knows that it is watched:
the recorder listens to torch's optimisers, not to the algorithms, and draws no random number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from rlhf_lab import exact
from rlhf_lab.errors import LabError
from rlhf_lab.experiments.compare import METHODS, Compare, Run, one_thread
from rlhf_lab.policies.base import Policy
from rlhf_lab.worlds.finite_world import FiniteWorld


@dataclass(frozen=True)
class Road:
    """One run of one method.

    Attributes:
        method: its key in `compare.METHODS` and `figures.style`.
        seed: of its labels and samples.
        kl: KL(π_θ‖π_ref), nats, mean over prompts, (S,): at the reference, after every few steps, at the end.
        reward: E_π_θ[r] under the gold reward, mean over prompts, (S,).
        end: log π_θ(y|x) at the end, (X, K).
    """

    method: str
    seed: int
    kl: Tensor
    reward: Tensor
    end: Tensor


class Recorder:
    """Writes down where one policy stands.

    Attributes:
        places: (KL, reward) so far.
    """

    def __init__(self, world: FiniteWorld, every: int) -> None:
        """Watch policies of `world`, once in `every` optimiser steps."""
        if every < 1:
            raise LabError(f"every must be at least 1 step, not {every}.")
        self.world, self.every = world, every
        self.log_ref, self.reward = world.log_ref(), world.rewards()
        self.policy: Policy | None = None
        self.weights: set[int] = set()
        self.places: list[tuple[float, float]] = []
        self.steps = 0

    def watch(self, policy: Policy) -> None:
        """Begin a new road at `policy` as it is."""
        self.policy, self.places, self.steps = policy, [], 0
        self.weights = {id(weight) for weight in policy.parameters()}
        self.note()

    def note(self) -> None:
        """Write down where the policy stands now."""
        if self.policy is None:
            return
        log_policy = self.world.log_probs(self.policy)
        spent = exact.kl(log_policy, self.log_ref).mean().item()
        self.places.append((spent, (log_policy.exp() * self.reward).sum(-1).mean().item()))

    def __call__(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """After a step of any optimiser: note the place, if the step was the watched policy's and it is time."""
        moved = (id(weight) for group in optimizer.param_groups for weight in group["params"])
        if not self.weights.isdisjoint(moved):
            self.steps += 1
            if self.steps % self.every == 0:
                self.note()


@contextmanager
def recording(world: FiniteWorld, every: int) -> Iterator[Recorder]:
    """Within it, every optimiser step of the policy given to `watch` is seen."""
    recorder = Recorder(world, every)
    handle = register_optimizer_step_post_hook(recorder)
    try:
        yield recorder
    finally:
        handle.remove()


@dataclass
class RecordedRun(Run):
    """One seed of the comparison whose fresh policies are watched."""

    recorder: Recorder | None = field(default=None, kw_only=True)
    number: int = field(default=Run.PROMPTS, kw_only=True)
    """Prompts that a sampling method answers."""

    def __post_init__(self) -> None:
        self.PROMPTS = self.number

    def fresh(self) -> Policy:
        """A policy at the reference, watched from here on."""
        policy = super().fresh()
        # A method may train other things first (a reward model), and it may ask before it needs the policy.
        if self.recorder is not None:
            self.recorder.watch(policy)
        return policy


def walk(
    settings: Compare, world: FiniteWorld, methods: Sequence[str], every: int = 5, prompts: int = Run.PROMPTS
) -> list[Road]:
    """The road of every method on `world`, for seeds 0 … `settings.seeds` − 1.

    Args:
        settings: steps, labels, rates and β, as in the comparison.
        world: the finite world.
        methods: keys of `compare.METHODS` that train a policy.
        every: optimiser steps between two places.
        prompts: how many prompts, with repeats, a sampling method answers.

    Returns:
        seeds × methods roads, seed by seed.

    Raises:
        LabError: a key that is unknown or trains nothing; `every` below 1.
    """
    for key in methods:
        if key not in METHODS:
            raise LabError(f"Unknown method {key!r}. There are: {', '.join(METHODS)}.")
    roads = []
    with one_thread(settings.policy == "table"), recording(world, every) as recorder:
        for seed in range(settings.seeds):
            run = RecordedRun(settings, world, seed, recorder=recorder, number=prompts)
            for key in methods:
                recorder.places = []
                policy = METHODS[key].run(run).policy
                if not recorder.places or isinstance(policy, Tensor):
                    raise LabError(f"{key!r} is exact and trains nothing: it has a place, but no road to it.")
                recorder.note()
                kl, reward = torch.tensor(recorder.places, dtype=torch.float64).unbind(-1)
                roads.append(Road(key, seed, kl, reward, world.log_probs(policy)))
    return roads
