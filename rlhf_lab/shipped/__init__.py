"""Paths of the files that ship with the package and are not Python: models, data cards, notebooks, configurations.

In a checkout these files are in the top-level folders `data/`, `notebooks/` and `configs/`. In an installed wheel they
are in this package under the same names, because `setup.py` copies them when the wheel is built. If the package
contains a copy, it is used. Otherwise the checkout that contains the package is used. An editable install has no copy.

Saved results, documentation, tools and slides are in a checkout only, and `checkout` returns its path.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from rlhf_lab.errors import LabError


def path(name: str) -> Path:
    """The path of a file or folder that ships with the package.

    Args:
        name: its path in the checkout with `/`, such as `data/models/gpt2` or `notebooks`.

    Raises:
        LabError: it is neither in the package nor in a checkout, or the package is in a zip file.
    """
    copy = files(__name__) / name
    if isinstance(copy, Path) and copy.exists():
        return copy
    if in_checkout() and (_around() / name).exists():
        return _around() / name
    raise LabError(
        f"{name} ships with rlhf_lab, but is not in {_around() if in_checkout() else _package()}. Install a "
        f"complete wheel (`python -m build` in a checkout builds one), or a complete checkout with `pip install -e .`."
    )


def checkout(what: str = "This") -> Path:
    """The path of the checkout that contains the package, for files that are not in a wheel.

    Args:
        what: what needs the checkout, as the subject of the error message.

    Raises:
        LabError: the package is not in a checkout.
    """
    if not in_checkout():
        raise LabError(
            f"{what} needs a checkout of the project, and rlhf_lab is installed without one ({_package()}). Clone the "
            f"project, or unpack its source distribution (rlhf_lab-*.tar.gz). Run `make install` there, and then the "
            f"command."
        )
    return _around()


def in_checkout() -> bool:
    """Whether the package is in a checkout, where `make` and its targets can be used."""
    return (_around() / "pyproject.toml").is_file() and (_around() / "Makefile").is_file()


def _package() -> Path:
    return Path(__file__).parents[1]


def _around() -> Path:
    return _package().parent
