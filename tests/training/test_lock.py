"""The lock on a run's folder, with another process played by a second open file."""

import os

import pytest

from rlhf_lab.errors import LabError
from rlhf_lab.training import lock
from rlhf_lab.training.lock import LOCK, FolderLock

fcntl = pytest.importorskip("fcntl", reason="Windows locks otherwise")


def test_a_folder_that_another_process_holds_is_refused_with_its_number(tmp_path):
    with (tmp_path / LOCK).open("w") as file:
        file.write("12345")
        file.flush()
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        with pytest.raises(LabError, match=r"in use by another run \(process 12345\)"):
            FolderLock(tmp_path)
    held = FolderLock(tmp_path)
    assert (tmp_path / LOCK).read_text() == str(os.getpid())
    held.release()
    held.release()
    assert list(tmp_path.iterdir()) == [], "no trace is left"


def test_a_run_of_the_same_process_may_enter_and_does_not_give_the_folder_back(tmp_path):
    outer = FolderLock(tmp_path)
    FolderLock(tmp_path).release()
    assert (tmp_path / LOCK).is_file()
    outer.release()


def test_a_lock_file_that_was_taken_away_between_opening_and_locking_is_made_again(tmp_path, monkeypatch):
    """The process before gives the folder back just then. What was locked is a file without a name, which would keep
    nobody out."""
    attempts, really = [], lock._try

    def late(file):
        if not attempts:
            (tmp_path / LOCK).unlink()
        attempts.append(file)
        return really(file)

    monkeypatch.setattr(lock, "_try", late)
    held = FolderLock(tmp_path)
    assert len(attempts) == 2
    assert os.fstat(held.file.fileno()).st_ino == (tmp_path / LOCK).stat().st_ino
    held.release()
