"""Wrong answers, written as edits of a correct one.

Most common mistakes change a few characters of a solution. Such a mistake is the solution with some of its code
replaced: `"beta * margin → margin"` shows at one glance what is wrong. `wrong_answers` makes the mistakes of an
exercise from two tables, with the wrong code and with the messages.
"""

from __future__ import annotations

import inspect
import itertools
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from rlhf_lab.errors import LabError
from rlhf_lab.exercises.checking import Mistake

PLUS = " + "
"""What stands between the names of two mistakes that are made together."""


@dataclass(frozen=True)
class Edited:
    """A function with some of its code replaced.

    Attributes:
        function: a function that is defined in a file. The edited one uses the same names of its module.
        edits: each is `"old code → new code"`. They are made in order, and the old code must then occur exactly once.
    """

    function: Callable[..., Any]
    edits: tuple[str, ...]

    @property
    def source(self) -> str:
        """The code after the edits.

        Raises:
            LabError: an edit has no arrow, or its old code does not occur exactly once.
        """
        code = textwrap.dedent(inspect.getsource(self.function))
        for edit in self.edits:
            old, arrow, new = edit.partition(" → ")
            if not arrow or code.count(old) != 1:
                raise LabError(
                    f"The edit {edit!r} does not fit {self.function.__name__}. Write it as 'old code → new code', with "
                    "old code that occurs exactly once."
                )
            code = code.replace(old, new)
        return code

    def __call__(self, *given: Any, **named: Any) -> Any:
        """Call the edited function."""
        return _compiled(self)(*given, **named)


@cache
def _compiled(edited: Edited) -> Callable[..., Any]:
    original: Any = edited.function
    scope = dict(original.__globals__)
    exec(compile(edited.source, f"<edited {original.__name__}>", "exec"), scope)
    made: Callable[..., Any] = scope[original.__name__]
    return made


def wrong_answers(
    solution: Callable[..., Any],
    wrong: Mapping[str, str | tuple[str, ...] | Callable[..., Any]],
    messages: Mapping[str, str],
    pairs: Iterable[tuple[str, str]] = (),
) -> tuple[Mistake, ...]:
    """Make the known mistakes of an exercise.

    Args:
        solution: the correct function.
        wrong: by name of the mistake one or several edits of the solution, each `"old code → new code"`, or a function
            that takes the solution's arguments.
        messages: by name what is wrong and where to look.
        pairs: mistakes that are also made together. Both must be edits.

    Returns:
        one mistake for each name, in the order of the messages, and one for each pair.

    Raises:
        LabError: the two tables have different names.
    """
    if wrong.keys() != messages.keys():
        raise LabError(
            f"The mistakes of {solution.__name__} and their messages have different names: "
            f"{', '.join(sorted(wrong.keys() ^ messages.keys()))}."
        )
    edits: dict[str, tuple[str, ...]] = {}
    single = []
    for name, message in messages.items():
        code = wrong[name]
        if not callable(code):
            edits[name] = (code,) if isinstance(code, str) else code
            code = Edited(solution, edits[name])
        single.append(Mistake(name, message, code))
    both = [
        Mistake(
            PLUS.join(pair),
            " ".join(messages[name] for name in pair),
            Edited(solution, tuple(itertools.chain(*(edits[name] for name in pair)))),
        )
        for pair in pairs
    ]
    return (*single, *both)
