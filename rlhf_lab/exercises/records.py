"""What a student has predicted and solved: saved in the student's folder and summarised for each notebook.

A student's folder is one that `rlhf-lab course` or `make lab` has made. It contains the file `COURSE_FILE`. There every
prediction and every check adds one line to `ANSWERS_FILE`, and nothing is removed from it. In another folder, such as
that of the original notebooks, answers are kept only until the kernel stops.
"""

from __future__ import annotations

import html
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_lab.errors import LabError
from rlhf_lab.exercises.checking import Task
from rlhf_lab.intervals import aligned
from rlhf_lab.training.checkpoint import append, read_lines

COURSE_FILE = ".rlhf-lab-course.json"
"""The file that marks a student's folder."""
ANSWERS_FILE = ".rlhf-lab-answers.jsonl"
"""The file with a student's answers."""
KINDS = ("predict", "derive", "implement", "training loop", "debug")
"""The kinds of exercises, in the order of the ladder."""

_in_memory: list[dict[str, Any]] = []


def record(key: str, event: str, **values: Any) -> str:
    """Save an event of an exercise.

    Args:
        key: the exercise.
        event: predicted, revealed or checked.
        values: such as the answer, or whether it was right.

    Returns:
        an empty string, or why the event is kept only until the kernel stops.
    """
    line = {"key": key, "event": event, **values}
    _in_memory.append(line)
    if not (Path.cwd() / COURSE_FILE).is_file():
        return ""
    try:
        append(Path.cwd() / ANSWERS_FILE, json.dumps(line | {"time": int(time.time())}, ensure_ascii=False) + "\n")
    except LabError as error:
        return f"This is not saved: {error}"
    return ""


def events(folder: Path | None = None) -> list[dict[str, Any]]:
    """All events in order: those of a student's folder, and otherwise those of this process.

    Args:
        folder: the student's folder; None for the current one.
    """
    place = Path.cwd() if folder is None else folder
    saved = read_lines(place / ANSWERS_FILE) if (place / COURSE_FILE).is_file() else []
    mine = _in_memory if folder is None else []
    kept = [{name: value for name, value in line.items() if name != "time"} for line in saved]
    # What could not be written to the file is still in memory.
    return saved + [line for line in mine if line not in kept]


def prediction(key: str) -> Any:
    """The prediction of an exercise that counts, which is the last one before the answer was revealed; or None."""
    found = None
    for one in events():
        if one.get("key") == key and one.get("event") == "revealed":
            break
        if one.get("key") == key and one.get("event") == "predicted":
            found = one.get("answer")
    return found


@dataclass(frozen=True)
class Progress:
    """What is solved in each notebook. It displays itself as a cell's last line.

    Attributes:
        solved: for each notebook and kind the number of solved exercises and the number of all. A prediction is solved
            when it has been compared with the true answer.
        right: for each notebook the number of right predictions.
    """

    solved: dict[str, dict[str, tuple[int, int]]]
    right: dict[str, int]

    def rows(self) -> list[list[str]]:
        """The table: a row for each notebook and one for all of them."""
        used = [kind for kind in KINDS if any(kind in kinds for kinds in self.solved.values())]
        rows = [["notebook", *used, "solved"]]
        total: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for number, kinds in self.solved.items():
            for kind, counts in kinds.items():
                total[kind] = [sum(pair) for pair in zip(total[kind], counts, strict=True)]
            rows.append([number, *_cells(kinds, used)])
        if len(self.solved) > 1:
            rows.append(["all", *_cells({kind: (a, b) for kind, (a, b) in total.items()}, used)])
        return rows

    def _note(self) -> str:
        asked = sum(kinds["predict"][0] for kinds in self.solved.values() if "predict" in kinds)
        return f"{sum(self.right.values())} of {asked} predictions are right." if asked else ""

    def __repr__(self) -> str:
        return "\n".join([*aligned(self.rows()), *([self._note()] if self._note() else [])])

    def _repr_html_(self) -> str:
        head, *rows = [[html.escape(cell) for cell in row] for row in self.rows()]
        body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
        top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
        return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table><p>{self._note()}</p>"


def summarise(tasks: dict[str, Sequence[Task]], found: Iterable[dict[str, Any]]) -> Progress:
    """Count what is solved.

    Args:
        tasks: the exercises of each notebook.
        found: the events.
    """
    passed, right = set(), set()
    for one in found:
        if one.get("event") == "revealed" or (one.get("event") == "checked" and one.get("passed")):
            passed.add(one.get("key"))
        if one.get("event") == "revealed" and one.get("passed"):
            right.add(one.get("key"))
    solved: dict[str, dict[str, tuple[int, int]]] = {}
    for number, all_of_it in tasks.items():
        solved[number] = {}
        for kind in KINDS:
            keys = [task.key for task in all_of_it if task.kind == kind]
            if keys:
                solved[number][kind] = (sum(key in passed for key in keys), len(keys))
    counts = {number: sum(task.key in right for task in all_of_it) for number, all_of_it in tasks.items()}
    return Progress(solved, counts)


def _cells(kinds: dict[str, tuple[int, int]], used: list[str]) -> list[str]:
    cells = [f"{kinds[kind][0]} of {kinds[kind][1]}" if kind in kinds else "" for kind in used]
    return [*cells, f"{sum(one for one, _ in kinds.values())} of {sum(one for _, one in kinds.values())}"]
