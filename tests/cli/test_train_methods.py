"""Every `rlhf-lab train METHOD` end to end, on a tiny random model: the run's folder, and that weights moved."""

import json
import math
import signal

import pytest
import torch
from safetensors.torch import load_file
from small import history, train, weights
from tiny_models import one_thread  # noqa: F401

from rlhf_lab.cli.main import main
from rlhf_lab.cli.train import runner
from rlhf_lab.policies.loading import SHIPPED, shipped_folder

FROM_PAIRS = {
    "dpo": [],
    "rso-direct": ["--source", "direct"],
    "kto": [],
    "sft": [],
}
FROM_REWARD = {
    "ppo": ["--samples", "2", "--epochs", "1"],
    "rso": ["--candidates", "4", "--accepted", "2"],
    "raft": ["--best-of", "2", "--rounds", "2"],
    "rest": ["--samples", "2", "--thresholds", "0", "0.3"],
    "iterated-dpo": ["--labels", "8", "--rounds", "2"],
    "rloo": ["--samples", "2"],
    "grpo": ["--samples", "2"],
}


def check_run(out, model, method):
    """The folder is whole, the weights moved and are finite, and nothing half-written is left."""
    from pathlib import Path

    rows = history(out)
    assert rows and all(torch.isfinite(torch.tensor([v for v in row.values()])).all() for row in rows)
    assert json.loads((out / "run.json").read_text())["method"] == method
    assert f"rlhf-lab train {method} --config" in (out / "settings.yaml").read_text()
    assert (out / "README.md").read_text().startswith("---\nlibrary_name: transformers\n")
    before, after = weights(Path(model)), weights(out / "model")
    assert before.keys() == after.keys() and any(not torch.equal(before[k], after[k]) for k in before)
    assert all(torch.isfinite(after[k]).all() for k in after)
    assert not [path.name for path in out.rglob("*.part")]


@pytest.mark.parametrize("name", FROM_PAIRS)
def test_methods_that_learn_from_a_file(name, model, pairs, tmp_path):
    method = name.partition("-")[0]
    assert main(train(method, model, pairs, tmp_path / "run", *FROM_PAIRS[name])) == 0
    check_run(tmp_path / "run", model, method)


@pytest.mark.parametrize("method", FROM_REWARD)
def test_methods_that_sample_and_are_told_a_reward(method, model, pairs, reward, tmp_path):
    words = train(method, model, pairs, tmp_path / "run", "--reward", reward, *FROM_REWARD[method])
    assert main(words) == 0
    check_run(tmp_path / "run", model, method)


def test_a_ranker_is_a_reward_for_rso(model, pairs, ranker, tmp_path):
    words = train("rso", model, pairs, tmp_path / "run", "--reward", ranker, "--candidates", "4", "--accepted", "2")
    assert main(words) == 0
    check_run(tmp_path / "run", model, "rso")


def test_rso_writes_its_pairs_as_trl_takes_them(model, pairs, reward, tmp_path):
    """The columns are the three that TRL's trainers name; the card says what they are; `load_preferences` reads them
    back. The prompts are those of the file, and no row's two responses are the same."""
    import datasets

    from rlhf_lab.data.preferences import load_preferences

    out = tmp_path / "run"
    words = train("rso", model, pairs, out, "--reward", reward, "--candidates", "4", "--accepted", "2")
    assert main(words) == 0
    found = datasets.Dataset.from_parquet(str(out / "pairs" / "pairs.parquet"), cache_dir=str(tmp_path / "cache"))
    assert found.column_names == ["prompt", "chosen", "rejected"] and 0 < len(found) <= 16
    assert all(row["chosen"] != row["rejected"] or row["chosen"] == "" for row in found)
    assert all(row["prompt"].startswith("\n\nHuman: What is") for row in found)
    card = (out / "pairs" / "README.md").read_text()
    assert "data_files: pairs.parquet" in card and "candidates | 4" in card and f"{len(found)} pairs" in card
    assert load_preferences(str(out / "pairs" / "pairs.parquet")).form == "plain"


def test_ctrl_c_in_a_method_of_rounds_and_resume_end_at_the_same_weights(model, pairs, reward, tmp_path, monkeypatch):
    """RAFT, two rounds of two steps: a real SIGINT in the second round's first step. After --resume the weights are,
    to the bit, those of the run that was never stopped; and no prompt is answered twice."""
    from rlhf_lab.algorithms import sft
    from rlhf_lab.policies.language_model import LanguageModelPolicy

    more = ("--reward", reward, "--best-of", "2", "--rounds", "2")
    assert main(train("raft", model, pairs, tmp_path / "whole", *more)) == 0

    calls, loss = [], sft.sft_loss

    def stop_in_the_second_round(*arguments):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return loss(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(sft, "sft_loss", stop_in_the_second_round)
        assert main(train("raft", model, pairs, tmp_path / "run", *more)) == 130
    assert not (tmp_path / "run" / "model").exists() and len(calls) == 3

    drawn, sample = [], LanguageModelPolicy.sample
    monkeypatch.setattr(LanguageModelPolicy, "sample", lambda self, *a, **k: drawn.append(1) or sample(self, *a, **k))
    assert main(train("raft", model, pairs, tmp_path / "run", *more, "--resume")) == 0
    ours, theirs = weights(tmp_path / "run" / "model"), weights(tmp_path / "whole" / "model")
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    assert not drawn, "the second round's samples were kept"


def test_adapters_train_few_weights_and_the_merged_model_is_a_plain_one(model, pairs, tmp_path):
    """With LoRA the embeddings, which have no adapter, stay to the bit; a matrix that has one moves. The model loads
    without peft, the adapters stand beside it."""
    pytest.importorskip("peft")
    from pathlib import Path

    out = tmp_path / "run"
    assert main(train("dpo", model, pairs, out, "--lora-rank", "2")) == 0
    before, after = weights(Path(model)), weights(out / "model")
    assert before.keys() == after.keys()
    embedding = next(k for k in before if k.endswith("wte.weight"))
    matrix = next(k for k in before if k.endswith("attn.c_attn.weight"))
    assert torch.equal(before[embedding], after[embedding]) and not torch.equal(before[matrix], after[matrix])
    assert (out / "adapters" / "adapter_model.safetensors").is_file()
    # The change is of rank 2 at most: it is a product of two thin matrices.
    change = (after[matrix] - before[matrix]).double()
    assert torch.linalg.matrix_rank(change, atol=1e-6) <= 2


@pytest.mark.parametrize("method", ["reward-model", "ranker"])
def test_a_scorer_with_adapters_is_saved_with_them_merged(method, model, pairs, tmp_path):
    """The embeddings stay, a matrix moves by at most rank 2, the head moves, and the folder loads without peft."""
    pytest.importorskip("peft")
    from pathlib import Path

    out = tmp_path / "run"
    assert main(train(method, model, pairs, out, "--lora-rank", "2", "--save-every", "1")) == 0
    before, after = weights(Path(model)), load_file(out / "model" / "model.safetensors")
    before = {name.removeprefix("transformer."): value for name, value in before.items()}
    assert set(after) <= set(before) and torch.equal(before["wte.weight"], after["wte.weight"])
    change = (after["h.0.attn.c_attn.weight"] - before["h.0.attn.c_attn.weight"]).double()
    assert change.abs().max() > 0 and torch.linalg.matrix_rank(change, atol=1e-6) <= 2
    assert load_file(out / "model" / "head.safetensors")["head.weight"].abs().max() > 0
    assert not (out / "adapters").exists()
    words = ["evaluate", "--model", str(out), "--data", pairs, "--device", "cpu", "--no-progress"]
    assert main([*words, "--max-prompt-tokens", "32", "--max-response-tokens", "8"]) == 0


def test_labelled_responses_on_single_responses_are_read_for_kto(model, tmp_path):
    """TRL's unpaired form: prompt, completion, label."""
    rows = [{"prompt": f"{i}?", "completion": f" {i}.", "label": i % 3 == 0} for i in range(12)]
    data = tmp_path / "labelled.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(train("kto", model, str(data), tmp_path / "run")) == 0
    assert "12 examples" in (tmp_path / "run" / "README.md").read_text()


def test_settings_that_were_saved_make_the_same_run_again(model, pairs, tmp_path):
    """settings.yaml of one run, --out of another: the same weights to the bit."""
    assert main(train("dpo", model, pairs, tmp_path / "a", "--beta", "0.3", "--seed", "5")) == 0
    again = ["train", "dpo", "--config", str(tmp_path / "a" / "settings.yaml"), "--out", str(tmp_path / "b")]
    assert main(again) == 0
    ours, theirs = weights(tmp_path / "a" / "model"), weights(tmp_path / "b" / "model")
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    assert json.loads((tmp_path / "b" / "run.json").read_text())["dpo"]["beta"] == 0.3


@pytest.mark.parametrize("source", ["rso-sample-rank", "sft-sample-rank"])
def test_rso_without_a_reward_is_refused_at_once(source, model, pairs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "load_language_model", lambda *a, **k: pytest.fail("the model was loaded"))
    assert main(train("rso", model, pairs, tmp_path / "run", "--source", source)) == 2
    assert "needs a reward" in capsys.readouterr().err


@pytest.mark.parametrize("loss", ["robust", "ipo-mean", "hinge", "simpo", "orpo", "chi", "dpo-length"])
def test_the_whole_family_of_losses_is_at_hand(loss, model, pairs, tmp_path):
    more = ["--label-smoothing", "0.1"] if loss == "robust" else []
    assert main(train("dpo", model, pairs, tmp_path / "run", "--loss", loss, "--beta", "0.01", *more)) == 0
    check_run(tmp_path / "run", model, "dpo")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["dpo"]["loss"] == loss


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_models_train_on_their_worlds(name, tmp_path):
    """SFT and RLOO on gold reward, two steps each. Runs as soon as the models are there."""
    try:
        shipped_folder(name)
    except ValueError:
        pytest.skip("the shipped models are not built")
    words = ["--device", "cpu", "--steps", "2", "--batch-size", "4", "--limit", "8", "--no-progress"]
    data = ["--model", name, "--data", "world:sentiment"]
    assert main(["train", "sft", *data, "--out", str(tmp_path / "sft"), *words]) == 0
    group = ["--reward", "gold", "--samples", "2", "--out", str(tmp_path / "rloo")]
    assert main(["train", "rloo", *data, *group, *words]) == 0
    assert math.isfinite(history(tmp_path / "rloo")[-1]["score"])
