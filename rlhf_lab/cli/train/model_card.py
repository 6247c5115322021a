"""The README of an output folder: what was done, with what, to what, and what came out. Read by the Hub as well."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rlhf_lab

WHAT = {
    "sft": "A language model fine-tuned on targets",
    "reward-model": "A reward model fitted to preferences by Bradley-Terry",
    "ranker": "A pairwise ranker fitted to preferences",
    "dpo": "A language model fitted to preferences by DPO",
    "kto": "A language model fitted to desirable and undesirable responses by KTO",
    "ppo": "A language model trained on a reward by PPO",
    "rso": "A language model fitted to pairs from statistical rejection sampling (RSO)",
    "raft": "A language model fine-tuned on the best of its own samples (RAFT)",
    "rest": "A language model trained by reinforced self-training (ReST)",
    "iterated-dpo": "A language model fitted to preferences between its own responses, in rounds",
    "rloo": "A language model trained on a reward by RLOO",
    "grpo": "A language model trained on a reward by GRPO",
}


def model_card(
    method: str,
    record: dict[str, Any],
    model: str,
    data: str,
    said: Sequence[str],
    history: list[dict[str, float]],
    device: str,
    seconds: float,
    loads_with: str,
) -> str:
    """The card, with the Hub's metadata on top.

    Args:
        method: the command's word.
        record: the settings, as run.json has them.
        model: what it started from.
        data: where the data came from.
        said: what was found out about the data, a line each.
        history: of the training.
        device: where it ran.
        seconds: how long it took since it was started or resumed.
        loads_with: a sentence that says how to read the result.
    """
    import torch
    import transformers

    rows = [f"| {name} | {value} |" for name, value in flat(record) if value not in (None, []) and name != "method"]
    last = {k: f"{v:.4g}" for k, v in history[-1].items()} if history else {}
    return "\n".join(
        [
            *_metadata(method, model, data),
            f"# {WHAT[method]}",
            "",
            f"`{model}`, with data from `{data}`, by `rlhf-lab train {method}` of rlhf_lab {rlhf_lab.__version__} "
            f"(torch {torch.__version__}, transformers {transformers.__version__}, {device}; {seconds:,.0f} s).",
            loads_with,
            "`rlhf-lab train " + method + " --config settings.yaml --out NEW` does the same again.",
            "",
            "## Data",
            *[f"- {line}" for line in said],
            "",
            "## Settings",
            "| setting | value |",
            "|---|---|",
            *rows,
            "",
            "## Last step",
            *[f"- {name}: {value}" for name, value in last.items()],
            "",
            "Nothing was evaluated: this says what was done, not how good it is (`rlhf-lab evaluate` measures). The "
            "licences of the model and the data hold for the result.",
            "",
        ]
    )


def pairs_card(settings: dict[str, Any], model: str, data: str, said: Sequence[str], count: int) -> str:
    """The card of a set of preference pairs that the lab made."""
    rows = [f"| {name} | {value} |" for name, value in flat(settings) if value is not None]
    return "\n".join(
        [
            "---",
            "configs:",
            "- config_name: default",
            "  data_files: pairs.parquet",
            "tags:",
            "- rlhf_lab",
            "- preference",
            "---",
            "# Preference pairs",
            "",
            f"{count:,} pairs in the columns `prompt`, `chosen`, `rejected`, as TRL's trainers take them. Both "
            f"responses were drawn from `{model}` for prompts of `{data}` and labelled by a reward, not by a person "
            f"(rlhf_lab {rlhf_lab.__version__}). `datasets.load_dataset(FOLDER)` reads them.",
            "",
            *[f"- {line}" for line in said],
            "",
            "| setting | value |",
            "|---|---|",
            *rows,
            "",
        ]
    )


def _metadata(method: str, model: str, data: str) -> list[str]:
    """The Hub's YAML head; only names that are the Hub's are given as such."""
    from rlhf_lab.data.readers import is_local
    from rlhf_lab.policies.hub_lookup import is_hub_name
    from rlhf_lab.policies.loading import SHIPPED, SMOLLM2

    head = ["---", "library_name: transformers"]
    if is_hub_name(model) and not Path(model).exists() and model not in SHIPPED and model != SMOLLM2:
        head.append(f"base_model: {model}")
    if is_hub_name(data) and not is_local(data):
        head += ["datasets:", f"- {data}"]
    return [*head, "tags:", "- rlhf_lab", f"- {method}", "---", ""]


def flat(record: dict[str, Any], key: str = "") -> list[tuple[str, Any]]:
    """Nested settings as (name.of.it, value)."""
    out = []
    for name, value in record.items():
        whole = f"{key}.{name}" if key else name
        out += flat(value, whole) if isinstance(value, dict) else [(whole, value)]
    return out
