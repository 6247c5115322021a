"""Active labels: the choice against brute force, the result against the best design; labelling in rounds."""

import math

import pytest
import torch

from rlhf_lab import bradley_terry, exact, label_budget
from rlhf_lab.algorithms import active, label_rounds
from rlhf_lab.algorithms.dpo import DPO, dpo
from rlhf_lab.errors import LabError
from rlhf_lab.training import Training, seeded
from rlhf_lab.worlds import bandit

torch.set_num_threads(1)


def random_wins(*shape, seed=0):
    return torch.randint(0, 9, shape, generator=seeded(seed)).double()


def test_gains_are_what_the_trace_loses_when_a_label_is_added():
    """Independent way: add w b bᵀ to H, invert, take the trace again."""
    generator = seeded(1)
    root = torch.randn(4, 4, dtype=torch.float64, generator=generator)
    curvature = root @ root.T + torch.eye(4, dtype=torch.float64)
    covariance = bradley_terry.covariance(torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64))
    information = torch.rand(4, 4, dtype=torch.float64, generator=generator)
    information = information + information.T
    found = active.gains(covariance, information, torch.linalg.inv(curvature))
    before = torch.trace(covariance @ torch.linalg.inv(curvature))
    for i in range(4):
        for j in range(4):
            b = torch.zeros(4, dtype=torch.float64)
            b[i] += 1
            b[j] -= 1
            after = torch.trace(covariance @ torch.linalg.inv(curvature + information[i, j] * torch.outer(b, b)))
            assert float(found[i, j]) == pytest.approx(float(before - after), abs=1e-12)


def test_one_label_goes_to_the_pair_with_the_largest_gain_and_many_come_near_the_best_of_all_splits():
    """K = 3 has three pairs: every split of 12 labels can be tried; greedy loses less than 1% to the best."""
    rewards, curvature = bradley_terry.fit_rewards(random_wins(3, 3, seed=5), 3.0)
    log_ref = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    covariance, information = active.posterior_means(rewards, curvature, log_ref, 0.4, 64, seeded(2))
    pairs = [(0, 1), (0, 2), (1, 2)]

    def left(counts):
        total = curvature.clone()
        for (i, j), n in zip(pairs, counts, strict=True):
            b = torch.zeros(3, dtype=torch.float64)
            b[i], b[j] = 1, -1
            total += n * information[i, j] * torch.outer(b, b)
        return float(torch.trace(covariance @ torch.linalg.inv(total)))

    single = active.next_labels(covariance, information, curvature, 1)
    want = min(((1, 0, 0), (0, 1, 0), (0, 0, 1)), key=left)
    assert [float(single[i, j]) for i, j in pairs] == list(want)
    many = active.next_labels(covariance, information, curvature, 12)
    best = min(left((a, b, 12 - a - b)) for a in range(13) for b in range(13 - a))
    assert left([float(many[i, j]) for i, j in pairs]) <= 1.01 * best


@pytest.mark.parametrize(("number", "explore"), [(1, 0.0), (7, 0.5), (100, 0.05), (333, 1.0)])
def test_next_labels_are_whole_above_the_diagonal_and_as_many_as_asked(number, explore):
    rewards, curvature = bradley_terry.fit_rewards(random_wins(5, 4, 4), 3.0)
    log_ref = torch.zeros(5, 4, dtype=torch.float64).log_softmax(-1)
    covariance, information = active.posterior_means(rewards, curvature, log_ref, 0.5, 8, seeded(0))
    counts = active.next_labels(covariance, information, curvature, number, explore)
    assert torch.equal(counts, counts.round()) and (counts >= 0).all() and torch.equal(counts, counts.triu(1))
    assert (counts.sum((-1, -2)) == number).all()
    if explore == 1.0:
        assert counts[:, *torch.triu_indices(4, 4, 1)].amin() >= number // 6


def test_what_is_believed_are_means_over_the_normal_posterior():
    """K = 2: only d = r_0 − r_1 is relevant, normal with variance bᵀ H⁻¹ b. Simpson's rule on it instead of draws."""
    rewards, curvature = bradley_terry.fit_rewards(torch.tensor([[0.0, 6.0], [3.0, 0.0]], dtype=torch.float64), 2.0)
    log_ref = torch.tensor([0.3, 0.7], dtype=torch.float64).log()
    covariance, information = active.posterior_means(rewards, curvature, log_ref, 0.5, 40_000, seeded(3))
    inverse = torch.linalg.inv(curvature)
    mean, sd = float(rewards[0] - rewards[1]), math.sqrt(float(inverse[0, 0] + inverse[1, 1] - 2 * inverse[0, 1]))
    d = torch.linspace(mean - 8 * sd, mean + 8 * sd, 4001, dtype=torch.float64)
    density = torch.exp(-((d - mean) ** 2) / (2 * sd**2)) / (sd * math.sqrt(2 * math.pi))
    p, star = torch.sigmoid(d), torch.sigmoid(log_ref[0] - log_ref[1] + d / 0.5)
    # 40,000 draws of something in [0, ¼]: a standard error below 0.0007.
    assert float(information[0, 1]) == pytest.approx(float(torch.trapezoid(density * p * (1 - p), d)), abs=3e-3)
    assert float(covariance[0, 0]) == pytest.approx(float(torch.trapezoid(density * star * (1 - star), d)), abs=3e-3)
    torch.testing.assert_close(covariance.sum(-1), torch.zeros(2, dtype=torch.float64), atol=1e-12, rtol=0)


def test_apportion_is_whole_sums_to_the_number_and_is_within_one_of_exact():
    weights = torch.rand(6, 5, 5, dtype=torch.float64, generator=seeded(4))
    got = active.apportion(weights, 97)
    exactly = 97 * weights / weights.sum((-1, -2), keepdim=True)
    assert (got.sum((-1, -2)) == 97).all() and ((got - exactly).abs() < 1).all()


def test_multinomial_has_the_right_means_and_covariances():
    weights = torch.tensor([0.5, 0.0, 0.3, 0.2], dtype=torch.float64)
    draws = label_rounds.multinomial(weights.expand(20_000, -1), 50, seeded(5))
    assert (draws.sum(-1) == 50).all() and (draws[:, 1] == 0).all()
    # Standard errors: of a mean at most √(50/4/20000) = 0.025, of a covariance about 0.13.
    torch.testing.assert_close(draws.mean(0), 50 * weights, atol=0.12, rtol=0)
    want = 50 * (torch.diag(weights) - torch.outer(weights, weights))
    torch.testing.assert_close(torch.cov(draws.T), want, atol=0.6, rtol=0)


def test_draws_do_not_depend_on_the_last_bit_of_a_chance():
    """25 · 0.4 is exactly where torch takes another algorithm; another processor's 0.4 is a few bits lower."""
    weights = torch.tensor([0.4, 0.6], dtype=torch.float64)
    lower = torch.tensor([0.4 - 4e-16, 0.6], dtype=torch.float64)
    first, second = (label_rounds.multinomial(w.expand(50, -1), 25, seeded(6)) for w in (weights, lower))
    assert torch.equal(first, second)
    # Labels: σ(log(2/3)) = 0.4.
    counts = torch.tensor([[0.0, 25.0], [0.0, 0.0]], dtype=torch.float64).expand(50, 2, 2)
    odds = torch.tensor([math.log(2 / 3), 0.0], dtype=torch.float64)
    near = [odds + shift * torch.tensor([1.0, 0.0], dtype=torch.float64) for shift in (-4e-16, 0.0, 4e-16)]
    one, two, three = (label_rounds.bradley_terry_labels(r)(counts, seeded(7)) for r in near)
    assert torch.equal(one, two) and torch.equal(two, three)


@pytest.mark.parametrize(("size", "labels", "rounds"), [(10, 500, 1), (10, 500, 8), (4, 9, 9), (27, 100, 5)])
def test_batches_grow_and_end_at_the_labels(size, labels, rounds):
    totals = label_rounds.round_totals(size, labels, rounds)
    assert len(totals) == rounds and totals[-1] == labels
    assert all(b > a for a, b in zip([0, *totals], totals, strict=False))


def test_the_active_policy_sees_labels_and_nothing_else():
    """Two rewards, the same labels: the same pairs are asked. A labeller that lies about the number is found out."""
    log_ref = torch.zeros(1, 4, dtype=torch.float64).log_softmax(-1)
    known = torch.zeros(1, 4, 4, dtype=torch.float64)

    def first_always(counts, generator):
        return counts

    runs = [
        label_rounds.collect_labels(
            active.choose_actively(log_ref, 0.5), first_always, known, [20, 60], generator=seeded(6)
        )
        for _ in range(2)
    ]
    assert torch.equal(runs[0][-1].counts, runs[1][-1].counts) and runs[0][-1].labels == 60
    with pytest.raises(LabError, match="another number of labels"):
        label_rounds.collect_labels(
            active.choose_actively(log_ref, 0.5), lambda c, g: 2 * c, known, [20], generator=seeded(6)
        )


def test_batches_begin_with_four_labels_a_response_and_grow_by_one_factor():
    """1000 labels in 4 rounds for 4 responses: 16 first, the factor is (1000/16)^(1/3) = 3.9685, so 63.5 and 252."""
    assert label_rounds.round_totals(4, 1000, 4) == [16, 63, 252, 1000]
    assert label_rounds.round_totals(100, 40, 4) == [10, 16, 25, 40]  # an even share is less than four a response


@pytest.mark.parametrize("with_demonstrations", [False, True])
def test_every_round_is_fitted_to_all_labels_with_the_prior_and_the_demonstrations(with_demonstrations):
    """The first of each pair always wins; the labels known beforehand count in the fit, and not in what was spent."""
    base = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()
    shown = bradley_terry.Demonstrations(torch.tensor([1.0, 0, 4], dtype=torch.float64), base, 0.7)
    shown = shown if with_demonstrations else None
    known = torch.tensor([[0.0, 0, 2], [0, 0, 0], [0, 1, 0]], dtype=torch.float64)
    each = torch.ones(3, 3, dtype=torch.float64).triu(1)

    def choose(state, number, generator):
        return each * (number // 3)

    first, second = label_rounds.collect_labels(choose, lambda c, g: c, known, [3, 9], 0.5, seeded(0), shown)
    for state, wins in ((first, known + each), (second, known + 3 * each)):
        rewards, curvature = bradley_terry.fit_rewards(wins, 0.5, shown)
        assert torch.equal(state.wins, wins) and torch.equal(state.rewards, rewards)
        assert torch.equal(state.curvature, curvature)
    assert (first.labels, second.labels) == (3, 9)


def test_the_active_choice_passes_on_its_settings():
    """The same as `next_labels` of what is believed over 5 draws; with the estimate alone other pairs are asked."""
    log_ref = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64).log()
    state = label_rounds.LabelState(0, wins := random_wins(1, 4, 4, seed=2) / 4, *bradley_terry.fit_rewards(wins, 3.0))
    settings = active.Active(explore=0.3, draws=5, greedy_steps=3)
    found = active.choose_actively(log_ref, 0.4, settings)(state, 40, seeded(1))
    covariance, information = active.posterior_means(state.rewards, state.curvature, log_ref, 0.4, 5, seeded(1))
    assert torch.equal(found, active.next_labels(covariance, information, state.curvature, 40, 0.3, 3))
    covariance, information = active.posterior_means(state.rewards, state.curvature, log_ref, 0.4, 0)
    assert not torch.equal(found, active.next_labels(covariance, information, state.curvature, 40, 0.3, 3))


def test_a_design_names_unordered_pairs():
    """All weight on (2, 0) and (1, 2): half of the labels go to (0, 2), half to (1, 2), none elsewhere."""
    design = torch.zeros(3, 3, dtype=torch.float64)
    design[2, 0] = design[1, 2] = 0.5
    counts = label_rounds.choose_by_design(design)(None, 10_000, seeded(0))
    assert counts[0, 2] + counts[1, 2] == 10_000 == counts.sum()
    assert abs(float(counts[0, 2]) - 5000) < 4 * 50


def test_pairs_of_the_present_policy_follow_the_fitted_rewards_over_beta():
    """π ∝ π_ref exp(r̂/β) with π_ref = (½, ¼, ¼), r̂ = (0, log 2, 0)/2 and β = ½: π = (½, ½, ¼)/1.25, so the pairs
    (0,1), (0,2), (1,2) come as 4 : 2 : 2. Of 80,000 labels a share of ½ has a standard deviation of 141."""
    log_ref = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64).log()
    rewards = torch.tensor([0.0, math.log(2) / 2, 0.0], dtype=torch.float64)
    state = label_rounds.LabelState(0, torch.zeros(3, 3), rewards, torch.eye(3))
    counts = label_rounds.choose_from_policy(log_ref, 0.5)(state, 80_000, seeded(0))
    for (i, j), want in (((0, 1), 40_000), ((0, 2), 20_000), ((1, 2), 20_000)):
        assert abs(float(counts[i, j]) - want) < 4 * 141


def test_with_many_labels_the_active_pairs_become_the_best_design():
    world = bandit.lecture()
    log_ref, reward = world.log_ref()[:1], world.rewards()[:1]
    label = label_rounds.bradley_terry_labels(reward)
    known = torch.zeros(1, 4, 4, dtype=torch.float64)
    choose = active.choose_actively(log_ref, 0.5, active.Active(explore=0.0))
    state = label_rounds.collect_labels(choose, label, known, [100, 1000, 10_000, 100_000], generator=seeded(7))[-1]
    shares = (state.counts / state.labels)[0]
    price = exact.label_price(log_ref[0], reward[0], 0.5, shares)
    best = exact.label_price(log_ref[0], reward[0], 0.5, exact.optimal_pair_design(log_ref[0], reward[0], 0.5))
    assert float(price / best) < 1.03


def test_on_random_bandits_active_labels_come_near_the_best_design_and_pairs_of_the_reference_do_not():
    """20 bandits of 10 arms, β = 0.3, 12 sets of 1,280 labels each: the issue's number, at a fraction of the runs.

    A median over 20 of means over 12 squares of normals is uncertain by about a tenth; 1.25 becomes 1.35.
    """
    world = label_budget.random_worlds(20, 10, 0.3, 8)
    best, totals = world.price("design"), [40, 160, 640, 1280]
    ratio = {}
    for pairs in ("active", "reference"):
        lost = label_budget.simulate(world, pairs, totals, 12, seeded(8))[:, -1].mean(0)
        ratio[pairs] = float((1280 * lost / best).median())
    assert ratio["active"] < 1.35 and ratio["reference"] > 2


def test_dpo_on_labels_is_the_plug_in_of_the_fitted_rewards():
    """DPO straight on the labels and a reward model first are one estimate for a table: fit both, compare policies."""
    world = bandit.make(torch.zeros(1, 4), torch.tensor([[0.0, 1.0, -0.5, 0.5]]))
    pairs = world.preferences(400, seeded(9))
    policy = world.reference.copy()
    dpo(policy, world.reference, pairs, DPO(beta=0.5),
        Training(steps=400, batch_size=400, learning_rate=0.05, progress=False))  # fmt: skip
    index = pairs.responses.ids[..., 0]
    wins = torch.zeros(4, 4, dtype=torch.float64).index_put_(
        (index[:, 0], index[:, 1]), torch.tensor(1.0).double(), True
    )
    rewards, _ = bradley_terry.fit_rewards(wins, 1e3)
    want = exact.optimal_policy(world.log_ref()[0], rewards, 0.5)
    torch.testing.assert_close(world.log_probs(policy)[0].exp(), want.exp(), atol=2e-3, rtol=0)


def test_bad_input_is_refused_in_words():
    one = torch.zeros(1, 3, dtype=torch.float64).log_softmax(-1)
    with pytest.raises(LabError, match="negative"):
        bradley_terry.fit_rewards(-torch.ones(3, 3))
    with pytest.raises(LabError, match="shape"):
        bradley_terry.fit_rewards(torch.ones(3, 2))
    with pytest.raises(LabError, match="only one"):
        active.choose_actively(torch.zeros(1, 1, dtype=torch.float64), 0.5)
    with pytest.raises(LabError, match="must be above 0 and increase"):
        label_rounds.collect_labels(active.choose_actively(one, 0.5), lambda c, g: c, torch.zeros(1, 3, 3), [5, 5])
    with pytest.raises(LabError, match="explore"):
        active.Active(explore=1.5)
    with pytest.raises(LabError, match="rounds"):
        label_rounds.round_totals(4, 3, 5)
