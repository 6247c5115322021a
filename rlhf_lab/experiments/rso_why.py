"""Claim 4, second part: why should pairs from π_r help? Free labels, the policy's limits, or statistics.

On the exact rungs every fit here is a convex one and is carried to its end: an implicit reward f = β log(π/π_ref) out
of a linear class, by maximum a posteriori of the labels. A reward model is the same fit with its own class. Nothing of
the optimiser is then in the answer, and what endless pairs would lead to is computed, not extrapolated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.algorithms.dpo import DPO, dpo
from rlhf_lab.checks import LabError, check_beta
from rlhf_lab.evaluation import evaluate
from rlhf_lab.experiments import experiment, language
from rlhf_lab.experiments.experiment import EXACT_RUNGS, Chosen, Experiment, Job, Settings, Verdict
from rlhf_lab.experiments.rso_common import Bed, log_ticks, state_of
from rlhf_lab.experiments.statistics import Interval, mean_interval, summarise
from rlhf_lab.figures import style
from rlhf_lab.policies.base import Policy
from rlhf_lab.training import seeded
from rlhf_lab.worlds import bandit, token_tree
from rlhf_lab.worlds.world import World

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

SEARCH_SEED = 1000
POLICIES = ("full", "limited")
DIRECT = "gold ref N"
MANY = ("rm ref M", "rm r M", "gold ref M", "gold star M")
ENDLESS = ("rm ref inf", "rm r inf", "gold ref inf", "gold star inf")
FEW = ("rm ref N", "gold r N", "gold star N")
LISTED = 64
"""Responses up to which every pair is listed."""


@dataclass(frozen=True)
class RSOWhy(Settings):
    """Why should pairs from π_r help: free labels, limited capacity, or statistics?"""

    task: str = ""
    """Text world of a language model. Default: summaries."""
    beta: float = 0.5
    """β of π_r, of the loss and of the objective, in logits of a label."""
    labels: int = 0
    """N, labels of the gold reward. 0: 400 on the bandit, 2,000 on the tree, 192 for a language model."""
    pairs: int = 0
    """M, pairs that the reward model labels for nothing. 0: ten times as many; for a language model what `prompts` and
    `accepted` come to."""
    features: int = 3
    """Numbers a prompt that the bandit's limited policy can set; a full one sets 10."""
    soft_pairs: int = 0
    """Pairs, each with its label's probability, that stand for endless ones on the tree. 0: 100,000."""
    prompts: int = 0
    """Prompts that a language model answers for its pairs. 0: 192, as many as its labels are on."""
    candidates: int = 0
    """Draws of π_ref for each. 0: 16."""
    accepted: int = 0
    """Of these, how many are paired. 0: 4, so that there are twice as many pairs as labels."""
    steps: int = 0
    """Optimiser steps of a language model's fit. 0: 20."""
    batch: int = 16
    """Pairs in such a step."""
    rates: tuple[float, ...] = ()
    """Learning rates that the search tries for both of a language model's policies. Default: 1e-4, 3e-4, 1e-3, 3e-3."""
    reward_steps: int = 0
    """Optimiser steps of a language model's reward model. 0: 60."""
    test_prompts: int = 0
    """Test prompts that a language model answers in the end. 0: 64."""
    test_samples: int = 0
    """Responses to each. 0: 4."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_beta(self.beta)
        text, tree = self.rung not in EXACT_RUNGS, self.rung == "tree"
        usual: dict[str, Any] = {
            "seeds": 4 if text else 6 if tree else 40,
            "task": "summaries" if text else self.rung,
            "labels": 192 if text else 2000 if tree else 400,
            "soft_pairs": 100_000,
            "prompts": 192,
            "candidates": 16,
            "accepted": 4,
            "steps": 20,
            "rates": (1e-4, 3e-4, 1e-3, 3e-3),
            "reward_steps": 60,
            "test_prompts": 64,
            "test_samples": 4,
        }
        if self.quick:
            usual |= {
                "seeds": 2,
                "prompts": 4,
                "candidates": 8,
                "accepted": 4,
                "steps": 1,
                "rates": (1e-3,),
                "soft_pairs": 5000,
            }
            usual |= {"reward_steps": 2, "test_prompts": 4, "test_samples": 2, "labels": 16 if text else 200}
        for name, value in usual.items():
            if getattr(self, name) in (0, (), ""):
                object.__setattr__(self, name, value)
        if self.pairs == 0:
            many = self.prompts * self.accepted // 2 if text else self.labels * (2 if self.quick else 10)
            object.__setattr__(self, "pairs", many)
        if self.pairs < 8 or self.labels < 8 or self.features < 1:
            raise LabError("There must be 8 labels and 8 pairs at least, and a feature.")
        if not 2 <= self.accepted <= self.candidates or self.accepted % 2:
            raise LabError(f"accepted must be even and between 2 and candidates ({self.candidates}).")
        if text and self.task not in language.UNITS:
            raise LabError(f"Unknown task '{self.task}'. There are: {', '.join(language.UNITS)}.")

    @property
    def exact(self) -> bool:
        """Whether the rung is an exact one."""
        return self.rung in EXACT_RUNGS

    @property
    def conditions(self) -> tuple[str, ...]:
        """Labeller, source of the responses, number of pairs."""
        return (DIRECT, *MANY, *ENDLESS, *FEW) if self.exact else (DIRECT, *MANY)


# The exact rungs: linear classes, fitted to the end.


@dataclass(frozen=True)
class LinearClass:
    """Functions f(x, y) that are linear in θ, with the prior under which f has about unit variance."""

    size: int
    """Numbers in θ."""
    values: Callable[[Tensor], Tensor]
    """θ → f, (X, K)."""
    variance: Tensor
    """Prior variance of each number of θ, (size,)."""


def table_class(world: World) -> LinearClass:
    """A number for every response (bandit), or for every prefix (tree): anything can be represented."""
    shapes = [(world.num_prompts, *shape) for shape in world.tree.shapes]
    sizes = [torch.Size(shape).numel() for shape in shapes]

    def values(theta: Tensor) -> Tensor:
        parts = theta.split(sizes)
        return exact.path_sums([part.view(shape) for part, shape in zip(parts, shapes, strict=True)])

    return LinearClass(sum(sizes), values, torch.full((sum(sizes),), 1 / len(sizes), dtype=torch.float64))


def feature_class(world: World, features: int, seed: int) -> LinearClass:
    """Random features of the responses, shared by all prompts; each prompt has weights of its own."""
    shape = (world.tree.num_responses, features)
    phi = torch.randn(shape, dtype=torch.float64, generator=seeded(seed, 51)) / features**0.5
    size = world.num_prompts * features
    ones = torch.ones(size, dtype=torch.float64)
    return LinearClass(size, lambda theta: theta.view(world.num_prompts, features) @ phi.T, ones)


def token_class(world: World, bigrams: bool) -> LinearClass:
    """On the tree: a number for every token in every place, and with `bigrams` for every two that follow each other.

    The tree's gold reward is of this form, both kinds in equal parts.
    """
    ids = world.tree.responses.ids
    places, size = ids.shape[1], world.tree.vocab_size
    one_hot = torch.nn.functional.one_hot(ids, size).double()  # (K, L, V)
    parts = [one_hot.flatten(1)]
    variance = [torch.full((places * size,), (0.5 if bigrams else 1.0) / places, dtype=torch.float64)]
    if bigrams:
        both = torch.einsum("kla,klb->kab", one_hot[:, :-1], one_hot[:, 1:])
        parts.append(both.flatten(1))
        variance.append(torch.full((size * size,), 0.5 / (places - 1), dtype=torch.float64))
    phi = torch.cat(parts, 1)
    width = phi.shape[1]
    return LinearClass(
        width * world.num_prompts,
        lambda theta: theta.view(world.num_prompts, width) @ phi.T,
        torch.cat(variance).repeat(world.num_prompts),
    )


@dataclass(frozen=True)
class Labelled:
    """Pairs with the probability that the first of them is the better one (a label: 1 or 0)."""

    prompt: Tensor
    first: Tensor
    second: Tensor
    wins: Tensor
    weight: Tensor | None = None


def draw_pairs(log_source: Tensor, reward: Tensor, number: int, generator: torch.Generator, soft: bool) -> Labelled:
    """`number` pairs of different responses from `log_source`, (X, K), labelled by σ of the reward's difference."""
    p, parts, have = log_source.exp(), [], 0
    for _ in range(200):
        prompt = torch.randint(len(p), (2 * number,), generator=generator)
        both = torch.multinomial(p, 4 * number, replacement=True, generator=generator).view(len(p), 2, -1)
        place = torch.arange(2 * number)
        first, second = both[prompt, 0, place], both[prompt, 1, place]
        rows = torch.stack([prompt, first, second])[:, first != second][:, : number - have]
        parts.append(rows)
        have += rows.shape[1]
        if have == number:
            break
    prompt, first, second = torch.cat(parts, 1)
    chance = torch.sigmoid(reward[prompt, first] - reward[prompt, second])
    if not soft:
        chance = (torch.rand(len(chance), dtype=torch.float64, generator=generator) < chance).double()
    return Labelled(prompt, first, second, chance)


def every_pair(log_source: Tensor, reward: Tensor) -> Labelled:
    """What endless pairs are: each with its population probability."""
    prompts, size = log_source.shape
    first, second = torch.triu_indices(size, size, 1)
    p = log_source.exp()
    weight = (p[:, first] * p[:, second]).flatten()
    chance = torch.sigmoid(reward[:, first] - reward[:, second]).flatten()
    rows = torch.arange(prompts).repeat_interleave(len(first))
    return Labelled(rows, first.repeat(prompts), second.repeat(prompts), chance, weight / weight.sum())


def fit(functions: LinearClass, pairs: Labelled, prior: bool = True) -> Tensor:
    """f of maximum posterior (maximum likelihood without `prior`), (X, K): a convex problem, solved to its end."""
    theta = torch.zeros(functions.size, dtype=torch.float64, requires_grad=True)
    weight = pairs.weight if pairs.weight is not None else torch.full_like(pairs.wins, 1 / len(pairs.wins))
    # Without labels' noise the prior's share is that of a label in a million: it only fixes what no pair says.
    share = 1 / len(pairs.wins) if prior else 1e-6

    def loss() -> Tensor:
        f = functions.values(theta)
        gap = f[pairs.prompt, pairs.first] - f[pairs.prompt, pairs.second]
        miss = torch.nn.functional.softplus(-gap) + (1 - pairs.wins) * gap
        return (weight * miss).sum() + share * 0.5 * (theta.square() / functions.variance).sum()

    optimizer = torch.optim.LBFGS(
        [theta],
        max_iter=300,
        history_size=20,
        tolerance_grad=1e-8,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)  # type: ignore[arg-type]
    with torch.no_grad():
        return functions.values(theta)


@dataclass(frozen=True, eq=False)
class ExactSeed:
    """A world, its classes, and the reward model fitted to the seed's labels."""

    settings: RSOWhy
    seed: int
    world: World
    classes: dict[str, LinearClass]
    labels: Labelled
    learned: Tensor
    """r_φ, (X, K)."""

    def source(self, name: str) -> Tensor:
        """Where responses come from, log-probabilities (X, K): ref, r (π_r of r_φ) or star (π*)."""
        log_ref = self.world.log_ref()
        if name == "ref":
            return log_ref
        reward = self.learned if name == "r" else self.world.rewards()
        return exact.optimal_policy(log_ref, reward, self.settings.beta)

    def fitted(self, policy: str, condition: str) -> Tensor:
        """log π of the fit, (X, K)."""
        labeller, source, number = condition.split(" ")
        reward = self.learned if labeller == "rm" else self.world.rewards()
        beta, log_ref, functions = self.settings.beta, self.world.log_ref(), self.classes[policy]
        if number == "inf" and policy == "full":
            return exact.optimal_policy(log_ref, reward, beta)  # at π* DPO's gradient is zero, whatever the pairs
        if condition == DIRECT:
            f = fit(functions, self.labels)
        elif number == "inf" and log_ref.shape[1] <= LISTED:
            f = fit(functions, every_pair(self.source(source), reward), prior=False)
        elif number == "inf":
            generator = seeded(self.seed, 54)
            f = fit(
                functions,
                draw_pairs(self.source(source), reward, self.settings.soft_pairs, generator, True),
                prior=False,
            )
        else:
            how_many = self.settings.pairs if number == "M" else self.settings.labels
            pairs = draw_pairs(self.source(source), reward, how_many, seeded(self.seed, 53), False)
            f = fit(functions, pairs)
        return (log_ref + f / beta).log_softmax(-1)

    def price(self, source: str) -> float:
        """Expected regret of a full table after N labels on pairs of `source`, to leading order (`label_price`)."""
        p = self.source(source).exp()
        pairs = p.unsqueeze(-1) * p.unsqueeze(-2) * (1 - torch.eye(p.shape[1], dtype=p.dtype))
        pairs = pairs / pairs.sum((-1, -2), keepdim=True)
        each = exact.label_price(self.world.log_ref(), self.world.rewards(), self.settings.beta, pairs)
        # The prompts share the labels.
        return each.mean().item() * self.world.num_prompts / self.settings.labels


@lru_cache(maxsize=1)
def exact_seed(settings: RSOWhy, seed: int) -> ExactSeed:
    """What a seed's conditions share; every seed has a world of its own."""
    if settings.rung == "tree":
        world = token_tree.random(8, 4, 1, seed)
        classes = {"full": table_class(world), "limited": token_class(world, bigrams=False)}
        of_reward = token_class(world, bigrams=True)
    else:
        world = bandit.random(4, 10, seed)
        classes = {"full": table_class(world), "limited": feature_class(world, settings.features, seed)}
        of_reward = classes["full"]
    labels = draw_pairs(world.log_ref(), world.rewards(), settings.labels, seeded(seed, 52), False)
    return ExactSeed(settings, seed, world, classes, labels, fit(of_reward, labels))


def _run_exact(settings: RSOWhy, job: Job) -> list[dict[str, Any]]:
    made, rows = exact_seed(settings, job["seed"]), []
    for condition in settings.conditions:
        found = evaluate(made.fitted(job["policy"], condition), made.world, settings.beta)
        row = {"condition": condition, "objective": found.objective, "regret": found.regret, "kl": found.kl}
        if (
            settings.rung == "bandit"
            and job["policy"] == "full"
            and condition.startswith("gold")
            and condition[-1] == "N"
        ):
            row["closed_form"] = made.price(condition.split(" ")[1])
        rows.append(row)
    return rows


# Language models.


@lru_cache(maxsize=1)
def _bed(settings: RSOWhy, seed: int) -> Bed:
    plan = language.Plan(
        labels=settings.labels,
        prompts=settings.prompts,
        beta=settings.beta,
        steps=settings.steps,
        batch=settings.batch,
        reward_steps=settings.reward_steps,
        test_prompts=settings.test_prompts,
        test_samples=settings.test_samples,
    )
    return Bed(language.TextRun(language.bench(settings.rung, settings.task), plan, seed), settings.candidates)


def limit(policy: Policy) -> Policy:
    """Leave only biases and norms to train, all else as it is (Ben Zaken et al. 2022, BitFit, and norms)."""
    for parameter in policy.parameters():
        parameter.requires_grad_(parameter.ndim == 1)
    return policy


def _run_text(settings: RSOWhy, job: Job, chosen: Chosen) -> list[dict[str, Any]]:
    bed, searching = _bed(settings, job["seed"]), "rate" in job
    assert isinstance(bed.run, language.TextRun)
    labeller, source, _ = job["condition"].split(" ")
    kind = "direct" if job["condition"] == DIRECT else "sft-sample-rank" if source == "ref" else "rso-sample-rank"
    pairs = bed.pairs(kind, settings.beta, settings.accepted, gold=labeller == "gold")
    policy = bed.run.fresh()
    if job["policy"] == "limited":
        limit(policy)
    rate = float(job["rate"] if searching else chosen.get(job["policy"], settings.rates[0]))
    training = replace(bed.run.training(1), learning_rate=rate)
    dpo(policy, bed.reference, pairs, DPO("sigmoid-norm", settings.beta), training)
    split, reward = "validation" if searching else "test", bed.run.reward
    found = language.measure(bed.run, policy, split=split, proxy=reward, beta=settings.beta)  # type: ignore[arg-type]
    row = {"pairs": len(pairs), "objective": found["objective"], "reward": found["reward"], "kl": found["kl"]}
    row |= {"gold_wins": found["gold_wins"], "proxy_objective": found["proxy"] - settings.beta * found["kl"]}
    return [row]


def _run(settings: RSOWhy, job: Job, chosen: Chosen) -> list[dict[str, Any]]:
    return _run_exact(settings, job) if settings.exact else _run_text(settings, job, chosen)


def _tries(settings: RSOWhy) -> list[Job]:
    if settings.exact:
        return []  # convex fits have no rate
    return [
        {"seed": SEARCH_SEED, "policy": policy, "condition": "rm ref M", "rate": rate}
        for policy in POLICIES
        for rate in settings.rates
    ]


def _choose(settings: RSOWhy, search: pd.DataFrame) -> Chosen:
    if not len(search):
        return {}
    best = search.loc[search.groupby("policy")["proxy_objective"].idxmax()]
    return {str(policy): float(rate) for policy, rate in zip(best["policy"], best["rate"], strict=True)}


def _jobs(settings: RSOWhy) -> list[Job]:
    if settings.exact:
        return [{"seed": seed, "policy": policy} for seed in range(settings.seeds) for policy in POLICIES]
    return [
        {"seed": seed, "policy": policy, "condition": condition}
        for seed in range(settings.seeds)
        for policy in POLICIES
        for condition in settings.conditions
    ]


def _summarise(settings: RSOWhy, runs: pd.DataFrame) -> pd.DataFrame:
    metrics = [name for name in ("objective", "regret", "kl", "reward", "gold_wins", "closed_form") if name in runs]
    return summarise(runs, ["policy", "condition"], metrics)


# The effects.

FREE, SOURCE, CAPACITY, STATISTICS = "free labels", "pairs from π_r", "limited capacity", "statistics"
QUALITY, SOURCE_GOLD = "gold labels for r_φ's", "pairs from π*, gold labels"


def effects(settings: RSOWhy, runs: pd.DataFrame) -> dict[str, dict[str, Interval]]:
    """Gains of J by effect and policy, paired within seeds.

    free labels + pairs from π_r is the whole way from direct to rso-sample-rank. On exact rungs pairs from π_r =
    limited capacity (what is left with endless pairs) + statistics (the rest). On text capacity is how much more the
    limited policy gains from π_r than the full one, and statistics is what the full one gains.
    """
    table = runs.pivot(index="seed", columns=["policy", "condition"], values="objective")

    def gain(policy: str, after: str, before: str) -> Any:
        return table[policy, after] - table[policy, before]

    def said(values: Any) -> Interval:
        return Interval(*mean_interval(values.to_numpy()))

    source = {policy: gain(policy, "rm r M", "rm ref M") for policy in POLICIES}
    found = {
        FREE: {policy: said(gain(policy, "rm ref M", DIRECT)) for policy in POLICIES},
        SOURCE: {policy: said(source[policy]) for policy in POLICIES},
        QUALITY: {policy: said(gain(policy, "gold ref M", "rm ref M")) for policy in POLICIES},
        SOURCE_GOLD: {policy: said(gain(policy, "gold star M", "gold ref M")) for policy in POLICIES},
    }
    if settings.exact:
        left = {policy: gain(policy, "rm r inf", "rm ref inf") for policy in POLICIES}
        found[CAPACITY] = {"limited": said(left["limited"])}
        found[STATISTICS] = {policy: said(source[policy] - left[policy]) for policy in POLICIES}
    else:
        found[CAPACITY] = {"limited": said(source["limited"] - source["full"])}
        found[STATISTICS] = {"full": said(source["full"])}
    return found


def _how(intervals: dict[str, Interval]) -> str:
    """helps, hurts, …, of an explanation, over its policies."""
    state = state_of(list(intervals.values()))
    words = {"yes": "helps", "no": "hurts", "open": "is not decided"}
    if state == "mixed":
        helped = [policy for policy, one in intervals.items() if one.above]
        return f"helps the {helped[0]} policy"
    return words[state]


def _verdict(settings: RSOWhy, summary: pd.DataFrame, runs: pd.DataFrame) -> Verdict:
    found = effects(settings, runs)
    helped = [policy for policy, one in found[SOURCE].items() if one.above]
    hurt = [policy for policy, one in found[SOURCE].items() if one.below]
    parts = "; ".join(
        f"{name} {_how(found[name])} ("
        + ", ".join(f"{policy} {_signed(one)}" for policy, one in found[name].items())
        + ")"
        for name in (FREE, CAPACITY, STATISTICS)
    )
    gains = ", ".join(f"{policy} policy {_signed(one)}" for policy, one in found[SOURCE].items())
    sentence = f"Gain of J by pairs from π_r in place of π_ref: {gains}. Explanations: {parts}."
    if len(helped) == len(POLICIES):
        return Verdict("holds", sentence)
    if helped:
        return Verdict("holds when", f"For the {helped[0]} policy alone. {sentence}")
    return Verdict("does not hold" if hurt else "not decided", sentence)


def _signed(one: Interval) -> str:
    return f"{one.mean:+.3g} [{one.low:+.3g}, {one.high:+.3g}]"


NAMES = {
    DIRECT: "direct: N labels, π_ref",
    "rm ref N": "r_φ labels N pairs, π_ref",
    "rm ref M": "r_φ labels M pairs, π_ref",
    "rm r M": "r_φ labels M pairs, π_r",
    "rm ref inf": "r_φ labels endless pairs, π_ref",
    "rm r inf": "r_φ labels endless pairs, π_r",
    "gold ref M": "gold labels M pairs, π_ref",
    "gold star M": "gold labels M pairs, π*",
    "gold ref inf": "gold labels endless pairs, π_ref",
    "gold star inf": "gold labels endless pairs, π*",
    "gold r N": "N gold labels, π_r",
    "gold star N": "N gold labels, π*",
}
_ORDER = (
    DIRECT, "gold r N", "gold star N", "rm ref N", "rm ref M", "rm r M", "rm ref inf", "rm r inf", "gold ref M",
    "gold star M", "gold ref inf", "gold star inf",
)  # fmt: skip
_KEYS = {"ref": "rso-sft-sample-rank", "r": "rso-rso-sample-rank", "star": "optimal"}


def _figure(settings: RSOWhy, summary: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    drawing, (left, right) = style.subplots(1, 2, 14.5, 5.8, width_ratios=[1.0, 1.15])
    with style.use():
        _effects_panel(left, effects(settings, runs))
        _conditions_panel(right, settings, summary)
    return drawing


def _effects_panel(ax: Any, found: dict[str, dict[str, Interval]]) -> None:
    names = [FREE, SOURCE, CAPACITY, STATISTICS, QUALITY, SOURCE_GOLD]
    looks = {"full": ("s", style.colour("dpo"), 0.13), "limited": ("o", style.colour("policy"), -0.13)}
    for policy, (marker, colour, shift) in looks.items():
        rows = [(place, found[name][policy]) for place, name in enumerate(reversed(names)) if policy in found[name]]
        error = [[one.mean - one.low for _, one in rows], [one.high - one.mean for _, one in rows]]
        ax.errorbar(
            [one.mean for _, one in rows],
            [place + shift for place, _ in rows],
            xerr=error,
            fmt=marker,
            color=colour,
            capsize=3,
            label=f"{policy} policy",
        )
    ax.axvline(0, color="#999999", lw=1.2, ls="--", zorder=1)
    indent = {CAPACITY: "of this, ", STATISTICS: "of this, "}
    ax.set_yticks(range(len(names)), [indent.get(name, "") + name for name in reversed(names)])
    ax.set_ylim(-1.3, len(names) - 0.4)
    ax.set(title="What each thing brings", xlabel="gain of J [reward], 95% interval over seeds")
    ax.legend(loc="lower right", ncols=2)


def _conditions_panel(ax: Any, settings: RSOWhy, summary: pd.DataFrame) -> None:
    metric = "regret" if settings.exact else "objective"
    shown = [condition for condition in _ORDER if condition in settings.conditions]
    for policy, shift in (("full", 0.15), ("limited", -0.15)):
        table = summary[summary["policy"] == policy].set_index("condition")
        for place, condition in enumerate(reversed(shown)):
            row = table.loc[condition]
            look = style.of(_KEYS[condition.split(" ")[1]])
            low = row[metric] - row[f"{metric}_low"]
            if settings.exact:
                low = min(low, 0.9 * row[metric])
            face = look.light if policy == "full" else "white"
            ax.errorbar(
                [row[metric]],
                [place + shift],
                xerr=[[max(low, 0)], [max(row[f"{metric}_high"] - row[metric], 0)]],
                fmt="s" if policy == "full" else "o",
                color=look.light,
                mfc=face,
                capsize=3,
                ms=7,
            )
            if policy == "full" and row.get("closed_form", float("nan")) > 0:
                ax.plot([row["closed_form"]], [place + shift], "|", color="#111111", ms=13, mew=2, zorder=6)
    ax.set_yticks(range(len(shown)), [NAMES[condition] for condition in reversed(shown)])
    ax.set_ylim(-0.7, len(shown) - 0.4)
    if settings.exact:
        log_ticks(ax)
        bar = ", bar: price / N" if "closed_form" in summary else ""
        key = f"filled: full policy (endless gold labels: 0), hollow: limited{bar}"
        ax.set(title="Regret by pairs", xlabel="regret J(π*) − J(π) [reward, log scale]")
        ax.text(0.0, -0.17, key, transform=ax.transAxes, ha="left", va="top", fontsize=10)
    else:
        ax.set(title="J by pairs", xlabel="J = E[r*] − β KL [reward]\nfilled: full policy, hollow: limited")


def _words(settings: RSOWhy, summary: pd.DataFrame, runs: pd.DataFrame) -> str:
    found = effects(settings, runs)
    left = "; ".join(
        f"{name}: " + ", ".join(f"{policy} {_signed(one)}" for policy, one in parts.items())
        for name, parts in found.items()
    )
    metric = "regret" if settings.exact else "objective"
    table = summary.set_index(["policy", "condition"])[metric]
    right = "; ".join(
        f"{NAMES[condition]}: {table['full', condition]:.3g} and {table['limited', condition]:.3g}"
        for condition in settings.conditions
    )
    name = "Regret" if settings.exact else "J"
    return f"Gains of J with intervals. {left}. {name} of the full and the limited policy. {right}."


def _text(settings: RSOWhy, summary: pd.DataFrame, runs: pd.DataFrame) -> str:
    found = effects(settings, runs)
    table: Any = summary.set_index(["policy", "condition"])

    def both(name: str) -> str:
        return " and ".join(f"{_signed(one)} ({policy})" for policy, one in found[name].items())

    out = [
        f"From direct to sft-sample-rank, that is from {settings.labels} labels to {settings.pairs} pairs labelled for "
        f"nothing, J changes by {both(FREE)}; from π_ref's pairs to π_r's by {both(SOURCE)}."
    ]
    if settings.exact:
        same = settings.rung == "bandit"
        out.append(
            "The bandit's reward model is a table, as the full policy is: endless labels of it lead back to the very "
            "policy that direct has already (J differs by "
            f"{table.loc[('full', 'rm ref inf'), 'objective'] - table.loc[('full', DIRECT), 'objective']:.1g}), and "
            "finitely many blur it."
            if same
            else "The tree's reward model knows the form of the reward (tokens in places and pairs of neighbours), "
            "the full policy does not: what the labels say of other responses reaches it through the reward model."
        )
        limited = found[CAPACITY]["limited"]
        regret = table["regret"]
        out.append(
            "With endless pairs the full policy is at the optimum of r_φ whatever the pairs; the limited one ends at "
            f"a regret of {regret['limited', 'rm ref inf']:.3g} with pairs of π_ref and "
            f"{regret['limited', 'rm r inf']:.3g} with pairs of π_r (difference {_signed(limited)})."
        )
        weighs = (
            "Between responses of π* the loss weighs errors of the implicit reward as the regret does, to second order "
            "their variance under π* over 2β"
        )
        if limited.above:
            out.append(f"{weighs}; pairs of π_ref spend the few numbers on responses that π* hardly gives.")
        elif limited.below:
            out.append(
                f"{weighs}. But the regret is β KL(π‖π*), a mean over the policy's own responses: pairs of π_r are "
                "silent on what π_r hardly gives, and a policy whose few numbers are set elsewhere may give just that."
            )
        else:
            out.append(
                f"Two things pull against each other. {weighs}, which speaks for pairs of π_r; but the regret is "
                "β KL(π‖π*), a mean over the policy's own responses, and pairs of π_r are silent on what π_r hardly "
                "gives."
            )
        out.append(
            f"With finitely many pairs the rest of the difference is {both(STATISTICS)}"
            + (
                ": fewer of the labels fall on what π_r seldom gives, and there the policy stays wrong for longer."
                if all(one.below for one in found[STATISTICS].values())
                else "."
            )
        )
    else:
        out.append(
            f"The limited policy, which may set biases and norms alone, gains {_signed(found[CAPACITY]['limited'])} "
            "more from π_r's pairs than the full one does. Of the full one it is not known whether it is full: endless "
            "pairs cannot be had here."
        )
    out.append(
        f"Gold labels in place of r_φ's on as many pairs would bring {both(QUALITY)}, and with gold labels pairs of π* "
        f"bring {both(SOURCE_GOLD)}."
    )
    if "closed_form" in table:
        names = {"ref": DIRECT, "r": "gold r N", "star": "gold star N"}
        price = {name: table.loc[("full", key), "closed_form"] for name, key in names.items()}
        real = {name: table.loc[("full", key), "regret"] for name, key in names.items()}
        out.append(
            f"With {settings.labels} gold labels the regret of a full table should be, to leading order (label_price), "
            f"{price['ref']:.3g} with pairs of π_ref, {price['r']:.3g} of π_r and {price['star']:.3g} of π*; the fits, "
            f"which have a prior, came to {real['ref']:.3g}, {real['r']:.3g} and {real['star']:.3g}."
        )
    return " ".join(out)


EXPERIMENT = Experiment(
    number=4,
    name="rso-why",
    title="Why pairs from π_r should help: free labels, a policy that cannot fit everything, or statistics",
    says=(
        "The paper argues that the maximum likelihood estimate of the optimal policy needs labelled pairs sampled from "
        "that policy, and finds AutoSxS wins on TL;DR of 67.72% (direct), 69.02% (sft-sample-rank) and 71.86% "
        "(rso-sample-rank) with sigmoid-norm. The lecture: statistically rso-sample-rank is closer to π* than the two "
        "other choices. Neither separates what a reward model's labels bring from where the pairs come from."
    ),
    source="Liu et al. 2024 (RSO), abstract and Table 1; lecture, “Preference Data Distribution – Choices”",
    asks=(
        "A factorial design: labels of the gold reward or of r_φ (fitted to N gold labels); few or many pairs; from "
        "π_ref, π_r or π*; a policy that can represent everything, or a limited one. On the exact rungs every fit is "
        "convex and carried to its end, pairs are drawn from π_r itself, each seed has a world of its own, and the "
        "limit of endless pairs is computed too, so that the gain by π_r's pairs falls apart into what the limited "
        "policy's capacity explains and what statistics leave. There the full policy is a table, the limited one has "
        "three random features a prompt (bandit) or a number for each token in its place, for a reward that also looks "
        "at neighbours (tree). On the language model the full policy trains all weights, the limited one biases and "
        "norms alone; one rate for each, the best of four on one search seed by E[r_φ] − β KL on validation prompts. "
        "Its pairs are on as many prompts as its labels. γ = β = 0.5 throughout."
    ),
    rule=(
        "The gain of J from π_ref's to π_r's pairs (both labelled by r_φ, M pairs), paired within seeds. Holds: its "
        "interval lies above zero for the full and for the limited policy. Holds when: for one of them. Does not "
        "hold: for neither, and below zero for one. Not decided: the rest. An explanation (free labels: from N gold "
        "labels to M labels of r_φ; limited capacity: the gain that is left with endless pairs, on the language "
        "model the limited policy's gain less the full one's; statistics: what remains) helps where its interval "
        "lies above zero, hurts where below, and is not decided else."
    ),
    settings=RSOWhy,
    rungs=("bandit", "tree", "small"),
    jobs=_jobs,
    run=_run,
    summarise=_summarise,
    judge=_verdict,
    figure=_figure,
    words=_words,
    text=_text,
    tries=_tries,
    choose=_choose,
)


def main(settings: RSOWhy) -> None:
    """The command `rlhf-lab experiment rso-why`."""
    experiment.main(EXPERIMENT, settings)


__all__ = ["EXPERIMENT", "RSOWhy", "effects", "exact_seed", "main"]
