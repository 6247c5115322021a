"""Reward models in folders, and vocabularies that must agree."""

import json

import pytest
import torch
from tiny_models import ARCHITECTURES, one_thread, tiny, tiny_tokenizer, variable_length_batch  # noqa: F401

from rlhf_lab.errors import LabError
from rlhf_lab.rewards.language_model import LanguageModelCritic, LanguageModelReward

TEXTS = ["the cat sat on the mat", "a dog ran in the park"]


def made(kind="gpt2", tokenizer=None):
    module = LanguageModelReward(tiny(kind, vocab=300), tokenizer)
    with torch.no_grad():
        module.head.weight.copy_(torch.randn(module.head.weight.shape, generator=torch.Generator().manual_seed(5)))
        module.head.bias.fill_(0.25)
    return module.eval()


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_reward_model_comes_back_from_its_folder_with_the_same_numbers(kind, tmp_path):
    tokenizer = tiny_tokenizer(TEXTS)
    module = made(kind, tokenizer)
    module.save_pretrained(tmp_path / "rm")
    back = LanguageModelReward.from_pretrained(tmp_path / "rm", policy_tokenizer=tokenizer)
    prompts, responses = variable_length_batch()
    assert torch.equal(back(prompts, responses), module(prompts, responses)) and not back.training
    assert back.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert all(p.suffix in (".json", ".safetensors", ".jinja") for p in (tmp_path / "rm").iterdir())
    # Saving over itself leaves a whole folder; a model that scores has a body that transformers reads.
    back.save_pretrained(tmp_path / "rm")
    from transformers import AutoModel

    body = AutoModel.from_pretrained(str(tmp_path / "rm"))
    assert torch.equal(body.get_input_embeddings().weight, module.body.get_input_embeddings().weight)


def test_without_a_tokenizer_it_is_saved_without_one_and_a_critic_starts_from_it(tmp_path):
    module = made()
    module.save_pretrained(tmp_path / "rm")
    back = LanguageModelReward.from_pretrained(tmp_path / "rm", policy_tokenizer=tiny_tokenizer(TEXTS))
    assert back.tokenizer is None
    critic = LanguageModelCritic(back)
    critic.save_pretrained(tmp_path / "critic")
    again = LanguageModelCritic.from_pretrained(tmp_path / "critic")
    prompts, responses = variable_length_batch()
    assert torch.equal(again(prompts, responses), critic(prompts, responses))
    with pytest.raises(LabError, match="contains a critic, not a reward model"):
        LanguageModelReward.from_pretrained(tmp_path / "critic")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "reward.json").unlink(), "reward.json is missing"),
        (lambda f: (f / "reward.json").write_text('{"kind": '), "reward.json is damaged"),
        (lambda f: (f / "head.safetensors").write_bytes((f / "head.safetensors").read_bytes()[:40]), "cannot be read"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "cannot be read"),
        (lambda f: (f / "model.safetensors").unlink(), "cannot be read"),
        (lambda f: (f / "config.json").unlink(), "cannot be read"),
    ],
)
def test_a_folder_that_is_not_whole_is_one_error_that_names_it(spoil, message, tmp_path):
    made().save_pretrained(tmp_path / "rm")
    spoil(tmp_path / "rm")
    with pytest.raises(LabError, match=message) as caught:
        LanguageModelReward.from_pretrained(tmp_path / "rm")
    assert str(tmp_path / "rm") in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_no_folder_and_a_head_of_another_width_are_named(tmp_path):
    with pytest.raises(LabError, match="not a folder"):
        LanguageModelReward.from_pretrained(tmp_path / "none")
    from safetensors.torch import save_file

    made().save_pretrained(tmp_path / "rm")
    save_file({"head.weight": torch.zeros(1, 7), "head.bias": torch.zeros(1)}, tmp_path / "rm" / "head.safetensors")
    with pytest.raises(LabError, match="does not fit its body"):
        LanguageModelReward.from_pretrained(tmp_path / "rm")


def test_a_reward_model_of_another_tokenizer_is_refused_and_both_are_named(tmp_path):
    ours, theirs = tiny_tokenizer(TEXTS), tiny_tokenizer(["zebras and quizzes, quite lazy zebras"])
    ours.save_pretrained(tmp_path / "policy")
    made(tokenizer=theirs).save_pretrained(tmp_path / "rm")
    from transformers import AutoTokenizer

    policy_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")
    with pytest.raises(LabError, match="have different vocabularies .* tokens differ") as caught:
        LanguageModelReward.from_pretrained(tmp_path / "rm", policy_tokenizer=policy_tokenizer)
    assert str(tmp_path / "policy") in str(caught.value) and str(tmp_path / "rm") in str(caught.value)
    more = tiny_tokenizer(TEXTS)
    more.add_tokens(["<pad>"])
    made(tokenizer=more).save_pretrained(tmp_path / "wider")
    assert len(LanguageModelReward.from_pretrained(tmp_path / "wider", policy_tokenizer=ours).tokenizer) == len(more)


def test_what_is_written_names_no_code_and_no_path(tmp_path):
    made().save_pretrained(tmp_path / "rm")
    config = json.loads((tmp_path / "rm" / "config.json").read_text())
    assert "auto_map" not in config and str(tmp_path) not in json.dumps(config)


def test_the_body_is_read_in_the_type_asked_for_and_the_head_stays_float32(tmp_path):
    made().save_pretrained(tmp_path / "rm")
    for dtype, found in ((None, torch.float32), (torch.bfloat16, torch.bfloat16)):
        back = LanguageModelReward.from_pretrained(tmp_path / "rm", dtype=dtype)
        assert {p.dtype for p in back.body.parameters()} == {found} and back.head.weight.dtype == torch.float32


def test_a_model_that_starts_from_another_has_its_tokenizer_unless_one_is_given():
    ours, other = tiny_tokenizer(TEXTS), tiny_tokenizer(["zebras and quizzes"])
    start = made(tokenizer=ours)
    assert LanguageModelCritic(start).tokenizer.get_vocab() == ours.get_vocab()
    assert LanguageModelCritic(start, other).tokenizer is other


def test_a_folder_that_is_being_written_anew_is_not_taken_for_a_whole_one(tmp_path):
    """The record goes first and comes back last. Here the body cannot be written."""
    made().save_pretrained(tmp_path / "rm")
    module = made()

    def full(folder):
        raise OSError("No space left on device")

    module.body.save_pretrained = full
    with pytest.raises(OSError, match="No space"):
        module.save_pretrained(tmp_path / "rm")
    with pytest.raises(LabError, match="contains no complete reward model"):
        LanguageModelReward.from_pretrained(tmp_path / "rm")


def test_a_body_that_lacks_weights_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    made().save_pretrained(tmp_path / "rm")
    weights = load_file(tmp_path / "rm" / "model.safetensors")
    weights = {name: value for name, value in weights.items() if "h.1." not in name}
    save_file(weights, tmp_path / "rm" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LabError, match=r"for example h\.1\."):
        LanguageModelReward.from_pretrained(tmp_path / "rm")
