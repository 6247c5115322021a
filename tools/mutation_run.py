"""Mutation testing: insert known bugs into the code, one at a time, and find the test that detects each.

    python tools/mutation_run.py [--only TEXT] [--near | --full] [--resume] [--workers N]

The package `mutations` lists the bugs, with one table for each subpackage. Each bug is inserted into a temporary copy
of the project, so the working tree is never changed. First runs the test that the bug names, or the one that detected
it last time. Then the test files of the mutated module run and, if they do not detect the bug, the rest of `tests/`.
With `--full` the notebooks run too, as in `make test`. With `--near` only the module's own test files run. Finally
every test that detected a bug runs on the unchanged code, where it must pass.

The report is written to docs/mutations.md. With `--only` the other rows of the page do not change; a bug without a row
is listed as not run yet. Results are saved in build/mutations.json. `--resume` continues from there and repeats the
bugs that survived.

The exit status is 1 if a bug survives for which the table gives no excuse.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import queue
import re
import shutil
import signal
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing.context import ForkServerProcess, SpawnProcess
from pathlib import Path
from typing import Any

from mutations import KINDS, MUTATIONS, TABLES, Mutation

REPO = Path(__file__).resolve().parent.parent
REPORT = REPO / "docs" / "mutations.md"
JOURNAL = REPO / "build" / "mutations.json"
# Files that are not tested, are large, or are left from other runs.
LEFT_OUT = (".git", ".venv", "build", "dist", "runs", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")
NOTEBOOKS = [
    "-p",
    "nbval.plugin",
    "--nbval",
    "--nbval-current-env",
    "--nbval-sanitize-with",
    "tests/notebooks/sanitize.cfg",
    "notebooks",
]
# Only whether a test fails matters here, so tracebacks are switched off.
FLAGS = ["-x", "-q", "-rfE", "--tb=no", "--assert=plain", "-p", "no:cacheprovider"]
# This file checks that every mutation fits the code, which is false once a mutation has been applied.
NOT_ASKED = ["--ignore=tests/test_mutations.py"]
SURVIVED, NOT_RUN = "survived", "not run yet"
# Modules that are loaded once instead of for every bug.
PRELOAD = ["torch", "pytest", "hypothesis", "scipy.stats", "mpmath", "transformers"] + [
    f"transformers.models.{name}.modeling_{name}" for name in ("gpt2", "gpt_neox", "llama")
]
# Only the failing test matters, so hypothesis need not search for the smallest failing input.
NO_SHRINKING = """

from hypothesis import Phase

settings.register_profile("mutants", settings(), phases=(Phase.explicit, Phase.generate))
settings.load_profile("mutants")
"""


class Stale(Exception):
    """Raised if the old text of a mutation does not occur exactly once in its file."""


class Unfit(Exception):
    """Raised if the tests are unusable: one fails without any bug, or pytest itself fails."""


def mutated(text: str, mutation: Mutation) -> str:
    """`text` with the bug inserted.

    Raises:
        Stale: if the old text does not occur exactly once, or the bug changes nothing.
    """
    times = text.count(mutation.old)
    if times != 1 or mutation.old == mutation.new:
        raise Stale(
            f"rlhf_lab/{mutation.file}: the text of “{mutation.what}” occurs {times} times, not once:\n"
            f"    {mutation.old!r}\nThe code has changed. Correct this mutation in tools/mutations/."
        )
    return text.replace(mutation.old, mutation.new)


def check_all(root: Path = REPO) -> None:
    """Raise `Stale` if a mutation does not fit the code below `root`, or `SyntaxError` if its result is not Python."""
    for mutation in MUTATIONS:
        text = mutated((root / "rlhf_lab" / mutation.file).read_text(encoding="utf-8"), mutation)
        compile(text, mutation.file, "exec")


def environment(copy: Path) -> dict[str, str]:
    """Environment variables for the tests: one thread, no network, fixed examples, and the copy's package first."""
    return {
        "OMP_NUM_THREADS": "1",
        "TQDM_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "CI": "1",
        # Importing a plugin takes longer than most tests, so only the needed plugins are named.
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": str(copy),
        # Two mutations of equal size within one second would otherwise share a compiled file.
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _pytest_here(copy: str, arguments: list[str], log: str) -> None:
    """Run pytest in this new process, and exit with pytest's status."""
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
            print(f"The tests would import {rlhf_lab.__file__}, not the copy.")
            sys.exit(99)
        sys.exit(int(pytest.main([*FLAGS, *arguments])))


def stages(mutation: Mutation, how_far: str) -> list[list[str]]:
    """Arguments of pytest for each stage: the named test, the module's test files, the rest, the notebooks."""
    own = [f"tests/{name}" for name in mutation.tests]
    files = [own]
    asked = [f"--ignore={name}" for name in own]
    if mutation.near:
        files = [[f"tests/{mutation.near}"], [*own, f"--deselect=tests/{mutation.near}"]]
        asked += files[1][-1:]
    rest = ["tests", *NOT_ASKED, *asked]
    return {"near": files, "rest": [*files, rest], "full": [*files, rest, NOTEBOOKS]}[how_far]


class Run:
    """A copy of the project into which bugs are inserted."""

    def __init__(self, folder: Path, limit: float) -> None:
        self.copy, self.limit = folder / "copy", limit
        self.process: ForkServerProcess | SpawnProcess | None = None
        shutil.copytree(REPO, self.copy, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
        with (self.copy / "tests" / "conftest.py").open("a", encoding="utf-8") as conftest:
            conftest.write(NO_SHRINKING)

    def stop(self) -> None:
        """Stop the running tests, one of which a bug may have made endless."""
        if self.process is not None:
            self.process.kill()
            self.process.join()

    def run_tests(self, arguments: list[str], limit: float | None) -> str:
        """Run tests in a new process for at most `limit` seconds. Returns the first one that fails, or "" if none does.

        Raises:
            Unfit: if pytest itself failed.
        """
        forks = "forkserver" in multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
        if forks:
            context.set_forkserver_preload(PRELOAD)
        log = self.copy.parent / "pytest.log"
        log.write_text(
            "", encoding="utf-8"
        )  # if the process dies before pytest starts, the previous log must not be read
        process = context.Process(target=_pytest_here, args=(str(self.copy), arguments, str(log)))
        process.start()
        self.process = process
        try:
            process.join(limit)
            if process.is_alive():
                return f"no end within {limit:g} s"
        finally:
            self.stop()
        # Status 5 means that every test of the files was deselected, because the bug names the only one.
        if process.exitcode in (0, 5):
            return ""
        said = log.read_text(encoding="utf-8")
        failed = re.search(r"^(?:FAILED|ERROR) ([^\s\[]+)", said, re.M)
        # Status 4 means that the file of the named test cannot be imported.
        if process.exitcode not in (1, 2, 4) or failed is None:
            raise Unfit(f"pytest ended with status {process.exitcode}:\n{said[-2000:]}")
        return failed[1]

    def ask(self, mutation: Mutation, how_far: str) -> str:
        """The test that detects `mutation`, or `SURVIVED`.

        Raises:
            Stale: if the mutation does not fit the code.
            Unfit: if pytest itself failed.
        """
        path = self.copy / "rlhf_lab" / mutation.file
        whole = path.read_text(encoding="utf-8")
        try:
            path.write_text(mutated(whole, mutation), encoding="utf-8")
            for arguments in stages(mutation, how_far):
                caught = self.run_tests(arguments, self.limit)
                if caught:
                    return caught
        finally:
            path.write_text(whole, encoding="utf-8")
        return SURVIVED

    def confirm(self, tests: set[str]) -> None:
        """Raise `Unfit` if one of `tests` fails without any bug, because it then detects nothing."""
        # All of them run without a bug, so none is endless, and they may take longer than those of one bug.
        failing = self.run_tests(sorted(tests), None) if tests else ""
        if failing:
            raise Unfit(f"{failing} fails without any bug, so it detects none. Correct it and run again.")


def key(mutation: Mutation) -> str:
    """The key of a mutation in the journal. A mutation with a different text is a different one."""
    return "\n".join([mutation.file, mutation.old, mutation.new])


def cell(mutation: Mutation, result: str) -> str:
    """The report's cell for a result."""
    if result != SURVIVED:
        return f"`{result.removeprefix('tests/')}`" if "::" in result else result
    return f"**survives**: {mutation.excuse}" if mutation.excuse else "**survives**, unexplained"


def reported(page: str) -> dict[tuple[str, str], str]:
    """The results in a report, by file and description of the mutation."""
    results: dict[tuple[str, str], str] = {}
    file = ""
    for line in page.splitlines():
        if head := re.match(r"#+ \[`(.+)`\]", line):
            file = head[1]
        elif row := re.match(rf"\| (?:{'|'.join(KINDS)}) \| (.+?) \| (.+) \|$", line):
            found = row[2]
            caught = f"tests/{found[1:-1]}" if found.startswith("`") else found
            if found != NOT_RUN:
                results[file, row[1]] = SURVIVED if found.startswith("**survives**") else caught
    return results


def last_results() -> dict[tuple[str, str], str]:
    """The results in docs/mutations.md; none without that page."""
    return reported(REPORT.read_text(encoding="utf-8")) if REPORT.is_file() else {}


def with_last_test(mutation: Mutation, page: dict[tuple[str, str], str]) -> Mutation:
    """`mutation` with the test that detected it last time, unless it names one itself."""
    last = page.get((mutation.file, mutation.what), "")
    return replace(mutation, near=last.removeprefix("tests/")) if "::" in last and not mutation.near else mutation


def report(results: dict[str, str], how_far: str) -> str:
    """The text of docs/mutations.md. Mutations that are missing in `results` are listed as not run yet."""
    results = {key(m): NOT_RUN for m in MUTATIONS} | results
    kinds = Counter(m.kind for m in MUTATIONS)
    places = len({(m.file, m.old) for m in MUTATIONS})
    asked = {
        "near": "Only the test files of the mutated module were run, so the whole suite may detect more.",
        "rest": "The test files of the mutated module were run first, then the rest of `tests/`.",
        "full": "The test files of the mutated module were run first, then the rest of `tests/`, then the notebooks.",
    }[how_far]
    lines = [
        "# Mutation tests",
        "",
        "A test that cannot fail checks nothing. Therefore plausible bugs are inserted into a copy of the code, "
        "one at a time, and the tests are run. Each row of the tables below names one bug and the first test that "
        "fails because of it.",
        "",
        "| subpackage | bugs | caught | survive, explained | survive, unexplained | not run yet |",
        "|---|---|---|---|---|---|",
        *(counts(f"`{name}`", table, results) for name, table in TABLES.items() if table),
        counts("**all**", MUTATIONS, results),
        "",
        f"The bugs are in {places} places of {len({m.file for m in MUTATIONS})} files. Their kinds are "
        f"{', '.join(f'{words} ({kinds[kind]})' for kind, words in KINDS.items() if kinds[kind])}.",
        f"{asked}",
        "",
        f"This page is written by `python tools/mutation_run.py{'' if how_far == 'rest' else f' --{how_far}'}` "
        "(`make mutants`). The tables of [`tools/mutations/`](../tools/mutations/__init__.py) list the bugs. After a "
        "change of a table, or of the code to which it refers, run the program again. The option `--only TEXT` "
        "restricts it to some bugs.",
        "",
    ]
    for name, table in TABLES.items():
        if table:
            lines += [f"## {name}", ""]
        for file in dict.fromkeys(m.file for m in table):
            lines += rows_of(file, [m for m in table if m.file == file], results)
    return "\n".join(lines)


def counts(name: str, table: list[Mutation], results: dict[str, str]) -> str:
    """The row of a subpackage in the overview."""
    left = [m for m in table if results[key(m)] == SURVIVED]
    explained = sum(bool(m.excuse) for m in left)
    waiting = sum(results[key(m)] == NOT_RUN for m in table)
    caught = len(table) - len(left) - waiting
    share = f"{caught} ({100 * caught // len(table)}%)"  # rounded down: 100% is all of them
    return f"| {name} | {len(table)} | {share} | {explained} | {len(left) - explained} | {waiting} |"


def rows_of(file: str, table: list[Mutation], results: dict[str, str]) -> list[str]:
    """The heading and the table of a file's mutations."""
    return [
        f"### [`{file}`](../rlhf_lab/{file})",
        "",
        "| kind | the bug | caught by |",
        "|---|---|---|",
        *(f"| {m.kind} | {m.what} | {cell(m, results[key(m)])} |" for m in table),
        "",
    ]


def run_all(chosen: list[Mutation], known: dict[str, str], runs: list[Run], how_far: str) -> None:
    """Insert each bug into a free copy, and record the result in `known` and in the journal."""
    free: queue.Queue[Run] = queue.Queue()
    for run in runs:
        free.put(run)

    def ask(mutation: Mutation) -> str:
        run = free.get()
        try:
            return run.ask(mutation, how_far)
        finally:
            free.put(run)

    with ThreadPoolExecutor(len(runs)) as pool:
        try:
            left = [mutation for mutation in chosen if key(mutation) not in known]
            asked = {pool.submit(ask, mutation): mutation for mutation in left}
            for number, done in enumerate(as_completed(asked), 1):
                mutation = asked[done]
                known[key(mutation)] = done.result()
                JOURNAL.parent.mkdir(exist_ok=True)
                JOURNAL.write_text(json.dumps(known, indent=1))
                print(f"{number:3}/{len(left)}  {mutation.file:27} {mutation.kind:7} {mutation.what}", flush=True)
                print(f"         {known[key(mutation)]}", flush=True)
        except BaseException:  # also Ctrl-C
            pool.shutdown(wait=False, cancel_futures=True)
            for run in runs:
                run.limit = 0.0
                run.stop()
            raise


def arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="only mutations whose file or description contains TEXT"
    )
    reach = parser.add_mutually_exclusive_group()
    reach.add_argument(
        "--near", dest="how_far", action="store_const", const="near", help="run the module's own tests only"
    )
    reach.add_argument("--full", dest="how_far", action="store_const", const="full", help="run the notebooks too")
    parser.add_argument(
        "--resume", action="store_true", help="keep the bugs that the last run detected, and run the others"
    )
    parser.add_argument("--limit", type=float, default=1200.0, help="maximum seconds for one run of pytest")
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="number of copies that are tested in parallel"
    )
    parser.set_defaults(how_far="rest")
    return parser.parse_args()


def write_report(known: dict[str, str], how_far: str) -> None:
    """Write the report: the new results, and the old ones of all other mutations."""
    page = last_results()
    results = {key(m): page[m.file, m.what] for m in MUTATIONS if (m.file, m.what) in page} | known
    REPORT.write_text(report(results, how_far), encoding="utf-8")
    print(f"Written: {REPORT.relative_to(REPO)}")


def main() -> None:
    """Run the mutation tests from the command line."""
    args = arguments()
    # Turn SIGTERM into an exception, so that the copies and the test processes are removed too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped."))
    page = last_results()
    chosen = [with_last_test(m, page) for m in MUTATIONS if args.only in f"{m.file} {m.kind} {m.what}"]
    known = json.loads(JOURNAL.read_text()) if JOURNAL.is_file() else {}
    again = {key(m) for m in chosen if not args.resume or known.get(key(m)) == SURVIVED}
    known = {k: v for k, v in known.items() if k not in again}
    try:
        check_all()
        with tempfile.TemporaryDirectory() as folder:
            runs = [Run(Path(folder) / str(worker), args.limit) for worker in range(max(args.workers, 1))]
            run_all(chosen, known, runs, args.how_far)
            runs[0].confirm({known[key(m)] for m in chosen if "::" in known[key(m)]})
    except (Stale, Unfit) as error:
        sys.exit(str(error))
    left = [m for m in chosen if known[key(m)] == SURVIVED]
    print(f"{len(chosen) - len(left)} of {len(chosen)} detected.")
    write_report(known, args.how_far)
    unexplained = [m for m in left if not m.excuse]
    if unexplained:
        sys.exit("Not detected and not explained:\n" + "\n".join(f"  {m.file}: {m.what}" for m in unexplained))


if __name__ == "__main__":
    main()
