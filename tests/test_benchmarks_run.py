"""The benchmarks run without errors. No time is asserted."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize(
    "words, said",
    [
        ("gpu_step.py --tiny --batch 1 --steps 1", "two narrow layers of Pythia-410M on"),
        ("generate.py --quick --threads 1", "mean log-probability per token, generate"),
        ("trl_step.py --alone --steps 1 --batch 1 --threads 1", "required operations"),
    ],
)
def test_a_benchmark_runs_and_prints_its_line(words, said):
    """The sizes are small. TRL needs a separate environment and is left out."""
    name, *more = words.split()
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / name), *more], capture_output=True, text=True, cwd=BENCHMARKS, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert said in done.stdout
