"""`rlhf-lab course DIR`: write the notebooks of the course to a folder. A student's work is never overwritten.

The students' versions have no solutions and no outputs (`exercises/student_notebooks.py`). With --solutions the full
notebooks are written. The folder `configs` with the configurations of `accelerate launch`, which notebook 12 uses, is
written too.

The same command updates a folder after an upgrade. It replaces files that are unchanged since it wrote them. If a file
was changed, it stays as it is, and the new version is written beside it, `05_dpo.new.ipynb` (with --solutions
`05_dpo.solutions.ipynb`). The file `.rlhf-lab-course.json` in the folder contains the SHA-256 of every version that was
written, so that the command can tell them apart. Without this file, only files that are equal to the current version
are regarded as unchanged.

`rlhf-lab progress DIR` prints what is solved in the folder (`exercises/records.py`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

import rlhf_lab
from rlhf_lab import shipped
from rlhf_lab.errors import LabError, count_of
from rlhf_lab.exercises.grading import Grader, assignment
from rlhf_lab.exercises.records import ANSWERS_FILE, COURSE_FILE
from rlhf_lab.exercises.student_notebooks import notebook_text, student_version
from rlhf_lab.training.checkpoint import write_json, write_text

INSTALL = """# Installs rlhf_lab where it is missing, for example on Colab.
import importlib.util

if importlib.util.find_spec("rlhf_lab") is None:
    %pip install -q {source}"""
"""The first cell of a hosted notebook."""


@dataclass(frozen=True)
class Course:
    """Write the notebooks of the course to a folder. Changed files are kept, and new versions come beside them."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """Folder to write to. It is created if it does not exist."""
    solutions: bool = False
    """Write the full notebooks with solutions and outputs, not the students' versions."""
    grader: Grader | None = None
    """Write the notebooks as assignments with points: as source notebooks of nbgrader, in `source/`, or as master
    notebooks of Otter-Grader. They contain solutions."""
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
    folder = _checked_folder(settings.folder)
    files = contents(settings.solutions, settings.install_from, settings.grader)
    written, beside = _versions(folder, "files"), _versions(folder, "beside")
    changed = [name for name, text in files.items() if _changed(folder / name, {_digest(text), *written.get(name, [])})]
    new = {name: text for name, text in files.items() if name not in changed and _text(folder / name) != text}
    later = [name for name in changed if _digest(files[name]) not in written.get(name, [])]
    names = {name: _place_beside(folder, name, "solutions" if settings.solutions else "new", beside) for name in later}
    kept = _with(written, {name: text for name, text in files.items() if name not in changed})
    _write(folder, new, kept, beside)
    # A changed file's new version counts as received when it has been written, so that a stopped command is repeated.
    received = {names[name]: files[name] for name in later}
    _write(folder, received, kept, _with(beside, received))
    if later:
        _save_versions(folder, _with(written, files), _with(beside, received))
    print(f"The {_kind(settings)} of rlhf_lab {rlhf_lab.__version__} in {folder}:")
    print(f"  {count_of(len(new), 'file')} written, {len(files) - len(new) - len(changed)} already there.")
    gone = [name for name in written if name not in files and (folder / name).exists()]
    for words, names_of_files in (
        ("Kept, because they were changed", changed),
        ("New versions of changed files, written beside them", received),
        ("No longer part of the course, and left alone", gone),
    ):
        if names_of_files:
            print(f"  {words}: {', '.join(names_of_files)}.")
    print(_NEXT[settings.grader].format(folder=folder, first=next(iter(files))))


def _kind(settings: Course) -> str:
    if settings.grader:
        return f"assignments for {settings.grader}"
    return "full notebooks" if settings.solutions else "students' notebooks"


def _checked_folder(given: Path) -> Path:
    folder = given.expanduser()
    if folder.exists() and not folder.is_dir():
        raise LabError(f"{folder} is a file. Give the name of a folder for the notebooks.")
    if folder.resolve() in (shipped.path("notebooks").resolve(), shipped.path("notebooks").resolve().parent):
        raise LabError(f"{folder} contains the original notebooks of the lab. Give another folder.")
    return folder


_NEXT = {
    None: "Open the first one with:  jupyter lab {folder}/{first}",
    "nbgrader": "Make a release with:  nbgrader generate_assignment 05_dpo --course-dir {folder} --create",
    "otter": "Make an assignment with:  otter assign {folder}/05_dpo.ipynb {folder}/dist/05_dpo",
}
"""The last line of the output."""


@dataclass(frozen=True)
class ShowProgress:
    """Print what is solved in each notebook of a student's folder."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """Folder that `rlhf-lab course` or `make lab` has made."""


def show_progress(settings: ShowProgress) -> None:
    """Print the summary of a student's folder.

    Raises:
        LabError: the folder is not one.
    """
    from rlhf_lab.exercises import progress

    folder = settings.folder.expanduser()
    if not (folder / COURSE_FILE).is_file():
        raise LabError(f"{folder} has not been made by `rlhf-lab course`, so it has no answers. Give that folder.")
    print(progress(folder=folder))
    if not (folder / ANSWERS_FILE).is_file():
        print("Nothing has been checked in this folder yet.")


def contents(solutions: bool = False, install_from: str | None = None, grader: Grader | None = None) -> dict[str, str]:
    """What the command writes: each file's name in the folder, and its text.

    Args:
        solutions: full notebooks, not the students' versions.
        grader: the tool for which the notebooks are made into assignments; None for none.
        install_from: what a first cell installs where rlhf_lab is missing; None for no such cell.

    Returns:
        the notebooks in order, and then the configurations of `accelerate launch`.
    """
    import nbformat

    files = {}
    for path in sorted(shipped.path("notebooks").glob("[0-9][0-9]_*.ipynb")):
        notebook: Any = nbformat.read(path, as_version=4)
        if grader:
            notebook = assignment(notebook, path.name, grader)
        elif not solutions:
            notebook = student_version(notebook, path.name)
        if install_from is not None:
            cell = nbformat.v4.new_code_cell(INSTALL.format(source=install_from), id="install-rlhf-lab")
            notebook.cells.insert(0, cell)
        name = f"source/{path.stem}/{path.name}" if grader == "nbgrader" else path.name
        files[name] = notebook_text(notebook)
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
    """Return the text of the file with line ends as `\\n`, or None if it is not a regular text file."""
    try:
        return None if place.is_symlink() else place.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _versions(folder: Path, kind: str) -> dict[str, list[str]]:
    """SHA-256 of every version of each file that the command has written to the folder, as far as is known.

    Args:
        folder: the student's folder.
        kind: files of the course, or versions `beside` changed files.
    """
    try:
        files = json.loads((folder / COURSE_FILE).read_text(encoding="utf-8"))[kind]
        return {str(name): [str(one) for one in versions] for name, versions in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _with(versions: dict[str, list[str]], files: dict[str, str]) -> dict[str, list[str]]:
    """The versions with those of the files added."""
    return versions | {name: sorted({_digest(text), *versions.get(name, [])}) for name, text in files.items()}


def _place_beside(folder: Path, name: str, kind: str, beside: dict[str, list[str]]) -> str:
    """The name of the new version of a changed file: one that is free, or whose file is unchanged."""
    path = Path(name)
    for number in itertools.count(1):
        found = path.with_name(f"{path.stem}.{kind}{f'-{number}' if number > 1 else ''}{path.suffix}").as_posix()
        if not _changed(folder / found, set(beside.get(found, []))):
            break
    return found


def _save_versions(folder: Path, files: dict[str, list[str]], beside: dict[str, list[str]]) -> None:
    write_json(folder / COURSE_FILE, {"rlhf_lab": rlhf_lab.__version__, "files": files, "beside": beside})


def _write(folder: Path, texts: dict[str, str], files: dict[str, list[str]], beside: dict[str, list[str]]) -> None:
    """Write files, and before them the list of versions, so that a stopped command leaves no file that is unknown.

    Raises:
        LabError: a file or folder cannot be written.
    """
    if not texts:
        return
    try:
        for name in texts:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabError(
            f"{error.filename} cannot be created as a folder ({error.strerror}). Give another folder."
        ) from None
    _save_versions(folder, files, beside)
    for name, text in texts.items():
        write_text(folder / name, text)
