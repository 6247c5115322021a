"""The exercises of the notebooks: checks that name the mistake, hints in steps, and solutions.

In a notebook:

    from rlhf_lab.exercises import check, hint, predict, reveal, solution

    predict("nb02.k1_as_a_loss", "A")    # records your prediction
    reveal("nb02.k1_as_a_loss")          # computes the answer and compares
    check("nb05.dpo_loss", dpo_loss)     # what is wrong with your function, or ✓
    hint("nb05.dpo_loss", 1)             # the first hint; 2 is the next
    solution("nb05.dpo_loss")            # a solution
    progress()                           # what is solved in each notebook

There is one file for each notebook, such as `nb05_dpo.py`, with a tuple `EXERCISES`. The kinds of exercises are
`Prediction` (`predictions.py`), `NextLine` (`derive.py`), `Exercise` (`checking.py`) and `TrainingLoop`
(`training_loops.py`), which also serves for debugging. `edits.py` makes their mistakes from the solution's code.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_lab.errors import LabError
from rlhf_lab.exercises import records
from rlhf_lab.exercises.checking import Case, Exercise, Feedback, GeneratorSeed, Mistake, Prose, Task
from rlhf_lab.exercises.predictions import Prediction


def notebooks() -> dict[str, str]:
    """The modules with exercises: `{"nb05": "nb05_dpo"}`, in order."""
    names = sorted(found.name for found in pkgutil.iter_modules(__path__) if found.name.startswith("nb"))
    return {name.split("_")[0]: name for name in names}


def of_notebook(number: str) -> tuple[Task, ...]:
    """The exercises of a notebook, `of_notebook("nb05")`, in its order.

    Raises:
        LabError: no such notebook has exercises.
    """
    modules = notebooks()
    if number not in modules:
        raise LabError(f"There are no exercises of {number!r}. Notebooks with exercises: {', '.join(modules)}.")
    exercises: tuple[Task, ...] = importlib.import_module(f"{__name__}.{modules[number]}").EXERCISES
    return exercises


def exercise(key: str) -> Task:
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
    task = exercise(key)
    if isinstance(task, Prediction):
        raise LabError(f"{key} is a prediction. Use predict({key!r}, …), and then reveal({key!r}).")
    feedback = task.grade(function)
    problem = records.record(key, "checked", passed=feedback.passed)
    feedback.lines += [problem] if problem else []
    return feedback


def predict(key: str, answer: Any = ...) -> Prose | Feedback:
    """Record a prediction, which `reveal` compares with the computed answer.

    Args:
        key: the exercise.
        answer: a letter, or a number where the question has no options. Without it the question is shown.

    Returns:
        what was recorded. It can be changed until the answer is revealed.

    Raises:
        LabError: the exercise is not a prediction.
    """
    task = _prediction(key)
    if answer is ... or answer is None:
        return Prose(f"{task.statement}\n\nReplace `...` by {task.wanted}, and run the cell again.")
    found = task.read(answer)
    if found is None:
        return Feedback(False, [f"{key}: a prediction is {task.wanted}. Nothing is recorded."])
    if _revealed(key):
        return Prose(f"The answer was already revealed. Your recorded prediction is **{records.prediction(key)}**.")
    problem = records.record(key, "predicted", answer=found)
    return Prose(f"Your prediction **{found}** is recorded. Run the next cell to see the answer. {problem}".rstrip())


def reveal(key: str) -> Feedback:
    """Compute the answer of a prediction, compare it with the recorded one, and explain the common wrong answers.

    Raises:
        LabError: the exercise is not a prediction.
    """
    task, mine = _prediction(key), records.prediction(key)
    if mine is None:
        return Feedback(False, [f"{key}: predict first. Run predict({key!r}, …) with your answer."])
    feedback = task.grade(mine)
    problem = "" if _revealed(key) else records.record(key, "revealed", passed=feedback.passed)
    feedback.lines += [problem] if problem else []
    return feedback


def progress(number: str | None = None, folder: str | Path | None = None) -> records.Progress:
    """Summarise what is solved.

    Args:
        number: one notebook, such as "nb05"; None for all.
        folder: a student's folder; None for the current one.
    """
    tasks: dict[str, Sequence[Task]] = {one: of_notebook(one) for one in ([number] if number else notebooks())}
    return records.summarise(tasks, records.events(None if folder is None else Path(folder)))


def _prediction(key: str) -> Prediction:
    task = exercise(key)
    if not isinstance(task, Prediction):
        raise LabError(f"{key} is not a prediction. Use check({key!r}, {task.name}).")
    return task


def _revealed(key: str) -> bool:
    return any(one.get("key") == key and one.get("event") == "revealed" for one in records.events())


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
    """A solution of the exercise `key`: code, or for a prediction the answer."""
    return Prose(exercise(key).answer)


__all__ = [
    "Case",
    "Exercise",
    "Feedback",
    "GeneratorSeed",
    "Mistake",
    "Prediction",
    "Prose",
    "Task",
    "check",
    "exercise",
    "hint",
    "notebooks",
    "of_notebook",
    "predict",
    "progress",
    "reveal",
    "solution",
]
