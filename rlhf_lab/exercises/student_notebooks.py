"""Makes the students' versions of the notebooks, without solutions and outputs.

In a code cell, the lines between `### BEGIN SOLUTION` and `### END SOLUTION` (nbgrader's markers) are replaced by one
line that raises NotImplementedError, at the same indentation. The markers are removed too. The answer in a call of
`predict` is replaced by `...`. Folded solutions in markdown stay, and a student decides whether to open them.
"""

from __future__ import annotations

import re
from typing import Any

from rlhf_lab.errors import LabError

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
PREDICTION = re.compile(r'^predict\(("nb\d\d\.\w+"), .*\)$', re.M)
"""A cell's call with an answer to predict."""
NOQA = re.compile(r" *# noqa: [A-Z]+\d+$", re.M)
"""A mark for the linter, which means nothing to students."""
STUB = 'raise NotImplementedError("your code here")'


def without_solution(source: str, where: str) -> str:
    """A cell's source with its solutions replaced by `STUB`.

    Args:
        source: the cell.
        where: the cell's name, for the message.

    Raises:
        LabError: an unpaired marker, a solution inside a solution, or a misspelt marker.
    """
    kept: list[str] = []
    inside = False
    for line in source.split("\n"):
        word = line.strip()
        if word in (BEGIN, END):
            if (word == BEGIN) == inside:
                raise LabError(f"{where}: “{word}” has no partner.")
            inside = word == BEGIN
            if inside:
                kept.append(line[: len(line) - len(line.lstrip())] + STUB)
        elif word.upper().lstrip("# ").startswith(("BEGIN SOLUTION", "END SOLUTION")):
            raise LabError(f"{where}: write the marker as “{BEGIN}” or “{END}”, not “{word}”.")
        elif not inside:
            kept.append(line)
    if inside:
        raise LabError(f"{where}: “{BEGIN}” has no partner.")
    return "\n".join(kept)


def student_version(notebook: Any, name: str) -> Any:
    """Turn `notebook` into the student's version, in place, and return it.

    Args:
        notebook: as nbformat reads it.
        name: the file's name, for the message.

    Raises:
        LabError: as `without_solution`.
    """
    for cell in notebook.cells:
        if cell.cell_type == "code":
            source = without_solution(cell.source, f"{name}, cell {cell.get('id', '?')}")
            cell.source = NOQA.sub("", PREDICTION.sub(r"predict(\1, ...)", source))
            cell.outputs, cell.execution_count = [], None
    return notebook


def notebook_text(notebook: Any) -> str:
    """The content of the notebook's file: JSON with one line end at the end."""
    import nbformat

    return str(nbformat.writes(notebook)).rstrip("\n") + "\n"
