"""Loading a model: what is whole loads, and each way a folder can be broken has its own sentence."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from tiny_models import one_thread, tiny, tiny_tokenizer  # noqa: F401

from rlhf_lab.errors import LabError
from rlhf_lab.policies import loading
from rlhf_lab.policies.loading import load_language_model, pick_device


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "whole"
    tokenizer = tiny_tokenizer(["some text"])
    tiny("gpt_neox", vocab=len(tokenizer) + 3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy to be broken."""
    return shutil.copytree(whole, tmp_path / "copy")


def test_a_whole_folder_loads_in_float32_and_eval_mode(whole):
    model, tokenizer = load_language_model(str(whole), device="cpu")
    assert type(model).__name__ == "GPTNeoXForCausalLM" and not model.training
    assert model.dtype == torch.float32 and tokenizer.eos_token == "<end>"
    assert load_language_model(str(whole), "cpu", torch.bfloat16)[0].dtype == torch.bfloat16


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def pickled_weights(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def damaged_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:200])


def no_head(folder):
    tiny("gpt_neox", vocab=303).gpt_neox.save_pretrained(folder)


def no_config(folder):
    (folder / "config.json").unlink()


def damaged_config(folder):
    (folder / "config.json").write_text("{")


def no_causal_model(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))


def no_tokenizer(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()


def no_end_token(folder):
    tiny_tokenizer(["some text"], end=False).save_pretrained(folder)


def too_many_tokens(folder):
    tiny_tokenizer([f"word{i} more{i}" for i in range(500)], vocab=900).save_pretrained(folder)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (no_weights, r"has no \*\.safetensors file with weights"),
        (pickled_weights, r"has no \*\.safetensors file with weights. Its \.bin weights are pickles"),
        (damaged_weights, "The model of .*copy cannot be loaded"),
        (no_head, "1 of the model.s tensors are missing"),
        (no_config, r"has no config\.json"),
        (damaged_config, "The (tokenizer|configuration) of .*copy cannot be loaded"),
        (no_causal_model, "is a 'vit' model, not a causal language model"),
        (no_tokenizer, "has no tokenizer"),
        (no_end_token, "has no end-of-sequence token"),
        (too_many_tokens, "its model"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_broken_folder_is_refused_in_one_sentence(folder, broken, message):
    broken(folder)
    with pytest.raises(LabError, match=message) as caught:
        load_language_model(str(folder), device="cpu")
    assert "\n" not in str(caught.value)


def test_a_file_and_a_path_that_is_not_there_are_refused(whole, tmp_path):
    with pytest.raises(LabError, match="is a file"):
        load_language_model(str(whole / "config.json"))
    with pytest.raises(LabError, match="There is no model folder"):
        load_language_model(str(tmp_path / "nothing" / "here"))


def test_a_device_that_is_not_there_is_refused():
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(LabError, match="'cuda:99' cannot be used"):
        pick_device("cuda:99")


class Factory:
    """Stands in for `AutoModelForCausalLM` and the like: remembers how it was asked."""

    asked: list[dict] = []  # noqa: RUF012

    @classmethod
    def from_pretrained(cls, name, **how):
        cls.asked.append({"name": name, **how})


@pytest.mark.parametrize("online", [True, False])
def test_a_model_of_the_hub_is_asked_for_at_its_revision_and_without_the_network_in_the_cache_alone(
    online, monkeypatch
):
    monkeypatch.setattr(
        loading.hub_lookup, "can_download", lambda kind, name, revision: online and revision in ("v2", None)
    )
    Factory.asked = []
    for revision in ("v2", None):
        loading._load(Factory, "someone/model", revision, "model")
    assert [(a["name"], a["revision"], a["local_files_only"], a["trust_remote_code"]) for a in Factory.asked] == [
        ("someone/model", "v2", not online, False), ("someone/model", "main", not online, False),
    ]  # fmt: skip


def test_a_tokenizer_with_one_token_more_than_the_model_is_refused_and_one_with_as_many_is_not(whole, tmp_path):
    _, tokenizer = load_language_model(str(whole), "cpu")
    for more, fits in ((0, True), (1, False)):
        folder = tmp_path / str(more)
        tiny("gpt2", vocab=len(tokenizer) - more).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if fits:
            assert load_language_model(str(folder), "cpu")[0].config.vocab_size == len(tokenizer)
            continue
        with pytest.raises(LabError, match=f"has {len(tokenizer)} tokens, its model {len(tokenizer) - 1}"):
            load_language_model(str(folder), "cpu")


def test_the_hub_is_asked_for_the_commit_of_the_revision(monkeypatch):
    import huggingface_hub

    seen = []

    class Api:
        def model_info(self, name, revision=None, timeout=None):
            seen.append((name, revision))
            return SimpleNamespace(sha=f"commit of {revision}")

        dataset_info = model_info

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(loading.hub_lookup, "is_offline", lambda: False)
    assert loading.hub_lookup.hub_commit("model", "a/b", "v2") == "commit of v2"
    assert loading.hub_lookup.hub_commit("dataset", "a/c") == "commit of None" and seen == [
        ("a/b", "v2"),
        ("a/c", None),
    ]


def test_working_offline_ends_and_the_environment_forbids_the_network_in_all_its_spellings(monkeypatch):
    import huggingface_hub.constants as constants

    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with loading.hub_lookup.offline_mode():
        assert constants.HF_HUB_OFFLINE is True
    assert constants.HF_HUB_OFFLINE is False and not loading.hub_lookup.is_offline()
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        for value, forbidden in (("1", True), ("true", True), ("YES", True), ("on", True), ("0", False), ("", False)):
            monkeypatch.setenv(name, value)
            assert loading.hub_lookup.is_offline() is forbidden
        monkeypatch.delenv(name)
