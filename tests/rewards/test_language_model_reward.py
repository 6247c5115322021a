"""Reward models and critics on a language model's body, against plain rows computed one at a time."""

import pytest
import torch
from tiny_models import ARCHITECTURES, one_thread, tiny, variable_length_batch  # noqa: F401

from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.policies.transformer import shared_prefix_forward
from rlhf_lab.rewards.language_model import LanguageModelCritic, LanguageModelReward
from rlhf_lab.rewards.text import TextReward


def random_head(module):
    """The head starts at zero, where every test would pass; give it numbers."""
    with torch.no_grad():
        module.head.weight.copy_(torch.randn(module.head.weight.shape, generator=torch.Generator().manual_seed(5)))
        module.head.bias.fill_(0.25)
    return module


def plain_states(module, prompt: list[int], response: list[int]):
    """(P + T, H): the body's states of one sequence without padding."""
    return module.body.eval()(torch.tensor([prompt + response])).last_hidden_state[0]


@pytest.mark.parametrize("max_row", [4096, 9])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_score_is_read_at_the_response_s_last_token(kind, max_row, monkeypatch):
    monkeypatch.setattr(shared_prefix_forward, "MAX_PADDED_ROW", max_row)
    module = random_head(LanguageModelReward(tiny(kind)))
    prompts, responses = variable_length_batch()
    scores = module(prompts, responses)
    assert scores.shape == (3, 4) and scores.dtype == torch.float32
    expected = [
        [module.head(plain_states(module, x, y)[-1]).squeeze() for y in ys]
        for x, ys in zip(prompts.tolist(), responses.tolist(), strict=True)
    ]
    expected = torch.stack([torch.stack(row) for row in expected])
    assert (scores - expected).abs().max() < 1e-4
    wrt = list(module.parameters())
    ours = torch.autograd.grad(scores[:, 0].sum() - scores[:, 1].sum(), wrt, allow_unused=True)
    theirs = torch.autograd.grad(expected[:, 0].sum() - expected[:, 1].sum(), wrt, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a - b).abs().max() < 2e-3 * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("kind", [LanguageModelReward, LanguageModelCritic])
def test_the_body_is_copied_unless_it_is_to_be_taken(kind):
    """A second body costs its memory again, so `copied=False` must hold the very weights that it was given."""
    model = tiny("llama")
    given = {weight.data_ptr() for weight in shared_prefix_forward.body_of(model).parameters()}
    taken, made = ({w.data_ptr() for w in kind(model, copied=c).body.parameters()} for c in (False, True))
    assert taken == given and not made & given


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_value_stands_before_its_token_is_chosen(kind):
    """V_t is the head on the state of the token before y_t, so changing y_t changes no value up to t."""
    module = random_head(LanguageModelCritic(tiny(kind)))
    prompts, responses = variable_length_batch()
    values = module(prompts, responses)
    assert values.shape == responses.shape and not values[~responses.mask].any()
    for i, (x, ys) in enumerate(zip(prompts.tolist(), responses.tolist(), strict=True)):
        for j, y in enumerate(ys):
            states = plain_states(module, x, y)[len(x) - 1 : -1]
            assert (values[i, j, : len(y)] - module.head(states).squeeze(-1)).abs().max() < 1e-4
    other = Tokens((responses.ids + 1) % 37, responses.mask)
    assert torch.allclose(module(prompts, other)[..., 0], values[..., 0], atol=1e-5)


def test_a_critic_starts_from_the_reward_model_and_shares_no_weight_with_it():
    policy = LanguageModelPolicy(tiny("gpt2"), end_token=0, max_new_tokens=6)
    reward = policy.new_reward_model()
    prompts, responses = variable_length_batch()
    assert not reward(prompts, responses).any()  # a head of zeros
    random_head(reward)
    with torch.no_grad():
        reward.body.wte.weight.mul_(1.5)
    critic = policy.new_critic(reward)
    # The value "after" the last token is the score: ask for one place more.
    longer = Tokens.from_lists([[[*y, 0] for y in ys] for ys in responses.tolist()])
    after = critic(prompts, longer).gather(-1, responses.lengths[..., None]).squeeze(-1)
    assert torch.allclose(after, reward(prompts, responses), atol=1e-5)
    before = reward(prompts, responses).detach()
    with torch.no_grad():
        for p in critic.parameters():
            p.zero_()
    assert torch.equal(before, reward(prompts, responses))
    fresh = policy.new_critic()
    assert torch.equal(fresh.body.wte.weight, policy.model.transformer.wte.weight)


def test_a_reward_model_refuses_an_empty_response_and_a_row_too_long():
    reward = LanguageModelReward(tiny("gpt2"))
    with pytest.raises(LabError, match="Response 1 of prompt 0 is empty"):
        reward(Tokens.from_lists([[1]]), Tokens.from_lists([[[1], []]]))
    with pytest.raises(LabError, match="Prompt 0 with its response 1 has 49 tokens"):
        reward(Tokens.from_lists([[1]]), Tokens.from_lists([[[1], [2] * 48]]))


def test_a_full_context_is_still_scored():
    """48 tokens fill the context of 48; the place that stands for "what would come next" must not overflow it."""
    reward = random_head(LanguageModelReward(tiny("gpt2")))
    score = reward(Tokens.from_lists([[1, 2]]), Tokens.from_lists([[[3] * 46, [4]]]))
    assert torch.allclose(score[0, 0], reward.head(plain_states(reward, [1, 2], [3] * 46)[-1]).squeeze(), atol=1e-4)


class Letters:
    """A tokenizer of one letter an id, 0 its end token."""

    def batch_decode(self, rows, skip_special_tokens):
        return ["".join(chr(96 + i) for i in row if i or not skip_special_tokens) for row in rows]


def test_a_text_reward_scores_decoded_responses_beside_their_prompts():
    prompts, responses = (
        Tokens.from_lists([[1], [2, 2]]),
        Tokens.from_lists([[[3, 0], [3, 3, 0]], [[4], [1, 2, 0]]]),
    )
    seen = []

    def length(asked, answered):
        seen.extend(zip(asked, answered, strict=True))
        return [len(y) for y in answered]

    assert TextReward(length, Letters())(prompts, responses).tolist() == [[1, 2], [1, 2]]
    assert seen == [("a", "c"), ("a", "cc"), ("bb", "d"), ("bb", "ab")]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1.0], "1 score for 2"),
        ([1.0, 2.0, 3.0], "3 scores for 2"),
        ([0.0, float("nan")], "nan for response 1 of prompt 0"),
        ([0.0, float("-inf")], "-inf for response 1 of prompt 0"),
    ],
)
def test_a_text_reward_refuses_scores_it_cannot_use(scores, message):
    reward = TextReward(lambda asked, answered: scores, Letters())
    with pytest.raises(LabError, match=message):
        reward(Tokens.from_lists([[1]]), Tokens.from_lists([[[1], [2]]]))


@pytest.mark.parametrize("kind", [LanguageModelReward, LanguageModelCritic])
def test_scores_and_values_of_a_model_in_half_precision_are_float32(kind):
    module = random_head(kind(tiny("gpt2"))).to(torch.bfloat16)
    assert module(*variable_length_batch()).dtype == torch.float32


@pytest.mark.parametrize("kind", [LanguageModelReward, LanguageModelCritic])
def test_all_weights_are_trained_also_where_the_model_it_starts_from_is_frozen(kind):
    start = tiny("gpt2").requires_grad_(False)
    assert all(p.requires_grad for p in kind(start).parameters())
    assert not any(p.requires_grad for p in start.parameters())


@pytest.mark.parametrize("kind", [LanguageModelReward, LanguageModelCritic])
def test_dropout_is_off_in_training_mode_too(kind):
    module = random_head(kind(tiny("gpt2"))).train()
    prompts, responses = variable_length_batch()
    first = module(prompts, responses)
    assert torch.equal(first, module(prompts, responses)) and torch.equal(first, module.eval()(prompts, responses))
