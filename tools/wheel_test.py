"""Install the wheel in a fresh virtual environment and use it from an empty folder.

    python tools/wheel_test.py [--wheel dist/rlhf_lab-*.whl] [--keep FOLDER]

It installs the wheel with the versions of constraints.txt. Without access to the checkout it then runs `rlhf-lab
compare`, `rlhf-lab train dpo --model lab-gpt2`, `rlhf-lab course`, and the first notebook that `course` wrote. If
`dist/` also contains the source archive, it first compares the wheel with the one that the archive builds. Because
installing everything takes some minutes, `.ci/run` calls it but `make test` does not. The exit status is 1 if a step
fails.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
STEPS = [
    ["rlhf-lab", "compare", "--world", "bandit", "--seeds", "2", "--out", "compare"],
    [
        "rlhf-lab", "train", "dpo", "--model", "lab-gpt2", "--data", "world:sentiment",
        "--limit", "40", "--steps", "3", "--out", "runs/dpo",
    ],
    ["rlhf-lab", "course", "course"],
    ["jupyter", "execute", "course/00_start_here.ipynb"],
]  # fmt: skip
EXPECTED = ["compare/summary.csv", "runs/dpo/model/model.safetensors", "course/15_group_methods.ipynb"]


def environment(bin_folder: Path) -> dict[str, str]:
    """The caller's environment variables without paths to the checkout, and with access to the Hub switched off."""
    kept = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}}
    return kept | {
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TQDM_DISABLE": "1",
    }


def run(words: list[str], folder: Path, env: dict[str, str]) -> None:
    """Run a program of the new environment and print its time. Exit if it fails."""
    program = shutil.which(words[0], path=env["PATH"])
    if program is None:
        sys.exit(f"The wheel did not install the program {words[0]}.")
    start = time.perf_counter()
    done = subprocess.run([program, *words[1:]], cwd=folder, env=env, capture_output=True, text=True)
    print(f"{time.perf_counter() - start:6.1f} s  {' '.join(words)}", flush=True)
    if done.returncode:
        sys.exit(f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}\n{words[0]} ended with status {done.returncode}.")


def same_files(wheel: Path, folder: Path) -> None:
    """Exit if the wheel that the source archive builds differs from `wheel`."""
    archives = sorted(wheel.parent.glob("rlhf_lab-*.tar.gz"))
    if len(archives) != 1:
        print("There is no source archive beside the wheel, so the two were not compared.")
        return
    words = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder / "again"), str(folder / "source")]
    shutil.unpack_archive(archives[0], folder / "source", filter="data")
    (root,) = (folder / "source").iterdir()
    subprocess.run([*words[:-1], str(root)], check=True, capture_output=True)
    (again,) = (folder / "again").glob("*.whl")
    first, second = (
        {i.filename: i.CRC for i in zipfile.ZipFile(path).infolist() if not i.filename.endswith("/RECORD")}
        for path in (wheel, again)
    )
    if first != second:
        other = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
        sys.exit(f"The wheel of the source archive differs from that of the checkout: {', '.join(other[:10])}.")
    print(f"The source archive builds a wheel with the same {len(first)} files.", flush=True)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--wheel", type=Path, help="default: the one wheel in dist/")
    parser.add_argument("--keep", type=Path, help="an empty folder to work in, which is kept; default: a temporary one")
    args = parser.parse_args()
    wheels = [args.wheel] if args.wheel else sorted((REPO / "dist").glob("rlhf_lab-*.whl"))
    if len(wheels) != 1 or not wheels[0].is_file():
        sys.exit(f"dist/ contains {len(wheels)} wheels, not one. Run `make wheel`, or name the file with --wheel FILE.")
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        same_files(wheels[0].resolve(), Path(temporary))
        start = time.perf_counter()
        venv.create(folder / "venv", with_pip=True)
        bin_folder = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
        install = ["python", "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-input"]
        subprocess.run(
            [str(bin_folder / install[0]), *install[1:], "-c", str(REPO / "constraints.txt"), str(wheels[0].resolve())],
            check=True,
            env=environment(bin_folder),
        )
        print(f"{time.perf_counter() - start:6.1f} s  a fresh virtual environment with {wheels[0].name}", flush=True)
        empty = folder / "empty"
        empty.mkdir()
        env = environment(bin_folder)
        where = [str(bin_folder / "python"), "-c", "import rlhf_lab; print(rlhf_lab.__file__)"]
        found = Path(
            subprocess.run(where, cwd=empty, env=env, capture_output=True, text=True, check=True).stdout.strip()
        )
        if not found.resolve().is_relative_to((folder / "venv").resolve()):
            sys.exit(f"The package was imported from {found}, not from the wheel.")
        for words in STEPS:
            run(words, empty, env)
        missing = [name for name in EXPECTED if not (empty / name).is_file()]
        if missing:
            sys.exit(f"Not written: {', '.join(missing)}.")
    print("The wheel works without the checkout.")


if __name__ == "__main__":
    main()
