"""What a slide is made of: plain data, with every text in two languages side by side.

A block of the lecture is a file `slides/deck/bNN_name.py` with one `BLOCK`; see `slides/README.md` for how to write
one. Nothing here draws: `slides/render.py` makes HTML out of these parts, once for both views.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rlhf_lab.errors import LabError

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

LANGUAGES = ("en", "zh")
"""English and Chinese, as HTML's `lang` names them."""


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
    """A paragraph. With `step`, it appears at a press of the key; `quiet` sets it in the second colour."""

    text: T
    step: bool = False
    quiet: bool = False


@dataclass(frozen=True, init=False)
class Bullets:
    """Points in a list: `Bullets(T(…), T(…), steps=True)`. With `steps`, one at a time; `ordered` numbers them."""

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
        tex: the same in both languages; words inside (`\text{…}`) stay English, so put words into `note`.
        note: a line under it.
        step: it appears at a press of the key.
        big: set larger: the slide's one equation.
    """

    tex: str
    note: T | None = None
    step: bool = False
    big: bool = False


@dataclass(frozen=True)
class Derivation:
    """Lines of a derivation of the lab, one a press, each with its reason and its computed tick.

    Attributes:
        key: the derivation's key in `rlhf_lab.derivations.library()`.
        reasons: the reasons of the lines shown, in Chinese and in their order (the English ones are the
            derivation's own). One for each line shown.
        first: the first line shown, counted from 1.
        last: the last line shown; None: to the end.
        wrong: also show the plausible wrong versions of these lines, with the error that was computed.
        mistakes: their mistakes in Chinese, one for each wrong line shown.
        worlds: random worlds on which both sides are computed at build.
    """

    key: str
    reasons: tuple[str, ...] = ()
    first: int = 1
    last: int | None = None
    wrong: bool = False
    mistakes: tuple[str, ...] = ()
    worlds: int = 200


@dataclass(frozen=True)
class Explorer:
    """An explorer, live in the lecture and from computed states on the page.

    Attributes:
        name: of a factory in `slides/explorers.py`.
        advice: what to move, in a few words; shown above the controls.
        at: where controls stand at first, by name: `{"view": "gradient"}`. Others stand where the factory puts them.
        only: the controls that are shown; the others stay where they are. Empty: all. A slide is calmer with one or
            two, and the exported page, which holds a picture for every combination, has finer steps.
        panels: which panels of its picture are shown, from 0. Empty: all. Two fit side by side in a slide's letters.
        stops: on the exported page, at most so many stops of each slider; None: as many as the budget allows.
        height: of the drawing in em of its 24 px letters; leave it unless the slide holds more than the explorer.
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
    """A picture drawn at build: a function that returns a matplotlib figure of the course's look.

    Attributes:
        draw: called without arguments. Draw it about 7 × 3.5 inches with `rlhf_lab.figures.style`: the letters are
            then as large as the slide's. It must give the same picture each time.
        alt: what it shows, with the numbers that it is there to show.
        note: a line under it.
    """

    draw: Callable[[], Drawing]
    alt: T
    note: T | None = None


@dataclass(frozen=True)
class Table:
    """A small table: at most seven rows or so, or it cannot be read from the last row.

    Attributes:
        head: the columns' names.
        rows: cells; a plain string is the same in both languages.
        caption: what it shows.
        source: where the numbers are from, if they are not ours.
        strong: numbers of rows, from 0, that are set bold.
    """

    head: tuple[T | str, ...]
    rows: tuple[tuple[T | str, ...], ...]
    caption: T
    source: str = ""
    strong: tuple[int, ...] = ()


@dataclass(frozen=True)
class Quote:
    """A source's own words, short; in Chinese with our translation of them. `source` says where."""

    text: T
    source: str


@dataclass(frozen=True)
class Step:
    """One box of a `Flow`.

    Attributes:
        title: a word or three.
        text: a line below it.
        style: key of `figures/style.py` whose colour the box carries; empty: neutral.
    """

    title: T
    text: T | None = None
    style: str = ""


@dataclass(frozen=True, init=False)
class Flow:
    """Boxes with arrows from left to right: `Flow(Step(…), Step(…), back=T("repeat", "重复"))`.

    `back` adds an arrow from the last to the first with these words; `steps` shows one box at a press.
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
    """Two columns of parts. `share` is the left one's part of the width."""

    left: tuple[Part, ...]
    right: tuple[Part, ...]
    share: float = 0.5


Part = Text | Bullets | Equation | Derivation | Explorer | Figure | Table | Quote | Flow | Columns


@dataclass(frozen=True)
class Slide:
    """One idea.

    Attributes:
        key: its name in links and screenshots, small letters, digits and hyphens; unique in the whole deck.
        title: a sentence that says the idea, where possible.
        parts: from top to bottom.
        notes: what to say, what to move, what to expect as a question. Paragraphs are separated by a blank line.
        minutes: how long, with the room's questions.
        kind: "slide"; "title" for a deck's or block's opening, set large; "question" and "answer" are made by
            `question`.
        source: a line at the slide's foot.
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
    """A question for the room and, on the next slide, its answer: `*question(…)` in a block's slides.

    Args:
        key: of the question; the answer's is `key-answer`.
        ask: the question, as the title.
        parts: what belongs to it: choices as ordered bullets, an equation, an explorer.
        answer: what the answer's slide shows.
        notes: of the question: how to put it, what the room usually says.
        answer_notes: of the answer.
        answer_title: the answer in a sentence; None repeats the question.
        minutes: of both.
    """
    return (
        Slide(key, ask, parts, notes, minutes[0], "question"),
        Slide(f"{key}-answer", answer_title or ask, answer, answer_notes, minutes[1], "answer"),
    )


@dataclass(frozen=True)
class Block:
    """A part of the lecture: a file of `slides/deck/`.

    Attributes:
        key: as a slide's.
        title: stands in the footer of its slides and in the contents.
        slides: in order.
        lecture: 1 or 2: in which of the two fifty minutes.
    """

    key: str
    title: T
    slides: tuple[Slide, ...]
    lecture: int = 1

    @property
    def minutes(self) -> float:
        """Of all its slides."""
        return sum(slide.minutes for slide in self.slides)


@dataclass(frozen=True)
class Deck:
    """All blocks in order."""

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
        LabError: names the slide and what is wrong with it: a key that occurs twice or is none, a language that is
            missing, a picture without words, a dollar sign without its partner, a slide without notes or time,
            a question without its answer, and what else `slides/README.md` asks for.
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
                    raise LabError(f"{here} is a question whose answer is not the next slide: use question(…).")
    return deck


def _name(key: str, here: str, seen: dict[str, str]) -> None:
    if not _KEY.fullmatch(key):
        raise LabError(f"{here}: the key must be small letters, digits and hyphens.")
    if key in seen:
        raise LabError(f"{here}: the key is taken by {seen[key]}. Every key of slides and blocks is unique.")
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
    explorers = [part for part in parts_of(slide) if isinstance(part, Explorer)]
    if len(explorers) > 1:
        raise LabError(f"{here} has {len(explorers)} explorers: one idea a slide.")
    for part in parts_of(slide):
        _part(part, f"{here}, {type(part).__name__}")


def parts_of(slide: Slide) -> Iterator[Part]:
    """Every part of a slide, those in columns too."""
    for part in slide.parts:
        yield part
        if isinstance(part, Columns):
            yield from part.left
            yield from part.right


def texts_of(part: Any) -> Iterator[T]:
    """Every text in both languages that stands in a part itself, its columns excepted."""
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
        raise LabError(f"{here}: LaTeX without dollars, not {part.tex!r}.")
    if isinstance(part, Figure) and not callable(part.draw):
        raise LabError(f"{here}: draw must be a function without arguments.")
    if isinstance(part, Table):
        for number, row in enumerate(part.rows):
            if len(row) != len(part.head):
                raise LabError(f"{here}: row {number} has {len(row)} cells for {len(part.head)} columns.")
    if isinstance(part, Quote) and not part.source.strip():
        raise LabError(f"{here} needs its source.")
    if isinstance(part, Flow) and not 2 <= len(part.boxes) <= 5:
        raise LabError(f"{here} has {len(part.boxes)} boxes; two to five fit a slide.")
    if isinstance(part, Columns):
        if not 0.2 <= part.share <= 0.8:
            raise LabError(f"{here}: share must lie between 0.2 and 0.8, not {part.share}.")
        if any(isinstance(one, Columns) for one in (*part.left, *part.right)):
            raise LabError(f"{here}: columns do not stand in columns.")
    if isinstance(part, Derivation):
        for words in (*part.reasons, *part.mistakes):
            if not words.strip():
                raise LabError(f"{here} ({part.key}): an empty reason.")
            _dollars(words, here)


def _both(text: T, here: str) -> None:
    for language in LANGUAGES:
        words = text.of(language)
        if not isinstance(words, str) or not words.strip():
            raise LabError(f"{here}: the text in {language} is missing ({text!r}).")
        _dollars(words, here)
    # A name or a formula is the same in both; a sentence is not.
    plain = re.sub(r"\$[^$]*\$|`[^`]*`", "", text.zh)
    if not _CHINESE.search(plain) and len(re.findall(r"[A-Za-z]{2,}", plain)) > 6:
        raise LabError(f"{here}: the Chinese text holds no Chinese: {text.zh!r}.")


def _dollars(words: str, here: str) -> None:
    if words.count("$") % 2:
        raise LabError(f"{here}: a dollar sign without its partner in {words!r}.")
