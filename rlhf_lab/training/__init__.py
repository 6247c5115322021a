"""The one loop under every method: see `loop.py`, `settings.py`, `checkpoint.py`."""

from rlhf_lab.training.config import Training
from rlhf_lab.training.loop import Loop, rows_at, seeded

__all__ = ["Loop", "Training", "rows_at", "seeded"]
