"""Write the students' notebooks: solutions taken out, outputs cleared, all else as it is.

    python tools/make_student.py [notebook.ipynb ...] [--out build/student]

In a code cell, what stands between the lines `### BEGIN SOLUTION` and `### END SOLUTION` (nbgrader's markers) is
replaced by one line that raises NotImplementedError, at the same indentation; the markers go too. Folded solutions
in markdown stay: a student opens them or not. A marker without its partner is refused before anything is written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import nbformat

REPO = Path(__file__).resolve().parent.parent
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
STUB = 'raise NotImplementedError("your code here")'


class Refused(Exception):
    """A notebook whose markers do not come in pairs."""


def without_solution(source: str, where: str) -> str:
    """A cell's source with its solutions replaced by `STUB`.

    Args:
        source: the cell.
        where: the cell's name, for the message.

    Raises:
        Refused: a marker without its partner, or a solution inside a solution.
    """
    kept: list[str] = []
    inside = False
    for line in source.split("\n"):
        word = line.strip()
        if word in (BEGIN, END):
            if (word == BEGIN) == inside:
                raise Refused(f"{where}: “{word}” without its partner.")
            inside = word == BEGIN
            if inside:
                kept.append(line[: len(line) - len(line.lstrip())] + STUB)
        elif word.upper().lstrip("# ").startswith(("BEGIN SOLUTION", "END SOLUTION")):
            raise Refused(f"{where}: write the marker as “{BEGIN}” or “{END}”, not “{word}”.")
        elif not inside:
            kept.append(line)
    if inside:
        raise Refused(f"{where}: “{BEGIN}” without its partner.")
    return "\n".join(kept)


def student_version(notebook: nbformat.NotebookNode, name: str) -> nbformat.NotebookNode:
    """`notebook` as a student gets it.

    Raises:
        Refused: as `without_solution`.
    """
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = without_solution(cell.source, f"{name}, cell {cell.get('id', '?')}")
            cell.outputs, cell.execution_count = [], None
    return notebook


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: notebooks/*.ipynb")
    parser.add_argument("--out", type=Path, default=REPO / "build" / "student", help="folder to write to")
    args = parser.parse_args()
    paths = args.notebooks or sorted((REPO / "notebooks").glob("*.ipynb"))
    try:
        written = {path.name: student_version(nbformat.read(path, as_version=4), path.name) for path in paths}
    except Refused as error:
        sys.exit(str(error))
    args.out.mkdir(parents=True, exist_ok=True)
    for name, notebook in written.items():
        (args.out / name).write_text(nbformat.writes(notebook).rstrip("\n") + "\n", encoding="utf-8")
        stubs = sum(cell.source.count(STUB) for cell in notebook.cells if cell.cell_type == "code")
        print(f"{name}: {stubs} to write")


if __name__ == "__main__":
    main()
