"""Write the students' notebooks, which contain neither solutions nor outputs.

    python tools/make_student.py [notebook.ipynb ...] [--out build/student]

`rlhf_lab/exercises/student_notebooks.py` documents what is removed. An unpaired marker is an error, and then nothing
is written. Existing files in the folder are overwritten. `rlhf-lab course DIR` writes the same notebooks but preserves
a student's changes.
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
