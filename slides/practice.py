"""A rehearsal of the lecture: does this machine show every slide, and is it fast enough?

It does what `make slides` does: it builds the slides, starts the server, requests its page, and runs every cell in the
kernel. Then it moves the controls of every explorer from end to end. It needs no browser; `make slides-browser` also
checks every slide in one.
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
"""Acceptable seconds from the command to the first slide."""
EVERY_EXPLORER = 60
"""Acceptable seconds until the last explorer is shown; the first one is on the fifth slide."""
MOVE = 50
"""Acceptable milliseconds for computing a picture, as the median over the moves of an explorer."""
STOPS = 5
"""Number of stops of each slider that are tried."""


@dataclass
class Report:
    """The findings of a rehearsal.

    Attributes:
        lines: general findings, one sentence each.
        wrong: faults that prevent the lecture.
        slow: parts that work but are noticeably slow.
    """

    lines: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)

    @property
    def conclusion(self) -> str:
        """The summary line at the end."""
        if self.wrong:
            return f"NOT READY: {len(self.wrong)} faults to fix."
        if self.slow:
            return f"Ready, but {len(self.slow)} parts are slow. Close other programs and practise again."
        return "READY: this machine shows the whole lecture."


def run() -> int:
    """Rehearse and print the findings. Returns the exit status, which is 1 if the lecture cannot be held."""
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
    print(report.conclusion)
    return 1 if report.wrong else 0


def serve(made: Deck, report: Report) -> None:
    """Build the slides, start the server, and request its page with the output of every cell."""
    begin = time.monotonic()
    for sentence in live.write(made, TITLE):
        report.wrong.append(f"not shown: {sentence}")
    with live.server() as (url, _), urllib.request.urlopen(url, timeout=120) as page:
        text, first = b"", 0.0
        while chunk := page.read1(65536):
            text += chunk
            if not first and b"Slides.start()" in text:
                first = time.monotonic() - begin
    whole = time.monotonic() - begin
    inspect_page(text.decode(), made, report)
    report.lines.append(
        f"{len(list(made.slides()))} slides; the first after {first:.1f} s, every explorer after {whole:.1f} s"
    )
    if first > FIRST_SLIDE:
        report.slow.append(f"the first slide came after {first:.0f} s; the target is {FIRST_SLIDE} s")
    if whole > EVERY_EXPLORER:
        report.slow.append(f"the last explorer came after {whole:.0f} s; the target is {EVERY_EXPLORER} s")


def inspect_page(page: str, made: Deck, report: Report) -> None:
    """Check that the cell of every explorer returned its widget and no error."""
    cells = dict(re.findall(r'<div class="rendered" data-for="([^"]*)">(.*?)</div>\s*<script>\(\(\) =>', page, re.S))
    for slide, part in render.explorers_of(made):
        shown = cells.get(slide.key, "")
        failed = re.search(r'class="failed"[^>]*>([^<]*)', shown)
        if failed:
            report.wrong.append(f"slide {slide.key!r}: its explorer {part.name!r} raises {failed[1]}")
        elif "application/vnd.jupyter.widget-view+json" not in shown:
            report.wrong.append(f"slide {slide.key!r}: its explorer {part.name!r} is missing")
    if "heartbeat-model" not in cells.get("", ""):
        report.wrong.append("the kernel's heartbeat is missing, so a dead kernel would not be noticed")


def moves(made: Deck, report: Report) -> None:
    """Move every control of every explorer from end to end."""
    shown = list(render.explorers_of(made))
    times: dict[str, list[float]] = {}
    for slide, part in tqdm(shown, desc="explorers", leave=False):
        try:
            times[slide.key] = move(explorers.make(part.name, part.at, part.only, part.panels))
        except Exception as error:  # any failure here would happen during the lecture
            report.wrong.append(f"slide {slide.key!r}: its explorer {part.name!r} fails when moved: {error}")
    for key, taken in times.items():
        median = statistics.median(taken)
        if median > MOVE:
            report.slow.append(f"slide {key!r}: a picture takes {median:.0f} ms to compute; the target is {MOVE} ms")
    every = [t for taken in times.values() for t in taken]
    if every:
        report.lines.append(
            f"{len(times)} explorers, {len(every)} moves: {statistics.median(every):.1f} ms per picture (median), "
            f"at most {max(every):.0f} ms"
        )


def move(explorer: Explorer) -> list[float]:
    """Milliseconds per picture while one control after the other is moved; the others keep their initial values.

    Raises:
        LabError: if no control changes the picture.
    """
    first = {key: control.value for key, control in explorer.controls.items()}
    taken = []
    pictures = {repr(explorer.picture(**first))}  # also computes what is computed only once
    for key, control in explorer.controls.items():
        for value in control.grid(STOPS):
            begin = time.perf_counter()
            picture = explorer.picture(**{**first, key: value})
            taken.append(1000 * (time.perf_counter() - begin))
            pictures.add(repr(picture))
    if len(pictures) < 2:
        raise LabError("none of its controls changes its picture")
    return taken
