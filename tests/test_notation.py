"""docs/notation.md: every name on the page can be imported from the file it links to, and no name is left out."""

import dataclasses
import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rlhf_lab import exact, kl, losses, preferences, sampling

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGE = (DOCS / "notation.md").read_text(encoding="utf-8")
LINKS = sorted(set(re.findall(r"\[`([\w.]+)`\]\(([^)#]+)\)", PAGE)))
FIELDS = sorted(set(re.findall(r"`(\w+)` of \[`([\w.]+)`\]", PAGE)))


def found(name: str) -> tuple[Any, Any]:
    """What `rlhf_lab.<name>` is, and the module, class or function whose source says where it is written."""
    thing: Any = importlib.import_module("rlhf_lab")
    owner = thing
    for part in name.split("."):
        try:
            thing = getattr(thing, part)
        except AttributeError:
            thing = importlib.import_module(f"{thing.__name__}.{part}")
        if isinstance(thing, ModuleType | type) or callable(thing):
            owner = thing
    return thing, owner


@pytest.mark.parametrize(("name", "file"), LINKS, ids=[name for name, _ in LINKS])
def test_a_name_on_the_page_is_importable_and_written_in_the_file_it_links_to(name: str, file: str) -> None:
    _, owner = found(name)
    source = inspect.getsourcefile(inspect.unwrap(owner) if callable(owner) else owner)
    assert source is not None and Path(source).resolve() == (DOCS / file).resolve()


@pytest.mark.parametrize(("argument", "name"), FIELDS, ids=[f"{a} of {n}" for a, n in FIELDS])
def test_an_argument_on_the_page_is_one_of_that_function_or_class(argument: str, name: str) -> None:
    thing, _ = found(name)
    known = set(inspect.signature(thing).parameters)
    if dataclasses.is_dataclass(thing):
        known |= {field.name for field in dataclasses.fields(thing)}
    assert argument in known


def test_every_link_leads_to_a_file_or_a_heading() -> None:
    files = {link for link in re.findall(r"\]\(([^)#]+)\)", PAGE) if "://" not in link}
    assert files and [link for link in sorted(files) if not (DOCS / link).exists()] == []
    headings = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^## (.+)$", PAGE, re.M)}
    anchors = set(re.findall(r"\]\(#([^)]+)\)", PAGE))
    assert anchors == headings


@pytest.mark.parametrize("room", [exact, losses, kl, sampling, preferences], ids=lambda room: room.__name__)
def test_every_public_function_of_the_mathematics_is_on_the_page(room: ModuleType) -> None:
    own = [n for n, v in vars(room).items() if inspect.isfunction(v) and v.__module__.startswith(room.__name__)]
    public = [n for n in own if not n.startswith("_")]
    on_page = {name for name, _ in LINKS}
    assert public and [n for n in public if f"{room.__name__.removeprefix('rlhf_lab.')}.{n}" not in on_page] == []


def test_every_row_has_as_many_cells_as_its_table_has_columns() -> None:
    """A bar inside a formula would split a cell in two."""
    width = 0
    for line in PAGE.splitlines():
        if not line.startswith("|"):
            width = 0
            continue
        cells = line.count("|") - 1
        width = width or cells
        assert cells == width, line


def test_a_symbol_is_explained_once() -> None:
    """The first cell of a row of symbols; the same letter for two things is told apart in its cell."""
    symbols = [row.split("|")[1].strip() for row in PAGE.splitlines() if row.startswith("| ") and row.count("|") == 7]
    symbols = [s for s in symbols if s != "symbol"]
    assert len(symbols) > 50 and sorted({s for s in symbols if symbols.count(s) > 1}) == []
