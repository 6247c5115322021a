"""The table of Chinese translations is complete and up to date, and text with Chinese characters is wrapped."""

from __future__ import annotations

import ast
import string
import tomllib
from functools import cache
from pathlib import Path

import pytest

from rlhf_lab import language
from rlhf_lab.errors import LabError

ROOT = Path(__file__).parents[1]


@cache
def sources() -> list[ast.Module]:
    """Every file of the package and of the slides. It is not a constant, because each worker imports this file."""
    paths = [path for folder in ("rlhf_lab", "slides") for path in (ROOT / folder).rglob("*.py")]
    return [ast.parse(path.read_text(encoding="utf-8")) for path in paths]


def test_every_text_with_numbers_has_a_translation() -> None:
    """Each literal that is passed to `tr`. The other labels are found by `tests/slides/test_chinese.py`."""
    texts = {
        one.value
        for tree in sources()
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "tr"
        for one in ast.walk(call.args[0])
        if isinstance(one, ast.Constant) and isinstance(one.value, str) and any(c.isalpha() for c in one.value)
    }
    assert len(texts) > 50
    assert sorted(texts - set(language.chinese())) == []


def test_every_translation_is_of_a_text_in_the_code() -> None:
    constants = "\n".join(
        node.value for tree in sources() for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )  # fmt: skip
    assert [text for text in language.chinese() if text not in constants] == []


def test_no_text_is_translated_twice() -> None:
    sections = tomllib.loads(language.TABLE.read_text(encoding="utf-8"))
    assert len(language.chinese()) == sum(map(len, sections.values()))


def test_both_languages_have_the_same_placeholders() -> None:
    def fields(text: str) -> set[tuple[str | None, str | None]]:
        return {(name, form) for _, name, form, _ in string.Formatter().parse(text) if name is not None}

    for english, chinese in language.chinese().items():
        assert fields(english) == fields(chinese), english


def test_a_text_is_shown_in_the_language_in_use() -> None:
    assert language.tr("best of {n}", n=4) == "best of 4"
    with language.use("zh"):
        assert language.tr("regret") == "后悔值"
        assert language.tr("over {method}", method="PPO") == "相对于 PPO"
        assert language.tr("a label of another package") == "a label of another package"
        with language.use("en"):
            assert language.tr("regret") == "regret"
    assert language.current() == "en"
    with pytest.raises(LabError, match="en, zh"), language.use("fr"):
        pass


def test_chinese_lines_break_between_characters_but_not_before_punctuation() -> None:
    text = "期望奖励（KL 预算），DPO 的后悔值。"
    lines = language.wrap(text, 10)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert max(map(language.columns, lines)) <= 12  # punctuation may stand in the margin
    assert not any(line[0] in "，。）" for line in lines)
    assert language.wrap("期望的奖励 [奖励]", 10) == ["期望的奖励", "[奖励]"]
    assert language.wrap("the regret of a policy", 10) == ["the regret", "of a", "policy"]
