"""A folder that another process holds, played by a second open file of this process."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rlhf_lab.training.lock import LOCK, PROCESS


@contextmanager
def held_by_another_process(folder: Path, number: str = "123456789") -> Iterator[None]:
    """Within the block the folder is locked by the process `number`. Its files stay, as after a kill."""
    fcntl = pytest.importorskip("fcntl", reason="Windows locks in another way")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (folder / PROCESS).write_text(number)
        yield
