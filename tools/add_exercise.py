"""Insert the cells of an exercise into a notebook, made from the data in `rlhf_lab/exercises/`.

    python tools/add_exercise.py notebooks/05_dpo.ipynb nb05.train_dpo [--after CELL_ID]

Without --after the cells come after the last exercise. The exercise's number continues those above it, and later ones
are not renumbered. The text may be edited afterwards. Then run `tools/execute_notebooks.py` on the notebook.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat

from rlhf_lab.exercises import exercise
from rlhf_lab.exercises.notebook_cells import cells
from rlhf_lab.exercises.student_notebooks import notebook_text


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line, or with the given arguments."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("key", help="the exercise, such as nb05.train_dpo")
    parser.add_argument("--after", help="the id of the cell after which it is inserted")
    args = parser.parse_args(arguments)
    notebook = nbformat.read(args.notebook, as_version=4)
    sources = [cell.source for cell in notebook.cells]
    if any(f'"{args.key}"' in source and "hint(" not in source for source in sources):
        sys.exit(f"{args.notebook} already contains {args.key}. Delete its cells first.")
    if args.after:
        places = [place for place, cell in enumerate(notebook.cells) if cell.get("id") == args.after]
    else:
        places = [place for place, source in enumerate(sources) if re.search(r'^(check|reveal)\("nb', source, re.M)]
        places = [place + sources[place + 1].startswith("<details>") for place in places[-1:]]
    if not places:
        sys.exit(f"{args.notebook} has no such place. Give the id of a cell with --after.")
    above = re.findall(r"^#{2,4} Exercise (\d+)", "\n".join(sources[: places[0] + 1]), re.M)
    made = []
    for part, (kind, source) in enumerate(cells(exercise(args.key), len(above) + 1), 1):
        cell: Any = nbformat.v4.new_markdown_cell(source) if kind == "markdown" else nbformat.v4.new_code_cell(source)
        cell.id = f"{re.sub('[._]', '-', args.key)}-{part}"
        made.append(cell)
    notebook.cells[places[0] + 1 : places[0] + 1] = made
    args.notebook.write_text(notebook_text(notebook), encoding="utf-8")
    print(f"{args.notebook.name}: {len(made)} cells inserted after cell {notebook.cells[places[0]].get('id')}.")


if __name__ == "__main__":
    main()
