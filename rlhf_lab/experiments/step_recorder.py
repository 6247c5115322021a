"""Looking at a policy while a method trains it, after every optimiser step, without the method's knowledge.

`roads.Recorder` does this for the exact place on the map of KL and reward; here whoever watches says what is looked
at, so that a language model can be sampled and scored on the way too. Nothing here draws a random number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from rlhf_lab.policies.base import Policy


class Watch:
    """Counts the steps that any optimiser takes with one policy's weights, and says when.

    Attributes:
        policy: the one that is followed; None follows nothing.
        steps: taken so far, by all optimisers together.
    """

    def __init__(self, see: Callable[[Policy, int], None]) -> None:
        """`see(policy, steps)` is called with 0 when a policy is first followed, and after each of its steps."""
        self.see = see
        self.policy: Policy | None = None
        self.steps = 0
        self._weights: set[int] = set()

    def follow(self, policy: Policy) -> None:
        """Follow `policy` from here on, and no other."""
        self.policy, self.steps = policy, 0
        self._weights = {id(weight) for weight in policy.parameters()}
        self.see(policy, 0)

    def __call__(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """After a step of any optimiser."""
        moved = (id(weight) for group in optimizer.param_groups for weight in group["params"])
        if self.policy is not None and not self._weights.isdisjoint(moved):
            self.steps += 1
            self.see(self.policy, self.steps)


@contextmanager
def watching(see: Callable[[Policy, int], None]) -> Iterator[Watch]:
    """A watch that works within the context."""
    watch = Watch(see)
    handle = register_optimizer_step_post_hook(watch)
    try:
        yield watch
    finally:
        handle.remove()
