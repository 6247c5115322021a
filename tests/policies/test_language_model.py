"""`LanguageModelPolicy` against the plain way (every prompt + response a padded row of its own, all logits)."""

import contextlib
import itertools
from types import SimpleNamespace

import pytest
import torch
from pretend_gpu import pretended_gpu
from tiny_models import ARCHITECTURES, one_thread, tiny, variable_length_batch  # noqa: F401
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.policies.transformer import shared_prefix_forward
from rlhf_lab.policies.transformer.varlen_attention import KEYWORD


def plain_way(model, prompts: Tokens, responses: Tokens, temperature: float = 1.0, vocab: int | None = None):
    """One row a response, no padding at all, all logits, gathered token by token."""
    model.eval()
    rows = []
    for x, ys in zip(prompts.tolist(), responses.tolist(), strict=True):
        for y in ys:
            logits = model(torch.tensor([x + y])).logits[0, :, :vocab] / temperature
            log_p = logits.log_softmax(-1)
            values = [log_p[len(x) + t - 1, token] for t, token in enumerate(y)]
            rows.append(torch.stack([*values, *[torch.zeros(())] * (responses.shape[-1] - len(y))]))
    return torch.stack(rows).view(responses.shape)


def forward_passes(model) -> list[torch.Size]:
    """A list to which every later forward pass of the body adds the shape of its ids."""
    rows: list[torch.Size] = []
    shared_prefix_forward.body_of(model).register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(args[0].shape), with_kwargs=True
    )
    return rows


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_shared_prefix_log_probs_and_gradients_equal_those_of_separate_rows(kind, attention):
    model = tiny(kind, attention=attention)
    policy = LanguageModelPolicy(model, end_token=0, max_new_tokens=6)
    prompts, responses = variable_length_batch()
    shared = policy.token_log_probs(prompts, responses)
    plain = plain_way(model, prompts, responses)
    assert shared.shape == responses.shape and shared.dtype == torch.float32
    assert (shared - plain).abs().max() < 1e-4
    assert torch.equal(shared[~responses.mask], torch.zeros_like(shared[~responses.mask]))
    # A random weight for each token, so that no error can cancel in the sum.
    weight = torch.randn(shared.shape, generator=torch.Generator().manual_seed(2)) / shared.numel()
    wrt = list(model.parameters())
    ours = torch.autograd.grad((shared * weight).sum(), wrt)
    theirs = torch.autograd.grad((plain * weight).sum(), wrt)
    assert max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) < 1e-4


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_chunks_over_a_shared_cache_give_the_values_and_gradients_of_one_row(kind, monkeypatch):
    model = tiny(kind, attention="eager")  # the way of models whose attention takes no layout
    policy = LanguageModelPolicy(model, end_token=0, max_new_tokens=6)
    prompts, responses = variable_length_batch(group=7)
    one_row = policy.token_log_probs(prompts, responses)
    monkeypatch.setattr(shared_prefix_forward, "MAX_PADDED_ROW", 11)
    rows = forward_passes(model)
    chunked = policy.token_log_probs(prompts, responses)
    # The prompts in one pass, then 7 responses of up to 5 computed tokens, two at a time: 1 + 4 passes.
    assert len(rows) == 5 and rows[0] == prompts.ids.shape and all(row[1] <= 11 for row in rows)
    assert (one_row - chunked).abs().max() < 1e-4
    wrt = list(model.parameters())
    a = torch.autograd.grad(one_row.mean(), wrt)
    b = torch.autograd.grad(chunked.mean(), wrt)
    assert max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True)) < 1e-4


def test_a_prompt_is_computed_once_and_logits_only_where_a_response_token_is_predicted():
    """9 prompt tokens and 5 responses of 4: 9 + 5·3 places are computed (a last token predicts nothing), and
    1 + 5·3 of them predict a response token. The plain way computes 5·13 places and as many logits."""
    model = tiny("gpt2")
    policy = LanguageModelPolicy(model, end_token=0, max_new_tokens=4)
    rows, heads = forward_passes(model), []
    model.lm_head.register_forward_pre_hook(lambda module, args: heads.append(args[0].shape[:-1].numel()))
    policy.log_prob(Tokens.full(torch.ones(1, 9, dtype=torch.long)), Tokens.full(torch.ones(1, 5, 4, dtype=torch.long)))
    assert rows == [torch.Size([1, 24])]
    assert heads == [16]


def test_log_prob_is_the_sum_over_tokens_at_the_sampling_temperature():
    model = tiny("gpt_neox")
    policy = LanguageModelPolicy(model, end_token=0, max_new_tokens=6)
    prompts, responses = variable_length_batch()
    plain = plain_way(model, prompts, responses, temperature=0.7).sum(-1)
    assert (policy.log_prob(prompts, responses, temperature=0.7) - plain).abs().max() < 1e-4


def test_vocab_size_cuts_the_logits_before_the_softmax():
    model = tiny("llama")
    policy = LanguageModelPolicy(model, end_token=0, max_new_tokens=6, vocab_size=20)
    prompts, _ = variable_length_batch()  # a prompt may hold any id the model knows
    _, responses = variable_length_batch(vocab=20)
    plain = plain_way(model, prompts, responses, vocab=20)
    assert (policy.token_log_probs(prompts, responses) - plain).abs().max() < 1e-4
    drawn = policy.sample(prompts, 200, torch.Generator().manual_seed(0))
    assert int(drawn.ids.max()) < 20


def test_logits_in_parts_give_the_same_values_and_gradients(monkeypatch):
    model = tiny("gpt2")
    policy = LanguageModelPolicy(model, end_token=0, max_new_tokens=6)
    prompts, responses = variable_length_batch()
    wrt = list(model.parameters())
    whole = policy.token_log_probs(prompts, responses)
    whole_gradient = torch.autograd.grad(whole.sum(), wrt)
    monkeypatch.setattr("rlhf_lab.policies.transformer.token_logprobs.MAX_LOGITS", 37 * 5)
    parts = policy.token_log_probs(prompts, responses)
    assert torch.allclose(whole, parts, atol=1e-5)
    for a, b in zip(whole_gradient, torch.autograd.grad(parts.sum(), wrt), strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    with torch.no_grad():
        assert torch.allclose(whole, policy.token_log_probs(prompts, responses), atol=1e-5)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_wide_padding_and_responses_without_tokens_make_no_nan(kind):
    model = tiny(kind)
    policy = LanguageModelPolicy(model, end_token=0, max_new_tokens=6)
    prompts = Tokens.from_lists([[1], [2, 3, 4, 5, 6, 7, 8, 9]]).pad_to(20)
    responses = Tokens.from_lists([[[1], []], [[], [4, 5, 6, 7, 0]]]).pad_to(20)
    values = policy.token_log_probs(prompts, responses)
    assert torch.equal(values.ne(0), responses.mask)
    assert (values - plain_way(model, prompts, responses)).abs().max() < 1e-4
    values.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_dropout_is_off_in_log_probs_and_samples_and_the_mode_is_put_back():
    model = tiny("gpt_neox")  # its configuration has dropout 0.1
    policy = LanguageModelPolicy(model, end_token=0, max_new_tokens=6).train()
    model.gpt_neox.layers[0].eval()
    modes = [m.training for m in model.modules()]
    prompts, responses = variable_length_batch()
    a, b = policy.log_prob(prompts, responses), policy.log_prob(prompts, responses)
    c, d = (policy.sample(prompts, 3, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(a, b) and bool(c.equal(d).all())
    assert any(modes) and modes == [m.training for m in model.modules()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_softmax_is_reduced_in_single_precision_at_least(dtype):
    model = tiny("llama", wide=0.05).to(dtype)
    policy = LanguageModelPolicy(model, end_token=0, max_new_tokens=6)
    prompts, responses = variable_length_batch()
    values = policy.token_log_probs(prompts, responses)
    assert values.dtype == (torch.float32 if dtype == torch.bfloat16 else torch.float64)
    with torch.no_grad():
        logits = model.float()(prompts.ids[:1, : int(prompts.lengths[0])]).logits[0, -1]
    exact = logits.log_softmax(-1)[responses.ids[0, :, 0]]
    assert (values[0, :, 0] - exact).abs().max() < 0.05


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("end", [2, None])
def test_samples_follow_the_enumerated_distribution(kind, end):
    """Every response over 3 ids with up to 3 tokens is enumerated; its probability comes from the plain way and
    sums to 1. Pearson's χ² of 6,000 samples has the cells' number less one as mean and twice that as variance;
    six standard deviations above the mean is the limit. Prompts differ in length, so padding takes part."""
    model = tiny(kind, vocab=5, wide=0.15)
    policy = LanguageModelPolicy(model, end_token=end, max_new_tokens=3, vocab_size=3)
    if end is None:
        every = [list(y) for y in itertools.product(range(3), repeat=3)]
    else:
        every = [[*y, 2] for n in range(3) for y in itertools.product(range(2), repeat=n)]
        every += [list(y) for y in itertools.product(range(2), repeat=3)]
    prompts = Tokens.from_lists([[3], [4, 1, 0, 2]])
    exact = plain_way(model, prompts, Tokens.from_lists([every, every]), 0.8, vocab=3).sum(-1).exp().detach()
    assert torch.allclose(exact.sum(-1), torch.ones(2), atol=1e-5)
    drawn = policy.sample(prompts, 6000, torch.Generator().manual_seed(3), temperature=0.8)
    # A response as a number of three digits to the base 4, where 3 stands for "nothing".
    base = torch.tensor([16, 4, 1])
    codes = (drawn.pad_to(3).ids.where(drawn.pad_to(3).mask, 3) * base).sum(-1)
    known = torch.tensor([[*y, *[3] * (3 - len(y))] for y in every]) @ base
    for row in range(2):
        counts = torch.bincount(codes[row], minlength=64)
        assert counts[known].sum() == 6000  # no response but the enumerated ones
        expected = 6000 * exact[row]
        chi2 = float(((counts[known] - expected) ** 2 / expected).sum())
        cells = len(every) - 1
        assert chi2 < cells + 6 * (2 * cells) ** 0.5


def test_samples_are_a_function_of_the_generator_and_masks_hold_the_end_token():
    policy = LanguageModelPolicy(tiny("gpt2", vocab=6), end_token=2, max_new_tokens=5)
    prompts = Tokens.from_lists([[1, 3], [4]])
    a, b = (policy.sample(prompts, 50, torch.Generator().manual_seed(7)) for _ in range(2))
    other = policy.sample(prompts, 50, torch.Generator().manual_seed(8))
    assert bool(a.equal(b).all()) and not bool(a.equal(other).all())
    assert a.shape[:2] == (2, 50) and a.shape[2] <= 5
    for y in [y for ys in a.tolist() for y in ys]:
        assert (y[-1] == 2 and 2 not in y[:-1]) or (2 not in y and len(y) == 5)
    assert not a.ids[~a.mask].any()


def test_a_sample_s_prompt_is_computed_once():
    """Two prompts of 4 and 3 tokens in one row of 7, then two steps of 2 · 5 tokens."""
    model = tiny("llama")
    policy = LanguageModelPolicy(model, end_token=None, max_new_tokens=3)
    rows = forward_passes(model)
    policy.sample(Tokens.from_lists([[1, 2, 3, 4], [1, 2, 3]]), 5, torch.Generator().manual_seed(0))
    assert rows == [torch.Size([1, 7]), torch.Size([1, 10]), torch.Size([1, 10])]


def test_copies_share_no_weight_and_frozen_ones_need_no_gradient():
    policy = LanguageModelPolicy(tiny("gpt2"), end_token=0, max_new_tokens=6)
    prompts, responses = variable_length_batch()
    before = policy.log_prob(prompts, responses).detach()
    twin, reference = policy.copy(), policy.frozen()
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(2)
    assert torch.equal(policy.log_prob(prompts, responses), before)
    assert not reference.log_prob(prompts, responses).requires_grad


def test_a_saved_policy_loads_as_a_plain_causal_model(tmp_path):
    from transformers import AutoModelForCausalLM

    policy = LanguageModelPolicy(tiny("gpt_neox"), end_token=0, max_new_tokens=6)
    policy.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    prompts, responses = variable_length_batch()
    assert (plain_way(again, prompts, responses) - policy.token_log_probs(prompts, responses)).abs().max() < 1e-4


X, Y = Tokens.from_lists([[1], [2]]), Tokens.from_lists([[[1], [2]], [[3], [4, 5]]])


@pytest.mark.parametrize(
    ("prompts", "responses", "message"),
    [
        (Tokens.from_lists([[1], []]), Y, "Prompt 1 is empty"),
        (Tokens.from_lists([[1], [2] * 47]), Y, "Prompt 1 with its response 1 has 49 tokens.*length is 48"),
        (Tokens.from_lists([[1], [99]]), Y, "Prompt 1 contains the id 99 at index 0.*0 … 36"),
        (
            X,
            Tokens.from_lists([[[1], [2]], [[3], [4, 31]]]),
            r"Response \(1, 1\) contains the id 31.*vocab_size.*0 … 29",
        ),
        (X, Y[:1], r"responses must have shape \(B, G, T\) with B = 2"),
        (X[:0], Y[:0], "at least one row"),
    ],
)
def test_a_batch_that_cannot_be_scored_is_refused_with_its_row(prompts, responses, message):
    policy = LanguageModelPolicy(tiny("gpt2"), end_token=0, max_new_tokens=6, vocab_size=30)
    with pytest.raises(LabError, match=message):
        policy.log_prob(prompts, responses)


def test_sampling_refuses_what_it_cannot_do():
    policy = LanguageModelPolicy(tiny("gpt2"), end_token=0, max_new_tokens=6)
    with pytest.raises(LabError, match="Prompt 1 has 43 tokens. With 6 more it exceeds.*length of 48"):
        policy.sample(Tokens.from_lists([[1], [2] * 43]), 2)
    with pytest.raises(LabError, match="Prompt 0 is empty"):
        policy.sample(Tokens.from_lists([[], [2]]), 2)
    with pytest.raises(LabError, match="temperature"):
        policy.sample(X, 2, temperature=0.0)
    with pytest.raises(LabError, match="num_samples"):
        policy.sample(X, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"end_token": 30, "vocab_size": 30}, "end_token 30"),
        ({"end_token": 0, "vocab_size": 38}, "between 1 and the model's 37"),
        ({"end_token": 0, "max_new_tokens": 0}, "max_new_tokens"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(LabError, match=message):
        LanguageModelPolicy(tiny("gpt2"), **{"max_new_tokens": 6, **settings})


def test_a_mask_on_a_gpu_that_is_padded_at_the_left_is_refused_where_the_model_first_reads_it():
    """Making the tokens does not wait for the GPU. Scoring them and sampling from them does, and finds the row."""
    policy = LanguageModelPolicy(tiny("gpt2"), end_token=0, max_new_tokens=6)
    gpu = contextlib.nullcontext(torch.device("cuda")) if torch.cuda.is_available() else pretended_gpu()
    with gpu as device:
        policy.to(device)
        ids = torch.tensor([[1, 2, 3], [0, 4, 5]], device=device)
        mask = torch.tensor([[True, True, True], [False, True, True]]).to(device)
        padded, whole = Tokens(ids, mask), Tokens(ids, torch.ones_like(mask))
        left = "mask of row 1 is padded at the left"
        with pytest.raises(LabError, match=left):
            policy.sample(padded, 2)
        with pytest.raises(LabError, match=left):
            policy.log_prob(padded, Tokens(ids[:, None], whole.mask[:, None]))
        with pytest.raises(LabError, match="mask of row 1, 0 is padded at the left"):
            policy.log_prob(whole, Tokens(ids[:, None], mask[:, None]))


def test_an_architecture_that_ignores_the_block_mask_is_refused():
    """GPT-2 whose attention drops mask and layout stands for one: a batch in one row differs from separate rows."""
    model = tiny("gpt2")
    for block in model.transformer.h:
        forward = block.attn.forward
        block.attn.forward = lambda h, f=forward, **k: f(h, **{**k, "attention_mask": None, KEYWORD: None})
    with pytest.raises(LabError, match="ignores a block mask"):
        LanguageModelPolicy(model, end_token=0, max_new_tokens=6)


def test_the_context_is_the_smallest_of_the_limits_a_sliding_window_among_them():
    """A block mask says nothing of windows, so that a window of 16 is a context of 16; 0 and None are no limits."""
    names = ("max_position_embeddings", "n_positions", "sliding_window", "window_size")
    for name in names:
        assert shared_prefix_forward.context_length(SimpleNamespace(**dict.fromkeys(names, 64) | {name: 16})) == 16
    assert (
        shared_prefix_forward.context_length(
            SimpleNamespace(max_position_embeddings=64, sliding_window=None, window_size=0)
        )
        == 64
    )
    assert shared_prefix_forward.context_length(SimpleNamespace()) is None


def test_a_text_longer_than_the_sliding_window_is_refused_and_one_that_fills_it_is_scored():
    """Three prompt tokens and two or three of a response, in a window of 5 under a context of 48."""
    model = tiny("llama")
    policy = LanguageModelPolicy(model, end_token=None, max_new_tokens=2)
    model.config.sliding_window = 5
    prompt = Tokens.from_lists([[1, 2, 3]])
    assert policy.log_prob(prompt, Tokens.from_lists([[[4, 5]]])).isfinite().all()
    with pytest.raises(LabError, match="has 6 tokens, but the model.s maximum length is 5"):
        policy.log_prob(prompt, Tokens.from_lists([[[4, 5, 6]]]))
    assert policy.sample(prompt, 1).shape == (1, 1, 2)
    with pytest.raises(LabError, match="With 2 more it exceeds"):
        policy.sample(Tokens.from_lists([[1, 2, 3, 4]]), 1)


@pytest.mark.parametrize("bad", [-1, 37])
def test_ids_just_outside_of_the_vocabulary_are_refused_and_those_at_its_ends_are_not(bad):
    config = tiny("gpt2").config
    ends, outside = Tokens.from_lists([[0, 36]]), Tokens.from_lists([[0, bad]])
    shared_prefix_forward.check_batch(ends, ends.reshape(1, 1), config)
    with pytest.raises(LabError, match=f"Prompt 0 contains the id {bad} at index 1"):
        shared_prefix_forward.check_prompts(outside, 37)
    with pytest.raises(LabError, match=rf"contains the id {bad} at index 1"):
        shared_prefix_forward.check_batch(ends, outside.reshape(1, 1), config)


def test_a_batch_in_several_rows_gives_each_response_its_own_numbers(monkeypatch):
    """Eight tokens at a time: at least one prompt in each row, so that three rows are computed for three prompts."""
    policy = LanguageModelPolicy(tiny("gpt2"), end_token=0, max_new_tokens=6)
    prompts, responses = variable_length_batch()
    whole = policy.token_log_probs(prompts, responses)
    rows = forward_passes(policy.model)
    monkeypatch.setattr(shared_prefix_forward, "MAX_TOKENS_PER_PASS", 8)
    parts = policy.token_log_probs(prompts, responses)
    assert len(rows) == 3 and (whole - parts).abs().max() < 1e-5


def test_dropout_is_put_back_after_a_while_without_it():
    """Of a module that drops, every part that was in training mode is again; eval mode stays eval mode."""
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5))
    with shared_prefix_forward.dropout_off(module):
        assert torch.equal(module[1](torch.ones(50)), torch.ones(50))
    assert [part.training for part in module.modules()] == [True] * 3
    module.eval()
    with shared_prefix_forward.dropout_off(module):
        pass
    assert not any(part.training for part in module.modules())
    attention = torch.nn.Identity()
    attention.attention_dropout = 0.1
    with shared_prefix_forward.dropout_off(attention):
        assert not attention.training
    shared_prefix_forward.remove_dropout(attention)
    assert attention.attention_dropout == 0.0


def test_grouped_keys_serve_the_heads_that_are_theirs():
    """Four heads share two heads of keys: heads 0 and 1 the first, 2 and 3 the second, as in the plain model."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 48}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=37, bos_token_id=0, eos_token_id=0, **heads, **sizes))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    policy = LanguageModelPolicy(model, end_token=0, max_new_tokens=6)
    prompts, responses = variable_length_batch()
    assert (policy.token_log_probs(prompts, responses) - plain_way(model, prompts, responses)).abs().max() < 1e-4


def test_a_critic_of_a_reward_model_has_its_head_and_one_of_the_policy_starts_at_zero():
    policy = LanguageModelPolicy(tiny("gpt2"), end_token=0, max_new_tokens=6)
    reward = policy.new_reward_model()
    with torch.no_grad():
        reward.head.weight.fill_(0.5)
    prompts, responses = variable_length_batch()
    with torch.no_grad():
        ended = Tokens(responses.ids[:, :1, :1], responses.mask[:, :1, :1])
        score = reward(prompts, ended)
        # The value before the second token is what the reward model says of a response of one token.
        two = Tokens(ended.pad_to(2).ids, torch.ones(len(prompts), 1, 2, dtype=torch.bool))
        values = policy.new_critic(reward)(prompts, two)
    assert torch.allclose(values[..., 1], score, atol=1e-5) and score.abs().min() > 1e-3
    assert policy.new_critic()(prompts, responses).abs().max() == 0


def test_samples_are_drawn_from_logits_of_single_precision(monkeypatch):
    """A model in bfloat16: what is drawn from are its head's numbers as float32, before a temperature divides them."""
    from rlhf_lab.policies import language_model

    seen, real = [], language_model.sample_tokens
    monkeypatch.setattr(
        language_model, "sample_tokens", lambda logits, *a: seen.append(logits.dtype) or real(logits, *a)
    )
    LanguageModelPolicy(tiny("gpt2").to(torch.bfloat16), 0, 4).sample(Tokens.from_lists([[1, 2]]), 3)
    assert seen and set(seen) == {torch.float32}
