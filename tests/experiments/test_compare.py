"""The comparison: its table, its honesty about seeds, its files, and what it refuses."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from rlhf_lab.errors import LabError
from rlhf_lab.evaluation import evaluate
from rlhf_lab.experiments.compare import METHODS, METRICS, Compare, compare, run
from rlhf_lab.experiments.methods import Method
from rlhf_lab.experiments.statistics import mean_interval

QUICK = {"steps": 4, "labels": 60, "seeds": 2, "progress": False}


@pytest.fixture(scope="module")
def quick():
    return compare(Compare(**QUICK))


def test_every_method_has_a_row_and_every_seed_a_run(quick):
    assert list(quick.summary["method"]) == list(METHODS)
    counts = quick.runs.groupby("method").size()
    assert all(counts[key] == (2 if method.repeated else 1) for key, method in METHODS.items())


def test_exact_rows_are_the_worlds_own_numbers(quick):
    world = quick.settings.make_world()
    rows = quick.summary.set_index("method")
    assert rows.loc["optimal", "regret"] == pytest.approx(0, abs=1e-12)
    assert rows.loc["reference", "kl"] == pytest.approx(0, abs=1e-12)
    assert rows.loc["reference", "regret"] == pytest.approx(evaluate(world.reference, world, 0.5).regret)


def test_regret_is_beta_times_the_kl_to_the_optimum_and_the_gap_of_the_objectives(quick):
    runs = quick.runs
    best = runs.loc[runs["method"] == "optimal", "objective"].item()
    assert np.allclose(runs["regret"], best - runs["objective"], atol=1e-10)
    assert np.allclose(runs["regret"], 0.5 * runs["kl_to_optimal"])
    assert (runs["regret"] >= -1e-12).all()


def test_no_method_lies_above_the_frontier(quick):
    """At equal KL, the frontier's reward is the most any policy has (single prompts average to a concave curve)."""
    curve = quick.frontier.sort_values("kl")
    top = np.interp(quick.runs["kl"], curve["kl"], curve["reward"])
    inside = quick.runs["kl"] < curve["kl"].max()
    assert (quick.runs["reward"] <= top + 1e-4)[inside].all()


def test_seeds_draw_their_own_labels_and_the_same_seed_gives_the_same_numbers(quick):
    again = compare(Compare(**QUICK))
    assert again.runs.equals(quick.runs)
    dpo = quick.runs[quick.runs["method"] == "dpo"]
    assert dpo["regret"].nunique() == 2


def test_interval_is_students_t():
    """Against scipy's own interval of the mean."""
    values = np.array([1.0, 2.0, 4.0, 4.5])
    mean, low, high = mean_interval(values)
    expected = stats.t.interval(0.95, 3, loc=values.mean(), scale=stats.sem(values))
    assert (mean, low, high) == pytest.approx((values.mean(), *expected))
    assert np.isnan(mean_interval(np.array([1.0]))[1])


def test_files_hold_all_settings_and_the_numbers_of_the_table(tmp_path, capsys):
    out = tmp_path / "run"
    run(Compare(**QUICK, methods=("reference", "optimal", "dpo"), out=out))
    record = json.loads((out / "comparison.json").read_text())
    assert record["settings"]["beta"] == 0.5 and record["settings"]["labels"] == 60
    assert {row["method"] for row in record["summary"]} == {"reference", "optimal", "dpo"}
    assert all(f"{metric}_low" in record["summary"][0] for metric in METRICS)
    assert (out / "comparison.png").read_bytes()[:4] == b"\x89PNG"
    printed = capsys.readouterr().out
    shown = next(row for row in record["summary"] if row["method"] == "dpo")
    assert f"{shown['regret']:.4f}" in printed
    assert (out / "summary.csv").read_text().count("\n") == 4


def test_a_stopped_comparison_goes_on_without_doing_finished_fits_again(tmp_path, monkeypatch):
    settings = Compare(**QUICK, methods=("reference", "dpo", "sft"), out=tmp_path / "run")
    whole = compare(Compare(**QUICK, methods=("reference", "dpo", "sft")))
    fits = []

    class Stop(KeyboardInterrupt):
        pass

    real = {key: METHODS[key] for key in ("sft", "dpo", "reference")}

    def stopping(setup):
        raise Stop

    monkeypatch.setitem(METHODS, "sft", Method("SFT", untrained=stopping))
    with pytest.raises(Stop):
        compare(settings)

    def counting(key, inner):
        def call(setup, *given):
            fits.append((key, setup.seed))
            return inner(setup, *given)

        return call

    for key, method in real.items():
        part = "trainer" if method.trainer else "untrained"
        monkeypatch.setitem(METHODS, key, replace(method, **{part: counting(key, getattr(method, part))}))
    (tmp_path / "run" / "runs.jsonl").open("a").write('{"method": "sft", "se')  # a line cut short by a kill
    resumed = compare(settings)
    assert ("dpo", 0) not in fits and ("reference", 0) not in fits
    assert resumed.runs.equals(whole.runs)


def test_a_folder_with_another_comparison_is_refused_and_untouched(tmp_path):
    out = tmp_path / "run"
    compare(Compare(**QUICK, methods=("reference",), out=out))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(LabError, match=r"beta = 0\.5, not 0\.7"):
        compare(Compare(**QUICK, methods=("reference",), beta=0.7, out=out))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    other = tmp_path / "letters"
    other.mkdir()
    (other / "a.txt").write_text("mine")
    with pytest.raises(LabError, match="other files"):
        compare(Compare(**QUICK, out=other))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "beta"),
        ({"beta": float("nan")}, "beta"),
        ({"seeds": 0}, "seeds must be a whole number of at least 1, not 0"),
        ({"labels": 0}, "labels must be a whole number of at least 8 or None, not 0"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite number above 0 or None, not 0.0"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1 or None, not 0"),
        ({"noise": 0.7}, "noise must be a finite number between 0 and 0.5, not 0.7"),
        ({"methods": ("grpo",)}, "There is no method 'grpo'"),
        ({"policy": "gpt2"}, "world tree"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(settings, message):
    with pytest.raises(LabError, match=message):
        Compare(**settings)


def test_comparison_runs_on_the_tree_with_a_transformer():
    result = compare(
        Compare(
            world="tree", policy="gpt2", seeds=1, steps=2, labels=40, methods=("dpo", "ppo", "rest"), progress=False
        )
    )
    assert np.isfinite(result.summary["regret"]).all()
