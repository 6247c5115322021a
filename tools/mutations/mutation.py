"""The data class of a mutation: one plausible bug in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

KINDS = {
    "sign": "a flipped sign",
    "swap": "two exchanged arguments or responses",
    "beta": "a missing β, γ, τ or n",
    "mean": "a mean in place of a sum, or a missing factor",
    "mask": "a missing or shifted mask",
    "norm": "a missing normaliser or weight",
    "setting": "an option that is ignored or has a wrong default",
    "edge": "a shifted boundary, or an error by one",
    "data": "misaligned rows, or state that is not reset or restored",
    "dtype": "a number type of too low precision",
}


@dataclass(frozen=True)
class Mutation:
    """One bug: a piece of a file, which must occur there exactly once, and its replacement."""

    kind: str
    """One of `KINDS`."""
    what: str
    """Description for the report."""
    old: str
    new: str
    near: str = ""
    """One test, `file.py::test_name` below `tests/`, which is run before the whole files to save time."""
    excuse: str = ""
    """Why no test can detect the mutation: the mutated code computes the same result. Empty for all others."""
    file: str = ""
    """Path below `rlhf_lab/`."""
    tests: tuple[str, ...] = ()
    """The module's own test files below `tests/`, which are run before the others."""


def in_file(file: str, tests: Sequence[str], *mutations: Mutation) -> list[Mutation]:
    """The mutations of one file, which share the module's own test files."""
    return [replace(mutation, file=file, tests=tuple(tests)) for mutation in mutations]
