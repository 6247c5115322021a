"""Read the settings of a command from a YAML file, and write them to one.

The keys of the file are the options of the command, with `_` or `-`. The option `--learning-rate 1e-5` is written as
`learning_rate: 1e-5`. The settings of a method may also be in a group (`dpo: {beta: 0.1}`). The options of the
command line override the file.
"""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any

from rlhf_lab.cli import old_names
from rlhf_lab.cli.familiar_names import near_options
from rlhf_lab.errors import LabError, check_path

NOT_SAVED = ("config", "resume", "dry_run")
"""Settings of one call, which do not belong to the run."""


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
    """Return the options of a command: each option's name, and the path of its field in the settings.

    The fields of a nested dataclass become options of the command if the dataclass has an empty name for tyro.

    Args:
        settings: a settings object or its class.

    Raises:
        LabError: two options have the same name.
    """
    kind = settings if isinstance(settings, type) else type(settings)
    hints = typing.get_type_hints(kind, include_extras=True)
    out: dict[str, tuple[str, ...]] = {}
    for field in dataclasses.fields(kind):
        names = [getattr(extra, "name", None) for extra in getattr(hints[field.name], "__metadata__", ())]
        given = next((name for name in names if name is not None), None)
        inner = typing.get_args(hints[field.name])[0] if names else hints[field.name]
        if dataclasses.is_dataclass(inner) and given == "":
            found = {name: (field.name, *path) for name, path in flat_fields(inner).items()}
        else:
            found = {(given or field.name).replace("-", "_"): (field.name,)}
        if twice := out.keys() & found.keys():
            raise LabError(f"{kind.__name__} has two settings with the name {min(twice)}. Rename one of them.")
        out |= found
    return out


def split_config(words: list[str]) -> tuple[Path | None, list[str]]:
    """Return the file of `--config` and all words. The option stays, because it is a setting like the others."""
    for place, word in enumerate(words):
        if word == "--config" and place + 1 < len(words):
            return check_path(words[place + 1], "config"), words
        if word.startswith("--config="):
            return check_path(word.partition("=")[2], "config"), words
    return None, words


def read(path: Path, settings: type) -> list[str]:
    """Return the settings of a file as options of a command line.

    Args:
        path: the YAML file.
        settings: the command's settings class.

    Raises:
        LabError: the file cannot be read, is not YAML, or has a key that the command does not know.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LabError(f"The settings file {path} cannot be read: {error.strerror}. Check the path.") from None
    except UnicodeDecodeError:
        raise LabError(f"The settings file {path} is not UTF-8. Save it as UTF-8.") from None
    try:
        given = yaml.load(text, _loader(str(path)))
    except LabError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a ValueError: a date such as 2001-99-99
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark is not None else ""
        raise LabError(
            f"{path}{place}: not YAML ({getattr(error, 'problem', None) or error}). Correct the file."
        ) from None
    if given is None:
        return []
    if not isinstance(given, dict):
        raise LabError(f"{path}: expected `name: value` lines, found a {type(given).__name__}.")
    known, switches, types = flat_fields(settings), flags(settings), option_types(settings)
    words: list[str] = []
    for name, value in _flat(given, known, str(path)).items():
        if isinstance(value, bool) and {"on", "off"} <= set(typing.get_args(types[name])):
            value = "on" if value else "off"  # YAML reads the words on and off without quotes as true and false
        words += _words(name, value, name in switches, str(path))
    return words


def _loader(source: str) -> Any:
    """A safe loader of PyYAML that also refuses duplicate keys, of which PyYAML would keep the last."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc, unused-ignore]
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            seen = set()
            for key in keys:
                if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                    raise LabError(
                        f"{source}, line {key.start_mark.line + 1}: `{key.value}` appears more than once. Remove "
                        f"one of them."
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
            near = near_options(name, [key for key in known if key != "config"])
            hint = f" Do you mean {' or '.join(near)}?" if near else f" The settings are: {', '.join(sorted(known))}."
            raise LabError(f"{source}: there is no setting {raw!r}.{hint}")
        if twice := out.keys() & found.keys():
            raise LabError(f"{source}: `{min(twice)}` appears more than once. Remove one of them.")
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
            raise LabError(f"{source}: `{name}` is a nested list; expected a list of plain values.")
        return [option, *map(str, value)]
    if isinstance(value, dict):
        raise LabError(f"{source}: `{name}` is a group of settings; expected one value.")
    return [f"{option}={value}"]


def write(settings: Any) -> str:
    """Return `settings` as YAML that `read` can read."""
    import yaml

    values = {}
    for name, path in flat_fields(settings).items():
        value: Any = settings
        for part in path:
            value = getattr(value, part)
        if name not in NOT_SAVED:
            values[name] = plain(value)
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def plain(value: Any) -> Any:
    """Return `value` as YAML can write it: tuples become lists, and other objects become text."""
    if isinstance(value, tuple | list):
        return [plain(part) for part in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
