"""States of a notebook's explorers: the notebook is run up to the cell, and its own explorer is asked for them.

That takes up to a minute for a notebook, so what came out is kept in build/slides/cache, together with checksums of
the code that was run and of every file of the lab that it loaded.
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
from slides import static_states as _alive
_alive.dump(_explorer_of_cell, {place!r})
"""


def states_of(path: Path, number: int, words: str) -> tuple[str, str]:
    """The states of the explorer that cell `number` of the notebook ends with.

    Args:
        path: of the notebook.
        number: of the cell, from 0.
        words: what the explorer says at first in the stored notebook.

    Returns:
        JSON as `slides.compressed_states.folded` makes it, and a sentence where the explorer says something else than
        the
        stored notebook, empty where not.
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
            if (ROOT / file).stat().st_mtime > begin:  # which of the two was loaded?
                kept["files"][file] = "changed meanwhile"
        place.write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")
    now = kept["words"]
    stale = "" if now == words else f"{path.name} was stored when its explorer said {words!r}; now it says {now!r}."
    return kept["states"], stale


def _data() -> str:
    """A checksum of what ships in data/: models and texts that a notebook may load."""
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
    """A checksum of a file; of Python's only what runs: words and layout may change without a notebook's run anew."""
    if path.suffix != ".py":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    code = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(code):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(code).encode()).hexdigest()


def with_name(source: str, name: str) -> str:
    """A cell's code with its last expression, which Jupyter would show, given a name instead.

    Raises:
        LabError: it ends with something else than an expression.
    """
    code = ast.parse(source)
    if not code.body or not isinstance(last := code.body[-1], ast.Expr):
        raise LabError("The cell does not end with what it shows.")
    code.body[-1] = ast.Assign([ast.Name(name, ast.Store())], last.value)
    return ast.unparse(ast.fix_missing_locations(code))


def _execute(path: Path, sources: list[str], place: Path) -> None:
    """Run the cells in a kernel as Jupyter would; the last one leaves its explorer's states in `place`."""
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
    """In the kernel: write the explorer's states, its first words, and which of the lab's files were loaded."""
    from slides import compressed_states

    words = f"{explorer.title}: {explorer.text}"
    data = json.dumps(compressed_states.folded(explorer), ensure_ascii=False, separators=(",", ":"))
    files = {file: _sum(file) for file in _loaded(getattr(m, "__file__", None) for m in sys.modules.values())}
    found = json.dumps({"words": words, "states": data, "files": files}, ensure_ascii=False)
    Path(place).write_text(found, encoding="utf-8")


def pooled(states: dict[str, Any]) -> dict[str, Any]:
    """States in which lists of unequal length share their parts: each part is written once, in a slot's fourth place.

    A picture whose layers come and go has no two lists of layers alike, and few layers that no other has.
    `assets/explorers.js` reads both.
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
    """Those of these files that decide what the states are, as seen from the repository's root."""
    paths = {Path(file) for file in files if file}
    decides = (ROOT / "rlhf_lab", Path(__file__).with_name("compressed_states.py"))
    return sorted(p.relative_to(ROOT).as_posix() for p in paths if any(p.is_relative_to(one) for one in decides))
