"""Checkpoints without pickle, written so that a half-written one is never mistaken for a whole one.

A checkpoint is a folder `checkpoints/step-000100/` with the trained weights and the optimiser's state as
safetensors and the rest as JSON. It is written under another name and renamed when complete. No generator is
stored: the randomness of step s is a function of (seed, s), see `loop.py`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rlhf_lab.checks import LabError

KEEP = 2
"""Checkpoints kept: the last, and the one before it in case the last is damaged later."""


def plain(value: Any) -> Any:
    """`value` as JSON knows it: dataclasses become dictionaries, paths and dtypes text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    return str(value)


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, path)


# What may differ between a run and its resumption.
_MAY_DIFFER = {"out", "resume", "progress", "log_every", "save_every"}


def claim(out: Path, settings: dict[str, Any], resume: bool) -> None:
    """Take the folder `out` for a run of `settings`, or refuse it with nothing changed.

    Raises:
        LabError: the folder holds another run or other files; or `resume` finds no run, or one of other
            settings, of which the first that differs is named.
    """
    record = out / "run.json"
    settings = plain(settings)
    if resume:
        if not record.is_file():
            raise LabError(f"Nothing to resume in {out}: it holds no run.json. Leave --resume out to start.")
        try:
            before = json.loads(record.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise LabError(f"{record} is damaged ({error}); the run cannot be resumed from it.") from None
        for key, old, new in _differences(before, settings):
            raise LabError(
                f"{out} holds a run with {key} = {old!r}, not {new!r}. Resume it with its own settings, or "
                f"give another output folder."
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "another run" if record.is_file() else "other files"
        raise LabError(
            f"{out} already holds {what}; nothing was changed there. Give an empty or new output folder"
            + (", or --resume to go on with that run." if record.is_file() else ".")
        )
    out.mkdir(parents=True, exist_ok=True)
    write_json(record, settings)


def _differences(old: Any, new: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        out = []
        for name in sorted(old.keys() | new.keys()):
            if name not in _MAY_DIFFER:
                out += _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        return out
    return [] if old == new else [(key, old, new)]


def save(out: Path, step: int, module: nn.Module, optimizer: torch.optim.Optimizer, extra: dict) -> Path:
    """Write the checkpoint of `step` (steps done so far) and drop the ones before the last two."""
    folder = out / "checkpoints" / f"step-{step:06d}"
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_file({k: v.contiguous().clone() for k, v in module.state_dict().items()}, part / "weights.safetensors")
    tensors, numbers = _pack(optimizer)
    save_file(tensors, part / "optimizer.safetensors")
    write_json(part / "state.json", {"step": step, "optimizer": numbers, **extra})
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
    for old in _in_order(folder.parent)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def latest(out: Path) -> Path | None:
    """The newest checkpoint of the run in `out`, or None."""
    found = _in_order(out / "checkpoints")
    return found[-1] if found else None


def _in_order(folder: Path) -> list[Path]:
    """The checkpoints in `folder` by step; names of a million steps and more are longer."""
    return sorted(folder.glob("step-*"), key=lambda path: (len(path.name), path.name))


def load(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put the checkpoint's weights and optimiser state back; returns what else was saved.

    Raises:
        LabError: a file is missing or cut short, or the weights belong to another model.
    """
    try:
        weights = load_file(folder / "weights.safetensors")
        tensors = load_file(folder / "optimizer.safetensors")
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        module.load_state_dict(weights)
    except Exception as error:
        others = [str(p) for p in _in_order(folder.parent) if p != folder]
        mend = f"Remove it to go on from {others[-1]}." if others else "There is no earlier one."
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LabError(f"The checkpoint {folder} cannot be read ({reason}). {mend}") from None
    _unpack(optimizer, tensors, state.pop("optimizer"))
    return state


def _pack(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors, numbers = {}, {}
    for index, entries in optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{key}"] = value.contiguous().clone()
            elif isinstance(value, list) and value and all(isinstance(v, torch.Tensor) for v in value):
                # L-BFGS remembers its last directions in lists.
                tensors |= {f"{index}.{key}.{i}": v.contiguous().clone() for i, v in enumerate(value)}
            elif isinstance(value, int | float | bool):
                numbers[f"{index}.{key}"] = value
    return tensors, numbers


def _unpack(optimizer: torch.optim.Optimizer, tensors: dict, numbers: dict) -> None:
    state = optimizer.state_dict()
    lists: dict[tuple[int, str], dict[int, torch.Tensor]] = {}
    for name, value in {**tensors, **numbers}.items():
        index, key, *place = name.split(".")
        if place:
            lists.setdefault((int(index), key), {})[int(place[0])] = value
        else:
            state["state"].setdefault(int(index), {})[key] = value
    for (number, key), values in lists.items():
        state["state"].setdefault(number, {})[key] = [values[i] for i in range(len(values))]
    optimizer.load_state_dict(state)
