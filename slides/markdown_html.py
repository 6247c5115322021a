"""Converts Markdown and stored HTML into the body of a page, with its formulas, headings, links and tables.

Formulas become `<span class="tex">`, as on the slides. `render.typeset` renders those of all pages in one call at the
end, so a page needs no mathematics library, and a formula that KaTeX cannot read stops the export.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bs4 import BeautifulSoup, NavigableString
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from rlhf_lab.errors import LabError
from slides import render

Follow = Callable[[str], str | None]
"""Returns the target of a link on the site; None if there is none, in which case the link becomes plain text."""


class _Renderer(IPythonRenderer):
    """Jupyter's Markdown renderer, with marked formulas and syntax highlighting."""

    def __init__(self) -> None:
        super().__init__(escape=False, exclude_anchor_links=True)

    def inline_math(self, body: str) -> str:
        return render.tex(body.strip())

    def block_math(self, body: str) -> str:
        return render.tex(body.strip(), display=True)

    def latex_environment(self, name: str, body: str) -> str:
        return render.tex(rf"\begin{{{name}}}{body}\end{{{name}}}", display=True)

    def block_code(self, code: str, info: str | None = None) -> str:
        return coloured(code, (info or "").split(maxsplit=1)[0] if info else "text")


def markdown(source: str) -> str:
    """Convert Jupyter's Markdown into HTML with marked formulas."""
    return str(MarkdownWithMath(renderer=_Renderer()).render(source))


def coloured(code: str, language: str) -> str:
    """Code with syntax highlighting, as `<div class="highlight"><pre>`."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        lexer = get_lexer_by_name(language)
    except ClassNotFound:
        lexer = get_lexer_by_name("text")
    return str(highlight(code.rstrip(), lexer, HtmlFormatter(wrapcode=True)))


# --- steps that finish a body -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heading:
    """One entry of a table of contents: its level (2 or 3), its anchor, and its text as HTML."""

    level: int
    anchor: str
    words: str


def finished(body: str, follow: Follow, here: str) -> tuple[str, tuple[Heading, ...]]:
    """The finished body of a page, and the entries of its table of contents.

    Args:
        body: HTML whose formulas are marked or stand between dollar signs.
        follow: returns the target of each link.
        here: name of the page, for error messages.

    Raises:
        LabError: if a picture has no alternative text, there is no heading of level 1 or more than one, or a dollar
            sign is unpaired.
    """
    soup: Any = BeautifulSoup(body, "html.parser")
    mark_formulas(soup, here)
    contents = number_headings(soup, here)
    lead_links(soup, follow)
    box_tables(soup)
    for picture in soup.find_all("img"):
        if (
            picture.parent.name == "p"
            and len(picture.parent.find_all(True)) == 1
            and not picture.parent.get_text(strip=True)
        ):
            picture.parent.name = "figure"
        if not str(picture.get("alt", "")).strip():
            raise LabError(f"{here}: the picture {str(picture.get('src'))[:80]!r} has no alternative text.")
    return written(soup), contents


def written(soup: Any) -> str:
    """The tree as HTML, with formulas marked as `render.typeset` expects them."""
    return str(soup).replace(' data-display=""', " data-display")


_VERBATIM = ("code", "pre", "script", "style", "noscript")
_DOLLAR = re.compile(r"\$")
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$", re.S)


def _verbatim(node: Any) -> bool:
    return node.name in _VERBATIM or "tex" in node.get("class", [])


def _texts(soup: Any, sign: re.Pattern[str]) -> list[Any]:
    """Text nodes that contain `sign` and are prose: neither code nor the source of a formula."""
    return [
        text
        for text in soup.find_all(string=sign)
        if type(text) is NavigableString and not any(map(_verbatim, text.parents))
    ]


def mark_formulas(soup: Any, here: str) -> None:
    """Mark formulas between dollar signs, as in the HTML representations of the package's objects.

    Raises:
        LabError: if a dollar sign is unpaired.
    """
    for text in _texts(soup, _DOLLAR):
        safe = html.escape(str(text), quote=False)
        made = _FORMULA.sub(lambda m: render.tex(html.unescape(m[1] or m[2]), bool(m[1])), safe)
        new = BeautifulSoup(made, "html.parser")
        if _texts(new, _DOLLAR):
            raise LabError(f"{here}: unpaired dollar sign in {str(text)[:80]!r}.")
        text.replace_with(new)


def slug(words: str) -> str:
    """The anchor of a heading, as GitHub forms it: `ReST, RAFT and PPO` becomes `rest-raft-and-ppo`."""
    return re.sub(r"[^\w\- ]", "", words.strip().lower()).replace(" ", "-")


def number_headings(soup: Any, here: str) -> tuple[Heading, ...]:
    """Give every heading a unique anchor and a level at most one below that of the previous heading.

    Returns:
        the headings of levels 2 and 3.

    Raises:
        LabError: if the first heading is not of level 1, or another one is.
    """
    found, used, before = [], set[str](), 0
    by_hand = {node["id"] for node in soup.find_all(id=True)}
    for node in soup.find_all(re.compile("^h[1-6]$")):
        level = int(node.name[1])
        if (level == 1) != (before == 0):
            raise LabError(f"{here}: the first heading of a page, and no other, has level 1. See {node.get_text()!r}.")
        level = min(level, before + 1)  # screen readers navigate by headings, so no level may be skipped
        node.name = f"h{level}"
        before, plain = level, slug(node.get_text())
        anchor = next(one for n in range(len(used) + 1) if (one := plain + (f"-{n}" if n else "")) not in used)
        used.add(anchor)
        if anchor not in by_hand:
            node["id"] = anchor
        if level in (2, 3):
            found.append(Heading(level, anchor, written(BeautifulSoup(node.decode_contents(), "html.parser"))))
    return tuple(found)


def lead_links(soup: Any, follow: Follow) -> None:
    """Replace the target of every link and picture by its target on the site."""
    for node in soup.find_all(href=True):
        to = follow(node["href"])
        if to is not None:
            node["href"] = to
        else:
            node.name, node.attrs = "span", {"title": node["href"].removeprefix("../")}
    for node in soup.find_all(src=True):
        to = node["src"] if node["src"].startswith("data:") else follow(node["src"])
        if to is not None:
            node["src"] = to


MANY = 5
"""Number of columns from which a table is too wide for a phone."""


def box_tables(soup: Any) -> None:
    """Put each table into a box that scrolls, and mark its header cells.

    On a phone a table of many columns is shown as a list, so every cell gets the name of its column.
    """
    for table in soup.find_all("table"):
        heads = table.select("thead th")
        for cell in heads:
            cell.attrs.setdefault("scope", "col")
        for code in table.select("td code"):
            if code.string and len(code.string) > 12:  # a long name may break after its dots and underscores
                broken = re.sub(r"([._/])(?=\w)", r"\1<wbr>", html.escape(code.string, quote=False))
                code.string.replace_with(BeautifulSoup(broken, "html.parser"))
        if len(heads) >= MANY:
            table["class"] = [*table.get("class", []), "many"]
            for row in table.select("tbody tr"):
                for head, cell in zip(heads, row.find_all("td", recursive=False), strict=False):
                    cell["data-name"] = head.get_text().strip()
        table.wrap(soup.new_tag("div", attrs={"class": "scroll"}))


_NOTEBOOKS = re.compile(r"\b[Nn]otebooks? \d\d\b(?:(?:, and |, | and | to |–)\d\d\b)*")


def link_notebooks(soup: Any, where: Callable[[str], str | None]) -> None:
    """Turn “notebook 04” and “notebooks 03 and 04” in running text into links.

    Args:
        soup: the page, which is changed in place.
        where: returns the page of the notebook with this number, or None for no link.
    """
    for text in _texts(soup, _NOTEBOOKS):
        if any(parent.name in ("a", "summary", "h1", "h2", "h3", "h4") for parent in text.parents):
            continue
        made = _NOTEBOOKS.sub(lambda m: _linked(m[0], where), html.escape(str(text), quote=False))
        text.replace_with(BeautifulSoup(made, "html.parser"))


def _linked(words: str, where: Callable[[str], str | None]) -> str:
    def link(match: re.Match[str]) -> str:
        to = where(match["number"])
        return f'<a href="{to}">{match[0]}</a>' if to else match[0]

    # The first link includes the word "notebook", which makes it easier to click.
    return re.sub(r"(?:[Nn]otebooks? )?(?P<number>\d\d)", link, words)


def plain(markup: str) -> str:
    """The text of a line of Markdown, without markup."""
    return BeautifulSoup(markdown(markup), "html.parser").get_text().strip()
