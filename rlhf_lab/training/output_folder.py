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
from typing import Any, NamedTuple

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


_MAY_GROW = {"steps", "epochs"}
"""Settings that may be larger in the resumption, if the run can be extended."""


class Rules(NamedTuple):
    """How a resumption may differ from the run.

    Attributes:
        defaults: values of settings that the run may lack, because an older version wrote it.
        extends: whether `steps` and `epochs` may be larger, so that the run becomes longer.
    """

    defaults: dict[str, Any] = {}  # noqa: RUF012
    extends: bool = False


STRICT = Rules()
"""All settings must be the same."""


@contextmanager
def hold(out: Path, settings: dict[str, Any], resume: bool, rules: Rules = STRICT) -> Iterator[None]:
    """Claim the folder `out` for a run of `settings`, and lock it within the block.

    Raises:
        LabError: another process uses the folder; or as `claim`.
    """
    # A folder that `claim` refuses is not locked, so that nothing is written to it.
    lockable = out.is_dir() if resume else not out.exists() or out.is_dir()
    lock = distributed.on_main_process(lambda: FolderLock(out) if lockable else None)
    try:
        claim(out, settings, resume, rules)
        yield
    finally:
        if lock is not None:
            lock.release()


@contextmanager
def claim_output(out: Path | None, settings: dict[str, Any], resume: bool, rules: Rules = STRICT) -> Iterator[None]:
    """Claim and lock a folder for a method with several stages: each `Loop` within the block may write to it too.

    Nothing is done without a folder, or if an enclosing block has claimed the same folder.

    Args:
        out: the output folder, or None.
        settings: those of the whole run, stored as `run.json`.
        resume: continue the run in the folder.
        rules: how the resumption may differ from the run.

    Raises:
        LabError: as `hold`.
    """
    if out is None or is_claimed(out):
        yield
        return
    with hold(out, settings, resume, rules):
        token = _CLAIMED.set(_CLAIMED.get() | {out.resolve()})
        try:
            yield
        finally:
            _CLAIMED.reset(token)


def is_claimed(out: Path) -> bool:
    """Return whether an enclosing block of `claim_output` has claimed the folder."""
    return out.resolve() in _CLAIMED.get()


def claim(
    out: Path, settings: dict[str, Any], resume: bool, rules: Rules = STRICT, write: bool = True
) -> dict[str, Any]:
    """Write `run.json` into the folder `out`, or raise an error and change nothing.

    Args:
        out: the output folder.
        settings: those of the whole run.
        resume: continue the run in the folder.
        rules: how the resumption may differ from the run.
        write: False to check only, if the run is resumed.

    Returns:
        the former values of the settings that extend the run; usually none.

    Raises:
        LabError: the folder contains another run or other files; or `resume` is True and the folder contains no run,
            or a run with other settings. The first setting that differs is named.
    """
    return distributed.on_main_process(lambda: _claim(out, settings, resume, rules, write)) or {}


def _claim(out: Path, settings: dict[str, Any], resume: bool, rules: Rules, write: bool) -> dict[str, Any]:
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
        former = {}
        for key, old, new in _differences(_completed(before, rules.defaults), settings):
            if rules.extends and key in _MAY_GROW and new is not None and (old is None or new > old):
                former[key] = old
                continue
            more = f", with more {key}" if rules.extends and key in _MAY_GROW else ""
            raise LabError(
                f"{out} contains a run with {key} = {old!r}, not {new!r}. Resume it with the same settings{more}, or "
                f"give another output folder."
            )
        if former and write:
            write_json(record, settings)
        return former
    _refuse_taken(out, record)
    lock = FolderLock(out)
    try:
        _refuse_taken(out, record)  # another run may have started at the same moment
        write_json(record, settings)
    finally:
        lock.release()
    return {}


def _completed(record: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """A record with the defaults of the settings that it lacks, also inside its groups of settings."""
    out = dict(record)
    for name, value in defaults.items():
        if isinstance(value, dict) and isinstance(out.get(name), dict):
            out[name] = _completed(out[name], value)
        else:
            out.setdefault(name, value)
    return out


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
