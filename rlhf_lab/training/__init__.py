"""The training loop that every method shares, its settings, checkpoints, output folders and processes."""

from rlhf_lab.training.config import Training
from rlhf_lab.training.evaluation import Evaluation, Metrics
from rlhf_lab.training.loop import Loop
from rlhf_lab.training.rows import rows_at, seeded

__all__ = ["Evaluation", "Loop", "Metrics", "Training", "rows_at", "seeded"]
