"""A slide that cannot be shown is refused when the deck is built, with its name and what is wrong with it."""

from __future__ import annotations

import dataclasses

import pytest

from rlhf_lab.errors import LabError
from slides import schema as f
from slides.schema import (
    Block,
    Bullets,
    Columns,
    Deck,
    Equation,
    ExplorerPart,
    Flow,
    Quote,
    Slide,
    Step,
    T,
    Table,
    Text,
)

WORDS = T("a sentence", "一句话")
LATIN = T(*2 * ("a rather long sentence that somebody wrote down here",))
TEXT, LIVE = Text(WORDS), ExplorerPart("rejection")


def slide(key: str = "one", *parts: f.Part, **more: object) -> Slide:
    made = Slide(key, WORDS, parts or (Text(WORDS),), T("say this", "这样讲"))
    return dataclasses.replace(made, **more)  # type: ignore[arg-type]


def deck(*slides: Slide, lecture: int = 1) -> Deck:
    return Deck(WORDS, (Block("block", WORDS, slides, lecture),))


def test_a_sound_deck_is_returned_as_it_came() -> None:
    made = deck(slide("one"), *f.question("q", WORDS, (Bullets(WORDS),), (Text(WORDS),), WORDS, WORDS))
    assert f.check(made) is made
    assert [s.kind for _, s in made.slides()] == ["slide", "question", "answer"]


REFUSED = {
    "two slides of one key": (deck(slide("one"), slide("one")), "already used"),
    "a key with a space": (deck(slide("two words")), "lower-case letters"),
    "no Chinese": (deck(slide("one", Text(LATIN))), "no Chinese characters"),
    "an empty language": (deck(slide("one", Text(T("", "有")))), "text in en is missing"),
    "half a formula": (deck(slide("one", Text(T("costs $5", "五元")))), "dollar"),
    "dollars in an equation": (deck(slide("one", Equation("$x$"))), "without dollar signs"),
    "no notes": (deck(slide("one", notes=T(" ", "有"))), "notes"),
    "no time": (deck(slide("one", minutes=0)), "minutes"),
    "two explorers": (deck(slide("one", ExplorerPart("rejection"), ExplorerPart("trajectories"))), "2 explorers"),
    "an explorer in each column": (deck(slide("one", Columns((LIVE,), (LIVE,)))), "2 explorers"),
    "columns in columns": (deck(slide("one", Columns((Columns((TEXT,), (TEXT,)),), (TEXT,)))), "cannot contain"),
    "a question without its answer": (deck(slide("one", kind="question"), slide("two")), "is not its answer"),
    "a row too short": (deck(slide("one", Table(("a", "b"), (("1",),), WORDS))), "1 cells for 2 columns"),
    "a flow of one box": (deck(slide("one", Flow(Step(WORDS)))), "1 boxes"),
    "a quotation without source": (deck(slide("one", Quote(WORDS, " "))), "source"),
    "a slide of nothing": (deck(dataclasses.replace(slide("one"), parts=())), "no parts"),
    "a third lecture": (deck(slide("one"), lecture=3), "1 or 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_shown_is_refused_by_name(name: str) -> None:
    made, words = REFUSED[name]
    with pytest.raises(LabError, match=words) as error:
        f.check(made)
    assert "one" in str(error.value) or "block" in str(error.value) or "two words" in str(error.value)
