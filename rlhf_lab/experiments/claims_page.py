"""docs/claims.md: every claim with what its source says, what was found on each scale, and the verdict.

The page is made of the kept results alone (`results/NAME/SCALE/`), by `make claims`; a test compares.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from rlhf_lab.experiments.results import read, saved
from rlhf_lab.experiments.runner import Experiment
from rlhf_lab.experiments.settings import SCALES
from rlhf_lab.experiments.verdicts import OUTCOMES, SECTIONS, Verdict, fill, read_notes

SCALE_NAMES = {"bandit": "bandit", "tree": "token tree", "small": "small language model"}

HEAD = """# The lecture's claims, tested

Each claim of the lecture is an experiment with settings, seeds, a rule that was written before the first run, a
table with intervals, and a verdict. On the **bandit** and the **token tree** the optimal policy π\\* is exact, and
so is every distance to it. On the **small language model** (`lab-gpt2`, which has about a million weights, on four
text worlds with a gold reward) the numbers are estimates. A verdict is about these scales. It does not say what
would happen with a model a thousand times larger, but the same command runs on one (`--scale gpt2`).

The rule of each claim decides between four outcomes: *supported*, *partly supported* (in part, or under a
condition that the notes name), *not supported*, and *inconclusive* (the intervals are too wide to decide). A question
of the lecture claims nothing; it is *answered* or inconclusive. A dash means that the claim has not been run on that
scale. The command of a row runs it again: it shows a progress bar,
continues after an interruption, and writes to `results/`. Every method was tuned by the same search, which is
stored in `search.csv` beside the result. Times were measured on one shared core and are upper bounds.

This page is generated from the saved results (`make claims`).
"""


def build(root: Path, page: Path) -> str:
    """The page's text.

    Args:
        root: the folder `results`.
        page: where the page will stand, for its links: a file in a folder of the checkout.
    """
    claims: dict[str, list[tuple[Experiment, Path, dict[str, Any]]]] = {}
    for experiment, folder in saved(root):
        claims.setdefault(experiment.name, []).append((experiment, folder, read(folder)))
    parts = [HEAD, _table(claims)]
    for found in claims.values():
        parts.append(_claim(found, page))
    return "\n".join(parts).rstrip("\n") + "\n"


def overall(outcomes: dict[str, str]) -> str:
    """Return the outcome of a claim over all scales: one if all agree, otherwise each with its scales."""
    scales = {outcome: [SCALE_NAMES.get(s, s) for s, one in outcomes.items() if one == outcome] for outcome in OUTCOMES}
    found = {outcome: names for outcome, names in scales.items() if names}
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{outcome}: {', '.join(names)}" for outcome, names in found.items())


def words_of(folder: Path, record: dict[str, Any]) -> tuple[str, str, str]:
    """Return the finding, the explanation and the alternative text of a saved result, with its numbers."""
    notes, verdict = read_notes(folder / "notes.md"), Verdict.from_record(record["verdict"])
    finding, explanation, figure = (fill(notes.sections[name], verdict, record["settings"]) for name in SECTIONS)
    return finding, explanation, figure


def _table(claims: dict[str, list[tuple[Experiment, Path, dict[str, Any]]]]) -> str:
    lines = ["| | claim | " + " | ".join(SCALE_NAMES.values()) + " |", "|---|---|" + "---|" * len(SCALES)]
    for found in claims.values():
        experiment = found[0][0]
        outcomes = {folder.name: record["verdict"]["outcome"] for _, folder, record in found}
        cells = [outcomes.get(scale, "–") for scale in SCALES]
        lines.append(f"| {experiment.number} | [{experiment.title}](#{experiment.name}) | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _claim(found: list[tuple[Experiment, Path, dict[str, Any]]], page: Path) -> str:
    experiment = found[0][0]
    outcomes = {folder.name: record["verdict"]["outcome"] for _, folder, record in found}
    out = [
        f'<a id="{experiment.name}"></a>\n\n## {experiment.number}. {experiment.title}\n',
        f"**The source.** {experiment.claim} *({experiment.source})*\n",
        f"**Here.** {experiment.setup}\n",
        f"**Rule, written before the run{commit_words(experiment.rule_commit, page.parents[1])}.** {experiment.rule}\n",
        *(f"**Changed after a first result.** {redesign}\n" for redesign in experiment.redesigns),
        f"**Verdict: {overall(outcomes)}.**\n",
    ]
    for _, folder, record in found:
        scale = SCALE_NAMES.get(folder.name, folder.name)
        picture = Path(os.path.relpath(folder / "figure.png", page.parent)).as_posix()
        minutes = record["seconds"] / 60
        finding, explanation, figure = words_of(folder, record)
        words = " ".join(figure.split()).replace("[", "(").replace("]", ")")
        out += [
            f"### On the {scale}: {record['verdict']['outcome']}\n",
            f"{finding}\n",
            f"{explanation}\n",
            f"![{words}]({picture})\n",
            f"`{record['command']}`: {record['settings']['seeds']} seeds, {minutes:.1f} minutes; "
            f"intervals: {record['interval']}. [Rows]({picture.replace('figure.png', 'runs.csv')}), "
            f"[summary]({picture.replace('figure.png', 'summary.csv')}).\n",
        ]
    return "\n".join(out)


def commit_words(commit: str, root: Path) -> str:
    """Return the words for a rule's commit; a link where pyproject.toml in `root` names the project's repository."""
    if not commit:
        return ""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    repository = project.get("urls", {}).get("Repository", "").rstrip("/")
    short = commit[:8]
    return f" in commit [{short}]({repository}/commit/{commit})" if repository else f" in commit {short}"
