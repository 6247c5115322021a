"""Finds out whether a model or data set can be downloaded from the Hugging Face Hub, or only read from the cache.

Without a network, the Hugging Face libraries retry for half a minute and print messages. Here one request with a short
time limit decides, before anything is loaded, whether the Hub can be reached. If it cannot, the cache is used.
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
    """Whether `text` has the form of a repository's name on the Hub, which is `name` or `owner/name`."""
    return _NAME.fullmatch(text) is not None and not text.startswith(".")


def can_download(kind: Literal["model", "dataset"], name: str, revision: str | None = None) -> bool:
    """Whether a repository can be downloaded now.

    Args:
        kind: what the repository contains.
        name: of the repository.
        revision: branch, tag or commit; None for the main branch.

    Returns:
        True if the Hub has the repository, False if the Hub cannot be reached.

    Raises:
        LabError: the Hub has no such repository or revision, or refuses access to it.
    """
    return hub_commit(kind, name, revision) is not None


def hub_commit(kind: Literal["model", "dataset"], name: str, revision: str | None = None) -> str | None:
    """The present commit of a repository at a revision.

    Args:
        kind: what the repository contains.
        name: of the repository.
        revision: branch, tag or commit; None for the main branch.

    Returns:
        The commit's hash; None if the Hub cannot be reached.

    Raises:
        LabError: as in `can_download`.
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
            f"The {kind} '{name}' requires that you accept its terms. Accept them on its page on the Hub, then run "
            f"`hf auth login` here."
        ) from None
    except RevisionNotFoundError:
        raise LabError(f"The {kind} '{name}' has no revision '{revision}' on the Hub.") from None
    except RepositoryNotFoundError:
        raise LabError(
            f"The Hub has no {kind} '{name}' that you can access, and there is no file or folder of that name here."
        ) from None
    except Exception:  # the Hub cannot be reached (no network, a proxy, a time-out, a server error)
        return None


def hub_responds() -> bool:
    """Whether the Hub can be reached. The request names no repository and sends no token."""
    from huggingface_hub import constants, get_session

    if is_offline():
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    except Exception:
        return False
    return True


def cache_folder() -> Path:
    """The folder for results that are expensive to compute again: $RLHF_LAB_CACHE, or the system's cache folder."""
    if given := os.environ.get("RLHF_LAB_CACHE"):
        return check_path(given, "RLHF_LAB_CACHE")
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "rlhf_lab" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "rlhf_lab"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlhf_lab"


def not_available(kind: Literal["model", "dataset"], name: str) -> LabError:
    """The error for a model or data set that is not on this machine while the Hub cannot be reached."""
    alternative = (
        "a folder with config.json, *.safetensors and tokenizer files"
        if kind == "model"
        else "a local .json, .jsonl, .csv or .parquet file"
    )
    return LabError(
        f"The {kind} '{name}' is not on this machine and the Hugging Face Hub cannot be reached. Connect to the "
        f"network, or give the path of {alternative}."
    )


@contextmanager
def offline_mode() -> Iterator[None]:
    """Make the Hugging Face libraries use only their cache inside the `with` block."""
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
    """Whether an environment variable of the Hugging Face libraries forbids the network."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
    return any(os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"} for name in names)
