"""Write preference pairs that a method made, as a data set with the columns prompt, chosen and rejected.

pairs/pairs.parquet    the texts, which `datasets.load_dataset(FOLDER)` and TRL's trainers read
pairs/README.md        the data set's card
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from rlhf_lab.batch import Pairs, Tokens


def save_pairs(pairs: Pairs, tokenizer: Any, folder: Path, card: str) -> None:
    """Write a data set of pairs, completely or not at all.

    Args:
        pairs: N pairs.
        tokenizer: decodes them, without special tokens.
        folder: the folder to write.
        card: the text of the README.
    """
    import datasets

    def texts(rows: Tokens) -> list[str]:
        return list(tokenizer.batch_decode(rows.tolist(), skip_special_tokens=True))

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
