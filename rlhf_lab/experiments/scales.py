"""The table of scales: a scale's name → how its set-ups are made and which budget its methods usually get.

A new scale is one entry of `SCALES`. Every name that is not in the table is that of a language model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from rlhf_lab.experiments.setup import Budget, Setup
from rlhf_lab.experiments.setup_exact import ExactSetup, random_world
from rlhf_lab.experiments.setup_text import BUDGET, TextSetup, text_task


@dataclass(frozen=True)
class Scale:
    """How set-ups of one scale are made.

    Attributes:
        make: (budget, seed, text world) → the set-up. A finite scale draws a world of its own for each seed and does
            not use the text world.
        budget: the usual budget.
        exact: whether π* and every evaluation are exact.
    """

    make: Callable[[Budget, int, str], Setup]
    budget: Budget
    exact: bool


def _exact(name: str, budget: Budget) -> Scale:
    return Scale(lambda given, seed, _: ExactSetup(random_world(name, seed), given, seed), budget, exact=True)


def _language_model(name: str) -> Scale:
    return Scale(lambda given, seed, world: TextSetup(text_task(name, world), given, seed), BUDGET, exact=False)


SCALES: dict[str, Scale] = {
    "bandit": _exact("bandit", Budget()),
    "tree": _exact("tree", Budget(labels=20_000)),
    "small": _language_model("small"),
}
"""Every scale by its name; `small` is the language model that ships."""


def scale_of(name: str) -> Scale:
    """The scale of a name: an entry of `SCALES`, or else the language model of that name."""
    return SCALES.get(name) or _language_model(name)


def set_up(scale: str, seed: int, text_world: str = "sentiment", **budget: Any) -> Setup:
    """Make the set-up of one seed.

    Args:
        scale: its name.
        seed: of the labels, the prompts, the reward model and the fits; on a finite scale also of the world.
        text_world: which text world a language model answers.
        **budget: fields of `Budget` that differ from the scale's usual budget.
    """
    entry = scale_of(scale)
    return entry.make(replace(entry.budget, **budget), seed, text_world)
