"""Text worlds with a gold reward that anyone can read: sentiment, summaries, dialogue, translation.

world = text.load("summaries")
world.examples("train", 3)                          # prompts and targets of mixed quality, made by seed
world.gold([example.prompt], [example.target])      # what an answer is worth
load_language_model(str(text.shipped("gpt2")))      # a small model that speaks all four
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from rlhf_lab.errors import LabError
from rlhf_lab.worlds.text import dialogue, sentiment, summaries, translation
from rlhf_lab.worlds.text.text_world import SIZES, Example, TextWorld
from rlhf_lab.worlds.text.translation import Translation

__all__ = ["SIZES", "WORLDS", "Example", "TextWorld", "Translation", "load", "shipped"]

WORLDS: dict[str, Callable[..., TextWorld]] = {
    "sentiment": sentiment.world,
    "summaries": summaries.world,
    "dialogue": dialogue.world,
    "translation": translation.world,
}
"""By name; each takes a seed."""


def load(name: str, seed: int = 0) -> TextWorld:
    """A text world by name.

    Args:
        name: sentiment, summaries, dialogue or translation.
        seed: of all its texts; the shipped models learned those of seed 0.

    Raises:
        LabError: there is no such world; the message names those there are.
    """
    if name not in WORLDS:
        near = difflib.get_close_matches(name, WORLDS, 1)
        raise LabError(
            f"There is no text world '{name}'; there are {', '.join(WORLDS)}."
            + (f" Do you mean {near[0]}?" if near else "")
        )
    return WORLDS[name](seed)


def shipped(name: str) -> Path:
    """The folder of a shipped model that speaks these worlds: `gpt2` or `pythia`.

    Raises:
        LabError: no such model, or its folder is not there.
    """
    from rlhf_lab.policies.loading import shipped_folder

    return shipped_folder(name)
