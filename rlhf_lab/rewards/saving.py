"""Folders of models with a head: the body as `transformers` writes it, what stands on it, and the tokenizer.

    config.json, model.safetensors    the body; AutoModel.from_pretrained(folder) reads it too
    head.safetensors                  head, and whatever else is not the body's
    reward.json                       what it is; written last, so that half a folder is known as one
    tokenizer.json, …                 the tokenizer, where there is one

Nothing is pickled, and no code of the folder is run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_lab.errors import LabError, check_path, check_weights
from rlhf_lab.policies.loading import file_with_weight

HEAD, RECORD = "head.safetensors", "reward.json"


def save(module: nn.Module, folder: Path | str, kind: str, tokenizer: Any = None, **record: Any) -> None:
    """Write `module`, which has a `body`, to `folder`.

    Args:
        module: body, and parameters of its own.
        folder: made if it is not there.
        kind: what the folder holds: "reward model", "critic", "pairwise ranker".
        tokenizer: saved beside it.
        record: further plain values for `reward.json`.
    """
    from safetensors.torch import save_file

    folder = check_path(folder, "folder")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).unlink(missing_ok=True)
    body: Any = module.body
    body.save_pretrained(folder)
    own = {name: t for name, t in module.state_dict().items() if not name.startswith("body.")}
    save_file({name: t.detach().contiguous().clone() for name, t in own.items()}, folder / HEAD)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    with (folder / RECORD).open("w", encoding="utf-8") as file:
        json.dump({"kind": kind, **record}, file, indent=2)


def load(
    folder: Path | str, kind: str, dtype: torch.dtype | None = None
) -> tuple[Any, dict[str, Tensor], dict[str, Any], Any]:
    """Read what `save` wrote.

    Args:
        folder: as `save` left it.
        kind: what it must hold.
        dtype: number type of the body's weights; None for float32.

    Returns:
        the body, the other tensors, the record, and the tokenizer (None if none was saved).

    Raises:
        LabError: no such folder, another kind, or a file that is missing, cut short or of another shape.
    """
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoTokenizer

    folder = check_path(folder, "folder")
    if not folder.is_dir():
        raise LabError(f"There is no {kind} in {folder}: it is not a folder.")
    if not (folder / RECORD).is_file():
        raise LabError(
            f"{folder} holds no whole {kind}: {RECORD} is missing. Give the folder that save_pretrained wrote."
        )
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        found = record["kind"]
    except (ValueError, KeyError, TypeError) as error:
        raise LabError(f"{folder / RECORD} is damaged ({type(error).__name__}: {error}).") from None
    if found != kind:
        raise LabError(f"{folder} holds a {found}, not a {kind}.")
    try:
        own = load_file(folder / HEAD)
        body, info = AutoModel.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, use_safetensors=True,
            dtype=dtype or torch.float32, attn_implementation="sdpa", output_loading_info=True,
        )  # fmt: skip
        has_tokenizer = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
        tokenizer = None
        if has_tokenizer:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise LabError(f"The {kind} in {folder} cannot be read ({type(error).__name__}: {reason}).") from None
    if info["missing_keys"]:
        raise LabError(f"The {kind} in {folder} lacks weights of its body, {sorted(info['missing_keys'])[0]} first.")
    check_weights(own.items(), lambda name: str(folder / HEAD))
    check_weights(body.named_parameters(), lambda name: file_with_weight(folder, name, str(folder)))
    return body, own, record, tokenizer


def load_head(module: nn.Module, own: dict[str, Tensor], folder: Path | str) -> None:
    """Copy the tensors that are not the body's into `module`.

    Raises:
        LabError: names or shapes that are not the module's.
    """
    wanted = {name: t for name, t in module.state_dict().items() if not name.startswith("body.")}
    if {n: t.shape for n, t in wanted.items()} != {n: t.shape for n, t in own.items()}:
        raise LabError(
            f"{Path(folder) / HEAD} holds {sorted(own)}, which does not fit its body (needs {sorted(wanted)})."
        )
    module.load_state_dict(own, strict=False)
