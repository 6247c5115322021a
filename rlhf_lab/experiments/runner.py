"""Running an experiment on a claim: jobs, search for settings, resuming, the verdict, and the result's files.

A claim is a package of `experiments/claims`: its settings with the rule and its thresholds (`settings.py`), its jobs
(`run.py`), and the decision and the picture (`report.py`). This module runs the jobs and stores what they found:

    results/NAME/SCALE/runs.csv      the rows of every job
                       summary.csv   means with intervals
                       search.csv    every trial of the search for settings, where there is one
                       result.json   settings, command, versions, seconds, the verdict with its numbers
                       figure.png
                       notes.md      the words, written by hand (`verdicts.py`)
    results/NAME/claim.md            what the source says, what was found and why, by hand (`claims_page.py`)

A finished job is written to the folder `unfinished` at once. A run that was stopped continues from there, and an
earlier result stays in place until the new one is complete.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from rlhf_lab.errors import LabError, check_output_folder, check_path, check_paths
from rlhf_lab.experiments.scales import scale_of
from rlhf_lab.experiments.settings import SEARCH_SEED, PerScale, Settings
from rlhf_lab.experiments.verdicts import Verdict, fill
from rlhf_lab.figures import style
from rlhf_lab.training.checkpoint import append, plain, read_lines, write_json, write_text
from rlhf_lab.training.lock import FolderLock

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

JobSpec = dict[str, Any]
"""What one job is: names and numbers as JSON knows them, its seed among them."""
BestConfig = dict[str, Any]
"""What the search chose, as JSON knows it; empty where there is none."""
FILES = ("runs.csv", "summary.csv", "search.csv", "figure.png", "result.json", "notes.md", "unfinished")
"""The files of a result's folder. `unfinished` is there while a run is not complete."""


def best_rates(search: pd.DataFrame, by: str = "method", metric: str = "objective") -> BestConfig:
    """Return the learning rate with the highest `metric`, mean over seeds, for each value of the column `by`."""
    means: Any = search.groupby([by, "rate"])[metric].mean()
    return {str(key): float(rate) for key, rate in means.groupby(level=0).idxmax()}


def one_per_seed(settings: Settings) -> list[JobSpec]:
    """Return one job for each seed."""
    return [{"seed": seed} for seed in settings.seed_range]


@dataclass(frozen=True)
class Experiment:
    """A claim and the experiment that tests it.

    Attributes:
        number: of the claim, from 1.
        name: of the command and of the folder.
        title: the claim in a line.
        rule: when the claim is supported and when it is not. `decide` carries it out.
        rule_commit: hash of the commit that wrote the rule, before the run; empty where it is not recorded.
        settings: the class of the settings.
        run: (settings, job, best_config) → the job's rows: numbers and names, nothing else.
        summarise: (settings, rows) → one row a condition, with columns x, x_low, x_high for a measured x.
        decide: (settings, summary, rows) → the verdict.
        figure: (settings, summary, rows) → the picture. The file names its panels' title and axes with units.
        scales: the columns of `settings.PerScale` for which it is made; "small" stands for any language model.
        jobs: settings → the jobs, in order. A job is independent of all others and knows its seed.
        interval: which interval the summary gives, for the page.
        search_trials: settings → the jobs of a search for settings. The same number for every method, on seeds that no
            result uses.
        select_best: (settings, rows of the search_trials) → what the search chose.
    """

    number: int
    name: str
    title: str
    rule: str
    settings: type[Settings]
    run: Callable[[Any, JobSpec, BestConfig], list[dict[str, Any]]]
    summarise: Callable[[Any, pd.DataFrame], pd.DataFrame]
    decide: Callable[[Any, pd.DataFrame, pd.DataFrame], Verdict]
    figure: Callable[[Any, pd.DataFrame, pd.DataFrame], Figure]
    scales: tuple[str, ...] = PerScale._fields
    jobs: Callable[[Any], list[JobSpec]] = one_per_seed
    interval: str = "95% Student-t over seeds"
    rule_commit: str = ""
    search_trials: Callable[[Any], list[JobSpec]] | None = None
    select_best: Callable[[Any, pd.DataFrame], BestConfig] | None = None

    def __call__(self, settings: Any) -> None:
        """Run the command `rlhf-lab experiment NAME`."""
        main(self, settings)


@dataclass
class Found:
    """The result of a run.

    Attributes:
        settings: every number of it.
        runs: the jobs' rows; their first columns are the jobs' own names and numbers.
        search: the tries' rows; empty without a search.
        best_config: what the search chose.
        summary: means with intervals.
        verdict: by the rule.
        seconds: of all jobs, added up over workers.
    """

    settings: Any
    runs: pd.DataFrame
    search: pd.DataFrame
    best_config: BestConfig
    summary: pd.DataFrame
    verdict: Verdict
    seconds: float


@dataclass
class _Journal:
    """Finished jobs of an unfinished run."""

    folder: Path | None
    done: dict[str, dict[str, Any]] = field(default_factory=dict)

    def begin(self, record: dict[str, Any]) -> None:
        """Take up what an earlier run of the same settings left, or start."""
        if self.folder is None:
            return
        note, lines = self.folder / "run.json", self.folder / "jobs.jsonl"
        if note.is_file():
            before = _settings_in(note)
            for key in before.keys() | record["settings"].keys():
                old, new = before.get(key), record["settings"].get(key)
                if old != new:
                    raise LabError(
                        f"{self.folder} holds an unfinished run with {key} = {old!r}, not {new!r}. Finish that one "
                        f"with its own settings, delete the folder, or give another --out."
                    )
            self.done = {
                _key(line["job"]): line for line in read_lines(lines) if {"job", "rows", "seconds"} <= line.keys()
            }
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(note, record)

    def add(self, line: dict[str, Any]) -> None:
        """Write one finished job down."""
        self.done[_key(line["job"])] = line
        if self.folder is not None:
            append(self.folder / "jobs.jsonl", json.dumps(line) + "\n")


def _settings_in(path: Path) -> dict[str, Any]:
    """The settings that a run's file names.

    Raises:
        LabError: it is damaged.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LabError(
            f"{path} is damaged ({type(error).__name__}: {error}). Give another --out, or remove it."
        ) from None


def _refuse_other(experiment: Experiment, settings: Any, out: Path) -> None:
    """Refuse a folder that holds anything but a result of this experiment, on this scale and with these settings.

    The default settings may replace any result of the same experiment and scale, so that saved results can be renewed.
    """
    check_output_folder(out, FILES)
    result = out / "result.json"
    if not result.is_file():
        return
    given, before = settings_of(settings), _settings_in(result)
    usual = settings_of(experiment.settings(scale=settings.scale))
    name = json.loads(result.read_text(encoding="utf-8")).get("name")
    if name != experiment.name:
        raise LabError(f"{out} holds a result of {name}; nothing was changed. Give another --out.")
    other = next((key for key in given if before.get(key) != given[key]), None)
    if other is not None and (given != usual or other == "scale"):
        raise LabError(
            f"{out} holds a result with {other} = {before.get(other)!r}, not {given[other]!r}; nothing was changed. "
            f"Give another --out."
        )


def _key(job: JobSpec) -> str:
    return json.dumps(job, sort_keys=True)


def _work(
    run: Callable[..., list[dict[str, Any]]], settings: Any, job: JobSpec, best_config: BestConfig
) -> dict[str, Any]:
    """One job, timed, on one thread: what a second thread would change is the last digit, and the time."""
    torch.set_num_threads(1)
    begin = time.perf_counter()
    rows = [plain(row) for row in run(settings, job, best_config)]
    return {"job": job, "rows": rows, "seconds": time.perf_counter() - begin}


def _do(
    experiment: Experiment, settings: Any, jobs: list[JobSpec], best_config: BestConfig, journal: _Journal, what: str
) -> None:
    todo = [job for job in jobs if _key(job) not in journal.done]
    if len({_key(job) for job in jobs}) < len(jobs):
        raise LabError(f"{experiment.name} has two jobs that are the same; each must name what it is.")
    bar = tqdm(
        total=len(jobs),
        initial=len(jobs) - len(todo),
        desc=f"{experiment.name}, {settings.scale}, {what}",
        disable=not settings.progress,
    )
    with bar:
        if settings.workers == 1:
            for job in todo:
                bar.set_postfix_str(", ".join(str(value) for value in job.values()))
                journal.add(_work(experiment.run, settings, job, best_config))
                bar.update()
            return
        # Spawned, not forked: torch's threads do not survive a fork.
        with ProcessPoolExecutor(settings.workers, mp_context=get_context("spawn")) as pool:
            waiting = {pool.submit(_work, experiment.run, settings, job, best_config) for job in todo}
            try:
                while waiting:
                    finished, waiting = wait(waiting, timeout=0.5, return_when=FIRST_EXCEPTION)
                    for one in finished:
                        journal.add(one.result())
                        bar.update()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _frame(jobs: Iterable[JobSpec], journal: _Journal) -> pd.DataFrame:
    """All rows, as runs.csv will hold them: a verdict on the file is then the verdict of the run, to the last digit."""
    import pandas as pd

    rows = []
    for job in jobs:
        line = journal.done[_key(job)]
        # `seconds` belongs to the job, not to a row: it stands in the sum, and never in a table that is compared.
        rows += [{**{k: v for k, v in job.items() if not isinstance(v, list | dict)}, **row} for row in line["rows"]]
    return pd.read_csv(io.StringIO(_csv(pd.DataFrame(rows)))) if rows else pd.DataFrame()


def _csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, float_format="%.8g")


def experiment_run(experiment: Experiment, settings: Any) -> Found:
    """Run what has not been run yet, and judge.

    With `settings.out`, finished jobs are stored in `out/unfinished` and not run again. Without it nothing is written.

    Raises:
        LabError: a scale that the experiment does not know; seeds of its search; an unfinished run of other settings
            in the folder, or a result of another experiment or of other settings, or files that are no result's.
    """
    check_scale(experiment, settings.scale)
    _check_seeds(experiment, settings)
    settings = check_paths(settings)
    if settings.out is None:
        return _run(experiment, settings, _Journal(None))
    _refuse_other(experiment, settings, settings.out)
    lock = FolderLock(settings.out)
    try:
        return _run(experiment, settings, _Journal(settings.out / "unfinished"))
    finally:
        lock.release()


def _check_seeds(experiment: Experiment, settings: Any) -> None:
    """Raise `LabError` if a result would use a seed of the search."""
    if experiment.search_trials is not None and (last := settings.seed_range[-1]) >= SEARCH_SEED:
        raise LabError(
            f"The seeds from {SEARCH_SEED} on are those of the search, and the last of these runs would have {last}. "
            "Lower --seeds or --first-seed."
        )


def _run(experiment: Experiment, settings: Any, journal: _Journal) -> Found:
    threads = torch.get_num_threads()
    journal.begin({"experiment": experiment.name, "settings": settings_of(settings)})
    search_trials = experiment.search_trials(settings) if experiment.search_trials else []
    best_config: BestConfig = {}
    try:
        if search_trials:
            _do(experiment, settings, search_trials, {}, journal, "search")
        search = _frame(search_trials, journal)
        if experiment.select_best is not None:
            best_config = plain(experiment.select_best(settings, search))
        jobs = experiment.jobs(settings)
        _do(experiment, settings, jobs, best_config, journal, f"{len(jobs)} jobs")
    except KeyboardInterrupt:
        where = f" What was finished is in {journal.folder}; the same command goes on." if journal.folder else ""
        raise KeyboardInterrupt(f"Stopped {experiment.name}.{where}") from None
    finally:
        torch.set_num_threads(threads)
    runs = _frame(jobs, journal)
    summary = experiment.summarise(settings, runs)
    seconds = sum(line["seconds"] for line in journal.done.values())
    return Found(settings, runs, search, best_config, summary, experiment.decide(settings, summary, runs), seconds)


def settings_of(settings: Any) -> dict[str, Any]:
    """The settings that decide the numbers, as JSON knows them."""
    return {k: v for k, v in plain(settings).items() if k not in ("out", "progress", "workers")}


def check_scale(experiment: Experiment, scale: str) -> None:
    """Raise `LabError` for a scale on which the experiment cannot be run."""
    if scale_of(scale).column not in experiment.scales:
        models = ", or a model's name or folder" if "small" in experiment.scales else ""
        raise LabError(
            f"{experiment.name} is not made for the scale '{scale}'. It runs on {', '.join(experiment.scales)}{models}."
        )


def default_out(experiment: Experiment, settings: Any) -> Path:
    """Return results/NAME/SCALE for the default settings, and results/NAME/SCALE-own for any others."""
    usual = settings_of(settings) == settings_of(experiment.settings(scale=settings.scale))
    scale = settings.scale.replace("/", "--").strip(".-") or "model"
    return Path("results") / experiment.name / (scale if usual else f"{scale}-own")


def command_of(experiment: Experiment, settings: Any) -> str:
    """The command that runs these settings, with those that differ from the defaults."""
    words = ["rlhf-lab", "experiment", experiment.name, "--scale", settings.scale]
    usual = settings_of(experiment.settings(scale=settings.scale))
    for key, value in settings_of(settings).items():
        if key != "scale" and value != usual[key]:
            option = "--" + key.replace("_", "-")
            if isinstance(value, bool):
                words.append(option if value else option.replace("--", "--no-", 1))
            else:
                words += [option, *(map(str, value) if isinstance(value, list) else [str(value)])]
    return " ".join(words)


def save(experiment: Experiment, found: Found, out: Path) -> None:
    """Write the result's files, the last of them result.json, and drop the journal."""
    from rlhf_lab import __version__

    out = check_path(out, "out")
    out.mkdir(parents=True, exist_ok=True)
    three = (found.settings, found.summary, found.runs)
    write_text(out / "runs.csv", _csv(found.runs))
    write_text(out / "summary.csv", _csv(found.summary))
    if len(found.search):
        write_text(out / "search.csv", _csv(found.search))
    (out / "figure.png").write_bytes(style.png(experiment.figure(*three), dpi=110))
    record = {
        "number": experiment.number,
        "name": experiment.name,
        "title": experiment.title,
        "scale": found.settings.scale,
        "verdict": found.verdict.record(),
        "interval": experiment.interval,
        "command": command_of(experiment, found.settings),
        "seconds": round(found.seconds, 1),
        "jobs": len(found.runs),
        "settings": settings_of(found.settings),
        "best_config": found.best_config,
        "versions": {"rlhf_lab": __version__, "torch": torch.__version__, "python": sys.version.split()[0]},
    }
    write_json(out / "result.json", record)
    shutil.rmtree(out / "unfinished", ignore_errors=True)


def numbers_of(verdict: Verdict) -> pd.DataFrame:
    """Return the numbers of a verdict as a table: name, value with its interval, and the threshold, if there is one."""
    import pandas as pd

    return pd.DataFrame(
        {
            "number": list(verdict.numbers),
            "value": [fill(f"{{{name}}}", verdict, {}) for name in verdict.numbers],
            "threshold": [verdict.thresholds.get(name, "") for name in verdict.numbers],
        }
    )


def main(experiment: Experiment, settings: Any) -> None:
    """The command `rlhf-lab experiment NAME`."""
    check_scale(experiment, settings.scale)
    settings = check_paths(dataclasses.replace(settings, out=settings.out or default_out(experiment, settings)))
    out = settings.out
    found = experiment_run(experiment, settings)
    print(f"{experiment.number}. {experiment.title}")
    print(f"Rule: {experiment.rule}\n")
    print(found.summary.to_string(index=False, float_format=lambda number: f"{number:.4g}"))
    print(f"\nOutcome: {found.verdict.outcome}.")
    print(numbers_of(found.verdict).to_string(index=False))
    if settings.quick:
        print("This was a quick run. It shows that everything works; its outcome means nothing.")
    save(experiment, found, out)
    minutes = found.seconds / 60
    print(f"\n{minutes:.1f} minutes. Tables, result.json and figure.png are in {os.path.relpath(out)}.")
