"""Every option of every command reaches its setting, from the command line and from a file, and goes on to the loop."""

import dataclasses
import re
from pathlib import Path

import pytest
from every_option import KINDS, METHODS, from_words, parsed, unused_is_no_fault, value_at, wanted  # noqa: F401

from rlhf_lab.algorithms.grpo_rloo import Group
from rlhf_lab.cli import main as cli
from rlhf_lab.cli import yaml_config
from rlhf_lab.training import Training


@pytest.mark.parametrize("command", KINDS)
def test_every_option_reaches_its_setting_and_the_file_of_the_settings_says_the_same(command, tmp_path):
    """All options at the same time, each at a value that is not its default: read from the settings object one by one.
    The object written as YAML and read through --config is the same object but for what is never saved."""
    values = wanted(command)
    settings = from_words(command, values)
    paths = yaml_config.flat_fields(KINDS[command])
    assert {name: value_at(settings, paths[name]) for name in values if name != "config"} == {
        name: value for name, value in values.items() if name != "config"
    }
    if "config" not in paths:
        return
    file = tmp_path / "settings.yaml"
    file.write_text(yaml_config.write(settings), encoding="utf-8")
    again = parsed(command, ["--config", str(file)])
    assert dataclasses.replace(again, config=None) == settings


def test_settings_of_one_call_are_not_written_with_those_of_the_run():
    settings = from_words("train sft", {"model": "m", "data": "d", "out": "o", "resume": True, "progress": False})
    lines = yaml_config.write(settings).splitlines()
    assert "progress: false" in lines and not any(line.startswith(("resume", "config")) for line in lines)


# What the loop and its users share, by the options' names.
SHARED = (
    "batch_size", "learning_rate", "schedule", "min_rate", "warmup", "weight_decay", "adam_epsilon", "max_grad_norm",
    "precision", "accumulate", "gradient_checkpointing", "seed", "log_every", "save_every", "eval_every", "patience",
    "out", "resume", "progress", "trackers",
)  # fmt: skip


@pytest.mark.parametrize("command", METHODS)
def test_the_training_loop_gets_every_option_of_the_command(command):
    """None of the values is a default, so one that is lost on the way differs. AdamW is the optimiser, for Adam knows
    no weight decay; the number of steps that was given is taken whatever the number of rows."""
    values = wanted(command)
    settings = from_words(command, values)
    training = settings.training(1000)
    assert {name: getattr(training, name) for name in SHARED} == {name: values[name] for name in SHARED}
    usual = Training()
    lost = [name for name in SHARED if name != "resume" and getattr(training, name) == getattr(usual, name)]
    assert (training.optimizer, training.steps, lost) == ("adamw", values["steps"], [])


def test_epochs_become_steps_by_the_rows_and_the_batch_and_a_method_s_own_demands_win():
    """100 rows in batches of 8 are 12.5 steps: 25 for two epochs, 50 for four. Of 10 rows a batch of 64 holds all, so
    that three epochs are 3 steps; a hundredth of an epoch is still one step."""
    usual = from_words("train sft", {"model": "m", "data": "d", "out": "o", "batch_size": 8})

    def steps(rows: int, **changes) -> int:
        return dataclasses.replace(usual, **changes).training(rows).steps

    assert (steps(100, epochs=2.0), steps(100, epochs=4.0)) == (25, 50)
    assert (steps(10, epochs=3.0, batch_size=64), steps(10, epochs=0.01)) == (3, 1)
    assert steps(100, epochs=2.0, steps=7) == 7
    assert usual.training(100, steps=9, weight_decay=0.5) == dataclasses.replace(
        usual.training(100), steps=9, weight_decay=0.5
    )


def test_the_warmup_ratio_is_a_fraction_of_the_steps_rounded_up():
    """A tenth of 25 steps is 2.5, so three steps. With steps from the data: 100 rows in batches of 8 are 12 steps."""
    usual = from_words("train sft", {"model": "m", "data": "d", "out": "o", "warmup_ratio": 0.1, "batch_size": 8})
    assert dataclasses.replace(usual, steps=25).training(100).warmup == 3
    assert (usual.training(100).steps, usual.training(100).warmup) == (12, 2)


def test_ppo_has_the_adam_epsilon_of_its_source():
    """1e-5 for PPO (Huang et al. 2022, "The 37 implementation details", number 3), Adam's own 1e-8 for the others."""
    needed = {"model": "m", "data": "d", "out": "o", "reward": "r"}
    assert from_words("train ppo", needed).training(8).adam_epsilon == 1e-5
    assert from_words("train rloo", needed).training(8).adam_epsilon == 1e-8


def test_every_method_that_has_settings_is_a_command_with_these_settings():
    """A method is a file of `cli/train` with a class Train…: its command has the file's name and that class."""
    folder = Path(cli.__file__).parent / "train"
    found = {
        f"train {path.stem.replace('_', '-')}": re.findall(r"^class (Train\w+)", path.read_text(encoding="utf-8"), re.M)
        for path in folder.glob("*.py")
    }
    assert {name: [KINDS[name].__name__] for name in METHODS} == {name: kinds for name, kinds in found.items() if kinds}


def test_train_grpo_takes_the_standard_deviation_and_rloo_only_where_it_divides_by_one(tmp_path):
    """`--std` reaches the settings; without the option it is the population's. RLOO does not divide by it."""
    words = ["--model", "m", "--data", "d", "--reward", "r", "--out", str(tmp_path / "run")]
    assert parsed("train grpo", [*words, "--std", "sample"]).group == Group("grpo", std="sample")
    assert parsed("train grpo", words).group.std == "population"
    assert parsed("train rloo", [*words, "--std", "sample", "--divide-by-std", "True"]).group.std == "sample"
