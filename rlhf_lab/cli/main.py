"""The program `rlhf-lab`: a table of its commands, and the function that runs one of them.

The settings of each command are a typed dataclass, from which tyro makes the options. Libraries that load slowly are
imported only when a command needs them, so that --help and --version answer immediately.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import rlhf_lab
from rlhf_lab.cli import familiar_names, help_texts, old_names
from rlhf_lab.experiments.claims import module_of


class _Command(NamedTuple):
    """The module of a command, the names of its settings class and of its function, and its line of help."""

    module: str
    settings: str
    function: str
    help: str


def _train(method: str, settings: str, help: str) -> tuple[tuple[str, ...], _Command]:
    word = method.replace("-", "_")
    return ("train", method), _Command(f"rlhf_lab.cli.train.{word}", settings, f"train_{word}", help)


def _experiment(name: str, settings: str, help: str) -> tuple[tuple[str, ...], _Command]:
    return ("experiment", name), _Command(module_of(name), settings, "EXPERIMENT", help)


COMMANDS: dict[tuple[str, ...], _Command] = {
    ("compare",): _Command(
        "rlhf_lab.experiments.compare",
        "Compare",
        "run",
        "train every method on one world and compare the results with the exact optimum",
    ),
    **dict(
        [
            _experiment("enough-labels", "EnoughLabels", "claim 1: DPO converges to π* with enough pairs"),
            _experiment("dpo-frontier", "DPOFrontier", "claim 2: reward and KL of DPO and PPO"),
            _experiment("temperatures", "Temperatures", "claim 3: DPO, PPO, SFT and best of n at several temperatures"),
            _experiment("rso-table", "RSOTable", "claim 4: table 1 of RSO, losses by sources of pairs"),
            _experiment("rso-why", "RSOWhy", "claim 4: the reason why pairs from π_r should help"),
            _experiment("rso-phase", "RSOPhase", "claim 4: where pairs from π_r help a restricted policy"),
            _experiment("rso-hyperparameters", "RSOHyperparameters", "claim 5: β, γ and ranking of RSO"),
            _experiment(
                "rest-translation", "ReSTTranslation", "claim 6: ReST on translation, and the policy it converges to"
            ),
            _experiment(
                "over-optimisation", "OverOptimisation", "claim 7: the proxy reward rises while the gold reward falls"
            ),
            _experiment("cost", "Cost", "claim 8: time, memory, samples and spread over seeds"),
            _experiment("non-static", "NonStatic", "question 9: when to retrain in a world that changes"),
            _experiment("annotation-budget", "AnnotationBudget", "question 10: how to use N labels"),
            _experiment("dpo-samplers", "DPOSamplers", "claim 11: the pairs on which DPO converges fastest"),
            _experiment("coverage", "Coverage", "claim 12: pairs that do not cover all responses"),
            _experiment(
                "chosen-probability", "ChosenProbability", "claim 13: how the probability of chosen responses changes"
            ),
            _experiment("soft-best-of-n", "SoftBestOfN", "claim 14: from best-of-n to π*, with exact distributions"),
        ]
    ),
    **dict(
        [
            _train("sft", "TrainSFT", "fine-tune a language model on target responses (SFT)"),
            _train("reward-model", "TrainRewardModel", "fit a reward model to preference pairs"),
            _train("ranker", "TrainRanker", "fit a pairwise ranker, as RSO uses it, to preference pairs"),
            _train("dpo", "TrainDPO", "train a language model on preference pairs with DPO or a related loss"),
            _train("kto", "TrainKTO", "train a language model on responses labelled good or bad"),
            _train("ppo", "TrainPPO", "train a language model on a reward with PPO"),
            _train("rso", "TrainRSO", "make preference pairs by rejection sampling and train a language model on them"),
            _train("raft", "TrainRAFT", "fine-tune a language model on its best samples"),
            _train(
                "rest", "TrainReST", "sample from a language model and train it on samples above a rising threshold"
            ),
            _train(
                "iterated-dpo",
                "TrainIteratedDPO",
                "train with DPO in rounds, each on newly labelled responses of the model",
            ),
            _train("rloo", "TrainRLOO", "train a language model on a reward with RLOO, without a critic"),
            _train("grpo", "TrainGRPO", "train a language model on a reward with GRPO, without a critic"),
        ]
    ),
    ("data",): _Command(
        "rlhf_lab.cli.inspect_data",
        "InspectData",
        "inspect_data",
        "print what a run would be trained on: rows, lengths, duplicates, and tokens in the loss",
    ),
    ("sample",): _Command("rlhf_lab.cli.sample", "Sample", "sample", "sample responses from a language model"),
    ("evaluate",): _Command(
        "rlhf_lab.cli.evaluate",
        "Evaluate",
        "evaluate",
        "measure a language model (reward, win rate, KL, diversity, length) or a reward model (accuracy, calibration)",
    ),
    ("plot",): _Command("rlhf_lab.cli.plot", "Plot", "plot", "draw the training curves of runs as a PNG"),
    ("push",): _Command("rlhf_lab.cli.push", "Push", "push", "upload the result of a run to the Hugging Face Hub"),
    ("plan",): _Command(
        "rlhf_lab.cli.plan", "ResourcePlan", "plan", "estimate the memory and the time that a run needs"
    ),
    ("budget",): _Command("rlhf_lab.cli.budget", "Budget", "plan_budget", "plan how to use a budget for labels"),
    ("course",): _Command("rlhf_lab.cli.course", "Course", "course", "write the course's notebooks to a folder"),
    ("progress",): _Command(
        "rlhf_lab.cli.course", "ShowProgress", "show_progress", "print what is solved in a folder of the course"
    ),
    ("doctor",): _Command("rlhf_lab.cli.doctor", "Doctor", "doctor", "check what is installed, cached and reachable"),
}

STOPPED = 130
"""Exit code after Ctrl-C, as in shells."""
REFUSED = 2
"""Exit code if the arguments or the files cannot be used."""


def usage() -> str:
    """Return the text of `rlhf-lab --help`."""
    width = max(len(" ".join(words)) for words in COMMANDS)
    lines = [f"  {' '.join(words):<{width}}  {command.help}" for words, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: rlhf-lab [--help] [--version] COMMAND [options]",
            "",
            "RLHF and its variants, each compared with the exact optimal policy.",
            "",
            "commands:",
            *lines,
            "",
            f"Losses of train dpo are commands too: train {', '.join(familiar_names.LOSS_COMMANDS)}.",
            "rlhf-lab COMMAND --help explains the options of a command.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0, 2 if it cannot be run as given, or 130 after Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # the terminal may lack letters such as π
    try:
        return _dispatch(words)
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as stop:
        return _fail(str(stop) or "Stopped. There was nothing to save yet.", STOPPED)
    except (ValueError, OSError) as error:
        from rlhf_lab.errors import LabError

        # A LabError, or a system error about a file or the disk, is shown in one line. Anything else is a bug of the
        # lab and keeps its traceback.
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
        if isinstance(error, LabError) or (isinstance(error, OSError) and (error.filename is not None or full)):
            return _fail(str(error), REFUSED)
        raise


def _settings(kind: type, words: list[str], prog: str) -> Any:
    """Parse the options of a command. Those of `--config FILE` come first, so the command line overrides them."""
    import tyro

    from rlhf_lab.cli import yaml_config

    options = yaml_config.option_types(kind)
    words = _gathered(old_names.new_options(words, options), options)
    file, words = yaml_config.split_config(words)
    from rlhf_lab.cli.option_values import AsWritten
    from rlhf_lab.errors import LabError

    try:
        from_file = (
            yaml_config.read(file, kind) if file is not None and "config" in yaml_config.flat_fields(kind) else []
        )
    except LabError as error:
        raise AsWritten(str(error)) from None

    # An option with several values would be parsed without any, which is its default.
    if missing := familiar_names.missing_value(words, options, prog):
        raise AsWritten(missing)
    parse = partial(tyro.cli, kind, args=[*from_file, *words], prog=prog)
    by_scale = hasattr(kind, "with_defaults_except")
    if by_scale:
        parse = partial(parse, default=_scale_defaults(kind, words))
    try:
        # tyro prints the error of a settings class even with console_outputs=False.
        with contextlib.redirect_stderr(io.StringIO()), help_texts.from_docstrings(options):
            settings = parse(console_outputs=False)
        return settings.with_defaults_except(_named(words)) if by_scale else settings
    except SystemExit as stop:
        # An error of a settings class is shown in our words.
        if isinstance(stop.__context__, LabError):
            raise stop.__context__ from None
        if not stop.code:  # --help
            with help_texts.from_docstrings(options):
                return parse()
    raise AsWritten(_parse_error(kind, words, from_file, file, prog) or _own_words(parse, prog))


def _parse_error(kind: Any, words: list[str], from_file: list[str], file: Path | None, prog: str) -> str | None:
    """What is wrong with a command line that tyro cannot parse, or None if it is something unforeseen."""
    from rlhf_lab.cli import option_values, yaml_config

    options, free = yaml_config.option_types(kind), bool(option_values.positionals(kind))
    if unknown := familiar_names.unknown_option(words, options, prog):
        return unknown
    if wrong := option_values.wrong_value(from_file, options, free=False):
        return f"{file}: `{wrong[0].name}` {wrong[1]}"
    if wrong := option_values.wrong_value(words, options, free):
        return f"{prog.removeprefix('rlhf-lab ')}: --{wrong[0].option} {wrong[1]}"
    return option_values.missing_options(kind, [*from_file, *words], prog)


def _own_words(parse: Callable[[], Any], prog: str) -> str:
    """The error of tyro's parser without its box, in one line."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
        parse()
    text = " ".join(re.sub(r"[╭╮╰╯│─]+", " ", said.getvalue()).split())
    return f"{prog.removeprefix('rlhf-lab ')}: {text}"


def _gathered(words: list[str], options: Mapping[str, Any]) -> list[str]:
    """Join the values of an option that takes several values and is given several times, as in `--data A --data B`."""
    groups: list[list[str]] = [[]]
    known: dict[str, list[str]] = {}
    for word in words:
        if not word.startswith("--"):
            groups[-1].append(word)
            continue
        name, equals, value = word.partition("=")
        hint = options.get(name[2:].replace("-", "_"))
        several = any(typing.get_origin(part) is tuple for part in (hint, *typing.get_args(hint)))
        group = known.setdefault(name, [name]) if several else [word]
        groups = [*(other for other in groups if other is not group), group]
        group += [value] if several and equals else []
    return [word for group in groups for word in group]


def _named(words: list[str]) -> set[str]:
    """Return the names of the options among the words; `--no-progress` is that of `progress`."""
    names = {word.split("=", 1)[0].lstrip("-").replace("-", "_") for word in words if word.startswith("--")}
    return names | {name.removeprefix("no_") for name in names}


def _scale_defaults(kind: Any, words: list[str]) -> Any:
    """Return the settings of an experiment that the options replace: the defaults of the scale that the words name."""
    given: dict[str, Any] = {"quick": "--quick" in words}
    for word, following in pairwise([*words, ""]):
        name, sign, value = word.partition("=")
        if name == "--scale" and (value if sign else following):
            given["scale"] = value if sign else following
    return kind(**given)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("--help", "-h", "help"):
        print(usage())
        return 0 if words else REFUSED
    if words[0] == "--version":
        print(f"rlhf-lab {rlhf_lab.__version__}")
        return 0
    words = familiar_names.loss_command(old_names.new_command(words, COMMANDS))
    path = next((path for path in COMMANDS if tuple(words[: len(path)]) == path), None)
    if path is None:
        if any(group[0] == words[0] for group in COMMANDS) and (len(words) < 2 or words[1] in ("--help", "-h")):
            print(usage())
            return 0 if len(words) > 1 else REFUSED
        known = [" ".join(group) for group in COMMANDS]
        given = " ".join(words[: 2 if words[0] in ("train", "experiment") else 1])
        near = familiar_names.near_command(words, [*known, *(f"train {name}" for name in familiar_names.LOSS_COMMANDS)])
        hint = f" Do you mean '{near}'?" if near else ""
        return _fail(f"there is no command '{given}'.{hint} The commands are: {', '.join(known)}.", REFUSED)
    command = COMMANDS[path]
    module = importlib.import_module(command.module)
    from rlhf_lab.cli import option_values, yaml_config
    from rlhf_lab.errors import LabError, check_paths

    kind = getattr(module, command.settings)
    try:
        settings = check_paths(_settings(kind, words[len(path) :], f"rlhf-lab {' '.join(path)}"))
        try:
            result = getattr(module, command.function)(settings)
        except (MemoryError, RuntimeError):
            from rlhf_lab.training import memory

            with memory.oom_hint(settings):
                raise
    except option_values.AsWritten:
        raise
    except LabError as error:
        raise LabError(option_values.as_options(str(error), yaml_config.option_types(kind))) from error
    # `doctor` reports its result by the exit code.
    return result if isinstance(result, int) else 0


def _fail(message: str, code: int) -> int:
    print(f"rlhf-lab: {message}", file=sys.stderr)
    return code
