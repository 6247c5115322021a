"""Text worlds with a gold reward that is a short function: sentiment, summaries, dialogue and translation.

world = text.load("summaries")
world.examples("train", 3)                          # prompts with targets of varying quality
world.gold([example.prompt], [example.target])      # their gold rewards
load_language_model(str(text.shipped("gpt2")))      # a small model that was trained on all four worlds
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from rlhf_lab.errors import LabError
from rlhf_lab.worlds.text import dialogue, sentiment, summaries, translation
from rlhf_lab.worlds.text.text_world import SIZES, TextExample, TextWorld
from rlhf_lab.worlds.text.translation import Translation

__all__ = ["SIZES", "WORLDS", "TextExample", "TextWorld", "Translation", "load", "shipped"]

WORLDS: dict[str, Callable[..., TextWorld]] = {
    "sentiment": sentiment.world,
    "summaries": summaries.world,
    "dialogue": dialogue.world,
    "translation": translation.world,
}
"""The function that makes each world from a seed, by the world's name."""


def load(name: str, seed: int = 0) -> TextWorld:
    """Make a text world.

    Args:
        name: sentiment, summaries, dialogue or translation.
        seed: seed of all its texts. The shipped models were trained on seed 0.

    Raises:
        LabError: there is no world of this name.
    """
    if name not in WORLDS:
        near = difflib.get_close_matches(name, WORLDS, 1)
        raise LabError(
            f"There is no text world '{name}'. The text worlds are {', '.join(WORLDS)}."
            + (f" Do you mean {near[0]}?" if near else "")
        )
    return WORLDS[name](seed)


def shipped(name: str) -> Path:
    """The folder of a shipped model that was trained on these worlds: `gpt2` or `pythia`.

    Raises:
        LabError: there is no model of this name, or its folder is missing.
    """
    from rlhf_lab.policies.loading import shipped_folder

    return shipped_folder(name)
