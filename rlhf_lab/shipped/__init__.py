"""Finds the files that ship with the lab and are not Python: models, cards of the corpora, notebooks, configurations.

In a checkout they lie in the top-level folders `data/`, `notebooks/` and `configs/`. In an installed wheel they lie in
this package, under the same names; `setup.py` copies them there when the wheel is built. One rule holds everywhere: the
copy in the package comes first, and without one the checkout around the package is used. An editable install has no
copy, so that it always reads the checkout.

What only a checkout has (saved results, documentation, tools, the slides) is reached through `checkout`.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from rlhf_lab.errors import LabError


def path(name: str) -> Path:
    """The file or folder that ships under a name such as `data/models/gpt2` or `notebooks`.

    Args:
        name: its path in the checkout, with `/`.

    Raises:
        LabError: it is in neither place, or the package is in a zip file, where no model can be read.
    """
    copy = files(__name__) / name
    if isinstance(copy, Path) and copy.exists():
        return copy
    if in_checkout() and (_around() / name).exists():
        return _around() / name
    raise LabError(
        f"{name} ships with rlhf_lab, but {_around() if in_checkout() else _package()} does not hold it. Install a "
        f"complete wheel (`python -m build` in a checkout builds one), or a complete checkout with `pip install -e .`."
    )


def checkout(what: str = "This") -> Path:
    """The checkout around the package, for what a wheel does not bring.

    Args:
        what: what is looked for there, as the beginning of the sentence that refuses.

    Raises:
        LabError: the package is not in a checkout.
    """
    if not in_checkout():
        raise LabError(
            f"{what} needs a checkout of the project, and rlhf_lab is installed without one ({_package()}). Clone the "
            f"project, or unpack the source that was built beside the wheel (rlhf_lab-*.tar.gz). Run `make install` "
            f"there, and then the command."
        )
    return _around()


def in_checkout() -> bool:
    """Whether the package lies in a checkout, so that `make` and its targets are there."""
    return (_around() / "pyproject.toml").is_file() and (_around() / "Makefile").is_file()


def _package() -> Path:
    return Path(__file__).parents[1]


def _around() -> Path:
    return _package().parent
