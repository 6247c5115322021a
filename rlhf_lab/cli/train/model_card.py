"""Model cards: the README.md of an output folder, which the Hub can read too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rlhf_lab
from rlhf_lab.errors import count_of

WHAT = {
    "sft": "A language model fine-tuned on target responses (SFT)",
    "reward-model": "A reward model fitted to preference pairs by the Bradley-Terry likelihood",
    "ranker": "A pairwise ranker fitted to preference pairs",
    "dpo": "A language model trained on preference pairs with DPO",
    "kto": "A language model trained on desirable and undesirable responses with KTO",
    "ppo": "A language model trained on a reward with PPO",
    "rso": "A language model trained on pairs from statistical rejection sampling (RSO)",
    "raft": "A language model fine-tuned on its best samples (RAFT)",
    "rest": "A language model trained by reinforced self-training (ReST)",
    "iterated-dpo": "A language model trained with DPO in rounds on its labelled responses",
    "rloo": "A language model trained on a reward with RLOO",
    "grpo": "A language model trained on a reward with GRPO",
}


def model_card(
    method: str,
    record: dict[str, Any],
    model: str,
    data: Sequence[str],
    said: Sequence[str],
    history: list[dict[str, float]],
    device: str,
    seconds: float,
    loads_with: str,
) -> str:
    """Return the model card, with the Hub's metadata on top.

    Args:
        method: the name of the method on the command line.
        record: the settings, as in run.json.
        model: the model before training.
        data: the names of the data.
        said: lines about the data.
        history: the history of the training.
        device: the device of the run.
        seconds: time since the run was started or resumed.
        loads_with: a sentence on how to load the result.
    """
    import torch
    import transformers

    rows = [f"| {name} | {value} |" for name, value in flat(record) if value not in (None, []) and name != "method"]
    # The last measurement on held-out data follows the last step in the history.
    ends = history[-2:] if history and "loss" not in history[-1] else history[-1:]
    last = {k: f"{v:.4g}" for row in ends for k, v in row.items()}
    return "\n".join(
        [
            *_metadata(method, model, data),
            f"# {WHAT[method]}",
            "",
            f"Made from `{model}` with data from {_named(data)} by `rlhf-lab train {method}` (rlhf_lab "
            f"{rlhf_lab.__version__}, torch {torch.__version__}, transformers {transformers.__version__}, {device}; "
            f"{seconds:,.0f} s).",
            loads_with,
            f"`rlhf-lab train {method} --config settings.yaml --out NEW` repeats the run.",
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
            "The model has not been evaluated. `rlhf-lab evaluate` measures it. The licences of the original model and "
            "of the data apply to the result.",
            "",
        ]
    )


def pairs_card(settings: dict[str, Any], model: str, data: Sequence[str], said: Sequence[str], count: int) -> str:
    """Return the card of a data set of preference pairs that the lab made."""
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
            f"{count_of(count, 'pair')} in the columns `prompt`, `chosen` and `rejected`, which TRL's trainers read. "
            f"Both responses were sampled from `{model}` for prompts of {_named(data)} and labelled by a reward and "
            f"not by a person (rlhf_lab {rlhf_lab.__version__}). `datasets.load_dataset(FOLDER)` reads the pairs.",
            "",
            *[f"- {line}" for line in said],
            "",
            "| setting | value |",
            "|---|---|",
            *rows,
            "",
        ]
    )


def _named(data: Sequence[str]) -> str:
    return " and ".join(f"`{name}`" for name in data)


def _metadata(method: str, model: str, data: Sequence[str]) -> list[str]:
    """Return the YAML header for the Hub. It contains only names of models and data sets on the Hub."""
    from rlhf_lab.data.readers import is_local
    from rlhf_lab.policies.hub_lookup import is_hub_name
    from rlhf_lab.policies.loading import SHIPPED, SMOLLM2

    head = ["---", "library_name: transformers"]
    if is_hub_name(model) and not Path(model).exists() and model not in SHIPPED and model != SMOLLM2:
        head.append(f"base_model: {model}")
    if found := [name for name in data if is_hub_name(name) and not is_local(name)]:
        head += ["datasets:", *(f"- {name}" for name in found)]
    return [*head, "tags:", "- rlhf_lab", f"- {method}", "---", ""]


def flat(record: dict[str, Any], key: str = "") -> list[tuple[str, Any]]:
    """Return nested settings as pairs (dotted name, value)."""
    out = []
    for name, value in record.items():
        whole = f"{key}.{name}" if key else name
        out += flat(value, whole) if isinstance(value, dict) else [(whole, value)]
    return out
