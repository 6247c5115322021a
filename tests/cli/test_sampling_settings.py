"""What methods that sample can be told on the command line: SFT data in ReST's mix, vLLM, how many prompts at a time;
and what is said when memory runs out before the first step."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from small import history, train, weights, write_lines
from tiny_models import one_thread  # noqa: F401

from rlhf_lab.cli import sample as sample_module
from rlhf_lab.cli.main import main
from rlhf_lab.cli.train import checks, runner, sampling_batch
from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.policies.transformer import cuda_graph

METHODS = {
    "ppo": ["--samples", "2", "--epochs", "1"],
    "rso": ["--candidates", "4", "--accepted", "2"],
    "raft": ["--best-of", "2", "--rounds", "2"],
    "rest": ["--samples", "2", "--thresholds", "0", "0.3"],
    "iterated-dpo": ["--labels", "8", "--rounds", "2"],
    "rloo": ["--samples", "2"],
    "grpo": ["--samples", "2"],
}


# ReST's original data.


def targets(tmp_path, number: int = 5) -> str:
    rows = [{"prompt": f"Say {i}.", "completion": f" {i}"} for i in range(number)]
    return write_lines(tmp_path / "targets.jsonl", rows)


def test_sft_data_stay_in_rest_s_mix_are_scored_and_filtered_too(model, pairs, reward, tmp_path, monkeypatch):
    """16 prompts with 2 samples each and 5 targets: at τ = 0 the fit sees all 37, at τ = 0.5 those above the middle
    of the range of all 37 scores, which are asked of the reward here once more."""
    from rlhf_lab.algorithms import rest

    seen = []
    monkeypatch.setattr(rest, "sft", lambda policy, x, y, *more: seen.append((x.tolist(), y.tolist())) or [])
    more = ["--samples", "2", "--thresholds", "0", "0.5", "--original", targets(tmp_path)]
    monkeypatch.setattr(runner, "_save", lambda *a: "")
    assert main(train("rest", model, pairs, tmp_path / "run", "--reward", reward, *more)) == 0
    (x, y), (few_x, few_y) = seen
    assert len(x) == len(y) == 16 * 2 + 5
    from transformers import AutoTokenizer

    from rlhf_lab.batch import Tokens
    from rlhf_lab.rewards.language_model import LanguageModelReward

    tokenizer = AutoTokenizer.from_pretrained(model)
    assert [tokenizer.decode(ids) for ids in x[32:]] == [f"Say {i}." for i in range(5)]
    assert [tokenizer.decode(ids[0]) for ids in y[32:]] == [f" {i}<end>" for i in range(5)]
    scorer = LanguageModelReward.from_pretrained(Path(reward) / "model", tokenizer, torch.device("cpu"))
    with torch.no_grad():
        scores = scorer(Tokens.from_lists(x), Tokens.from_lists(y)).flatten()
    share = (scores - scores.min()) / (scores.max() - scores.min())
    clear = (share - 0.5).abs() > 1e-3  # the rest is rounding's to decide
    kept = {json.dumps(row) for row in zip(few_x, few_y, strict=True)}
    for row, passes, sure in zip(zip(x, y, strict=True), (share > 0.5).tolist(), clear.tolist(), strict=True):
        assert not sure or (json.dumps(row) in kept) == passes
    card = (tmp_path / "run" / "README.md").read_text()
    assert "original: " in card and "5 examples" in card
    assert len(json.loads((tmp_path / "run" / "run.json").read_text())["original_sha256"]) == 64


def test_original_data_are_limited_and_a_world_s_are_its_targets(model, pairs, reward, tmp_path):
    more = ["--samples", "2", "--thresholds", "0", "--original", targets(tmp_path, 9), "--original-limit", "3"]
    assert main(train("rest", model, pairs, tmp_path / "run", "--reward", reward, *more)) == 0
    assert "3 examples" in (tmp_path / "run" / "README.md").read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--original", "nothing.jsonl"], "There is no data file nothing.jsonl"),
        (["--original", "world:weather"], "no text world 'weather'"),
        (["--original-limit", "3"], "--original-limit 3 has no effect without original"),
    ],
)
def test_original_data_that_cannot_be_had_are_refused_at_once(model, pairs, reward, more, message, tmp_path, capsys):
    assert main(train("rest", model, pairs, tmp_path / "run", "--reward", reward, *more)) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


# vLLM.


class Engine:
    """A stand-in for `vllm.LLM`: answers with the policy itself, read from the folder that it was started on."""

    started: list["Engine"] = []  # noqa: RUF012

    def __init__(self, model: str, **options):
        from transformers import AutoModelForCausalLM

        self.model, self.options, self.read, self.asked = model, options, [load_file(f"{model}/model.safetensors")], 0
        self.policy = LanguageModelPolicy(AutoModelForCausalLM.from_pretrained(model), 0, 8)
        Engine.started.append(self)

    def collective_rpc(self, method: str):
        assert method == "reload_weights"
        self.read.append(load_file(f"{self.model}/model.safetensors"))

    def reset_prefix_cache(self):
        pass

    def generate(self, prompts, settings):
        self.asked += 1
        some = settings[0]
        answer = SimpleNamespace(token_ids=(5, *some["stop_token_ids"]))
        return [SimpleNamespace(outputs=[answer] * (some["n"] - 1) + [SimpleNamespace(token_ids=(7, 8))])] * len(
            prompts
        )


@pytest.fixture
def vllm(monkeypatch):
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = Engine, dict
    monkeypatch.setitem(sys.modules, "vllm", module)
    Engine.started = []
    return Engine


@pytest.mark.parametrize("method", METHODS)
def test_every_method_that_samples_can_have_vllm_draw(method, model, pairs, reward, vllm, tmp_path):
    """One engine, on the model that the run started from. Methods that draw again after they have trained have it
    read the weights as they are then; of RSO the candidates are the reference's, once."""
    words = train(method, model, pairs, tmp_path / "run", "--reward", reward, "--sampler", "vllm", *METHODS[method])
    assert main(words) == 0
    (engine,) = vllm.started
    assert engine.asked and engine.options["dtype"] == "float32"
    start, end = weights(Path(model)), weights(tmp_path / "run" / "model")
    assert all(torch.equal(engine.read[0][name], start[name]) for name in start)
    again = {"rso": 0, "rest": 0}.get(method, 1)
    assert len(engine.read) == 1 + again
    assert not again or any(not torch.equal(engine.read[1][name], start[name]) for name in start)
    assert end.keys() == start.keys() and any(not torch.equal(end[name], start[name]) for name in start)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["sampler"] == "vllm"
    assert history(tmp_path / "run")


def test_sample_can_have_vllm_draw(model, vllm, capsys):
    words = ["sample", "--model", model, "--device", "cpu", "--max-response-tokens", "6", "--no-progress"]
    assert main([*words, "--prompt", "What?", "--num-samples", "2", "--sampler", "vllm"]) == 0
    assert capsys.readouterr().out.count("--- ") == 2 and len(vllm.started) == 1


@pytest.mark.skipif("vllm" in sys.modules, reason="vLLM is installed")
@pytest.mark.parametrize("method", ["ppo", "rso", "sample"])
def test_without_vllm_it_is_refused_before_anything_is_loaded(
    method, model, pairs, reward, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "vllm", None)  # as if it were not installed, wherever this runs
    for module in (runner, sample_module):
        monkeypatch.setattr(module, "load_language_model", lambda *a, **k: pytest.fail("the model was loaded"))
    words = ["sample", "--model", model, "--prompt", "What?"]
    if method != "sample":
        words = train(method, model, pairs, tmp_path / "run", "--reward", reward)
    assert main([*words, "--sampler", "vllm"]) == 2
    assert "vLLM is not installed. Run pip install" in capsys.readouterr().err and not (tmp_path / "run").exists()


# CUDA graphs.


@pytest.mark.parametrize("method", ["ppo", "rso", "sample"])
def test_graphs_without_a_gpu_are_refused_before_anything_is_loaded(
    method, model, pairs, reward, tmp_path, monkeypatch, capsys
):
    for module in (runner, sample_module):
        monkeypatch.setattr(module, "load_language_model", lambda *a, **k: pytest.fail("the model was loaded"))
    words = ["sample", "--model", model, "--prompt", "What?", "--device", "cpu"]
    if method != "sample":
        words = train(method, model, pairs, tmp_path / "run", "--reward", reward)
    assert main([*words, "--sampler", "graphs"]) == 2
    assert "CUDA graphs need a CUDA device" in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_that_samples_can_draw_with_recorded_steps(method, model, pairs, reward, tmp_path, monkeypatch):
    """On the CPU a step is not recorded but computed each time it is replayed, with the buffers of a graph."""
    made = []

    def computed(run):
        made.append(out := run())
        return cuda_graph.Recording(lambda: out.copy_(run()), out)

    monkeypatch.setattr(cuda_graph, "record_cuda_graph", computed)
    for module in (cuda_graph, checks):
        monkeypatch.setattr(module, "check_cuda_device", lambda device: None)
    words = train(method, model, pairs, tmp_path / "run", "--reward", reward, "--sampler", "graphs", *METHODS[method])
    assert main(words) == 0
    assert made and history(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["sampler"] == "graphs"


# Prompts at a time.


def config(layers=12, hidden=768, heads=12, vocab=50257, **more) -> SimpleNamespace:
    return SimpleNamespace(
        num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads, vocab_size=vocab, **more
    )


def test_prompts_at_a_time_are_those_whose_keys_values_and_logits_fit_into_a_gibibyte():
    """GPT-2, 64 candidates of 53 tokens to 512 of a prompt: 2 · 12 · 768 · 4 bytes of keys and values a token, three
    rows of 50,257 logits a candidate."""
    each = (512 + 64 * 53) * 2 * 12 * 768 * 4 + 3 * 64 * 50257 * 4 + 9 * 64 * 53
    assert sampling_batch.sampling_batch_size(config(), 64, (512, 53)) == 2**30 // each == 3
    assert sampling_batch.sampling_batch_size(config(num_key_value_heads=1), 64, (512, 53)) > 3
    assert sampling_batch.sampling_batch_size(config(2, 32, 2, 300), 2, (8, 8)) == 512
    assert sampling_batch.sampling_batch_size(config(48, 1600, 25), 64, (512, 512)) == 1


@pytest.mark.parametrize("method", ["rso", "raft", "rest"])
def test_prompts_at_a_time_are_recorded_and_what_was_given_is_left_alone(method, model, pairs, reward, tmp_path):
    for more, expected in (([], 512), (["--sampling-batch-size", "7"], 7)):
        out = tmp_path / f"run-{expected}"
        assert main(train(method, model, pairs, out, "--reward", reward, *METHODS[method], *more)) == 0
        assert json.loads((out / "run.json").read_text())[method]["sampling_batch_size"] == expected
        assert f"sampling_batch_size: {expected}" in (out / "settings.yaml").read_text()


# Memory.


@pytest.mark.parametrize("where", ["loading", "sampling"])
def test_out_of_memory_before_the_first_step_is_one_sentence_and_leaves_no_folder(
    where, model, pairs, reward, tmp_path, monkeypatch, capsys
):
    def full(*arguments, **more):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    if where == "loading":
        monkeypatch.setattr(runner, "load_language_model", full)
    else:
        monkeypatch.setattr(LanguageModelPolicy, "sample", full)
    words = train("raft", model, pairs, tmp_path / "run", "--reward", reward, "--sampling-batch-size", "9")
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and "a smaller --batch-size (now 4)" in said and "--precision bf16" in said
    assert "lower --sampling-batch-size (now 9)" in said and "rlhf-lab plan" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_out_of_memory_in_a_command_that_does_not_train_is_said_too(error, model, monkeypatch, capsys):
    def full(*arguments, **more):
        raise error

    monkeypatch.setattr(sample_module, "load_language_model", full)
    assert main(["sample", "--model", model, "--prompt", "What?", "--batch-size", "5", "--no-progress"]) == 2
    assert "a smaller --batch-size (now 5); shorter prompts" in capsys.readouterr().err


def test_another_error_keeps_its_traceback(model, monkeypatch):
    def broken(*arguments, **more):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(sample_module, "load_language_model", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        main(["sample", "--model", model, "--prompt", "What?", "--no-progress"])
