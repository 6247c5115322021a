"""Takes the files that a user needs and that lie outside the package into the wheel; pyproject.toml has all else.

The folders below stay at the top of the checkout. A wheel holds a copy of each in `rlhf_lab/shipped/`, under the same
name. An editable install gets no copy and reads the checkout; `rlhf_lab.shipped.path` finds a file in both.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = ("configs", "data", "notebooks")


class BuildWithShippedFiles(build_py):
    """`build_py`, and then the folders."""

    def run(self) -> None:
        """Build the package, and unless it is installed as editable, copy the folders into it."""
        super().run()
        if self.editable_mode:
            return
        shipped = Path(self.build_lib) / "rlhf_lab" / "shipped"
        for name in FOLDERS:
            shutil.rmtree(shipped / name, ignore_errors=True)  # left by an earlier build
            shutil.copytree(name, shipped / name, ignore=shutil.ignore_patterns(".*", "__pycache__"))


setup(cmdclass={"build_py": BuildWithShippedFiles})
