"""KTO: its loss row by row, its reference point, and where it goes on a bandit, which is not π*."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit, logsumexp

from rlhf_lab import exact
from rlhf_lab.algorithms.kto import KTO, LabelledResponses, kto, kto_loss, mismatched
from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.training import Training, rows_at, seeded
from rlhf_lab.worlds import bandit, token_tree

TREE = token_tree.random(3, 3, 2, seed=1, has_end=True)


def population(world, p_desirable):
    """Every response praised, then every response blamed, each row weighted by π_ref(y) P(label | y)."""
    number = world.tree.num_responses
    ids = world.tree.responses.ids.repeat(2, 1).unsqueeze(1)
    desirable = torch.tensor([True, False]).repeat_interleave(number).unsqueeze(-1)
    p = p_desirable.repeat(2)
    weight = world.log_ref()[0].exp().repeat(2) * torch.where(desirable[:, 0], p, 1 - p)
    return LabelledResponses(world.prompts.repeat(2 * number), Tokens.full(ids), desirable, weight)


def test_kto_loss_row_by_row_from_the_papers_formula():
    pairs = TREE.preferences(15, seeded(0))
    labelled = LabelledResponses.from_pairs(pairs)
    policy = TREE.reference.copy()
    with torch.no_grad():
        for table in policy.logits.tables:
            table.add_(torch.randn(table.shape, dtype=table.dtype, generator=seeded(1)))
    log_ref = TREE.reference.log_prob(pairs.prompts, pairs.responses)
    loss, seen = kto_loss(policy, labelled, log_ref, 0.2, KTO(0.7, 1.2, 0.8))
    k = (policy.log_prob(pairs.prompts, pairs.responses) - log_ref).detach().numpy()
    wanted = 1.2 - 1.2 * expit(0.7 * (k[:, 0] - 0.2)) + 0.8 - 0.8 * expit(0.7 * (0.2 - k[:, 1]))
    assert loss.item() == pytest.approx(wanted.mean() / 2, rel=1e-12)
    assert seen["accuracy"].item() == pytest.approx(((k[:, 0] > 0.2).mean() + (k[:, 1] <= 0.2).mean()) / 2)


def test_mismatched_responses_are_never_of_the_row_s_own_prompt_and_of_both_labels():
    """Data in blocks: 40 prompts chosen, then the same 40 rejected, so that half the data away is the same prompt. The
    response's id names its prompt. Also unequal mixtures: one prompt in 6 of 9 rows, and pairs (G = 2)."""
    for asked, desirable in (
        ([*range(40), *range(40)], [True] * 40 + [False] * 40),
        ([0, 0, 1, 0, 0, 0, 2, 0, 1], [True] * 8 + [False]),
    ):
        ids = [[[prompt, int(good)]] for prompt, good in zip(asked, desirable, strict=True)]
        labelled = LabelledResponses(
            Tokens.from_lists([[prompt] for prompt in asked]), Tokens.from_lists(ids), torch.tensor(desirable)[:, None]
        )
        found = mismatched(labelled).ids[:, 0]
        assert (found[:, 0] != torch.tensor(asked)).all()
        if len(asked) == 80:
            assert found[:, 1].sum() == 40 and len({tuple(row) for row in found.tolist()}) == 80
    both = Tokens.from_lists([[[i, 1], [i, 0]] for i in range(6)])
    pairs = LabelledResponses(Tokens.from_lists([[i] for i in range(6)]), both, torch.tensor([[True, False]] * 6))
    found = mismatched(pairs).ids[:, 0]
    assert (found[:, 0] != torch.arange(6)).all() and found[:, 1].sum() == 3
    assert mismatched(pairs[torch.tensor([0, 0])]) is None


def test_the_reference_point_is_the_mean_log_ratio_of_other_prompts_responses():
    """One step with all rows: z recomputed row by row from the row's prompt and its mismatched response."""
    pairs = TREE.preferences(9, seeded(0))
    labelled, moved, means = LabelledResponses.from_pairs(pairs), TREE.reference.copy(), []
    with torch.no_grad():
        for table in moved.logits.tables:
            table.add_(torch.randn(table.shape, dtype=table.dtype, generator=seeded(1)))
    for policy, reference in ((moved, TREE.reference), (TREE.reference.copy(), moved.copy())):  # opposite log-ratios
        total = 0.0
        for row, response in enumerate(mismatched(labelled).tolist()):
            y = Tokens.from_lists([response])
            total += (policy.log_prob(pairs.prompts[row], y) - reference.log_prob(pairs.prompts[row], y)).item()
        history = kto(policy, reference, labelled, training=Training(steps=1, progress=False))
        assert history[0]["reference_point"] == pytest.approx(max(total / 9, 0), rel=1e-9), "as the loss has it"
        means.append(total / 9)
    assert min(means) < 0 < max(means)


def test_on_a_bandit_kto_ends_where_scipy_does_and_not_at_the_optimal_policy():
    """There is one prompt, hence no mismatched response, and z is 0.

    The minimum of Σ π_ref(y) [λ_D P(D|y) σ(−β k) + λ_U P(U|y) σ(β k)] is found over the logits of π by scipy.
    """
    world, beta = bandit.random(1, 4, seed=3), 0.5
    p_desirable = torch.sigmoid(world.rewards()[0])
    labelled = population(world, p_desirable)
    policy = world.reference.copy()
    training = Training(steps=500, learning_rate=0.1, batch_size=100, progress=False, log_every=1)
    history = kto(policy, world.reference, labelled, KTO(beta), training)
    ref, p = world.log_ref()[0].numpy(), p_desirable.numpy()

    def expectation(logits):
        u = beta * (logits - logsumexp(logits) - ref)
        return (np.exp(ref) * (p * expit(-u) + (1 - p) * expit(u))).sum()

    best = min(minimize(expectation, start, method="BFGS").fun for start in (ref, np.zeros(4)))
    end = world.log_probs(policy)
    assert all(row["reference_point"] <= 1e-9 for row in history[1:])
    assert expectation(end[0].numpy()) == pytest.approx(best, abs=2e-3)
    assert exact.kl(world.optimal(beta), end).item() > 0.05


def test_what_is_blamed_more_often_than_praised_loses_its_mass_however_little():
    """P(D|y) = 0.45 for one arm: π* of any reward keeps mass on it, KTO takes it away."""
    world = bandit.make(torch.zeros(1, 3), torch.zeros(1, 3))
    labelled = population(world, torch.tensor([0.7, 0.6, 0.45], dtype=torch.float64))
    policy = world.reference.copy()
    training = Training(steps=600, learning_rate=0.1, batch_size=100, schedule="constant", progress=False)
    kto(policy, world.reference, labelled, KTO(0.5), training)
    assert world.log_probs(policy).exp()[0, 2] < 1e-3
    reward = torch.logit(torch.tensor([[0.7, 0.6, 0.45]], dtype=torch.float64))
    assert exact.optimal_policy(world.log_ref(), reward, 0.5).exp()[0, 2] > 0.05


def test_kto_on_a_tree_tells_chosen_from_rejected():
    policy = TREE.reference.copy()
    labelled = LabelledResponses.from_pairs(TREE.preferences(400, seeded(0)))
    training = Training(steps=60, learning_rate=0.05, progress=False, log_every=1)
    history = kto(policy, TREE.reference, labelled, KTO(0.5), training)
    assert np.mean([row["accuracy"] for row in history[-20:]]) > 0.6
    assert history[-1]["loss"] < history[0]["loss"] == pytest.approx(0.5)


def test_given_reference_log_probs_and_parts_of_a_batch_change_nothing_but_rounding():
    labelled = LabelledResponses.from_pairs(TREE.preferences(40, seeded(0)))
    known = TREE.reference.log_prob(labelled.prompts, labelled.responses)
    ends = []
    for given, parts in ((None, 1), (known, 1), (None, 3)):
        policy = TREE.reference.copy()
        training = Training(steps=6, batch_size=16, accumulate=parts, progress=False)
        kto(policy, TREE.reference, labelled, KTO(), training, reference_log_probs=given)
        ends.append(TREE.log_probs(policy))
    assert torch.equal(ends[0], ends[1])
    torch.testing.assert_close(ends[0], ends[2], rtol=1e-9, atol=1e-9)


def test_reference_log_probs_that_are_given_are_used():
    """Given 1 nat below the reference's, the policy's ratios are k = 1 in every row at the first step, and z is 0.

    With β = 0.7 and λ = (2, 1) the loss is (2 σ(−0.7) + σ(0.7))/2. The chosen are right, and the rejected are not.
    """
    labelled = LabelledResponses.from_pairs(TREE.preferences(8, seeded(0)))
    known = TREE.reference.log_prob(labelled.prompts, labelled.responses) - 1.0
    settings, training = KTO(0.7, desirable_weight=2.0, undesirable_weight=1.0), Training(steps=1, progress=False)
    (row,) = kto(TREE.reference.copy(), TREE.reference, labelled, settings, training, reference_log_probs=known)
    assert row["reference_point"] == pytest.approx(0, abs=1e-9) and row["accuracy"] == 0.5
    assert row["loss"] == pytest.approx((2 * expit(-0.7) + expit(0.7)) / 2)


def test_labelled_responses_that_teach_nothing_are_refused_by_name():
    labelled = LabelledResponses.from_pairs(TREE.preferences(4, seeded(0)))
    policy, training = TREE.reference.copy(), Training(steps=1, progress=False)
    praised = LabelledResponses(labelled.prompts, labelled.responses, torch.ones(4, 2, dtype=torch.bool))
    for call, message in (
        (lambda: kto(policy, TREE.reference, labelled[torch.tensor([0])], training=training), "at least 2"),
        (lambda: kto(policy, TREE.reference, praised, training=training), "All responses are desirable"),
        (lambda: LabelledResponses(labelled.prompts, labelled.responses, torch.ones(4, 2)), "booleans"),
        (lambda: LabelledResponses(labelled.prompts, labelled.responses, labelled.desirable, torch.ones(3)), "weight"),
        (lambda: KTO(desirable_weight=0.0), "desirable_weight"),
        (lambda: KTO(beta=-1.0), "beta"),
        (
            lambda: kto(policy, TREE.reference, labelled, training=training, reference_log_probs=torch.zeros(4)),
            "reference_log_probs",
        ),
    ):
        with pytest.raises(LabError, match=message):
            call()


def test_steps_of_kto_weigh_each_row_in_the_loss_and_in_the_reference_point():
    """Five prompts, one response: whatever row a mismatched response comes from, it is this one, so that
    z = Σ w (log π − log π_ref) / Σ w over the batch. The policy is pushed until z is above 0 and counts.

    A second version in plain loops with torch's own Adam must take the same steps, and both must report the same.
    """
    world = token_tree.random(3, 3, 5, seed=1, has_end=True)
    policy = world.reference.copy()
    with torch.no_grad():
        for table in policy.logits.tables:
            table[..., 0] += 1.5
    twin = policy.copy()
    y = Tokens.from_lists([[[0, 0, 0]]] * 5)
    desirable = torch.tensor([[True], [False], [True], [False], [False]])
    weight = torch.tensor([0.2, 1.0, 3.0, 0.5, 2.0], dtype=torch.float64)
    settings = KTO(0.7, desirable_weight=1.2, undesirable_weight=0.6)
    training = Training(
        steps=3, batch_size=3, learning_rate=0.05, schedule="constant", seed=4, log_every=1, progress=False
    )
    history = kto(policy, world.reference, LabelledResponses(world.prompts, y, desirable, weight), settings, training)
    adam = torch.optim.Adam(twin.parameters(), lr=0.05)
    for number in range(3):
        rows = rows_at(number, 5, 3, 4).tolist()
        total = sum(float(weight[i]) for i in rows)
        k = {
            i: (twin.log_prob(world.prompts[i], y[i]) - world.reference.log_prob(world.prompts[i], y[i])) for i in rows
        }
        z = sum(float(weight[i]) * k[i].item() for i in rows) / total
        assert z > 0.1 and any(k[i].item() < z for i in rows)
        loss, right = 0.0, 0.0
        for i in rows:
            good, share = bool(desirable[i]), float(weight[i]) / total
            gap = 0.7 * (k[i].squeeze() - z)
            loss = loss + share * (1.2 * torch.sigmoid(-gap) if good else 0.6 * torch.sigmoid(gap))
            right += share * ((k[i].item() > z) == good)
        assert history[number]["reference_point"] == pytest.approx(z)
        assert history[number]["loss"] == pytest.approx(loss.item())
        assert history[number]["accuracy"] == pytest.approx(right)
        adam.zero_grad()
        loss.backward()
        adam.step()
    for one, other in zip(policy.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_labelled_responses_of_pairs_praise_the_chosen_and_keep_each_rows_weight():
    pairs = TREE.preferences(4, seeded(0))
    weight = torch.tensor([0.1, 0.2, 0.3, 0.4])
    labelled = LabelledResponses.from_pairs(Pairs(pairs.prompts, pairs.responses, weight))
    assert labelled.desirable.tolist() == [[True, False]] * 4 and torch.equal(labelled.weight, weight)
    some = labelled[torch.tensor([2, 0])]
    assert torch.equal(some.weight, weight[[2, 0]])
    assert some.responses.tolist() == [pairs.responses.tolist()[i] for i in (2, 0)]
    assert some.prompts.tolist() == [pairs.prompts.tolist()[i] for i in (2, 0)]


def test_accuracy_counts_a_reference_point_below_zero_as_zero():
    """k = 0.5 and −0.5 around z = −1: cut at 0, the one is praised and the other is not."""
    pairs = TREE.preferences(1, seeded(0))
    log_ref = TREE.reference.log_prob(pairs.prompts, pairs.responses) - torch.tensor([[0.5, -0.5]])
    _, seen = kto_loss(TREE.reference, LabelledResponses.from_pairs(pairs), log_ref, -1.0, KTO())
    assert seen["accuracy"].item() == 1.0
