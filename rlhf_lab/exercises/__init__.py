"""The exercises of the notebooks: checks that name the mistake, hints in steps, and solutions.

In a notebook:

    from rlhf_lab.exercises import check, hint, solution

    check("nb05.dpo_loss", dpo_loss)     # what is wrong with your function, or ✓
    hint("nb05.dpo_loss", 1)             # the first hint; 2 is the next
    solution("nb05.dpo_loss")            # a solution

There is one file for each notebook, such as `nb05_dpo.py`, with a tuple `EXERCISES`. `checking.py` defines `Exercise`.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from typing import Any

from rlhf_lab.errors import LabError
from rlhf_lab.exercises.checking import Case, Exercise, Feedback, Mistake, Prose, Seed, judge_answer


def notebooks() -> dict[str, str]:
    """The modules with exercises: `{"nb05": "nb05_dpo"}`, in order."""
    names = sorted(found.name for found in pkgutil.iter_modules(__path__) if found.name.startswith("nb"))
    return {name.split("_")[0]: name for name in names}


def of_notebook(number: str) -> tuple[Exercise, ...]:
    """The exercises of a notebook, `of_notebook("nb05")`, in its order.

    Raises:
        LabError: no such notebook has exercises.
    """
    modules = notebooks()
    if number not in modules:
        raise LabError(f"There are no exercises of {number!r}. Notebooks with exercises: {', '.join(modules)}.")
    exercises: tuple[Exercise, ...] = importlib.import_module(f"{__name__}.{modules[number]}").EXERCISES
    return exercises


def exercise(key: str) -> Exercise:
    """The exercise named `key`, `nb05.dpo_loss`.

    Raises:
        LabError: there is no exercise of that name. The message suggests similar names.
    """
    found = {one.key: one for one in of_notebook(str(key).split(".")[0])}
    if key not in found:
        near = difflib.get_close_matches(key, found, cutoff=0.3) or list(found)
        raise LabError(f"There is no exercise {key!r}. Did you mean {' or '.join(near)}?")
    return found[key]


def check(key: str, function: Any) -> Feedback:
    """Check `function` as an answer to the exercise `key`, and describe what is wrong and on which input."""
    return judge_answer(exercise(key), function)


def hint(key: str, step: int = 1) -> Prose:
    """Hint number `step` of the exercise `key`, counted from 1.

    Raises:
        LabError: there are fewer hints.
    """
    hints = exercise(key).hints
    if not 1 <= step <= len(hints):
        raise LabError(f"{key} has {len(hints)} hints. Choose a step from 1 to {len(hints)}, not {step}.")
    return Prose(f"**Hint {step} of {len(hints)}.** {hints[step - 1]}")


def solution(key: str) -> Prose:
    """A solution of the exercise `key`, as code."""
    return Prose(f"```python\n{exercise(key).source.rstrip()}\n```")


__all__ = [
    "Case",
    "Exercise",
    "Feedback",
    "Mistake",
    "Prose",
    "Seed",
    "check",
    "exercise",
    "hint",
    "notebooks",
    "of_notebook",
    "solution",
]
