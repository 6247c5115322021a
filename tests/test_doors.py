"""The doors: what an import costs, one version, commands that are listed, imports that go one way."""

import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rlhf_lab"

LATE = ("transformers", "datasets", "matplotlib", "seaborn", "ipywidgets", "anywidget", "pandas", "tyro")

# Section by section, the names and arguments on which others build. Changing one here is a breaking change.
PUBLIC = {
    "exact.log_partition": ["log_ref", "reward", "beta"],
    "exact.optimal_policy": ["log_ref", "reward", "beta"],
    "exact.implicit_reward": ["log_policy", "log_ref", "beta"],
    "exact.kl": ["log_p", "log_q"],
    "exact.objective": ["log_policy", "log_ref", "reward", "beta"],
    "exact.regret": ["log_policy", "log_ref", "reward", "beta"],
    "exact.frontier": ["log_ref", "reward", "betas"],
    "exact.preference": ["reward"],
    "exact.best_of_n": ["log_ref", "reward", "n"],
    "exact.filtered": ["log_ref", "reward", "threshold"],
    "exact.label_price": ["log_ref", "reward", "beta", "pair_weights"],
    "exact.optimal_pair_design": ["log_ref", "reward", "beta"],
    "losses.dpo": ["chosen_log_ratio", "rejected_log_ratio", "beta", ("label_smoothing", 0.0)],
    "losses.robust_dpo": ["chosen_log_ratio", "rejected_log_ratio", "beta", "label_smoothing"],
    "losses.ipo": ["chosen_log_ratio", "rejected_log_ratio", "tau"],
    "losses.hinge_norm": ["chosen_log_ratio", "rejected_log_ratio", "gamma"],
    "losses.hinge": ["chosen_log_prob", "rejected_log_prob", "gamma"],
    "losses.bradley_terry": ["chosen_reward", "rejected_reward"],
    "losses.dpo_gradient_weight": ["chosen_log_ratio", "rejected_log_ratio", "beta"],
    "kl.k1": ["log_policy", "log_ref"],
    "kl.k2": ["log_policy", "log_ref"],
    "kl.k3": ["log_policy", "log_ref"],
    "sampling.rejection_sample": ["rewards", "num_samples", "beta", ("generator", None)],
    "sampling.algorithm_1": ["rewards", "num_samples", "beta", ("generator", None)],
    "sampling.acceptance_rate": ["log_ref", "reward", "beta"],
}


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`make` as from a shell, though these tests may themselves have been started by one."""
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHON")}
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, env=env)


def in_a_new_python(code: str) -> list[str]:
    """What `code` prints, word by word, run where no test has imported anything yet."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


IMPORTS = (
    "import rlhf_lab",
    "rlhf_lab.exact.kl",
    "from rlhf_lab import exact, kl, losses, preferences, sampling",
    "from rlhf_lab import batch, errors, training",
    "from rlhf_lab.algorithms import dpo, ppo",
)


def test_imports_load_libraries_only_when_they_are_needed() -> None:
    """One new Python runs the imports in turn and prints the libraries that each has loaded. The package alone does not
    even load torch, which its subpackages do."""
    shown = f"print(','.join(m for m in ('torch', *{LATE!r}) if m in sys.modules) or 'none')"
    loaded = in_a_new_python("import sys\n" + "".join(f"{one}\n{shown}\n" for one in IMPORTS))
    assert loaded == ["none", *["torch"] * (len(IMPORTS) - 1)]


def test_every_subpackage_can_be_reached_as_an_attribute() -> None:
    import rlhf_lab

    on_disk = {p.stem for p in PACKAGE.glob("*.py")} | {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    assert set(rlhf_lab._SUBPACKAGES) == on_disk - {"__init__", "__main__", "cli", "commands"}
    for name in rlhf_lab._SUBPACKAGES:
        assert getattr(rlhf_lab, name).__name__ == f"rlhf_lab.{name}"
    with pytest.raises(AttributeError, match="no attribute 'nowhere'"):
        _ = rlhf_lab.nowhere


def test_package_pyproject_citation_and_changelog_agree_on_the_version() -> None:
    import rlhf_lab

    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    citation = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.M)
    changelog = re.search(
        r"^## \[(\d.+?)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M
    )
    assert citation is not None and changelog is not None
    assert {pyproject, citation[1], changelog[1]} == {rlhf_lab.__version__}


def test_every_direct_dependency_has_one_plain_pin() -> None:
    """A pin with a local tag (`+cpu`) or a range would install on one machine and not on the next."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+==\d+(\.\d+)*", pin) for pin in pins)
    pinned = [re.sub(r"[-_.]+", "-", pin.split("==")[0]).lower() for pin in pins]
    assert len(pinned) == len(set(pinned))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [project["dependencies"], *project["optional-dependencies"].values()]
    # vLLM brings a torch of its own choice and is not part of what `make install` makes.
    free = {"rlhf-lab", "vllm"}
    assert {re.split(r"[>=<\[ ]", one)[0].lower() for extra in wanted for one in extra} - free <= set(pinned)


@pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")
def test_make_lists_every_target_with_one_line_and_listing_is_what_it_does_by_default() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.+)$", makefile, re.M)
    assert phony is not None
    targets = set(phony[1].split())
    assert targets == set(re.findall(r"^([a-z][a-z0-9-]*):(?!=)", makefile, re.M))
    shown = make(ROOT).stdout
    listed = re.findall(r"^  make ([a-z0-9-]+) +(\S.*)$", shown, re.M)
    assert {target for target, _ in listed} == targets and len(listed) == len(targets)


def test_readme_lists_every_make_target() -> None:
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert phony is not None
    listed = set(re.findall(r"`make ([a-z0-9-]+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert set(phony[1].split()) - {"help"} <= listed


@pytest.mark.skipif(shutil.which("make") is None or sys.platform == "win32", reason="no make on this machine")
def test_make_says_in_one_sentence_which_python_it_needs(tmp_path: Path) -> None:
    """A stand-in that calls itself Python 3.9 is refused before anything is made."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\necho 3.9\n")
    old.chmod(0o755)
    for python, words in ((str(old), "is 3.9"), (str(tmp_path / "none"), "is no working Python")):
        done = make(tmp_path, "install", f"PYTHON={python}")
        assert done.returncode != 0 and not (tmp_path / ".venv").exists()
        said = [line for line in done.stderr.splitlines() if not line.startswith("make")]
        assert len(said) == 1 and "needs Python 3.11 to 3.14" in said[0] and words in said[0]


def test_imports_go_one_way() -> None:
    """The contracts stand in pyproject.toml, [tool.importlinter]."""
    linter = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    if linter is None:
        pytest.skip("import-linter is not installed: pip install -e '.[dev]'")
    done = subprocess.run(
        [linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Contracts: [1-9]\d* kept, 0 broken", done.stdout)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_the_mathematics_has_the_names_and_arguments_that_others_build_on(name: str) -> None:
    room, function = name.split(".")
    signature = inspect.signature(getattr(importlib.import_module(f"rlhf_lab.{room}"), function))
    found = [
        p.name if p.default is p.empty else (p.name, p.default)
        for p in signature.parameters.values()
        if p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    assert found == PUBLIC[name]
    # Anything further must be named by whoever wants it, and have a default.
    rest = [p for p in signature.parameters.values() if p.kind is not p.POSITIONAL_OR_KEYWORD]
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in rest)
