"""Held-out evaluation in the training loop: when it is measured and over what, the best weights, early stopping."""

import json
import math

import pytest
import torch
from histories import read_history, without_speed
from safetensors.torch import load_file

from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.training import Evaluation, Loop, Training, checkpoint


def training(**changes):
    settings = {
        "steps": 7, "learning_rate": 0.1, "schedule": "constant", "log_every": 3, "eval_every": 2, "save_every": 3,
        "progress": False,
    }  # fmt: skip
    return Training(**(settings | changes))


class Number(torch.nn.Module):
    def __init__(self, value=4.0):
        super().__init__()
        self.x = torch.nn.Parameter(torch.tensor(value, dtype=torch.float64))


class Stopped(Exception):
    pass


def descend(settings, evaluation=None, module=None, stop_at=None):
    """Minimise x² by Adam; (module, history). The random numbers of each step take part."""
    module = module or Number()
    with Loop("run", module, settings, evaluation=evaluation) as loop:
        for step, generator in loop:
            if step == stop_at:
                raise Stopped
            noise = torch.rand((), generator=generator, dtype=torch.float64)
            loop.update(lambda shift: ((module.x + shift.sum()).square(), {}), (0.1 * noise.reshape(1),))
    return module, loop.history


def of(measure, **changes):
    """An evaluation of one row whose loss is `measure()`."""
    return Evaluation(1, lambda rows: (rows,), lambda rows: (torch.as_tensor(measure()), {}), **changes)


def scripted(values, **changes):
    """An evaluation that gives these values one after the other, and the list of what is left of them."""
    left = list(values)
    return of(lambda: float(left.pop(0)), **changes), left


def test_it_is_measured_before_the_first_step_every_few_steps_and_after_the_last_with_the_weights_of_that_moment():
    """Seven steps, measured every second: the history's steps count the updates that the measured weights have had."""
    module, seen = Number(), []
    evaluation = of(lambda: seen.append(module.x.item()) or module.x.detach() ** 2)
    _, history = descend(training(log_every=1), evaluation, module)
    rows = [row for row in history if "eval_loss" in row]
    assert [row["step"] for row in rows] == [0, 2, 4, 6, 7]
    assert [row["eval_loss"] for row in rows] == pytest.approx([x**2 for x in seen])
    assert seen[0] == 4.0 and seen[-1] == module.x.item() and len(set(seen)) == 5
    assert [row["step"] for row in history if "loss" in row] == list(range(7))


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_measurement_is_the_mean_over_all_rows_whatever_the_batches(weighted, parts):
    """Σ w_i (i + 1)²/Σ w_i of five held-out rows in batches of two, and in parts of these."""
    weight = torch.tensor([1.0, 2.0, 0.5, 0.25, 3.0], dtype=torch.float64) if weighted else None
    data = Pairs(Tokens.from_lists([[i] for i in range(5)]), Tokens.from_lists([[[1], [2]]] * 5), weight)

    def measure(pairs):
        values = (pairs.prompts.ids[:, 0].double() + 1) ** 2
        w = torch.ones(len(pairs), dtype=torch.float64) if pairs.weight is None else pairs.weight
        return (w * values).sum() / w.sum(), {"half": (w * values).sum() / w.sum() / 2}

    evaluation = Evaluation.of_rows(measure, data, best_by="loss")
    module = Number()
    with Loop("run", module, training(steps=1, batch_size=2, accumulate=parts), evaluation=evaluation) as loop:
        for _ in loop:
            loop.update(lambda rows: (module.x + rows.sum() * 0, {}), batch=(torch.arange(2),))
    w = [1.0] * 5 if weight is None else weight.tolist()
    mean = sum(wi * (i + 1) ** 2 for i, wi in enumerate(w)) / sum(w)
    assert loop.history[0]["eval_loss"] == pytest.approx(mean)
    assert loop.history[0]["eval_half"] == pytest.approx(mean / 2)


def test_training_with_an_evaluation_ends_in_the_bits_of_training_without():
    alone, history = descend(training())
    module = Number()
    watched, both = descend(training(), of(lambda: module.x.detach() ** 2), module)
    assert torch.equal(alone.x, watched.x)
    assert [row for row in both if "loss" in row] == history


@pytest.mark.parametrize(
    ("values", "patience", "stops_at"),
    [
        ((3.0, 2.0, 2.0, 2.0), 2, 6),  # an equal value is no improvement
        ((3.0, 1.0, 2.0, 1.5, 0.0), 2, 6),  # 1.5 is below 2.0, but not below the best
        ((3.0, 4.0, 2.0, 3.0, 1.0, 2.0, 2.0), 2, 12),  # an improvement lets the count begin again
        ((3.0, 3.5), 1, 2),
        ((5.0, 4.0, 3.0, 2.0, 1.0), 1, None),
    ],
)
@pytest.mark.parametrize("higher", [False, True])
def test_patience_counts_measurements_without_a_better_one(values, patience, stops_at, higher, capsys):
    """Measurements at steps 0, 2, 4, …; with `higher` their signs are turned."""
    evaluation, left = scripted([-v if higher else v for v in values], higher=higher)
    steps = 8 if stops_at is None else 40
    _, history = descend(training(steps=steps, patience=patience, log_every=1, log_lines=True), evaluation)
    done = sum("loss" in row for row in history)
    assert done == (steps if stops_at is None else stops_at)
    assert len(left) == len(values) - (stops_at // 2 + 1 if stops_at else 5)
    said = capsys.readouterr().err
    assert (f"has not improved {patience} time{'s' * (patience != 1)}." in said) == (stops_at is not None)
    assert "held out: loss" in said and said.count("(the best)") == sum(
        all(v < w for w in values[:i]) for i, v in enumerate(values[: len(values) - len(left)])
    )


def test_the_best_weights_are_stored_and_can_be_loaded(tmp_path):
    """The values fall and rise again: the best one is the second, after two steps. Of rounds that share an evaluation
    the best one of all counts."""
    evaluation, _ = scripted([3.0, 1.0, 2.0, 5.0, 4.0, 1.5, 0.5, 0.5])
    module, _ = descend(training(out=tmp_path / "one"), evaluation)
    assert sorted(p.name for p in (tmp_path / "one" / "checkpoints").glob("*")) == [
        "best-000002", "step-000006", "step-000007",
    ]  # fmt: skip
    twin, _ = descend(training(steps=2, schedule="constant"))
    assert load_file(tmp_path / "one" / "checkpoints" / "best-000002" / "weights.safetensors")["x"] == twin.x
    assert evaluation.best.step == 2 and evaluation.best.row["eval_loss"] == 1.0
    last = module.x.item()
    evaluation.best.load()
    assert module.x == twin.x and module.x.item() != last
    descend(training(steps=3, out=tmp_path / "two"), evaluation)
    assert evaluation.best.row["eval_loss"] == 0.5 and evaluation.best.folder.parents[1] == tmp_path / "two"
    assert evaluation.best.step == 2, "of equal values the first counts"


@pytest.mark.parametrize("patience", [None, 2])
@pytest.mark.parametrize("stopped_in", range(1, 12))
def test_a_run_stopped_anywhere_and_resumed_has_the_same_history_best_weights_and_end(stopped_in, patience, tmp_path):
    """The held-out loss is |x − 3| of a falling x, which is lowest after some steps and then rises."""

    def go(out, **changes):
        module = Number()
        stop_at = changes.pop("stop_at", None)
        evaluation = of(lambda: (module.x.detach() - 3.35).abs())
        settings = training(steps=12, out=out, patience=patience, **changes)
        return *descend(settings, evaluation, module, stop_at), evaluation

    whole, history, _ = go(tmp_path / "whole")
    if len(history) < 3 or stopped_in >= max(row["step"] for row in history):
        return  # ended early before
    with pytest.raises(Stopped):
        go(tmp_path / "cut", stop_at=stopped_in)
    resumed, again, other = go(tmp_path / "cut", resume=True)
    assert torch.equal(whole.x, resumed.x) and without_speed(again) == without_speed(history)
    assert read_history(tmp_path / "cut" / "history.jsonl") == without_speed(history)
    best, theirs = (next((tmp_path / name / "checkpoints").glob("best-*")) for name in ("whole", "cut"))
    assert best.name == theirs.name == f"best-{other.best.step:06d}" and 0 < other.best.step < 12
    assert torch.equal(*(load_file(f / "weights.safetensors")["x"] for f in (best, theirs)))
    assert (patience is not None) == (max(row["step"] for row in history) < 12)


def test_a_finished_run_that_stopped_early_measures_and_trains_nothing_when_it_is_resumed(tmp_path):
    evaluation, _ = scripted([1.0, 2.0, 3.0])
    module, history = descend(training(steps=40, patience=2, out=tmp_path / "run"), evaluation)
    nothing, _ = scripted([])
    again, same = descend(training(steps=40, patience=2, out=tmp_path / "run", resume=True), nothing)
    assert torch.equal(module.x, again.x) and same == history and nothing.best.step == 0
    state = json.loads((checkpoint.latest(tmp_path / "run") / "state.json").read_text())
    assert state["step"] == 4 and state["history"] == history


def test_patience_without_an_evaluation_and_a_measurement_that_is_not_finite_are_refused():
    with pytest.raises(LabError, match="patience=2 needs held-out data"):
        descend(training(patience=2))
    with pytest.raises(LabError, match="run: the held-out loss became nan at step 0"):
        descend(training(), of(lambda: math.nan))


def test_a_best_checkpoint_with_a_damaged_file_is_passed_over(tmp_path):
    evaluation, _ = scripted([1.0, 2.0, 3.0, 4.0, 5.0])
    descend(training(out=tmp_path / "run"), evaluation)
    (tmp_path / "run" / "checkpoints" / "best-000000" / "state.json").write_text("{")
    assert checkpoint.best(tmp_path / "run") is None
