"""LoRA through peft: starts at the reference, trains adapters alone, and gives the reference for nothing."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import one_thread, tiny, trained, variable_length_batch  # noqa: F401

from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.policies.lora import continue_lora, with_lora
from rlhf_lab.policies.reference_cache import cache_key
from rlhf_lab.rewards.language_model import LanguageModelReward

pytest.importorskip("peft")


def plain(kind="gpt2"):
    return LanguageModelPolicy(tiny(kind), end_token=0, max_new_tokens=6)


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "llama"])
def test_training_moves_the_policy_and_leaves_the_reference_where_it_was(kind):
    data = variable_length_batch()
    start = plain(kind).log_prob(*data).detach()
    policy = with_lora(plain(kind), rank=2)
    reference = policy.reference()
    assert torch.allclose(policy.log_prob(*data), start, atol=1e-4)
    names = [n for n, p in policy.named_parameters() if p.requires_grad]
    assert names and all("lora_" in n for n in names)
    trained(policy, data)
    assert policy.log_prob(*data).mean() > start.mean() + 0.1
    assert torch.allclose(reference.log_prob(*data), start, atol=1e-4)
    assert not list(reference.parameters()) and not reference.log_prob(*data).requires_grad


def test_the_reference_samples_and_copies_without_the_adapters():
    data, before = variable_length_batch(), plain()
    policy = trained(with_lora(plain(), rank=2), data)
    reference = policy.reference()
    prompts = data[0]
    a = before.sample(prompts, 5, torch.Generator().manual_seed(0))
    b = reference.sample(prompts, 5, torch.Generator().manual_seed(0))
    c = policy.sample(prompts, 5, torch.Generator().manual_seed(0))
    assert bool(a.equal(b).all()) and not bool(a.equal(c).all())
    twin = reference.copy()
    assert torch.allclose(twin.log_prob(*data), before.log_prob(*data), atol=1e-4)
    assert all(p.requires_grad for p in twin.parameters())
    assert reference.frozen() is reference


def test_the_reference_s_cache_key_does_not_depend_on_the_adapters():
    data = variable_length_batch()
    policy = with_lora(plain(), rank=2)
    before = cache_key(policy.reference(), *data)
    trained(policy, data)
    assert cache_key(policy.reference(), *data) == before
    assert cache_key(policy, *data) != before


def test_the_merged_model_loads_without_peft_and_the_adapters_alone_with_it(tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    data = variable_length_batch()
    policy = trained(with_lora(plain(), rank=2), data)
    expected = policy.log_prob(*data).detach()
    policy.save_pretrained(tmp_path / "merged")
    policy.save_adapter(tmp_path / "adapter")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(LanguageModelPolicy(whole, 0, 6).log_prob(*data), expected, atol=1e-4)
    under = PeftModel.from_pretrained(tiny("gpt2"), tmp_path / "adapter")
    assert torch.allclose(LanguageModelPolicy(under, 0, 6).log_prob(*data), expected, atol=1e-4)
    assert torch.allclose(policy.log_prob(*data), expected, atol=1e-6)  # merging was done on a copy


def test_checkpointed_gradients_reach_the_adapters():
    data = variable_length_batch()
    policy = with_lora(plain(), rank=2).train()
    wrt = [p for p in policy.parameters() if p.requires_grad]
    a = torch.autograd.grad(policy.log_prob(*data).sum(), wrt)
    policy.gradient_checkpointing()
    b = torch.autograd.grad(policy.log_prob(*data).sum(), wrt)
    assert any(float(x.abs().max()) > 0 for x in a)
    assert all(torch.allclose(x, y, atol=1e-6) for x, y in zip(a, b, strict=True))


def test_adapters_that_do_not_fit_are_refused():
    with pytest.raises(LabError, match="rank"):
        with_lora(plain(), rank=0)
    for targets in (["no_such_layer"], ["c_attn", "no_such_layer"]):
        with pytest.raises(LabError, match="'no_such_layer', and the model has no layer of this name"):
            with_lora(plain(), targets=targets)
    with pytest.raises(LabError, match="do not fit"):
        with_lora(plain(), targets=["ln_1"])
    for targets, layers in ((["c_fc"], {"c_fc"}), (["all-linear"], {"c_attn", "c_fc", "c_proj"})):
        adapted = [name for name, _ in with_lora(plain(), targets=targets).named_parameters() if "lora_A" in name]
        assert {name.split(".lora_A")[0].rpartition(".")[2] for name in adapted} == layers


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_reward_model_on_an_adapted_body_trains_adapters_and_head_and_is_saved_merged(kind, tmp_path):
    """The scores of the saved model, which has no adapters, are those of the trained one, whose base has not moved."""
    data = variable_length_batch()
    policy = with_lora(plain(kind), rank=2, dropout=0.5)
    reward = LanguageModelReward(policy.model, copied=False)
    free = {name for name, weight in reward.named_parameters() if weight.requires_grad}
    assert {name for name in free if "lora_" not in name} == {"head.weight", "head.bias"} and len(free) > 2
    base = {name: value.clone() for name, value in reward.state_dict().items() if name not in free}
    optimizer = torch.optim.Adam([w for w in reward.parameters() if w.requires_grad], lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        (reward(*data) * torch.arange(4.0)).sum().backward()
        optimizer.step()
    assert all(torch.equal(value, reward.state_dict()[name]) for name, value in base.items())
    expected = reward(*data).detach()
    reward.save_pretrained(tmp_path)
    found = LanguageModelReward.from_pretrained(tmp_path)
    assert not any("lora_" in name for name, _ in found.named_parameters())
    assert expected.abs().max() > 0.1 and torch.allclose(found(*data), expected, atol=1e-4)
    assert torch.equal(reward(*data), expected), "merging was done on a copy"
    # Dropout of the adapters acts while a gradient is computed, and at no other time.
    reward.adapter_dropout = 0.5
    torch.manual_seed(0)
    assert not torch.allclose(reward(*data), expected, atol=1e-4)
    with torch.no_grad():
        assert torch.equal(reward(*data), expected)


def test_a_reward_model_starts_from_the_merged_body():
    policy = trained(with_lora(plain(), rank=2), variable_length_batch())
    scores = policy.new_reward_model()(Tokens.from_lists([[1]]), Tokens.from_lists([[[2], [3]]]))
    assert scores.shape == (1, 2)


def test_the_merged_weights_are_w_plus_alpha_over_r_times_b_a():
    """W' = W + (α/r) B A at rank 3: by default α = 2r; the layers are those that were named, and no others."""
    for alpha, scale in ((None, 2.0), (6.0, 2.0), (15.0, 5.0)):
        policy = with_lora(plain("llama"), rank=3, alpha=alpha, targets=["q_proj"], seed=4)
        factors = {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}
        assert all("q_proj" in name for name in factors) and {min(w.shape) for w in factors.values()} == {3}
        (a, b), _ = ([w for n, w in factors.items() if f"layers.{i}." in n] for i in (0, 1))
        with torch.no_grad():
            b.copy_(torch.randn(b.shape, generator=torch.Generator().manual_seed(0)))
        before = plain("llama").model.model.layers[0].self_attn.q_proj.weight
        after = policy.merged().model.model.layers[0].self_attn.q_proj.weight
        assert torch.allclose(after - before, scale * b @ a, atol=1e-5)


def test_the_adapters_follow_from_the_seed():
    first, same, other = ({n: w for n, w in with_lora(plain(), rank=2, seed=s).named_parameters() if "lora_A" in n}
                          for s in (1, 1, 2))  # fmt: skip
    assert all(torch.equal(first[n], same[n]) and not torch.equal(first[n], other[n]) for n in first)


def test_the_reference_scores_and_samples_at_the_temperature_and_top_k_that_are_asked():
    data, before = variable_length_batch(), plain()
    reference = trained(with_lora(plain(), rank=2), data).reference()
    assert torch.allclose(reference.log_prob(*data, 0.5), before.log_prob(*data, 0.5), atol=1e-4)
    for temperature, top_k in ((0.5, 2), (3.0, None)):
        a, b = (
            p.sample(data[0], 20, torch.Generator().manual_seed(0), temperature, top_k) for p in (before, reference)
        )
        assert bool(a.equal(b).all())


def test_rank_stabilised_adapters_are_scaled_by_the_root_of_the_rank():
    """The same A and B with alpha = 8 at rank 4: BA is multiplied by 8/4 = 2, and by 8/√4 = 4 with rsLoRA."""
    data, shifts = variable_length_batch(), []
    start = plain().log_prob(*data).detach()
    for stabilised in (False, True):
        policy = with_lora(plain(), rank=4, alpha=8, rank_stabilised=stabilised)
        with torch.no_grad():
            for name, value in policy.named_parameters():
                if "lora_B" in name:
                    value.fill_(1e-4)
        shifts.append(policy.log_prob(*data).detach() - start)
    # For so small a change the log-probability is linear in it.
    assert torch.allclose(shifts[1], 2 * shifts[0], rtol=0.05, atol=1e-4)
    assert shifts[0].abs().max() > 1e-3


def test_dropout_is_on_only_where_a_gradient_is_computed_and_draws_from_the_global_generator():
    data = variable_length_batch()
    policy, without = (trained(with_lora(plain(), rank=4, dropout=p), data) for p in (0.5, 0.0))
    without.load_state_dict(policy.state_dict())

    def drawn(seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return policy.log_prob(*data).detach()

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))
    with torch.no_grad():
        assert torch.equal(policy.log_prob(*data), without.log_prob(*data))
    assert torch.equal(policy.reference().log_prob(*data), without.reference().log_prob(*data))
    one, two = (p.sample(data[0], 3, torch.Generator().manual_seed(0)) for p in (policy, without))
    assert bool(one.equal(two).all())


def test_the_mean_over_dropouts_is_the_policy_without():
    """Dropout divides what is left by 1 − p, so the adapters' output is unbiased. With small adapters the
    log-probability is linear in it, so its mean over draws is that without dropout, within four standard errors."""
    data = variable_length_batch()
    policy = with_lora(plain(), rank=4, dropout=0.5)
    with torch.no_grad():
        for name, value in policy.named_parameters():
            if "lora_B" in name:
                value.fill_(1e-3)
        exact = policy.log_prob(*data).sum()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        draws = torch.stack([policy.log_prob(*data).detach().sum() for _ in range(200)])
    assert (draws.mean() - exact).abs() < 4 * draws.std() / 200**0.5 and draws.std() > 0


@pytest.fixture
def stored(tmp_path):
    """Trained adapters of rank 2 in a folder, and log π of the policy with them."""
    data = variable_length_batch()
    policy = trained(with_lora(plain(), rank=2, seed=3), data)
    policy.save_adapter(tmp_path / "adapters")
    return tmp_path / "adapters", policy.log_prob(*data).detach()


def test_adapters_that_are_trained_further_have_themselves_as_reference(stored):
    """π and π_ref start at the base plus the stored adapters. Training moves π, and π_ref stays where it was; the base
    without adapters is another policy. The base is in memory once."""
    folder, start = stored
    data, base = variable_length_batch(), plain().log_prob(*variable_length_batch()).detach()
    policy = continue_lora(plain(), folder, "base")
    reference = policy.reference()
    assert torch.allclose(policy.log_prob(*data), start, atol=1e-5)
    assert torch.allclose(reference.log_prob(*data), start, atol=1e-5) and not torch.allclose(start, base, atol=1e-2)
    names = {n for n, p in policy.named_parameters() if p.requires_grad}
    assert names and all("lora_" in n and ".default." in n for n in names)
    key = cache_key(reference, *data)
    trained(policy, data)
    assert {n for n, p in policy.named_parameters() if p.requires_grad} == names
    assert policy.log_prob(*data).mean() > start.mean() + 0.1
    assert torch.allclose(reference.log_prob(*data), start, atol=1e-5) and cache_key(reference, *data) == key
    assert torch.allclose(reference.copy().log_prob(*data), start, atol=1e-4)
    whole = sum(p.numel() for n, p in policy.named_parameters() if "lora_" not in n)
    assert whole == sum(p.numel() for p in plain().parameters())
    a, b = (p.sample(data[0], 5, torch.Generator().manual_seed(0)) for p in (reference, reference.copy()))
    assert bool(a.equal(b).all())


def test_continued_adapters_are_saved_alone_and_merge_to_the_trained_policy(stored, tmp_path):
    from peft import PeftModel

    folder, start = stored
    data = variable_length_batch()
    policy = trained(continue_lora(plain(), folder, "base"), data)
    now = policy.log_prob(*data).detach()
    assert torch.allclose(policy.merged().log_prob(*data), now, atol=1e-4) and not torch.allclose(now, start, atol=1e-2)
    policy.save_adapter(tmp_path / "again")
    assert {path.name for path in (tmp_path / "again").iterdir() if path.is_dir()} == set()
    under = PeftModel.from_pretrained(tiny("gpt2"), tmp_path / "again")
    assert torch.allclose(LanguageModelPolicy(under, 0, 6).log_prob(*data), now, atol=1e-4)


def test_the_gradient_of_a_step_is_that_of_the_trained_adapters_after_the_reference_was_used(stored):
    """π_ref is computed between the policy's forward and backward passes. The gradient is that without π_ref."""
    folder, _ = stored
    data = variable_length_batch()
    grads = []
    for used in (False, True):
        policy = continue_lora(plain(), folder, "base")
        loss = -policy.log_prob(*data).mean()
        if used:
            policy.reference().log_prob(*data)
        loss.backward()
        grads.append({n: p.grad for n, p in policy.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and all(".default." in n for n in grads[0])
    assert all(torch.equal(grads[0][n], grads[1][n]) for n in grads[0])


def test_dropout_of_continued_adapters_is_that_of_the_command(stored):
    folder, start = stored
    data = variable_length_batch()
    policy = continue_lora(plain(), folder, "base", dropout=0.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert not torch.allclose(policy.log_prob(*data), start, atol=1e-3)
    with torch.no_grad():
        assert torch.allclose(policy.log_prob(*data), start, atol=1e-5)


def _changed(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _without_a_tensor(folder, extra=None):
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    first = sorted(tensors)[0]
    value = tensors.pop(first) if extra is None else tensors[first]
    save_file(tensors if extra is None else {**tensors, extra: value.clone()}, file)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda f: _changed(f, use_dora=True), "are not plain LoRA; they have the setting use_dora"),
        (lambda f: _changed(f, bias="all"), "are not plain LoRA; they have the setting bias"),
        (lambda f: _changed(f, modules_to_save=["lm_head"]), "have the setting modules_to_save"),
        (lambda f: _changed(f, peft_type="NOTHING"), "adapter_config.json is damaged"),
        (lambda f: _changed(f, r=3), "do not fit their base base"),
        (_without_a_tensor, "1 of the tensors differ, for example .*which is missing in the file"),
        (lambda f: _without_a_tensor(f, "base_model.model.other.lora_A.weight"), "which is only in the file"),
    ],
)
def test_adapters_that_cannot_be_trained_further_are_refused(broken, message, stored):
    folder, _ = stored
    broken(folder)
    with pytest.raises(LabError, match=message):
        continue_lora(plain(), folder, "base")


def test_adapters_of_another_architecture_are_refused(stored):
    with pytest.raises(LabError, match="do not fit their base llama"):
        continue_lora(plain("llama"), stored[0], "llama")
