"""The notebooks as assignments of nbgrader and Otter: every exercise once, and graded once by the real tools.

The two slow tests need the tools: `make graders`, or `pip install -c constraints.txt -e '.[grading]'`.
"""

import copy
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from rlhf_lab.errors import LabError
from rlhf_lab.exercises import exercise
from rlhf_lab.exercises.grading import CHECK, assignment
from rlhf_lab.exercises.notebook_cells import cells, notebook_source
from rlhf_lab.exercises.student_notebooks import BEGIN

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
KEYS = ("nb02.effect_of_k1", "nb02.reinforce_with_kl", "nb05.cdpo_slope", "nb05.dpo_loss", "nb05.train_dpo")
"""One exercise of every kind."""


def small():
    """A full notebook with one exercise of every kind, one of them in a single cell with its check."""
    imports = "import torch\n\nfrom rlhf_lab.exercises import check, predict, reveal"
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(imports, id="imports")])
    made.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    for number, key in enumerate(KEYS, 1):
        for part, (kind, source) in enumerate(cells(exercise(key), number)):
            new = nbformat.v4.new_markdown_cell if kind == "markdown" else nbformat.v4.new_code_cell
            made.cells.append(new(source, id=f"{key.replace('.', '-').replace('_', '-')}-{part}"))
    joined = next(place for place, cell in enumerate(made.cells) if cell.source.startswith('check("nb05.dpo_loss"'))
    made.cells[joined - 1].source += "\n\n\n" + made.cells.pop(joined).source
    return made


GRADED = {key: exercise(key).difficulty for key in KEYS if exercise(key).kind != "predict"}


def solved(submission, keys):
    """A release with the answers to some exercises filled in."""
    made = copy.deepcopy(submission)
    for key in keys:
        task = exercise(key)
        places = [cell for cell in made.cells if re.search(rf"^def {task.name}\(", cell.source, re.M)]
        answers = [cell for cell in places if cell.cell_type == "code"]
        assert len(answers) == 1
        answers[0].source = notebook_source(task.source, False)
    return made


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_exercise_of_a_notebook_is_a_question_once_in_both_forms(path):
    full = nbformat.read(path, as_version=4)
    code = [cell.source for cell in full.cells if cell.cell_type == "code"]
    keys = [found[1] for source in code if (found := CHECK.search(source))]
    marked = assignment(copy.deepcopy(full), path.name, "nbgrader")
    nbformat.validate(marked)
    tests = [cell for cell in marked.cells if cell.metadata.get("nbgrader", {}).get("grade")]
    assert [cell.metadata.nbgrader.grade_id for cell in tests] == [key.replace(".", "_") for key in keys]
    assert all(cell.metadata.nbgrader.points == exercise(key).difficulty for cell, key in zip(tests, keys, strict=True))
    assert all(cell.metadata.nbgrader.locked and "assert feedback.passed" in cell.source for cell in tests)
    answers = [cell for cell in marked.cells if cell.metadata.get("nbgrader", {}).get("solution")]
    assert all(BEGIN in cell.source for cell in answers)
    assert len(answers) == sum(source.count(BEGIN) for source in code)
    master = assignment(copy.deepcopy(full), path.name, "otter")
    nbformat.validate(master)
    raw = [cell.source.split("\n")[0] for cell in master.cells if cell.cell_type == "raw"]
    block = ["# BEGIN QUESTION", "# BEGIN SOLUTION", "# END SOLUTION", "# BEGIN TESTS", "# END TESTS", "# END QUESTION"]
    assert raw == ["# ASSIGNMENT CONFIG", *block * len(keys)]
    for form in (marked, master):
        text = [cell.source for cell in form.cells if cell.cell_type == "code"]
        assert not any(cell.get("outputs") for cell in form.cells)
        assert not any(re.search(r'^predict\("nb.*", (?!\.\.\.)', source, re.M) for source in text)
        assert sum(source.count('check("nb') for source in text) == len(keys) * (1 if form is marked else 2)


def test_a_check_without_its_function_and_unpaired_markers_are_refused():
    alone = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('check("nb05.dpo_loss", dpo_loss)')])
    with pytest.raises(LabError, match="before the function is defined"):
        assignment(alone, "05_x.ipynb", "nbgrader")
    broken = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(BEGIN)])
    with pytest.raises(LabError, match="has no partner"):
        assignment(broken, "05_x.ipynb", "otter")


def test_otter_s_master_of_a_loop_to_debug_gives_the_broken_one_and_runs_the_correct_one():
    """The text between BEGIN PROMPT and END PROMPT is a string for Python, so only the solution is defined."""
    master = assignment(small(), "x.ipynb", "otter")
    [source] = [cell.source for cell in master.cells if "BEGIN PROMPT" in cell.source]
    task = exercise("nb02.reinforce_with_kl")
    prompt = source.split('""" # END PROMPT')[0].removeprefix('""" # BEGIN PROMPT\n')
    assert prompt.strip() == notebook_source(task.broken_source, False).replace('"""', "'''")
    space = {"torch": __import__("torch")}
    exec(source, space)
    assert task.grade(space[task.name]).passed


def run(folder, *words):
    """A command of a tool."""
    done = subprocess.run([sys.executable, "-m", *map(str, words)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def tool(name):
    reason = f"{name} is not installed: pip install -c constraints.txt -e '.[grading]'"
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=reason)


@pytest.fixture
def tools_on_path(monkeypatch):
    """The tools find their own programs, and the kernels find the package."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)


@pytest.mark.slow
@tool("nbgrader")
def test_nbgrader_gives_a_solved_submission_all_points_and_a_wrong_one_fewer(tmp_path, tools_on_path):
    (tmp_path / "source" / "ps").mkdir(parents=True)
    nbformat.write(assignment(small(), "small.ipynb", "nbgrader"), tmp_path / "source" / "ps" / "small.ipynb")
    run(tmp_path, "nbgrader", "generate_assignment", "ps", "--course-dir", tmp_path, "--create")
    release = nbformat.read(tmp_path / "release" / "ps" / "small.ipynb", as_version=4)
    code = "\n".join(cell.source for cell in release.cells if cell.cell_type == "code")
    assert "logsigmoid" not in code and BEGIN not in code and "beta * k1.mean()" in code
    submissions = {"solved": list(GRADED), "partly": ["nb05.dpo_loss"]}
    for student, keys in submissions.items():
        place = tmp_path / "submitted" / student / "ps"
        place.mkdir(parents=True)
        nbformat.write(solved(release, keys), place / "small.ipynb")
    # The defaults of 30 s for a cell and 4 s for its output are too short for `import torch` on a busy machine.
    patient = ("--Execute.timeout=600", "--Execute.iopub_timeout=120")
    run(tmp_path, "nbgrader", "autograde", "ps", "--course-dir", tmp_path, "--create", *patient)
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{tmp_path}/gradebook.db") as book:
        found = {student: book.find_submission("ps", student) for student in submissions}
        scores = {student: (one.score, one.max_score) for student, one in found.items()}
    total = sum(GRADED.values())
    assert scores == {"solved": (total, total), "partly": (1, total)}


@pytest.mark.slow
@tool("otter")
def test_otter_gives_a_solved_submission_all_points_and_a_wrong_one_fewer(tmp_path, tools_on_path):
    nbformat.write(assignment(small(), "small.ipynb", "otter"), tmp_path / "small.ipynb")
    # `otter assign` itself runs the tests on the solved notebook, and fails if they do not pass.
    run(tmp_path, "otter", "assign", "small.ipynb", "dist", "--no-pdfs")
    release = nbformat.read(tmp_path / "dist" / "student" / "small.ipynb", as_version=4)
    code = "\n".join(cell.source for cell in release.cells if cell.cell_type == "code")
    assert "logsigmoid" not in code and "BEGIN SOLUTION" not in code and "beta * k1.mean()" in code
    [autograder] = (tmp_path / "dist" / "autograder").glob("*.zip")
    scores = {}
    for student, keys in {"solved": list(GRADED), "partly": ["nb05.dpo_loss"]}.items():
        place = tmp_path / student
        place.mkdir()
        nbformat.write(solved(release, keys), place / "small.ipynb")
        run(place, "otter", "run", "small.ipynb", "-a", autograder, "-o", place, "--no-logo")
        results = json.loads((place / "results.json").read_text())
        graded = [one for one in results["tests"] if one.get("max_score")]
        scores[student] = sum(one["score"] for one in graded), sum(one["max_score"] for one in graded)
        shutil.rmtree(place)
    total = sum(GRADED.values())
    assert scores == {"solved": (total, total), "partly": (1, total)}
