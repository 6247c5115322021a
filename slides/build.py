"""Builds what both views share: the HTML of the slides, cached until one of its sources changes, and the libraries."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rlhf_lab import language
from rlhf_lab.errors import LabError
from slides import compressed_states, render, vendor
from slides import schema as f
from slides.schema import Deck, ExplorerPart, Slide, T

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "slides"
ASSETS = Path(__file__).parent / "assets"
WIDGETS = ROOT / "rlhf_lab" / "widgets"


def digest(*more: str, experiments: bool = False) -> str:
    """A checksum of the sources from which slides and states are computed: the package and the slides' own modules.

    Args:
        more: further strings on which the result depends.
        experiments: whether the result also depends on the experiments and their saved results.
    """
    found = hashlib.sha256()
    for path in _sources(experiments):
        found.update(str(path.relative_to(ROOT)).encode())
        found.update(path.read_bytes())
    for one in more:
        found.update(one.encode())
    return found.hexdigest()[:20]


_ASIDE = ("experiments", "cli", "exercises", "__pycache__")


def _sources(experiments: bool) -> Iterator[Path]:
    for path in sorted((ROOT / "rlhf_lab").rglob("*.py")):
        if experiments or not set(_ASIDE) & set(path.parts):
            yield path
    yield language.TABLE
    yield from (ROOT / "slides" / name for name in ("schema.py", "render.py", "compressed_states.py", "explorers.py"))
    if experiments:
        yield from sorted((ROOT / "results").glob("*/*/result.json"))
        yield from sorted((ROOT / "results").glob("*/*/*.csv"))


def _cached(name: str, key: str) -> Path:
    return BUILD / "cache" / f"{name}-{key}.txt"


def kept(name: str, key: str, make: Callable[[], str]) -> str:
    """The text that `make` returns, or the one in build/slides/cache that was made under the same key."""
    place = _cached(name, key)
    if place.is_file():
        return place.read_text(encoding="utf-8")
    text = make()
    place.parent.mkdir(parents=True, exist_ok=True)
    for old in place.parent.glob(f"{name}-{'?' * len(key)}.txt"):
        old.unlink()
    place.write_text(text, encoding="utf-8")
    return text


# --- explorers' states ----------------------------------------------------------------------------------------


def states_named(part: ExplorerPart) -> str:
    """The states of an explorer in both languages as JSON; what is shown in several places is computed once."""
    of = repr((part.name, sorted(part.at.items()), part.only, part.panels, part.stops))

    def make() -> str:
        from slides import explorers

        made = explorers.make(part.name, part.at, part.only, part.panels)
        return json.dumps(compressed_states.folded(made, part.stops, True), ensure_ascii=False, separators=(",", ":"))

    same = hashlib.sha256(of.encode()).hexdigest()[:8]
    return kept(f"states-{part.name}-{same}", digest(of, experiments=part.name in _FROM_EXPERIMENTS), make)


_FROM_EXPERIMENTS = ("trajectories", "non_static", "annotation_budget")
"""Explorers that also use rlhf_lab/experiments."""


def states_script(key: str, data: str) -> str:
    """States as a script, because a page that is opened from disk may not fetch data files."""
    return f"(window.RlhfStates ??= {{}})[{json.dumps(key)}] = {data};\n"


# --- the deck's HTML ------------------------------------------------------------------------------------------

_HOLE = "<!-- explorer of {} -->"


def html(deck: Deck, place: render.Place, katex: Any = vendor.katex, **context: Any) -> tuple[str, list[str]]:
    """The HTML of all slides with rendered formulas, and messages about what could not be shown.

    A slide is rendered again only if one of its sources has changed. The two views differ only in `place`.

    Args:
        deck: the checked slides.
        place: returns the HTML of an explorer.
        katex: renders formulas; `render.raw` leaves them as LaTeX.
        context: further arguments of `render.Context`.
    """
    about = render.Context(lambda slide, part: _HOLE.format(slide.key), **context)
    every = list(deck.slides())
    drawn = []
    for number, (block, slide) in enumerate(every, 1):
        one = functools.partial(render.section, block, slide, about)
        kinds = {type(part) for part in f.parts_of(slide)}
        if katex is vendor.katex and kinds & {f.DerivationPart, f.Figure}:
            claims = bool(kinds & {f.Figure})
            key, before = digest(_written(slide), block.title.en, repr(context), experiments=claims), len(about.missing)
            made = kept(f"slide-{slide.key}", key, one)
            if len(about.missing) > before:  # do not cache: the missing result may exist next time
                _cached(f"slide-{slide.key}", key).unlink()
        else:
            made = one()
        drawn.append(made.replace(render.NUMBER, f'{number}<span class="of"> / {len(every)}</span>'))
    page = "".join(drawn)
    if katex is vendor.katex:
        made = kept("page", hashlib.sha256(page.encode()).hexdigest()[:20], lambda: render.typeset(page, katex))
    else:
        made = render.typeset(page, katex)
    for slide, part in render.explorers_of(deck):
        made = made.replace(_HOLE.format(slide.key), place(slide, part))
    return made, about.missing


def _written(slide: Slide) -> str:
    """All content of a slide as text; functions that draw are represented by the contents of their files."""
    files = {
        inspect.getsourcefile(getattr(p.draw, "func", p.draw)) for p in f.parts_of(slide) if isinstance(p, f.Figure)
    }
    sources = [Path(file).read_text(encoding="utf-8") for file in sorted(filter(None, files))]
    return re.sub(r" at 0x[0-9a-f]+", "", repr(slide)) + "".join(sources)


def chart_script() -> str:
    """rlhf_lab/widgets/chart.js as a plain script, because a page that is opened from disk may not load modules.

    Raises:
        LabError: if the file does not contain the two exports that are removed here.
    """
    source = (WIDGETS / "chart.js").read_text(encoding="utf-8")
    for was, becomes in (("export function mount(", "function mount("), ("export default {", "const view = {")):
        if source.count(was) != 1:
            raise LabError(f"rlhf_lab/widgets/chart.js must contain {was!r} exactly once. Adapt slides/build.py.")
        source = source.replace(was, becomes)
    return f'"use strict";\nwindow.RlhfChart = (() => {{\n{source}\nreturn {{ mount, view }};\n}})();\n'


def library(target: Path) -> None:
    """Copy everything that a page loads into `target`: our own files, reveal.js, KaTeX and the font."""
    target.mkdir(parents=True, exist_ok=True)
    for folder in vendor.FOLDERS.values():
        shutil.rmtree(target / folder, ignore_errors=True)
        shutil.copytree(vendor.fetch() / folder, target / folder)
    ours(target)


def ours(target: Path) -> None:
    """Copy our own style sheets and scripts into `target`."""
    target.mkdir(parents=True, exist_ok=True)
    for asset in ASSETS.iterdir():
        if asset.suffix in (".css", ".js"):
            shutil.copy(asset, target)
    shutil.copy(WIDGETS / "chart.css", target)
    (target / "chart.js").write_text(chart_script(), encoding="utf-8")


def head(lib: str, title: T) -> str:
    """The HTML head of a page with slides; `lib` is the relative path of the libraries."""
    return f"""<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title data-en="{title.en}" data-zh="{title.zh}">{title.en}</title>
<link rel="stylesheet" href="{lib}/fonts.css">
<link rel="stylesheet" href="{lib}/reveal/reveal.css">
<link rel="stylesheet" href="{lib}/katex/katex.min.css">
<link rel="stylesheet" href="{lib}/chart.css">
<link rel="stylesheet" href="{lib}/deck.css">"""


def page(deck_html: str, lib: str, title: T, scripts: list[str]) -> str:
    """The static page of the slides, which opens from disk without a server."""
    loads = "\n".join(f'<script defer src="{script}"></script>' for script in scripts)
    return f"""<!DOCTYPE html>
<html lang="en" data-theme="light">
<head>
{head(lib, title)}
<script defer src="{lib}/reveal/reveal.js"></script>
<script defer src="{lib}/reveal/notes.js"></script>
<script defer src="{lib}/chart.js"></script>
<script defer src="{lib}/explorers.js"></script>
<script defer src="{lib}/deck.js"></script>
<script defer src="{lib}/start.js"></script>
{loads}
<script defer src="{lib}/mount.js"></script>
</head>
<body>
<main class="reveal"><div class="slides">
{deck_html}
</div></main>
</body>
</html>
"""


def static_place(slide: Slide, part: ExplorerPart) -> str:
    """The placeholder of an explorer on the static page, which `assets/explorers.js` fills."""
    return f'<div data-states="{slide.key}"></div>'


def write_page(deck: Deck, folder: Path, lib: str, title: T, katex: Any = vendor.katex) -> list[str]:
    """Write the static page and its explorers' states into `folder`. Returns messages about what could not be shown."""
    deck_html, missing = html(deck, static_place, katex)
    (folder / "states").mkdir(parents=True, exist_ok=True)
    scripts = []
    for slide, part in render.explorers_of(deck):
        script = states_script(slide.key, states_named(part))
        (folder / "states" / f"{slide.key}.js").write_text(script, encoding="utf-8")
        scripts.append(f"states/{slide.key}.js")
    (folder / "index.html").write_text(page(deck_html, lib, title, scripts), encoding="utf-8")
    return missing
