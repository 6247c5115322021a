"""`rlhf-lab train dpo` end to end, on a tiny GPT-2 and a tokenizer made on the spot."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from histories import read_history
from safetensors.torch import load_file
from tiny_models import one_thread, tiny, tiny_tokenizer  # noqa: F401

from rlhf_lab.algorithms.dpo import DPO
from rlhf_lab.cli.main import main

ROOT = Path(__file__).parents[1]
STEPS = 8


def dialogue(question: str, answer: str) -> str:
    return f"\n\nHuman: {question}\n\nAssistant: {answer}"


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    """The lab's cache is the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_LAB_CACHE", str(tmp_path_factory.mktemp("lab-cache")))
        yield


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> dict[str, str]:
    """A model's folder, and a file in AnthropicHH's form: 24 good pairs, one that parts early, one empty."""
    folder = tmp_path_factory.mktemp("given")
    rows = []
    for i in range(24):
        question = f"What is {i} and {i % 5}?"
        rows.append(
            {"chosen": dialogue(question, f"It is {i + i % 5}."), "rejected": dialogue(question, f"No idea, {i}!")}
        )
    rows.append({"chosen": dialogue("a", "b"), "rejected": dialogue("c", "d")})
    rows.append({"chosen": dialogue("a", ""), "rejected": dialogue("a", "d")})
    data = folder / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = tiny_tokenizer([row["chosen"] for row in rows], vocab=320)
    model = tiny("gpt2", vocab=len(tokenizer) + 8, context=64, wide=0.05)  # a vocabulary padded by 8 ids
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return {"model": str(folder / "model"), "data": str(data), "pairs": rows[:24]}


def words(given: dict, out: Path, *more: str) -> list[str]:
    """The command's words. The rate is high, for the model is tiny and the steps are few."""
    return [
        "train", "dpo", "--model", given["model"], "--data", given["data"], "--out", str(out), "--device", "cpu",
        "--steps", str(STEPS), "--batch-size", "8", "--learning-rate", "0.01", "--log-every", "1",
        "--save-every", "100", "--max-prompt-tokens", "32", "--max-response-tokens", "24", "--no-progress", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(given, tmp_path_factory) -> Path:
    """The output of one whole run."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert main(words(given, out)) == 0
    return out


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below `folder` with its bytes and time."""
    return {
        str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()
    }


def test_the_loss_starts_at_log_2_and_falls(finished):
    """At first policy and reference agree, so every log-ratio is 0 and the loss is −log σ(0) = log 2."""
    history = [json.loads(line) for line in (finished / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in history] == list(range(STEPS))
    assert history[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert history[-1]["loss"] < 0.6 * math.log(2)
    assert history[-1]["accuracy"] > 0.9


def test_the_result_loads_as_a_plain_model_and_prefers_what_was_chosen(given, finished):
    """The implicit reward's margin is computed anew: plain transformers, one row a response, no code of the lab."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(finished / "model")
    before = AutoModelForCausalLM.from_pretrained(given["model"]).eval()
    after = AutoModelForCausalLM.from_pretrained(finished / "model").eval()

    @torch.no_grad()
    def log_prob(model, prompt: str, response: str) -> float:
        x, y = (tokenizer(text)["input_ids"] for text in (prompt, response))
        y = [*y, tokenizer.eos_token_id]
        log_p = model(torch.tensor([x + y])).logits[0, :, : len(tokenizer)].log_softmax(-1)
        return sum(float(log_p[len(x) + t - 1, token]) for t, token in enumerate(y))

    margins = []
    for pair in given["pairs"]:
        head, chosen = pair["chosen"].rsplit("Assistant:", 1)
        rejected = pair["rejected"].rsplit("Assistant:", 1)[1]
        gain = [
            log_prob(after, head + "Assistant:", y) - log_prob(before, head + "Assistant:", y)
            for y in (chosen, rejected)
        ]
        margins.append(gain[0] - gain[1])
    # A loss below 0.6 log 2 at β = 0.1 needs a mean margin above 6 nats: −log σ(0.1 · 6) = 0.44.
    assert sum(m > 0 for m in margins) >= 23 and sum(margins) / 24 > 6


def test_the_folder_says_what_was_done_and_what_was_dropped(given, finished):
    record = json.loads((finished / "run.json").read_text(encoding="utf-8"))
    assert record["method"] == "dpo" and record["dpo"]["beta"] == 0.1 and len(record["data_sha256"]) == 64
    card = (finished / "README.md").read_text(encoding="utf-8")
    for said in ("24 pairs", "dialogues differ before the last turn (1)", "empty response (1)", "| dpo.beta | 0.1 |"):
        assert said in card


def test_a_second_run_into_the_same_folder_is_refused_and_changes_nothing(given, finished, capsys):
    before = files(finished)
    assert main(words(given, finished)) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"rlhf-lab: {finished} already contains another run") and "\n" not in said
    assert files(finished) == before


def test_ctrl_c_keeps_the_step_in_hand_and_resume_ends_at_the_same_weights(
    given, finished, tmp_path, monkeypatch, capsys
):
    """A real SIGINT is raised inside the loss of step 5. After --resume the weights are, to the bit, those of the
    run that was never stopped."""
    out, calls, loss = tmp_path / "run", [], DPO.__call__

    def stop_at_the_fifth(self, chosen, rejected, *lengths, **named):
        calls.append(len(chosen))
        if calls.count(8) == 5:
            signal.raise_signal(signal.SIGINT)
        return loss(self, chosen, rejected, *lengths, **named)

    with monkeypatch.context() as patch:
        patch.setattr(DPO, "__call__", stop_at_the_fifth)
        assert main(words(given, out)) == 130
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"stopped after step 5 of {STEPS}" in said and "--resume" in said
    assert (out / "checkpoints" / "step-000005").is_dir() and not (out / "model").exists()

    assert main(words(given, out, "--beta", "0.2", "--resume")) == 2
    assert "dpo.beta = 0.1, not 0.2" in capsys.readouterr().err
    assert main(words(given, out, "--resume")) == 0
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (out, finished))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert read_history(out / "history.jsonl") == read_history(finished / "history.jsonl")


def test_a_run_stopped_while_its_model_loads_can_be_resumed(given, finished, tmp_path, monkeypatch):
    from rlhf_lab.cli.train import dpo as train

    def interrupted(*arguments, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "dpo", interrupted)
        assert main(words(given, tmp_path / "run")) == 130
    assert main(words(given, tmp_path / "run", "--resume")) == 0
    ours, theirs = (load_file(f / "model" / "model.safetensors") for f in (tmp_path / "run", finished))
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--beta", "0"], "beta"),
        (["--beta", "nan"], "beta"),
        (["--label-smoothing", "0.7"], "--label-smoothing"),
        (["--steps", "0"], "--steps must be a whole number of at least 1"),
        (["--epochs", "-1"], "--epochs must be a finite number above 0"),
        (["--limit", "0"], "--limit must be a whole number of at least 1"),
        (["--learning-rate", "-1"], "--learning-rate"),
        (["--device", "warp"], "The device 'warp' cannot be used"),
        (["--data", "nothing.jsonl"], "There is no data file nothing.jsonl"),
        (["--model", "./nothing"], "There is no model folder ./nothing"),
        (["--max-prompt-tokens", "60"], "60 and --max-response-tokens 24 are 84 tokens together. The context of"),
        (["--resume"], "Nothing to resume"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded_and_leaves_no_trace(
    given, tmp_path, monkeypatch, capsys, change, message
):
    from rlhf_lab.cli.train import runner as train

    monkeypatch.setattr(train, "load_language_model", lambda *a, **k: pytest.fail("the model was loaded"))
    assert main(words(given, tmp_path / "run", *change)) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_a_malformed_data_file_is_refused_before_a_model_is_loaded(given, tmp_path, monkeypatch, capsys):
    from rlhf_lab.cli.train import runner as train

    monkeypatch.setattr(train, "load_language_model", lambda *a, **k: pytest.fail("the model was loaded"))
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"chosen": "a"\n')
    assert main(words(given | {"data": str(bad)}, tmp_path / "run")) == 2
    assert "bad.jsonl, line 1: malformed JSON" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_limit_takes_the_first_pairs_and_an_epoch_sets_the_steps(given, tmp_path):
    out = tmp_path / "run"
    command = words(given, out, "--limit", "5", "--batch-size", "2", "--epochs", "2")
    i = command.index("--steps")
    del command[i : i + 2]
    assert main(command) == 0
    # Two passes over 5 pairs, two a step: 5 steps.
    assert len((out / "history.jsonl").read_text(encoding="utf-8").splitlines()) == 5
    assert "5 pairs of at most" in (out / "README.md").read_text(encoding="utf-8")


def test_without_a_network_a_model_s_name_fails_at_once_in_one_sentence(given, tmp_path):
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "cache")}
    command = words(given | {"model": "some/model"}, tmp_path / "run")
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_lab.cli", *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    said = done.stderr.strip()
    assert done.returncode == 2 and "\n" not in said
    assert "The model 'some/model' is not on this machine and the Hugging Face Hub cannot be reached" in said
    assert time.monotonic() - start < 60  # the libraries' retries come on top of the imports and take longer


@pytest.mark.parametrize("asked", ["--help", "--version", "train --help"])
def test_help_and_version_load_neither_torch_nor_transformers(asked):
    """The words are the program's own, and its terminal has no Greek letters."""
    code = (
        f"import sys\nfrom rlhf_lab.cli.main import main\nsys.argv[1:] = {asked.split()!r}\nassert main() == 0\n"
        "print(*[m for m in ('torch', 'transformers', 'datasets', 'matplotlib') if m in sys.modules], file=sys.stderr)"
    )
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, env=ascii_only
    )
    assert done.stderr.strip() == "" and "rlhf-lab" in done.stdout


@pytest.mark.parametrize(
    ("asked", "message"),
    [("", "usage"), ("bake", "no command 'bake'"), ("train pdo", "no command 'train pdo'")],
)
def test_a_command_that_does_not_exist_is_refused_with_those_that_do(asked, message, capsys):
    assert main(asked.split()) == 2
    shown = capsys.readouterr()
    assert message in shown.out + shown.err and "train dpo" in shown.out + shown.err
