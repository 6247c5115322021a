"""The row without padding: chunks, the block-sparse pattern, checkpointing, and models that take no layout."""

import pytest
import torch
from tiny_models import ARCHITECTURES, one_thread, tiny, variable_length_batch  # noqa: F401

from rlhf_lab.batch import Tokens
from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.policies.transformer import shared_prefix_forward
from rlhf_lab.policies.transformer import varlen_attention as row


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_many_responses_in_chunks_give_the_values_and_gradients_of_one_rectangle(kind, monkeypatch):
    policy = LanguageModelPolicy(tiny(kind), end_token=0, max_new_tokens=6)
    prompts, responses = variable_length_batch(group=7)
    wrt = list(policy.parameters())
    monkeypatch.setattr(row, "CHUNK_TOKENS", 10_000)
    whole = policy.token_log_probs(prompts, responses)
    monkeypatch.setattr(row, "CHUNK_TOKENS", 6)
    chunks = policy.token_log_probs(prompts, responses)
    assert (whole - chunks).abs().max() < 1e-5
    weight = torch.randn(whole.shape, generator=torch.Generator().manual_seed(0))
    for a, b in zip(*(torch.autograd.grad((v * weight).mean(), wrt) for v in (whole, chunks)), strict=True):
        assert (a - b).abs().max() < 1e-4


def test_no_token_is_computed_twice_and_none_is_padding():
    """Three prompts of 2, 5 and 1 tokens, two responses each of (3, 1), (2, 2), (1, 4): all tokens but each
    response's last are 8 + 2 + 0 + 1 + 1 + 0 + 3 = 15."""
    model = tiny("gpt2")
    policy = LanguageModelPolicy(model, end_token=0, max_new_tokens=4)
    shapes: list[torch.Size] = []
    shared_prefix_forward.body_of(model).register_forward_pre_hook(
        lambda m, args, kw: shapes.append(args[0].shape), with_kwargs=True
    )
    prompts = Tokens.from_lists([[1] * 2, [1] * 5, [1]]).pad_to(30)
    responses = Tokens.from_lists([[[1] * 3, [1]], [[1] * 2, [1] * 2], [[1], [1] * 4]])
    policy.log_prob(prompts, responses)
    assert shapes == [torch.Size([1, 15])]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_block_sparse_pattern_is_the_dense_one(kind, monkeypatch):
    """flex_attention, which a GPU uses, here uncompiled and forward only."""
    policy = LanguageModelPolicy(tiny(kind), end_token=0, max_new_tokens=6)
    prompts, responses = variable_length_batch(group=5)
    with torch.no_grad():
        dense = policy.token_log_probs(prompts, responses)
        asked: list[int] = []

        def flex(self, *args):
            asked.append(1)
            return self._attend_flex(*args)

        monkeypatch.setattr(row.VarlenLayout, "_attend_dense", flex)
        sparse = policy.token_log_probs(prompts, responses)
    assert asked and (dense - sparse).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_model_that_takes_no_layout_falls_back_to_the_block_mask(kind):
    """Its attention throws the keyword away; the answers must be those of a model that takes it."""
    prompts, responses = variable_length_batch()
    expected = LanguageModelPolicy(tiny(kind), end_token=0, max_new_tokens=6).token_log_probs(prompts, responses)
    deaf = tiny(kind)
    for module in shared_prefix_forward.body_of(deaf).modules():
        if type(module).__name__.endswith("Attention"):
            forward = module.forward
            module.forward = lambda *a, f=forward, **k: f(*a, **{n: v for n, v in k.items() if n != row.KEYWORD})
    policy = LanguageModelPolicy(deaf, end_token=0, max_new_tokens=6)
    assert deaf.config._attn_implementation == "sdpa"
    assert (policy.token_log_probs(prompts, responses) - expected).abs().max() < 1e-4
    assert policy.sample(prompts, 2, torch.Generator().manual_seed(0)).shape[:2] == (3, 2)


def test_the_plain_model_still_answers_as_before_and_saves_no_trace(tmp_path):
    from transformers import AutoModelForCausalLM

    untouched, wrapped = tiny("llama"), tiny("llama")
    policy = LanguageModelPolicy(wrapped, end_token=0, max_new_tokens=6)
    ids = torch.tensor([[0, 0, 4, 5], [3, 2, 1, 9]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    with torch.no_grad():
        a, b = (m(ids, attention_mask=mask).logits[mask.bool()] for m in (untouched, wrapped))
    assert torch.allclose(a, b, atol=1e-5)
    policy.save_pretrained(tmp_path)
    assert "rlhf_lab" not in (tmp_path / "config.json").read_text()
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_checkpointed_gradients_are_the_same_and_less_is_kept(kind):
    """Bytes kept for the backward pass are counted as autograd packs them."""
    policy = LanguageModelPolicy(tiny(kind), end_token=0, max_new_tokens=6).train()
    prompts, responses = variable_length_batch(count=4)

    def measure():
        kept = 0

        def pack(tensor):
            nonlocal kept
            kept += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            value = policy.log_prob(prompts, responses).sum()
        return kept, torch.autograd.grad(value, list(policy.parameters()))

    plain_bytes, plain = measure()
    policy.gradient_checkpointing(True)
    fewer_bytes, again = measure()
    policy.gradient_checkpointing(False)
    assert fewer_bytes < 0.6 * plain_bytes
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert measure()[0] == plain_bytes


def test_bf16_autocast_reduces_the_softmax_in_single_precision():
    """Under autocast the products are bf16; each token's log-probability differs from fp32 by rounding alone, and over
    the whole vocabulary they still sum to 1 within 1e-3, which a bf16 log-softmax of 500 ids does not reach."""
    policy = LanguageModelPolicy(tiny("gpt2", vocab=500, wide=0.05), end_token=0, max_new_tokens=3)
    prompts = Tokens.from_lists([[5, 6, 7]])
    responses = Tokens.full(torch.arange(500)[None, :, None])
    with torch.no_grad():
        single = policy.log_prob(prompts, responses)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = policy.log_prob(prompts, responses)
    assert mixed.dtype == torch.float32
    assert (single - mixed).abs().max() < 0.2
    assert abs(float(mixed.exp().sum()) - 1) < 1e-3
    with torch.autocast("cpu", torch.bfloat16):
        policy.log_prob(prompts, Tokens.full(torch.ones(1, 2, 3, dtype=torch.long))).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in policy.parameters())


def test_attention_under_bf16_autocast_is_computed_in_float32_on_a_cpu(monkeypatch):
    """torch's kernel is slower there in bf16. Under autocast the call itself must not convert back."""
    seen = []

    def recorded(query, *args, **more):
        out = attention(query, *args, **more)
        seen.append((query.dtype, out.dtype))
        return out

    attention = row.scaled_dot_product_attention
    monkeypatch.setattr(row, "scaled_dot_product_attention", recorded)
    policy = LanguageModelPolicy(tiny("llama"), end_token=0, max_new_tokens=3)
    with torch.autocast("cpu", torch.bfloat16):
        policy.log_prob(*variable_length_batch()).sum().backward()
    assert seen and set(seen) == {(torch.float32, torch.float32)}
