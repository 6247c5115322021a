"""`rlhf-lab course DIR`: write the notebooks of the course to a folder without overwriting changed files.

The students' versions have no solutions and no outputs (`exercises/student_notebooks.py`). With --solutions the full
notebooks are written. The folder `configs` with the configurations of `accelerate launch`, which notebook 12 uses, is
written too.

The same command updates a folder after an upgrade. It replaces files that are unchanged since it wrote them, and it
keeps and names files that were changed. The file `.rlhf-lab-course.json` in the folder contains the SHA-256 of every
version that was written, so that the command can tell them apart. Without this file, only files that are equal to the
current version are regarded as unchanged.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

import rlhf_lab
from rlhf_lab import shipped
from rlhf_lab.errors import LabError
from rlhf_lab.exercises.student_notebooks import notebook_text, student_version
from rlhf_lab.training.checkpoint import write_json, write_text

MANIFEST = ".rlhf-lab-course.json"
INSTALL = """# Installs rlhf_lab where it is missing, for example on Colab.
import importlib.util

if importlib.util.find_spec("rlhf_lab") is None:
    %pip install -q {source}"""
"""The first cell of a hosted notebook."""


@dataclass(frozen=True)
class Course:
    """Write the notebooks of the course to a folder. Changed files there are kept."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """Folder to write to. It is created if it does not exist."""
    solutions: bool = False
    """Write the full notebooks with solutions and outputs, not the students' versions."""
    install_from: str | None = None
    """Begin every notebook with a cell that installs rlhf_lab if it is missing, for hosted notebooks. The value is the
    argument of pip: the file name or the address of a wheel."""

    def __post_init__(self) -> None:
        # It becomes part of a shell command in a notebook.
        if self.install_from is not None and not re.fullmatch(r"[\w.,/:@+~%*=#\[\]-]+", self.install_from):
            raise LabError(
                f"--install-from {self.install_from!r} contains a character that is special in a shell. Give the "
                f"file name or address of a wheel without spaces and quotes."
            )


def course(settings: Course) -> None:
    """Write the missing and the unchanged files, and print what was done.

    Raises:
        LabError: the folder is a file, is the source of the notebooks, or cannot be written to.
    """
    folder = settings.folder.expanduser()
    if folder.exists() and not folder.is_dir():
        raise LabError(f"{folder} is a file. Give the name of a folder for the notebooks.")
    if folder.resolve() in (shipped.path("notebooks").resolve(), shipped.path("notebooks").resolve().parent):
        raise LabError(f"{folder} contains the original notebooks of the lab. Give another folder.")
    files = contents(settings.solutions, settings.install_from)
    written = _versions(folder)
    changed = [name for name, text in files.items() if _changed(folder / name, {_digest(text), *written.get(name, [])})]
    new = [name for name, text in files.items() if name not in changed and _text(folder / name) != text]
    versions = {name: sorted({_digest(text), *written.get(name, [])}) for name, text in files.items()}
    try:
        for name in new:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabError(
            f"{error.filename} cannot be created as a folder ({error.strerror}). Give another folder."
        ) from None
    if new:
        # The list is written before the files, so that an interrupted command leaves no file that is not in it.
        write_json(folder / MANIFEST, {"rlhf_lab": rlhf_lab.__version__, "files": {**written, **versions}})
    for name in new:
        write_text(folder / name, files[name])
    kind = "full notebooks" if settings.solutions else "students' notebooks"
    print(f"The {kind} of rlhf_lab {rlhf_lab.__version__} in {folder}:")
    print(f"  {len(new)} files written, {len(files) - len(new) - len(changed)} already there.")
    if changed:
        print(f"  Kept, because they were changed: {', '.join(changed)}.")
        print("  For the new version of one of them, rename or delete it and run the command again.")
    gone = [name for name in written if name not in files and (folder / name).exists()]
    if gone:
        print(f"  No longer part of the course, and left alone: {', '.join(gone)}.")
    print(f"Open the first one with:  jupyter lab {folder / next(iter(files))}")


def contents(solutions: bool = False, install_from: str | None = None) -> dict[str, str]:
    """What the command writes: each file's name in the folder, and its text.

    Args:
        solutions: full notebooks, not the students' versions.
        install_from: what a first cell installs where rlhf_lab is missing; None for no such cell.

    Returns:
        the notebooks in order, and then the configurations of `accelerate launch`.
    """
    import nbformat

    files = {}
    for path in sorted(shipped.path("notebooks").glob("[0-9][0-9]_*.ipynb")):
        notebook: Any = nbformat.read(path, as_version=4)
        if not solutions:
            notebook = student_version(notebook, path.name)
        if install_from is not None:
            cell = nbformat.v4.new_code_cell(INSTALL.format(source=install_from), id="install-rlhf-lab")
            notebook.cells.insert(0, cell)
        files[path.name] = notebook_text(notebook)
    for path in sorted(shipped.path("configs").glob("*.yaml")):
        files[f"configs/{path.name}"] = path.read_text(encoding="utf-8")
    return files


def _changed(place: Path, written: set[str]) -> bool:
    """Whether something is there that the command did not write."""
    if not os.path.lexists(place):
        return False
    text = _text(place)
    return text is None or _digest(text) not in written


def _text(place: Path) -> str | None:
    """The file's text, its line ends as `\\n`; None for what is no plain text file of its own."""
    try:
        return None if place.is_symlink() else place.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _versions(folder: Path) -> dict[str, list[str]]:
    """SHA-256 of every version of each file that the command has written to the folder, as far as is known."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return {str(name): [str(one) for one in versions] for name, versions in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
