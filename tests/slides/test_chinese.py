"""The explorers of the Chinese slides are Chinese, live and on the static page; pictures need no Chinese font."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lab import language
from rlhf_lab.errors import LabError
from rlhf_lab.experiments import trajectories
from rlhf_lab.figures import style
from rlhf_lab.figures.picture import Axis, Curve, Panel, Picture
from rlhf_lab.widgets.explorer import Choice, Explorer
from rlhf_lab.widgets.optimal_policy import optimal_policy_explorer
from rlhf_lab.worlds import bandit
from slides import build, compressed_states, explorers
from slides.heartbeat import Heartbeat
from slides.translation import english


def test_english_words_are_found() -> None:
    assert english("DPO 的后悔值 π_ref") == [] != english("DPO regret")


def texts(tree: Any, shown: bool = False) -> Iterator[str]:
    """Every text in the states of an explorer."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from texts(value, key in compressed_states.TEXTS)
    elif isinstance(tree, list):
        for value in tree:
            yield from texts(value, shown)
    elif shown and isinstance(tree, str):
        yield tree


def in_chinese(explorer: Explorer) -> list[str]:
    """Every text of an explorer at the ends of every control, with the others at their initial values."""
    first = {name: control.value for name, control in explorer.controls.items()}
    with language.use("zh"):
        found = [language.tr(explorer.title), language.tr(explorer.advice)]
        for name, control in explorer.controls.items():
            found += [language.tr(control.label), *(control.names() if isinstance(control, Choice) else ())]
            for value in control.grid(2):
                found += texts(explorer.picture(**{**first, name: value}).to_dict())
    return found


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training does not change what an explorer says."""
    ends = torch.tensor([0.0, 0.5], dtype=torch.float64)
    monkeypatch.setattr(
        trajectories,
        "record_trajectories",
        lambda settings, world, methods, every: [trajectories.Trajectory(m, 0, ends, ends, ends) for m in methods],
    )
    monkeypatch.setattr(explorers, "_once", lambda name, train: train())


@pytest.mark.parametrize("name", explorers.FACTORIES)
def test_an_explorer_of_the_slides_shows_no_english(name: str, untrained: None) -> None:
    found = in_chinese(explorers.make(name))
    assert [text for text in dict.fromkeys(found) if english(text)] == []
    assert sum(bool(re.search("[\u4e00-\u9fff]", text)) for text in found) > 10


def test_an_explorer_changes_its_language_and_keeps_its_values() -> None:
    explorer = optimal_policy_explorer(*two_prompts())
    explorer.inputs["prompt"].value = 1
    before = explorer.chart.picture
    explorer.language = "zh"
    assert explorer.inputs["beta"].description == explorer.inputs["beta"].tooltip == "β [奖励/纳特]"
    assert [name for name, _ in explorer.inputs["prompt"].options][1] == "概括：猫坐在垫子上，然后睡着了。"
    assert explorer.values["prompt"] == 1
    shown = explorer.chart.picture
    assert (shown["language"], shown["title"]) == ("zh", "不同 β 下的最优策略")
    assert not [text for text in texts(shown) if english(text)]
    explorer.inputs["beta"].value = 1.0
    assert explorer.chart.picture["language"] == "zh"
    explorer.inputs["beta"].value = before["at"]["beta"]
    explorer.language = "en"
    assert explorer.chart.picture == before


def two_prompts() -> tuple[Any, ...]:
    world = bandit.lecture()
    return world.log_ref(), world.rewards(), world.response_names(), world.prompt_names


def test_the_page_language_reaches_every_explorer_of_the_live_view() -> None:
    heartbeat = Heartbeat()
    heartbeat.explorers += [optimal_policy_explorer(*two_prompts()) for _ in range(2)]
    heartbeat._answer(None, {"ping": 1, "language": "zh"}, [])
    assert [one.chart.picture["language"] for one in heartbeat.explorers] == ["zh", "zh"]
    heartbeat._answer(None, {"ping": 2}, [])
    assert [one.language for one in heartbeat.explorers] == ["zh", "zh"]


@pytest.fixture(scope="module")
def states() -> dict[str, Any]:
    explorer = optimal_policy_explorer(*two_prompts())
    return {"explorer": explorer, "folded": compressed_states.folded(explorer, 4, chinese=True)}


def test_the_static_states_hold_the_chinese_texts_once(states: dict[str, Any]) -> None:
    """Each slot of texts has as many Chinese values as English ones, and the labels are a table."""
    folded = states["folded"]
    assert folded["zh"]["words"]["probability"] == "概率"
    sentences = next(i for i, (path, _, _) in enumerate(folded["slots"]) if path == ["text"])
    assert len(folded["zh"]["values"][str(sentences)]) == len(folded["slots"][sentences][1]) > 4
    plain = compressed_states.folded(states["explorer"], 4)
    assert {key: value for key, value in folded.items() if key != "zh"} == plain


def test_a_label_that_also_changes_with_a_control_is_translated_in_both_places() -> None:
    def compute(kind: str) -> Picture:
        layers = (Curve("dpo", [0, 1], [0, 1], kind), Curve("policy", [0, 1], [1, 0], "best design"))
        return Picture(f"kind {kind}", (Panel("Policies", Axis("labels N"), Axis("share"), layers),))

    choice = Choice("evenly", {"evenly": "evenly", "best design": "best design"}, "pairs")
    folded = compressed_states.folded(Explorer(compute, {"kind": choice}, "Policies"), chinese=True)
    assert folded["zh"]["words"]["best design"] == "最优设计"
    assert folded["zh"]["words"]["evenly"] == "均匀"


@pytest.mark.skipif(shutil.which("node") is None, reason="no node on this machine")
def test_the_page_shows_the_states_in_chinese(states: dict[str, Any], tmp_path: Path) -> None:
    """`assets/explorers.js` gives the pictures that Python computes in Chinese, apart from rounded numbers."""
    (tmp_path / "states.json").write_text(json.dumps(states["folded"]))
    script = (
        "globalThis.window = {}; globalThis.document = {};"
        f"eval(require('fs').readFileSync({json.dumps(str(build.ASSETS / 'explorers.js'))}, 'utf8'));"
        "const s = JSON.parse(require('fs').readFileSync(process.argv[1], 'utf8')), e = window.StaticExplorers;"
        "console.log(JSON.stringify([...Array(s.count).keys()].map((i) => "
        "e.translated(e.unfold(s, i, s.zh.values), s.zh.words))));"
    )
    done = subprocess.run(["node", "-e", script, str(tmp_path / "states.json")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with language.use("zh"):
        wanted = states["explorer"].states(4)["pictures"]
    assert [[*texts(one)] for one in json.loads(done.stdout)] == [[*texts(one)] for one in wanted]


def test_a_text_with_two_translations_is_refused() -> None:
    """The page replaces an English text by one Chinese text."""
    english_states, chinese_states = ([{"title": one}, {"title": other}] for one, other in ("xx", "甲乙"))
    with pytest.raises(LabError, match="two English texts"):
        compressed_states._pair((english_states, chinese_states), {})


def test_a_chinese_picture_needs_no_chinese_font() -> None:
    """Its text is text, which is laid out as squares. A missing glyph would warn."""
    with warnings.catch_warnings(), language.use("zh"), style.use():
        warnings.simplefilter("error")
        drawing, axes = style.subplots(1, 1, 4, 3)
        axes.plot([0, 1], [0, 1], label="regret")
        axes.set(title="Regret against the number of labels", xlabel="labels N")
        axes.legend()
        made = style.svg(drawing).decode()
    found = re.findall(r">([^<>]*[\u4e00-\u9fff][^<>]*)<", made)
    assert {"标注数 N", "后悔值", "后悔值与标注数"} <= {text.strip() for text in found}
    assert "PingFang SC" in made and "squares" not in made
