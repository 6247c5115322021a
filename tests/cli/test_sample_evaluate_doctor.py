"""`rlhf-lab sample`, `evaluate` and `doctor`."""

import json

import pytest
import torch
from small import make, pair_rows, write_lines
from tiny_models import one_thread  # noqa: F401

from rlhf_lab.cli import doctor as doctor_module
from rlhf_lab.cli.main import main
from rlhf_lab.policies import hub_lookup


def sample(model, *more):
    return ["sample", "--model", model, "--device", "cpu", "--max-response-tokens", "6", "--no-progress", *more]


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_sample_prints_each_prompt_with_its_responses(model, capsys):
    assert main(sample(model, "--prompt", "What is 1?", "And 2?", "--num-samples", "2")) == 0
    said = capsys.readouterr().out
    assert said.count("=== ") == 2 and said.count("--- 1\n") == 2 and said.count("--- 2\n") == 2


def test_sample_writes_a_line_for_each_response_and_the_same_ones_again(model, pairs, tmp_path):
    """16 prompts, 3 samples each: 48 lines, in order. The seed decides; another one draws others."""
    words = ("--data", pairs, "--num-samples", "3", "--batch-size", "5")
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert main(sample(model, *words, "--seed", seed, "--out", str(tmp_path / name))) == 0
    rows = lines(tmp_path / "a")
    assert len(rows) == 48 and [row["sample"] for row in rows] == [0, 1, 2] * 16
    assert {row["prompt"] for row in rows} == {f"\n\nHuman: What is {i} and {i % 5}?\n\nAssistant:" for i in range(16)}
    assert all(1 <= row["tokens"] <= 6 and isinstance(row["ended"], bool) for row in rows)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != (tmp_path / "c").read_bytes()


def test_sample_that_was_cut_off_goes_on_and_ends_with_the_same_file(model, pairs, tmp_path, capsys):
    """The file is cut in the middle of its second batch's lines, as a killed process leaves it."""
    words = ("--data", pairs, "--num-samples", "2", "--batch-size", "4")
    assert main(sample(model, *words, "--out", str(tmp_path / "a"))) == 0
    whole = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(whole[: len(whole) * 2 // 5])
    assert main(sample(model, *words, "--out", str(tmp_path / "a"))) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(sample(model, *words, "--out", str(tmp_path / "a"), "--resume", "--temperature", "2")) == 2
    assert "temperature = 1.0, not 2.0" in capsys.readouterr().err
    assert main(sample(model, *words, "--out", str(tmp_path / "a"), "--resume")) == 0
    assert (tmp_path / "a").read_bytes() == whole


def test_sample_with_one_likeliest_token_is_the_same_for_every_seed(model, capsys):
    """With top_k 1 nothing is left to chance."""
    said = []
    for seed in ("0", "1"):
        assert main(sample(model, "--prompt", "What is 1?", "--top-k", "1", "--seed", seed)) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


def test_sample_scores_by_a_reward_model(model, pairs, reward, tmp_path):
    assert main(sample(model, "--data", pairs, "--limit", "3", "--reward", reward, "--out", str(tmp_path / "a"))) == 0
    assert all(isinstance(row["reward"], float) for row in lines(tmp_path / "a"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Give prompts with --prompt"),
        (["--prompt", "a", "--data", "b.jsonl"], "Give prompts with --prompt"),
        (["--prompt", "a", "  "], "Prompt 2 of the command line is empty"),
        (["--prompt", "a", "--temperature", "0"], "--temperature must be"),
        (["--prompt", "a", "--top-k", "0"], "--top-k must be a whole number of at least 1"),
        (["--prompt", "a", "--resume"], "--resume needs --out"),
        (["--prompt", "a", "--chat", "on"], "has no chat template, so chat cannot be on. Leave it out."),
        (["--prompt", "a", "caf\udce9"], "Prompt 2 of the command line contains a lone surrogate (U+DCE9"),
        (["--prompt", "a", "--max-prompt-tokens", "95"], "context of"),
        (["--prompt", "a", "--reward", "gold"], "The reward gold needs a world"),
        (["--prompt", "a", "--out", "nothing", "--resume"], "Nothing to resume"),
    ],
)
def test_sample_refuses_what_it_cannot_use(model, words, message, capsys):
    assert main(sample(model, *words)) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said and "Value error" not in said


def evaluate(model, data, *more):
    return [
        "evaluate", "--model", model, "--reference", model, "--data", data, "--device", "cpu", "--num-samples", "2",
        "--max-response-tokens", "6", "--limit", "6", "--no-progress", *more,
    ]  # fmt: skip


def test_evaluate_writes_its_numbers_and_a_model_is_no_way_from_itself(model, pairs, reward, tmp_path, capsys):
    """KL(π‖π) = 0 by either estimator, to the bit: the log-ratios are zero. The proxy judges against the targets."""
    out = tmp_path / "report"
    assert main(evaluate(model, pairs, "--reward", reward, "--out", str(out))) == 0
    assert "proxy reward" in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    assert report["kl_k1"]["mean"] == 0 == report["kl_k3"]["mean"]
    assert report["prompts"] == 6 and report["samples"] == 2 and report["gold"] is None
    assert 0 <= report["against_targets"]["mean"] <= 1 and report["against_targets"]["comparisons"] == 12
    assert (out / "report.txt").read_text().count("\n") > 8
    assert main(evaluate(model, pairs, "--out", str(out))) == 2
    assert "already contains a report" in capsys.readouterr().err
    again = ["evaluate", "--config", str(out / "settings.yaml"), "--out", str(tmp_path / "again")]
    assert main(again) == 0
    assert (tmp_path / "again" / "report.json").read_bytes() == (out / "report.json").read_bytes()


def test_evaluate_compares_two_models_response_by_response(model, pairs, reward, tmp_path):
    """Six prompts with two responses each are twelve comparisons; the interval holds the mean."""
    other = make(tmp_path / "other", texts=None)
    assert main(evaluate(model, pairs, "--reward", reward, "--against", other, "--out", str(tmp_path / "r"))) == 0
    wins = json.loads((tmp_path / "r" / "report.json").read_text())["against_policy"]
    assert wins["comparisons"] == 12 and 0 <= wins["low"] <= wins["mean"] <= wins["high"] <= 1


@pytest.mark.parametrize("kind", ["reward", "ranker"])
def test_evaluate_measures_a_reward_model_or_ranker_on_pairs(kind, pairs, tmp_path, request, capsys):
    """Twelve of the 16 pairs; the accuracy is the share of rows that the loaded model orders correctly."""
    folder, out = request.getfixturevalue(kind), tmp_path / "report"
    words = ["evaluate", "--model", folder, "--data", pairs, "--limit", "12", "--device", "cpu", "--no-progress"]
    assert main([*words, "--out", str(out)]) == 0
    report = json.loads((out / "report.json").read_text())
    assert (
        report["pairs"] == 12 and report["accuracy"]["low"] <= report["accuracy"]["mean"] <= report["accuracy"]["high"]
    )
    assert sum(group["pairs"] for group in report["calibration"]) == 12
    said = capsys.readouterr().out
    assert "expected calibration error" in said and (out / "report.txt").read_text() == said
    assert main([*words, "--out", str(out)]) == 2
    capsys.readouterr()
    for more, message in (
        (["--num-samples", "2"], "--num-samples 2 has no effect for a reward, which samples no responses"),
        (["--implicit-beta", "0.1"], "--implicit-beta 0.1 has no effect for a reward model or ranker"),
        (["--reference", "lab-gpt2"], "has no effect for a reward model on data that already have responses"),
        (["--data", "world:sentiment"], "world:sentiment has prompts, but no pairs. Give --reference"),
    ):
        assert main([*words, *more]) == 2
        assert message in capsys.readouterr().err


def test_evaluate_measures_the_implicit_reward_of_a_model(model, tmp_path, capsys):
    """The margins are β times the differences of log-ratios. A model against itself has ties only."""
    from rlhf_lab.data.preferences import load_preferences, tokenise
    from rlhf_lab.policies.language_model import LanguageModelPolicy
    from rlhf_lab.policies.loading import load_language_model

    other = make(tmp_path / "other", texts=None)
    with torch.no_grad():  # a model with the same tokenizer and other weights
        moved, tokenizer = load_language_model(other, "cpu")
        for weight in moved.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
        moved.save_pretrained(other)
    rows = [dict(zip(row, reversed(row.values()), strict=True)) if i % 3 else row for i, row in enumerate(pair_rows())]
    pairs = write_lines(tmp_path / "pairs.jsonl", rows)
    words = ["--data", pairs, "--device", "cpu", "--no-progress", "--limit", "None", "--implicit-beta", "0.5"]
    assert main(["evaluate", "--model", other, "--reference", model, *words, "--out", str(tmp_path / "report")]) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    read, _ = tokenise(load_preferences(pairs, tokenizer), tokenizer, 48, 48, tokenizer.eos_token_id)
    ours, theirs = (
        LanguageModelPolicy(one, tokenizer.eos_token_id, 48).log_prob(read.prompts, read.responses).detach()
        for one in (moved, load_language_model(model, "cpu")[0])
    )
    margin = 0.5 * ((ours - theirs)[:, 0] - (ours - theirs)[:, 1])
    assert report["pairs"] == len(read) == 16
    assert report["accuracy"]["mean"] == float((margin > 0).double().mean()) not in (0, 0.5, 1)
    assert report["margin"]["mean"] == pytest.approx(float(margin.mean()), rel=1e-3)
    assert main(["evaluate", "--model", model, "--reference", model, *words, "--out", str(tmp_path / "same")]) == 0
    same = json.loads((tmp_path / "same" / "report.json").read_text())
    assert same["accuracy"]["mean"] == 0.5 and same["margin"]["mean"] == 0
    capsys.readouterr()
    assert main(["evaluate", "--model", model, *words]) == 2
    assert "An implicit reward needs --reference" in capsys.readouterr().err
    assert main(["evaluate", "--model", model, "--reference", model, *words, "--judge", "reward"]) == 2
    assert "has no effect for a reward, which samples no responses" in capsys.readouterr().err


def test_evaluate_samples_the_pairs_of_a_world_from_the_reference(tmp_path):
    from rlhf_lab.policies.loading import load_language_model
    from rlhf_lab.rewards.language_model import LanguageModelReward

    LanguageModelReward(*load_language_model("lab-gpt2")).save_pretrained(tmp_path / "reward")
    words = ["evaluate", "--model", str(tmp_path / "reward"), "--data", "world:sentiment", "--reference", "lab-gpt2"]
    assert main([*words, "--limit", "8", "--device", "cpu", "--no-progress", "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert 6 <= report["pairs"] <= 8 and report["accuracy"]["mean"] == 0.5, "a head of zeros knows nothing"


def test_evaluate_of_a_language_model_needs_a_reference(model, pairs, capsys):
    assert main(["evaluate", "--model", model, "--data", pairs, "--no-progress"]) == 2
    assert "evaluate needs --reference" in capsys.readouterr().err


def test_evaluate_takes_prompts_alone(model, tmp_path, capsys):
    data = write_lines(tmp_path / "prompts.jsonl", [{"prompt": f"What is {i}?"} for i in range(5)])
    assert main(evaluate(model, data)) == 0
    assert "wins against" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--judge", "gold"], "The judge gold needs a world"),
        (["--judge", "reward"], "The judge reward needs --reward"),
        (["--judge", "me"], "--judge must be gold, reward or a URL"),
        (["--gold", "weather"], "weather"),
        (["--reward", "nothing"], "There is no reward folder nothing"),
        (["--num-samples", "0"], "--num-samples must be a whole number of at least 1"),
    ],
)
def test_evaluate_refuses_what_it_cannot_use(model, pairs, words, message, capsys):
    assert main(evaluate(model, pairs, *words)) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said and "Value error" not in said


def test_models_of_two_vocabularies_are_refused(model, pairs, tmp_path, capsys):
    other = make(tmp_path / "other", vocab=290)
    words = ["evaluate", "--model", model, "--reference", other, "--data", pairs, "--device", "cpu", "--no-progress"]
    assert main([*words, "--max-response-tokens", "6"]) == 2
    assert "have different vocabularies" in capsys.readouterr().err


def test_doctor_names_packages_machine_models_and_says_by_its_code_what_is_missing(capsys, monkeypatch, tmp_path):

    monkeypatch.setattr(hub_lookup, "hub_responds", lambda: False)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    monkeypatch.setenv("RLHF_LAB_CACHE", str(tmp_path))
    code = main(["doctor"])
    said = capsys.readouterr().out
    for words in ("transformers", "memory", "lab-gpt2", "smollm2", "A first run", "the Hub cannot be reached"):
        assert words in said
    assert "hf_secret" not in said
    assert code == (1 if "!!" in said else 0)


def test_doctor_says_so_where_it_cannot_look_and_goes_on(capsys, monkeypatch):
    def broken():
        raise RuntimeError("no such thing here")
        yield

    monkeypatch.setattr(doctor_module, "_machine", broken)
    monkeypatch.setattr(doctor_module, "_version", lambda name: None if name == "scipy" else "99")
    assert main(["doctor", "--no-hub"]) == 1
    said = capsys.readouterr().out
    assert "could not be checked (RuntimeError: no such thing here)" in said
    assert "scipy            is not installed" in said and "A first run" in said and "Missing: scipy" in said
