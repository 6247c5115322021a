"""Every exercise of every notebook: its solution passes, its classic mistakes are each told apart, and the notebook
and the file say the same.
"""

import re
from pathlib import Path

import nbformat
import pytest

from rlhf_lab.exercises import check, notebooks, of_notebook, solution
from rlhf_lab.exercises.notebook_cells import notebook_source


def implemented(number):
    """The exercises of a notebook in which a function is written; test_ladder.py tests the other kinds."""
    return [one for one in of_notebook(number) if one.kind == "implement"]


EXERCISES = [one for number in notebooks() for one in implemented(number)]
ROOT = Path(__file__).resolve().parents[2]
STORED = sorted((ROOT / "notebooks").glob("*.ipynb"))
each = pytest.mark.parametrize("one", EXERCISES, ids=lambda one: one.key)


@each
def test_the_solution_passes(one):
    feedback = check(one.key, one.solution)
    assert feedback.passed, feedback


@each
def test_each_classic_mistake_gets_its_own_message(one):
    """At least three, told apart from each other: the message that is shown is that of the mistake that was made."""
    assert len(one.mistakes) >= 3
    messages = [mistake.message for mistake in one.mistakes]
    assert len(set(messages)) == len({mistake.name for mistake in one.mistakes}) == len(one.mistakes)
    for mistake in one.mistakes:
        feedback = check(one.key, mistake.function)
        assert not feedback.passed
        assert feedback.mistake == mistake.name and mistake.message in repr(feedback), feedback
        assert "expected" in repr(feedback) or "no gradient" in repr(feedback) or one.grader, feedback


@each
def test_it_is_complete_and_tells_no_more_than_it_should(one):
    assert re.fullmatch(r"nb\d\d\.[a-z0-9_]+", one.key) and one.key.split(".")[1] == one.name
    assert one.title and one.objective and 1 <= one.minutes <= 30 and one.difficulty in (1, 2, 3)
    assert len(one.hints) >= 2 and len({case.name for case in one.cases}) == len(one.cases)
    assert one.solution.__doc__, "a student reads what the function is to give"
    assert f"def {one.name}(" in solution(one.key)._repr_markdown_()
    # Deterministic: a stored notebook is compared with a new run.
    assert repr(check(one.key, one.mistakes[0].function)) == repr(check(one.key, one.mistakes[0].function))


@pytest.mark.parametrize("number", notebooks())
def test_a_notebook_has_at_least_three_but_for_the_first_one_and_their_keys_are_its_own(number):
    exercises = implemented(number)
    assert len(exercises) >= (1 if number == "nb00" else 3) and len({one.key for one in exercises}) == len(exercises)
    assert all(one.key.startswith(f"{number}.") for one in exercises)


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_a_notebook_and_its_exercises_say_the_same(path):
    """Heading, markers, the call of `check`, a folded solution, for each exercise; and no exercise without a file."""
    number = f"nb{path.stem[:2]}"
    notebook = nbformat.read(path, as_version=4)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    called = re.findall(r'^(?:check|reveal)\("(nb\d\d\.\w+)"', "\n".join(code), re.M)
    for one in implemented(number):
        assert re.search(rf"^#{{2,4}} Exercise \d+[:.] {re.escape(one.heading)}$", prose, re.M), one.heading
        written = [source for source in code if re.search(rf"^def {one.name}\(", source, re.M)]
        assert len(written) == 1, one.name
        assert "### BEGIN SOLUTION" in written[0] and "### END SOLUTION" in written[0]
        assert f'check("{one.key}", {one.name})' in "\n".join(code)
    # An asterisk without a backslash would end the italics.
    assert re.findall(r"^\*You will be able to .*(?<!\\)\*.+\*$", prose, re.M) == []
    keys = {one.key: one for one in of_notebook(number)}
    assert len(set(called)) == len(called) and set(called) <= set(keys)
    assert {one.key for one in implemented(number)} <= set(called)
    assert prose.count("<details>") >= sum(keys[key].kind != "predict" for key in called)
    for one in (keys[key] for key in called if keys[key].kind != "implement"):
        assert_the_cells_of_the_ladder(one, code, prose)
    imported = re.findall(r"^from rlhf_lab\.exercises import ([\w, ]+?) *(?:#|$)", "\n".join(code), re.M)
    assert {"check", "hint", "solution"} <= set(", ".join(imported).split(", ")), "the text offers all three"


def assert_the_cells_of_the_ladder(one, code, prose):
    """Heading, statement and code of an exercise that `tools/add_exercise.py` inserts."""
    assert re.search(rf"^#{{2,4}} Exercise \d+[:.] {re.escape(one.heading)}$", prose, re.M), one.heading
    if one.kind in ("predict", "derive"):
        assert one.statement in prose, f"the text of {one.key} is that of its data"
    if one.kind == "predict":
        calls = [source for source in code if source.startswith(f'predict("{one.key}", ')]
        assert len(calls) == 1 and "\n" not in calls[0], "one line, so that the student's version hides the answer"
        return
    written = [source for source in code if re.search(rf"^def {one.name}\(", source, re.M)]
    assert len(written) == 1, one.name
    if one.kind == "debug":
        assert notebook_source(one.broken_source, False) in written[0]
    else:
        assert "### BEGIN SOLUTION" in written[0] and "### END SOLUTION" in written[0]
    assert notebook_source(one.source, False) in prose, "the folded solution"


KINDS = ("predict", "derive", "implement", "training loop", "debug")


@pytest.mark.parametrize("number", notebooks())
def test_a_notebook_has_exercises_of_all_kinds_and_contains_all_that_its_module_defines(number):
    [path] = [path for path in STORED if path.stem.startswith(f"{number[2:]}_")]
    code = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    called = set(re.findall(r'^(?:check|reveal)\("(nb\d\d\.\w+)"', code, re.M))
    assert called == {one.key for one in of_notebook(number)}
    assert {one.kind for one in of_notebook(number)} == set(KINDS)
