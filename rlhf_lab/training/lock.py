"""A lock on a run's output folder, so that at most one process writes there at a time.

The library filelock takes a lock of the operating system. The lock ends with the process that holds it, so a killed run
leaves nothing that a user must remove. One process can take the lock several times. Left out on purpose: network file
systems without locks, on which nothing is checked.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from rlhf_lab.errors import LabError

LOCK = ".lock"
"""The locked file in the folder."""
PROCESS = ".lock.pid"
"""A file in the folder with the number of the process that has the lock, for the error messages of other processes."""
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}


class FolderLock:
    """A lock on the folder `out`, held until `release` or until the process ends."""

    def __init__(self, out: Path) -> None:
        """Create the folder if it does not exist, and take the lock.

        Raises:
            LabError: another process holds the lock, or the folder cannot be created or written to.
        """
        self.out = out
        self._lock: FileLock | None = None
        try:
            out.mkdir(parents=True, exist_ok=True)
            lock = FileLock(out / LOCK, is_singleton=True, thread_local=False)
            # A run that ends at this moment removes the file, and the second attempt then succeeds.
            lock.acquire(timeout=0.1, poll_interval=0.02)
            (out / PROCESS).write_text(str(os.getpid()), encoding="utf-8")
        except Timeout:
            raise LabError(
                f"{out} is in use by another run{self._holder()}. Wait for that run, stop it, or give another output "
                f"folder."
            ) from None
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return
            raise LabError(
                f"{out} cannot be used as an output folder ({error.strerror or error}). Give another one."
            ) from None
        self._lock = lock

    def _holder(self) -> str:
        try:
            return f" (process {(self.out / PROCESS).read_text(encoding='utf-8')})"
        except OSError:
            return ""

    def release(self) -> None:
        """Release the lock and remove its files. A second call does nothing."""
        lock, self._lock = self._lock, None
        if lock is None:
            return
        if lock.lock_counter == 1:  # not while another run of this process holds the folder
            for name in (PROCESS, LOCK):
                with suppress(OSError):  # Windows deletes no open file; the empty file stays there
                    (self.out / name).unlink()
        lock.release()
