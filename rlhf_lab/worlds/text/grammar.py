"""Small grammars that generate texts with their log-probabilities and recognise texts.

A grammar is a table of names, each with its alternatives. Alternatives are equally likely, and one that is written
twice is twice as likely. `{name}` in an alternative is replaced by a text of that name. No name leads back to itself,
so the language is finite. The grammar

    Grammar({"s": ["The {animal} sleeps.", "The {animal} runs."], "animal": ["cat", "dog"]})

has four texts, each with −log p = log 4 = 1.386 nats. If each text has only one derivation, the mean of −log p is the
entropy of the language, and no model has a smaller expected held-out loss (Shannon 1948, section 6).
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
    """Random choices by a seed, with their log-probability.

    Attributes:
        nats: −Σ log p of all choices that were made.
    """

    def __init__(self, seed: str) -> None:
        """Set the seed. It is a text, so that each example of each world can have a different seed."""
        # Python guarantees that random() gives the same numbers in all versions, but not that choice() does.
        self._random = random.Random(seed).random
        self.nats = 0.0

    def pick(self, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
        """Choose one of `options` with equal probabilities, or in proportion to positive `weights`."""
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
    """A table of names with their alternatives, see the module's docstring."""

    def __init__(self, rules: Mapping[str, Sequence[str]]) -> None:
        """Check and save the table.

        Raises:
            LabError: a name without alternatives, or a name that leads back to itself.
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
            raise LabError(f"The grammar has no rule '{name}'. Pass its text or its alternatives by name.")
        return (found,) if isinstance(found, str) else found

    def text(self, start: str, draw: Draw, **bound: str | Sequence[str]) -> str:
        """Generate a text of the name `start`. `bound` gives further names with their text or alternatives."""
        pieces = _pieces(draw.pick(self._alternatives(start, bound)))
        return "".join(self.text(piece, draw, **bound) if i % 2 else piece for i, piece in enumerate(pieces))

    def parses(self, text: str, start: str, **bound: str | Sequence[str]) -> bool:
        """Whether the whole `text` can be generated from `start`."""
        known: dict[tuple[str, int], set[int]] = {}

        def ends(name: str, begin: int) -> set[int]:
            """Every position at which a text of `name` that begins at `begin` can end."""
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
    """Split an alternative into text, name, text, name, …, text."""
    return _SLOT.split(alternative)


def mentioned(text: str, phrases: Sequence[str]) -> list[str]:
    """The phrases that occur in `text` as whole words, ignoring case, in the order of `phrases`."""
    found = {match.lower() for match in _finder(tuple(phrases)).findall(text)}
    return [phrase for phrase in phrases if phrase.lower() in found]


@lru_cache(maxsize=256)
def _finder(phrases: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(phrases, key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b", re.IGNORECASE)
