"""The notebooks as they lie in the repository: normalised, complete, and with nothing of a machine in them."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from near_numbers import Tolerance

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def test_there_is_a_first_notebook():
    assert "00_start_here.ipynb" in [path.name for path in NOTEBOOKS]


def test_every_code_cell_was_run_once_in_order(notebook):
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))


def test_no_output_is_an_error_a_warning_or_a_live_widget(notebook):
    for cell in notebook.cells:
        for out in cell.get("outputs", []):
            expected = "raises-exception" in cell.metadata.get("tags", [])
            assert out.output_type != "error" or expected, cell.id
            assert out.get("name") != "stderr", cell.id
            assert WIDGET not in out.get("data", {}), cell.id


def test_every_picture_has_a_text_equivalent(notebook):
    for cell in notebook.cells:
        for out in cell.get("outputs", []):
            if "image/png" in out.get("data", {}):
                assert len(out.metadata["image/png"]["alt"]) > 40, cell.id
    markdown = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert "![](" not in markdown


def test_no_output_names_a_path_or_an_address(notebook):
    for cell in notebook.cells:
        for out in cell.get("outputs", []):
            data = {k: v for k, v in out.get("data", {}).items() if k.startswith("text/")}
            text = json.dumps([out.get("text", ""), data])
            assert not re.search(r"0x[0-9a-f]{6,}|/home/|/root/|/Users/|site-packages", text), cell.id


def test_a_cell_whose_digits_may_differ_asserts_what_they_show(notebook):
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if Tolerance.of(tags) != Tolerance():
            assert cell.cell_type == "code" and re.search(r"^ *assert ", cell.source, re.M), cell.id


def test_metadata_is_trimmed_and_ids_are_unique(notebook):
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert "version" not in notebook.metadata.language_info
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)


def test_the_first_cell_has_the_reading_time_as_data_and_in_words(notebook):
    """The site shows the number of the metadata."""
    first = notebook.cells[0]
    assert f"{first.metadata.minutes_to_read} minutes to read" in first.source.replace(" five ", " 5 ")


def test_a_link_that_names_a_heading_names_one_of_that_notebook(notebook):
    """Such as [notebook 09, “RAFT converges to best-of-n”](09_rest.ipynb); the number of a section is left out."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for number, heading, name in re.findall(r"\[notebook (\d\d), “([^”]+)”\]\((\d\d_\w+\.ipynb)\)", text):
        other = nbformat.read(NOTEBOOKS[0].parent / name, as_version=4)
        prose = "\n".join(cell.source for cell in other.cells if cell.cell_type == "markdown")
        headings = re.findall(r"^#+ (?:\d+\. )?(.+)$", prose, re.M)
        assert name.startswith(number) and heading in headings, f"{name} has no heading “{heading}”"


def test_sections_1_to_8_of_notebook_00_are_read_in_five_minutes():
    """At 200 words a minute, without code, formulas and links. Exercise 1 has a minute of its own."""
    cells = nbformat.read(NOTEBOOKS[0], as_version=4).cells
    ids = [cell.id for cell in cells]
    prose = [cell.source for cell in cells[: ids.index("practice")] if cell.cell_type == "markdown"]
    assert prose[-1].startswith("In this world") and len(prose) > 10
    read = " ".join(text for text in prose if not text.startswith("### Exercise"))
    words = re.findall(r"\w\S*", re.sub(r"\$\$.*?\$\$|\[[^\]]*\]\(.*?\)|\$[^$]*\$", " ", read, flags=re.S))
    assert len(words) <= 5 * 200
