"""The pairwise ranker: what it sees, antisymmetry, what it learns, its reward, its folder."""

import json

import pytest
import torch
from tiny_models import ARCHITECTURES, one_thread, tiny, tiny_tokenizer, variable_length_batch  # noqa: F401

from rlhf_lab.algorithms.ranker import Ranker, both_orders_loss, order_loss, ranker
from rlhf_lab.algorithms.rso import RSO, make_pairs
from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.policies.base import Reward
from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.policies.tabular import TabularPolicy
from rlhf_lab.policies.tree_transformer import TreeTransformerPolicy
from rlhf_lab.response_tree import ResponseTree
from rlhf_lab.rewards import ranker as room
from rlhf_lab.rewards.ranker import BaselineReward, PairwiseRanker
from rlhf_lab.training import Loop, Training
from rlhf_lab.worlds import token_tree


def awake(model: PairwiseRanker) -> PairwiseRanker:
    """A new ranker finds all responses equal, and every test would pass; give it numbers."""
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        model.head.weight.copy_(torch.randn(model.head.weight.shape, generator=g))
        model.head.bias.fill_(0.25)
        model.which.copy_(torch.randn(model.which.shape, generator=g))
    return model


def two_sides(seed: int = 1):
    """Prompts of different lengths (3, P) and two sides of responses of different lengths (3, 4, T)."""
    prompts, first = variable_length_batch(seed=seed)
    return prompts, first, variable_length_batch(seed=seed + 1)[1]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_score_is_that_of_one_plain_row_with_both_responses_in_it(kind):
    """Row by row without padding, through the body's own embeddings, an explicit causal mask and explicit positions:
    y₂ starts where y₁ does."""
    model = awake(PairwiseRanker(tiny(kind)))
    prompts, first, second = two_sides()
    expected = torch.zeros(3, 4)
    body = model.body.eval()
    for i, x in enumerate(prompts.tolist()):
        for j in range(4):
            one, two = first.tolist()[i][j], second.tolist()[i][j]
            added = torch.cat(
                [torch.zeros(len(x), 32), model.which[:1].repeat(len(one), 1), model.which[1:].repeat(len(two), 1)]
            )
            embedded = body.get_input_embeddings()(torch.tensor([x + one + two])) + added
            position = [*range(len(x)), *range(len(x), len(x) + len(one)), *range(len(x), len(x) + len(two))]
            causal = torch.ones(1, 1, len(position), len(position), dtype=torch.bool).tril()
            states = body(inputs_embeds=embedded, position_ids=torch.tensor([position]), attention_mask=causal)
            expected[i, j] = model.head(states.last_hidden_state[0, -1]).squeeze()
    found = model.logits(prompts, first, second)
    assert found.shape == (3, 4) and found.dtype == torch.float32
    assert (found - expected).abs().max() < 1e-4
    wrt = list(model.parameters())
    ours = torch.autograd.grad(found[:, 0].sum() - found[:, 1].sum(), wrt, allow_unused=True)
    theirs = torch.autograd.grad(expected[:, 0].sum() - expected[:, 1].sum(), wrt, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a - b).abs().max() < 2e-3 * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_second_response_is_read_beside_the_first(kind):
    """Not a difference of two scores: how much y₂ → y₂′ changes the logit depends on y₁."""
    model = awake(PairwiseRanker(tiny(kind)))
    prompts = Tokens.from_lists([[1, 2]])
    y = [Tokens.from_lists([[[n, n + 1]]]) for n in (3, 9, 20, 30)]
    with torch.no_grad():
        change = [model(prompts, one, y[2]) - model(prompts, one, y[3]) for one in y[:2]]
    assert (change[0] - change[1]).abs() > 1e-2


def test_both_orders_make_it_antisymmetric_to_the_bit_and_blocks_change_nothing(monkeypatch):
    model = awake(PairwiseRanker(tiny("gpt2")))
    prompts, first, second = two_sides()
    with torch.no_grad():
        forth, back = model(prompts, first, second), model(prompts, second, first)
        assert torch.equal(forth, -back) and forth.abs().max() > 0.1
        assert not model(prompts, first, first).any()
        monkeypatch.setattr(room, "MAX_TOKENS_PER_PASS", 40)
        assert (model(prompts, first, second) - forth).abs().max() < 1e-5


def test_a_random_order_is_one_of_the_two_each_about_half_the_time():
    model = awake(PairwiseRanker(tiny("gpt2"), order="random"))
    prompts, first, second = two_sides()
    with torch.no_grad():
        forth, back = model.logits(prompts, first, second), -model.logits(prompts, second, first)
        g = torch.Generator().manual_seed(0)
        drawn = torch.stack([model(prompts, first, second, g) for _ in range(40)])
    is_forth, is_back = (drawn - forth).abs() < 1e-5, (drawn - back).abs() < 1e-5
    assert (is_forth | is_back).all()
    # 480 coins: 240 ± 11.
    assert abs(int((is_forth & ~is_back).sum()) - 240) < 4.5 * 11
    with pytest.raises(LabError, match="needs a generator"):
        model(prompts, first, second)


def small_world():
    """Nine responses to each of two prompts, equally likely, and all pairs of them (3 tokens, 2 places)."""
    tree = ResponseTree(3, 2)
    return token_tree.random(3, 2, 2, seed=0, reference=TabularPolicy.uniform(tree, 2))


def every_pair(world):
    """Both sides of all ordered pairs of responses, (X, K², L)."""
    y, number = world.responses, world.tree.num_responses
    i, j = (index.flatten() for index in torch.meshgrid(*[torch.arange(number)] * 2, indexing="ij"))
    return Tokens(y.ids[:, i], y.mask[:, i]), Tokens(y.ids[:, j], y.mask[:, j])


def test_it_learns_the_log_odds_of_a_bradley_terry_labeller():
    """All pairs of a small tree at their population weights: logit ρ must come to r*(y₁) − r*(y₂), whose root mean
    square is √2. A ranker that knew nothing would be off by all of it; 0.25 is less than a fifth."""
    world = small_world()
    model = PairwiseRanker(TreeTransformerPolicy(world.tree, 2, width=32))
    pairs = world.all_pairs()
    settings = Training(steps=150, batch_size=len(pairs), learning_rate=5e-3, warmup=10, progress=False)
    history = ranker(model, pairs, Ranker("both", prior=0.0), settings)
    gold = world.rewards()
    true = (gold[:, :, None] - gold[:, None, :]).flatten(1)
    with torch.no_grad():
        found = model(world.prompts, *every_pair(world))
    assert true.square().mean().sqrt() == pytest.approx(2**0.5)
    assert (found - true).square().mean().sqrt() < 0.25
    assert history[-1]["likelihood_loss"] < history[0]["likelihood_loss"] == pytest.approx(0.6931, abs=1e-4)
    # So the reward is r* up to a number of each prompt, whatever baseline was drawn.
    for seed in (0, 1):
        reward = BaselineReward(model, world.reference, seed)
        off = reward(world.prompts, world.responses) - gold
        assert off.std(-1).max() < 0.3


def test_the_loss_is_the_likelihood_of_the_label_in_the_order_shown():
    model = awake(PairwiseRanker(tiny("gpt2")))
    prompts, first, second = two_sides()
    one, two = (Tokens(side.ids[:, :1], side.mask[:, :1]) for side in (first, second))
    length = max(one.shape[-1], two.shape[-1])
    one, two = one.pad_to(length), two.pad_to(length)
    pairs = Pairs(prompts, Tokens(torch.cat([one.ids, two.ids], 1), torch.cat([one.mask, two.mask], 1)))
    forth, back = model.logits(prompts, one, two)[:, 0], model.logits(prompts, two, one)[:, 0]
    chosen_first = torch.tensor([True, False, True])
    loss, watched = order_loss(model, pairs, chosen_first, prior=0.1)
    shown = torch.where(chosen_first, forth, back)
    right = torch.stack([forth[0], -back[1], forth[2]])
    expected = -torch.sigmoid(right).log().mean()
    assert torch.allclose(loss, expected + 0.1 * shown.square().mean(), atol=1e-5)
    assert torch.allclose(watched["likelihood_loss"], expected, atol=1e-5)
    both, _ = both_orders_loss(model, pairs, prior=0.0)
    assert torch.allclose(both, -(torch.sigmoid(forth).log() + torch.sigmoid(-back).log()).mean() / 2, atol=1e-5)


def test_one_order_only_would_teach_that_the_first_wins_and_random_orders_do_not():
    """Labels that are coins: nothing can be learned but the order, whose mean logit should be 0."""
    world = small_world()
    pairs = world.preferences(300, torch.Generator().manual_seed(0), noise=0.5)
    settings = Training(steps=40, batch_size=100, learning_rate=3e-3, progress=False, log_every=1)
    sides = every_pair(world)

    def new():
        return PairwiseRanker(TreeTransformerPolicy(world.tree, 2, layers=1, width=16))

    def mean_logit(model):
        with torch.no_grad():
            return model.logits(world.prompts, *sides).mean().item()

    model, same, one_order = new(), new(), new()
    history = ranker(model, pairs, Ranker("random"), settings)
    assert ranker(same, pairs, Ranker("random"), settings) == history
    with Loop("one order", one_order, settings) as loop:
        for _ in loop:
            loop.update(order_loss(one_order, pairs, torch.ones(300, dtype=torch.bool), 0.0)[0])
    assert abs(mean_logit(model)) < 0.3 and mean_logit(one_order) > 0.8


def test_a_baseline_is_drawn_once_a_prompt_and_kept():
    world = small_world()
    model = awake(PairwiseRanker(TreeTransformerPolicy(world.tree, 2, width=32)))
    reward = BaselineReward(model, world.reference)
    prompts = world.prompts[torch.tensor([0, 1, 0])]
    base = reward.baselines(prompts).tolist()
    assert base[0] == base[2] and reward.baselines(world.prompts).tolist() == base[:2]
    scores = reward(world.prompts, world.responses)
    assert scores.shape == (2, 9) and not scores.requires_grad
    repeated = Tokens.from_lists([[row[0]] * 9 for row in base[:2]])
    with torch.no_grad():
        assert torch.allclose(scores, model(world.prompts, world.responses, repeated), atol=1e-6)
    again = BaselineReward(model, world.reference)
    assert torch.equal(again(world.prompts, world.responses), scores)
    drawn = {str(BaselineReward(model, world.reference, seed).baselines(world.prompts).tolist()) for seed in range(8)}
    assert len(drawn) > 3
    model.order = "random"
    random = BaselineReward(model, world.reference)
    assert torch.equal(random(world.prompts, world.responses), random(world.prompts, world.responses))


def test_rso_takes_it_as_its_reward():
    """A reward under the (B, G) rule: what RSO accepts and labels by. Hard labels are its own preferences."""
    world = small_world()
    reward = BaselineReward(awake(PairwiseRanker(TreeTransformerPolicy(world.tree, 2, width=32))), world.reference)
    assert isinstance(reward, Reward)
    settings = RSO(candidates=16, accepted=4, labels="hard")
    pairs, dropped = make_pairs(world.reference, reward, world.prompts, settings)
    assert len(pairs) + dropped == 4
    chosen, rejected = reward(pairs.prompts, pairs.responses).unbind(1)
    assert (chosen > rejected).all()


def test_it_comes_back_from_its_folder_with_the_same_numbers(tmp_path):
    tokenizer = tiny_tokenizer(["the cat sat on the mat"], vocab=300)
    model = awake(PairwiseRanker(tiny("gpt_neox", vocab=300), order="random", tokenizer=tokenizer))
    model.save_pretrained(tmp_path / "ranker")
    prompts, first, second = two_sides()
    back = PairwiseRanker.from_pretrained(tmp_path / "ranker", policy_tokenizer=tokenizer)
    assert torch.equal(back.logits(prompts, first, second), model.eval().logits(prompts, first, second))
    assert back.order == "random" and back.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert all(p.suffix in (".json", ".safetensors", ".jinja") for p in (tmp_path / "ranker").iterdir())
    assert json.loads((tmp_path / "ranker" / "reward.json").read_text())["kind"] == "pairwise ranker"


def test_a_policy_may_be_given_in_place_of_its_model_and_shares_no_weight():
    policy = LanguageModelPolicy(tiny("gpt2"), end_token=0, max_new_tokens=6)
    model = PairwiseRanker(policy)
    prompts, first, second = two_sides()
    assert not model(prompts, first, second).any()  # a head of zeros
    with torch.no_grad():
        model.body.wte.weight.zero_()
    assert policy.model.transformer.wte.weight.any()


def test_what_cannot_be_ranked_is_named():
    model = PairwiseRanker(tiny("gpt2"))
    x, y = Tokens.from_lists([[1]]), Tokens.from_lists([[[1], [2]]])
    with pytest.raises(LabError, match="Response 1 of prompt 0 is empty"):
        model(x, y, Tokens.from_lists([[[1], []]]))
    with pytest.raises(LabError, match="The two sides have different numbers"):
        model(x, y, Tokens.from_lists([[[1]]]))
    with pytest.raises(LabError, match="49 tokens"):
        model(x, y, Tokens.from_lists([[[1], [2] * 48]]))
    with pytest.raises(LabError, match="order must be"):
        PairwiseRanker(tiny("gpt2"), order="first")  # type: ignore[arg-type]
    with pytest.raises(LabError, match="orders must be"):
        Ranker("one")  # type: ignore[arg-type]
    with pytest.raises(LabError, match="prior"):
        Ranker(prior=-1.0)


def test_dropout_is_off_in_training_mode_too():
    model = awake(PairwiseRanker(tiny("gpt2"))).train()
    sides = two_sides()
    first = model.logits(*sides)
    assert torch.equal(first, model.logits(*sides)) and torch.equal(first, model.eval().logits(*sides))


def test_marks_are_a_function_of_the_seed():
    first, again, other = (PairwiseRanker(tiny("gpt2"), seed=seed).which for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_baselines_are_drawn_once_for_each_new_prompt_at_the_temperature_asked_for():
    world = small_world()
    model = PairwiseRanker(TreeTransformerPolicy(world.tree, 2, width=16, layers=1))
    calls = []

    class Asked:
        device = world.reference.device

        def sample(self, prompts, number, generator, temperature):
            calls.append((prompts.tolist(), number, temperature))
            return world.reference.sample(prompts, number, generator, temperature)

    reward = BaselineReward(model, Asked(), temperature=0.3)
    reward.baselines(world.prompts[:1])
    reward.baselines(world.prompts[torch.tensor([1, 0, 1])])
    assert calls == [(world.prompts[:1].tolist(), 1, 0.3), (world.prompts[1:].tolist(), 1, 0.3)]


def test_each_prompt_is_ranked_against_its_own_baseline():
    """Scores of two prompts with two responses each, one at a time; the response is the first side. Each prompt's
    baseline is asked for alone, so that it cannot be another prompt's; of three seeds, some draw two that differ."""
    world = small_world()
    model = awake(PairwiseRanker(TreeTransformerPolicy(world.tree, 2, width=16, layers=1)))
    responses = Tokens(world.responses.ids[:, :2], world.responses.mask[:, :2])
    apart = set()
    for order in ("both", "random"):
        model.order = order
        for seed in range(3):
            reward = BaselineReward(model, world.reference, seed)
            found, base = reward(world.prompts, responses), [reward.baselines(world.prompts[x]) for x in range(2)]
            apart.add(base[0].tolist() != base[1].tolist())
            again = BaselineReward(model, world.reference, seed)(world.prompts, responses)
            assert torch.equal(found, again)
            for row in range(2):
                for column in range(2):
                    x, y = world.prompts[row], responses[row].take(torch.tensor([[column]]))
                    with torch.no_grad():
                        forth, back = model.logits(x, y, base[row]).item(), -model.logits(x, base[row], y).item()
                    score = found[row, column].item()
                    if order == "both":
                        assert score == pytest.approx((forth + back) / 2, abs=1e-5)
                    else:
                        assert min(abs(score - forth), abs(score - back)) < 1e-5
    assert True in apart
