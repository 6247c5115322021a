"""RLHF and its variants, with the exact optimal policy beside every method.

`import rlhf_lab` loads nothing else. Each room loads when it is first named, so that `rlhf_lab.exact` costs
an `import torch` and no more, and transformers, datasets, matplotlib and widgets wait until something needs
them.
"""

from __future__ import annotations

import importlib
from types import ModuleType

__version__ = "0.1.0"

_ROOMS = (
    "algorithms",
    "batch",
    "checks",
    "derivations",
    "evaluation",
    "exact",
    "exercises",
    "experiments",
    "figures",
    "kl",
    "losses",
    "policies",
    "preferences",
    "randomness",
    "response_tree",
    "rewards",
    "rounding",
    "sampling",
    "shipped",
    "training",
    "widgets",
    "worlds",
)


def __getattr__(name: str) -> ModuleType:
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOMS])
