"""Training curves, such as the loss or the KL to π* by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlhf_lab.errors import LabError
from rlhf_lab.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@style.use()
def learning_curves(
    ax: Axes,
    curves: Mapping[str, tuple[str, Any, Sequence[float]]],
    title: str,
    ylabel: str,
    xlabel: str = "step",
    log: bool = False,
    beside: bool = False,
) -> None:
    """Draw one line for each run.

    Args:
        ax: where to draw.
        curves: by the name in the legend: the style key, the dash (`-`, `--`, `-.`, `:` or a pattern of
            matplotlib; None takes that of the style), and one value for each step.
        title: title of the axes.
        ylabel: label of the y axis, with its unit in brackets.
        xlabel: label of the x axis.
        log: logarithmic y.
        beside: put the legend to the right of the axes, where it covers no data.

    Raises:
        LabError: no curve.
    """
    if not curves:
        raise LabError("curves is empty. Give at least one run.")
    for name, (key, dash, values) in curves.items():
        look = style.of(key)
        ax.plot(range(len(values)), list(values), linestyle=dash or look.dash, color=look.light, label=name)
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel, yscale="log" if log else "linear")
    ax.legend(**{"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if beside else {"loc": "best"})
