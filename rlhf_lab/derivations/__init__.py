"""The lecture's derivations, one file a block, each line of which can be computed. See `tool.py`.

    from rlhf_lab.derivations import optimum
    optimum.objective_to_optimum.check()

`library()` gives all of them by key.
"""

import importlib
import pkgutil

from rlhf_lab.checks import LabError
from rlhf_lab.derivations.tool import Checked, Derivation, Line, Wrong, finite_differences, gradient
from rlhf_lab.derivations.world import World, random_world

BLOCKS = ("review", "kl", "optimum", "soft_values", "partition", "dpo", "losses", "rejection", "rest", "labels")
"""The modules of the lecture's blocks, in its order. A file beside them is found without being named here."""


def library() -> dict[str, Derivation]:
    """Every derivation by its key: the lecture's blocks in their order, then what other files hold.

    Raises:
        LabError: two derivations of one key.
    """
    files = sorted(found.name for found in pkgutil.iter_modules(__path__) if found.name not in ("tool", "world"))
    found: dict[str, Derivation] = {}
    for block in (*BLOCKS, *(name for name in files if name not in BLOCKS)):
        for value in vars(importlib.import_module(f"{__name__}.{block}")).values():
            if isinstance(value, Derivation) and found.setdefault(value.key, value) is not value:
                raise LabError(f"Two derivations are named {value.key!r}, one of them in derivations/{block}.py.")
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
