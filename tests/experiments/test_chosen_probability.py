"""Claim 13, the probability of chosen responses: gradients by hand and by small steps, the rule, a quick run."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch

from rlhf_lab import exact
from rlhf_lab.experiments.claims.chosen_probability.report import METRICS, rank_correlations
from rlhf_lab.experiments.claims.chosen_probability.run import EXPERIMENT
from rlhf_lab.experiments.claims.chosen_probability.settings import CLASSES, LOSSES, ChosenProbability
from rlhf_lab.experiments.claims.chosen_probability.training import PairSetup, pair_loss, pair_setup, predicted
from rlhf_lab.experiments.runner import experiment_run
from rlhf_lab.policies.transformer.shared_prefix_forward import body_of
from rlhf_lab.worlds import bandit, token_tree

F64 = torch.float64


def quick(scale, **changes):
    return ChosenProbability(scale=scale, quick=True, progress=False, **changes)


@pytest.fixture(scope="module")
def tree():
    return pair_setup(quick("tree"), 0)


@pytest.fixture(scope="module")
def arms():
    return pair_setup(ChosenProbability(), 0)


@pytest.mark.parametrize("policies", CLASSES)
@pytest.mark.parametrize("scale", ["arms", "tree"])
def test_a_learner_starts_at_the_reference(scale, policies, request):
    setup = request.getfixturevalue(scale)
    found = setup.learner(policies)[1]().double()
    torch.testing.assert_close(found, setup.world.log_ref(), atol=1e-5, rtol=0)
    assert (setup.chosen != setup.rejected).all()


def test_the_own_part_of_a_table_s_step_is_positive_by_hand(arms):
    """On a bandit ⟨g_w, g_w − g_l⟩ = 1 − π(w) + π(l), and no other prompt's gradient overlaps."""
    gradients = arms.gradients("table")
    chosen, rejected = arms.pairs(arms.world.log_ref().exp())
    own = (gradients[0] * (gradients[0] - gradients[1])).sum(-1)
    torch.testing.assert_close(own, 1 - chosen + rejected)
    each, every = predicted(*gradients)
    torch.testing.assert_close(each, every)
    torch.testing.assert_close(each, own / 2)  # ‖g_w − g_l‖² = 2 for two logits of a row


def test_in_a_table_of_prefixes_shared_tokens_cancel(tree):
    """The fork gives 1 − π(a_w) + π(a_l), and every later token of y_w the squared norm of its own gradient."""
    tables = [table.exp() for table in exact.prefix_tables(tree.world.log_ref(), tree.world.tree.shapes)]
    gradients = tree.gradients("table")
    own = (gradients[0] * (gradients[0] - gradients[1])).sum(-1)
    ids = tree.world.tree.responses.ids
    for i, shared in enumerate(tree.shared_tokens().tolist()):
        node, expected = 0, 0.0
        for t, token in enumerate(ids[tree.chosen[i]].tolist()):
            p = tables[t][i, node]
            if t == shared:
                expected += 1 - p[token] + p[ids[tree.rejected[i], t]]
            elif t > shared:
                expected += 1 - 2 * p[token] + p.square().sum()
            node = node * 5 + token
        assert own[i].item() == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(("scale", "policies"), [("arms", "shared"), ("arms", "table"), ("tree", "shared")])
def test_a_small_step_of_dpo_changes_log_probabilities_as_predicted(scale, policies, request):
    setup = request.getfixturevalue(scale)
    settings = ChosenProbability(margin=0.01, step=0.01)
    log_policy, steps = setup.train(policies, "dpo", settings)
    change = setup.pairs(log_policy - setup.world.log_ref())
    expected = predicted(*setup.gradients(policies))[1]
    margin = (change[0] - change[1]).mean()
    assert steps <= 2 and margin.item() == pytest.approx(0.01 * steps, rel=0.1)
    torch.testing.assert_close(change[0] / margin, expected, atol=0.05, rtol=0.05)


def test_training_stops_at_the_margin_or_after_the_last_step(arms):
    settings = ChosenProbability(margin=1.0)
    for loss in LOSSES:
        log_policy, steps = arms.train("table", loss, settings)
        change = arms.pairs(log_policy - arms.world.log_ref())
        assert steps < settings.steps and 1.0 <= (change[0] - change[1]).mean().item() < 1.2
    assert arms.train("table", "dpo", ChosenProbability(steps=3))[1] == 3


def test_a_table_raises_every_chosen_response(arms):
    log_policy, _ = arms.train("table", "dpo", ChosenProbability())
    assert (arms.pairs(log_policy - arms.world.log_ref())[0] > 0).all()


def test_pair_losses_by_hand():
    """Chosen log-ratio −0.2, rejected −0.7, so Δ = 0.5, with β = 0.1; log π(y_w) = −1.2 over 2 tokens."""
    chosen, rejected = torch.tensor([-1.2], dtype=F64), torch.tensor([-2.7], dtype=F64)
    reference = torch.tensor([-1.0], dtype=F64), torch.tensor([-2.0], dtype=F64)

    def found(loss):
        return pair_loss(loss, ChosenProbability(penalty=50.0), chosen, rejected, *reference, length=2).item()

    def loss_of(margin):
        return math.log1p(math.exp(-margin))

    assert found("dpo") == pytest.approx(loss_of(0.05))
    assert found("ipo") == pytest.approx((0.5 - 5) ** 2)
    assert found("dpo-nll") == pytest.approx(loss_of(0.05) + 0.6)
    assert found("dpop") == pytest.approx(loss_of(0.1 * (0.5 - 50 * 0.2)))
    odds = math.log(math.exp(-0.6) / (1 - math.exp(-0.6))) - math.log(math.exp(-1.35) / (1 - math.exp(-1.35)))
    assert found("orpo") == pytest.approx(0.6 + 0.1 * loss_of(odds))


def test_the_change_to_the_optimum_by_hand():
    """Two responses with r = (log 3, 0) and a uniform reference: the first is chosen in ¾ of the pairs.

    At β = 1 π* = (¾, ¼). At β = 0.1 Z = (3¹⁰ + 1)/2, and log π* of the rarer chosen response falls by about 10 log 3.
    """
    world = bandit.make(torch.zeros(1, 2, dtype=F64), torch.tensor([[math.log(3), 0.0]], dtype=F64))
    setup = PairSetup(world, torch.zeros(1, 2, 1), torch.tensor([0]), torch.tensor([1]))
    chosen, rejected = setup.change_to_optimum(1.0)
    assert chosen == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert rejected == pytest.approx(0.25 * math.log(1.5) + 0.75 * math.log(0.5))
    assert setup.change_to_optimum(0.1)[0] == pytest.approx(7.5 * math.log(3) - math.log((3**10 + 1) / 2))


def test_similarities_by_hand():
    world = token_tree.random(5, 3, 2)
    embeddings = torch.zeros(2, 125, 2, dtype=F64)
    embeddings[0, 7], embeddings[0, 30] = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0])
    setup = PairSetup(world, embeddings, torch.tensor([7, 27]), torch.tensor([30, 28]))
    assert setup.ches().tolist() == [3 + 2 - 5, 0]
    assert setup.shared_tokens().tolist() == [0, 2]  # 7 = 012, 30 = 110, 27 = 102, 28 = 103


def test_hidden_embeddings_are_those_that_predict_the_tokens(tree):
    """Prefix by prefix through the model, without a batch."""
    policy = tree.world.reference
    ids = tree.world.tree.responses.ids[77].tolist()
    prompt = int(tree.world.prompts.ids[2, 0])
    with torch.no_grad():
        parts = [body_of(policy.model)(torch.tensor([[prompt, *ids[:k]]])).last_hidden_state[0, -1] for k in range(3)]
    torch.testing.assert_close(tree.embeddings[2, 77], torch.stack(parts).sum(0).double(), atol=1e-5, rtol=1e-5)


def test_rank_correlations_by_hand():
    """Ranks (1, 2, 3) and (1, 3, 2): 1 − 6·2/(3·8) = ½. A seed with a constant column has none."""
    pairs = pd.DataFrame(
        {"seed": [0, 0, 0, 1, 1, 1, 2, 2, 2], "a": [1, 2, 3, 1, 2, 3, 5, 5, 5], "b": [1, 9, 4, 3, 2, 1, 1, 2, 3.0]}
    )
    assert rank_correlations(pairs, "a", "b") == pytest.approx([0.5, -1.0])
    assert np.isnan(rank_correlations(pairs[pairs["seed"] == 2], "a", "b")).all()


@pytest.mark.parametrize("scale", ["bandit", pytest.param("tree", marks=pytest.mark.slow)])
def test_a_quick_run_has_every_loss_and_can_be_drawn(scale):
    settings = quick(scale, steps=4)
    found = experiment_run(EXPERIMENT, settings)
    counts = found.runs.groupby("part").size()
    assert counts["training"] == 2 * 2 * 5 and counts["pair"] == 2 * 2 * 4 and counts["optimum"] == 2 * 4
    axes = EXPERIMENT.figure(settings, found.summary, found.runs).axes
    assert all(ax.get_xlabel() and ax.get_title(loc="left") for ax in axes)


def _made(dpo, ches, dpop):
    """The correlation with CHES is 1 or 0.6 in every seed, with the sign of `ches`; for 0 it is 1 and −1 in turn."""
    rows = []
    for seed, policies, loss in itertools.product(range(4), CLASSES, LOSSES):
        change = {"dpo": dpo, "dpop": dpop}.get(loss, 0.0) + 0.01 * seed
        row = {"part": "training", "policies": policies, "loss": loss, "seed": seed}
        rows.append(row | dict.fromkeys(METRICS, 0.5) | {"chosen": change})
    for seed, policies, i in itertools.product(range(4), CLASSES, range(4)):
        similar = (i if seed % 2 else [1, 0, 3, 2][i]) if ches > 0 else (-i if seed % 2 else -[1, 0, 3, 2][i])
        if ches == 0:
            similar = [[0, 1, 2, 3], [3, 2, 1, 0]][seed % 2][i]
        row = {"part": "pair", "policies": policies, "seed": seed, "pair": i, "chosen": 0.1 * i, "ches": similar}
        rows.append(row | {"overlap": 0.1 * i, "predicted": 0.1, "own": 0.2, "shared_tokens": i % 2, "rejected": 0.0})
    rows += [{"part": "optimum", "beta": 0.1, "seed": seed, "chosen": -1.0, "rejected": -2.0} for seed in range(4)]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ((-1.0, -1, 0.5), "supported"),
        ((-1.0, 1, -0.5), "partly supported"),
        ((1.0, 0, -0.015), "not supported"),
        ((-0.015, 0, -0.015), "inconclusive"),
    ],
)
def test_the_rule_on_made_up_rows(changes, outcome):
    settings, runs = ChosenProbability(quick=True), _made(*changes)
    verdict = EXPERIMENT.decide(settings, EXPERIMENT.summarise(settings, runs), runs)
    assert verdict.outcome == outcome
    assert verdict.numbers["dpo_chosen"].mean == pytest.approx(changes[0] + 0.015)
    assert verdict.numbers["dpop_chosen"].mean == pytest.approx(changes[2] + 0.015)
    assert verdict.numbers["ches"].mean == pytest.approx(0.8 * changes[1])
