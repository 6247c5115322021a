"""One process at a time in a run's folder.

The lock is the system's (`flock`), so it ends with the process that holds it, however that ends: a run that was
killed leaves nothing behind that must be cleared by hand. Left out on purpose: file systems over a network that know
no locks, where nothing is checked.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

from rlhf_lab.errors import LabError

LOCK = ".lock"
"""The file that is locked, within the folder. It holds the number of the process."""


def _try(file: IO[str]) -> bool:
    """Lock an open file, or return False if another process has done so."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            # A byte that nobody writes, so that the number can still be read by others.
            file.seek(1024)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system knows no locks
        return True
    return True


class FolderLock:
    """The folder `out`, held by this process until `release`, or until the process ends."""

    def __init__(self, out: Path) -> None:
        """Make the folder where it is not there, and take the lock.

        Raises:
            LabError: another process holds it; the message says which. Or the folder cannot be made or written to.
        """
        self.path = out / LOCK
        self.file: IO[str] | None = None
        while self.file is None:
            try:
                out.mkdir(parents=True, exist_ok=True)
                file = self.path.open("a+", encoding="utf-8")
            except OSError as error:
                raise LabError(
                    f"{out} cannot be used as an output folder ({error.strerror or error}). Give another one."
                ) from None
            if not _try(file):
                file.seek(0)
                holder = file.read().strip()
                file.close()
                if holder == str(os.getpid()):
                    return  # another run of this process, which is allowed to know what it does
                raise LabError(
                    f"{out} is in use by another run" + (f" (process {holder})" if holder else "") + ". Wait for it, "
                    "stop it, or give another output folder."
                )
            if not self._still_there(file):  # taken away between opening and locking
                file.close()
                continue
            self.file = file
        self.file.truncate(0)
        self.file.write(str(os.getpid()))
        self.file.flush()

    def _still_there(self, file: IO[str]) -> bool:
        try:
            return os.fstat(file.fileno()).st_ino == self.path.stat().st_ino
        except OSError:
            return False

    def release(self) -> None:
        """Give the folder back and leave no trace. May be called twice."""
        if self.file is None:
            return
        if os.name != "nt":  # Windows deletes no open file; there the empty mark stays
            self.path.unlink(missing_ok=True)
        self.file.close()
        self.file = None
