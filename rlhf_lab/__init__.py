"""RLHF and its variants, with the exact optimal policy for comparison with every method.

`import rlhf_lab` imports nothing else. Each subpackage is imported at its first use as an attribute: `rlhf_lab.exact`
imports torch only, and transformers, datasets, matplotlib and ipywidgets are imported when something needs them.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

__version__ = "0.1.0"

_SUBPACKAGES = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "cli")


def __getattr__(name: str) -> ModuleType:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_SUBPACKAGES])
