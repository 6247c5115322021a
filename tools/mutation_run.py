"""Put known bugs into the mathematics, one at a time, and see which test catches each.

    python tools/mutation_run.py [--only TEXT] [--near | --full] [--resume]

The bugs are those of `mutations.py`. Each is put into a temporary copy of the project; the working tree is never
touched. First the test files of the mutated module run; where they do not catch it, the rest of `tests/`; with
`--full` the notebooks too, which is all that `make test` runs. With `--near` the run ends at the module's own files.
At last every test that caught something runs without any bug, and must pass.

The report goes to docs/mutations.md; `--only` prints and writes nothing. What is done is kept in
build/mutations.json: `--resume` goes on from there, and runs survivors again.

Ends with status 1 if a bug survives that `mutations.py` gives no excuse for.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

from mutations import MUTATIONS, Mutation

REPO = Path(__file__).resolve().parent.parent
REPORT = REPO / "docs" / "mutations.md"
JOURNAL = REPO / "build" / "mutations.json"
# Not part of what is tested, or large, or another run's leavings.
LEFT_OUT = (".git", ".venv", "build", "dist", "results", "runs", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")
NOTEBOOKS = [
    "-p",
    "nbval.plugin",
    "--nbval",
    "--nbval-current-env",
    "--nbval-sanitize-with",
    "tests/notebooks/sanitize.cfg",
    "notebooks",
]
# Whether a test fails is asked, not why.
FLAGS = ["-x", "-q", "-rfE", "--tb=no", "--assert=plain", "-p", "no:cacheprovider"]
# It says that every mutation still fits the code, which is never so where one was applied.
NOT_ASKED = ["--ignore=tests/test_mutations.py"]
SURVIVED = "survived"
# Loaded once, not for every bug.
PRELOAD = ["torch", "pytest", "hypothesis", "scipy.stats", "mpmath", "transformers"] + [
    f"transformers.models.{name}.modeling_{name}" for name in ("gpt2", "gpt_neox", "llama")
]
# Which test fails is asked here, not what the smallest input is on which it does.
NO_SHRINKING = """

from hypothesis import Phase

settings.register_profile("mutants", settings(), phases=(Phase.explicit, Phase.generate))
settings.load_profile("mutants")
"""


class Stale(Exception):
    """A mutation's text does not stand exactly once in its file."""


class Unfit(Exception):
    """The tests cannot be asked: one fails without any bug, or pytest itself does."""


def mutated(text: str, mutation: Mutation) -> str:
    """`text` with the bug in it.

    Raises:
        Stale: the old text does not occur exactly once, or the bug changes nothing.
    """
    times = text.count(mutation.old)
    if times != 1 or mutation.old == mutation.new:
        raise Stale(
            f"rlhf_lab/{mutation.file}: the text of “{mutation.what}” occurs {times} times, not once:\n"
            f"    {mutation.old!r}\nThe code has changed since: mend this mutation in tools/mutations.py."
        )
    return text.replace(mutation.old, mutation.new)


def check_all(root: Path = REPO) -> None:
    """Raise `Stale` if a mutation does not fit the code below `root`, or does not leave Python behind."""
    for mutation in MUTATIONS:
        text = mutated((root / "rlhf_lab" / mutation.file).read_text(encoding="utf-8"), mutation)
        compile(text, mutation.file, "exec")


def environment(copy: Path) -> dict[str, str]:
    """One thread, no network, the same examples every time, and the copy's package before the installed one."""
    return {
        "OMP_NUM_THREADS": "1",
        "TQDM_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "CI": "1",
        # A plugin's import costs more than most tests; those that are needed are named.
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": str(copy),
        # Two mutations of one size within one second would share their compiled file.
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _pytest_here(copy: str, arguments: list[str], log: str) -> None:
    """Run pytest in this process, which is a new one, and end it with pytest's status."""
    with open(log, "w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        os.environ.update(environment(Path(copy)))
        sys.dont_write_bytecode = True
        os.chdir(copy)
        sys.path.insert(0, copy)
        import pytest

        import rlhf_lab

        if not Path(rlhf_lab.__file__).resolve().is_relative_to(Path(copy).resolve()):
            print(f"Tests would import {rlhf_lab.__file__}, not the copy.")
            sys.exit(99)
        sys.exit(int(pytest.main([*FLAGS, *arguments])))


def run_tests(copy: Path, arguments: list[str], limit: float) -> str:
    """The first test that fails, "" if none does, in a process of its own.

    Raises:
        Unfit: pytest itself failed.
    """
    forks = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:
        context.set_forkserver_preload(PRELOAD)
    log = copy.parent / "pytest.log"
    process = context.Process(target=_pytest_here, args=(str(copy), arguments, str(log)))
    process.start()
    try:
        process.join(limit)
        if process.is_alive():
            return f"no end within {limit:g} s"
    finally:
        process.kill()  # also where this run is interrupted: a bug may have made a test endless
        process.join()
    if process.exitcode == 0:
        return ""
    said = log.read_text(encoding="utf-8")
    failed = re.search(r"^(?:FAILED|ERROR) ([^\s\[]+)", said, re.M)
    if process.exitcode not in (1, 2) or failed is None:
        raise Unfit(f"pytest ended with status {process.exitcode}:\n{said[-2000:]}")
    return failed[1]


def stages(mutation: Mutation, how_far: str) -> list[list[str]]:
    """Arguments of pytest for each stage: the module's own files, then the rest, then the notebooks."""
    near = [f"tests/{name}" for name in mutation.tests]
    rest = ["tests", *NOT_ASKED, *(f"--ignore={name}" for name in near)]
    return [near, rest, NOTEBOOKS][: {"near": 1, "rest": 2, "full": 3}[how_far]]


class Run:
    """A copy of the project, into which bugs are put."""

    def __init__(self, folder: Path, limit: float) -> None:
        self.copy, self.limit = folder / "copy", limit
        shutil.copytree(REPO, self.copy, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
        with (self.copy / "tests" / "conftest.py").open("a", encoding="utf-8") as conftest:
            conftest.write(NO_SHRINKING)

    def ask(self, mutation: Mutation, how_far: str) -> str:
        """Which test catches `mutation`, or `SURVIVED`.

        Raises:
            Stale, Unfit: as above.
        """
        path = self.copy / "rlhf_lab" / mutation.file
        whole = path.read_text(encoding="utf-8")
        try:
            path.write_text(mutated(whole, mutation), encoding="utf-8")
            for arguments in stages(mutation, how_far):
                caught = run_tests(self.copy, arguments, self.limit)
                if caught:
                    return caught
        finally:
            path.write_text(whole, encoding="utf-8")
        return SURVIVED

    def confirm(self, tests: set[str]) -> None:
        """Raise `Unfit` if one of `tests` fails without any bug: it has caught nothing."""
        failing = run_tests(self.copy, sorted(tests), self.limit) if tests else ""
        if failing:
            raise Unfit(f"{failing} fails without any bug, so it catches none: mend it, then run again.")


def key(mutation: Mutation) -> str:
    """What a journal knows a mutation by: if its text changes, it is another."""
    return "\n".join([mutation.file, mutation.old, mutation.new])


def verdict(mutation: Mutation, result: str) -> str:
    """One cell of the report."""
    if result != SURVIVED:
        return f"`{result.removeprefix('tests/')}`" if "::" in result else result
    return f"**survives**: {mutation.excuse}" if mutation.excuse else "**survives**, unexplained"


def report(results: dict[str, str], how_far: str) -> str:
    """docs/mutations.md."""
    caught = sum(results[key(m)] != SURVIVED for m in MUTATIONS)
    left = [m for m in MUTATIONS if results[key(m)] == SURVIVED]
    kinds = Counter(m.kind for m in MUTATIONS)
    names = {
        "sign": "a sign flipped",
        "swap": "two arguments or responses exchanged",
        "beta": "β, γ, τ or n forgotten",
        "mean": "a mean for a sum, or a factor lost",
        "mask": "a mask dropped or shifted",
        "norm": "a normaliser or a weight forgotten",
    }
    places = len({(m.file, m.old) for m in MUTATIONS})
    summary = (
        f"**{caught} of {len(MUTATIONS)} are caught**, in {places} places of {len({m.file for m in MUTATIONS})} files"
    )
    unexplained = sum(not m.excuse for m in left)
    if left:
        summary += f"; {len(left)} survive, of which {unexplained} without an explanation"
    asked = {
        "near": "Only the mutated module's own test files were asked; more tests can only catch more.",
        "rest": "The mutated module's own test files were asked first, then the rest of `tests/`.",
        "full": "The mutated module's own test files were asked first, then the rest of `tests/`, then the notebooks.",
    }[how_far]
    lines = [
        "# Would the tests notice?",
        "",
        "A test that cannot fail says nothing. Here the mathematics is broken on purpose, one plausible slip at a "
        "time, in a copy of the project, and the tests are asked. Each row is one bug and the first test that "
        "fails on it.",
        "",
        f"{summary}: {', '.join(f'{names[kind]} ({number})' for kind, number in kinds.items())}.",
        f"{asked}",
        "",
        f"Written by `python tools/mutation_run.py{'' if how_far == 'rest' else f' --{how_far}'}` (`make mutants`); "
        "the bugs stand in [`tools/mutations.py`](../tools/mutations.py). After a change there, or in the code that it "
        "points at, run it again.",
        "",
    ]
    for file in dict.fromkeys(m.file for m in MUTATIONS):
        lines += [
            f"## [`{file}`](../rlhf_lab/{file})",
            "",
            "| kind | the bug | caught by |",
            "|---|---|---|",
            *(f"| {m.kind} | {m.what} | {verdict(m, results[key(m)])} |" for m in MUTATIONS if m.file == file),
            "",
        ]
    return "\n".join(lines)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="mutations whose file or words hold TEXT")
    reach = parser.add_mutually_exclusive_group()
    reach.add_argument("--near", dest="how_far", action="store_const", const="near", help="the module's own tests")
    reach.add_argument("--full", dest="how_far", action="store_const", const="full", help="also the notebooks")
    parser.add_argument("--resume", action="store_true", help="keep what the last run caught, run the others")
    parser.add_argument("--limit", type=float, default=1200.0, help="seconds for one run of pytest")
    parser.set_defaults(how_far="rest")
    args = parser.parse_args()

    # `kill` as an exception, so that the copy and the process that runs the tests go too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped."))
    chosen = [m for m in MUTATIONS if args.only in f"{m.file} {m.kind} {m.what}"]
    known: dict[str, str] = {}
    if args.resume and JOURNAL.is_file():
        known = {k: v for k, v in json.loads(JOURNAL.read_text()).items() if v != SURVIVED}
    try:
        check_all()
        with tempfile.TemporaryDirectory() as folder:
            run = Run(Path(folder), args.limit)
            for number, mutation in enumerate(chosen, 1):
                if key(mutation) not in known:
                    known[key(mutation)] = run.ask(mutation, args.how_far)
                    JOURNAL.parent.mkdir(exist_ok=True)
                    JOURNAL.write_text(json.dumps(known, indent=1))
                print(f"{number:3}/{len(chosen)}  {mutation.file:27} {mutation.kind:5} {mutation.what}", flush=True)
                print(f"         {known[key(mutation)]}", flush=True)
            run.confirm({known[key(m)] for m in chosen if "::" in known[key(m)]})
    except (Stale, Unfit) as error:
        sys.exit(str(error))
    left = [m for m in chosen if known[key(m)] == SURVIVED]
    print(f"{len(chosen) - len(left)} of {len(chosen)} caught.")
    if len(chosen) == len(MUTATIONS):
        REPORT.write_text(report(known, args.how_far), encoding="utf-8")
        print(f"Written: {REPORT.relative_to(REPO)}")
    unexplained = [m for m in left if not m.excuse]
    if unexplained:
        sys.exit("Not caught, and not explained:\n" + "\n".join(f"  {m.file}: {m.what}" for m in unexplained))


if __name__ == "__main__":
    main()
