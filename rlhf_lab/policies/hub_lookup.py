"""Is it on this machine, on the Hub, or nowhere? Asked once, quickly, before anything is loaded.

The libraries below retry for half a minute when there is no network, and print as they do. Here one question
with a short time limit decides: reachable, or offline, where what an earlier run downloaded can still be used.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from rlhf_lab.errors import LabError, check_path

_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SECONDS = 10.0


def is_hub_name(text: str) -> bool:
    """Whether `text` can be a repository's name on the Hub: `name` or `owner/name`."""
    return _NAME.fullmatch(text) is not None and not text.startswith(".")


def can_download(kind: Literal["model", "dataset"], name: str, revision: str | None = None) -> bool:
    """Ask the Hub for `name`: True if it is there, False if the Hub cannot be reached.

    Raises:
        LabError: the Hub answers that there is no such repository or revision, or that it may not be read.
    """
    return hub_commit(kind, name, revision) is not None


def hub_commit(kind: Literal["model", "dataset"], name: str, revision: str | None = None) -> str | None:
    """The commit that `name` at `revision` stands for on the Hub now, or None if the Hub cannot be reached.

    Raises:
        LabError: as `can_download`.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if is_offline():
        return None
    try:
        ask = HfApi().model_info if kind == "model" else HfApi().dataset_info
        return ask(name, revision=revision, timeout=_SECONDS).sha or "unknown"
    except GatedRepoError:
        raise LabError(
            f"The {kind} '{name}' asks for its terms to be accepted: do so on its page on the Hub, then run "
            f"`hf auth login` here."
        ) from None
    except RevisionNotFoundError:
        raise LabError(f"The {kind} '{name}' has no revision '{revision}' on the Hub.") from None
    except RepositoryNotFoundError:
        raise LabError(
            f"There is no {kind} '{name}' on the Hub that you may read, and no file or folder of that name here."
        ) from None
    except Exception:  # no route, no name, a proxy's refusal, a time-out, a server in trouble: no answer
        return None


def hub_responds() -> bool:
    """Whether the Hub answers at all; asks for no repository and sends no token."""
    from huggingface_hub import constants, get_session

    if is_offline():
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    except Exception:
        return False
    return True


def cache_folder() -> Path:
    """Where the lab keeps what is dear to make again: $RLHF_LAB_CACHE, or the system's place for such things."""
    if told := os.environ.get("RLHF_LAB_CACHE"):
        return check_path(told, "RLHF_LAB_CACHE")
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "rlhf_lab" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "rlhf_lab"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlhf_lab"


def not_available(kind: Literal["model", "dataset"], name: str) -> LabError:
    """The error for what is neither here, nor in the cache, nor to be had from the Hub now."""
    mend = (
        "a folder with config.json, *.safetensors and tokenizer files"
        if kind == "model"
        else "a local .json, .jsonl, .csv or .parquet file"
    )
    return LabError(
        f"The {kind} '{name}' is not on this machine and the Hugging Face Hub cannot be reached: connect to the "
        f"network, or give the path of {mend}."
    )


@contextmanager
def offline_mode() -> Iterator[None]:
    """The libraries look in their cache alone, and do not try the network."""
    import huggingface_hub.constants as hub

    switches: list[Any] = [hub]
    try:
        import datasets.config as data

        switches.append(data)
    except ImportError:
        pass
    before = [switch.HF_HUB_OFFLINE for switch in switches]
    for switch in switches:
        switch.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.HF_HUB_OFFLINE = value


def is_offline() -> bool:
    """Whether the environment forbids the network, by one of the libraries' own variables."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
    return any(os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"} for name in names)
