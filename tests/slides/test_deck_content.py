"""The lecture as it is written: its length, its explorers, its claims, its two languages."""

from __future__ import annotations

import importlib
import itertools
import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup
from matplotlib.text import Text as Writing

from rlhf_lab.experiments import results as saved_results
from rlhf_lab.figures import style
from slides import explorers, render
from slides import results as slide_results
from slides import schema as f
from slides.deck import deck
from slides.translation import english

MADE = deck()
SLIDES = [slide for _, slide in MADE.slides()]


def test_two_lectures_of_fifty_minutes_on_45_to_64_slides() -> None:
    assert 45 <= len(SLIDES) <= 64
    for lecture in (1, 2):
        minutes = sum(block.minutes for block in MADE.blocks if block.lecture == lecture)
        assert 45 <= minutes <= 52, f"lecture {lecture} takes {minutes} minutes"


def test_the_blocks_follow_the_lecture() -> None:
    keys = [block.key for block in MADE.blocks]
    assert keys == [
        "review",
        "optimum",
        "preference-model",
        "dpo-objective",
        "dpo-outline",
        "dpo-ppo",
        "rso",
        "rest",
        "discussion",
    ]
    assert [block.lecture for block in MADE.blocks] == sorted(block.lecture for block in MADE.blocks)


def test_after_every_block_stands_a_question_with_its_answer() -> None:
    for block in MADE.blocks:
        kinds = [slide.kind for slide in block.slides]
        assert ("question", "answer") in list(itertools.pairwise(kinds)), block.key


def test_every_idea_that_has_an_explorer_shows_it() -> None:
    shown = {part.name for slide in SLIDES for part in f.parts_of(slide) if isinstance(part, f.ExplorerPart)}
    assert shown == set(explorers.FACTORIES)


def test_every_claim_is_shown_with_its_own_figure() -> None:
    """`experiments.results.NAMES` is what docs/claims.md lists."""
    figures = [part for slide in SLIDES for part in f.parts_of(slide) if isinstance(part, f.Figure)]
    drawn = {part.draw.args[0] for part in figures if getattr(part.draw, "func", None) is slide_results._draw}
    assert drawn == set(saved_results.NAMES)


def test_every_verdict_on_a_slide_is_the_kept_results_own() -> None:
    """A result that reads otherwise than its slide was written for warns when the deck is read; one missing is said."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in [name for name in sys.modules if name.startswith("slides.deck.b")]:
            importlib.reload(sys.modules[name])
    said = [text for slide in SLIDES for part in f.parts_of(slide) for text in f.texts_of(part)]
    assert not [text for text in said if "not run yet" in text.en or "See docs/claims.md" in text.en]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with one made-up result."""
    folder = tmp_path / "cost" / "bandit"
    folder.mkdir(parents=True)
    numbers = {"ratio": [1.5, -1.8, 4.8], "steps": 7}
    verdict = {"outcome": "supported", "numbers": numbers, "thresholds": {}}
    (folder / "result.json").write_text(json.dumps({"verdict": verdict, "settings": {"seeds": 9}}))
    return tmp_path


def test_a_finding_takes_its_numbers_from_the_result_in_both_languages(results: Path) -> None:
    made = slide_results.finding(
        "cost", "bandit", "supported", "{ratio:mean}, in full {ratio}, {steps}", "{ratio}，{seeds} 个种子",
        ("ratio < 5", "ratio ~ 0"), results,
    )  # fmt: skip
    assert made.en == "**Bandit: supported.** 1.5, in full 1.5 [−1.8, 4.8], 7"
    assert made.zh == "**多臂老虎机：得到支持**。1.5 [−1.8, 4.8]，9 个种子"


@pytest.mark.parametrize(("outcome", "condition"), [("inconclusive", "ratio < 5"), ("supported", "ratio > 0")])
def test_a_result_of_other_numbers_shows_its_outcome_alone_and_warns(outcome, condition, results: Path) -> None:
    with pytest.warns(UserWarning, match="cost, bandit, was written for other numbers"):
        made = slide_results.finding("cost", "bandit", outcome, "{ratio}", "{ratio}", (condition,), results)
    assert "supported" in made.en and "1.5" not in made.en + made.zh


def test_a_result_that_is_missing_is_reported_as_not_run(results: Path) -> None:
    made = slide_results.finding("cost", "tree", "supported", "{ratio}", "{ratio}", results=results)
    assert "not run yet" in made.en and "尚未运行" in made.zh


def test_the_first_rows_of_a_picture_keep_their_points_and_share_the_beginning_of_their_names_in_the_title() -> None:
    names = ["γ = 1, hard, short", "γ = 1, hard, long", "γ = 1, sampled", "γ = 2, hard"]
    _, axes = style.subplots(1, 1)
    axes.plot([3.0, 2.0, 1.0, 0.0], range(4), "o")
    axes.set_yticks(range(4), names)
    axes.set_title("wins", loc="left")
    slide_results._first_rows(axes, 3)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["hard, short", "hard, long", "sampled"]
    assert list(axes.get_yticks()) == [0, 1, 2] and axes.get_ylim() == (2.5, -0.5)
    assert axes.get_title(loc="left") == "γ = 1, wins"


def test_notes_say_something_in_both_languages() -> None:
    for slide in SLIDES:
        assert len(slide.notes.en.split()) >= 12, slide.key
        assert len(re.findall(r"[\u4e00-\u9fff]", slide.notes.zh)) >= 15, slide.key


@pytest.fixture(scope="module")
def page() -> tuple[str, render.Context, list[list[str]]]:
    """The deck as HTML, formulas as they are written, pictures as a single byte; the texts of the Chinese pictures."""
    drawn: list[list[str]] = []

    def keep(drawing: Any) -> bytes:
        style.translate(drawing)
        axes = [axis for ax in drawing.axes for axis in (ax.xaxis, ax.yaxis)]
        ticks = [name for one in axes for name in one.get_major_formatter().format_ticks(one.get_majorticklocs())]
        drawn.append([*map(str, ticks), *(one.get_text() for one in drawing.findobj(Writing) if one.get_visible())])
        return b"0"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "png", lambda drawing, **_: b"0")
        patch.setattr(style, "svg", keep)
        context = render.Context(lambda slide, part: f"[{part.name}]", worlds=3)
        made = render.sections(MADE, context)
    import matplotlib.pyplot as plt

    plt.close("all")
    return made, context, drawn


def test_every_derivation_holds_and_every_figure_can_be_drawn(page: tuple[str, Any, Any]) -> None:
    """Drawing raises where a derivation's tick would be false."""
    made, context, _ = page
    assert context.missing == []
    assert made.count("<section") == len(SLIDES)
    assert "✓" in made


def test_no_text_stands_in_one_language_alone(page: tuple[str, Any, Any]) -> None:
    """CSS hides one of each pair: as many in English as in Chinese, or a slide would lose words."""
    made, *_ = page
    body = re.sub(r"<template.*?</template>", "", made, flags=re.S)
    assert body.count('<span lang="en">') == body.count('<span lang="zh">') > 3 * len(SLIDES)


def test_a_star_after_a_letter_is_an_optimum_and_no_emphasis() -> None:
    assert render.words("π* and J* are *optimal*") == "π* and J* are <em>optimal</em>"


def test_no_markdown_and_no_placeholder_is_left(page: tuple[str, Any, Any]) -> None:
    made, *_ = page
    plain = re.sub(r'<span class="tex".*?</span>|data:image[^"]*|<code>.*?</code>', "", made, flags=re.S)
    assert not re.search(r"\*\*|\$|(?<!\{)\{[a-z_]+(\.[a-z_]+)?\}", plain)


@pytest.fixture(scope="module")
def chinese(page: tuple[str, Any, Any]) -> BeautifulSoup:
    """What the Chinese deck shows without explorers, of formulas only their words."""
    soup = BeautifulSoup(re.sub(r"\[\w+\]", "", page[0]), "html.parser")
    for other in soup.select('[lang="en"], code, template'):
        other.decompose()
    for formula in soup.select(".tex"):
        formula.replace_with(" ".join(re.findall(r"\\text\{([^}]*)\}", formula.get_text())))
    return soup


def test_no_chinese_slide_shows_english(chinese: BeautifulSoup) -> None:
    """Texts, alternative texts and names for screen readers. Translations of sources are in rlhf_lab/chinese.toml."""
    for slide in chinese.select("section"):
        shown = [slide.get_text(" "), *(str(one["alt"]) for one in slide.select("[alt]"))]
        shown += [str(one["data-zh"]) for one in slide.select("[data-zh]")]
        assert english(" ".join(shown)) == [], slide["id"]
    assert not chinese.select("[aria-label]:not([data-zh]), [title]:not([data-zh])")


def test_no_chinese_picture_of_a_claim_shows_english(page: tuple[Any, Any, list[list[str]]]) -> None:
    assert len(page[2]) == sum(isinstance(part, f.Figure) for slide in SLIDES for part in f.parts_of(slide)) > 9
    for written in page[2]:
        assert [text for text in written if english(text)] == []
