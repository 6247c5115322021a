"""The explanations of options in --help, made from the docstrings of the settings' fields."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def from_docstrings(options: Collection[str]) -> Iterator[None]:
    """Let tyro show the docstrings of fields as running text, in which `field_name` is written --field-name.

    tyro keeps the line breaks of indented lines, so that the lines of a docstring would end at different widths.

    Args:
        options: names of the command's fields.
    """
    import docstring_parser

    read = docstring_parser.parse_from_object
    field = re.compile(rf"`({'|'.join(map(re.escape, options))})(?==|`)")

    def parse_from_object(*args: Any, **kwargs: Any) -> docstring_parser.Docstring:
        docstring = read(*args, **kwargs)
        for one in docstring.params:
            text = " ".join(inspect.cleandoc(one.description or "").split("\n"))
            one.description = field.sub(lambda found: f"`--{found[1].replace('_', '-')}", text)
        return docstring

    docstring_parser.parse_from_object = parse_from_object
    try:
        yield
    finally:
        docstring_parser.parse_from_object = read
