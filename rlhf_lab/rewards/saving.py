"""Saves and loads models with a head: reward models, critics and rankers.

    config.json, model.safetensors    the body, which AutoModel.from_pretrained(folder) can read
    head.safetensors                  the head, and all other parameters outside the body
    reward.json                       the kind of model; written last, so that an incomplete folder is recognised
    tokenizer.json, …                 the tokenizer, if there is one

Nothing is pickled, and no code from the folder is run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_lab.errors import LabError, check_path, check_weights
from rlhf_lab.policies.loading import REWARD_RECORD, check_same_vocabulary, file_with_weight
from rlhf_lab.policies.lora import merged_body

HEAD, RECORD = "head.safetensors", REWARD_RECORD


def save(module: nn.Module, folder: Path | str, kind: str, tokenizer: Any = None, **record: Any) -> None:
    """Write `module`, which has a `body`, to `folder`. LoRA adapters are merged into the body that is written.

    Args:
        module: a module with an attribute `body`, and further parameters.
        folder: created if it does not exist.
        kind: "reward model", "critic" or "pairwise ranker".
        tokenizer: saved in the same folder.
        record: further values for `reward.json`.
    """
    from safetensors.torch import save_file

    folder = check_path(folder, "folder")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).unlink(missing_ok=True)
    body: Any = merged_body(module.body)  # type: ignore[arg-type]
    body.save_pretrained(folder)
    own = {name: t for name, t in module.state_dict().items() if not name.startswith("body.")}
    save_file({name: t.detach().contiguous().clone() for name, t in own.items()}, folder / HEAD)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    with (folder / RECORD).open("w", encoding="utf-8") as file:
        json.dump({"kind": kind, **record}, file, indent=2)


def load(
    folder: Path | str, kind: str, dtype: torch.dtype | None = None, policy_tokenizer: Any = None
) -> tuple[Any, dict[str, Tensor], dict[str, Any], Any]:
    """Load what `save` wrote.

    Args:
        folder: a folder written by `save`.
        kind: the kind of model that is expected.
        dtype: of the body's weights; None for float32.
        policy_tokenizer: the tokenizer of the policy whose responses the model will read; None checks nothing.

    Returns:
        The body, the other tensors, the record, and the tokenizer (None if none was saved).

    Raises:
        LabError: there is no such folder, it contains another kind of model, or a file is missing or damaged,
            or the policy has another vocabulary.
    """
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoTokenizer

    folder = check_path(folder, "folder")
    if not folder.is_dir():
        raise LabError(f"There is no {kind} in {folder}, because it is not a folder. Correct the path.")
    if not (folder / RECORD).is_file():
        raise LabError(
            f"{folder} contains no complete {kind}: {RECORD} is missing. Give the folder that save_pretrained wrote."
        )
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        found = record["kind"]
    except (ValueError, KeyError, TypeError) as error:
        raise LabError(f"{folder / RECORD} is damaged ({type(error).__name__}: {error}).") from None
    if found != kind:
        raise LabError(f"{folder} contains a {found}, not a {kind}. Give another folder.")
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
        raise LabError(
            f"Weights are missing in the body of the {kind} in {folder}, for example "
            f"{sorted(info['missing_keys'])[0]}. Save it again with save_pretrained."
        )
    check_weights(own.items(), lambda name: str(folder / HEAD))
    check_weights(body.named_parameters(), lambda name: file_with_weight(folder, name, str(folder)))
    if tokenizer is not None and policy_tokenizer is not None:
        names = f"The policy {policy_tokenizer.name_or_path}".rstrip(), f"the {kind} in {folder}"
        check_same_vocabulary(policy_tokenizer, tokenizer, *names, may_have_more=True)
    return body, own, record, tokenizer


def load_head(module: nn.Module, own: dict[str, Tensor], folder: Path | str) -> None:
    """Copy the tensors outside the body into `module`.

    Args:
        module: with a body of the same size.
        own: the tensors, from `load`.
        folder: where they were loaded from, for the message.

    Raises:
        LabError: the names or shapes differ from those of the module.
    """
    wanted = {name: t for name, t in module.state_dict().items() if not name.startswith("body.")}
    if {n: t.shape for n, t in wanted.items()} != {n: t.shape for n, t in own.items()}:
        raise LabError(
            f"{Path(folder) / HEAD} contains {sorted(own)}, which does not fit its body (expected {sorted(wanted)})."
        )
    module.load_state_dict(own, strict=False)
