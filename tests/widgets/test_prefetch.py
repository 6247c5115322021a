"""Pictures computed ahead: the right stops, the explorer's own function, and nothing in a move's way."""

import asyncio
import math

import ipywidgets
import pytest

from rlhf_lab.figures.picture import Axis, Panel, Picture, Points
from rlhf_lab.widgets import prefetch
from rlhf_lab.widgets.explorer import Choice, Explorer, Slider, Toggle
from rlhf_lab.widgets.prefetch import stops_near


def picture(x: float, kind: str = "a") -> Picture:
    if x > 5:
        raise RuntimeError("a fault of the function")
    return Picture(f"{x:.6g} {kind}", (Panel("p", Axis("x"), Axis("y"), (Points("dpo", [x], [x]),)),))


def explorer(x: float = 1.0, **more: object) -> Explorer:
    slider = {"low": 0.0, "high": 6.0, "step": 0.5} | more
    controls = {"x": Slider(x, label="x", **slider), "kind": Choice("a", {"A": "a", "B": "b"}, "kind")}
    return Explorer(picture, controls, "title")


def sent_after(explorer: Explorer, moves: list[tuple[str, object]], monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """What is sent ahead in the moments after `moves`, made at once one after the other."""
    monkeypatch.setattr(prefetch, "PAUSE", 0.01)
    messages: list[dict] = []
    monkeypatch.setattr(explorer.chart, "send", lambda content: messages.append(content["ahead"]))

    async def hand() -> None:
        for name, value in moves:
            explorer.inputs[name].value = value
        await asyncio.sleep(0.2)

    asyncio.run(hand())
    return messages


def test_a_sliders_neighbours_are_the_nearest_stops_within_its_ends_nearest_first():
    box = ipywidgets.FloatSlider(value=0.5, min=0, max=2, step=0.25)
    assert stops_near(box, reach=3) == [0.75, 0.25, 1.0, 0.0, 1.25]


def test_a_log_sliders_neighbours_are_steps_of_its_exponent():
    box = ipywidgets.FloatLogSlider(value=1.0, base=10, min=-2, max=2, step=0.5)
    assert stops_near(box, reach=2) == pytest.approx([10**0.5, 10**-0.5, 10.0, 0.1])


def test_whole_sliders_drop_downs_and_boxes_give_values_of_their_own_kind():
    assert stops_near(ipywidgets.IntSlider(value=3, min=1, max=4, step=1)) == [4, 2, 1]
    assert stops_near(ipywidgets.Dropdown(options=[("A", "a"), ("B", "b")], value="a")) == ["b"]
    assert stops_near(ipywidgets.Checkbox(value=True)) == [False]


def test_after_a_rest_the_neighbours_pictures_are_sent_as_the_function_makes_them(monkeypatch):
    e = explorer()
    messages = sent_after(e, [("x", 2.0)], monkeypatch)
    assert sorted(m["at"]["x"] for m in messages) == [0.0, 0.5, 1.0, 1.5, 2.5, 3.0, 3.5, 4.0, 4.5]
    for message in messages:
        expected = picture(message["at"]["x"], "a").to_dict()
        assert {key: message[key] for key in expected} == expected


def test_a_drop_down_is_named_as_the_page_knows_it_by_its_place_in_the_list(monkeypatch):
    e = explorer()
    messages = sent_after(e, [("kind", "b")], monkeypatch)
    assert [m["at"] for m in messages] == [{"x": 1.0, "kind": 0}]
    assert e.chart.picture["at"] == {"x": 1.0, "kind": 1}


def test_a_new_move_forgets_what_was_planned_after_the_one_before(monkeypatch):
    messages = sent_after(explorer(), [("x", 0.0), ("x", 2.5)], monkeypatch)
    assert {m["at"]["x"] for m in messages} == {0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 3.5, 4.0, 4.5, 5.0}


def test_an_error_in_a_picture_nobody_asked_for_is_kept_quiet_and_raised_where_one_goes_there(monkeypatch, caplog):
    e = explorer(x=4.5)
    messages = sent_after(e, [("x", 5.0)], monkeypatch)
    # 5.5 comes first and is past what the function can do: nothing more is tried, nothing is logged.
    assert messages == [] and not caplog.records
    with pytest.raises(RuntimeError, match="a fault of the function"):
        e.inputs["x"].value = 5.5


def test_without_an_event_loop_a_move_changes_the_picture_and_plans_nothing(monkeypatch):
    e = explorer()
    sent: list[dict] = []
    monkeypatch.setattr(e.chart, "send", sent.append)
    e.inputs["x"].value = 3.0
    assert e.text == "3 a" and sent == []


def test_the_view_is_told_which_model_holds_each_control_and_under_which_name():
    controls = {"x": Slider(1.0, 0.1, 10, "x", log=True), "kind": Choice("a", {"A": "a"}, "k"), "on": Toggle(True, "t")}
    e = Explorer(lambda x, kind, on: picture(min(x, 5), kind), controls, "title")
    assert e.chart.controls == [
        ["x", e.inputs["x"].model_id, "value"],
        ["kind", e.inputs["kind"].model_id, "index"],
        ["on", e.inputs["on"].model_id, "value"],
    ]
    assert math.isclose(e.chart.picture["at"]["x"], 1.0)
