"""Every error of a command line is one sentence without a box, with options as they are typed."""

import typing

import pytest
from every_option import KINDS, parsed

from rlhf_lab.cli import yaml_config
from rlhf_lab.cli.main import main
from rlhf_lab.cli.option_values import as_options, wrong_value
from rlhf_lab.errors import LabError

NEEDED = ["--model", "m", "--data", "d", "--out", "o"]


def error(command: str, words: list[str]) -> str:
    with pytest.raises(LabError) as caught:
        parsed(command, [*(NEEDED if command.startswith("train") else []), *words])
    said = str(caught.value)
    assert "\n" not in said and not set(said) & set("╭│╰─")
    return said


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("compare", ["--seeds", "x"], "compare: --seeds must be a whole number, not 'x'."),
        ("train sft", ["--steps", "1e3"], "--steps must be a whole number or None, not '1e3'. Write 1000."),
        ("train sft", ["--steps=2.5"], "--steps must be a whole number or None, not '2.5'."),
        ("train sft", ["--lr", "fast"], "--learning-rate must be a number, not 'fast'."),
        (
            "train dpo",
            ["--data-weights", "1,3"],
            "--data-weights must be numbers with spaces between them, not '1,3'. Write --data-weights 1 3.",
        ),
        ("train dpo", ["--data-weights", "1", "x"], "--data-weights must be numbers, not 'x'."),
        ("train rest", ["--reward", "r", "--thresholds", "0", "high"], "--thresholds must be numbers, not 'high'."),
        ("train sft", ["--steps", "5", "6"], "--steps takes one value, but 2 follow it (5 6)."),
        ("train sft", ["--resume", "yes"], "--resume takes no value, and 'yes' follows it."),
        ("train sft", ["--no-progress=1"], "--no-progress takes no value, and '1' follows it. Leave it out."),
        ("train grpo", ["--reward", "r", "--divide-by-std", "maybe"], "--divide-by-std must be True or False or None"),
        ("train sft", ["--precision", "half"], "--precision must be fp32 or bf16, not 'half'."),
        ("train kto", ["--desirable-weight", "1/2"], "--desirable-weight must be a number, not '1/2'."),
        ("plan", ["--memory-gb", "8GB"], "plan: --memory-gb must be a number or None, not '8GB'."),
        ("data", ["a.jsonl", "--model", "m", "--rows", "few"], "data: --rows must be a whole number, not 'few'."),
    ],
)
def test_a_value_of_the_wrong_kind_is_one_sentence(command, words, message):
    assert message in error(command, words)


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("sample", [], "sample needs --model. `rlhf-lab sample --help` explains it."),
        ("evaluate", ["--model", "m"], "evaluate needs --data."),
        ("push", [], "push needs RUN and --to. `rlhf-lab push --help` explains them."),
        ("data", ["a.jsonl"], "data needs --model."),
        ("course", ["--solutions"], "course needs DIR."),
    ],
)
def test_what_is_missing_is_named(command, words, message):
    assert message in error(command, words)
    assert "train ppo needs --reward." in error("train ppo", [])


def test_an_unforeseen_error_has_no_box():
    assert error("train sft", ["word", *NEEDED]).startswith("train sft: ")


def test_in_a_file_the_setting_is_named_as_it_is_written(tmp_path, capsys):
    for text, message in (
        ("warmup_ratio: [a]\n", "`warmup_ratio` must be a number or None, not 'a'."),
        ("data_weights: [1, b]\n", "`data_weights` must be numbers, not 'b'."),
        ("learning_rat: 1\n", "there is no setting 'learning_rat'. Do you mean learning_rate?"),
    ):
        (tmp_path / "a.yaml").write_text(text)
        assert main(["train", "sft", *NEEDED, "--config", str(tmp_path / "a.yaml")]) == 2
        assert capsys.readouterr().err == f"rlhf-lab: {tmp_path / 'a.yaml'}: {message}\n"


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("lora_rank=4 does not fit. Leave lora_rank out.", "--lora-rank 4 does not fit. Leave --lora-rank out."),
        ("load_in_4bit=True has no effect", "--load-in-4bit has no effect"),
        ("progress=False has no effect", "--no-progress has no effect"),
        ("steps must be a whole number", "--steps must be a whole number"),
        ("data_weights[1] must be a number", "value 2 of --data-weights must be a number"),
        ("data_split='test' has no effect on a.jsonl", "--data-split test has no effect on a.jsonl"),
        ("Lower max_prompt_tokens, or the data.", "Lower --max-prompt-tokens, or the data."),
        # Paths, columns, records, and words that are no names of settings stay.
        ("/tmp/lora_rank/data_split.json: `lora_rank`", "/tmp/lora_rank/data_split.json: `lora_rank`"),
        ("a run with lora_rank = 4, not 8", "a run with lora_rank = 4, not 8"),
        ("The steps and the data of --lora-rank", "The steps and the data of --lora-rank"),
    ],
)
def test_a_message_about_a_setting_names_the_option(message, shown):
    assert as_options(message, yaml_config.option_types(KINDS["train dpo"])) == shown


def test_the_command_line_shows_these_names(capsys):
    assert main(["train", "dpo", "--model", "m", "--data", "a", "b", "--out", "o", "--data-weights", "1"]) == 2
    assert "--data-weights needs one number for each of the 2 data (a, b)" in capsys.readouterr().err
    assert main(["compare", "--seeds", "0"]) == 2
    assert capsys.readouterr().err.startswith("rlhf-lab: --seeds must be a whole number of at least 1")


def test_every_number_of_every_command_refuses_a_word():
    """No type of an option is unknown to the check: a number that is a word is refused by the option's name."""
    for command, kind in KINDS.items():
        options = yaml_config.option_types(kind)
        for name, hint in options.items():
            inside = [hint, *typing.get_args(hint), *(a for one in typing.get_args(hint) for a in typing.get_args(one))]
            if (int in inside or float in inside) and str not in inside:
                option = name.replace("_", "-")
                found = wrong_value([f"--{option}", "word"], options, free=False)
                assert found is not None and found[0].option == option, (command, name)
