"""Settings from a YAML file, and back into one.

The file's keys are the command's own options, with `_` or `-`: what can be said as `--learning-rate 1e-5` can be said
as `learning_rate: 1e-5`. Settings of a method may also stand in a group of their own (`dpo: {beta: 0.1}`). The file
becomes words in front of those of the command line, so the command line wins.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from pathlib import Path
from typing import Any

from rlhf_lab.cli import old_names
from rlhf_lab.errors import LabError, check_path

NOT_SAVED = ("config", "resume")
"""Settings of one call and not of the run."""


def option_types(settings: type) -> dict[str, Any]:
    """Return the type of each option of a command, by the option's name."""
    out = {}
    for name, path in flat_fields(settings).items():
        kind: Any = settings
        for part in path:
            kind = typing.get_type_hints(kind)[part]
        out[name] = kind
    return out


def flags(settings: type) -> set[str]:
    """Return the names of the options that take no value, such as `--progress` and `--no-progress`."""
    return {name for name, kind in option_types(settings).items() if kind is bool}


def flat_fields(settings: Any) -> dict[str, tuple[str, ...]]:
    """The options' names and where in `settings` (a dataclass, or its type) each is found.

    A field that is itself a dataclass with an empty name for tyro gives its own fields. Two of one name would be one
    option for two things.

    Raises:
        LabError: two options of one name.
    """
    kind = settings if isinstance(settings, type) else type(settings)
    hints = typing.get_type_hints(kind, include_extras=True)
    out: dict[str, tuple[str, ...]] = {}
    for field in dataclasses.fields(kind):
        names = [getattr(extra, "name", None) for extra in getattr(hints[field.name], "__metadata__", ())]
        told = next((name for name in names if name is not None), None)
        inner = typing.get_args(hints[field.name])[0] if names else hints[field.name]
        if dataclasses.is_dataclass(inner) and told == "":
            found = {name: (field.name, *path) for name, path in flat_fields(inner).items()}
        else:
            found = {(told or field.name).replace("-", "_"): (field.name,)}
        if twice := out.keys() & found.keys():
            raise LabError(f"{kind.__name__} has two settings of the name {min(twice)}.")
        out |= found
    return out


def split_config(words: list[str]) -> tuple[Path | None, list[str]]:
    """The file behind `--config`, and the words as they are (tyro reads the option too, to keep and explain it)."""
    for place, word in enumerate(words):
        if word == "--config" and place + 1 < len(words):
            return check_path(words[place + 1], "config"), words
        if word.startswith("--config="):
            return check_path(word.partition("=")[2], "config"), words
    return None, words


def read(path: Path, settings: type) -> list[str]:
    """The file's settings as words of a command line.

    Raises:
        LabError: the file is not there, is not YAML, or holds a key that the command does not know.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LabError(f"The settings file {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise LabError(f"The settings file {path} is not UTF-8. Save it as UTF-8.") from None
    try:
        given = yaml.load(text, _loader(str(path)))
    except LabError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a ValueError: a date such as 2001-99-99
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark is not None else ""
        raise LabError(f"{path}{place}: not YAML ({getattr(error, 'problem', None) or error}).") from None
    if given is None:
        return []
    if not isinstance(given, dict):
        raise LabError(f"{path}: expected `name: value` lines, found a {type(given).__name__}.")
    known, alone = flat_fields(settings), flags(settings)
    words: list[str] = []
    for name, value in _flat(given, known, str(path)).items():
        words += _words(name, value, name in alone, str(path))
    return words


def _loader(source: str) -> Any:
    """PyYAML's safe loader, which keeps the last of two equal keys; this one refuses them, at every depth."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            seen = set()
            for key in keys:
                if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                    raise LabError(
                        f"{source}, line {key.start_mark.line + 1}: `{key.value}` is there more than once. Remove one "
                        f"of them."
                    )
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    return Loader


def _flat(given: dict[Any, Any], known: dict[str, tuple[str, ...]], source: str) -> dict[str, Any]:
    groups = {path[0] for path in known.values() if len(path) > 1}
    out: dict[str, Any] = {}
    for raw, value in given.items():
        name = old_names.new_name(str(raw).replace("-", "_"), groups | known.keys(), source)
        if name in groups and name not in known and isinstance(value, dict):
            inner = {key: path for key, path in known.items() if path[0] == name}
            found = _flat(value, inner, f"{source}, {name}")
        elif name in known and name != "config":
            found = {name: value}
        else:
            near = difflib.get_close_matches(name, [key for key in known if key != "config"], 3, 0.6)
            mean = f" Do you mean {' or '.join(near)}?" if near else f" There are: {', '.join(sorted(known))}."
            raise LabError(f"{source}: there is no setting {raw!r}.{mean}")
        if twice := out.keys() & found.keys():
            raise LabError(f"{source}: `{min(twice)}` is there more than once. Remove one of them.")
        out |= found
    return out


def _words(name: str, value: Any, flag: bool, source: str) -> list[str]:
    option = "--" + name.replace("_", "-")
    if flag:
        if not isinstance(value, bool):
            raise LabError(f"{source}: `{name}` must be true or false, not {value!r}.")
        return [option if value else "--no-" + option[2:]]
    if isinstance(value, list):
        if any(isinstance(part, dict | list) for part in value):
            raise LabError(f"{source}: `{name}` is a list of lists; expected a list of plain values.")
        return [option, *map(str, value)]
    if isinstance(value, dict):
        raise LabError(f"{source}: `{name}` has settings of its own; expected one value.")
    return [f"{option}={value}"]


def write(settings: Any) -> str:
    """`settings` as YAML that `read` takes back."""
    import yaml

    values = {}
    for name, path in flat_fields(settings).items():
        value: Any = settings
        for part in path:
            value = getattr(value, part)
        if name not in NOT_SAVED:
            values[name] = plain(value)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def plain(value: Any) -> Any:
    """`value` as YAML writes it: lists, and what is no number or truth value as text."""
    if isinstance(value, tuple | list):
        return [plain(part) for part in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
