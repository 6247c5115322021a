"""Renders the slides as HTML, which both views share. It contains every text in both languages, and CSS shows one.

The two views differ in the HTML of an explorer (`place`) and in the page around the slides. Formulas are first written
as `<span class="tex">`. Then `typeset` renders all of them in one call of KaTeX, so neither view needs a mathematics
library in the page.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_lab import language
from rlhf_lab.errors import LabError
from rlhf_lab.figures import style
from rlhf_lab.language import LANGUAGES
from slides import schema as f
from slides.schema import Deck, Slide, T

ROOT = Path(__file__).parents[1]

Place = Callable[[Slide, f.ExplorerPart], str]
"""Returns the HTML of an explorer on a slide."""


@dataclass
class Context:
    """Settings and messages of one rendering.

    Attributes:
        place: returns the HTML of an explorer.
        missing: messages about results that cannot be shown because they have not been computed yet.
        worlds: overrides the number of random worlds on which a derivation is computed.
    """

    place: Place
    missing: list[str] = field(default_factory=list)
    worlds: int | None = None


# --- text -----------------------------------------------------------------------------------------------------

_SPLIT = re.compile(r"(\$[^$]+\$|`[^`]+`)")


def words(text: str) -> str:
    """One line of light Markdown as HTML; `typeset` renders the formulas later."""
    out = []
    for piece in _SPLIT.split(text):
        if piece.startswith("$") and len(piece) > 1:
            out.append(tex(piece[1:-1]))
        elif piece.startswith("`") and len(piece) > 1:
            out.append(f"<code>{html.escape(piece[1:-1])}</code>")
        else:
            safe = html.escape(piece, quote=False)
            safe = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", safe)
            out.append(re.sub(r"(?<![\w*])\*(?=\S)(.+?)(?<=\S)\*(?!\w)", r"<em>\1</em>", safe))
    return "".join(out)


def both(text: T | str) -> str:
    """A text in both languages; CSS shows one of them."""
    if isinstance(text, str):
        return words(text)
    return "".join(f'<span lang="{language}">{words(text.of(language))}</span>' for language in LANGUAGES)


def both_of(text: str) -> str:
    """A text of `rlhf_lab/chinese.toml`, such as a source, in both languages."""
    with language.use("zh"):
        return both(T(text, language.tr(text)))


def tex(source: str, display: bool = False) -> str:
    """A marked formula, which `typeset` renders."""
    return f'<span class="tex"{" data-display" if display else ""}>{html.escape(source, quote=False)}</span>'


_WORDS = re.compile(r"(?<=\\text\{)[^{}]*")


def _both_tex(source: str, display: bool = False) -> str:
    """A marked formula, in both languages if it contains words of `rlhf_lab/chinese.toml`."""
    with language.use("zh"):
        chinese = _WORDS.sub(lambda word: language.tr(word[0]), source)
    if chinese == source:
        return tex(source, display)
    return "".join(
        f'<span lang="{n}">{tex(t, display)}</span>' for n, t in zip(LANGUAGES, (source, chinese), strict=True)
    )


_TEX = re.compile(r'<span class="tex"( data-display)?>(.*?)</span>', re.S)


def typeset(page: str, katex: Callable[[list[tuple[str, bool]]], list[str]]) -> str:
    """`page` with its formulas rendered.

    Args:
        page: HTML with marked formulas.
        katex: returns the HTML of a list of pairs (LaTeX, displayed).
    """
    found = list(dict.fromkeys((html.unescape(m[2]), bool(m[1])) for m in _TEX.finditer(page)))
    done = dict(zip(found, katex(found), strict=True)) if found else {}
    return _TEX.sub(lambda m: done[(html.unescape(m[2]), bool(m[1]))], page)


# --- parts ----------------------------------------------------------------------------------------------------


def _step(on: bool, also: str = "") -> str:
    names = " ".join(filter(None, (also, "fragment" if on else "")))
    return f' class="{names}"' if names else ""


def _text(part: f.Text) -> str:
    return f"<p{_step(part.step, 'quiet' if part.quiet else '')}>{both(part.text)}</p>"


def _bullets(part: f.Bullets) -> str:
    tag = "ol" if part.ordered else "ul"
    items = "".join(f"<li{_step(part.steps)}>{both(item)}</li>" for item in part.items)
    return f"<{tag}>{items}</{tag}>"


def _equation(part: f.Equation) -> str:
    note = f'<div class="note">{both(part.note)}</div>' if part.note else ""
    return f"<div{_step(part.step, 'equation big' if part.big else 'equation')}>{_both_tex(part.tex, True)}{note}</div>"


def _derivation(part: f.DerivationPart, here: str, context: Context) -> str:
    from rlhf_lab.derivations import library
    from rlhf_lab.derivations.derivation import _RELATIONS, MUST_FAIL_IN

    known = library()
    if part.key not in known:
        raise LabError(f"{here}: there is no derivation {part.key!r}. There are: {', '.join(known)}.")
    derivation = known[part.key]
    last = len(derivation.lines) if part.last is None else part.last
    if not 1 <= part.first <= last <= len(derivation.lines):
        raise LabError(
            f"{here}: {part.key!r} has lines 1 to {len(derivation.lines)}; {part.first} to {last} cannot be shown."
        )
    shown = list(range(part.first - 1, last))
    slips = [w for w in derivation.wrong if part.wrong and part.first <= w.instead_of <= last]
    for what, given, wanted in (("reasons", part.reasons, len(shown)), ("mistakes", part.mistakes, len(slips))):
        if len(given) != wanted:
            raise LabError(
                f"{here}: {part.key!r} shows {wanted} lines, which need as many {what} in Chinese, not {len(given)}."
            )
    checked = derivation.check(worlds=context.worlds or part.worlds)
    if not checked.ok:
        raise LabError(f"{here}: a line of {part.key!r} does not hold, or a wrong version of it does: {checked!r}")
    rows = []
    for place, number in enumerate(shown):
        line = derivation.lines[number]
        relation = f"{_RELATIONS[line.relation]} {line.right}"
        rows.append(_line(number + 1, line.left, relation, T(line.reason, part.reasons[place]), "✓", "", place > 0))
    share = dict(zip(derivation.wrong, checked.failing, strict=True))
    for place, slip in enumerate(slips):
        line = derivation.lines[slip.instead_of - 1]
        mark = "✗" if share[slip] >= MUST_FAIL_IN else "?"
        text = T(slip.mistake, part.mistakes[place])
        rows.append(_line(0, line.left, f"{_RELATIONS[line.relation]} {slip.right}", text, mark, "wrong", True))
    worlds = len(checked.errors)
    computed = T(
        f"✓ both sides computed on {worlds} random worlds, equal to 1e-10",
        f"✓ 两边在 {worlds} 个随机世界上算过，相差不超过 1e-10",
    )
    lefts = [derivation.lines[number].left for number in shown]
    wide = " wide" if max(len(re.sub(r"\\[a-zA-Z]+|[{}^_\\ ]", "", left)) for left in lefts) > 22 else ""
    return f'<div class="derivation{wide}">{"".join(rows)}</div><p class="computed">{both(computed)}</p>'


def _line(number: int, left: str, right: str, reason: T, mark: str, kind: str, step: bool) -> str:
    return (
        f"<div{_step(step, f'line {kind}'.strip())}>"
        f'<span class="left">{_both_tex(chr(92) + "displaystyle " + left) if left else ""}</span>'
        f'<span class="right">{_both_tex(chr(92) + "displaystyle " + right)}</span>'
        f'<span class="tick" {_named(*("holds", "成立") if mark == "✓" else ("does not hold", "不成立"))}>{mark}</span>'
        f'<span class="reason">{both(reason)}</span></div>'
    )


def _named(en: str, zh: str) -> str:
    """Attributes of an element that has a name but no text; `assets/deck.js` selects the language."""
    return f'aria-label="{en}" data-en="{en}" data-zh="{zh}"'


def _figure(part: f.Figure) -> str:
    """The picture in both languages. Its bytes are in the page, which therefore needs no further file."""
    pictures = []
    for name, kind in zip(LANGUAGES, ("png", "svg+xml"), strict=True):
        with language.use(name), style.use():
            data = style.png(part.draw(), dpi=200) if kind == "png" else style.svg(part.draw())
        source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
        pictures.append(f'<img lang="{name}" src="{source}" alt="{html.escape(part.alt.of(name))}">')
    note = f"<figcaption>{both(part.note)}</figcaption>" if part.note else ""
    return f'<figure class="figure">{"".join(pictures)}{note}</figure>'


def _table(part: f.Table) -> str:
    head = "".join(f'<th scope="col">{both(cell)}</th>' for cell in part.head)
    rows = []
    for number, row in enumerate(part.rows):
        cells = "".join(
            f"<td{' class=number' if isinstance(cell, str) and re.fullmatch(r'[-−+]?[0-9.,]+%?', cell) else ''}>"
            f"{both(cell)}</td>"
            for cell in row
        )
        rows.append(f"<tr{' class=strong' if number in part.strong else ''}>{cells}</tr>")
    source = f' <span class="where">{both_of(part.source)}</span>' if part.source else ""
    return (
        f"<table><caption>{both(part.caption)}{source}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _quote(part: f.Quote) -> str:
    return f"<blockquote><p>{both(part.text)}</p><cite>{both_of(part.source)}</cite></blockquote>"


def _flow(part: f.Flow) -> str:
    boxes = []
    for number, box in enumerate(part.boxes):
        look = f' style="--light:{style.of(box.style).light};--dark:{style.of(box.style).dark}"' if box.style else ""
        text = f"<small>{both(box.text)}</small>" if box.text else ""
        arrow = '<span class="arrow" aria-hidden="true">→</span>' if number else ""
        boxes.append(
            f"<div{_step(part.steps and number > 0, 'stop')}>{arrow}"
            f'<div class="box{" ink" if box.style else ""}"{look}><b>{both(box.title)}</b>{text}</div></div>'
        )
    back = f'<div class="back"><span>{both(part.back)}</span></div>' if part.back else ""
    return f'<div class="flow"><div class="stops">{"".join(boxes)}</div>{back}</div>'


def _part(part: f.Part, slide: Slide, here: str, context: Context) -> str:
    if isinstance(part, f.DerivationPart):
        return _derivation(part, here, context)
    if isinstance(part, f.ExplorerPart):
        advice = f'<p class="advice">{both(part.advice)}</p>' if part.advice else ""
        look = f'style="--rlhf-chart-height:{part.height:g}"'
        return f'{advice}<div class="explorer" {look}>{context.place(slide, part)}</div>'
    if isinstance(part, f.Columns):
        sides = (part.left, part.right)
        inner = (f"<div>{''.join(_part(one, slide, here, context) for one in side)}</div>" for side in sides)
        return f'<div class="columns" style="--share:{part.share:g}">{"".join(inner)}</div>'
    simple: dict[type, Callable[[Any], str]] = {
        f.Text: _text, f.Bullets: _bullets, f.Equation: _equation, f.Figure: _figure, f.Table: _table,
        f.Quote: _quote, f.Flow: _flow,
    }  # fmt: skip
    return simple[type(part)](part)


# --- slides ---------------------------------------------------------------------------------------------------


NUMBER = "<!-- number -->"
"""Placeholder of a slide's number, so that cached slides stay valid when a slide is inserted before them."""


def section(block: f.Block, slide: Slide, context: Context) -> str:
    """The HTML of one slide for reveal.js, with a placeholder for its number."""
    here = f"Slide {slide.key!r} (block {block.key!r})"
    parts = "".join(_part(part, slide, here, context) for part in slide.parts)
    level = "h1" if slide.kind == "title" else "h2"
    source = f'<span class="source">{both_of(slide.source)}</span>' if slide.source else ""
    return (
        f'<section id="{slide.key}" class="{slide.kind}" data-block="{block.key}" data-minutes="{slide.minutes:g}" '
        f'data-timing="{round(slide.minutes * 60)}" aria-labelledby="{slide.key}-title">\n'
        f'<{level} id="{slide.key}-title">{both(slide.title)}</{level}>\n<div class="body">{parts}</div>\n'
        f'<footer><span class="where">{both(block.title)}</span>{source}'
        f'<span class="number">{NUMBER}</span></footer>\n{_notes(slide)}</section>\n'
    )


def _notes(slide: Slide) -> str:
    """The notes in both languages, and the element from which the speaker view reads the current ones."""
    stored = []
    for name in LANGUAGES:
        paragraphs = [f"<p>{words(one.strip())}</p>" for one in slide.notes.of(name).split("\n\n")]
        minutes = f"{slide.minutes:g} min" if name == "en" else f"{slide.minutes:g} 分钟"
        stored.append(f'<template data-notes="{name}"><p><b>{minutes}</b></p>{"".join(paragraphs)}</template>')
    return "".join(stored) + '<aside class="notes"></aside>'


def sections(deck: Deck, context: Context) -> str:
    """The HTML of all slides."""
    every = list(deck.slides())
    return "".join(
        section(block, slide, context).replace(NUMBER, f'{number}<span class="of"> / {len(every)}</span>')
        for number, (block, slide) in enumerate(every, 1)
    )


def explorers_of(deck: Deck) -> list[tuple[Slide, f.ExplorerPart]]:
    """Every explorer of the slides, in order, with its slide."""
    return [
        (slide, part) for _, slide in deck.slides() for part in f.parts_of(slide) if isinstance(part, f.ExplorerPart)
    ]


def raw(formulas: Sequence[tuple[str, bool]]) -> list[str]:
    """Formulas as LaTeX source, for use without KaTeX."""
    return [f"<code>{html.escape(source)}</code>" for source, _ in formulas]
