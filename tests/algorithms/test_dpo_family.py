"""Every pair loss fitted to all pairs of a finite world: where it arrives, against an optimum found another way.

The population loss is minimised by L-BFGS through `dpo`, unchanged. The optima are closed forms with one normalising
constant (found by bisection), or scipy's minimum of the same expectation written out in numpy.
"""

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize
from scipy.special import expit, lambertw, log_expit, logsumexp

from rlhf_lab import exact, losses
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


ARMS = bandit.random(1, 4, seed=3)
REF = ARMS.log_ref()[0].numpy()


def both(world):
    """The positions of the chosen and the rejected responses of all pairs of the first prompt, and their masses."""
    pairs = world.all_pairs()
    return *world.tree.index(pairs.responses).numpy().T, pairs.weight.numpy()


def fractions():
    """W(y) and L(y) of `ARMS`: the fractions of its pairs in which y is chosen and rejected."""
    winner, loser, mass = both(ARMS)
    return np.bincount(winner, mass), np.bincount(loser, mass)


def minimum(expectation):
    """The policy of `ARMS` at which scipy finds the minimum of a loss. `expectation(log_p)` is a function of a pair."""
    winner, loser, mass = both(ARMS)

    def of(logits):
        return (mass * expectation(logits - logsumexp(logits))(winner, loser)).sum()

    best = minimize(of, REF, method="BFGS", options={"gtol": 1e-10}).x
    return torch.tensor(best - logsumexp(best)).unsqueeze(0)


@pytest.mark.parametrize("weight", [0.3, 3.0])
def test_orpo_arrives_at_the_minimum_that_scipy_finds_of_its_expectation(weight):
    def expectation(log_p):
        odds = log_p - np.log(-np.expm1(log_p))
        return lambda w, other: -log_p[w] - weight * log_expit(odds[w] - odds[other])

    end = fitted(ARMS, DPO("orpo", weight))
    assert far(end, minimum(expectation)) < 1e-8
    assert far(end, ARMS.optimal(BETA)) > 1e-2


def test_orpo_goes_from_the_chosen_responses_to_odds_that_are_rewards():
    """λ → 0: the distribution of chosen responses. λ → ∞: log odds = r + c, π = σ(r + c)."""
    assert far(fitted(ARMS, DPO("orpo", 1e-5)), chosen_distribution()) < 1e-6
    target = solved(ARMS, lambda c, ref, r: np.log(expit(r - c)))
    assert far(fitted(ARMS, DPO("orpo", 1e5), steps=40), target) < 1e-6


def chosen_distribution():
    return torch.tensor(np.log(fractions()[0])).unsqueeze(0)


CERTAIN = bandit.make(torch.tensor([[0.3, 0.2, 0.5]]).log(), torch.zeros(1, 3))


def of_one_certain_pair(settings, steps=60):
    """Log-probabilities of three responses, of which the first is always preferred to the second, and the third one
    is in no pair."""
    pair = CERTAIN.all_pairs()
    where = CERTAIN.tree.index(pair.responses)
    row = pair[((where[:, 0] == 0) & (where[:, 1] == 1)).nonzero()[0]]
    policy = CERTAIN.reference.copy()
    training = Training(steps=steps, optimizer="adam", learning_rate=0.3, schedule="constant", progress=False)
    dpo(policy, CERTAIN.reference, row, settings, training)
    return CERTAIN.log_probs(policy)[0]


@pytest.mark.parametrize("weight", [0.1, 1.0])
def test_dpo_with_nll_arrives_at_the_minimum_that_scipy_finds_of_its_expectation(weight):
    def expectation(log_p):
        k = log_p - REF
        return lambda w, other: -log_expit(BETA * (k[w] - k[other])) - weight * log_p[w]

    end = fitted(ARMS, DPO("dpo-nll", BETA, nll_weight=weight))
    assert far(end, minimum(expectation)) < 1e-8
    assert far(end, ARMS.optimal(BETA)) > 1e-3


def test_dpo_with_nll_goes_from_the_optimal_policy_to_the_chosen_responses():
    assert far(fitted(ARMS, DPO("dpo-nll", BETA, nll_weight=1e-6)), ARMS.optimal(BETA)) < 1e-6
    assert far(fitted(ARMS, DPO("dpo-nll", BETA, nll_weight=1e6)), chosen_distribution()) < 1e-6


def test_a_certain_pair_gives_dpo_with_nll_the_chosen_response_and_apo_down_the_one_in_no_pair():
    assert of_one_certain_pair(DPO("dpo-nll", BETA)).exp()[0] > 0.99
    assert of_one_certain_pair(DPO("apo-down", 2.0)).exp()[2] > 0.99


@pytest.mark.parametrize("penalty", [0.05, 0.1])
def test_dpop_arrives_at_the_minimum_that_scipy_finds_of_its_expectation(penalty):
    def expectation(log_p):
        k = log_p - REF
        return lambda w, other: -log_expit(BETA * (k[w] - k[other] - penalty * np.maximum(0, -k[w])))

    end = fitted(ARMS, DPO("dpop", BETA, chosen_penalty=penalty))
    assert far(end, minimum(expectation)) < 1e-8
    assert far(end, ARMS.optimal(BETA)) > 1e-3


def test_dpop_keeps_the_reference_from_a_finite_penalty_on():
    """With c = max (W − L)/π_ref, π_ref is the minimum if λ ≥ max (c π_ref − W + L)/W, and it is not below this bound.
    There, moving probability from the second maximum's response to the first one's lowers the loss."""
    won, lost = fractions()
    ref = np.exp(REF)
    gain = (won - lost) / ref
    bounds = (gain.max() * ref - won + lost) / won
    winner, loser, mass = (torch.tensor(x) for x in both(ARMS))

    def loss(log_pi, penalty):
        k = log_pi - torch.tensor(REF)
        return (mass * losses.dpop(k[winner], k[loser], BETA, penalty)).sum().item()

    other = torch.randn(200, 4, dtype=torch.float64, generator=seeded(0)) * torch.logspace(-4, 0, 200).unsqueeze(1)
    for push in other:
        assert loss((torch.tensor(REF) + push).log_softmax(-1), 1.01 * bounds.max()) > np.log(2)
    moved = ref.copy()
    moved[gain.argmax()] += 1e-5
    moved[bounds.argmax()] -= 1e-5
    assert loss(torch.tensor(np.log(moved)), 0.99 * bounds.max()) < np.log(2)


def test_dpop_with_a_small_penalty_arrives_at_the_optimal_policy():
    assert far(fitted(ARMS, DPO("dpop", BETA, chosen_penalty=1e-6)), ARMS.optimal(BETA)) < 1e-6


def test_apo_zero_keeps_the_responses_that_are_chosen_more_often_than_rejected():
    """Maximise Σ_y a(y) σ(β log z(y)), a = W − L: a(y) < 0 leaves no probability, and on the others a σ' ∝ π."""
    won, lost = fractions()
    kept = won > lost
    assert 1 < kept.sum() < 4
    end = fitted(ARMS, DPO("apo-zero", BETA), steps=40)[0].numpy()
    assert np.exp(end[~kept]).sum() < 1e-3
    slope = (won - lost) * expit(BETA * (end - REF)) * expit(BETA * (REF - end)) / np.exp(end)
    assert slope[kept] == pytest.approx(slope[kept].mean(), rel=0.02)


def test_apo_down_arrives_at_the_minimum_that_scipy_finds_of_its_expectation():
    def expectation(log_p):
        r = BETA * (log_p - REF)
        return lambda w, other: expit(r[w]) + 1 - expit(r[w] - r[other])

    end = fitted(ARMS, DPO("apo-down", BETA))
    assert far(end, minimum(expectation)) < 1e-6
    assert far(end, ARMS.optimal(BETA)) > 1e-2


def test_bco_with_the_right_shift_arrives_at_the_odds_of_being_chosen():
    """δ = −β log Σ π_ref (W/L)^{1/β} makes the classifier log W/L a policy: π ∝ π_ref (W/L)^{1/β}."""
    won, lost = fractions()
    log_p = REF + np.log(won / lost) / BETA
    shift = -BETA * logsumexp(log_p)
    target = torch.tensor(log_p).log_softmax(-1).unsqueeze(0)
    end = fitted(ARMS, DPO("bco", BETA, reward_shift=shift))
    assert far(end, target) < 1e-8
    assert far(end, ARMS.optimal(BETA)) > 1e-2


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_bco_with_another_shift_balances_the_classifier_and_the_normalisation(shift):
    """(W + L) (σ(log W/L) − σ(β log z − δ)) ∝ π, and the constant is not 0 as with the right shift."""
    won, lost = fractions()
    end = fitted(ARMS, DPO("bco", BETA, reward_shift=shift))[0].numpy()
    constant = (won - (won + lost) * expit(BETA * (end - REF) - shift)) / np.exp(end)
    assert constant == pytest.approx(constant.mean(), rel=1e-6)
    assert abs(constant.mean()) > 1e-3


@pytest.mark.parametrize("beta", [0.3, 3.0])
def test_sppo_arrives_at_its_closed_form_by_lamberts_function(beta):
    won, lost = fractions()
    m = (won / (won + lost) - 0.5) / beta

    def log_p(c, _):
        return REF + m - lambertw(np.exp(c + REF + m) / (won + lost)).real

    end = fitted(ARMS, DPO("sppo", beta))
    assert far(end, torch.tensor(normalised(log_p)(0)).unsqueeze(0)) < 1e-8
    # With a weak update, a large β, it is close to that of the paper.
    update = exact.optimal_policy(ARMS.log_ref(), torch.tensor(m).unsqueeze(0), 1.0)
    assert (far(end, update) < 1e-4) == (beta == 3.0)


def test_cdpo_is_sigmoid_norm_with_label_smoothing():
    one = fitted(BANDIT, DPO("cdpo", BETA, 0.1))
    assert torch.equal(one, fitted(BANDIT, DPO("sigmoid-norm", BETA, 0.1)))
    assert far(one, BANDIT.optimal(BETA)) > 1e-3


NAMES = list(PairLoss.__args__)


def of_family(loss: str, beta: float = 0.1) -> DPO:
    """The loss by its name, with a rate of wrong labels where it needs one, and with a penalty of DPOP that is small
    enough to leave the reference."""
    more = {"chosen_penalty": 0.1} if loss == "dpop" else {}
    return DPO(loss, beta, 0.1 if PAIR_LOSSES[loss].needs_smoothing else 0.0, **more)


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


def test_the_reference_is_computed_for_the_rows_of_the_steps_only(monkeypatch):
    """Two steps of eight of fifty pairs, and a third with the first eight again, which are known."""
    reference, asked = TREE.reference.copy(), []
    real = reference.log_prob
    monkeypatch.setattr(reference, "log_prob", lambda x, y: asked.append(len(x)) or real(x, y))
    pairs = TREE.preferences(50, seeded(0))
    dpo(TREE.reference.copy(), reference, pairs, DPO(), Training(steps=2, batch_size=8, progress=False))
    assert asked == [8, 8]
    dpo(TREE.reference.copy(), reference, pairs[:8], DPO(), Training(steps=3, batch_size=8, progress=False))
    assert asked == [8, 8, 8]


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
        total += settings(both[0], both[1], *size, chosen_log_prob=log_prob[0]).item()
    assert value == pytest.approx(total / len(pairs), rel=1e-12)


def test_implicit_rewards_by_hand():
    """A log-ratio (or log-probability) of −1.5 over three tokens at β = 2: DPO −3; χPO 2 (e^{−1.5} − 1.5); divided by
    length −1; ORPO's log odds of P = e^{−0.5} a token, −0.5 − log(1 − e^{−0.5})."""
    value, length = torch.tensor([-1.5], dtype=torch.float64), torch.tensor([3])
    odds = -0.5 - np.log(1 - np.exp(-0.5))
    wanted = {
        **dict.fromkeys(("sigmoid-norm", "cdpo", "robust", "ipo", "hinge-norm", "hinge"), -3.0),
        **dict.fromkeys(("dpop", "dpo-nll", "apo-zero", "apo-down", "bco", "sppo"), -3.0),
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
        (lambda: DPO("dpo-nll")(*torch.zeros(2, 1), *torch.ones(2, 1)), "pass the chosen response's length and log-p"),
        (lambda: DPO("ipo", chosen_penalty=1.0), "chosen_penalty is for dpop; ipo has none"),
        (lambda: DPO("dpop", nll_weight=2.0), "nll_weight is for dpo-nll; dpop has none"),
        (lambda: DPO("apo-zero", reward_shift=1.0), "reward_shift is for bco; apo-zero has none"),
        (lambda: DPO("dpop", chosen_penalty=0.0), "chosen_penalty must be a finite number above 0"),
        (lambda: DPO("dpo-nll", nll_weight=-1.0), "nll_weight must be a finite number above 0"),
        (lambda: DPO("bco", reward_shift=float("nan")), "reward_shift must be a finite number"),
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
