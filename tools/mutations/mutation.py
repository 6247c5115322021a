"""What a mutation is: one bug in one place, written as a tired hand would really write it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

KINDS = {
    "sign": "a sign flipped",
    "swap": "two arguments or responses exchanged",
    "beta": "β, γ, τ or n forgotten",
    "mean": "a mean for a sum, or a factor lost",
    "mask": "a mask dropped or shifted",
    "norm": "a normaliser or a weight forgotten",
    "setting": "an option lost, ignored or with another default",
    "edge": "a boundary moved, or off by one",
    "data": "rows out of line, or state neither reset nor restored",
    "dtype": "numbers of too narrow a type",
}


@dataclass(frozen=True)
class Mutation:
    """One bug: an exact piece of a file, which must occur there once, and what stands in its place."""

    kind: str
    """One of `KINDS`."""
    what: str
    """In words, for the report."""
    old: str
    new: str
    near: str = ""
    """One test, `file.py::test_name` below `tests/`, that is run before the whole files: it saves time."""
    excuse: str = ""
    """Only for a mutation that no test can catch, because the mutated code computes the same thing: why that is so."""
    file: str = ""
    """Below `rlhf_lab/`."""
    tests: tuple[str, ...] = ()
    """The module's own test files below `tests/`, which are run before the others."""


def in_file(file: str, tests: Sequence[str], *mutations: Mutation) -> list[Mutation]:
    """The mutations of one file, which share the module's own test files."""
    return [replace(mutation, file=file, tests=tuple(tests)) for mutation in mutations]
