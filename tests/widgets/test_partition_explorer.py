"""Monte Carlo Z without a browser: exact numbers by closed forms and listing, estimates by their distribution."""

import itertools
import json
import math

import pytest
import torch

from rlhf_lab import exact
from rlhf_lab.errors import LabError
from rlhf_lab.widgets import partition
from rlhf_lab.widgets.optimal_policy import optimal_policy_explorer, optimal_policy_picture

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def explorer():
    return partition.partition_explorer(runs=100)


def test_word_levels_are_the_million_responses_put_together():
    """Six words, all 64 responses listed one by one: the same Z as over the seven levels."""
    words, good, beta, reward_range = 6, 0.3, 0.7, 2.5
    z = 0.0
    for response in itertools.product([0, 1], repeat=words):
        p = math.prod(good if word else 1 - good for word in response)
        z += p * math.exp(reward_range * sum(response) / words / beta)
    log_ref, score = partition.word_levels(words, good)
    assert float(exact.log_partition(log_ref, reward_range * score, beta)) == pytest.approx(math.log(z), rel=1e-12)


@pytest.mark.parametrize(("words", "good"), [(0, 0.5), (1001, 0.5), (5, 0.0), (5, 1.0)])
def test_word_levels_refuse_what_is_no_probability_or_too_long(words, good):
    with pytest.raises(LabError, match="words must be in"):
        partition.word_levels(words, good)


@pytest.mark.parametrize("beta", [0.3, 1.0, 5.0])
def test_relative_variance_is_the_variance_by_its_definition(beta):
    generator = torch.Generator().manual_seed(0)
    log_ref = torch.randn(3, 7, dtype=torch.float64, generator=generator).log_softmax(-1)
    reward = torch.randn(3, 7, dtype=torch.float64, generator=generator)
    weight = torch.exp(reward / beta)
    mean = (log_ref.exp() * weight).sum(-1, keepdim=True)
    variance = (log_ref.exp() * (weight - mean).square()).sum(-1) / mean.squeeze(-1).square()
    torch.testing.assert_close(exact.relative_variance(log_ref, reward, beta), variance, rtol=1e-9, atol=0)


def test_relative_variance_stays_a_number_or_infinity_at_every_beta():
    log_ref, score = partition.word_levels(200)
    for beta in (1e-6, 1e-3, 1.0, 1e6):
        value = float(exact.relative_variance(log_ref, 8 * score, beta))
        assert value >= 0 and not math.isnan(value)


def test_draws_are_nested_counts_of_the_right_size():
    log_ref, _ = partition.word_levels()
    draws = partition.draw(log_ref, runs=7)
    sizes = 2 ** torch.arange(partition.DOUBLINGS + 1).double()
    torch.testing.assert_close(draws.counts.sum(-1), sizes.unsqueeze(-1).expand(-1, 7))
    assert (draws.counts.diff(dim=0) >= 0).all()
    torch.testing.assert_close(draws.numbers, sizes)


def test_draws_are_the_same_for_the_same_seed_and_differ_for_another():
    log_ref, _ = partition.word_levels()
    first, again, other = (partition.draw(log_ref, runs=3, seed=seed).counts for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_draws_never_hit_a_response_without_probability():
    log_ref = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0], dtype=torch.float64).log()
    counts = partition.draw(log_ref, runs=5).counts
    assert counts[..., [0, 2, 4]].sum() == 0
    # Half of 5 × 16,384 draws, with a standard deviation of 143.
    assert abs(float(counts[-1, :, 1].sum()) - 5 * 2**13) < 5 * 143


def test_an_estimate_is_the_logarithm_of_the_mean_of_its_draws():
    """Three draws by hand: y = 0 twice and y = 2 once, r = 0, 1, 2 at β = 0.5: (1 + 1 + e⁴)/3."""
    draws = partition.DrawCounts(torch.tensor([[[2.0, 0.0, 1.0]]], dtype=torch.float64))
    estimate = draws.estimates(torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64), 0.5)
    assert float(estimate) == pytest.approx(math.log((2 + math.exp(4)) / 3), rel=1e-12)


def test_estimates_are_finite_where_a_run_never_saw_a_good_response():
    """Only y = 0 was drawn, and the best response is 10⁶ nats better: log Ẑ = r(0)/β = 0, not −∞."""
    draws = partition.DrawCounts(torch.tensor([[[4.0, 0.0]]], dtype=torch.float64))
    estimate = draws.estimates(torch.tensor([0.0, 1.0], dtype=torch.float64), 1e-6)
    assert float(estimate) == pytest.approx(0.0, abs=1e-12)


def test_the_mean_and_the_spread_of_the_estimates_are_the_exact_ones():
    """E[Ẑ] = Z, Var(Ẑ)/Z² = χ²/n: 4,000 runs of 64 draws, five standard errors."""
    log_ref, score = partition.word_levels()
    reward, beta, runs = 4 * score, 1.0, 4000
    log_z = exact.log_partition(log_ref, reward, beta)
    chi2 = float(exact.relative_variance(log_ref, reward, beta))
    small = partition.draw(log_ref, runs=runs, doublings=6).estimates(reward, beta)[6]
    ratio = torch.exp(small - log_z)
    assert abs(float(ratio.mean()) - 1) < 5 * math.sqrt(chi2 / 64 / runs)
    squared = (ratio - 1).square()
    assert abs(float(squared.mean()) - chi2 / 64) < 5 * float(squared.std()) / math.sqrt(runs)


def test_every_combination_of_the_controls_gives_a_picture(explorer):
    states = explorer.states(stops=4)
    sizes = [len(control["names"]) for control in states["controls"]]
    assert len(states["pictures"]) == math.prod(sizes)
    for picture in states["pictures"]:
        assert not picture["failed"] and len(picture["panels"]) == 2 and len(picture["numbers"]) == 4
        assert "nan" not in picture["text"] and "inf" not in picture["text"]
        for line in picture["panels"][1]["layers"]:
            assert sum(line["y"]) == pytest.approx(1, abs=1e-4)
    json.dumps(states, allow_nan=False)


@pytest.mark.parametrize(("beta", "reward_range"), [(0.25, 8.0), (1.0, 3.0), (8.0, 1.0)])
def test_the_numbers_below_the_picture_have_a_closed_form(explorer, beta, reward_range):
    """Twenty independent words: log Z = 20 log(¾ + ¼ e^{R/20β}), and the second moment is Z at half of β."""
    picture = explorer.picture(doublings=10, beta=beta, reward_range=reward_range)
    numbers = {number.symbol: number.value for number in picture.numbers}
    a = reward_range / 20 / beta
    log_z = 20 * math.log(0.75 + 0.25 * math.exp(a))
    chi2 = math.exp(20 * math.log(0.75 + 0.25 * math.exp(2 * a)) - 2 * log_z) - 1
    assert numbers["log Z"] == pytest.approx(log_z, rel=1e-9)
    assert numbers["sd(Ẑ)/Z"] == pytest.approx(math.sqrt(chi2 / 1024), rel=1e-6)
    assert numbers["n for 10%"] == pytest.approx(max(1.0, 100 * chi2), rel=1e-6)


def test_more_samples_bring_the_middle_estimate_nearer_and_the_band_closer(explorer):
    band, line = explorer.picture(beta=0.25).panels[0].layers[:2]
    gaps = [abs(float(line.y[k])) for k in (0, 7, 14)]
    widths = [float(band.high[k] - band.low[k]) for k in (0, 7, 14)]
    assert gaps[0] > gaps[1] > gaps[2] and widths[0] > widths[1] > widths[2]


def test_the_text_says_where_nine_of_ten_estimates_lie_at_the_chosen_n(explorer):
    picture = explorer.picture(doublings=5, beta=0.25)
    band, _, _, mark = picture.panels[0].layers
    assert mark.at == 32 and float(band.x[5]) == 32
    for end in (band.low[5], band.high[5]):
        assert f"{float(end):+.2g}".replace("-", "−") in picture.text


def test_each_control_moves_the_picture(explorer):
    for name, value in {"doublings": 3, "beta": 2.0, "reward_range": 2.0}.items():
        before = explorer.chart.picture
        explorer.inputs[name].value = value
        assert explorer.chart.picture != before, name


def test_a_world_of_ones_own_is_taken_and_put_in_the_order_of_its_score():
    log_ref = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    score = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
    mine = partition.partition_explorer(log_ref, score, beta=2.0, reward_range=3.0, runs=5)
    by_hand = math.log(0.2 * math.exp(1.5) + 0.5 + 0.3 * math.exp(0.75))
    assert mine.picture().numbers[0].value == pytest.approx(by_hand)
    line = mine.picture().panels[1].layers[0]
    assert line.x.tolist() == [0.0, 1.5, 3.0] and line.y.tolist() == pytest.approx([0.5, 0.3, 0.2])


def test_the_partition_explorer_refuses_what_does_not_fit():
    log_ref, score = partition.word_levels()
    with pytest.raises(LabError, match="both log_ref and score"):
        partition.partition_explorer(log_ref)
    with pytest.raises(LabError, match=r"both be \(K,\)"):
        partition.partition_explorer(log_ref, score[:3])
    with pytest.raises(LabError, match=r"in \[0, 1\]"):
        partition.partition_explorer(log_ref, 2 * score)
    with pytest.raises(LabError, match="doublings must be in"):
        partition.partition_picture(log_ref, score, partition.draw(log_ref, 1, doublings=3), 4, 1.0, 1.0)
    with pytest.raises(LabError, match="runs at least 1"):
        partition.draw(log_ref, runs=0)


# --- π* under β: the curve that is kept ------------------------------------------------------------------------


def test_the_kept_frontier_gives_the_same_picture_as_a_fresh_one():
    generator = torch.Generator().manual_seed(0)
    log_ref = torch.randn(2, 4, dtype=torch.float64, generator=generator).log_softmax(-1)
    reward = torch.randn(2, 4, dtype=torch.float64, generator=generator)
    explorer = optimal_policy_explorer(log_ref, reward, list("abcd"), prompts=["x", "y"])
    for prompt, name in enumerate(["x", "y"]):
        fresh = optimal_policy_picture(log_ref[prompt], reward[prompt], 0.7, list("abcd"), name)
        assert explorer.picture(beta=0.7, prompt=prompt).to_dict() == fresh.to_dict()


def test_the_frontier_is_computed_once_and_not_at_every_move(monkeypatch):
    log_ref = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    reward = torch.tensor([0.0, 1.0], dtype=torch.float64)
    explorer = optimal_policy_explorer(log_ref, reward, ["a", "b"])
    calls = []
    monkeypatch.setattr(exact, "frontier", lambda *a: calls.append(a))
    explorer.picture(beta=0.3)
    explorer.inputs["beta"].value = 2.0
    assert calls == []
