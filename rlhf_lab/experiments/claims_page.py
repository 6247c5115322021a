"""docs/claims.md: every claim with what its source says, what was found on each rung, and the verdict.

The page is made of the kept results alone (`results/NAME/RUNG/`), by `make claims`; a test compares.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rlhf_lab.experiments.results import RUNGS, kept, read
from rlhf_lab.experiments.runner import Experiment

RUNG_NAMES = {"bandit": "bandit", "tree": "token tree", "small": "small language model"}

HEAD = """# The lecture's claims, looked at

Each claim of the lecture is an experiment: settings, seeds, a rule that was written before the first run, a table
with intervals, a verdict. On the **bandit** and the **token tree** the optimal policy π\\* is exact, and so is every
distance to it. On the **small language model** (`lab-gpt2`, about a million weights, four text worlds with a gold
reward that anyone can read) numbers are estimates. None of this says what would come out for a model a thousand
times larger: a verdict is about these rungs, and the same command runs on others (`--rung gpt2`).

*holds*: by the rule, on that rung. *holds when*: in part, or under a condition that the sentence names. *does not
hold*: by the rule. *not decided*: the intervals are too wide to say. A dash: not run yet on that rung. Anyone who
doubts a row can run its command; it shows a progress bar, goes on where it was stopped, and writes to `results/`.
Nothing was tuned for a method beyond a search of the same size for all, which is in `search.csv` beside the result.
Times are of one core that had other work to do as well: at most so long.

This page is generated from those results (`make claims`).
"""


def build(root: Path, page: Path) -> str:
    """The page's text.

    Args:
        root: the folder `results`.
        page: where the page will stand, for its links.
    """
    claims: dict[str, list[tuple[Experiment, Path, dict[str, Any]]]] = {}
    for experiment, folder in kept(root):
        claims.setdefault(experiment.name, []).append((experiment, folder, read(folder)))
    parts = [HEAD, _table(claims)]
    for found in claims.values():
        parts.append(_claim(found, page))
    return "\n".join(parts).rstrip("\n") + "\n"


def overall(outcomes: dict[str, str]) -> str:
    """One verdict out of those of the rungs: the same everywhere, or which where."""
    different = list(dict.fromkeys(outcomes.values()))
    if len(different) == 1:
        return different[0] + (" in part, everywhere" if different[0] == "holds when" else "")
    where = {"holds": [], "holds when": [], "does not hold": [], "not decided": []}  # type: dict[str, list[str]]
    for rung, outcome in outcomes.items():
        where[outcome].append(RUNG_NAMES.get(rung, rung))
    words = {"holds": "holds", "holds when": "in part", "does not hold": "does not hold", "not decided": "not decided"}
    return "; ".join(f"{words[outcome]}: {', '.join(rungs)}" for outcome, rungs in where.items() if rungs)


def _table(claims: dict[str, list[tuple[Experiment, Path, dict[str, Any]]]]) -> str:
    lines = ["| | claim | " + " | ".join(RUNG_NAMES.values()) + " |", "|---|---|" + "---|" * len(RUNGS)]
    for found in claims.values():
        experiment = found[0][0]
        outcomes = {folder.name: record["verdict"]["outcome"] for _, folder, record in found}
        cells = [outcomes.get(rung, "–") for rung in RUNGS]
        lines.append(f"| {experiment.number} | [{experiment.title}](#{experiment.name}) | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _claim(found: list[tuple[Experiment, Path, dict[str, Any]]], page: Path) -> str:
    experiment = found[0][0]
    outcomes = {folder.name: record["verdict"]["outcome"] for _, folder, record in found}
    out = [
        f'<a id="{experiment.name}"></a>\n\n## {experiment.number}. {experiment.title}\n',
        f"**The source.** {experiment.says} *({experiment.source})*\n",
        f"**Here.** {experiment.asks}\n",
        f"**Rule, written before the run.** {experiment.rule}\n",
        f"**Verdict: {overall(outcomes)}.**\n",
    ]
    for _, folder, record in found:
        rung = RUNG_NAMES.get(folder.name, folder.name)
        picture = Path(os.path.relpath(folder / "figure.png", page.parent)).as_posix()
        minutes = record["seconds"] / 60
        words = " ".join(record["words"].split()).replace("[", "(").replace("]", ")")
        out += [
            f"### On the {rung}: {record['verdict']['outcome']}\n",
            f"{record['verdict']['sentence']}\n",
            f"{record['text']}\n",
            f"![{words}]({picture})\n",
            f"`{record['command']}`: {record['settings']['seeds']} seeds, {minutes:.1f} minutes; "
            f"intervals: {record['interval']}. [Rows]({picture.replace('figure.png', 'runs.csv')}), "
            f"[summary]({picture.replace('figure.png', 'summary.csv')}).\n",
        ]
    return "\n".join(out)
