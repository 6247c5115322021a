"""What `rlhf-lab doctor` calls missing, and what it ends with."""

import importlib.metadata

import pytest

from rlhf_lab.cli import doctor
from rlhf_lab.cli.doctor import BAD, GOOD, Doctor, Finding
from rlhf_lab.cli.main import main


def test_a_package_that_is_missing_or_too_old_is_needed_and_one_for_another_extra_is_not(monkeypatch):
    wanted = ["torch>=999", "torch>=1", "no-such-package", 'another-one; extra == "all"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: wanted)
    marks = [(finding.name, finding.mark) for finding in doctor._packages()][2:]
    assert marks == [("torch", BAD), ("torch", GOOD), ("no-such-package", BAD)]


@pytest.mark.parametrize(("mark", "code"), [(GOOD, 0), (BAD, 1)])
def test_the_exit_code_says_whether_something_is_missing(mark, code, monkeypatch, capsys):
    for name in ("_packages", "_extras", "_machine", "_models", "_cached"):
        monkeypatch.setattr(doctor, name, lambda: iter(()))
    monkeypatch.setattr(doctor, "_hub", lambda ask: iter([Finding(mark, "thing", "text")]))
    assert doctor.doctor(Doctor()) == code
    assert main(["doctor", "--no-hub"]) == code
    assert ("Missing: thing." in capsys.readouterr().out) is bool(code)


def test_sizes_are_in_thousands():
    sizes = [999, 1000, 1500, 2_500_000, 3e9, 4e12]
    assert [doctor._size(size) for size in sizes] == ["999 B", "1 kB", "1.5 kB", "2.5 MB", "3 GB", "4000 GB"]
