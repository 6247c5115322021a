"""Decision and picture of claim 5: differences between RSO's hyperparameters, paired within seeds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rlhf_lab.experiments.claims.rso_hyperparameters.settings import SFT, Condition, RSOHyperparameters
from rlhf_lab.experiments.rso_common import decide_claim, decide_part
from rlhf_lab.experiments.statistics import difference
from rlhf_lab.experiments.verdicts import Number, Verdict
from rlhf_lab.intervals import Interval

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = ("sft-8", "rso-8", "sft-64")


def _more(runs: pd.DataFrame, one: Condition, other: Condition, metric: str = "judge_wins") -> Interval:
    return Interval(*difference(runs, "condition", one.key, other.key, metric))


def comparisons(settings: RSOHyperparameters, runs: pd.DataFrame) -> list[dict[str, Interval]]:
    """Return the differences in win rate that each part of the rule compares, by name."""
    base, rows = settings.base, settings.rankings
    first = {kind: rows[f"{kind} first-round"] for kind in KINDS}
    second = {kind: rows[f"{kind} tournament"] for kind in KINDS}
    return [
        {
            "base_over_beta_0": _more(runs, base, Condition(0.0, settings.beta)),
            "base_over_no_rejection": _more(runs, base, Condition(SFT, settings.beta)),
        },
        {"small_gamma_over_base": _more(runs, Condition(settings.beta, settings.paper_gamma), base)},
        {f"rso_8_over_{_name(kind)}": _more(runs, first["rso-8"], first[kind]) for kind in ("sft-8", "sft-64")},
        {f"tournament_{_name(kind)}": _more(runs, second[kind], first[kind], "proxy_wins") for kind in KINDS},
    ]


def _name(words: str) -> str:
    return words.replace("-", "_").replace(" ", "_")


def _named(settings: RSOHyperparameters) -> dict[str, Condition]:
    """Every condition by its name in the names of numbers: `beta_0.1`, `beta_none`, `gamma_2`, `sft_8_tournament`."""
    betas = {f"beta_{'none' if math.isinf(b) else f'{b:g}'}": Condition(b, settings.beta) for b in settings.samplers}
    gammas = {f"gamma_{gamma:g}": Condition(settings.beta, gamma) for gamma in settings.slopes}
    return betas | gammas | {_name(name): one for name, one in settings.rankings.items()}


def numbers_of(settings: RSOHyperparameters, summary: pd.DataFrame, runs: pd.DataFrame) -> dict[str, Number]:
    """Return the numbers of a result by name, such as `wins_beta_0.1`, and the differences of `comparisons`."""
    numbers: dict[str, Number] = {name: one for part in comparisons(settings, runs) for name, one in part.items()}
    small, rows = Condition(settings.beta, settings.paper_gamma), settings.rankings
    numbers["objective_base_over_no_rejection"] = _more(runs, settings.base, Condition(SFT, settings.beta), "objective")
    numbers["objective_small_gamma_over_base"] = _more(runs, small, settings.base, "objective")
    for kind in KINDS:
        name = f"tournament_judge_{_name(kind)}"
        numbers[name] = _more(runs, rows[f"{kind} tournament"], rows[f"{kind} first-round"])
    table: Any = summary.set_index("condition")
    metrics = {"wins": "judge_wins", "proxy_wins": "proxy_wins", "objective": "objective", "kl": "kl", "pairs": "pairs"}
    if settings.exact:
        metrics["limit_kl"] = "limit_kl"
        best = (
            table["objective"][[Condition(beta, settings.beta).key for beta in settings.samplers]].to_numpy().argmax()
        )
        numbers["best_beta"] = settings.samplers[int(best)]
    for name, one in _named(settings).items():
        row: Any = table.loc[one.key]
        for short, metric in metrics.items():
            numbers[f"{short}_{name}"] = Interval(*(row[f"{metric}{end}"] for end in ("", "_low", "_high")))
    return numbers | {"first_round_pairs": 4 * settings.prompts}


def decide(settings: RSOHyperparameters, summary: pd.DataFrame, runs: pd.DataFrame) -> Verdict:
    """Apply the rule (`settings.RULE`)."""
    outcomes = [decide_part([*part.values()]) for part in comparisons(settings, runs)]
    return Verdict(decide_claim(*outcomes), numbers_of(settings, summary, runs))


def figure(settings: RSOHyperparameters, summary: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Draw the differences to one condition, paired within seeds, because worlds differ by more than settings do."""
    from rlhf_lab.figures import statistical, style

    who = "labeller" if settings.exact else "judge"
    wins = {
        "judge_wins": style.of("rso-rso-sample-rank", label=f"wins by the {who}"),
        "proxy_wins": style.of("reward", label="wins by the reward model", marker="s"),
    }
    objective = {"objective": style.of("optimal", label="J by the gold reward", marker="D")}

    def shown(prefix: str) -> dict[str, Condition]:
        return {name.removeprefix(prefix): one for name, one in _named(settings).items() if name.startswith(prefix)}

    rows = {_stacked(name): one for name, one in settings.rankings.items()}
    base = f"β = γ = {settings.beta:g}"
    columns = [
        ("β of the sampler", f"β (none: no rejection), γ = {settings.beta:g}", base, settings.base, shown("beta_")),
        ("γ of the loss", f"γ, β = {settings.beta:g}", base, settings.base, shown("gamma_")),
        ("Candidates and ranking", "", "sft-8, first-round", next(iter(rows.values())), rows),
    ]
    drawing, axes = style.subplots(2, 3, 15.5, 7.4, sharex="col", width_ratios=[1, 1, 1.3])
    with style.use():
        for (title, label, name, origin, conditions), (above, below) in zip(columns, axes.T, strict=True):
            _differences(above, runs, origin, conditions, wins, 100)
            _differences(below, runs, origin, conditions, objective, 1)
            above.set(title=title, ylabel=f"wins minus those of\n{name} [points]")
            below.set(xlabel=label, ylabel=f"J minus that of\n{name} [reward]")
        statistical.legend_below(drawing, *axes[:, 0], columns=3)
    return drawing


def _stacked(name: str) -> str:
    return name.replace(" ", "\n").replace("t-r", "t\nr").replace("am", "a-\nm")


def _differences(
    ax: Axes,
    runs: pd.DataFrame,
    origin: Condition,
    shown: Mapping[str, Condition],
    looks: Mapping[str, Any],
    scale: float,
) -> None:
    """Draw how much each condition differs from `origin`, times `scale`, with a point for each metric in `looks`."""
    import pandas as pd

    from rlhf_lab.figures import statistical

    rows = [
        (name, metric, *(scale * end for end in _more(runs, one, origin, metric)))
        for name, one in shown.items()
        for metric in looks
    ]
    frame = pd.DataFrame(rows, columns=["condition", "metric", "value", "value_low", "value_high"])
    ax.axhline(0, color="#999999", lw=1.2, ls="--", zorder=1)
    statistical.interval_points(
        ax, frame, "condition", "value", "metric", looks, vertical=True, dodge=0.16, legend=False
    )  # fmt: skip
