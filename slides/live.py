"""The live view of the slides: a notebook with the explorers, served by Voila with the slides as its template.

The page contains all slides and opens immediately. The cells of the notebook run in a kernel that was started
beforehand, and each output is moved into its slide. The text of every slide is part of the page, so if the kernel
dies, only the explorers stop working.
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
from slides.schema import Deck, ExplorerPart, Slide, T

LIVE = build.BUILD / "live"
TEMPLATE = "lecture"
STARTING = 60
"""Maximum seconds until the server answers."""

_SETUP = """\
import ipywidgets
from IPython.display import display

from slides.explorers import make
from slides.heartbeat import Heartbeat

heartbeat = Heartbeat()
explorers = heartbeat.explorers
print(heartbeat.model_id)
"""


def cell_source(part: ExplorerPart) -> str:
    """The code that shows an explorer."""
    arguments = [repr(part.name)]
    if part.at:
        arguments.append(f"at={dict(part.at)!r}")
    if part.only:
        arguments.append(f"only={part.only!r}")
    if part.panels:
        arguments.append(f"panels={part.panels!r}")
    return f"explorer = make({', '.join(arguments)})\nexplorers.append(explorer)\ndisplay(explorer.widget)"


def notebook(deck: Deck) -> nbformat.NotebookNode:
    """The notebook behind the slides: a set-up cell, and a cell for each explorer, tagged with its slide's key."""
    cells = [nbformat.v4.new_code_cell(_SETUP, id="setup", metadata={"slide": ""})]
    for slide, part in render.explorers_of(deck):
        cells.append(nbformat.v4.new_code_cell(cell_source(part), id=slide.key[:64], metadata={"slide": slide.key}))
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    made: nbformat.NotebookNode = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": spec})
    return made


def _code(slide: Slide, part: ExplorerPart) -> str:
    """The code that the key C shows: the cell and the factory of the explorer."""
    factory = inspect.getsource(explorers.FACTORIES[part.name])
    return f"{cell_source(part)}\n\n\n# slides/explorers.py\n{factory}"


def place(slide: Slide, part: ExplorerPart) -> str:
    """The placeholder into which the output of the explorer's cell is moved."""
    import html

    return (
        f'<div class="live" data-live="{slide.key}"></div>'
        f'<template data-code="{slide.key}"><pre>{html.escape(_code(slide, part))}</pre></template>'
    )


def template(deck_html: str, title: T) -> str:
    """The Voila template: first the slides, then the outputs of the cells, each of which is moved into its slide."""
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
<script type="text/plain" id="heartbeat-model">{{{{ output.text | trim }}}}</script>
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


def write(deck: Deck, title: T) -> list[str]:
    """Write notebook, template and libraries to build/slides/live. Returns messages about what could not be shown."""
    deck_html, missing = build.html(deck, place)
    home = LIVE / "share" / "voila" / "templates" / TEMPLATE
    static = home / "static"
    build.library(static / "lib")
    (home / "index.html.j2").write_text(template(deck_html, title), encoding="utf-8")
    (home / "conf.json").write_text('{"base_template": "base"}\n')
    # The speaker view shows the slides twice more. It uses the static page, which needs no kernel.
    page, _ = build.html(deck, lambda slide, part: "")
    (static / "page" / "slides").mkdir(parents=True, exist_ok=True)
    (static / "page" / "slides" / "index.html").write_text(build.page(page, "../../lib", title, []), encoding="utf-8")
    nbformat.write(notebook(deck), LIVE / "deck.ipynb")
    return missing


def prepare(deck: Deck, title: T) -> None:
    """Build in advance what takes long: the HTML of the slides, and the policies that two explorers train."""
    for sentence in write(deck, title):
        print(f"not shown yet: {sentence}")
    for _, part in tqdm(render.explorers_of(deck), desc="explorers", leave=False):
        explorers.make(part.name, part.at, part.only, part.panels)


@contextlib.contextmanager
def server(port: int = 0, kernels: int = 2, log: Path | None = None) -> Iterator[tuple[str, int]]:
    """Serve the built slides with Voila on this machine only. Yields the page's address and the server's process id.

    Args:
        port: port number; 0 chooses a free one.
        kernels: number of kernels that are started in advance. The second replaces the first if it dies.
        log: file for the server's output.

    Raises:
        LabError: if the server does not start.
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
    # One thread per kernel, because two kernels on two cores would otherwise slow each other down.
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
    last = said[-1] if said else "none"
    raise LabError(f"Voila did not start. The last line of its output is: {last}. The whole output is in {log}.")


def clear() -> None:
    """Delete what was built for the live view."""
    shutil.rmtree(LIVE, ignore_errors=True)


def present(deck: Deck, title: T, port: int, browser: bool, language: str) -> None:
    """Build the slides if needed, serve them, open the browser, and wait for Ctrl-C."""
    begin = time.monotonic()
    for sentence in write(deck, title):
        print(f"not shown yet: {sentence}")
    with server(port) as (url, _):
        address = f"{url}?lang={language}"
        print(f"The slides are at {address}  ({time.monotonic() - begin:.1f} s). Press Ctrl-C to stop.", flush=True)
        if browser:
            webbrowser.open(address)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)
