"""The pure functions inside the algorithms, against sums written out by hand."""

import pytest
import torch

from rlhf_lab.algorithms.dpo import DPO, pair_loss
from rlhf_lab.algorithms.grpo_rloo import Group
from rlhf_lab.algorithms.iterated_dpo import Online
from rlhf_lab.algorithms.ppo import PPO, gae, token_rewards, whiten
from rlhf_lab.algorithms.raft import RAFT, best_of
from rlhf_lab.algorithms.rest import ReST, reward_filter
from rlhf_lab.algorithms.reward_model import RewardModel
from rlhf_lab.algorithms.rso import RSO, make_pairs, rso
from rlhf_lab.algorithms.sft import held_out_responses, sft, sft_loss
from rlhf_lab.batch import Tokens
from rlhf_lab.bradley_terry import Demonstrations
from rlhf_lab.errors import LabError
from rlhf_lab.policies.base import Policy
from rlhf_lab.training import Training, seeded
from rlhf_lab.worlds import bandit


def _variable_length(seed=0):
    g = seeded(seed)
    lengths = torch.tensor([[1, 3], [4, 2]])
    mask = torch.arange(4) < lengths.unsqueeze(-1)
    return g, mask, [torch.randn(2, 2, 4, dtype=torch.float64, generator=g) * mask for _ in range(3)]


def test_the_sft_loss_of_marked_tokens_is_the_sum_over_them():
    """Two responses of three and two tokens, whose tokens have log-probabilities −1, −2, −4 and −8, −16. With the marks
    on the first and third token, and on the second, the loss is (5 + 16) / 2 and the mean number of tokens 3 / 2.
    All marked is the loss without marks: (7 + 24) / 2, with 5 / 2 tokens."""
    log_probs = -torch.tensor([[[1.0, 2.0, 4.0]], [[8.0, 16.0, 0.0]]])

    class Fixed(Policy):
        def token_log_probs(self, prompts, responses, temperature=1.0):
            return log_probs[prompts.ids[:, 0]]

    prompts = Tokens.from_lists([[0], [1]])
    responses = Tokens.from_lists([[[5, 6, 7]], [[5, 6]]])
    marked = torch.tensor([[[1, 0, 1]], [[0, 1, 0]]]).bool()
    loss, seen = sft_loss(Fixed(), prompts, responses, marked)
    assert (loss.item(), seen["response_tokens"].item()) == (10.5, 1.5)
    for whole in (None, responses.mask):
        loss, seen = sft_loss(Fixed(), prompts, responses, whole)
        assert (loss.item(), seen["response_tokens"].item()) == (15.5, 2.5)
    trained = Tokens.from_lists([[[1, 0, 1]], [[0, 1]]])
    evaluation = held_out_responses(Fixed(), prompts, responses, trained)
    assert evaluation.measure(*evaluation.batch(torch.tensor([1])))[0].item() == 16


def test_token_rewards_sum_to_the_score_minus_beta_times_the_log_ratio_and_the_score_is_on_the_last_token():
    g, mask, (log_policy, log_ref, _) = _variable_length()
    score = torch.randn(2, 2, dtype=torch.float64, generator=g)
    rewards = token_rewards(score, log_policy, log_ref, mask, beta=0.3)
    assert torch.allclose(rewards.sum(-1), score - 0.3 * (log_policy - log_ref).sum(-1))
    penalty = -0.3 * (log_policy[1, 0] - log_ref[1, 0])
    assert torch.allclose(rewards[1, 0, :3], penalty[:3])
    assert rewards[0, 0, 0] == score[0, 0] - 0.3 * (log_policy[0, 0, 0] - log_ref[0, 0, 0])
    assert (rewards[~mask] == 0).all()


@pytest.mark.parametrize(("discount", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 0.0), (1.0, 1.0)])
def test_gae_equals_the_double_sum_of_discounted_residuals(discount, lam):
    """A_t = Σ_{l ≥ 0} (γλ)^l δ_{t+l} with δ_t = r_t + γ V_{t+1} − V_t and V = 0 after the last token."""
    _, mask, (rewards, values, _) = _variable_length(1)
    advantages, returns = gae(rewards, values, mask, discount, lam)
    for i in range(2):
        for j in range(2):
            length = int(mask[i, j].sum())
            v = [*values[i, j, :length].tolist(), 0.0]
            r = rewards[i, j].tolist()
            delta = [r[t] + discount * v[t + 1] - v[t] for t in range(length)]
            for t in range(length):
                expected = sum((discount * lam) ** (s - t) * delta[s] for s in range(t, length))
                assert advantages[i, j, t].item() == pytest.approx(expected, abs=1e-12)
                assert returns[i, j, t].item() == pytest.approx(expected + v[t], abs=1e-12)
    assert (advantages[~mask] == 0).all() and (returns[~mask] == 0).all()


def test_whiten_gives_mean_zero_and_variance_one_over_the_mask_alone():
    _, mask, (values, _, _) = _variable_length(2)
    white = whiten(values + 5, mask)
    assert white[mask].mean().abs() < 1e-9
    assert (white[mask].square().mean() - 1).abs() < 1e-6
    assert (white[~mask] == 0).all()


def test_best_of_takes_the_maximum_and_breaks_ties_evenly():
    """Three candidates, two at the top: each should win half of 4,000 times (4 σ is 126)."""
    scores = torch.tensor([[1.0, 3.0, 3.0]]).expand(4000, -1)
    counts = torch.bincount(best_of(scores, seeded(0)).flatten(), minlength=3)
    assert counts[0] == 0
    assert abs(counts[1].item() - 2000) < 4 * (4000 * 0.25) ** 0.5


def test_filter_is_strict_and_refuses_to_pass_nothing():
    assert reward_filter(torch.tensor([0.5, 0.7, 0.8]), 0.7).tolist() == [False, False, True]
    with pytest.raises(LabError, match=r"best score is 0\.8"):
        reward_filter(torch.tensor([0.5, 0.8]), 0.8)


def test_pair_loss_is_the_weighted_mean_and_its_gradient_agrees_with_finite_differences():
    world = bandit.lecture()
    pairs, policy = world.all_pairs(), world.reference.copy()
    with torch.no_grad():
        policy.logits.tables[0].add_(torch.randn(2, 1, 4, dtype=torch.float64, generator=seeded(0)))
    log_ref = world.reference.log_prob(pairs.prompts, pairs.responses)
    loss, watched = pair_loss(policy, pairs, log_ref, DPO(beta=0.7))
    ratio = (policy.log_prob(pairs.prompts, pairs.responses) - log_ref).detach()
    by_hand = sum(
        w * torch.log1p(torch.exp(-0.7 * (c - r))) for w, (c, r) in zip(pairs.weight, ratio, strict=True)
    ) / pairs.weight.sum()  # fmt: skip
    assert loss.item() == pytest.approx(by_hand.item(), abs=1e-12)
    assert watched["margin"].item() == pytest.approx(
        (0.7 * (ratio[:, 0] - ratio[:, 1]) * pairs.weight).sum().item(), abs=1e-12
    )
    loss.backward()
    table, step = policy.logits.tables[0], 1e-5
    numeric = torch.zeros_like(table)
    for place in range(table.numel()):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                table.view(-1)[place] += sign * step
                ends.append(pair_loss(policy, pairs, log_ref, DPO(beta=0.7))[0].item())
                table.view(-1)[place] -= sign * step
        numeric.view(-1)[place] = (ends[0] - ends[1]) / (2 * step)
    assert torch.allclose(table.grad, numeric, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DPO(beta=0.0), "beta"),
        (lambda: DPO(beta=float("nan")), "beta"),
        (lambda: DPO(loss="sigmoid"), "loss must be"),
        (lambda: DPO(loss="ipo", label_smoothing=0.1), "label_smoothing"),
        (lambda: DPO(loss="robust", label_smoothing=0.5), "label_smoothing"),
        (lambda: DPO(loss="cdpo"), "cdpo with label_smoothing=0 is plain DPO"),
        (lambda: DPO(loss="robust"), "robust with label_smoothing=0 is plain DPO"),
        (lambda: PPO(beta=-1.0), "beta"),
        (lambda: PPO(epochs=1, clip=0.1), "clip=0.1 has no effect where every sample is learned from once"),
        (lambda: PPO(epochs=1, value_clip=0.1), "value_clip=0.1 has no effect"),
        (lambda: Group(clip=0.1), "clip=0.1 has no effect where every sample is learned from once"),
        (lambda: Group(samples=1), "samples must be a whole number of at least 2"),
        (lambda: PPO(epochs=0), "epochs"),
        (lambda: RAFT(best_of=0), "best_of"),
        (lambda: ReST(thresholds=(0.9, 0.7)), "thresholds must rise"),
        (lambda: ReST(scale="rank"), "scale"),
        (lambda: RSO(accepted=7), "accepted"),
        (lambda: RSO(accepted=128), "accepted"),
        (lambda: RSO(source="sft"), "source"),
        (lambda: RSO(accepted=6, pairing="tournament"), "accepted must be 2, 4, 8, … with pairing='tournament'"),
        (lambda: RSO(loss="robust"), "robust needs label_smoothing"),
        (lambda: RSO("sft-sample-rank", candidates=128), "candidates=128 has no effect"),
        (lambda: RSO("direct", temperature=0.7), "temperature=0.7 has no effect with the source direct"),
        (lambda: RSO("direct", beta=0.1, gamma=0.1), "beta=0.1 has no effect with the source direct"),
        (lambda: ReST(thresholds=(0.0, 1.0)), "thresholds must be below 1"),
        (lambda: Demonstrations(torch.ones(2), torch.zeros(2), 0.0), "demonstrations' beta"),
        (lambda: Online(rounds=10, labels=5), "labels"),
        (lambda: RewardModel(prior=-1.0), "prior"),
    ],
)
def test_settings_that_cannot_work_are_refused_when_they_are_made(make, message):
    with pytest.raises(LabError, match=message):
        make()


def test_missing_data_is_refused_by_name():
    world, training = bandit.lecture(), Training(progress=False, steps=2)
    with pytest.raises(LabError, match="direct"):
        rso(world.reference.copy(), world.reference, world.reward, world.prompts, RSO("direct"), training)
    with pytest.raises(LabError, match="must be equal"):
        sft(world.reference.copy(), world.prompts, world.responses[:1], training)
    with pytest.raises(LabError, match="nothing to train"):
        sft(world.reference, world.prompts, world.responses, training)

    def nan_reward(prompts, responses):
        return torch.full(responses.shape[:2], float("nan"), dtype=torch.float64)

    with pytest.raises(LabError, match="nan"):
        make_pairs(world.reference, nan_reward, world.prompts, RSO())
