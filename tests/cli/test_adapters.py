"""`--adapter continue`: a run goes on with LoRA adapters, and its reference is the model with them as they were."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small import history, train, weights
from tiny_models import one_thread, tiny_tokenizer  # noqa: F401

from rlhf_lab.cli.main import main
from rlhf_lab.policies import quantised
from rlhf_lab.policies.loading import adapter_base, load_language_model

pytest.importorskip("peft")


@pytest.fixture(scope="module")
def first(model, pairs, tmp_path_factory):
    """A run that trained adapters of rank 2."""
    out = tmp_path_factory.mktemp("adapters") / "first"
    assert main(train("sft", model, pairs, out, "--lora-rank", "2")) == 0
    return out


@pytest.mark.parametrize("given", ["", "adapters"])
def test_a_run_goes_on_with_the_adapters_of_another(given, first, model, pairs, tmp_path):
    """The implicit reward starts at 0, so the reference is the model with the adapters. Adapters and merged weights
    are those of one model, and all other weights are the base's to the bit."""
    out = tmp_path / "second"
    words = ["--adapter", "continue", "--lora-rank", "2"]
    assert main(train("dpo", str(first / given), pairs, out, *words)) == 0
    start = history(out)[0]
    assert abs(start["margin"]) < 1e-4 and abs(start["chosen_log_ratio"]) < 1e-4
    before, after = weights(first / "adapters"), weights(out / "adapters")
    assert before.keys() == after.keys() and any(not torch.equal(before[n], after[n]) for n in before)
    assert adapter_base(str(out / "adapters")) == model
    merged, _ = load_language_model(str(out / "adapters"), "cpu")
    stored, base = weights(out / "model"), weights(Path(model))
    for name, value in merged.state_dict().items():
        if name in stored:
            assert torch.allclose(stored[name], value, atol=1e-6)
    assert torch.equal(stored["transformer.wte.weight"], base["transformer.wte.weight"])
    assert "are trained further" in (out / "README.md").read_text()


def test_without_the_option_the_adapters_are_merged_and_new_ones_are_trained(first, pairs, tmp_path):
    out = tmp_path / "run"
    assert main(train("dpo", str(first / "adapters"), pairs, out, "--lora-rank", "4")) == 0
    assert json.loads((out / "adapters" / "adapter_config.json").read_text())["r"] == 4
    # New adapters on merged ones name the merged ones as their base, and not the base of these.
    named = json.loads((out / "adapters" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(first / "adapters")
    again = tmp_path / "again"
    assert main(train("dpo", str(out), pairs, again, "--adapter", "continue")) == 0
    assert adapter_base(str(again / "adapters")) == str(first / "adapters")


def test_a_continued_run_that_was_stopped_is_resumed_to_the_bit(first, pairs, tmp_path):
    words = ["--adapter", "continue", "--lora-dropout", "0.3", "--schedule", "constant"]
    whole, half = tmp_path / "whole", tmp_path / "half"
    assert main([*train("dpo", str(first), pairs, whole, *words), "--steps", "4"]) == 0
    assert main(train("dpo", str(first), pairs, half, *words)) == 0
    assert main([*train("dpo", str(first), pairs, half, *words), "--steps", "4", "--resume"]) == 0
    one, two = (weights(out / "adapters") for out in (whole, half))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_base_of_continued_adapters_is_known_when_the_earlier_run_is_gone(first, model, pairs, tmp_path):
    copy = shutil.copytree(first, tmp_path / "copy")
    out = tmp_path / "run"
    assert main(train("sft", str(copy), pairs, out, "--adapter", "continue")) == 0
    shutil.rmtree(copy)
    assert adapter_base(str(out / "adapters")) == model


@pytest.mark.parametrize(
    ("method", "words", "message"),
    [
        ("dpo", ["--lora-rank", "4"], "lora_rank=4 does not fit the adapters in"),
        ("dpo", ["--lora-rank", "2", "--lora-alpha", "3"], "lora_alpha=3.0 does not fit"),
        ("dpo", ["--lora-targets", "c_proj"], "lora_targets=('c_proj',) does not fit"),
        ("dpo", ["--lora-rank-stabilised"], "lora_rank_stabilised=True does not fit"),
        ("reward-model", [], "adapter=continue cannot be used with reward-model. Leave it out, and give lora_rank"),
        ("ranker", [], "adapter=continue cannot be used with ranker. Leave it out"),
    ],
)
def test_settings_that_are_not_those_of_the_adapters_are_refused(
    method, words, message, first, pairs, tmp_path, capsys
):
    out = tmp_path / "run"
    assert main(train(method, str(first), pairs, out, "--adapter", "continue", *words)) == 2
    assert message in capsys.readouterr().err and not out.exists()


def test_a_model_without_adapters_cannot_be_continued(model, pairs, tmp_path, capsys):
    assert main(train("dpo", model, pairs, tmp_path / "run", "--adapter", "continue")) == 2
    assert "contains no LoRA adapters that could be trained further" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_weights_of_four_bits_need_adapters_and_the_package(model, pairs, tmp_path, capsys, monkeypatch):
    assert main(train("dpo", model, pairs, tmp_path / "run", "--load-in-4bit")) == 2
    assert "load_in_4bit needs adapters" in capsys.readouterr().err
    monkeypatch.setattr(quantised, "find_spec", lambda name: None if name == "bitsandbytes" else find_spec(name))
    assert main(train("dpo", model, pairs, tmp_path / "run", "--load-in-4bit", "--lora-rank", "2")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "load_in_4bit needs the package bitsandbytes" in line and "pip install 'rlhf-lab[qlora]'" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("loss", [[], ["--loss", "bco", "--shift-decay", "0.5"]])
def test_a_run_on_weights_of_four_bits_is_resumed_to_the_bit_and_its_checkpoints_have_adapters_only(
    loss, pairs, tmp_path
):
    pytest.importorskip("bitsandbytes")
    words = ["--load-in-4bit", "--lora-rank", "2", "--schedule", "constant", *loss]
    whole, half = tmp_path / "whole", tmp_path / "half"
    assert main([*train("dpo", "lab-gpt2", pairs, whole, *words), "--steps", "4"]) == 0
    assert main(train("dpo", "lab-gpt2", pairs, half, *words)) == 0
    assert main([*train("dpo", "lab-gpt2", pairs, half, *words), "--steps", "4", "--resume"]) == 0
    one, two = (weights(out / "adapters") for out in (whole, half))
    assert all(torch.equal(one[name], two[name]) for name in one)
    stored = load_file(half / "checkpoints" / "step-000004" / "weights.safetensors")
    assert all("lora_" in name or name.startswith("shift.") for name in stored)
    model, _ = load_language_model(str(half / "model"), "cpu")
    assert not quantised.is_quantised(model)
