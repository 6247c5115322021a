"""What the experiments on a language model share: units, labels, methods, and the measure, on the shipped model."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.experiments import setup_text
from rlhf_lab.experiments.methods import METHODS, train
from rlhf_lab.experiments.setup_text import BUDGET as USUAL
from rlhf_lab.experiments.setup_text import TextSetup, text_task
from rlhf_lab.training import seeded

BUDGET = replace(USUAL, labels=12, prompts=4, steps=2, batch_size=4, reward_steps=2, test_prompts=6, test_samples=2)
TRAINED = [key for key, method in METHODS.items() if method.trainer is not None]


@pytest.fixture(scope="module")
def setup():
    torch.set_num_threads(1)
    return TextSetup(text_task("small", "summaries"), BUDGET, seed=0)


@pytest.mark.parametrize("world", setup_text.UNITS)
def test_a_unit_is_about_the_rewards_spread_within_a_prompt(world):
    """Standard deviation within a prompt, in units, of 8 draws for each of 24 prompts: between ⅔ and 1½."""
    made = text_task("small", world)
    prompts = made.world.prompts(made.tokenizer, "validation", 24)
    scores = made.gold(prompts, made.reference.sample(prompts, 8, seeded(3)))
    assert 2 / 3 < scores.std(1).mean() < 3 / 2


def test_an_unknown_world_is_refused():
    with pytest.raises(LabError, match="no text world 'news'"):
        text_task("small", "news")


def test_labels_are_a_function_of_the_seed_and_as_many_as_planned_less_equal_ones(setup):
    again, other = TextSetup(setup.task, BUDGET, 0), TextSetup(setup.task, BUDGET, 1)
    assert torch.equal(setup.pairs.responses.ids, again.pairs.responses.ids)
    assert setup.pairs.responses.tolist() != other.pairs.responses.tolist()
    assert 6 <= len(setup.pairs) <= 12
    assert not torch.equal(setup.prompts.ids[:, :5], other.prompts.ids[:, :5])


@pytest.mark.parametrize("key", TRAINED)
def test_every_method_trains_a_policy_that_moves_and_leaves_the_reference_alone(setup, key):
    before = {name: weight.clone() for name, weight in setup.task.reference.named_parameters()}
    made = train(key, setup, setup.training(1, steps=4))
    moved = [name for name, weight in made.policy.named_parameters() if not torch.equal(weight, before[name])]
    assert moved and all(torch.equal(w, before[n]) for n, w in setup.task.reference.named_parameters())
    assert 0 < made.labels <= BUDGET.labels
    assert (made.samples > 0) == METHODS[key].samples


def test_the_reward_model_is_fitted_by_its_own_part_of_the_budget(setup, monkeypatch):
    """Its steps, its rate and its batch, where the budget names them; else those of every fit."""
    seen = []
    monkeypatch.setattr("rlhf_lab.experiments.setup.reward_model", lambda model, pairs, loss, fit: seen.append(fit))
    for changes in ({}, {"reward_steps": None, "reward_rate": None}, {"reward_batch_size": 3}):
        budget = replace(BUDGET, **{"reward_steps": 5, **changes})
        replace(setup, budget=budget).fit_reward_model(setup.pairs, 7)
    assert [(fit.steps, fit.learning_rate, fit.batch_size) for fit in seen] == [
        (5, 1e-3, 4),
        (2, 3e-4, 4),
        (5, 1e-3, 3),
    ]
    assert {fit.seed for fit in seen} == {7} and {fit.max_grad_norm for fit in seen} == {1.0}


def test_a_language_model_samples_fewer_responses_than_a_table(setup):
    """RSO draws 32 candidates for each of the four prompts, and PPO two rounds of four responses for two epochs."""
    assert train("rso-rso-sample-rank", setup).samples == 32 * 4
    assert train("ppo", setup, setup.training(1, steps=4)).samples == 2 * 4 * 4


def test_the_reference_measures_as_itself(setup):
    """KL of π_ref to itself is 0, so J is its reward; r* is gold over the unit."""
    out = setup.evaluate(setup.reference)
    assert out["kl"] == pytest.approx(0, abs=1e-4)
    assert out["objective"] == pytest.approx(out["reward"], abs=1e-4)
    assert out["reward"] == pytest.approx(out["gold"] / 0.25)
    assert 0 <= out["gold_wins"] <= 1 and out["tokens"] > 1


def test_kl_and_gold_agree_with_the_report_on_texts(setup):
    """The same numbers by evaluation.text_report on other draws, within its own standard errors (five of them)."""
    from rlhf_lab.evaluation import text_report

    policy = train("sft", setup, setup.training(1, steps=6, learning_rate=2e-3)).policy
    wide = TextSetup(setup.task, replace(BUDGET, test_prompts=24, test_samples=8), 0)
    ours = wide.evaluate(policy)
    made = setup.task
    prompts = made.world.prompts(made.tokenizer, "test", 24)
    theirs = text_report(policy, made.reference, prompts, made.tokenizer, made.world.gold, num_samples=8, seed=5)
    for name, found in (("gold", theirs.gold), ("kl", theirs.kl_k1), ("tokens", theirs.tokens)):
        assert ours[name] == pytest.approx(found.mean, abs=5 * max(found.error, 1e-3)), name


def test_temperature_zero_is_the_likeliest_token_each_time_and_has_no_kl(setup):
    made = setup.task
    prompts = made.world.prompts(made.tokenizer, "test", 4)
    one, two = (setup_text.draw(made.reference, prompts, 1, 0, seeded(seed)) for seed in (1, 2))
    assert one.tolist() == two.tolist()
    assert math.isnan(setup.evaluate(made.reference, temperature=0)["kl"])


def test_a_proxy_that_is_gold_wins_as_gold_does(setup):
    out = setup.evaluate(setup.reference, proxy=setup.gold)
    assert out["proxy"] == pytest.approx(out["reward"], abs=1e-5)
    assert out["proxy_wins"] == pytest.approx(out["gold_wins"])


class Fixed:
    """Two prompts, whose responses 1 and 2 (or 3 and 4) have the gold rewards 1, 2, 3, 4; targets earn 2 and 3."""

    unit = 0.5

    def __init__(self):
        self.world, self.reference, self.tokenizer = self, Shifted(0.25), self

    def prompts(self, tokenizer, split, number):
        return Tokens.from_lists([[10], [20]])

    def examples(self, split, number):
        return [SimpleNamespace(prompt="10", target="12"), SimpleNamespace(prompt="20", target="23")]

    def batch_decode(self, rows, skip_special_tokens):
        return [str(row[0]) for row in rows]

    def gold(self, prompts, responses):
        assert all(x[0] == y[0] for x, y in zip(prompts, responses, strict=True)), "another prompt's response"
        return [float(y[1]) for y in responses]


class Shifted:
    """Answers 11, 12 and 23, 24; the log-probability of each is the same."""

    device = torch.device("cpu")

    def __init__(self, log_prob=1.0):
        self.value, self.how = log_prob, None

    def sample(self, prompts, number, generator, temperature=1.0, top_k=None):
        self.how = (number, temperature, top_k)
        return Tokens.from_lists([[[11], [12]][:number], [[23], [24]][:number]])

    def log_prob(self, prompts, responses):
        return torch.full(responses.shape[:2], self.value)


def test_a_measure_by_hand():
    """Gold 1, 2, 3, 4 in units of ½: mean 5. Against targets of 2 and 3: loss, tie, tie, win, a half. KL 1 − ¼; at
    β = 2 the objective is 5 − 2 · ¾."""
    made, policy = Fixed(), Shifted()
    setup = TextSetup(made, replace(BUDGET, test_prompts=2, test_samples=2, beta=2.0), 0)
    out = setup.evaluate(policy)
    assert (out["gold"], out["reward"], out["kl"], out["gold_wins"]) == (2.5, 5.0, 0.75, 0.5)
    assert out["objective"] == pytest.approx(3.5) and setup.evaluate(policy, beta=4.0)["objective"] == pytest.approx(
        2.0
    )
    assert policy.how == (2, 1.0, None)
    assert math.isnan(setup.evaluate(policy, temperature=0.7)["kl"]) and policy.how == (2, 0.7, None)
    setup.evaluate(policy, temperature=0)
    assert policy.how == (1, 1.0, 1)
