"""Look at the notebooks as a student does: JupyterLab in a real browser, all cells run, every control moved.

    python tools/browser_check.py [notebook.ipynb ...] [--out build/browser] [--theme light|dark|both]

For each notebook: runs all cells, fails on an error in an output or in the browser's console, then moves every
control of every explorer (sliders by keyboard) and asserts that its picture changed. Screenshots of the page
and of each explorer land in `--out`, to be looked at.

Needs `pip install playwright` and a Chromium (`--chromium`, or one found on the PATH).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
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
        news.write_text('{"fetchNews": "false"}')
        command = [
            sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser",
            f"--ServerApp.root_dir={root}", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}",
            "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}",
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        ]  # fmt: skip
        with open(Path(home) / "server.log", "w+") as log:
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
    done = """() => { const cells = [...window.jupyterapp.shell.currentWidget.content.model.cells];
                      const code = cells.filter(c => c.type === 'code' && c.sharedModel.source.trim());
                      return code.every(c => c.executionCount !== null && c.executionState !== 'running'); }"""
    page.wait_for_function(done, timeout=180_000)
    page.wait_for_timeout(500)


def charts(page: Any) -> list[Any]:
    """All explorers' charts of the open notebook, brought onto the page from top to bottom."""
    # JupyterLab attaches cells as they come into view.
    count = page.locator(".jp-Notebook .jp-Cell").count()
    for i in range(count):
        with contextlib.suppress(Exception):
            page.locator(".jp-Notebook .jp-Cell").nth(i).scroll_into_view_if_needed(timeout=2000)
    return page.locator(".rlhf-chart").all()


def move_controls(page: Any, chart: Any, problems: list[str], where: str) -> int:
    """Move each control of the explorer that `chart` belongs to, sliders by keyboard. Returns how many there were."""
    chart.scroll_into_view_if_needed()
    # The explorer's own box: the nearest ancestor that also holds its controls.
    box = chart.locator("xpath=ancestor::*[contains(@class,'widget-vbox')][1]")
    moves = [(handle, "ArrowRight") for handle in box.locator(".noUi-handle").all()]
    moves += [(menu, "ArrowDown") for menu in box.locator("select").all()]
    moves += [(tick, "Space") for tick in box.locator("input[type=checkbox]").all()]
    for i, (control, key) in enumerate(moves):
        before = chart.locator("svg").inner_html()
        drawn = int(chart.get_attribute("data-drawn"))
        if key == "ArrowDown":
            # A drop-down's keys belong to the browser, and a headless one opens its menu outside the page.
            control.select_option(index=1)
        else:
            for _ in range(4 if key == "ArrowRight" else 1):
                control.press(key)
        try:
            page.wait_for_function(
                "([chart, drawn]) => Number(chart.dataset.drawn) > drawn",
                arg=[chart.element_handle(), drawn],
                timeout=10_000,
            )
            page.wait_for_timeout(300)
        except Exception:
            problems.append(f"{where}: control {i + 1} was moved and nothing was drawn")
            continue
        if chart.locator("svg").inner_html() == before:
            problems.append(f"{where}: control {i + 1} was moved and the picture is the same")
    return len(moves)


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


def check(page: Any, url: str, name: str, out: Path, theme: str) -> list[str]:
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
        """() => [...window.jupyterapp.shell.currentWidget.content.model.cells].filter(c => c.type === 'code')
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
        moved = move_controls(page, chart, problems, f"explorer {i + 1}")
        if moved == 0:
            problems.append(f"explorer {i + 1} has no control")
        chart.locator("xpath=ancestor::*[contains(@class,'widget-vbox')][1]").screenshot(
            path=str(out / f"{stem}-explorer-{i + 1}.png")
        )
        print(f"  explorer {i + 1}: {moved} controls moved", flush=True)
    problems += [f"console: {line}" for line in heard if not any(word in line for word in HARMLESS)]
    screens(page, out, stem)
    return problems


def main() -> None:
    """Run the check from the command line; ends with status 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, default=[REPO / "notebooks" / "00_start_here.ipynb"])
    parser.add_argument("--out", type=Path, default=REPO / "build" / "browser")
    parser.add_argument("--chromium", help="path or name of the browser")
    parser.add_argument("--theme", choices=["light", "dark", "both"], default="light")
    args = parser.parse_args()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sys.exit("playwright is missing: pip install -e '.[browser]'")
    binary = find_chromium(args.chromium)
    args.out.mkdir(parents=True, exist_ok=True)
    flags = [*FLAGS, "--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else FLAGS
    bad = 0
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        for path in args.notebooks:
            shutil.copy(path, scratch)
        with jupyterlab(Path(scratch)) as url:
            browser = playwright.chromium.launch(executable_path=binary, args=flags)
            for path in args.notebooks:
                for theme in ("light", "dark") if args.theme == "both" else (args.theme,):
                    page = browser.new_page(viewport={"width": 1280, "height": 900})
                    problems = check(page, url, path.name, args.out, theme)
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
