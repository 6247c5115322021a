"""The lecture once through without a room: does this machine show every slide, and is it quick enough?

Everything is done as `make slides` does it: the deck is built, the server started, its page asked for, every cell run
in its kernel. Then each explorer's controls are moved from end to end. No browser is needed; with one,
`make slides-browser` looks at every slide as well.
"""

from __future__ import annotations

import re
import statistics
import time
import urllib.request
from dataclasses import dataclass, field

from tqdm.auto import tqdm

from rlhf_lab.errors import LabError
from rlhf_lab.widgets.explorer import Explorer
from slides import explorers, live, render
from slides.deck import TITLE, deck
from slides.schema import Deck

FIRST_SLIDE = 20
"""Seconds from the command to the first slide that a room waits for."""
EVERY_EXPLORER = 60
"""Seconds until the last explorer is there; the first stands on the fifth slide."""
MOVE = 50
"""Milliseconds that a picture may take to compute, at the median of an explorer's moves."""
STOPS = 5
"""Stops of each slider that are tried."""


@dataclass
class Report:
    """What was seen.

    Attributes:
        lines: one sentence each.
        wrong: what stops the lecture.
        slow: what works and will be felt.
    """

    lines: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """One line at the end."""
        if self.wrong:
            return f"NOT READY: {len(self.wrong)} things to mend."
        if self.slow:
            return f"Ready, with {len(self.slow)} slow places (other programs at work? close them and practise again)."
        return "READY: this machine shows the whole lecture."


def run() -> int:
    """Practise and print. Returns the exit status: 1 where the lecture cannot be held."""
    report = Report()
    made = deck()
    try:
        serve(made, report)
    except LabError as error:
        report.wrong.append(str(error))
    moves(made, report)
    for title, lines in (("", report.lines), ("slow: ", report.slow), ("WRONG: ", report.wrong)):
        for line in lines:
            print(f"{title}{line}")
    print(report.verdict)
    return 1 if report.wrong else 0


def serve(made: Deck, report: Report) -> None:
    """Build, start the server, ask for its page: the first slide, then every cell."""
    begin = time.monotonic()
    for sentence in live.write(made, TITLE.en):
        report.wrong.append(f"not shown: {sentence}")
    with live.server() as (url, _), urllib.request.urlopen(url, timeout=120) as page:
        text, first = b"", 0.0
        while chunk := page.read1(65536):
            text += chunk
            if not first and b"Slides.start()" in text:
                first = time.monotonic() - begin
    whole = time.monotonic() - begin
    look(text.decode(), made, report)
    report.lines.append(
        f"{len(list(made.slides()))} slides; the first after {first:.1f} s, every explorer after {whole:.1f} s"
    )
    if first > FIRST_SLIDE:
        report.slow.append(f"the first slide came after {first:.0f} s; {FIRST_SLIDE} s are meant")
    if whole > EVERY_EXPLORER:
        report.slow.append(f"the last explorer came after {whole:.0f} s; {EVERY_EXPLORER} s are meant")


def look(page: str, made: Deck, report: Report) -> None:
    """Whether every explorer's cell gave its widget, and none an error."""
    cells = dict(re.findall(r'<div class="rendered" data-for="([^"]*)">(.*?)</div>\s*<script>\(\(\) =>', page, re.S))
    for slide, part in render.explorers_of(made):
        shown = cells.get(slide.key, "")
        failed = re.search(r'class="failed"[^>]*>([^<]*)', shown)
        if failed:
            report.wrong.append(f"slide {slide.key!r}: its explorer {part.name!r} ends with {failed[1]}")
        elif "application/vnd.jupyter.widget-view+json" not in shown:
            report.wrong.append(f"slide {slide.key!r}: its explorer {part.name!r} did not come")
    if "pulse-model" not in cells.get("", ""):
        report.wrong.append("the kernel's pulse did not come: a dead kernel would not be noticed")


def moves(made: Deck, report: Report) -> None:
    """Every control of every explorer from end to end."""
    shown = list(render.explorers_of(made))
    times: dict[str, list[float]] = {}
    for slide, part in tqdm(shown, desc="explorers", leave=False):
        try:
            times[slide.key] = move(explorers.make(part.name, part.at, part.only, part.panels))
        except Exception as error:  # anything that goes wrong here would stand in front of a room
            report.wrong.append(f"slide {slide.key!r}: its explorer {part.name!r} fails when moved: {error}")
    for key, taken in times.items():
        median = statistics.median(taken)
        if median > MOVE:
            report.slow.append(f"slide {key!r}: a picture takes {median:.0f} ms to compute; {MOVE} ms are meant")
    every = [t for taken in times.values() for t in taken]
    if every:
        report.lines.append(
            f"{len(times)} explorers, {len(every)} moves: {statistics.median(every):.1f} ms to a picture, "
            f"{max(every):.0f} ms at the worst"
        )


def move(explorer: Explorer) -> list[float]:
    """Milliseconds of each picture while one control after the other is moved, the others at their first values.

    Raises:
        LabError: nothing that can be moved changes the picture.
    """
    first = {key: control.value for key, control in explorer.controls.items()}
    taken = []
    pictures = {repr(explorer.picture(**first))}  # also pays for what is computed once, before anybody looks
    for key, control in explorer.controls.items():
        for value in control.grid(STOPS):
            begin = time.perf_counter()
            picture = explorer.picture(**{**first, key: value})
            taken.append(1000 * (time.perf_counter() - begin))
            pictures.add(repr(picture))
    if len(pictures) < 2:
        raise LabError("its picture stays the same wherever its controls are")
    return taken
