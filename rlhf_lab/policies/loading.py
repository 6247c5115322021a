"""A causal language model and its tokenizer from a folder or the Hub, or one sentence that says why not.

Weights are read from safetensors only: the older `.bin` files are pickles, which run code when read. No code of
a repository is run either. Weights come as float32, because training in half precision loses small updates.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rlhf_lab.checks import LabError
from rlhf_lab.policies import hub


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is a GPU if there is one, else the CPU; other names as torch knows them.

    Raises:
        LabError: the name means nothing to torch, or names a device that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        there = "cpu" + (", cuda" if torch.cuda.is_available() else "; torch finds no GPU here")
        raise LabError(f"The device '{name}' cannot be used. Use one of: auto, {there}.") from None
    return device


def check_language_model(name_or_path: str, revision: str | None = None) -> bool:
    """Find out, without loading anything, whether a model can be had.

    Returns:
        True if the network may be used to load it.

    Raises:
        LabError: there is no such folder, it lacks a file, or the Hub has none of that name.
    """
    path = Path(name_or_path).expanduser()
    if path.exists():
        _check_folder(path)
        return False
    if not hub.is_hub_name(name_or_path):
        raise LabError(f"There is no model folder {name_or_path}, and it is no name on the Hub either.")
    return hub.reachable("model", name_or_path, revision)


def load_tokenizer(name_or_path: str, revision: str | None = None) -> Any:
    """The tokenizer beside a model. Its padding token is not needed: masks come from lengths.

    Raises:
        LabError: it cannot be had, or it has no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    tokenizer = _load(AutoTokenizer, name_or_path, revision, "tokenizer")
    if tokenizer.eos_token_id is None:
        raise LabError(
            f"The tokenizer of {name_or_path} has no end-of-sequence token, so a response could not end. Set "
            f'"eos_token" in its tokenizer_config.json to the token that ends a text.'
        )
    return tokenizer


def load_config(name_or_path: str, revision: str | None = None) -> Any:
    """The model's configuration: its context's length, its vocabulary.

    Raises:
        LabError: it cannot be had, or is not one of a causal language model.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = _load(AutoConfig, name_or_path, revision, "configuration")
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise LabError(f"{name_or_path} is a '{config.model_type}' model, not a causal language model such as GPT-2.")
    return config


def load_language_model(
    name_or_path: str,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer.

    Args:
        name_or_path: a folder as `save_pretrained` writes it, or a name on the Hub.
        device: where to put it; None for a GPU if there is one.
        dtype: number type of the weights; None for float32.
        revision: branch, tag or commit on the Hub.

    Returns:
        the model in eval mode, and the tokenizer.

    Raises:
        LabError: it cannot be reached, a file is missing or damaged, weights are missing, the tokenizer has no
            end token or more tokens than the model.
    """
    from transformers import AutoModelForCausalLM

    device = pick_device("auto") if device is None else torch.device(device)
    tokenizer = load_tokenizer(name_or_path, revision)
    load_config(name_or_path, revision)
    model, info = _load(
        AutoModelForCausalLM,
        name_or_path,
        revision,
        "model",
        dtype=dtype or torch.float32,
        use_safetensors=True,
        attn_implementation="sdpa",
        output_loading_info=True,
    )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise LabError(
            f"The weights of {name_or_path} lack {len(missing)} of the model's tensors, {missing[0]} first: it is not "
            f"a whole causal language model (perhaps its body alone was saved)."
        )
    if len(tokenizer) > model.config.vocab_size:
        raise LabError(
            f"The tokenizer of {name_or_path} has {len(tokenizer)} tokens, its model knows {model.config.vocab_size}: "
            f"they do not belong together, or tokens were added without model.resize_token_embeddings."
        )
    return model.to(device).eval(), tokenizer


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        raise LabError(f"{path} is a file; a model is a folder with config.json, *.safetensors and a tokenizer.")
    if not (path / "config.json").is_file():
        raise LabError(f"The model folder {path} has no config.json: give the folder that save_pretrained wrote.")
    if not any(path.glob("*.safetensors")):
        pickled = any(path.glob("*.bin"))
        raise LabError(
            f"The model folder {path} has no *.safetensors"
            + (
                "; its .bin weights are pickles, which are not read: load them where you trust them and save them "
                "again with save_pretrained."
                if pickled
                else " file with weights."
            )
        )
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        raise LabError(f"The model folder {path} has no tokenizer: save it there with tokenizer.save_pretrained.")


def _load(factory: Any, name_or_path: str, revision: str | None, what: str, **more: Any) -> Any:
    online = check_language_model(name_or_path, revision)
    path = Path(name_or_path).expanduser()
    local = path.is_dir()
    try:
        return factory.from_pretrained(
            str(path) if local else name_or_path,
            revision=revision or "main",
            trust_remote_code=False,
            local_files_only=not online,
            **more,
        )
    except Exception as error:
        if not local and not online and isinstance(error, OSError):
            raise hub.unreachable("model", name_or_path) from None
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise LabError(f"The {what} of {name_or_path} cannot be loaded ({type(error).__name__}: {reason})") from None
