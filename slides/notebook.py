"""A stored notebook as the body of a page: its text, code, outputs, pictures as files, explorers by their states."""

from __future__ import annotations

import ast
import base64
import html
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rlhf_lab.errors import LabError
from slides import markdown_html

PICTURE = "Picture: "
"""How `figures.style.show` begins the text of a picture; an explorer's still begins with the explorer's title."""
WORDS = "In words: "
"""How the same begins the line below it, which says the picture's words to everyone."""


@dataclass
class Drawn:
    """A notebook's body and what came out of it on the way.

    Attributes:
        body: HTML, formulas marked.
        states: keys of the explorers' states, in order.
        derivations: how many derivations it shows, each whole.
        exercises: how many exercises it checks.
        pictures: names and bytes of the pictures' files.
    """

    body: str = ""
    states: list[str] = field(default_factory=list)
    derivations: int = 0
    exercises: int = 0
    pictures: dict[str, bytes] = field(default_factory=dict)


States = Callable[[int, str], str]
"""Takes a cell's number and its explorer's first words; gives the key of its states."""


def drawn(notebook: Any, stem: str, states: States) -> Drawn:
    """Draw a notebook.

    Args:
        notebook: as nbformat reads it, with its outputs.
        stem: its file's name, which its pictures' names begin with.
        states: gives the key of an explorer's states.

    Raises:
        LabError: an output that a page cannot show; a picture without words; an error among the outputs.
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
    """Whether this output of the cell is an explorer's still: the cell ends with a call of some `…_explorer`."""
    data = output.get("data", {})
    if "image/png" not in data or str(data.get("text/plain", "")).startswith(PICTURE):
        return False
    last = ast.parse(cell.source).body[-1]
    if not isinstance(last, ast.Expr) or not isinstance(last.value, ast.Call):
        return False
    call = last.value.func
    return (call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "")).endswith("_explorer")


def alt(output: Any, here: str) -> str:
    """A picture's words: its alternative text, or the text that is stored beside it.

    Raises:
        LabError: it has none.
    """
    stored = output.get("metadata", {}).get("image/png", {}).get("alt", "")
    found = str(stored or output["data"].get("text/plain", "")).removeprefix(PICTURE).strip()
    if not found or found.startswith("<"):  # <Figure size 640x480 with 1 Axes> says nothing
        raise LabError(f"{here}: a picture without words. Show it with `figures.style.show`.")
    return found


def _outputs(cell: Any, here: str, number: int, stem: str, states: States, out: Drawn) -> str:
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
            # The picture's own words, for everyone. Who hears the page has heard them: they are its alternative text.
            words = html.escape(text.removeprefix(WORDS).strip())
            words = f'<figcaption aria-hidden="true">{words}</figcaption>'
            made[-1] = made[-1].removesuffix("</figure>") + words + "</figure>"
        elif "text/markdown" in data:
            made.append(markdown_html.markdown(str(data["text/markdown"])))
        elif "text/html" in data:
            made.append(_shown_itself(str(data["text/html"]), out))
        elif "text/plain" in data:
            made.append(_said(text))
        else:
            raise LabError(f"{here}: an output that is none of text, HTML, markdown and PNG: {sorted(data)}.")
    return "\n".join(made)


def _said(text: str) -> str:
    """What was printed, terminals' colours as classes."""
    from nbconvert.filters import ansi2html

    return f"<pre>{ansi2html(text.rstrip())}</pre>"


def _shown_itself(markup: str, out: Drawn) -> str:
    """An object's own HTML: a derivation's table, an exercise's verdict."""
    if "equation, and why</th>" in markup:
        out.derivations += 1
        return f'<div class="derivation">{markup}</div>'
    if re.search(r"nb\d\d\.\w+", markup):
        out.exercises += 1
    return f'<div class="own">{markup}</div>'


def _picture(output: Any, here: str, name: str, out: Drawn) -> str:
    """The picture as a file beside the page, with its place kept free while it loads."""
    data = base64.b64decode(output["data"]["image/png"])
    out.pictures[f"{name}.png"] = data
    wide, high = struct.unpack(">II", data[16:24])
    shown = int(output.get("metadata", {}).get("image/png", {}).get("width", wide))
    size = f'width="{shown}" height="{round(high * shown / wide)}"'
    return f'<img src="pictures/{name}.png" alt="{html.escape(alt(output, here))}" {size} decoding="async">'
