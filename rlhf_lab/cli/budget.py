"""`rlhf-lab budget`: plan how to divide a budget between demonstrations, preference labels and computation.

The plans are simulated on random worlds (`rlhf_lab.label_budget`) with the given number of candidate responses,
standard deviations of reward and reference, and number of prompts. The best plan is chosen on one half of the worlds.
Its regret is reported on the other half, so that the choice does not bias it. A file of pilot comparisons can replace
the description. The command then also lists the pairs that should be labelled next.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from textwrap import indent
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from rlhf_lab import exact, label_budget
from rlhf_lab.data.readers import rows_of
from rlhf_lab.errors import (
    Count,
    LabError,
    Natural,
    NonNegative,
    Positive,
    Range,
    Seed,
    check_paths,
    check_settings,
    count_of,
)
from rlhf_lab.evaluation import mean_interval
from rlhf_lab.randomness import Stream
from rlhf_lab.training import seeded

SHARES = (0.0, 0.1, 0.25, 0.5, 0.75)
"""Fractions of the budget for demonstrations that are tried."""
ROUNDS = (1, 2, 4, 8)
"""Numbers of batches of labels that are tried."""
FEWEST = 4
"""Smallest number of labels per prompt in a plan."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Plan how to divide a budget between demonstrations, preference labels and computation."""

    money: Positive | None = None
    """Total budget, in the unit of the prices. Give either this or labels."""
    labels: Count | None = None
    """Total budget as a number of preference labels."""
    price_demonstration: Positive = 5.0
    """Price of a demonstration."""
    price_preference: Positive = 1.0
    """Price of a preference label."""
    price_sample: NonNegative = 0.0
    """Price of a sampled response."""
    price_step: NonNegative = 0.0
    """Price of an optimiser step."""
    fit_steps: Natural = 500
    """Optimiser steps to train a policy or a reward model once."""
    policy_samples: Natural = 5000
    """Number of responses sampled for training on a reward model (PPO, RSO). DPO samples none."""
    beta: Positive = 0.5
    """β of the objective, the KL penalty in logits of a label per nat."""
    prompts: Count = 1
    """Number of prompts that are learned independently. If labels of one prompt help with others, give fewer."""
    candidates: Annotated[int, Range(2, 64)] | None = None
    """Number of candidate responses to a prompt. Default: 8, or as in the pilot."""
    spread: Positive | None = None
    """Standard deviation of the candidates' rewards, in logits of a label. Default: 1, or fitted to the pilot."""
    reference_spread: NonNegative = 1.0
    """Standard deviation of log π_ref over the candidates."""
    demo_beta: Positive = 1.0
    """β of the demonstrators, who sample from π_ref exp(r/demo_beta)/Z. A smaller one means better demonstrations."""
    features: Count | None = None
    """Number of features of a response that the policy can use. Default: the policy can represent every function."""
    pilot: Path | None = None
    """File of existing comparisons: .csv or .jsonl with the columns chosen, rejected and, optionally, prompt."""
    worlds: Annotated[int, Range(8)] = 32
    """Number of random worlds. One half is for the choice of the plan, the other for its reported regret."""
    runs: Annotated[int, Range(2)] = 6
    """Number of simulated sets of labels in each world."""
    seed: Seed = 0
    """Random seed of worlds and labels."""
    out: Path | None = None
    """Output file for the plan, as JSON."""

    def __post_init__(self) -> None:
        check_settings(self)
        if (self.money is None) == (self.labels is None):
            raise LabError("Give either --money or --labels, and not both.")

    @property
    def all_money(self) -> float:
        """Total budget in the unit of the prices."""
        return self.money if self.money is not None else (self.labels or 0) * self.price_preference


# --- the pilot ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Pilot:
    """Pilot comparisons.

    Attributes:
        prompts: names of the prompts.
        responses: responses to each prompt, in order of appearance.
        wins: for each prompt, the number of times that the row's response won against the column's.
        spread: the most likely standard deviation of the rewards, with a 95% likelihood interval.
    """

    prompts: list[str]
    responses: list[list[str]]
    wins: list[Tensor]
    spread: tuple[float, float, float]

    @property
    def labels(self) -> int:
        """Number of comparisons."""
        return int(sum(float(wins.sum()) for wins in self.wins))


def read_pilot(path: Path) -> Pilot:
    """Read pilot comparisons from a file.

    Raises:
        LabError: the file cannot be read, it has fewer than 10 rows, a row lacks chosen or rejected, or both are equal.
    """
    found: dict[str, Counter[tuple[str, str]]] = {}
    for row in rows_of(str(path)):
        for name in ("chosen", "rejected"):
            value = row.fields.get(name)
            if not isinstance(value, str | int | float) or not str(value).strip():
                raise LabError(
                    f"{path}, {row.place}: '{name}' is missing or empty. A pilot has the columns chosen and rejected "
                    f"(names or texts of responses), and prompt if there are several prompts."
                )
        pair = str(row.fields["chosen"]).strip(), str(row.fields["rejected"]).strip()
        if pair[0] == pair[1]:
            raise LabError(f"{path}, {row.place}: chosen and rejected are equal, '{pair[0][:40]}'. Remove the row.")
        found.setdefault(str(row.fields.get("prompt", "")), Counter())[pair] += 1
    total = sum(sum(pairs.values()) for pairs in found.values())
    if total < 10:
        raise LabError(f"{path} contains {count_of(total, 'comparison')}, but a pilot needs at least 10.")
    responses = [list(dict.fromkeys(name for pair in pairs for name in pair)) for pairs in found.values()]
    wins = []
    for names, pairs in zip(responses, found.values(), strict=True):
        place = {name: i for i, name in enumerate(names)}
        matrix = torch.zeros(len(names), len(names), dtype=torch.float64)
        for (chosen, rejected), number in pairs.items():
            matrix[place[chosen], place[rejected]] += number
        wins.append(matrix)
    return Pilot(list(found), responses, wins, label_budget.likely_spread(wins))


def next_pairs(pilot: Pilot, beta: float, spread: float, number: int = 10) -> list[dict[str, Any]]:
    """Return the pairs of responses for which one more label lowers the expected regret most, best first.

    The reference policy is taken as uniform over a prompt's responses, because a pilot contains no information on it.
    """
    found = []
    for prompt, names, wins in zip(pilot.prompts, pilot.responses, pilot.wins, strict=True):
        values = label_budget.label_values(wins, spread, beta)
        for i, j in torch.combinations(torch.arange(len(names))).tolist():
            labels = int(wins[i, j] + wins[j, i])
            found.append({"prompt": prompt, "first": names[i], "second": names[j], "labels": labels,
                          "value": float(values[i, j])})  # fmt: skip
    return sorted(found, key=lambda one: -one["value"])[:number]


# --- plans -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """One way to use the budget.

    Attributes:
        demonstrations: number of demonstrations for each prompt.
        labels: number of labels for each prompt.
        rounds: number of batches of labels.
        pairs: source of pairs, sft or active.
        money: total cost.
    """

    demonstrations: int
    labels: int
    rounds: int
    pairs: str
    money: float

    @property
    def text(self) -> str:
        """The plan in words."""
        which = "two samples from the SFT policy" if self.pairs == "sft" else "active"
        batches = "one batch" if self.rounds == 1 else f"{self.rounds} batches"
        return f"{self.demonstrations} demonstrations, {self.labels} labels for each prompt, pairs: {which}, {batches}"


def ways(settings: Budget, size: int) -> list[Way]:
    """Return all plans that are tried. The first is the simplest: all money for labels on two samples of the reference.

    Args:
        settings: prices and budget.
        size: number of candidate responses to a prompt.

    Raises:
        LabError: the budget is too small for `FEWEST` labels per prompt.
    """
    out: list[Way] = []
    for pairs in ("sft", "active"):
        for rounds in (1,) if pairs == "sft" else ROUNDS:
            for share in SHARES:
                demonstrations = int(share * settings.all_money / settings.price_demonstration / settings.prompts)
                if share and not demonstrations:
                    continue
                # There is a fit after each batch and one on demonstrations. Active labels first sample all candidates.
                fits = rounds + (1 if demonstrations else 0)
                fixed = fits * settings.fit_steps * settings.price_step
                fixed += demonstrations * settings.prompts * settings.price_demonstration
                each = settings.price_preference + (2 * settings.price_sample if pairs == "sft" else 0.0)
                if pairs == "active":
                    fixed += size * settings.prompts * settings.price_sample
                labels = int((settings.all_money - fixed) / each / settings.prompts)
                if labels < max(FEWEST, rounds):
                    continue
                money = fixed + labels * settings.prompts * each
                out.append(Way(demonstrations, labels, rounds, pairs, money))
    if not out:
        raise LabError(
            f"After samples and training steps, the budget of {settings.all_money:g} is too small for {FEWEST} labels "
            f"for each of {settings.prompts} prompts. Raise it, or give fewer --prompts."
        )
    return list(dict.fromkeys(out))


@dataclass(frozen=True)
class BudgetPlan:
    """The result of the planning. Intervals are (estimate, lower end, upper end) at 95%.

    Attributes:
        best: the best plan.
        regret: its mean regret on the worlds that it was not chosen on, with an interval.
        simplest: the simplest plan.
        simplest_regret: its mean regret on the same worlds, with an interval.
        saved: regret of the simplest plan minus that of the best, with an interval over worlds.
        untrained: mean regret of π_ref, with an interval.
        sure: fraction of bootstrap samples of the worlds in which the plan is the best.
        within: the plans whose mean regret is at most a tenth higher than that of the best.
        learner: "either", "DPO", "reward model" or "not decided".
        learner_gain: for a policy with few features, the regret of DPO minus that of a reward model, with an interval.
        table: every plan with its mean regret.
        prompts: number of prompts that are learned independently.
        pilot: the numbers of the pilot, and the pairs to label next.
    """

    best: Way
    regret: tuple[float, float, float]
    simplest: Way
    simplest_regret: tuple[float, float, float]
    saved: tuple[float, float, float]
    untrained: tuple[float, float, float]
    sure: float
    within: list[Way]
    learner: str
    learner_gain: tuple[float, float, float] | None
    table: list[tuple[Way, float]]
    prompts: int
    pilot: dict[str, Any] | None


def budget_plan(settings: Budget) -> BudgetPlan:
    """Simulate all plans and choose the best.

    Raises:
        LabError: the budget is too small, or the pilot cannot be read.
    """
    pilot = None if settings.pilot is None else read_pilot(settings.pilot)
    size = settings.candidates or 8
    spread = settings.spread or 1.0
    if pilot is not None:
        usual = int(np.median([len(names) for names in pilot.responses]))
        size = settings.candidates or min(max(usual, 2), 64)
        spread = settings.spread or pilot.spread[0]
        if settings.prompts == 1:
            settings = replace(settings, prompts=len(pilot.prompts))
    settings = replace(settings, candidates=size, spread=spread)
    tried = ways(settings, size)
    world = label_budget.random_worlds(
        settings.worlds, size, settings.beta, settings.seed, spread, settings.reference_spread
    )
    prior = max(spread, 0.1)
    lost = []
    for i, way in enumerate(tried):
        what = label_budget.Purchase(way.demonstrations, way.labels, way.rounds, way.pairs, settings.demo_beta)
        lost.append(
            label_budget.purchase_regret(
                world, what, settings.runs, seeded(settings.seed, Stream.BUDGET_PLANS, i), prior
            ).mean(0)
        )
    regret = torch.stack(lost).numpy()  # (ways, worlds)
    half = settings.worlds // 2
    best = int(regret[:, :half].mean(1).argmin())
    rest = regret[:, half:]
    generator = np.random.default_rng(settings.seed)
    again = regret[:, generator.integers(settings.worlds, size=(1000, settings.worlds))].mean(-1)
    order = regret.mean(1)
    learner, gain = _learner(settings, world, tried[0], prior)
    said = None
    if pilot is not None:
        said = {
            "comparisons": pilot.labels, "prompts": len(pilot.prompts), "candidates": size, "spread": pilot.spread,
            "next": next_pairs(pilot, settings.beta, spread),
        }  # fmt: skip
    start = exact.regret(world.log_ref, world.log_ref, world.reward, world.beta).numpy()
    return BudgetPlan(
        tried[best], mean_interval(rest[best]), tried[0], mean_interval(rest[0]), mean_interval(rest[0] - rest[best]),
        mean_interval(start[half:]), float((again.argmin(0) == best).mean()),
        [way for way, value in zip(tried, order, strict=True) if value <= 1.1 * order[best]],
        learner, gain, [(way, float(value)) for way, value in zip(tried, order, strict=True)],
        settings.prompts, said,
    )  # fmt: skip


def _learner(
    settings: Budget, world: label_budget.FiniteWorlds, plain: Way, prior: float
) -> tuple[str, tuple[float, float, float] | None]:
    """Compare DPO with a reward model for a policy with few features. For other policies they are the same."""
    assert settings.candidates is not None
    if settings.features is None or settings.features >= settings.candidates - 1:
        return "either", None
    features = torch.randn(
        *world.log_ref.shape,
        settings.features,
        dtype=torch.float64,
        generator=seeded(settings.seed, Stream.BUDGET_FEATURES),
    )
    many, wide = world.repeat(settings.runs), features.repeat(settings.runs, 1, 1)

    def left(log_policy: Tensor) -> np.ndarray:
        lost = exact.regret(log_policy, many.log_ref, many.reward, many.beta)
        return lost.reshape(settings.runs, -1).mean(0).numpy()

    # The reward model needs one more fit and samples, so fewer labels are left for it.
    paid = settings.fit_steps * settings.price_step + settings.policy_samples * settings.price_sample
    fewer = max(int(plain.labels - paid / settings.price_preference / settings.prompts), 1)
    direct = label_budget.fit_purchase(
        world, label_budget.Purchase(0, plain.labels), settings.runs, seeded(settings.seed, Stream.BUDGET_DIRECT), prior
    )
    scored = label_budget.fit_purchase(
        world, label_budget.Purchase(0, fewer), settings.runs, seeded(settings.seed, Stream.BUDGET_REWARD_MODEL), prior
    )
    one = left(label_budget.fit_class_to_labels(many.log_ref, wide, direct.wins, many.beta, prior))
    other = left(label_budget.fit_class_to_reward(many.log_ref, wide, scored.rewards, many.beta))
    gain = mean_interval(one - other)
    return ("reward model" if gain[1] > 0 else "DPO" if gain[2] < 0 else "not decided"), gain


def table(settings: Budget, plan: BudgetPlan) -> str:
    """Return the plan as text."""
    best = plan.best
    lines = [f"{settings.all_money:g} to spend, {plan.prompts} prompt(s), β = {settings.beta:g}", ""]
    if plan.pilot is not None:
        lines += [
            f"pilot: {plan.pilot['comparisons']} comparisons, {plan.pilot['candidates']} responses to a prompt, "
            f"standard deviation of the reward {_interval(plan.pilot['spread'])} logits",
            "",
        ]
    which = (
        "active: after each batch, the pairs that would lower the expected regret most"
        if best.pairs == "active"
        else "two samples from the SFT policy each"
    )
    lines += [
        "the plan",
        _columns({
            "demonstrations": f"{best.demonstrations} for each prompt",
            "preferences": f"{best.labels} for each prompt",
            "batches": f"{best.rounds}",
            "pairs": which,
            "money": f"{best.money:g}",
        }),
        "",
        "expected regret J(π*) − J(π), in logits of a label, with 95% intervals over worlds",
        _columns({
            "the plan": _interval(plan.regret),
            "simplest plan": f"{_interval(plan.simplest_regret)}   ({plan.simplest.text})",
            "difference": _interval(plan.saved),
            "no training": _interval(plan.untrained),
        }),
        "",
        f"The plan is the best of {len(plan.table)} in {100 * plan.sure:.0f}% of resampled sets of worlds. The regret "
        f"of {len(plan.within)} of the plans is within a tenth of its regret.",
        "",
        f"DPO or a reward model: {_LEARNERS[plan.learner]}",
    ]  # fmt: skip
    if plan.learner_gain is not None:
        lines.append(
            f"  With a policy of {settings.features} features, the regret of DPO minus that of the reward model is "
            f"{_interval(plan.learner_gain)}."
        )
    if plan.pilot is not None:
        lines += ["", "pairs to label next, and the expected decrease of the regret by one label", _next(plan.pilot)]
    return "\n".join(lines)


_LEARNERS = {
    "either": "Both give the same estimate here, because the policy can represent every function. DPO needs no second "
    "fit and no samples.",
    "DPO": "DPO directly on the labels is better.",
    "reward model": "A reward model first, and then a policy that is trained on it, is better.",
    "not decided": "These worlds show no difference. DPO is simpler.",
}


def _interval(estimate: tuple[float, float, float]) -> str:
    return f"{estimate[0]:.3g} ({estimate[1]:.3g} to {estimate[2]:.3g})"


def _columns(values: dict[str, str]) -> str:
    """Names and values in two aligned columns."""
    import pandas as pd

    names = pd.Series(list(values))
    rows = names.str.ljust(names.str.len().max()) + "   " + pd.Series(list(values.values()))
    return "\n".join("  " + row for row in rows)


def _next(pilot: dict[str, Any]) -> str:
    """The pairs to label next, as a table."""
    import pandas as pd

    pairs = pd.DataFrame(pilot["next"])
    for name in ("prompt", "first", "second"):
        pairs[name] = pairs[name].str.slice(0, 24)
    pairs["value"] = pairs["value"].map("{:.2e}".format)
    columns = ["value", *(["prompt"] if pairs["prompt"].any() else []), "first", "second", "labels"]
    return indent(pairs[columns].to_string(index=False), "  ")


def plan_budget(settings: Budget) -> BudgetPlan:
    """Run the command: plan, print the plan and write it."""
    settings = check_paths(settings)
    out = settings.out
    if out is not None and out.exists():
        raise LabError(f"{out} exists already; nothing was changed. Give the name of a new file.")
    plan = budget_plan(settings)
    print(table(settings, plan))
    if out is not None:
        from rlhf_lab.training.checkpoint import write_json

        out.parent.mkdir(parents=True, exist_ok=True)
        given = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()}
        write_json(out, json.loads(json.dumps({"settings": given, "plan": asdict(plan)})))
        print(f"\nThe plan is in {out}.")
    return plan
