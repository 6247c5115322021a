"""A derivation as Markdown: typeset equations, what was computed, and the Python code of each line.

Jupyter, VS Code, Colab and GitHub typeset the mathematics of a Markdown output. Not all of them do so in HTML.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from types import CodeType, FunctionType
from typing import Any

LINES = "line | computed | equation, and why"
"""The head of the table of lines."""
TableRow = tuple[str, str, str, str]
"""Its number, what was computed, the equation in LaTeX, and the reason."""


def markdown(
    title: str,
    found: str,
    rows: Sequence[TableRow],
    wrong: Sequence[TableRow],
    code: Sequence[tuple[str, str]],
    source: str,
) -> str:
    """A derivation as Markdown.

    Args:
        title: what is derived.
        found: what was computed.
        rows: the lines.
        wrong: the wrong lines.
        code: headings and code that can be unfolded.
        source: paper and lecture's slide.
    """
    parts = [f"**{_text(title)}**: {_text(found)}.", _table(LINES, rows)]
    if wrong:
        parts.append(_table("plausible but wrong | typical error | equation, and the mistake", wrong))
    for heading, text in code:
        parts.append(f"<details><summary>{heading}</summary>\n\n```python\n{text}\n```\n\n</details>")
    return "\n\n".join([*parts, f"Source: {_text(source)}"])


def source_of(function: Callable[..., Any]) -> str:
    """The code of a function or of a lambda alone, without what surrounds it; empty if there is no source."""
    try:
        source = textwrap.dedent(inspect.getsource(function)).rstrip()
    except (OSError, TypeError):
        return ""
    if getattr(function, "__name__", "") != "<lambda>":
        return source
    found = [text for start in re.finditer(r"\blambda\b", source) if (text := _lambda_at(source, start.start()))]
    same = [text for text in found if _names(compile(text, "", "eval")) == _names(function.__code__)]
    return (same or found or [source])[0]


def helpers_of(functions: Iterable[Callable[..., Any]]) -> list[str]:
    """The code of the functions of the same module that these functions call, directly or indirectly."""
    found: dict[str, str] = {}
    waiting = [one for one in functions if isinstance(one, FunctionType)]
    while waiting:
        function = waiting.pop(0)
        for name in sorted(_names(function.__code__)):
            helper = function.__globals__.get(name)
            if isinstance(helper, FunctionType) and helper.__module__ == function.__module__ and name not in found:
                found[name] = source_of(helper)
                waiting.append(helper)
    return [found[name] for name in sorted(found)]


def _lambda_at(source: str, start: int) -> str:
    """The lambda expression that begins at this place."""
    for end in range(len(source), start, -1):
        try:
            # In brackets, so that it may have several lines.
            tree = ast.parse(f"({source[start:end]}\n)", mode="eval")
        except SyntaxError:
            continue
        if isinstance(tree.body, ast.Lambda):
            return textwrap.dedent(source[start:end]).rstrip()
    return ""


def _names(code: CodeType) -> set[str]:
    """The names and constants of a function's code, and of the functions inside it."""
    inner = [one for one in code.co_consts if isinstance(one, CodeType)]
    own = {*code.co_names, *code.co_freevars} | ({*map(repr, code.co_consts)} if not inner else set())
    return own.union(*map(_names, inner))


def _table(head: str, rows: Sequence[TableRow]) -> str:
    lines = [f"| {head} |", "|---|---|---|"]
    for number, computed, equation, words in rows:
        below = f"<br>{_text(words)}" if words else ""
        lines.append(rf"| {number} | {computed} | $\displaystyle {_in_table(equation)}${below} |")
    return "\n".join(lines)


def _in_table(latex: str) -> str:
    """LaTeX without the characters that Markdown reads as the end of a cell or as a tag."""
    latex = latex.replace(r"\|", r"\Vert ").replace("|", r"\vert ")
    return latex.replace("<", r"\lt ").replace(">", r"\gt ")


def _text(words: str) -> str:
    """Text with `$…$` and backticks as Markdown."""
    parts = re.split(r"(\$[^$]*\$|`[^`]*`)", words)
    return "".join(
        f"${_in_table(part[1:-1])}$"
        if part[:1] == "$"
        else part
        if part[:1] == "`"
        else re.sub(r"([*_|<])", r"\\\1", part)
        for part in parts
    )
