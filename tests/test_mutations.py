"""`tools/mutation_run.py` is not stale: every bug it plants still fits the code, and the page tells of these bugs."""

import json
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import mutation_run  # noqa: E402
from mutation_run import KINDS, MUTATIONS, SURVIVED, TABLES, Run, Stale, Unfit, mutated  # noqa: E402

sys.path.remove(str(ROOT / "tools"))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: f"{m.file}: {m.what}")
def test_a_mutation_s_text_stands_once_in_its_file_and_leaves_python_behind(mutation) -> None:
    text = (ROOT / "rlhf_lab" / mutation.file).read_text(encoding="utf-8")
    changed = mutated(text, mutation)
    assert changed != text
    compile(changed, mutation.file, "exec")
    assert mutation.tests
    assert [name for name in mutation.tests if not (ROOT / "tests" / name).is_file()] == []
    if mutation.near:
        file, _, test = mutation.near.partition("::")
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")


def test_there_are_bugs_of_every_kind_and_each_stands_in_the_table_of_its_subpackage() -> None:
    """A table is named after the subpackage; `mathematics` has the modules below all others."""
    rooms = dict.fromkeys(
        ["exact", "bradley_terry", "losses", "kl", "sampling", "preferences", "batch", "response_tree", "rounding"],
        "mathematics",
    )
    rooms["label_budget"] = rooms["intervals"] = "experiments"
    for table, mutations in TABLES.items():
        assert {rooms.get(room := re.split(r"[/.]", m.file)[0], room) for m in mutations} <= {table}
    assert set(Counter(m.kind for m in MUTATIONS)) <= set(KINDS)
    assert min(Counter(m.kind for m in MUTATIONS).values()) >= 3
    assert set(Counter((m.file, m.old, m.new) for m in MUTATIONS).values()) == {1}
    assert set(Counter((m.file, m.what) for m in MUTATIONS).values()) == {1}


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
    bug = mutation_run.Mutation("sign", "minus", "a + b", "a - b", file="sums.py", tests=("test_blind.py",))
    (tmp_path / "work").mkdir()
    run = Run(tmp_path / "work", limit=300)
    assert run.ask(bug, "near") == SURVIVED
    assert run.ask(bug, "rest") == "tests/test_sums.py::test_five"
    run.confirm({"tests/test_sums.py::test_five"})
    assert {path: path.read_text() for path in small_project.rglob("*.py")} == before
    assert (run.copy / "rlhf_lab" / "sums.py").read_text() == before[small_project / "rlhf_lab" / "sums.py"]
    # The named test is asked before the files, and the files still are if it passes.
    named = replace(bug, near="test_sums.py::test_five")
    assert run.ask(named, "near") == "tests/test_sums.py::test_five"
    sure = replace(bug, near="test_blind.py::test_zero")
    assert run.ask(sure, "near") == SURVIVED
    assert run.ask(sure, "rest") == "tests/test_sums.py::test_five"
    # A test that fails anyway has caught nothing.
    (run.copy / "tests" / "test_sums.py").write_text("def test_five():\n    assert False\n")
    with pytest.raises(Unfit, match="test_five fails without any bug"):
        run.confirm({"tests/test_sums.py::test_five"})


def test_the_page_tells_of_exactly_these_bugs_and_of_no_survivor_without_a_reason() -> None:
    """Every bug has been run, and the run has ended: what its row names is a test, or the survivor's reason."""
    page = (ROOT / "docs" / "mutations.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| (.+?) \| (.+) \|$", page, re.M)
    assert [row[:2] for row in rows if row[0] in KINDS] == [(m.kind, m.what) for m in MUTATIONS]
    results = mutation_run.reported(page)
    assert [m.what for m in MUTATIONS if (m.file, m.what) not in results] == [], "not run yet"
    survivors = [m for m in MUTATIONS if results[m.file, m.what] == SURVIVED]
    assert [m.what for m in survivors if not m.excuse] == [], "survive, and no reason is given"
    # Not "no end within 1200 s", for example, which says nothing about any test.
    caught = [result for result in results.values() if result != SURVIVED]
    assert [result for result in caught if not re.fullmatch(r"tests/[\w/]+\.py(::[\w:]+)?", result)] == []


def test_each_test_that_the_page_names_exists() -> None:
    """A test that was renamed or removed since a bug was run may no longer detect it, so the bug is run again."""
    results = mutation_run.reported((ROOT / "docs" / "mutations.md").read_text(encoding="utf-8"))
    gone = []
    for result in sorted(set(results.values()) - {SURVIVED}):
        file, *names = result.split("::")
        text = (ROOT / file).read_text(encoding="utf-8") if (ROOT / file).is_file() else ""
        if not text or not all(re.search(rf"(?:def|class) {name}\b", text) for name in names):
            gone.append(result)
    assert gone == []


def test_a_page_holds_the_results_that_it_was_written_from_and_counts_them_by_subpackage() -> None:
    """Every third bug survives and the last has not been run: `reported` reads from the page what `report` wrote, and
    the top table adds up."""
    results = {
        mutation_run.key(m): f"tests/{m.tests[0]}::test_x" if i % 3 else SURVIVED for i, m in enumerate(MUTATIONS)
    }
    run = MUTATIONS[:-1]
    results = {mutation_run.key(m): results[mutation_run.key(m)] for m in run}
    page = mutation_run.report(results, "near")
    assert mutation_run.reported(page) == {(m.file, m.what): results[mutation_run.key(m)] for m in run}
    table = re.findall(r"^\| \W*(\w+)\W* \| (\d+) \| (\d+) \(\d+%\) \| (\d+) \| (\d+) \| (\d+) \|$", page, re.M)
    counts = {name: [int(n) for n in numbers] for name, *numbers in table}
    assert {name: all_[0] for name, all_ in counts.items()} == {
        **{name: len(bugs) for name, bugs in TABLES.items() if bugs},
        "all": len(MUTATIONS),
    }
    survive = len(range(0, len(run), 3))
    assert counts["all"][1] == len(run) - survive
    assert sum(counts["all"][2:4]) == survive and counts["all"][4] == 1
    assert all(n == sum(rest) for n, *rest in counts.values())


def test_two_workers_give_the_same_results_and_the_journal_keeps_them(
    small_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two bugs in one file: each worker has a copy of its own, so neither sees the other's bug."""
    monkeypatch.setattr(mutation_run, "JOURNAL", tmp_path / "journal" / "mutations.json")
    minus = mutation_run.Mutation("sign", "minus", "a + b", "a - b", file="sums.py", tests=("test_sums.py",))
    same = replace(minus, what="b + a", new="b + a")
    runs = [Run(tmp_path / name, limit=300) for name in ("one", "two")]
    known: dict[str, str] = {}
    mutation_run.run_all([minus, same], known, runs, "near")
    assert known == {mutation_run.key(minus): "tests/test_sums.py::test_five", mutation_run.key(same): SURVIVED}
    assert json.loads(mutation_run.JOURNAL.read_text()) == known


def test_a_bug_is_first_shown_to_the_test_that_detected_it_last_time_unless_it_names_one() -> None:
    bug = mutation_run.Mutation("sign", "minus", "a + b", "a - b", file="sums.py", tests=("test_sums.py",))
    named, place = replace(bug, near="test_sums.py::test_ten"), ("sums.py", "minus")
    page = {place: "tests/other/test_far.py::test_five"}
    assert mutation_run.with_last_test(bug, page).near == "other/test_far.py::test_five"
    assert mutation_run.with_last_test(named, page) == named
    for without in ({}, {place: SURVIVED}, {place: "no end within 9 s"}):
        assert mutation_run.with_last_test(bug, without) == bug
