"""States of the explorers in notebooks, computed by running the notebook up to the explorer's cell.

This takes up to a minute per notebook. The result is therefore cached in build/slides/cache, together with checksums
of the code that was run and of every file of the package that it loaded.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlhf_lab.errors import LabError

ROOT = Path(__file__).parents[1]
CACHE = ROOT / "build" / "slides" / "cache"

_TAIL = """
from slides import static_states as _static_states
_static_states.dump(_explorer_of_cell, {place!r})
"""


def states_of(path: Path, number: int, words: str) -> tuple[str, str]:
    """The states of the explorer with which cell `number` of the notebook ends.

    Args:
        path: path of the notebook.
        number: index of the cell, from 0.
        words: the explorer's initial text in the stored notebook.

    Returns:
        JSON from `slides.compressed_states.folded`, and a message if the explorer's text differs from the stored
        one (otherwise an empty string).
    """
    import nbformat

    sources = [c.source for c in nbformat.read(path, as_version=4).cells[: number + 1] if c.cell_type == "code"]
    run = hashlib.sha256("\0".join((*sources, _data())).encode()).hexdigest()
    place = CACHE / f"notebook-{path.stem}-{number}.json"
    kept = _read(place)
    if kept.get("run") != run or any(_sum(file) != sum_ for file, sum_ in kept["files"].items()):
        place.parent.mkdir(parents=True, exist_ok=True)
        begin = time.time()
        _execute(path, sources, place)
        kept = {**_read(place), "run": run}
        for file in kept["files"]:
            if (ROOT / file).stat().st_mtime > begin:  # unknown which version was loaded
                kept["files"][file] = "changed meanwhile"
        place.write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")
    now = kept["words"]
    stale = "" if now == words else f"{path.name} was stored when its explorer's text was {words!r}; now it is {now!r}."
    return kept["states"], stale


def _data() -> str:
    """A checksum of the models and texts in data/, which a notebook may load."""
    files = sorted(path for path in (ROOT / "data").rglob("*") if path.is_file())
    return " ".join(f"{path.relative_to(ROOT).as_posix()} {_sum(str(path))}" for path in files)


def _read(place: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(place.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {"files": {}}


def _sum(file: str) -> str:
    path = ROOT / file
    return _checksum(path, path.stat().st_mtime_ns) if path.is_file() else ""


@functools.cache
def _checksum(path: Path, written: int) -> str:
    """A checksum of a file. For Python it ignores docstrings, comments and layout, which do not change the states."""
    if path.suffix != ".py":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    code = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(code):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(code).encode()).hexdigest()


def with_name(source: str, name: str) -> str:
    """The code of a cell with its last expression, which Jupyter would show, assigned to a name instead.

    Raises:
        LabError: if the cell does not end with an expression.
    """
    code = ast.parse(source)
    if not code.body or not isinstance(last := code.body[-1], ast.Expr):
        raise LabError("The cell does not end with an expression, so it shows no explorer.")
    code.body[-1] = ast.Assign([ast.Name(name, ast.Store())], last.value)
    return ast.unparse(ast.fix_missing_locations(code))


def _execute(path: Path, sources: list[str], place: Path) -> None:
    """Run the cells in a Jupyter kernel; the last one writes its explorer's states to `place`."""
    import nbformat.v4 as v4
    from nbclient import NotebookClient

    last = with_name(sources[-1], "_explorer_of_cell") + _TAIL.format(place=str(place))
    notebook = v4.new_notebook(cells=[v4.new_code_cell(source) for source in (*sources[:-1], last)])
    here = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    client = NotebookClient(
        notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}},
        extra_arguments=["--IPKernelApp.log_level=40"],
    )  # fmt: skip
    client.execute(env={**os.environ, "PYTHONPATH": here, "TQDM_DISABLE": "1"})


def dump(explorer: Any, place: str) -> None:
    """Called in the kernel: write the explorer's states, its initial text, and the loaded files of the package."""
    from slides import compressed_states

    words = f"{explorer.title}: {explorer.text}"
    data = json.dumps(compressed_states.folded(explorer), ensure_ascii=False, separators=(",", ":"))
    files = {file: _sum(file) for file in _loaded(getattr(m, "__file__", None) for m in sys.modules.values())}
    found = json.dumps({"words": words, "states": data, "files": files}, ensure_ascii=False)
    Path(place).write_text(found, encoding="utf-8")


def pooled(states: dict[str, Any]) -> dict[str, Any]:
    """States in which lists of different lengths share their elements, which are stored in the slot's fourth entry.

    If layers of a picture appear and disappear, most lists of layers differ, but they consist of the same few layers.
    `assets/explorers.js` reads both forms.
    """
    slots = []
    for path, values, which in states["slots"]:
        slot = [path, values, which]
        if all(isinstance(value, list) and all(isinstance(one, dict | list) for one in value) for value in values):
            parts: dict[str, int] = {}
            numbers = [[parts.setdefault(json.dumps(one), len(parts)) for one in value] for value in values]
            slot = min(slot, [path, numbers, which, [json.loads(part) for part in parts]], key=_length)
        slots.append(slot)
    return {**states, "slots": slots}


def _length(value: Any) -> int:
    return len(json.dumps(value))


def _loaded(files: Iterable[str | None]) -> list[str]:
    """Those of these files on which the states depend, as paths from the root of the repository."""
    paths = {Path(file) for file in files if file}
    decides = (ROOT / "rlhf_lab", Path(__file__).with_name("compressed_states.py"))
    return sorted(p.relative_to(ROOT).as_posix() for p in paths if any(p.is_relative_to(one) for one in decides))
