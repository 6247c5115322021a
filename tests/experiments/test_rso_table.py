"""RSO's Table 1 as an experiment: quick runs on each scale, exact win rates, its rule's outcomes."""

import dataclasses
import math

import pandas as pd
import pytest
import torch

from rlhf_lab import exact
from rlhf_lab.errors import LabError
from rlhf_lab.experiments import rso_common, rso_report
from rlhf_lab.experiments.claims.rso_table.expected_fit import expected_fit
from rlhf_lab.experiments.claims.rso_table.run import EXPERIMENT, label_accuracy, pairs_of, setup_of
from rlhf_lab.experiments.claims.rso_table.settings import RowCondition, RSOTable
from rlhf_lab.experiments.published_results import RSO_TABLE_1, RSO_TABLE_2
from rlhf_lab.experiments.runner import experiment_run, save
from rlhf_lab.intervals import Interval
from rlhf_lab.randomness import Stream
from rlhf_lab.worlds import bandit as bandit_world
from rlhf_lab.worlds import token_tree

ABOVE, BELOW, OPEN = Interval(1, 0.5, 1.5), Interval(-1, -1.5, -0.5), Interval(0.1, -1, 1)


@pytest.fixture(scope="module")
def bandit(tmp_path_factory):
    out = tmp_path_factory.mktemp("rso-table")
    settings = RSOTable(scale="bandit", quick=True, out=out, progress=False)
    found = experiment_run(EXPERIMENT, settings)
    save(EXPERIMENT, found, out)
    return found


def in_cell(row: str, ranks="hard", reward_model="many", length="short", gamma=0.05) -> RowCondition:
    return RowCondition(row, rso_common.Cell(gamma, ranks, reward_model, length))


def test_the_whole_table_is_run_in_the_paper_s_cell_and_sigmoid_norm_in_all_sixteen(bandit):
    """Eleven rows and π_ref; 16 cells of two sources; direct by γ and length, RAFT by reward model and length."""
    assert (bandit.runs.groupby("condition").size() == 2).all()
    runs = bandit.runs[bandit.runs["seed"] == 0]
    assert len(bandit.settings.design) == 16 and len(runs) == 12 + 15 * 2 + 3 + 3
    paper = runs[
        runs["condition"].isin([one.key for one in bandit.settings.conditions if one.cell == bandit.settings.design[0]])
    ]
    assert set(paper["row"]) == {"reference", "raft", "rest"} | {
        f"{loss} {source}" for loss in rso_common.LOSSES for source in rso_common.SOURCES
    }
    assert bandit.settings.design[0].name(bandit.settings.paper_gamma) == "paper"


def test_on_text_each_other_cell_changes_one_setting():
    settings = RSOTable(scale="small", quick=True)
    names = [cell.name(settings.paper_gamma) for cell in settings.design]
    assert sorted(names) == ["equal", "few", "long", "paper", "sampled"] and names[0] == "paper"
    assert (settings.design[0].gamma, settings.temperature, settings.top_k) == (0.05, 0.7, 40)


def test_all_sources_have_as_many_pairs_of_different_responses():
    settings = RSOTable(scale="bandit", quick=True, labels=300, pairs=300, prompts=300, progress=False)
    for source in rso_common.SOURCES:
        one = in_cell(f"sigmoid-norm {source}")
        pairs = pairs_of(setup_of(settings, "bandit", 0, one), settings, one)
        assert len(pairs) == 300 and (pairs.responses.ids[:, 0] != pairs.responses.ids[:, 1]).any(-1).all()


def test_both_reward_models_score_the_same_candidates():
    settings = RSOTable(scale="bandit", quick=True, progress=False)
    many, few = (setup_of(settings, "bandit", 0, in_cell("raft", reward_model=size)) for size in ("many", "few"))
    assert few.responses.ids is many.responses.ids and many.with_labels(settings.few_labels) is few
    assert not torch.allclose(few.scores, many.scores)
    again = many.setup.fit_reward_model(many.setup.pairs[: settings.few_labels], Stream.REWARD_MODEL)
    world = many.setup.world
    assert torch.allclose(few.learned, again(world.prompts, world.responses).double())


@pytest.mark.parametrize("made", [bandit_world.random(1, 4, 0), token_tree.random(2, 2, 1, 0)], ids=["bandit", "tree"])
def test_the_expected_fit_converges_to_the_closed_form_for_pairs_of_any_source(made):
    """π_ref exp(r/γ)/Z."""
    log_ref, reward = made.log_ref(), made.rewards()
    limit = exact.optimal_policy(log_ref, reward, 0.5)
    for source in (log_ref, limit):
        found = expected_fit(made, source, reward, 0.5, "sampled", 400, 0.2)
        assert torch.allclose(found, limit, atol=1e-3)


def test_the_first_step_of_an_expected_fit_moves_every_logit_by_the_rate_for_any_gamma():
    made = bandit_world.random(1, 4, 0)
    steps = [expected_fit(made, made.log_ref(), made.rewards(), gamma, "hard", 1, 0.1) for gamma in (0.05, 0.5)]
    assert torch.allclose(*steps, atol=1e-5)
    moved = steps[0] - made.log_ref()
    assert (moved.max() - moved.min()).item() == pytest.approx(0.2, abs=1e-4)


def test_the_reference_wins_half_against_itself_and_pays_nothing(bandit):
    rows = bandit.runs[bandit.runs["row"] == "reference"]
    assert rows[["proxy_wins", "gold_wins", "judge_wins"]].to_numpy() == pytest.approx(0.5)
    assert rows["kl"].to_numpy() == pytest.approx(0, abs=1e-12)


def test_regret_is_beta_times_the_kl_to_the_optimum(bandit):
    assert bandit.runs["regret"].to_numpy() == pytest.approx(0.5 * bandit.runs["kl_to_optimal"].to_numpy())
    assert (bandit.runs["regret"] >= 0).all()


def test_the_files_are_there_and_no_number_or_panel_is_without_a_value_or_title(bandit):
    names = {path.name for path in bandit.settings.out.iterdir()}
    assert names >= {"runs.csv", "summary.csv", "result.json", "figure.png"}
    means = [one.mean if isinstance(one, Interval) else one for one in bandit.verdict.numbers.values()]
    assert all(math.isfinite(one) for one in means)
    drawing = EXPERIMENT.figure(bandit.settings, bandit.summary, bandit.runs)
    assert all(ax.get_xlabel() and ax.get_title(loc="left") for ax in drawing.axes)


def test_the_limits_are_those_of_the_condition_s_gamma_and_reward_model(bandit):
    """A smaller γ goes further; a perfect reward model would have the best γ at β."""
    table = bandit.summary.set_index("condition")["limit_kl"]
    rso = "sigmoid-norm rso-sample-rank"
    assert table[in_cell(rso).key] > table[in_cell(rso, gamma=0.5).key]
    assert table[in_cell(rso).key] == table[in_cell(rso, "sampled", length="long").key]
    assert (bandit.runs["best_gamma"] > 0).all()
    expected = bandit.summary.set_index("condition")["expected_kl"]
    cells = [
        in_cell(f"sigmoid-norm {s}", "sampled", length=n).key for s in rso_common.SOURCES[1:] for n in ("short", "long")
    ]
    assert set(expected[expected.notna()].index) == set(cells) and (expected[cells] > 0).all()


@pytest.mark.slow
def test_the_tree_runs_too():
    settings = RSOTable(scale="tree", quick=True, seeds=1, candidates=8, progress=False)
    found = experiment_run(EXPERIMENT, settings)
    assert (found.runs["regret"] > 0).all() and found.verdict.outcome == "inconclusive"


@pytest.mark.slow
def test_a_language_model_runs_and_is_set_beside_the_paper():
    settings = RSOTable(scale="small", quick=True, candidates=8, test_prompts=2, progress=False)
    found = experiment_run(EXPERIMENT, settings)
    table = found.summary.set_index("condition")
    assert table.loc[in_cell("hinge direct").key, "paper_judge_wins"] == pytest.approx(0.6054)
    assert math.isnan(table.loc["reference", "paper_judge_wins"])
    assert found.runs["judge_wins"].between(0, 1).all()
    paired = found.runs["source"].isin(rso_common.SOURCES)
    assert found.runs.loc[paired, "right"].between(0, 1).all() and found.runs.loc[~paired, "right"].isna().all()
    assert (found.runs["reach"] > 0).all()
    assert -1 <= found.verdict.numbers["rank_correlation"] <= 1


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
    shared.__dict__["scores"] = scores
    entropy = torch.distributions.Categorical(logits=scores / 0.5).entropy().mean().item()
    assert shared.reach(0.5) == pytest.approx(math.log(4) - entropy)
    assert shared.reach(1e-4) == pytest.approx(math.log(4))
    shared.__dict__["scores"] = torch.zeros(3, 4, dtype=torch.float64)
    assert shared.reach(0.5) == pytest.approx(0)


def test_hard_labels_name_the_larger_score_and_drawn_ones_as_often_as_bradley_terry_says():
    """A drawn label is right with probability σ(|gap|): the share lies within four standard errors of the mean."""
    settings = RSOTable(scale="bandit", quick=True, prompts=500, progress=False)
    shared = rso_common.rso_setup(settings, "bandit", 0)

    def gaps(labels):
        pairs = shared.pairs("sft-sample-rank", 0.5, 8, labels=labels)
        with torch.no_grad():
            chosen, rejected = shared.reward_model(pairs.prompts, pairs.responses).double().unbind(-1)
        return chosen - rejected

    assert (gaps("hard") > 0).all()
    drawn = gaps("sampled")
    chance = drawn.abs().sigmoid()
    error = (chance * (1 - chance)).sum().sqrt().item() / len(drawn)
    assert abs((drawn > 0).double().mean().item() - chance.mean().item()) < 4 * error


def test_label_accuracy_is_by_the_gold_reward():
    """Bradley–Terry labels of `direct` by r* are right with probability σ(|gap|); rows without pairs have none."""
    settings = RSOTable(scale="bandit", quick=True, labels=2000, pairs=2000, progress=False)
    one = in_cell("sigmoid-norm direct")
    shared = setup_of(settings, "bandit", 0, one)
    pairs = shared.setup.pairs
    gap = shared.setup.gold(pairs.prompts, pairs.responses).diff(dim=-1).abs()
    assert label_accuracy(shared, settings, one) == pytest.approx(gap.sigmoid().mean().item(), abs=0.05)
    assert math.isnan(label_accuracy(shared, settings, in_cell("raft")))


def _made(values, task="bandit", scale="bandit"):
    """Runs with these wins by the judge in the paper's cell, the same for three seeds up to a thousandth."""
    rows = []
    settings = RSOTable(scale=scale, quick=True)
    for seed in range(3):
        for number, one in enumerate(settings.conditions):
            wins = values.get(one.row, 0.5) if one.cell == settings.design[0] else 0.5
            row = {
                "seed": seed,
                "task": task,
                "condition": one.key,
                "row": one.row,
                "loss": one.loss,
                "source": one.source,
            }
            row |= dataclasses.asdict(one.cell)
            row |= dict.fromkeys(("proxy_wins", "gold_wins", "objective", "kl", "regret", "right", "reach"), 0.0)
            row |= dict.fromkeys(("limit_kl", "limit_judge_wins", "limit_objective", "best_gamma", "expected_kl"), 0.0)
            rows.append({**row, "judge_wins": wins + 0.0001 * (seed - 1) * (1 + number)})
    return pd.DataFrame(rows)


def _verdict(settings, runs):
    return EXPERIMENT.decide(settings, EXPERIMENT.summarise(settings, runs), runs)


def _ordered(rso, sft, direct, raft=0.4):
    names = {"rso-sample-rank": rso, "sft-sample-rank": sft, "direct": direct}
    return {f"sigmoid-norm {source}": wins for source, wins in names.items()} | {"raft": raft}


@pytest.mark.parametrize(
    ("values", "outcome"),
    [
        (_ordered(0.8, 0.7, 0.6), "supported"),
        (_ordered(0.6, 0.7, 0.8, raft=0.9), "not supported"),
        (_ordered(0.8, 0.7, 0.75), "partly supported"),
        (_ordered(0.8, 0.7, 0.6, raft=0.9), "partly supported"),
        (_ordered(0.6, 0.7, 0.5), "partly supported"),
        (_ordered(0.7, 0.7, 0.5, raft=0.2), "inconclusive"),
    ],
)
def test_the_rule_on_made_up_tables(values, outcome):
    settings = RSOTable(scale="bandit", quick=True)
    assert _verdict(settings, _made(values)).outcome == outcome


def test_tasks_that_differ_make_a_condition():
    settings = RSOTable(scale="small", quick=True, tasks=("summaries", "dialogue"))
    runs = pd.concat(
        [_made(_ordered(0.8, 0.7, 0.6), "summaries", "small"), _made(_ordered(0.6, 0.7, 0.8, 0.9), "dialogue", "small")]
    )
    verdict = _verdict(settings, runs)
    assert verdict.outcome == "partly supported"
    assert verdict.numbers["rso_over_sft_summaries"].mean == pytest.approx(0.1, abs=0.01)
    assert verdict.numbers["rso_over_sft_dialogue"].mean == pytest.approx(-0.1, abs=0.01)


@pytest.mark.parametrize(
    ("intervals", "by_main", "by_majority"),
    [
        ([ABOVE, ABOVE, OPEN], "supported", "supported"),
        ([BELOW, BELOW, OPEN], "not supported", "not supported"),
        ([ABOVE, BELOW, OPEN], "partly supported", "partly supported"),
        ([BELOW, ABOVE, OPEN], "partly supported", "partly supported"),
        ([ABOVE, OPEN, OPEN], "supported", "inconclusive"),
        ([OPEN, ABOVE, ABOVE], "inconclusive", "supported"),
        ([OPEN, OPEN, OPEN], "inconclusive", "inconclusive"),
    ],
)
def test_both_rules_treat_wins_and_losses_alike(intervals, by_main, by_majority):
    """With all signs turned, supported and not supported change places."""
    turned = [Interval(-one.mean, -one.high, -one.low) for one in intervals]
    opposite = {"supported": "not supported", "not supported": "supported"}
    for decide, outcome in ((rso_report.decide_by_main, by_main), (rso_report.decide_by_majority, by_majority)):
        assert decide(intervals) == outcome and decide(turned) == opposite.get(outcome, outcome)


def test_the_papers_rows_are_the_experiments_rows():
    settings = RSOTable()
    paper = {one.row for one in settings.conditions if one.cell == settings.design[0]} - {"reference"}
    assert all(set(rows) == paper for rows in RSO_TABLE_1.values())
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
        ({"pairs": 5000}, "pairs"),
        ({"paper_gamma": 0.5}, "paper_gamma"),
    ],
)
def test_bad_settings_are_refused(changes, part):
    with pytest.raises(LabError, match=part):
        RSOTable(**changes)


def test_settings_are_settled_by_scale():
    kept = {scale: dataclasses.asdict(RSOTable(scale=scale)) for scale in ("bandit", "tree", "small")}
    assert all(0 not in (one["labels"], one["steps"], one["seeds"]) for one in kept.values())
    assert all(one["paper_gamma"] == 0.05 and one["few_labels"] < one["labels"] for one in kept.values())
    assert kept["small"]["tasks"] == ("summaries",)
