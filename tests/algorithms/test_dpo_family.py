"""Every pair loss fitted to all pairs of a finite world: where it arrives, against an optimum found another way.

The population loss is minimised by L-BFGS through `dpo`, unchanged. The optima are closed forms with one normalising
constant (found by bisection), or scipy's minimum of the same expectation written out in numpy.
"""

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize
from scipy.special import expit, lambertw, log_expit, logsumexp

from rlhf_lab import exact
from rlhf_lab.algorithms.dpo import DPO, PairLoss, dpo, pair_loss, reference_log_probs
from rlhf_lab.algorithms.pair_losses import PAIR_LOSSES
from rlhf_lab.batch import Pairs
from rlhf_lab.errors import LabError
from rlhf_lab.training import Training, seeded
from rlhf_lab.worlds import bandit, token_tree

BETA = 0.5
BANDIT = bandit.random(2, 5, seed=0)
TREE = token_tree.random(2, 3, 1, seed=1, has_end=True, reward="sequence")
"""A tree whose responses have one to three tokens: there, dividing by length is seen."""
LENGTH = TREE.tree.responses.lengths.double()


def fitted(world, settings, steps=12, policy=None):
    policy = policy or world.reference.copy()
    training = Training(steps=steps, optimizer="lbfgs", batch_size=10**9, progress=False)
    dpo(policy, world.reference, world.all_pairs(), settings, training)
    return world.log_probs(policy)


def normalised(log_p_of):
    """The policies log_p_of(c, row) that sum to one, c found by bisection; log_p_of falls as c grows."""

    def row(x):
        c = brentq(lambda c: logsumexp(log_p_of(c, x)), -200, 200, xtol=1e-14, rtol=1e-14)
        return log_p_of(c, x)

    return row


def solved(world, log_p_of):
    ref, reward = world.log_ref().numpy(), world.rewards().numpy()
    rows = [normalised(lambda c, x: log_p_of(c, ref[x], reward[x]))(x) for x in range(len(ref))]
    return torch.tensor(np.stack(rows)).log_softmax(-1)


def far(one, other):
    return exact.kl(one, other).max().item()


@pytest.mark.parametrize("world", [BANDIT, TREE], ids=["bandit", "tree"])
def test_ipo_by_sum_arrives_at_the_softmax_of_its_win_rate(world):
    """Azar et al. 2023: π_ref exp(p(y ≻ μ)/τ)/Z, with p(y ≻ μ) = Σ_j μ_j p(y ≻ y_j), μ the pairs' distribution."""
    tau, log_ref = 0.3, world.log_ref()
    wins = (exact.preference(world.rewards()) * log_ref.exp().unsqueeze(-2)).sum(-1)
    target = exact.optimal_policy(log_ref, wins, tau)
    end = fitted(world, DPO("ipo", tau))
    assert far(end, target) < 1e-8
    assert far(end, world.optimal(tau)) > 1e-2


def test_ipo_by_mean_arrives_elsewhere_where_lengths_differ():
    """log π/π_ref = |y| (p(y ≻ μ)/τ − c); on the bandit, where every response has one token, it is IPO by sum."""
    tau = 0.3
    wins = (exact.preference(TREE.rewards()) * TREE.log_ref().exp().unsqueeze(-2)).sum(-1).numpy()
    rewards = TREE.rewards().numpy()

    def log_p(c, ref, reward):
        row = next(i for i in range(len(rewards)) if rewards[i] is reward or np.array_equal(rewards[i], reward))
        return ref + LENGTH.numpy() * (wins[row] / tau - c)

    end = fitted(TREE, DPO("ipo-mean", tau))
    assert far(end, solved(TREE, log_p)) < 1e-8
    assert far(end, fitted(TREE, DPO("ipo", tau))) > 1e-2
    assert far(fitted(BANDIT, DPO("ipo-mean", tau)), fitted(BANDIT, DPO("ipo", tau))) < 1e-10


@pytest.mark.parametrize("world", [BANDIT, TREE], ids=["bandit", "tree"])
@pytest.mark.parametrize("max_reward", [None, 10.0])
def test_chi_po_arrives_at_its_closed_form_by_lamberts_function(world, max_reward):
    """β φ(π/π_ref) = r − c, φ(z) = z + log z, so π = π_ref W(exp((r − c)/β)). A clip beyond all rewards is none."""

    def log_p(c, ref, reward):
        return ref + np.log(lambertw(np.exp((reward - c) / BETA)).real)

    target = solved(world, log_p)
    end = fitted(world, DPO("chi", BETA, max_reward=max_reward), steps=25)
    assert far(end, target) < 1e-6
    assert far(end, world.optimal(BETA)) > 1e-2
    # It is the optimum of its own objective: J falls from there in every one of many directions.
    ref, reward = world.log_ref(), world.rewards()

    def mixed(log_pi):
        ratio = (log_pi - ref).exp()
        chi = ((ratio - 1).square() * ref.exp()).sum(-1) / 2
        return (log_pi.exp() * reward).sum(-1) - BETA * chi - BETA * exact.kl(log_pi, ref)

    for seed in range(20):
        push = 0.1 * torch.randn(target.shape, dtype=torch.float64, generator=seeded(seed))
        assert (mixed((target + push).log_softmax(-1)) < mixed(target)).all()


def test_dpo_by_length_arrives_at_rewards_a_token_times_length():
    end = fitted(TREE, DPO("dpo-length", BETA))
    assert far(end, solved(TREE, lambda c, ref, r: ref + LENGTH.numpy() * (r - c) / BETA)) < 1e-8
    assert far(end, TREE.optimal(BETA)) > 1e-2


def test_dpo_by_length_on_a_bandit_arrives_at_the_optimal_policy():
    assert far(fitted(BANDIT, DPO("dpo-length", BETA)), BANDIT.optimal(BETA)) < 1e-8


@pytest.mark.parametrize("world", [BANDIT, TREE], ids=["bandit", "tree"])
def test_simpo_without_margin_forgets_the_reference(world):
    """π = exp(|y| (r − c)/β): on the bandit π* of a uniform reference."""
    length = world.tree.responses.lengths.double().numpy()
    end = fitted(world, DPO("simpo", BETA, target_margin=0.0))
    assert far(end, solved(world, lambda c, ref, r: length * (r - c) / BETA)) < 1e-8
    if world is BANDIT:
        uniform = torch.full_like(world.log_ref(), 1 / 5).log()
        assert far(end, exact.optimal_policy(uniform, world.rewards(), BETA)) < 1e-8
    assert far(end, world.optimal(BETA)) > 1e-2


def test_simpos_margin_moves_two_arms_to_the_root_of_a_quadratic():
    """p σ(γ−Δ) = (1−p) σ(γ+Δ) with u = e^Δ, k = e^{−γ} and o = p/(1−p): k u² − (o − 1) u − o k = 0."""
    gamma, reward = 0.8, torch.tensor([[0.9, -0.4]])
    world = bandit.make(torch.tensor([[0.3, 0.7]]).log(), reward)
    end = fitted(world, DPO("simpo", BETA, target_margin=gamma))
    odds, k = np.exp(1.3), np.exp(-gamma)
    u = ((odds - 1) + np.sqrt((odds - 1) ** 2 + 4 * odds * k * k)) / (2 * k)
    assert BETA * (end[0, 0] - end[0, 1]).item() == pytest.approx(np.log(u), abs=1e-5)
    # Further apart than the labels: without the margin it would be r_1 − r_2 = 1.3.
    assert np.log(u) > 1.3 + 0.1


@pytest.mark.parametrize("weight", [0.3, 3.0])
def test_orpo_arrives_at_the_minimum_that_scipy_finds_of_its_expectation(weight):
    world = bandit.random(1, 4, seed=3)
    pairs = world.all_pairs()
    winner, loser = world.tree.index(pairs.responses).numpy().T
    mass = pairs.weight.numpy()

    def expectation(logits):
        log_p = logits - logsumexp(logits)
        odds = log_p - np.log(-np.expm1(log_p))
        return (mass * (-log_p[winner] - weight * log_expit(odds[winner] - odds[loser]))).sum()

    best = minimize(expectation, np.zeros(4), method="BFGS", options={"gtol": 1e-10})
    target = torch.tensor(best.x - logsumexp(best.x)).unsqueeze(0)
    end = fitted(world, DPO("orpo", weight))
    assert far(end, target) < 1e-8
    assert far(end, world.optimal(BETA)) > 1e-2


def test_orpo_goes_from_the_chosen_responses_to_odds_that_are_rewards():
    """λ → 0: the distribution of chosen responses. λ → ∞: log odds = r + c, π = σ(r + c)."""
    world = bandit.random(1, 4, seed=3)
    pairs = world.all_pairs()
    chosen = torch.zeros(4, dtype=torch.float64).index_add(0, world.tree.index(pairs.responses)[:, 0], pairs.weight)
    assert far(fitted(world, DPO("orpo", 1e-5)), (chosen / chosen.sum()).log().unsqueeze(0)) < 1e-6
    target = solved(world, lambda c, ref, r: np.log(expit(r - c)))
    assert far(fitted(world, DPO("orpo", 1e5), steps=40), target) < 1e-6


def test_cdpo_is_sigmoid_norm_with_label_smoothing():
    one = fitted(BANDIT, DPO("cdpo", BETA, 0.1))
    assert torch.equal(one, fitted(BANDIT, DPO("sigmoid-norm", BETA, 0.1)))
    assert far(one, BANDIT.optimal(BETA)) > 1e-3


NAMES = list(PairLoss.__args__)


def of_family(loss: str, beta: float = 0.1) -> DPO:
    """The loss by its name, with a rate of wrong labels where it needs one."""
    return DPO(loss, beta, 0.1 if PAIR_LOSSES[loss].needs_smoothing else 0.0)


@pytest.mark.parametrize("loss", NAMES)
def test_each_loss_ranks_sampled_pairs_better_than_at_the_start(loss):
    pairs, policy = TREE.preferences(400, seeded(0)), TREE.reference.copy()
    history = dpo(policy, TREE.reference, pairs, of_family(loss, BETA), Training(steps=40, progress=False, log_every=1))
    assert history[-1]["loss"] < history[0]["loss"]
    assert np.mean([row["accuracy"] for row in history[-10:]]) > 0.55


class Silent(torch.nn.Module):
    """Stands in for a reference that must not be asked."""

    def log_prob(self, prompts, responses, temperature=1.0):
        raise AssertionError("the reference was asked")


@pytest.mark.parametrize("loss", ["hinge", "simpo", "orpo"])
def test_losses_without_a_reference_never_ask_one(loss):
    pairs, training = TREE.preferences(50, seeded(0)), Training(steps=3, progress=False)
    ends = []
    for reference in (Silent(), None):
        policy = TREE.reference.copy()
        history = dpo(policy, reference, pairs, of_family(loss, BETA), training)
        assert "chosen_log_prob" in history[-1] and "chosen_log_ratio" not in history[-1]
        ends.append(TREE.log_probs(policy))
    assert torch.equal(*ends)


@pytest.mark.parametrize("loss", [name for name in NAMES if of_family(name).needs_reference])
def test_given_reference_log_probs_the_reference_is_not_asked_and_the_bits_are_the_same(loss):
    pairs, training = TREE.preferences(50, seeded(0)), Training(steps=5, batch_size=16, progress=False)
    known = reference_log_probs(TREE.reference, pairs, 7)
    ends = []
    for reference, given in ((TREE.reference, None), (Silent(), known)):
        policy = TREE.reference.copy()
        dpo(policy, reference, pairs, of_family(loss, BETA), training, reference_log_probs=given)
        ends.append(TREE.log_probs(policy))
    assert torch.equal(*ends)


@pytest.mark.parametrize("loss", NAMES)
def test_pair_loss_of_each_name_is_its_function_of_what_the_policy_says(loss):
    """Recomputed row by row with lengths counted from the ids' lists."""
    pairs, policy = TREE.preferences(20, seeded(3)), TREE.reference.copy()
    with torch.no_grad():
        for table in policy.logits.tables:
            table.add_(torch.randn(table.shape, dtype=table.dtype, generator=seeded(4)))
    settings = of_family(loss, BETA)
    log_ref = reference_log_probs(TREE.reference, pairs, 20)
    value = pair_loss(policy, pairs, log_ref if settings.needs_reference else None, settings)[0].item()
    total = 0.0
    for row, answers in enumerate(pairs.responses.tolist()):
        log_prob = policy.log_prob(pairs.prompts[row], pairs.responses[row])[0]
        both = log_prob - log_ref[row] if settings.needs_reference else log_prob
        size = [torch.tensor(len(answer)) for answer in answers]
        total += settings(both[0], both[1], *size).item()
    assert value == pytest.approx(total / len(pairs), rel=1e-12)


def test_implicit_rewards_by_hand():
    """A log-ratio (or log-probability) of −1.5 over three tokens at β = 2: DPO −3; χPO 2 (e^{−1.5} − 1.5); divided by
    length −1; ORPO's log odds of P = e^{−0.5} a token, −0.5 − log(1 − e^{−0.5})."""
    value, length = torch.tensor([-1.5], dtype=torch.float64), torch.tensor([3])
    odds = -0.5 - np.log(1 - np.exp(-0.5))
    wanted = {
        **dict.fromkeys(("sigmoid-norm", "cdpo", "robust", "ipo", "hinge-norm", "hinge"), -3.0),
        **dict.fromkeys(("ipo-mean", "dpo-length", "simpo"), -1.0),
        "chi": 2 * (np.exp(-1.5) - 1.5),
        "orpo": odds,
    }
    assert wanted.keys() == set(NAMES)
    for loss, want in wanted.items():
        smoothing = {"label_smoothing": 0.1} if loss in ("cdpo", "robust") else {}
        assert DPO(loss, 2.0, **smoothing).implicit_reward(value, length).item() == pytest.approx(want, rel=1e-9), loss


def test_simpo_asks_for_a_margin_of_half_of_beta_unless_another_is_given():
    """Means of −1 and −2 at β = 3: 3 − γ, with γ = 1.5 by default; a γ of 0 is one too."""
    pair = [torch.tensor([v], dtype=torch.float64) for v in (-2.0, -4.0)]
    for margin, gamma in ((None, 1.5), (0.0, 0.0), (1.0, 1.0)):
        value = DPO("simpo", 3.0, target_margin=margin)(*pair, torch.tensor([2]), torch.tensor([2])).item()
        assert value == pytest.approx(np.log1p(np.exp(gamma - 3)))


def test_smoothing_by_hand():
    """Log-ratios ½ and −¼ at β = 2 have the margin 1.5. With ε = 0.1 cDPO is .9 f(1.5) + .1 f(−1.5), where
    f(u) = log(1 + e^{−u}), and robust DPO is (.9 f(1.5) − .1 f(−1.5))/.8."""
    pair = [torch.tensor([v], dtype=torch.float64) for v in (0.5, -0.25)]
    right, wrong = np.log1p(np.exp(-1.5)), np.log1p(np.exp(1.5))
    for loss, want in (("cdpo", 0.9 * right + 0.1 * wrong), ("robust", (0.9 * right - 0.1 * wrong) / 0.8)):
        assert DPO(loss, 2.0, label_smoothing=0.1)(*pair).item() == pytest.approx(want)


def test_chi_po_clips_at_the_largest_reward_that_its_settings_name():
    """Ratios 2 and ½ at β = ½: the margin is ½ (2 + log 2 − ½ + log 2) = ¾ + log 2 = 1.443, and R = ½ cuts it to 1."""
    pair = [torch.tensor([sign * np.log(2.0)], dtype=torch.float64) for sign in (1, -1)]
    for largest, margin in ((None, 0.75 + np.log(2)), (0.5, 1.0), (2.0, 0.75 + np.log(2))):
        assert DPO("chi", 0.5, max_reward=largest)(*pair).item() == pytest.approx(np.log1p(np.exp(-margin)))


def test_what_cannot_be_fitted_is_refused_by_name():
    pairs, training = BANDIT.preferences(10, seeded(0)), Training(steps=1, progress=False)
    policy = BANDIT.reference.copy()
    for call, message in (
        (lambda: dpo(policy, None, pairs, DPO(), training), "needs a reference"),
        (lambda: dpo(policy, None, pairs, DPO(), training, reference_log_probs=torch.zeros(3, 2)), r"\(10, 2\)"),
        (lambda: dpo(policy, BANDIT.reference, pairs[torch.zeros(0).long()], DPO(), training), "no pairs"),
        (
            lambda: dpo(policy, None, lambda g: pairs, DPO(), training, reference_log_probs=torch.zeros(1)),
            "during training",
        ),
        (lambda: DPO("simpo", target_margin=-1.0), "target_margin"),
        (lambda: DPO("ipo", target_margin=1.0), "target_margin is for simpo"),
        (lambda: DPO("simpo", max_reward=1.0), "max_reward is for chi"),
        (lambda: DPO("chi", max_reward=0.0), "max_reward"),
        (lambda: DPO("simpo", label_smoothing=0.1), "label_smoothing"),
        (lambda: DPO("simpo")(torch.zeros(1), torch.zeros(1)), "lengths"),
    ):
        with pytest.raises(LabError, match=message):
            call()


def test_pairs_keep_their_weights_under_every_divided_loss():
    """A weight of two is a pair given twice."""
    pairs = TREE.preferences(6, seeded(1))
    twice = torch.tensor([0, 1, 2, 3, 4, 5, 5])
    weighted = Pairs(pairs.prompts, pairs.responses, torch.tensor([1.0, 1, 1, 1, 1, 2], dtype=torch.float64))
    policy = TREE.reference.copy()
    for loss in ("simpo", "orpo", "dpo-length", "ipo-mean", "chi"):
        settings = of_family(loss, BETA)
        log_ref = reference_log_probs(TREE.reference, pairs, 6) - 0.3 if settings.needs_reference else None
        one = pair_loss(policy, weighted, log_ref, settings)[0]
        two = pair_loss(policy, pairs[twice], None if log_ref is None else log_ref[twice], settings)[0]
        torch.testing.assert_close(one, two)
