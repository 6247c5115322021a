"""The command `rlhf-lab`. Each command's settings are a typed dataclass, from which tyro makes its options.

Nothing heavy is imported before a command is known, so that --help and --version answer at once.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import rlhf_lab
from rlhf_lab.cli import old_names
from rlhf_lab.experiments.claims import module_of


class _Command(NamedTuple):
    """Where a command's settings and function are, and what it does in a line."""

    module: str
    settings: str
    function: str
    help: str


def _train(method: str, settings: str, help: str) -> tuple[tuple[str, ...], _Command]:
    word = method.replace("-", "_")
    return ("train", method), _Command(f"rlhf_lab.cli.train.{word}", settings, f"train_{word}", help)


def _experiment(name: str, settings: str, help: str) -> tuple[tuple[str, ...], _Command]:
    return ("experiment", name), _Command(module_of(name), settings, "main", help)


COMMANDS: dict[tuple[str, ...], _Command] = {
    ("compare",): _Command(
        "rlhf_lab.experiments.compare",
        "Compare",
        "run",
        "train every method on one world; a table and a picture beside the exact optimum",
    ),
    **dict(
        [
            _experiment("enough-labels", "EnoughLabels", "claim 1: with enough pairs DPO finds π*"),
            _experiment("dpo-frontier", "DPOFrontier", "claim 2: DPO's frontier of reward and KL against PPO's"),
            _experiment("temperatures", "Temperatures", "claim 3: DPO, PPO, SFT, best of n over temperatures"),
            _experiment("rso-table", "RSOTable", "claim 4: RSO's table 1, losses times sources of pairs"),
            _experiment("rso-why", "RSOWhy", "claim 4: why should pairs from π_r help?"),
            _experiment("rso-settings", "RSOSettings", "claim 5: RSO's β and γ, first round against tournament"),
            _experiment("rest-translation", "ReSTTranslation", "claim 6: ReST on translation, and what it goes to"),
            _experiment("over-optimisation", "OverOptimisation", "claim 7: proxy rises while gold falls"),
            _experiment("cost", "Cost", "claim 8: seconds, memory, samples, and spread over seeds"),
            _experiment("non-static", "NonStatic", "question 9: a world that moves, and when retraining pays"),
            _experiment("annotation-budget", "AnnotationBudget", "question 10: how to spend N labels"),
        ]
    ),
    **dict(
        [
            _train("sft", "TrainSFT", "fine-tune a language model on targets"),
            _train("reward-model", "TrainRewardModel", "fit a reward model to preference pairs"),
            _train("ranker", "TrainRanker", "fit RSO's pairwise ranker to preference pairs"),
            _train("dpo", "TrainDPO", "fit a language model to preference pairs, by any loss of DPO's family"),
            _train("kto", "TrainKTO", "fit a language model to responses marked good or bad"),
            _train("ppo", "TrainPPO", "train a language model on a reward, with a critic"),
            _train("rso", "TrainRSO", "make pairs by rejection sampling, and fit a language model to them"),
            _train("raft", "TrainRAFT", "fine-tune a language model on the best of its samples"),
            _train("rest", "TrainReST", "grow data from a language model, improve it on those above a threshold"),
            _train("iterated-dpo", "TrainIteratedDPO", "DPO in rounds, on new labels of the model's responses"),
            _train("rloo", "TrainRLOO", "train a language model on a reward against its own other samples"),
            _train("grpo", "TrainGRPO", "the same with each prompt's rewards normalised"),
        ]
    ),
    ("sample",): _Command("rlhf_lab.cli.sample", "Sample", "sample", "draw responses from a language model"),
    ("evaluate",): _Command(
        "rlhf_lab.cli.evaluate",
        "Evaluate",
        "evaluate",
        "rewards, win rates, KL, diversity, length, with errors",
    ),
    ("plan",): _Command(
        "rlhf_lab.cli.plan", "ResourcePlan", "plan", "estimate the memory and the time that a run needs"
    ),
    ("budget",): _Command("rlhf_lab.cli.budget", "Budget", "plan_budget", "how to spend a budget of labels"),
    ("course",): _Command("rlhf_lab.cli.course", "Course", "course", "write the notebooks to a folder"),
    ("doctor",): _Command("rlhf_lab.cli.doctor", "Doctor", "doctor", "what is installed, cached and reachable"),
}

STOPPED = 130
"""Exit code after Ctrl-C, as shells have it."""
REFUSED = 2
"""Exit code where what was given cannot be used."""


def usage() -> str:
    """What `rlhf-lab --help` prints."""
    width = max(len(" ".join(words)) for words in COMMANDS)
    lines = [f"  {' '.join(words):<{width}}  {command.help}" for words, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: rlhf-lab [--help] [--version] COMMAND [options]",
            "",
            "RLHF and its variants, with the exact optimal policy beside every method.",
            "",
            "commands:",
            *lines,
            "",
            "rlhf-lab COMMAND --help tells a command's options.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for what cannot be used, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without a π is no reason to fail
    try:
        return _dispatch(words)
    except BrokenPipeError:  # whoever read the output, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as stop:
        return _fail(str(stop) or "Stopped before there was anything to save.", STOPPED)
    except (ValueError, OSError) as error:
        from rlhf_lab.errors import LabError

        # Our own sentence, or the system's about a file (no permission) or the disk. All else is a fault of the lab and
        # shows where.
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
        if isinstance(error, LabError) or (isinstance(error, OSError) and (error.filename is not None or full)):
            return _fail(str(error), REFUSED)
        raise


def _settings(kind: type, words: list[str], prog: str) -> Any:
    """The settings out of the words, with those of `--config FILE` in front, which the command line overrides."""
    import tyro

    from rlhf_lab.cli import yaml_config

    words = old_names.new_options(words, yaml_config.option_types(kind))
    file, words = yaml_config.split_config(words)
    from_file = yaml_config.read(file, kind) if file is not None and "config" in yaml_config.flat_fields(kind) else []
    from rlhf_lab.errors import LabError

    parse = partial(tyro.cli, kind, args=[*from_file, *words], prog=prog)
    try:
        # tyro prints its box of what a settings class refuses even without console outputs.
        with contextlib.redirect_stderr(io.StringIO()):
            return parse(console_outputs=False)
    except SystemExit as stop:
        # What a settings class refuses is said in our words; the rest (--help, an unknown option) in tyro's.
        if isinstance(stop.__context__, LabError):
            raise stop.__context__ from None
    try:
        return parse()
    except SystemExit as stop:
        if from_file and stop.code:
            print(f"rlhf-lab: the settings of {file} stand in front of those of the command line.", file=sys.stderr)
        raise


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("--help", "-h", "help"):
        print(usage())
        return 0 if words else REFUSED
    if words[0] == "--version":
        print(f"rlhf-lab {rlhf_lab.__version__}")
        return 0
    words = old_names.new_command(words, COMMANDS)
    path = next((path for path in COMMANDS if tuple(words[: len(path)]) == path), None)
    if path is None:
        if any(group[0] == words[0] for group in COMMANDS) and (len(words) < 2 or words[1] in ("--help", "-h")):
            print(usage())
            return 0 if len(words) > 1 else REFUSED
        known = [" ".join(group) for group in COMMANDS]
        asked = " ".join(words[: 2 if words[0] in ("train", "experiment") else 1])
        near = difflib.get_close_matches(asked, known, 1)
        mean = f" Do you mean '{near[0]}'?" if near else ""
        return _fail(f"no command '{asked}'.{mean} There are: {', '.join(known)}.", REFUSED)
    command = COMMANDS[path]
    module = importlib.import_module(command.module)
    from rlhf_lab.errors import check_paths

    settings = check_paths(
        _settings(getattr(module, command.settings), words[len(path) :], f"rlhf-lab {' '.join(path)}")
    )
    try:
        result = getattr(module, command.function)(settings)
    except (MemoryError, RuntimeError):
        from rlhf_lab.training import memory

        with memory.oom_hint(settings):
            raise
    # `doctor` says by its exit code what it found.
    return result if isinstance(result, int) else 0


def _fail(message: str, code: int) -> int:
    print(f"rlhf-lab: {message}", file=sys.stderr)
    return code
