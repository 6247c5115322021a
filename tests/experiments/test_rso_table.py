"""RSO's Table 1 as an experiment: quick runs on each scale, exact win rates, its rule's outcomes."""

import dataclasses
import math

import pandas as pd
import pytest
import torch

from rlhf_lab import exact
from rlhf_lab.errors import LabError
from rlhf_lab.experiments import rso_common
from rlhf_lab.experiments.claims.rso_table.run import EXPERIMENT, ROWS, RSOTable, label_accuracy
from rlhf_lab.experiments.published_results import RSO_TABLE_1, RSO_TABLE_2
from rlhf_lab.experiments.runner import experiment_run, save
from rlhf_lab.intervals import Interval

ABOVE, BELOW, OPEN = Interval(1, 0.5, 1.5), Interval(-1, -1.5, -0.5), Interval(0.1, -1, 1)


@pytest.fixture(scope="module")
def bandit(tmp_path_factory):
    out = tmp_path_factory.mktemp("rso-table")
    settings = RSOTable(scale="bandit", quick=True, out=out, progress=False)
    found = experiment_run(EXPERIMENT, settings)
    save(EXPERIMENT, found, out)
    return found


def test_every_row_is_run_on_every_seed_and_searched_as_often(bandit):
    assert set(bandit.runs["row"]) == {"reference", *ROWS}
    assert (bandit.runs.groupby("row").size() == 2).all()
    assert (bandit.search.groupby("row").size() == len(bandit.settings.rates)).all()
    assert set(bandit.best_config) == set(ROWS) and (bandit.search["seed"] >= 1000).all()


def test_the_reference_wins_half_against_itself_and_pays_nothing(bandit):
    rows = bandit.runs[bandit.runs["row"] == "reference"]
    assert rows[["proxy_wins", "gold_wins", "judge_wins"]].to_numpy() == pytest.approx(0.5)
    assert rows["kl"].to_numpy() == pytest.approx(0, abs=1e-12)


def test_regret_is_beta_times_the_kl_to_the_optimum(bandit):
    assert bandit.runs["regret"].to_numpy() == pytest.approx(0.5 * bandit.runs["kl_to_optimal"].to_numpy())
    assert (bandit.runs["regret"] >= 0).all()


def test_the_files_are_there_and_no_number_or_panel_is_without_a_value_or_title(bandit):
    names = {path.name for path in bandit.settings.out.iterdir()}
    assert names >= {"runs.csv", "summary.csv", "search.csv", "result.json", "figure.png"}
    means = [one.mean if isinstance(one, Interval) else one for one in bandit.verdict.numbers.values()]
    assert all(math.isfinite(one) for one in means)
    drawing = EXPERIMENT.figure(bandit.settings, bandit.summary, bandit.runs)
    assert all(ax.get_xlabel() and ax.get_title(loc="left") for ax in drawing.axes)


def test_the_tree_runs_too():
    settings = RSOTable(scale="tree", quick=True, seeds=2, prompts=50, candidates=8, progress=False)
    found = experiment_run(EXPERIMENT, settings)
    assert len(found.runs) == 2 * (len(ROWS) + 1)
    assert (found.runs["regret"] > 0).all()


@pytest.mark.slow
def test_a_language_model_runs_and_is_set_beside_the_paper():
    settings = RSOTable(scale="small", quick=True, prompts=4, candidates=8, labels=8, test_prompts=2, progress=False)
    found = experiment_run(EXPERIMENT, settings)
    table = found.summary.set_index("row")
    assert table.loc["hinge direct", "paper_judge_wins"] == pytest.approx(0.6054)
    assert math.isnan(table.loc["reference", "paper_judge_wins"])
    assert found.runs["judge_wins"].between(0, 1).all()
    paired = found.runs["source"].isin(rso_common.SOURCES)
    assert found.runs.loc[paired, "right"].between(0, 1).all() and found.runs.loc[~paired, "right"].isna().all()
    assert (found.runs["reach"] > 0).all() and found.runs.groupby("seed")["reach"].nunique().eq(1).all()
    assert -1 <= found.verdict.numbers["rank_correlation_summaries"] <= 1


def test_exact_win_rates_are_those_of_all_pairs():
    """Enumeration: the mean over y ~ π, y' ~ π_ref of 1[r > r'] + ½ 1[r = r'], and of σ(r − r'); rewards with ties."""
    log_ref = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    reward = torch.tensor([[0.0, 1.0, 1.0, -1.0, 0.0, 2.0], [3.0, 3.0, 3.0, 0.5, 0.1, 0.0]], dtype=torch.float64)
    policy = exact.optimal_policy(log_ref, reward, 0.7)
    gap = reward.unsqueeze(-1) - reward.unsqueeze(-2)
    joint = policy.exp().unsqueeze(-1) * log_ref.exp().unsqueeze(-2)
    wins = ((gap > 0).double() + 0.5 * (gap == 0).double()) * joint
    mine = (policy.exp() * rso_common.chance_to_win(log_ref, reward)).sum(-1)
    assert torch.allclose(mine, wins.sum((-1, -2)))
    pleased = (policy.exp() * rso_common.chance_to_be_preferred(log_ref, reward)).sum(-1)
    assert torch.allclose(pleased, (gap.sigmoid() * joint).sum((-1, -2)))


def test_rejected_pairs_follow_the_reward_model_and_gold_pairs_the_gold_reward():
    """At β = 0.05 accepted responses have nearly the most of whichever reward accepts them."""
    settings = RSOTable(scale="bandit", quick=True, candidates=64, progress=False)
    shared = rso_common.rso_setup(settings, "bandit", 0)
    world, learned = shared.setup.world, shared.setup.learned_rewards
    for gold, other in ((False, True), (True, False)):
        reward = {True: world.rewards(), False: learned}

        def mean(which, pairs, reward=reward):
            rows = pairs.prompts.ids[:, 0] - world.prompts.ids[0, 0]
            return reward[which][rows.unsqueeze(-1), pairs.responses.ids[..., 0]].mean().item()

        sharp, flat = (shared.pairs(source, 0.05, 8, gold=gold) for source in ("rso-sample-rank", "sft-sample-rank"))
        assert mean(gold, sharp) > mean(gold, flat) + 0.2, other


def test_the_way_to_pi_r_is_the_candidates_entropy_lost():
    """KL of weights w on G equally likely candidates: log G − H(w). Equal scores: 0. β near 0, no ties: log G."""
    scores = torch.tensor([[0.0, 1.0, 2.0, -1.0], [0.3, 0.1, 0.0, 0.2]], dtype=torch.float64)
    shared = rso_common.RSOSetup(setup=None, candidates=4)
    shared.__dict__["sampled"] = (None, scores)
    entropy = torch.distributions.Categorical(logits=scores / 0.5).entropy().mean().item()
    assert shared.reach(0.5) == pytest.approx(math.log(4) - entropy)
    assert shared.reach(1e-4) == pytest.approx(math.log(4))
    shared.__dict__["sampled"] = (None, torch.zeros(3, 4, dtype=torch.float64))
    assert shared.reach(0.5) == pytest.approx(0)


def test_hard_labels_name_the_larger_score_and_drawn_ones_as_often_as_bradley_terry_says():
    """A drawn label is right with probability σ(|gap|): the share lies within four standard errors of the mean."""
    settings = RSOTable(scale="bandit", quick=True, prompts=500, progress=False)
    shared = rso_common.rso_setup(settings, "bandit", 0)
    assert label_accuracy(shared, dataclasses.replace(settings, ranks="hard"), "sft-sample-rank") == 1
    pairs = shared.pairs("sft-sample-rank", settings.beta, settings.accepted)
    with torch.no_grad():
        chance = shared.setup.reward_model(pairs.prompts, pairs.responses).double().diff(dim=-1).abs().sigmoid()
    error = (chance * (1 - chance)).sum().sqrt().item() / len(pairs)
    assert abs(label_accuracy(shared, settings, "sft-sample-rank") - chance.mean().item()) < 4 * error
    assert math.isnan(label_accuracy(shared, settings, "raft"))


def _made(values):
    """Runs with the judge's win rate of each row given, the same for three seeds up to a thousandth."""
    rows = []
    for seed in range(3):
        for row in ("reference", *ROWS):
            wins = values.get(row, 0.5) + 0.0001 * (seed - 1) * (1 + ROWS.index(row) if row in ROWS else 0)
            loss, _, source = row.partition(" ")
            names = {"seed": seed, "task": "bandit", "row": row, "loss": loss, "source": source or row, "rate": 0.05}
            zeros = dict.fromkeys(("proxy_wins", "gold_wins", "objective", "kl", "regret", "right", "reach"), 0.0)
            rows.append({**names, "judge_wins": wins, **zeros})
    return pd.DataFrame(rows)


def _verdict(settings, runs):
    return EXPERIMENT.decide(settings, EXPERIMENT.summarise(settings, runs), runs)


def _ordered(rso, sft, direct, hinge=0.0, cloning=0.4):
    values = {"raft": cloning, "rest": cloning}
    for loss in ("sigmoid-norm", "hinge", "hinge-norm"):
        shift = hinge if loss == "hinge" else 0.0
        values |= {f"{loss} rso-sample-rank": rso + shift, f"{loss} sft-sample-rank": sft + shift}
        values[f"{loss} direct"] = direct + shift
    return values


@pytest.mark.parametrize(
    ("values", "outcome"),
    [
        (_ordered(0.8, 0.7, 0.6), "supported"),
        (_ordered(0.6, 0.7, 0.5), "not supported"),
        (_ordered(0.8, 0.7, 0.75), "partly supported"),
        (_ordered(0.8, 0.7, 0.6, hinge=0.1), "partly supported"),
        (_ordered(0.8, 0.7, 0.6, cloning=0.9), "partly supported"),
    ],
)
def test_the_rule_on_made_up_tables(values, outcome):
    settings = RSOTable(scale="bandit", quick=True)
    assert _verdict(settings, _made(values)).outcome == outcome


def test_tasks_that_differ_make_a_condition():
    settings = RSOTable(scale="small", quick=True, tasks=("summaries", "dialogue"))
    runs = pd.concat(
        [
            _made(_ordered(0.8, 0.7, 0.6)).assign(task="summaries"),
            _made(_ordered(0.6, 0.7, 0.5)).assign(task="dialogue"),
        ]
    )
    verdict = _verdict(settings, runs)
    assert verdict.outcome == "partly supported"
    assert verdict.numbers["rso_over_sft_hinge_summaries"].mean == pytest.approx(0.1, abs=0.01)
    assert verdict.numbers["rso_over_sft_hinge_dialogue"].mean == pytest.approx(-0.1, abs=0.01)


@pytest.mark.parametrize(
    ("intervals", "outcome"),
    [
        ([ABOVE, ABOVE], "supported"),
        ([ABOVE, OPEN], "partly supported"),
        ([ABOVE, BELOW], "partly supported"),
        ([OPEN, BELOW], "not supported"),
        ([OPEN], "inconclusive"),
    ],
)
def test_the_outcome_of_a_part(intervals, outcome):
    assert rso_common.decide_part(intervals) == outcome


def test_a_part_may_have_a_threshold_other_than_zero():
    assert (
        rso_common.decide_part([OPEN], -2.0) == "supported" and rso_common.decide_part([OPEN], 2.0) == "not supported"
    )


@pytest.mark.parametrize(
    ("parts", "outcome"),
    [
        (("supported", "supported"), "supported"),
        (("not supported", "supported"), "not supported"),
        (("inconclusive", "not supported"), "not supported"),
        (("inconclusive", "inconclusive"), "inconclusive"),
        (("inconclusive", "partly supported"), "partly supported"),
        (("supported", "not supported"), "partly supported"),
    ],
)
def test_the_outcome_of_a_claim_follows_from_its_parts(parts, outcome):
    assert rso_common.decide_claim(*parts) == outcome


def test_the_papers_rows_are_the_experiments_rows():
    assert all(set(rows) == set(ROWS) for rows in RSO_TABLE_1.values())
    assert len(RSO_TABLE_2) == 6
    assert RSO_TABLE_2["rso-8 first-round"].proxy == RSO_TABLE_1["summaries"]["sigmoid-norm rso-sample-rank"].proxy


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"accepted": 7}, "accepted"),
        ({"scale": "small", "tasks": ("poems",)}, "poems"),
        ({"tasks": ("summaries",)}, "tasks"),
        ({"threshold": 1.5}, "threshold"),
        ({"beta": 0.0}, "beta"),
    ],
)
def test_bad_settings_are_refused(changes, part):
    with pytest.raises(LabError, match=part):
        RSOTable(**changes)


def test_settings_are_settled_by_scale():
    kept = {scale: dataclasses.asdict(RSOTable(scale=scale)) for scale in ("bandit", "tree", "small")}
    assert all(0 not in (one["labels"], one["steps"], one["seeds"]) and one["gamma"] == 0.5 for one in kept.values())
    assert kept["small"]["tasks"] == ("summaries", "dialogue")


def test_gamma_is_beta_unless_it_is_given():
    assert RSOTable(beta=0.2).gamma == 0.2 and RSOTable(beta=0.2, gamma=0.05).gamma == 0.05
