"""Run the notebooks and store their outputs reproducibly: repeated runs give the same bytes.

    python tools/execute_notebooks.py [notebook.ipynb ...] [--check]

Each notebook runs in a fresh kernel with default settings. The stored outputs are normalised, so that a difference
between versions means a change of the course: they contain no times and no user's metadata, streams are joined, and
execution counts start at 1. A widget is stored as its picture and its text, because its live part is useless without
the kernel that made it, and its model's name is random.

A notebook that raises, warns, or prints a memory address or a path of this machine is refused. `--check` writes
nothing, reports which files would change, and exits with status 1 if any would.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

REPO = Path(__file__).resolve().parent.parent
WIDGET = "application/vnd.jupyter.widget-view+json"
# Metadata of cells that editors and earlier runs add. Tags, slide types and exercise marks are kept.
NOISE = {"execution", "ExecuteTime", "papermill", "vscode", "scrolled", "collapsed", "trusted", "editable"}
UNSTABLE = re.compile(r"\b0x[0-9a-fA-F]{6,}\b")


class Refused(Exception):
    """Raised if a notebook's output contains something that must not be stored."""


def execute(path: Path, timeout: float) -> nbformat.NotebookNode:
    """Run a notebook and return it with normalised outputs."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
        store_widget_state=False,
        # Suppress the kernel's warning about unencrypted loopback sockets.
        extra_arguments=["--IPKernelApp.log_level=40"],
    )
    client.execute()
    return normalise(notebook)


def normalise(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Remove everything from an executed notebook that differs between runs. See the module's docstring.

    Raises:
        Refused: if an output contains a warning, a memory address or a path.
    """
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
        }
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    count, seen = 0, set[str]()
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k not in NOISE})
        if not cell.get("id") or cell.id in seen:
            cell.id = hashlib.sha256(f"{len(seen)}\n{cell.source}".encode()).hexdigest()[:12]
        seen.add(cell.id)
        if cell.cell_type != "code":
            continue
        count += bool(cell.source.strip())
        cell.execution_count = count if cell.source.strip() else None
        cell.outputs = [out for out in map(_output, _joined(cell.outputs)) if out is not None]
        for out in cell.outputs:
            if out.output_type == "execute_result":
                out.execution_count = cell.execution_count
            _refuse(out, cell.id)
    return notebook


def _joined(outputs: list[Any]) -> list[Any]:
    """Join consecutive pieces of the same stream, because the points at which they are cut vary between runs."""
    joined: list[Any] = []
    for out in outputs:
        if joined and out.output_type == "stream" == joined[-1].output_type and out.name == joined[-1].name:
            joined[-1].text += out.text
        else:
            joined.append(out)
    return joined


def _output(out: Any) -> Any:
    """One output in its stored form, or None if nothing of it is stored (a progress bar)."""
    if "data" not in out:
        return out
    if WIDGET in out.data:
        del out.data[WIDGET]
        if "image/png" not in out.data:
            return None
    out.metadata = nbformat.from_dict({k: v for k, v in out.metadata.items() if k in out.data})
    return out


def _refuse(out: Any, where: str) -> None:
    if out.output_type == "stream" and out.name == "stderr":
        raise Refused(f"cell {where} writes to stderr: {out.text.strip()[:300]}")
    texts = [out.get("text", "")]
    texts += [str(value) for kind, value in out.get("data", {}).items() if kind.startswith("text/")]
    for text in texts:
        found = UNSTABLE.search(text)
        if found:
            raise Refused(f"cell {where} shows a memory address, {found.group()}. Give the object a __repr__.")
        for folder in (str(REPO), str(Path.home()) if len(str(Path.home())) > 4 else str(REPO)):
            if folder in text:
                raise Refused(f"cell {where} shows a path of this machine, {folder}")


def as_bytes(notebook: nbformat.NotebookNode) -> bytes:
    """The content of the notebook's file."""
    nbformat.validate(notebook)
    return (str(nbformat.writes(notebook)).rstrip("\n") + "\n").encode()


def without_pictures(content: bytes) -> bytes:
    """The file without its images, to distinguish changed results from changed pixels."""
    return re.sub(rb'"image/png": "[^"]*"', b'"image/png": ""', content)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: notebooks/*.ipynb")
    parser.add_argument("--check", action="store_true", help="write nothing; report which files would change")
    parser.add_argument("--timeout", type=float, default=600, help="maximum seconds per cell")
    args = parser.parse_args()
    paths = args.notebooks or sorted((REPO / "notebooks").glob("*.ipynb"))
    if not paths:
        sys.exit("There are no notebooks in notebooks/.")
    wrong = 0
    with tempfile.TemporaryDirectory() as home:
        # The user's IPython start-up files and matplotlib settings must not influence the stored outputs.
        os.environ |= {"IPYTHONDIR": home, "MPLCONFIGDIR": os.environ.get("MPLCONFIGDIR", home)}
        os.environ |= {"PYTHONHASHSEED": "0", "PYTHONWARNINGS": "default", "JUPYTER_PLATFORM_DIRS": "1"}
        for path in paths:
            start = time.perf_counter()
            try:
                fresh = as_bytes(execute(path, args.timeout))
            except (CellExecutionError, Refused) as error:
                print(f"{path.name}: REFUSED\n{error}", flush=True)
                wrong += 1
                continue
            took = time.perf_counter() - start
            stored = path.read_bytes()
            if fresh == stored:
                change = "unchanged"
            else:
                change = "only pictures differ" if without_pictures(fresh) == without_pictures(stored) else "differs"
                if args.check:
                    wrong += 1
                else:
                    path.write_bytes(fresh)
                    change += ", written"
            print(f"{path.name}: {change} ({took:.1f} s)", flush=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
