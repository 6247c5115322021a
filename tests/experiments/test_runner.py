"""The tool under every claim: jobs, resuming, workers, search, files, the page."""

import json
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from locked_folder import held_by_another_process

from rlhf_lab.errors import LabError
from rlhf_lab.experiments import claims_page, results
from rlhf_lab.experiments import runner as tool
from rlhf_lab.experiments.settings import Defaults, Settings
from rlhf_lab.experiments.statistics import bootstrap, difference, summarise
from rlhf_lab.experiments.verdicts import Verdict
from rlhf_lab.figures import style
from rlhf_lab.intervals import Interval


@dataclass(frozen=True, init=False, kw_only=True)
class Toy(Settings):
    """A coin whose mean is its bias."""

    bias: float
    """Mean."""

    DEFAULTS: ClassVar[Defaults] = {"seeds": 5, "bias": 0.0}
    QUICK: ClassVar[Defaults] = {"seeds": 2}


CALLS: list[dict] = []


def toss(settings, job, best_config):
    CALLS.append(job)
    if job.get("try"):
        return [{"error": abs(job["rate"] - 0.5)}]
    noise = np.random.default_rng(job["seed"]).normal() / 1000
    return [{"value": settings.bias + noise + best_config.get("rate", 0.0), "third": 1 / 3}]


def picture(settings, summary, rows):
    drawing, ax = style.subplots(width=4, height=3)
    ax.plot(rows["seed"], rows["value"])
    ax.set(title="A toy", xlabel="seed", ylabel="value [units]")
    return drawing


def say(settings, summary, rows):
    row = summary.iloc[0]
    value = Interval(row["value"], row["value_low"], row["value_high"])
    return Verdict("supported" if value.above else "not supported", {"value": value}, {"value": 0.0})


TOY = tool.Experiment(
    number=1, name="toy", title="A toy", rule="Above zero.",
    settings=Toy, scales=("bandit", "small"),
    jobs=lambda s: [{"seed": seed, "method": "coin"} for seed in range(s.seeds)],
    run=toss, summarise=lambda s, rows: summarise(rows, "method", ["value"]), decide=say, figure=picture,
)  # fmt: skip
SEARCHED = replace(
    TOY,
    search_trials=lambda s: [{"seed": 1000, "try": True, "rate": rate} for rate in (0.1, 0.4, 0.9)],
    select_best=lambda s, rows: {"rate": float(rows.loc[rows["error"].idxmin(), "rate"])},
)


@pytest.fixture(autouse=True)
def no_calls():
    CALLS.clear()


def quiet(**changes):
    return Toy(progress=False, **changes)


def test_a_run_gives_a_row_a_job_and_a_verdict_by_the_rule():
    found = tool.experiment_run(TOY, quiet(bias=1.0))
    assert list(found.runs["seed"]) == [0, 1, 2, 3, 4] and set(found.runs["method"]) == {"coin"}
    assert found.verdict.outcome == "supported"
    assert tool.experiment_run(TOY, quiet(bias=-1.0)).verdict.outcome == "not supported"


@pytest.mark.slow
def test_workers_change_nothing():
    alone, two = tool.experiment_run(TOY, quiet()), tool.experiment_run(TOY, quiet(workers=2))
    pd.testing.assert_frame_equal(alone.runs, two.runs)


def test_a_stopped_run_goes_on_where_it_was_and_ends_with_the_same_rows(tmp_path):
    whole = tool.experiment_run(TOY, quiet())

    def stops(settings, job, best_config):
        if job["seed"] == 3:
            raise KeyboardInterrupt
        return toss(settings, job, best_config)

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt, match="goes on"):
        tool.experiment_run(replace(TOY, run=stops), quiet(out=out))
    # A kill in the middle of writing leaves half a line: that job is run again.
    with (out / "unfinished" / "jobs.jsonl").open("a") as file:
        file.write('{"job": {"seed": 3, "meth')
    CALLS.clear()
    found = tool.experiment_run(TOY, quiet(out=out))
    assert [job["seed"] for job in CALLS] == [3, 4]
    pd.testing.assert_frame_equal(found.runs, whole.runs)


def test_an_unfinished_run_of_other_settings_is_refused_by_name_and_kept(tmp_path):
    tool.experiment_run(TOY, quiet(out=tmp_path))
    before = (tmp_path / "unfinished" / "jobs.jsonl").read_text()
    with pytest.raises(LabError, match=r"bias = 0.0, not 2.0"):
        tool.experiment_run(TOY, quiet(out=tmp_path, bias=2.0))
    assert (tmp_path / "unfinished" / "jobs.jsonl").read_text() == before


def test_the_search_is_run_first_recorded_and_used(tmp_path):
    settings = quiet(out=tmp_path)
    found = tool.experiment_run(SEARCHED, settings)
    assert found.best_config == {"rate": 0.4}  # the nearest to 0.5
    assert found.runs["value"].mean() == pytest.approx(0.4, abs=0.01)
    tool.save(SEARCHED, found, tmp_path)
    assert list(pd.read_csv(tmp_path / "search.csv")["rate"]) == [0.1, 0.4, 0.9]
    assert json.loads((tmp_path / "result.json").read_text())["best_config"] == {"rate": 0.4}


def test_files_hold_the_numbers_and_are_judged_the_same_again(tmp_path, monkeypatch):
    found = tool.experiment_run(TOY, quiet(out=tmp_path))
    tool.save(TOY, found, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"runs.csv", "summary.csv", "result.json", "figure.png"}
    again = results.recompute(TOY, tmp_path)
    pd.testing.assert_frame_equal(again.runs, found.runs)
    assert again.verdict == found.verdict
    pd.testing.assert_frame_equal(again.summary, found.summary)
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["command"] == "rlhf-lab experiment toy --scale bandit" and record["settings"]["seeds"] == 5


def test_the_command_says_which_settings_were_changed():
    assert tool.command_of(TOY, quiet(bias=0.5, seeds=3, quick=True)).endswith("--quick --seeds 3 --bias 0.5")
    assert str(tool.default_out(TOY, quiet())).replace("\\", "/") == "results/toy/bandit"
    assert tool.default_out(TOY, quiet(seeds=3)).name == "bandit-own"
    assert tool.default_out(TOY, quiet(scale="EleutherAI/pythia-70m")).name == "EleutherAI--pythia-70m"


def test_a_scale_that_is_not_there_and_settings_out_of_range_are_refused():
    with pytest.raises(LabError, match="not made for the scale 'tree'.*bandit, small"):
        tool.experiment_run(TOY, quiet(scale="tree"))
    with pytest.raises(LabError, match="workers"):
        quiet(workers=0)
    twice = replace(TOY, jobs=lambda s: [{"seed": 0}, {"seed": 0}])
    with pytest.raises(LabError, match="two jobs that are the same"):
        tool.experiment_run(twice, quiet())


def test_two_runs_cannot_share_a_folder(tmp_path):
    with held_by_another_process(tmp_path), pytest.raises(LabError, match="in use"):
        tool.experiment_run(TOY, quiet(out=tmp_path))


def test_differences_are_paired_within_the_seed():
    """Seeds differ by 100, methods within a seed by 1 ± 0.1: the paired interval sees the second alone.

    By hand: differences 0.9, 1.0, 1.1; mean 1, sd 0.1, t_{0.975, 2} = 4.3027, half width 4.3027 · 0.1 / √3 = 0.2484.
    """
    rows = [{"seed": s, "method": m, "x": 100 * s + d} for s, d in enumerate((0.9, 1.0, 1.1)) for m in "ab" for d in
            ([d] if m == "a" else [0.0])]  # fmt: skip
    found = difference(pd.DataFrame(rows), "method", "a", "b", "x")
    assert found == pytest.approx((1.0, 1 - 0.2484, 1 + 0.2484), abs=1e-4) and found.above and not found.below
    with pytest.raises(LabError, match="on the same seeds"):
        difference(pd.DataFrame(rows[:-1]), "method", "a", "b", "x")


def test_the_bootstrap_of_a_mean_is_the_normal_interval():
    """n = 400 draws of a normal: the percentile interval's half width is 1.96 s/√n, up to resampling noise."""
    values = np.random.default_rng(0).normal(size=400)
    found = bootstrap(values, np.mean, draws=4000)
    half = 1.96 * values.std() / 20
    assert found.mean == pytest.approx(values.mean())
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.06)


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ({"bandit": "supported", "tree": "supported"}, "supported"),
        ({"bandit": "not supported"}, "not supported"),
        ({"bandit": "supported", "small": "inconclusive"}, "supported: bandit; inconclusive: small language model"),
        (
            {"bandit": "partly supported", "tree": "not supported"},
            "partly supported: bandit; not supported: token tree",
        ),
    ],
)
def test_the_page_puts_scales_together_without_hiding_any(outcomes, expected):
    assert claims_page.overall(outcomes) == expected


def test_the_page_names_the_rule_s_commit_and_links_to_it_where_the_project_has_a_repository(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\n')
    assert claims_page.commit_words("", tmp_path) == ""
    assert claims_page.commit_words("0123456789ab", tmp_path) == " in commit 01234567"
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\nurls.Repository = "https://example.org/lab/"\n')
    link = " in commit [01234567](https://example.org/lab/commit/0123456789ab)"
    assert claims_page.commit_words("0123456789ab", tmp_path) == link


def test_the_bootstrap_redraws_whole_rows_by_its_seed():
    """Of pairs (x, 2x) every sample has a correlation of 1; numbers that were redrawn one by one would not."""
    rows = np.random.default_rng(0).normal(size=(12, 1)) * [1.0, 2.0]
    found = bootstrap(rows, lambda r: float(np.corrcoef(r.T)[0, 1]), draws=50)
    assert tuple(found) == pytest.approx((1.0, 1.0, 1.0))
    one, same, other = (bootstrap(rows[:, 0], np.mean, draws=50, seed=seed) for seed in (3, 3, 4))
    assert one == same and one[1:] != other[1:]


def test_a_summary_s_interval_has_the_level_that_is_asked():
    """1, 2, 3, 4: mean 2.5, standard error √(5/12); t with 3 degrees of freedom is 3.182 at 95% and 1.638 at 80%."""
    runs = pd.DataFrame({"method": ["a"] * 4, "value": [1.0, 2.0, 3.0, 4.0]})
    for level, t in ((0.95, 3.18245), (0.8, 1.63774)):
        (row,) = summarise(runs, "method", ["value"], level).to_dict("records")
        assert (row["value_low"], row["value_high"]) == pytest.approx(
            (2.5 - t * (5 / 12) ** 0.5, 2.5 + t * (5 / 12) ** 0.5), abs=1e-4
        )
        assert row["seeds"] == 4


def test_an_interval_that_touches_zero_decides_nothing():
    assert not Interval(1.0, 0.0, 2.0).above and not Interval(-1.0, -2.0, 0.0).below
    assert Interval(1.0, 1e-9, 2.0).above and Interval(-1.0, -2.0, -1e-9).below


def test_a_result_s_numbers_have_eight_digits():
    assert tool._csv(pd.DataFrame({"seed": [1], "third": [1 / 3], "large": [2e7 / 3]})).splitlines() == [
        "seed,third,large", "1,0.33333333,6666666.7",
    ]  # fmt: skip
