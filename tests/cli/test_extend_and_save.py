"""A run is extended by --resume with more steps; a run or its adapters are a model; the saved weights' number type."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from small import history, make, pair_rows, train, weights, write_lines
from tiny_models import one_thread, tiny_tokenizer  # noqa: F401

from rlhf_lab.cli.main import main
from rlhf_lab.errors import LabError
from rlhf_lab.policies.loading import adapter_base, load_language_model
from rlhf_lab.training import Loop, Training

CONSTANT = ["--schedule", "constant"]


def longer(method, model, pairs, out, *more):
    """The words of a run of four steps in place of two."""
    return [word if word != "2" else "4" for word in train(method, model, pairs, out)] + list(more)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_an_extended_run_with_a_constant_rate_is_the_longer_run(method, model, pairs, tmp_path):
    """Two steps and then two more have the weights and the history of four steps at once, and run.json says four.

    The first run finds nothing in the cache of log π_ref, its continuation finds what the first two steps and the
    measurements needed, and the long run computes everything again.
    """
    cache = str(tmp_path / "cache")
    more = [*CONSTANT, "--eval-fraction", "0.25", "--eval-every", "4", "--reference-cache", cache]
    assert main(train(method, model, pairs, tmp_path / "a", *more)) == 0
    stored = sorted(Path(cache).rglob("*.safetensors"))
    assert len(stored) == (4 if method == "kto" else 2)  # of trained and held-out rows, for KTO also mismatched ones
    assert main(longer(method, model, pairs, tmp_path / "a", *more, "--resume")) == 0
    assert sorted(Path(cache).rglob("*.safetensors")) == stored
    shutil.rmtree(cache)
    assert main(longer(method, model, pairs, tmp_path / "b", *more)) == 0
    ours, theirs = weights(tmp_path / "a" / "model"), weights(tmp_path / "b" / "model")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    trained = [[row for row in history(tmp_path / run) if "loss" in row] for run in "ab"]
    assert [row["step"] for row in trained[0]] == [0, 1, 2, 3]
    assert [r["loss"] for r in trained[0]] == [r["loss"] for r in trained[1]]
    rows = [[row for row in history(tmp_path / run) if "eval_loss" in row] for run in "ab"]
    measured = [{row["step"]: row["eval_loss"] for row in part} for part in rows]
    assert [measured[0][step] for step in (0, 4)] == [measured[1][step] for step in (0, 4)]
    assert json.loads((tmp_path / "a" / "run.json").read_text())["steps"] == 4


def test_an_extension_says_what_happens_to_the_learning_rate(model, pairs, tmp_path):
    """Linear from 0.01 to half of it: 0.0075 in the second of two steps, and 0.0075 in the third of four."""
    assert main(train("sft", model, pairs, tmp_path / "a", "--min-rate", "0.5")) == 0
    assert main(longer("sft", model, pairs, tmp_path / "a", "--min-rate", "0.5", "--resume")) == 0
    card = (tmp_path / "a" / "README.md").read_text()
    assert "extended from 2 to 4 steps" in card and "It was 0.0075 at the end" in card and "it is 0.0075 now" in card


@pytest.mark.parametrize(
    ("method", "more", "message"),
    [
        ("sft", ["--steps", "1"], "steps = 2, not 1. Resume it with the same settings, with more steps"),
        ("sft", ["--steps", "4", "--learning-rate", "0.02"], "learning_rate = 0.01, not 0.02"),
        ("raft", ["--steps", "4"], "steps = 2, not 4. Resume it with the same settings, or"),
    ],
)
def test_what_is_no_extension_is_refused_and_changes_nothing(
    method, more, message, model, pairs, reward, tmp_path, capsys
):
    given = ["--reward", reward] if method == "raft" else []
    assert main(train(method, model, pairs, tmp_path / "a", *given)) == 0
    before = (tmp_path / "a" / "run.json").read_text()
    assert main(train(method, model, pairs, tmp_path / "a", *given, *more, "--resume")) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "a" / "run.json").read_text() == before


def test_a_run_of_an_older_version_which_lacks_a_setting_is_resumed_with_its_default(model, pairs, tmp_path, capsys):
    assert main(train("dpo", model, pairs, tmp_path / "a")) == 0
    file = tmp_path / "a" / "run.json"
    record = json.loads(file.read_text())
    del record["save_dtype"], record["dpo"]["nll_weight"]
    file.write_text(json.dumps(record))
    assert main(train("dpo", model, pairs, tmp_path / "a", "--resume")) == 0
    assert main(train("dpo", model, pairs, tmp_path / "a", "--resume", "--save-dtype", "bfloat16")) == 2
    assert "save_dtype = 'auto', not 'bfloat16'" in capsys.readouterr().err


def test_the_folder_of_a_run_is_a_model(model, pairs, tmp_path):
    assert main(train("sft", model, pairs, tmp_path / "run")) == 0
    one, _ = load_language_model(str(tmp_path / "run"), "cpu")
    two, _ = load_language_model(str(tmp_path / "run" / "model"), "cpu")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert main(train("dpo", str(tmp_path / "run"), pairs, tmp_path / "next")) == 0


def test_adapters_are_loaded_with_their_base(model, pairs, tmp_path):
    """adapters/ and the merged model/ of the same run have the same weights, and training goes on from either."""
    pytest.importorskip("peft")
    assert main(train("sft", model, pairs, tmp_path / "run", "--lora-rank", "4")) == 0
    folder = tmp_path / "run" / "adapters"
    assert adapter_base(str(folder)) == model
    one, tokenizer = load_language_model(str(folder), "cpu")
    two, _ = load_language_model(str(tmp_path / "run"), "cpu")
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert all(p.requires_grad for p in one.parameters()) and tokenizer.eos_token == "<end>"
    assert main(train("dpo", str(folder), pairs, tmp_path / "next", "--lora-rank", "2")) == 0


def test_lora_with_dropout_is_a_function_of_the_seed_also_if_it_is_resumed(model, pairs, tmp_path):
    """Four steps at once, and two and two more, have the same bits; without dropout the weights are others."""
    pytest.importorskip("peft")
    lora = [*CONSTANT, "--lora-rank", "4", "--lora-rank-stabilised"]
    drop = [*lora, "--lora-dropout", "0.5"]
    assert main(train("dpo", model, pairs, tmp_path / "a", *drop)) == 0
    assert main(longer("dpo", model, pairs, tmp_path / "a", *drop, "--resume")) == 0
    torch.manual_seed(123)
    state = torch.random.get_rng_state()
    assert main(longer("dpo", model, pairs, tmp_path / "b", *drop)) == 0
    assert torch.equal(torch.random.get_rng_state(), state)
    assert main(longer("dpo", model, pairs, tmp_path / "c", *lora)) == 0
    a, b, c = (weights(tmp_path / name / "adapters") for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a) and not all(torch.equal(a[name], c[name]) for name in a)


def test_every_step_has_its_own_dropout():
    """The first numbers that the loss of each step draws are different, and another run draws the same ones."""

    class Module(torch.nn.Linear):
        adapter_dropout = 0.5

    def drawn() -> list[float]:
        module, out = Module(1, 1), []

        def loss():
            out.append(torch.rand(1).item())
            return module.weight.sum(), {}

        with Loop("x", module, Training(steps=4, progress=False)) as loop:
            for _ in loop:
                loop.update(loss, batch=None)
        return out

    assert drawn() == drawn() and len(set(drawn())) == 4


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda f: (f / "adapter_model.safetensors").unlink(), "have no adapter_model.safetensors"),
        (lambda f: (f.parent / "run.json").write_text("["), "run.json is damaged"),
        (lambda f: _without_base(f), "names no base model"),
        (lambda f: _with_base(f, "nowhere/at/all"), "There is no model folder nowhere/at/all"),
        (lambda f: _with_base(f, "lab-pythia"), "do not fit their base lab-pythia"),
    ],
)
def test_broken_adapters_have_a_sentence_each(broken, message, adapters, tmp_path):
    folder = shutil.copytree(adapters, tmp_path / "run") / "adapters"
    broken(folder)
    with pytest.raises(LabError, match=message):
        load_language_model(str(folder), "cpu")


@pytest.fixture(scope="module")
def adapters(model, pairs, tmp_path_factory):
    pytest.importorskip("peft")
    out = tmp_path_factory.mktemp("lora") / "run"
    assert main(train("sft", model, pairs, out, "--lora-rank", "4")) == 0
    return out


def _without_base(folder):
    (folder.parent / "run.json").unlink()
    record = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**record, "base_model_name_or_path": None}))


def _with_base(folder, base):
    record = json.loads((folder.parent / "run.json").read_text())
    (folder.parent / "run.json").write_text(json.dumps({**record, "model": base}))


def dtypes(folder: Path) -> set[torch.dtype]:
    return {value.dtype for value in weights(folder).values()}


def test_saved_weights_keep_the_number_type_of_the_model_s_files(pairs, tmp_path):
    """A bfloat16 model is trained in float32 and saved in bfloat16: each weight is rounded to the nearest number. The
    checkpoints, from which a run is resumed, stay in float32."""
    half = make(tmp_path / "half")
    model, _ = load_language_model(half, "cpu", torch.bfloat16)
    model.save_pretrained(half)
    data = write_lines(tmp_path / "pairs.jsonl", pair_rows())
    assert main(train("dpo", half, data, tmp_path / "auto")) == 0
    assert main(train("dpo", half, data, tmp_path / "full", "--save-dtype", "float32")) == 0
    assert main(train("reward-model", half, data, tmp_path / "reward")) == 0
    assert dtypes(tmp_path / "auto" / "model") == dtypes(tmp_path / "reward" / "model") == {torch.bfloat16}
    assert dtypes(tmp_path / "full" / "model") == {torch.float32}
    rounded, exact = weights(tmp_path / "auto" / "model"), weights(tmp_path / "full" / "model")
    assert all(torch.equal(rounded[name], value.bfloat16()) for name, value in exact.items())
    assert json.loads((tmp_path / "auto" / "model" / "config.json").read_text())["dtype"] == "bfloat16"
    assert dtypes(tmp_path / "auto" / "checkpoints" / "step-000002") == {torch.float32}
    load_language_model(str(tmp_path / "auto"), "cpu")
