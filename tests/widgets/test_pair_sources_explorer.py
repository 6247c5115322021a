"""The explorer of RSO's pair sources, without a browser."""

import math

import pytest
import torch

from rlhf_lab import exact, preferences
from rlhf_lab.errors import LabError
from rlhf_lab.figures.picture import Bars, Curve
from rlhf_lab.training import seeded
from rlhf_lab.widgets.pair_sources import (
    BETAS,
    SOURCES,
    best_prices,
    pair_sources_explorer,
    pair_sources_picture,
    pair_weights,
    price_curves,
    source_policy,
)
from rlhf_lab.worlds import bandit

torch.set_num_threads(1)

WORLD = bandit.lecture()
SFT, REWARD = WORLD.log_ref(), WORLD.rewards()
NAMES = WORLD.response_names()


def layers(picture, panel, kind):
    return {layer.label: layer for layer in picture.panels[panel].layers if isinstance(layer, kind)}


def test_every_combination_of_the_controls_gives_a_picture():
    states = pair_sources_explorer(SFT, REWARD, NAMES, WORLD.prompt_names).states(stops=5)
    assert len(states["pictures"]) >= 3 * 5 * 3 * 2
    assert not any(picture["failed"] for picture in states["pictures"])


def test_first_round_pairs_of_two_responses_are_always_the_two():
    weights = pair_weights(torch.tensor([0.9, 0.1], dtype=torch.float64).log(), torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(weights, torch.tensor([[0.0, 0.5], [0.5, 0.0]], dtype=torch.float64))


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_pair_weights_are_the_frequencies_of_make_pairs(rounds):
    # Independent way: draw 2^rounds responses, let `preferences.make_pairs` pair and label them, count.
    log_source, reward = SFT[0], REWARD[0]
    generator = seeded(rounds)
    drawn = torch.multinomial(log_source.exp().expand(20_000, 4), 2**rounds, True, generator=generator)
    pairing = "first-round" if rounds == 1 else "tournament"
    places = preferences.make_pairs(reward[drawn], generator, pairing)
    pairs = drawn.unsqueeze(1).expand(-1, places.shape[1], -1).gather(-1, places).reshape(-1, 2)
    counts = torch.bincount(4 * pairs[:, 0] + pairs[:, 1], minlength=16).reshape(4, 4).double()
    counts = (counts + counts.T) * (1 - torch.eye(4))
    # About 14,000 to 100,000 pairs: a share of 0.1 has a standard error below 0.003.
    torch.testing.assert_close(counts / counts.sum(), pair_weights(log_source, reward, rounds), atol=0.012, rtol=0)


def test_the_numbers_are_the_price_of_a_label_and_its_hundredfold():
    beta = 0.5
    picture = pair_sources_picture(SFT[0], REWARD[0], beta, "sft-sample-rank", 1, NAMES)
    mu = SFT[0].exp().unsqueeze(-1) * SFT[0].exp() * (1 - torch.eye(4))
    want = float(exact.label_price(SFT[0], REWARD[0], beta, mu / mu.sum()))
    numbers = {number.symbol: number.value for number in picture.numbers}
    assert numbers["N × regret"] == pytest.approx(want, rel=1e-10)
    assert numbers["N for regret 0.01"] == pytest.approx(100 * want, rel=1e-10)
    p = torch.sigmoid(REWARD[0].unsqueeze(-1) - REWARD[0])
    assert numbers["mean p(1 − p)"] == pytest.approx(float((mu / mu.sum() * p * p.T).sum()), rel=1e-10)


def test_no_source_is_cheaper_than_the_best_design():
    for prompt in (0, 1):
        for rounds in (1, 3):
            prices = price_curves(SFT[prompt], REWARD[prompt], rounds)
            for source in SOURCES:
                assert (prices.of[source] >= prices.best * (1 - 2e-3)).all()


def test_at_large_beta_pairs_from_pi_r_are_pairs_from_pi_sft():
    rso = pair_weights(source_policy("rso-sample-rank", SFT[0], REWARD[0], 1e9), REWARD[0])
    torch.testing.assert_close(rso, pair_weights(source_policy("sft-sample-rank", SFT[0], REWARD[0], 1.0), REWARD[0]))


def test_the_picture_shows_each_source_in_its_own_colour_and_the_curve_that_was_computed():
    picture = pair_sources_picture(SFT[1], REWARD[1], 1.0, "direct", 2, NAMES)
    lines = layers(picture, 1, Curve)
    assert [lines[name].style for name in ("direct", "sft", "rso")] == [f"rso-{source}" for source in SOURCES]
    i = 5
    weights = pair_weights(source_policy("direct", SFT[1], REWARD[1], BETAS[i]), REWARD[1], 2)
    want = exact.label_price(SFT[1], REWARD[1], BETAS[i], weights) / best_prices(SFT[1], REWARD[1])[i]
    assert float(lines["direct"].y[i]) == pytest.approx(float(want), rel=1e-9)
    bars = layers(picture, 0, Bars)
    assert float(torch.as_tensor(bars["pairs"].height).sum()) == pytest.approx(1.0)


def test_a_moved_slider_stays_on_the_curve():
    explorer = pair_sources_explorer(SFT[0], REWARD[0], NAMES)
    explorer.inputs["beta"].value = BETAS[3]
    prices = price_curves(SFT[0], REWARD[0], 1)
    ratio = float(prices.of["rso-sample-rank"][3] / prices.best[3])
    assert f"{ratio:.2f} times" in explorer.text


def test_bad_sources_rounds_and_one_sided_policies_are_refused():
    with pytest.raises(LabError, match="source must be"):
        source_policy("human", SFT, REWARD, 1.0)
    with pytest.raises(LabError, match="rounds"):
        pair_weights(SFT[0], REWARD[0], 0)
    with pytest.raises(LabError, match="nothing to compare"):
        one = torch.tensor([0.0, -math.inf], dtype=torch.float64)
        pair_weights(one, torch.zeros(2, dtype=torch.float64))
    with pytest.raises(LabError, match="those of 1 prompt and"):
        pair_sources_explorer(SFT, REWARD, NAMES, ["one"])
