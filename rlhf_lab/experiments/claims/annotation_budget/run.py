"""Question 10: given a budget of human labels, how should the whole training be designed?

The lecture ends with this question ("Future Direction"). On a finite set of responses, parts of it can be computed: the
regret that N labels leave (`exact.label_price`), the pairs whose labels lower the regret most, and how close a policy
comes that does not know the rewards. On a language model six strategies are compared at equal cost (`run_text.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rlhf_lab import bradley_terry, exact, label_budget
from rlhf_lab.algorithms import label_rounds
from rlhf_lab.experiments.claims.annotation_budget.report import decide, figure
from rlhf_lab.experiments.claims.annotation_budget.run_text import STRATEGIES, BudgetTracker
from rlhf_lab.experiments.claims.annotation_budget.settings import LIMITS, RULE, SHARES, AnnotationBudget
from rlhf_lab.experiments.runner import BestConfig, Experiment, JobSpec
from rlhf_lab.experiments.scales import set_up
from rlhf_lab.experiments.setup_text import TextSetup
from rlhf_lab.experiments.statistics import bootstrap, bootstrap_median, exp_of, mean_of
from rlhf_lab.intervals import Interval
from rlhf_lab.randomness import Stream
from rlhf_lab.response_tree import ResponseTree
from rlhf_lab.training import seeded
from rlhf_lab.worlds import token_tree

ResultRow = dict[str, Any]


def jobs(settings: AnnotationBudget) -> list[JobSpec]:
    """Return a job for each part and seed; on a language model one for each strategy and seed."""
    parts = PARTS if settings.exact else ("none", *STRATEGIES)
    return [{"seed": seed, "part": part} for seed in settings.seed_range for part in parts]


def run(settings: AnnotationBudget, job: JobSpec, best_config: BestConfig) -> list[ResultRow]:
    """Run one part of one seed."""
    if settings.exact:
        return PARTS[job["part"]](settings, job["seed"])
    return [_on_text(settings, job["seed"], job["part"])]


@lru_cache(maxsize=2)
def _world(settings: AnnotationBudget, seed: int, limit: bool = False) -> tuple[label_budget.FiniteWorlds, Tensor]:
    """Return the worlds of a seed, and the features of a policy class that excludes π*, (W, K, d).

    The comparison with the limit has smaller worlds on the bandit.
    """
    if settings.scale == "bandit":
        beta = 0.5 if limit else settings.beta
        world = label_budget.random_worlds(settings.worlds, 6 if limit else settings.arms, beta, seed)
        generator = seeded(seed, Stream.BUDGET_WORLD_FEATURES)
        features = torch.randn(*world.log_ref.shape, 3, dtype=torch.float64, generator=generator)
        return world, features
    many = [token_tree.random(settings.tokens, 3, 1, 1000 * seed + i) for i in range(settings.worlds)]
    world = label_budget.FiniteWorlds(
        torch.cat([one.log_ref() for one in many]), torch.cat([one.rewards() for one in many]), settings.beta
    )
    return world, _unigrams(many[0].tree).expand(len(many), -1, -1)


def _unigrams(tree: ResponseTree) -> Tensor:
    """Return the token at each position as features, (K, L · (V − 1)), without those of the first token."""
    return token_tree.unigrams(tree).reshape(-1, tree.depth, tree.vocab_size)[..., 1:].flatten(1)


def _bigrams(tree: ResponseTree) -> Tensor:
    """Return the token features and the count of each bigram, (K, …). The tree's reward is linear in them."""
    return torch.cat([_unigrams(tree), token_tree.bigrams(tree)], -1)


def _limit(settings: AnnotationBudget, seed: int) -> list[ResultRow]:
    """Compare N · regret with its limit, for growing N."""
    world, _ = _world(settings, seed, limit=True)
    rows = []
    for i, pairs in enumerate(LIMITS):
        lost = label_budget.simulate(
            world, pairs, settings.limit_totals, settings.limit_runs, seeded(seed, Stream.BUDGET_LIMIT, i)
        )
        price = world.price(pairs)
        for n, regret in zip(settings.limit_totals, lost.mean(0), strict=True):
            rows.append({"pairs": pairs, "labels": n, "ratio": (n * regret / price).mean().item()})
    return rows


def _sources(settings: AnnotationBudget, seed: int) -> list[ResultRow]:
    """Compare the sources of pairs: how many labels each needs, relative to the best design."""
    world, _ = _world(settings, seed)
    best = world.price("design")
    rows = []
    for i, pairs in enumerate(label_budget.PAIR_SOURCES):
        lost = label_budget.simulate(
            world, pairs, settings.totals, settings.runs, seeded(seed, Stream.BUDGET_SOURCES, i)
        ).mean(0)
        learns = pairs in label_budget.LIMITING_SOURCE
        limits = [None] * len(best) if learns else (world.price(pairs) / best).tolist()
        for n, regret in zip(settings.totals, lost, strict=True):
            for place, (ratio, limit) in enumerate(zip((n * regret / best).tolist(), limits, strict=True)):
                rows.append({"pairs": pairs, "labels": n, "place": place, "ratio": ratio, "in_limit": limit})
    return rows


def _split(settings: AnnotationBudget, seed: int) -> list[ResultRow]:
    """Divide the budget between demonstrations and labels, for several prices of a demonstration."""
    world, _ = _world(settings, seed)
    demo = exact.optimal_policy(world.log_ref, world.reward, settings.demo_beta)
    rows: list[ResultRow] = []
    for ratio in settings.ratios:
        for share in SHARES:
            number = int(share * settings.budget / ratio + 1e-9)
            labels = 0 if share == 1 else round(settings.budget - number * ratio)
            mu = bradley_terry.pair_distribution(demo if number else world.log_ref)
            limit = label_budget.regret_limit(
                world, torch.tensor(float(number)), torch.tensor(float(labels)), settings.demo_beta, mu
            )
            # For demonstrations alone also: the fit assumes half the β_demo that the demonstrator has.
            for way in ("sft", "active", "misjudged") if share == 1 else ("sft", "active"):
                what = label_budget.Purchase(
                    number, labels,
                    rounds=min(4, max(labels, 1)) if way == "active" else 1,
                    pairs="active" if way == "active" else "sft",
                    demo_beta=settings.demo_beta,
                    assumed=settings.demo_beta / 2 if way == "misjudged" else None,
                )  # fmt: skip
                generator = seeded(seed, Stream.BUDGET_SPLIT, round(10 * share))
                regret = label_budget.purchase_regret(world, what, max(settings.runs // 2, 2), generator).mean(0)
                rows.append(
                    {"pairs": way, "demo_price": ratio, "share": share, "log_regret": regret.log().mean().item(),
                     "in_limit": limit.log().mean().item() if way == "sft" else None}
                )  # fmt: skip
    return rows


def _learners(settings: AnnotationBudget, seed: int) -> list[ResultRow]:
    """Compare DPO with a reward model, in a policy class that excludes π*."""
    world, features = _world(settings, seed)
    runs = settings.runs
    many, wide = world.repeat(runs), features.repeat(runs, 1, 1)
    size = world.log_ref.shape[-1]
    known = torch.zeros(len(many.log_ref), size, size, dtype=torch.float64)
    label = label_rounds.bradley_terry_labels(many.reward)
    choose = label_rounds.choose_by_design(bradley_terry.pair_distribution(many.log_ref))
    totals = settings.totals[:: 2 if settings.doublings % 2 == 0 else 1]
    states = label_rounds.collect_labels(choose, label, known, totals, 3.0, seeded(seed, Stream.BUDGET_LEARNERS))
    best = label_budget.fit_class_to_reward(world.log_ref, features, world.reward, world.beta)
    floor = exact.regret(best, world.log_ref, world.reward, world.beta).mean().item()
    rows = []
    for state in states:
        found = {
            "full": exact.optimal_policy(many.log_ref, state.rewards, many.beta),
            "limited-dpo": label_budget.fit_class_to_labels(many.log_ref, wide, state.wins, many.beta),
            "limited-reward": label_budget.fit_class_to_reward(many.log_ref, wide, state.rewards, many.beta),
        }
        if settings.scale == "tree":
            known_form = _bigrams(ResponseTree(settings.tokens, 3)).expand(len(many.log_ref), -1, -1)
            learned = label_budget.fit_linear_reward(known_form, state.wins)
            found["structured-reward"] = exact.optimal_policy(many.log_ref, learned, many.beta)
        for key, log_policy in found.items():
            regret = exact.regret(log_policy, many.log_ref, many.reward, many.beta).mean().item()
            rows.append({"learner": key, "labels": state.labels, "regret": regret, "floor": floor})
    return rows


def _rounds(settings: AnnotationBudget, seed: int) -> list[ResultRow]:
    """Collect the same number of labels in more and more rounds."""
    world, _ = _world(settings, seed)
    best, labels = world.price("design"), settings.round_labels
    rows = []
    for rounds in settings.rounds:
        for i, pairs in enumerate(("active", "online")):
            totals = label_rounds.round_totals(world.log_ref.shape[-1], labels, rounds)
            lost = label_budget.simulate(
                world, pairs, totals, max(settings.runs // 2, 2), seeded(seed, Stream.BUDGET_ROUNDS, rounds, i)
            )
            ratio = (labels * lost[:, -1].mean(0) / best).mean().item()
            rows.append({"pairs": pairs, "rounds": rounds, "labels": labels, "ratio": ratio})
    return rows


def _d_optimal(settings: AnnotationBudget, seed: int) -> list[ResultRow]:
    """Compare the D-optimal design with the best design, both in the limit of many labels."""
    world, _ = _world(settings, seed)
    price = exact.label_price(world.log_ref, world.reward, world.beta, exact.d_optimal_pair_design(world.reward))
    ratios = (price / world.price("design")).tolist()
    return [{"pairs": "d-optimal", "place": place, "ratio": ratio} for place, ratio in enumerate(ratios)]


PARTS: dict[str, Callable[[AnnotationBudget, int], list[ResultRow]]] = {
    "limit": _limit,
    "sources": _sources,
    "split": _split,
    "learners": _learners,
    "rounds": _rounds,
    "d-optimal": _d_optimal,
}


@lru_cache(maxsize=1)
def _text_setup(settings: AnnotationBudget, seed: int) -> TextSetup:
    setup = set_up(
        settings.scale, seed, settings.world, prompts=8 if settings.quick else 64, beta=settings.beta,
        steps=settings.steps, reward_steps=max(settings.steps * 5 // 4, 2), test_prompts=settings.test_prompts,
        test_samples=2 if settings.quick else 6,
    )  # fmt: skip
    assert isinstance(setup, TextSetup)
    return setup


def _on_text(settings: AnnotationBudget, seed: int, key: str) -> ResultRow:
    setup = _text_setup(settings, seed)
    prices = {
        "demonstrations": settings.price_demonstration, "labels": 1.0, "samples": settings.price_sample,
        "steps": settings.price_step,
    }  # fmt: skip
    tracker = BudgetTracker(setup, prices, settings.money)
    policy = setup.reference if key == "none" else STRATEGIES[key].spend(tracker)
    found = setup.evaluate(policy)
    used = {"money": tracker.spent, **{item: tracker.used[item] for item in prices}}
    return {name: found[name] for name in ("reward", "kl", "objective")} | used


LEVEL = 1 - 0.05 / 3
"""Level of the intervals of regret over its limit and of the sources of pairs: three of them decide together."""


def _rows(
    runs: pd.DataFrame,
    what: str,
    value: Any,
    by: Sequence[str] = (),
    interval: Callable[[np.ndarray], Interval] = mean_of,
) -> list[ResultRow]:
    """Return a row of the summary for each group of runs.

    Args:
        runs: the runs of a part.
        what: name of the number.
        value: the column that it summarises, or a list of columns.
        by: the columns that define a group.
        interval: of the values of a group, (n,) or (n, columns).
    """
    out: list[ResultRow] = []
    for key, group in runs.groupby(["part", *by], sort=False):
        names = dict(zip(["part", *by], key, strict=True))
        found = interval(group[value].to_numpy())
        numbers = {"value": found.mean, "value_low": found.low, "value_high": found.high, "seeds": len(group)}
        out.append({**names, "what": what, **numbers})
    return out


def _geometric_mean(logs: np.ndarray) -> Interval:
    return exp_of(mean_of(logs))


def _best_share(log_regret: np.ndarray) -> Interval:
    """The share with the lowest mean regret; `log_regret` is (seeds, shares)."""
    return bootstrap(log_regret, lambda rows: SHARES[int(rows.mean(0).argmin())])


def summarise(settings: AnnotationBudget, runs: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each condition of each part, with its `value` and interval; `what` names the value."""
    if not settings.exact:
        start = runs[runs["part"] == "random"].set_index("seed")["objective"]
        gains = runs.assign(gain=runs["objective"] - runs["seed"].map(start))[runs["part"] != "random"]
        metrics = ("objective", "reward", "kl", "labels")
        rows = [row for metric in metrics for row in _rows(runs, metric, metric)]
        return pd.DataFrame(rows + _rows(gains, "gain", "gain"))
    part = {str(name): rows for name, rows in runs.groupby("part")}
    median = partial(bootstrap_median, level=LEVEL)
    rows = _rows(part["limit"], "limit_ratio", "ratio", ["pairs", "labels"], partial(mean_of, level=LEVEL))
    sources, at = part["sources"], ["seed", "place", "labels"]
    design = sources[sources["pairs"] == "design"].set_index(at)["ratio"].rename("design")
    sources = sources.join(design, on=at)
    sources = sources.assign(simulated=sources["ratio"] / sources["design"])
    in_limit = sources[sources["in_limit"].notna() & (sources["labels"] == settings.totals[-1])]
    rows += _rows(sources, "label_ratio", "ratio", ["pairs", "labels"], median)
    rows += _rows(sources, "simulated_ratio", "simulated", ["pairs", "labels"], median)
    rows += _rows(in_limit, "label_ratio_limit", "in_limit", ["pairs", "labels"], median)
    rows += _split_summary(part["split"])
    rows += _learners_summary(settings, part["learners"])
    rows += _rows(part["rounds"], "label_ratio", "ratio", ["pairs", "rounds", "labels"], bootstrap_median)
    rows += _rows(part["d-optimal"], "label_ratio", "ratio", ["pairs"], median)
    return pd.DataFrame(rows)


def _split_summary(split: pd.DataFrame) -> list[ResultRow]:
    """The regret of each split, and the share with the lowest regret, simulated and in the limit of many labels."""
    rows = _rows(split, "regret", "log_regret", ["pairs", "demo_price", "share"], _geometric_mean)
    index = ["part", "pairs", "demo_price", "seed"]
    for what, value, pairs in (
        ("best_share", "log_regret", ["sft", "active"]),
        ("best_share_limit", "in_limit", ["sft"]),
    ):
        by_share = split[split["pairs"].isin(pairs)].pivot(index=index, columns="share", values=value).reset_index()
        rows += _rows(by_share, what, [*SHARES], ["pairs", "demo_price"], _best_share)
    return rows


def _learners_summary(settings: AnnotationBudget, learners: pd.DataFrame) -> list[ResultRow]:
    """The regret of each learner, and at the largest number of labels the differences between learners."""
    rows = _rows(learners, "regret", "regret", ["learner", "labels"])
    last = learners[learners["labels"] == settings.totals[-1]]
    rows += _rows(last[last["learner"] == "limited-dpo"], "best_of_class", "floor")
    wide = last.pivot(index=["part", "labels", "seed"], columns="learner", values="regret").reset_index()
    wide["gap"] = wide["limited-dpo"] - wide["limited-reward"]
    rows += _rows(wide, "dpo_minus_reward_model", "gap", ["labels"])
    if settings.scale == "tree":
        wide["log_factor"] = np.log(wide["full"] / wide["structured-reward"])
        rows += _rows(wide, "structured_factor", "log_factor", ["labels"], _geometric_mean)
    return rows


EXPERIMENT = Experiment(
    number=10,
    name="annotation-budget",
    title="Given a budget of human labels, the whole training can be designed",
    rule=RULE,
    rule_commit="a91ec0ee26f5",
    settings=AnnotationBudget,
    jobs=jobs,
    run=run,
    summarise=summarise,
    decide=decide,
    figure=figure,
    interval="means: Student-t over seeds; medians and best shares: bootstrap over worlds; 95%, and 98.3% for regret "
    "over its limit and for the sources of pairs",
)
