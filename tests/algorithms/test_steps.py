"""Steps of each method, written out a second time in plain loops: rows, weights, clips, orders and rates included.

The second version has no loop of the lab's in it: it draws what the step's generator draws (first the samples, then the
order of the rows), computes each term token by token from the paper's formula, and hands the sum to torch's own Adam.
Afterwards both sets of weights must be equal to rounding.
"""

import math

import pytest
import torch

from rlhf_lab.algorithms.dpo import DPO, dpo
from rlhf_lab.algorithms.grpo_rloo import Group, group, group_loss
from rlhf_lab.algorithms.on_policy import check_scores
from rlhf_lab.algorithms.ppo import PPO, clipped_loss, gae, ppo, token_rewards
from rlhf_lab.algorithms.ranker import Ranker, order_loss, ranker
from rlhf_lab.algorithms.reward_model import RewardModel, reward_model
from rlhf_lab.algorithms.sft import sft
from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.training import Training, rows_at, seeded
from rlhf_lab.worlds import token_tree

WORLD = token_tree.random(3, 3, 5, seed=1, has_end=True, reward="sequence")
SEED, RATE = 4, 0.2


def moved(module, seed=7, scale=0.6):
    """`module` with every weight pushed by normal numbers: nothing is zero, and nothing equals the reference."""
    g = seeded(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(scale * torch.randn(weight.shape, dtype=weight.dtype, generator=g))
    return module


def training(steps=2, **changes):
    settings = {"batch_size": 3, "learning_rate": RATE, "schedule": "constant", "seed": SEED, "log_every": 1}
    return Training(steps=steps, progress=False, **(settings | changes))


def assert_same(one, other):
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def step(adam, loss):
    adam.zero_grad()
    loss.backward()
    adam.step()


def adam_of(*modules):
    return torch.optim.Adam([p for m in modules for p in m.parameters()], lr=RATE, eps=1e-8)


def standardised(rows):
    """Rows of numbers, lists of unequal length, to mean 0 and variance 1 over all of them."""
    every = [value for row in rows for value in row]
    mean = sum(every) / len(every)
    spread = math.sqrt(sum((value - mean) ** 2 for value in every) / len(every))
    return [[(value - mean) / spread for value in row] for row in rows]


@pytest.mark.parametrize("white", [True, False])
def test_two_rounds_of_ppo_are_the_papers_pseudo_code_token_by_token(white):
    """Huang et al. 2024: rewards −β(log π − log π_ref) and the score at the last token; δ and A by their recursions;
    the surrogate and the critic's loss clipped, each a mean over the minibatch's tokens."""
    settings = PPO(
        beta=0.3, samples=2, epochs=3, minibatches=2, clip=0.1, value_clip=0.05, value_coefficient=0.5,
        discount=0.9, gae_lambda=0.8, temperature=0.7, top_k=2, whiten=white,
    )  # fmt: skip
    policy = moved(WORLD.reference.copy())
    critic = moved(policy.new_critic(), 8)
    twin, values = policy.copy(), moved(policy.new_critic(), 8)
    history = ppo(policy, WORLD.reference, WORLD.reward, critic, WORLD.prompts, settings, training())

    adam, clipped = adam_of(twin, values), 0
    for round_ in range(2):
        generator = seeded(SEED, 0, round_)
        x = WORLD.prompts[rows_at(round_, 5, 3, SEED)]
        y = twin.sample(x, 2, generator, 0.7, top_k=2)
        order = torch.randperm(3, generator=generator)
        with torch.no_grad():
            old, ref = (p.token_log_probs(x, y, 0.7) for p in (twin, WORLD.reference))
            old_values, score = values(x, y), WORLD.reward(x, y)
        lengths = y.mask.sum(-1).flatten().tolist()
        places = [(b, g) for b in range(3) for g in range(2)]
        advantages, returns = [], []
        for (b, g), length in zip(places, lengths, strict=True):
            after, behind, row = 0.0, 0.0, []
            for t in reversed(range(length)):
                reward = -0.3 * float(old[b, g, t] - ref[b, g, t]) + (float(score[b, g]) if t == length - 1 else 0.0)
                delta = reward + 0.9 * behind - float(old_values[b, g, t])
                after = delta + 0.9 * 0.8 * after
                behind = float(old_values[b, g, t])
                row.insert(0, after)
            advantages.append(row)
            returns.append([a + float(old_values[b, g, t]) for t, a in enumerate(row)])
        if white:
            advantages = standardised(advantages)
        for _ in range(3):
            for rows in order.chunk(2):
                new, now = twin.token_log_probs(x, y, 0.7), values(x, y)
                surrogate, miss, count, clipped = 0.0, 0.0, 0, 0
                for place, (b, g) in enumerate(places):
                    for t in range(lengths[place]) if b in rows.tolist() else []:
                        a, target = advantages[place][t], returns[place][t]
                        ratio = (new[b, g, t] - old[b, g, t]).exp()
                        inside = ratio.clamp(0.9, 1.1)
                        surrogate = surrogate + min(ratio * a, inside * a)
                        near = old_values[b, g, t] + (now[b, g, t] - old_values[b, g, t]).clamp(-0.05, 0.05)
                        miss = miss + max((now[b, g, t] - target) ** 2, (near - target) ** 2) / 2
                        clipped, count = clipped + int(abs(ratio.item() - 1) > 0.1), count + 1
                step(adam, (-surrogate + 0.5 * miss) / count)
        kl = float((old - ref).sum(-1).mean())
        shown = history[round_]
        assert shown["loss"] == pytest.approx((-surrogate + 0.5 * miss).item() / count)
        assert shown["value_loss"] == pytest.approx(miss.item() / count)
        assert shown["kl"] == pytest.approx(kl) and shown["score"] == pytest.approx(float(score.mean()))
        assert shown["objective"] == pytest.approx(float(score.mean()) - 0.3 * kl)
        assert shown["clip_fraction"] == pytest.approx(clipped / count)
    assert clipped > 0, "in the last pass some ratios must lie beyond the clip"
    assert_same(policy, twin)
    assert_same(critic, values)


def test_ppo_s_four_corners_of_the_clip_by_hand():
    """One prompt with two responses of two tokens. The clip is 0.2: ratios 1.5 and 0.5 at A = 1 gain 1.2 and 0.5,
    at A = −1 they gain −1.5 and −0.8. The mean over four tokens is −0.6/4, so the surrogate's loss is 0.15; all four
    lie beyond the clip.

    Values: old ones 0, new ones 1, value clip 0.25, returns 2 and −2 a response. At 2 the errors are 1 and 1.75, so
    the larger square is 3.0625; at −2 they are 3 and 2.25, so it is 9. Half of the mean is (3.0625 + 9)/4 = 3.015625.
    """
    x, y = WORLD.prompts[0], Tokens.full(torch.tensor([[[0, 2], [1, 2]]]))
    policy = WORLD.reference
    new = policy.token_log_probs(x, y).detach()
    old = new - torch.tensor([[[1.5, 0.5], [1.5, 0.5]]], dtype=torch.float64).log()
    advantage = torch.tensor([[[1.0, 1.0], [-1.0, -1.0]]], dtype=torch.float64)
    returns = torch.tensor([[[2.0, 2.0], [-2.0, -2.0]]], dtype=torch.float64)

    def critic(prompts, responses):
        return torch.ones_like(new)

    settings = PPO(value_clip=0.25, value_coefficient=0.1)
    loss, seen = clipped_loss(policy, critic, x, y, old, torch.zeros_like(new), advantage, returns, settings)
    assert seen["value_loss"].item() == pytest.approx(3.015625)
    assert loss.item() == pytest.approx(0.15 + 0.1 * 3.015625)
    assert seen["clip_fraction"].item() == 1.0


def test_ppo_in_parts_counts_a_prompt_by_the_tokens_of_its_responses():
    """The loss is a mean over tokens. Responses have one to three tokens, so prompts do not count alike."""
    ends = []
    for parts in (1, 3):
        policy = moved(WORLD.reference.copy())
        critic = policy.new_critic()
        settings = PPO(samples=2, epochs=2)
        ppo(policy, WORLD.reference, WORLD.reward, critic, WORLD.prompts, settings, training(accumulate=parts))
        ends.append(policy)
    assert_same(*ends)


def test_what_stands_beside_a_response_changes_neither_rewards_nor_advantages():
    """Numbers in the padding are put there: outputs are 0 there and the same elsewhere."""
    mask = torch.arange(4) < torch.tensor([[2, 4]]).unsqueeze(-1)
    rewards, values, ref = torch.randn(3, 1, 2, 4, dtype=torch.float64, generator=seeded(3))
    noisy = torch.where(mask, 0.0, 9.0)
    score = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    clean = token_rewards(score, rewards * mask, ref * mask, mask, 0.5)
    assert torch.equal(token_rewards(score, rewards * mask + noisy, ref * mask, mask, 0.5), clean)
    assert (clean[~mask] == 0).all()
    for one, other in zip(
        gae(rewards * mask, values * mask, mask, 0.9, 0.8),
        gae(rewards * mask + noisy, values * mask - noisy, mask, 0.9, 0.8),
        strict=True,
    ):
        assert torch.equal(one, other) and (one[~mask] == 0).all()


GROUPS = {
    "rloo": Group("rloo", 0.3, 3, epochs=2, minibatches=2, clip=0.1, temperature=0.7, top_k=2),
    "rloo by std": Group("rloo", 0.3, 3, divide_by_std=True, temperature=0.7),
    "rloo, minibatches": Group("rloo", 0.3, 3, "k2", minibatches=3, clip=0.1),
    "grpo": Group("grpo", 0.3, 3, epochs=3, minibatches=2, clip=0.1, temperature=0.7),
    "grpo by sum": Group("grpo", 0.3, 3, "reward", False, False, epochs=2, clip=0.1, temperature=0.7),
    "grpo k2": Group("grpo", 0.3, 3, "k2", epochs=2, clip=0.1),
}


def by_hand(settings, x, y, score, ref, old, new, rows):
    """Minus the objective's estimate of some rows: Ahmadian et al. 2024, section 3; Shao et al. 2024, equation 3.

    A group whose scores are all equal says nothing: its advantages are 0."""
    number, beta, total = settings.samples, settings.beta, 0.0
    for b in rows:
        signal = score[b].tolist()
        if settings.penalty == "reward" or (settings.penalty is None and settings.kind == "rloo"):
            signal = [s - beta * float((old[b, g] - ref[b, g]).sum()) for g, s in enumerate(signal)]
        mean = sum(signal) / number
        spread = math.sqrt(sum((s - mean) ** 2 for s in signal) / number)
        for g in range(number):
            if settings.kind == "rloo":
                a = signal[g] - (sum(signal) - signal[g]) / (number - 1)
            else:
                a = signal[g] - mean
            if settings.divide_by_std or (settings.divide_by_std is None and settings.kind == "grpo"):
                a = a / spread if max(signal) - min(signal) > 1e-9 else 0.0
            length = int(y.mask[b, g].sum())
            k = new[b, g, :length] - ref[b, g, :length]
            ratio = (new[b, g, :length] - old[b, g, :length]).exp()
            ratios = [ratio.prod()] if settings.kind == "rloo" else list(ratio)
            gain = sum(min(r * a, r.clamp(1 - settings.clip, 1 + settings.clip) * a) for r in ratios)
            if settings.penalty == "k2":
                gain = gain - beta * k.sum() ** 2 / 2
            elif settings.penalty is None and settings.kind == "grpo":
                gain = gain - beta * sum((-k[t]).exp() - 1 + k[t] for t in range(length))
            by_length = settings.divide_by_length is not False and settings.kind == "grpo"
            total = total - gain / (length if by_length else 1)
    return total / (len(rows) * number)


@pytest.mark.parametrize("settings", GROUPS.values(), ids=GROUPS.keys())
def test_two_rounds_of_a_group_method_are_its_formula_response_by_response(settings):
    policy = moved(WORLD.reference.copy())
    twin = policy.copy()
    history = group(policy, WORLD.reference, WORLD.reward, WORLD.prompts, settings, training())
    adam = adam_of(twin)
    for round_ in range(2):
        generator = seeded(SEED, 0, round_)
        x = WORLD.prompts[rows_at(round_, 5, 3, SEED)]
        cut = {} if settings.top_k is None else {"top_k": settings.top_k}
        y = twin.sample(x, 3, generator, settings.temperature, **cut)
        with torch.no_grad():
            old, ref = (p.token_log_probs(x, y, settings.temperature) for p in (twin, WORLD.reference))
        score = WORLD.reward(x, y)
        for _ in range(settings.epochs):
            # A single pass over all rows needs no order, and draws none.
            one = settings.epochs == settings.minibatches == 1
            order = torch.arange(3) if one else torch.randperm(3, generator=generator)
            for rows in order.chunk(settings.minibatches):
                new = twin.token_log_probs(x, y, settings.temperature)
                loss = by_hand(settings, x, y, score, ref, old, new, rows.tolist())
                step(adam, loss)
        kl, mean = float((old - ref)[rows].sum(-1).mean()), float(score[rows].mean())
        ratio = (new - old).detach()[rows]
        if settings.kind == "rloo":
            beyond = ((ratio.sum(-1).exp() - 1).abs() > settings.clip).double().mean()
        else:
            beyond = (((ratio.exp() - 1).abs() > settings.clip) & y.mask[rows]).sum(-1) / y.mask[rows].sum(-1)
        shown = history[round_]
        assert shown["loss"] == pytest.approx(loss.item())
        assert shown["kl"] == pytest.approx(kl) and shown["score"] == pytest.approx(mean)
        assert shown["objective"] == pytest.approx(mean - settings.beta * kl)
        assert shown["clip_fraction"] == pytest.approx(float(beyond.mean()))
    assert_same(policy, twin)


def test_the_ratio_in_grpo_is_cut_on_both_sides_by_hand():
    """A = (1, −1) and clip 0.2. Ratios 1.5 and 0.5 a response of two tokens: 1.2 + 0.5 and −1.5 − 0.8, so by sum the
    loss is −(1.7 − 2.3)/2 = 0.3. rloo has the product, 0.75, of the response: 0.75 and −0.8, loss 0.025."""
    x, y = WORLD.prompts[0], Tokens.full(torch.tensor([[[0, 2], [1, 2]]]))
    new = WORLD.reference.token_log_probs(x, y)
    old = new - torch.tensor([1.5, 0.5], dtype=torch.float64).log()
    score = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    settings = Group("grpo", 1e-12, 2, divide_by_std=False, divide_by_length=False)
    assert group_loss(WORLD.reference, x, y, score, new, old, settings)[0].item() == pytest.approx(0.3)
    score = score / 2  # the other response's score taken off: ±1
    settings = Group("rloo", 1e-12, 2)
    assert group_loss(WORLD.reference, x, y, score, new, old, settings)[0].item() == pytest.approx(0.025)


def test_one_score_that_is_not_finite_among_others_is_refused():
    with pytest.raises(LabError, match="not finite at step 3"):
        check_scores(torch.tensor([[0.0, math.nan]]), "rloo", 3)


def weighted_pairs(number=7):
    pairs = WORLD.preferences(number, seeded(2))
    weight = 0.2 + torch.rand(len(pairs), dtype=torch.float64, generator=seeded(5))
    return Pairs(pairs.prompts, pairs.responses, weight)


def test_steps_of_dpo_weigh_each_pair_and_keep_its_reference_beside_it():
    """−log σ(β Δ) of four pairs a step, each with its own log π_ref and its share of the batch's weight."""
    pairs, policy = weighted_pairs(), moved(WORLD.reference.copy())
    twin = policy.copy()
    history = dpo(policy, WORLD.reference, pairs, DPO(beta=0.7), training(3, batch_size=4))
    adam = adam_of(twin)
    for number in range(3):
        loss, right, margins, chosen, rejected = 0.0, 0.0, 0.0, 0.0, 0.0
        rows = rows_at(number, 7, 4, SEED).tolist()
        total = sum(float(pairs.weight[i]) for i in rows)
        for i in rows:
            ratio = twin.log_prob(pairs.prompts[i], pairs.responses[i])[0]
            ratio = ratio - WORLD.reference.log_prob(pairs.prompts[i], pairs.responses[i])[0]
            margin, share = 0.7 * (ratio[0] - ratio[1]), float(pairs.weight[i]) / total
            loss = loss + share * torch.log1p((-margin).exp())
            right += share * (margin.item() > 0)
            margins += share * margin.item()
            chosen, rejected = chosen + share * ratio[0].item(), rejected + share * ratio[1].item()
        shown = history[number]
        assert shown["loss"] == pytest.approx(loss.item()) and shown["accuracy"] == pytest.approx(right)
        assert shown["margin"] == pytest.approx(margins)
        assert shown["chosen_log_ratio"] == pytest.approx(chosen)
        assert shown["rejected_log_ratio"] == pytest.approx(rejected)
        step(adam, loss)
    assert_same(policy, twin)


def test_dpo_on_fresh_pairs_has_the_reference_of_these_pairs():
    """Pairs that are made afresh are made once a step, and log π_ref is theirs."""
    policy, calls = moved(WORLD.reference.copy()), []
    twin = policy.copy()

    def fresh(generator):
        calls.append(WORLD.preferences(4, generator))
        return calls[-1]

    dpo(policy, WORLD.reference, fresh, DPO(beta=0.7), training())
    assert len(calls) == 2
    adam = adam_of(twin)
    for pairs in calls:
        ratio = twin.log_prob(pairs.prompts, pairs.responses)
        ratio = ratio - WORLD.reference.log_prob(pairs.prompts, pairs.responses)
        step(adam, torch.log1p((-0.7 * (ratio[:, 0] - ratio[:, 1])).exp()).mean())
    assert_same(policy, twin)


def test_steps_of_a_reward_model_weigh_each_pair_in_likelihood_and_prior():
    """Σ w [log(1 + e^{r_l − r_w}) + λ (r_w² + r_l²)/2] / Σ w over the batch's pairs."""
    pairs, model = weighted_pairs(), moved(WORLD.reference.new_reward_model())
    twin = moved(WORLD.reference.new_reward_model())
    history = reward_model(model, pairs, RewardModel(prior=0.3), training(3, batch_size=4))
    adam = adam_of(twin)
    for number in range(3):
        rows = rows_at(number, 7, 4, SEED).tolist()
        total, likelihood, size, right = sum(float(pairs.weight[i]) for i in rows), 0.0, 0.0, 0.0
        for i in rows:
            share, (chosen, rejected) = float(pairs.weight[i]) / total, twin(pairs.prompts[i], pairs.responses[i])[0]
            likelihood = likelihood + share * torch.log1p((rejected - chosen).exp())
            size = size + share * (chosen**2 + rejected**2) / 2
            right += share * (chosen.item() > rejected.item())
        assert history[number]["likelihood_loss"] == pytest.approx(likelihood.item())
        assert history[number]["loss"] == pytest.approx((likelihood + 0.3 * size).item())
        assert history[number]["accuracy"] == pytest.approx(right)
        step(adam, likelihood + 0.3 * size)
    assert_same(model, twin)


class PrefersByTable(torch.nn.Module):
    """A ranker of the form that training needs: f(x, y₁, y₂) = s(x, y₁) − 2 s(x, y₂), which no order leaves alone."""

    def __init__(self):
        super().__init__()
        self.scores = moved(WORLD.reference.new_reward_model())

    def logits(self, prompts, first, second):
        return self.scores(prompts, first) - 2 * self.scores(prompts, second)


@pytest.mark.parametrize("orders", ["random", "both"])
def test_steps_of_a_ranker_show_each_pair_in_its_own_order_and_weigh_it(orders):
    """Shown (w, l) the label's log-odds are f, shown (l, w) they are −f; Σ w [log(1 + e^{∓f}) + λ f²]/Σ w."""
    pairs, model, twin = weighted_pairs(), PrefersByTable(), PrefersByTable()
    history = ranker(model, pairs, Ranker(orders, prior=0.3), training(3, batch_size=4))
    adam = adam_of(twin)
    for number in range(3):
        rows = rows_at(number, 7, 4, SEED).tolist()
        coins = (torch.rand(4, generator=seeded(SEED, 0, number)) < 0.5).tolist()
        total, likelihood, size, right, first = sum(float(pairs.weight[i]) for i in rows), 0.0, 0.0, 0.0, 0.0
        for i, coin in zip(rows, coins, strict=True):
            x, y = pairs.prompts[i], pairs.responses[i]
            for chosen_first in (coin,) if orders == "random" else (True, False):
                share = float(pairs.weight[i]) / total / (1 if orders == "random" else 2)
                one, two = (0, 1) if chosen_first else (1, 0)
                shown = twin.logits(
                    x, Tokens(y.ids[:, [one]], y.mask[:, [one]]), Tokens(y.ids[:, [two]], y.mask[:, [two]])
                )
                odds = shown.squeeze() if chosen_first else -shown.squeeze()
                likelihood, size = likelihood + share * torch.log1p((-odds).exp()), size + share * odds**2
                right, first = right + share * (odds.item() > 0), first + (shown.item() > 0) / 4
        seen = history[number]
        assert seen["likelihood_loss"] == pytest.approx(likelihood.item())
        assert seen["loss"] == pytest.approx((likelihood + 0.3 * size).item())
        assert seen["accuracy"] == pytest.approx(right)
        assert seen["first_preferred"] == pytest.approx(first / (1 if orders == "random" else 2))
        step(adam, likelihood + 0.3 * size)
    assert_same(model, twin)


def test_a_pair_shown_in_its_order_by_hand():
    """Scores 1 and 0.25, f(y₁, y₂) = s(y₁) − 2 s(y₂): chosen first 0.5; rejected first 0.25 − 2 = −1.75, so the
    label's log-odds are 1.75."""

    class Two(torch.nn.Module):
        def logits(self, prompts, first, second):
            score = torch.tensor([1.0, 0.25])
            return score[first.ids[..., 0]] - 2 * score[second.ids[..., 0]]

    pair = Pairs(WORLD.prompts[0], Tokens.from_lists([[[0], [1]]]))
    for first, odds in ((True, 0.5), (False, 1.75)):
        loss, _ = order_loss(Two(), pair, torch.tensor([first]), prior=0.0)
        assert loss.item() == pytest.approx(math.log1p(math.exp(-odds)))


def test_steps_of_sft_are_the_mean_negative_log_likelihood_of_the_rows_targets():
    policy, targets = moved(WORLD.reference.copy()), WORLD.reference.sample(WORLD.prompts, 2, seeded(1))
    twin = policy.copy()
    history = sft(policy, WORLD.prompts, targets, training(2))
    adam = adam_of(twin)
    for number in range(2):
        loss = 0.0
        for row in rows_at(number, 5, 3, SEED).tolist():
            loss = loss - twin.log_prob(WORLD.prompts[row], targets[row]).sum() / 6
        assert history[number]["loss"] == pytest.approx(loss.item())
        step(adam, loss)
    assert_same(policy, twin)
