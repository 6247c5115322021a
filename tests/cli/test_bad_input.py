"""What a user may hand to a command by mistake: one sentence, or a drop that is counted in the run's card."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small import make, pair_rows, train, write_lines
from tiny_models import one_thread, tiny_tokenizer  # noqa: F401

from rlhf_lab.cli.main import main
from rlhf_lab.errors import LabError
from rlhf_lab.policies.loading import load_language_model

GOOD = [{"prompt": f"What is {i}?", "chosen": f" It is {i}.", "rejected": " No."} for i in range(6)]


def refused(words: list[str], capsys) -> str:
    """The one sentence on stderr."""
    assert main(words) == 2
    said = capsys.readouterr().err.strip()
    assert "Traceback" not in said
    return said.splitlines()[-1]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": " \n"}, "empty prompt (1)"),
        ({"chosen": ""}, "empty response (1)"),
        ({"rejected": " \t"}, "empty response (1)"),
        ({"chosen": " No."}, "equal responses (1)"),
        ({"chosen": "  No. "}, "responses differ only in white space (1)"),
        ({"chosen": " aaaaaaaaaaX", "rejected": " aaaaaaaaaaY"}, "equal responses after truncation (1)"),
        ({"chosen": " a<end>b"}, "the text of a response contains the end token (1)"),
        ({"rejected": None}, "a field is missing (1)"),
    ],
)
def test_a_pair_that_says_nothing_is_dropped_and_counted_in_the_card(row, reason, model, tmp_path):
    """Eight response tokens: ten a's and a space are more than that, in this tokenizer's single letters."""
    data = write_lines(tmp_path / "a.jsonl", [*GOOD, GOOD[0] | row])
    assert main(train("dpo", model, data, tmp_path / "run")) == 0
    card = (tmp_path / "run" / "README.md").read_text()
    assert reason in card and "6 pairs of at most" in card


def test_text_beyond_the_context_is_cut_and_counted_and_the_run_goes_through(model, tmp_path):
    """A prompt of 1,000 letters and a response of as many, for a context of 96 tokens and no limits given: the limits
    are the context's halves, so nothing is longer than it."""
    long = {"prompt": "x" * 1000, "chosen": " " + "y" * 1000, "rejected": " no"}
    data = write_lines(tmp_path / "a.jsonl", [*GOOD, long])
    words = train("dpo", model, data, tmp_path / "run")
    for option in ("--max-prompt-tokens", "--max-response-tokens"):
        place = words.index(option)
        del words[place : place + 2]
    assert main(words) == 0
    card = (tmp_path / "run" / "README.md").read_text()
    assert "7 pairs of at most 96 tokens; 1 prompt and 1 response truncated" in card


def test_a_tokenizer_without_a_padding_token_is_no_hindrance_and_without_an_end_token_it_is(tmp_path, capsys):
    folder = make(tmp_path / "model")
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(folder).pad_token is None
    data = write_lines(tmp_path / "a.jsonl", GOOD)
    assert main(train("dpo", folder, data, tmp_path / "run")) == 0
    tiny_tokenizer([row["chosen"] for row in pair_rows()], end=False).save_pretrained(folder)
    assert "has no end-of-sequence token" in refused(train("dpo", folder, data, tmp_path / "other"), capsys)


def test_a_reward_model_of_another_tokenizer_is_refused(model, pairs, tmp_path, capsys):
    other = make(tmp_path / "other", texts=["quite another text of other words"] * 9, vocab=280)
    assert main(train("reward-model", other, pairs, tmp_path / "reward")) == 0
    for method in ("ppo", "rloo", "raft"):
        said = refused(train(method, model, pairs, tmp_path / method, "--reward", str(tmp_path / "reward")), capsys)
        assert "different vocabularies" in said and not (tmp_path / method).exists()


def test_a_reference_of_another_vocabulary_is_refused(model, pairs, tmp_path, capsys):
    other = make(tmp_path / "other", vocab=280)
    said = refused(train("dpo", model, pairs, tmp_path / "run", "--reference", other), capsys)
    assert "have different vocabularies" in said


def test_another_reference_of_the_same_vocabulary_is_used(model, pairs, tmp_path):
    """With the model itself as the reference all log-ratios start at 0 and the loss at log 2; with another model's
    they do not."""
    other = make(tmp_path / "other")
    weights = load_file(tmp_path / "other" / "model.safetensors")
    from safetensors.torch import save_file

    save_file({k: v + 0.3 * torch.randn_like(v) for k, v in weights.items()}, tmp_path / "other" / "model.safetensors")
    assert main(train("dpo", model, pairs, tmp_path / "run", "--reference", other)) == 0
    first = json.loads((tmp_path / "run" / "history.jsonl").read_text().splitlines()[0])
    assert first["chosen_log_ratio"] != 0


@pytest.mark.parametrize("method", ["sft", "reward-model", "dpo", "kto", "raft", "ppo"])
def test_resuming_nothing_is_refused_and_leaves_no_folder(method, model, pairs, reward, tmp_path, capsys):
    more = ["--reward", reward] if method in ("raft", "ppo") else []
    said = refused(train(method, model, pairs, tmp_path / "run", *more, "--resume"), capsys)
    assert "Nothing to resume" in said and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("method", "more", "message"),
    [
        ("ppo", ["--reward", "nothing"], "There is no reward folder nothing"),
        ("ppo", ["--reward", "gold"], "The reward gold needs a world"),
        ("ppo", ["--reward", "gold:weather"], "no text world 'weather'"),
        ("rloo", ["--reward", "gold:sentiment", "--kind", "grpo"], "`train rloo` needs --kind rloo"),
        ("rest", ["--reward", "gold:sentiment", "--patience", "2"], "--patience 2 has no effect without held-out data"),
        ("sft", ["--patience", "2"], "--patience 2 has no effect without held-out data"),
        ("sft", ["--eval-every", "2"], "--eval-every 2 has no effect without held-out data"),
        (
            "ppo",
            ["--reward", "gold:sentiment", "--eval-samples", "2"],
            "--eval-samples 2 has no effect without held-out",
        ),
        ("sft", ["--eval-fraction", "0"], "--eval-fraction must be a finite number above 0 and below 1"),
        ("sft", ["--eval-fraction", "1"], "--eval-fraction must be a finite number above 0 and below 1"),
        ("sft", ["--eval-fraction", "nan"], "--eval-fraction must be a finite number above 0 and below 1"),
        ("sft", ["--eval-fraction", "0.1", "--eval-limit", "2"], "--eval-limit 2 has no effect without --eval-data"),
        ("sft", ["--eval-fraction", "0.1", "--eval-split", "a"], "--eval-split a has no effect without --eval-data"),
        ("sft", ["--eval-fraction", "0.1", "--eval-data", "a.jsonl"], "Give only one of them"),
        ("sft", ["--eval-fraction", "0.1", "--patience", "0"], "--patience must be a whole number of at least 1"),
        ("sft", ["--eval-data", "nowhere.jsonl"], "nowhere.jsonl"),
        ("sft", ["--eval-data", "world:weather"], "no text world 'weather'"),
        ("dpo", ["--data", "world:weather"], "no text world 'weather'"),
        ("dpo", ["--model", "lab-gtp2"], "Do you mean lab-gpt2"),
        ("dpo", ["--lora-rank", "0"], "--lora-rank must be a whole number of at least 1"),
        ("dpo", ["--accumulate", "9"], "--accumulate 9 cannot cut"),
        ("sft", ["--epochs", "0"], "--epochs must be a finite number above 0"),
        ("sft", ["--epochs", "inf"], "--epochs must be a finite number above 0, not inf"),
        ("sft", ["--max-grad-norm", "0"], "None means that gradients are not clipped"),
        ("sft", ["--max-grad-norm", "-1"], "--max-grad-norm must be a finite number above 0"),
        ("sft", ["--warmup", "1", "--warmup-ratio", "0.5"], "--warmup 1 has no effect with --warmup-ratio"),
        ("sft", ["--warmup-ratio", "1.5"], "--warmup-ratio must be a finite number between 0 and 1"),
        ("sft", ["--min-rate", "-1"], "--min-rate must be a finite number between 0 and 1"),
        (
            "sft",
            ["--min-rate", "0.1", "--schedule", "constant"],
            "--min-rate 0.1 has no effect with --schedule constant",
        ),
        ("sft", ["--warmup", "-1"], "--warmup must be a whole number of at least 0"),
        ("sft", ["--warmup", "3"], "--warmup 3 is more than the run's 2 steps"),
        ("sft", ["--weight-decay", "-1"], "--weight-decay must be a finite number of at least 0"),
        ("sft", ["--adam-epsilon", "-1"], "--adam-epsilon must be"),
        ("sft", ["--limit", "0"], "--limit must be a whole number of at least 1"),
        ("sft", ["--max-prompt-tokens", "0"], "--max-prompt-tokens must be a whole number of at least 1"),
        (
            "sft",
            ["--lora-rank", "100000"],
            "--lora-rank must be a whole number between 1 and 32, the model's hidden size",
        ),
        ("sft", ["--lora-alpha", "8"], "--lora-alpha 8.0 has no effect without --lora-rank"),
        ("sft", ["--lora-targets", "c_attn"], "--lora-targets c_attn has no effect without --lora-rank"),
        ("sft", ["--lora-dropout", "0.1"], "--lora-dropout 0.1 has no effect without --lora-rank"),
        ("sft", ["--lora-rank-stabilised"], "--lora-rank-stabilised has no effect without --lora-rank"),
        (
            "sft",
            ["--lora-rank", "4", "--lora-dropout", "1"],
            "--lora-dropout must be a finite number of at least 0 and",
        ),
        (
            "sft",
            ["--lora-rank", "4", "--lora-dropout", "0.1", "--gradient-checkpointing"],
            "--lora-dropout cannot be used with --gradient-checkpointing",
        ),
        (
            "rloo",
            ["--reward", "gold:sentiment", "--lora-rank", "4", "--lora-dropout", "0.1"],
            "--lora-dropout cannot be used with this method",
        ),
        ("sft", ["--lora-rank", "4", "--lora-alpha", "0"], "--lora-alpha must be a finite number above 0"),
        ("sft", ["--reference-cache", "cache"], "has no effect for this method"),
        ("sft", ["--data-split", "test"], "--data-split test has no effect on"),
        ("sft", ["--data-folder", "a"], "--data-folder a has no effect on a local file"),
        ("sft", ["--data-revision", "a"], "--data-revision a has no effect on a local file"),
        (
            "dpo",
            ["--data", "world:sentiment", "--data-folder", "a"],
            "--data-folder a has no effect on data of a world",
        ),
        ("dpo", ["--label-noise", "0.1"], "--label-noise 0.1 has no effect on data that already have labels"),
        ("dpo", ["--data", "world:sentiment", "--label-noise", "0.6"], "--label-noise must be a finite number between"),
        ("dpo", ["--loss", "simpo", "--reference", "lab-gpt2"], "has no effect with the loss simpo"),
        ("dpo", ["--loss", "orpo", "--reference-cache", "a"], "has no effect with the loss orpo"),
        ("dpo", ["--loss", "robust"], "robust with --label-smoothing 0 is plain DPO"),
        (
            "iterated-dpo",
            ["--reward", "gold:sentiment", "--loss", "hinge", "--reference", "lab-gpt2"],
            "with the loss hinge",
        ),
        ("rso", ["--source", "direct", "--loss", "hinge", "--reference", "lab-gpt2"], "with the loss hinge"),
        ("rso", ["--source", "direct", "--reward", "gold:sentiment"], "--reward gold:sentiment has no effect"),
        ("rso", ["--reward", "gold:sentiment", "--pairing", "tournament", "--accepted", "6"], "must be 2, 4, 8, …"),
        ("rest", ["--reward", "gold:sentiment", "--original-limit", "2"], "--original-limit 2 has no effect"),
        ("ppo", ["--reward", "gold:sentiment", "--clip", "nan"], "--clip must be a finite number above 0"),
        (
            "ppo",
            ["--reward", "gold:sentiment", "--discount", "1.5"],
            "--discount must be a finite number between 0 and 1",
        ),
        (
            "ppo",
            ["--reward", "gold:sentiment", "--data-epochs", "nan"],
            "--data-epochs must be a finite number above 0",
        ),
        ("ppo", ["--reward", "gold:sentiment", "--minibatches", "5"], "--minibatches 5 is more than the 4 prompts"),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_the_mend(method, more, message, model, pairs, tmp_path, capsys):
    """Each is known before anything is written: no folder is left. A dry run says the same."""
    words = train(method, model, pairs, tmp_path / "run", *more)
    if "--data" in more:  # in place of the pairs
        place = words.index("--data")
        del words[place : place + 2]
    for last in ([], ["--dry-run"]):
        assert message in refused([*words, *last], capsys)
    assert not (tmp_path / "run").exists()


def test_a_reward_is_no_policy_and_a_policy_is_no_reward(model, pairs, reward, ranker, tmp_path, capsys):
    """The message names the option, the folder, what it contains and what to give; nothing is written."""
    out, given = tmp_path / "run", ["--data", pairs, "--reference"]
    for words, option, folder, kind in (
        (train("dpo", reward, pairs, out), "model", reward, "reward model"),
        (train("sft", ranker, pairs, out, "--dry-run"), "model", ranker, "pairwise ranker"),
        (train("reward-model", reward, pairs, out), "model", reward, "reward model"),
        (train("dpo", model, pairs, out, "--reference", reward), "reference", reward, "reward model"),
        (["sample", "--model", f"{reward}/model", "--prompt", "a"], "model", f"{reward}/model", "reward model"),
        (["evaluate", "--model", model, *given, ranker], "reference", ranker, "pairwise ranker"),
        (
            [
                "evaluate",
                "--model",
                model,
                *given,
                model,
                "--judge",
                "gold",
                "--gold",
                "sentiment",
                "--against",
                reward,
            ],
            "against",
            reward,
            "reward model",
        ),
        (
            ["evaluate", "--model", model, *given, reward, "--implicit-beta", "1"],
            "reference",
            reward,
            "reward model",
        ),
    ):
        said = refused(words, capsys)
        assert f"--{option} {folder} contains a {kind}, which writes no responses. Give a language model" in said
    with pytest.raises(LabError, match=r"model=.* contains a reward model"):
        load_language_model(reward, "cpu")
    assert main(train("sft", model, pairs, tmp_path / "sft")) == 0
    for name in (model, str(tmp_path / "sft"), "lab-gpt2"):
        said = refused(train("ppo", model, pairs, out, "--reward", name), capsys)
        assert f"--reward {name} contains a language model, which gives no reward. Give the output folder of" in said
    assert "--reward" in refused(["sample", "--model", model, "--prompt", "a", "--reward", model], capsys)
    assert main(train("reward-model", str(tmp_path / "sft"), pairs, tmp_path / "reward")) == 0
    assert not out.exists()


def test_a_folder_that_is_no_whole_reward_is_refused_also_by_a_dry_run(model, pairs, reward, tmp_path, capsys):
    def said(folder: Path) -> str:
        words = train("ppo", model, pairs, tmp_path / "run", "--reward", str(folder))
        one, two = refused(words, capsys), refused([*words, "--dry-run"], capsys)
        assert one == two and not (tmp_path / "run").exists()
        return one

    (tmp_path / "empty").mkdir()
    assert "contains no reward model" in said(tmp_path / "empty")
    folder = Path(shutil.copytree(Path(reward) / "model", tmp_path / "copy"))
    (folder / "head.safetensors").unlink()
    assert "has no head.safetensors" in said(folder)
    record = (folder / "reward.json").read_text()
    (folder / "reward.json").write_text(record.replace("reward model", "critic"))
    assert "contains a critic, which is no reward" in said(folder)
    (folder / "reward.json").write_text(record[:5])
    assert "is damaged" in said(folder)


def test_columns_of_other_names_come_with_a_proposal(model, tmp_path, capsys):
    rows = [{"question": row["prompt"], "accepted": row["chosen"], "rejected": row["rejected"]} for row in GOOD]
    said = refused(train("dpo", model, write_lines(tmp_path / "a.jsonl", rows), tmp_path / "run"), capsys)
    assert "rename `question` to `prompt` and `accepted` to `chosen`" in said


@pytest.mark.parametrize(
    "method", ["sft", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dpo", "reward-model", "rloo"))]
)
def test_a_text_world_is_data_for_a_method_whatever_the_tokenizer(method, tmp_path):
    """A world's texts in a tiny model's byte-level tokens: pairs drawn and labelled, targets, gold reward."""
    from rlhf_lab.worlds import text

    examples = text.load("sentiment").examples("train", 64)
    folder = make(tmp_path / "model", context=320, texts=[e.prompt + e.target for e in examples], vocab=900)
    more = ["--reward", "gold", "--samples", "2"] if method == "rloo" else []
    words = train(method, folder, "world:sentiment", tmp_path / "run", "--limit", "8", *more)
    place = words.index("--max-prompt-tokens")
    del words[place : place + 4]
    assert main([*words, "--max-response-tokens", "200" if method == "sft" else "12"]) == 0
    assert "world:sentiment" in (tmp_path / "run" / "README.md").read_text()
