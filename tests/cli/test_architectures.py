"""Architectures that the lab can use are let through, and all others are one sentence, before any weight is read."""

import pytest
import torch
import transformers as hf
from small import make, train
from tiny_models import one_thread  # noqa: F401

from rlhf_lab.cli.main import main
from rlhf_lab.errors import LabError
from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.policies.loading import check_architecture
from rlhf_lab.policies.lora import check_lora_rank

SIZES = {"vocab_size": 37, "hidden_size": 32, "num_hidden_layers": 2, "bos_token_id": 0, "eos_token_id": 0}
HEADS = SIZES | {"num_attention_heads": 2, "intermediate_size": 48}
GROUPED = HEADS | {"num_key_value_heads": 1, "head_dim": 16}

USABLE = {
    "gpt2": lambda: hf.GPT2Config(n_layer=2, n_embd=32, n_head=2, n_positions=48, vocab_size=37),
    "gpt_neox": lambda: hf.GPTNeoXConfig(**HEADS),
    "llama": lambda: hf.LlamaConfig(**GROUPED),
    "mistral": lambda: hf.MistralConfig(**GROUPED),
    "qwen2": lambda: hf.Qwen2Config(**HEADS, num_key_value_heads=1),
    "qwen3": lambda: hf.Qwen3Config(**GROUPED),
    "phi3": lambda: hf.Phi3Config(**HEADS, num_key_value_heads=1, pad_token_id=0),
    "olmo2": lambda: hf.Olmo2Config(**HEADS),
    "falcon with rotary positions": lambda: hf.FalconConfig(**SIZES, num_attention_heads=2, alibi=False),
}
REFUSED = {
    "bloom": (lambda: hf.BloomConfig(vocab_size=37, hidden_size=32, n_layer=2, n_head=2), "scaled_dot_product"),
    "falcon": (lambda: hf.FalconConfig(**SIZES, num_attention_heads=2, alibi=True), "ALiBi"),
    "mpt": (lambda: hf.MptConfig(vocab_size=37, d_model=32, n_layers=2, n_heads=2), "scaled_dot_product"),
    "mamba": (lambda: hf.MambaConfig(**SIZES), "recurrent state"),
    "llama4": (
        lambda: hf.Llama4TextConfig(**GROUPED, intermediate_size_mlp=48, num_local_experts=2, pad_token_id=0),
        "layers of type chunked_attention",
    ),
    "qwen3_next": (lambda: hf.Qwen3NextConfig(**GROUPED, num_experts=4, num_experts_per_tok=2), "recurrent state"),
    "gpt_neo": (
        lambda: hf.GPTNeoConfig(
            vocab_size=37, hidden_size=32, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]]
        ),
        "scaled_dot_product",
    ),
}


@pytest.mark.parametrize("name", USABLE)
def test_an_architecture_that_can_be_used_is_let_through_and_scores_as_the_model_itself_does(name):
    """log π of two responses behind one shared prompt against the model's logits of each row alone."""
    config = USABLE[name]()
    check_architecture(config, name)
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    policy = LanguageModelPolicy(model, 0, 4)
    from rlhf_lab.batch import Tokens

    prompt, answers = [1, 2, 3], [[4, 5], [6, 7, 8]]
    found = policy.log_prob(Tokens.from_lists([prompt]), Tokens.from_lists([answers]))
    for answer, value in zip(answers, found[0], strict=True):
        scores = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        wanted = sum(scores[len(prompt) - 1 + place, token] for place, token in enumerate(answer))
        assert value.item() == pytest.approx(wanted.item(), abs=1e-4)


@pytest.mark.parametrize("name", REFUSED)
def test_an_architecture_that_cannot_be_used_is_refused_by_its_configuration(name):
    make_config, why = REFUSED[name]
    with pytest.raises(LabError, match=why) as error:
        check_architecture(make_config(), "some-model")
    assert "some-model is a " in str(error.value) and "such as GPT-2" in str(error.value)


def test_code_that_breaks_on_a_shared_prefix_is_one_sentence_too():
    """Llama 4 with full attention alone passes by its configuration, and its output is of another kind."""
    config = REFUSED["llama4"][0]()
    config.layer_types = ["full_attention"] * 2
    check_architecture(config, "some-model")
    model = hf.Llama4ForCausalLM._from_config(config, attn_implementation="sdpa").eval()
    with pytest.raises(LabError, match="Llama4ForCausalLM cannot compute responses that share a prompt"):
        LanguageModelPolicy(model, 0, 4)


def test_a_command_refuses_it_before_data_are_read_and_leaves_no_folder(tmp_path, capsys):
    """The data file is malformed, which reading it would say first. Weights of GPT-2 lie beside Bloom's configuration:
    nothing reads them."""
    folder = make(tmp_path / "model")
    REFUSED["bloom"][0]().save_pretrained(folder)
    data = tmp_path / "a.jsonl"
    data.write_text("{")
    assert main(train("dpo", folder, str(data), tmp_path / "run")) == 2
    assert "is a BloomForCausalLM, which the lab does not support" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_reference_of_such_an_architecture_is_refused_as_early(tmp_path, capsys):
    folder, other = make(tmp_path / "model"), make(tmp_path / "other")
    REFUSED["falcon"][0]().save_pretrained(other)
    data = tmp_path / "a.jsonl"
    data.write_text("{")
    assert main(train("dpo", folder, str(data), tmp_path / "run", "--reference", other)) == 2
    assert "ALiBi" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_adapters_are_at_most_as_wide_as_the_model():
    check_lora_rank(32, USABLE["gpt2"]())
    for rank in (0, 33, 100_000):
        with pytest.raises(LabError, match=f"between 1 and 32, the model's hidden size, not {rank}"):
            check_lora_rank(rank, USABLE["gpt2"]())
