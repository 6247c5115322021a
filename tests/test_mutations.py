"""`tools/mutation_run.py` is not stale: every bug it plants still fits the code, and the page tells of these bugs."""

import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import mutation_run  # noqa: E402
from mutation_run import MUTATIONS, SURVIVED, Run, Stale, Unfit, mutated  # noqa: E402

sys.path.remove(str(ROOT / "tools"))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: f"{m.file}: {m.what}")
def test_a_mutation_s_text_stands_once_in_its_file_and_leaves_python_behind(mutation) -> None:
    text = (ROOT / "rlhf_lab" / mutation.file).read_text(encoding="utf-8")
    changed = mutated(text, mutation)
    assert changed != text
    compile(changed, mutation.file, "exec")
    assert [name for name in mutation.tests if not (ROOT / "tests" / name).is_file()] == []


def test_there_are_bugs_of_every_kind_in_every_room_of_the_mathematics() -> None:
    """At least 25 places, in `exact`, `losses`, `kl`, `sampling` and `policies`; no bug twice."""
    assert len({(m.file, m.old) for m in MUTATIONS}) >= 25
    assert {re.split(r"[/.]", m.file)[0] for m in MUTATIONS} == {"exact", "losses", "kl", "sampling", "policies"}
    assert min(Counter(m.kind for m in MUTATIONS).values()) >= 3
    assert set(Counter(m.kind for m in MUTATIONS)) == {"sign", "swap", "beta", "mean", "mask", "norm"}
    assert set(Counter((m.file, m.old, m.new) for m in MUTATIONS).values()) == {1}


@pytest.mark.parametrize("times", [0, 2])
def test_a_stale_mutation_is_refused_by_file_and_words(times: int) -> None:
    mutation = replace(MUTATIONS[0], old="a + b", new="a - b", what="a test's own")
    with pytest.raises(Stale, match=rf"{mutation.file}.*a test's own.*occurs {times} times"):
        mutated("a + b\n" * times, mutation)


@pytest.fixture
def small_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of one function and two tests, one of which notices."""
    root = tmp_path / "project"
    for folder in ("rlhf_lab", "tests"):
        (root / folder).mkdir(parents=True)
    (root / "rlhf_lab" / "__init__.py").write_text("")
    (root / "rlhf_lab" / "sums.py").write_text("def total(a, b):\n    return a + b\n")
    (root / "tests" / "conftest.py").write_text("")
    (root / "tests" / "test_blind.py").write_text(
        "from rlhf_lab.sums import total\n\ndef test_zero():\n    assert total(0, 0) == 0\n"
    )
    (root / "tests" / "test_sums.py").write_text(
        "from rlhf_lab.sums import total\n\ndef test_five():\n    assert total(2, 3) == 5\n"
    )
    monkeypatch.syspath_prepend(str(ROOT / "tools"))  # the process that runs the tests looks there for the tool
    monkeypatch.setattr(mutation_run, "REPO", root)
    monkeypatch.setattr(mutation_run, "PRELOAD", [])
    monkeypatch.setattr(mutation_run, "NO_SHRINKING", "")
    return root


def test_a_bug_is_caught_by_the_test_that_fails_survives_blind_ones_and_leaves_the_project_alone(
    small_project: Path, tmp_path: Path
) -> None:
    """Planted in the copy, asked of the near file, then of the rest; the original is not written to."""
    before = {path: path.read_text() for path in small_project.rglob("*.py")}
    bug = mutation_run.Mutation("sums.py", "sign", "minus", "a + b", "a - b", ("test_blind.py",))
    (tmp_path / "work").mkdir()
    run = Run(tmp_path / "work", limit=300)
    assert run.ask(bug, "near") == SURVIVED
    assert run.ask(bug, "rest") == "tests/test_sums.py::test_five"
    run.confirm({"tests/test_sums.py::test_five"})
    assert {path: path.read_text() for path in small_project.rglob("*.py")} == before
    assert (run.copy / "rlhf_lab" / "sums.py").read_text() == before[small_project / "rlhf_lab" / "sums.py"]
    # A test that fails anyway has caught nothing.
    (run.copy / "tests" / "test_sums.py").write_text("def test_five():\n    assert False\n")
    with pytest.raises(Unfit, match="test_five fails without any bug"):
        run.confirm({"tests/test_sums.py::test_five"})


def test_the_page_tells_of_exactly_these_bugs_and_of_no_survivor_without_a_reason() -> None:
    page = (ROOT / "docs" / "mutations.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| (.+?) \| (.+) \|$", page, re.M)
    told = [(kind, what) for kind, what, _ in rows if kind != "kind"]
    assert told == [(m.kind, m.what) for m in MUTATIONS]
    assert "unexplained" not in page
