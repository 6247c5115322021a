"""`make portability`: which settings, which command, and an exit status that tells of a failure under any of them."""

import importlib.util
import subprocess
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[1] / "tools" / "portability.py"


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location("portability", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_x86_gets_two_instruction_sets_and_two_threads_and_arm_what_it_can_vary(tool):
    x86, arm = tool.settings("x86_64"), tool.settings("arm64")
    assert x86 == tool.settings("AMD64")
    assert [s.get("ATEN_CPU_CAPABILITY") for s in x86.values()] == ["default", "avx2", None]
    assert [s["OMP_NUM_THREADS"] for s in x86.values()] == ["1", "1", "2"]
    assert [s["OMP_NUM_THREADS"] for s in arm.values()] == ["1", "2"]
    assert not any(key.startswith(("MKL", "ONEDNN")) for s in arm.values() for key in s)


def test_flags_are_passed_on_and_files_take_the_place_of_all_tests(tool):
    assert tool.command(["-x", "-k", "kl"], 1)[-5:] == ["-x", "-k", "kl", "notebooks", "tests"]
    assert tool.command(["tests/test_kl.py::test_it"], 1)[-1] == "tests/test_kl.py::test_it"
    assert "tests" not in tool.command(["tests/test_kl.py", "-x"], 1)


def test_processes_times_threads_are_the_two_cores(tool):
    """Two processes of two threads each would wait for each other on two cores."""
    for threads in (1, 2):
        command = tool.command([], threads)
        assert int(command[command.index("-n") + 1]) * threads == 2


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("..\n=== 3 passed, 1 skipped in 2.00s ===\n", "3 passed, 1 skipped in 2.00s"),
        ("F\nFAILED a.py::b\n\x1b[31m1 failed\x1b[0m, 3 passed in 2.00s\n", "1 failed, 3 passed in 2.00s"),
        ("Killed\n", "pytest ended without a result"),
    ],
)
def test_the_summary_is_pytest_s_last_line(tool, said, expected):
    assert tool.summary(said) == expected


@pytest.mark.parametrize(("codes", "status"), [([0, 0, 0], 0), ([0, 1, 0], 1), ([0, 0, 2], 1)])
def test_every_setting_runs_and_one_that_fails_makes_the_status_one(tool, monkeypatch, capsys, codes, status):
    seen, processes, left = [], [], list(codes)

    def pretended(command, env, **rest):
        seen.append(env)
        processes.append(command[command.index("-n") + 1])
        code = left.pop(0)
        return subprocess.CompletedProcess(command, code, f"FAILED a.py::b\n{code} failed, 1 passed in 1s\n", "")

    monkeypatch.setattr(tool.subprocess, "run", pretended)
    monkeypatch.setattr(tool.platform, "machine", lambda: "x86_64")
    assert tool.main(["-x"]) == status
    assert len(seen) == 3 and [env["OMP_NUM_THREADS"] for env in seen] == ["1", "1", "2"]
    assert processes == ["2", "2", "1"]
    assert all(env["HF_HUB_OFFLINE"] == "1" for env in seen)
    said = capsys.readouterr().out.split("Summary\n")[1].splitlines()
    assert [line.startswith("passed") for line in said] == [code == 0 for code in codes]
