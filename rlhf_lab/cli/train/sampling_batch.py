"""How many prompts are answered at a time, where the method leaves it open: as many as fit into 1 GiB.

It decides the draws, so it may depend on nothing but model and settings (not on the machine, nor on what else runs
there), and it is written into run.json and settings.yaml like a setting that was given.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rlhf_lab.cli.resource_estimate import Load, Method, Shape, drawing

ROOM = 2**30
"""Bytes for keys, values and logits of the responses that are drawn at a time."""
MOST = 512
"""Prompts at a time however small they are."""


def settle(settings: Any, config: Any, limits: tuple[int, int]) -> Any:
    """`settings` with `sampling_batch_size` a number, where they have that setting and it is None.

    Args:
        settings: of a `train` command.
        config: the model's configuration.
        limits: the longest prompt and response, in tokens.
    """
    for name, number in _DRAWN.items():
        own = getattr(settings, name, None)
        if own is not None and own.sampling_batch_size is None and getattr(own, "source", "") != "direct":
            fitting = sampling_batch_size(config, number(own), limits)
            return replace(settings, **{name: replace(own, sampling_batch_size=fitting)})
    return settings


_DRAWN = {
    "rso": lambda rso: rso.candidates if rso.source == "rso-sample-rank" else rso.accepted,
    "raft": lambda raft: raft.best_of,
    "rest": lambda rest: rest.samples,
}
"""Methods that draw beforehand, and how many responses each prompt gets."""


def sampling_batch_size(config: Any, responses: int, limits: tuple[int, int]) -> int:
    """Prompts whose responses fit into `ROOM` while they are drawn; at least 1, at most `MOST`."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    shape = Shape("", config.num_hidden_layers, config.hidden_size, heads, config.vocab_size, 0, kv_heads=kv_heads)
    each = drawing(Load(shape, Method(1, at_once=responses), 1, *limits))
    return max(1, min(ROOM // sum(each.values()), MOST))
