"""Checkpoints and the claim on an output folder: nothing lost, nothing overwritten, damage named."""

import dataclasses
import json

import pytest
import torch

from rlhf_lab.errors import LabError
from rlhf_lab.training import Training, checkpoint, output_folder


def snapshot(folder):
    """Every file below `folder` with its bytes, and every directory."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def stepped(kind: str, seed: int = 0, steps: int = 3):
    """A module and an optimiser that have made a few steps, and the function that makes one more."""
    torch_seed = torch.Generator().manual_seed(seed)
    module = torch.nn.Linear(3, 2, bias=True).double()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=torch_seed, dtype=p.dtype))
    make = {
        "adam": lambda p: torch.optim.Adam(p, lr=0.05),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
        "lbfgs": lambda p: torch.optim.LBFGS(p, max_iter=3, line_search_fn="strong_wolfe"),
    }[kind]
    optimizer = make(list(module.parameters()))
    x = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(9))

    def step():
        def closure():
            optimizer.zero_grad()
            loss = (module(x) - x[:, :2].sin()).pow(4).mean()
            loss.backward()
            return loss

        optimizer.step(closure)

    for _ in range(steps):
        step()
    return module, optimizer, step


@pytest.mark.parametrize("kind", ["adam", "adamw", "lbfgs"])
def test_weights_and_optimiser_come_back_to_the_bit_and_go_on_alike(kind, tmp_path):
    """Saved after three steps and loaded into a run that has made none: two more steps of both end in the same bits."""
    module, optimizer, step = stepped(kind)
    folder = checkpoint.save(tmp_path, 3, module, optimizer, {"history": [{"loss": 0.1}]})
    other, other_optimizer, other_step = stepped(kind, seed=1, steps=0)
    state = checkpoint.load(folder, other, other_optimizer)
    assert state == {"step": 3, "history": [{"loss": 0.1}]}
    for _ in range(2):
        step()
        other_step()
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["adam", "lbfgs"])
def test_saving_does_not_disturb_the_run(kind, tmp_path):
    module, optimizer, step = stepped(kind)
    twin, _, twin_step = stepped(kind)
    checkpoint.save(tmp_path, 3, module, optimizer, {})
    step()
    twin_step()
    assert torch.equal(module.weight, twin.weight)


def test_the_last_two_checkpoints_are_kept_and_the_newest_is_found(tmp_path):
    module, optimizer, _ = stepped("adam")
    assert checkpoint.latest(tmp_path) is None
    for step in (5, 10, 100, 99_999):
        folder = checkpoint.save(tmp_path, step, module, optimizer, {})
        assert checkpoint.latest(tmp_path) == folder
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-000100", "step-099999"], "and no half-written folder is left"


def test_a_step_that_is_saved_again_replaces_the_first_one(tmp_path):
    """A run that goes on from an earlier checkpoint comes to a step that was saved before."""
    first, other = stepped("adam")[:2], stepped("adam", seed=1)[:2]
    for module, optimizer in (first, other):
        folder = checkpoint.save(tmp_path, 2, module, optimizer, {})
    module, optimizer, _ = stepped("adam", seed=2)
    checkpoint.load(folder, module, optimizer)
    assert torch.equal(module.weight, other[0].weight) and not torch.equal(module.weight, first[0].weight)
    assert [path.name for path in folder.parent.iterdir()] == ["step-000002"]


def test_the_newest_is_found_by_number_beyond_a_million_steps(tmp_path):
    module, optimizer, _ = stepped("adam")
    for step in (999_998, 999_999, 1_000_000, 1_000_001):
        folder = checkpoint.save(tmp_path, step, module, optimizer, {})
        assert checkpoint.latest(tmp_path) == folder and folder.is_dir()


def test_a_half_written_checkpoint_is_not_taken_for_a_whole_one(tmp_path):
    """What a kill leaves is a folder under another name; the next save of that step clears it."""
    module, optimizer, _ = stepped("adam")
    whole = checkpoint.save(tmp_path, 1, module, optimizer, {})
    half = tmp_path / "checkpoints" / ".step-000002.part"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"half")
    assert checkpoint.latest(tmp_path) == whole
    folder = checkpoint.save(tmp_path, 2, module, optimizer, {})
    assert checkpoint.latest(tmp_path) == folder and not half.exists()
    checkpoint.load(folder, module, optimizer)


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut short", "missing", "empty"])
def test_a_damaged_checkpoint_gives_one_error_that_names_it_and_the_earlier_one(name, damage, tmp_path):
    module, optimizer, _ = stepped("adam")
    earlier = checkpoint.save(tmp_path, 1, module, optimizer, {})
    last = checkpoint.save(tmp_path, 2, module, optimizer, {})
    file = last / name
    if damage == "missing":
        file.unlink()
    else:
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2] if damage == "cut short" else b"")
    with pytest.raises(LabError) as caught:
        checkpoint.load(last, *stepped("adam", seed=1)[:2])
    message = str(caught.value)
    assert str(last) in message and f"continue from {earlier}." in message and "\n" not in message
    checkpoint.load(earlier, *stepped("adam", seed=1)[:2])


@pytest.mark.parametrize(
    "state",
    [
        "[]", "3", "{}", '{"step": "2", "optimizer": {}, "history": []}', '{"step": 2, "optimizer": [], "history": []}',
        '{"step": 2, "optimizer": {}, "history": 3}', '{"step": 2, "optimizer": {"a.step": 1}, "history": []}',
        '{"step": 2, "optimizer": {"0": 1}, "history": []}', "\ufeff{}", "{\x00}",
    ],
)  # fmt: skip
def test_a_state_of_another_kind_is_one_error_that_names_the_checkpoint_and_the_earlier_one(state, tmp_path):
    module, optimizer, _ = stepped("adam")
    earlier = checkpoint.save(tmp_path, 1, module, optimizer, {"history": []})
    last = checkpoint.save(tmp_path, 2, module, optimizer, {"history": []})
    (last / "state.json").write_text(state, encoding="utf-8")
    with pytest.raises(LabError) as caught:
        checkpoint.load(last, *stepped("adam", seed=1)[:2])
    message = str(caught.value)
    assert str(last) in message and f"continue from {earlier}." in message and "\n" not in message


def test_a_checkpoint_whose_weights_are_not_finite_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    module, optimizer, _ = stepped("adam")
    folder = checkpoint.save(tmp_path, 1, module, optimizer, {})
    weights = load_file(folder / "weights.safetensors")
    weights["weight"][1, 2] = float("nan")
    save_file(weights, folder / "weights.safetensors")
    with pytest.raises(LabError, match=r"cannot be read \(.*weights\.safetensors: the weight weight contains nan"):
        checkpoint.load(folder, *stepped("adam", seed=1)[:2])


def test_a_damaged_checkpoint_without_an_earlier_one_says_so(tmp_path):
    module, optimizer, _ = stepped("adam")
    only = checkpoint.save(tmp_path, 1, module, optimizer, {})
    (only / "state.json").unlink()
    with pytest.raises(LabError, match="no earlier one"):
        checkpoint.load(only, module, optimizer)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    module, optimizer, _ = stepped("adam")
    folder = checkpoint.save(tmp_path, 1, module, optimizer, {})
    other = torch.nn.Linear(4, 2)
    with pytest.raises(LabError, match="cannot be read"):
        checkpoint.load(folder, other, torch.optim.Adam(other.parameters()))


@dataclasses.dataclass(frozen=True)
class Settings:
    beta: float = 0.5
    loss: str = "sigmoid-norm"


def record(training: Training, settings: Settings = Settings()) -> dict:
    return {"method": "dpo", "training": training, "settings": settings}


def test_a_new_or_empty_folder_is_claimed_and_holds_the_settings(tmp_path):
    for out in (tmp_path / "deep" / "new", tmp_path / "empty"):
        if out.name == "empty":
            out.mkdir()
        output_folder.claim(out, record(Training(out=out, steps=7)), resume=False)
        assert [p.name for p in out.iterdir()] == ["run.json"]
        written = json.loads((out / "run.json").read_text(encoding="utf-8"))
        assert written["training"]["steps"] == 7 and written["settings"] == {"beta": 0.5, "loss": "sigmoid-norm"}
        assert written["method"] == "dpo"


@pytest.mark.parametrize("content, what", [("notes.txt", "other files"), ("run.json", "another run")])
def test_a_folder_in_use_is_refused_and_left_as_it_is_to_the_byte(content, what, tmp_path):
    (tmp_path / content).write_bytes(b'{"mine": 1}\r\n')
    (tmp_path / "below").mkdir()
    before = snapshot(tmp_path)
    with pytest.raises(LabError) as caught:
        output_folder.claim(tmp_path, record(Training(out=tmp_path)), resume=False)
    assert str(tmp_path) in str(caught.value) and what in str(caught.value)
    assert ("--resume" in str(caught.value)) == (what == "another run")
    assert snapshot(tmp_path) == before


def test_a_file_in_the_folder_s_place_is_refused_and_left(tmp_path):
    file = tmp_path / "out"
    file.write_text("mine")
    with pytest.raises(LabError, match="already contains other files"):
        output_folder.claim(file, record(Training(out=file)), resume=False)
    assert file.read_text() == "mine"


def test_a_run_that_claims_the_folder_between_the_look_and_the_lock_keeps_it(tmp_path, monkeypatch):
    """The other run writes its record at the moment when this one takes the lock."""
    out = tmp_path / "run"

    class Late(output_folder.FolderLock):
        def __init__(self, folder):
            super().__init__(folder)
            (folder / "run.json").write_text("another's")

    monkeypatch.setattr(output_folder, "FolderLock", Late)
    with pytest.raises(LabError, match="already contains another run"):
        output_folder.claim(out, record(Training(out=out)), resume=False)
    assert snapshot(out) == {"run.json": b"another's"}


def test_resuming_where_no_run_is_is_refused_and_makes_nothing(tmp_path):
    out = tmp_path / "nowhere"
    with pytest.raises(LabError, match=r"Nothing to resume .*no run.json"):
        output_folder.claim(out, record(Training(out=out, resume=True)), resume=True)
    assert not out.exists()


@pytest.mark.parametrize(
    "training, settings, key, old, new",
    [
        ({"steps": 8}, Settings(), "training.steps", "7", "8"),
        ({"seed": 4}, Settings(), "training.seed", "0", "4"),
        ({"learning_rate": 0.5}, Settings(), "training.learning_rate", str(Training().learning_rate), "0.5"),
        ({}, Settings(beta=0.1), "settings.beta", "0.5", "0.1"),
        ({"steps": 8}, Settings(beta=0.1, loss="ipo"), "settings.beta", "0.5", "0.1"),
        ({"max_grad_norm": 1.0}, Settings(), "training.max_grad_norm", "None", "1.0"),
    ],
)
def test_resuming_with_other_settings_names_the_first_that_differs(training, settings, key, old, new, tmp_path):
    out = tmp_path / "run"
    output_folder.claim(out, record(Training(out=out, steps=7)), resume=False)
    before = snapshot(out)
    changed = record(Training(out=out, **{"steps": 7, "resume": True, **training}), settings)
    with pytest.raises(LabError) as caught:
        output_folder.claim(out, changed, resume=True)
    assert f"{key} = {old}, not {new}" in str(caught.value) and str(out) in str(caught.value)
    assert snapshot(out) == before


@pytest.mark.parametrize("which", ["old", "new"])
def test_a_setting_that_one_of_the_two_runs_does_not_know_counts_as_different(which, tmp_path):
    """A run of an earlier release knew no seed, for example: whether it was this one cannot be said."""
    out = tmp_path / "run"
    made = checkpoint.plain(record(Training(out=out, seed=3)))
    known = json.loads(json.dumps(made))
    del known["training"]["seed"]
    old, new = (known, made) if which == "old" else (made, known)
    output_folder.claim(out, old, resume=False)
    with pytest.raises(LabError, match=r"training.seed = (None, not 3|3, not None)\."):
        output_folder.claim(out, new, resume=True)


def test_what_does_not_change_the_result_may_differ_on_resume(tmp_path):
    out = tmp_path / "run"
    output_folder.claim(out, record(Training(out=out)), resume=False)
    before = snapshot(out)
    changed = Training(out=out, resume=True, progress=False, log_every=3, save_every=2)
    output_folder.claim(out, record(changed), resume=True)
    assert snapshot(out) == before


def test_a_damaged_record_is_named(tmp_path):
    for content in (b'{"method": "d', b"[1]", b"\xff\xfe"):
        (tmp_path / "run.json").write_bytes(content)
        with pytest.raises(LabError, match=r"run.json is damaged"):
            output_folder.claim(tmp_path, record(Training(out=tmp_path, resume=True)), resume=True)


def test_json_is_replaced_whole_and_keeps_greek_letters(tmp_path):
    path = tmp_path / "x.json"
    checkpoint.write_json(path, {"β": 0.5, "path": tmp_path, "dtype": torch.float64, "list": (1, None, True)})
    assert "β" in path.read_text(encoding="utf-8")
    loaded = json.loads(path.read_text(encoding="utf-8"))
    assert loaded == {"β": 0.5, "path": str(tmp_path), "dtype": "torch.float64", "list": [1, None, True]}
    checkpoint.write_json(path, [2])
    assert json.loads(path.read_text(encoding="utf-8")) == [2]
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_run_killed_between_saving_its_last_checkpoint_and_deleting_an_old_one_tidies_up_when_resumed(tmp_path):
    """What such a kill leaves is made by hand: a third checkpoint beside the two that are kept."""
    import shutil

    import torch

    from rlhf_lab.training import Loop, Training

    def run(resume: bool) -> None:
        torch.manual_seed(0)
        module = torch.nn.Linear(2, 1)
        settings = Training(steps=6, save_every=2, out=tmp_path / "run", resume=resume, progress=False)
        with Loop("x", module, settings) as loop:
            for _ in loop:
                loop.update(module(torch.ones(1, 2)).square().mean())

    run(resume=False)
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step-000004", "step-000006"]
    shutil.copytree(folder / "step-000004", folder / "step-000002")
    shutil.copytree(folder / "step-000004", folder / ".step-000001.old")
    (folder / ".step-000005.part").mkdir()
    run(resume=True)
    assert sorted(path.name for path in folder.iterdir()) == ["step-000004", "step-000006"]
