"""Question 10: given a budget of human labels, how should the whole training be designed?

The lecture ends with the question ("Future Direction"). On a finite set of responses it has parts that can be
computed: what N labels leave of the regret (`exact.label_price`), which pairs make that least, and whether someone who
does not know the rewards can come near. On a language model the same strategies are compared at equal money.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rlhf_lab import bradley_terry, exact, label_budget
from rlhf_lab.algorithms import active
from rlhf_lab.experiments import runner
from rlhf_lab.experiments.claims.annotation_budget import run_text as budget_text
from rlhf_lab.experiments.claims.annotation_budget.report import LIMITS, WITHIN, figure, get, text, words
from rlhf_lab.experiments.claims.annotation_budget.settings import AnnotationBudget
from rlhf_lab.experiments.runner import EXACT_SCALES, BestConfig, Experiment, Job, Worded
from rlhf_lab.experiments.scales import set_up
from rlhf_lab.experiments.setup_text import TextSetup
from rlhf_lab.experiments.statistics import Interval, bootstrap, bootstrap_median, mean_interval
from rlhf_lab.randomness import Stream
from rlhf_lab.training import seeded

if TYPE_CHECKING:
    import pandas as pd


SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
"""Part of the money that goes to demonstrations."""


# --- jobs ------------------------------------------------------------------------------------------------------


def jobs(settings: AnnotationBudget) -> list[Job]:
    """Each part for each seed; on a language model each strategy for each seed."""
    if settings.scale in EXACT_SCALES:
        return [{"seed": seed, "part": part} for seed in range(settings.seeds) for part in PARTS]
    return [{"seed": seed, "part": key} for seed in range(settings.seeds) for key in ("none", *budget_text.STRATEGIES)]


def run(settings: AnnotationBudget, job: Job, best_config: BestConfig) -> list[dict[str, Any]]:
    """One part of one seed."""
    if settings.scale in EXACT_SCALES:
        return PARTS[job["part"]](settings, job["seed"])
    return [_on_text(settings, job["seed"], job["part"])]


@lru_cache(maxsize=2)
def _world(settings: AnnotationBudget, seed: int, limit: bool = False) -> tuple[label_budget.Finite, torch.Tensor]:
    """The seed's own worlds, and the features of a policy that cannot say everything, (W, K, d)."""
    if settings.scale == "bandit":
        beta = 0.5 if limit else settings.beta
        world = label_budget.random_worlds(settings.worlds, 6 if limit else settings.arms, beta, seed)
        generator = seeded(seed, Stream.BUDGET_WORLD_FEATURES)
        features = torch.randn(*world.log_ref.shape, 3, dtype=torch.float64, generator=generator)
        return world, features
    from rlhf_lab.worlds import token_tree

    many = [token_tree.random(settings.tokens, 3, 1, 1000 * seed + i) for i in range(settings.worlds)]
    world = label_budget.Finite(
        torch.cat([one.log_ref() for one in many]), torch.cat([one.rewards() for one in many]), settings.beta
    )
    return world, _places(many[0].tree.responses.ids).expand(len(many), -1, -1)


def _places(ids: torch.Tensor) -> torch.Tensor:
    """Which token stands at which place, (K, L · (V − 1)): all that an additive policy can tell apart."""
    number = int(ids.max()) + 1
    return torch.nn.functional.one_hot(ids, number)[..., 1:].double().flatten(1)


def _bigrams(ids: torch.Tensor) -> torch.Tensor:
    """The places, and how often each pair of neighbours occurs, (K, …): all that the tree's reward depends on."""
    number = int(ids.max()) + 1
    pairs = torch.nn.functional.one_hot(ids[:, :-1] * number + ids[:, 1:], number**2).sum(1).double()
    return torch.cat([_places(ids), pairs], -1)


def _limit(settings: AnnotationBudget, seed: int) -> list[dict[str, Any]]:
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


def _sources(settings: AnnotationBudget, seed: int) -> list[dict[str, Any]]:
    world, _ = _world(settings, seed)
    best = world.price("design")
    rows = []
    for i, pairs in enumerate(label_budget.PAIRS):
        lost = label_budget.simulate(
            world, pairs, settings.totals, settings.runs, seeded(seed, Stream.BUDGET_SOURCES, i)
        ).mean(0)
        exactly = (
            world.price(pairs) / best if pairs not in label_budget.IN_THE_LIMIT else torch.full_like(best, torch.nan)
        )
        for n, regret in zip(settings.totals, lost, strict=True):
            for place, (value, limit) in enumerate(zip((n * regret / best).tolist(), exactly.tolist(), strict=True)):
                row = {"pairs": pairs, "labels": n, "place": place, "ratio": value}
                rows.append(row | ({"in_limit": limit} if limit == limit else {}))
    return rows


def _split(settings: AnnotationBudget, seed: int) -> list[dict[str, Any]]:
    world, _ = _world(settings, seed)
    demo = exact.optimal_policy(world.log_ref, world.reward, settings.demo_beta)
    rows: list[dict[str, Any]] = []
    for ratio in settings.ratios:
        for share in SHARES:
            shown = int(share * settings.budget / ratio + 1e-9)
            labels = 0 if share == 1 else round(settings.budget - shown * ratio)
            bought, asked = torch.tensor(float(shown)), torch.tensor(float(labels))
            mu = bradley_terry.pair_distribution(demo if shown else world.log_ref)
            limit = label_budget.price_of_both(world, bought, asked, settings.demo_beta, mu)
            # Of demonstrations alone also: what if the demonstrator is half as careful as he is taken for?
            for way in ("sft", "active", "misjudged") if share == 1 else ("sft", "active"):
                what = label_budget.Purchase(
                    shown, labels,
                    rounds=min(4, max(labels, 1)) if way == "active" else 1,
                    pairs="active" if way == "active" else "sft",
                    demo_beta=settings.demo_beta,
                    assumed=settings.demo_beta / 2 if way == "misjudged" else None,
                )  # fmt: skip
                lost = label_budget.buy(
                    world, what, max(settings.runs // 2, 2), seeded(seed, Stream.BUDGET_SPLIT, round(10 * share))
                )
                row = {
                    "pairs": way,
                    "demo_price": ratio,
                    "share": share,
                    "log_regret": lost.mean(0).log().mean().item(),
                }
                rows.append(row | ({"in_limit": limit.log().mean().item()} if way == "sft" else {}))
    return rows


def _learners(settings: AnnotationBudget, seed: int) -> list[dict[str, Any]]:
    world, features = _world(settings, seed)
    runs = settings.runs
    many, wide = world.repeat(runs), features.repeat(runs, 1, 1)
    size = world.log_ref.shape[-1]
    known = torch.zeros(len(many.log_ref), size, size, dtype=torch.float64)
    label = active.bradley_terry_labels(many.reward)
    choose = active.choose_by_design(bradley_terry.pair_distribution(many.log_ref))
    totals = settings.totals[:: 2 if settings.doublings % 2 == 0 else 1]
    states = active.ask_in_rounds(choose, label, known, totals, 3.0, seeded(seed, Stream.BUDGET_LEARNERS))
    best = label_budget.limited_by_reward(world.log_ref, features, world.reward, world.beta)
    floor = exact.regret(best, world.log_ref, world.reward, world.beta).mean().item()
    rows = []
    for state in states:
        found = {
            "full": exact.optimal_policy(many.log_ref, state.rewards, many.beta),
            "limited-dpo": label_budget.limited_by_dpo(many.log_ref, wide, state.wins, many.beta),
            "limited-reward": label_budget.limited_by_reward(many.log_ref, wide, state.rewards, many.beta),
        }
        if settings.scale == "tree":
            from rlhf_lab.response_tree import ResponseTree

            known_form = _bigrams(ResponseTree(settings.tokens, 3).responses.ids).expand(len(many.log_ref), -1, -1)
            learned = label_budget.reward_in_features(known_form, state.wins)
            found["structured-reward"] = exact.optimal_policy(many.log_ref, learned, many.beta)
        for key, log_policy in found.items():
            regret = exact.regret(log_policy, many.log_ref, many.reward, many.beta).mean().item()
            rows.append({"learner": key, "labels": state.labels, "regret": regret, "floor": floor})
    return rows


def _rounds(settings: AnnotationBudget, seed: int) -> list[dict[str, Any]]:
    world, _ = _world(settings, seed)
    best, labels = world.price("design"), settings.totals[-3] if settings.doublings > 2 else settings.labels
    rows = []
    for rounds in settings.rounds:
        for i, pairs in enumerate(("active", "online")):
            totals = active.batches(world.log_ref.shape[-1], labels, rounds)
            lost = label_budget.simulate(
                world, pairs, totals, max(settings.runs // 2, 2), seeded(seed, Stream.BUDGET_ROUNDS, rounds, i)
            )
            ratio = (labels * lost[:, -1].mean(0) / best).mean().item()
            rows.append({"pairs": pairs, "rounds": rounds, "labels": labels, "ratio": ratio})
    return rows


PARTS: dict[str, Callable[[AnnotationBudget, int], list[dict[str, Any]]]] = {
    "limit": _limit,
    "sources": _sources,
    "split": _split,
    "learners": _learners,
    "rounds": _rounds,
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


def _on_text(settings: AnnotationBudget, seed: int, key: str) -> dict[str, Any]:
    setup = _text_setup(settings, seed)
    prices = budget_text.Prices(settings.price_demonstration, 1.0, settings.price_sample, settings.price_step)
    tracker = budget_text.BudgetTracker(setup, prices, settings.money)
    policy = setup.reference if key == "none" else budget_text.STRATEGIES[key][2](tracker)
    found = setup.evaluate(policy)
    used = {"money": tracker.usage.money(prices), **vars(tracker.usage)}
    return {name: found[name] for name in ("reward", "kl", "objective")} | used


# --- what it comes to --------------------------------------------------------------------------------------------


def summarise(settings: AnnotationBudget, rows: pd.DataFrame) -> pd.DataFrame:
    """One row a condition of each part: `value` with its interval; `what` says what the value is."""
    import pandas as pd

    out: list[dict[str, Any]] = []

    def add(part: str, what: str, found: Interval | tuple[float, float, float], seeds: int, **names: Any) -> None:
        value, low, high = found
        out.append({"part": part, **names, "what": what, "value": value, "value_low": low, "value_high": high,
                    "seeds": seeds})  # fmt: skip

    if settings.scale not in EXACT_SCALES:
        start = rows[rows["part"] == "random"].set_index("seed")["objective"]
        keys = [key for key in rows["part"].unique() if key != "random"]
        for key, group in rows.groupby("part", sort=False):
            for what in ("objective", "reward", "kl", "labels"):
                add(str(key), what, mean_interval(group[what].to_numpy()), len(group))
            if key in keys:
                more = (group.set_index("seed")["objective"] - start).to_numpy()
                # All strategies are asked about at once: together their intervals are right 95 times in 100.
                compared = len(keys) - ("none" in keys)
                level = 0.95 if key == "none" else 1 - 0.05 / compared
                add(str(key), "over random pairs", mean_interval(more, level), len(group))
        return pd.DataFrame(out)

    part = rows[rows["part"] == "limit"]
    for (pairs, n), group in part.groupby(["pairs", "labels"], sort=False):
        found = mean_interval(group["ratio"].to_numpy(), 1 - 0.05 / len(LIMITS))
        add("limit", "N regret / price", found, len(group), pairs=pairs, labels=n)
    part = rows[rows["part"] == "sources"]
    design = part[part["pairs"] == "design"].set_index(["seed", "place", "labels"])["ratio"]
    for (pairs, n), group in part.groupby(["pairs", "labels"], sort=False):
        names = {"pairs": pairs, "labels": n}
        add("sources", "labels / best design's", bootstrap_median(group["ratio"].to_numpy()), len(group), **names)
        here = group.set_index(["seed", "place", "labels"])["ratio"]
        add(
            "sources",
            "regret / simulated design's",
            bootstrap_median((here / design.loc[here.index]).to_numpy()),
            len(group),
            **names,
        )
        if n == settings.totals[-1] and group["in_limit"].notna().all():
            add("sources", "in the limit", bootstrap_median(group["in_limit"].to_numpy()), len(group), **names)
    part = rows[rows["part"] == "split"]
    for (pairs, price), group in part.groupby(["pairs", "demo_price"], sort=False):
        table = group.pivot(index="seed", columns="share", values="log_regret")
        for share in table.columns:
            mean, low, high = mean_interval(table[share].to_numpy())
            found = (np.exp(mean), np.exp(low), np.exp(high))
            add("split", "regret", found, len(table), pairs=pairs, demo_price=price, share=share)
        if pairs == "misjudged":
            continue
        best = bootstrap(table.to_numpy(), lambda t: SHARES[int(t.mean(0).argmin())])
        add("split", "best share", best, len(table), pairs=pairs, demo_price=price)
        if group["in_limit"].notna().all():
            limits = group.pivot(index="seed", columns="share", values="in_limit").to_numpy()
            best = bootstrap(limits, lambda t: SHARES[int(t.mean(0).argmin())])
            add("split", "best share in the limit", best, len(limits), pairs=pairs, demo_price=price)
    part = rows[rows["part"] == "learners"]
    for (learner, n), group in part.groupby(["learner", "labels"], sort=False):
        add("learners", "regret", mean_interval(group["regret"].to_numpy()), len(group), learner=learner, labels=n)
    one = part[(part["learner"] == "limited-dpo") & (part["labels"] == settings.totals[-1])].set_index("seed")
    other = part[(part["learner"] == "limited-reward") & (part["labels"] == settings.totals[-1])].set_index("seed")
    add("learners", "best of the class", mean_interval(one["floor"].to_numpy()), len(one), learner="limited")
    add("learners", "limited DPO less limited reward", mean_interval((one["regret"] - other["regret"]).to_numpy()),
        len(one), learner="limited", labels=settings.totals[-1])  # fmt: skip
    if settings.scale == "tree":
        last = part[part["labels"] == settings.totals[-1]].pivot(index="seed", columns="learner", values="regret")
        times = mean_interval(np.log((last["full"] / last["structured-reward"]).to_numpy()))
        add("learners", "table's regret / known form's", tuple(np.exp(times)), len(last), learner="structured-reward",
            labels=settings.totals[-1])  # fmt: skip
    part = rows[rows["part"] == "rounds"]
    for (pairs, number), group in part.groupby(["pairs", "rounds"], sort=False):
        found = bootstrap_median(group["ratio"].to_numpy())
        add("rounds", "labels / best design's", found, len(group), pairs=pairs, rounds=number,
            labels=int(group["labels"].iloc[0]))  # fmt: skip
    return pd.DataFrame(out)


RULE = (
    "Bandit and tree: (1) at the largest N the interval of N · regret over its closed-form limit holds 1 for pairs "
    "from π_ref, from π* and from the best design (t intervals over seeds, together right 95 times in 100); and (2) "
    f"the active policy, which does not know the rewards, needs at most {WITHIN} times the labels of the best design, "
    "which does: the upper ends of two 95% bootstrap intervals of the median over worlds are at most that, one against "
    "the best design's closed form and one against its simulation at the same N. Holds: both. Holds when: only one, "
    "and it says which. Does not hold: a limit is missed and a whole interval of (2) lies above. Not decided: else. "
    "Language model: holds if at equal money some design of the training beats DPO on random pairs from π_ref in "
    "J = reward − β KL, its interval wholly above 0 (t over seeds, together right 95 times in 100); holds when, if "
    "besides another design's lies wholly below; does not hold if intervals lie below and none above; else not decided."
)


def judge(settings: AnnotationBudget, summary: pd.DataFrame, rows: pd.DataFrame) -> Worded:
    """The rule."""
    if settings.scale not in EXACT_SCALES:
        return _judge_text(settings, summary)
    n = settings.limit_totals[-1]
    limits = {key: get(summary, "limit", "N regret / price", pairs=key, labels=n) for key in LIMITS}
    met = all(found.low <= 1 <= found.high for found in limits.values())
    missed = any(found.low > 1 or found.high < 1 for found in limits.values())
    last = settings.totals[-1]
    both = [
        get(summary, "sources", what, pairs="active", labels=last)
        for what in ("labels / best design's", "regret / simulated design's")
    ]
    near = all(found.high <= WITHIN for found in both)
    far = any(found.low > WITHIN for found in both)
    first = ", ".join(f"{label_budget.PAIRS[key].split(' (')[0]} {found}" for key, found in limits.items())
    sentence = (
        f"N · regret over its limit at N = {n:,}: {first}. At {last:,} labels the active policy needs {both[0]} times "
        f"the labels of the best design by its closed form, {both[1]} times by its simulation; two draws from π_ref "
        f"{get(summary, 'sources', 'labels / best design' + chr(39) + 's', pairs='reference', labels=last)} times."
    )
    if met and near:
        return Worded("supported", sentence)
    if met and far:
        return Worded(
            "partly supported", "The limit is met, but not by an active policy: when rewards are known. " + sentence
        )
    if missed and near:
        return Worded(
            "partly supported", "The active policy is near the best design, but a limit is missed. " + sentence
        )
    return Worded("not supported" if missed and far else "inconclusive", sentence)


def _judge_text(settings: AnnotationBudget, summary: pd.DataFrame) -> Worded:
    found = {key: get(summary, key, "over random pairs") for key in budget_text.STRATEGIES if key != "random"}
    above = [key for key, value in found.items() if value.above]
    below = [key for key, value in found.items() if value.below]

    def named(keys: list[str]) -> str:
        return "; ".join(f"{budget_text.STRATEGIES[key][0]} {found[key]}" for key in keys)

    if above and below:
        return Worded("partly supported", f"When the money goes to {named(above)} (gain in J). Worse: {named(below)}.")
    if above:
        return Worded("supported", f"Gain in J over DPO on random pairs at equal money: {named(above)}.")
    words = f"J over DPO on random pairs at equal money: {named(list(found))}."
    return Worded("not supported" if below else "inconclusive", words)


EXPERIMENT = Experiment(
    number=10,
    name="annotation-budget",
    title="Given a budget of human labels, the whole training can be designed",
    claim="The lecture asks it and leaves it open: given a budget of human annotation, how should the whole training "
    "be designed? RSO's answer in part is to draw pairs from an estimate of π*.",
    source="Lecture, “Future Direction” (last slide); Liu et al. 2023 (RSO), sections 1 and 3.2, for pairs from π*.",
    setup="On finite worlds: whether N labels leave the regret that the closed form (the price of a label) says; how "
    "many labels each source of pairs needs over the best design, among them an active policy that does not know the "
    "rewards; how to split money between demonstrations and preferences; DPO or reward model first; how many rounds. "
    "Each seed draws its own worlds. On a language model: six ways to spend the same money, people and "
    "machines included.",
    rule=RULE,
    settings=AnnotationBudget,
    scales=("bandit", "tree", "small"),
    jobs=jobs,
    run=run,
    summarise=summarise,
    decide=judge,
    figure=figure,
    words=words,
    text=text,
    interval="means: 95% Student-t over seeds, those of a rule's part all together; medians and best shares: 95% "
    "bootstrap over worlds",
)


def main(settings: AnnotationBudget) -> None:
    """The command `rlhf-lab experiment annotation-budget`."""
    runner.main(EXPERIMENT, settings)
