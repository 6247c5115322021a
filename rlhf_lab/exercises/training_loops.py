"""Exercises that ask for a whole training loop, or for the bug in one.

The student's loop is called as a function. Its first argument is the policy, a tensor or a module that it trains in
place; one argument is `steps`; it returns the losses, one number for each step. The check judges

- the result: the distance to the optimum that the loop reaches, compared with what the solution reaches;
- invariants: only the policy has changed, the generator was used and the global random state was not, the losses are
  finite and fall;
- the trajectory: the same loop is run for 1, 2 and all steps. Known wrong loops are run too, and the one with the same
  parameters after each number of steps names the mistake. For an unknown mistake the first step is compared with that
  of the solution.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf_lab.errors import LabError
from rlhf_lab.exercises.checking import (
    Complaint,
    Feedback,
    FunctionTask,
    Mistake,
    fresh,
    guarded,
    refused,
    snapshot,
    unchanged,
)
from rlhf_lab.exercises.edits import PLUS, Edited

SHARE = 0.1
"""The usual share of the solution's improvement that a correct loop may miss, for example with another optimiser."""
SAME = 1e-6
"""Relative difference up to which two loops have the same parameters."""


@dataclass(frozen=True, kw_only=True)
class TrainingLoop(FunctionTask):
    """A whole training loop to write, or with `bug` a loop to debug.

    Attributes:
        arguments: the arguments by name, in order. The first is the policy, a tensor that requires gradients or a
            module. One is `steps`. A generator is given as `GeneratorSeed`. Every run gets copies.
        distance: from the trained policy to its distance from the optimum, such as the regret. Training lowers it.
        quantity: the name of the distance, such as “the regret”.
        share: the share of the solution's improvement that a correct loop may miss.
        loss_falls: whether the loss is expected to fall, which is not so for a policy gradient.
        bug: for an exercise in debugging, the name of the bug among the mistakes, which must be an edit of the
            solution.
    """

    arguments: Callable[[], Mapping[str, Any]]
    distance: Callable[[Any], float]
    quantity: str = "the regret"
    share: float = SHARE
    loss_falls: bool = True
    bug: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bug and self.broken is None:
            raise LabError(f"Exercise {self.key!r}: the bug {self.bug!r} is not a mistake that edits the solution.")

    @property
    def kind(self) -> str:
        """The kind of exercise."""
        return "debug" if self.bug else "training loop"

    @property
    def broken(self) -> Edited | None:
        """The loop with the bug, of an exercise in debugging."""
        found = (one.function for one in self.mistakes if one.name == self.bug)
        return next((function for function in found if isinstance(function, Edited)), None)

    @property
    def broken_source(self) -> str:
        """The code of the loop with the bug."""
        if self.broken is None:
            raise LabError(f"{self.key} has no broken loop.")
        return self.broken.source

    def grade(self, given: Any) -> Feedback:
        """Run the loop, and describe what is right or wrong about it."""
        arguments = self.arguments()
        reason = refused(self, arguments, given)
        if reason:
            return Feedback(False, [f"{self.key}: {reason}"])
        last = int(arguments["steps"])
        try:
            runs = {steps: _run(self, given, steps) for steps in (1, 2, last)}
        except Complaint as reason_of_stop:
            return Feedback(False, [f"{self.key}: {reason_of_stop}"])
        solved = {steps: _known_run(self, self.solution, steps) for steps in runs}
        end = runs[last]
        mistake = None if _same(runs, solved) else self._recognised(runs)
        if mistake:
            return Feedback(
                False, [f"{self.key}: {self._named(mistake)}", self._reached(end, solved[last])], mistake.name
            )
        complaint = end.complaint(self.loss_falls)
        allowed = solved[last].distance + self.share * (solved[last].start - solved[last].distance)
        if not complaint and not end.distance <= allowed:
            complaint = _first_difference(runs, solved, any(isinstance(v, torch.Generator) for v in end.arguments))
        if complaint:
            gone = "the bug’s trajectory is gone, but the loop is not right yet. " if self.bug else ""
            return Feedback(False, [f"{self.key}: {gone}{complaint}", self._reached(end, solved[last])])
        verdict = "the bug is gone, and no other one came in." if self.bug else "the loop is right."
        return Feedback(True, [f"{self.key}: {verdict}", self._reached(end, solved[last])])

    def _recognised(self, runs: Mapping[int, _Run]) -> Mistake | None:
        """The known wrong loop with the same parameters after 1, 2 and all steps."""
        for mistake in self.mistakes:
            try:
                # In this order, so that most loops are excluded after one step.
                if all(
                    _equal(run.policy, _known_run(self, mistake.function, steps).policy) for steps, run in runs.items()
                ):
                    return mistake
            except Complaint:
                continue
        return None

    def _named(self, mistake: Mistake) -> str:
        if not self.bug:
            return mistake.message
        others = [name for name in mistake.name.split(PLUS) if name != self.bug]
        messages = " ".join(one.message for name in others for one in self.mistakes if one.name == name)
        if not others:
            return "the bug is still there."
        still = (
            "the bug is still there, and another one came in"
            if self.bug in mistake.name.split(PLUS)
            else ("the bug is gone, but another one came in")
        )
        return f"{still}: {messages}"

    def _reached(self, run: _Run, solved: _Run) -> str:
        """The distance at the start, at the end, and at the end of a correct loop."""
        first, end, right = (_three_digits(x) for x in (solved.start, run.distance, solved.distance))
        return (
            f"{self.quantity[:1].upper()}{self.quantity[1:]} is {first} before the first step and {end} after "
            f"{len(solved.losses)} steps; the solution reaches {right}."
        )


@dataclass(frozen=True)
class _Run:
    """One call of a loop.

    Attributes:
        arguments: the arguments after the call.
        names: their names.
        before: copies of them from before the call.
        returned: what the loop returned.
        policy: the parameters after the call, in one row.
        start: the distance before the call.
        distance: the distance after the call.
        global_draws: whether the global random state has changed.
        unused: whether a generator has not been used.
        steps: the number of steps that were asked for.
    """

    arguments: list[Any]
    names: list[str]
    before: list[Any]
    returned: Any
    policy: Tensor
    start: float
    distance: float
    global_draws: bool
    unused: bool
    steps: int

    @property
    def losses(self) -> list[float]:
        """The losses that the loop returned; empty if it did not return one number for each step."""
        found = self.returned
        if isinstance(found, Tensor) and found.ndim == 1:
            found = found.tolist()
        if not isinstance(found, Sequence) or isinstance(found, str) or len(found) != self.steps:
            return []
        try:
            return [float(one) for one in found]
        except (TypeError, ValueError, RuntimeError):
            return []

    def complaint(self, loss_falls: bool) -> str:
        """The first invariant that does not hold, or an empty string."""
        policy, *rest = self.names
        changed = [
            name
            for name, old, new in zip(rest, self.before[1:], self.arguments[1:], strict=True)
            if not unchanged(old, new)
        ]
        if changed:
            return f"the loop changes {changed[0]}, but only {policy} may change. The rest is given and stays fixed."
        if self.global_draws:
            return (
                "the loop uses the global random state, so that two runs differ. Draw with a torch.Generator only"
                + (", the one that is given." if any(isinstance(one, torch.Generator) for one in rest) else ".")
            )
        if not torch.isfinite(self.policy).all():
            return f"{policy} is not finite after {self.steps} steps."
        if unchanged(self.before[0], self.arguments[0]):
            return (
                f"{policy} is the same after training as before. Does the optimiser have its parameters, and is there "
                "a call of backward and of step?"
            )
        if self.unused:
            return "the loop does not use its generator, so it draws nothing, or the same numbers every time."
        if not self.losses:
            return f"return a list of losses, one for each of the {self.steps} steps."
        if not all(map(math.isfinite, self.losses)):
            return "one of the losses is not finite."
        fifth = max(1, len(self.losses) // 5)
        first, last = sum(self.losses[:fifth]) / fifth, sum(self.losses[-fifth:]) / fifth
        if loss_falls and not last < first:
            return (
                f"the loss does not fall: its mean is {_three_digits(first)} over the first fifth of the steps and "
                f"{_three_digits(last)} over the last."
            )
        return ""


def _run(exercise: TrainingLoop, function: Callable[..., Any], steps: int) -> _Run:
    """Call a loop with fresh arguments.

    Raises:
        Complaint: it raises, or returns nothing.
    """
    arguments = {name: fresh(value) for name, value in exercise.arguments().items()} | {"steps": steps}
    names, values = list(arguments), list(arguments.values())
    generators = [one for one in values if isinstance(one, torch.Generator)]
    states = [one.get_state() for one in generators]
    before, start = [snapshot(one) for one in values], _distance(exercise, values[0])
    worldwide = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        returned = guarded(function, None)(*values)
        drawn = not torch.equal(worldwide[0], torch.get_rng_state()) or worldwide[1] != random.getstate()
        drawn = drawn or repr(worldwide[2]) != repr(np.random.get_state())  # noqa: NPY002
    finally:
        torch.set_rng_state(worldwide[0])
        random.setstate(worldwide[1])
        np.random.set_state(worldwide[2])  # noqa: NPY002
    unused = any(torch.equal(old, one.get_state()) for old, one in zip(states, generators, strict=True))
    policy = values[0].parameters() if isinstance(values[0], torch.nn.Module) else [values[0]]
    row = torch.cat([one.detach().double().flatten() for one in policy])
    return _Run(values, names, before, returned, row, start, _distance(exercise, values[0]), drawn, unused, steps)


@lru_cache(maxsize=256)
def _known_run(exercise: TrainingLoop, loop: Callable[..., Any], steps: int) -> _Run:
    """`_run` of the solution or of a known wrong loop, which gives the same in every call."""
    return _run(exercise, loop, steps)


def _distance(exercise: TrainingLoop, policy: Any) -> float:
    """The policy's distance from the optimum; infinite for a policy with entries that are not finite."""
    try:
        with torch.no_grad():
            return float(exercise.distance(policy))
    except LabError:
        return math.inf


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=SAME, atol=SAME, equal_nan=True)


def _same(runs: Mapping[int, _Run], others: Mapping[int, _Run]) -> bool:
    return all(_equal(run.policy, others[steps].policy) for steps, run in runs.items())


def _first_difference(runs: Mapping[int, _Run], solved: Mapping[int, _Run], draws: bool) -> str:
    """How the first steps differ from those of the solution, where both have the same data."""
    if draws:
        return "the loop runs, but it does not reach the optimum. Look at the sign and size of each term of the loss."
    start = _flat(solved[1].before[0])
    if _equal(runs[1].policy, solved[1].policy):
        return (
            "the first step is right, but a later one is not. Look at what changes between steps, such as gradients "
            "that are not reset to zero or a reference that moves."
        )
    mine, right = runs[1].policy - start, solved[1].policy - start
    cosine = float(torch.nn.functional.cosine_similarity(mine, right, dim=0))
    ratio = float(mine.norm() / right.norm())
    if cosine < -0.99:
        return "the first step goes in the opposite direction. Look for a lost sign."
    if cosine > 0.999:
        return (
            f"the first step has the right direction and {_three_digits(ratio)} times the right length. Look for a "
            "factor, such as β, the learning rate, or a sum instead of a mean."
        )
    degrees = math.degrees(math.acos(max(-1.0, min(1.0, cosine))))
    return f"the direction of the first step is wrong by {degrees:.0f} degrees. Look at the loss of that step."


def _flat(before: Any) -> Tensor:
    tensors = list(before.values()) if isinstance(before, dict) else [before]
    return torch.cat([one.double().flatten() for one in tensors])


def _three_digits(x: float) -> str:
    return f"{x:.3g}"
