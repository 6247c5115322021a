"""Data classes of the lecture slides (deck, block, slide and its parts) and the checks on them.

Every text is stored in two languages. A block of the lecture is a file `slides/deck/bNN_name.py` with one `BLOCK`;
`slides/README.md` explains how to write one. `slides/render.py` turns these parts into HTML for both views.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rlhf_lab.errors import LabError
from rlhf_lab.language import LANGUAGES

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


@dataclass(frozen=True)
class T:
    """One text in both languages: light markdown (`**bold**`, `*stress*`, `` `code` ``) and `$mathematics$`."""

    en: str
    zh: str

    def of(self, language: str) -> str:
        """The text in `language`."""
        return str(getattr(self, language))


@dataclass(frozen=True)
class Text:
    """A paragraph. With `step`, it appears at the next key press; with `quiet`, it has the secondary colour."""

    text: T
    step: bool = False
    quiet: bool = False


@dataclass(frozen=True, init=False)
class Bullets:
    """A list: `Bullets(T(…), T(…), steps=True)`. With `steps`, items appear one at a time; `ordered` numbers them."""

    items: tuple[T, ...]
    steps: bool
    ordered: bool

    def __init__(self, *items: T, steps: bool = False, ordered: bool = False) -> None:
        object.__setattr__(self, "items", items)
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "ordered", ordered)


@dataclass(frozen=True)
class Equation:
    r"""A displayed equation, LaTeX as KaTeX knows it, without dollars.

    Attributes:
        tex: the same in both languages. Words inside (`\text{…}`) are translated by `rlhf_lab/chinese.toml`.
        note: a line below the equation.
        step: whether it appears at the next key press.
        big: whether it is set larger, as the main equation of its slide.
    """

    tex: str
    note: T | None = None
    step: bool = False
    big: bool = False


@dataclass(frozen=True)
class DerivationPart:
    """Lines of a derivation of `rlhf_lab.derivations`, one per key press, each with its reason and a computed tick.

    Attributes:
        key: the derivation's key in `rlhf_lab.derivations.library()`.
        reasons: the Chinese reasons, one for each line shown, in order. The English reasons come from the derivation.
        first: the first line shown, counted from 1.
        last: the last line shown; None for the last line of the derivation.
        wrong: also show the plausible wrong versions of these lines, with the computed error.
        mistakes: the Chinese descriptions of the mistakes, one for each wrong line shown.
        worlds: the number of random worlds on which both sides are computed when the slides are built.
    """

    key: str
    reasons: tuple[str, ...] = ()
    first: int = 1
    last: int | None = None
    wrong: bool = False
    mistakes: tuple[str, ...] = ()
    worlds: int = 200


@dataclass(frozen=True)
class ExplorerPart:
    """An explorer: live in the lecture, and drawn from precomputed states on the static page.

    Attributes:
        name: name of a factory in `slides/explorers.py`.
        advice: a short text above the controls, which says what to move.
        at: initial values of controls by name: `{"view": "gradient"}`. Other controls have the factory's values.
        only: the controls that are shown; the others are fixed. Empty means all. With one or two controls a slide is
            easier to read, and the static page, which stores a picture for every combination, has finer steps.
        panels: the panels of the picture that are shown, from 0. Empty means all. Two panels fit side by side.
        stops: maximum number of stops of each slider on the static page; None for as many as the budget allows.
        height: height of the drawing in em (24 px). Change it only if the slide holds more than the explorer.
    """

    name: str
    advice: T | None = None
    at: Mapping[str, Any] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    panels: tuple[int, ...] = ()
    stops: int | None = None
    height: float = 15.5


@dataclass(frozen=True)
class Figure:
    """A picture that is drawn when the slides are built, by a function that returns a matplotlib figure.

    Attributes:
        draw: called without arguments. With `rlhf_lab.figures.style` and about 7 × 3.5 inches, the text is as large
            as the slide's. It must return the same picture each time.
        alt: alternative text: what the picture shows, with its main numbers.
        note: a line below the picture.
    """

    draw: Callable[[], Drawing]
    alt: T
    note: T | None = None


@dataclass(frozen=True)
class Table:
    """A small table: about seven rows at most, so that it can be read from the back of the room.

    Attributes:
        head: the names of the columns.
        rows: cells; a plain string is the same in both languages.
        caption: what the table shows.
        source: the publication from which the numbers are taken, if any.
        strong: indices of the rows that are set bold, from 0.
    """

    head: tuple[T | str, ...]
    rows: tuple[tuple[T | str, ...], ...]
    caption: T
    source: str = ""
    strong: tuple[int, ...] = ()


@dataclass(frozen=True)
class Quote:
    """A short quotation, with our translation in Chinese. `source` is where it was published."""

    text: T
    source: str


@dataclass(frozen=True)
class Step:
    """One box of a `Flow`.

    Attributes:
        title: one to three words.
        text: a line below the title.
        style: key of `figures/style.py` that gives the colour of the box; empty for a neutral colour.
    """

    title: T
    text: T | None = None
    style: str = ""


@dataclass(frozen=True, init=False)
class Flow:
    """Boxes with arrows from left to right: `Flow(Step(…), Step(…), back=T("repeat", "重复"))`.

    `back` adds an arrow with this text from the last box to the first; `steps` shows one box per key press.
    """

    boxes: tuple[Step, ...]
    back: T | None
    steps: bool

    def __init__(self, *boxes: Step, back: T | None = None, steps: bool = False) -> None:
        object.__setattr__(self, "boxes", boxes)
        object.__setattr__(self, "back", back)
        object.__setattr__(self, "steps", steps)


@dataclass(frozen=True)
class Columns:
    """Two columns of parts. `share` is the fraction of the width that the left one takes."""

    left: tuple[Part, ...]
    right: tuple[Part, ...]
    share: float = 0.5


Part = Text | Bullets | Equation | DerivationPart | ExplorerPart | Figure | Table | Quote | Flow | Columns


@dataclass(frozen=True)
class Slide:
    """One slide, which presents one idea.

    Attributes:
        key: its name in links and screenshots: lower-case letters, digits and hyphens, unique in the whole lecture.
        title: where possible, a sentence that states the idea.
        parts: from top to bottom.
        notes: speaker notes: what to say, what to move, which questions to expect. A blank line separates paragraphs.
        minutes: planned time, including the students' questions.
        kind: "slide"; "title" for the opening of the lecture or of a block, set large; "question" and "answer" are
            made by `question`.
        source: a line in the footer, in English; its translation is in `rlhf_lab/chinese.toml`.
    """

    key: str
    title: T
    parts: tuple[Part, ...]
    notes: T
    minutes: float = 2.0
    kind: str = "slide"
    source: str = ""


def question(
    key: str,
    ask: T,
    parts: tuple[Part, ...],
    answer: tuple[Part, ...],
    notes: T,
    answer_notes: T,
    answer_title: T | None = None,
    minutes: tuple[float, float] = (2.0, 1.5),
) -> tuple[Slide, Slide]:
    """A question to the students and, on the next slide, its answer: `*question(…)` among the slides of a block.

    Args:
        key: key of the question's slide; the answer's slide has the key `key-answer`.
        ask: the question, as the title.
        parts: further parts of the question: choices as ordered bullets, an equation, an explorer.
        answer: the parts of the answer's slide.
        notes: speaker notes of the question: how to ask it, and which answers are common.
        answer_notes: speaker notes of the answer.
        answer_title: the answer in a sentence; None repeats the question.
        minutes: planned time of each slide.
    """
    return (
        Slide(key, ask, parts, notes, minutes[0], "question"),
        Slide(f"{key}-answer", answer_title or ask, answer, answer_notes, minutes[1], "answer"),
    )


@dataclass(frozen=True)
class Block:
    """A part of the lecture: a file of `slides/deck/`.

    Attributes:
        key: as for a slide.
        title: shown in the footer of its slides and in the table of contents.
        slides: in order.
        lecture: 1 or 2, the lecture of fifty minutes to which the block belongs.
    """

    key: str
    title: T
    slides: tuple[Slide, ...]
    lecture: int = 1

    @property
    def minutes(self) -> float:
        """Planned time of all its slides."""
        return sum(slide.minutes for slide in self.slides)


@dataclass(frozen=True)
class Deck:
    """The whole lecture: all blocks in order."""

    title: T
    blocks: tuple[Block, ...]

    def slides(self) -> Iterator[tuple[Block, Slide]]:
        """Every slide with its block, in order."""
        for block in self.blocks:
            for slide in block.slides:
                yield block, slide


# --- validation -----------------------------------------------------------------------------------------------

_KEY = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_CHINESE = re.compile(r"[\u3400-\u9fff]")
_KINDS = ("slide", "title", "question", "answer")


def check(deck: Deck) -> Deck:
    """Return `deck` if it can be built.

    Raises:
        LabError: names the slide and its fault: a key that is invalid or occurs twice, a missing language, a picture
            without alternative text, an unpaired dollar sign, a slide without notes or time, a question without its
            answer, or another rule of `slides/README.md` that is broken.
    """
    seen: dict[str, str] = {}
    if not deck.blocks:
        raise LabError("The deck has no block.")
    _both(deck.title, "The deck's title")
    for block in deck.blocks:
        _name(block.key, f"Block {block.key!r}", seen)
        _both(block.title, f"Block {block.key!r}: the title")
        if not block.slides:
            raise LabError(f"Block {block.key!r} has no slides.")
        if block.lecture not in (1, 2):
            raise LabError(f"Block {block.key!r}: lecture must be 1 or 2, not {block.lecture!r}.")
        for i, slide in enumerate(block.slides):
            here = f"Slide {slide.key!r} (block {block.key!r})"
            _name(slide.key, here, seen)
            _slide(slide, here)
            if slide.kind == "question":
                after = block.slides[i + 1] if i + 1 < len(block.slides) else None
                if after is None or after.kind != "answer":
                    raise LabError(f"{here} is a question, but the next slide is not its answer. Use question(…).")
    return deck


def _name(key: str, here: str, seen: dict[str, str]) -> None:
    if not _KEY.fullmatch(key):
        raise LabError(f"{here}: the key must consist of lower-case letters, digits and hyphens.")
    if key in seen:
        raise LabError(f"{here}: the key is already used by {seen[key]}. Every key of slides and blocks is unique.")
    seen[key] = here


def _slide(slide: Slide, here: str) -> None:
    _both(slide.title, f"{here}: the title")
    _both(slide.notes, f"{here}: the notes")
    if slide.kind not in _KINDS:
        raise LabError(f"{here}: kind must be one of {', '.join(_KINDS)}, not {slide.kind!r}.")
    if not 0 < slide.minutes <= 15:
        raise LabError(f"{here}: minutes must be above 0 and at most 15, not {slide.minutes}.")
    if not slide.parts and slide.kind != "title":
        raise LabError(f"{here} has no parts.")
    explorers = [part for part in parts_of(slide) if isinstance(part, ExplorerPart)]
    if len(explorers) > 1:
        raise LabError(f"{here} has {len(explorers)} explorers; a slide may have one.")
    for part in parts_of(slide):
        _part(part, f"{here}, {type(part).__name__}")


def parts_of(slide: Slide) -> Iterator[Part]:
    """Every part of a slide, including those in columns."""
    for part in slide.parts:
        yield part
        if isinstance(part, Columns):
            yield from part.left
            yield from part.right


def texts_of(part: Any) -> Iterator[T]:
    """Every text of a part, without the parts inside its columns."""
    if isinstance(part, T):
        yield part
    elif isinstance(part, tuple):
        for one in part:
            yield from texts_of(one)
    elif isinstance(part, Step):
        yield from texts_of((part.title, part.text))
    elif not isinstance(part, Columns) and hasattr(part, "__dataclass_fields__"):
        for name in part.__dataclass_fields__:
            yield from texts_of(getattr(part, name))


def _part(part: Part, here: str) -> None:
    for text in texts_of(part):
        _both(text, here)
    if isinstance(part, Bullets) and not part.items:
        raise LabError(f"{here} has no items.")
    if isinstance(part, Equation) and (not part.tex.strip() or "$" in part.tex):
        raise LabError(f"{here}: tex must be LaTeX without dollar signs, not {part.tex!r}.")
    if isinstance(part, Figure) and not callable(part.draw):
        raise LabError(f"{here}: draw must be a function without arguments.")
    if isinstance(part, Table):
        _table(part, here)
    if isinstance(part, Quote) and not part.source.strip():
        raise LabError(f"{here} needs its source.")
    if isinstance(part, Flow) and not 2 <= len(part.boxes) <= 5:
        raise LabError(f"{here} has {len(part.boxes)} boxes; two to five fit a slide.")
    if isinstance(part, Columns):
        _columns(part, here)
    if isinstance(part, DerivationPart):
        for words in (*part.reasons, *part.mistakes):
            if not words.strip():
                raise LabError(f"{here} ({part.key}): an empty reason.")
            _dollars(words, here)


def _table(part: Table, here: str) -> None:
    for number, row in enumerate(part.rows):
        if len(row) != len(part.head):
            raise LabError(f"{here}: row {number} has {len(row)} cells for {len(part.head)} columns.")


def _columns(part: Columns, here: str) -> None:
    if not 0.2 <= part.share <= 0.8:
        raise LabError(f"{here}: share must lie between 0.2 and 0.8, not {part.share}.")
    if any(isinstance(one, Columns) for one in (*part.left, *part.right)):
        raise LabError(f"{here}: columns cannot contain columns.")


def _both(text: T, here: str) -> None:
    for language in LANGUAGES:
        words = text.of(language)
        if not isinstance(words, str) or not words.strip():
            raise LabError(f"{here}: the text in {language} is missing ({text!r}).")
        _dollars(words, here)
    # A name or a formula may be the same in both languages, but a sentence may not.
    plain = re.sub(r"\$[^$]*\$|`[^`]*`", "", text.zh)
    if not _CHINESE.search(plain) and len(re.findall(r"[A-Za-z]{2,}", plain)) > 6:
        raise LabError(f"{here}: the Chinese text contains no Chinese characters: {text.zh!r}.")


def _dollars(words: str, here: str) -> None:
    if words.count("$") % 2:
        raise LabError(f"{here}: unpaired dollar sign in {words!r}.")
