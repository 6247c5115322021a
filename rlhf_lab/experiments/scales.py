"""The table of scales: a scale's name → how its set-ups are made, its usual budget, its words, its look in pictures.

A new scale is one entry of `SCALES`. Every name that is not in the table is that of a language model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from rlhf_lab.experiments.setup import Setup, SetupBudget
from rlhf_lab.experiments.setup_exact import ExactSetup, random_world
from rlhf_lab.experiments.setup_text import BUDGET, TextSetup, text_task

Column = Literal["bandit", "tree", "small"]


@dataclass(frozen=True)
class Scale:
    """How set-ups of one scale are made, and how the scale is called and drawn.

    Attributes:
        make: (budget, seed, text world) → the set-up. A finite scale draws a world of its own for each seed and does
            not use the text world.
        budget: the usual budget.
        exact: whether π* and every evaluation are exact.
        column: the column of `settings.PerScale` whose defaults a claim has on this scale. A claim that runs on that
            scale also runs on this one.
        words: its name in texts.
        short: its name on an axis.
        look: its colour (Okabe and Ito) and its marker in `claims_forest`.
    """

    make: Callable[[SetupBudget, int, str], Setup]
    budget: SetupBudget
    exact: bool
    column: Column
    words: str = ""
    short: str = ""
    look: tuple[str, str] = ("#727272", "^")


def _exact(name: Column, budget: SetupBudget, *words_and_look: Any) -> Scale:
    def make(budget: SetupBudget, seed: int, world: str) -> Setup:
        return ExactSetup(random_world(name, seed), budget, seed)

    return Scale(make, budget, True, name, *words_and_look)


def _language_model(name: str, *words_and_look: Any) -> Scale:
    def make(budget: SetupBudget, seed: int, world: str) -> Setup:
        return TextSetup(text_task(name, world), budget, seed)

    return Scale(make, BUDGET, False, "small", *words_and_look)


SCALES: dict[str, Scale] = {
    "bandit": _exact("bandit", SetupBudget(), "bandit", "bandit", ("#0072B2", "o")),
    "tree": _exact("tree", SetupBudget(labels=20_000), "token tree", "tree", ("#D55E00", "s")),
    "small": _language_model("small", "small language model", "language model", ("#009E73", "D")),
}
"""Every scale by its name, in the order of tables. Their results are saved; `small` is the language model that ships
with the package."""


def scale_of(name: str) -> Scale:
    """The scale of a name: an entry of `SCALES`, or else the language model of that name."""
    return SCALES.get(name) or _language_model(name, name, name)


def set_up(scale: str, seed: int, text_world: str = "sentiment", **budget: Any) -> Setup:
    """Make the set-up of one seed.

    Args:
        scale: its name.
        seed: of the labels, the prompts, the reward model and the fits; on a finite scale also of the world.
        text_world: which text world a language model answers.
        **budget: fields of `SetupBudget` that differ from the scale's usual budget.
    """
    entry = scale_of(scale)
    return entry.make(replace(entry.budget, **budget), seed, text_world)
