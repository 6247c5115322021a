"""The command `rlhf-lab`. Each command's settings are a typed dataclass, from which tyro makes its options.

Nothing heavy is imported before a command is known, so that --help and --version answer at once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import rlhf_lab


class _Command(NamedTuple):
    """Where a command's settings and function are, and what it does in a line."""

    module: str
    settings: str
    function: str
    help: str


COMMANDS = {
    ("compare",): _Command(
        "rlhf_lab.experiments.compare",
        "Compare",
        "run",
        "train every method on one world; a table and a picture beside the exact optimum",
    ),
    ("train", "dpo"): _Command(
        "rlhf_lab.commands.train",
        "TrainDPO",
        "train_dpo",
        "fit a language model to a file of preferences",
    ),
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
    try:
        return _dispatch(words)
    except KeyboardInterrupt as stop:
        return _fail(str(stop) or "Stopped before there was anything to save.", STOPPED)
    except (ValueError, OSError) as error:
        from rlhf_lab.checks import LabError

        # Our own sentence, or the system's about a file (no space, no permission). All else is a fault of the lab
        # and shows where.
        if isinstance(error, LabError) or (isinstance(error, OSError) and error.filename is not None):
            return _fail(str(error), REFUSED)
        raise


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("--help", "-h", "help"):
        print(usage())
        return 0 if words else REFUSED
    if words[0] == "--version":
        print(f"rlhf-lab {rlhf_lab.__version__}")
        return 0
    path = next((path for path in COMMANDS if tuple(words[: len(path)]) == path), None)
    if path is None:
        if any(group[0] == words[0] for group in COMMANDS) and (len(words) < 2 or words[1] in ("--help", "-h")):
            print(usage())
            return 0 if len(words) > 1 else REFUSED
        known = ", ".join(" ".join(group) for group in COMMANDS)
        return _fail(f"no command '{' '.join(words[:2])}'. There are: {known}.", REFUSED)
    import tyro

    command = COMMANDS[path]
    module = importlib.import_module(command.module)
    settings = tyro.cli(
        getattr(module, command.settings),
        args=words[len(path) :],
        prog=f"rlhf-lab {' '.join(path)}",
    )
    getattr(module, command.function)(settings)
    return 0


def _fail(message: str, code: int) -> int:
    print(f"rlhf-lab: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
