"""Old names of commands, options and values work, with one line on stderr that gives the new name."""

from dataclasses import dataclass
from typing import Literal

import pytest

from rlhf_lab.cli import old_names, yaml_config
from rlhf_lab.cli.main import COMMANDS, _settings, main
from rlhf_lab.cli.plan import ResourcePlan
from rlhf_lab.cli.sample import Sample
from rlhf_lab.cli.train.grpo import TrainGRPO
from rlhf_lab.cli.train.iterated_dpo import TrainIteratedDPO


@dataclass
class Now:
    """A command's settings, two of which have been renamed from `rung` and `prompts_at_once`."""

    scale: str = "bandit"
    sampling_batch_size: int = 1
    method: Literal["dpo", "iterated-dpo"] = "dpo"
    online: bool = False
    text: str = ""


@dataclass
class Before:
    """The settings of a command whose `rung` has not been renamed."""

    rung: str = "bandit"


def notices(capsys) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_an_old_command_name_becomes_the_new_one_with_a_notice(capsys):
    assert old_names.new_command(["train", "online", "--out", "o"], COMMANDS) == ["train", "iterated-dpo", "--out", "o"]
    (line,) = notices(capsys)
    assert "`train online` is now called `train iterated-dpo`" in line and "next version" in line
    assert old_names.new_command(["train", "dpo"], COMMANDS) == ["train", "dpo"] and not notices(capsys)


@pytest.mark.parametrize("old", list(old_names.COMMANDS), ids=" ".join)
def test_an_old_command_name_is_left_alone_while_the_command_still_has_it(old, capsys):
    assert old_names.new_command([*old, "x"], [old]) == [*old, "x"]
    assert old_names.new_command([*old, "x"], [old, old_names.COMMANDS[old]]) == [*old, "x"]
    assert old_names.new_command([*old, "x"], [old_names.COMMANDS[old]]) == [*old_names.COMMANDS[old], "x"]
    assert len(notices(capsys)) == 1


def test_the_old_command_runs_the_new_one(capsys):
    with pytest.raises(SystemExit):
        main(["train", "online", "--help"])
    out, err = capsys.readouterr()
    assert "rlhf-lab train iterated-dpo" in out and "`train online` is now called" in err


@pytest.mark.parametrize(
    "words",
    [
        ["--rung", "tree", "--prompts-at-once", "7"],
        ["--rung=tree", "--prompts_at_once=7"],
        ["--scale", "tree", "--prompts-at-once=7"],
    ],
)
def test_old_options_reach_the_new_setting(words, capsys):
    assert _settings(Now, words, "p") == Now(scale="tree", sampling_batch_size=7)
    said = notices(capsys)
    assert len(said) == sum("rung" in word or "at" in word for word in words if word.startswith("--"))
    assert "`--sampling-batch-size`" in said[-1]


def test_an_option_that_was_not_renamed_keeps_its_name_and_its_values(capsys):
    """`rung` is a setting of this command; the values of `text` are not those of `method`; `online` is an option."""
    assert _settings(Before, ["--rung", "tree"], "p") == Before("tree")
    assert _settings(Now, ["--text", "online", "--online"], "p") == Now(text="online", online=True)
    assert not notices(capsys)


@pytest.mark.parametrize("words", [["--method", "online"], ["--method=online"]])
def test_an_old_value_becomes_the_new_one(words, capsys):
    assert _settings(Now, words, "p").method == _settings(ResourcePlan, words, "p").method == "iterated-dpo"
    assert all("`--method online` is now called `--method iterated-dpo`" in line for line in notices(capsys))


def test_a_settings_file_may_have_old_names_too(tmp_path, capsys):
    """`rounds` is in the old group `online`. The file's name stands in the notice."""
    file = tmp_path / "settings.yaml"
    file.write_text("rung: tree\nprompts-at-once: 7\n", encoding="utf-8")
    assert yaml_config.read(file, Now) == ["--scale=tree", "--sampling-batch-size=7"]
    first, second = notices(capsys)
    assert f"{file}: `rung` is now called `scale`" in first and "`sampling_batch_size`" in second
    file.write_text("online: {rounds: 3}\nmodel: m\ndata: world:sentiment\nout: o\nreward: gold\n", encoding="utf-8")
    assert _settings(TrainIteratedDPO, ["--config", str(file)], "p").iterated_dpo.rounds == 3
    assert "`online` is now called `iterated_dpo`" in notices(capsys)[0]


def test_a_settings_file_with_both_names_is_refused(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("rung: tree\nscale: bandit\n", encoding="utf-8")
    with pytest.raises(ValueError, match="`scale` appears more than once"):
        yaml_config.read(file, Now)


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--chat", "--top-k", "5"], "on"),
        (["--top-k", "5", "--chat"], "on"),
        (["--no-chat", "--top-k", "5"], "off"),
    ],
)
def test_chat_without_a_value_is_on_with_a_notice(words, value, capsys):
    settings = _settings(Sample, ["--model", "m", "--prompt", "a", *words], "p")
    assert (settings.chat, settings.top_k) == (value, 5)
    (line,) = notices(capsys)
    assert f"is now called `--chat {value}`" in line


@pytest.mark.parametrize("words", [["--chat", "off"], ["--chat=off"]])
def test_chat_with_a_value_needs_no_notice(words, capsys):
    assert _settings(Sample, ["--model", "m", "--prompt", "a", *words], "p").chat == "off"
    assert not notices(capsys)


@pytest.mark.parametrize(
    ("text", "value"), [("on", "on"), ("off", "off"), ("true", "on"), ("'off'", "off"), ("auto", "auto")]
)
def test_on_and_off_in_a_settings_file_need_no_quotes(text, value, tmp_path):
    """YAML reads on and off as true and false, of which `--chat=True` would be made."""
    file = tmp_path / "settings.yaml"
    file.write_text(f"model: m\nchat: {text}\n", encoding="utf-8")
    assert _settings(Sample, ["--config", str(file), "--prompt", "a"], "p").chat == value


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ([], None),
        (["--divide-by-std"], True),
        (["--divide-by-std", "True"], True),
        (["--divide-by-std=None"], None),
        (["--no-divide-by-std"], False),
    ],
)
def test_an_option_with_the_values_true_false_and_none_needs_no_value(words, value, capsys):
    """As for other switches, `--divide-by-std` is True and `--no-divide-by-std` is False."""
    needed = ["--model", "m", "--data", "d", "--reward", "r", "--out", "o"]
    assert _settings(TrainGRPO, [*needed, *words, "--seed", "3"], "p").group.divide_by_std is value
    assert not notices(capsys)
