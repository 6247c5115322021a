"""Intervals of estimates, and how numbers and tables are printed: digits, signs, percentages, columns.

An estimate is printed with as many decimals as its interval justifies (two significant digits of its half width). A
number is given more decimals where rounding would move it across a threshold or onto it: an interval that excludes 1
is printed as [1.0004, 1.17], never as [1.00, 1.17].
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from rlhf_lab.errors import LabError

__all__ = ["MINUS", "Interval", "aligned", "format_number", "typeset"]

MINUS = "−"
"""The minus sign of printed text (U+2212)."""
THRESHOLDS = (0.0, 1.0)
"""Values that a printed number never crosses by rounding, whatever else is protected."""
_SIGNIFICANT = 3
_MOST_DECIMALS = 12
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class Interval(NamedTuple):
    """An estimate with its confidence interval. The ends are NaN where a single seed leaves no interval."""

    mean: float
    low: float
    high: float

    def __neg__(self) -> Interval:
        """Return the interval of the negated number."""
        return Interval(-self.mean, -self.high, -self.low)

    @property
    def above(self) -> bool:
        """Whether the whole interval lies above zero."""
        return self.low > 0

    @property
    def below(self) -> bool:
        """Whether the whole interval lies below zero."""
        return self.high < 0

    def __str__(self) -> str:
        return format(self, "")

    def __format__(self, spec: str) -> str:
        """Print the interval as `spec` says; see `format_number`."""
        return format_number(self, spec)


def format_number(value: Interval | float, spec: str = "", thresholds: Iterable[float] = ()) -> str:
    """Print a number or an interval.

    Args:
        value: an exact number, or an estimate with its interval.
        spec: words, separated by commas. `mean` prints the estimate alone and `ends` the interval alone; `percent`
            prints 100 times the value with a percent sign, `points` the same without it (percentage points); `signed`
            puts a plus sign before positive numbers. An integer sets the number of decimals; thresholds may raise it.
            Without words an interval is printed as "1.09 [1.0004, 1.17]".
        thresholds: further values, on the scale of `value`, that no printed number crosses by rounding.

    Returns:
        text with the typographic minus sign; thousands are separated by commas from 10,000 on.

    Raises:
        LabError: an unknown word in `spec`.
    """
    words = [word.strip() for word in spec.split(",") if word.strip()]
    decimals = None
    for word in words:
        if word.isdecimal():
            decimals = int(word)
        elif word not in ("mean", "ends", "percent", "points", "signed"):
            raise LabError(
                f"A number cannot be printed as '{word}'. Known words: mean, ends, percent, points, signed, or a "
                f"number of decimals."
            )
    factor = 100.0 if "percent" in words or "points" in words else 1.0
    safe = [factor * threshold for threshold in (*THRESHOLDS, *thresholds)]
    unit, signed = "%" if "percent" in words else "", "signed" in words
    if not isinstance(value, Interval):
        places = _decimals_of(factor * value, math.nan) if decimals is None else decimals
        return _text(factor * value, places, safe, signed) + unit
    mean, low, high = (factor * one for one in value)
    half_width = (high - low) / 2 if high > low else math.nan
    places = _decimals_of(mean, half_width) if decimals is None else decimals
    mean_text = _text(mean, places, safe, signed) + unit
    if "mean" in words or math.isnan(low) or math.isnan(high) or low == high:
        return mean_text
    ends = f"[{_text(low, places, safe, signed)}{unit}, {_text(high, places, safe, signed)}{unit}]"
    return ends if "ends" in words else f"{mean_text} {ends}"


def typeset(value: float, spec: str) -> str:
    """Print a number with Python's format specification `spec` and the typographic minus sign.

    A number that is rounded to zero has no minus sign.
    """
    text, zero = format(value, spec), format(0.0, spec)
    return zero if text.lstrip("-") == zero.lstrip("+") else text.replace("-", MINUS)


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Return the lines of a plain-text table, with two spaces between its columns.

    Args:
        rows: the cells of each row, as many in every row.
        right: numbers of the columns whose cells are aligned on the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _decimals_of(value: float, half_width: float) -> int:
    """Two significant digits of the half width; three of the value where there is no half width."""
    size, digits = (half_width, 2) if half_width > 0 and math.isfinite(half_width) else (abs(value), _SIGNIFICANT)
    if not math.isfinite(size) or size == 0:
        return 0
    if half_width != half_width and value == int(value):
        return 0
    return min(max(digits - 1 - math.floor(math.log10(size)), 0), _MOST_DECIMALS)


def _text(value: float, decimals: int, thresholds: list[float], signed: bool) -> str:
    """One number with at least `decimals` decimals, on the same side of every threshold as before rounding."""
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: f"{MINUS}∞"}.get(value, "NaN")
    while decimals < _MOST_DECIMALS and any(
        _side(round(value, decimals) - one) != _side(value - one) for one in thresholds
    ):
        decimals += 1
    size = abs(value)
    if 0 < size < 1e-4:
        digits, _, power = f"{size:.1e}".partition("e")
        text = f"{digits}·10{str(int(power)).translate(_SUPERSCRIPTS)}"
    else:
        text = f"{size:,.{decimals}f}" if size >= 10_000 else f"{size:.{decimals}f}"
    zero = (round(size, decimals) == 0 and size >= 1e-4) or size == 0
    return ("" if zero else MINUS if value < 0 else "+" if signed else "") + text


def _side(difference: float) -> int:
    return int(difference > 0) - int(difference < 0)
