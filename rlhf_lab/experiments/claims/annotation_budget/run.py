"""Question 10: given a budget of human labels, how should the whole training be designed?

The lecture ends with this question ("Future Direction"). On a finite set of responses, parts of it can be computed: the
regret that N labels leave (`exact.label_price`), the pairs whose labels lower the regret most, and how close a policy
comes that does not know the rewards. On a language model six strategies are compared at equal cost (`run_text.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rlhf_lab import bradley_terry, exact, label_budget
from rlhf_lab.algorithms import label_rounds
from rlhf_lab.experiments.claims.annotation_budget.report import decide, figure
from rlhf_lab.experiments.claims.annotation_budget.run_text import STRATEGIES, BudgetTracker, Prices
from rlhf_lab.experiments.claims.annotation_budget.settings import LIMITS, RULE, SHARES, AnnotationBudget
from rlhf_lab.experiments.runner import BestConfig, Experiment, Job
from rlhf_lab.experiments.scales import set_up
from rlhf_lab.experiments.setup_text import TextSetup
from rlhf_lab.experiments.statistics import bootstrap, bootstrap_median, mean_interval
from rlhf_lab.randomness import Stream
from rlhf_lab.response_tree import ResponseTree
from rlhf_lab.training import seeded
from rlhf_lab.worlds import token_tree

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]

# --- jobs ------------------------------------------------------------------------------------------------------


def jobs(settings: AnnotationBudget) -> list[Job]:
    """Return a job for each part and seed; on a language model one for each strategy and seed."""
    parts = PARTS if settings.exact else ("none", *STRATEGIES)
    return [{"seed": seed, "part": part} for seed in range(settings.seeds) for part in parts]


def run(settings: AnnotationBudget, job: Job, best_config: BestConfig) -> list[Row]:
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
    return world, _unigrams(many[0].tree.responses.ids).expand(len(many), -1, -1)


def _unigrams(ids: Tensor) -> Tensor:
    """Return the token at each position as one-hot features, (K, L · (V − 1))."""
    number = int(ids.max()) + 1
    return torch.nn.functional.one_hot(ids, number)[..., 1:].double().flatten(1)


def _bigrams(ids: Tensor) -> Tensor:
    """Return the token features and the count of each bigram, (K, …). The tree's reward is linear in them."""
    number = int(ids.max()) + 1
    pairs = torch.nn.functional.one_hot(ids[:, :-1] * number + ids[:, 1:], number**2).sum(1).double()
    return torch.cat([_unigrams(ids), pairs], -1)


def _limit(settings: AnnotationBudget, seed: int) -> list[Row]:
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


def _sources(settings: AnnotationBudget, seed: int) -> list[Row]:
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
                row = {"pairs": pairs, "labels": n, "place": place, "ratio": ratio}
                rows.append(row if limit is None else row | {"in_limit": limit})
    return rows


def _split(settings: AnnotationBudget, seed: int) -> list[Row]:
    """Divide the budget between demonstrations and labels, for several prices of a demonstration."""
    world, _ = _world(settings, seed)
    demo = exact.optimal_policy(world.log_ref, world.reward, settings.demo_beta)
    rows: list[Row] = []
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
                log_regret = (
                    label_budget.purchase_regret(world, what, max(settings.runs // 2, 2), generator).mean(0).log()
                )
                row = {"pairs": way, "demo_price": ratio, "share": share, "log_regret": log_regret.mean().item()}
                rows.append(row | ({"in_limit": limit.log().mean().item()} if way == "sft" else {}))
    return rows


def _learners(settings: AnnotationBudget, seed: int) -> list[Row]:
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
            known_form = _bigrams(ResponseTree(settings.tokens, 3).responses.ids).expand(len(many.log_ref), -1, -1)
            learned = label_budget.fit_linear_reward(known_form, state.wins)
            found["structured-reward"] = exact.optimal_policy(many.log_ref, learned, many.beta)
        for key, log_policy in found.items():
            regret = exact.regret(log_policy, many.log_ref, many.reward, many.beta).mean().item()
            rows.append({"learner": key, "labels": state.labels, "regret": regret, "floor": floor})
    return rows


def _rounds(settings: AnnotationBudget, seed: int) -> list[Row]:
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


def d_optimal_design(reward: Tensor) -> Tensor:
    """Return the pair weights whose information about the rewards of a table has the maximum determinant.

    The multiplicative algorithm (Silvey, Titterington and Torsney 1978) stops when no pair's variance exceeds K − 1,
    its value at the optimum, by more than a thousandth (Kiefer and Wolfowitz 1960).

    Args:
        reward: (W, K), the true rewards.

    Returns:
        (W, K, K), symmetric, zero diagonal, summing to 1 over the last two axes.
    """
    gap = reward.unsqueeze(-1) - reward.unsqueeze(-2)
    information, size = gap.sigmoid() * (-gap).sigmoid(), reward.shape[-1]
    off_diagonal = ~torch.eye(size, dtype=torch.bool)
    mu = off_diagonal.to(reward.dtype).expand_as(information) / (size * (size - 1))
    for _ in range(20_000):
        edges = mu * information
        inverse = torch.linalg.inv(edges.sum(-1).diag_embed() - edges + edges.mean((-1, -2), keepdim=True))
        spread = inverse.diagonal(dim1=-2, dim2=-1)
        resistance = (spread.unsqueeze(-1) + spread.unsqueeze(-2) - inverse - inverse.mT).clamp(min=0)
        variance = information * resistance * off_diagonal / 2
        if variance.max() <= (size - 1) * (1 + 1e-3):
            break
        mu = mu * variance / (size - 1)
        mu = mu / mu.sum((-1, -2), keepdim=True)
    return mu


def _d_optimal(settings: AnnotationBudget, seed: int) -> list[Row]:
    """Compare the D-optimal design with the best design, both in the limit of many labels."""
    world, _ = _world(settings, seed)
    price = exact.label_price(world.log_ref, world.reward, world.beta, d_optimal_design(world.reward))
    ratios = (price / world.price("design")).tolist()
    return [{"pairs": "d-optimal", "place": place, "ratio": ratio} for place, ratio in enumerate(ratios)]


PARTS: dict[str, Callable[[AnnotationBudget, int], list[Row]]] = {
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


def _on_text(settings: AnnotationBudget, seed: int, key: str) -> Row:
    setup = _text_setup(settings, seed)
    prices = Prices(settings.price_demonstration, 1.0, settings.price_sample, settings.price_step)
    tracker = BudgetTracker(setup, prices, settings.money)
    policy = setup.reference if key == "none" else STRATEGIES[key].spend(tracker)
    found = setup.evaluate(policy)
    used = {"money": tracker.usage.money(prices), **vars(tracker.usage)}
    return {name: found[name] for name in ("reward", "kl", "objective")} | used


# --- summary -----------------------------------------------------------------------------------------------------


LEVEL = 1 - 0.05 / 3
"""Level of the intervals of regret over its limit and of the sources of pairs: three of them decide together."""


def _row(part: str, what: str, found: tuple[float, float, float], rows: int, **names: Any) -> Row:
    """A row of the summary: `what` names the number, `value` has it, and `rows` is how many values it summarises."""
    value, low, high = found
    return {"part": part, **names, "what": what, "value": value, "value_low": low, "value_high": high, "seeds": rows}


def summarise(settings: AnnotationBudget, runs: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each condition of each part, with its `value` and interval; `what` names the value."""
    import pandas as pd

    if not settings.exact:
        return pd.DataFrame(_text_summary(runs))
    parts = (_limit_summary, _sources_summary, _split_summary, _learners_summary, _rounds_summary, _d_optimal_summary)
    return pd.DataFrame([row for summary in parts for row in summary(settings, runs)])


def _text_summary(runs: pd.DataFrame) -> list[Row]:
    start = runs[runs["part"] == "random"].set_index("seed")["objective"]
    out = []
    for key, group in runs.groupby("part", sort=False):
        for what in ("objective", "reward", "kl", "labels"):
            out.append(_row(str(key), what, mean_interval(group[what].to_numpy()), len(group)))
        if key != "random":
            gain = (group.set_index("seed")["objective"] - start).to_numpy()
            out.append(_row(str(key), "gain", mean_interval(gain), len(group)))
    return out


def _limit_summary(settings: AnnotationBudget, runs: pd.DataFrame) -> list[Row]:
    groups = runs[runs["part"] == "limit"].groupby(["pairs", "labels"], sort=False)
    return [
        _row("limit", "limit_ratio", mean_interval(g["ratio"].to_numpy(), LEVEL), len(g), pairs=pairs, labels=n)
        for (pairs, n), g in groups
    ]


def _sources_summary(settings: AnnotationBudget, runs: pd.DataFrame) -> list[Row]:
    part, at = runs[runs["part"] == "sources"], ["seed", "place", "labels"]
    design, out = part[part["pairs"] == "design"].set_index(at)["ratio"], []
    for (pairs, n), group in part.groupby(["pairs", "labels"], sort=False):
        here = group.set_index(at)["ratio"]
        values = {"label_ratio": group["ratio"], "simulated_ratio": here / design.loc[here.index]}
        if n == settings.totals[-1] and group["in_limit"].notna().all():
            values["label_ratio_limit"] = group["in_limit"]
        for what, one in values.items():
            found = bootstrap_median(one.to_numpy(), level=LEVEL)
            out.append(_row("sources", what, found, len(group), pairs=pairs, labels=n))
    return out


def _split_summary(settings: AnnotationBudget, runs: pd.DataFrame) -> list[Row]:
    out = []
    for (pairs, price), group in runs[runs["part"] == "split"].groupby(["pairs", "demo_price"], sort=False):
        names = {"pairs": pairs, "demo_price": price}
        table = group.pivot(index="seed", columns="share", values="log_regret")
        for share in table.columns:
            found = _exp(mean_interval(table[share].to_numpy()))
            out.append(_row("split", "regret", found, len(table), **names, share=share))
        if pairs == "misjudged":
            continue
        tables = {"best_share": table}
        if group["in_limit"].notna().all():
            tables["best_share_limit"] = group.pivot(index="seed", columns="share", values="in_limit")
        for what, one in tables.items():
            best = bootstrap(one.to_numpy(), lambda t: SHARES[int(t.mean(0).argmin())])
            out.append(_row("split", what, best, len(one), **names))
    return out


def _exp(interval: tuple[float, float, float]) -> tuple[float, float, float]:
    mean, low, high = np.exp(interval)
    return mean, low, high


def _learners_summary(settings: AnnotationBudget, runs: pd.DataFrame) -> list[Row]:
    part = runs[runs["part"] == "learners"]
    out = [
        _row("learners", "regret", mean_interval(g["regret"].to_numpy()), len(g), learner=learner, labels=n)
        for (learner, n), g in part.groupby(["learner", "labels"], sort=False)
    ]
    part = part[part["labels"] == settings.totals[-1]]
    last = part.pivot(index="seed", columns="learner", values="regret")
    floor = part[part["learner"] == "limited-dpo"]["floor"].to_numpy()
    gap = (last["limited-dpo"] - last["limited-reward"]).to_numpy()
    out += [
        _row("learners", "best_of_class", mean_interval(floor), len(floor)),
        _row("learners", "dpo_minus_reward_model", mean_interval(gap), len(gap), labels=settings.totals[-1]),
    ]
    if settings.scale == "tree":
        factor = _exp(mean_interval(np.log((last["full"] / last["structured-reward"]).to_numpy())))
        out.append(_row("learners", "structured_factor", factor, len(last), labels=settings.totals[-1]))
    return out


def _rounds_summary(settings: AnnotationBudget, runs: pd.DataFrame) -> list[Row]:
    out = []
    for (pairs, number), group in runs[runs["part"] == "rounds"].groupby(["pairs", "rounds"], sort=False):
        found, labels = bootstrap_median(group["ratio"].to_numpy()), int(group["labels"].iloc[0])
        out.append(_row("rounds", "label_ratio", found, len(group), pairs=pairs, rounds=number, labels=labels))
    return out


def _d_optimal_summary(settings: AnnotationBudget, runs: pd.DataFrame) -> list[Row]:
    ratios = runs[runs["part"] == "d-optimal"]["ratio"].to_numpy()
    return [_row("d-optimal", "label_ratio", bootstrap_median(ratios, level=LEVEL), len(ratios), pairs="d-optimal")]


# --- experiment --------------------------------------------------------------------------------------------------


EXPERIMENT = Experiment(
    number=10,
    name="annotation-budget",
    title="Given a budget of human labels, the whole training can be designed",
    rule=RULE,
    rule_commit="a91ec0ee26f5",
    settings=AnnotationBudget,
    scales=("bandit", "tree", "small"),
    jobs=jobs,
    run=run,
    summarise=summarise,
    decide=decide,
    figure=figure,
    interval="means: Student-t over seeds; medians and best shares: bootstrap over worlds; 95%, and 98.3% for regret "
    "over its limit and for the sources of pairs",
)
