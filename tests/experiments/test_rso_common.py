"""What the experiments on RSO share: which candidates are paired, by whose scores, and exact chances by hand."""

import math
from types import SimpleNamespace

import pytest
import torch

from rlhf_lab.batch import Tokens
from rlhf_lab.experiments.rso_common import RSOSetup, chance_to_be_preferred, chance_to_win

PROMPTS = Tokens.from_lists([[i] for i in range(40)])
CANDIDATES = Tokens.from_lists([[[10], [11], [12], [13]]] * 40)


def rso_setup(scores: list[float], gold: list[float] | None = None) -> RSOSetup:
    """Forty prompts with the same four candidates, 10 to 13, of these scores."""
    made = RSOSetup(SimpleNamespace(seed=0, prompts=PROMPTS, pairs="labelled"), 4)
    made.__dict__["responses"] = CANDIDATES
    made.__dict__["scores"] = torch.tensor([scores] * 40, dtype=torch.float64)
    made.__dict__["gold_scores"] = torch.tensor([gold or scores] * 40, dtype=torch.float64)
    return made


def ids(pairs) -> set[tuple[int, int]]:
    return {(one[0], other[0]) for one, other in pairs.responses.tolist()}


def test_the_first_candidates_are_paired_and_labelled_by_their_own_scores_or_by_gold():
    """Gaps of 1000 leave a label no chance; gold turns the order round."""
    made = rso_setup([0.0, 1000.0, 2000.0, 3000.0], [3000.0, 2000.0, 1000.0, 0.0])
    assert ids(made.pairs("sft-sample-rank", 0.5, 2)) == {(11, 10)}
    assert ids(made.pairs("sft-sample-rank", 0.5, 2, gold=True)) == {(10, 11)}
    assert made.pairs("direct", 0.5, 2) == "labelled"


def test_accepted_candidates_are_labelled_by_their_own_scores():
    """At a small β the two best are accepted, 10 and 12; the scores of the first two places would name 11 the worse."""
    assert ids(rso_setup([3000.0, 0.0, 2000.0, 1000.0]).pairs("rso-sample-rank", 1e-3, 2)) == {(10, 12)}
    gold = rso_setup([3000.0, 0.0, 2000.0, 1000.0], [0.0, 3000.0, 1000.0, 2000.0])
    assert ids(gold.pairs("rso-sample-rank", 1e-3, 2, gold=True)) == {(11, 13)}


def test_hard_labels_follow_the_smallest_gap_and_a_tournament_has_a_pair_more():
    made = rso_setup([0.0, 1e-6, 2e-6, 3e-6])
    hard = made.pairs("sft-sample-rank", 0.5, 4, labels="hard")
    assert all(one > other for one, other in ids(hard)) and len(hard) == 40 * 2
    drawn = made.pairs("sft-sample-rank", 0.5, 4)
    assert any(one < other for one, other in ids(drawn))
    assert len(made.pairs("sft-sample-rank", 0.5, 4, "tournament")) == 40 * 3
    assert len(made.pairs("sft-sample-rank", 0.5, 4, number=7)) == 7
    assert len(made.pairs("sft-sample-rank", 0.5, 4, number=100)) == 40 * 2


def test_the_reach_of_weights_three_to_one_by_hand():
    """Scores 0 and β log 3 of two candidates: weights ¼ and ¾ against even halves, ¼ log ½ + ¾ log 3/2."""
    made = rso_setup([0.0, 0.0, 0.0, 0.0])
    made.__dict__["scores"] = torch.tensor([[0.0, 2 * math.log(3)]] * 40, dtype=torch.float64)
    assert made.reach(2.0) == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))


def test_chances_to_win_and_to_please_by_hand():
    """π_ref = (½, ¼, ¼), rewards 0, 1, 1: the first ties with itself, ½·½; the others beat it and tie with ½ of the
    mass. A labeller prefers the second to a draw with ½ σ(1) + ½ σ(0)."""
    log_ref, reward = torch.tensor([[0.5, 0.25, 0.25]]).double().log(), torch.tensor([[0.0, 1.0, 1.0]]).double()
    assert chance_to_win(log_ref, reward)[0].tolist() == pytest.approx([0.25, 0.75, 0.75])
    s = 1 / (1 + math.exp(-1))
    expected = [0.5 * 0.5 + 0.5 * (1 - s), 0.5 * s + 0.25, 0.5 * s + 0.25]
    assert chance_to_be_preferred(log_ref, reward)[0].tolist() == pytest.approx(expected)
