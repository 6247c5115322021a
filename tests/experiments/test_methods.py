"""The tables of methods and scales: one entry is enough for a new one, and what an entry says is true."""

from dataclasses import replace

import pytest
import torch

from rlhf_lab import exact
from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.experiments import claims_page, methods, results, scales
from rlhf_lab.experiments.compare import Compare, compare
from rlhf_lab.experiments.methods import METHODS, BestOf, Method, train
from rlhf_lab.experiments.runner import experiment_run, save
from rlhf_lab.experiments.scales import SCALES, Scale, set_up
from rlhf_lab.experiments.setup import SetupBudget
from rlhf_lab.experiments.setup_exact import ExactSetup
from rlhf_lab.experiments.trajectories import record_trajectories
from rlhf_lab.policies.base import Policy
from rlhf_lab.worlds import bandit

torch.set_num_threads(1)

QUICK = {
    "labels": 24,
    "prompts": 4,
    "steps": 4,
    "batch_size": 8,
    "reward_steps": 2,
    "test_prompts": 3,
    "test_samples": 2,
}
TRAINED = [key for key, method in METHODS.items() if method.trainer is not None]


@pytest.fixture(scope="module")
def small():
    return set_up("small", 0, "summaries", **QUICK)


def setup_of(scale, small):
    return small if scale == "small" else set_up(scale, 0, **QUICK)


@pytest.fixture
def nudge(monkeypatch):
    """A made-up method: add its setting `by` to every weight, once for each step."""

    def trainer(setup, policy, beta, training, settings):
        with torch.no_grad():
            for weight in policy.parameters():
                weight += settings["by"] * training.steps
        return 0

    monkeypatch.setitem(METHODS, "nudge", Method("a made-up method", trainer, stream=90, settings={"by": 0.5}))


@pytest.mark.parametrize("scale", SCALES)
def test_a_new_method_is_one_entry_and_trains_on_every_scale(scale, small, nudge):
    setup = setup_of(scale, small)
    trained = train("nudge", setup)
    start = next(setup.reference.parameters())
    assert torch.allclose(next(trained.policy.parameters()), start + 0.5 * 4)
    assert (trained.labels, trained.samples) == (len(setup.pairs), 0)
    doubled = train("nudge", setup, by=1.0, stages=2).policy
    assert torch.allclose(next(doubled.parameters()), start + 1.0 * 2)


def test_a_new_method_appears_in_the_comparison_and_has_a_trajectory(nudge):
    settings = Compare(steps=2, labels=20, seeds=1, progress=False, methods=("reference", "nudge"))
    rows = compare(settings).summary.set_index("method")
    # Equal changes of all logits leave a table where it was.
    assert rows.loc["nudge", "label"] == "a made-up method" and rows.loc["nudge", "kl"] == pytest.approx(0, abs=1e-9)
    (trajectory,) = record_trajectories(settings, settings.make_world(), ["nudge"])
    assert trajectory.method == "nudge" and trajectory.kl.tolist() == pytest.approx([0, 0], abs=1e-9)


@pytest.fixture
def three_arms(monkeypatch):
    """A made-up scale: two prompts with three arms."""

    def make(budget, seed, text_world):
        return ExactSetup(bandit.random(2, 3, seed), budget, seed)

    entry = Scale(make, SetupBudget(**QUICK), exact=True, column="bandit", words="three arms", short="three")
    monkeypatch.setitem(SCALES, "three-arms", entry)


@pytest.mark.parametrize("key", METHODS)
def test_a_new_scale_is_one_entry_and_every_method_runs_on_it(key, three_arms):
    setup = set_up("three-arms", 3, beta=0.7)
    assert setup.budget == replace(SetupBudget(**QUICK), beta=0.7) and len(setup.pairs) == 24
    found = setup.evaluate(train(key, setup).policy)
    best = setup.evaluate(setup.world.optimal(0.7))["objective"]
    assert found["objective"] <= best + 1e-12 and found["kl"] >= 0


def test_a_new_scale_is_one_entry_and_a_claim_runs_on_it_and_is_shown_in_its_column(three_arms, tmp_path):
    """Its defaults are those of the column that the entry names, and the world of its rows is that of the entry."""
    experiment = results.experiment_of("dpo-frontier")
    usual = experiment.settings(scale="bandit", quick=True)
    settings = replace(usual, scale="three-arms", seeds=1, steps=8, labels=24, progress=False)
    assert settings.exact and settings.betas == usual.betas
    found = experiment_run(experiment, settings)
    world = bandit.random(2, 3, 0)
    _, most = exact.frontier(world.log_ref(), world.rewards(), torch.tensor([10.0**-2.5], dtype=torch.float64))
    assert found.runs.loc[found.runs["method"] == "optimal", "reward"].max() == pytest.approx(float(most.mean()))
    save(experiment, found, tmp_path / "dpo-frontier" / "three-arms")
    assert [folder.name for _, folder in results.saved(tmp_path)] == ["three-arms"]
    assert claims_page.overall({"bandit": "supported", "three-arms": "inconclusive"}).endswith("three arms")


def test_a_name_that_is_no_scale_is_that_of_a_language_model(monkeypatch):
    asked = []
    monkeypatch.setattr(scales, "text_task", lambda name, world: asked.append((name, world)))
    set_up("gpt2", 1, "dialogue")
    assert asked == [("gpt2", "dialogue")]


@pytest.mark.parametrize("key", TRAINED)
def test_a_method_needs_what_its_entry_says(key, monkeypatch):
    """Reward model, critic, log-probabilities of π_ref and samples are used by those methods alone that name them."""
    setup, method, used = set_up("bandit", 0, **QUICK), METHODS[key], []
    _ = setup.pairs
    policy = setup.new_policy()
    made, log_probs = policy.new_critic, setup.reference.token_log_probs
    monkeypatch.setattr(policy, "new_critic", lambda *given: used.append("critic") or made(*given))
    monkeypatch.setattr(
        setup.reference, "token_log_probs", lambda *given: used.append("reference") or log_probs(*given)
    )
    trained = train(key, setup, policy=policy)
    assert trained.policy is policy
    assert ("critic" in used, "reference" in used) == (method.critic, method.reference)
    assert ("reward_model" in vars(setup), trained.samples > 0) == (method.reward_model, method.samples)
    assert method.networks == 1 + sum(name in used for name in ("critic", "reference")) + method.reward_model


@pytest.mark.parametrize("key", TRAINED)
def test_stages_share_the_optimiser_steps_of_a_fit(key, monkeypatch):
    """Twelve steps: PPO's four epochs, ReST's three thresholds and online DPO's four rounds share them."""
    seen = []
    entry = replace(METHODS[key], trainer=lambda setup, policy, beta, training, settings: seen.append(training) or 0)
    monkeypatch.setitem(METHODS, key, entry)
    setup = set_up("bandit", 0, **QUICK | {"steps": 12})
    train(key, setup)
    assert seen[0].steps == {"ppo": 3, "rest": 4, "online": 3}.get(key, 12)
    assert seen[0].seed == METHODS[key].stream and len({m.stream for m in METHODS.values()}) == len(TRAINED) + 1


def test_ppo_takes_another_reward_and_other_prompts_and_online_dpo_another_labeller():
    setup = set_up("bandit", 0, **QUICK)
    scored, labelled = [], []

    def reward(prompts, responses):
        scored.append(prompts.ids.flatten().tolist())
        return setup.gold(prompts, responses)

    def collect(policy, number, generator):
        labelled.append(number)
        return setup.collect(policy, number, generator)

    prompts = setup.world.prompts[torch.tensor([2, 1])]
    train("ppo", setup, reward=reward, prompts=prompts)
    train("online", setup, rounds=2, collect=collect)
    assert {place for row in scored for place in row} == {prompts.ids[0].item(), prompts.ids[1].item()}
    assert labelled == [12, 12]


def test_unknown_methods_and_closed_forms_of_a_language_model_are_refused(small):
    with pytest.raises(LabError, match=r"Unknown method 'drp'.*There are: reference"):
        train("drp", small)
    with pytest.raises(LabError, match="closed form on finite worlds only"):
        train("optimal", small)
    best = train("best-of-n", small).policy
    assert isinstance(best, BestOf) and best.n == methods.BEST_OF and best.reward is small.reward_model


class Count(Policy):
    """Samples 0, 1, 2, … as one-token responses."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.asked = []

    def sample(self, prompts, num_samples, generator=None, temperature=1.0, top_k=None):
        self.asked.append(len(prompts))
        return Tokens.full(torch.arange(num_samples).view(1, -1, 1).repeat(len(prompts), 1, 1))


def test_best_of_n_picks_by_the_reward_among_n_samples_for_each_response():
    def reward(prompts, responses):
        return -(responses.ids[..., 0] - 4).abs().double()

    prompts, policy = Tokens.full(torch.zeros(20, 1, dtype=torch.long)), Count()
    best = BestOf(policy, reward, 3, sampling_batch_size=16).sample(prompts, 2)
    assert best.ids[..., 0].tolist() == [[2, 4]] * 20  # of 0, 1, 2 and of 3, 4, 5
    assert BestOf(policy, reward, 3).sample(prompts, 1, top_k=1).ids.flatten().tolist() == [0] * 20
    assert policy.asked == [16, 4, 20]
    assert BestOf(policy, reward, 3).log_prob(prompts, best).isnan().all()
