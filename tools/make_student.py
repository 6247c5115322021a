"""Write the students' notebooks: solutions taken out, outputs cleared, all else as it is.

    python tools/make_student.py [notebook.ipynb ...] [--out build/student]

`rlhf_lab/exercises/student_notebooks.py` says what is removed. A marker without its partner is refused before anything
is written. What lies in the folder is overwritten; `rlhf-lab course DIR` writes the same notebooks and keeps what a
student has changed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat

from rlhf_lab.errors import LabError
from rlhf_lab.exercises.student_notebooks import STUB, notebook_text, student_version

REPO = Path(__file__).resolve().parent.parent


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line, or with the given arguments."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: notebooks/*.ipynb")
    parser.add_argument("--out", type=Path, default=REPO / "build" / "student", help="folder to write to")
    args = parser.parse_args(arguments)
    paths = args.notebooks or sorted((REPO / "notebooks").glob("*.ipynb"))
    try:
        written = {path.name: student_version(nbformat.read(path, as_version=4), path.name) for path in paths}
    except LabError as error:
        sys.exit(str(error))
    args.out.mkdir(parents=True, exist_ok=True)
    for name, notebook in written.items():
        (args.out / name).write_text(notebook_text(notebook), encoding="utf-8")
        stubs = sum(cell.source.count(STUB) for cell in notebook.cells if cell.cell_type == "code")
        print(f"{name}: {stubs} to write")


if __name__ == "__main__":
    main()
