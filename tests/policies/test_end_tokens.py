"""Models with two end tokens: which ones there are, that each of them ends a sample, and that texts drop them."""

import json
from types import SimpleNamespace

import pytest
import torch
from test_cuda_graph import recorded
from test_vllm import Engine, without_vllm
from tiny_models import ARCHITECTURES, one_thread, tiny, tiny_tokenizer  # noqa: F401

from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.policies.end_tokens import chat_turn_end, find_end_tokens, strip_end_token
from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.policies.loading import load_language_model
from rlhf_lab.policies.lora import with_lora
from rlhf_lab.policies.transformer import generate as decoder
from rlhf_lab.policies.transformer.generate import generate, generate_with_repeated_cache
from rlhf_lab.policies.transformer.shared_prefix_forward import body_of
from rlhf_lab.policies.transformer.token_sampling import sample_tokens
from rlhf_lab.policies.vllm import VllmSampler

END, TURN = 2, 5
PROMPTS = Tokens.from_lists([[3, 4, 1, 9, 2], [5], [7, 8]])

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def chat_tokenizer(template: str | None = CHATML):
    """`<end>` ends a text, `<|im_end|>` a turn."""
    tokenizer = tiny_tokenizer(["a"], vocab=258)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    return tokenizer


def ending_in(kind: str, *likely: int):
    """A tiny model of 11 ids which draws each of `likely` with the same probability, and no other id.

    Its states are all 1, and so are the head's rows of `likely`; the other rows are 0. A likely id then has the logit
    32, the width, and the others together less than e⁻²⁹ of the probability."""
    model = tiny(kind, vocab=11)
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(torch.zeros_like(head.weight))
    with torch.no_grad():
        head.weight[list(likely)] = 1.0
    norm = {"gpt2": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm", "llama": "model.norm"}[kind]
    model.get_submodule(norm).register_forward_hook(lambda module, args, out: torch.ones_like(out))
    return model


def sampler_of(path: str, policy: LanguageModelPolicy):
    """Each way to draw that a CPU has, as `(prompts, number, generator) → Tokens`."""
    if path == "sample":
        return policy.sample

    def choose_with(generator):
        return lambda states, number: sample_tokens(policy._logits(states), number, generator, 1.0, None)

    def draw(prompts, number, generator):
        body, choose = body_of(policy.model), choose_with(generator)
        longest, ends = policy.max_new_tokens, policy.end_tokens
        with torch.no_grad():
            if path == "cache":
                return generate_with_repeated_cache(body, prompts, number, longest, ends, choose)
            return generate(body, prompts, number, longest, ends, choose, policy.device, recorded)

    return draw


@pytest.mark.parametrize("path", ["sample", "cache", "graphs"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_second_end_token_that_is_certain_ends_every_response(kind, path):
    """The model's every token is TURN. With both ends a response is that one token; with END alone all six are."""
    for further, length in ((TURN,), 1), ((), 6):
        policy = LanguageModelPolicy(ending_in(kind, TURN), END, 6, end_tokens=further)
        drawn = sampler_of(path, policy)(PROMPTS, 4, torch.Generator().manual_seed(0))
        assert drawn.tolist() == [[[TURN] * length] * 4] * 3


@pytest.mark.parametrize("path", ["sample", "cache", "graphs"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_responses_stop_at_the_first_of_two_ends_and_its_probability_is_counted(kind, path):
    """Four ids are equally likely, END and TURN among them. A response of n tokens, its end included, has the
    log-probability −n log 4. Only its last token may be an end."""
    policy = LanguageModelPolicy(ending_in(kind, END, TURN, 7, 9), END, 6, end_tokens=(END, TURN))
    drawn = sampler_of(path, policy)(PROMPTS, 70, torch.Generator().manual_seed(0))
    rows = [y for ys in drawn.tolist() for y in ys]
    assert {y[-1] for y in rows if len(y) < 6} == {END, TURN}
    assert not any({END, TURN} & set(y[:-1]) for y in rows)
    expected = -drawn.lengths * torch.log(torch.tensor(4.0))
    assert (policy.log_prob(PROMPTS, drawn) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("keep", [0.0, 0.99])
def test_a_further_end_that_is_never_drawn_changes_no_bit(keep, monkeypatch):
    monkeypatch.setattr(decoder, "COMPACT_BELOW", keep)
    model = tiny("gpt2", vocab=11)

    def sample_index(*further):
        policy = LanguageModelPolicy(model, END, 8, end_tokens=further)
        return policy.sample(PROMPTS, 5, torch.Generator().manual_seed(0), top_k=2).tolist()

    drawn = sample_index()
    never = set(range(11)) - {i for ys in drawn for y in ys for i in y}
    assert never and len({len(y) for ys in drawn for y in ys}) > 1
    assert sample_index(never.pop()) == drawn


@without_vllm
def test_vllm_is_told_every_end():
    engine = Engine()
    policy = LanguageModelPolicy(tiny("gpt2"), END, 6, end_tokens=(TURN,))
    VllmSampler(policy, engine).sample(PROMPTS, 2, torch.Generator().manual_seed(0))
    assert [s["stop_token_ids"] for s in engine.settings] == [[END, TURN]] * 3


def test_copies_adapters_and_merged_policies_keep_the_ends():
    pytest.importorskip("peft")
    policy = LanguageModelPolicy(tiny("gpt2"), END, 6, end_tokens=(TURN,))
    adapted = with_lora(policy, rank=2)
    for one in (policy.copy(), policy.frozen(), adapted, adapted.merged(), adapted.reference().copy()):
        assert one.end_tokens == (END, TURN) and one.end_token == END


def test_the_first_end_is_that_of_targets_and_none_of_many_is_refused():
    assert LanguageModelPolicy(tiny("gpt2"), END, 6).end_tokens == (END,)
    assert LanguageModelPolicy(tiny("gpt2"), None, 6).end_tokens == ()
    assert LanguageModelPolicy(tiny("gpt2"), END, 6, end_tokens=(TURN, END, TURN)).end_tokens == (END, TURN)
    with pytest.raises(LabError, match="Pass end_token=5"):
        LanguageModelPolicy(tiny("gpt2"), None, 6, end_tokens=(TURN,))
    with pytest.raises(LabError, match="end_token 37 is not among the ids"):
        LanguageModelPolicy(tiny("gpt2"), END, 6, end_tokens=(37,))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, "<|im_end|>"),
        ("{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{{ eos_token }}{% endfor %}", "<end>"),
        ("{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}", None),
        ("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}", None),
        ("{% for m in messages %}{{ m.content }} that is all <|im_end|>{% endfor %}", None),
        ("{{ raise_exception('no') }}", None),
        ("{% for m in messages %}{{ m.role }}{% endfor %}<|im_end|>", None),
        (None, None),
    ],
)
def test_the_end_of_a_turn_is_the_special_token_right_behind_the_answer(template, expected):
    tokenizer = chat_tokenizer(template)
    assert chat_turn_end(tokenizer) == (None if expected is None else tokenizer.convert_tokens_to_ids(expected))


def test_the_ends_of_a_model_are_the_union_of_three_places():
    """An id (7), a list, or nothing in generation_config; 999 is no token of the tokenizer."""
    tokenizer = chat_tokenizer()
    end, turn = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")

    def model(eos):
        return SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=eos))

    assert find_end_tokens(model(7), tokenizer) == (end, 7, turn)
    assert find_end_tokens(model([turn, 999, end, 9]), tokenizer) == (end, turn, 9)
    assert find_end_tokens(model(None), tokenizer) == (end, turn)
    assert find_end_tokens(SimpleNamespace(generation_config=None), chat_tokenizer(None)) == (end,)
    assert strip_end_token([3, turn], (end, turn)) == [3] and strip_end_token([turn, 3], (end, turn)) == [turn, 3]
    assert strip_end_token([], (end,)) == []


def test_a_saved_model_has_all_its_ends_and_one_with_a_single_end_is_saved_as_it_was(tmp_path):
    """Saved and loaded twice. transformers' own `generate` reads the file's eos_token_id."""
    tokenizer = chat_tokenizer()
    turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model = tiny("gpt2", vocab=len(tokenizer))
    model.generation_config.eos_token_id = [0, 9]
    ends = find_end_tokens(model, tokenizer)
    assert ends == (0, 9, turn)
    LanguageModelPolicy(model, 0, 6, tokenizer=tokenizer, end_tokens=ends).save_pretrained(tmp_path / "a")
    assert json.loads((tmp_path / "a/generation_config.json").read_text())["eos_token_id"] == [0, 9, turn]
    again, its = load_language_model(str(tmp_path / "a"), "cpu")
    assert find_end_tokens(again, its) == ends
    LanguageModelPolicy(again, 0, 6, tokenizer=its, end_tokens=ends).save_pretrained(tmp_path / "b")
    assert (tmp_path / "a/generation_config.json").read_text() == (tmp_path / "b/generation_config.json").read_text()
    plain = tiny("gpt2")
    LanguageModelPolicy(plain, 0, 6).save_pretrained(tmp_path / "c")
    assert json.loads((tmp_path / "c/generation_config.json").read_text())["eos_token_id"] == 0
