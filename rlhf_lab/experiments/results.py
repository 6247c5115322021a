"""Results that are kept: read again, judged again, drawn again, without running anything.

`redraw` computes summary, verdict, text and picture from runs.csv alone. What a kept result says must be what its
rows say: the tests compare the two, so that no sentence or verdict is typed in by hand or outlives its numbers.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

from rlhf_lab import shipped
from rlhf_lab.errors import LabError
from rlhf_lab.experiments.claims import PACKAGES, module_of
from rlhf_lab.experiments.runner import Experiment, Found, save
from rlhf_lab.experiments.settings import SCALES as SCALES
from rlhf_lab.experiments.settings import Settings

NAMES = tuple(PACKAGES)
"""The experiments in the order of the claims."""


def experiment_of(name: str) -> Experiment:
    """The experiment of a name.

    Raises:
        LabError: there is none.
    """
    if name not in NAMES:
        raise LabError(f"There is no experiment '{name}'. There are: {', '.join(NAMES)}.")
    module: Any = importlib.import_module(module_of(name))
    return module.EXPERIMENT


def kept(root: Path | None = None) -> Iterator[tuple[Experiment, Path]]:
    """Every kept result: its experiment and its folder, by claim and scale.

    Args:
        root: the folder of the results; None for those of the checkout.

    Raises:
        LabError: without `root`, the package is not in a checkout. A wheel brings no results.
    """
    if root is None:
        root = shipped.checkout("Reading the saved results") / "results"
    for name in NAMES:
        for scale in SCALES:
            if (root / name / scale / "result.json").is_file():
                yield experiment_of(name), root / name / scale


def read(folder: Path) -> dict[str, Any]:
    """result.json of a kept result.

    Raises:
        LabError: it is missing or damaged.
    """
    try:
        return dict(json.loads((folder / "result.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise LabError(f"{folder / 'result.json'} cannot be read ({error}). Run the experiment again.") from None


def _settings(kind: type, values: dict[str, Any]) -> Any:
    hints, out = get_type_hints(kind), {}
    for name, value in values.items():
        if isinstance(value, dict) and dataclasses.is_dataclass(hints[name]):
            value = _settings(hints[name], value)  # type: ignore[arg-type]
        out[name] = _tuples(value)
    return kind(**out)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(one) for one in value) if isinstance(value, list) else value


def judged(experiment: Experiment, folder: Path) -> Found:
    """The finding of a kept result, computed again from its rows.

    Raises:
        LabError: the result's settings are not ones that the experiment knows now.
    """
    import pandas as pd

    record = read(folder)
    try:
        kind: Any = experiment.settings
        new = issubclass(kind, Settings)
        settings = kind.from_record(record["settings"]) if new else _settings(kind, record["settings"])
    except (TypeError, KeyError) as error:
        raise LabError(f"{folder} was made with other settings than {experiment.name} has now ({error}).") from None
    runs = pd.read_csv(folder / "runs.csv")
    search = pd.read_csv(folder / "search.csv") if (folder / "search.csv").is_file() else pd.DataFrame()
    summary = experiment.summarise(settings, runs)
    verdict = experiment.decide(settings, summary, runs)
    return Found(settings, runs, search, record["best_config"], summary, verdict, record["seconds"])


def redraw(experiment: Experiment, folder: Path) -> Found:
    """Write summary, verdict, text and picture of a kept result again, from its rows."""
    found = judged(experiment, folder)
    before = read(folder)
    save(experiment, found, folder)
    record = read(folder)
    # Who ran it, and with what, is as it was.
    record |= {key: before[key] for key in ("command", "seconds", "versions")}
    from rlhf_lab.training.checkpoint import write_json

    write_json(folder / "result.json", record)
    return found
