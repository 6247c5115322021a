"""`rlhf-lab push`: upload the result of a run to the Hugging Face Hub, with its model card, in one commit.

The repository contains the files of `model/`, the card README.md, settings.yaml, history.jsonl and, with LoRA,
`adapters/`. Checkpoints and data are left out.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from rlhf_lab.errors import LabError, check_settings, count_of
from rlhf_lab.policies import hub_lookup

_BESIDE = ("README.md", "settings.yaml", "history.jsonl")
_REWARD = "reward.json"


@dataclass(frozen=True, kw_only=True)
class Push:
    """Upload the result of a run to the Hugging Face Hub. Log in with `hf auth login` first."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Output folder of a finished `rlhf-lab train` run."""
    to: str
    """Name of the repository on the Hub, such as OWNER/NAME. It is created if it does not exist."""
    private: bool = True
    """Create the repository as a private one. `--no-private` makes it public. An existing repository stays as it is."""
    message: str = "Upload a run of rlhf_lab"
    """Message of the commit."""

    def __post_init__(self) -> None:
        check_settings(self)
        if not hub_lookup.is_hub_name(self.to):
            raise LabError(f"to must be the name of a repository on the Hub, such as OWNER/NAME, not {self.to!r}.")


def push(settings: Push) -> None:
    """Run the command.

    Raises:
        LabError: the folder contains no finished run, the Hub cannot be reached, or it refuses the upload.
    """
    files = run_files(settings.folder)
    if not hub_lookup.hub_responds():
        raise LabError(
            f"The Hugging Face Hub cannot be reached, so nothing of {settings.folder} was pushed. Connect to the "
            f"network, and unset HF_HUB_OFFLINE if it is set."
        )
    import httpx
    import huggingface_hub
    from huggingface_hub import CommitOperationAdd

    if huggingface_hub.get_token() is None:
        raise LabError(f"You are not logged in, so nothing was pushed to {settings.to}. Run `hf auth login`.")
    api = huggingface_hub.HfApi()
    try:
        name = api.create_repo(settings.to, private=settings.private, exist_ok=True).repo_id
        operations = [CommitOperationAdd(path, str(file)) for path, file in files.items()]
        commit = api.create_commit(name, operations, commit_message=settings.message)
    except (httpx.HTTPError, OSError, ValueError) as error:  # an answer of the Hub, no answer, or an invalid card
        text = getattr(error, "server_message", None) or str(error) or type(error).__name__
        reason = next((line.strip().removesuffix(".") for line in text.splitlines() if line.strip()), text)
        if (answer := getattr(error, "response", None)) is not None:
            reason = f"{answer.status_code}: {reason}"
        raise LabError(
            f"The Hub did not accept the upload to {settings.to} ({reason}). Check the name, and that the token of "
            f"`hf auth login` may write to it."
        ) from None
    print(f"{settings.folder} is at {commit.commit_url} ({count_of(len(files), 'file')}).", file=sys.stderr)


def run_files(folder: Path) -> dict[str, Path]:
    """Return the files of a run to upload, by their paths in the repository.

    Args:
        folder: the output folder of the run.

    Raises:
        LabError: the folder does not exist, or the run in it is not finished.
    """
    model = folder / "model"
    if not (folder / "run.json").is_file():
        raise LabError(f"{folder} contains no run. Give the output folder of `rlhf-lab train`.")
    if not (folder / "README.md").is_file() or not any((model / name).is_file() for name in ("config.json", _REWARD)):
        raise LabError(f"The run in {folder} is not finished. Run it again with --resume, then push it.")
    files = {path.relative_to(model).as_posix(): path for path in sorted(model.rglob("*")) if path.is_file()}
    beside = [folder / name for name in _BESIDE] + sorted((folder / "adapters").glob("*"))
    # The card of the run replaces the card that a model may have of itself.
    return files | {path.relative_to(folder).as_posix(): path for path in beside if path.is_file()}
