"""`train … --dry-run`: the plan of a run, with its errors and without its files."""

import json

import pytest
from small import make, train, write_lines
from tiny_models import one_thread  # noqa: F401

from rlhf_lab.cli import plan
from rlhf_lab.cli.main import main
from rlhf_lab.cli.train import checks, runner
from rlhf_lab.policies import quantised


@pytest.fixture(autouse=True)
def known_machine(monkeypatch):
    """The speed of this machine takes a second to measure."""
    monkeypatch.setattr(plan, "machine", lambda name: plan.CARDS["t4"])


def words_of(method: str, model: str, data: str, out, *more: str) -> list[str]:
    """Two epochs of batches of four rows, in place of a number of steps."""
    words = train(method, model, data, out, "--dry-run", *more)
    place = words.index("--steps")
    words[place : place + 2] = ["--data-epochs" if method in ("ppo", "rloo", "grpo") else "--epochs", "2"]
    return words


@pytest.mark.parametrize(
    ("method", "more", "steps"),
    [
        ("sft", [], "8, of 4 rows each"),
        ("dpo", [], "8, of 4 rows each"),
        ("simpo", [], "8, of 4 rows each"),
        ("kto", [], "8, of 4 rows each"),
        ("reward-model", [], "8, of 4 rows each"),
        ("ranker", [], "8, of 4 rows each"),
        ("ppo", ["--reward", "gold:sentiment"], "8, of 4 rows each"),
        ("grpo", ["--reward", "gold:sentiment"], "8, of 4 rows each"),
        ("rloo", ["--reward", "gold:sentiment"], "8, of 4 rows each"),
        ("raft", ["--reward", "gold:sentiment"], "8 in each round or stage, of 4 rows each"),
        ("rest", ["--reward", "gold:sentiment", "--samples", "3"], "24 in each round or stage, of 4 rows each"),
        (
            "iterated-dpo",
            ["--reward", "gold:sentiment", "--labels", "24", "--rounds", "3"],
            "4 in each round or stage,",
        ),
        ("rso", ["--source", "direct"], "8 in each round or stage, of 4 rows each"),
        ("rso", ["--reward", "gold:sentiment"], "as many as the pairs give"),
    ],
)
def test_the_plan_has_the_steps_of_the_run_and_nothing_is_written(method, more, steps, model, pairs, tmp_path, capsys):
    """16 pairs with 16 prompts: two epochs in batches of four are 8 steps. ReST has 3 samples of each prompt, and
    iterated DPO has 24 labels in 3 rounds, so 8 rows a round."""
    assert main(words_of(method, model, pairs, tmp_path / "run", *more)) == 0
    said = capsys.readouterr().out
    assert f"steps     {steps}" in said and any(f"16 {what} of" in said for what in ("pairs", "prompts", "examples"))
    assert "of memory, and 15.00 GiB are free on T4" in said
    assert all(len(line) <= 80 or pairs in line or str(tmp_path) in line for line in said.splitlines())
    assert list(tmp_path.iterdir()) == []


def test_rest_s_original_data_are_counted(model, pairs, tmp_path, capsys):
    """16 prompts with 3 samples and 16 original responses are 64 rows: 32 steps."""
    more = ["--reward", "gold:sentiment", "--samples", "3", "--original", pairs]
    assert main(words_of("rest", model, pairs, tmp_path / "run", *more)) == 0
    assert "steps     32 in each" in capsys.readouterr().out


def test_rows_that_are_held_out_and_dropped_are_in_the_plan(model, tmp_path, capsys):
    """Of six rows one has no response, and a fifth of the other five is held out: four rows, so one step an epoch."""
    rows = [{"prompt": f"What is {i}?", "completion": f" It is {i}."} for i in range(5)]
    data = write_lines(tmp_path / "a.jsonl", [*rows, {"prompt": "a", "completion": " "}])
    assert main(words_of("sft", model, data, tmp_path / "run", "--eval-fraction", "0.2")) == 0
    said = capsys.readouterr().out
    assert "dropped 1 row: empty response (1)" in said and "held out: 1 of 5 rows" in said
    assert "steps     2, of 4 rows each" in said and "2 passes over 4 rows" in said


def test_pairs_of_a_world_are_announced_and_not_sampled(model, tmp_path, capsys):
    words = ["train", "dpo", "--model", "lab-gpt2", "--data", "world:sentiment", "--out", str(tmp_path / "run")]
    assert main([*words, "--limit", "64", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "up to 64 pairs, which are sampled from lab-gpt2" in said and "steps     2, of 32 rows each" in said


@pytest.mark.parametrize(
    "more",
    [
        ["--data", "missing.jsonl"],
        ["--model", "missing/model"],
        ["--warmup", "9"],
        ["--max-prompt-tokens", "90"],
        ["--reference", "OTHER"],
        ["--device", "nonsense"],
        ["--lora-rank", "64"],
        ["--resume"],
        ["--chat", "on"],
        ["--trackers", "nonsense"],
    ],
)
def test_a_bad_input_has_the_error_of_the_real_run(more, model, pairs, tmp_path, capsys):
    """Of two equal options the last one counts."""
    other = make(tmp_path / "other", vocab=280)
    more = [other if word == "OTHER" else word for word in more]
    said = []
    for last in ([], ["--dry-run"]):
        assert main([*train("dpo", model, pairs, tmp_path / "run"), *more, *last]) == 2
        said.append(capsys.readouterr().err.strip().splitlines()[-1])
        assert not (tmp_path / "run").exists()
    assert said[0] == said[1] and said[0].startswith("rlhf-lab: ")


@pytest.mark.parametrize(
    ("labels", "message"), [([True] * 3, "All responses are desirable"), ([True], "at least 2 rows")]
)
def test_labels_that_kto_cannot_use_are_refused_as_in_the_real_run(labels, message, model, tmp_path, capsys):
    rows = [{"prompt": "a", "completion": f"b{place}", "label": label} for place, label in enumerate(labels)]
    words = train("kto", model, write_lines(tmp_path / "labels.jsonl", rows), tmp_path / "run")
    for last in ([], ["--dry-run"]):
        assert main([*words, *last]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_reward_of_another_vocabulary_is_refused_as_in_the_real_run(model, pairs, tmp_path, capsys):
    other = make(tmp_path / "other", texts=["quite another text of other words"] * 9, vocab=280)
    assert main(train("reward-model", other, pairs, tmp_path / "reward")) == 0
    words = train("raft", model, pairs, tmp_path / "run", "--reward", str(tmp_path / "reward"), "--dry-run")
    assert main(words) == 2 and "different vocabularies" in capsys.readouterr().err


def test_a_dry_run_leaves_no_trace_in_the_settings_of_a_run_and_can_plan_its_extension(model, pairs, tmp_path, capsys):
    words = train("sft", model, pairs, tmp_path / "run")
    assert main(words) == 0
    assert "dry_run" not in json.loads((tmp_path / "run" / "run.json").read_text())
    assert "dry_run:" not in (tmp_path / "run" / "settings.yaml").read_text()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert main([*words, "--dry-run"]) == 2  # the folder is taken
    assert main([*words, "--resume", "--steps", "5", "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "steps 5, of 4 rows each; 2 are done and 3 remain" in said and "for the remaining 3 (within" in said
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_a_model_whose_sizes_the_plan_does_not_know_has_no_estimate(model, pairs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plan.ResourcePlan, "workload", lambda self: plan.shape_of("nonsense"))
    assert main(words_of("sft", model, pairs, tmp_path / "run")) == 0
    assert "estimate  none (The sizes of nonsense are not known" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--lora-rank", "2", "--lora-targets", "nonsense"],
            "--lora-targets contains 'nonsense', and the model has no",
        ),
        (["--lora-rank", "2", "--lora-targets", "c_attn", "c_prj"], "linear layers are c_attn, c_fc, c_proj, lm_head."),
        (["--lora-rank", "2", "--lora-targets", "c_attn,c_proj"], "Several names are separated by spaces."),
        (["--lora-rank", "2", "--lora-targets", "ln_1"], "The adapters do not fit the model"),
        (["--out", "FILE/run"], "cannot be a folder, because"),
        (["--reference-cache", "FILE"], "cannot be a folder, because"),
        (["--reference", "SHORT"], "has a context of 16 tokens, and the longest prompt with its response has"),
        (["--model", "LARGE"], "The tokenizer of"),
        (["--data", "world:sentiment", "--data-split", "nonsense"], "There is no split 'nonsense'"),
        (["--data", "world:sentiment", "--eval-data", "FILE"], "unknown type of file"),
    ],
)
def test_what_is_known_without_weights_is_refused_before_they_are_loaded(
    more, message, model, pairs, tmp_path, capsys, monkeypatch
):
    """LARGE has a tokenizer of more tokens than its model; SHORT has a context of 16 tokens."""
    names = {"FILE": tmp_path / "file", "SHORT": tmp_path / "short", "LARGE": tmp_path / "large"}
    names["FILE"].write_text("")
    make(names["SHORT"], context=16)
    make(names["LARGE"])
    config = json.loads((names["LARGE"] / "config.json").read_text())
    (names["LARGE"] / "config.json").write_text(json.dumps({**config, "vocab_size": 50}))
    for name, path in names.items():
        more = [word.replace(name, str(path)) for word in more]
    words = train("dpo", model, pairs, tmp_path / "run")
    if "--data" in more:  # in place of the pairs
        place = words.index("--data")
        del words[place : place + 2]
    monkeypatch.setattr(runner, "load_language_model", lambda *a, **k: pytest.fail("the weights were loaded"))
    for last in (["--dry-run"], []):
        if last or "--eval-data" not in more:
            assert main([*words, *more, *last]) == 2
            said = capsys.readouterr().err.strip()
            assert message in said and "\n" not in said
    assert not (tmp_path / "run").exists()


@pytest.fixture
def workloads(monkeypatch):
    """The workloads that were estimated."""
    found, real = [], plan.report_of

    def report(load, device, steps):
        found.append((load, steps))
        return real(load, device, steps)

    monkeypatch.setattr(plan, "report_of", report)
    return found


@pytest.mark.parametrize(
    ("method", "more", "expected"),
    [
        ("dpo", [], {"reference": True, "reward": False}),
        ("simpo", [], {"reference": False}),
        ("ppo", ["--samples", "3", "--epochs", "2"], {"responses": 3, "epochs": 2, "reward": True, "critic": True}),
        ("ppo", ["--reward", "gold:sentiment"], {"epochs": 4, "reward": False}),
        ("rso", ["--candidates", "12", "--accepted", "6"], {"samples_per_prompt": 12, "sampled": 4.0}),
        ("rso", ["--source", "direct"], {"sampled": 0.0, "samples_per_prompt": 0, "reward": False}),
        ("raft", ["--best-of", "5"], {"sampled": 5.0, "samples_per_prompt": 5}),
    ],
)
def test_the_estimate_is_that_of_the_method_as_it_is_set(
    method, more, expected, model, pairs, reward, tmp_path, workloads
):
    """Twelve candidates give three pairs of six accepted responses, so four samples a pair."""
    if method in ("ppo", "rso", "raft") and not {"--reward", "direct"} & set(more):
        more = [*more, "--reward", reward]
    words = [word for word in train(method, model, pairs, tmp_path / "run", *more, "--dry-run")]
    assert main(words) == 0
    ((load, _),) = workloads
    assert {name: getattr(load.method, name) for name in expected} == expected


def test_the_estimate_knows_adapters_that_are_trained_further_and_weights_of_four_bits(
    model, pairs, tmp_path, workloads, monkeypatch
):
    pytest.importorskip("peft")
    assert main(train("sft", model, pairs, tmp_path / "first", "--lora-rank", "2")) == 0
    for name in ("check_bitsandbytes", "check_widths"):
        monkeypatch.setattr(quantised, name, lambda *a: None)
    for words in (["--adapter", "continue"], ["--adapter", "continue", "--load-in-4bit"]):
        assert main(train("dpo", str(tmp_path / "first"), pairs, tmp_path / "run", *words, "--dry-run")) == 0
    one, two = (load for load, _ in workloads)
    # peft's default for GPT-2 is c_attn: rank 2 · (32 + 96) in each of the model's layers.
    layers = one.shape.layers
    assert (one.saved_adapters, one.trained, one.lora_rank) == (layers * 2 * (32 + 96),) * 2 + (None,)
    assert (one.four_bits, two.four_bits, one.own_reference) == (False, True, False)
    workloads.clear()
    other = ["--lora-rank", "2", "--reference", model]
    assert main(train("dpo", model, pairs, tmp_path / "run", *other, "--dry-run")) == 0
    assert workloads[0][0].own_reference and workloads[0][0].lora_rank == 2


def test_a_read_only_folder_is_no_place_for_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(checks.os, "access", lambda *a: False)
    with pytest.raises(ValueError, match="is read-only"):
        checks._check_writable(tmp_path / "a" / "b", "out")
