"""Look at the notebooks as a student does: JupyterLab in a real browser, all cells run, every control moved.

    python tools/browser_check.py [--notebooks 00 03 07] [--out build/browser] [--theme light|dark|both] [--pages]

Without `--notebooks`, every notebook that holds an explorer. For each: runs all cells, then moves each control of
each explorer (sliders by keyboard, every entry of a drop-down, both states of a tick box), and ends all sliders at
their low and at their high end. It fails where

- an output holds an error, or the browser's console or the kernel's stderr says one;
- a control is moved and the picture stays the same at every setting of it;
- a picture says that it failed, has no words for a screen reader, or has text that is cut off or lies on other text;
- a control's label or read-out is cut off.

Screenshots of each explorer (at its start, at the low end, at the high end) land in `--out`, to be looked at;
`--pages` adds the whole notebook, screen by screen.

Needs `pip install playwright` and a Chromium (`--chromium`, or one found on the PATH).
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
"""Seconds that all cells of a notebook may take in the browser; two busy cores are slow."""
FLAGS = [
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
# What JupyterLab itself logs on a healthy page of a bare machine. Nothing of ours belongs here.
HARMLESS = ("favicon",)


def find_chromium(given: str | None) -> str:
    """The path of a Chromium or Chrome, or a clean end that says how to get one."""
    for name in filter(None, (given, "chromium", "chromium-browser", "google-chrome", "chrome")):
        found = shutil.which(name)
        if found:
            return found
    sys.exit("No Chromium found. Install one (Debian: apt-get install chromium) or name it with --chromium PATH.")


@contextlib.contextmanager
def jupyterlab(root: Path) -> Iterator[str]:
    """A JupyterLab on loopback over `root`, with no settings but its own. Gives the URL of its page, token in it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as home:
        env = {**os.environ, "JUPYTER_CONFIG_DIR": f"{home}/config", "JUPYTERLAB_SETTINGS_DIR": f"{home}/settings"}
        env |= {"JUPYTERLAB_WORKSPACES_DIR": f"{home}/workspaces", "IPYTHONDIR": f"{home}/ipython"}
        # No question about news over the first screen.
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
    """Open the notebook `name` and run all its cells; returns when the last one is done."""
    page.goto(url.format(name), wait_until="domcontentloaded")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
    ready = """() => { const w = window.jupyterapp?.shell.currentWidget;
                       return w?.sessionContext?.session?.kernel?.status === 'idle'; }"""
    page.wait_for_function(ready, timeout=90_000)
    page.evaluate("async () => { await window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
    # After an error the cells below it never run; what went wrong is then read from the outputs.
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
        raise RuntimeError(f"cells not done after {RUN_WITHIN} s: {', '.join(page.evaluate(left))}") from error
    # From here on what a moved control makes the kernel complain of, which no output shows.
    page.evaluate(
        """() => { window.rlhfHeard = [];
                   window.jupyterapp.shell.currentWidget.sessionContext.iopubMessage.connect((_, m) => {
                     if (m.header.msg_type === 'error') window.rlhfHeard.push(m.content.evalue);
                     if (m.header.msg_type === 'stream' && m.content.name === 'stderr')
                       window.rlhfHeard.push(m.content.text); }); }"""
    )
    page.wait_for_timeout(500)


def charts(page: Any) -> list[Any]:
    """All explorers' charts of the open notebook, brought onto the page from top to bottom."""
    # JupyterLab attaches cells as they come into view.
    count = page.locator(".jp-Notebook .jp-Cell").count()
    for i in range(count):
        with contextlib.suppress(Exception):
            page.locator(".jp-Notebook .jp-Cell").nth(i).scroll_into_view_if_needed(timeout=2000)
    return page.locator(".rlhf-chart").all()


# Which texts of a chart nobody can read: cut by the chart's edge, or lying on one another. Plus cut-off labels.
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
      // Boxes of lines that stand one under the other touch; letters do not reach the boxes' edges.
      const wide = Math.min(r.right, q.right) - Math.max(r.left, q.left);
      const high = Math.min(r.bottom, q.bottom) - Math.max(r.top, q.top);
      if (wide > 2 && high > 0.4 * Math.min(r.height, q.height, r.width, q.width))
        found.push(`the texts "${words}" and "${other}" lie on one another`);
    }
  });
  for (const label of box.querySelectorAll('.widget-label, .widget-readout'))
    if (label.scrollWidth > label.clientWidth + 1) found.push(`the label "${label.textContent}" is cut off`);
  if (!svg.getAttribute('aria-label')) found.push('no words for a screen reader');
  if (chart.classList.contains('failed')) found.push(`it says: ${svg.getAttribute('aria-label')}`);
  return found;
}"""
SETTLED = "([chart, drawn]) => Number(chart.dataset.drawn) > drawn"


class Shown:
    """One explorer on the page.

    Attributes:
        faults: what was found wrong with it, each once, in the order of finding.
        count: how many controls it has.
    """

    def __init__(self, page: Any, chart: Any) -> None:
        chart.scroll_into_view_if_needed()
        self.page, self.chart, self.faults = page, chart, dict[str, None]()
        # Its own box: the nearest ancestor that also holds its controls.
        self.box = chart.locator("xpath=ancestor::*[contains(@class,'widget-vbox')][1]")
        self.sliders = self.box.locator(".noUi-handle").all()
        self.menus = self.box.locator("select").all()
        self.ticks = self.box.locator("input[type=checkbox]").all()
        self.count = len(self.sliders) + len(self.menus) + len(self.ticks)

    def picture(self) -> str:
        """The present picture, and nothing of the words around it."""
        return str(self.chart.locator("svg").inner_html())

    def act(self, do: Callable[[], Any], state: Callable[[], Any]) -> None:
        """Move a control and wait for the picture, where `state`, what the control says, changed."""
        before, drawn = state(), int(self.chart.get_attribute("data-drawn"))
        do()
        self.page.wait_for_timeout(50)
        if state() == before:
            return
        with contextlib.suppress(Exception):  # an equal picture is not sent again
            self.page.wait_for_function(SETTLED, arg=[self.chart.element_handle(), drawn], timeout=5000)
        self.page.wait_for_timeout(200)
        self.look()

    def look(self) -> None:
        """Note what cannot be read as it stands."""
        seen = self.page.evaluate(UNREADABLE, [self.box.element_handle(), self.chart.element_handle()])
        self.faults.update(dict.fromkeys(seen))

    def press(self, slider: Any, key: str) -> None:
        """A key on a slider."""
        # The place on the scale: the text for screen readers is rounded.
        self.act(lambda: slider.press(key), lambda: slider.evaluate("h => h.parentElement.style.transform"))

    def choose(self, menu: Any, index: int) -> None:
        """An entry of a drop-down: its keys belong to the browser, which opens the menu outside the page."""
        self.act(lambda: menu.select_option(index=index), lambda: menu.evaluate("m => m.selectedIndex"))

    def flip(self, tick: Any, key: str) -> None:
        """A key on a tick box."""
        self.act(lambda: tick.press(key), tick.is_checked)

    def move_all(self) -> None:
        """Move each control alone and back; its picture must change at one of its settings at least."""
        for i, slider in enumerate(self.sliders):
            start = self.picture()
            # One step and back. A slider that stands at its high end steps down; wide moves only where need be.
            for keys in (("ArrowRight", "ArrowLeft"), ("ArrowLeft", "ArrowRight"), ("Home", "End", "PageDown")):
                if self.changes(start, self.press, slider, keys):
                    break
            else:
                self.faults[f"slider {i + 1} moved, the picture stayed the same"] = None
        for i, menu in enumerate(self.menus):
            first, entries = menu.evaluate("m => [m.selectedIndex, m.options.length]")
            others = [j for j in range(entries) if j != first]
            if not self.changes(self.picture(), self.choose, menu, (*others, first)):
                self.faults[f"drop-down {i + 1} moved, the picture stayed the same"] = None
        for i, tick in enumerate(self.ticks):
            if not self.changes(self.picture(), self.flip, tick, ("Space", "Space")):
                self.faults[f"tick box {i + 1} moved, the picture stayed the same"] = None

    def changes(self, start: str, do: Callable[..., None], control: Any, settings: Sequence[Any]) -> bool:
        """Bring a control to each of `settings`; whether any gave another picture than `start`."""
        changed = False
        for setting in settings:
            do(control, setting)
            changed = self.picture() != start or changed
        return changed

    def end(self, key: str) -> None:
        """All sliders at one end (`Home` or `End`), drop-downs at their first or last entry."""
        for menu in self.menus:
            self.choose(menu, 0 if key == "Home" else menu.evaluate("m => m.options.length - 1"))
        for slider in self.sliders:
            self.press(slider, key)

    def save(self, path: Path) -> None:
        """A screenshot of controls and picture."""
        self.look()
        self.box.screenshot(path=str(path))


def screens(page: Any, out: Path, stem: str) -> None:
    """The notebook from top to bottom, one picture a screen."""
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
    """Everything for one notebook. Returns what is wrong with it."""
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
    problems += [f"an output holds {error}" for error in errors]
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
    """The notebooks meant by `names`: paths, or beginnings of names such as 03; without names, all with an explorer.

    Args:
        names: what the command line says after `--notebooks`.

    Returns:
        Their paths, sorted where not named.
    """
    every = sorted((REPO / "notebooks").glob("*.ipynb"))
    if names is None:
        return [path for path in every if holds_explorer(path)]
    found = []
    for name in names:
        meant = [Path(name)] if name.endswith(".ipynb") else [path for path in every if path.name.startswith(name)]
        if not meant or not all(path.is_file() for path in meant):
            sys.exit(f"No notebook {name!r}. There are: {', '.join(path.stem for path in every)}.")
        found += meant
    return found


def holds_explorer(path: Path) -> bool:
    """Whether a code cell of the notebook makes an explorer."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return any("_explorer(" in "".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def main() -> None:
    """Run the check from the command line; ends with status 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--notebooks", nargs="+", help="numbers or paths; without it, all that hold an explorer")
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
                    with contextlib.suppress(Exception):  # eleven kernels with torch are too many for a small machine
                        page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
                    page.close()
                    bad += len(problems)
                    for problem in problems:
                        print(f"  WRONG {problem}", flush=True)
            browser.close()
    print(f"screenshots in {args.out}")
    print("all well" if not bad else f"{bad} problems")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
