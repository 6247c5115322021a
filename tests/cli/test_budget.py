"""`rlhf-lab budget`: plans that cost no more than the money, pilots read and judged, bad input refused in words."""

import csv
import json

import pytest
import torch

from rlhf_lab import bradley_terry
from rlhf_lab.algorithms import active
from rlhf_lab.cli import main as cli
from rlhf_lab.cli.budget import Budget, budget_plan, next_pairs, read_pilot, table, ways
from rlhf_lab.errors import LabError
from rlhf_lab.label_budget import SPREADS, likely_spread
from rlhf_lab.training import seeded

torch.set_num_threads(1)


def pilot_rows(prompts=12, size=5, each=60, spread=1.5, seed=0):
    generator = seeded(seed)
    rows = []
    for prompt in range(prompts):
        reward = spread * torch.randn(size, generator=generator)
        for _ in range(each):
            i, j = torch.randperm(size, generator=generator)[:2].tolist()
            first = float(torch.rand((), generator=generator)) < float(torch.sigmoid(reward[i] - reward[j]))
            rows.append((f"p{prompt}", f"a{i}" if first else f"a{j}", f"a{j}" if first else f"a{i}"))
    return rows


def write(path, rows, head=("prompt", "chosen", "rejected")):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)
    return path


SMALL = {"worlds": 8, "runs": 2, "candidates": 4}


def test_no_plan_costs_more_than_the_money_and_each_uses_nearly_all_of_it():
    settings = Budget(money=300.0, price_demonstration=7, price_preference=1.5, price_sample=0.02, price_step=0.01,
                      fit_steps=100, prompts=3)  # fmt: skip
    tried = ways(settings, 6)
    assert len(tried) > 10 and tried[0].demonstrations == 0 and tried[0].pairs == "sft"
    for way in tried:
        people = 3 * (7 * way.demonstrations + 1.5 * way.labels)
        fits = way.rounds + (way.demonstrations > 0)
        machines = fits + (3 * 6 * 0.02 if way.pairs == "active" else 3 * way.labels * 2 * 0.02)
        assert way.money == pytest.approx(people + machines) and way.money <= 300
        assert way.money > 300 - 3 * 1.6


def test_the_command_plans_prints_and_writes(tmp_path, capsys):
    out = tmp_path / "plans" / "plan.json"
    words = ["budget", "--labels", "120", "--worlds", "8", "--runs", "2", "--candidates", "4", "--features", "1"]
    assert cli.main([*words, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "expected regret" in said and "The plan is the best of" in said and "DPO or a reward model" in said
    assert "nan" not in said
    plan = json.loads(out.read_text())["plan"]
    assert plan["best"]["labels"] > 0 and plan["regret"][1] <= plan["regret"][0] <= plan["regret"][2]
    assert plan["learner"] in ("DPO", "reward model", "not decided")


def test_with_free_demonstrations_most_money_goes_there_and_with_dear_ones_none():
    cheap = budget_plan(Budget(labels=100, price_demonstration=0.05, **SMALL))
    assert cheap.best.demonstrations > 0
    dear = budget_plan(Budget(labels=100, price_demonstration=1000, **SMALL))
    assert dear.best.demonstrations == 0


def test_the_same_settings_give_the_same_plan():
    settings = Budget(labels=60, **SMALL)
    assert table(settings, budget_plan(settings)) == table(settings, budget_plan(settings))


def test_a_pilot_is_read_and_its_spread_found(tmp_path):
    """Twelve prompts of five rewards drawn with standard deviation 1.5: the interval holds it (it is made to 95 times
    in 100), and the estimate is the maximum on the grid.
    """
    pilot = read_pilot(write(tmp_path / "pilot.csv", pilot_rows()))
    assert pilot.labels == 720 and len(pilot.prompts) == 12
    best, low, high = pilot.spread
    assert best in SPREADS and low <= best <= high and low < 1.5 < high


def test_labels_that_are_coins_have_a_small_spread():
    wins = [torch.full((4, 4), 25.0, dtype=torch.float64) for _ in range(5)]
    assert likely_spread(wins)[0] == SPREADS[0]


def test_jsonl_without_prompts_is_one_prompt_and_the_plan_names_pairs_of_it(tmp_path, capsys):
    rows = [{"chosen": c, "rejected": r} for _, c, r in pilot_rows(prompts=1, each=30)]
    path = tmp_path / "pilot.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    assert cli.main(["budget", "--labels", "60", "--pilot", str(path), "--worlds", "8", "--runs", "2"]) == 0
    said = capsys.readouterr().out
    assert "30 comparisons, 5 responses" in said and "label next" in said


def test_the_next_pair_is_the_one_that_lowers_the_price_most(tmp_path):
    """Independent way: add each label to the curvature, invert, and take the trace again."""
    pilot = read_pilot(write(tmp_path / "pilot.csv", pilot_rows(prompts=1, each=40)))
    first = next_pairs(pilot, 0.5, 1.0)[0]
    rewards, curvature = bradley_terry.fit_rewards(pilot.wins[0], 1.0)
    even = torch.zeros(5, dtype=torch.float64).log_softmax(-1)
    matters, told = active.posterior_means(rewards, curvature, even, 0.5, 256, seeded(0, 60))
    worth = {}
    for i in range(5):
        for j in range(i):
            b = torch.zeros(5, dtype=torch.float64)
            b[i], b[j] = 1, -1
            after = torch.linalg.inv(curvature + told[i, j] * torch.outer(b, b))
            worth[frozenset((i, j))] = float(torch.trace(matters @ (torch.linalg.inv(curvature) - after)))
    names = pilot.responses[0]
    best = max(worth, key=worth.get)
    assert {first["first"], first["second"]} == {names[i] for i in best}
    assert first["value"] == pytest.approx(worth[best] / (2 * 0.5))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "--money or --labels"),
        ({"money": 10.0, "labels": 10}, "--money or --labels"),
        ({"money": -1.0}, "money"),
        ({"labels": 0}, "labels"),
        ({"labels": 10, "beta": 0.0}, "beta"),
        ({"labels": 10, "candidates": 1}, "candidates"),
        ({"labels": 10, "price_sample": -0.1}, "price_sample"),
        ({"labels": 10, "price_step": float("nan")}, "price_step"),
        ({"labels": 10, "spread": 0.0}, "spread"),
        ({"labels": 10, "worlds": 2}, "worlds"),
    ],
)
def test_bad_settings_are_refused(given, message):
    with pytest.raises(LabError, match=message):
        Budget(**given)


def test_money_that_buys_nothing_is_refused():
    with pytest.raises(LabError, match="is too small for 4 labels"):
        budget_plan(Budget(labels=20, prompts=100))


@pytest.mark.parametrize(
    ("rows", "head", "message"),
    [
        ([("p", "a", "b")] * 3, ("prompt", "chosen", "rejected"), "needs at least 10"),
        ([("p", "a", "a")] * 12, ("prompt", "chosen", "rejected"), "are equal"),
        ([("p", "a", "")] * 12, ("prompt", "chosen", "rejected"), "'rejected' is missing"),
        ([("p", "a", "b")] * 12, ("prompt", "better", "worse"), "'chosen' is missing"),
    ],
)
def test_bad_pilots_are_refused_with_the_place(tmp_path, rows, head, message):
    with pytest.raises(LabError, match=message):
        read_pilot(write(tmp_path / "pilot.csv", rows, head))
