"""The cells of an exercise in a notebook, made from its data. `tools/add_exercise.py` inserts them."""

from __future__ import annotations

import ast
import inspect
import re

from rlhf_lab.exercises.checking import FunctionTask, Task
from rlhf_lab.exercises.derive import NextLine
from rlhf_lab.exercises.predictions import Prediction
from rlhf_lab.exercises.student_notebooks import BEGIN, END
from rlhf_lab.exercises.training_loops import TrainingLoop


def cells(task: Task, number: int) -> list[tuple[str, str]]:
    """The cells of an exercise: each with its type, markdown or code, and its source.

    Args:
        task: the exercise.
        number: its number in the notebook.
    """
    # An asterisk without a backslash would end the italics.
    objective = re.sub(r"(?<!\\)\*", r"\*", task.objective)
    head = f"### Exercise {number}: {task.heading}\n\n*You will be able to {objective}.*\n\n{statement(task)}"
    if isinstance(task, Prediction):
        truth = task.truth()
        answer = f'"{truth}"' if isinstance(truth, str) else f"{truth:.3g}"
        return [("markdown", head), ("code", f'predict("{task.key}", {answer})'), ("code", f'reveal("{task.key}")')]
    assert isinstance(task, FunctionTask)
    head += f'\n\nStuck? `hint("{task.key}", 1)` shows the first of {len(task.hints)} hints.'
    if isinstance(task, TrainingLoop) and task.bug:
        code = notebook_source(task.broken_source, False)
    else:
        code = notebook_source(task.source, True)
    solution = f"```python\n{notebook_source(task.source, False)}\n```"
    folded = f"<details><summary><b>A solution</b></summary>\n\n{solution}\n\n</details>"
    return [("markdown", head), ("code", code), ("code", f'check("{task.key}", {task.name})'), ("markdown", folded)]


def statement(task: Task) -> str:
    """What is asked for, in Markdown."""
    if isinstance(task, Prediction | NextLine):
        return task.statement
    if isinstance(task, TrainingLoop):
        first, *_ = inspect.signature(task.solution).parameters
        quantity = task.quantity.removeprefix("the ")
        asked = (
            f"`{task.signature}` should train `{first}` in place and return a list of losses, one per "
            f"step. `check` runs your loop and compares its final {quantity} with that of the solution."
        )
        return f"This loop has a bug. Find it and correct the cell. {asked}" if task.bug else asked
    assert isinstance(task, FunctionTask)
    return f"Write `{task.signature}`. Its docstring says what it returns: “{task.solution.__doc__}”"


def notebook_source(source: str, marked: bool) -> str:
    """A function as a cell: without type hints, and if `marked` with its body between the markers of a solution."""
    function = ast.parse(source).body[0]
    assert isinstance(function, ast.FunctionDef)
    names = ", ".join(one.arg for one in function.args.args)
    head = f"def {function.name}({names}):"
    if len(head) > 92:
        head = f"def {function.name}(\n    {names}\n):"
    lines = source.rstrip().split("\n")
    docstring, first = function.body[0], function.body[1]
    described = lines[docstring.lineno - 1 : docstring.end_lineno]
    body = lines[first.lineno - 1 :]
    return "\n".join([head, *described, *([f"    {BEGIN}", *body, f"    {END}"] if marked else body)])
