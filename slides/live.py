"""The live deck: one notebook with the explorers, served by Voila with a template that is the deck.

The page holds all slides and opens at once; the notebook's cells run in a kernel that was started beforehand, and
each puts its explorer into its slide. Every slide's text comes with the page, so that a kernel that dies takes the
explorers with it and nothing else.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import webbrowser
from collections.abc import Iterator
from pathlib import Path

import nbformat
from tqdm.auto import tqdm

from rlhf_lab.errors import LabError
from slides import build, explorers, render
from slides.schema import Deck, Explorer, Slide

LIVE = build.BUILD / "live"
TEMPLATE = "lecture"
STARTING = 60
"""Seconds that the server may take to answer."""

_SETUP = """\
import ipywidgets
from IPython.display import display

from slides.explorers import make
from slides.heartbeat import Pulse

pulse = Pulse()
print(pulse.model_id)
"""


def cell_source(part: Explorer) -> str:
    """The code that shows an explorer."""
    arguments = [repr(part.name)]
    if part.at:
        arguments.append(f"at={dict(part.at)!r}")
    if part.only:
        arguments.append(f"only={part.only!r}")
    if part.panels:
        arguments.append(f"panels={part.panels!r}")
    return f"explorer = make({', '.join(arguments)})\ndisplay(explorer.widget)"


def notebook(deck: Deck) -> nbformat.NotebookNode:
    """The deck's notebook: what is set up, and a cell for each explorer, marked with its slide's key."""
    cells = [nbformat.v4.new_code_cell(_SETUP, id="setup", metadata={"slide": ""})]
    for slide, part in render.explorers_of(deck):
        cells.append(nbformat.v4.new_code_cell(cell_source(part), id=slide.key[:64], metadata={"slide": slide.key}))
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": spec})


def _code(slide: Slide, part: Explorer) -> str:
    """What the key C shows: the cell, the factory, and the function whose picture it is."""
    factory = inspect.getsource(explorers.FACTORIES[part.name])
    return f"{cell_source(part)}\n\n\n# slides/explorers.py\n{factory}"


def place(slide: Slide, part: Explorer) -> str:
    """Where the explorer's cell puts its output."""
    import html

    return (
        f'<div class="live" data-live="{slide.key}"></div>'
        f'<template data-code="{slide.key}"><pre>{html.escape(_code(slide, part))}</pre></template>'
    )


def template(deck_html: str, title: str) -> str:
    """The Voila template: the deck first, then the cells' outputs, each moved into its slide."""
    lib = f"{{{{ resources.base_url }}}}voila/templates/{TEMPLATE}/static/lib"
    raw = deck_html.replace("{% endraw %}", "{ % endraw % }")
    return f"""<!DOCTYPE html>
<html lang="en" data-theme="light">
<head>
{build.head(lib, title)}
<link rel="stylesheet" href="{lib}/live.css">
<script>window.SlidesBase = new URL("{{{{ resources.base_url }}}}voila/templates/{TEMPLATE}/", location.href);</script>
<script src="{lib}/live.js"></script>
<script src="{lib}/reveal/reveal.js"></script>
<script src="{lib}/reveal/notes.js"></script>
<script src="{lib}/deck.js"></script>
</head>
<body data-base-url="{{{{ resources.base_url }}}}voila/" data-jp-theme-light="true"
 data-jp-theme-name="JupyterLab Light" data-voila="voila">
<main class="reveal"><div class="slides">
{{% raw %}}{raw}{{% endraw %}}
</div></main>
<script>Slides.start();</script>
{{% set page_config_full = page_config.copy() %}}
{{%- set kernel_id = kernel_start(nb) -%}}
{{% set _ = page_config_full.update(baseUrl=resources.base_url, kernelId=kernel_id) %}}
<script id="jupyter-config-data" type="application/json">{{{{ page_config_full | tojson }}}}</script>
<div id="rendered_cells" hidden></div>
{{%- for cell in cell_generator(nb, kernel_id) -%}}
<div class="rendered" data-for="{{{{ cell.metadata.get('slide', '') }}}}">
{{%- for output in cell.outputs -%}}
{{%- if output.output_type == "stream" and output.name == "stdout" -%}}
<script type="text/plain" id="pulse-model">{{{{ output.text | trim }}}}</script>
{{%- elif output.output_type in ("display_data", "execute_result") -%}}
<script type="application/vnd.voila.cell-output+json">{{{{ output | tojson }}}}</script>
{{%- elif output.output_type == "error" -%}}
<p class="failed" role="alert">{{{{ output.ename | escape }}}}</p>
{{%- endif -%}}
{{%- endfor -%}}
</div>
<script>(() => {{
  const made = document.currentScript.previousElementSibling;
  document.querySelector(`[data-live="${{made.dataset.for}}"]`)?.append(...made.childNodes);
}})();</script>
{{%- endfor -%}}
<script src="{{{{ page_config['fullStaticUrl'] | e }}}}/{{{{ main_js }}}}"></script>
</body>
</html>
"""


def write(deck: Deck, title: str) -> list[str]:
    """Write notebook, template and libraries under build/slides/live. Returns what could not be shown."""
    deck_html, missing = build.html(deck, place)
    home = LIVE / "share" / "voila" / "templates" / TEMPLATE
    static = home / "static"
    build.library(static / "lib")
    (home / "index.html.j2").write_text(template(deck_html, title), encoding="utf-8")
    (home / "conf.json").write_text('{"base_template": "base"}\n')
    # The speaker view shows the deck twice more: the static page, so that it needs no kernels of its own.
    page, _ = build.html(deck, lambda slide, part: "")
    (static / "page" / "slides").mkdir(parents=True, exist_ok=True)
    (static / "page" / "slides" / "index.html").write_text(build.page(page, "../../lib", title, []), encoding="utf-8")
    nbformat.write(notebook(deck), LIVE / "deck.ipynb")
    return missing


def prepare(deck: Deck, title: str) -> None:
    """Do beforehand what takes long: the deck's HTML, and the policies that two explorers train."""
    for sentence in write(deck, title):
        print(f"not shown yet: {sentence}")
    for _, part in tqdm(render.explorers_of(deck), desc="explorers", leave=False):
        explorers.make(part.name, part.at, part.only, part.panels)


@contextlib.contextmanager
def server(port: int = 0, kernels: int = 2, log: Path | None = None) -> Iterator[tuple[str, int]]:
    """Voila over the built deck, on this machine only. Gives the address of its page and the server's process.

    Args:
        port: 0 takes a free one.
        kernels: kept ready: the first serves the page, the next is there if it dies.
        log: where the server's words go.

    Raises:
        LabError: it does not start.
    """
    if port == 0:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    token = secrets.token_hex(12)
    command = [
        sys.executable, "-m", "voila", str(LIVE / "deck.ipynb"), f"--template={TEMPLATE}", "--no-browser",
        f"--port={port}", "--Voila.ip=127.0.0.1", "--preheat_kernel=True", f"--pool_size={kernels}",
        "--VoilaConfiguration.show_tracebacks=False", f"--base_url=/{token}/",
    ]  # fmt: skip
    path = os.pathsep.join(filter(None, (str(LIVE / "share"), os.environ.get("JUPYTER_PATH", ""))))
    root = os.pathsep.join(filter(None, (str(build.ROOT), os.environ.get("PYTHONPATH", ""))))
    # One thread a kernel: two that share two cores would wait for one another.
    env = {**os.environ, "JUPYTER_PATH": path, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    log = log or LIVE / "server.log"
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(command, cwd=LIVE, env=env, stdout=out, stderr=subprocess.STDOUT)
        try:
            url = f"http://127.0.0.1:{port}/{token}/"
            _wait(process, url + f"voila/templates/{TEMPLATE}/static/lib/deck.css", log)
            yield url, process.pid
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            if process.poll() is None:
                process.kill()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + STARTING
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url, timeout=2)
            return
        if process.poll() is not None:
            break
        time.sleep(0.1)
    said = log.read_text(encoding="utf-8").strip().splitlines()
    raise LabError(f"Voila did not start; its last words (all of them in {log}): {said[-1] if said else 'none'}")


def clear() -> None:
    """Drop what was built for the live view."""
    shutil.rmtree(LIVE, ignore_errors=True)


def present(deck: Deck, title: str, port: int, browser: bool, language: str) -> None:
    """Build if needed, serve, open the browser, and wait for Ctrl-C."""
    begin = time.monotonic()
    for sentence in write(deck, title):
        print(f"not shown yet: {sentence}")
    with server(port) as (url, _):
        address = f"{url}?lang={language}"
        print(f"The slides are at {address}  ({time.monotonic() - begin:.1f} s). Ctrl-C ends them.", flush=True)
        if browser:
            webbrowser.open(address)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)
