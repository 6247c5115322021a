r"""Question 9: a world that moves. When do fresh labels beat many labels at the start, and how often should one refit?

The lecture leaves it open (discussion, "Non-static Environment") and points to Bai et al. 2022, section 4.5, where
reward models and policies are renewed about weekly. Here the world moves by a law that we choose, so that π*_t and the
regret of every round are exact (`worlds/moving.py`, where the closed forms stand too).

Every strategy may spend the same labels. `offline` has them all before round 1; the others get n a round, and those
of the rounds before t serve in round t. All fit one reward model, by maximum a posteriori with a unit prior, and use
the exact optimum for it, which on a table or a log-linear policy is what DPO on the same labels finds as well. So what
differs is the labels alone: how old they are, and whose responses they are about. On a language model the same is
done by DPO, every fit from π_ref with as many steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.checks import LabError
from rlhf_lab.experiments import experiment
from rlhf_lab.experiments.experiment import EXACT_RUNGS, Chosen, Experiment, Job, Settings, Verdict
from rlhf_lab.experiments.statistics import Interval, difference, summarise
from rlhf_lab.training import seeded
from rlhf_lab.worlds import moving
from rlhf_lab.worlds.moving import Asked, MovingWorld

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rlhf_lab.batch import Pairs, Tokens
    from rlhf_lab.experiments.language import Bench, TextRun
    from rlhf_lab.policies.base import Policy

LOOKS = {
    # strategy: (its look in figures/style.py, its name)
    "offline": ("dpo", "once, all labels at the start"),
    "refit-all": ("reward", "refit, all labels so far"),
    "window": ("policy", "refit, newest labels"),
    "forgetting": ("plug-in", "refit, old labels fade"),
    "online": ("online", "own responses, newest labels"),
    "online-all": ("best-of-n", "own responses, all labels"),
}
"""How the strategies look and what they are called."""
CHANGES = {
    "none": "nothing moves",
    "drift": "preferences drift",
    "sudden": "preferences turn at once",
    "prompts": "prompts shift",
    "policy": "policy moves on",
    "policy-narrow": "policy moves on, small reward model",
}
"""What may move."""
PIECES = 4
"""Into so many parts a deployment is cut: the regret of each is kept."""
LANGUAGE = {
    "none": ("offline", "online-all"),
    "drift": ("offline", "refit-all", "window", "online", "online-all"),
    "prompts": ("offline", "online-all"),
}
"""Which strategies a language model tries under which change."""


@dataclass(frozen=True)
class NonStatic(Settings):
    """Drift, shift and sudden change: labels once, or labels every round?"""

    beta: float = 0.5
    """β of the objective."""
    labels: int = 0
    """Labels a round. 0: 120 on the bandit, 500 on the tree, 160 on a language model."""
    rounds: int = 0
    """Rounds of a deployment. 0: 24; on a language model 3."""
    turns: tuple[float, ...] = ()
    """Radians that preferences turn over a deployment. Default: seven from 0 to π/2; on a language model π/2."""
    windows: tuple[int, ...] = ()
    """Windows, in rounds, that are tried against the closed form. Default: 1 to 32."""
    every: tuple[int, ...] = ()
    """Rounds between fits that are tried. Default: 1 to 8."""
    drifts: tuple[float, ...] = ()
    """Radians a round at which windows are tried. Default: 0.02, 0.04 and 0.08."""
    fits: int = 0
    """Fits for each window, spread over one turn of the preferences. 0: 64 on the bandit, 10 on the tree."""
    more: int = 0
    """The windows are tried once more with so many times the labels at the root of that less drift: the best window is
    the same, all errors are smaller, and the closed form must be met. 0: 25 on the bandit, 4 on the tree."""
    window: int = 8
    """Rounds whose labels are kept where no closed form says how many."""
    cost: float = 0.2
    """Of one retraining, in reward summed over rounds: for the best rhythm. It takes no new runs."""
    steps: int = 32
    """Optimiser steps of every DPO fit on a language model."""

    def __post_init__(self) -> None:
        exact_rung = self.rung in EXACT_RUNGS
        bandit, quick = self.rung == "bandit", self.quick
        usual: dict[str, Any] = {
            "seeds": 2 if quick else (12 if bandit else 5 if exact_rung else 3),
            "labels": 16 if quick and not exact_rung else (120 if bandit else 500 if exact_rung else 160),
            "rounds": (8 if quick else 24) if exact_rung else (2 if quick else 3),
            "turns": (0.0, math.pi / 2) if quick else (0.0, 0.1, 0.2, 0.4, 0.8, 1.2, math.pi / 2),
            "windows": (1, 4) if quick else (1, 2, 3, 4, 6, 8, 12, 16, 24, 32),
            "every": (1, 2) if quick else (1, 2, 4, 8),
            "drifts": (0.08,) if quick else (0.02, 0.04, 0.08),
            "more": 4 if quick or not bandit else 25,
            "fits": 2 if quick else (64 if bandit else 10),
        }
        if not exact_rung:
            usual |= {"turns": (math.pi / 2,), "windows": (1,), "every": (1,), "drifts": (0.0,), "fits": 1, "more": 1}
        for name, value in usual.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)
        if quick and self.steps == 32:
            object.__setattr__(self, "steps", 2)
        super().__post_init__()
        if self.rounds < 1 or self.labels < 8 or self.fits < 1 or min(*self.windows, *self.every, self.window) < 1:
            raise LabError("A world that moves needs a round, 8 labels a round, and windows of at least one round.")
        if exact_rung and self.rounds % PIECES:
            raise LabError(f"rounds must be a multiple of {PIECES}, not {self.rounds}: so the curves are averaged.")
        if exact_rung and max(self.drifts) * (max(self.windows) + max(self.every)) > 12:
            raise LabError("drifts times windows is more than two turns: such a window knows nothing of any round.")


def _size(settings: NonStatic) -> tuple[int, ...]:
    """What random world a rung is: prompts and arms, or vocabulary, length, prompts."""
    if settings.rung == "bandit":
        return (4, 6)
    return (4, 3, 2) if settings.quick else (6, 4, 2)


# The reward model: linear in features, fitted by Newton's method


@dataclass(frozen=True, eq=False)
class Scene:
    """A seed's world and features."""

    at: MovingWorld
    features: Tensor
    """Φ, (K, d), orthonormal in the mean over responses; they span both rewards."""
    narrow: Tensor
    """Half of a random choice of them: a reward model too small for the reward."""

    def cost(self, t: float = 0.0, steps: int = 1) -> tuple[float, float]:
        """P summed over prompts, and the drift's cost at one radian, means over a turn in `steps` steps from t."""
        at, prices, costs = self.at, [], []
        for i in range(steps):
            angle = t + i * math.pi / max(steps, 1)
            reward = moving.turned(at.first, at.other, angle)
            velocity = moving.turned(at.first, at.other, angle + math.pi / 2)
            log_ref = at.log_ref
            prices.append(float(moving.price(self.features, log_ref, reward, at.beta).sum()))
            costs.append(float(moving.drift_cost(log_ref, reward, velocity, at.beta).mean()))
        return sum(prices) / steps, sum(costs) / steps


@lru_cache(maxsize=2)
def scene(rung: str, size: tuple[int, ...], seed: int, beta: float, rounds: int) -> Scene:
    """The world of a seed, at rest."""
    if rung == "bandit":
        at = moving.moving_bandit(size[0], size[1], seed, kind="none", beta=beta, rounds=rounds)
        features = moving.basis(torch.eye(size[1]))
    else:
        at = moving.moving_tree(size[0], size[1], size[2], seed, kind="none", beta=beta, rounds=rounds)
        features = moving.basis(_grams(at.world.tree.responses.ids, size[0]))
    d = features.shape[1]
    turn = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=seeded(seed, 105)))[0]
    return Scene(at, features, features @ turn[:, : (d + 1) // 2])


def _grams(ids: Tensor, vocab: int) -> Tensor:
    """Token by place, and word pairs anywhere, (K, L·V + V²): what additive and bigram rewards are made of."""
    hot = torch.nn.functional.one_hot
    places = [hot(ids[:, t], vocab) for t in range(ids.shape[1])]
    pairs = sum(hot(ids[:, t] * vocab + ids[:, t + 1], vocab * vocab) for t in range(ids.shape[1] - 1))
    return torch.cat([*places, torch.as_tensor(pairs)], 1)


def newton(differences: Tensor, weights: Tensor, ridge: float, start: Tensor | None = None) -> Tensor:
    """argmin_θ −Σ_m w_m log σ(δ_m·θ) + ½ ridge |θ|², for many weightings of the same pairs.

    Args:
        differences: δ = φ_chosen − φ_rejected, (M, d).
        weights: (B, M), non-negative.
        ridge: above 0: every reward has a finite estimate, of whatever labels.
        start: (B, d), where to begin.

    Returns:
        θ, (B, d).
    """
    size = differences.shape[1]
    theta = torch.zeros(len(weights), size, dtype=torch.float64) if start is None else start
    eye = ridge * torch.eye(size, dtype=torch.float64)
    outer = None
    if len(weights) > 1:
        outer = (differences.unsqueeze(-1) * differences.unsqueeze(-2)).flatten(1)
    for _ in range(60):
        p = torch.sigmoid(-(theta @ differences.T))
        gradient = (weights * p) @ differences - ridge * theta
        curve = weights * p * (1 - p)
        if outer is None:
            hessian = (differences.T @ (differences * curve[0].unsqueeze(-1))).unsqueeze(0) + eye
        else:
            hessian = (curve @ outer).view(-1, size, size) + eye
        step = torch.linalg.solve(hessian, gradient)
        # A step longer than two logits is cut: far from the optimum the parabola promises too much.
        reach = (step @ differences.T).abs().amax(-1, keepdim=True)
        theta = theta + step * (2 / reach.clamp(min=2))
        if float(reach.max()) < 1e-7:
            return theta
    raise LabError("Newton's method did not come to rest: are there labels with enormous weights?")


class Memory:
    """Labels of rounds as they came, and reward models fitted to any weighting of the rounds."""

    def __init__(self, features: Tensor, prompts: int) -> None:
        """No labels yet. Few responses are kept as counts of pairs, many as a list."""
        self.features, self.num_prompts = features, prompts
        self.ridge = float(features.shape[1])  # rewards of variance 1 are expected
        size = len(features)
        self.dense = size <= 16
        self.rounds: list[Any] = []
        if self.dense:
            self.pairs = (~torch.eye(size, dtype=torch.bool)).nonzero()
            self.differences = features[self.pairs[:, 0]] - features[self.pairs[:, 1]]
        self._last: list[Tensor | None] = [None] * prompts

    def add(self, asked: Asked) -> None:
        """Labels of the next round."""
        if not self.dense:
            self.rounds.append(asked)
            return
        size = len(self.features)
        place = (asked.prompts * size + asked.chosen) * size + asked.rejected
        counts = torch.bincount(place, minlength=self.num_prompts * size * size).double()
        counts = counts.view(self.num_prompts, size, size)
        self.rounds.append(counts[:, self.pairs[:, 0], self.pairs[:, 1]])

    def fit(self, weights: Tensor) -> Tensor:
        """Reward models, (B, X, K), for weights of the rounds, (B, rounds)."""
        if self.dense:
            every = torch.stack(self.rounds)
            flat = (weights @ every.flatten(1)).view(-1, every.shape[-1])
            theta = newton(self.differences, flat, self.ridge)
            return (theta @ self.features.T).view(len(weights), self.num_prompts, -1)
        return torch.stack([self._fit_list(row) for row in weights])

    def _fit_list(self, weights: Tensor) -> Tensor:
        used = [(asked, float(w)) for asked, w in zip(self.rounds, weights, strict=True) if w > 1e-6]
        rewards = []
        for x in range(self.num_prompts):
            mine = [(asked, asked.prompts == x, w) for asked, w in used]
            chosen = torch.cat([asked.chosen[here] for asked, here, _ in mine])
            rejected = torch.cat([asked.rejected[here] for asked, here, _ in mine])
            weight = torch.cat([torch.full((int(here.sum()),), w, dtype=torch.float64) for _, here, w in mine])
            differences = self.features[chosen] - self.features[rejected]
            theta = newton(differences, weight.unsqueeze(0), self.ridge, self._last[x])
            self._last[x] = theta
            rewards.append(self.features @ theta[0])
        return torch.stack(rewards)


def _kept(strategy: str, t: int, window: int) -> Tensor:
    """Weights of the rounds 0 … t − 1 in the fit that serves round t, (1, t)."""
    age = torch.arange(t, 0, -1, dtype=torch.float64)
    if strategy == "forgetting":
        keep = 1 - 2 / (window + 1)  # the mean age of the labels is the window's
        return (keep ** (age - 1)).unsqueeze(0)
    if strategy in ("window", "online"):
        return (age <= window).double().unsqueeze(0)
    return torch.ones(1, t, dtype=torch.float64)


def deploy(
    at: MovingWorld, features: Tensor, labels: int, window: int, seed: int, strategies: tuple[str, ...] = tuple(LOOKS)
) -> dict[str, list[float]]:
    """The regret of each round 1 … T for each strategy, units of reward.

    Strategies that label the reference's responses share their labels. `offline` has n·T of them, of round 0.

    Args:
        at: the world in motion.
        features: of the reward model, (K, d).
        labels: n a round.
        window: of `window`, `online` and (by mean age) `forgetting`, rounds.
        seed: of the labels.
        strategies: which.
    """
    found: dict[str, list[float]] = {}
    prompts, generator = at.world.num_prompts, seeded(seed, 40)
    if "offline" in strategies:
        memory = Memory(features, prompts)
        memory.add(at.ask(labels * at.rounds, 0, generator))
        reward = memory.fit(torch.ones(1, 1, dtype=torch.float64))[0]
        found["offline"] = [at.regret(at.tilt(reward, t), t) for t in range(1, at.rounds + 1)]
    memory = Memory(features, prompts)
    for t in range(1, at.rounds + 1):
        memory.add(at.ask(labels, t - 1, generator))
        for strategy in strategies:
            if strategy in ("refit-all", "window", "forgetting"):
                reward = memory.fit(_kept(strategy, t, window))[0]
                found.setdefault(strategy, []).append(at.regret(at.tilt(reward, t), t))
    for number, strategy in enumerate(("online", "online-all")):
        if strategy not in strategies:
            continue
        memory, generator = Memory(features, prompts), seeded(seed, 41 + number)
        log_policy = at.log_ref
        for t in range(1, at.rounds + 1):
            memory.add(at.ask(labels, t - 1, generator, log_policy))
            log_policy = at.tilt(memory.fit(_kept(strategy, t, window))[0], t)
            found.setdefault(strategy, []).append(at.regret(log_policy, t))
    return found


def steady(
    at: MovingWorld,
    features: Tensor,
    labels: int,
    windows: tuple[int, ...],
    every: tuple[int, ...],
    fits: int,
    seed: int,
) -> dict[tuple[int, int], float]:
    """The long run's mean regret of a round for each (window, rounds between fits), under drift; units of reward.

    Fits are spread evenly over half a turn, after which the rewards are the old ones with their signs turned round.
    """
    memory, generator = Memory(features, at.world.num_prompts), seeded(seed, 50)
    longest, most = max(windows), max(every)
    apart = max(round(math.pi / (at.rate * fits)), 1)
    times = [longest + i * apart for i in range(fits)]
    for t in range(times[-1]):
        memory.add(at.ask(labels, t, generator))
    rounds = torch.arange(times[-1])
    found: dict[tuple[int, int], float] = {}
    for window in windows:
        kept = torch.stack([((rounds < t) & (rounds >= t - window)).double() for t in times])
        rewards = memory.fit(kept)
        log_policy = exact.optimal_policy(at.log_ref, rewards, at.beta)
        late = []
        for age in range(most):
            angle = at.rate * (torch.tensor(times, dtype=torch.float64) + age)
            truth = moving.turned(at.first, at.other, angle[:, None, None])
            late.append(float(exact.regret(log_policy, at.log_ref, truth, at.beta).mean()))
        for k in every:
            found[window, k] = sum(late[:k]) / k
    return found


# Jobs


def jobs(settings: NonStatic) -> list[Job]:
    """On exact rungs a seed's deployments and long runs; on a language model a seed's deployments by strategy."""
    out: list[Job] = []
    for seed in range(settings.seeds):
        if settings.rung not in EXACT_RUNGS:
            for change, strategies in LANGUAGE.items():
                out += [{"part": "deploy", "change": change, "strategy": s, "seed": seed} for s in strategies]
            continue
        out += [{"part": "steady", "rate": rate, "more": 1, "seed": seed} for rate in settings.drifts]
        middle = settings.drifts[len(settings.drifts) // 2]
        less = middle / math.sqrt(settings.more)
        out.append({"part": "steady", "rate": less, "more": settings.more, "seed": seed})
        out += [{"part": "deploy", "change": "drift", "turn": turn, "seed": seed} for turn in settings.turns]
        others = [change for change in CHANGES if change not in ("none", "drift")]
        out += [{"part": "deploy", "change": change, "turn": 0.0, "seed": seed} for change in others]
    return out


def run(settings: NonStatic, job: Job, chosen: Chosen) -> list[dict[str, Any]]:
    """One job's rows."""
    if settings.rung not in EXACT_RUNGS:
        return _run_language(settings, job)
    made = scene(settings.rung, _size(settings), job["seed"], settings.beta, settings.rounds)
    n, rounds = settings.labels, settings.rounds
    if job["part"] == "steady":
        price, late = made.cost(steps=8)
        n, drift = n * job["more"], late * job["rate"] ** 2
        at = replace(made.at, kind="drift", rate=job["rate"])
        # With more labels only windows near the best one, of a policy that is always fresh.
        windows = settings.windows if job["more"] == 1 else tuple(w for w in settings.windows if w <= settings.window)
        every = settings.every if job["more"] == 1 else settings.every[:1]
        found = steady(at, made.features, n, windows, every, settings.fits, job["seed"])
        rows: list[dict[str, Any]] = []
        for (window, k), regret in found.items():
            limit = moving.window_regret(price, drift, n, window, k)
            best = moving.best_window(price, drift, n, k)
            rows.append({"window": window, "every": k, "regret": regret, "limit": limit, "best": best})
        return rows
    change, turn = job["change"], job["turn"]
    price, late = made.cost()
    window, features, at = settings.window, made.features, made.at
    if change == "drift":
        rate = turn / rounds
        at = replace(at, kind="drift" if turn else "none", rate=rate)
        window = moving.best_deployed(price, late * rate**2, n, rounds)
    elif change == "sudden":
        at = replace(at, kind="sudden", rate=math.pi / 2)
    elif change == "prompts":
        at = replace(at, kind="prompts")
    else:
        # The same end as elsewhere, β, but four times as dear a nat at the start.
        at = replace(at, kind="policy", beta=4 * settings.beta, last_beta=settings.beta / 2)
        features = made.narrow if change == "policy-narrow" else features
    even = math.sqrt(moving.break_even(price, n, rounds) / late) * rounds
    deployed: list[dict[str, Any]] = []
    for strategy, regrets in deploy(at, features, n, window, job["seed"]).items():
        pieces = torch.tensor(regrets, dtype=torch.float64).view(PIECES, -1).mean(1).tolist()
        row: dict[str, Any] = {"strategy": strategy, "kept": window, "even": even, "regret": sum(regrets) / rounds}
        deployed.append(row | {f"quarter_{i + 1}": value for i, value in enumerate(pieces)})
    return deployed


# The language model


@dataclass(frozen=True)
class Style:
    """How long the reference's responses are, in words: what brevity is measured against."""

    mean: float
    spread: float
    """Standard deviation within a prompt."""


@lru_cache(maxsize=2)
def reference_style(rung: str) -> Style:
    """Measured on 64 validation prompts, four responses each."""
    from rlhf_lab.experiments.language import bench

    made = bench(rung, "sentiment")
    prompts = made.world.prompts(made.tokenizer, "validation", 64)
    drawn = made.reference.sample(prompts, 4, seeded(0, 60, device=made.reference.device))
    words = _words([made.tokenizer.batch_decode(ys, skip_special_tokens=True) for ys in drawn.tolist()])
    return Style(float(words.mean()), float(words.var(1).mean().sqrt()))


def _words(texts: list[list[str]]) -> Tensor:
    return torch.tensor([[len(text.split()) for text in row] for row in texts], dtype=torch.float64)


class TextDeployment:
    """A seed's deployment of a language model. Taste turns from glad to brief, or the things asked about change.

    r_t = cos(angle) · VADER / unit + sin(angle) · brevity, brevity = (mean − words) / spread of π_ref's responses.
    """

    FIRST, LAST = ("Film", "Book"), ("Restaurant", "Hotel", "Game")

    def __init__(self, settings: NonStatic, seed: int) -> None:
        """Nothing is drawn or fitted before it is asked for."""
        from rlhf_lab.experiments.language import Plan, TextRun, bench

        self.settings, self.seed = settings, seed
        self.bench: Bench = bench(settings.rung, "sentiment")
        if settings.quick:
            short: Any = self.bench.reference.copy()
            short.max_new_tokens = 8
            self.bench = replace(self.bench, reference=short.frozen())
        self.run: TextRun = TextRun(self.bench, Plan(beta=settings.beta, steps=settings.steps), seed)
        self.style = reference_style(settings.rung)
        self._answers: dict[Any, tuple[Tensor, Tensor, float]] = {}
        self._policies: dict[Any, Policy] = {}
        self._labels: dict[Any, Pairs] = {}

    def angle(self, change: str, t: float) -> float:
        """Radians that the taste has turned in round t."""
        return self.settings.turns[-1] * t / self.settings.rounds if change == "drift" else 0.0

    def share(self, change: str, t: float) -> float:
        """Of the prompts of round t that ask about new things."""
        return t / self.settings.rounds if change == "prompts" else 0.0

    def prompts(self, split: str, number: int, share: float, generator: torch.Generator) -> tuple[Tokens, list[str]]:
        """`number` prompts, that share of them about new things, and their texts."""
        texts: list[str] = []
        new = round(share * number)
        for kinds, wanted in ((self.FIRST, number - new), (self.LAST, new)):
            examples = self.bench.world.examples(split, 512 if split != "train" else 4096)
            pool = [example.prompt for example in examples if example.facts["kind"] in kinds]
            texts += [pool[i % len(pool)] for i in torch.randperm(len(pool), generator=generator).tolist()[:wanted]]
        from rlhf_lab.batch import Tokens

        ids = self.bench.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return Tokens.from_lists(ids), texts

    def golds(self, asked: list[str], responses: Tokens) -> tuple[Tensor, Tensor]:
        """VADER (raw) and number of words of each response, (B, G) each."""
        texts = [self.bench.tokenizer.batch_decode(ys, skip_special_tokens=True) for ys in responses.tolist()]
        flat = [text for row in texts for text in row]
        again = [prompt for prompt in asked for _ in texts[0]]
        gold = torch.tensor(self.bench.world.gold(again, flat), dtype=torch.float64)
        return gold.view(len(asked), -1), _words(texts)

    def reward(self, gold: Tensor, words: Tensor, angle: float) -> Tensor:
        """r_t of both parts, in the labeller's unit."""
        brevity = (self.style.mean - words) / self.style.spread
        return math.cos(angle) * gold / self.bench.unit + math.sin(angle) * brevity

    def of_reference(self, change: str, t: int, number: int, stream: int) -> Pairs:
        """Labels of round t on responses of π_ref: the same for all strategies. Round 0 knows no change."""
        return self.asked(self.bench.reference, "reference", change if t else "none", t, number, stream)

    def asked(self, policy: Policy, key: str, change: str, t: int, number: int, stream: int) -> Pairs:
        """`label`, once; `key` names the policy."""
        what = (key, change, t, number, stream)
        if what not in self._labels:
            self._labels[what] = self.label(policy, change, t, number, stream)
        return self._labels[what]

    def label(self, policy: Policy, change: str, t: int, number: int, stream: int) -> Pairs:
        """Labels of round t on the policy's own responses. Pairs of equal responses are dropped."""
        from rlhf_lab.batch import cat_pairs, pick_pairs
        from rlhf_lab.preferences import first_wins

        plain = seeded(self.seed, 61, t, stream)
        prompts, asked = self.prompts("train", number, self.share(change, t), plain)
        generator = seeded(self.seed, 62, t, stream, device=policy.device)
        parts = []
        for begin in range(0, len(prompts), 64):
            few, names = prompts[begin : begin + 64], asked[begin : begin + 64]
            y = policy.sample(few, 2, generator).to("cpu")
            scores = self.reward(*self.golds(names, y), self.angle(change, t))
            first = first_wins(scores[:, 0], scores[:, 1], plain)
            index = torch.stack([(~first).long(), first.long()], -1).unsqueeze(1)
            parts.append(pick_pairs(few, y, index)[0])
        return cat_pairs([part for part in parts if len(part)])

    def fit(self, pairs: Pairs, stream: int) -> Policy:
        """DPO from π_ref on these labels."""
        from rlhf_lab.algorithms.dpo import DPO, dpo

        policy = self.run.fresh()
        dpo(policy, self.bench.reference, pairs, DPO(beta=self.settings.beta), self.run.training(stream))
        return policy

    def kept(self, key: str, make: Callable[[], Policy]) -> Policy:
        """A policy that several strategies share."""
        if key not in self._policies:
            self._policies[key] = make()
        return self._policies[key]

    @torch.no_grad()
    def measure(self, policy: Policy, key: str, change: str, t: int) -> dict[str, float]:
        """The policy in round t, on test prompts of that round. `key` names the policy, whose answers are kept."""
        share = self.share(change, t)
        if (key, share) not in self._answers:
            number = 8 if self.settings.quick else 48
            prompts, asked = self.prompts("test", number, share, seeded(self.seed, 63))
            y = policy.sample(prompts, 4, seeded(self.seed, 64, device=policy.device))
            k1 = policy.log_prob(prompts, y) - self.bench.reference.log_prob(prompts, y)
            self._answers[key, share] = (*self.golds(asked, y), float(k1.double().mean()))
        gold, words, kl = self._answers[key, share]
        reward = float(self.reward(gold, words, self.angle(change, t)).mean())
        return {
            "objective": reward - self.settings.beta * kl,
            "reward": reward,
            "kl": kl,
            "gold": float(gold.mean()),
            "words": float(words.mean()),
        }


@lru_cache(maxsize=1)
def _text_deployment(settings: NonStatic, seed: int) -> TextDeployment:
    return TextDeployment(settings, seed)


def _run_language(settings: NonStatic, job: Job) -> list[dict[str, Any]]:
    from rlhf_lab.batch import cat_pairs

    made = _text_deployment(settings, job["seed"])
    change, strategy, n, rounds = job["change"], job["strategy"], settings.labels, settings.rounds
    if strategy == "offline":
        policy = made.kept("offline", lambda: made.fit(made.of_reference("none", 0, n * rounds, 0), 70))
        return [{"round": t} | made.measure(policy, "offline", change, t) for t in range(1, rounds + 1)]
    # Round 1 rests on labels of π_ref's responses of round 0, whatever comes after.
    rows, seen = [], [made.of_reference("none", 0, n, 1)]
    for t in range(1, rounds + 1):
        used = seen[-1] if strategy in ("window", "online") else cat_pairs(seen)
        key = "first" if t == 1 else f"{change} {strategy} {t}"
        policy = made.kept(key, lambda used=used, t=t: made.fit(used, 70 + t))  # type: ignore[misc]
        rows.append({"round": t} | made.measure(policy, key, change, t))
        if t == rounds:
            break
        own = strategy.startswith("online")
        seen.append(made.asked(policy, key, change, t, n, 1) if own else made.of_reference(change, t, n, 1))
    return rows


# What it comes to


def summary_of(settings: NonStatic, runs: pd.DataFrame) -> pd.DataFrame:
    """One row a condition; see the columns' names. On exact rungs of two kinds, by `part`."""
    import pandas as pd

    if settings.rung not in EXACT_RUNGS:
        metrics = ["objective", "reward", "kl", "gold", "words"]
        by = ["change", "strategy"]
        each = runs.groupby([*by, "seed"], sort=False)[metrics].mean().reset_index()
        return pd.concat(
            [
                summarise(each, by, metrics).assign(round="all"),
                summarise(runs, [*by, "round"], metrics),
            ],
            ignore_index=True,
        )
    runs = runs.assign(ratio=runs["regret"] / runs["limit"])
    long = summarise(
        runs[runs["part"] == "steady"],
        ["part", "rate", "more", "window", "every"],
        ["regret", "limit", "best", "ratio"],
    )
    metrics = ["regret", *(f"quarter_{i + 1}" for i in range(PIECES)), "kept", "even"]
    short = summarise(runs[runs["part"] == "deploy"], ["part", "change", "turn", "strategy"], metrics)
    return pd.concat([short, long], ignore_index=True)


def _deployed(runs: pd.DataFrame, change: str, turn: float) -> pd.DataFrame:
    return runs[(runs["part"] == "deploy") & (runs["change"] == change) & ((runs["turn"] - turn).abs() < 1e-4)]


def gain(runs: pd.DataFrame, change: str, turn: float, one: str = "window", other: str = "offline") -> Interval:
    """Mean regret of a round of `one` less that of `other`, paired within the seed; below 0 where `one` is better."""
    return difference(_deployed(runs, change, turn), "strategy", one, other, "regret")


def at_best(runs: pd.DataFrame, more: int, rate: float | None = None) -> Interval:
    """Regret over closed form at the tried window next to the closed form's best one, policies always fresh."""
    from rlhf_lab.experiments.statistics import mean_interval

    long = runs[(runs["part"] == "steady") & (runs["more"] == more) & (runs["every"] == runs["every"].min())]
    if rate is not None:
        long = long[(long["rate"] - rate).abs() < 1e-6]
    near = long.assign(off=(long["window"].map(math.log) - long["best"].map(math.log)).abs())
    near = near.loc[near.groupby(["seed", "rate"])["off"].idxmin()]
    each = (near["regret"] / near["limit"]).groupby(near["seed"]).mean()
    return Interval(*mean_interval(each.to_numpy()))


def judge(settings: NonStatic, summary: pd.DataFrame, runs: pd.DataFrame) -> Verdict:
    """The rule, see `RULE`."""
    if settings.rung not in EXACT_RUNGS:
        return _judge_language(runs)
    gains = {turn: gain(runs, "drift", turn) for turn in sorted(settings.turns)}
    better = [turn for turn, found in gains.items() if found.below]
    worse = [turn for turn, found in gains.items() if found.above]
    ratio = at_best(runs, max(settings.more, 1))
    met = ratio.low >= 0.9 and ratio.high <= 1.1
    form = (
        f"With {settings.more} times the labels the regret at the closed form's best window is {ratio} of the closed "
        f"form, which is {'met' if met else 'not met'} (within 10%)."
    )
    turns = list(gains)
    # The first drift from which on every interval lies below zero.
    start = next((i for i in range(len(turns)) if all(gains[turn].below for turn in turns[i:])), None)
    if start == 0:
        return Verdict("holds", f"Refitting on the newest labels has the smaller regret at every drift tried. {form}")
    if start is not None:
        before = f"; up to {max(worse):.2g} rad fitting once is better" if worse else ""
        found = gains[turns[start]]
        return Verdict(
            "holds when",
            f"the preferences turn by at least {turns[start]:.2g} rad over the deployment: there the regret of a round "
            f"is smaller by {-found.mean:.2g} [{-found.high:.2g}, {-found.low:.2g}]{before}. {form}",
        )
    if better:
        return Verdict("not decided", f"Refitting is better at some drifts, but not from one of them on. {form}")
    if worse:
        return Verdict("does not hold", f"At no drift is the regret of refitting smaller, at some it is larger. {form}")
    return Verdict("not decided", f"At no drift does the interval of the difference leave out zero. {form}")


def language_gain(runs: pd.DataFrame, change: str, one: str, other: str = "offline") -> Interval:
    """Mean objective over the rounds of `one` less that of `other`, paired within the seed; above 0: better."""
    part = runs[runs["change"] == change].groupby(["strategy", "seed"], sort=False)["objective"].mean().reset_index()
    return difference(part, "strategy", one, other, "objective")


def _judge_language(runs: pd.DataFrame) -> Verdict:
    drift, still = language_gain(runs, "drift", "online"), language_gain(runs, "none", "online-all")
    told = (
        f"Online less offline in J, mean over the rounds: {drift} where the taste turns, {still} where nothing moves."
    )
    if drift.above and still.above:
        return Verdict("holds", told)
    if drift.above:
        return Verdict("holds when", f"preferences drift. {told}")
    if drift.below:
        return Verdict("does not hold", told)
    return Verdict("not decided", told)


# In words


def _range(found: Interval) -> str:
    return f"{found.mean:.2g} [{found.low:.2g}, {found.high:.2g}]"


def _compared(found: Interval, one: str, other: str) -> str:
    """Which of two has the smaller regret, by the interval of their difference."""
    if found.below:
        return f"{one} lose less than {other} (difference {_range(found)})"
    if found.above:
        return f"{one} lose more than {other} (difference {_range(found)})"
    return f"{one} and {other} cannot be told apart (difference {_range(found)})"


def rhythm(summary: pd.DataFrame, rate: float, cost: float, column: str = "regret") -> tuple[int, int]:
    """The window and the rounds between fits with the least `column` + cost / k, among those tried at `rate`."""
    long = summary[(summary["part"] == "steady") & ((summary["rate"] - rate).abs() < 1e-6) & (summary["more"] == 1)]
    best = long.iloc[int((long[column] + cost / long["every"]).to_numpy().argmin())]
    return int(best["window"]), int(best["every"])


def _mean(summary: pd.DataFrame, change: str, turn: float, strategy: str, column: str = "regret") -> float:
    rows = summary[(summary["change"] == change) & (summary["strategy"] == strategy)]
    return float(rows[(rows["turn"] - turn).abs() < 1e-4][column].iloc[0])


def text(settings: NonStatic, summary: pd.DataFrame, runs: pd.DataFrame) -> str:
    """What was found and why."""
    if settings.rung not in EXACT_RUNGS:
        return _text_language(settings, summary, runs)
    n, rounds, most = settings.labels, settings.rounds, max(settings.turns)
    gains = {turn: gain(runs, "drift", turn) for turn in sorted(settings.turns)}
    worse = [turn for turn, found in gains.items() if found.above]
    better = [turn for turn, found in gains.items() if found.below]
    even = float(summary["even"].dropna().mean())
    once = (
        "fitting once is better up to a turn of " + f"{max(worse):.2g} rad" if worse else "fitting once is never better"
    )
    again = f"refitting from {min(better):.2g} rad on" if better else "refitting nowhere"
    windows = []
    for rate in settings.drifts:
        found = rhythm(summary, rate, 0.0)
        long = summary[((summary["rate"] - rate).abs() < 1e-6) & (summary["more"] == 1) & (summary["every"] == 1)]
        windows.append(f"{found[0]} at {rate:g} rad a round (formula {float(long['best'].iloc[0]):.1f})")
    middle = settings.drifts[len(settings.drifts) // 2]
    dear, dear_formula = rhythm(summary, middle, settings.cost), rhythm(summary, middle, settings.cost, "limit")
    prompts = gain(runs, "prompts", 0.0, "refit-all", "window")
    own = gain(runs, "drift", most, "online", "window")
    wide, narrow = (gain(runs, change, 0.0, "online-all", "offline") for change in ("policy", "policy-narrow"))
    reason = ": such a model is right only where it was fitted" if narrow.below else ""
    return "\n\n".join(
        [
            f"{n} labels a round for {rounds} rounds, or {n * rounds} before the first; {runs['seed'].nunique()} seeds "
            f"with a random world each. Under drift {once}, {again}. The closed form puts the turning point "
            f"at {even:.2g} rad: ωT = √(q P/(nT C)), q a number that depends on T alone, so more labels make refitting "
            f"worth while at less drift. At {most:.2g} rad fitting once loses "
            f"{_mean(summary, 'drift', most, 'offline'):.2g} a round, refitting on all labels so far "
            f"{_mean(summary, 'drift', most, 'refit-all'):.2g}, on the newest "
            f"{_mean(summary, 'drift', most, 'window'):.2g}, with fading labels "
            f"{_mean(summary, 'drift', most, 'forgetting'):.2g}.",
            f"The window with the least regret in the long run, among those tried, was {', '.join(windows)}. "
            f"The closed form, price/(nW) for estimation and Var_π*(dr/dt)/(2β) times the squared age for "
            f"drift, is a limit of many labels and slow drift: at its best window simulation over formula is "
            f"{at_best(runs, 1)}, with {settings.more} times the labels {at_best(runs, settings.more)}. If a "
            f"retraining costs {settings.cost:g} (reward, summed over rounds) and preferences turn {middle:g} rad a "
            f"round, the cheapest rhythm tried is a fit every {dear[1]} rounds on {dear[0]} rounds of labels; by the "
            f"formula every "
            f"{dear_formula[1]} on {dear_formula[0]}.",
            f"What moves decides what to keep. When preferences turn at once half way, fitting once loses "
            f"{_mean(summary, 'sudden', 0.0, 'offline', f'quarter_{PIECES}'):.2g} in the last quarter, all labels "
            f"{_mean(summary, 'sudden', 0.0, 'refit-all', f'quarter_{PIECES}'):.2g}, the newest "
            f"{_mean(summary, 'sudden', 0.0, 'window', f'quarter_{PIECES}'):.2g}. When prompts shift, old labels stay "
            f"true: {_compared(prompts, 'fits to all labels', 'fits to the newest')}. When only the policy moves on "
            f"from π_ref, {_compared(wide, 'labels of its own responses, all kept,', 'labels of π_ref at the start')} "
            f"with a reward model that can say everything, and with one half as large "
            f"{_compared(narrow, 'the former', 'the latter')}{reason}. At the fastest drift "
            f" {_compared(own, 'the newest labels of own responses', 'the newest labels of π_ref')}.",
        ]
    )


def _of_language(summary: pd.DataFrame, change: str, strategy: str, number: Any = "all") -> pd.Series:
    rows = summary[(summary["change"] == change) & (summary["strategy"] == strategy)]
    return rows[rows["round"].astype(str) == str(number)].iloc[0]


def _text_language(settings: NonStatic, summary: pd.DataFrame, runs: pd.DataFrame) -> str:
    n, rounds, turn = settings.labels, settings.rounds, settings.turns[-1]
    lines = []
    for strategy in LANGUAGE["drift"]:
        last = _of_language(summary, "drift", strategy, rounds)
        lines.append(
            f"{LOOKS[strategy][1]}: J {last['objective']:.2f}, VADER {last['gold']:.2f}, {last['words']:.1f} words"
        )
    drift, still, shift = (
        language_gain(runs, change, one)
        for change, one in (("drift", "online"), ("none", "online-all"), ("prompts", "online-all"))
    )

    def told(found: Interval) -> str:
        sign = "more" if found.above else "less" if found.below else "not decidedly more or less"
        return f"{sign} ({_range(found)})"

    memory = language_gain(runs, "drift", "window", "refit-all")
    own = language_gain(runs, "drift", "online", "window")
    end = language_gain(runs[runs["round"] == rounds], "drift", "window")
    return "\n\n".join(
        [
            f"{n} labels a round for {rounds} rounds, or {n * rounds} before the first; every fit is DPO from π_ref "
            f"with {settings.steps} steps; {runs['seed'].nunique()} seeds. In the drift the labeller's taste turns by "
            f"{turn:.2f} rad, from glad (VADER) to brief (fewer words); where prompts shift, films and books give way "
            f"to restaurants, hotels and games. π* is out of reach here: J of the round, E[r_t] − β KL, is compared.",
            f"In the last round of the drift: {'; '.join(lines)}. There a refit to the newest labels of π_ref's "
            f"responses earned {told(end)} than fitting once. Over all rounds, labels of own responses, the newest "
            f"only, earned {told(drift)} than as many labels at the start. Where nothing moves, labels of own "
            f"responses (all kept) earned {told(still)}, and where prompts shift {told(shift)}.",
            f"Apart: of π_ref's responses, the newest labels earned {told(memory)} than all labels so far; of the "
            f"newest labels, those of own responses earned {told(own)} than those of π_ref's.",
        ]
    )


def figure(settings: NonStatic, summary: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Exact: window against closed form, drift against regret, other changes. Language: J by round, and differences."""
    from rlhf_lab.figures import style

    if settings.rung not in EXACT_RUNGS:
        return _figure_language(settings, summary, runs)
    drawing, axes = style.subplots(1, 3, width=17, height=5.2)
    with style.use():
        _draw_windows(axes[0], settings, summary)
        _draw_drift(axes[1], settings, summary)
        _draw_changes(axes[2], summary)
    return drawing


def _draw_windows(ax: Axes, settings: NonStatic, summary: pd.DataFrame) -> None:
    from rlhf_lab.figures import style

    long = summary[(summary["part"] == "steady") & (summary["every"] == 1) & (summary["more"] == 1)]
    marks = ("o", "s", "^", "D", "v", "P")
    for i, rate in enumerate(settings.drifts):
        rows = long[(long["rate"] - rate).abs() < 1e-6]
        ends = [rows["regret"] - rows["regret_low"], rows["regret_high"] - rows["regret"]]
        colour = style.colour(("dpo", "policy", "rest", "online", "ppo", "sft")[i % 6])
        ax.errorbar(
            rows["window"],
            rows["regret"],
            ends,
            fmt=marks[i % 6],
            color=colour,
            capsize=3,
            label=f"{rate:g} rad a round",
        )
        ax.plot(rows["window"], rows["limit"], color=colour, ls="--", lw=1.4)
        ax.axvline(float(rows["best"].iloc[0]), color=colour, ls=":", lw=1.2)
    ax.set(xscale="log", yscale="log", xlabel="window W [rounds of labels]", ylabel="regret of a round [reward]")
    ax.set_xticks(list(settings.windows), [str(w) for w in settings.windows])
    ax.minorticks_off()
    ax.set_title("Long run: points simulated, dashed the\nclosed form, dotted its best window", pad=30)
    ax.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.1, handlelength=1, columnspacing=1)


def _draw_drift(ax: Axes, settings: NonStatic, summary: pd.DataFrame) -> None:
    from rlhf_lab.figures import style

    for strategy, (key, name) in LOOKS.items():
        rows = summary[(summary["change"] == "drift") & (summary["strategy"] == strategy)]
        look = style.of(key)
        ends = [rows["regret"] - rows["regret_low"], rows["regret_high"] - rows["regret"]]
        ax.errorbar(
            rows["turn"],
            rows["regret"],
            ends,
            marker=look.marker,
            ls=look.dash,
            color=look.light,
            capsize=3,
            label=name,
        )
    # Only as high as the data: the legend stands above.
    ax.axvline(float(summary["even"].dropna().mean()), ymax=0.66, color=style.colour("optimal"), ls=":", lw=1.4)
    ax.set(yscale="log", xlabel=f"turn of preferences over {settings.rounds} rounds [rad]")
    ax.set_ylabel("regret of a round, mean [reward]")
    ax.set_title("Drift: once or again? Dotted: where\nthe closed form changes sides", pad=12)
    ax.legend(fontsize=9, loc="upper left", labelspacing=0.25)
    low, high = ax.get_ylim()
    ax.set_ylim(low, high * 6)  # room for the legend above the data


def _draw_changes(ax: Axes, summary: pd.DataFrame) -> None:
    from rlhf_lab.figures import style

    kinds = [change for change in CHANGES if change not in ("none", "drift")]
    for j, (strategy, (key, _)) in enumerate(LOOKS.items()):
        look = style.of(key)
        for i, change in enumerate(kinds):
            row = summary[(summary["change"] == change) & (summary["strategy"] == strategy)].iloc[0]
            ends = [[row["regret"] - row["regret_low"]], [row["regret_high"] - row["regret"]]]
            ax.errorbar(i + 0.13 * (j - 2.5), row["regret"], ends, marker=look.marker, color=look.light, capsize=2)
    names = ["turn at\nonce", "prompts\nshift", "policy\nmoves", "policy moves,\nsmall model"]
    ax.set_xticks(range(len(kinds)), names)
    ax.grid(axis="x", visible=False)
    ax.set(yscale="log", ylabel="regret of a round, mean [reward]")
    ax.set_title("Other changes\n(looks as in the middle)", pad=12)


def _figure_language(settings: NonStatic, summary: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    from rlhf_lab.figures import style

    drawing, axes = style.subplots(1, 3, width=16, height=4.8, sharey=True)
    titles = {"none": "Nothing moves", "drift": "Taste turns from glad to brief", "prompts": "Prompts shift"}
    with style.use():
        for ax, (change, title) in zip(axes, titles.items(), strict=True):
            for j, strategy in enumerate(LANGUAGE[change]):
                key, name = LOOKS[strategy]
                look = style.of(key)
                rows = summary[(summary["change"] == change) & (summary["strategy"] == strategy)]
                rows = rows[rows["round"].astype(str) != "all"]
                x = rows["round"].astype(float) + 0.06 * (j - len(LANGUAGE[change]) / 2)
                ends = [rows["objective"] - rows["objective_low"], rows["objective_high"] - rows["objective"]]
                ax.errorbar(
                    x,
                    rows["objective"],
                    ends,
                    marker=look.marker,
                    ls=look.dash,
                    color=look.light,
                    capsize=3,
                    label=name,
                )
            ax.set_xticks(range(1, settings.rounds + 1))
            ax.set(xlabel="round", title=title)
        axes[0].set_ylabel("J of the round, E[r_t] − β KL [reward]")
        axes[0].tick_params(labelleft=True)
        handles, names = axes[1].get_legend_handles_labels()
        drawing.legend(handles, names, loc="outside lower center", ncols=len(names))
    return drawing


def words(settings: NonStatic, summary: pd.DataFrame, runs: pd.DataFrame) -> str:
    """The picture in words."""
    if settings.rung not in EXACT_RUNGS:
        parts = []
        for change, strategies in LANGUAGE.items():
            numbers = []
            for strategy in strategies:
                row = _of_language(summary, change, strategy)
                ends = f"[{row['objective_low']:.2f}, {row['objective_high']:.2f}]"
                numbers.append(f"{LOOKS[strategy][1]} {row['objective']:.2f} {ends}")
            parts.append(f"{CHANGES[change]}: {', '.join(numbers)}")
        return f"J of the round against the round, in three panels. Means over the rounds: {'; '.join(parts)}."
    long = [
        f"{rhythm(summary, rate, 0.0)[0]} at {rate:g} rad (formula "
        f"{float(summary[((summary['rate'] - rate).abs() < 1e-6) & (summary['every'] == 1)]['best'].iloc[0]):.1f})"
        for rate in settings.drifts
    ]
    most = max(settings.turns)
    drift = [f"{name} {_mean(summary, 'drift', most, key):.2g}" for key, (_, name) in LOOKS.items()]
    others = []
    for change in CHANGES:
        if change not in ("none", "drift"):
            numbers = [f"{name} {_mean(summary, change, 0.0, key):.2g}" for key, (_, name) in LOOKS.items()]
            others.append(f"{CHANGES[change]}: {', '.join(numbers)}")
    return (
        f"Three panels. Left: regret against window falls and rises again; best window {', '.join(long)}. Middle: "
        f"mean regret against drift; at a turn of {most:.2g} rad {', '.join(drift)}. Right: "
        f"{'; '.join(others)}."
    )


RULE = (
    "Refitting every round to the newest labels (as many rounds of them as the closed form says) is compared with "
    "fitting once to as many labels at the start: mean regret of a round, difference paired within the seed. The "
    "claim holds if the difference's interval lies below 0 at every drift tried, none included; it holds when the "
    "preferences turn by at least X if that is so from X on and not before; it does not hold if the interval lies "
    "below 0 nowhere and above 0 somewhere; all else is not decided. The closed form is called met if simulation over "
    "formula, at the formula's best window and with the most labels, lies in 0.9 … 1.1 with its interval. On a "
    "language model: J of online (newest labels of own responses) less offline under drift must lie above 0; if online "
    "(all labels) does not lie above offline where nothing moves, the claim holds when preferences drift."
)

EXPERIMENT = Experiment(
    number=9,
    name="non-static",
    title="A world that moves: fresh labels every round beat as many labels at the start",
    says="Preference models and policies that are renewed weekly with fresh human feedback efficiently improve data "
    "and models (Bai et al. 2022, abstract). When that pays, and at what rhythm, the lecture leaves open.",
    source="Bai et al. 2022 (arXiv 2204.05862), abstract and section 4.5; lecture, “Non-static Environment”.",
    asks="Worlds whose preferences drift or turn at once, whose prompts shift, and whose policy moves on, with an "
    "exact moving π*. Strategies of equal label budgets: fitted once; refitted to all, to the newest, to fading "
    "labels; labels of the policy's own responses. Regret of every round, and the best window and rhythm against a "
    "closed form. The source's models have up to 52B parameters and what moves there is the policy; here the change is "
    "a law that we set.",
    rule=RULE,
    settings=NonStatic,
    rungs=("bandit", "tree", "small"),
    jobs=jobs,
    run=run,
    summarise=summary_of,
    judge=judge,
    figure=figure,
    words=words,
    text=text,
)


def main(settings: NonStatic) -> None:
    """The command `rlhf-lab experiment non-static`."""
    experiment.main(EXPERIMENT, settings)
