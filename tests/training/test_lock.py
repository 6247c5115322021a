"""The lock on a run's folder."""

import os
import subprocess
import sys
import textwrap

import pytest
from locked_folder import held_by_another_process

from rlhf_lab.errors import LabError
from rlhf_lab.training.lock import LOCK, PROCESS, FolderLock


def test_a_folder_that_another_process_holds_is_refused_with_its_number(tmp_path):
    with (
        held_by_another_process(tmp_path, "12345"),
        pytest.raises(LabError, match=r"in use by another run \(process 12345\)"),
    ):
        FolderLock(tmp_path)
    held = FolderLock(tmp_path)
    assert (tmp_path / PROCESS).read_text() == str(os.getpid())
    held.release()
    held.release()
    assert list(tmp_path.iterdir()) == [], "no trace is left"


def test_a_run_of_the_same_process_may_enter_and_does_not_release_the_folder(tmp_path):
    outer = FolderLock(tmp_path)
    FolderLock(tmp_path).release()
    assert (tmp_path / LOCK).is_file() and (tmp_path / PROCESS).is_file()
    outer.release()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(LabError, match="cannot be used as an output folder"):
        FolderLock(tmp_path / "file")


@pytest.mark.slow
def test_processes_that_take_and_release_one_folder_at_the_same_time_never_hold_it_together(tmp_path):
    """Three processes take the folder again and again, and each writes a file that must not exist meanwhile.

    The holder removes the locked file before it releases it. A process that opened the file before must not take the
    removed file for the lock.
    """
    code = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from rlhf_lab.errors import LabError
        from rlhf_lab.training.lock import FolderLock

        folder, taken = Path(sys.argv[1]), 0
        end = time.monotonic() + 30
        while taken < 40 and time.monotonic() < end:
            try:
                lock = FolderLock(folder / "run")
            except LabError:
                continue
            with (folder / "inside").open("x"):
                pass
            (folder / "inside").unlink()
            lock.release()
            taken += 1
        print(taken)
        """
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for run in runs:
        out, error = run.communicate()
        assert run.returncode == 0, error
        assert int(out) > 0
