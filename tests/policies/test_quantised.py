"""Weights in 4 bits under LoRA (QLoRA): what is trained, what the reference is, and what is saved. Runs on a CPU."""

import copy
import json

import pytest
import torch
from tiny_models import one_thread, tiny_tokenizer, trained, variable_length_batch  # noqa: F401
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig

from rlhf_lab.errors import LabError
from rlhf_lab.policies import quantised
from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.policies.loading import load_language_model
from rlhf_lab.policies.lora import continue_lora, with_lora
from rlhf_lab.policies.reference_cache import cache_key

pytest.importorskip("bitsandbytes")
pytest.importorskip("peft")
KINDS = ["gpt2", "gpt_neox", "llama"]


def config_of(kind: str, width: int = 64):
    """Two layers, whose widths are multiples of 64 unless another width is given."""
    common = {"vocab_size": 260, "bos_token_id": 0, "eos_token_id": 0}
    if kind == "gpt2":
        return GPT2Config(n_layer=2, n_embd=width, n_head=2, n_positions=48, **common)
    sizes = {"hidden_size": width, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"max_position_embeddings": 48, **common}
    return GPTNeoXConfig(**sizes) if kind == "gpt_neox" else LlamaConfig(num_key_value_heads=1, **sizes)


def saved(folder, config):
    """A random model with a tokenizer in a folder. Its weights are wide enough that logits differ by several nats."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    model.save_pretrained(folder)
    tiny_tokenizer(["one two three"], vocab=60).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model of each architecture."""
    return {kind: saved(tmp_path_factory.mktemp(kind), config_of(kind)) for kind in KINDS}


def loaded(folder, four_bits="fp32"):
    model, _ = load_language_model(str(folder), "cpu", four_bits=four_bits)
    return LanguageModelPolicy(model, end_token=0, max_new_tokens=6)


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_of_the_layers_are_in_4_bits_and_adapters_are_trained(kind, folders):
    data = variable_length_batch()
    base = loaded(folders[kind])
    found = quantised.layers(base.model)
    assert found and all(layer.weight.dtype == torch.uint8 for layer in found.values())
    assert base.model.get_input_embeddings().weight.dtype == torch.float32
    start = base.log_prob(*data).detach()
    # NF4 rounds normal weights by about a tenth of their size. All other weights are unchanged.
    changed = 0
    plain = dict(loaded(folders[kind], None).model.named_parameters())
    for name, value in quantised.dequantised(copy.deepcopy(base.model), {}).named_parameters():
        error = ((value - plain[name]).norm() / plain[name].norm().clamp(min=1e-9)).item()
        changed += error > 0
        assert error == 0 or 0.05 < error < 0.15, name
    assert changed == len(found)
    policy = with_lora(base, rank=2)
    reference = policy.reference()
    assert torch.allclose(policy.log_prob(*data), start, atol=1e-5)
    key = cache_key(reference, *data)
    with torch.no_grad():
        policy.log_prob(*data)  # a first use without gradients must not cost the gradients of later ones
    policy.log_prob(*data).sum().backward()
    ends = {n: p.grad.abs().max() for n, p in policy.named_parameters() if "lora_B" in n}
    assert ends and all(value > 0 for value in ends.values())
    trained(policy, data)
    assert policy.log_prob(*data).mean() > start.mean() + 0.05
    assert torch.allclose(reference.log_prob(*data), start, atol=1e-5) and cache_key(reference, *data) == key


@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_model_is_the_policy_that_was_trained_in_float32(kind, folders, tmp_path):
    """Matrices W₄ + (α/r) B A: the same log-probabilities up to rounding, and nothing left of the quantisation."""
    data = variable_length_batch()
    policy = trained(with_lora(loaded(folders[kind]), rank=2), data)
    now = policy.log_prob(*data).detach()
    policy.save_pretrained(tmp_path / "merged")
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not quantised.layers(whole) and all(p.dtype == torch.float32 for p in whole.parameters())
    shapes = {name: p.shape for name, p in loaded(folders[kind], None).model.named_parameters()}
    assert {name: p.shape for name, p in whole.named_parameters()} == shapes
    assert torch.allclose(LanguageModelPolicy(whole, 0, 6).log_prob(*data), now, atol=1e-4)
    assert torch.allclose(policy.log_prob(*data), now, atol=1e-6)  # the copy was merged
    start = policy.reference()
    twin = start.copy()
    assert torch.allclose(twin.log_prob(*data), start.log_prob(*data), atol=1e-4)
    assert all(p.requires_grad for p in twin.parameters())


def test_the_state_has_the_adapters_alone_and_is_loaded_beside_other_modules(folders):
    data = variable_length_batch()
    policy = trained(with_lora(loaded(folders["gpt2"]), rank=2), data)
    state = policy.state_dict()
    assert state and all("lora_" in name for name in state)
    again = torch.nn.ModuleDict({"policy": with_lora(loaded(folders["gpt2"]), rank=2), "head": torch.nn.Linear(2, 1)})
    both = {f"policy.{name}": value for name, value in state.items()}
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"head.weight\", \"head.bias\""):
        again.load_state_dict(both)
    again.load_state_dict({**both, **{f"head.{n}": p for n, p in again["head"].state_dict().items()}})
    assert torch.equal(again["policy"].log_prob(*data), policy.log_prob(*data))


def test_adapters_in_4_bits_are_trained_further(folders, tmp_path):
    data = variable_length_batch()
    first = trained(with_lora(loaded(folders["llama"]), rank=2), data)
    start = first.log_prob(*data).detach()
    first.save_adapter(tmp_path / "adapters")
    policy = continue_lora(loaded(folders["llama"]), tmp_path / "adapters", "base")
    trained(policy, data)
    reference = policy.reference()
    assert torch.allclose(reference.log_prob(*data), start, atol=1e-5)
    assert torch.allclose(reference.copy().log_prob(*data), start, atol=1e-4)
    now = policy.log_prob(*data).detach()
    assert torch.allclose(policy.merged().log_prob(*data), now, atol=1e-4) and not torch.allclose(now, start, atol=1e-2)


def test_products_may_be_computed_in_bfloat16(folders):
    data = variable_length_batch()
    one, two = (loaded(folders["llama"], four_bits).log_prob(*data) for four_bits in ("fp32", "bf16"))
    assert 0 < (one - two).abs().max() < 0.1 * one.abs().max()


def test_a_model_whose_matrices_are_read_incorrectly_is_refused(tmp_path, monkeypatch):
    """bitsandbytes 0.50 reads matrices on a CPU incorrectly if their number of inputs is not a multiple of 64."""
    folder = saved(tmp_path / "narrow", config_of("llama", width=96))
    monkeypatch.setattr(quantised, "ROUNDING", 0.01)  # also if another version reads them correctly
    with pytest.raises(LabError, match="load_in_4bit cannot be used with this model on cpu"):
        loaded(folder)
