"""The language of explorers and figures: English, in which the code is written, or Chinese.

    with use("zh"):
        tr("With {labels} labels the regret is {regret:.3g}.", labels=100, regret=0.0123)

The English text is the key of its translation in `chinese.toml`, as in gettext, whose compiled files are not needed for
one table. Text that contains numbers goes through `tr` where it is written. Fixed labels (titles, axes, legends,
controls) are plain English strings, and the views translate them when they are shown: `Picture.to_dict`,
`picture.draw`, `Explorer` and `figures.style.translate`. A text without a translation stays English.
"""

from __future__ import annotations

import functools
import re
import textwrap
import tomllib
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from rlhf_lab.errors import LabError

LANGUAGES = ("en", "zh")
"""English and simplified Chinese, as HTML's `lang` names them."""
TABLE = Path(__file__).with_name("chinese.toml")

_current: ContextVar[str] = ContextVar("language", default="en")


def current() -> str:
    """The present language, one of `LANGUAGES`."""
    return _current.get()


@contextmanager
def use(language: str) -> Iterator[None]:
    """Use `language` inside this context.

    Raises:
        LabError: not one of `LANGUAGES`.
    """
    if language not in LANGUAGES:
        raise LabError(f"The language must be one of {', '.join(LANGUAGES)}, not {language!r}.")
    before = _current.set(language)
    try:
        yield
    finally:
        _current.reset(before)


@functools.cache
def chinese() -> dict[str, str]:
    """The table of translations: English text → Chinese text."""
    sections = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return {english: text for section in sections.values() for english, text in section.items()}


def tr(text: str, **values: Any) -> str:
    """`text` in the present language, with `values` in its placeholders.

    Args:
        text: English, with placeholders in the form of `str.format` if there are values.
        **values: by the names of the placeholders. Both languages have the same placeholders.
    """
    shown = text if current() == "en" else chinese().get(text, text)
    return shown.format(**values) if values else shown


_PIECES = re.compile(
    r"\[[^\]\s]{1,8}\]|[（“《(\[]*[\u2e80-\u9fff\uff00-\uffee][，。、：；？！）”》)\]]*|[^\s\u2e80-\u9fff\uff00-\uffee]+|\s+"
)
"""What stays on one line: a unit in brackets, a Chinese character with its punctuation, a word, spaces."""


def columns(text: str) -> int:
    """The width of one line of text in columns, of which a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def wrap(text: str, width: int) -> list[str]:
    """Break `text` into lines of at most `width` columns; a line may also end after a Chinese character."""
    if columns(text) == len(text):
        return textwrap.wrap(text, width)
    lines = [""]
    for piece in _PIECES.findall(text):
        if lines[-1] and columns(lines[-1]) + columns(piece) > width:
            lines.append("")
        lines[-1] += piece if lines[-1] else piece.lstrip()
    return [line.rstrip() for line in lines if line.strip()]
