"""Checkpoints of training runs, and files that are written completely or not at all.

A checkpoint is a folder such as `checkpoints/step-000100/`. It contains the weights and the optimiser's state as
safetensors, and the rest as JSON; nothing is pickled. The folder is written under another name, flushed to disk (fsync)
and then renamed. Old checkpoints are renamed before they are deleted. Whenever the process is stopped, every folder
with a name `step-…` is therefore complete. The state of random generators is not stored, because the random numbers and
the rows of step s are functions of the seed and s (`loop.py`). If there are several processes, the first one writes.
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
"""Number of checkpoints that stay on disk: the last one, and the one before it in case the last one is damaged."""


def plain(value: Any) -> Any:
    """Convert to values that JSON supports: dataclasses become dictionaries, and paths and dtypes become strings."""
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
    """Write JSON with `write_text`."""
    write_text(path, json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: a reader sees the old content or the new one, even after a power failure.

    Raises:
        LabError: the file cannot be written (full disk, no permission). The old file is unchanged.
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
    """Append complete lines to a file. An incomplete last line, left by a killed process, is removed first.

    Raises:
        LabError: the lines cannot be written (full disk, no permission). The complete lines of the file are unchanged.
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
        raise LabError(
            f"{path} cannot be written ({error.strerror or error}). Free disk space, then try again."
        ) from None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file with one JSON object per line. Other lines, such as an incomplete one, are skipped."""
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
    """Flush files, or the lists of names of folders, from the operating system's cache to the disk."""
    for path in paths:
        if path.is_dir() and os.name == "nt":  # Windows cannot flush folders; it keeps the order of renames itself
            continue
        handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def save(out: Path, step: int, module: nn.Module, optimizer: torch.optim.Optimizer, extra: dict[str, Any]) -> Path:
    """Write a checkpoint, and delete all but the last two.

    Args:
        out: folder of the run.
        step: number of finished steps.
        module: module with the weights.
        optimizer: its optimiser.
        extra: more values for `state.json`.

    Returns:
        the folder of the checkpoint.

    Raises:
        LabError: it cannot be written, for example because the disk is full. Its files are removed, and the message
            names the last complete checkpoint.
    """
    # Sharded tensors are gathered on all processes. One of them writes.
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
    except Exception as error:  # an OSError, or safetensors' own error for the same cause
        shutil.rmtree(part, ignore_errors=True)
        found = _last_readable(folder.parent)
        earlier = f"The last complete checkpoint is {found}" if found else "There is no earlier one"
        raise LabError(
            f"The checkpoint {folder} cannot be written ({_reason(error)}). {earlier}. Free about "
            f"{_size([weights, optimizer]) / 2**20:,.0f} MB of disk space, then run again with --resume."
        ) from None
    drop_old(folder.parent)


def save_best(out: Path, step: int, module: nn.Module, row: dict[str, float]) -> None:
    """Write the weights of the best held-out measurement as `checkpoints/best-STEP`, and delete the earlier best ones.

    Args:
        out: folder of the run.
        step: number of steps before the measurement.
        module: module with the weights.
        row: the measurement.

    Raises:
        LabError: as `save`.
    """
    weights = {k: distributed.full_tensor(v) for k, v in module.state_dict().items()}
    folder = out / "checkpoints" / f"best-{step:06d}"

    def write() -> None:
        _write(folder, weights, {}, {"step": step, "optimizer": {}, "history": [row]})
        for other in folder.parent.glob("best-*"):
            if other != folder:
                _put_aside(other)

    distributed.on_main_process(write)


def best(out: Path) -> tuple[Path, int, dict[str, float]] | None:
    """Return the folder of the best held-out weights of the run in `out`, their step and their measurement, or None."""
    for folder in (out / "checkpoints").glob("best-*"):
        try:
            state = _read_state(folder)
            return folder, state["step"], state["history"][0]
        except (OSError, ValueError, LookupError):
            continue
    return None


def drop_old(folder: Path) -> None:
    """Delete all checkpoints in `folder` but the last two, and incomplete folders that a killed process left.

    This runs after each save, and when a run is resumed, because a killed process may not have done it.
    """
    for old in _in_order(folder)[:-KEEP]:
        _put_aside(old)
    _remove_leftovers(folder)


def _remove_leftovers(folder: Path) -> None:
    """Delete temporary folders of `_write` and `_put_aside` that a killed process left."""
    for leftover in [*folder.glob(".step-*"), *folder.glob(".best-*")]:
        shutil.rmtree(leftover, ignore_errors=True)


def _put_aside(folder: Path) -> None:
    """Delete a folder. It is renamed first, so that an incomplete folder never has its name."""
    if folder.exists():
        aside = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)


def _storable(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors requires them: contiguous, and without shared memory. Only shared tensors are copied."""
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
    """Return the newest checkpoint of the run in `out`, or None."""
    found = _in_order(out / "checkpoints")
    return found[-1] if found else None


def _in_order(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, ordered by step. From a million steps on, the names are longer."""
    return sorted(folder.glob("step-*"), key=lambda path: (len(path.name), path.name))


def _last_readable(folder: Path, besides: Path | None = None) -> Path | None:
    """The newest checkpoint in `folder` with complete files, or None; `besides` is not considered."""
    for path in reversed(_in_order(folder)):
        if path == besides:
            continue
        try:
            for name in ("weights.safetensors", "optimizer.safetensors"):
                with safe_open(path / name, "pt"):  # reads the header and compares it with the length of the file
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
    """Load the weights and the optimiser's state of a checkpoint, and return the other values of its `state.json`.

    Raises:
        LabError: a file is missing or incomplete, or the weights are those of another model.
    """
    try:
        tensors = load_file(folder / "optimizer.safetensors")
        state = _read_state(folder)
        load_weights(folder, module)
        _unpack(optimizer, tensors, state.pop("optimizer"))
    except Exception as error:
        raise _unreadable(folder, error) from None
    return state


def _unreadable(folder: Path, error: Exception) -> LabError:
    found = _last_readable(folder.parent, besides=folder)
    fix = f"Remove it to continue from {found}." if found else "There is no earlier one."
    return LabError(f"The checkpoint {folder} cannot be read ({_reason(error)}). {fix}")


def finished_steps(out: Path) -> int:
    """Return the number of steps in the newest checkpoint of the run in `out`; 0 without a checkpoint.

    Raises:
        LabError: the checkpoint's numbers cannot be read.
    """
    folder = latest(out)
    try:
        return 0 if folder is None else int(_read_state(folder)["step"])
    except (OSError, ValueError) as error:
        assert folder is not None
        raise _unreadable(folder, error) from None


def load_weights(folder: Path, module: nn.Module) -> None:
    """Load the weights of a checkpoint.

    Raises:
        OSError, LabError or an error of safetensors or torch: the file cannot be read, or has other weights.
    """
    weights = load_file(folder / "weights.safetensors")
    now = module.state_dict()
    trained = {name for name, _ in module.named_parameters()}
    check_weights(
        ((k, v) for k, v in weights.items() if k in trained), lambda name: str(folder / "weights.safetensors")
    )
    module.load_state_dict({k: distributed.shard_like(v, now[k]) if k in now else v for k, v in weights.items()})


def _read_state(folder: Path) -> dict[str, Any]:
    """The values in `state.json`: the step, numbers of the optimiser, and the `extra` of `save`.

    Raises:
        ValueError: the file is not JSON, or has other contents.
    """
    state: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    kinds = {"step": int, "optimizer": dict}
    wrong = not isinstance(state, dict) or any(not isinstance(state.get(name), kind) for name, kind in kinds.items())
    if wrong or not isinstance(state.get("history", []), list):
        raise ValueError("state.json does not contain a step, the optimizer's numbers and a history")
    return state


def what_was_saved(out: Path | None) -> str:
    """Describe in one or two sentences what an interrupted run has saved in its folder, for its last message."""
    if out is None or not out.is_dir():
        return "Nothing was saved."
    found = sorted(out.rglob("checkpoints/step-*"), key=lambda path: path.stat().st_mtime)
    if found:
        return f"{found[-1]} is saved. Run again with --resume to continue from there."
    if any(out.rglob("rows-*.safetensors")):
        return f"The finished samples are saved in {out}. Run again with --resume to continue."
    if (out / "run.json").is_file():
        return f"No step was saved yet; {out} contains only the settings. Run again with --resume to start."
    return "Nothing was saved."


def _pack(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, numbers = {}, {}
    for index, entries in optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = distributed.full_tensor(value)
            elif isinstance(value, list) and value and all(isinstance(v, Tensor) for v in value):
                # L-BFGS stores its last directions in lists.
                tensors |= {f"{index}.{key}.{i}": v for i, v in enumerate(value)}
            elif isinstance(value, int | float | bool):
                numbers[f"{index}.{key}"] = value
    return tensors, numbers


def _unpack(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    state = optimizer.state_dict()
    # Adam's moments are sharded in the same way as their parameter.
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
