"""The default of `sampling_batch_size`: as many prompts at the same time as fit into 1 GiB while they are sampled.

The number of prompts decides the random numbers of each sample. It may therefore depend only on the model and the
settings, not on the machine or on other programs. It is written to run.json and settings.yaml like a given setting.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rlhf_lab.cli.resource_estimate import MethodCost, Shape, Workload, sampling_memory

MEMORY = 2**30
"""Bytes for the keys, values and logits of the responses that are sampled at the same time."""
MOST = 512
"""Largest number of prompts."""


def with_sampling_batch(settings: Any, config: Any, limits: tuple[int, int]) -> Any:
    """Return `settings` with a number for `sampling_batch_size`, if it is a setting of the method and not given.

    Args:
        settings: of a `train` command.
        config: the model's configuration.
        limits: maximum lengths of a prompt and of a response, in tokens.
    """
    for name, responses in RESPONSES.items():
        group = getattr(settings, name, None)
        if group is not None and group.sampling_batch_size is None and getattr(group, "source", "") != "direct":
            fitting = sampling_batch_size(config, responses(group), limits)
            return replace(settings, **{name: replace(group, sampling_batch_size=fitting)})
    return settings


RESPONSES: dict[str, Callable[[Any], int]] = {
    "rso": lambda rso: rso.candidates if rso.source == "rso-sample-rank" else rso.accepted,
    "raft": lambda raft: raft.best_of,
    "rest": lambda rest: rest.samples,
}
"""Responses to each prompt, for methods that sample before they train."""


def sampling_batch_size(config: Any, responses: int, limits: tuple[int, int]) -> int:
    """Return how many prompts fit into `MEMORY` while `responses` responses to each are sampled, from 1 to `MOST`."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    shape = Shape("", config.num_hidden_layers, config.hidden_size, heads, config.vocab_size, 0, kv_heads=kv_heads)
    each = sampling_memory(Workload(shape, MethodCost(1, samples_per_prompt=responses), 1, *limits))
    return max(1, min(MEMORY // sum(each.values()), MOST))
