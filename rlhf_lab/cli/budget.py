"""`rlhf-lab budget`: how to spend money on demonstrations, preferences and machines, before any is spent.

Plans are tried on random worlds of the kind that is described (so many candidate responses a prompt, rewards and
reference so widely spread, so many prompts that have to be learned apart), and what each leaves of the regret is
measured. The plan is chosen on one half of the worlds and its regret reported on the other, so that luck in the choice
does not flatter it. A file of pilot comparisons takes the place of the description, and is asked which pairs come next.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from rlhf_lab import bradley_terry, exact, label_budget
from rlhf_lab.algorithms import active
from rlhf_lab.data.readers import rows_of
from rlhf_lab.errors import Count, LabError, Natural, NonNegative, Positive, Range, Seed, check_paths, check_settings
from rlhf_lab.evaluation import mean_interval
from rlhf_lab.randomness import Stream
from rlhf_lab.training import seeded

SHARES = (0.0, 0.1, 0.25, 0.5, 0.75)
"""Parts of the money that are tried for demonstrations."""
ROUNDS = (1, 2, 4, 8)
"""Batches of labels that are tried."""
SPREADS = tuple(float(f"{10**e:.3g}") for e in np.linspace(math.log10(0.1), math.log10(6), 28))
"""Standard deviations of the rewards that a pilot is asked about."""
FEWEST = 4
"""Labels a prompt below which a plan is not tried."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How to spend a budget on demonstrations, preferences and machines."""

    money: Positive | None = None
    """Money in all, in the unit of the prices. Give this or labels."""
    labels: Count | None = None
    """As much money as so many preference labels cost."""
    price_demonstration: Positive = 5.0
    """Price of a demonstration."""
    price_preference: Positive = 1.0
    """Price of a preference label."""
    price_sample: NonNegative = 0.0
    """Price of a response drawn from a model."""
    price_step: NonNegative = 0.0
    """Price of an optimiser step."""
    fit_steps: Natural = 500
    """Optimiser steps of one fit of a policy or of a reward model."""
    policy_samples: Natural = 5000
    """Responses that training on a reward model draws (PPO, RSO); DPO on the labels draws none."""
    beta: Positive = 0.5
    """β of the objective: reward, in logits of a label, per nat of KL."""
    prompts: Count = 1
    """Prompts that must be learned apart. Where answers to one prompt teach of another, give fewer than there are."""
    candidates: Annotated[int, Range(2, 64)] | None = None
    """Different responses to a prompt that come into question. Default: 8, or as in the pilot."""
    spread: Positive | None = None
    """Standard deviation of the reward among them, in logits of a label. Default: 1, or fitted to the pilot."""
    reference_spread: NonNegative = 1.0
    """Standard deviation of log π_ref among them."""
    demo_beta: Positive = 1.0
    """How carefully demonstrators choose: they draw from π_ref exp(r/demo_beta)/Z."""
    features: Natural = 0
    """What the policy can tell apart: 0 for everything, else so many features of the responses."""
    pilot: Path | None = None
    """Comparisons made already: .csv or .jsonl with columns prompt (optional), chosen, rejected."""
    worlds: Annotated[int, Range(8)] = 32
    """Random worlds that plans are tried on, half to choose and half to report."""
    runs: Annotated[int, Range(2)] = 6
    """Sets of labels in each."""
    seed: Seed = 0
    """Of worlds and labels."""
    out: Path | None = None
    """File for the plan as JSON."""

    def __post_init__(self) -> None:
        check_settings(self)
        if (self.money is None) == (self.labels is None):
            raise LabError("Give --money or --labels, one of the two: there is nothing to plan with, or twice.")

    @property
    def all_money(self) -> float:
        """The budget in the unit of the prices."""
        return self.money if self.money is not None else (self.labels or 0) * self.price_preference


# --- the pilot ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Pilot:
    """What pilot comparisons hold.

    Attributes:
        prompts: their names.
        responses: of each prompt, in order of appearance.
        wins: how often row beat column, one matrix a prompt.
        spread: the most likely standard deviation of the rewards, with a 95% likelihood interval.
    """

    prompts: list[str]
    responses: list[list[str]]
    wins: list[Tensor]
    spread: tuple[float, float, float]

    @property
    def labels(self) -> int:
        """How many comparisons."""
        return int(sum(float(wins.sum()) for wins in self.wins))


def read_pilot(path: Path) -> Pilot:
    """Pilot comparisons from a file.

    Raises:
        LabError: the file cannot be read; a row without chosen or rejected, or with both the same; fewer than 10 rows.
    """
    found: dict[str, Counter[tuple[str, str]]] = {}
    for row in rows_of(str(path)):
        for name in ("chosen", "rejected"):
            value = row.fields.get(name)
            if not isinstance(value, str | int | float) or not str(value).strip():
                raise LabError(
                    f"{path}, {row.place}: '{name}' is missing or empty. A pilot has the columns chosen and rejected "
                    f"(names or texts of responses), and prompt where there are several."
                )
        pair = str(row.fields["chosen"]).strip(), str(row.fields["rejected"]).strip()
        if pair[0] == pair[1]:
            raise LabError(f"{path}, {row.place}: chosen and rejected are the same response, '{pair[0][:40]}'.")
        found.setdefault(str(row.fields.get("prompt", "")), Counter())[pair] += 1
    total = sum(sum(pairs.values()) for pairs in found.values())
    if total < 10:
        raise LabError(f"{path} holds {total} comparisons; a pilot needs 10 to say anything.")
    responses = [list(dict.fromkeys(name for pair in pairs for name in pair)) for pairs in found.values()]
    wins = []
    for names, pairs in zip(responses, found.values(), strict=True):
        place = {name: i for i, name in enumerate(names)}
        matrix = torch.zeros(len(names), len(names), dtype=torch.float64)
        for (chosen, rejected), number in pairs.items():
            matrix[place[chosen], place[rejected]] += number
        wins.append(matrix)
    return Pilot(list(found), responses, wins, spread_of(wins))


def spread_of(wins: list[Tensor]) -> tuple[float, float, float]:
    """The standard deviation of normal rewards under which the labels are likeliest, and where that falls by e^-1.92.

    The rewards are integrated out by Laplace's method: log p(labels | s) ≈ ℓ(r̂) − |r̂|²/2s² − ½ log det(s² H).
    """
    evidence = []
    for spread in SPREADS:
        total = 0.0
        for matrix in wins:
            rewards, curvature = bradley_terry.fit_rewards(matrix, spread)
            likely = (matrix * torch.nn.functional.logsigmoid(rewards.unsqueeze(-1) - rewards)).sum()
            volume = torch.logdet(curvature) + 2 * len(rewards) * math.log(spread)
            total += float(likely - rewards.square().sum() / (2 * spread**2) - volume / 2)
        evidence.append(total)
    best = max(evidence)
    inside = [s for s, value in zip(SPREADS, evidence, strict=True) if value >= best - 1.92]
    return SPREADS[evidence.index(best)], inside[0], inside[-1]


def next_pairs(pilot: Pilot, beta: float, spread: float, number: int = 10) -> list[dict[str, Any]]:
    """The pairs of the pilot's responses about which one more label is worth most, best first.

    The reference is taken as even over a prompt's responses: a pilot does not say how often each is given.
    """
    found = []
    for prompt, names, wins in zip(pilot.prompts, pilot.responses, pilot.wins, strict=True):
        rewards, curvature = bradley_terry.fit_rewards(wins, spread)
        even = torch.zeros(len(names), dtype=torch.float64).log_softmax(-1)
        matters, told = active.believed(rewards, curvature, even, beta, 256, seeded(0, Stream.BUDGET_BELIEF))
        gain = active.gains(matters, told, torch.linalg.inv(curvature)) / (2 * beta)
        for i, j in torch.combinations(torch.arange(len(names))).tolist():
            asked = int(wins[i, j] + wins[j, i])
            found.append({"prompt": prompt, "first": names[i], "second": names[j], "asked": asked,
                          "worth": float(gain[i, j])})  # fmt: skip
    return sorted(found, key=lambda one: -one["worth"])[:number]


# --- plans -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """One way to spend the money, for each prompt (people) and in all (machines).

    Attributes:
        demonstrations: a prompt.
        labels: a prompt.
        rounds: batches of labels.
        pairs: sft or active.
        money: what it costs in all.
    """

    demonstrations: int
    labels: int
    rounds: int
    pairs: str
    money: float

    @property
    def text(self) -> str:
        """In words."""
        which = "two draws from the SFT policy" if self.pairs == "sft" else "active"
        batches = "one batch" if self.rounds == 1 else f"{self.rounds} batches"
        return f"{self.demonstrations} demonstrations, {self.labels} labels a prompt, pairs: {which}, {batches}"


def ways(settings: Budget, size: int) -> list[Way]:
    """Every plan that is tried, the plainest first: all money for labels on two draws of the reference each.

    Raises:
        LabError: the money does not even buy `FEWEST` labels a prompt.
    """
    out: list[Way] = []
    for pairs in ("sft", "active"):
        for rounds in (1,) if pairs == "sft" else ROUNDS:
            for share in SHARES:
                demonstrations = int(share * settings.all_money / settings.price_demonstration / settings.prompts)
                if share and not demonstrations:
                    continue
                # A fit after each batch, one more on demonstrations; active labels draw all candidates beforehand.
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
            f"The money ({settings.all_money:g}) does not buy {FEWEST} labels for each of {settings.prompts} prompts "
            f"beside samples and training steps. Raise it, or count fewer prompts as different."
        )
    return list(dict.fromkeys(out))


@dataclass(frozen=True)
class Plan:
    """What the planner came to.

    Attributes:
        best: the plan.
        regret: that it leaves, mean over the worlds it was not chosen on, with a 95% interval.
        plain: the plainest way, and its regret on the same worlds.
        plain_regret: with a 95% interval.
        saved: plain regret less the plan's, world by world, with a 95% interval.
        nothing: regret of π_ref itself, mean with a 95% interval.
        sure: how often the plan is still the best when worlds are drawn again (bootstrap).
        within: of all plans, those whose mean regret is within a tenth of the best.
        learner: "either", "DPO", "reward model" or "not decided".
        learner_gain: with a policy of few features, DPO's regret less that by way of a reward model, 95% interval.
        table: every plan tried with its mean regret.
        prompts: that must be learned apart.
        pilot: what the pilot said, and the pairs to label next.
    """

    best: Way
    regret: tuple[float, float, float]
    plain: Way
    plain_regret: tuple[float, float, float]
    saved: tuple[float, float, float]
    nothing: tuple[float, float, float]
    sure: float
    within: list[Way]
    learner: str
    learner_gain: tuple[float, float, float] | None
    table: list[tuple[Way, float]]
    prompts: int
    pilot: dict[str, Any] | None


def budget_plan(settings: Budget) -> Plan:
    """Try every way and choose.

    Raises:
        LabError: money for nothing; a pilot that cannot be read.
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
            label_budget.buy(world, what, settings.runs, seeded(settings.seed, Stream.BUDGET_PLANS, i), prior).mean(0)
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
    return Plan(
        tried[best], mean_interval(rest[best]), tried[0], mean_interval(rest[0]), mean_interval(rest[0] - rest[best]),
        mean_interval(start[half:]), float((again.argmin(0) == best).mean()),
        [way for way, value in zip(tried, order, strict=True) if value <= 1.1 * order[best]],
        learner, gain, [(way, float(value)) for way, value in zip(tried, order, strict=True)],
        settings.prompts, said,
    )  # fmt: skip


def _learner(
    settings: Budget, world: label_budget.Finite, plain: Way, prior: float
) -> tuple[str, tuple[float, float, float] | None]:
    """DPO on the labels, or a reward model first, for a policy of few features; for any other they are the same."""
    assert settings.candidates is not None
    if not settings.features or settings.features >= settings.candidates - 1:
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

    # The road by a reward model pays one fit more and its samples: it has fewer labels.
    paid = settings.fit_steps * settings.price_step + settings.policy_samples * settings.price_sample
    fewer = max(int(plain.labels - paid / settings.price_preference / settings.prompts), 1)
    direct = label_budget.bought(
        world, label_budget.Purchase(0, plain.labels), settings.runs, seeded(settings.seed, Stream.BUDGET_DIRECT), prior
    )
    scored = label_budget.bought(
        world, label_budget.Purchase(0, fewer), settings.runs, seeded(settings.seed, Stream.BUDGET_REWARD_MODEL), prior
    )
    one = left(label_budget.limited_by_dpo(many.log_ref, wide, direct.wins, many.beta, prior))
    other = left(label_budget.limited_by_reward(many.log_ref, wide, scored.rewards, many.beta))
    gain = mean_interval(one - other)
    return ("reward model" if gain[1] > 0 else "DPO" if gain[2] < 0 else "not decided"), gain


def table(settings: Budget, plan: Plan) -> str:
    """The plan as a person reads it."""

    def number(found: tuple[float, float, float]) -> str:
        return f"{found[0]:.3g} ({found[1]:.3g} to {found[2]:.3g})"

    best, all_money = plan.best, settings.all_money
    lines = [f"{all_money:g} to spend, {plan.prompts} prompt(s), "
             f"β = {settings.beta:g}", ""]  # fmt: skip
    if plan.pilot is not None:
        said = plan.pilot
        lines += [
            f"pilot: {said['comparisons']} comparisons, {said['candidates']} responses a prompt, spread of the reward "
            f"{number(said['spread'])} logits",
            "",
        ]
    which = (
        "active: after each batch, those that would lower the expected regret most"
        if best.pairs == "active"
        else "two draws from the SFT policy each"
    )
    lines += [
        "the plan",
        f"  demonstrations   {best.demonstrations} a prompt",
        f"  preferences      {best.labels} a prompt",
        f"  rounds           {best.rounds}",
        f"  pairs            {which}",
        f"  costs            {best.money:g}",
        "",
        "expected regret J(π*) − J(π), in logits of a label, with 95% intervals over worlds",
        f"  the plan         {number(plan.regret)}",
        f"  plain labels     {number(plan.plain_regret)}   ({plan.plain.text})",
        f"  saved            {number(plan.saved)}",
        f"  no training      {number(plan.nothing)}",
        "",
        f"how sure: the plan is the best of {len(plan.table)} tried in {100 * plan.sure:.0f}% of redrawn sets of "
        f"worlds; {len(plan.within)} {'is' if len(plan.within) == 1 else 'are'} within a tenth of its regret",
    ]
    words = {
        "either": "DPO straight on the labels and a reward model first are the same estimate here, for a policy that "
        "can say everything; DPO saves a fit and the samples.",
        "DPO": "DPO straight on the labels",
        "reward model": "a reward model first, then a policy trained on it",
        "not decided": "no difference that these worlds could show; DPO is the simpler one",
    }
    lines += ["", f"DPO or reward model first: {words[plan.learner]}"]
    if plan.learner_gain is not None:
        lines.append(
            f"  with a policy of {settings.features} features, DPO's regret less the other's: "
            f"{number(plan.learner_gain)}"
        )
    if plan.pilot is not None:
        lines += ["", "label next (worth: expected fall of the regret by one label)"]
        for one in plan.pilot["next"]:
            prompt = f"{one['prompt'][:30]}: " if one["prompt"] else ""
            lines.append(
                f"  {one['worth']:.2e}  {prompt}{one['first'][:24]} | {one['second'][:24]}   asked {one['asked']} times"
            )
    return "\n".join(lines)


def plan_budget(settings: Budget) -> Plan:
    """The command: plan, print, and write."""
    settings = check_paths(settings)
    out = settings.out
    if out is not None and out.exists():
        raise LabError(f"{out} is there already; nothing was changed. Give the name of a new file.")
    plan = budget_plan(settings)
    print(table(settings, plan))
    if out is not None:
        from rlhf_lab.training.checkpoint import write_json

        out.parent.mkdir(parents=True, exist_ok=True)
        given = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()}
        write_json(out, json.loads(json.dumps({"settings": given, "plan": asdict(plan)})))
        print(f"\nThe plan is in {out}.")
    return plan
