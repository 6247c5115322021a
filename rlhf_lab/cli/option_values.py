"""Errors of a command line in one sentence, with options as they are typed.

tyro shows an error of its parser in a box. The checks here come first, and they know what the value of an option may be
from the type of its setting.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple

from rlhf_lab.cli.familiar_names import near_value
from rlhf_lab.cli.yaml_config import flat_fields, option_types
from rlhf_lab.errors import LabError

_KINDS = {int: ("a whole number", "whole numbers"), float: ("a number", "numbers"), bool: ("True or False", "")}
"""What a value must be, and what several must be, by their type. Texts and paths may be anything."""


class AsWritten(LabError):
    """An error whose message names settings as the user has written them."""


class Given(NamedTuple):
    """An option of a command line: its name with `-` as it was typed, that of its setting, and its values."""

    option: str
    name: str
    values: list[str]


def given_options(words: Sequence[str]) -> list[Given]:
    """Return the options of a command line with the words behind each of them."""
    found: list[Given] = []
    for word in words:
        if word.startswith("--"):
            option, equals, value = word.partition("=")
            found.append(Given(option[2:], option[2:].replace("-", "_"), [value] if equals else []))
        elif found:
            found[-1].values.append(word)
    return found


def positionals(kind: Any) -> dict[str, str]:
    """Return the settings of a command that are given without an option: name → what `--help` calls it."""
    found = {}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        extras = getattr(hint, "__metadata__", ())
        if any(repr(extra) == "Positional" for extra in extras):
            found[name] = next((extra.metavar for extra in extras if getattr(extra, "metavar", None)), name)
    return found


def wrong_value(words: Sequence[str], options: Mapping[str, Any], free: bool) -> tuple[Given, str] | None:
    """Return the first option whose values do not fit, and what is wrong, or None.

    Args:
        words: the command line behind the command's name.
        options: the type of each option, by its name with `_`.
        free: whether the command has arguments without an option, which may be the last words behind any option.
    """
    for given in given_options(words):
        hint = options.get(given.name)
        if hint is None and options.get(given.name.removeprefix("no_")) is bool:
            hint = bool
        if hint is not None and (problem := _problem(given, hint, free)):
            return given, problem
    return None


def _problem(given: Given, hint: Any, free: bool) -> str | None:
    """What is wrong with the values of an option, as the end of a sentence."""
    values, inside = given.values, typing.get_args(hint)
    if hint is bool:
        fix = f"Leave the value out. --no-{given.option} is the opposite." * (not given.name.startswith("no_"))
        if not values or free:
            return None
        return f"takes no value, and {values[0]!r} follows it. {fix or 'Leave it out.'}"
    union = typing.get_origin(hint) in (typing.Union, UnionType)
    kinds = [kind for kind in (inside if union else [hint]) if kind is not NoneType]
    several = next((typing.get_args(kind) for kind in kinds if typing.get_origin(kind) is tuple), None)
    if several is None:
        if len(values) > 1 and not free:
            return f"takes one value, but {len(values)} follow it ({' '.join(values)})."
        values = values[:1]
    elif Ellipsis not in several and len(values) != len(several) and not free:
        return f"takes {len(several)} values, but {len(values)} follow it ({' '.join(values)})."
    optional = union and NoneType in inside
    kind = kinds[0] if several is None else several[0]
    wrong = next((value for value in values if not (_fits(value, kind) or (optional and value == "None"))), None)
    if wrong is None:
        return None
    if typing.get_origin(kind) is Literal:
        return _choices(given.name, wrong, typing.get_args(kind))
    parts = wrong.split(",")
    if several is not None and len(parts) > 1 and all(_fits(part, kind) for part in parts):
        fix = f"Write --{given.option} {' '.join(parts)}."
        return f"must be {_KINDS[kind][1]} with spaces between them, not {wrong!r}. {fix}"
    what = _KINDS[kind][several is not None] + " or None" * optional
    fix = f" Write {int(float(wrong))}." if kind is int and _fits(wrong, float) and float(wrong).is_integer() else ""
    return f"must be {what}, not {wrong!r}.{fix}"


def _fits(value: str, kind: Any) -> bool:
    """Whether a word can be converted to a type."""
    if typing.get_origin(kind) is Literal:
        return value in map(str, typing.get_args(kind))
    if kind is bool:
        return value in ("True", "False")
    try:
        kind(value)
    except ValueError:
        return False
    return True


def _choices(name: str, value: str, allowed: Sequence[str]) -> str:
    near = near_value(name, value, allowed)
    hint = f" Do you mean {near}?" if near else ""
    if name == "adapter" and not near:
        hint = " --lora-rank trains new adapters."
    return f"must be {', '.join(allowed[:-1])} or {allowed[-1]}, not {value!r}.{hint}"


def missing_options(kind: Any, words: Sequence[str], prog: str) -> str | None:
    """Return a message about options without a default that are not given, or None.

    Args:
        kind: the command's settings class.
        words: the command line behind the command's name.
        prog: the program and the command, for the message.
    """
    alone, given = positionals(kind), {one.name for one in given_options(words)}
    none = dataclasses.MISSING
    needed = {field.name for field in dataclasses.fields(kind) if field.default is field.default_factory is none}
    names = [alone[name] for name in alone if name in needed and not _free_words(words, option_types(kind))]
    names += [
        f"--{name.replace('_', '-')}"
        for name, path in flat_fields(kind).items()
        if path[-1] in needed and len(path) == 1 and name not in given and path[-1] not in alone
    ]
    if not names:
        return None
    listed = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
    them = "them" if len(names) > 1 else "it"
    return f"{prog.removeprefix('rlhf-lab ')} needs {listed}. `{prog} --help` explains {them}."


def _free_words(words: Sequence[str], options: Mapping[str, Any]) -> int:
    """The number of words that are values of no option."""
    found = next((place for place, word in enumerate(words) if word.startswith("--")), len(words))
    for given in given_options(words):
        hint = options.get(given.name, bool)
        if not any(typing.get_origin(kind) is tuple for kind in (hint, *typing.get_args(hint))):
            found += max(len(given.values) - (hint is not bool), 0)
    return found


def as_options(message: str, options: Mapping[str, Any]) -> str:
    """Return a message with the names of settings replaced by the options of a command line.

    A settings class is also used from Python, so its messages name settings: `lora_rank=4` becomes `--lora-rank 4`,
    and `load_in_4bit=True` becomes `--load-in-4bit`. A name of one word is replaced only where it is followed by `=`,
    or by `must` at the beginning. Values in the record of a run (`learning_rate = 0.1`) stay.

    Args:
        message: of a `LabError`.
        options: the options of the command, by their names with `_`.
    """
    for name in sorted(options, key=len, reverse=True):
        option = f"--{name.replace('_', '-')}"
        alone = rf"(?<![\w/.`'\"-]){name}(?![\w/`'\"(-]|\.\w| = )"
        message = re.sub(rf"{alone}\[(\d+)\]", lambda found: f"value {int(found[1]) + 1} of {option}", message)  # noqa: B023
        message = re.sub(rf"{alone}=True\b", option, message)
        message = re.sub(rf"{alone}=False\b", f"--no-{option[2:]}", message)
        message = re.sub(rf"{alone}='([^'\s]+)'", rf"{option} \1", message)
        message = re.sub(rf"{alone}=", f"{option} ", message)
        message = re.sub(alone if "_" in name else rf"^{name}(?= must )", option, message)
    return message
