"""`make site`: slides, notebooks, claims and glossary as pages that open from disk, from one entrance.

Nothing is asked of another host: libraries lie beside the pages, states and pictures in them. Explorers are alive
from states computed here. A notebook's explorer is recognised by its first state in words, which the stored notebook
holds: where a factory of the slides gives the same words, its states are used; any other is computed by running the
notebook's cells up to it.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from tqdm.auto import tqdm

from rlhf_lab.checks import LabError
from slides import build, explorers, vendor
from slides.deck import TITLE, deck
from slides.format import Deck, Explorer

SITE = build.ROOT / "build" / "site"
DOCS = ("claims", "glossary", "notation", "scaling", "benchmarks")
"""Pages of docs/ that are published, in this order, those that are there."""
LIMIT = 60 * 2**20
"""Bytes that the whole site may have."""


@dataclass(frozen=True)
class Page:
    """A page of the site: where it lies, its title, its body as HTML, and the states it loads."""

    path: str
    title: str
    body: str
    states: tuple[str, ...] = ()


def write(folder: Path = SITE) -> None:
    """Write the whole site.

    Raises:
        LabError: npm's libraries cannot be had; the site is larger than it may be.
    """
    vendor.fetch()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    lib = folder / "lib"
    build.library(lib)
    (lib / "code.css").write_text(_code_style(), encoding="utf-8")
    slides = folder / "slides"
    slides.mkdir()
    for sentence in build.write_page(deck(), slides, "../lib", TITLE.en):
        print(f"not shown yet: {sentence}")
    notebooks = sorted((build.ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    pages = []
    for path in tqdm(notebooks, desc="notebooks"):
        pages.append(notebook_page(path, folder / "notebooks" / "states"))
    docs = [doc_page(build.ROOT / "docs" / f"{name}.md", folder) for name in DOCS if _doc(name).is_file()]
    for page in (*pages, *docs):
        target = folder / page.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(framed(page), encoding="utf-8")
    (folder / "index.html").write_text(entrance(deck(), pages, docs), encoding="utf-8")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder / 'index.html'}: {len(pages)} notebooks, {len(docs)} documents, {size / 2**20:.1f} MB")
    if size > LIMIT:
        raise LabError(f"The site has {size / 2**20:.0f} MB; at most {LIMIT / 2**20:.0f} are allowed.")


def _doc(name: str) -> Path:
    return build.ROOT / "docs" / f"{name}.md"


def _code_style() -> str:
    from pygments.formatters import HtmlFormatter

    # Both styles keep a contrast of 4.5 : 1 on their own grounds.
    light = HtmlFormatter(style="xcode").get_style_defs(".highlight")
    dark = HtmlFormatter(style="github-dark").get_style_defs('[data-theme="dark"] .highlight')
    plain = "background: none !important"
    return f'{light}\n{dark}\n.highlight, [data-theme="dark"] .highlight {{ {plain} }}\n'


# --- notebooks ------------------------------------------------------------------------------------------------


def notebook_page(path: Path, target: Path) -> Page:
    """A stored notebook as a page; the states of its explorers are written into `target`."""
    from nbconvert import HTMLExporter

    notebook = nbformat.read(path, as_version=4)
    found: list[str] = []
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            words = _explorer_words(cell, output)
            if words is not None:
                key = f"{path.stem}-{len(found) + 1}"
                data = _states_for(path, number, words)
                target.mkdir(parents=True, exist_ok=True)
                (target / f"{key}.js").write_text(build.states_script(key, data), encoding="utf-8")
                output["data"] = {"text/html": f'<div class="explorer"><div data-states="{key}"></div></div>'}
                output["metadata"] = {}
                found.append(key)
    body, _ = HTMLExporter(
        template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True
    ).from_notebook_node(notebook)
    title = next(_plain(c.source.split("\n")[0]) for c in notebook.cells if c.cell_type == "markdown")
    body = _tidied(body)
    return Page(f"notebooks/{path.stem}.html", title, body, tuple(f"states/{key}.js" for key in found))


def _plain(heading: str) -> str:
    return re.sub(r"[*`$]", "", heading.lstrip("# ").strip())


def _explorer_words(cell: Any, output: Any) -> str | None:
    """The words of the explorer that a cell shows, if it shows one."""
    data = output.get("data", {})
    if "_explorer(" not in cell.source or "image/png" not in data:
        return None
    return str(data.get("text/plain", "")).strip()


def _states_for(path: Path, number: int, words: str) -> str:
    for name, first in _first_words().items():
        if first == words:
            return build.states_named(Explorer(name))
    return build.kept(
        f"states-{path.stem}", build.digest(path.read_text(encoding="utf-8"), experiments=True),
        lambda: _run_up_to(path, number),
    )  # fmt: skip


def _first_words() -> dict[str, str]:
    """What each factory's explorer says at first, as a stored notebook writes it."""
    key = build.digest(experiments=True)
    text = build.kept(
        "first-words", key,
        lambda: json.dumps({name: f"{e.title}: {e.text}" for name in explorers.FACTORIES for e in [explorers.make(name)]}),
    )  # fmt: skip
    return dict(json.loads(text))


_TAIL = """
import json
from slides import states
_shown = _explorer_of_cell
print("@@" + json.dumps(states.folded(_shown), ensure_ascii=False, separators=(",", ":")))
"""


def _run_up_to(path: Path, number: int) -> str:
    """The states of the explorer that cell `number` ends with, by running the notebook up to it."""
    import ast

    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    notebook.cells = notebook.cells[: number + 1]
    last = ast.parse(notebook.cells[-1].source)
    shown = last.body[-1]
    if not isinstance(shown, ast.Expr):
        raise LabError(f"{path.name}: cell {number} does not end with its explorer.")
    last.body[-1] = ast.Assign([ast.Name("_explorer_of_cell", ast.Store())], shown.value)
    notebook.cells[-1].source = ast.unparse(ast.fix_missing_locations(last)) + _TAIL
    here = os.pathsep.join(filter(None, (str(build.ROOT), os.environ.get("PYTHONPATH", ""))))
    client = NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(path.parent)}})
    client.execute(env={**os.environ, "PYTHONPATH": here, "TQDM_DISABLE": "1", "MPLBACKEND": "agg"})
    said = "".join(o["text"] for o in notebook.cells[-1].outputs if o.get("name") == "stdout")
    return said[said.index("@@") + 2 :].strip()


def _tidied(body: str) -> str:
    """Links to notebooks lead to their pages; long tables and equations scroll in their own boxes, not the page."""
    body = re.sub(r'href="([^":]+)\.ipynb(#[^"]*)?"', r'href="\1.html\2"', body)
    # An image without words would be silent to who cannot see it; every picture of the course says its own.
    body = re.sub(r"<img (?![^>]*\balt=)", '<img alt="" ', body)
    return re.sub(r"(<table\b.*?</table>)", r'<div class="scroll" tabindex="0" role="group">\1</div>', body, flags=re.S)


# --- documents ------------------------------------------------------------------------------------------------


def doc_page(path: Path, folder: Path) -> Page:
    """A page of docs/, its pictures and tables copied into the site."""
    from nbconvert.filters.markdown_mistune import markdown2html_mistune

    source = path.read_text(encoding="utf-8")
    body = str(markdown2html_mistune(source))

    def follow(match: re.Match[str]) -> str:
        kind, link = match[1], html.unescape(match[2])
        if link.startswith("#"):
            return match[0]
        if "://" in link:
            return match[0] if kind == "href" else 'alt="" data-left-out'
        file, _, place = link.partition("#")
        if file.endswith(".md") and Path(file).stem in DOCS:
            return f'href="{Path(file).stem}.html{f"#{place}" if place else ""}"'
        real = (path.parent / file).resolve()
        if real.suffix in (".png", ".csv") and real.is_file() and real.is_relative_to(build.ROOT):
            kept = Path("files") / real.relative_to(build.ROOT)
            (folder / "docs" / kept).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(real, folder / "docs" / kept)
            return f'{kind}="{kept.as_posix()}"'
        return "data-code"  # a file of the repository: its name says where

    body = re.sub(r'\b(href|src)="([^"]*)"', follow, body)
    return Page(f"docs/{path.stem}.html", _plain(source.split("\n", 1)[0]), _tidied(body))


# --- frames ---------------------------------------------------------------------------------------------------


def framed(page: Page) -> str:
    """A page with what is around it. Formulas are set by KaTeX in the page."""
    loads = "\n".join(f'<script defer src="{script}"></script>' for script in page.states)
    charts = (
        '<script defer src="../lib/chart.js"></script>\n<script defer src="../lib/explorers.js"></script>'
        if loads
        else ""
    )
    mount = '<script defer src="../lib/mount.js"></script>' if loads else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{html.escape(page.title)}</title>
<link rel="stylesheet" href="../lib/katex/katex.min.css">
<link rel="stylesheet" href="../lib/chart.css">
<link rel="stylesheet" href="../lib/code.css">
<link rel="stylesheet" href="../lib/page.css">
<script src="../lib/theme.js"></script>
<script defer src="../lib/katex/katex.min.js"></script>
<script defer src="../lib/katex/auto-render.min.js"></script>
<script defer src="../lib/page.js"></script>
{charts}
{loads}
{mount}
</head>
<body>
<nav class="top"><a href="../index.html">⌂ All pages</a><button type="button" id="theme" aria-label="light or dark">◐</button></nav>
<main>
{page.body}
</main>
</body>
</html>
"""


def entrance(made: Deck, notebooks: Iterable[Page], docs: Iterable[Page]) -> str:
    """The one page from which all others are reached."""

    def links(pages: Iterable[Page]) -> str:
        return "".join(f'<li><a href="{page.path}">{html.escape(page.title)}</a></li>' for page in pages)

    blocks = "".join(
        f'<li><a href="slides/index.html?lang=en#/{b.slides[0].key}">{html.escape(b.title.en)}</a> '
        f'<a lang="zh" href="slides/index.html?lang=zh#/{b.slides[0].key}">{html.escape(b.title.zh)}</a></li>'
        for b in made.blocks
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>rlhf_lab: {html.escape(made.title.en)}</title>
<link rel="stylesheet" href="lib/page.css">
<script src="lib/theme.js"></script>
<script defer src="lib/page.js"></script>
</head>
<body class="entrance">
<nav class="top"><span>rlhf_lab</span><button type="button" id="theme" aria-label="light or dark">◐</button></nav>
<main>
<h1>{html.escape(made.title.en)} <span lang="zh">{html.escape(made.title.zh)}</span></h1>
<p>Every equation runs, and the exact optimal policy stands beside what each method learned. Sliders move on every
page, without a server.</p>
<p class="doors"><a href="slides/index.html?lang=en">The slides, in English</a>
<a lang="zh" href="slides/index.html?lang=zh">中文幻灯片</a>
<a href="slides/index.html?lang=en&amp;print-pdf">For printing</a></p>
<h2>The lecture, block by block</h2>
<ol>{blocks}</ol>
<h2>The notebooks</h2>
<ul>{links(notebooks)}</ul>
<h2>The claims, the glossary, and more</h2>
<ul>{links(docs)}</ul>
</main>
</body>
</html>
"""
