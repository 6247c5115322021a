"""The lecture's derivations, whose lines are computed on random worlds. See `derivation.py`.

    from rlhf_lab.derivations import optimal_policy
    optimal_policy.objective_to_optimum.check()

`library()` gives all of them by key.
"""

import importlib
import pkgutil

from rlhf_lab.derivations.derivation import Checked, Derivation, Line, Wrong, finite_differences, gradient
from rlhf_lab.derivations.random_worlds import RandomWorld, random_world
from rlhf_lab.errors import LabError

BLOCKS = (
    "rlhf_review",
    "kl",
    "optimal_policy",
    "soft_values",
    "partition",
    "dpo",
    "losses",
    "rejection",
    "rest",
    "label_value",
)
"""The modules of the lecture's blocks, in its order. Other files of this folder need not be listed."""


def library() -> dict[str, Derivation]:
    """Every derivation by its key: first the lecture's blocks in their order, then those of other files.

    Raises:
        LabError: two derivations have the same key.
    """
    names = {found.name for found in pkgutil.iter_modules(__path__)} - {"derivation", "display", "random_worlds"}
    found: dict[str, Derivation] = {}
    for block in (*BLOCKS, *sorted(names - set(BLOCKS))):
        for value in vars(importlib.import_module(f"{__name__}.{block}")).values():
            if isinstance(value, Derivation) and found.setdefault(value.key, value) is not value:
                raise LabError(f"Two derivations are named {value.key!r}, one of them in derivations/{block}.py.")
    return found


__all__ = [
    "BLOCKS",
    "Checked",
    "Derivation",
    "Line",
    "RandomWorld",
    "Wrong",
    "finite_differences",
    "gradient",
    "library",
    "random_world",
]
