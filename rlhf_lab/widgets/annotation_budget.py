r"""Explorer of the annotation budget: which pairs to label, the regret with N labels, the share for demonstrations.

    regret → tr(Σ (D Σ_demo/β_demo² + N I(μ))⁺) / (2β)

Simulated regrets are computed once, when the explorer is made; moving a control looks them up. Lecture, "Future
Direction".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_lab import label_budget
from rlhf_lab.algorithms import label_rounds
from rlhf_lab.errors import LabError, check_positive
from rlhf_lab.figures.picture import Axis, Bars, Curve, Panel, Picture, Points, Readout, Rule
from rlhf_lab.language import tr
from rlhf_lab.randomness import Stream
from rlhf_lab.training import seeded
from rlhf_lab.widgets.explorer import Choice, Explorer, Slider, by_prompt

BETAS = (0.3, 0.5, 1.0)
TOTALS = tuple(20 * 2**k for k in range(8))
"""Numbers of labels at which regrets are simulated."""
SHARES = torch.linspace(0, 1, 21, dtype=torch.float64)
DEMO_BETA = 1.0


@dataclass(frozen=True, eq=False)
class Simulated:
    """One prompt at one β.

    Attributes:
        world: the prompt.
        regret: by source, mean over runs after each of `TOTALS`, (8,).
        asked: by source, the share of the labels on each pair after each of `TOTALS`, (8, K, K), symmetric.
        price: by source, the limit of N · regret.
    """

    world: label_budget.FiniteWorlds
    regret: dict[str, Tensor]
    asked: dict[str, Tensor]
    price: dict[str, float]


def simulated(log_ref: Tensor, reward: Tensor, beta: float, runs: int = 100, seed: int = 0) -> list[Simulated]:
    """Simulate every source on all prompts, (X, K), and return one `Simulated` for each prompt."""
    world = label_budget.FiniteWorlds(log_ref, reward, beta)
    many = world.repeat(runs)
    prompts, size = log_ref.shape
    known = torch.zeros(runs * prompts, size, size, dtype=torch.float64)
    label = label_rounds.bradley_terry_labels(many.reward)
    out = [
        Simulated(label_budget.FiniteWorlds(x.unsqueeze(0), r.unsqueeze(0), beta), {}, {}, {})
        for x, r in zip(log_ref, reward, strict=True)
    ]
    for i, pairs in enumerate(label_budget.PAIR_SOURCES):
        learns = pairs in label_budget.LIMITING_SOURCE
        choose = (
            label_budget.pair_chooser(many, pairs, label_budget.COARSE)
            if learns
            else label_rounds.choose_by_design(world.design(pairs).repeat(runs, 1, 1))
        )
        states = label_rounds.collect_labels(choose, label, known, TOTALS, 3.0, seeded(seed, Stream.BUDGET_CURVES, i))
        regret = torch.stack([many.regret(state.rewards).reshape(runs, prompts).mean(0) for state in states])
        shares = torch.stack(
            [state.counts.reshape(runs, prompts, size, size).mean(0) / state.labels for state in states]
        )
        prices = world.price(pairs)
        for x, one in enumerate(out):
            one.regret[pairs], one.price[pairs] = regret[:, x], float(prices[x])
            one.asked[pairs] = (shares[:, x] + shares[:, x].transpose(-1, -2)) / 2
    return out


def annotation_budget_picture(
    known: Simulated, pairs: str, step: int, ratio: float, responses: Sequence[str]
) -> Picture:
    """Draw the pairs that `pairs` labels, the regret with N labels, and the regret by the share for demonstrations.

    Args:
        known: `simulated` of one prompt at one β.
        pairs: a source, see `label_budget.PAIR_SOURCES`.
        step: N is `TOTALS[step]`.
        ratio: cost of a demonstration in labels, above zero.
        responses: K names.

    Returns:
        the picture; its numbers are N, the simulated regret, the regret by the closed form, the number of labels
        relative to the best design, and the best share of the budget for demonstrations.

    Raises:
        LabError: an unknown source or step; a cost of zero; a number of names other than K.
    """
    if pairs not in label_budget.PAIR_SOURCES or not 0 <= step < len(TOTALS):
        raise LabError(
            f"pairs must be one of {', '.join(label_budget.PAIR_SOURCES)}, and step between 0 and {len(TOTALS) - 1}."
        )
    check_positive(ratio, "ratio")
    world, size, number = known.world, known.world.log_ref.shape[-1], TOTALS[step]
    if len(responses) != size:
        raise LabError(f"{len(responses)} names were given for {size} responses.")
    places = torch.combinations(torch.arange(size))
    look = label_budget.STYLES[pairs]
    asked = 2 * known.asked[pairs][step]
    who = _pairs_panel(pairs, places, asked, 2 * world.best_design[0])
    limit, found = known.price[pairs] / number, float(known.regret[pairs][step])
    over = number * found / known.price["design"]
    curves = Panel(
        "Regret with N labels",
        Axis("labels N", TOTALS[0] / 1.2, TOTALS[-1] * 1.2, log=True),
        Axis("expected regret [reward]", 1e-3, 3.0, log=True),
        (
            Curve("optimal", TOTALS, known.price["design"] / torch.tensor(TOTALS), "best design", ":"),
            Curve(look, TOTALS, known.price[pairs] / torch.tensor(TOTALS), "formula", "--"),
            Points(look, TOTALS, known.regret[pairs], "simulated"),
            Rule("reference", number, "x", "N"),
        ),
    )
    left = split_curve(world, pairs, number, ratio)
    at = int(left.argmin())
    share = float(SHARES[at])
    split = Panel(
        "Demonstrations",
        Axis("share for demonstrations", -0.05, 1.05),
        Axis("regret, limit [reward]", 1e-3, 3.0, log=True),
        (Curve(look, SHARES, left, "formula"), Points(look, [share], [float(left[at])], "minimum", big=True)),
        width=0.8,
    )
    first, second = places[int(asked[places[:, 0], places[:, 1]].argmax())].tolist()
    text = tr(
        "With {number} labels on {source} at β = {beta:g}, the pair labelled most often is “{first}” against "
        "“{second}” (by number: {legend}). The regret is {found:.3g}; the closed form gives {limit:.3g}. In the limit, "
        "{equal:.0f} labels of the best design have the same regret. If a demonstration costs {ratio:.3g} labels, "
        "{share:.0%} of the budget is best spent on demonstrations.",
        number=number, source=tr(label_budget.PAIR_SOURCES[pairs]), beta=world.beta, first=tr(responses[first]),
        second=tr(responses[second]), legend=tr(", ").join(f"{i + 1} {tr(name)}" for i, name in enumerate(responses)),
        found=found, limit=limit, equal=number / over, ratio=ratio, share=share,
    )  # fmt: skip
    numbers = (
        Readout("N", number, "labels", 0),
        Readout("regret", found, "reward"),
        Readout("formula", limit, "reward"),
        Readout("labels / best design", over, "", 2),
        Readout("best share", share, "", 2),
    )
    return Picture(text, (who, curves, split), numbers)


def _pairs_panel(pairs: str, places: Tensor, asked: Tensor, best: Tensor) -> Panel:
    first, second = places.T
    return Panel(
        "Where the labels go",
        Axis("pair of responses, by number", names=tuple(f"{i + 1} | {j + 1}" for i, j in places.tolist())),
        Axis("share of the labels", 0.0, 1.0),
        (
            Bars(label_budget.STYLES[pairs], asked[first, second], label_budget.NAMES[pairs]),
            Bars("optimal", best[first, second], "best design"),
        ),
        width=1.2,
    )


def split_curve(world: label_budget.FiniteWorlds, pairs: str, money: float, ratio: float) -> Tensor:
    """The limit of the regret for every share of the budget (`SHARES`) spent on demonstrations, (21,).

    Labels are on the pairs that the source labels in the limit. The budget is counted in labels.
    """
    mu = world.design(label_budget.LIMITING_SOURCE.get(pairs, pairs))
    return label_budget.regret_limit(world, SHARES * money / ratio, (1 - SHARES) * money, DEMO_BETA, mu)[0]


def annotation_budget_explorer(
    log_ref: Tensor, reward: Tensor, responses: Sequence[str], prompts: Sequence[str] = (), runs: int = 100
) -> Explorer:
    """Show the annotation budget with controls for the source of pairs, β, N, and the cost of a demonstration.

    Args:
        log_ref: log π_ref, (K,) or (X, K), nats.
        reward: r*, of the same shape.
        responses: K names.
        prompts: X names. Default: x1, x2, …
        runs: number of simulated label sets for each prompt, β and source.

    Raises:
        LabError: shapes or numbers of names that do not match.
    """
    log_ref, reward, names = by_prompt(log_ref, reward, responses, prompts)
    known = {(prompt, beta): one for beta in BETAS for prompt, one in enumerate(simulated(log_ref, reward, beta, runs))}

    def compute(pairs: str, beta: float, step: int, ratio: float, prompt: int = 0) -> Picture:
        return annotation_budget_picture(known[prompt, beta], pairs, step, ratio, responses)

    controls: dict[str, Slider | Choice] = {
        "pairs": Choice("active", {name: key for key, name in label_budget.PAIR_SOURCES.items()}, "pairs"),
        "beta": Choice(BETAS[1], {f"{beta:g}": beta for beta in BETAS}, "β [reward per nat]"),
        "step": Choice(4, {f"{number}": i for i, number in enumerate(TOTALS)}, "labels N"),
        "ratio": Slider(5.0, 0.5, 50.0, "cost of a demonstration [labels]", log=True),
    }
    if len(names) > 1:
        controls["prompt"] = Choice(0, {name: i for i, name in enumerate(names)}, "prompt")
    return Explorer(compute, controls, "The annotation budget")
