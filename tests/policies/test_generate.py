"""The shared-prompt decoder: its probabilities, its dropping of ended rows, and what it shares with `generate`."""

import pytest
import torch
from tiny_models import ARCHITECTURES, one_thread, tiny, variable_length_batch  # noqa: F401

from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.policies.transformer import generate as decoder
from rlhf_lab.policies.transformer import shared_prefix_forward
from rlhf_lab.policies.transformer.generate import generate, generate_with_repeated_cache
from rlhf_lab.policies.transformer.shared_prefix_forward import body_of

PROMPTS = Tokens.from_lists([[3, 4, 1, 9, 2], [5], [7, 8, 30]])


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_each_token_is_drawn_from_the_probabilities_that_token_log_probs_gives_it(kind):
    """The decoder's logits of each drawn token, against the shared-prefix forward pass of the whole response.
    Prompts of three lengths share a batch, so padded keys take part."""
    policy = LanguageModelPolicy(tiny(kind), end_token=None, max_new_tokens=6)
    g, noted = torch.Generator().manual_seed(0), []

    def choose(states, number):
        log_p = policy._logits(states).log_softmax(-1)
        drawn = torch.multinomial(log_p.exp(), number, replacement=True, generator=g)
        noted.append(log_p.gather(1, drawn).flatten())
        return drawn

    with torch.no_grad():
        drawn = generate(body_of(policy.model), PROMPTS, 4, 6, (), choose, policy.device)
        ours = torch.stack(noted, -1).view(3, 4, 6)
        theirs = policy.token_log_probs(PROMPTS, drawn)
    assert (ours - theirs).abs().max() < 1e-4


def greedy(policy):
    """The likeliest tokens first, then the likeliest token: different responses without a random number."""

    def choose(states, number):
        return policy._logits(states).topk(number, -1).indices

    return choose


@pytest.mark.parametrize("keep", [0.0, 0.99])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_rows_that_have_ended_are_dropped_and_the_others_go_on_as_if_alone(kind, keep, monkeypatch):
    """The expected responses come from the plain model, one row at a time. Some end early, so that later steps must
    have fewer rows than 3 · 5, whether or not the grid is cut down too. Which random models end unevenly depends on
    how a version of transformers draws weights; the first of some is taken."""
    monkeypatch.setattr(decoder, "COMPACT_BELOW", keep)
    prompts = Tokens.from_lists([[3, 4, 1, 9, 2], [5], [7, 8]])
    for seed in range(3, 20):
        model = tiny(kind, vocab=11, seed=seed).eval()
        expected = by_hand(model, prompts)
        if len({len(y) for ys in expected for y in ys}) > 1:
            break
    policy = LanguageModelPolicy(model, end_token=2, max_new_tokens=8)
    widths: list[int] = []
    hook = body_of(model).register_forward_pre_hook(
        lambda m, args, kw: widths.append(args[0].shape[1]), with_kwargs=True
    )
    with torch.no_grad():
        drawn = generate(body_of(model), prompts, 5, 8, (2,), greedy(policy), policy.device).tolist()
    hook.remove()
    assert drawn == expected
    lengths = {len(y) for ys in expected for y in ys}
    assert len(lengths) > 1 and widths[-1] < 15  # the example does end unevenly


def by_hand(model, prompts: Tokens) -> list[list[list[int]]]:
    """To each prompt five responses: the five likeliest first tokens, each gone on with greedily to token 2."""
    out = []
    for x in prompts.tolist():
        with torch.no_grad():
            firsts = model(torch.tensor([x])).logits[0, -1].topk(5).indices.tolist()
        rows = []
        for first in firsts:
            y = [first]
            while y[-1] != 2 and len(y) < 8:
                with torch.no_grad():
                    y.append(int(model(torch.tensor([x + y])).logits[0, -1].argmax()))
            rows.append(y)
        out.append(rows)
    return out


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_way_through_the_model_s_own_cache_draws_the_same(kind, monkeypatch):
    """The way of models whose attention takes no layout. No row is dropped, so both draw alike."""
    monkeypatch.setattr(decoder, "COMPACT_BELOW", 0.0)
    policy = LanguageModelPolicy(tiny(kind), end_token=0, max_new_tokens=6)
    with torch.no_grad():
        a = generate(body_of(policy.model), PROMPTS, 3, 6, (0,), greedy(policy), policy.device)
        b = generate_with_repeated_cache(body_of(policy.model), PROMPTS, 3, 6, (0,), greedy(policy))
    assert bool(a.equal(b).all())


def test_eager_attention_samples_through_the_cache():
    policy = LanguageModelPolicy(tiny("gpt2", attention="eager"), end_token=0, max_new_tokens=6)
    drawn = policy.sample(PROMPTS, 3, torch.Generator().manual_seed(0))
    assert drawn.shape[:2] == (3, 3) and int(drawn.lengths.min()) >= 1


def test_top_k_is_what_transformers_means_by_it():
    """Temperature, then top-k, of transformers' own warpers, against the share of 20,000 first tokens."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper

    model = tiny("gpt2", vocab=12, wide=0.2)
    policy = LanguageModelPolicy(model, end_token=None, max_new_tokens=1)
    ids = torch.tensor([[3, 1]])
    with torch.no_grad():
        logits = model(ids).logits[:, -1]
    wanted = TopKLogitsWarper(4)(ids, TemperatureLogitsWarper(0.6)(ids, logits)).softmax(-1)[0]
    drawn = policy.sample(Tokens.full(ids), 20_000, torch.Generator().manual_seed(1), temperature=0.6, top_k=4)
    counts = torch.bincount(drawn.ids.flatten(), minlength=12)
    assert torch.equal(counts > 0, wanted > 0)
    some = wanted > 0
    expected = 20_000 * wanted[some]
    # Pearson's χ² with 3 degrees of freedom exceeds 21 once in 10,000 runs.
    assert float(((counts[some] - expected) ** 2 / expected).sum()) < 21
    with pytest.raises(LabError, match="top_k"):
        policy.sample(Tokens.full(ids), 1, top_k=0)


def test_one_token_responses_need_no_step():
    policy = LanguageModelPolicy(tiny("gpt_neox"), end_token=0, max_new_tokens=1)
    drawn = policy.sample(PROMPTS, 7, torch.Generator().manual_seed(0))
    assert drawn.shape == (3, 7, 1) and bool(drawn.mask.all())


def test_a_batch_larger_than_a_row_gives_the_same_numbers(monkeypatch):
    policy = LanguageModelPolicy(tiny("llama"), end_token=0, max_new_tokens=6)
    prompts, responses = variable_length_batch(count=7)
    with torch.no_grad():
        one = policy.token_log_probs(prompts, responses)
        monkeypatch.setattr(shared_prefix_forward, "MAX_TOKENS_PER_PASS", 30)
        many = policy.token_log_probs(prompts, responses)
    assert (one - many).abs().max() < 1e-5


def test_a_model_s_own_scale_of_attention_is_that_of_its_decoding():
    """Llama with another scale than 1/√d: each drawn token has the probability that the shared-prefix pass gives it."""
    model = tiny("llama")
    for layer in model.model.layers:
        layer.self_attn.scaling = 0.1
    policy = LanguageModelPolicy(model, end_token=None, max_new_tokens=5)
    noted = []

    def choose(states, number):
        log_p = policy._logits(states).log_softmax(-1)
        drawn = log_p.topk(number, -1).indices
        noted.append(log_p.gather(1, drawn).flatten())
        return drawn

    with torch.no_grad():
        drawn = generate(body_of(policy.model), PROMPTS, 4, 5, (), choose, policy.device)
        theirs = policy.token_log_probs(PROMPTS, drawn)
    assert (torch.stack(noted, -1).view(3, 4, 5) - theirs).abs().max() < 1e-4
