"""The notebooks as assignments of nbgrader and of Otter-Grader, with points for each exercise.

For nbgrader a notebook is a source notebook: the cell of an answer is a solution cell, and the cell with `check` is a
locked test cell with points. `nbgrader generate_assignment` makes the students' release of it. For Otter it is a master
notebook, whose questions have a solution and a test, for `otter assign`. Predictions carry no points. Their answers are
removed here, because neither tool knows them.

An exercise gives as many points as its difficulty. An answer cell without the markers of a solution, such as a loop to
debug, is given to students as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from rlhf_lab.errors import LabError
from rlhf_lab.exercises import exercise
from rlhf_lab.exercises.checking import FunctionTask
from rlhf_lab.exercises.notebook_cells import notebook_source
from rlhf_lab.exercises.student_notebooks import BEGIN, END, PREDICTION, without_solution

Grader = Literal["nbgrader", "otter"]
CHECK = re.compile(r'\n*^check\("(nb\d\d\.\w+)", (\w+)\)\s*\Z', re.M)
"""The call of `check` at the end of a cell."""


class Question(NamedTuple):
    """An exercise in a notebook: its key, the cell of the answer, and whether students get that cell as it is."""

    key: str
    answer: Any
    open: bool

    @property
    def name(self) -> str:
        """The key without dots, which both tools accept as a name."""
        return self.key.replace(".", "_")

    @property
    def points(self) -> int:
        """The points of the exercise."""
        return exercise(self.key).difficulty


def assignment(notebook: Any, name: str, grader: Grader) -> Any:
    """Turn a full notebook into an assignment, in place, and return it.

    Args:
        notebook: as nbformat reads it.
        name: the file's name, for messages and as the title of the assignment.
        grader: the tool that will grade it.

    Raises:
        LabError: a `check` without the function that it checks, or unpaired markers.
    """
    made: list[Any] = [_cell("raw", f"# ASSIGNMENT CONFIG\n{_OTTER}")] if grader == "otter" else []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            made.append(cell)
            continue
        cell.outputs, cell.execution_count = [], None
        without_solution(cell.source, f"{name}, cell {cell.get('id', '?')}")  # markers that are not paired are refused
        cell.source = PREDICTION.sub(r"predict(\1, ...)", cell.source)
        found = CHECK.search(cell.source)
        if found is None:
            made.append(cell)
            continue
        cell.source = cell.source[: found.start()]
        if cell.source.strip():
            made.append(cell)
        places = [place for place, one in enumerate(made) if _defines(one, found[2])]
        if not places:
            raise LabError(f"{name}: check({found[1]!r}, {found[2]}) comes before the function is defined.")
        answer = made[places[-1]]
        question = Question(found[1], answer, BEGIN not in answer.source)
        _FORMATS[grader](made, places[-1], question, f'check("{found[1]}", {found[2]})')
    notebook.cells = made
    return notebook


def _defines(cell: Any, function: str) -> bool:
    return cell.cell_type == "code" and re.search(rf"^def {function}\(", cell.source, re.M) is not None


def _nbgrader(cells: list[Any], place: int, question: Question, call: str) -> None:
    """Mark the answer as a solution, and add the locked test cell, which shows the message of `check` and may fail."""
    shared = {"schema_version": 3, "task": False, "cell_type": "code"}
    if not question.open:
        question.answer.metadata["nbgrader"] = {
            **shared, "grade_id": f"{question.name}_answer", "solution": True, "grade": False, "locked": False,
        }  # fmt: skip
    test = _cell("code", f"feedback = {call}\nassert feedback.passed, feedback\nfeedback", f"{question.name}-test")
    test.metadata["nbgrader"] = {
        **shared, "grade_id": question.name, "solution": False, "grade": True, "locked": True,
        "points": question.points,
    }  # fmt: skip
    cells.append(test)


def _otter(cells: list[Any], place: int, question: Question, call: str) -> None:
    """Put the answer between the cells of a question; students see the message of `check` in the cell after it."""
    answer = question.answer
    if question.open:
        task = exercise(question.key)
        assert isinstance(task, FunctionTask)
        given = answer.source.replace('"""', "'''")
        solved = notebook_source(task.source, False)
        answer.source = (
            f'""" # BEGIN PROMPT\n{given}\n""" # END PROMPT\n# BEGIN SOLUTION NO PROMPT\n{solved}\n# END SOLUTION'
        )
    else:
        answer.source = answer.source.replace(BEGIN, "# BEGIN SOLUTION").replace(END, "# END SOLUTION")
    begin = f"# BEGIN QUESTION\nname: {question.name}\npoints: {question.points}"
    cells[place:] = [
        _cell("raw", begin),
        _cell("raw", "# BEGIN SOLUTION"),
        answer,
        _cell("raw", "# END SOLUTION"),
        _cell("raw", "# BEGIN TESTS"),
        _cell("code", f"assert {call}.passed"),
        _cell("raw", "# END TESTS"),
        _cell("raw", "# END QUESTION"),
        *cells[place + 1 :],
        _cell("code", call, f"{question.name}-check"),
    ]


_FORMATS: dict[str, Callable[[list[Any], int, Question, str], None]] = {"nbgrader": _nbgrader, "otter": _otter}
_OTTER = "solutions_pdf: false\nexport_cell: false\ncheck_all_cell: false"


def _cell(kind: str, source: str, name: str = "") -> Any:
    import nbformat

    cell: Any = getattr(nbformat.v4, f"new_{kind}_cell")(source)
    if name:
        cell.id = name.replace("_", "-")
    return cell
