"""Exercises that ask for a prediction, which is recorded before the notebook reveals the answer.

    predict("nb02.k1_as_a_loss", "A")      # records the answer; without one it shows the question
    reveal("nb02.k1_as_a_loss")            # computes the true answer and compares

The true answer is computed when it is revealed. It is a letter where the exercise has options, and a number otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rlhf_lab.errors import LabError
from rlhf_lab.exercises.checking import Feedback, Task, as_tensor, normal


@dataclass(frozen=True, kw_only=True)
class Prediction(Task):
    """A question that is answered before the computation.

    Attributes:
        question: in Markdown. For a number it states the unit.
        options: the text of each option by its letter; empty if a number is asked for.
        truth: computes the right letter or the number.
        explanation: why it is right, in plain text. “{truth}” is replaced by the number.
        why_not: for options: why each wrong one is wrong, by letter. For numbers `mistakes` has common wrong ones,
            whose functions take no argument.
        relative: the relative tolerance of a predicted number.
    """

    question: str
    truth: Callable[[], str | float]
    explanation: str
    options: Mapping[str, str] = field(default_factory=dict)
    why_not: Mapping[str, str] = field(default_factory=dict)
    relative: float = 0.05

    def __post_init__(self) -> None:
        if self.options and (self.mistakes or len(self.why_not) != len(self.options) - 1):
            raise LabError(f"Prediction {self.key!r} needs why_not for each wrong option, and no mistakes.")
        if not self.options and (self.why_not or len(self.mistakes) < 2):
            raise LabError(f"Prediction {self.key!r} of a number needs two mistakes and no why_not.")

    @property
    def kind(self) -> str:
        """The kind of exercise."""
        return "predict"

    @property
    def statement(self) -> str:
        """The question and its options in Markdown."""
        rows = [f"- **{letter}**: {text}" for letter, text in self.options.items()]
        return "\n".join([self.question, *([""] if rows else []), *rows])

    @property
    def answer(self) -> str:
        """The computed answer and why it is right."""
        return "\n\n".join([f"**{_said(self.truth())}**", self._explained(self.truth())])

    def read(self, given: Any) -> str | float | None:
        """The prediction as a letter or a number; None if it is neither."""
        if self.options:
            letter = str(given).strip().upper() if isinstance(given, str) else None
            return letter if letter in self.options else None
        number = as_tensor(normal(given))
        return float(number) if number is not None and number.numel() == 1 and math.isfinite(number) else None

    @property
    def wanted(self) -> str:
        """What can be predicted, for the message about an answer that cannot be read."""
        return (
            f"one of the letters {', '.join(self.options)}, such as {min(self.options)!r}"
            if self.options
            else "a number"
        )

    def grade(self, given: Any) -> Feedback:
        """Compute the true answer and compare a prediction with it."""
        truth, mine = self.truth(), self.read(given)
        if mine is None:
            return Feedback(False, [f"{self.key}: a prediction is {self.wanted}."])
        right = mine == truth if self.options else self._near(mine, truth)
        verdict = f"your prediction {_said(mine)} is right." if right else f"you predicted {_said(mine)}."
        answer = [] if right and self.options else [f"The computed answer is {_said(truth)}."]
        if self.options:
            wrong = sorted(self.why_not.items(), key=lambda one: one[0] != mine)
            why = [f"{letter} is wrong: {text}" for letter, text in wrong]
            name = "" if right else str(mine)
        else:
            known = [(one, float(one.function())) for one in self.mistakes]
            found = [] if right else [one for one, value in known if self._near(mine, value)]
            name = found[0].name if found else ""
            ordered = sorted(known, key=lambda pair: pair[0] not in found)
            why = [f"{_said(value)} is wrong: {one.message}" for one, value in ordered]
        explained = self._explained(truth)
        # The reason why the student's own answer is wrong comes first.
        lines = [*answer, explained, *why] if right or not name else [*answer, why[0], explained, *why[1:]]
        return Feedback(right, [f"{self.key}: {verdict}", *lines], name)

    def _explained(self, truth: str | float) -> str:
        return self.explanation.replace("{truth}", _said(truth))

    def _near(self, mine: Any, value: Any) -> bool:
        return math.isclose(mine, value, rel_tol=self.relative, abs_tol=1e-9)


def _said(answer: str | float) -> str:
    return answer if isinstance(answer, str) else f"{answer:.3g}"
