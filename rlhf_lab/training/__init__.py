"""The one loop under every method: see `loop.py`, `settings.py`, `checkpoint.py`."""

from rlhf_lab.training.loop import Loop, rows_at, seeded
from rlhf_lab.training.settings import Training

__all__ = ["Loop", "Training", "rows_at", "seeded"]
