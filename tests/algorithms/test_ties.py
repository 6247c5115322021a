"""Margins that are zero up to rounding count ½, wherever a margin is compared with zero."""

from types import SimpleNamespace
from typing import get_args

import pytest
import torch

from rlhf_lab import exact, preferences, sampling
from rlhf_lab.algorithms.dpo import DPO, PairLoss, pair_loss
from rlhf_lab.algorithms.kto import KTO, LabelledResponses, kto_loss
from rlhf_lab.algorithms.pair_losses import PAIR_LOSSES
from rlhf_lab.algorithms.raft import best_of
from rlhf_lab.algorithms.ranker import order_loss
from rlhf_lab.algorithms.reward_model import bradley_terry_loss
from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.evaluation import win_rate
from rlhf_lab.evaluation.judges import GoldJudge, RewardJudge
from rlhf_lab.experiments.rso_common import chance_to_win
from rlhf_lab.training import seeded

REFERENCE = torch.tensor([[-300.0, -12.0], [-3.0, -250.0], [-0.01, -0.02], [-40.0, -40.0]])
"""log π_ref of four pairs, float32, from nearly certain to a long text."""


def off_by(units: float) -> torch.Tensor:
    """Numbers that far away from `REFERENCE`, the first response up and the second down: what another processor, or
    another split of the batch, makes of it. Where it is near 0 a logarithm has the error of the logits, of size 1."""
    return units * torch.finfo(torch.float32).eps * REFERENCE.abs().clamp(min=1) * torch.tensor([1.0, -1.0])


def pairs(number: int = 4) -> Pairs:
    """Pairs of equally many tokens; the losses see their log-probabilities alone."""
    responses = Tokens.full(torch.arange(number * 2 * 3).reshape(number, 2, 3))
    return Pairs(Tokens.full(torch.zeros(number, 1, dtype=torch.long)), responses)


def giving(values: torch.Tensor) -> SimpleNamespace:
    """A policy with these log-probabilities."""
    return SimpleNamespace(log_prob=lambda prompts, responses: values)


@pytest.mark.parametrize("loss", get_args(PairLoss))
def test_every_loss_of_the_family_calls_a_margin_of_rounding_a_tie_and_no_other(loss):
    """10 units off are rounding. 0.05 nats are not, at −300 nor at −0.02, where ε·300 would be 4e-5."""
    settings, moved = DPO(loss, beta=0.5, label_smoothing=0.1 * (loss in ("cdpo", "robust"))), torch.tensor(0.005)
    # Without a reference what is compared is log π itself, so both responses need the same to begin with.
    start = REFERENCE if PAIR_LOSSES[loss].reference else REFERENCE[:, :1].expand(-1, 2)
    for sign in (1, -1):
        _, seen = pair_loss(giving(start + sign * off_by(10)), pairs(), REFERENCE, settings)
        assert seen["accuracy"] == 0.5
        _, seen = pair_loss(giving(start + sign * torch.stack([moved, -moved])), pairs(), REFERENCE, settings)
        assert seen["accuracy"] == (sign > 0)


def test_at_the_first_step_accuracy_is_a_half_however_the_reference_was_computed():
    """Weights count: two ties and two certain pairs of weights 1, 1, 2 and 4 give (½ + ½ + 2)/8."""
    value = REFERENCE + off_by(3)
    value[2:, 0] += torch.tensor([0.5, -0.5])
    batch = Pairs(pairs().prompts, pairs().responses, torch.tensor([1.0, 1.0, 2.0, 4.0]))
    _, seen = pair_loss(giving(value), batch, REFERENCE, DPO())
    assert seen["accuracy"].item() == pytest.approx(3 / 8)


def test_kto_counts_k_near_z_as_half_right_for_both_labels():
    """k = ±rounding with z = 0; then z off by the rounding of long responses, beside short ones, if that is said."""
    labelled = LabelledResponses.from_pairs(pairs())
    for sign in (1, -1):
        _, seen = kto_loss(giving(REFERENCE + sign * off_by(10)), labelled, REFERENCE, 0.0, KTO())
        assert seen["accuracy"] == 0.5
    z = torch.full((4, 1), 1e-4)
    same = giving(REFERENCE.clone())
    assert kto_loss(same, labelled, REFERENCE, z, KTO(), 1e-4)[1]["accuracy"] == 0.5
    # Without it 1e-4 nats above k are enough to be right about the rejected one of the short pair.
    short = labelled[torch.tensor([2])]
    seen = kto_loss(giving(REFERENCE[2:3]), short, REFERENCE[2:3], z[:1], KTO())[1]
    assert seen["accuracy"] == 0.5 * (0 + 1)
    # k above z: right about the chosen one, wrong about the rejected one; and the other way round.
    up = giving(REFERENCE + torch.tensor([0.1, -0.1]))
    assert kto_loss(up, labelled, REFERENCE, 0.0, KTO())[1]["accuracy"] == 1
    down = giving(REFERENCE + torch.tensor([-0.1, 0.1]))
    assert kto_loss(down, labelled, REFERENCE, 0.0, KTO())[1]["accuracy"] == 0


@pytest.mark.parametrize("size", [1e-3, 10.1])
def test_the_reward_model_s_equal_scores_are_half_right_at_every_magnitude(size):
    """Equal, one unit apart, and 1 % apart, both ways: (½ + ½ + 1 + 0)/4."""
    one = torch.tensor(size)
    up = torch.nextafter(one, torch.tensor(torch.inf))
    scores = torch.stack([torch.stack(row) for row in ((one, one), (one, up), (1.01 * one, one), (one, 1.01 * one))])
    _, seen = bradley_terry_loss(lambda prompts, responses: scores, pairs(), 0.0)
    assert seen["accuracy"].item() == 0.5
    _, seen = bradley_terry_loss(lambda prompts, responses: scores[[1, 2]], pairs(2), 0.0)
    assert seen["accuracy"].item() == 0.75


def test_a_new_ranker_s_logits_of_zero_prefer_nothing():
    """Shown both ways, logit 0: accuracy and "first preferred" are ½; logit 1e-3 is a preference."""
    ranker = SimpleNamespace(logits=lambda prompts, first, second: torch.tensor([[0.0], [0.0], [1e-3], [-1e-3]]))
    order = torch.tensor([True, False, True, True])
    _, seen = order_loss(ranker, pairs(), order, 0.0)
    assert seen["accuracy"] == 0.5 and seen["first_preferred"] == 0.5
    _, seen = order_loss(ranker, pairs(), torch.tensor([True, True, True, False]), 0.0)
    assert seen["accuracy"] == 0.75


def test_hard_labels_and_the_best_of_several_draw_among_what_rounding_alone_tells_apart():
    """0.1 + 0.2 and 0.3 are drawn evenly: of 4000 within four standard errors (0.032) of ½. 0.3001 always wins."""
    equal, half = (
        torch.tensor([[0.1 + 0.2, 0.3, 0.0]], dtype=torch.float64).expand(4000, 3),
        pytest.approx(0.5, abs=0.032),
    )
    wins = preferences.sample_preferences(equal[:, 0], equal[:, 1], seeded(0), "hard")
    assert wins.double().mean().item() == half
    assert preferences.sample_preferences(equal[:, 0] + 1e-4, equal[:, 1], seeded(0), "hard").all()
    for picked in (best_of(equal, seeded(1)), sampling.rejection_sample(equal, 1, 0.0, seeded(2))):
        assert (picked == 0).double().mean().item() == half and (picked < 2).all()
    picked = best_of(equal + torch.tensor([0.0, 1e-4, 0.0], dtype=torch.float64), seeded(1))
    assert (picked == 1).all()


def test_exact_chances_treat_rewards_that_differ_by_rounding_as_one_level():
    """π_ref = (.2, .3, .5), the first two rewards equal up to 5.6e-17, the third below. Against a draw of π_ref they
    win with .5 + ½(.2 + .3) and the third with ½ · .5. Best of 2: the pair's mass is 1 − .25, shared as 2 : 3."""
    reward = torch.tensor([[0.1 + 0.2, 0.3, 0.0]], dtype=torch.float64)
    log_ref = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64).log()
    torch.testing.assert_close(chance_to_win(log_ref, reward), torch.tensor([[0.75, 0.75, 0.25]], dtype=torch.float64))
    best = exact.best_of_n(log_ref, reward, 2).exp()
    torch.testing.assert_close(best, torch.tensor([[0.75 * 0.4, 0.75 * 0.6, 0.25]], dtype=torch.float64))


def test_judges_call_sums_of_equal_parts_a_tie():
    """By rule: 0.1 + 0.2 against 0.3, and 1 − 0.9 − 0.1 (−2.8e-17) against 0, where other scores are about 1. By a
    network in float32: one unit apart. `tie` still widens it, and 0.01 is a win without it."""
    scores = {"a": 0.1 + 0.2, "b": 0.3, "c": 1 - 0.9 - 0.1, "d": 0.0, "e": 1.0, "f": 0.99}
    asked, ours, theirs = ["x"] * 4, ["a", "c", "e", "f"], ["b", "d", "f", "e"]
    assert scores["a"] != scores["b"] and scores["c"] != scores["d"]
    gold = GoldJudge(lambda prompts, texts: [scores[text] for text in texts])
    assert gold(asked, ours, theirs) == [0.5, 0.5, 1.0, 0.0]
    assert GoldJudge(gold.gold, tie=0.02)(asked, ours, theirs) == [0.5] * 4

    class Words:
        eos_token_id = None
        bos_token_id = None

        def __call__(self, texts, **_):
            return {"input_ids": [[ord(c) for c in text] for text in ([texts] if isinstance(texts, str) else texts)]}

    def score(prompts, responses):
        near = torch.where(responses.ids[..., 0] % 2 == 0, 10.1, torch.nextafter(torch.tensor(10.1), torch.tensor(0.0)))
        return near + 0.01 * (responses.ids[..., 0] > 110)

    network = RewardJudge(score, Words())
    assert network(["x"] * 3, ["b", "a", "z"], ["a", "b", "a"]) == [0.5, 0.5, 1.0]


def test_a_win_rate_s_ties_and_turns_are_not_decided_by_rounding():
    """A judge that says ½ up to one unit, differently in both orders, ties and never turns. One that says 0.3 to every
    prompt has no spread, though the standard error of 0.3's is 1e-17: the interval is that of ten draws."""

    class Judge:
        order_free = False

        def __init__(self, first, second):
            self.said, self.asked = (first, second), 0

        def __call__(self, prompts, a, b):
            self.asked += 1
            return [self.said[self.asked - 1]] * len(prompts)

    texts = [str(i) for i in range(10)]
    found = win_rate(texts, texts, texts, Judge(0.5 + 1e-16, 0.5 + 1.2e-16))
    assert found.ties == 1 and found.turned == 0
    assert win_rate(texts, texts, texts, Judge(0.7, 0.8)).turned == 1
    even = win_rate(texts, texts, texts, Judge(0.3, 0.7))
    assert even.mean == pytest.approx(0.3) and even.high - even.low > 0.4
