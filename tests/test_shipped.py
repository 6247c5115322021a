"""What ships beside the code is in the wheel and in the sdist, and is found in a checkout and without one."""

import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_lab import shipped
from rlhf_lab.cli import course, doctor
from rlhf_lab.cli.main import main
from rlhf_lab.errors import LabError
from rlhf_lab.experiments import results
from rlhf_lab.policies.loading import shipped_folder

ROOT = Path(__file__).parents[1]
FOLDERS = ("configs", "data", "notebooks")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the package as a wheel would hold it, in `lib`, and the sdist's list of files, in the egg-info."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("built")
    # Python's packaging has no function for this: the commands of setup.py are what `python -m build` calls.
    words = ["egg_info", "--egg-base", str(folder), "build_py", "--build-lib", str(folder / "lib")]
    done = subprocess.run([sys.executable, "setup.py", "-q", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def wheel(built, monkeypatch):
    """`rlhf_lab.shipped` as it is in an installed wheel."""
    package = built / "lib" / "rlhf_lab"
    monkeypatch.setattr(shipped, "_package", lambda: package)
    monkeypatch.setattr(shipped, "files", lambda name: package / "shipped")
    return package / "shipped"


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """`rlhf_lab.shipped` in a package that holds no file and lies in no checkout."""
    monkeypatch.setattr(shipped, "_package", lambda: tmp_path / "rlhf_lab")
    monkeypatch.setattr(shipped, "files", lambda name: tmp_path / "rlhf_lab" / "shipped")


def relative(folder):
    hidden = (".", "__pycache__")
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(hidden) for part in path.relative_to(folder).parts)
    }


def tracked():
    """The files that git knows and that are on the disk; the test is skipped where there is no git or no clone."""
    try:
        done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is not a clone, or git is not installed")
    return {name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()}


@pytest.mark.parametrize("name", FOLDERS)
def test_the_wheel_holds_every_file_of_the_folder_as_it_is(built, name):
    copy = built / "lib" / "rlhf_lab" / "shipped" / name
    there = relative(ROOT / name)
    assert there and relative(copy) == there
    for file in there:
        assert (copy / file).read_bytes() == (ROOT / name / file).read_bytes()


def test_the_wheel_holds_every_file_of_the_package(built):
    """A new subpackage without `__init__.py`, or a new kind of file such as an .svg, would otherwise stay behind."""
    copied = relative(built / "lib" / "rlhf_lab")
    assert {name for name in copied if not name.startswith(tuple(f"shipped/{f}/" for f in FOLDERS))} == relative(
        ROOT / "rlhf_lab"
    )


def test_the_sdist_holds_every_file_that_git_knows(built):
    listed = set((built / "rlhf_lab.egg-info" / "SOURCES.txt").read_text().split("\n"))
    assert tracked() - listed == set()


def test_a_checkout_is_found_around_the_package_and_read_in_place():
    assert shipped.in_checkout() and shipped.checkout() == ROOT
    for name in FOLDERS:
        assert shipped.path(name) == ROOT / name
    assert shipped_folder("lab-gpt2") == ROOT / "data" / "models" / "gpt2"


def test_a_wheel_has_its_own_copy_and_no_checkout(wheel):
    assert not shipped.in_checkout()
    for name in FOLDERS:
        assert shipped.path(name) == wheel / name
    assert shipped_folder("lab-pythia") == wheel / "data" / "models" / "pythia"
    assert sum(name.endswith(".ipynb") for name in course.contents()) == len(list((ROOT / "notebooks").glob("*.ipynb")))


def test_the_copy_in_the_package_comes_before_the_checkout(built, monkeypatch):
    monkeypatch.setattr(shipped, "files", lambda name: built / "lib" / "rlhf_lab" / "shipped")
    assert shipped.in_checkout() and shipped.path("configs") == built / "lib" / "rlhf_lab" / "shipped" / "configs"


def test_what_is_missing_is_named_with_the_way_to_get_it(bare):
    with pytest.raises(LabError, match=r"^notebooks ships with rlhf_lab, but .*`python -m build`"):
        shipped.path("notebooks")
    with pytest.raises(
        LabError, match=r"^The model lab-gpt2 is missing\. data/models/gpt2/config\.json ships"
    ) as error:
        shipped_folder("lab-gpt2")
    assert "make models" not in str(error.value)  # which needs a checkout


def test_saved_results_are_refused_without_a_checkout_and_not_silently_none(bare):
    with pytest.raises(LabError, match=r"^Reading the saved results needs a checkout .*rlhf_lab-\*\.tar\.gz"):
        next(results.saved())


def test_doctor_advises_pip_where_there_is_no_make(bare, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "scipy" else "99")
    assert main(["doctor", "--no-hub"]) == 1
    said = capsys.readouterr().out
    assert "`pip install 'scipy>=" in said and "`make" not in said.replace("`python -m build`", "")
