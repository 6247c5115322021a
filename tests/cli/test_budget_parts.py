"""The planner's parts by hand: what a plan costs, what a pilot says, which plan is chosen and on which worlds."""

import json
import math

import pytest
import torch
from scipy.integrate import quad

from rlhf_lab import exact
from rlhf_lab import label_budget as simulation
from rlhf_lab.cli import budget as command
from rlhf_lab.cli.budget import Budget, Way, budget_plan, next_pairs, read_pilot, ways
from rlhf_lab.label_budget import SPREADS, likely_spread


def test_a_plan_s_labels_and_money_by_hand():
    """1,000 for two prompts; a demonstration costs 5, a label 1, a response ½, a fit 10 steps of a hundredth. Two
    draws a label: (1000 − 0.1)/2/2. A quarter for demonstrations: 25 a prompt, 250, and a second fit. Active labels in
    two batches: two fits, and all of 8 candidates of both prompts once."""
    settings = Budget(money=1000, prompts=2, price_demonstration=5, price_sample=0.5, price_step=0.01, fit_steps=10)
    found = {(way.pairs, way.rounds, way.demonstrations): (way.labels, way.money) for way in ways(settings, 8)}
    assert found["sft", 1, 0] == (249, pytest.approx(0.1 + 249 * 2 * 2))
    assert found["sft", 1, 25] == (187, pytest.approx(0.2 + 250 + 187 * 2 * 2))
    assert found["active", 2, 0] == (495, pytest.approx(0.2 + 8 + 495 * 2))
    assert found["active", 2, 25] == (370, pytest.approx(0.3 + 8 + 250 + 370 * 2))
    assert all(money <= 1000 for _, money in found.values())
    assert Budget(labels=100, price_preference=3).all_money == 300 and settings.all_money == 1000


def test_a_pilot_counts_each_prompt_s_wins_apart(tmp_path):
    """Of prompt a x beats y seven times and loses three; of prompt b x beats z twice."""
    rows = [("a", "x", "y")] * 7 + [("a", "y", "x")] * 3 + [("b", "x", "z")] * 2
    file = tmp_path / "pilot.jsonl"
    file.write_text("".join(json.dumps({"prompt": p, "chosen": c, "rejected": r}) + "\n" for p, c, r in rows))
    pilot = read_pilot(file)
    assert (pilot.prompts, pilot.responses, pilot.labels) == (["a", "b"], [["x", "y"], ["x", "z"]], 12)
    assert [wins.tolist() for wins in pilot.wins] == [[[0, 7], [3, 0]], [[0, 2], [0, 0]]]


def test_the_spread_of_a_pilot_is_that_of_the_integral():
    """Two responses, 300 wins and 100 losses, and 60 of each: rewards normal with deviation s, their gap with s√2, so
    that the evidence of a prompt is a single integral. Laplace's method is within a step of the grid of its best
    spread, and within two of where it falls by e^-1.92."""
    counts = [(300, 100), (60, 60), (90, 40)]

    def evidence(spread: float) -> float:
        total = 0.0
        for a, b in counts:
            peak = math.log(a / b)
            top = a * math.log(1 / (1 + math.exp(-peak))) + b * math.log(1 / (1 + math.exp(peak)))

            def integrand(gap: float, a: int = a, b: int = b, top: float = top) -> float:
                likely = -a * math.log1p(math.exp(-gap)) - b * math.log1p(math.exp(gap)) - top
                return math.exp(likely - gap**2 / (4 * spread**2)) / math.sqrt(4 * math.pi * spread**2)

            total += math.log(quad(integrand, peak - 3, peak + 3, points=[peak], limit=200)[0])
        return total

    exactly = [evidence(spread) for spread in SPREADS]
    best = max(range(len(SPREADS)), key=exactly.__getitem__)
    inside = [i for i, value in enumerate(exactly) if value >= exactly[best] - 1.92]
    found = likely_spread([torch.tensor([[0.0, a], [b, 0.0]], dtype=torch.float64) for a, b in counts])
    places = [SPREADS.index(one) for one in found]
    assert abs(places[0] - best) <= 1
    assert abs(places[1] - inside[0]) <= 2 and abs(places[2] - inside[-1]) <= 2
    wide = [i for i, value in enumerate(exactly) if value >= exactly[best] - 3.84]
    assert len(wide) > len(inside) >= places[2] - places[1]


def test_the_pairs_worth_most_come_first_in_units_of_regret(tmp_path, monkeypatch):
    """With gains 1, 2 and 3 of the pairs (0, 1), (0, 2), (1, 2): over 2β, the largest first."""
    file = tmp_path / "pilot.jsonl"
    rows = [("x", "y")] * 4 + [("y", "z")] * 4 + [("z", "x")] * 4
    file.write_text("".join(json.dumps({"chosen": c, "rejected": r}) + "\n" for c, r in rows))
    gain = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 3.0], [2.0, 3.0, 0.0]])
    monkeypatch.setattr(command.label_budget.active, "gains", lambda *a: gain)
    found = next_pairs(read_pilot(file), 0.25, 1.0, 2)
    assert [(one["first"], one["second"], one["value"], one["labels"]) for one in found] == [
        ("y", "z", 6.0, 4), ("x", "z", 4.0, 4),
    ]  # fmt: skip


def planned(monkeypatch, regrets: list[list[float]]) -> command.BudgetPlan:
    """The plan of eight worlds in which way i leaves `regrets[i]` of the first and of the last four."""
    tried = [Way(0, 10 + i, 1, "sft", 10.0) for i in range(len(regrets))]
    asked = iter(regrets)

    def buy(world, what, runs, generator, prior):
        first, last = next(asked)
        return torch.tensor([[first] * 4 + [last] * 4] * runs, dtype=torch.float64)

    monkeypatch.setattr(command, "ways", lambda settings, size: tried)
    monkeypatch.setattr(command.label_budget, "purchase_regret", buy)
    return budget_plan(Budget(labels=10, worlds=8, runs=2))


def test_a_plan_is_chosen_on_one_half_of_the_worlds_and_reported_on_the_other(monkeypatch):
    """Ways with (3, 2), (1, 5) and (2, 1): the second is best on the first half and leaves 5 on the other, where the
    plainest leaves 2: it saves −3. Redrawn, it is best where at least 7 of 8 worlds are of the first half, 9/256; 1,000
    draws, three standard deviations."""
    plan = planned(monkeypatch, [[3.0, 2.0], [1.0, 5.0], [2.0, 1.0]])
    assert plan.best.labels == 11 and plan.simplest.labels == 10
    assert (plan.regret[0], plan.simplest_regret[0], plan.saved[0]) == (5.0, 2.0, -3.0)
    assert abs(plan.sure - 9 / 256) < 3 * (9 / 256 * 247 / 256 / 1000) ** 0.5
    assert [value for _, value in plan.table] == [2.5, 3.0, 1.5]


@pytest.mark.parametrize(("better", "advice"), [("reward", "reward model"), ("dpo", "DPO"), ("neither", "not decided")])
def test_the_learner_with_the_smaller_regret_is_advised_and_a_reward_model_s_samples_are_paid_for(
    better, advice, monkeypatch
):
    """The better one ends at π*, the other at the reference. A fit of 10 steps at ½ and 20 samples at ¾ cost 20, ten
    labels of 2."""
    seen = []
    real = simulation.fit_purchase

    def bought(world, what, runs, generator, prior):
        seen.append(what.labels)
        return real(world, simulation.Purchase(0, 4), runs, generator, prior)

    monkeypatch.setattr(command.label_budget, "fit_purchase", bought)
    world = simulation.random_worlds(8, 5, 0.5, 0)
    many = world.repeat(2)
    star = exact.optimal_policy(many.log_ref, many.reward, 0.5)
    monkeypatch.setattr(
        command.label_budget, "fit_class_to_labels", lambda *a: star if better == "dpo" else many.log_ref
    )
    monkeypatch.setattr(
        command.label_budget, "fit_class_to_reward", lambda *a: star if better == "reward" else many.log_ref
    )
    settings = Budget(
        money=1000, candidates=5, features=2, runs=2, fit_steps=10, price_step=0.5, policy_samples=20,
        price_sample=0.75, price_preference=2.0,
    )  # fmt: skip
    learner, gain = command._learner(settings, world, Way(0, 100, 1, "sft", 1.0), 1.0)
    assert learner == advice and seen == [100, 90]
    assert (gain[0] > 0) is (better == "reward") and (gain[0] < 0) is (better == "dpo")
