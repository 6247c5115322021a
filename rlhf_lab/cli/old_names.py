"""Old names of commands, options and values of options, which work for one more version.

An entry takes effect only where the new name exists and the old name does not. An old name can therefore be listed
here before the rename, and it can be in use elsewhere for something else.
"""

from __future__ import annotations

import sys
import typing
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

from rlhf_lab.cli.familiar_names import ALIASES

COMMANDS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("train", "online"): ("train", "iterated-dpo"),
    ("experiment", "rso-settings"): ("experiment", "rso-hyperparameters"),
}
"""Old command → new command."""

OPTIONS: dict[str, str] = {
    "rung": "scale",
    "prompts_at_once": "sampling_batch_size",
    "check_every": "eval_every",
    "online": "iterated_dpo",  # a group of settings in a YAML file
}
"""Old option → new option. The names are those of the settings' fields, with `_`."""

VALUES: dict[tuple[str, str], str] = {("method", "online"): "iterated-dpo"}
"""(option, old value) → new value."""

SWITCHES = ("chat",)
"""Options that took no value and now have the values on and off: `--chat` and `--no-chat`."""


def new_command(words: Sequence[str], commands: Collection[tuple[str, ...]]) -> list[str]:
    """Return the words of a command line with an old command name replaced by the new one.

    Args:
        words: the command line without the program's name.
        commands: the names of all commands.
    """
    for old, new in COMMANDS.items():
        if tuple(words[: len(old)]) == old and old not in commands and new in commands:
            _notice(f"`{' '.join(old)}`", f"`{' '.join(new)}`")
            return [*new, *words[len(old) :]]
    return list(words)


def new_options(words: Sequence[str], options: Mapping[str, object]) -> list[str]:
    """Return the options of a command line with old names and old values replaced by the new ones.

    Args:
        words: the command line behind the command's name.
        options: the type of each option of the command, by the name of the settings' field.
    """
    out: list[str] = []
    option = ""
    for word, following in pairwise([*words, "--"]):
        if value := _switched(word, following, options):
            name = word[2:].removeprefix("no-")
            if name in SWITCHES:
                _notice(f"`{word}`", f"`--{name} {value}`")
            out.append(f"--{name}={value}")
            continue
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            option = name.replace("-", "_")
            new = new_name(option, options)
            if new != option:
                option = new
                word = f"--{new.replace('_', '-')}{equals}{value}"
                if name not in ALIASES:
                    _notice(f"`--{name}`", f"`--{new.replace('_', '-')}`")
            if equals:
                changed = _new_value(option, value, options)
                word = word if changed == value else word.removesuffix(value) + changed
        else:
            word = _new_value(option, word, options)
        out.append(word)
    return out


def new_name(name: str, known: Collection[str], source: str = "") -> str:
    """Return the new name of a setting, or the setting of another name, or `name` itself.

    Args:
        name: the setting's name, with `_`.
        known: names that exist now.
        source: the settings file that contains the old name. It is given to print the notice here.
    """
    new = ALIASES.get(name) or OPTIONS.get(name, name)
    if new == name or name in known or new not in known:
        return name
    if source and name not in ALIASES:
        _notice(f"{source}: `{name}`", f"`{new}`")
    return new


def _switched(word: str, following: str, options: Mapping[str, object]) -> str | None:
    """The value that an option without a value stands for, or None if the word is no such option.

    Besides those of `SWITCHES`, these are options with the values True, False and None.
    """
    name = word.removeprefix("--")
    plain = name.removeprefix("no-")
    allowed = typing.get_args(options.get(plain.replace("-", "_")))
    known = ("on", "off") if plain in SWITCHES and "on" in allowed else ("True", "False") if bool in allowed else None
    if name == word or known is None or (plain == name and not following.startswith("--")):
        return None
    return known[plain != name]


def _new_value(option: str, value: str, options: Mapping[str, object]) -> str:
    new = VALUES.get((option, value))
    allowed = typing.get_args(options.get(option))  # the values of a `Literal`
    if new is None or value in allowed or new not in allowed:
        return value
    _notice(f"`--{option.replace('_', '-')} {value}`", f"`--{option.replace('_', '-')} {new}`")
    return new


def _notice(old: str, new: str) -> None:
    print(f"rlhf-lab: {old} is now called {new}. The old name will stop working in the next version.", file=sys.stderr)
