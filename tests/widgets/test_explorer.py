"""Explorers without a browser: the pure function, the controls, and the data the view is given."""

import json
import math
import re
from pathlib import Path

import nbformat
import pytest
import torch

from rlhf_lab.errors import LabError
from rlhf_lab.figures.picture import Axis, Bars, Curve, Panel, Picture, Points, Readout, Rule, limits
from rlhf_lab.widgets.explorer import Choice, Explorer, Slider, Toggle
from rlhf_lab.widgets.optimal_policy import optimal_policy_explorer, optimal_policy_picture

torch.set_num_threads(1)

REF = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
REWARD = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
NAMES = ["first", "second", "third"]


def simple(x: float, n: int = 1, kind: str = "a", on: bool = False) -> Picture:
    layers = (Curve("policy", [0, 1, 2], [0, x, math.nan]), Points("dpo", [x], [n]), Rule("reward", x, label="here"))
    panel = Panel(f"kind {kind}", Axis("x [nats]"), Axis("y [reward]", 0.0, 10.0), layers)
    return Picture(f"x is {x:.2f}, n is {n}, {kind}, {on}", (panel,), (Readout("x", x, "nats"),))


def all_kinds() -> Explorer:
    controls = {
        "x": Slider(0.5, 0.1, 10.0, "x [nats]", log=True),
        "n": Slider(3, 1, 9, "how many", whole=True),
        "kind": Choice("b", {"the first": "a", "the second": "b"}, "kind"),
        "on": Toggle(False, "switch"),
    }
    return Explorer(simple, controls, "A simple one")


def test_setting_each_control_changes_the_charts_data_at_once():
    explorer = all_kinds()
    for name, value in {"x": 2.0, "n": 7, "kind": "a", "on": True}.items():
        before = explorer.chart.picture
        explorer.inputs[name].value = value
        assert explorer.chart.picture != before, name
        wanted = simple(**explorer.values).to_dict()
        assert {key: explorer.chart.picture[key] for key in wanted} == wanted, name
    assert explorer.text == "x is 2.00, n is 7, a, True"


def test_one_move_sends_one_message_to_the_view():
    explorer = all_kinds()
    sent = []
    explorer.chart.observe(lambda change: sent.append(change.name))
    explorer.inputs["x"].value = 3.0
    assert sent == ["picture"]


def test_two_explorers_of_one_function_do_not_share_state():
    one, two = all_kinds(), all_kinds()
    one.inputs["x"].value = 9.0
    assert two.values["x"] == 0.5
    assert two.text.startswith("x is 0.50")


def test_a_refused_input_becomes_a_picture_that_says_why_and_the_next_move_recovers():
    def refuses(x: float) -> Picture:
        if x > 1:
            raise LabError("x must not be above 1.")
        return simple(x)

    explorer = Explorer(refuses, {"x": Slider(0.5, 0.0, 2.0, "x")}, "Refusing")
    explorer.inputs["x"].value = 2.0
    assert explorer.chart.picture["failed"] and explorer.text == "x must not be above 1."
    explorer.inputs["x"].value = 0.5
    assert not explorer.chart.picture["failed"]


def test_a_bug_in_the_function_is_not_swallowed():
    def broken(x: float) -> Picture:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Explorer(broken, {"x": Slider(0.5, 0.0, 2.0, "x")}, "Broken")


def test_states_hold_every_combination_in_the_order_of_the_controls():
    states = all_kinds().states(stops=5)
    values = [Slider(0.5, 0.1, 10.0, "", log=True).grid(5), Slider(3, 1, 9, "", whole=True).grid(5), ["a", "b"]]
    assert [len(c["names"]) for c in states["controls"]] == [len(values[0]), len(values[1]), 2, 2]
    texts = [picture["text"] for picture in states["pictures"]]
    expected = [simple(x, n, k, s).text for x in values[0] for n in values[1] for k in values[2] for s in (False, True)]
    assert texts == expected
    starts = [c["first"] for c in states["controls"]]
    place = 0
    for control, first in zip(states["controls"], starts, strict=True):
        place = place * len(control["names"]) + first
    assert texts[place] == all_kinds().text
    json.dumps(states, allow_nan=False)
    assert set(states["palette"]) == {"policy", "dpo", "reward"}


@pytest.mark.parametrize("stops", [1, 2, 7, 50])
def test_a_sliders_grid_stays_between_its_ends_and_holds_its_value(stops):
    for slider in (
        Slider(0.5, 0.01, 100, "", log=True),
        Slider(0.3, -1, 1, ""),
        Slider(4, 1, 64, "", whole=True),
    ):
        grid = slider.grid(stops)
        assert grid == sorted(set(grid)) and slider.low <= grid[0] and grid[-1] <= slider.high
        assert any(math.isclose(v, slider.value, rel_tol=1e-5) for v in grid)
        assert len(grid) <= stops + 2


def test_controls_refuse_what_makes_no_sense():
    with pytest.raises(LabError, match="low ≤ value ≤ high"):
        Slider(5, 0, 1, "x")
    with pytest.raises(LabError, match="above 0"):
        Slider(0.5, 0, 1, "x", log=True)
    with pytest.raises(LabError, match="none of"):
        Choice("c", {"A": "a"}, "kind")
    with pytest.raises(LabError, match="at least one control"):
        Explorer(simple, {}, "none")


def test_picture_data_is_json_without_nan_and_fits_all_finite_points():
    picture = simple(3.0)
    data = picture.to_dict()
    json.dumps(data, allow_nan=False)
    assert data["panels"][0]["layers"][0]["y"] == [0.0, 3.0, None]
    (x_low, x_high), y_ends = limits(picture.panels[0])
    assert x_low < 0 and x_high > 3 and y_ends == (0.0, 10.0)


@pytest.mark.parametrize("values", [[], [math.nan], [5.0], [0.0], [-math.inf, 1.0], [1e-300, 1e300]])
@pytest.mark.parametrize("log", [False, True])
def test_axes_have_two_ends_whatever_the_data(values, log):
    panel = Panel("", Axis("x"), Axis("y", log=log), (Points("dpo", [0.0] * len(values), values),))
    for low, high in limits(panel):
        assert math.isfinite(low) and math.isfinite(high) and low < high


def test_bars_stand_on_zero():
    panel = Panel("", Axis("y", names=("a", "b")), Axis("p"), (Bars("reference", [0.2, 0.8]),))
    assert limits(panel)[1][0] == 0.0


def test_numbers_are_written_for_reading():
    written = [Readout("x", v).text for v in (0.0, -0.0001, 1.5, -2.0, math.nan, math.inf, -math.inf, 123456.0, -1e-9)]
    assert written == ["0.000", "−1.00e−04", "1.500", "−2.000", "undefined", "∞", "−∞", "1.23e+05", "−1.00e−09"]


# --- π* under β ---------------------------------------------------------------------------------------------


def by_hand(beta: float) -> tuple[list[float], float, float]:
    """π*, log Z and KL with `math` alone."""
    weights = [p * math.exp(r / beta) for p, r in zip(REF.tolist(), REWARD.tolist(), strict=True)]
    star = [w / sum(weights) for w in weights]
    kl = sum(s * math.log(s / p) for s, p in zip(star, REF.tolist(), strict=True))
    return star, math.log(sum(weights)), kl


@pytest.mark.parametrize("beta", [0.3, 1.0, 4.0])
def test_the_optimal_policys_picture_shows_the_numbers_worked_by_hand(beta):
    star, log_z, kl = by_hand(beta)
    picture = optimal_policy_picture(REF.log(), REWARD, beta, NAMES)
    bars = {layer.style: layer.height.tolist() for layer in picture.panels[0].layers}
    assert bars["optimal"] == pytest.approx(star, rel=1e-12)
    assert bars["reference"] == pytest.approx(REF.tolist(), rel=1e-12)
    numbers = {number.symbol: number.value for number in picture.numbers}
    gain = sum(s * r for s, r in zip(star, REWARD.tolist(), strict=True))
    assert numbers["E[r]"] == pytest.approx(gain)
    assert numbers["KL(π*‖π_ref)"] == pytest.approx(kl)
    assert numbers["log Z"] == pytest.approx(log_z)
    # J(π*) = β log Z.
    assert numbers["J(π*)"] == pytest.approx(beta * log_z)


@pytest.mark.parametrize("beta", [0.02, 0.5, 30.0])
def test_the_dashed_line_is_the_tangent_of_the_frontier(beta):
    """Its slope is β, it passes through π*, and no policy of the frontier is above it."""
    layers = {layer.label: layer for layer in optimal_policy_picture(REF.log(), REWARD, beta, NAMES).panels[1].layers}
    tangent, star, curve = (layers[name] for name in ("tangent, slope β", "π* at this β", "π* for every β"))
    (x0, x1), (y0, y1) = tangent.x, tangent.y
    assert (y1 - y0) / (x1 - x0) == pytest.approx(beta)
    assert (x0 + x1) / 2 == pytest.approx(star.x[0]) and (y0 + y1) / 2 == pytest.approx(star.y[0])
    assert (curve.y - (star.y[0] + beta * (curve.x - star.x[0]))).max() < 1e-9
    assert x1 - x0 <= curve.x.max() and y1 - y0 <= curve.y.max() - curve.y.min()


def test_moving_beta_moves_the_bars_from_the_reference_to_the_best_response():
    explorer = optimal_policy_explorer(REF.log(), REWARD, NAMES)

    def star() -> list[float]:
        return explorer.chart.picture["panels"][0]["layers"][1]["height"]

    explorer.inputs["beta"].value = 100.0
    assert star() == pytest.approx(REF.tolist(), abs=0.01)
    explorer.inputs["beta"].value = 0.01
    assert star() == pytest.approx([0.0, 0.0, 1.0], abs=1e-9)


def test_every_combination_of_the_optimal_policys_controls_gives_a_picture():
    generator = torch.Generator().manual_seed(0)
    log_ref = torch.randn(3, 5, dtype=torch.float64, generator=generator).log_softmax(-1)
    log_ref[2] = torch.tensor([1.0, 0, 0, 0, 0], dtype=torch.float64).log()  # no mass but on one
    reward = torch.randn(3, 5, dtype=torch.float64, generator=generator) * torch.tensor([[1.0], [1e3], [1.0]])
    explorer = optimal_policy_explorer(log_ref, reward, list("abcde"), prompts=["x", "y", "z"])
    states = explorer.states(stops=9)
    assert len(states["pictures"]) == 3 * len(states["controls"][0]["names"])
    for picture in states["pictures"]:
        assert not picture["failed"] and len(picture["panels"]) == 2 and picture["text"]
        assert "nan" not in picture["text"]
        for layer in picture["panels"][0]["layers"]:
            assert sum(layer["height"]) == pytest.approx(1, abs=1e-5)
    json.dumps(states, allow_nan=False)


def test_the_optimal_policy_explorer_refuses_names_that_do_not_fit():
    with pytest.raises(LabError, match="3 responses"):
        optimal_policy_explorer(REF.log(), REWARD, ["a", "b"])
    with pytest.raises(LabError, match="1 prompt and 3 responses, but the names are those of 2 prompts"):
        optimal_policy_explorer(REF.log(), REWARD, NAMES, prompts=["x", "y"])


def test_a_stored_notebook_gets_a_still_picture_and_the_text_beside_the_live_view():
    explorer = optimal_policy_explorer(REF.log(), REWARD, NAMES)
    data, metadata = explorer._repr_mimebundle_()
    assert {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"} <= set(data)
    assert explorer.text in data["text/plain"] and metadata["image/png"]["alt"] == explorer.text
    again, _ = explorer._repr_mimebundle_()
    assert again["image/png"] == data["image/png"]


@pytest.mark.parametrize(
    "slider",
    [
        Slider(0.5, 0.01, 100.0, "β of notebooks 00 and 03", log=True),
        Slider(100, 10, 30_000, "labels N of notebook 05", log=True),
        Slider(5.0, 0.5, 50.0, "price of a demonstration", log=True),
        Slider(0.02, 0.01, 100.0, "near the low end", log=True),
        Slider(0.01, 0.01, 100.0, "at the low end", log=True),
        Slider(100.0, 0.01, 100.0, "at the high end", log=True),
        Slider(0.3, -1, 1, "linear"),
        Slider(0.705, 0.0, 0.99, "between two stops", step=0.01),
        Slider(1.0, -3.0, 3.0, "on a stop", step=0.1),
        Slider(4, 1, 64, "whole", whole=True),
    ],
    ids=lambda slider: slider.label,
)
def test_a_slider_opens_at_its_value_and_not_at_the_stop_nearest_to_it(slider):
    """The page counts stops from the low end: low + k · step. β = 0.5 between 0.01 and 100 in a hundred stops was not
    one of them (10^(−2 + 42.475 · 0.04)), so the slider opened at 10^−0.32 = 0.479.
    """
    box = slider.widget()
    place = math.log10(box.value) if slider.log else box.value
    stops = (place - box.min) / box.step
    assert box.value == slider.value and math.isclose(stops, round(stops), abs_tol=1e-9), stops
    wanted = slider.step or (1 if slider.whole else (box.max - box.min) / 100)
    assert 0.5 < box.step / wanted < 2


def opened(path: Path) -> list[tuple[str, str, float]]:
    """(text, name, value) of every explorer of a notebook whose call names a number that the text repeats."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    beta = next(
        iter(re.findall(r"\bbeta = (?:[\w.]+\(\), )?([\d.]+)", "\n".join(cell.source for cell in cells))), "nan"
    )
    found = []
    for cell in cells:
        call = re.search(r"^\w+_explorer\((.*)\)$", cell.source, re.M)
        for name, number in re.findall(r"(beta|threshold)=([\w.]+)", call.group(1) if call else ""):
            text = cell.outputs[-1]["data"]["text/plain"]
            found.append((text, {"beta": "β", "threshold": "τ"}[name], float(beta if number == "beta" else number)))
    return found


def test_the_stored_explorers_open_where_their_cells_say():
    root = Path(__file__).resolve().parents[2] / "notebooks"
    found = [one for path in sorted(root.glob("*.ipynb")) for one in opened(path)]
    assert len(found) >= 6
    said = [(text, name, value) for text, name, value in found if f"{name} = " in text]
    assert len(said) >= 6
    for text, name, value in said:
        assert value in map(float, re.findall(rf"{name} = (\d+\.?\d*)", text)), text
