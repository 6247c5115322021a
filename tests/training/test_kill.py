"""Killed with SIGKILL at any moment, during saving too, a resumed run ends in the bits of one never stopped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks of a process")
@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_a_run_ends_in_the_same_bits(tmp_path):
    """DPO of a tiny GPT-2, up to twelve kills: at random moments, and at random points of saving (half a file written,
    before and after each rename, each deletion, each wait for the disk). RLHF_LAB_KILL_SEED takes another seed. The
    default is one whose last kill once left `.step-000024.old` behind: it fell while the last old checkpoint was
    being deleted."""
    seed = int(os.environ.get("RLHF_LAB_KILL_SEED", 447929))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("kill_harness.py")), str(tmp_path), str(seed)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, f"seed {seed}\n{done.stderr}"
    report = json.loads(done.stdout.splitlines()[-1])
    print(report)
    assert report["same_weights"] and report["same_history"] and report["same_best"], f"seed {seed}: {report}"
    assert report["rows"] == 16 + 9 and report["left"] == ["step-000027", "step-000030"], f"seed {seed}: {report}"
    assert report["kills"] >= 2, "an early end leaves nothing to test"
