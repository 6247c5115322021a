"""Peak memory of a method, measured by the operating system in a separate process (VmHWM)."""

from __future__ import annotations

import gc
import json
import math
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from rlhf_lab.errors import LabError
from rlhf_lab.experiments.claims.cost.settings import Cost
from rlhf_lab.experiments.claims.cost.setup import CostSetup, Meter, train
from rlhf_lab.experiments.methods import METHODS
from rlhf_lab.experiments.runner import settings_of
from rlhf_lab.randomness import Stream
from rlhf_lab.training import seeded


def measure(settings: Cost, seed: int, method: str) -> dict[str, Any]:
    """Return the peak memory of a few steps in a separate process, and how far it exceeds that of the libraries.

    Raises:
        LabError: the process failed.
    """
    record = settings_of(settings) | {
        "labels": max(settings.responses, 16), "steps": settings.memory_steps, "reward_steps": 1,
        "prompts": max(settings.responses // 4, 2),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_lab.experiments.claims.cost.memory", json.dumps([record, seed, method])],
        capture_output=True, text=True, timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
    )  # fmt: skip
    if done.returncode:
        raise LabError(f"The memory of {method} could not be measured: {done.stderr.strip().splitlines()[-1:]}")
    libraries, peak = json.loads(done.stdout.strip().splitlines()[-1])
    return {"when": "memory", "libraries": libraries, "peak": peak, "own": peak - libraries}


def _status(name: str) -> float:
    """Return a number of this process's status file in MiB; NaN where there is no such file (not Linux)."""
    path = Path("/proc/self/status")
    if not path.is_file():
        return math.nan
    line = next((line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith(name)), None)
    return math.nan if line is None else int(line.split()[1]) / 1024


def _reset_peak() -> None:
    """Set the system's record of the peak to the present memory, where the system allows it."""
    gc.collect()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _measured_here(record: dict[str, Any], seed: int, method: str) -> tuple[float, float]:
    """Return the MiB of this process with its libraries, and its peak while it trains by `method`."""
    import transformers  # noqa: F401  (counted among the libraries)

    torch.set_num_threads(1)
    settings = Cost.from_record(record | {"progress": False})
    shared = CostSetup(settings, seed)
    libraries = _status("VmRSS")
    setup = shared.setup
    _ = setup.pairs, setup.prompts
    if METHODS[method].reward_model:
        # The memory does not depend on the scores, so the reward model is not fitted. But a head of zeros would score
        # all responses alike, and none of them would pass ReST's threshold.
        model = setup.reference.new_reward_model().requires_grad_(False)
        torch.nn.init.normal_(model.head.weight, generator=seeded(seed, Stream.REWARD_HEAD))  # type: ignore[arg-type, union-attr]
        setup.reward_model = model
    policy = setup.new_policy()
    _reset_peak()
    train(method, shared, policy, settings.rates[0], Meter())
    return libraries, _status("VmHWM")


if __name__ == "__main__":
    print(json.dumps(_measured_here(*json.loads(sys.argv[1]))))
