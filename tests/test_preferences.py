"""Labels and pairing: frequencies against Bradley–Terry, pairings against what a bracket is."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lab.errors import LabError
from rlhf_lab.preferences import make_pairs, sample_preferences

N = 200_000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_frequency(wins: torch.Tensor, p: float) -> None:
    """Within five standard errors of a binomial: a right implementation fails one seed in two million."""
    error = math.sqrt(max(p * (1 - p), 1e-12) / wins.numel())
    assert abs(wins.double().mean().item() - p) < 5 * error + 1e-12


@pytest.mark.parametrize("gap", [-3.0, -0.5, 0.0, 1.0, 2.5])
@pytest.mark.parametrize("noise", [0.0, 0.1, 0.5])
def test_sampled_labels_follow_bradley_terry_and_noise_turns_them_round(gap, noise):
    """P(first) = (1 − ε) σ(Δ) + ε (1 − σ(Δ)) = (1 − 2ε) σ(Δ) + ε."""
    p = (1 - 2 * noise) / (1 + math.exp(-gap)) + noise
    wins = sample_preferences(torch.full((N,), gap + 7.0), torch.full((N,), 7.0), seeded(), noise=noise)
    assert wins.dtype == torch.bool and wins.shape == (N,)
    assert_frequency(wins, p)


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_hard_labels_prefer_the_larger_score_but_for_noise_and_toss_a_coin_on_ties(noise):
    scores = torch.tensor([2.0, 1.0, 1.0]).repeat(N, 1), torch.tensor([1.0, 2.0, 1.0]).repeat(N, 1)
    wins = sample_preferences(*scores, seeded(1), labels="hard", noise=noise)
    for column, p in enumerate([1 - noise, noise, 0.5]):
        assert_frequency(wins[:, column], p)


def test_labels_of_one_call_are_independent():
    """Of two neighbouring fair labels both are won a quarter of the time."""
    wins = sample_preferences(torch.zeros(N, 2), torch.zeros(N, 2), seeded(2))
    assert_frequency(wins.all(-1), 0.25)


def test_scores_far_apart_leave_no_doubt_and_no_nan():
    big = torch.full((1000,), 1e6)
    assert sample_preferences(big, -big, seeded()).all()
    assert not sample_preferences(-big, big, seeded()).any()


def test_labels_are_a_function_of_the_generator_alone():
    a, b = torch.randn(100, generator=seeded(5)), torch.randn(100, generator=seeded(6))
    before = torch.get_rng_state()
    assert torch.equal(sample_preferences(a, b, seeded(3), noise=0.1), sample_preferences(a, b, seeded(3), noise=0.1))
    assert not torch.equal(sample_preferences(a, b, seeded(3)), sample_preferences(a, b, seeded(4)))
    assert torch.equal(make_pairs(a.view(10, 10), seeded(3)), make_pairs(a.view(10, 10), seeded(3)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: sample_preferences(torch.tensor([math.nan]), torch.zeros(1)), "reward_1 contains nan"),
        (lambda: sample_preferences(torch.zeros(1), torch.tensor([math.inf])), "reward_2 contains inf"),
        (lambda: sample_preferences(torch.zeros(2), torch.zeros(3)), "shapes do not match"),
        (lambda: sample_preferences(torch.zeros(2).long(), torch.zeros(2)), "reward_1 must contain floating-point"),
        (lambda: sample_preferences(torch.zeros(2), torch.zeros(2), noise=0.6), "noise must lie in"),
        (lambda: sample_preferences(torch.zeros(2), torch.zeros(2), noise=-0.1), "noise must lie in"),
        (lambda: sample_preferences(torch.zeros(2), torch.zeros(2), noise=math.nan), "noise must lie in"),
        (lambda: sample_preferences(torch.zeros(2), torch.zeros(2), labels="soft"), "labels must be"),
        (lambda: make_pairs(torch.zeros(2, 3)), "even G"),
        (lambda: make_pairs(torch.zeros(2, 0)), "even G"),
        (lambda: make_pairs(torch.zeros(4)), "even G"),
        (lambda: make_pairs(torch.zeros(2, 6), pairing="tournament"), "2, 4, 8"),
        (lambda: make_pairs(torch.zeros(2, 4), pairing="ladder"), "pairing must be"),
        (lambda: make_pairs(torch.tensor([[0.0, math.nan]])), "contains nan"),
    ],
)
def test_bad_input_gets_one_error_that_names_it(call, message):
    with pytest.raises(LabError, match=message):
        call()


@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 2**31))
def test_first_round_uses_every_response_once(batch, half, seed):
    rewards = torch.randn(batch, 2 * half, generator=seeded(seed))
    pairs = make_pairs(rewards, seeded(seed))
    assert pairs.shape == (batch, half, 2) and pairs.dtype == torch.int64
    assert torch.equal(pairs.flatten(1).sort(-1).values, torch.arange(2 * half).expand(batch, -1))


def test_first_round_pairs_at_random():
    """With four responses, 0 meets each of 1, 2, 3 in a third of the prompts."""
    pairs = make_pairs(torch.zeros(N // 4, 4), seeded(8))
    with_zero = pairs[(pairs == 0).any(-1)]
    assert len(with_zero) == N // 4
    for other in (1, 2, 3):
        assert_frequency((with_zero == other).any(-1), 1 / 3)


@given(st.integers(1, 5), st.sampled_from([2, 4, 8, 16]), st.integers(0, 2**31), st.sampled_from(["sampled", "hard"]))
def test_tournament_is_a_bracket_whose_winners_meet_again(batch, number, seed, labels):
    """G − 1 pairs. Each response plays once in the first round, every later round is played by the winners of the
    round before, and every response but the last winner loses once."""
    pairs = make_pairs(torch.randn(batch, number, generator=seeded(seed)), seeded(seed), "tournament", labels)
    assert pairs.shape == (batch, number - 1, 2)
    for row in pairs.tolist():
        players, start = set(range(number)), 0
        while len(players) > 1:
            size = len(players) // 2
            played = row[start : start + size]
            assert sorted(p for pair in played for p in pair) == sorted(players)
            players, start = {winner for winner, _ in played}, start + size
        assert start == number - 1
        assert {loser for _, loser in row} | players == set(range(number))
        assert len({loser for _, loser in row}) == number - 1


@given(st.integers(0, 2**31))
def test_hard_tournament_is_won_by_the_best_response_and_every_pair_is_in_order(seed):
    rewards = torch.randn(4, 8, generator=seeded(seed))
    pairs = make_pairs(rewards, seeded(seed), "tournament", "hard")
    scores = rewards.gather(1, pairs.flatten(1)).view(4, -1, 2)
    assert (scores[..., 0] > scores[..., 1]).all()
    assert torch.equal(pairs[:, -1, 0], rewards.argmax(-1))


def test_pairs_are_labelled_by_bradley_terry_with_noise():
    """Two responses Δ = 1 apart: the first is chosen with (1 − 2ε) σ(1) + ε, ε = 0.2."""
    pairs = make_pairs(torch.tensor([[1.0, 0.0]]).repeat(N, 1), seeded(9), noise=0.2)
    assert_frequency(pairs[:, 0, 0] == 0, 0.6 / (1 + math.exp(-1)) + 0.2)
