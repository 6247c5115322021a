r"""Exercises that ask for the next line of a derivation, as a function of a world.

A derivation of `rlhf_lab.derivations` is shown up to some line. The student writes the next one:

    def next_line(w):
        return torch.sigmoid(w.beta * …)

The engine of the derivations computes it on 200 random worlds and compares it with the line above. The function may
read only the quantities that the exercise lists; otherwise the line above, written again, would pass. The answer to a
wrong line is the first world in which it fails, and the name of the mistake if the line is a known wrong one.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from rlhf_lab.derivations import Derivation, Line, Wrong
from rlhf_lab.derivations.derivation import TOLERANCE
from rlhf_lab.exercises.checking import (
    Complaint,
    Feedback,
    FunctionTask,
    Mistake,
    as_tensor,
    coarsest,
    difference,
    fresh,
    guarded,
    normal,
    refused,
    shown,
    tolerances,
)
from rlhf_lab.training import seeded

WORLDS, SEED = 200, 0


@dataclass(frozen=True, kw_only=True)
class NextLine(FunctionTask):
    """The next line of a derivation.

    The functions of `mistakes` take the same `w` as the student's. The known wrong lines of the derivation that replace
    this line are mistakes too.

    Attributes:
        derivation: the derivation.
        line: the number of the line to write, counted from 1.
        quantities: the attributes of the world that the line may contain, such as `("log_policy", "beta")`.
        defined: further quantities by name, each with its description and a function of the world.
    """

    derivation: Derivation
    line: int
    quantities: tuple[str, ...]
    defined: Mapping[str, tuple[str, Callable[[Any], Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = [wrong for wrong in self.derivation.wrong if wrong.instead_of == self.line]
        found = (*self.mistakes, *(Mistake(one.mistake, f"{one.mistake}.", _of_full_world(one.value)) for one in known))
        object.__setattr__(self, "mistakes", found)
        super().__post_init__()

    @property
    def kind(self) -> str:
        """The kind of exercise."""
        return "derive"

    @property
    def statement(self) -> str:
        """The lines above, the unknown line, and the quantities that it may contain, in Markdown."""
        lines = self.derivation.lines[: self.line - 1]
        left = self.derivation.lines[self.line - 1].left
        rows = [rf"{one.left} &{_SIGN[one.relation]} {one.right}" for one in lines]
        rows.append(rf"{left} &= \;\;?")
        body = r" \\[0.6em]".join(f"\n{row}" for row in rows)
        meanings = {name: self._meaning(name) for name in self.quantities}
        meanings |= {name: text for name, (text, _) in self.defined.items()}
        table = "\n".join(f"| `w.{name}` | {text} |" for name, text in meanings.items())
        return (
            f"$$\n\\begin{{aligned}}{body}\n\\end{{aligned}}\n$$\n\n"
            f"Write the right side of the last line as a function of a world `w`. It may contain only these "
            f"quantities.\n\n| in the code | what it is |\n|---|---|\n{table}"
        )

    def _meaning(self, name: str) -> str:
        """The description of a quantity from the docstrings of the world's class."""
        kind = type(self.derivation.world(seeded(SEED)))
        described = getattr(kind, name, None)
        if isinstance(described, property):
            return str(described.__doc__).rstrip(".")
        found = re.search(rf"^\s*{name}: (.*(?:\n {{8,}}.*)*)", inspect.getdoc(kind) or "", re.M)
        return " ".join(found.group(1).split()).rstrip(".") if found else name

    def _quantities(self, world: Any) -> dict[str, Any]:
        """The quantities of a world that the line may contain."""
        given = {name: getattr(world, name) for name in self.quantities}
        return given | {name: function(world) for name, (_, function) in self.defined.items()}

    def value(self, world: Any) -> Tensor:
        """The value of the line above, to which the answer must be equal."""
        line = self.derivation.lines[self.line - 1]
        above = line.left_value or self.derivation.lines[self.line - 2].value
        return torch.as_tensor(above(world)).detach().double()

    @cached_property
    def _worlds(self) -> list[tuple[_Restricted, Tensor, list[Tensor]]]:
        """The random worlds, each with the values of the line above and of the known wrong lines."""
        found = []
        for number in range(WORLDS):
            world = self.derivation.world(seeded(SEED, number))
            few, above = _Restricted(world, self._quantities(world)), self.value(world)
            found.append((few, above, [_number(one.function(few), above) for one in self.mistakes]))
        return found

    def grade(self, given: Any) -> Feedback:
        """Compute the line on random worlds, and describe the first one in which it is not equal to the line above."""
        reason = refused(self, {"w": None}, given)
        if reason:
            return Feedback(False, [f"{self.key}: {reason}"])
        call = guarded(given, None)
        answers: list[Any] = []

        def world(generator: torch.Generator) -> tuple[Tensor, Tensor, list[Tensor]]:
            few, above, known = self._worlds[len(answers)]
            answers.append(None)
            answers[-1] = call(few)
            return _number(answers[-1], above), above, known

        # The engine compares the answer with the line above, and the known wrong lines with the answer.
        lines = [Line("", "", lambda drawn: drawn[0], "?", lambda drawn: drawn[1])]
        lines += [Line("", "", _known(place), "?", lambda drawn: drawn[0]) for place in range(len(self.mistakes))]
        wrong = (Wrong("", "", lambda drawn: drawn[0]),)
        try:
            checked = Derivation(self.key, "", tuple(lines), wrong, "", world).check(WORLDS, SEED)
        except Complaint as complaint:
            said = [f"{self.key}: {complaint}"]
            return Feedback(False, said if complaint.bare else [*said, self._place(len(answers) - 1) + "."])
        right, *known = checked.ticked
        if right:
            return Feedback(True, [f"{self.key}: equal to the line above in all {WORLDS} random worlds."])
        mistake = next((one for one, same in zip(self.mistakes, known, strict=True) if same), None)
        first = int((~(checked.errors[:, 0] <= TOLERANCE)).nonzero()[0])
        text = difference(normal(answers[first]), self._worlds[first][1], tolerances(coarsest(answers[first])))
        return Feedback(
            False,
            [
                f"{self.key}: {mistake.message if mistake else 'not yet: the line is not equal to the line above.'}",
                f"{self._place(first)}:",
                text or "the values agree in their first digits only. Compute in float64, the dtype of the world.",
            ],
            mistake.name if mistake else "",
        )

    def _place(self, number: int) -> str:
        quantities = self._worlds[number][0]._quantities
        values = ", ".join(f"w.{name} = {shown(value)}" for name, value in quantities.items())
        return f"In random world {number + 1} of {WORLDS}, with {values}"


def _known(place: int) -> Callable[[Any], Tensor]:
    """The values of the known wrong line at this place."""
    return lambda drawn: drawn[2][place]


_SIGN = {"=": "=", "≤": r"\le", "≥": r"\ge"}


class _Restricted:
    """A world of which only some quantities can be read."""

    def __init__(self, world: Any, quantities: Mapping[str, Any]) -> None:
        self._world, self._quantities = world, quantities

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in self._quantities:
            listed = ", ".join(f"w.{one}" for one in self._quantities)
            raise Complaint(f"the line may not contain w.{name}. It may contain {listed}.", bare=True)
        return fresh(self._quantities[name])


def _of_full_world(value: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A wrong line of a derivation, which reads the full world, as a function of a restricted one."""
    return lambda w: value(w._world)


def _number(answer: Any, want: Tensor) -> Tensor:
    """The answer as a tensor of the shape of the line above, or as a single number.

    Raises:
        Complaint: it is neither.
    """
    numbers = as_tensor(normal(answer))
    if numbers is None or (numbers.shape != want.shape and numbers.numel() != 1):
        raise Complaint(difference(normal(answer), want, tolerances(coarsest(answer))))
    return numbers
