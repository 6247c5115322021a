"""Verdicts on claims as data, and the hand-written notes that put them into words.

A `Verdict` is an outcome with the named numbers that decide it. `results/CLAIM/SCALE/result.json` stores it. The words
are in `notes.md` beside it, written by hand, with a placeholder for each number:

    ---
    outcome: supported
    cell: DPO needs {memory_ratio:percent} of PPO's memory.
    conditions:
      - memory_ratio < 1
    ---
    ## Finding
    DPO needs {memory_ratio:percent} of PPO's memory, over {seeds} seeds.

    ## Explanation
    …

    ## Figure
    Alternative text of the picture, for readers who cannot see it.

`cell` is one sentence with the key number, for the table of all claims. A placeholder is the name of a number or of a
setting, with the words of `intervals.format_number` after a colon. The outcome and the conditions say for which results
the words are true; a test compares them with the numbers.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from rlhf_lab.errors import LabError
from rlhf_lab.intervals import Interval, format_number

Outcome = Literal["supported", "partly supported", "not supported", "answered", "inconclusive"]
OUTCOMES: tuple[str, ...] = get_args(Outcome)
Number = Interval | float
"""An estimate with its interval, or an exact number."""

BY_PARTS = (
    "The claim is supported if all parts are true and partly supported if some are. It is not supported if none is "
    "true and some are false, and inconclusive if all are open."
)
"""What `outcome_of` decides, as a part of a rule's text."""
SECTIONS = ("Finding", "Explanation", "Figure")


@dataclass(frozen=True)
class Verdict:
    """What the rule of a claim decides on one scale.

    Attributes:
        outcome: by the rule. "inconclusive" means that the intervals are too wide to decide. A question, which claims
            nothing, is "answered" or "inconclusive".
        numbers: every number that the rule compares or that the notes and slides quote, by name.
        thresholds: for names of `numbers`, the value with which the rule compares them. No printed number crosses it by
            rounding.
    """

    outcome: Outcome
    numbers: Mapping[str, Number] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse thresholds of numbers that are not there."""
        if unknown := self.thresholds.keys() - self.numbers.keys():
            raise LabError(f"A verdict has thresholds for {', '.join(sorted(unknown))}, but no such number.")

    def record(self) -> dict[str, Any]:
        """Return the verdict as JSON stores it: eight significant digits, an interval as [mean, low, high]."""
        numbers = {
            name: [_stored(one) for one in value] if isinstance(value, Interval) else _stored(value)
            for name, value in self.numbers.items()
        }
        return {"outcome": self.outcome, "numbers": numbers, "thresholds": dict(self.thresholds)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Verdict:
        """Return the verdict that `record` wrote."""
        numbers: dict[str, Number] = {
            name: Interval(*map(_read, value)) if isinstance(value, list) else _read(value)
            for name, value in record["numbers"].items()
        }
        return cls(record["outcome"], numbers, record["thresholds"])


def _stored(value: float) -> float | int | str | None:
    if isinstance(value, int) or math.isnan(value):
        return None if value != value else value
    return float(f"{value:.8g}") if math.isfinite(value) else str(value)


def _read(value: float | str | None) -> float:
    return math.nan if value is None else float(value) if isinstance(value, str) else value


@dataclass(frozen=True)
class Notes:
    """The words of a result.

    Attributes:
        outcome: the outcome for which they were written.
        cell: one sentence with placeholders, for the table of all claims.
        conditions: comparisons of numbers on which the words rely, as text; see `holds`.
        sections: the text of each of `SECTIONS`, with placeholders.
    """

    outcome: str
    cell: str
    conditions: tuple[str, ...]
    sections: Mapping[str, str]


def side(one: Interval, threshold: float = 0.0) -> int:
    """Return +1 for an interval above the threshold, −1 for one below it, and 0 where it contains the threshold."""
    return int(one.low > threshold) - int(one.high < threshold)


def outcome_of(parts: Iterable[int]) -> Outcome:
    """Decide a claim from its parts.

    Args:
        parts: for each part +1 if it is true, −1 if it is false, and 0 if it is open.

    Returns:
        "supported" if all parts are true, "partly supported" if some are, "not supported" if none is true and some are
        false, and "inconclusive" if all are open.
    """
    found = set(parts)
    if 1 in found:
        return "supported" if found == {1} else "partly supported"
    return "not supported" if -1 in found else "inconclusive"


def read_notes(path: Path) -> Notes:
    """Read a file `notes.md`.

    Raises:
        LabError: it is missing, has no outcome or no cell in front, or lacks a section.
    """
    head, sections = read_parts(path, SECTIONS)
    if head.get("outcome") not in OUTCOMES:
        raise LabError(f"{path} must begin with '---', 'outcome: …' (one of {', '.join(OUTCOMES)}) and '---'.")
    if not head.get("cell"):
        raise LabError(f"{path} has no 'cell: …' in front, a sentence with the key number for the table of all claims.")
    return Notes(head["outcome"], head["cell"], tuple(head.get("conditions") or ()), sections)


def read_parts(path: Path, wanted: Iterable[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Read a Markdown file with YAML in front, between two lines `---`, and sections with headings of level two.

    Args:
        path: of the file.
        wanted: the headings that it must have.

    Returns:
        the data in front, empty where there are none, and the text of each section by its heading.

    Raises:
        LabError: it is missing, lacks a section, or has other data in front than YAML.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise LabError(f"{path} cannot be read ({error.strerror}). Every saved result needs its words.") from None
    found = re.fullmatch(r"---\n(.*?)\n---\n(.*)", text, re.DOTALL)
    try:
        head = yaml.safe_load(found[1]) if found else {}
    except yaml.YAMLError as error:
        raise LabError(
            f"The lines between '---' in {path} are not valid YAML ({' '.join(str(error).split())})."
        ) from None
    parts = re.split(r"^## (.+)\n", found[2] if found else text, flags=re.MULTILINE)
    sections = {name.strip(): body.strip() for name, body in zip(parts[1::2], parts[2::2], strict=True)}
    if missing := [name for name in wanted if not sections.get(name)]:
        raise LabError(f"{path} has no section '## {missing[0]}'. It needs {', '.join(wanted)}.")
    return head if isinstance(head, dict) else {}, sections


def fill(text: str, verdict: Verdict, settings: Mapping[str, Any]) -> str:
    """Put the numbers of a result into text with placeholders.

    Args:
        text: placeholders are `{name}` or `{name:words of format_number}`.
        verdict: whose numbers are taken first.
        settings: whose numbers and texts are taken where the verdict has none of that name.

    Raises:
        LabError: a name that neither has.
    """
    return _Filler(verdict, settings).format(text)


class _Filler(string.Formatter):
    """Formats by the names of numbers and settings alone, with no access to attributes or items."""

    def __init__(self, verdict: Verdict, settings: Mapping[str, Any]) -> None:
        self.verdict, self.settings = verdict, settings

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> tuple[Any, str]:
        if field_name in self.verdict.numbers:
            threshold = self.verdict.thresholds.get(field_name)
            return _Printed(self.verdict.numbers[field_name], () if threshold is None else (threshold,)), field_name
        if field_name in self.settings:
            return _Setting(self.settings[field_name]), field_name
        raise LabError(
            f"There is no number '{field_name}' in this result. It has {', '.join(self.verdict.numbers) or 'none'}, "
            f"and the settings {', '.join(self.settings)}."
        )


@dataclass(frozen=True)
class _Printed:
    value: Number
    thresholds: tuple[float, ...] = ()

    def __format__(self, spec: str) -> str:
        return format_number(self.value, spec, self.thresholds)


@dataclass(frozen=True)
class _Setting:
    """A setting, which is exact: 0.5 is printed as 0.5, and a list as 0.1, 0.3, 1."""

    value: Any

    def __format__(self, spec: str) -> str:
        if isinstance(self.value, list | tuple):
            return ", ".join(format(_Setting(one), spec) for one in self.value)
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            return str(self.value)
        return f"{self.value:g}" if isinstance(self.value, float) and not spec else format_number(self.value, spec)


def holds(condition: str, verdict: Verdict) -> bool:
    """Decide a condition of the notes.

    `a < b` and `a > b` compare whole intervals: `a < 1` says that a's upper end is below 1. `a ~ b` says that they
    overlap (for a number: that the interval of a contains it). Both sides are names of numbers, or numbers.

    Raises:
        LabError: another form, or an unknown name.
    """
    found = re.fullmatch(r"\s*(\S+)\s*([<>~])\s*(\S+)\s*", condition)
    if found is None:
        raise LabError(f"The condition '{condition}' is not of the form 'name < number'. Signs: <, >, ~.")
    (a_low, a_high), (b_low, b_high) = (_ends(one, verdict) for one in (found[1], found[3]))
    return {"<": a_high < b_low, ">": a_low > b_high, "~": a_low <= b_high and b_low <= a_high}[found[2]]


def _ends(name: str, verdict: Verdict) -> tuple[float, float]:
    value = verdict.numbers.get(name)
    if value is None:
        try:
            value = float(name)
        except ValueError:
            raise LabError(
                f"There is no number '{name}' in the verdict; it has {', '.join(verdict.numbers)}."
            ) from None
    return (value.low, value.high) if isinstance(value, Interval) else (value, value)
