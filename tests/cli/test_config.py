"""Settings from YAML: they reach the command, the command line wins, and a slip is said in one sentence."""

import dataclasses
import importlib
import re

import docstring_parser
import pytest

from rlhf_lab.cli import help_texts, yaml_config
from rlhf_lab.cli.main import COMMANDS, _settings, main
from rlhf_lab.cli.train.dpo import TrainDPO
from rlhf_lab.errors import LabError

NEEDED = ["--model", "m", "--data", "d", "--out", "o"]


def dpo(tmp_path, text: str, *more: str) -> TrainDPO:
    file = tmp_path / "settings.yaml"
    file.write_text(text, encoding="utf-8")
    return _settings(TrainDPO, [*NEEDED, "--config", str(file), *more], "rlhf-lab train dpo")


def test_the_file_s_settings_are_taken_and_the_command_line_wins(tmp_path):
    text = "beta: 0.3\nlearning-rate: 1e-4\nmax_grad_norm: null\nprogress: false\ntrackers: [tensorboard]\nloss: ipo\n"
    settings = dpo(tmp_path, text, "--beta", "0.5")
    assert settings.dpo.beta == 0.5 and settings.dpo.loss == "ipo"
    assert settings.learning_rate == 1e-4 and settings.max_grad_norm is None
    assert settings.progress is False and settings.trackers == ("tensorboard",)


def test_a_method_s_settings_may_stand_in_a_group_of_their_own(tmp_path):
    settings = dpo(tmp_path, "dpo:\n  beta: 0.7\n  label_smoothing: 0.1\nsteps: 3\n")
    assert (settings.dpo.beta, settings.dpo.label_smoothing, settings.steps) == (0.7, 0.1, 3)


def test_what_the_command_needs_may_come_from_the_file(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("model: m\ndata: d\nout: o\n")
    assert _settings(TrainDPO, ["--config", str(file)], "p").model == "m"
    assert _settings(TrainDPO, [f"--config={file}"], "p").data == "d"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1", r"there is no setting 'learning_rat'. Do you mean learning_rate\?"),
        ("dpo: {betta: 1}", r"settings\.yaml, dpo: there is no setting 'betta'. Do you mean beta"),
        ("xyz: 1", "The settings are: accumulate, adam_epsilon"),
        ("config: other.yaml", "there is no setting 'config'"),
        ("beta: [1", r"settings\.yaml, line 1: not YAML"),
        ("- beta", "expected `name: value` lines, found a list"),
        ("beta: {a: 1}", "`beta` is a group of settings"),
        ("trackers: [[a]]", "`trackers` is a nested list"),
        ("progress: maybe", "`progress` must be true or false, not 'maybe'"),
        ("steps: 1\nsteps: 2\n", r"settings\.yaml, line 2: `steps` appears more than once"),
        ("dpo:\n  beta: 1\n  beta: 2\n", r"settings\.yaml, line 3: `beta` appears more than once"),
        ("learning_rate: 1\nlearning-rate: 2\n", "`learning_rate` appears more than once"),
        ("beta: 1\ndpo: {beta: 2}\n", "`beta` appears more than once"),
        ("beta: 2001-99-99\n", "not YAML"),
        ("beta: " + "[" * 3000, "not YAML"),
        ("a: !!python/object/apply:os.system [echo]", "not YAML"),
    ],
)
def test_a_slip_in_the_file_is_said_in_one_sentence(tmp_path, text, message):
    with pytest.raises(LabError, match=message) as caught:
        dpo(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_not_utf8_is_refused(tmp_path):
    with pytest.raises(LabError, match=r"nothing\.yaml cannot be read"):
        _settings(TrainDPO, [*NEEDED, "--config", str(tmp_path / "nothing.yaml")], "p")
    (tmp_path / "l.yaml").write_bytes("model: caf\xe9".encode("latin-1"))
    with pytest.raises(LabError, match="not UTF-8"):
        _settings(TrainDPO, [*NEEDED, "--config", str(tmp_path / "l.yaml")], "p")


def test_a_value_of_the_wrong_kind_is_said_with_the_file(tmp_path, capsys):
    file = tmp_path / "a.yaml"
    file.write_text("beta: high\n")
    assert main(["train", "dpo", *NEEDED, "--config", str(file)]) == 2
    assert capsys.readouterr().err == f"rlhf-lab: {file}: `beta` must be a number, not 'high'.\n"


def changed(value, name):
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float) and value is not None:
        return value + (1 if isinstance(value, int) else 0.25)
    return value


METHODS = [path for path in COMMANDS if path[0] in ("train", "sample", "evaluate")]


@pytest.mark.parametrize("path", METHODS, ids=" ".join)
def test_every_command_s_settings_survive_the_way_to_yaml_and_back(path, tmp_path):
    """Every number and switch of the shared settings is moved from its default first."""
    command = COMMANDS[path]
    kind = getattr(importlib.import_module(command.module), command.settings)
    needed = {f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING}
    words = [word for name in sorted(needed - {"data"}) for word in (f"--{name}", f"some-{name}")]
    # Data of a world and held-out data, which some of the settings belong to.
    words += ["--data", "world:sentiment"] if "data" in needed else []
    words += ["--eval-data", "some-file"] if "eval_data" in yaml_config.flat_fields(kind) else []
    settings = _settings(kind, words, "p")
    simple = {f.name: changed(getattr(settings, f.name), f.name) for f in dataclasses.fields(kind)}
    # Options that are refused without another one keep their defaults.
    kept = {
        "resume": False,
        "dry_run": False,
        "lora_dropout": 0.0,
        "lora_rank_stabilised": False,
        "load_in_4bit": False,
    }
    moved = dataclasses.replace(settings, **simple | {name: kept[name] for name in simple.keys() & kept.keys()})
    file = tmp_path / "settings.yaml"
    file.write_text(yaml_config.write(moved), encoding="utf-8")
    assert _settings(kind, ["--config", str(file)], "p") == dataclasses.replace(moved, config=file)


@pytest.mark.parametrize("path", METHODS, ids=" ".join)
def test_no_option_means_two_things_and_every_option_is_explained(path, capsys):
    """`flat_fields` refuses two settings of one name; --help shows each of them."""
    command = COMMANDS[path]
    kind = getattr(importlib.import_module(command.module), command.settings)
    options = yaml_config.flat_fields(kind)
    with pytest.raises(SystemExit):
        main([*path, "--help"])
    said = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in said for name in options)
    assert not re.findall("`[a-z]+_[a-z_]+`", said)


def test_an_explanation_is_running_text_that_names_options():
    """Continued lines of a docstring are indented, and tyro would keep their line breaks."""

    @dataclasses.dataclass
    class Settings:
        one_rate: int = 0
        """Used with `two` or `two=5`, and not with
        `one_rate`; see `others`."""

    with help_texts.from_docstrings(["one_rate", "two"]):
        (found,) = docstring_parser.parse_from_object(Settings).params
    assert found.description == "Used with `--two` or `--two=5`, and not with `--one-rate`; see `others`."
    assert "\n" in docstring_parser.parse_from_object(Settings).params[0].description
