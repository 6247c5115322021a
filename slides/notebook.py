"""Converts a stored notebook into the body of a page: text, code, outputs, picture files and explorers' states."""

from __future__ import annotations

import ast
import base64
import html
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rlhf_lab.derivations.display import LINES
from rlhf_lab.errors import LabError
from slides import markdown_html

PICTURE = "Picture: "
"""Prefix of a picture's text from `figures.style.show`; the text of an explorer's picture begins with its title."""
WORDS = "In words: "
"""Prefix of the visible line below such a picture, which repeats its alternative text."""


@dataclass
class Drawn:
    """The body of a notebook's page, and what was found in the notebook.

    Attributes:
        body: HTML with marked formulas.
        states: keys of the explorers' states, in order.
        derivations: number of complete derivations that it shows.
        exercises: number of exercises that it checks.
        pictures: names and contents of the picture files.
    """

    body: str = ""
    states: list[str] = field(default_factory=list)
    derivations: int = 0
    exercises: int = 0
    pictures: dict[str, bytes] = field(default_factory=dict)


StatesOfCell = Callable[[int, str], str]
"""Takes the number of a cell and its explorer's initial text, and returns the key of the explorer's states."""


def drawn(notebook: Any, stem: str, states: StatesOfCell) -> Drawn:
    """Convert a notebook.

    Args:
        notebook: notebook with outputs, as read by nbformat.
        stem: name of its file, with which the names of its pictures begin.
        states: returns the key of an explorer's states.

    Raises:
        LabError: if an output cannot be shown on a page or is an error, or a picture has no alternative text.
    """
    out = Drawn()
    parts = []
    for number, cell in enumerate(notebook.cells):
        here = f"{stem}, cell {number}"
        if cell.cell_type == "markdown":
            parts.append(f'<div class="text">\n{markdown_html.markdown(cell.source)}</div>')
        elif cell.cell_type == "code" and cell.source.strip():
            shown = _outputs(cell, here, number, stem, states, out)
            output = f'\n<div class="output">{shown}</div>' if shown else ""
            parts.append(
                f'<div class="cell" translate="no">{markdown_html.coloured(cell.source, "python")}</div>{output}'
            )
    out.body = "\n".join(parts)
    return out


def shows_explorer(cell: Any, output: Any) -> bool:
    """Whether this output is the picture of an explorer: the cell ends with a call of some `…_explorer`."""
    data = output.get("data", {})
    if "image/png" not in data or str(data.get("text/plain", "")).startswith(PICTURE):
        return False
    last = ast.parse(cell.source).body[-1]
    if not isinstance(last, ast.Expr) or not isinstance(last.value, ast.Call):
        return False
    call = last.value.func
    return (call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "")).endswith("_explorer")


def alt(output: Any, here: str) -> str:
    """The alternative text of a picture, or the text that is stored beside it.

    Raises:
        LabError: if there is neither.
    """
    stored = output.get("metadata", {}).get("image/png", {}).get("alt", "")
    found = str(stored or output["data"].get("text/plain", "")).removeprefix(PICTURE).strip()
    if not found or found.startswith("<"):  # <Figure size 640x480 with 1 Axes> is no description
        raise LabError(f"{here}: a picture has no alternative text. Show it with `figures.style.show`.")
    return found


def _outputs(cell: Any, here: str, number: int, stem: str, states: StatesOfCell, out: Drawn) -> str:
    made: list[str] = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        text = str(data.get("text/plain", ""))
        if output.output_type == "error":
            raise LabError(f"{here}: {output.ename}: {output.evalue}")
        if output.output_type == "stream":
            made.append(_said(output.text))
        elif shows_explorer(cell, output):
            key = states(number, text.strip())
            out.states.append(key)
            still = _picture(output, here, f"{stem}-{number}-{len(made)}", out)
            made.append(
                f'<div class="explorer" data-states="{html.escape(key)}"></div>'
                f"<noscript><figure>{still}</figure></noscript>"
            )
        elif "image/png" in data:
            made.append(f"<figure>{_picture(output, here, f'{stem}-{number}-{len(made)}', out)}</figure>")
        elif "text/markdown" in data and text.startswith(WORDS) and made and made[-1].endswith("</figure>"):
            # Screen readers have already read this text, which is also the alternative text, so it is hidden from them.
            words = html.escape(text.removeprefix(WORDS).strip())
            words = f'<figcaption aria-hidden="true">{words}</figcaption>'
            made[-1] = made[-1].removesuffix("</figure>") + words + "</figure>"
        elif "text/markdown" in data:
            body, derivation = markdown_html.markdown(str(data["text/markdown"])), LINES in str(data["text/markdown"])
            out.derivations += derivation
            made.append(f'<div class="derivation">{body}</div>' if derivation else body)
        elif "text/html" in data:
            made.append(_shown_itself(str(data["text/html"]), out))
        elif "text/plain" in data:
            made.append(_said(text))
        else:
            raise LabError(f"{here}: an output is neither text nor HTML, Markdown or PNG: {sorted(data)}.")
    return "\n".join(made)


def _said(text: str) -> str:
    """Printed text; terminal colours become CSS classes."""
    from nbconvert.filters import ansi2html

    return f"<pre>{ansi2html(text.rstrip())}</pre>"


def _shown_itself(markup: str, out: Drawn) -> str:
    """The HTML representation of an object, such as the result of an exercise."""
    if re.search(r"nb\d\d\.\w+", markup):
        out.exercises += 1
    return f'<div class="own">{markup}</div>'


def _picture(output: Any, here: str, name: str, out: Drawn) -> str:
    """The picture as a file beside the page, with its size, so that the layout is stable while it loads."""
    data = base64.b64decode(output["data"]["image/png"])
    out.pictures[f"{name}.png"] = data
    wide, high = struct.unpack(">II", data[16:24])
    shown = int(output.get("metadata", {}).get("image/png", {}).get("width", wide))
    size = f'width="{shown}" height="{round(high * shown / wide)}"'
    return f'<img src="pictures/{name}.png" alt="{html.escape(alt(output, here))}" {size} decoding="async">'
