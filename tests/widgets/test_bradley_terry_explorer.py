"""Reward and preference: the picture's numbers by hand, and a picture for every combination of the controls."""

import json
import math

import pytest
import torch

from rlhf_lab.errors import LabError
from rlhf_lab.figures.picture import draw
from rlhf_lab.widgets.bradley_terry import bradley_terry_explorer, bradley_terry_picture, expected_label_loss
from rlhf_lab.worlds import bandit

torch.set_num_threads(1)

REF = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
REWARD = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
NAMES = ["first", "second", "third"]


def sigma(u: float) -> float:
    return 1 / (1 + math.exp(-u))


def numbers(**changes):
    settings = {"offset": 0.0, "scale": 1.0, "first": 2, "second": 0, "beta": 0.5, **changes}
    picture = bradley_terry_picture(REF.log(), REWARD, responses=NAMES, **settings)
    return picture, {number.symbol: number.value for number in picture.numbers}


def test_the_preference_is_the_sigmoid_of_the_rewards_difference():
    """r = 2 against 0: σ(2); twice the reward: σ(4); an offset changes neither."""
    _, found = numbers(scale=2.0, offset=1.3)
    assert found["p(y₁ ≻ y₂)"] == pytest.approx(sigma(2))
    assert found["p of the model"] == pytest.approx(sigma(4))


def test_an_offset_moves_the_bars_and_nothing_else():
    before, still = numbers()
    after, moved = numbers(offset=2.5)
    assert moved == pytest.approx(still, abs=1e-12)
    assert moved["loss above its minimum"] == pytest.approx(0, abs=1e-12)
    assert moved["KL of its π* to π*"] == pytest.approx(0, abs=1e-12)
    bars = {layer.style: layer.height for layer in after.panels[0].layers}
    assert (bars["policy"] - bars["optimal"]).tolist() == pytest.approx([2.5] * 3)
    assert "same π*" in after.text and "same π*" in before.text


def test_the_model_s_bars_are_the_scaled_rewards_plus_the_offset():
    """2 · (0, 1, 2) + 1.3 by hand."""
    picture, _ = numbers(scale=2.0, offset=1.3)
    bars = {layer.style: layer.height.tolist() for layer in picture.panels[0].layers}
    assert bars["policy"] == pytest.approx([1.3, 3.3, 5.3])


@pytest.mark.parametrize("scale", [0.25, 0.8, 1.5, 4.0])
def test_a_scale_is_told_by_labels_and_acts_as_another_beta(scale):
    """π* of c·r at β is π* of r at β/c; the label loss is computed with `math`, pair by pair."""
    _, found = numbers(scale=scale)
    star = [p * math.exp(r / 0.5) for p, r in zip(REF.tolist(), REWARD.tolist(), strict=True)]
    other = [p * math.exp(scale * r / 0.5) for p, r in zip(REF.tolist(), REWARD.tolist(), strict=True)]
    star, other = [s / sum(star) for s in star], [s / sum(other) for s in other]
    kl = sum(a * math.log(a / b) for a, b in zip(other, star, strict=True))
    assert found["KL of its π* to π*"] == pytest.approx(kl) and kl > 1e-3

    def loss(c: float) -> float:
        total = weight = 0.0
        for i in range(3):
            for j in range(3):
                if i != j:
                    w = REF[i].item() * REF[j].item() * sigma(REWARD[i].item() - REWARD[j].item())
                    total -= w * math.log(sigma(c * (REWARD[i].item() - REWARD[j].item())))
                    weight += w
        return total / weight

    assert found["loss above its minimum"] == pytest.approx(loss(scale) - loss(1.0))
    assert found["loss above its minimum"] > 0


def test_the_expected_loss_is_what_a_simulation_of_labels_finds():
    """100,000 labels: mean ± 4 standard errors."""
    world = bandit.make(REF.log().unsqueeze(0), REWARD.unsqueeze(0))
    pairs = world.preferences(100_000, torch.Generator().manual_seed(0))
    model = torch.tensor([0.5, -0.3, 1.0], dtype=torch.float64)
    scores = model[pairs.responses.ids[..., 0]]
    losses = -torch.nn.functional.logsigmoid(scores[:, 0] - scores[:, 1])
    error = losses.std().item() / math.sqrt(len(losses))
    assert abs(losses.mean().item() - expected_label_loss(REF.log(), REWARD, model)) < 4 * error


def test_every_combination_of_the_controls_gives_a_picture():
    world = bandit.lecture()
    explorer = bradley_terry_explorer(world.log_ref()[0], world.rewards()[0], world.response_names())
    states = explorer.states(stops=4)
    sizes = [len(control["names"]) for control in states["controls"]]
    assert sizes[2] == 12 and len(states["pictures"]) == math.prod(sizes)
    for picture in states["pictures"]:
        assert not picture["failed"] and len(picture["panels"]) == 2 and "nan" not in picture["text"]
        heights = [v for layer in picture["panels"][1]["layers"] for v in layer["y"]]
        assert all(v is not None and 0 <= v <= 1 for v in heights)
    json.dumps(states, allow_nan=False)


def test_moving_each_control_changes_the_picture_and_it_can_be_drawn():
    explorer = bradley_terry_explorer(REF.log(), REWARD, NAMES)
    for name, value in {"offset": -2.0, "scale": 2.0, "pair": (0, 1)}.items():
        before = explorer.chart.picture
        explorer.inputs[name].value = value
        assert explorer.chart.picture != before, name
    assert "“first” beats “second”" in explorer.text
    assert len(draw(explorer.picture()).axes) == 2


def test_what_makes_no_sense_is_refused():
    with pytest.raises(LabError, match="two different numbers"):
        numbers(first=1, second=1)
    with pytest.raises(LabError, match="scale"):
        numbers(scale=0.0)
    with pytest.raises(LabError, match="K names"):
        bradley_terry_explorer(REF.log(), REWARD, NAMES[:2])
    with pytest.raises(LabError, match="names were given for"):
        bradley_terry_picture(REF.log(), REWARD, 0.0, 1.0, 0, 1, NAMES[:2])
