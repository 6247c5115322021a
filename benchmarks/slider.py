"""Benchmark of explorers in JupyterLab: the time from a slider's move to the changed picture, against `interact`.

    python benchmarks/slider.py [--moves 30] [--chromium PATH]

It opens a temporary notebook in headless Chromium and moves one slider of each of its cells:

- `label`: a text label, which gives the minimum time of a round trip browser → kernel → browser;
- `explorer`: this course's `optimal_policy_explorer`, which computes the neighbouring stops in advance;
- `leaps`: the same explorer without advance computation, moved to random positions;
- `interact`: `ipywidgets.interact` with a new matplotlib figure of the same bars and curve.

All sliders except that of `leaps` are moved by the arrow key, one stop at a time. A move is timed until the browser has
painted a frame with the changed output. The output contains medians, 90th percentiles, and ratios to the label. Compare
the ratios, not the times, between machines.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
from browser_check import FLAGS, find_chromium, jupyterlab, open_and_run

SETUP = """
import torch
import ipywidgets
import matplotlib.pyplot as plt
from rlhf_lab import exact
from rlhf_lab.worlds import bandit
from rlhf_lab.widgets.optimal_policy import optimal_policy_explorer
world = bandit.lecture()
log_ref, reward = world.log_ref(), world.rewards()
"""
CELLS = {
    "label": """
slider = ipywidgets.FloatLogSlider(value=0.5, min=-2, max=2, step=0.04)
label = ipywidgets.Label("0.5")
slider.observe(lambda change: setattr(label, "value", f"β = {change.new:.4f}"), "value")
ipywidgets.VBox([slider, label])
""",
    "explorer": "optimal_policy_explorer(log_ref, reward, world.response_names(), world.prompt_names)",
    "leaps": """
leaps = optimal_policy_explorer(log_ref, reward, world.response_names(), world.prompt_names)
leaps._ahead.moved = lambda name: None
leaps
""",
    "interact": """
@ipywidgets.interact(beta=ipywidgets.FloatLogSlider(value=0.5, min=-2, max=2, step=0.04))
def show(beta):
    star = exact.optimal_policy(log_ref[0], reward[0], beta).exp()
    kl, gain = exact.frontier(log_ref[0], reward[0], torch.logspace(-3, 3, 121, dtype=torch.float64))
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5))
    left.bar(range(4), log_ref[0].exp(), 0.4)
    left.bar([i + 0.4 for i in range(4)], star, 0.4)
    right.plot(kl, gain)
    right.set_title(f"β = {beta:.3g}")
    plt.show()
""",
}
# The key is pressed and timed inside the page, by the browser's clock. The slider's own read-out does not count as a
# change, because it changes before the kernel receives the message.
TIME_ONE = """
async ([cell, key]) => {
  const handle = cell.querySelector('.noUi-handle');
  const seen = '.rlhf-chart svg, .jupyter-widgets.widget-label:not(.widget-readout), img';
  const state = () => [...cell.querySelectorAll(seen)]
    .filter(n => !n.closest('.widget-slider')).map(n => n.src || n.innerHTML || n.textContent).join('|');
  const before = state();
  const start = performance.now();
  // The observer notices a changed cell. The time is taken when the frame that shows the change has been painted:
  // a frame's callbacks run before it is painted, and a message that is posted from one is delivered afterwards.
  const changed = new Promise((done) => {
    const observer = new MutationObserver(() => {
      const now = state();
      if (now === before || now === '') return;
      observer.disconnect();
      requestAnimationFrame(() => {
        const { port1, port2 } = new MessageChannel();
        port1.onmessage = () => done(performance.now() - start);
        port2.postMessage(null);
      });
    });
    observer.observe(cell, { subtree: true, childList: true, characterData: true, attributes: true });
    setTimeout(() => { observer.disconnect(); done(null); }, 5000);
  });
  if (key === 'leap') {
    const slider = cell.querySelector('.noUi-target').noUiSlider;
    const { min, max } = slider.options.range;
    const [low, high] = [min, max].map((end) => Number(Array.isArray(end) ? end[0] : end));
    slider.set(low + Math.random() * (high - low));
  } else {
    handle.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true, cancelable: true}));
  }
  return changed;
}
"""


def measure(page: Any, index: int, moves: int, leap: bool) -> list[float]:
    """Milliseconds of each move of the slider in cell `index`, by one stop or to random positions."""
    cell = page.locator(".jp-Notebook .jp-Cell").nth(index)
    cell.scroll_into_view_if_needed()
    page.wait_for_timeout(1000)
    cell.locator(".noUi-handle").focus()
    times = []
    for i in range(moves + 3):
        key = "leap" if leap else "ArrowRight" if i % 40 < 20 else "ArrowLeft"
        took = page.evaluate(TIME_ONE, [cell.element_handle(), key])
        if took is None:
            sys.exit(f"Cell {index}: nothing changed within five seconds after the slider had moved.")
        if i >= 3:  # the first moves warm up kernel and page
            times.append(took)
        page.wait_for_timeout(150)
    return times


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--moves", type=int, default=30, help="timed moves of each slider")
    parser.add_argument("--chromium", help="path or name of the browser")
    args = parser.parse_args()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sys.exit("playwright is missing: pip install -e '.[browser]'")
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(metadata=kernel)
    notebook.cells = [nbformat.v4.new_code_cell(source.strip()) for source in (SETUP, *CELLS.values())]
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        nbformat.write(notebook, Path(scratch, "slider.ipynb"))
        with jupyterlab(Path(scratch)) as url:
            browser = playwright.chromium.launch(
                executable_path=find_chromium(args.chromium), args=[*FLAGS, "--no-sandbox"]
            )
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            open_and_run(page, url, "slider.ipynb")
            times = {name: measure(page, i + 1, args.moves, name == "leaps") for i, name in enumerate(CELLS)}
            browser.close()
    floor = statistics.median(times["label"])
    table = pd.DataFrame(
        {
            "median ms": {name: statistics.median(values) for name, values in times.items()},
            "90% ms": {name: statistics.quantiles(values, n=10)[-1] for name, values in times.items()},
        }
    )
    table["ratio to label"] = table["median ms"] / floor
    print(f"{args.moves} moves of each slider")
    print(table.round(2).to_string())


if __name__ == "__main__":
    main()
