"""Markdown and stored HTML as the body of a page: formulas, headings, links and tables as a page needs them.

Formulas become `<span class="tex">` here, as on the slides, and are set at the end, all pages at once
(`render.typeset`): a page then needs no mathematics library, and a formula that KaTeX cannot read ends the export.
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
"""Where a link leads on the site; None: nowhere, its words stay as words."""


class _Renderer(IPythonRenderer):
    """Jupyter's markdown, formulas marked instead of left between dollars, code with its language's colours."""

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
    """Markdown as Jupyter reads it, as HTML with its formulas marked."""
    return str(MarkdownWithMath(renderer=_Renderer()).render(source))


def coloured(code: str, language: str) -> str:
    """Code in colours, `<div class="highlight"><pre>`."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        lexer = get_lexer_by_name(language)
    except ClassNotFound:
        lexer = get_lexer_by_name("text")
    return str(highlight(code.rstrip(), lexer, HtmlFormatter(wrapcode=True)))


# --- what a body goes through -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heading:
    """One line of a table of contents: level 2 or 3, its anchor, its words as HTML."""

    level: int
    anchor: str
    words: str


def finished(body: str, follow: Follow, here: str) -> tuple[str, tuple[Heading, ...]]:
    """A body as a page needs it, and what its table of contents says.

    Args:
        body: HTML; formulas marked or between dollars.
        follow: says where each link of the body leads.
        here: the page's name, for an error.

    Raises:
        LabError: a picture without words; no heading of level 1, or several; a formula without its second dollar.
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
            raise LabError(f"{here}: the picture {str(picture.get('src'))[:80]!r} has no words.")
    return written(soup), contents


def written(soup: Any) -> str:
    """HTML again, its formulas marked as `render.typeset` finds them."""
    return str(soup).replace(' data-display=""', " data-display")


_AS_IT_IS = ("code", "pre", "script", "style", "noscript")
_DOLLAR = re.compile(r"\$")
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$", re.S)


def _as_it_is(node: Any) -> bool:
    return node.name in _AS_IT_IS or "tex" in node.get("class", [])


def _texts(soup: Any, sign: re.Pattern[str]) -> list[Any]:
    """Text in which `sign` is found, and that is read as text: not code, not a formula's source."""
    return [
        text
        for text in soup.find_all(string=sign)
        if type(text) is NavigableString and not any(map(_as_it_is, text.parents))
    ]


def mark_formulas(soup: Any, here: str) -> None:
    """Mark formulas that stand between dollars, as in the tables that the lab's objects show of themselves.

    Raises:
        LabError: a dollar is left over.
    """
    for text in _texts(soup, _DOLLAR):
        safe = html.escape(str(text), quote=False)
        made = _FORMULA.sub(lambda m: render.tex(html.unescape(m[1] or m[2]), bool(m[1])), safe)
        new = BeautifulSoup(made, "html.parser")
        if _texts(new, _DOLLAR):
            raise LabError(f"{here}: a dollar without its partner in {str(text)[:80]!r}.")
        text.replace_with(new)


def slug(words: str) -> str:
    """The anchor of a heading as code forges make it: `ReST, RAFT and PPO` is `rest-raft-and-ppo`."""
    return re.sub(r"[^\w\- ]", "", words.strip().lower()).replace(" ", "-")


def number_headings(soup: Any, here: str) -> tuple[Heading, ...]:
    """Give every heading an anchor of its own, and no more than one level below the one before it.

    Returns:
        those of levels 2 and 3.

    Raises:
        LabError: the first heading is not of level 1, or not the only one of it.
    """
    found, used, before = [], set[str](), 0
    by_hand = {node["id"] for node in soup.find_all(id=True)}
    for node in soup.find_all(re.compile("^h[1-6]$")):
        level = int(node.name[1])
        if (level == 1) != (before == 0):
            raise LabError(f"{here}: a page has one heading of level 1, its first; see {node.get_text()!r}.")
        level = min(level, before + 1)  # who moves by headings must not fall through a missing level
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
    """Lead every link where it leads on the site; pictures too."""
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
"""Columns that no phone shows side by side."""


def box_tables(soup: Any) -> None:
    """Put each table into a box that scrolls by itself, and say which of its cells are heads.

    A table of many columns is shown on a phone one row under the other, so every cell gets its column's name.
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
        soup: changed in place.
        where: the page of the notebook with this number; None: no link.
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

    # The first number takes its word with it: more to aim at.
    return re.sub(r"(?:[Nn]otebooks? )?(?P<number>\d\d)", link, words)


def plain(markup: str) -> str:
    """The words of a line of markdown, without marks."""
    return BeautifulSoup(markdown(markup), "html.parser").get_text().strip()
