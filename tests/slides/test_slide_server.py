"""The live view without its server: its notebook, the template that places the cells' outputs, and the heartbeat."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any

import jinja2
import nbformat
import pytest

from slides import live, practice, render
from slides.deck import deck
from slides.heartbeat import Heartbeat
from slides.schema import Block, Deck, ExplorerPart, Slide, T, Text

W = T("words", "词")
MADE = Deck(
    W,
    (
        Block(
            "b",
            W,
            (
                Slide("plain", W, (Text(T("braces {{ 7 * 6 }} and {% endraw %}", "括号 {{ 7 * 6 }}")),), W),
                Slide("alive", W, (ExplorerPart("optimal_policy", at={"beta": 0.3}, only=("beta",)),), W),
                Slide("broken", W, (ExplorerPart("rejection"),), W),
            ),
        ),
    ),
)


def output(kind: str, **more: Any) -> Any:
    return SimpleNamespace(output_type=kind, **more)


@pytest.fixture(scope="module")
def page() -> str:
    """The template as Voila fills it, with the outputs of a kernel of ours: a heartbeat, a widget, an error."""
    widget = {"output_type": "display_data", "data": {"application/vnd.jupyter.widget-view+json": {"model_id": "w"}}}
    outputs = {
        "": [output("stream", name="stdout", text="p-1\n")],
        "alive": [{**widget}],
        "broken": [output("error", ename="LabError", evalue="secret words", traceback=["File /home/me"])],
    }

    class Shown(dict):  # type: ignore[type-arg]
        __getattr__ = dict.get

    def cells(nb: Any, kernel: str) -> Any:
        for cell in nb.cells:
            made = [Shown(o) if isinstance(o, dict) else o for o in outputs[cell.metadata["slide"]]]
            yield SimpleNamespace(metadata=cell.metadata, outputs=made)

    deck_html = render.typeset(render.sections(MADE, render.Context(live.place)), render.raw)
    template = jinja2.Environment().from_string(live.template(deck_html, T("a title", "标题")))
    return template.render(
        resources={"base_url": "/t/"}, page_config={"fullStaticUrl": "/t/static"}, nb=live.notebook(MADE),
        kernel_start=lambda nb: "kernel-1", cell_generator=cells, main_js="voila.js",
    )  # fmt: skip


def test_a_slides_text_is_never_taken_for_template_code(page: str) -> None:
    assert "{{ 7 * 6 }}" in page and "42" not in re.sub(r"<template.*?</template>", "", page, flags=re.S)


def test_a_cell_that_fails_shows_its_errors_name_and_no_traceback(page: str) -> None:
    assert 'class="failed" role="alert">LabError<' in page
    assert "secret words" not in page and "/home/me" not in page


def test_each_explorers_widget_is_sent_to_its_own_slide(page: str) -> None:
    assert re.search(r'data-for="alive">\s*<script type="application/vnd.voila.cell-output\+json">', page)
    assert 'data-live="alive"' in page and 'data-live="plain"' not in page
    assert (
        json.loads(re.search(r'id="jupyter-config-data" type="application/json">(.*?)<', page)[1])["kernelId"]
        == "kernel-1"
    )  # type: ignore[index]


def test_practice_finds_the_explorer_that_failed_and_passes_the_one_that_came(page: str) -> None:
    report = practice.Report()
    practice.inspect_page(page, MADE, report)
    assert len(report.wrong) == 1 and "'broken'" in report.wrong[0] and "LabError" in report.wrong[0]
    assert report.conclusion.startswith("NOT READY")


def test_practice_moves_every_control_and_refuses_an_explorer_that_does_not_move() -> None:
    from rlhf_lab.errors import LabError
    from rlhf_lab.widgets.explorer import Explorer
    from slides import explorers

    moving = explorers.make("optimal_policy", only=("beta",))
    assert len(practice.move(moving)) == len(moving.controls["beta"].grid(practice.STOPS))
    still = Explorer(lambda beta: moving.picture(beta=0.5), dict(moving.controls), "stands still")
    with pytest.raises(LabError, match="none of its controls"):
        practice.move(still)


def test_the_notebook_of_the_whole_deck_is_valid_and_names_explorers_that_can_be_made() -> None:
    from slides import explorers

    made = deck()
    notebook = live.notebook(made)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        compile(cell.source, cell.metadata["slide"], "exec")
    for slide, part in render.explorers_of(made):
        if part.name not in ("trajectories", "over_optimisation"):  # trained when they are made
            explorer = explorers.make(part.name, part.at, part.only, part.panels)
            assert set(explorer.controls) >= set(part.only), slide.key


def test_the_heartbeat_answers_the_pages_pings_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    heartbeat, said = Heartbeat(), []
    monkeypatch.setattr(heartbeat, "send", said.append)
    heartbeat._answer(heartbeat, {"ping": 3}, [])
    heartbeat._answer(heartbeat, {"other": 3}, [])
    assert said == [{"pong": 3}]
