"""Translations of the notebooks' Markdown cells into Chinese: list what is missing or stale, and build the notebooks.

    python tools/translate_notebooks.py              # list the cells that are missing or stale
    python tools/translate_notebooks.py 05 --add     # add the missing cells of notebook 05 to notebooks/zh/05_dpo.md
    python tools/translate_notebooks.py 05 --sums    # print the checksums
    python tools/translate_notebooks.py --build      # write build/notebooks-zh/05_dpo.zh.ipynb, …

A file `notebooks/zh/05_dpo.md` contains the translated cells of a notebook, each below a line with the cell's id and a
checksum of the English text that was translated:

    <!-- cell loss-why 3fa9c02e -->

If the English text changes, the checksum no longer fits, and the cell is stale. Code blocks and displayed formulas are
not repeated: `[[1]]` stands for the first one of the English cell, `[[2]]` for the second. In a built notebook the
cells that are missing or stale are English. Code and outputs are those of the English notebook.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat

REPO = Path(__file__).resolve().parent.parent
TODO = "todo"
"""In place of a checksum: the cell still contains the English text."""
_HEAD = re.compile(r"^<!-- cell (\S+) (\S+) -->\n", re.M)
_BLOCK = re.compile(r"^```.*?^```$|^\$\$.*?\$\$$", re.M | re.S)


def checksum(source: str) -> str:
    """Eight hexadecimal digits that identify an English text."""
    return hashlib.sha256(source.encode()).hexdigest()[:8]


def read(path: Path) -> dict[str, tuple[str, str]]:
    """The cells of a translation: id → (checksum of the English text, Chinese text). Empty if there is no file."""
    parts = _HEAD.split(path.read_text(encoding="utf-8")) if path.is_file() else [""]
    return {key: (mark, text.strip()) for key, mark, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True)}


def written(cells: Mapping[str, tuple[str, str]]) -> str:
    """The text of a file from which `read` returns `cells`."""
    return "\n".join(f"<!-- cell {key} {mark} -->\n{text}\n" for key, (mark, text) in cells.items())


def markdown(notebook: Any) -> dict[str, str]:
    """The Markdown cells of a notebook: id → text."""
    return {cell.id: cell.source for cell in notebook.cells if cell.cell_type == "markdown"}


def filled(english: str, chinese: str) -> str:
    """The Chinese text with the code blocks and displayed formulas of the English one.

    Raises:
        ValueError: a block is not used exactly once.
    """
    blocks = _BLOCK.findall(english)
    used = [int(number) for number in re.findall(r"^\[\[(\d+)\]\]$", chinese, re.M)]
    if sorted(used) != list(range(1, len(blocks) + 1)):
        raise ValueError(f"uses the blocks {used}, but the English text has {len(blocks)}")
    return re.sub(r"^\[\[(\d+)\]\]$", lambda found: blocks[int(found[1]) - 1], chinese, flags=re.M)


def problems(english: Mapping[str, str], cells: Mapping[str, tuple[str, str]]) -> tuple[list[str], list[str]]:
    """What is wrong with a translation, and the ids of the cells without one.

    Args:
        english: from `markdown`.
        cells: from `read`.
    """
    wrong = []
    for key, (mark, chinese) in cells.items():
        if key not in english:
            wrong.append(f"{key}: the notebook has no such cell. Delete the translation.")
        elif mark not in (TODO, checksum(english[key])):
            wrong.append(
                f"{key}: the English text has changed. Translate it again and write {checksum(english[key])} in its "
                "heading, or delete the translation."
            )
        elif mark != TODO:
            try:
                filled(english[key], chinese)
            except ValueError as error:
                wrong.append(f"{key}: {error}.")
    return wrong, [key for key in english if cells.get(key, (TODO, ""))[0] == TODO]


def added(english: Mapping[str, str], cells: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """`cells` in the order of the notebook, with the English text of those that are missing."""

    def blank(source: str) -> str:
        numbers = iter(range(1, len(source)))
        return _BLOCK.sub(lambda _: f"[[{next(numbers)}]]", source)

    return {key: cells.get(key, (TODO, blank(source))) for key, source in english.items()}


def chinese_notebook(notebook: Any, cells: Mapping[str, tuple[str, str]]) -> Any:
    """`notebook` with every Markdown cell that has a current translation in Chinese."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cells.get(cell.id, ("", ""))[0] == checksum(cell.source):
            cell.source = filled(cell.source, cells[cell.id][1])
    return notebook


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line, or with the given arguments. The exit status is 1 if a translation is stale."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("numbers", nargs="*", help="such as 05; default: the notebooks with a translation")
    parser.add_argument("--add", action="store_true", help="add the missing cells, with their English text")
    parser.add_argument("--sums", action="store_true", help="print the checksum of every cell")
    parser.add_argument("--build", action="store_true", help="write the Chinese notebooks")
    parser.add_argument("--notebooks", type=Path, default=REPO / "notebooks")
    parser.add_argument("--out", type=Path, default=REPO / "build" / "notebooks-zh")
    args = parser.parse_args(arguments)
    known = sorted(path.stem for path in args.notebooks.glob("[0-9][0-9]_*.ipynb"))
    stale = False
    for name in known:
        place = args.notebooks / "zh" / f"{name}.md"
        if name[:2] not in args.numbers and (args.numbers or not place.is_file()):
            continue
        notebook: Any = nbformat.read(args.notebooks / f"{name}.ipynb", as_version=4)
        cells = read(place)
        wrong, missing = problems(markdown(notebook), cells)
        stale |= bool(wrong)
        print(f"{name}: {len(cells)} cells translated, {len(missing)} missing, {len(wrong)} to correct")
        for sentence in (*wrong, *(f"{key}: missing" for key in missing)):
            print(f"  {sentence}")
        for key, source in markdown(notebook).items() if args.sums else ():
            print(f"  {key} {checksum(source)}")
        if args.add:
            place.parent.mkdir(exist_ok=True)
            place.write_text(written(added(markdown(notebook), cells)), encoding="utf-8")
        if args.build:
            args.out.mkdir(parents=True, exist_ok=True)
            nbformat.write(chinese_notebook(notebook, cells), args.out / f"{name}.zh.ipynb")
    sys.exit(int(stale))


if __name__ == "__main__":
    main()
