"""Preference pairs that a method made, in the form of the ecosystem: a data set with prompt, chosen, rejected.

pairs/pairs.parquet      the texts; `datasets.load_dataset(FOLDER)` and TRL's trainers take them
pairs/ids.safetensors    the ids as they were drawn, from which a resumed run goes on
pairs/README.md          what they are
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from rlhf_lab.batch import Pairs, Tokens


def save_pairs(pairs: Pairs, tokenizer: Any, folder: Path, card: str) -> None:
    """Write a data set of pairs, all of it or nothing.

    Args:
        pairs: N pairs.
        tokenizer: writes their texts, special tokens left out.
        folder: where to.
        card: the README's text.
    """
    import datasets

    def texts(rows: Tokens) -> list[str]:
        return tokenizer.batch_decode(rows.tolist(), skip_special_tokens=True)

    chosen, rejected = (
        Tokens(pairs.responses.ids[:, place], pairs.responses.mask[:, place]).to("cpu") for place in (0, 1)
    )
    columns = {"prompt": texts(pairs.prompts), "chosen": texts(chosen), "rejected": texts(rejected)}
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    datasets.Dataset.from_dict(columns).to_parquet(str(part / "pairs.parquet"))
    (part / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
