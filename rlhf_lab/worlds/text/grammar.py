"""Grammars that are small enough to read: texts are drawn from them, recognised by them, and weighed in nats.

A grammar is a table: a name and its alternatives, equally likely unless one is written twice. `{name}` in an
alternative stands for a text of that name. Names never lead back to themselves, so the language is finite.

    Grammar({"s": ["The {animal} sleeps.", "The {animal} runs."], "animal": ["cat", "dog"]})

Four texts, each of surprise log 4 = 1.386 nats. Where a text can be derived in one way only, the mean of these
surprises is the entropy of the language: no model has a smaller held-out loss (Shannon 1948, section 6).
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TypeVar

from rlhf_lab.errors import LabError

T = TypeVar("T")

_SLOT = re.compile(r"\{([^{}]+)\}")


class Draw:
    """Choices by seed, and what they cost.

    Attributes:
        nats: −Σ log p of the choices made so far.
    """

    def __init__(self, seed: str) -> None:
        """A seed is a text, so that every example of every world can have one of its own."""
        # random() alone is promised to stay the same between versions of Python; choice() is not.
        self._random = random.Random(seed).random
        self.nats = 0.0

    def pick(self, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
        """One of `options`, equally likely or by `weights` (positive, of any sum)."""
        if weights is None:
            self.nats += math.log(len(options))
            return options[int(self._random() * len(options))]
        place, chosen = self._random() * sum(weights), 0
        for weight in weights[:-1]:
            place -= weight
            if place < 0:
                break
            chosen += 1
        self.nats -= math.log(weights[chosen] / sum(weights))
        return options[chosen]


class Grammar:
    """Named alternatives, as the module's docstring says."""

    def __init__(self, rules: Mapping[str, Sequence[str]]) -> None:
        """Take the table.

        Raises:
            LabError: a name without alternatives, or one that leads back to itself.
        """
        self.rules = dict(rules)
        for name, alternatives in self.rules.items():
            if isinstance(alternatives, str) or not alternatives:
                raise LabError(f"Rule '{name}' needs a list of alternatives.")
            self._check_ends(name, ())

    def _check_ends(self, name: str, above: tuple[str, ...]) -> None:
        if name in above:
            raise LabError(f"Rule '{name}' leads back to itself: {' → '.join((*above, name))}.")
        for alternative in self.rules.get(name, ()):
            for inner in _SLOT.findall(alternative):
                self._check_ends(inner, (*above, name))

    def _alternatives(self, name: str, bound: Mapping[str, str | Sequence[str]]) -> Sequence[str]:
        found = bound.get(name, self.rules.get(name))
        if found is None:
            raise LabError(f"The grammar has no rule '{name}', and it was not given.")
        return (found,) if isinstance(found, str) else found

    def text(self, start: str, draw: Draw, **bound: str | Sequence[str]) -> str:
        """A text of `start`; `bound` gives names a text, or alternatives, for this call."""
        pieces = _pieces(draw.pick(self._alternatives(start, bound)))
        return "".join(self.text(piece, draw, **bound) if i % 2 else piece for i, piece in enumerate(pieces))

    def parses(self, text: str, start: str, **bound: str | Sequence[str]) -> bool:
        """Whether `text`, whole, can be drawn from `start`."""
        known: dict[tuple[str, int], set[int]] = {}

        def ends(name: str, begin: int) -> set[int]:
            """Every place where a text of `name` that begins at `begin` can end."""
            if (name, begin) not in known:
                found: set[int] = set()
                for alternative in self._alternatives(name, bound):
                    places = {begin}
                    for i, piece in enumerate(_pieces(alternative)):
                        if i % 2:
                            places = {end for place in places for end in ends(piece, place)}
                        elif piece:
                            places = {place + len(piece) for place in places if text.startswith(piece, place)}
                        if not places:
                            break
                    found |= places
                known[name, begin] = found
            return known[name, begin]

        return len(text) in ends(start, 0)


@lru_cache(maxsize=4096)
def _pieces(alternative: str) -> list[str]:
    """Text, name, text, name, … text."""
    return _SLOT.split(alternative)


def mentioned(text: str, phrases: Sequence[str]) -> list[str]:
    """Those of `phrases` that stand in `text` as whole words, capitals or not, in the order of `phrases`."""
    found = {match.lower() for match in _finder(tuple(phrases)).findall(text)}
    return [phrase for phrase in phrases if phrase.lower() in found]


@lru_cache(maxsize=256)
def _finder(phrases: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(phrases, key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b", re.IGNORECASE)
