"""Checkpoints without pickle, written so that a half-written one is never mistaken for a whole one.

A checkpoint is a folder `checkpoints/step-000100/` with the trained weights and the optimiser's state as
safetensors and the rest as JSON. It is written under another name, handed to the disk (fsync), and renamed when
complete; what is dropped is renamed before it is deleted. So whatever stops the process, and whenever, a folder of
the name `step-…` is whole. No generator is stored: the randomness of step s is a function of (seed, s), see
`loop.py`; the position in the data is a function of s too. Of several processes the first alone writes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlhf_lab.errors import LabError, check_weights
from rlhf_lab.training import distributed

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
    write_text(path, json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part, also after a power cut.

    Raises:
        LabError: it cannot be written (a full disk, no permission); the old one stays.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        _to_disk([part])
        os.replace(part, path)
        _to_disk([path.parent])
    except OSError as error:
        part.unlink(missing_ok=True)
        raise LabError(f"{path} cannot be written ({error.strerror or error}).") from None


def append(path: Path, text: str) -> None:
    """Add whole lines to a file. Half a line at its end, which a kill leaves, is cut off first.

    Raises:
        LabError: they cannot be written (a full disk, no permission); the file is as it was.
    """
    before = None
    try:
        with path.open("a+b") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(end - 1, 0))
            if file.read(1) not in (b"", b"\n"):
                file.seek(0)
                end = file.read().rfind(b"\n") + 1
                file.truncate(end)
            before = end
            file.write(text.encode())
    except OSError as error:
        if before is not None:
            os.truncate(path, before)
        raise LabError(f"{path} cannot be written ({error.strerror or error}). Make room, and run again.") from None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file of lines. What is none, such as a line that a kill cut short, is left out."""
    found = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _to_disk(paths: Iterable[Path]) -> None:
    """Wait until files, or folders' lists of names, are on the disk and not in its cache alone."""
    for path in paths:
        if path.is_dir() and os.name == "nt":  # Windows has no such call for folders, and orders renames itself
            continue
        handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def save(out: Path, step: int, module: nn.Module, optimizer: torch.optim.Optimizer, extra: dict) -> Path:
    """Write the checkpoint of `step` (steps done so far) and drop the ones before the last two.

    Raises:
        LabError: it cannot be written, for example because the disk is full. Nothing of it is left, and the message
            names the last good one, which is as it was.
    """
    # Parts that other processes hold are put together on all of them; one writes.
    weights = {k: distributed.full_tensor(v) for k, v in module.state_dict().items()}
    tensors, numbers = _pack(optimizer)
    folder = out / "checkpoints" / f"step-{step:06d}"
    distributed.on_main_process(lambda: _write(folder, weights, tensors, {"step": step, "optimizer": numbers, **extra}))
    return folder


def _write(folder: Path, weights: dict[str, Tensor], optimizer: dict[str, Tensor], state: dict[str, Any]) -> None:
    part = folder.with_name(f".{folder.name}.part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(part.parent)
        part.mkdir()
        save_file(_storable(weights), part / "weights.safetensors")
        save_file(_storable(optimizer), part / "optimizer.safetensors")
        write_json(part / "state.json", state)
        _to_disk([part / "weights.safetensors", part / "optimizer.safetensors", part])
        _put_aside(folder)
        os.replace(part, folder)
        _to_disk([folder.parent])
    except Exception as error:  # an OSError, or safetensors' own word for one
        shutil.rmtree(part, ignore_errors=True)
        found = _last_readable(folder.parent)
        kept = f"The last good checkpoint is {found}" if found else "There is no earlier one"
        raise LabError(
            f"The checkpoint {folder} cannot be written ({_reason(error)}). {kept}. Make room (about "
            f"{_size([weights, optimizer]) / 2**20:,.0f} MB), then --resume goes on from there."
        ) from None
    drop_old(folder.parent)


def drop_old(folder: Path) -> None:
    """Delete all checkpoints in `folder` but the last two, and what a killed process left half written or half deleted.

    It runs after each save, and on resuming: a process that was killed after its last save could not tidy up itself.
    """
    for old in _in_order(folder)[:-KEEP]:
        _put_aside(old)
    _remove_leftovers(folder)


def _remove_leftovers(folder: Path) -> None:
    """Delete the folders that `_write` and `_put_aside` use on the way, if a killed process left any."""
    for leftover in folder.glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _put_aside(folder: Path) -> None:
    """Delete a folder so that a part of it is never found under its name."""
    if folder.exists():
        aside = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)


def _storable(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors takes them: none shares memory with another. Saving waits for no copy otherwise."""
    out, seen = {}, set()
    for name, value in tensors.items():
        value = value.detach().contiguous()
        place = value.untyped_storage().data_ptr()
        out[name] = value.clone() if place in seen else value
        seen.add(place)
    return out


def _size(groups: Iterable[dict[str, Tensor]]) -> int:
    return sum(value.numel() * value.element_size() for group in groups for value in group.values())


def latest(out: Path) -> Path | None:
    """The newest checkpoint of the run in `out`, or None."""
    found = _in_order(out / "checkpoints")
    return found[-1] if found else None


def _in_order(folder: Path) -> list[Path]:
    """The checkpoints in `folder` by step; names of a million steps and more are longer."""
    return sorted(folder.glob("step-*"), key=lambda path: (len(path.name), path.name))


def _last_readable(folder: Path, besides: Path | None = None) -> Path | None:
    """The newest checkpoint in `folder` whose files are there and not cut short."""
    for path in reversed(_in_order(folder)):
        if path == besides:
            continue
        try:
            for name in ("weights.safetensors", "optimizer.safetensors"):
                with safe_open(path / name, "pt"):  # reads the head and compares it with the file's length
                    pass
            _read_state(path)
        except Exception:
            continue
        return path
    return None


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return text.splitlines()[0] if text else type(error).__name__


def load(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put the checkpoint's weights and optimiser state back; returns what else was saved.

    Raises:
        LabError: a file is missing or cut short, or the weights belong to another model.
    """
    try:
        weights = load_file(folder / "weights.safetensors")
        tensors = load_file(folder / "optimizer.safetensors")
        state = _read_state(folder)
        now = module.state_dict()
        trained = {name for name, _ in module.named_parameters()}
        check_weights(
            ((k, v) for k, v in weights.items() if k in trained), lambda name: str(folder / "weights.safetensors")
        )
        module.load_state_dict({k: distributed.shard_like(v, now[k]) if k in now else v for k, v in weights.items()})
        _unpack(optimizer, tensors, state.pop("optimizer"))
    except Exception as error:
        found = _last_readable(folder.parent, besides=folder)
        mend = f"Remove it to go on from {found}." if found else "There is no earlier one."
        raise LabError(f"The checkpoint {folder} cannot be read ({_reason(error)}). {mend}") from None
    return state


def _read_state(folder: Path) -> dict[str, Any]:
    """The checkpoint's numbers: the step, the optimiser's, and what the caller of `save` added.

    Raises:
        ValueError: it is no JSON, or holds something else.
    """
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    kinds = {"step": int, "optimizer": dict}
    wrong = not isinstance(state, dict) or any(not isinstance(state.get(name), kind) for name, kind in kinds.items())
    if wrong or not isinstance(state.get("history", []), list):
        raise ValueError("state.json does not hold a step, the optimizer's numbers and a history")
    return state


def kept(out: Path | None) -> str:
    """What a run that was stopped at once has saved in its folder, in a sentence or two."""
    if out is None or not out.is_dir():
        return "Nothing was saved."
    found = sorted(out.rglob("checkpoints/step-*"), key=lambda path: path.stat().st_mtime)
    if found:
        return f"{found[-1]} is saved; run again with --resume to go on from there."
    if any(out.rglob("rows-*.safetensors")):
        return f"The samples so far are saved in {out}; run again with --resume to go on."
    if (out / "run.json").is_file():
        return f"No step was saved yet. {out} holds the settings alone; run again with --resume to start anew."
    return "Nothing was saved."


def _pack(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, numbers = {}, {}
    for index, entries in optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = distributed.full_tensor(value)
            elif isinstance(value, list) and value and all(isinstance(v, Tensor) for v in value):
                # L-BFGS remembers its last directions in lists.
                tensors |= {f"{index}.{key}.{i}": v for i, v in enumerate(value)}
            elif isinstance(value, int | float | bool):
                numbers[f"{index}.{key}"] = value
    return tensors, numbers


def _unpack(optimizer: torch.optim.Optimizer, tensors: dict, numbers: dict) -> None:
    state = optimizer.state_dict()
    # A moment lies over the processes as its parameter does.
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    lists: dict[tuple[int, str], dict[int, Tensor]] = {}
    for name, value in {**tensors, **numbers}.items():
        index, key, *place = name.split(".")
        if place:
            lists.setdefault((int(index), key), {})[int(place[0])] = value
        else:
            if isinstance(value, Tensor):
                value = distributed.shard_like(value, parameters[int(index)])
            state["state"].setdefault(int(index), {})[key] = value
    for (number, key), values in lists.items():
        state["state"].setdefault(number, {})[key] = [values[i] for i in range(len(values))]
    optimizer.load_state_dict(state)
