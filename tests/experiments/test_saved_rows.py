"""One job of every experiment is run again on the exact scales, and its rows are compared with the saved ones.

On the small language model another processor draws other samples after some steps, so its rows are not compared.
"""

from pathlib import Path

import pandas as pd
import pytest

from rlhf_lab.experiments import results
from rlhf_lab.experiments.scales import scale_of
from rlhf_lab.training.checkpoint import plain

SAVED = [one for one in results.saved(Path(__file__).parents[2] / "results") if scale_of(one[1].name).exact]
IDS = [f"{experiment.name}-{folder.name}" for experiment, folder in SAVED]
MEASURED = {"seconds", "to_seconds", "cpu_seconds", "memory", "peak"}
"""Columns that measure the machine."""


def chosen(job) -> bool:
    """Whether a job trains something and is quick."""
    return job.get("method") == "dpo" or job.get("kind") == "table" or job.get("part") in ("rest", "split", "random")


@pytest.mark.slow
@pytest.mark.parametrize(("experiment", "folder"), SAVED, ids=IDS)
def test_one_job_gives_its_saved_rows_again(experiment, folder):
    """Another processor rounds differently, and training amplifies the difference, so 0.1% is allowed."""
    record = results.read(folder)
    settings = results.recompute(experiment, folder).settings
    jobs = experiment.jobs(settings)
    job = next(filter(chosen, jobs), jobs[0])
    keys = {name: value for name, value in job.items() if not isinstance(value, list | dict)}
    again = pd.DataFrame([{**keys, **plain(row)} for row in experiment.run(settings, job, record["best_config"])])
    saved = pd.read_csv(folder / "runs.csv")
    for name, value in keys.items():
        saved = saved[saved[name] == value]
    saved = saved.dropna(axis="columns", how="all").reset_index(drop=True)
    shared = [name for name in saved.columns if name not in MEASURED]
    assert len(shared) > len(keys)
    again = again[shared].astype(saved[shared].dtypes)  # a stage that is written 0.5 in one row is a number in the file
    pd.testing.assert_frame_equal(again, saved[shared], check_dtype=False, rtol=1e-3, atol=1e-6)
