"""The static site (`make site`): slides, notebooks, claims and glossary as pages that open from disk.

No page loads anything from another host. Explorers respond to their controls with states that are computed in advance
(`static_states.py`), and formulas are rendered in advance. Without JavaScript a page still shows all its text, formulas
and pictures.
"""

from __future__ import annotations

import functools
import hashlib
import html
import json
import posixpath
import re
import shutil
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from bs4 import BeautifulSoup
from tqdm.auto import tqdm

from rlhf_lab.errors import LabError
from slides import build, markdown_html, notebook, render, static_states, vendor
from slides.deck import TITLE, deck
from slides.schema import Deck

SITE = build.ROOT / "build" / "site"
DOCS = {
    "claims": "Each claim of the lecture as an experiment: the decision rule, the numbers, the outcome",
    "glossary": "Terms and their definitions",
    "notation": "Every symbol: its pronunciation, its unit, its name in the code, where it is used",
    "commands": "The command line: train, sample, evaluate, compare, rerun an experiment",
    "scaling": "Training on one GPU or several, and resuming after an interruption",
    "benchmarks": "Speed and memory compared with another library, measured on one machine",
    "mutations": "Bugs that were inserted on purpose, and the tests that detect them",
}
"""Pages of docs/ that are published if they exist, each with its description on the front page."""
LIMIT = 80 * 2**20
"""Maximum size of the whole site in bytes."""
_COPIED = (".png", ".csv")
_CUT = "\0"


@dataclass(frozen=True)
class Page:
    """A page of the site.

    Attributes:
        path: path from the root of the site, with slashes.
        title: plain text.
        body: HTML.
        contents: entries of its table of contents.
        states: scripts with explorers' states, as paths from the root of the site.
        about: its description on the front page.
    """

    path: str
    title: str
    body: str
    contents: tuple[markdown_html.Heading, ...] = ()
    states: tuple[str, ...] = ()
    about: str = ""

    @property
    def up(self) -> str:
        """The relative path to the root of the site."""
        return "../" * self.path.count("/")


@dataclass
class Links:
    """Translates links between files of the repository into links of the site, and collects the linked files.

    Attributes:
        wanted: files of the repository that a page links or shows: tables, pictures, source code.
        missing: messages about pictures that do not exist.
    """

    wanted: set[Path] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)

    def place(self, file: Path) -> str | None:
        """The path of a file of the repository on the site, or None if it is not published."""
        name = file.relative_to(build.ROOT).as_posix()
        if name.startswith("docs/") and file.suffix == ".md":
            return f"docs/{file.stem}.html" if file.stem in DOCS else None
        if name.startswith("notebooks/") and file.suffix == ".ipynb":
            return name.removesuffix(".ipynb") + ".html"
        if file.suffix in (".py", *_COPIED):
            self.wanted.add(file)
            return f"code/{name}.html" if file.suffix == ".py" else f"files/{name}"
        return None

    def follow(self, link: str, source: Path, page: str) -> str | None:
        """The target, seen from `page`, of a link in the file `source`; None if it is not on the site."""
        if link.startswith("#") or re.match(r"[a-z]+:", link):
            return link
        name, _, anchor = link.partition("#")
        real = (source.parent / name).resolve()
        if not real.is_file() or not real.is_relative_to(build.ROOT):
            return None
        place = self.place(real)
        if place is None:
            return None
        return posixpath.relpath(place, posixpath.dirname(page) or ".") + (f"#{anchor}" if anchor else "")


def write(folder: Path = SITE, slides: bool = True) -> None:
    """Write the whole site.

    Args:
        folder: target folder, which is emptied first.
        slides: whether to include the slides and to check for dead links.

    Raises:
        LabError: if npm's libraries cannot be downloaded, a page contains something that cannot be shown, or the site
            exceeds its maximum size.
    """
    vendor.fetch()
    folder = folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    build.library(folder / "lib")
    (folder / "lib" / "code.css").write_text(code_style(), encoding="utf-8")
    shared = StateFiles(folder)
    if slides:
        (folder / "slides").mkdir()
        for sentence in build.write_page(deck(), folder / "slides", "../lib", TITLE):
            print(f"not shown yet: {sentence}")
        for slide, part in render.explorers_of(deck()):
            shared.there(slide.key, build.states_named(part), f"slides/states/{slide.key}.js")
    links = Links()
    paths = sorted((build.ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    notebooks = [notebook_page(path, folder, links, shared) for path in tqdm(paths, desc="notebooks")]
    docs = [doc_page(path, links) for name in DOCS if (path := build.ROOT / "docs" / f"{name}.md").is_file()]
    sources = [code_page(path) for path in sorted(links.wanted) if path.suffix == ".py"]
    front = entrance(deck(), notebooks, docs)
    for page, text in zip((*notebooks, *docs, *sources), framed_all(notebooks, docs, sources), strict=True):
        target = folder / page.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    (folder / "index.html").write_text(front, encoding="utf-8")
    for path in links.wanted:
        if path.suffix in _COPIED:
            target = folder / "files" / path.relative_to(build.ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    for sentence in (*links.missing, *shared.stale):
        print(sentence)
    print(f"{folder / 'index.html'}: {len(notebooks)} notebooks, {len(docs)} documents, {len(sources)} files of code")
    if slides:
        audit(folder)
    sizes(folder)


def audit(folder: Path) -> None:
    """Check that every link has a target on the site and that nothing is loaded from another host.

    Raises:
        LabError: names the first links that fail.
    """
    pages = {path: path.read_text(encoding="utf-8") for path in folder.rglob("*.html")}
    ids = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in pages.items()}
    wrong = []
    for path, text in pages.items():
        here = path.relative_to(folder).as_posix()
        for tag, kind, link in re.findall(r'<(\w+)\b[^>]*?\s(href|src)="([^"]*)"', text):
            link = html.unescape(link)
            if re.match(r"[a-z]+:", link) or link.startswith("//"):
                if not link.startswith("data:") and not (tag == "a" and kind == "href"):
                    wrong.append(f"{here} loads {link}")
                continue
            name, _, anchor = link.partition("#")
            target = (path.parent / unquote(name.split("?")[0])).resolve() if name else path.resolve()
            anchor = unquote(anchor.removeprefix("/"))
            if not target.is_file() or (anchor and target in ids and anchor not in ids[target]):
                wrong.append(f"{here} links to {link}, which does not exist")
    for sheet in folder.rglob("*.css"):
        if re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", sheet.read_text(encoding="utf-8")):
            wrong.append(f"{sheet.relative_to(folder)} loads from another host")
    if wrong:
        raise LabError("The site is incomplete: " + "; ".join(wrong[:8]) + (" …" if len(wrong) > 8 else ""))


def sizes(folder: Path, limit: int = LIMIT) -> int:
    """Print the size of each part of the site, and return the total in bytes.

    Raises:
        LabError: if the total exceeds `limit`.
    """
    parts: dict[str, int] = {}
    for file in folder.rglob("*"):
        if file.is_file():
            part = file.relative_to(folder).parts[0]
            parts[part] = parts.get(part, 0) + file.stat().st_size
    total = sum(parts.values())
    said = ", ".join(f"{name} {size / 2**20:.1f}" for name, size in sorted(parts.items(), key=lambda p: -p[1]))
    print(f"{total / 2**20:.1f} MB of {limit / 2**20:.0f}: {said}")
    if total > limit:
        raise LabError(f"The site has {total / 2**20:.0f} MB; at most {limit / 2**20:.0f} are allowed.")
    return total


class StateFiles:
    """The explorers' states of all pages; states that several pages show are stored in one file."""

    def __init__(self, folder: Path) -> None:
        """Start without states.

        Args:
            folder: folder of the site.
        """
        self.folder = folder
        self.stale: list[str] = []
        self._known: dict[str, tuple[str, str]] = {}

    def there(self, key: str, data: str, script: str) -> None:
        """Register states that a script of the site already contains."""
        self._known.setdefault(_sum(data), (key, script))

    def written(self, key: str, data: str) -> tuple[str, str]:
        """The key and the script of these states, which are written under `key` if no page has them yet."""
        known = self._known.get(_sum(data))
        if known is None:
            script = f"notebooks/states/{key}.js"
            target = self.folder / script
            target.parent.mkdir(parents=True, exist_ok=True)
            small = json.dumps(static_states.pooled(json.loads(data)), ensure_ascii=False, separators=(",", ":"))
            target.write_text(build.states_script(key, small), encoding="utf-8")
            known = self._known[_sum(data)] = key, script
        return known


def _sum(data: str) -> str:
    """A checksum of states without their Chinese texts, which only the slides' states have."""
    states = json.loads(data)
    states.pop("zh", None)
    return hashlib.sha256(json.dumps(states).encode()).hexdigest()


def code_style() -> str:
    """Style sheet for code, with a contrast of at least 4.5 : 1 on page.css's backgrounds; printed pages are light."""
    from pygments.formatters import HtmlFormatter

    def rules(style: str, where: str) -> str:
        lines = HtmlFormatter(style=style).get_style_defs(where).split("\n")
        return "\n".join(line for line in lines if line.startswith(f"{where} ."))

    dark = rules("lightbulb", '[data-theme="dark"] .highlight')
    return f"{rules('xcode', '.highlight')}\n@media screen {{\n{dark}\n}}\n"


# --- pages ----------------------------------------------------------------------------------------------------


def notebook_page(path: Path, folder: Path, links: Links, shared: StateFiles) -> Page:
    """Convert a stored notebook into a page, and write its pictures and its explorers' states."""
    import nbformat

    scripts: list[str] = []

    def states(number: int, words: str) -> str:
        data, stale = static_states.states_of(path, number, words)
        shared.stale += [stale] if stale else []
        key, script = shared.written(f"{path.stem}-{number}", data)
        scripts.append(script)
        return key

    stored = nbformat.read(path, as_version=4)
    drawn = notebook.drawn(stored, path.stem, states)
    place = f"notebooks/{path.stem}.html"
    body, contents = markdown_html.finished(drawn.body, lambda link: links.follow(link, path, place), path.name)
    soup: Any = BeautifulSoup(body, "html.parser")
    markdown_html.link_notebooks(soup, functools.partial(_page_of, path.parent, path.stem))
    for name, data in drawn.pictures.items():
        target = folder / "notebooks" / "pictures" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    first = stored.cells[0]
    counted = [
        _many(first.metadata.get("minutes_to_read", 0), "minute"), _many(len(drawn.states), "explorer"),
        _many(drawn.derivations, "derivation"), _many(drawn.exercises, "exercise"),
    ]  # fmt: skip
    about = " · ".join(filter(None, counted))
    title = markdown_html.plain(first.source.split("\n")[0].lstrip("# "))
    title = title if title[:2].isdigit() else f"{path.stem[:2]} · {title}"
    return Page(place, title, markdown_html.written(soup), contents, tuple(scripts), about)


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count > 1 else ''}" if count else ""


def _page_of(folder: Path, but: str, number: str) -> str | None:
    """The page of notebook `number`, relative to another notebook's page; None for the page itself."""
    found = [path.stem for path in folder.glob(f"{number}_*.ipynb")]
    return f"{found[0]}.html" if found and found[0] != but else None


def doc_page(path: Path, links: Links) -> Page:
    """Convert a Markdown file of docs/ into a page."""
    source = path.read_text(encoding="utf-8")
    place = f"docs/{path.stem}.html"
    body, contents = markdown_html.finished(
        markdown_html.markdown(source), lambda link: links.follow(link, path, place), f"docs/{path.name}"
    )
    soup: Any = BeautifulSoup(body, "html.parser")
    markdown_html.link_notebooks(soup, lambda number: _from_docs(_page_of(build.ROOT / "notebooks", "", number)))
    for picture in soup.find_all("img"):
        file = build.ROOT / posixpath.normpath(posixpath.join("docs", picture["src"])).removeprefix("files/")
        if not file.is_file():
            links.missing.append(
                f"{place}: {file.name} of {picture['src']} does not exist; its alternative text is shown."
            )
            picture.replace_with(picture["alt"])
            continue
        wide, high = struct.unpack(">II", file.read_bytes()[16:24])
        picture.attrs |= {"width": str(wide), "height": str(high), "decoding": "async"}
    title = markdown_html.plain(source.split("\n", 1)[0].lstrip("# "))
    return Page(place, title, markdown_html.written(soup), contents, about=DOCS[path.stem])


def _from_docs(page: str | None) -> str | None:
    return f"../notebooks/{page}" if page else None


def code_page(path: Path) -> Page:
    """The page of a source file that another page links."""
    name = path.relative_to(build.ROOT).as_posix()
    body = f"<h1><code>{name}</code></h1>\n" + markdown_html.coloured(path.read_text(encoding="utf-8"), "python")
    return Page(f"code/{name}.html", name, f'<div translate="no">{body}</div>')


# --- frames ---------------------------------------------------------------------------------------------------


def framed_all(*groups: Sequence[Page]) -> list[str]:
    """All pages with navigation and rendered formulas; the formulas are rendered in one call."""
    made = []
    for pages in groups:
        for number, page in enumerate(pages):
            before, after = (
                pages[number - 1] if number else None,
                pages[number + 1] if number + 1 < len(pages) else None,
            )
            made.append(framed(page, *((None, None) if page.path.startswith("code/") else (before, after))))
    return render.typeset(_CUT.join(made), vendor.katex).split(_CUT)


def head(title: str, up: str, more: str = "") -> str:
    """The HTML head of a page without slides."""
    return f"""<!DOCTYPE html>
<html lang="en" data-theme="light">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{html.escape(title)}</title>
<script src="{up}lib/theme.js"></script>
<link rel="stylesheet" href="{up}lib/fonts.css">
<link rel="stylesheet" href="{up}lib/page.css">
{more}<script defer src="{up}lib/page.js"></script>
</head>
"""


def framed(page: Page, before: Page | None = None, after: Page | None = None) -> str:
    """A page with its navigation: links to all pages, table of contents, previous and next page."""
    up = page.up
    styles = ["katex/katex.min.css", "chart.css", "code.css"] if "code/" not in page.path else ["code.css"]
    more = "".join(f'<link rel="stylesheet" href="{up}lib/{name}">\n' for name in styles)
    if page.states:
        scripts = ["lib/chart.js", "lib/explorers.js", *dict.fromkeys(page.states), "lib/mount.js"]
        more += "".join(f'<script defer src="{up}{name}"></script>\n' for name in scripts)
    return f"""{head(page.title, up, more)}<body>
{_top(f'<a href="{up}index.html">All pages</a>')}
<div class="sides">
{_contents(page.contents)}<main id="main" tabindex="-1">
{page.body}
</main>
</div>
{_beside(page, before, after)}</body>
</html>
"""


def _top(home: str) -> str:
    return (
        f'<a class="skip" href="#main">Skip to the text</a>\n<header class="top">{home}'
        '<button type="button" id="theme" aria-label="Light or dark page"><span aria-hidden="true">◐</span></button>'
        "</header>"
    )


def _contents(lines: Sequence[markdown_html.Heading]) -> str:
    """A table of contents with two levels."""
    if len(lines) < 2:
        return ""
    made = ""
    for line in lines:
        words = re.sub(r"</?a\b[^>]*>", "", line.words)  # a link may not hold another
        entry = f'<a href="#{line.anchor}">{words}</a>'
        if line.level == 2:
            made += f"<li>{entry}<ul></ul></li>"
        else:
            made = made.removesuffix("</ul></li>") + f"<li>{entry}</li></ul></li>"
    made = made.replace("<ul></ul>", "")
    return (
        '<nav class="contents" aria-label="On this page"><details><summary>On this page</summary>'
        f"<ul>{made}</ul></details></nav>\n"
    )


def _beside(page: Page, before: Page | None, after: Page | None) -> str:
    def link(other: Page | None, kind: str, sign: str) -> str:
        if other is None:
            return "<span></span>"
        to = posixpath.relpath(other.path, posixpath.dirname(page.path))
        return f'<a rel="{kind}" href="{to}"><small>{sign}</small>{html.escape(other.title)}</a>'

    if before is None and after is None:
        return ""
    made = link(before, "prev", "Before this") + link(after, "next", "After this")
    return f'<nav class="beside" aria-label="Before and after">{made}</nav>\n'


def entrance(made: Deck, notebooks: Sequence[Page], docs: Iterable[Page]) -> str:
    """The front page, which links all others."""
    blocks = "".join(
        f'<li><a href="slides/index.html?lang=en#/{b.slides[0].key}">{html.escape(b.title.en)}</a>'
        f'<a lang="zh" href="slides/index.html?lang=zh#/{b.slides[0].key}">{html.escape(b.title.zh)}</a>'
        f"<small>{_many(len(b.slides), 'slide')}</small></li>"
        for b in made.blocks
    )
    cards = "".join(
        f'<li><a href="{page.path}">{html.escape(page.title)}</a><small>{html.escape(page.about)}</small></li>'
        for page in notebooks
    )
    papers = "".join(
        f'<li><a href="{page.path}">{html.escape(page.title)}</a><small>{html.escape(page.about)}</small></li>'
        for page in docs
    )
    return f"""{head(f"rlhf_lab: {made.title.en}", "")}<body class="entrance">
{_top("<span>rlhf_lab</span>")}
<main id="main" tabindex="-1">
<h1>{html.escape(made.title.en)} <span lang="zh">{html.escape(made.title.zh)}</span></h1>
<p>A lecture and its notebooks. Every equation is executable code, and each learned policy is compared with the exact
optimal policy. The sliders work on every page, and nothing has to be installed.</p>
<p class="doors"><a href="slides/index.html?lang=en">Open the slides</a>
<a lang="zh" href="slides/index.html?lang=zh">打开幻灯片</a>
<a class="second" href="slides/index.html?lang=en&amp;print-pdf">Slides for printing</a></p>
<h2>The lecture, block by block</h2>
<ol class="blocks">{blocks}</ol>
<h2>The notebooks</h2>
<ul class="cards">{cards}</ul>
<h2>Claims, glossary, and more</h2>
<ul class="cards">{papers}</ul>
</main>
</body>
</html>
"""
