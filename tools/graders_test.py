"""Grade a solved and a wrong submission with nbgrader and Otter, in a virtual environment of their own.

    python tools/graders_test.py

The environment is made in a temporary folder and contains only the graders and what they need in addition, because it
also sees the packages of the Python that runs this program. That Python needs the packages for tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import venv
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent


def main() -> None:
    """Install the graders and run their tests. The exit status is that of the tests."""
    extras = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    with tempfile.TemporaryDirectory(prefix="graders-", ignore_cleanup_errors=True) as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder, "Scripts", "python.exe") if os.name == "nt" else Path(folder, "bin", "python"))
        found = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        # `addsitedir` also finds packages that are installed in place.
        line = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
        Path(found.stdout.strip(), "packages_of_the_course.pth").write_text(line, encoding="utf-8")
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
        subprocess.run([*pip, "-c", str(REPO / "constraints.txt"), *extras["grading"]], check=True)
        test = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "slow", "tests/exercises/test_grading.py"]
        done = subprocess.run([*test, "-rs"], cwd=REPO, capture_output=True, text=True)
        print(done.stdout + done.stderr)
        skipped = "skipped" in done.stdout.splitlines()[-1] if done.stdout else True
        sys.exit(done.returncode or (1 if skipped else 0))


if __name__ == "__main__":
    main()
