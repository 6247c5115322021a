"""Check the notebooks in JupyterLab in a real browser: run all cells and move every control of every explorer.

    python tools/browser_check.py [--notebooks 00 03 07] [--out build/browser] [--theme light|dark|both] [--pages]

The default is every notebook that contains an explorer. For each one the check runs all cells. It then moves each
control of each explorer (sliders by keyboard, every entry of a drop-down, both states of a tick box), and finally sets
all sliders to their low and to their high end. It fails if

- an output, the browser's console or the kernel's stderr contains an error;
- no setting of a control changes the picture;
- a picture reports a failure, has no alternative text, or has text that is cut off or overlaps other text;
- a control's label or read-out is cut off.

Screenshots of each explorer (initial state, low end, high end) are saved in `--out` for inspection. `--pages` adds
the whole notebook, screen by screen.

The check needs `pip install playwright` and a Chromium (`--chromium`, or one on the PATH).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
RUN_WITHIN = 600
"""Maximum seconds for all cells of a notebook in the browser. The limit allows for two busy cores."""
FLAGS = [
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
# Messages that JupyterLab itself logs on a page without faults. Messages of this project do not belong here.
HARMLESS = ("favicon",)


def find_chromium(given: str | None) -> str:
    """The path of a Chromium or Chrome. Without one, exit with a message that says how to install it."""
    for name in filter(None, (given, "chromium", "chromium-browser", "google-chrome", "chrome")):
        found = shutil.which(name)
        if found:
            return found
    sys.exit("No Chromium found. Install one (Debian: apt-get install chromium) or name it with --chromium PATH.")


@contextlib.contextmanager
def jupyterlab(root: Path) -> Iterator[str]:
    """Run JupyterLab on loopback in the folder `root` with default settings. Yields its URL with the token."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as home:
        env = {**os.environ, "JUPYTER_CONFIG_DIR": f"{home}/config", "JUPYTERLAB_SETTINGS_DIR": f"{home}/settings"}
        env |= {"JUPYTERLAB_WORKSPACES_DIR": f"{home}/workspaces", "IPYTHONDIR": f"{home}/ipython"}
        # Without this setting a question about news covers the first screen.
        news = Path(home, "settings", "@jupyterlab", "apputils-extension", "notification.jupyterlab-settings")
        news.parent.mkdir(parents=True)
        news.write_text('{"fetchNews": "false"}', encoding="utf-8")
        command = [
            sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser",
            f"--ServerApp.root_dir={root}", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}",
            "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}",
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        ]  # fmt: skip
        with open(Path(home) / "server.log", "w+", encoding="utf-8") as log:
            server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)
            try:
                for _ in range(240):
                    with contextlib.suppress(OSError):
                        urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={token}", timeout=2)
                        break
                    if server.poll() is not None:
                        log.seek(0)
                        sys.exit(f"JupyterLab did not start:\n{log.read()}")
                    time.sleep(0.25)
                yield f"http://127.0.0.1:{port}/lab/tree/{{}}?token={token}&reset"
            finally:
                server.terminate()
                server.wait(20)


def open_and_run(page: Any, url: str, name: str) -> None:
    """Open the notebook `name`, run all its cells, and return when the last one has finished."""
    page.goto(url.format(name), wait_until="domcontentloaded")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
    ready = """() => { const w = window.jupyterapp?.shell.currentWidget;
                       return w?.sessionContext?.session?.kernel?.status === 'idle'; }"""
    page.wait_for_function(ready, timeout=90_000)
    page.evaluate("async () => { await window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
    # After an error the cells below it never run. The error is then read from the outputs.
    left = """() => { const w = window.jupyterapp.shell.currentWidget;
                      const cells = [...w.content.model.cells];
                      const failed = cells.some(c => c.type === 'code' && [...Array(c.outputs.length).keys()]
                        .some(i => c.outputs.get(i).type === 'error'));
                      if (failed && w.sessionContext.session.kernel.status === 'idle') return [];
                      const code = cells.filter(c => c.type === 'code' && c.sharedModel.source.trim());
                      return code.filter(c => c.executionCount === null || c.executionState === 'running')
                                 .map(c => c.id + ' (' + c.executionState + ')'); }"""
    try:
        page.wait_for_function(f"() => ({left})().length === 0", timeout=RUN_WITHIN * 1000)
    except Exception as error:
        raise RuntimeError(f"cells not finished after {RUN_WITHIN} s: {', '.join(page.evaluate(left))}") from error
    # From here on, record errors of the kernel that moved controls cause; no output shows them.
    page.evaluate(
        """() => { window.rlhfHeard = [];
                   window.jupyterapp.shell.currentWidget.sessionContext.iopubMessage.connect((_, m) => {
                     if (m.header.msg_type === 'error') window.rlhfHeard.push(m.content.evalue);
                     if (m.header.msg_type === 'stream' && m.content.name === 'stderr')
                       window.rlhfHeard.push(m.content.text); }); }"""
    )
    page.wait_for_timeout(500)


def charts(page: Any) -> list[Any]:
    """The charts of all explorers of the open notebook, after scrolling through all its cells."""
    # JupyterLab attaches cells as they come into view.
    count = page.locator(".jp-Notebook .jp-Cell").count()
    for i in range(count):
        with contextlib.suppress(Exception):
            page.locator(".jp-Notebook .jp-Cell").nth(i).scroll_into_view_if_needed(timeout=2000)
    return list(page.locator(".rlhf-chart").all())


# Finds unreadable texts of a chart, which the chart's edge cuts off or which overlap, and cut-off labels.
UNREADABLE = """([box, chart]) => {
  const found = [];
  const svg = chart.querySelector('svg');
  const edge = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll('text')].filter(t => t.textContent.trim())
    .map(t => [t.textContent, t.getBoundingClientRect()]);
  texts.forEach(([words, r], i) => {
    if (r.left < edge.left - 1 || r.right > edge.right + 1 || r.top < edge.top - 1 || r.bottom > edge.bottom + 1)
      found.push(`the text "${words}" is cut off at the chart's edge`);
    for (const [other, q] of texts.slice(i + 1)) {
      // The boxes of consecutive lines touch, but the letters do not reach the edges of the boxes.
      const wide = Math.min(r.right, q.right) - Math.max(r.left, q.left);
      const high = Math.min(r.bottom, q.bottom) - Math.max(r.top, q.top);
      if (wide > 2 && high > 0.4 * Math.min(r.height, q.height, r.width, q.width))
        found.push(`the texts "${words}" and "${other}" overlap`);
    }
  });
  for (const label of box.querySelectorAll('.widget-label, .widget-readout'))
    if (label.scrollWidth > label.clientWidth + 1) found.push(`the label "${label.textContent}" is cut off`);
  if (!svg.getAttribute('aria-label')) found.push('no text for a screen reader');
  if (chart.classList.contains('failed')) found.push(`it reports: ${svg.getAttribute('aria-label')}`);
  return found;
}"""
SETTLED = "([chart, drawn]) => Number(chart.dataset.drawn) > drawn"


class Shown:
    """One explorer on the page.

    Attributes:
        faults: the faults that were found, each once, in order.
        count: number of its controls.
    """

    def __init__(self, page: Any, chart: Any) -> None:
        chart.scroll_into_view_if_needed()
        self.page, self.chart, self.faults = page, chart, dict[str, None]()
        # Its box is the nearest ancestor that also contains its controls.
        self.box = chart.locator("xpath=ancestor::*[contains(@class,'widget-vbox')][1]")
        self.sliders = self.box.locator(".noUi-handle").all()
        self.menus = self.box.locator("select").all()
        self.ticks = self.box.locator("input[type=checkbox]").all()
        self.count = len(self.sliders) + len(self.menus) + len(self.ticks)

    def picture(self) -> str:
        """The current picture, without the text around it."""
        return str(self.chart.locator("svg").inner_html())

    def act(self, do: Callable[[], Any], state: Callable[[], Any]) -> None:
        """Move a control and, if `state` (the control's value) has changed, wait for the picture."""
        before, drawn = state(), int(self.chart.get_attribute("data-drawn"))
        do()
        self.page.wait_for_timeout(50)
        if state() == before:
            return
        with contextlib.suppress(Exception):  # an equal picture is not sent again
            self.page.wait_for_function(SETTLED, arg=[self.chart.element_handle(), drawn], timeout=5000)
        self.page.wait_for_timeout(200)
        self.inspect()

    def inspect(self) -> None:
        """Record the texts that cannot be read at the moment."""
        seen = self.page.evaluate(UNREADABLE, [self.box.element_handle(), self.chart.element_handle()])
        self.faults.update(dict.fromkeys(seen))

    def press(self, slider: Any, key: str) -> None:
        """Press a key on a slider."""
        # The state is the position on the scale, because the text for screen readers is rounded.
        self.act(lambda: slider.press(key), lambda: slider.evaluate("h => h.parentElement.style.transform"))

    def choose(self, menu: Any, index: int) -> None:
        """Choose an entry of a drop-down. Its keys cannot be used, because the browser opens it outside the page."""
        self.act(lambda: menu.select_option(index=index), lambda: menu.evaluate("m => m.selectedIndex"))

    def flip(self, tick: Any, key: str) -> None:
        """Press a key on a tick box."""
        self.act(lambda: tick.press(key), tick.is_checked)

    def move_all(self) -> None:
        """Move each control alone and back. At least one of its settings must change the picture."""
        for i, slider in enumerate(self.sliders):
            start = self.picture()
            # One step and back. A slider at its high end moves down. Larger moves follow if these change nothing.
            for keys in (("ArrowRight", "ArrowLeft"), ("ArrowLeft", "ArrowRight"), ("Home", "End", "PageDown")):
                if self.changes(start, self.press, slider, keys):
                    break
            else:
                self.faults[f"slider {i + 1} does not change the picture"] = None
        for i, menu in enumerate(self.menus):
            first, entries = menu.evaluate("m => [m.selectedIndex, m.options.length]")
            others = [j for j in range(entries) if j != first]
            if not self.changes(self.picture(), self.choose, menu, (*others, first)):
                self.faults[f"drop-down {i + 1} does not change the picture"] = None
        for i, tick in enumerate(self.ticks):
            if not self.changes(self.picture(), self.flip, tick, ("Space", "Space")):
                self.faults[f"tick box {i + 1} does not change the picture"] = None

    def changes(self, start: str, do: Callable[..., None], control: Any, settings: Sequence[Any]) -> bool:
        """Apply each of `settings` to a control, and return whether any picture differed from `start`."""
        changed = False
        for setting in settings:
            do(control, setting)
            changed = self.picture() != start or changed
        return changed

    def end(self, key: str) -> None:
        """Set all sliders to one end (`Home` or `End`) and all drop-downs to their first or last entry."""
        for menu in self.menus:
            self.choose(menu, 0 if key == "Home" else menu.evaluate("m => m.options.length - 1"))
        for slider in self.sliders:
            self.press(slider, key)

    def save(self, path: Path) -> None:
        """Save a screenshot of the controls and the picture."""
        self.inspect()
        self.box.screenshot(path=str(path))


def screens(page: Any, out: Path, stem: str) -> None:
    """Save screenshots of the whole notebook, one per screen."""
    place = "document.querySelector('.jp-WindowedPanel-outer')"
    page.evaluate(f"() => {place}.scrollTo(0, 0)")
    for number in range(1, 40):
        page.wait_for_timeout(400)
        page.locator(".jp-Notebook").screenshot(path=str(out / f"{stem}-{number:02}.png"))
        moved = page.evaluate(
            f"() => {{ const p = {place}; const y = p.scrollTop; p.scrollBy(0, p.clientHeight - 60); "
            "return p.scrollTop > y + 5; }"
        )
        if not moved:
            return


def check(page: Any, url: str, name: str, out: Path, theme: str, pages: bool) -> list[str]:
    """Run all checks on one notebook. Returns its faults."""
    problems: list[str] = []
    heard: list[str] = []
    page.on("console", lambda m: heard.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: heard.append(str(e)))
    try:
        open_and_run(page, url, name)
    except Exception as error:
        page.screenshot(path=str(out / f"{Path(name).stem}-{theme}-stuck.png"))
        return [f"could not be opened and run: {error}", *(f"console: {line}" for line in heard)]
    if theme == "dark":
        page.evaluate(
            "async () => window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})"
        )
        page.wait_for_timeout(1500)
    errors = page.evaluate(
        """() => [...window.jupyterapp.shell.currentWidget.content.model.cells]
               .filter(c => c.type === 'code' && !(c.getMetadata('tags') ?? []).includes('raises-exception'))
               .flatMap(c => c.sharedModel.getOutputs()).filter(o => o.output_type === 'error')
               .map(o => `${o.ename}: ${o.evalue}`)"""
    )
    problems += [f"an output contains {error}" for error in errors]
    found = charts(page)
    print(f"{name} ({theme}): {len(found)} explorers", flush=True)
    if not found:
        problems.append("no explorer on the page")
    stem = f"{Path(name).stem}-{theme}"
    for i, chart in enumerate(found):
        stage = out / f"{stem}-explorer-{i + 1}"
        shown = Shown(page, chart)
        shown.save(stage.with_suffix(".png"))
        shown.move_all()
        for key, name_of_end in (("Home", "low"), ("End", "high")):
            shown.end(key)
            shown.save(stage.with_name(f"{stage.name}-{name_of_end}.png"))
        if shown.count == 0:
            shown.faults["no control"] = None
        problems += [f"explorer {i + 1}: {fault}" for fault in shown.faults]
        print(f"  explorer {i + 1}: {shown.count} controls moved", flush=True)
    problems += [f"kernel: {line}" for line in page.evaluate("() => window.rlhfHeard")]
    problems += [f"console: {line}" for line in heard if not any(word in line for word in HARMLESS)]
    if pages:
        screens(page, out, stem)
    return problems


def chosen(names: list[str] | None) -> list[Path]:
    """The notebooks that `names` selects; without names, all that contain an explorer.

    Args:
        names: paths or prefixes of file names such as 03, from the option `--notebooks`.

    Returns:
        Their paths.
    """
    every = sorted((REPO / "notebooks").glob("*.ipynb"))
    if names is None:
        return [path for path in every if contains_explorer(path)]
    found = []
    for name in names:
        meant = [Path(name)] if name.endswith(".ipynb") else [path for path in every if path.name.startswith(name)]
        if not meant or not all(path.is_file() for path in meant):
            sys.exit(f"No notebook {name!r}. There are: {', '.join(path.stem for path in every)}.")
        found += meant
    return found


def contains_explorer(path: Path) -> bool:
    """Whether a code cell of the notebook makes an explorer."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return any("_explorer(" in "".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def main() -> None:
    """Run the check from the command line. The exit status is 1 if there are faults."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--notebooks", nargs="+", help="numbers or paths; the default is all that contain an explorer")
    parser.add_argument("--out", type=Path, default=REPO / "build" / "browser")
    parser.add_argument("--chromium", help="path or name of the browser")
    parser.add_argument("--theme", choices=["light", "dark", "both"], default="light")
    parser.add_argument("--pages", action="store_true", help="also save the whole notebook, screen by screen")
    args = parser.parse_args()
    paths = chosen(args.notebooks)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sys.exit("playwright is missing: pip install -e '.[browser]'")
    binary = find_chromium(args.chromium)
    args.out.mkdir(parents=True, exist_ok=True)
    flags = [*FLAGS, "--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else FLAGS
    bad = 0
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        for path in paths:
            shutil.copy(path, scratch)
        with jupyterlab(Path(scratch)) as url:
            browser = playwright.chromium.launch(executable_path=binary, args=flags)
            for path in paths:
                for theme in ("light", "dark") if args.theme == "both" else (args.theme,):
                    page = browser.new_page(viewport={"width": 1280, "height": 900})
                    problems = check(page, url, path.name, args.out, theme, args.pages)
                    with contextlib.suppress(Exception):  # a small machine cannot run eleven kernels with torch
                        page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
                    page.close()
                    bad += len(problems)
                    for problem in problems:
                        print(f"  WRONG {problem}", flush=True)
            browser.close()
    print(f"screenshots in {args.out}")
    print("no faults" if not bad else f"{bad} faults")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
