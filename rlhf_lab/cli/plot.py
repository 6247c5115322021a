"""`rlhf-lab plot RUN…`: draw the training curves of one or several runs as a PNG."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from rlhf_lab.errors import LabError, check_path, check_settings
from rlhf_lab.training import checkpoint


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Draw what runs have logged, against the optimiser step. Numbers on held-out data are dashed."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN")]
    """Output folders of `rlhf-lab train`, at most 8. A run that is not finished is drawn up to its last checkpoint."""
    out: Path = Path("curves.png")
    """The picture, a file whose name ends with .png. An older picture is replaced."""
    metrics: tuple[str, ...] = ()
    """Numbers to draw, for example loss accuracy. Default: all."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.out.suffix != ".png":
            raise LabError(f"out={str(self.out)!r} must be the name of a PNG picture. Let it end with .png.")


def plot(settings: Plot) -> None:
    """Draw the runs, write the picture, and print its name.

    Raises:
        LabError: a folder contains no run, nothing was logged, a number is unknown, or the file cannot be written.
    """
    from rlhf_lab.figures import style
    from rlhf_lab.figures.training_curves import training_curves

    runs = [check_path(run, "run") for run in settings.runs]
    if not runs:
        raise LabError("There is nothing to draw. Give the output folder of a run.")
    names = _names(runs)
    title = f"Training curves of {names[0]}" if len(runs) == 1 else f"Training curves of {len(runs)} runs"
    histories = dict(zip(names, map(history_of, runs), strict=True))
    picture = style.png(training_curves(histories, settings.metrics, title))
    try:
        settings.out.parent.mkdir(parents=True, exist_ok=True)
        settings.out.write_bytes(picture)
    except OSError as error:
        raise LabError(f"{settings.out} cannot be written ({error.strerror or error}). Give another file.") from None
    print(f"Written: {settings.out}")


def _names(runs: list[Path]) -> list[str]:
    """The names of the folders, or their paths where two names are equal."""
    names = [run.resolve().name for run in runs]
    return [name if names.count(name) == 1 else str(run) for name, run in zip(names, runs, strict=True)]


def history_of(run: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's history. If the run is not finished, those of its last checkpoint.

    Raises:
        LabError: the folder contains no run, or nothing was logged yet.
    """
    if not (run / "run.json").is_file():
        raise LabError(f"{run} contains no run. Give the output folder of `rlhf-lab train`.")
    rows = checkpoint.read_lines(run / "history.jsonl")
    last = checkpoint.latest(run)
    if not rows and last is not None:
        try:
            rows = json.loads((last / "state.json").read_text(encoding="utf-8"))["history"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise LabError(f"{last / 'state.json'} cannot be read ({type(error).__name__}). Resume the run.") from None
    rows = [row for row in rows if isinstance(row.get("step"), int)]
    if not rows:
        raise LabError(f"{run} has logged nothing yet. Wait for its first checkpoint.")
    return rows
