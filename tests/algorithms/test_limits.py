"""Every method against the exact limit of that method: where it must arrive when data and steps are enough."""

import math

import pytest
import torch

from rlhf_lab import exact
from rlhf_lab.algorithms.dpo import DPO, dpo
from rlhf_lab.algorithms.iterated_dpo import Online, online
from rlhf_lab.algorithms.ppo import PPO, ppo
from rlhf_lab.algorithms.raft import RAFT, raft
from rlhf_lab.algorithms.rest import ReST, rest
from rlhf_lab.algorithms.reward_model import RewardModel, reward_model
from rlhf_lab.algorithms.rso import RSO, make_pairs, rso
from rlhf_lab.algorithms.sft import sft
from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.evaluation import evaluate
from rlhf_lab.policies.tree_transformer import TreeTransformerPolicy
from rlhf_lab.response_tree import ResponseTree
from rlhf_lab.training import Training, seeded
from rlhf_lab.worlds import bandit, token_tree

BETA = 0.5
EVERYTHING = 10**9


def training(**settings) -> Training:
    return Training(progress=False, **settings)


@pytest.mark.parametrize(
    "world",
    [bandit.random(4, 10, seed=0), bandit.random(2, 5, seed=3), bandit.lecture()],
    ids=lambda world: world.name,
)
def test_dpo_on_all_pairs_of_a_bandit_reaches_the_optimum_to_1e_8(world):
    policy = world.reference.copy()
    settings = training(steps=10, optimizer="lbfgs", batch_size=EVERYTHING)
    dpo(policy, world.reference, world.all_pairs(), DPO(beta=BETA), settings)
    assert exact.kl(world.log_probs(policy), world.optimal(BETA)).max() <= 1e-8


@pytest.mark.parametrize(
    "world",
    [token_tree.random(3, 3, 2), token_tree.random(3, 3, 1, has_end=True, reward="sequence"), token_tree.lecture()],
    ids=lambda world: world.name,
)
def test_dpo_on_all_pairs_of_a_tabular_tree_reaches_the_optimum_to_1e_6(world):
    policy = world.reference.copy()
    settings = training(steps=10, optimizer="lbfgs", batch_size=EVERYTHING)
    dpo(policy, world.reference, world.all_pairs(), DPO(beta=BETA), settings)
    assert exact.kl(world.log_probs(policy), world.optimal(BETA)).max() <= 1e-6


@pytest.mark.slow
def test_dpo_with_a_transformer_on_4096_sequences_reaches_the_optimum_to_2e_2_from_sampled_pairs():
    reference = TreeTransformerPolicy(ResponseTree(8, 4), 1, "gpt2", seed=0)
    world = token_tree.random(8, 4, seed=0, reference=reference)
    policy = world.reference.copy()
    settings = training(steps=220, learning_rate=3e-3, warmup=10)
    dpo(policy, world.reference, lambda g: world.preferences(10_000, g), DPO(beta=BETA), settings)
    assert evaluate(policy, world, BETA).kl_to_optimal <= 2e-2


@pytest.mark.parametrize("architecture", ["gpt2", pytest.param("gpt_neox", marks=pytest.mark.slow)])
def test_dpo_with_either_transformer_architecture_closes_most_of_the_way_on_a_small_tree(architecture):
    """The reference stands at KL(π_ref‖π*) of more than a nat; the fit must take 95% of it away."""
    reference = TreeTransformerPolicy(ResponseTree(4, 3), 2, architecture, width=32, seed=1)
    world = token_tree.random(4, 3, 2, seed=1, reference=reference)
    policy = world.reference.copy()
    settings = training(steps=120, learning_rate=5e-3, warmup=10)
    dpo(policy, world.reference, lambda g: world.preferences(2000, g), DPO(beta=BETA), settings)
    assert evaluate(policy, world, BETA).kl_to_optimal <= 0.05 * evaluate(reference, world, BETA).kl_to_optimal


def test_dpo_with_chosen_and_rejected_swapped_runs_away_from_the_optimum():
    """Swapped labels are those of the reward −r: the fit must arrive at π_ref exp(−r/β)/Z, far from π*."""
    world = bandit.random(2, 5, seed=0)
    pairs = world.all_pairs()
    flip = torch.tensor([1, 0])
    swapped = Pairs(pairs.prompts, Tokens(pairs.responses.ids[:, flip], pairs.responses.mask[:, flip]), pairs.weight)
    policy = world.reference.copy()
    settings = training(steps=10, optimizer="lbfgs", batch_size=EVERYTHING)
    dpo(policy, world.reference, swapped, DPO(beta=BETA), settings)
    opposite = exact.optimal_policy(world.log_ref(), -world.rewards(), BETA)
    assert exact.kl(world.log_probs(policy), opposite).max() <= 1e-8
    assert evaluate(policy, world, BETA).kl_to_optimal > 1.0


def test_robust_dpo_undoes_known_label_noise_in_the_population_and_plain_dpo_does_not():
    """With labels flipped at rate ε the population weight of (i, j) is (1−ε) w_ij + ε w_ji."""
    world, noise = bandit.random(2, 5, seed=4), 0.2
    pairs = world.all_pairs()
    index = world.tree.index(pairs.responses)
    row = world.tree.prompt_index(pairs.prompts)
    table = torch.zeros(2, 5, 5, dtype=torch.float64)
    table[row, index[:, 0], index[:, 1]] = pairs.weight
    noisy = (1 - noise) * table + noise * table.transpose(1, 2)
    flipped = Pairs(pairs.prompts, pairs.responses, noisy[row, index[:, 0], index[:, 1]])
    gaps = {}
    for loss, smoothing in (("robust", noise), ("sigmoid-norm", 0.0)):
        policy = world.reference.copy()
        settings = training(steps=10, optimizer="lbfgs", batch_size=EVERYTHING)
        dpo(policy, world.reference, flipped, DPO(loss, BETA, smoothing), settings)
        gaps[loss] = evaluate(policy, world, BETA).kl_to_optimal
    assert gaps["robust"] <= 1e-8
    assert gaps["sigmoid-norm"] > 0.05


def test_reward_model_on_all_pairs_recovers_the_reward_up_to_a_function_of_the_prompt():
    world = bandit.random(3, 6, seed=2)
    model = world.reference.new_reward_model()
    settings = training(steps=10, optimizer="lbfgs", batch_size=EVERYTHING)
    reward_model(model, world.all_pairs(), RewardModel(prior=0.0), settings)
    gap = (model(world.prompts, world.responses) - world.rewards()).detach()
    assert (gap - gap.mean(-1, keepdim=True)).abs().max() < 1e-6


def test_reward_model_prior_fixes_the_free_constant_near_zero():
    """Started 5 too high everywhere, the likelihood alone never comes back; with the prior the mean returns."""
    world = bandit.random(1, 4, seed=2)
    means = {}
    for prior in (0.0, 1e-2):
        model = world.reference.new_reward_model()
        with torch.no_grad():
            model.table.tables[0].add_(5.0)
        settings = training(steps=10, optimizer="lbfgs", batch_size=EVERYTHING)
        reward_model(model, world.all_pairs(), RewardModel(prior=prior), settings)
        means[prior] = model(world.prompts, world.responses).mean().item()
    assert abs(means[0.0] - 5.0) < 1e-6
    assert abs(means[1e-2]) < 1.0


@pytest.mark.parametrize(
    "world",
    [bandit.random(4, 10, seed=0), pytest.param(bandit.random(1, 6, seed=7), marks=pytest.mark.slow)],
    ids=lambda w: w.name,
)
def test_ppo_on_the_gold_reward_of_a_bandit_arrives_at_the_optimum(world):
    policy = world.reference.copy()
    settings = PPO(beta=BETA, samples=256 // world.num_prompts)
    ppo(policy, world.reference, world.reward, policy.new_critic(), world.prompts, settings, training(
        steps=250, learning_rate=0.05))  # fmt: skip
    assert evaluate(policy, world, BETA).kl_to_optimal < 1e-3


@pytest.mark.slow
def test_ppo_on_a_token_tree_arrives_at_the_optimum_token_by_token():
    world = token_tree.random(3, 3, 1, seed=0, has_end=True)
    policy = world.reference.copy()
    settings = PPO(beta=BETA, samples=512)
    ppo(policy, world.reference, world.reward, policy.new_critic(), world.prompts, settings, training(
        steps=300, learning_rate=0.05))  # fmt: skip
    assert evaluate(policy, world, BETA).kl_to_optimal < 1e-2 * evaluate(world.reference, world, BETA).kl_to_optimal


def test_ppo_with_the_kl_sign_turned_round_leaves_the_optimum():
    """A reference and policy exchanged in the penalty pay for drift: the same run must end far from π*."""
    world = bandit.random(2, 5, seed=0)

    class TurnedRound(torch.nn.Module):
        """Stands in for the reference: with log π' = 2 log π_θ − log π_ref, log π_θ − log π' is −k1."""

        def __init__(self, policy, reference):
            super().__init__()
            self.policy, self.reference = [policy], reference

        def token_log_probs(self, prompts, responses, temperature=1.0):
            here = self.policy[0].token_log_probs(prompts, responses, temperature)
            return 2 * here - self.reference.token_log_probs(prompts, responses, temperature)

    policy = world.reference.copy()
    wrong = TurnedRound(policy, world.reference)
    ppo(policy, wrong, world.reward, policy.new_critic(), world.prompts, PPO(beta=BETA, samples=128), training(
        steps=150, learning_rate=0.05))  # fmt: skip
    assert evaluate(policy, world, BETA).kl_to_optimal > 0.5


def test_sft_on_all_responses_arrives_at_the_distribution_they_came_from():
    """10,000 responses drawn from π*: the fit is the empirical distribution, (K−1)/2n nats from π* on average."""
    world, number = bandit.random(1, 6, seed=1), 10_000
    source = world.reference.from_log_probs(world.tree, world.optimal(BETA))
    data = source.sample(world.prompts, number, seeded(0))
    counts = torch.bincount(world.tree.index(data)[0], minlength=6).double() / number
    policy = world.reference.copy()
    sft(policy, world.prompts, data, training(steps=5, optimizer="lbfgs", batch_size=EVERYTHING))
    assert torch.allclose(world.log_probs(policy)[0].exp(), counts, atol=1e-6)
    assert evaluate(policy, world, BETA).kl_to_optimal < 10 * 5 / (2 * number)


@pytest.mark.parametrize("best_of", [2, 8])
def test_raft_arrives_at_best_of_n(best_of):
    """With n targets a prompt the fit is the empirical best-of-K: E[KL] = (K−1)/2n to leading order."""
    world, number = bandit.random(2, 8, seed=5), 8000
    policy = world.reference.copy()
    settings = training(steps=10, optimizer="lbfgs", batch_size=EVERYTHING)
    raft(policy, world.reward, world.prompts.repeat(number), RAFT(best_of), settings)
    target = exact.best_of_n(world.log_ref(), world.rewards(), best_of)
    # KL from the target, so that arms that were never seen count by the little mass they should have.
    assert exact.kl(world.log_probs(policy), target).max() < 8 * 7 / (2 * number)
    other = exact.best_of_n(world.log_ref(), world.rewards(), best_of + 2)
    assert exact.kl(world.log_probs(policy), other).max() > 8 * 7 / (2 * number)


def test_one_filter_of_rest_arrives_at_the_filtered_reference_and_not_at_the_optimum():
    world, number = bandit.random(2, 8, seed=6), 20_000
    threshold = 0.0
    policy = world.reference.copy()
    settings = ReST(grows=1, thresholds=(threshold,), samples=number, scale="none")
    rest(policy, world.reward, world.prompts, settings, training(steps=15, optimizer="lbfgs", batch_size=EVERYTHING))
    target = exact.filtered(world.log_ref(), world.rewards(), threshold)
    assert exact.kl(target, world.log_probs(policy)).max() < 8 * 7 / (2 * number)
    assert exact.kl(target, world.optimal(BETA)).max() > 0.05


def test_rising_thresholds_of_rest_end_at_the_highest_filter():
    """Each Improve step conditions on more, and the last filter implies the earlier ones."""
    world, number = bandit.random(1, 8, seed=6), 20_000
    policy = world.reference.copy()
    settings = ReST(grows=1, thresholds=(-1.0, 0.0, 0.5), samples=number, scale="none", rate_decay=1.0)
    rest(policy, world.reward, world.prompts, settings, training(steps=15, optimizer="lbfgs", batch_size=EVERYTHING))
    target = exact.filtered(world.log_ref(), world.rewards(), 0.5)
    assert exact.kl(target, world.log_probs(policy)).max() < 8 * 7 / number


def test_rso_accepted_responses_follow_the_optimal_policy_and_sft_samples_the_reference():
    """One accepted of 256 candidates is a draw from π* up to O(1/256); frequencies by a normal interval."""
    world = bandit.random(1, 6, seed=8)
    prompts = world.prompts.repeat(3000)
    found = {}
    for source, target in (("rso-sample-rank", world.optimal(BETA)), ("sft-sample-rank", world.log_ref())):
        drawn = {"candidates": 256} if source == "rso-sample-rank" else {}
        settings = RSO(source, beta=BETA, accepted=2, **drawn)
        pairs, dropped = make_pairs(world.reference, world.reward, prompts, settings)
        assert len(pairs) + dropped == 3000
        p = target[0].exp()
        joint = p.unsqueeze(-1) * p * (1 - torch.eye(6, dtype=torch.float64))
        expected = (joint / joint.sum()).sum(-1)  # either response of a pair of different ones
        index = world.tree.index(pairs.responses).flatten()
        frequency = torch.bincount(index, minlength=6).double() / len(index)
        error = (expected * (1 - expected) / len(pairs)).sqrt()
        assert ((frequency - expected).abs() < 4 * error + 0.01).all()
        found[source] = frequency
    assert (found["rso-sample-rank"] - found["sft-sample-rank"]).abs().max() > 0.05


@pytest.mark.parametrize("source", ["sft-sample-rank", "rso-sample-rank"])
def test_rso_with_the_gold_reward_comes_near_the_optimum(source):
    world = bandit.random(2, 5, seed=0)
    policy = world.reference.copy()
    settings = training(steps=10, optimizer="lbfgs", batch_size=EVERYTHING)
    rso(policy, world.reference, world.reward, world.prompts.repeat(4000), RSO(source, beta=BETA), settings)
    assert evaluate(policy, world, BETA).kl_to_optimal < 0.02 * evaluate(world.reference, world, BETA).kl_to_optimal


def test_rso_direct_is_dpo_on_the_labelled_pairs():
    world = bandit.random(2, 5, seed=0)
    pairs = world.preferences(500, seeded(0))
    one, two = world.reference.copy(), world.reference.copy()
    rso(one, world.reference, world.reward, world.prompts, RSO("direct", beta=BETA), training(steps=20), direct=pairs)
    dpo(two, world.reference, pairs, DPO(beta=BETA), training(steps=20))
    assert torch.equal(world.log_probs(one), world.log_probs(two))


def test_online_rounds_spend_exactly_the_labels_and_come_near_the_optimum():
    world = bandit.random(2, 5, seed=0)
    asked = []

    def collect(policy, number, generator):
        asked.append((number, policy is world.reference))
        return world.preferences(number, generator, policy=policy)

    policy = world.reference.copy()
    settings = training(steps=10, optimizer="lbfgs", batch_size=EVERYTHING)
    history = online(policy, world.reference, collect, DPO(beta=BETA), Online(rounds=3, labels=20_000), settings)
    assert sum(number for number, _ in asked) == 20_000
    assert history[-1]["labels"] == 20_000
    # The price of N labels is about φ/N with φ of the order of K²/β: far below this.
    assert evaluate(policy, world, BETA).regret < 0.01


@pytest.mark.slow
def test_expected_regret_of_dpo_on_finite_labels_meets_the_closed_form():
    """DPO on a table is the Bradley–Terry MLE in other words: N·E[regret] → label_price. 60 runs, 4-σ interval."""
    world, number = bandit.random(1, 4, seed=9, reward_scale=0.5), 4000
    log_ref, reward = world.log_ref(), world.rewards()
    p = log_ref.exp()
    joint = (p.unsqueeze(-1) * p.unsqueeze(-2)) * (1 - torch.eye(4, dtype=torch.float64))
    price = exact.label_price(log_ref, reward, BETA, joint / joint.sum()).item()
    losses = []
    for seed in range(60):
        policy = world.reference.copy()
        pairs = world.preferences(number, seeded(seed, 1))
        dpo(policy, world.reference, pairs, DPO(beta=BETA), training(steps=3, optimizer="lbfgs", batch_size=EVERYTHING))
        losses.append(number * evaluate(policy, world, BETA).regret)
    mean = sum(losses) / 60
    error = math.sqrt(sum((x - mean) ** 2 for x in losses) / 59 / 60)
    assert abs(mean - price) < 4 * error + 0.05 * price
