"""The run on a real model: its page agrees with the saved results, and its commands and its split are what it says."""

import importlib
import json
import math
import sys
from pathlib import Path

import pytest

from rlhf_lab.cli.main import COMMANDS, _settings
from rlhf_lab.evaluation.win_rate import proportion

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import real_model
    finally:
        sys.path.pop(0)
    return real_model


def dialogue(turn: str, answer: str) -> str:
    return f"\n\nHuman: {turn}\n\nAssistant: {answer}"


def test_the_page_s_tables_are_those_of_the_saved_results(script):
    page = script.PAGE.read_text(encoding="utf-8")
    assert script.filled(page) == page
    for number in (script.HELD_OUT_PAIRS, script.HELD_OUT_PROMPTS, script.STEPS, script.PROMPT_CHARACTERS):
        assert f" {number} " in page.replace("\n", " ")
    assert f"{script.STEPS} steps of {script.PAIRS} pairs" in page and f"β = {script.BETA}" in page


def test_intervals_of_shares_follow_from_the_saved_counts(script):
    """A held-out dialogue is one pair, so the interval is Wilson's of that many independent pairs."""
    found = 0
    for path in sorted(script.RESULTS.glob("*-*.json")):
        report = json.loads(path.read_text(encoding="utf-8")).get("report")
        if report is None:
            continue
        share = report.get("accuracy") or report["against_policy"]
        number = report.get("pairs") or report["against_policy"]["comparisons"]
        halves = share["mean"] * number * 2  # a tie counts half
        assert halves == pytest.approx(round(halves), abs=1e-6)
        values = [1.0] * (round(halves) // 2) + [0.5] * (round(halves) % 2)
        expected = proportion(values + [0.0] * (number - len(values)), range(number))
        assert (share["mean"], share["low"], share["high"]) == pytest.approx(tuple(expected), abs=0.003)
        found += 1
    assert found or not list(script.RESULTS.glob("*.json"))


def test_what_the_page_says_of_held_out_pairs_is_true_of_every_model(script):
    reports = {name: script.saved(f"accuracy-{name}")["report"] for _, _, name in script.models()}
    assert len(reports) == 8
    for report in reports.values():
        assert report["accuracy"]["low"] > 0.5
        assert report["prefers_longer"]["mean"] < report["chosen_longer"]["mean"] < 0.5
        assert report["lengths"][-1]["name"] == "18 or more" and report["lengths"][-1]["accuracy"]["mean"] < 0.5
    page = script.PAGE.read_text(encoding="utf-8")
    for key in (lambda r: r["prefers_longer"]["mean"], lambda r: r["lengths"][-1]["accuracy"]["mean"]):
        shares = [key(report) for report in reports.values()]
        assert f"{min(shares):.0%} to {max(shares):.0%}" in page
    longer = reports["dpo-lora-0"]["chosen_longer"]["mean"]
    assert f"the longer one in {longer:.0%} of the pairs of unequal length" in " ".join(page.split())
    losses = {kind: [r["loss"]["mean"] for n, r in reports.items() if kind in n] for kind in ("reward", "dpo")}
    assert max(losses["reward"]) < min(losses["dpo"]) and max(losses["dpo"]) < math.log(2)


def test_what_the_page_says_of_samples_is_true_of_every_policy(script):
    reports = [script.saved(f"wins-{name}")["report"] for _, _, name in script.models() if "dpo" in name]
    assert len(reports) == 4
    for report in reports:
        assert report["against_policy"]["low"] < 0.5 < report["against_policy"]["high"]
        assert report["kl_k3"]["mean"] < 0.1


def test_every_command_is_one_that_the_command_line_accepts(script, tmp_path):
    made = list(script.jobs(tmp_path))
    assert len({job.name for job in made}) == len(made) == 20
    trained = {job.words[job.words.index("--out") + 1] for job in made if job.words[0] == "train"}
    for job in made:
        words = job.words[:2] if job.words[0] == "train" else job.words[:1]
        command = COMMANDS[tuple(words)]
        kind = getattr(importlib.import_module(command.module), command.settings)
        settings = _settings(kind, job.words[len(words) :], "rlhf-lab")
        assert settings.max_prompt_tokens == 320 and settings.seed in script.SEEDS
        if job.words[0] == "evaluate":
            assert settings.model in trained and (settings.reward is None or settings.reward in trained)


def test_a_dialogue_is_either_trained_on_or_held_out_and_long_texts_are_left_out(script, tmp_path, capsys):
    rows = [{"chosen": dialogue(f"What is {i % 40}?", f"{i}."), "rejected": dialogue(f"What is {i % 40}?", "No.")}
            for i in range(80)]  # fmt: skip
    rows += [{"chosen": dialogue("Long?", "x" * 400), "rejected": dialogue("Long?", "No.")}]
    rows += [{"chosen": dialogue("y" * 800, "Yes."), "rejected": dialogue("y" * 800, "No.")}]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    script.prepare(str(data), tmp_path / "runs")
    train, held = (
        [json.loads(line) for line in (tmp_path / "runs" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "held-out")
    )
    ours, theirs = ({script.first_turn(row) for row in part} for part in (train, held))
    assert not ours & theirs and len(ours | theirs) == 40 and len(theirs) == len(held) > 0
    assert len(train) == 2 * len(ours), "all rows of a dialogue that is trained on"
    assert all(row in rows[:80] for row in train + held)
    before = (tmp_path / "runs" / "train.jsonl").read_bytes()
    script.prepare("no-such-file.jsonl", tmp_path / "runs")
    assert (tmp_path / "runs" / "train.jsonl").read_bytes() == before
