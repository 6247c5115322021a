"""`rlhf-lab course`: what it writes, what it replaces after an upgrade, and what it never touches."""

import json
import re
from pathlib import Path

import nbformat
import pytest

from rlhf_lab import shipped
from rlhf_lab.cli import course
from rlhf_lab.cli.main import main
from rlhf_lab.errors import LabError
from rlhf_lab.exercises import records
from rlhf_lab.exercises.student_notebooks import BEGIN, STUB

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
SOURCE = "def f(x):\n    ### BEGIN SOLUTION\n    return x\n    ### END SOLUTION"


def ship(folder, source=SOURCE, names=("00_start.ipynb", "01_next.ipynb")):
    """Two small notebooks and a configuration, as a version of the lab would ship them."""
    for name in names:
        cell = nbformat.v4.new_code_cell(source, id="answer", execution_count=1)
        cell.outputs = [nbformat.v4.new_output("stream", text="an output")]
        made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("Read.", id="text"), cell])
        (folder / "notebooks").mkdir(parents=True, exist_ok=True)
        nbformat.write(made, folder / "notebooks" / name)
    (folder / "configs").mkdir(exist_ok=True)
    (folder / "configs" / "ddp.yaml").write_text("num_processes: 2\n")


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The folder from which the lab ships, with two small notebooks."""
    ship(tmp_path / "lab")
    monkeypatch.setattr(shipped, "path", lambda name: tmp_path / "lab" / name)
    return tmp_path / "lab"


def run(capsys, *words):
    code = main(["course", *map(str, words)])
    said = capsys.readouterr()
    return code, said.out + said.err


def code(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_students_get_every_notebook_without_solutions_and_outputs(tmp_path, capsys):
    status, said = run(capsys, tmp_path / "course")
    assert status == 0 and f"jupyter lab {tmp_path / 'course' / '00_start_here.ipynb'}" in said
    written = sorted((tmp_path / "course").glob("*.ipynb"))
    assert [path.name for path in written] == [path.name for path in NOTEBOOKS]
    for mine, theirs in zip(written, NOTEBOOKS, strict=True):
        cells, full = code(mine), code(theirs)
        assert len(cells) == len(full) and all(cell.outputs == [] for cell in cells)
        assert sum(cell.source.count(STUB) for cell in cells) == sum(cell.source.count(BEGIN) for cell in full)
    assert sum(BEGIN in path.read_text(encoding="utf-8") for path in written) == 0
    configs = shipped.path("configs")
    assert (tmp_path / "course/configs/fsdp.yaml").read_bytes() == (configs / "fsdp.yaml").read_bytes()


def test_with_solutions_the_stored_notebooks_are_written_byte_for_byte(tmp_path, capsys):
    assert run(capsys, tmp_path / "course", "--solutions")[0] == 0
    for path in NOTEBOOKS:
        assert (tmp_path / "course" / path.name).read_bytes() == path.read_bytes()


def test_with_a_grader_the_notebooks_are_written_as_assignments(tmp_path, capsys):
    status, said = run(capsys, tmp_path / "nbgrader", "--grader", "nbgrader")
    assert status == 0 and "assignments for nbgrader" in said and "nbgrader generate_assignment 05_dpo" in said
    written = sorted((tmp_path / "nbgrader" / "source").glob("*/*.ipynb"))
    assert [path.name for path in written] == [path.name for path in NOTEBOOKS]
    assert all(path.parent.name == path.stem and '"grade_id"' in path.read_text(encoding="utf-8") for path in written)
    assert "otter assign" in run(capsys, tmp_path / "otter", "--grader", "otter")[1]
    assert "# BEGIN QUESTION" in (tmp_path / "otter" / "05_dpo.ipynb").read_text(encoding="utf-8")


def test_a_second_call_writes_nothing(small, tmp_path, capsys):
    run(capsys, tmp_path / "course")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "course").rglob("*")}
    assert "0 files written, 3 already there" in run(capsys, tmp_path / "course")[1]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "course").rglob("*")} == before


@pytest.mark.parametrize("list_lost", [False, True])
def test_after_an_upgrade_unchanged_files_are_replaced_and_new_versions_come_beside_changed_ones(
    small, tmp_path, capsys, list_lost
):
    """Without the list of what was written, only a file that equals the new version is known to be unchanged."""
    out = tmp_path / "course"
    run(capsys, out)
    mine, old = out / "00_start.ipynb", (out / "01_next.ipynb").read_text()
    mine.write_text(mine.read_text().replace(json.dumps(STUB)[1:-1], "return 2 * x"))
    answer = mine.read_bytes()
    assert b"2 * x" in answer
    assert "0 files written, 2 already there" in run(capsys, out)[1] and not (out / "00_start.new.ipynb").exists()
    if list_lost:
        (out / course.COURSE_FILE).unlink()
    ship(small, "y = 1\n" + SOURCE)
    said = run(capsys, out)[1]
    assert mine.read_bytes() == answer
    assert code(out / "00_start.new.ipynb")[0].source.startswith("y = 1\ndef f(x)")
    if list_lost:
        assert (out / "01_next.ipynb").read_text() == old
        assert "Kept, because they were changed: 00_start.ipynb, 01_next.ipynb." in said
        assert "beside them: 00_start.new.ipynb, 01_next.new.ipynb." in said
    else:
        assert code(out / "01_next.ipynb")[0].source.startswith("y = 1\ndef f(x)")
        assert "1 file written, 1 already there" in said and "changed: 00_start.ipynb." in said
        assert "beside them: 00_start.new.ipynb." in said
    before = {path: path.read_bytes() for path in out.rglob("*.ipynb")}
    said = run(capsys, out)[1]
    assert "beside" not in said and "left alone" not in said
    assert {path: path.read_bytes() for path in out.rglob("*.ipynb")} == before


def test_a_new_version_that_was_worked_on_is_kept_too(small, tmp_path, capsys):
    """Two upgrades: the second new version replaces the first if that is untouched, and otherwise takes a free name."""
    out = tmp_path / "course"
    run(capsys, out)
    mine, new = out / "00_start.ipynb", out / "00_start.new.ipynb"
    mine.write_text("my work")
    for number in ("two", "three"):
        ship(small, f"{number} = 1")
        run(capsys, out)
        assert code(new)[0].source == f"{number} = 1"
    new.write_text("my work on the new version")
    ship(small, "four = 1")
    assert "beside them: 00_start.new-2.ipynb." in run(capsys, out)[1]
    assert code(out / "00_start.new-2.ipynb")[0].source == "four = 1"
    assert (mine.read_text(), new.read_text()) == ("my work", "my work on the new version")
    assert "00_start.solutions.ipynb" in run(capsys, out, "--solutions")[1]
    assert code(out / "00_start.solutions.ipynb")[0].outputs and mine.read_text() == "my work"


def test_a_new_version_that_could_not_be_written_comes_with_the_next_call(small, tmp_path, capsys, monkeypatch):
    out = tmp_path / "course"
    run(capsys, out)
    (out / "00_start.ipynb").write_text("my work")
    ship(small, "new = 1")
    whole = course.write_text

    def full_disk(path, text):
        if ".new" in path.name:
            raise LabError(f"{path} cannot be written (No space left on device).")
        whole(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(course, "write_text", full_disk)
        assert run(capsys, out)[0] == 2
    assert "beside them: 00_start.new.ipynb." in run(capsys, out)[1]
    assert code(out / "00_start.new.ipynb")[0].source == "new = 1"


def test_progress_is_printed_for_a_students_folder_and_refused_for_another(small, tmp_path, capsys, monkeypatch):
    out = tmp_path / "course"
    run(capsys, out)
    assert main(["progress", str(out)]) == 0
    said = capsys.readouterr().out
    assert "Nothing has been checked" in said and re.search(r"^nb05 .* 0 of \d+$", said, re.M)
    monkeypatch.setattr(records, "_in_memory", [])
    monkeypatch.chdir(out)
    from rlhf_lab.exercises import check, exercise

    check("nb05.dpo_loss", exercise("nb05.dpo_loss").solution)
    monkeypatch.chdir(tmp_path)
    assert main(["progress", str(out)]) == 0
    said = capsys.readouterr().out
    assert "Nothing has been checked" not in said and re.search(r"^nb05 .* 1 of \d+$", said, re.M)
    assert main(["progress", str(tmp_path)]) == 2
    assert "has not been made by `rlhf-lab course`" in capsys.readouterr().err


def test_any_version_that_was_written_counts_as_unchanged_also_after_two_upgrades(small, tmp_path, capsys):
    out = tmp_path / "course"
    run(capsys, out)
    first = (out / "00_start.ipynb").read_bytes()
    for new in ("two = 2", "three = 3"):
        ship(small, new)
        run(capsys, out)
        (out / "00_start.ipynb").write_bytes(first)  # from a backup
    assert "1 file written" in run(capsys, out)[1] and code(out / "00_start.ipynb")[0].source == "three = 3"


def test_students_versions_become_full_ones_and_a_changed_line_end_is_no_change(small, tmp_path, capsys):
    out = tmp_path / "course"
    run(capsys, out)
    (out / "01_next.ipynb").write_bytes((out / "01_next.ipynb").read_bytes().replace(b"\n", b"\r\n"))
    assert "2 files written, 1 already there" in run(capsys, out, "--solutions")[1]
    assert BEGIN in code(out / "01_next.ipynb")[0].source


def test_a_command_that_was_stopped_between_two_files_is_gone_on_with(small, tmp_path, capsys, monkeypatch):
    """Stopped at the second file of an upgrade: neither the old one nor the new one is taken for the student's."""
    out = tmp_path / "course"
    run(capsys, out)
    ship(small, "new = 1")
    whole, calls = course.write_text, []

    def full_disk(path, text):
        calls.append(path)
        if len(calls) == 2:
            raise LabError(f"{path} cannot be written (No space left on device).")
        whole(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(course, "write_text", full_disk)
        status, said = run(capsys, out)
    assert status == 2 and "01_next.ipynb cannot be written" in said
    assert "1 file written, 2 already there" in run(capsys, out)[1]
    assert [code(path)[0].source for path in sorted(out.glob("*.ipynb"))] == ["new = 1", "new = 1"]
    ship(small, "newer = 1")
    assert "2 files written, 1 already there" in run(capsys, out)[1]


def test_what_is_no_file_of_the_command_is_kept(small, tmp_path, capsys):
    """A folder, a symbolic link, a picture under a notebook's name, and a damaged list of what was written."""
    out = tmp_path / "course"
    (out / "00_start.ipynb").mkdir(parents=True)
    (tmp_path / "elsewhere").write_text("mine")
    (out / "01_next.ipynb").symlink_to(tmp_path / "elsewhere")
    (out / "configs").mkdir()
    (out / "configs" / "ddp.yaml").write_bytes(b"\xff\xd8")
    for damage in ("{", "[]", '{"files": []}', '{"files": {"00_start.ipynb": 3}}'):
        (out / course.COURSE_FILE).write_text(damage)
        said = run(capsys, out)[1]
        assert "0 files written" in said and "changed: 00_start.ipynb, 01_next.ipynb, configs/ddp.yaml." in said
    assert (tmp_path / "elsewhere").read_text() == "mine" and (out / "configs" / "ddp.yaml").read_bytes() == b"\xff\xd8"


def test_a_notebook_that_is_no_longer_shipped_is_left_and_named(small, tmp_path, capsys):
    out = tmp_path / "course"
    run(capsys, out)
    (small / "notebooks" / "01_next.ipynb").rename(small / "notebooks" / "02_next.ipynb")
    assert "left alone: 01_next.ipynb" in run(capsys, out)[1]
    assert (out / "01_next.ipynb").is_file() and (out / "02_next.ipynb").is_file()


def test_folders_that_cannot_be_used_are_refused_before_anything_is_written(small, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    for place, words in (
        (file, "is a file"),
        (file / "below", "cannot be created as a folder"),
        (small / "notebooks", "contains the original notebooks"),
        (small, "contains the original notebooks"),
    ):
        before = sorted(tmp_path.rglob("*"))
        status, said = run(capsys, place)
        assert status == 2 and words in said and len(said.splitlines()) == 1
        assert sorted(tmp_path.rglob("*")) == before


def test_install_from_puts_a_cell_that_installs_where_the_package_is_missing(small, tmp_path, capsys, monkeypatch):
    """The cell is run twice by IPython's own rules: with the package, and as if there were none."""
    from IPython.core.inputtransformer2 import TransformerManager

    run(capsys, tmp_path / "course", "--install-from", "rlhf_lab-1.0-py3-none-any.whl")
    first = code(tmp_path / "course" / "00_start.ipynb")[0]
    assert first.source == course.INSTALL.format(source="rlhf_lab-1.0-py3-none-any.whl")
    calls = []

    class Shell:
        def run_line_magic(self, name, line):
            calls.append((name, line))

    program = TransformerManager().transform_cell(first.source)
    exec(program, {"get_ipython": Shell})
    assert calls == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    exec(program, {"get_ipython": Shell})
    assert calls == [("pip", "install -q rlhf_lab-1.0-py3-none-any.whl")]


@pytest.mark.parametrize("source", ["a b", "x; rm y", "$(x)", "`x`", "a'b", "a\nb", "", "x && y", "x|y", "x>y"])
def test_what_a_shell_would_read_as_more_than_a_name_is_refused(source):
    with pytest.raises(LabError, match="--install-from"):
        course.Course(Path("x"), install_from=source)


def test_the_manifest_names_every_file_and_the_version(small, tmp_path, capsys):
    import rlhf_lab

    run(capsys, tmp_path / "course")
    record = json.loads((tmp_path / "course" / course.COURSE_FILE).read_text())
    assert record["rlhf_lab"] == rlhf_lab.__version__
    assert sorted(record["files"]) == ["00_start.ipynb", "01_next.ipynb", "configs/ddp.yaml"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_links_to_notebooks_and_the_web_alone(path):
    """`course` writes notebooks without the rest of the checkout, so a link to `../docs/…` would lead nowhere."""
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=[\"']([^\"']+)", text)
    names = {notebook.name for notebook in NOTEBOOKS}
    targets = [(one or other).split("#")[0] for one, other in links]
    assert [link for link in targets if link and "://" not in link and link not in names] == []
