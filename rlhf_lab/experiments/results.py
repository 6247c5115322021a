"""Saved results: finding them, and computing summary, verdict and picture again from their rows.

`rerender` needs only runs.csv and the settings in result.json. Tests compare what is stored with what the rows give, so
that no outcome or number can be written by hand or outlive its rows.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_lab import shipped
from rlhf_lab.errors import LabError
from rlhf_lab.experiments.claims import PACKAGES, module_of
from rlhf_lab.experiments.runner import Experiment, Found, save
from rlhf_lab.experiments.scales import SCALES
from rlhf_lab.training.checkpoint import write_json

NAMES = tuple(PACKAGES)
"""The experiments in the order of the claims."""


def experiment_of(name: str) -> Experiment:
    """Return the experiment of a name.

    Raises:
        LabError: an unknown name.
    """
    if name not in NAMES:
        raise LabError(f"There is no experiment '{name}'. The experiments are {', '.join(NAMES)}.")
    experiment: Experiment = importlib.import_module(module_of(name)).EXPERIMENT
    return experiment


def saved(root: Path | None = None) -> Iterator[tuple[Experiment, Path]]:
    """Yield the experiment and the folder of every saved result, by claim and scale.

    Args:
        root: the folder of the results; None for that of the checkout.

    Raises:
        LabError: `root` is None and the package is not in a checkout. A wheel contains no results.
    """
    if root is None:
        root = shipped.checkout("Reading the saved results") / "results"
    for name in NAMES:
        for scale in SCALES:
            if (root / name / scale / "result.json").is_file():
                yield experiment_of(name), root / name / scale


def read(folder: Path) -> dict[str, Any]:
    """Return the contents of a result's `result.json`.

    Raises:
        LabError: the file is missing or damaged.
    """
    try:
        return dict(json.loads((folder / "result.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise LabError(f"{folder / 'result.json'} cannot be read ({error}). Run the experiment again.") from None


def recompute(experiment: Experiment, folder: Path) -> Found:
    """Compute summary and verdict of a saved result again from its rows.

    Raises:
        LabError: the result has settings that the experiment does not have.
    """
    import pandas as pd

    record = read(folder)
    try:
        settings = experiment.settings.from_record(record["settings"])
    except (TypeError, KeyError) as error:
        raise LabError(f"{folder} was made with settings that {experiment.name} does not have ({error}).") from None
    runs = pd.read_csv(folder / "runs.csv")
    search = pd.read_csv(folder / "search.csv") if (folder / "search.csv").is_file() else pd.DataFrame()
    summary = experiment.summarise(settings, runs)
    verdict = experiment.decide(settings, summary, runs)
    return Found(settings, runs, search, record["best_config"], summary, verdict, record["seconds"])


def rerender(experiment: Experiment, folder: Path) -> Found:
    """Write summary, verdict and picture of a saved result again from its rows."""
    found, before = recompute(experiment, folder), read(folder)
    save(experiment, found, folder)
    # The command, the time and the versions are those of the run.
    record = read(folder) | {key: before[key] for key in ("command", "seconds", "versions")}
    write_json(folder / "result.json", record)
    return found
