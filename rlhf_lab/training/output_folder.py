"""The output folder of a run, which belongs to one run and to which one process at a time writes.

The settings of a run are stored in its folder as `run.json`. A folder that contains another run or other files is
refused before any work is done, and so is a resumption with other settings.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from rlhf_lab.errors import LabError
from rlhf_lab.training import distributed
from rlhf_lab.training.checkpoint import plain, write_json
from rlhf_lab.training.lock import LOCK, PROCESS, FolderLock

# Settings that may differ between a run and its resumption. Those that save memory change results only by rounding.
_MAY_DIFFER = {
    "out", "resume", "progress", "log_lines", "log_every", "save_every", "trackers", "accumulate",
    "gradient_checkpointing",
}  # fmt: skip
# Files that a run may leave when it is stopped before its first step.
_TRACES = {LOCK, PROCESS, ".run.json.part"}
_CLAIMED: ContextVar[frozenset[Path]] = ContextVar("_CLAIMED", default=frozenset())


@contextmanager
def hold(out: Path, settings: dict[str, Any], resume: bool) -> Iterator[None]:
    """Claim the folder `out` for a run of `settings`, and lock it within the block.

    Raises:
        LabError: another process uses the folder; or as `claim`.
    """
    # A folder that `claim` refuses is not locked, so that nothing is written to it.
    lockable = out.is_dir() if resume else not out.exists() or out.is_dir()
    lock = distributed.on_main_process(lambda: FolderLock(out) if lockable else None)
    try:
        claim(out, settings, resume)
        yield
    finally:
        if lock is not None:
            lock.release()


@contextmanager
def claim_output(out: Path | None, settings: dict[str, Any], resume: bool) -> Iterator[None]:
    """Claim and lock a folder for a method with several stages: each `Loop` within the block may write to it too.

    Nothing is done without a folder, or if an enclosing block has claimed the same folder.

    Args:
        out: the output folder, or None.
        settings: those of the whole run, stored as `run.json`.
        resume: continue the run in the folder.

    Raises:
        LabError: as `hold`.
    """
    if out is None or is_claimed(out):
        yield
        return
    with hold(out, settings, resume):
        token = _CLAIMED.set(_CLAIMED.get() | {out.resolve()})
        try:
            yield
        finally:
            _CLAIMED.reset(token)


def is_claimed(out: Path) -> bool:
    """Return whether an enclosing block of `claim_output` has claimed the folder."""
    return out.resolve() in _CLAIMED.get()


def claim(out: Path, settings: dict[str, Any], resume: bool) -> None:
    """Write `run.json` into the folder `out`, or raise an error and change nothing.

    Args:
        out: the output folder.
        settings: those of the whole run.
        resume: continue the run in the folder.

    Raises:
        LabError: the folder contains another run or other files; or `resume` is True and the folder contains no run,
            or a run with other settings. The first setting that differs is named.
    """
    distributed.on_main_process(lambda: _claim(out, settings, resume))


def _claim(out: Path, settings: dict[str, Any], resume: bool) -> None:
    record = out / "run.json"
    settings = plain(settings)
    if resume:
        if not record.is_file():
            raise LabError(f"Nothing to resume in {out}: it contains no run.json. Leave --resume out to start.")
        try:
            before = json.loads(record.read_text(encoding="utf-8"))
            if not isinstance(before, dict):
                raise ValueError(f"it contains a {type(before).__name__} in place of settings")
        except (ValueError, OSError) as error:
            raise LabError(f"{record} is damaged ({error}); the run cannot be resumed from it.") from None
        for key, old, new in _differences(before, settings):
            raise LabError(
                f"{out} contains a run with {key} = {old!r}, not {new!r}. Resume it with the same settings, or "
                f"give another output folder."
            )
        return
    _refuse_taken(out, record)
    lock = FolderLock(out)
    try:
        _refuse_taken(out, record)  # another run may have started at the same moment
        write_json(record, settings)
    finally:
        lock.release()


def _refuse_taken(out: Path, record: Path) -> None:
    if out.exists() and (not out.is_dir() or any(path.name not in _TRACES for path in out.iterdir())):
        what = "another run" if record.is_file() else "other files"
        raise LabError(
            f"{out} already contains {what}; nothing was changed there. Give an empty or new output folder"
            + (", or --resume to go on with that run." if record.is_file() else ".")
        )


def _differences(old: Any, new: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        out = []
        for name in sorted(old.keys() | new.keys()):
            if name not in _MAY_DIFFER:
                out += _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        return out
    return [] if old == new else [(key, old, new)]
