"""The lecture's derivations, one file a block, each line of which can be computed. See `tool.py`.

    from rlhf_lab.derivations import optimum
    optimum.objective_to_optimum.check()

`library()` gives all of them by key.
"""

import importlib

from rlhf_lab.derivations.tool import Checked, Derivation, Line, Wrong, finite_differences, gradient
from rlhf_lab.derivations.world import World, random_world

BLOCKS = ("review", "kl", "optimum", "soft_values", "partition", "dpo", "losses", "rejection", "rest", "labels")
"""The modules, in the lecture's order."""


def library() -> dict[str, Derivation]:
    """Every derivation by its key, in the lecture's order."""
    found: dict[str, Derivation] = {}
    for block in BLOCKS:
        for value in vars(importlib.import_module(f"{__name__}.{block}")).values():
            if isinstance(value, Derivation):
                found[value.key] = value
    return found


__all__ = [
    "BLOCKS",
    "Checked",
    "Derivation",
    "Line",
    "World",
    "Wrong",
    "finite_differences",
    "gradient",
    "library",
    "random_world",
]
