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
from rlhf_lab.cli.plan import ResourcePlan
from rlhf_lab.cli.train import runner
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
        ("dpo", ["--lora-rank", "4"], "--lora-rank 4 does not fit the adapters in"),
        ("dpo", ["--lora-rank", "2", "--lora-alpha", "3"], "--lora-alpha 3.0 does not fit"),
        ("dpo", ["--lora-targets", "c_proj"], "--lora-targets c_proj does not fit the adapters in"),
        ("dpo", ["--lora-rank-stabilised"], "--lora-rank-stabilised does not fit"),
    ],
)
def test_settings_that_are_not_those_of_the_adapters_are_refused(
    method, words, message, first, pairs, tmp_path, capsys
):
    out = tmp_path / "run"
    assert main(train(method, str(first), pairs, out, "--adapter", "continue", *words)) == 2
    assert message in capsys.readouterr().err and not out.exists()


def test_adapters_that_do_not_fit_their_base_are_refused_before_weights_are_loaded(
    first, pairs, tmp_path, capsys, monkeypatch
):
    copy = shutil.copytree(first, tmp_path / "copy") / "adapters"
    config = json.loads((copy / "adapter_config.json").read_text())
    monkeypatch.setattr(runner, "load_language_model", lambda *a, **k: pytest.fail("the weights were loaded"))
    for changes, message in (({"r": 4}, "tensors have other shapes"), ({"target_modules": ["c_fc"]}, "tensors differ")):
        (copy / "adapter_config.json").write_text(json.dumps({**config, **changes}))
        for words in (["--adapter", "continue"], []):
            for last in (["--dry-run"], []):
                assert main(train("dpo", str(copy), pairs, tmp_path / "run", *words, *last)) == 2
                said = capsys.readouterr().err
                assert "do not fit their base" in said and message in said
    monkeypatch.setattr(quantised, "check_bitsandbytes", lambda: None)
    words = ["--lora-rank", "2", "--load-in-4bit", "--dry-run"]
    assert main(train("dpo", str(first / "adapters"), pairs, tmp_path / "run", *words)) == 2
    assert (
        "cannot be merged into weights of 4 bits. Train them further with --adapter continue" in capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["reward-model", "ranker"])
def test_a_reward_starts_from_adapters_that_are_trained_further(method, first, model, pairs, tmp_path):
    """The adapted layers of the body change and no others, and no frozen copy of the adapters is stored. A stopped run
    goes on to the bit."""
    words = ["--adapter", "continue", "--schedule", "constant"]
    whole, half = tmp_path / "whole", tmp_path / "half"
    assert main([*train(method, str(first), pairs, whole, *words), "--steps", "4"]) == 0
    assert main(train(method, str(first), pairs, half, *words)) == 0
    assert main([*train(method, str(first), pairs, half, *words), "--steps", "4", "--resume"]) == 0
    one, two = (load_file(out / "model" / "model.safetensors") for out in (whole, half))
    assert all(torch.equal(one[name], two[name]) for name in one)
    base = weights(Path(model))
    changed = {name for name in one if not torch.equal(one[name], base[f"transformer.{name}"])}
    assert changed and all("c_attn.weight" in name for name in changed)
    stored = load_file(half / "checkpoints" / "step-000004" / "weights.safetensors")
    assert any("lora_A.default" in name for name in stored) and not any("start" in name for name in stored)


def test_plan_counts_the_adapters_that_are_trained_further_and_their_copy(first):
    plain = ResourcePlan(model=str(first), adapter="continue").workload()
    assert plain.saved_adapters == sum(value.numel() for value in weights(first / "adapters").values())
    four = ResourcePlan(model=str(first), adapter="continue", load_in_4bit=True, method="reward-model").workload()
    assert four.four_bits and four.adapted
    with pytest.raises(ValueError, match="lora_rank=8 has no effect with adapter=continue"):
        ResourcePlan(model=str(first), adapter="continue", lora_rank=8).workload()


def test_a_model_without_adapters_cannot_be_continued(model, pairs, tmp_path, capsys):
    assert main(train("dpo", model, pairs, tmp_path / "run", "--adapter", "continue")) == 2
    assert "contains no LoRA adapters that could be trained further" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_weights_of_four_bits_need_adapters_and_the_package(model, pairs, tmp_path, capsys, monkeypatch):
    assert main(train("dpo", model, pairs, tmp_path / "run", "--load-in-4bit")) == 2
    assert "--load-in-4bit needs adapters" in capsys.readouterr().err
    monkeypatch.setattr(quantised, "find_spec", lambda name: None if name == "bitsandbytes" else find_spec(name))
    assert main(train("dpo", model, pairs, tmp_path / "run", "--load-in-4bit", "--lora-rank", "2")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--load-in-4bit needs the package bitsandbytes" in line and "pip install 'rlhf-lab[qlora]'" in line
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


@pytest.mark.parametrize("method", ["reward-model", "ranker"])
def test_a_reward_on_weights_of_four_bits_is_resumed_to_the_bit_and_saved_in_full(method, pairs, tmp_path):
    """Checkpoints have the adapters and the head. The saved body is the one that was trained: it ranks the pairs as
    the last measurement says."""
    pytest.importorskip("bitsandbytes")
    words = ["--load-in-4bit", "--lora-rank", "2", "--schedule", "constant", "--eval-data", pairs]
    whole, half = tmp_path / "whole", tmp_path / "half"
    assert main([*train(method, "lab-gpt2", pairs, whole, *words), "--steps", "4"]) == 0
    assert main(train(method, "lab-gpt2", pairs, half, *words)) == 0
    assert main([*train(method, "lab-gpt2", pairs, half, *words), "--steps", "4", "--resume"]) == 0
    for name in ("model.safetensors", "head.safetensors"):
        one, two = (load_file(out / "model" / name) for out in (whole, half))
        assert all(torch.equal(one[name], two[name]) for name in one)
    stored = load_file(half / "checkpoints" / "step-000004" / "weights.safetensors")
    assert all("lora_" in name or not name.startswith("body.") for name in stored) and "head.weight" in stored
    out = tmp_path / "report"
    limits = ["--max-prompt-tokens", "32", "--max-response-tokens", "8"]
    assert main(["evaluate", "--model", str(half), "--data", pairs, "--out", str(out), "--device", "cpu", *limits]) == 0
    found = json.loads((out / "report.json").read_text())
    assert found["margin"]["mean"] == pytest.approx(history(half)[-1]["eval_margin"], abs=1e-3)
