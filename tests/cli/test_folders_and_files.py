"""Folders and files that commands write to and read from: nothing overwritten, nothing half-written left as whole."""

import errno
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from locked_folder import held_by_another_process
from safetensors.torch import load_file, save_file
from small import make, train, write_lines
from tiny_models import one_thread  # noqa: F401

from rlhf_lab.cli import evaluate as evaluate_module
from rlhf_lab.cli.evaluate import Evaluate
from rlhf_lab.cli.main import main
from rlhf_lab.cli.sample import Sample
from rlhf_lab.cli.train import runner
from rlhf_lab.cli.train.dpo import TrainDPO, train_dpo
from rlhf_lab.errors import LabError, check_paths
from rlhf_lab.experiments.compare import Compare
from rlhf_lab.policies.loading import load_language_model, pick_device
from rlhf_lab.rewards.language_model import LanguageModelReward
from rlhf_lab.training import Training, checkpoint, output_folder

QUICK = {"labels": 60, "steps": 2, "batch_size": 16, "seeds": 1, "progress": False}


def refused(words: list[str], capsys) -> str:
    """The one sentence of the refusal on stderr. Lines about the data may come before it."""
    capsys.readouterr()
    assert main(words) == 2
    *before, said = capsys.readouterr().err.strip().splitlines()
    assert said.startswith("rlhf-lab: ")
    assert all(not line.startswith(("rlhf-lab: ", "Traceback")) and "Error" not in line for line in before)
    return said


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def evaluate(model, data, out, *more) -> list[str]:
    return [
        "evaluate", "--model", model, "--reference", model, "--data", data, "--device", "cpu", "--num-samples", "1",
        "--max-response-tokens", "4", "--limit", "2", "--no-progress", "--out", str(out), *more,
    ]  # fmt: skip


def sample(model, *more) -> list[str]:
    return ["sample", "--model", model, "--device", "cpu", "--max-response-tokens", "4", "--no-progress", *more]


@pytest.fixture
def taken(tmp_path) -> Path:
    """A folder with the settings of another run."""
    folder = tmp_path / "taken"
    folder.mkdir()
    (folder / "settings.yaml").write_text("steps: 3\n")
    return folder


def commands(model: str, pairs: str, out: Path) -> dict[str, list[str]]:
    return {
        "train": train("dpo", model, pairs, out),
        "evaluate": evaluate(model, pairs, out),
        "compare": ["compare", "--labels", "60", "--steps", "2", "--seeds", "1", "--no-progress", "--out", str(out)],
        "experiment": ["experiment", "rso-why", "--quick", "--no-progress", "--out", str(out)],
    }


@pytest.mark.parametrize("command", ["train", "evaluate", "compare", "experiment"])
def test_a_folder_with_something_else_is_refused_by_every_command_and_left_to_the_byte(
    command, model, pairs, taken, capsys
):
    before = bytes_of(taken)
    assert "already contains other files" in refused(commands(model, pairs, taken)[command], capsys)
    assert bytes_of(taken) == before


@pytest.mark.parametrize("command", ["sample", "budget"])
def test_a_file_that_is_there_is_refused_and_left_to_the_byte(command, model, tmp_path, capsys):
    out = tmp_path / "there"
    out.write_text("mine")
    words = {"sample": sample(model, "--prompt", "a"), "budget": ["budget", "--labels", "100"]}[command]
    assert "exists already" in refused([*words, "--out", str(out)], capsys)
    assert bytes_of(tmp_path) == {"there": b"mine"}


def test_sample_refuses_to_replace_the_settings_beside_another_file(model, tmp_path, capsys):
    (tmp_path / "a.settings.yaml").write_text("mine")
    said = refused(sample(model, "--prompt", "a", "--out", str(tmp_path / "a")), capsys)
    assert "a.settings.yaml exists already" in said and bytes_of(tmp_path) == {"a.settings.yaml": b"mine"}


def test_evaluate_refuses_a_folder_before_it_loads_a_model(model, pairs, taken, monkeypatch, capsys):
    monkeypatch.setattr(evaluate_module, "load_tokenizer", lambda *a, **k: pytest.fail("something was loaded"))
    assert "already contains other files" in refused(evaluate(model, pairs, taken), capsys)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"name": "rso-table", "settings": {"scale": "bandit"}}, "holds a result of rso-table"),
        ({"name": "rso-why", "settings": {"scale": "tree"}}, "a result with scale = 'tree', not 'bandit'"),
    ],
)
def test_an_experiment_does_not_replace_another_result(record, said, tmp_path, capsys):
    (tmp_path / "result.json").write_text(json.dumps(record))
    before = bytes_of(tmp_path)
    assert said in refused(commands("m", "d", tmp_path)["experiment"], capsys)
    assert bytes_of(tmp_path) == before


def test_an_experiment_s_finished_result_is_replaced_by_the_same_settings_or_the_kept_ones_alone(tmp_path):
    from dataclasses import replace

    from rlhf_lab.experiments.results import experiment_of
    from rlhf_lab.experiments.runner import _refuse_other, settings_of

    experiment = experiment_of("rso-why")
    usual = experiment.settings()
    other = replace(usual, seeds=usual.seeds + 1)
    record = {"name": experiment.name, "settings": settings_of(other)}
    (tmp_path / "result.json").write_text(json.dumps(record))
    _refuse_other(experiment, other, tmp_path)
    _refuse_other(experiment, usual, tmp_path)
    with pytest.raises(LabError, match=f"a result with seeds = {other.seeds}, not {other.seeds + 1}"):
        _refuse_other(experiment, replace(other, seeds=other.seeds + 1), tmp_path)


def test_evaluate_looks_again_before_it_writes(model, pairs, tmp_path, monkeypatch, capsys):
    """Another run's file is put into the folder while the report is made."""
    real = evaluate_module.text_report

    def meanwhile(*arguments, **named):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "report.txt").write_text("another's")
        return real(*arguments, **named)

    monkeypatch.setattr(evaluate_module, "text_report", meanwhile)
    assert "already contains other files" in refused(evaluate(model, pairs, tmp_path / "out"), capsys)
    assert bytes_of(tmp_path / "out") == {"report.txt": b"another's"}


# Paths.


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def test_a_tilde_in_yaml_is_the_home_folder_and_no_folder_of_that_name_is_made(home, model, pairs):
    settings = home.parent / "settings.yaml"
    settings.write_text("out: ~/run\nreference_cache: ~/cache\n")
    words = train("dpo", model, pairs, Path("x"))
    place = words.index("--out")
    del words[place : place + 2]
    assert main([*words, "--config", str(settings)]) == 0
    assert (home / "run" / "model" / "config.json").is_file() and any((home / "cache").rglob("*.safetensors"))
    assert not (home.parent / "~").exists()


@pytest.mark.parametrize("command", ["evaluate", "sample"])
def test_a_tilde_on_the_command_line_is_the_home_folder(command, home, model, pairs):
    """As a shell leaves it in `--out=~/x`, and in quotes."""
    words = evaluate(model, pairs, "~/x") if command == "evaluate" else sample(model, "--prompt", "a", "--out=~/x")
    assert main(words) == 0
    assert (home / "x").exists() and not (home.parent / "~").exists()


def test_a_tilde_in_python_is_the_home_folder(home, model, pairs):
    assert Training(out=Path("~/a")).out == home / "a"
    settings = TrainDPO(model=model, data=pairs, out=Path("~/b"), steps=1, device="cpu", progress=False)
    train_dpo(settings)
    assert (home / "b" / "run.json").is_file() and not (home.parent / "~").exists()
    assert check_paths(Compare(**QUICK, out=Path("~/c"))).out == home / "c"


PATHS = [
    TrainDPO(model="m", data="d", out=Path("a\0b")),
    TrainDPO(model="m\0", data="d", out=Path("a")),
    Sample(model="m", data="d\0", out=Path("a")),
    Evaluate(model="m", data="d", reference="r", judge="http://localhost/v1", judge_cache=Path("a\0b")),
]


@pytest.mark.parametrize("settings", PATHS, ids=["out", "model", "data", "judge_cache"])
def test_a_nul_byte_in_a_path_or_a_name_is_one_error_that_says_where(settings, request):
    with pytest.raises(LabError, match=rf"{request.node.callspec.id} contains a NUL byte"):
        check_paths(settings)


def test_the_commands_ask_for_usable_paths_and_the_loop_does_too(model, pairs, tmp_path, capsys):
    with pytest.raises(LabError, match="out contains a NUL byte"):
        Training(out=tmp_path / "a\0b")
    for words in commands(model, pairs, Path(f"{tmp_path}/a\0b")).values():
        assert "out contains a NUL byte" in refused(words, capsys)
    assert "out contains a lone surrogate" in refused(train("dpo", model, pairs, tmp_path / "caf\udce9"), capsys)
    assert "There is no home folder" in refused(train("dpo", "~nobody-of-that-name/m", pairs, tmp_path / "x"), capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights on Windows")
@pytest.mark.parametrize("option", ["--out", "--model", "--data", "--reference"])
def test_a_symbolic_link_to_nothing_is_one_error_that_says_where_it_leads(option, model, pairs, tmp_path, capsys):
    link = tmp_path / "link.jsonl"
    link.symlink_to(tmp_path / "gone")
    said = refused([*train("dpo", model, pairs, tmp_path / "run"), option, str(link)], capsys)
    assert f"link.jsonl is a symbolic link to {tmp_path / 'gone'}, which does not exist" in said
    assert not (tmp_path / "run").exists() and not (tmp_path / "gone").exists()


# Devices.


@pytest.mark.parametrize("device", ["meta", "xla", "hpu", "privateuseone", "fpga", "", "cpu:x", "warp"])
def test_a_device_that_computes_nothing_is_refused(device):
    """`meta` makes tensors without numbers; a backend that is not there raises errors of its own kinds."""
    with pytest.raises(LabError, match=f"The device '{device}' cannot be used"):
        pick_device(device)
    assert pick_device("cpu") == torch.device("cpu")


def test_a_model_and_a_reward_model_ask_for_a_device_that_computes(model, reward):
    with pytest.raises(LabError, match="The device 'meta' cannot be used"):
        load_language_model(model, "meta")
    with pytest.raises(LabError, match="The device 'meta' cannot be used"):
        LanguageModelReward.from_pretrained(Path(reward) / "model", device="meta")


# Ctrl-C.


def stopped_by(monkeypatch, step: int):
    """DPO's loss sends Ctrl-C twice in this step, counted from 1. Its settings are tried on fewer rows than a batch."""
    from rlhf_lab.algorithms.dpo import DPO

    calls, loss = [], DPO.__call__

    def twice(self, chosen, *arguments, **named):
        calls.append(len(chosen))
        if len(chosen) == 4 and calls.count(4) == step:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return loss(self, chosen, *arguments, **named)

    monkeypatch.setattr(DPO, "__call__", twice)


@pytest.mark.parametrize(("step", "said"), [(1, "No step was saved yet"), (3, "step-000002 is saved. Run again with")])
def test_a_second_ctrl_c_says_what_is_saved(step, said, model, pairs, tmp_path, monkeypatch, capsys):
    """A checkpoint after each step: in step 3 two are saved, in step 1 none."""
    stopped_by(monkeypatch, step)
    words = train("dpo", model, pairs, tmp_path / "run", "--steps", "4", "--save-every", "1")
    assert main(words) == 130
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in told and "--resume" in told and "nothing" not in told.lower()
    assert (checkpoint.latest(tmp_path / "run") is not None) == (step == 3)


def test_ctrl_c_outside_the_loop_says_what_is_saved_too(model, pairs, tmp_path, monkeypatch, capsys):
    """While the result is written all steps are saved; while the model loads nothing is."""
    from rlhf_lab.policies.language_model import LanguageModelPolicy

    def interrupted(*arguments, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LanguageModelPolicy, "save_pretrained", interrupted)
        assert main(train("dpo", model, pairs, tmp_path / "run")) == 130
    assert "step-000002 is saved. Run again with --resume" in capsys.readouterr().err
    monkeypatch.setattr(runner, "load_language_model", interrupted)
    assert main(train("dpo", model, pairs, tmp_path / "other")) == 130
    assert "Nothing was saved" in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_ctrl_c_while_samples_are_drawn_for_a_method_says_that_they_are_kept(
    model, pairs, reward, tmp_path, monkeypatch, capsys
):
    """RAFT draws in blocks of 4 prompts; Ctrl-C comes in the second."""
    from rlhf_lab.policies.language_model import LanguageModelPolicy

    drawn, real = [], LanguageModelPolicy.sample

    def once(self, *arguments, **named):
        drawn.append(1)
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return real(self, *arguments, **named)

    monkeypatch.setattr(LanguageModelPolicy, "sample", once)
    more = ("--reward", reward, "--best-of", "2", "--sampling-batch-size", "4")
    assert main(train("raft", model, pairs, tmp_path / "run", *more)) == 130
    assert "The finished samples are saved" in capsys.readouterr().err


def test_ctrl_c_in_sample_says_where_the_rows_are_and_resume_ends_with_the_whole_file(
    model, pairs, tmp_path, monkeypatch, capsys
):
    from rlhf_lab.policies.language_model import LanguageModelPolicy

    words = sample(model, "--data", pairs, "--batch-size", "4")
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    drawn, real = [], LanguageModelPolicy.sample

    def third(self, *arguments, **named):
        drawn.append(1)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return real(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(LanguageModelPolicy, "sample", third)
        assert main([*words, "--out", str(tmp_path / "a")]) == 130
    assert "a.part. Use --resume" in capsys.readouterr().err
    assert not (tmp_path / "a").exists() and (tmp_path / "a.part").read_bytes().count(b"\n") == 8
    assert "a.part exists already" in refused([*words, "--out", str(tmp_path / "a")], capsys)
    assert main([*words, "--out", str(tmp_path / "a"), "--resume"]) == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "whole").read_bytes() and not (tmp_path / "a.part").exists()


# A full disk.


def full_after(monkeypatch, path: Path, size: int):
    """From `size` bytes on the file takes no more, as on a full disk: what fits is written, then ENOSPC."""
    real = Path.open

    class Full:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, data):
            room = size - self.file.seek(0, os.SEEK_END)
            self.file.write(data[:room])
            if len(data) > room:
                raise OSError(errno.ENOSPC, "No space left on device")

    def opened(self, mode="r", *arguments, **named):
        file = real(self, mode, *arguments, **named)
        return Full(file) if self == path and "b" in mode and "a" in mode else file

    monkeypatch.setattr(Path, "open", opened)


def test_sample_on_a_full_disk_keeps_whole_batches_under_another_name_and_goes_on(
    model, pairs, tmp_path, monkeypatch, capsys
):
    """Room for one batch and a half: one batch stays, and the file's own name is not there until all of them are."""
    words = sample(model, "--data", pairs, "--batch-size", "4", "--num-samples", "2")
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    whole = (tmp_path / "whole").read_bytes()
    batch = b"".join(whole.splitlines(keepends=True)[:8])
    with monkeypatch.context() as patch:
        full_after(patch, tmp_path / "a.part", len(batch) * 3 // 2)
        said = refused([*words, "--out", str(tmp_path / "a")], capsys)
    assert "a.part cannot be written (No space left on device)" in said and "--resume" in said
    assert not (tmp_path / "a").exists() and (tmp_path / "a.part").read_bytes() == batch
    assert main([*words, "--out", str(tmp_path / "a"), "--resume"]) == 0
    assert (tmp_path / "a").read_bytes() == whole


def test_a_result_that_the_disk_has_no_room_for_is_not_left_half_written(model, pairs, tmp_path, monkeypatch, capsys):
    from safetensors import SafetensorError

    from rlhf_lab.policies.language_model import LanguageModelPolicy

    def full(self, folder):
        Path(folder).mkdir()
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(LanguageModelPolicy, "save_pretrained", full)
        assert main(train("dpo", model, pairs, tmp_path / "run")) == 2
    *steps, said = capsys.readouterr().err.strip().splitlines()
    assert any(line.startswith("dpo: step") for line in steps) and not any("Error" in line for line in steps)
    assert "cannot be written" in said and "No space left" in said and "step-000002 is saved" in said
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "run.json", "settings.yaml", "checkpoints", "history.jsonl",
    }  # fmt: skip
    assert main([*train("dpo", model, pairs, tmp_path / "run"), "--resume"]) == 0


def test_a_full_disk_without_a_file_s_name_is_one_sentence_as_well(model, tmp_path, monkeypatch, capsys):
    from rlhf_lab.cli import sample as module

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_write_rows", full)
    assert "No space left on device" in refused(sample(model, "--prompt", "a"), capsys)


# Two runs.


def test_the_loser_of_two_runs_that_start_together_gets_a_plain_message_and_the_winner_its_folder(
    model, pairs, tmp_path, monkeypatch, capsys
):
    """The other run takes the folder after this one found it free, before this one takes it."""
    from rlhf_lab.cli.train import runner

    out, real = tmp_path / "run", runner.load_language_model

    def meanwhile(*arguments, **named):
        out.mkdir()
        output_folder.claim(out, {"method": "other"}, resume=False)
        return real(*arguments, **named)

    monkeypatch.setattr(runner, "load_language_model", meanwhile)
    assert "already contains another run; nothing was changed" in refused(train("dpo", model, pairs, out), capsys)
    assert json.loads((out / "run.json").read_text()) == {"method": "other"}
    assert [path.name for path in out.iterdir()] == ["run.json"]


@pytest.mark.parametrize("command", ["train", "compare", "experiment"])
def test_a_folder_that_another_process_is_taking_at_this_moment_is_in_use(command, model, pairs, tmp_path, capsys):
    out = tmp_path / "run"
    with held_by_another_process(out):
        said = refused(commands(model, pairs, out)[command], capsys)
    assert "is in use by another run (process 123456789)" in said
    assert sorted(path.name for path in out.iterdir()) == [".lock", ".lock.pid"]


def test_a_file_of_samples_is_not_resumed_while_another_process_writes_it(model, pairs, tmp_path, capsys):
    """The finished file is resumed with nothing to do once the lock is free, and no lock is left."""
    words = [*sample(model, "--data", pairs, "--batch-size", "4"), "--out", str(tmp_path / "a")]
    assert main(words) == 0
    before = (tmp_path / "a").read_bytes()
    names = sorted(path.name for path in tmp_path.iterdir())
    with held_by_another_process(tmp_path / ".a.lock"):
        said = refused([*words, "--resume"], capsys)
    for name in (".lock", ".lock.pid"):  # of the process that stands in for the other one
        (tmp_path / ".a.lock" / name).unlink(missing_ok=True)
    assert f"{tmp_path / 'a'} is in use by another run (process 123456789)" in said and "output file" in said
    assert (tmp_path / "a").read_bytes() == before
    assert main([*words, "--resume"]) == 0 and (tmp_path / "a").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_comparison_that_another_process_is_at_is_not_gone_on_with(tmp_path, capsys):
    """The folder is there with the same settings, so it would be resumed; but the other process still writes it."""
    words = commands("m", "d", tmp_path / "run")["compare"]
    assert main([*words, "--methods", "reference"]) == 0
    with held_by_another_process(tmp_path / "run"):
        assert "is in use by another run" in refused([*words, "--methods", "reference"], capsys)


def test_a_run_holds_its_folder_until_the_result_is_saved(model, pairs, tmp_path, monkeypatch):
    """Between the loop's end and the saved model too, when nobody trains."""
    from rlhf_lab.policies.language_model import LanguageModelPolicy

    seen, real = [], LanguageModelPolicy.save_pretrained

    def look(self, folder):
        seen.append((tmp_path / "run" / ".lock.pid").read_text())
        real(self, folder)

    monkeypatch.setattr(LanguageModelPolicy, "save_pretrained", look)
    assert main(train("dpo", model, pairs, tmp_path / "run")) == 0
    assert seen == [str(os.getpid())] and not (tmp_path / "run" / ".lock").exists()


# Weights.


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_model_with_a_weight_that_is_not_finite_is_refused_by_file_and_weight(value, pairs, tmp_path, capsys):
    folder = Path(make(tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    name = sorted(name for name in weights if name.endswith("c_attn.weight"))[1]
    weights[name][3, 2] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    said = refused(train("dpo", str(folder), pairs, tmp_path / "run"), capsys)
    assert f"{folder / 'model.safetensors'}: the weight {name} contains {value} (1 of its" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("file", ["model.safetensors", "head.safetensors"])
def test_a_reward_model_with_a_weight_that_is_not_finite_is_refused_by_file(
    file, model, pairs, reward, tmp_path, capsys
):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(Path(reward) / "model", broken)
    weights = load_file(broken / file)
    name = sorted(name for name in weights if name.endswith("weight"))[0]
    weights[name].view(-1)[0] = float("inf")
    save_file(weights, broken / file, {"format": "pt"})
    said = refused(train("rloo", model, pairs, tmp_path / "run", "--reward", str(broken)), capsys)
    assert f"{broken / file}: the weight" in said and "contains inf" in said
    assert not (tmp_path / "run").exists()


def test_weights_whose_sum_overflows_are_finite_all_the_same(tmp_path):
    """Two numbers near float32's largest: their sum is infinite, they are not."""
    from rlhf_lab.errors import check_weights

    big = torch.full((2,), 3e38)
    assert torch.isinf(big.sum())
    check_weights([("w", big), ("ids", torch.tensor([1]))], lambda name: "file")
    with pytest.raises(LabError, match=r"file: the weight w contains nan \(1 of its 2"):
        check_weights([("w", torch.tensor([1.0, float("nan")]))], lambda name: "file")


# Damaged files beside the samples.


@pytest.mark.parametrize("content", ["- a", "a: [", "", "\ud83d".encode("utf-8", "surrogatepass").decode("latin-1")])
def test_damaged_settings_beside_a_file_of_samples_are_named(content, model, tmp_path, capsys):
    assert main(sample(model, "--prompt", "a", "--out", str(tmp_path / "a"))) == 0
    (tmp_path / "a.settings.yaml").write_text(content)
    said = refused(sample(model, "--prompt", "a", "--out", str(tmp_path / "a"), "--resume"), capsys)
    assert "a.settings.yaml is damaged" in said


def test_a_damaged_record_of_an_experiment_is_named(tmp_path, capsys):
    for name, content in (
        ("unfinished/run.json", "{"),
        ("unfinished/run.json", "[]"),
        ("result.json", '{"settings": 3}'),
    ):
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        (out / "unfinished").mkdir(parents=True)
        (out / name).write_text(content)
        said = refused(commands("m", "d", out)["experiment"], capsys)
        assert f"{out / name} is damaged" in said


def test_lines_are_added_behind_the_last_whole_one_and_read_without_those_cut_short(tmp_path):
    path = tmp_path / "a.jsonl"
    checkpoint.append(path, '{"a": 1}\n')
    with path.open("a") as file:
        file.write('{"a": 2')
    assert checkpoint.read_lines(path) == [{"a": 1}]
    checkpoint.append(path, '{"a": 3}\n[]\n')
    assert path.read_text() == '{"a": 1}\n{"a": 3}\n[]\n' and checkpoint.read_lines(path) == [{"a": 1}, {"a": 3}]
    assert write_lines(tmp_path / "b.jsonl", [{"a": 1}, {"a": 3}]) and checkpoint.read_lines(tmp_path / "c") == []
