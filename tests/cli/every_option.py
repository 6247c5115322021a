"""A value for every option of every command, none of them the default, and the settings object made of them."""

import dataclasses
import importlib
import sys
import types
import typing
from pathlib import Path
from typing import Any, Literal

import pytest

from rlhf_lab.cli import yaml_config
from rlhf_lab.cli.main import COMMANDS, _settings

KINDS = {
    " ".join(words): getattr(importlib.import_module(command.module), command.settings)
    for words, command in COMMANDS.items()
}
METHODS = [name for name in KINDS if name.startswith("train ")]

# Options whose values hang together, or whose type says too little. All others are made by `other`.
TOLD: dict[str, dict[str, Any]] = {
    "experiment rso-table": {"tasks": ("tree",)},
    "compare": {"world": "tree", "policy": "gpt2", "labels": 64, "methods": ("dpo", "raft")},
    "train dpo": {"loss": "simpo", "label_smoothing": 0.0, "max_reward": None, "reference": None},
    "train iterated-dpo": {"loss": "chi", "label_smoothing": 0.0, "target_margin": None},
    "train rest": {"scale": "none"},
    "train rloo": {"kind": "rloo", "penalty": "k3", "divide_by_length": None},
    "train grpo": {"kind": "grpo", "penalty": "k2"},
    "plot": {"out": Path("some/curve.png")},
    "budget": {"labels": None, "candidates": 5},
}
PAIR_LOSS = {"chosen_penalty": 50.0, "nll_weight": 1.0, "reward_shift": 0.0, "shift_decay": None}
EVERYWHERE: dict[str, Any] = {"scale": "tree", "resume": False, "batch_size": 24, **PAIR_LOSS}
EVERYWHERE |= {"data_weights": (), "eval_fraction": None, "warmup_ratio": None, "lora_dropout": 0.0, "dry_run": False}


@pytest.fixture(autouse=True)
def unused_is_no_fault(monkeypatch):
    """Whoever imports this may set options beside each other of which one has no effect, which is refused elsewhere."""
    for name, module in list(sys.modules.items()):
        if name.startswith("rlhf_lab.") and name != "rlhf_lab.errors" and hasattr(module, "refuse_unused"):
            monkeypatch.setattr(module, "refuse_unused", lambda *a: None)


def field_at(kind: type, path: tuple[str, ...]) -> tuple[Any, Any]:
    """The type of an option and its default, None where it has none."""
    for part in path[:-1]:
        kind = typing.get_type_hints(kind)[part]
    found = next(field for field in dataclasses.fields(kind) if field.name == path[-1])
    default = None if found.default is dataclasses.MISSING else found.default
    return typing.get_type_hints(kind)[path[-1]], default


def value_at(settings: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        settings = getattr(settings, part)
    return settings


def other(name: str, hint: Any, default: Any) -> Any:
    """A value of this type that is not the default."""
    inside = [part for part in typing.get_args(hint) if part is not type(None)]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return other(name, inside[0], default)
    if typing.get_origin(hint) is Literal:
        return next(choice for choice in reversed(inside) if choice != default)
    if typing.get_origin(hint) is tuple:
        if not default or len(default) > 2:
            return (default[0], *default[2:]) if default else (other(name, inside[0], None),)
        return tuple(other(name, inside[0], part) for part in default)
    if hint is bool:
        return not default
    if hint is int:
        return 2 * default if default else 3
    if hint is float:
        return default / 2 if default else 0.25
    return Path(f"some/{name}") if hint is Path else f"some-{name}"


def words_of(name: str, value: Any, flag: bool) -> list[str]:
    option = "--" + name.replace("_", "-")
    if flag:
        return [option if value else "--no-" + option[2:]]
    return [option, *map(str, value)] if isinstance(value, tuple) else [f"{option}={value}"]


def wanted(command: str) -> dict[str, Any]:
    """A value for every option of the command, none of them the default but for those in `TOLD`."""
    kind, told = KINDS[command], {**EVERYWHERE, **TOLD.get(command, {})}
    # An experiment settles what was left open, so its defaults are those of an object.
    usual = kind(scale=told["scale"]) if command.startswith("experiment") else None
    out = {}
    for name, path in yaml_config.flat_fields(kind).items():
        hint, default = field_at(kind, path)
        default = default if usual is None else value_at(usual, path)
        out[name] = told[name] if name in told else other(name, hint, default)
    return out


def parsed(command: str, words: list[str]) -> Any:
    return _settings(KINDS[command], words, f"rlhf-lab {command}")


def from_words(command: str, values: dict[str, Any]) -> Any:
    flags = yaml_config.flags(KINDS[command])
    # An option of several values cannot be given without one. Without the option it has its default, which is empty.
    said = {name: value for name, value in values.items() if value is not None and value != () and name != "config"}
    # The arguments without a name are those of `course DIR`, `progress DIR`, `push RUN`, `plot RUN…` and `data FILE`.
    first = [str(said.pop("folder"))] if command in ("course", "progress", "push") else []
    first += [str(said.pop("data"))] if command == "data" else []
    first += [str(run) for run in said.pop("runs")] if command == "plot" else []
    return parsed(command, first + [w for name, value in said.items() for w in words_of(name, value, name in flags)])
