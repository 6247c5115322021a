"""What the repository says of the claims is what the kept rows say, and the page is made of that."""

import csv
import dataclasses
import json
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from rlhf_lab.errors import LabError
from rlhf_lab.experiments import claims_forest, claims_page, results
from rlhf_lab.experiments.runner import command_of, settings_of
from rlhf_lab.experiments.verdicts import Verdict, fill, holds, read_notes
from rlhf_lab.intervals import Interval

ROOT = Path(__file__).parents[2]
SAVED = list(results.saved(ROOT / "results"))
IDS = [f"{experiment.name}-{folder.name}" for experiment, folder in SAVED]
CLAIMS = claims_page.claims(ROOT / "results")
by_claim = pytest.mark.parametrize("claim", CLAIMS, ids=[claim.experiment.name for claim in CLAIMS])


@pytest.mark.parametrize(("experiment", "folder"), SAVED, ids=IDS)
def test_the_stored_verdict_is_that_of_the_rows(experiment, folder):
    found, record = results.recompute(experiment, folder), results.read(folder)
    stored = Verdict.from_record(record["verdict"])
    assert stored.outcome == found.verdict.outcome and stored.thresholds == found.verdict.thresholds
    assert stored.numbers.keys() == found.verdict.numbers.keys()
    for name, number in found.verdict.numbers.items():
        assert stored.numbers[name] == pytest.approx(number, rel=1e-6, abs=1e-9, nan_ok=True), name


@pytest.mark.parametrize(("experiment", "folder"), SAVED, ids=IDS)
def test_notes_were_written_for_this_outcome_and_their_conditions_and_placeholders_hold(experiment, folder):
    record, notes = results.read(folder), read_notes(folder / "notes.md")
    verdict = Verdict.from_record(record["verdict"])
    assert notes.outcome == verdict.outcome, "the outcome has changed: write the notes anew"
    assert [one for one in notes.conditions if not holds(one, verdict)] == []
    for text in (notes.cell, *notes.sections.values()):
        filled = fill(text, verdict, record["settings"])
        assert "{" not in filled and "NaN" not in filled


@pytest.mark.parametrize(("experiment", "folder"), SAVED, ids=IDS)
def test_kept_settings_are_the_full_ones_and_the_command_gives_them(experiment, folder):
    """Anyone who doubts a row can run its command: it must name the settings that made the row."""
    record = results.read(folder)
    settings = experiment.settings.from_record(record["settings"])
    assert settings_of(settings) == settings_of(experiment.settings(scale=folder.name))
    assert record["command"] == command_of(experiment, settings)
    assert not settings.quick


@pytest.mark.parametrize(("experiment", "folder"), SAVED, ids=IDS)
def test_the_rows_have_the_seeds_of_the_settings(experiment, folder):
    settings = experiment.settings.from_record(results.read(folder)["settings"])
    rows = csv.DictReader((folder / "runs.csv").read_text(encoding="utf-8").splitlines())
    assert {int(row["seed"]) for row in rows} == {job["seed"] for job in experiment.jobs(settings)}


def test_every_experiment_has_a_kept_result_on_each_of_its_scales():
    """The lecture's ten claims and later ones, each with a result, or the finished jobs of a run, on every scale."""
    every = {name: results.experiment_of(name) for name in results.NAMES}
    wanted = {(name, scale) for name, experiment in every.items() for scale in experiment.scales}
    found = {(experiment.name, folder.name) for experiment, folder in SAVED}
    assert found <= wanted
    journals = [ROOT / "results" / name / scale / "unfinished" / "jobs.jsonl" for name, scale in wanted - found]
    assert [path for path in journals if not path.is_file()] == []
    assert {experiment.number for experiment in every.values()} >= set(range(1, 11))
    assert all(set(experiment.scales) <= set(results.SCALES) for experiment in every.values())


def git(*words):
    return subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True)


@pytest.fixture(scope="module")
def history():
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("this is not a Git checkout")
    if git("rev-parse", "--is-shallow-repository").stdout.strip() == "true":
        pytest.skip("a shallow clone has no history")


@pytest.mark.parametrize("name", results.NAMES)
def test_a_rule_s_commit_is_one_of_this_history(name, history):
    """The hash is that of an ancestor whose subject names the claim, so the rule was written before later runs."""
    experiment = results.experiment_of(name)
    assert git("merge-base", "--is-ancestor", experiment.rule_commit, "HEAD").returncode == 0
    subject = git("log", "-1", "--format=%s", experiment.rule_commit).stdout
    assert subject.startswith(f"Rule of claim {experiment.number}: ")


def measured(text):
    """The measured numbers of the rows of a runs.csv, by seed. Numbers with few digits are settings."""
    found = defaultdict(set)
    for row in csv.DictReader(text.splitlines()):
        numbers = frozenset(value for value in row.values() if len(value) > 7 and "." in value)
        if len(numbers) > 1:
            found[row["seed"]].add(numbers)
    return found


@by_claim
def test_rows_that_are_older_than_their_rule_are_declared(claim, history):
    """No row has the numbers that its seed already had when the rule was written. It may have further ones."""
    assert set(claim.head.get("older", ())) <= set(claim.results)
    for scale in claim.results.keys() - set(claim.older):
        rows = f"results/{claim.experiment.name}/{scale}/runs.csv"
        before = measured(git("show", f"{claim.experiment.rule_commit}:{rows}").stdout)
        now = measured((ROOT / rows).read_text(encoding="utf-8"))
        older = [seed for seed in now if any(old <= new for old in before[seed] for new in now[seed])]
        assert not older, f"Rows of the seeds {older} in {rows} are older than the rule: add {scale} to `older`"


@pytest.mark.parametrize("older", [[], ["bandit"], ["bandit", "tree"]])
def test_the_page_says_where_the_rule_is_newer_than_the_rows(older):
    head = CLAIMS[0].head | {"older": older}
    page, _ = claims_page.page_of([dataclasses.replace(CLAIMS[0], head=head)], ROOT / "docs" / "claims.md")
    assert page.count("** †<br>") == len(older) and ("† Some rows are older" in page) == bool(older)
    names = " and the ".join(claims_page.SCALES[scale].words for scale in older)
    assert (f"Some rows of the {names} are older than this rule" in page) == bool(older)
    assert ("**Rule, written before the run" in page) == (not older)


def test_no_result_is_kept_for_a_scale_that_its_experiment_does_not_know():
    assert all(folder.name in experiment.scales for experiment, folder in SAVED)


def test_the_page_and_its_forest_plot_are_made_of_the_kept_results():
    assert claims_page.is_current(ROOT / "results", ROOT / "docs" / "claims.md"), "run `make claims`"


@by_claim
def test_the_words_of_a_claim_were_written_for_its_results(claim):
    outcomes = {scale: result.verdict.outcome for scale, result in claim.results.items()}
    assert claim.head["outcomes"].items() <= outcomes.items(), "an outcome has changed: write claim.md anew"
    assert [one for one in claim.head["conditions"] if not holds(one, claim.verdict)] == []
    assert all("{" not in claim.filled(section) for section in claim.sections)
    assert claim.head["figure"] in claim.results and claim.contrasts()


@by_claim
def test_what_a_reader_sees_of_a_claim_first_has_at_most_150_words(claim):
    assert len(" ".join(claim.filled(section) for section in claims_page.SHORT).split()) <= 150


@pytest.mark.parametrize(("experiment", "folder"), SAVED, ids=IDS)
def test_a_cell_of_the_table_is_one_sentence_with_a_number(experiment, folder):
    cell = claims_page.Result(folder, results.read(folder)).notes.cell
    assert "{" in cell and re.fullmatch(r"[A-Z][^.]*(\.\d[^.]*)*\.", re.sub(r"\{[^}]*}", "1", cell)), cell


def test_the_page_has_at_most_6000_words_outside_its_folds():
    text = claims_page.unfolded((ROOT / "docs" / "claims.md").read_text(encoding="utf-8"))
    assert "What we find" in text and "Rule, written" not in text
    assert len(text.split()) <= 6000


@by_claim
def test_the_forest_plot_shows_the_intervals_that_the_rule_compares(claim):
    """Every scale of a claim is in one of its panels, and the picture has a line for each interval."""
    panels = claim.contrasts()
    assert {scale for panel in panels for scale in panel.intervals} == set(claim.results)
    for axes, panel in zip(claims_forest.draw(panels).axes, panels, strict=True):
        factor = 100 if panel.unit else 1
        drawn = [line.get_xdata() for line in axes.get_lines() if line.get_marker() == "None"][: len(panel.intervals)]
        assert drawn == [pytest.approx([factor * one.low, factor * one.high]) for one in panel.intervals.values()]


def test_kept_results_are_small():
    size = sum(path.stat().st_size for _, folder in SAVED for path in folder.iterdir())
    assert size < 20_000_000


def test_no_result_holds_a_path_of_the_machine_that_made_it():
    for _, folder in SAVED:
        assert json.loads((folder / "result.json").read_text(encoding="utf-8"))["settings"].get("out") is None


ENTRY = {"label": "a / b", "number": "ratio", "reference": 1, "claimed": "below", "axis": "percent"}


def test_a_contrast_takes_its_numbers_from_the_scales_that_have_them():
    """An interval that contains no end of the claimed range decides, whichever side it lies on."""
    verdicts = {"bandit": Verdict("supported", {"ratio": Interval(0.5, 0.4, 0.6)}), "tree": Verdict("supported", {})}
    contrast = claims_forest.Contrast.of(3, ENTRY, verdicts)
    assert dict(contrast.intervals) == {"bandit": (0.5, 0.4, 0.6)} and contrast.claimed == (None, 1.0)
    assert contrast.lines == [1.0] and contrast.decided(Interval(2, 1.5, 3)) and not contrast.decided(Interval(1, 0, 2))
    band = claims_forest.Contrast.of(3, ENTRY | {"claimed": [0.9, 1.1]}, verdicts)
    assert band.decided(Interval(1, 0.95, 1.05)) and not band.decided(Interval(1, 0.95, 1.2))
    last = claims_forest.numbers([contrast]).splitlines()[-1]
    assert last == "| 3 | a / b | 100% | 50% [40%, 60%] | not measured | not measured |"


@pytest.mark.parametrize("change", [{"number": "other"}, {"axis": "cubic"}])
def test_a_contrast_without_a_number_or_with_another_axis_is_refused(change):
    with pytest.raises(LabError, match="a / b"):
        claims_forest.Contrast.of(3, ENTRY | change, {"bandit": Verdict("supported", {"ratio": 0.5})})


def test_folded_parts_pictures_and_targets_of_links_are_not_what_a_reader_sees_first():
    text = "One [two](three.md) ![four](five.png)\n<details>\n<summary>six</summary>\n\nseven\n\n</details>\neight"
    assert claims_page.unfolded(text).replace("[", "").split() == ["One", "two", "eight"]


NOTEBOOKS = [
    (
        "08_rso",
        "policies trained on pairs from $\\pi_r$ have a higher win rate than policies trained on pairs from "
        "$\\pi_\\text{sft}$. They do not have a higher $J$. With γ = β, sampled labels and long training their win "
        "rate is lower on both. On the small language model, their win rate is lower even at the paper's settings, "
        "because its reward model labels fewer of the pairs from $\\pi_r$ correctly.",
        "rso-table",
        (
            "bandit.rso_over_sft > 0",
            "tree.rso_over_sft > 0",
            "bandit.objective_rso_over_sft < 0",
            "tree.objective_rso_over_sft ~ 0",
            "bandit.judge_rso_over_sft_equal_sampled_long < 0",
            "tree.judge_rso_over_sft_equal_sampled_long < 0",
            "small.rso_over_sft < 0",
            "small.correct_labels_rso < small.correct_labels_sft",
        ),
    ),
    (
        "08_rso",
        "A D-optimal design, as in Kveton et al. (arXiv 2503.01076), needs two to three times as many labels",
        "annotation-budget",
        tuple(f"{scale}.ratio_d_optimal {side}" for scale in ("bandit", "tree") for side in ("> 2", "< 3")),
    ),
    (
        "09_rest",
        "A second Grow step raises the learned reward by {bandit.grow_proxy:mean,2} on the bandit, "
        "{tree.grow_proxy:mean,2} on the token tree and {small.grow_proxy:mean,2} on the small language model. On the "
        "language model it lowers the gold reward by 0.45,",
        "rest-translation",
        ("bandit.grow_proxy > 0", "tree.grow_proxy > 0", "small.grow_gold < 0", "small.grow_gold ~ -0.45"),
    ),
    (
        "14_annotation_budget",
        "With 2,560 labels it finds factors of {bandit.ratio_reference:mean,1} for pairs from $\\pi_\\text{ref}$, "
        "{bandit.ratio_online:mean,1} for pairs from the current policy and {bandit.ratio_active:mean,1} for the "
        "active procedure.",
        "annotation-budget",
        ("bandit.ratio_active < bandit.ratio_reference", "bandit.ratio_reference < bandit.ratio_online"),
    ),
    (
        "13_non_static_environment",
        "On the bandit and the tree, fresh labels are better in two of three cases and worse in one. On the language "
        "model two cases are compared, and both are undecided.",
        "non-static",
        (
            "bandit.drift_saving > 0",
            "bandit.policy_narrow_saving > 0",
            "bandit.policy_saving < 0",
            "tree.drift_saving > 0",
            "tree.policy_narrow_saving > 0",
            "tree.policy_saving < 0",
            "small.drift_gain ~ 0",
            "small.policy_gain ~ 0",
        ),
    ),
    (
        "13_non_static_environment",
        "its ratio of simulation to formula is {bandit.ratio_more:mean,3} with a 95% interval from 0.980 to 1.041.",
        "non-static",
        (
            "bandit.ratio_more > 0.979",
            "bandit.ratio_more < 1.042",
            "bandit.ratio_more ~ 0.981",
            "bandit.ratio_more ~ 1.040",
        ),
    ),
]
"""Findings that a notebook reports: the notebook, its words with placeholders for the numbers of the claim, the claim,
and conditions under which the words are true."""


@pytest.mark.parametrize(("notebook", "words", "name", "conditions"), NOTEBOOKS)
def test_a_notebook_reports_the_findings_of_the_saved_results(notebook, words, name, conditions):
    cells = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    text = " ".join(" ".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown").split())
    claim = next(one for one in CLAIMS if one.experiment.name == name)
    words = re.sub(r"\{(bandit|tree|small)\.[^}]*}", lambda found: fill(found[0], claim.verdict, {}), words)
    assert words in text, "change the entry of NOTEBOOKS with the notebook"
    assert [one for one in conditions if not holds(one, claim.verdict)] == []
