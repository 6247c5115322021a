"""The blocks of the lecture slides, one file each, in the order of the lecture."""

from __future__ import annotations

import importlib
import pkgutil

from slides.schema import Block, Deck, T, check

TITLE = T("Variants of RLHF", "RLHF 的变体")


def blocks() -> tuple[Block, ...]:
    """Return every block: the files `bNN_name.py` of this folder, in the order of their numbers."""
    names = sorted(found.name for found in pkgutil.iter_modules(__path__) if found.name.startswith("b"))
    return tuple(importlib.import_module(f"{__name__}.{name}").BLOCK for name in names)


def deck() -> Deck:
    """Return the lecture slides, checked.

    Raises:
        LabError: a slide cannot be built. The message names its key.
    """
    return check(Deck(TITLE, blocks()))
