"""Check the lecture slides in a browser: the live view with its kernel, and the static page without one.

    python tools/slides_check.py                      # live and page, both languages, both sizes
    python tools/slides_check.py --view page --size 1280x720 --only optimum-gibbs --shots
    python tools/slides_check.py --preview build/slides/preview/index.html --shots

Every slide is checked with everything revealed, in the chosen languages, sizes and themes. The check fails if

- something overflows the slide, scrolls, is cut off or overlaps the footer, or a formula is too wide;
- text is smaller than 24 px (of a slide of 1280 × 720), or its contrast is below 4.5 : 1;
- a Chinese slide shows an English word;
- a picture has no alternative text, or a chart has text that is cut off or overlaps other text;
- an explorer is missing, reports a failure, or has a control that does not change the picture;
- the page or the browser's console reports an error, or the page requests anything from another host.

In the live view it also opens the speaker view, measures the time from a slider to its picture, kills the kernel,
presses K and checks that the same slide comes back with working explorers. Screenshots are saved in `--out`; `--shots`
saves one of every slide.

The check needs playwright and a Chromium (`--chromium`, or one on the PATH). `make slides-browser` runs it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from browser_check import FLAGS, find_chromium

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from slides.translation import english  # noqa: E402

LEAST = 24
"""Minimum size of text in px of a slide of 1280 × 720, which can be read from the back of the room."""
PICTURE_WITHIN = 50
"""Target for the median time from a slider to its picture, in milliseconds."""
EXPLORERS_WITHIN = 120
"""Maximum seconds until every explorer of the live view is shown, on two busy cores."""


class Walk:
    """A page with the slides in a browser.

    Attributes:
        wrong: the faults, each with its place.
        felt: milliseconds from slider to picture, by slide.
    """

    def __init__(self, page: Any, view: str, out: Path) -> None:
        self.page, self.view, self.out = page, view, out
        self.wrong: list[str] = []
        self.felt: dict[str, list[float]] = {}
        self.expected = ""  # errors that the check itself brings about
        page.add_init_script(path=str(Path(__file__).with_suffix(".js")))
        page.on("console", lambda m: self._heard(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: self._heard(str(e)))
        page.on("request", self._asked)

    def _heard(self, text: str) -> None:
        # Voila contains its own JupyterLab and warns on every page that it is older than the installed one.
        known = ("favicon", "shared singleton module", "of shared module @jupyterlab")
        if not self.expected and not any(words in text for words in known):
            self.wrong.append(f"{self.view}: console: {text[:300]}")

    def _asked(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:", "http://127.0.0.1:", "about:")):
            self.wrong.append(f"{self.view}: requested {request.url[:120]}")

    def open(self, url: str) -> float:
        """Open the slides. Returns the seconds until the first one is drawn."""
        begin = time.monotonic()
        self.page.goto(url, wait_until="commit")
        self.page.wait_for_function("() => document.documentElement.dataset.ready === 'yes'", timeout=60_000)
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return time.monotonic() - begin

    def keys(self) -> list[str]:
        """The keys of all slides, in order."""
        return list(self.page.evaluate("() => window.deck.getSlides().map((s) => s.id)"))

    def go(self, number: int, revealed: bool = True) -> None:
        """Go to slide `number`, counted from 0, and reveal everything on it."""
        steps = 1000 if revealed else -1
        self.page.evaluate(f"() => {{ window.deck.slide({number}, 0, {steps}); }}")
        self.page.wait_for_timeout(160)

    def wait_for_explorers(self) -> None:
        """Wait until every explorer of the live view is shown."""
        ready = """() => [...document.querySelectorAll('.explorer')].every((e) => e.querySelector('.rlhf-chart svg')
                   || e.querySelector('.failed')) && document.documentElement.dataset.kernel === 'well'"""
        with contextlib.suppress(Exception):
            self.page.wait_for_function(ready, timeout=EXPLORERS_WITHIN * 1000)
        self.page.wait_for_timeout(500)

    def inspect(self, only: list[str], size: str, language: str, theme: str, shots: bool) -> None:
        """Check every slide (or those of `only`) once, with everything revealed."""
        width, height = (int(v) for v in size.split("x"))
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.evaluate(f"() => {{ Slides.language('{language}'); Slides.theme('{theme}'); window.deck.layout(); }}")
        self.page.wait_for_timeout(200)
        if self.view == "live":  # the kernel computes every picture again
            charts = "[...document.querySelectorAll('.rlhf-chart')]"
            told = f"() => {charts}.every((chart) => chart.dataset.language === '{language}')"
            with contextlib.suppress(Exception):
                self.page.wait_for_function(told, timeout=30_000)
        if shots and not only:
            shutil.rmtree(self.out / f"{self.view}-{language}-{size}-{theme}", ignore_errors=True)
            for old in self.out.glob(f"{self.view}-{language}-{size}-{theme}-sheet-*.png"):
                old.unlink()
        for number, key in enumerate(self.keys()):
            if only and not any(key.startswith(one) for one in only):
                continue
            self.go(number)
            has_explorer = self.page.evaluate("() => Boolean(window.deck.getCurrentSlide().querySelector('.explorer'))")
            if has_explorer:
                self.page.wait_for_timeout(250)
            faults = self.page.evaluate("(least) => SlidesCheck.faults(least)", LEAST)
            if has_explorer:
                chart = self.page.query_selector("section.present .rlhf-chart")
                if chart is not None:
                    faults += self.page.evaluate("(chart) => SlidesCheck.crowded(chart)", chart)
            if language == "zh":
                shown = " ".join(self.page.evaluate("() => SlidesCheck.texts()"))
                faults += [f"the English word {word!r}" for word in dict.fromkeys(english(shown))]
            where = f"{self.view} {language} {size} {theme}"
            self.wrong += [f"{where}: {number + 1} {key}: {fault}" for fault in faults]
            if shots:
                folder = self.out / f"{self.view}-{language}-{size}-{theme}"
                folder.mkdir(parents=True, exist_ok=True)
                self.page.screenshot(path=str(folder / f"{number + 1:02}-{key}.png"))

    def move(self, only: list[str]) -> None:
        """Move every control of every explorer and time the sliders."""
        for number, key in enumerate(self.keys()):
            if only and not any(key.startswith(one) for one in only):
                continue
            self.go(number)
            box = self.page.query_selector("section.present .explorer")
            if box is None or box.query_selector(".rlhf-chart svg") is None:
                continue
            sliders = [n for n in box.query_selector_all("input[type=range], .noUi-handle") if n.is_visible()]
            others = [n for n in box.query_selector_all("select, input[type=checkbox]") if n.is_visible()]
            if not sliders and not others:
                self.wrong.append(f"{self.view}: {key}: the explorer has no control")
            for i, slider in enumerate(sliders):
                times = self.move_slider(box, slider)
                if not times:
                    self.wrong.append(f"{self.view}: {key}: slider {i + 1} does not change the picture")
                self.felt.setdefault(key, []).extend(t for t in times if t == t)
            for i, other in enumerate(others):
                if not self.change(box, other):
                    self.wrong.append(f"{self.view}: {key}: control {i + 1} does not change the picture")

    def move_slider(self, box: Any, slider: Any) -> list[float]:
        """Move a slider, and return the times until the picture changed; [nan] if only its ends change it."""
        times = []
        for press in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowLeft", "ArrowLeft", "ArrowRight"):
            took = self.page.evaluate("(move) => SlidesCheck.felt(move)", [slider, press])
            self.page.wait_for_timeout(120)
            if took is not None:
                times.append(took)
        before = box.query_selector("svg").inner_html()
        for press in () if times else ("Home", "End"):  # one step of a fine slider may change nothing visible
            slider.press(press)
            self.page.wait_for_timeout(700)
            if box.query_selector("svg").inner_html() != before:
                return [float("nan")]
        return times

    def change(self, box: Any, control: Any) -> bool:
        """Choose every entry of a menu, or tick a box twice, and return whether the picture changes."""
        before, changed = box.query_selector("svg").inner_html(), False
        is_menu = control.evaluate("n => n.tagName === 'SELECT'")
        first, count = control.evaluate("n => [n.selectedIndex, n.options?.length ?? 2]")
        for j in [j for j in range(count) if not is_menu or j != first]:
            if is_menu:
                control.select_option(index=j)
            else:
                control.press("Space")
            self.page.wait_for_timeout(350)
            changed = changed or box.query_selector("svg").inner_html() != before
        if is_menu:
            control.select_option(index=first)
        return changed

    def clicker(self) -> None:
        """Check that Page Down and Page Up turn the slides, also while a slider has the focus."""
        self.go(0, revealed=False)
        self.page.keyboard.press("PageDown")
        self.page.wait_for_timeout(150)
        here = "() => { const i = window.deck.getIndices(); return [i.h, i.f ?? -1]; }"
        moved = self.page.evaluate(here)
        self.page.keyboard.press("PageUp")
        self.page.wait_for_timeout(150)
        if moved == self.page.evaluate(here):
            self.wrong.append(f"{self.view}: Page Down and Page Up do not turn the slides")
        with_slider = self.page.evaluate(
            "() => window.deck.getSlides().findIndex((s) => s.querySelector('input[type=range], .noUi-handle'))"
        )
        if with_slider >= 0:
            self.go(with_slider)
            self.page.query_selector("section.present :is(input[type=range], .noUi-handle)").focus()
            self.page.keyboard.press("PageDown")
            self.page.wait_for_timeout(150)
            if self.page.evaluate("() => window.deck.getIndices().h") != with_slider + 1:
                self.wrong.append(f"{self.view}: Page Down on a focused slider does not turn the slide")

    def speaker(self) -> None:
        """Check the speaker view: notes, clock, current and next slide."""
        self.go(3, revealed=False)
        with self.page.expect_popup(timeout=20_000) as opened:
            self.page.keyboard.press("s")
        popup = opened.value
        try:
            popup.wait_for_function(
                "() => document.querySelector('.speaker-controls-notes .value')?.textContent.trim().length > 20",
                timeout=30_000,
            )
            frames = popup.evaluate("() => [...document.querySelectorAll('iframe')].map((f) => f.src)")
            if len(frames) != 2:
                self.wrong.append(f"{self.view}: the speaker view has {len(frames)} slides")
            if not popup.evaluate(
                "() => Boolean(document.querySelector('.speaker-controls-time .clock')?.textContent)"
            ):
                self.wrong.append(f"{self.view}: the speaker view has no clock")
            popup.wait_for_timeout(2500)
            popup.set_viewport_size({"width": 1280, "height": 720})
            popup.screenshot(path=str(self.out / f"speaker-{self.view}.png"))
            here = popup.evaluate("() => document.querySelector('.speaker-controls-notes .value').textContent")
            self.page.keyboard.press("PageDown")
            self.go(5, revealed=False)
            popup.wait_for_timeout(800)
            if popup.evaluate("() => document.querySelector('.speaker-controls-notes .value').textContent") == here:
                self.wrong.append(f"{self.view}: the speaker view's notes do not follow the slides")
        except Exception as error:
            self.wrong.append(f"{self.view}: the speaker view: {str(error).splitlines()[0]}")
        popup.close()

    def revive(self, server: int) -> None:
        """Kill the kernel of the page, and check that the badge reports it and that K restores the same slide."""
        number = self.page.evaluate("() => window.deck.getSlides().findIndex((s) => s.querySelector('.explorer'))")
        self.go(number)
        before = self.page.evaluate("() => [window.deck.getIndices().h, window.deck.getCurrentSlide().id]")
        self.expected = "a kernel that was killed"
        begin = time.monotonic()
        if not kill_kernels(
            server, self.page.evaluate("() => document.getElementById('jupyter-config-data').textContent")
        ):
            self.wrong.append("live: no kernel was found to kill")
        try:
            self.page.wait_for_function("() => document.documentElement.dataset.kernel === 'gone'", timeout=40_000)
        except Exception:
            self.wrong.append("live: a dead kernel is not noticed")
        noticed = time.monotonic() - begin
        self.page.screenshot(path=str(self.out / "kernel-gone.png"))
        begin = time.monotonic()
        self.page.keyboard.press("k")
        self.page.wait_for_timeout(700)
        self.page.wait_for_function("() => document.documentElement.dataset.ready === 'yes'", timeout=60_000)
        back = time.monotonic() - begin
        self.wait_for_explorers()
        whole = time.monotonic() - begin
        after = self.page.evaluate("() => [window.deck.getIndices().h, window.deck.getCurrentSlide().id]")
        if after != before:
            self.wrong.append(f"live: after K the slide is {after}, not {before}")
        if self.page.evaluate("() => document.documentElement.dataset.kernel") != "well":
            self.wrong.append("live: after K there is no kernel")
        self.expected = ""
        self.move([str(before[1])])
        print(
            f"kernel killed: noticed after {noticed:.1f} s; "
            f"after K the slide was back in {back:.1f} s, every explorer in {whole:.1f} s"
        )


def kill_kernels(server: int, config: str) -> int:
    """Send SIGKILL to the page's kernel, the child of the server whose connection file contains the kernel's id."""
    import json

    import psutil

    number = json.loads(config)["kernelId"]
    killed = 0
    for child in psutil.Process(server).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if number in " ".join(child.cmdline()):
                os.kill(child.pid, signal.SIGKILL)
                killed += 1
    return killed


@contextlib.contextmanager
def chromium(given: str | None) -> Iterator[Any]:
    """Run a headless browser."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sys.exit("playwright is missing: pip install -e '.[browser]'")
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    with sync_playwright() as playwright:
        flags = [*FLAGS, "--no-sandbox"] if root else FLAGS
        browser = playwright.chromium.launch(executable_path=find_chromium(given), args=flags)
        try:
            yield browser
        finally:
            browser.close()


def sheet(folder: Path, across: int = 3, width: int = 640) -> None:
    """Save contact sheets of the screenshots in `folder`, nine per sheet, beside it."""
    from PIL import Image

    shots = sorted(folder.glob("*.png"))
    for start in range(0, len(shots), across * 3):
        images = [Image.open(shot).convert("RGB") for shot in shots[start : start + across * 3]]
        small = [image.resize((width, round(width * image.height / image.width))) for image in images]
        page = Image.new("RGB", (across * (width + 8), -(-len(small) // across) * (small[0].height + 8)), "#888")
        for i, image in enumerate(small):
            page.paste(image, ((i % across) * (width + 8) + 4, (i // across) * (image.height + 8) + 4))
        page.save(folder.parent / f"{folder.name}-sheet-{start // (across * 3) + 1:02}.png")


def main() -> None:
    """Run the check from the command line. The exit status is 1 if there are faults."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--view", choices=["live", "page", "both"], default="both")
    parser.add_argument("--preview", type=Path, help="check only this page, without explorers")
    parser.add_argument("--lang", nargs="+", choices=["en", "zh"], default=["en", "zh"])
    parser.add_argument("--size", nargs="+", default=["1280x720", "1920x1080"])
    parser.add_argument("--theme", nargs="+", choices=["light", "dark"], default=["light", "dark"])
    parser.add_argument("--only", nargs="+", default=[], help="prefixes of the keys of the slides to check")
    parser.add_argument("--shots", action="store_true", help="save a screenshot of every slide, and contact sheets")
    parser.add_argument("--out", type=Path, default=REPO / "build" / "slides-check")
    parser.add_argument("--chromium", help="path or name of the browser")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    wrong: list[str] = []
    with chromium(args.chromium) as browser:
        if args.preview:
            wrong += walk(browser, args, "preview", args.preview.resolve().as_uri())
        if not args.preview and args.view in ("page", "both"):
            page = exported()
            wrong += walk(browser, args, "page", page.as_uri())
        if not args.preview and args.view in ("live", "both"):
            wrong += live(browser, args)
    for one in wrong:
        print(f"WRONG {one}")
    print(f"screenshots in {args.out}")
    print("no faults" if not wrong else f"{len(wrong)} faults")
    sys.exit(1 if wrong else 0)


def exported() -> Path:
    """The slides of `make site` if they exist; otherwise write the slides alone."""
    from slides import build
    from slides.deck import TITLE, deck

    page = REPO / "build" / "site" / "slides" / "index.html"
    if page.is_file():
        return page
    folder = build.BUILD / "page"
    build.library(folder / "lib")
    for sentence in build.write_page(deck(), folder / "slides", "../lib", TITLE):
        print(f"not shown yet: {sentence}")
    return folder / "slides" / "index.html"


def combinations(args: argparse.Namespace) -> Iterator[tuple[str, str, str]]:
    """Combinations of size, language and theme: all of them in the first theme, and one in each other theme."""
    for language in args.lang:
        for size in args.size:
            yield size, language, args.theme[0]
    for theme in args.theme[1:]:
        yield args.size[0], args.lang[0], theme


def walk(browser: Any, args: argparse.Namespace, view: str, url: str) -> list[str]:
    """Check the static page without a network. Returns its faults."""
    context = browser.new_context(viewport={"width": 1280, "height": 720}, offline=True)
    made = Walk(context.new_page(), view, args.out)
    took = made.open(f"{url}?lang=en")
    print(f"{view}: {len(made.keys())} slides; first slide after {took:.1f} s")
    rounds(made, args)
    if view == "page":
        phone(browser, made, url)
        made.move(args.only)
        made.clicker()
        report(made)
    context.close()
    return made.wrong


def phone(browser: Any, made: Walk, url: str) -> None:
    """Check the page on a narrow screen, where slides follow one another and nothing may be wider than the screen."""
    context = browser.new_context(viewport={"width": 375, "height": 800}, offline=True, is_mobile=True, has_touch=True)
    page = context.new_page()
    page.add_init_script(path=str(Path(__file__).with_suffix(".js")))
    for language in ("en", "zh"):
        page.goto(f"{url}?lang={language}", timeout=120_000)
        page.wait_for_timeout(1500)
        made.wrong += [f"phone {language}: {fault}" for fault in page.evaluate("() => SlidesCheck.phone()")]
        page.screenshot(path=str(made.out / f"phone-{language}.png"), full_page=True)
    context.close()


def rounds(made: Walk, args: argparse.Namespace) -> None:
    """Check all slides in every combination."""
    for size, language, theme in combinations(args):
        made.inspect(args.only, size, language, theme, args.shots)
        if args.shots:
            sheet(args.out / f"{made.view}-{language}-{size}-{theme}")
    made.page.set_viewport_size({"width": 1280, "height": 720})
    made.page.evaluate("() => { Slides.language('en'); Slides.theme('light'); window.deck.layout(); }")


def report(made: Walk) -> None:
    """Print the times from a slider's move to its picture."""
    every = [t for times in made.felt.values() for t in times]
    if not every:
        return
    median = statistics.median(every)
    slowest = max(made.felt, key=lambda key: statistics.median(made.felt[key] or [0]))
    print(
        f"{made.view}: slider to picture, {len(every)} moves on {len(made.felt)} slides: median {median:.0f} ms, "
        f"slowest slide {slowest} {statistics.median(made.felt[slowest]):.0f} ms, worst move {max(every):.0f} ms"
        + ("" if median <= PICTURE_WITHIN else f"  (above the target of {PICTURE_WITHIN} ms)")
    )


def live(browser: Any, args: argparse.Namespace) -> list[str]:
    """Check the live view with its kernel. Returns its faults."""
    from slides import live as view
    from slides.deck import TITLE, deck

    begin = time.monotonic()
    view.write(deck(), TITLE)
    with view.server() as (url, process):
        context = browser.new_context(viewport={"width": 1280, "height": 720})
        made = Walk(context.new_page(), "live", args.out)
        made.open(f"{url}?lang=en")
        print(f"live: command to first slide {time.monotonic() - begin:.1f} s", flush=True)
        made.wait_for_explorers()
        print(f"live: every explorer after {time.monotonic() - begin:.1f} s", flush=True)
        rounds(made, args)
        made.move(args.only)
        made.clicker()
        made.speaker()
        report(made)
        made.revive(process)
        context.close()
    return made.wrong


if __name__ == "__main__":
    main()
