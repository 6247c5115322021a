"""Names from papers and other tools: commands of losses, `--lr`, and the right suggestion for a wrong name."""

import json
import re
import shutil
import typing
from pathlib import Path

import pytest
import torch
from every_option import KINDS, parsed
from small import train, weights
from tiny_models import one_thread, tiny_tokenizer  # noqa: F401

from rlhf_lab.algorithms.pair_losses import PAIR_LOSSES
from rlhf_lab.cli import familiar_names, yaml_config
from rlhf_lab.cli.main import COMMANDS, main, usage
from rlhf_lab.errors import LabError

NEEDED = ["--model", "m", "--data", "d", "--out", "o"]


def test_a_loss_is_a_command_with_that_loss(model, pairs, tmp_path):
    """`train simpo` is `train dpo --loss simpo`: the same settings in run.json and the same weights."""
    assert main(train("simpo", model, pairs, tmp_path / "a", "--beta", "2")) == 0
    assert main(train("dpo", model, pairs, tmp_path / "b", "--beta", "2", "--loss", "simpo")) == 0
    one, two = (json.loads((tmp_path / name / "run.json").read_text()) for name in "ab")
    assert one["dpo"]["loss"] == "simpo" and {**one, "out": ""} == {**two, "out": ""}
    ours, theirs = weights(tmp_path / "a" / "model"), weights(tmp_path / "b" / "model")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_every_loss_command_has_a_loss_and_is_no_command_of_another_kind():
    assert set(familiar_names.LOSS_COMMANDS.values()) <= set(PAIR_LOSSES)
    assert not {("train", name) for name in familiar_names.LOSS_COMMANDS} & set(COMMANDS)
    assert all(f" {name}" in usage() for name in familiar_names.LOSS_COMMANDS)


def test_another_loss_beside_a_loss_command_is_refused_before_anything_is_written(model, pairs, tmp_path, capsys):
    for more in (["--loss", "ipo"], ["--loss=ipo"]):
        assert main(train("simpo", model, pairs, tmp_path / "run", *more)) == 2
        assert "`train simpo` has the loss simpo, and --loss is ipo. Leave --loss out" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert familiar_names.loss_command(["train", "simpo", "--loss", "simpo"])[:3] == ["train", "dpo", "--loss=simpo"]


def test_lr_is_the_learning_rate_without_a_notice(tmp_path, capsys):
    for words in (["--lr", "0.5"], ["--lr=0.5"]):
        assert parsed("train sft", [*NEEDED, *words]).learning_rate == 0.5
    file = tmp_path / "s.yaml"
    file.write_text("lr: 0.25\n")
    assert parsed("train sft", ["--config", str(file), *NEEDED]).learning_rate == 0.25
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["dpo"], "train dpo"),
        (["simpo", "--beta", "2"], "train simpo"),
        (["trian", "dpo"], "train dpo"),
        (["train", "pdo"], "train dpo"),
        (["train", "smpo"], "train simpo"),
        (["train", "reward"], "train reward-model"),
        (["online-dpo"], "train iterated-dpo"),
        (["eval"], "evaluate"),
        (["generate"], "sample"),
        (["experiment", "rso_table"], "experiment rso-table"),
        (["experiment", "rso"], "experiment rso-why"),
        (["docter"], "doctor"),
        (["bake"], None),
    ],
)
def test_a_wrong_command_gets_the_right_suggestion(words, meant, capsys):
    assert main(words) == 2
    said = capsys.readouterr().err
    assert (f"Do you mean '{meant}'?" in said) if meant else ("Do you mean" not in said and "no command" in said)


@pytest.mark.parametrize(
    ("command", "word", "meant"),
    [
        ("train dpo", "--lerning-rate", "--learning-rate"),
        ("train dpo", "--num-train-epochs=3", "--epochs"),
        ("train dpo", "--per_device_train_batch_size", "--batch-size"),
        ("train sft", "--lr-scheduler-type", "--schedule"),
        ("train grpo", "--num-generations", "--samples"),
        ("train kto", "--lora-r", "--lora-rank"),
        ("train dpo", "--gradient-clipping", "--max-grad-norm"),
        ("train grpo", "--epsilon", "--clip"),
        ("train ppo", "--vf-coef", "--value-coefficient"),
        ("sample", "--tempratur", "--temperature"),
    ],
)
def test_a_wrong_option_gets_the_right_suggestion(command, word, meant):
    with pytest.raises(LabError, match=rf"{command} has no option {word.split('=')[0]}. Do you mean {meant}\?"):
        parsed(command, [*(NEEDED if command.startswith("train") else []), word, "1"])


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("train dpo", ["--loss", "sigmoid"], "or sppo, not 'sigmoid'. Do you mean sigmoid-norm?"),
        ("train dpo", ["--loss=sigmoid_norm"], "Do you mean dpo-length?"),
        ("train dpo", ["--loss", "apo_zero"], "Do you mean apo-zero?"),
        ("train sft", ["--schedule", "inverse_sqrt"], "Do you mean inverse-sqrt?"),
        (
            "train sft",
            ["--precision", "bfloat16"],
            "--precision must be fp32 or bf16, not 'bfloat16'. Do you mean bf16?",
        ),
        ("train sft", ["--adapter", "lora"], "must be merge or continue, not 'lora'. --lora-rank trains new adapters."),
        ("train grpo", ["--penalty", "k9", "--reward", "r"], "--penalty must be reward, k2 or k3, not 'k9'."),
        ("sample", ["--model", "m", "--prompt", "a", "--chat", "yes"], "--chat must be auto, on or off, not 'yes'."),
    ],
)
def test_a_wrong_value_gets_the_allowed_ones_and_a_suggestion(command, words, message):
    with pytest.raises(LabError) as error:
        parsed(command, [*(NEEDED if command.startswith("train") else []), *words])
    assert message in str(error.value)


def test_a_wrong_value_in_a_file_gets_the_same_words(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text("loss: bco_pair\n")
    with pytest.raises(LabError, match=r"not 'bco_pair'. Do you mean bco\?"):
        parsed("train dpo", ["--config", str(file), *NEEDED])


def test_an_option_that_is_like_no_other_points_to_the_help():
    with pytest.raises(LabError, match="has no option --qqqq. `rlhf-lab train sft --help` lists the options"):
        parsed("train sft", [*NEEDED, "--qqqq", "1"])


def test_a_setting_of_another_tool_in_a_file_gets_the_same_suggestion(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text("num_train_epochs: 3\n")
    with pytest.raises(LabError, match=r"no setting 'num_train_epochs'. Do you mean epochs\?"):
        parsed("train sft", ["--config", str(file), *NEEDED])


def test_the_page_s_table_of_other_tools_has_only_options_that_exist_here():
    """The last column of `docs/commands.md` names options and commands of the lab. An option that the code suggests for
    a name of the other columns is the one in its row."""
    page = (Path(__file__).parents[2] / "docs" / "commands.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ") and line.count(" | ") == 3]
    rows = rows[[row[0] for row in rows].index("| TRL") + 1 :]
    known = set().union(*(yaml_config.flat_fields(kind) for kind in KINDS.values())) | set(familiar_names.ALIASES)
    assert len(rows) > 30
    for row in rows:
        ours = {name.replace("-", "_") for name in re.findall(r"--([a-z0-9-]+)", row[3])}
        assert ours <= known, row
        for name in re.findall(r"`(\w+)`", " ".join(row[:3])):
            suggested = familiar_names.ELSEWHERE.get(name)
            assert suggested is None or suggested in ours or name == "gradient_accumulation_steps", row


def test_a_tilde_is_the_home_folder_in_every_path(model, pairs, tmp_path, monkeypatch):
    """The shell expands `--model ~/m` itself, but not `--model=~/m`."""
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    shutil.copytree(model, tmp_path / "m")
    shutil.copy(pairs, tmp_path / "p.jsonl")
    (tmp_path / "s.yaml").write_text("beta: 0.2\n")
    paths = ["--model=~/m", "--data=~/p.jsonl", "--out=~/run", "--config=~/s.yaml", "--reference=~/m"]
    assert main([*train("dpo", "", "", tmp_path)[:2], *train("dpo", "", "", tmp_path)[8:], *paths]) == 0
    assert (
        main(["sample", "--model=~/run", "--data=~/p.jsonl", "--out=~/s.jsonl", "--limit", "1", "--no-progress"]) == 0
    )
    assert (tmp_path / "s.jsonl").is_file() and main(["plan", "--model=~/run", "--method", "dpo"]) == 0


def test_names_of_other_tools_lead_to_options_that_exist_and_are_none_themselves():
    known = set().union(*(yaml_config.flat_fields(kind) for kind in KINDS.values()))
    assert set(familiar_names.ELSEWHERE.values()) - {""} | set(familiar_names.ALIASES.values()) <= known
    assert not (set(familiar_names.ELSEWHERE) | set(familiar_names.ALIASES)) & known


def test_values_of_other_tools_lead_to_values_that_exist_and_are_none_themselves():
    types = {name: kind for one in KINDS.values() for name, kind in yaml_config.option_types(one).items()}
    for (option, value), ours in familiar_names.VALUES_ELSEWHERE.items():
        allowed = typing.get_args(types[option])
        assert value not in allowed and (ours in allowed or ours == ""), option


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["compare", "--methods"], "--methods"),
        (["compare", "--methods", "--seeds", "1"], "--methods"),
        (["compare", "--world"], "--world"),
        (["train", "dpo", "--data-weights", "--no-progress"], "--data-weights"),
        (["train", "dpo", "--out", "", "--no-progress"], "--out"),
        (["train", "dpo", "--data="], "--data"),
    ],
)
def test_an_option_without_its_value_is_refused(words, option, capsys):
    """An option with several values would otherwise be parsed as its default, for `--methods` all methods."""
    assert main(words) == 2
    assert f"{words[0]}" in (said := capsys.readouterr().err) and f"{option} needs a value." in said
