"""What the exported page draws is what the explorer draws: the folded states give every picture back."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slides import build, compressed_states, explorers

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.25, 1.5]) | st.sampled_from(["a", "b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(JSON, min_size=1, max_size=6))
def test_unfolding_gives_back_any_list_of_pictures(pictures: list[Any]) -> None:
    folded = json.loads(json.dumps(compressed_states.fold(pictures)))
    back = [compressed_states.unfolded(folded, i) for i in range(len(pictures))]
    assert json.dumps(back, sort_keys=True) == json.dumps(pictures, sort_keys=True)  # true is not 1


def test_what_is_equal_in_python_and_not_in_the_page_stays_apart() -> None:
    """`[[False]] == [[0]]`; a page would draw "false" for one and "0" for the other."""
    pictures: list[Any] = [{"a": [[False], 1]}, {"a": [[0], 1]}]
    folded = json.loads(json.dumps(compressed_states.fold(pictures)))
    assert [json.dumps(compressed_states.unfolded(folded, i)) for i in (0, 1)] == [json.dumps(one) for one in pictures]


@pytest.fixture(scope="module")
def small() -> tuple[dict[str, Any], list[Any]]:
    """An explorer's folded states, and its pictures one by one."""
    explorer = explorers.make("optimal_policy")
    whole = explorer.states(4)
    return json.loads(json.dumps(compressed_states.folded(explorer, 4))), whole["pictures"]


def numbers_agree(one: Any, two: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(numbers_agree(one[k], two[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(numbers_agree(a, b) for a, b in zip(one, two, strict=True))
    if isinstance(one, float):
        return bool(two == pytest.approx(one, rel=1e-3, abs=1e-12))
    return bool(one == two)


def test_an_explorers_folded_states_are_its_pictures_to_four_digits(small: tuple[dict[str, Any], list[Any]]) -> None:
    folded, pictures = small
    assert folded["count"] == len(pictures) > 4
    for i, picture in enumerate(pictures):
        assert numbers_agree(json.loads(json.dumps(picture)), compressed_states.unfolded(folded, i))


@pytest.mark.skipif(shutil.which("node") is None, reason="no node on this machine")
def test_the_pages_script_unfolds_as_python_does(small: tuple[dict[str, Any], list[Any]], tmp_path: Path) -> None:
    folded, _ = small
    (tmp_path / "compressed_states.json").write_text(json.dumps(folded))
    script = (
        "globalThis.window = {}; globalThis.document = {};"
        f"eval(require('fs').readFileSync({json.dumps(str(build.ASSETS / 'explorers.js'))}, 'utf8'));"
        "const s = JSON.parse(require('fs').readFileSync(process.argv[1], 'utf8'));"
        "console.log(JSON.stringify([...Array(s.count).keys()].map((i) => window.StaticExplorers.unfold(s, i))));"
    )
    done = subprocess.run(
        ["node", "-e", script, str(tmp_path / "compressed_states.json")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [compressed_states.unfolded(folded, i) for i in range(folded["count"])]


def test_every_explorer_fits_the_pages_budget_of_pictures() -> None:
    import math

    for name in explorers.FACTORIES:
        if name == "trajectories":  # is trained when it is made; its one slider is a step of training
            continue
        made = explorers.make(name)
        stops = compressed_states.stops_for(made)
        assert math.prod(len(c.grid(stops)) for c in made.controls.values()) <= compressed_states.MOST or stops == 4, (
            name
        )


def test_the_charts_module_becomes_a_plain_script() -> None:
    script = build.chart_script()
    assert not re.search(r"^\s*export ", script, re.M) and "window.RlhfChart" in script
