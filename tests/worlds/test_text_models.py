"""The shipped models: they load everywhere, are small, and speak the languages of their worlds."""

import importlib.util
import json
import math
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from rlhf_lab.errors import LabError
from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.worlds import text

ROOT = Path(__file__).parents[2]
MODELS = ("gpt2", "pythia")
load = cache(text.load)


@pytest.fixture(scope="module", params=MODELS)
def shipped(request):
    """Model and tokenizer, as anybody loads them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = ROOT / "data" / "models" / request.param
    if not (folder / "metrics.json").is_file():
        pytest.skip(f"{request.param} is not built (make models); test_both_models_ship says so")
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder), folder


def test_both_models_ship():
    for name in MODELS:
        assert (text.shipped(name) / "metrics.json").is_file(), "the build has not ended: run make models"
        assert not (text.shipped(name) / "pretrained.json").exists()


def test_a_shipped_model_is_small_float32_and_of_its_architecture(shipped):
    model, tokenizer, folder = shipped
    assert model.config.model_type == {"gpt2": "gpt2", "pythia": "gpt_neox"}[folder.name]
    assert 0.8e6 < sum(p.numel() for p in model.parameters()) < 1.25e6
    assert (folder / "model.safetensors").stat().st_size < 5e6
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not [file for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pkl")]
    assert model.config.vocab_size == len(tokenizer)


def test_one_vocabulary_with_an_end_and_a_padding_token_of_their_own(shipped):
    _, tokenizer, folder = shipped
    assert 1000 <= len(tokenizer) <= 2000
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    other = (folder.parent / MODELS[folder.name == MODELS[0]] / "tokenizer.json").read_bytes()
    assert (folder / "tokenizer.json").read_bytes() == other


def test_texts_go_through_the_tokenizer_and_come_back_unchanged(shipped):
    tokenizer = shipped[1]
    texts = ["", " ", "\n\nHuman: \tÄpfel & 面 ☃ e\u0301\n\n  x  \r\n", "What 's up ? I ca n't , really ."]
    for name in text.WORLDS:
        for split in ("train", "validation", "test"):
            texts += [part for e in load(name).examples(split, 200) for part in (e.prompt, e.target)]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert tokenizer.batch_decode(ids) == texts
    assert max(map(max, ids[4:])) < len(tokenizer) and tokenizer.eos_token_id not in {i for row in ids for i in row}


def test_prompt_and_target_apart_give_the_tokens_of_the_whole(shipped):
    tokenizer = shipped[1]
    for name in text.WORLDS:
        for e in load(name).examples("train", 100):
            apart = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in (e.prompt, e.target)]
            assert apart[0] + apart[1] == tokenizer(e.prompt + e.target, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(("name", "prompt", "response"), [
    ("sentiment", 48, 40), ("summaries", 90, 40), ("dialogue", 90, 40), ("translation", 48, 32)])  # fmt: skip
def test_texts_keep_to_their_budget_of_tokens(shipped, name, prompt, response):
    model, tokenizer, _ = shipped
    world = load(name)
    assert world.prompts(tokenizer, "train", 500).shape[1] <= prompt
    assert world.sft(tokenizer, "train", 500)[1].shape[2] <= response
    assert prompt + response + 8 <= model.config.max_position_embeddings


@pytest.mark.parametrize("name", text.WORLDS)
def test_answers_to_test_prompts_are_of_the_grammar_and_differ(shipped, name):
    """64 test prompts, one answer each, at temperature 1.

    The bound is the share in the model's own card less five standard deviations of 64 draws, and never below 60%.
    """
    model, tokenizer, folder = shipped
    measured = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["worlds"][name]["speaks"]
    world = load(name)
    policy = LanguageModelPolicy(model, tokenizer.eos_token_id, 40, tokenizer=tokenizer)
    prompts = world.prompts(tokenizer, "test", 64)
    responses = policy.sample(prompts, 1, torch.Generator().manual_seed(1))
    said = tokenizer.batch_decode([y for (y,) in responses.tolist()], skip_special_tokens=True)
    share = sum(world.follows_grammar(e.prompt, y) for e, y in zip(world.examples("test", 64), said, strict=True)) / 64
    assert measured > 0.6
    assert share >= measured - 5 * math.sqrt(max(measured * (1 - measured), 0.01) / 64)
    assert len(set(said)) > 32


def test_there_is_room_above_the_reference_and_answers_to_one_prompt_differ_in_worth(shipped):
    """Best of four answers beats their mean in every world: what preferences and RL have to work with."""
    for name, numbers in json.loads((shipped[2] / "metrics.json").read_text(encoding="utf-8"))["worlds"].items():
        assert numbers["gold_best_of"] - numbers["gold"] > 5 * numbers["gold_error"], name
        assert numbers["gold_spread"] > 0.05, name


def test_an_unknown_model_is_refused():
    with pytest.raises(LabError, match="no shipped model 'bert'"):
        text.shipped("bert")


@pytest.mark.slow
def test_a_quick_build_writes_its_card_and_a_second_one_the_same_weights(tmp_path, capsys):
    """Tokenizer, weights and measured numbers are functions of the recipe alone."""
    spec = importlib.util.spec_from_file_location("build_models", ROOT / "tools" / "build_models.py")
    tool = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = tool  # its dataclasses look themselves up there
    spec.loader.exec_module(tool)
    for folder in ("one", "two"):
        tool.build(["gpt2"], tmp_path / folder, tool.QUICK)
    metrics = json.loads((tmp_path / "one" / "gpt2" / "metrics.json").read_text(encoding="utf-8"))
    assert set(metrics["worlds"]) == set(text.WORLDS)
    assert f"{metrics['weights']:,} weights" in (tmp_path / "one" / "gpt2" / "README.md").read_text(encoding="utf-8")
    capsys.readouterr()
    tool.compare(["gpt2"], tmp_path / "one", tmp_path / "two")
    said = capsys.readouterr().out
    assert "gpt2: tokenizer identical, largest difference of weights 0\n" in said
    assert said.count("(+0.0000 nats)") == len(text.WORLDS)
