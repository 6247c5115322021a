"""Compare a notebook's outputs: text exactly, numbers within a tolerance. A pytest plugin on top of nbval.

Another processor computes other last digits, and a rounded number may then be printed one unit higher or lower. nbval
compares strings. This plugin makes it compare

- text, HTML tags and integers exactly,
- every number with a decimal point, an exponent or a percent sign within one unit of its last printed digit, or
  within 1e-6 of its value, whichever is larger.

The signs and the number of numbers count; NaN and infinity are text. Where a number became longer or shorter ("9.99"
and "10.00"), the spaces beside it, which align a column, are not compared.

A cell whose numbers come from training or from a simulation says so by tags (README.md has examples):

- `nbval-rtol=0.01`: numbers may differ by 1 % of the stored value,
- `nbval-atol=0.05`: numbers may differ by 0.05,
- `nbval-integers`: the tolerance holds for integers too, which may then differ by one unit,
- `nbval-ignore-numbers`: any finite number may stand where a number stands. The cell must then hold an assertion.

The repository's conftest.py loads it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import pytest

# A tag of HTML, or a number that is no part of a name ("k1"), of a version ("2.6.0") or of a range ("3-5"): its sign
# belongs to it only where no word, number or bracket ends just before.
TAG = r"</?[A-Za-z][^<>]*>"
NUMBER = r"(?<![\w.])(?:(?<![\w)\]}.%])[+\-−])?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][+\-]?\d+)?(?![\d]|\.\d)%?"
PIECE = re.compile(f"(?P<tag>{TAG})|(?P<number>{NUMBER})")


@dataclass(frozen=True)
class Tolerance:
    """How far two printed numbers may be apart."""

    relative: Decimal = Decimal("1e-6")
    absolute: Decimal = Decimal(0)
    integers: bool = False
    """Whether it holds for integers too."""
    any_number: bool = False
    """Whether any number matches any other."""

    @staticmethod
    def of(tags: list[str]) -> Tolerance:
        """The tolerance that a cell's tags ask for.

        Raises:
            ValueError: a tag begins as ours do and is none of them. A typing error would change what is compared.
        """
        found = Tolerance()
        for tag in tags:
            name, _, value = tag.partition("=")
            if tag in ("nbval-ignore-output", "nbval-check-output", "nbval-raises-exception", "nbval-skip"):
                continue  # nbval's own
            if tag == "nbval-integers":
                found = replace(found, integers=True)
            elif tag == "nbval-ignore-numbers":
                found = replace(found, any_number=True)
            elif name in ("nbval-rtol", "nbval-atol") and re.fullmatch(r"\d+(\.\d+)?(e-?\d+)?", value):
                found = replace(found, **{"relative" if name == "nbval-rtol" else "absolute": Decimal(value)})
            elif tag.startswith("nbval-"):
                raise ValueError(f"The tag {tag} is unknown. tests/notebooks/README.md lists the tags of a cell.")
        return found

    def allowed(self, stored: str, new: str) -> str:
        """Why the two printed numbers differ by too much, in words; "" where they do not."""
        if stored == new or self.any_number:
            return ""
        kinds = _kind(stored), _kind(new)
        if kinds[0] != kinds[1]:
            return "one is an integer, a decimal number or a percentage, and the other is not"
        if kinds[0] == "integer" and not self.integers:
            return "integers are compared exactly"
        if "+" in (stored[0], new[0]) and not (stored[0] in "+-−" and new[0] in "+-−"):
            return "only one has a sign"
        a, b = _value(stored), _value(new)
        # Where one has more digits (0.5 and 0.4999), the longer one says how exact they are meant to be.
        limit = max(min(_unit(stored), _unit(new)), self.relative * abs(a), self.absolute)
        return "" if abs(a - b) <= limit else f"they are {abs(a - b):.3g} apart, and {limit:.3g} is allowed"


def _kind(number: str) -> str:
    if number.endswith("%"):
        return "percentage"
    return "decimal" if re.search(r"[.eE]", number) else "integer"


def _value(number: str) -> Decimal:
    return Decimal(number.rstrip("%").replace(",", "").replace("−", "-"))


def _unit(number: str) -> Decimal:
    """One unit of the last printed digit."""
    return Decimal(1).scaleb(int(_value(number).as_tuple().exponent))


def _pieces(text: str) -> tuple[list[str], list[str]]:
    """The texts around the numbers, one more than numbers, and the numbers. HTML tags are text."""
    texts, found, at = [], [], 0
    for match in PIECE.finditer(text):
        if match["number"] is not None:
            texts.append(text[at : match.start()])
            found.append(match["number"])
            at = match.end()
    return [*texts, text[at:]], found


def differences(stored: str, new: str, tolerance: Tolerance | None = None) -> list[str]:
    """What differs between a stored output and a new one by more than the tolerance, in words; [] if nothing does."""
    tolerance = tolerance or Tolerance()
    texts, found = _pieces(stored)
    new_texts, new_found = _pieces(new)
    if len(found) != len(new_found):
        return [f"The stored output has {len(found)} numbers, the new one has {len(new_found)}."]
    said = []
    for a, b in zip(found, new_found, strict=True):
        why = tolerance.allowed(a, b)
        if why:
            said.append(f"stored {a}, new {b}: {why}.")
    for i, (a, b) in enumerate(zip(texts, new_texts, strict=True)):
        # A number that changed its length moved the spaces on both sides of it.
        if i > 0 and len(found[i - 1]) != len(new_found[i - 1]):
            a, b = a.lstrip(" "), b.lstrip(" ")
        if i < len(found) and len(found[i]) != len(new_found[i]):
            a, b = a.rstrip(" "), b.rstrip(" ")
        if a != b:
            said.append(f"stored text {a!r}, new text {b!r}.")
    return said


class Output(str):
    """A text that equals another whose numbers are near its own."""

    tolerance: Tolerance

    def __new__(cls, text: str, tolerance: Tolerance) -> Output:
        made = super().__new__(cls, text)
        made.tolerance = tolerance
        return made

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and not differences(str(self), str(other), self.tolerance)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give each cell of a notebook the comparison of its tags: nbval passes every text that it compares through it."""
    cell: Any = item
    if type(item).__module__ != "nbval.plugin":
        return
    tolerance, sanitize = Tolerance.of(cell.cell.metadata.get("tags", [])), cell.sanitize

    def near(text: Any) -> Any:
        text = sanitize(text)
        return Output(text, tolerance) if isinstance(text, str) else text

    cell.sanitize = near


@pytest.hookimpl(tryfirst=True)
def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Name the numbers and texts that differ too much, then show both outputs."""
    if op != "==" or not isinstance(left, Output) or not isinstance(right, str):
        return None
    said = differences(str(left), str(right), left.tolerance)
    return [*said, "stored output:", *left.splitlines(), "new output:", *right.splitlines()]
