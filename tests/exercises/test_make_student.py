"""Students' notebooks: solutions out, everything else untouched, and broken markers refused."""

import importlib.util
from pathlib import Path

import nbformat
import pytest

from rlhf_lab.errors import LabError
from rlhf_lab.exercises.student_notebooks import student_version, without_solution

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "make_student.py"
spec = importlib.util.spec_from_file_location("make_student", SCRIPT)
make_student = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_student)

CELL = '''def kl(log_p, log_q):
    """KL(p‖q)."""
    ### BEGIN SOLUTION
    ratio = log_p - log_q
    return (log_p.exp() * ratio).sum(-1)
    ### END SOLUTION'''

STUDENT = '''def kl(log_p, log_q):
    """KL(p‖q)."""
    raise NotImplementedError("your code here")'''


def test_what_stands_between_the_markers_becomes_one_line_at_their_indentation():
    assert without_solution(CELL, "cell") == STUDENT


def test_two_solutions_in_a_cell_and_a_cell_without_one():
    assert without_solution(CELL + "\n\n" + CELL, "cell") == STUDENT + "\n\n" + STUDENT
    assert without_solution("x = 1\n\ny = 2", "cell") == "x = 1\n\ny = 2"


@pytest.mark.parametrize(
    "source",
    [
        CELL.replace("    ### END SOLUTION", ""),
        CELL.replace("    ### BEGIN SOLUTION\n", ""),
        CELL.replace("    ### END SOLUTION", "    ### BEGIN SOLUTION"),
        CELL.replace("### BEGIN SOLUTION", "# begin solution"),
    ],
)
def test_markers_that_do_not_come_in_pairs_are_refused_by_name(source):
    """A solution that is not cut out would be handed to students."""
    with pytest.raises(LabError, match="cell seven"):
        without_solution(source, "cell seven")


def notebook(tmp_path, source=CELL):
    made = nbformat.v4.new_notebook()
    run = nbformat.v4.new_code_cell(source, id="answer", execution_count=3)
    run.outputs = [nbformat.v4.new_output("stream", text="secret")]
    run.metadata["tags"] = ["kept"]
    made.cells = [nbformat.v4.new_markdown_cell("<details>the folded solution</details>", id="folded"), run]
    path = tmp_path / "07_x.ipynb"
    nbformat.write(made, path)
    return path


def test_the_command_clears_outputs_keeps_folded_solutions_and_writes_the_same_bytes_twice(tmp_path, capsys):
    path, out = notebook(tmp_path), tmp_path / "out"
    before = path.read_bytes()
    make_student.main([str(path), "--out", str(out)])
    assert capsys.readouterr().out == "07_x.ipynb: 1 to write\n"
    written = nbformat.read(out / path.name, as_version=4)
    assert [cell.source for cell in written.cells] == ["<details>the folded solution</details>", STUDENT]
    answer = written.cells[1]
    assert answer.outputs == [] and answer.execution_count is None and answer.metadata["tags"] == ["kept"]
    first = (out / path.name).read_bytes()
    make_student.main([str(path), "--out", str(out)])
    assert (out / path.name).read_bytes() == first and path.read_bytes() == before


def test_a_mark_for_the_linter_is_left_out():
    cell = nbformat.v4.new_code_cell("from x import check, hint  # noqa: F401\nlines = 3  # noqa is a word here")
    student = student_version(nbformat.v4.new_notebook(cells=[cell]), "x")
    assert student.cells[0].source == "from x import check, hint\nlines = 3  # noqa is a word here"


def test_the_command_writes_nothing_when_one_notebook_is_broken(tmp_path):
    path = notebook(tmp_path, CELL.replace("### END", "### AND"))
    with pytest.raises(SystemExit, match=r"^07_x\.ipynb, cell answer:"):
        make_student.main([str(path), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_students_cell_is_told_that_it_is_not_written_yet():
    """The stub and `check` agree, so a student's notebook runs from top to bottom."""
    from rlhf_lab.exercises import check

    scope = {}
    exec(STUDENT, scope)
    assert "not written yet" in repr(check("nb02.kl", scope["kl"]))
