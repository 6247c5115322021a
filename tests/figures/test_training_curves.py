"""The picture of training curves: what is drawn where, its labels and units, and what is refused."""

import json

import matplotlib.figure
import pytest

from rlhf_lab.cli.main import main
from rlhf_lab.errors import LabError
from rlhf_lab.figures import style
from rlhf_lab.figures.training_curves import LOOKS, total_steps, training_curves

ROWS = [
    {"step": 0, "eval_loss": 0.7, "eval_accuracy": 0.5},
    {"step": 0, "loss": 0.69, "accuracy": 0.5, "learning_rate": 0.1},
    {"step": 5, "loss": 0.5, "accuracy": 0.75, "learning_rate": 0.05},
    {"step": 8, "eval_loss": 0.6, "eval_accuracy": 0.7},
]
OTHER = [{"step": 0, "loss": 0.8, "kl": 0.0}, {"step": 4, "loss": 0.4, "kl": 0.3}]


def panels(drawing: matplotlib.figure.Figure) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """By title and by label, the points of each line."""
    return {
        ax.get_title(loc="left"): {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in ax.lines}
        for ax in drawing.axes
    }


def test_each_number_has_a_panel_and_each_run_a_line_and_held_out_numbers_are_beside_those_of_the_training():
    drawing = training_curves({"one": ROWS, "two": OTHER}, title="Two runs")
    found = panels(drawing)
    assert list(found) == ["loss", "kl", "accuracy", "learning rate"]
    assert found["loss"] == {
        "one": [(0, 0.69), (5, 0.5)], "one, held out": [(0, 0.7), (8, 0.6)], "two": [(0, 0.8), (4, 0.4)],
    }  # fmt: skip
    assert found["kl"] == {"two": [(0, 0.0), (4, 0.3)]}
    labels = [(ax.get_xlabel(), ax.get_ylabel()) for ax in drawing.axes]
    assert labels[:3] == [
        ("optimiser steps", "loss"), ("optimiser steps", "nats per response"),
        ("optimiser steps", "share of comparisons"),
    ]  # fmt: skip
    assert drawing.get_suptitle() == "Two runs"
    legend = [text.get_text() for text in drawing.legends[0].get_texts()]
    assert sorted(legend) == ["one", "one, held out", "two"]
    dashes = {line.get_label(): line.get_linestyle() for line in drawing.axes[0].lines}
    assert dashes == {"one": "-", "one, held out": "--", "two": "-"}


def test_runs_have_the_colours_that_everybody_can_distinguish():
    """Those of the main entries of the style, which are checked under simulated colour vision, each once."""
    drawing = training_curves({str(i): OTHER for i in range(8)}, ["loss"])
    colours = [line.get_color() for line in drawing.axes[0].lines]
    assert colours == [style.colour(key) for key in LOOKS] and len(set(colours)) == 8


def test_rounds_are_drawn_one_after_the_other():
    """Two rounds of 5 steps, logged at 0 and 4 and measured at 5."""
    rows = [{"step": step, "loss": 1.0, "round": r} for r in (0, 1) for step in (0, 4, 5)]
    assert total_steps(rows) == [0, 4, 5, 5, 9, 10]
    assert list(panels(training_curves({"run": rows}))) == ["loss"]


def test_chosen_numbers_are_drawn_alone_and_what_cannot_be_drawn_is_refused():
    assert list(panels(training_curves({"one": ROWS}, ["accuracy"]))) == ["accuracy"]
    with pytest.raises(LabError, match="No run has logged 'reward'. Logged are loss, accuracy, learning_rate"):
        training_curves({"one": ROWS}, ["reward"])
    with pytest.raises(LabError, match="Give 1 to 8 runs"):
        training_curves({str(i): ROWS for i in range(9)})
    with pytest.raises(LabError, match="The history of a has no rows"):
        training_curves({"a": []})


def a_run(folder, rows, checkpoint=False):
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    if checkpoint:
        state = folder / "checkpoints" / "step-000005" / "state.json"
        state.parent.mkdir(parents=True)
        state.write_text(json.dumps({"step": 5, "optimizer": {}, "history": rows}))
    else:
        (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_the_command_writes_a_picture_of_finished_and_unfinished_runs(tmp_path, capsys):
    runs = [a_run(tmp_path / "a" / "dpo", ROWS), a_run(tmp_path / "b" / "dpo", OTHER, checkpoint=True)]
    out = tmp_path / "pictures" / "curves.png"
    assert main(["plot", *runs, "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == f"Written: {out}" and out.read_bytes().startswith(b"\x89PNG")
    first = out.read_bytes()
    assert main(["plot", runs[0], "--out", str(out), "--metrics", "loss", "accuracy"]) == 0
    assert out.read_bytes() != first


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{run}", "--out", "a.pdf"], "Let it end with .png"),
        (["{run}", "--metrics", "reward"], "No run has logged 'reward'"),
        (["{empty}"], "has logged nothing yet"),
        (["{folder}"], "contains no run"),
        ([], "There is nothing to draw"),
    ],
)
def test_the_command_refuses_what_it_cannot_draw(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {"run": a_run(tmp_path / "run", ROWS), "empty": a_run(tmp_path / "empty", []), "folder": str(tmp_path)}
    assert main(["plot", *[word.format(**places) for word in words]]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.glob("*.png"))
