"""Histories without the speed, which is measured and therefore differs from run to run."""

import json
from pathlib import Path

from rlhf_lab.training.loop import SPEED


def without_speed(history: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name != SPEED} for row in history]


def read_history(file: Path) -> list[dict]:
    """The lines of a history.jsonl without the speed. Floats are written with all their digits."""
    return without_speed([json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()])
