"""The Chinese translations of notebooks fit their English text, and a changed text is detected."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import nbformat
import pytest

REPO = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("translate_notebooks", REPO / "tools" / "translate_notebooks.py")
translate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(translate)

FILES = sorted((REPO / "notebooks" / "zh").glob("*.md"))


def english_of(path: Path) -> dict[str, str]:
    return translate.markdown(nbformat.read(REPO / "notebooks" / f"{path.stem}.ipynb", as_version=4))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_translation_is_stale(path: Path) -> None:
    """Whoever changes an English text may delete its translation; the Chinese notebook then shows the English text."""
    assert translate.problems(english_of(path), translate.read(path))[0] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_translation_keeps_numbers_code_and_links(path: Path) -> None:
    english = english_of(path)
    for key, (mark, text) in translate.read(path).items():
        if mark == translate.TODO:
            continue
        chinese = translate.filled(english[key], text)
        assert re.search("[\u4e00-\u9fff]", text), key
        for pattern in (r"\d+\.\d+", r"`[^`\n]+`", r"\]\(([^)]+)\)"):
            assert set(re.findall(pattern, english[key])) == set(re.findall(pattern, chinese)), key


CODE = "```python\nx = 1\n```"


@pytest.fixture
def notebooks(tmp_path: Path) -> Path:
    """A folder with one notebook of two Markdown cells, without a translation."""
    cells = [nbformat.v4.new_markdown_cell("# A title", id="title"), nbformat.v4.new_code_cell("x", id="code")]
    cells.append(nbformat.v4.new_markdown_cell(f"One\n\n$$\na\n$$\n\n{CODE}", id="text"))
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "05_dpo.ipynb")
    return tmp_path


def run(folder: Path, *more: str) -> int:
    with pytest.raises(SystemExit) as ended:
        translate.main(["05", "--notebooks", str(folder), "--out", str(folder / "out"), *more])
    return int(ended.value.code)


def shown(folder: Path) -> list[str]:
    return [cell.source for cell in nbformat.read(folder / "out" / "05_dpo.zh.ipynb", as_version=4).cells]


def test_from_a_new_file_to_a_chinese_notebook_and_a_stale_cell(
    notebooks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(notebooks, "--add") == 0
    place = notebooks / "zh" / "05_dpo.md"
    begun = place.read_text()
    assert "<!-- cell text todo -->\nOne\n\n[[1]]\n\n[[2]]\n" in begun  # no formula and no code to copy
    title = translate.checksum("# A title")
    place.write_text(begun.replace("cell title todo -->\n# A title", f"cell title {title} -->\n# 标题"))
    assert run(notebooks, "--build") == 0
    assert "1 missing, 0 to correct" in capsys.readouterr().out
    assert shown(notebooks) == ["# 标题", "x", f"One\n\n$$\na\n$$\n\n{CODE}"]

    text = translate.checksum(f"One\n\n$$\na\n$$\n\n{CODE}")
    place.write_text(
        place.read_text().replace("text todo -->\nOne\n\n[[1]]\n\n[[2]]", f"text {text} -->\n[[2]]\n\n一\n\n[[1]]")
    )
    assert run(notebooks, "--build") == 0
    assert shown(notebooks)[2] == f"{CODE}\n\n一\n\n$$\na\n$$"

    notebook = nbformat.read(notebooks / "05_dpo.ipynb", as_version=4)
    notebook.cells[0].source = "# Another title"
    nbformat.write(notebook, notebooks / "05_dpo.ipynb")
    assert run(notebooks, "--build") == 1
    assert (
        f"title: the English text has changed. Translate it again and write {translate.checksum('# Another title')}"
        in (capsys.readouterr().out)
    )
    assert shown(notebooks)[0] == "# Another title"  # an outdated translation is not shown


def test_a_lost_block_and_a_cell_that_is_gone_are_reported() -> None:
    english = {"a": f"One\n\n{CODE}"}
    mark = translate.checksum(english["a"])
    wrong, missing = translate.problems(english, {"a": (mark, "一"), "b": ("0" * 8, "二")})
    assert [sentence.split(":")[0] for sentence in wrong] == ["a", "b"] and missing == []
    assert translate.problems(english, {"a": (mark, "一\n\n[[1]]")}) == ([], [])
    assert translate.problems(english, {}) == ([], ["a"])
