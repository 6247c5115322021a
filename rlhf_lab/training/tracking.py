"""Trackers of the ecosystem (TensorBoard, W&B, trackio, …) through accelerate. None by default.

They are given the run's settings and each logged row, no more: no token, no environment.
"""

from __future__ import annotations

from typing import Any

from rlhf_lab.errors import LabError
from rlhf_lab.training.config import Training
from rlhf_lab.training.distributed import is_main_process


class Trackers:
    """The trackers of one run, on the first process."""

    def __init__(self, training: Training, name: str, record: dict[str, Any]) -> None:
        """Open them.

        Args:
            training: says which, and the run's folder, below which those that write files write them.
            name: of the run.
            record: its settings.

        Raises:
            LabError: a tracker that accelerate does not know, or whose package is not installed.
        """
        self.accelerator: Any = None
        if not training.trackers or training.out is None:
            return
        from accelerate import Accelerator
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

        there = sorted(str(getattr(kind, "value", kind)) for kind in get_available_trackers())
        for tracker in training.trackers:
            if tracker not in LOGGER_TYPE_TO_CLASS:
                raise LabError(f"There is no tracker {tracker!r}; accelerate knows {', '.join(LOGGER_TYPE_TO_CLASS)}.")
            if tracker not in there:
                raise LabError(f"The tracker {tracker} is not installed here: `pip install {tracker}`.")
        if not is_main_process():
            return
        self.accelerator = Accelerator(log_with=list(training.trackers), project_dir=str(training.out))
        self.accelerator.init_trackers(name.replace(" ", "-"), config=_flat(record))

    def log(self, row: dict[str, float], step: int) -> None:
        """Hand on one row of numbers."""
        if self.accelerator is not None:
            self.accelerator.log(row, step=step)

    def close(self) -> None:
        """Let them write what they still hold."""
        if self.accelerator is not None:
            # Not end_training, which would part the processes too.
            for tracker in self.accelerator.trackers:
                tracker.finish()
            self.accelerator = None


def _flat(record: dict[str, Any], key: str = "") -> dict[str, int | float | str | bool]:
    """Settings as one level of plain values, which is what every tracker takes."""
    out: dict[str, int | float | str | bool] = {}
    for name, value in record.items():
        whole = f"{key}.{name}" if key else name
        if isinstance(value, dict):
            out |= _flat(value, whole)
        else:
            out[whole] = value if isinstance(value, bool | int | float | str) else str(value)
    return out
