"""Experiment trackers such as TensorBoard, W&B and trackio, through accelerate. No tracker is used by default.

A tracker receives the settings of a run and each logged row of numbers. It receives no tokens or environment variables.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from rlhf_lab.errors import LabError, spaces_hint
from rlhf_lab.training.config import Training
from rlhf_lab.training.distributed import is_main_process


def check_trackers(names: Collection[str]) -> None:
    """Raise `LabError` for a tracker that accelerate does not know, or whose package is not installed."""
    if not names:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    installed = sorted(str(getattr(kind, "value", kind)) for kind in get_available_trackers())
    for tracker in names:
        if tracker not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(LOGGER_TYPE_TO_CLASS)
            raise LabError(f"There is no tracker {tracker!r}; accelerate knows {known}.{spaces_hint(tracker)}")
        if tracker not in installed:
            raise LabError(f"The tracker {tracker} is not installed. Run `pip install {tracker}`.")


class Trackers:
    """The trackers of a run. Only the first process uses them."""

    def __init__(self, training: Training, name: str, record: dict[str, Any]) -> None:
        """Start the trackers.

        Args:
            training: has the names of the trackers and the run's folder, in which trackers with files store them.
            name: name of the run.
            record: settings of the run.

        Raises:
            LabError: accelerate does not know a tracker, or the tracker's package is not installed.
        """
        self.accelerator: Any = None
        if not training.trackers or training.out is None:
            return
        check_trackers(training.trackers)
        from accelerate import Accelerator

        if not is_main_process():
            return
        self.accelerator = Accelerator(log_with=list(training.trackers), project_dir=str(training.out))
        self.accelerator.init_trackers(name.replace(" ", "-"), config=_flat(record))

    def log(self, row: dict[str, float], step: int) -> None:
        """Send a row of numbers to the trackers."""
        if self.accelerator is not None:
            self.accelerator.log(row, step=step)

    def close(self) -> None:
        """Finish the trackers, so that they write all their data."""
        if self.accelerator is not None:
            # `end_training` would also end the process group, which later stages need.
            for tracker in self.accelerator.trackers:
                tracker.finish()
            self.accelerator = None


def _flat(record: dict[str, Any], key: str = "") -> dict[str, int | float | str | bool]:
    """Settings as a flat dictionary of plain values, the form that all trackers accept."""
    out: dict[str, int | float | str | bool] = {}
    for name, value in record.items():
        whole = f"{key}.{name}" if key else name
        if isinstance(value, dict):
            out |= _flat(value, whole)
        else:
            out[whole] = value if isinstance(value, bool | int | float | str) else str(value)
    return out
