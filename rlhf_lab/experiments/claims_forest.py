"""The forest plot of docs/claims.md: the key contrast of each claim on every scale, each in a panel with its unit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlhf_lab.errors import LabError
from rlhf_lab.experiments.scales import SCALES
from rlhf_lab.experiments.verdicts import Verdict, side
from rlhf_lab.figures import style
from rlhf_lab.intervals import Interval, format_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AXES = ("linear", "log", "percent", "points")


@dataclass(frozen=True)
class Contrast:
    """A number of a claim that is compared with a reference value, on each scale.

    Attributes:
        claim: number of the claim.
        label: what is compared, with its unit.
        intervals: scale → estimate with interval.
        reference: the value compared with.
        claimed: what the claim predicts: ends of the range, where None is open. A question predicts nothing.
        axis: one of `AXES`. With percent and points the numbers are shares.
    """

    claim: int
    label: str
    intervals: Mapping[str, Interval]
    reference: float
    claimed: tuple[float | None, float | None] | None
    axis: str = "linear"

    @classmethod
    def of(cls, claim: int, entry: Mapping[str, Any], verdicts: Mapping[str, Verdict]) -> Contrast:
        """Read an entry of `contrasts`.

        Args:
            claim: number of the claim.
            entry: `label`; `number`, a name or a name for each scale; `reference`; `claimed` (above, below, the two
                ends of a range, or absent); `axis`, if it is not linear.
            verdicts: scale → the verdict, whose numbers are taken.

        Raises:
            LabError: no scale has the number, or another axis.
        """
        names, claimed, reference = entry["number"], entry.get("claimed"), float(entry["reference"])
        names = names if isinstance(names, dict) else dict.fromkeys(verdicts, names)
        values = {scale: verdicts[scale].numbers.get(name) for scale, name in names.items() if scale in verdicts}
        found = {s: v if isinstance(v, Interval) else Interval(v, v, v) for s, v in values.items() if v is not None}
        axis = entry.get("axis", "linear")
        if not found or axis not in AXES:
            raise LabError(f"The contrast '{entry['label']}' has no number, or its axis is none of {', '.join(AXES)}.")
        sides = {"above": (reference, None), "below": (None, reference), None: None}
        span = sides[claimed] if not isinstance(claimed, list) else (float(claimed[0]), float(claimed[1]))
        return cls(claim, entry["label"], found, reference, span, axis)

    @property
    def unit(self) -> str:
        """The word of `format_number` for the unit."""
        return self.axis if self.axis in ("percent", "points") else ""

    @property
    def lines(self) -> list[float]:
        """The values compared with: the ends of the claimed range, or the reference of a question."""
        return [end for end in self.claimed or (self.reference,) if end is not None]

    def decided(self, one: Interval) -> bool:
        """Whether an interval contains none of `lines`."""
        return all(side(one, end) for end in self.lines)


def numbers(contrasts: Sequence[Contrast]) -> str:
    """Return all numbers of the plot as a Markdown table."""
    lines = [
        "| claim | contrast | compared with | " + " | ".join(one.words for one in SCALES.values()) + " |",
        "|---" * 6 + "|",
    ]
    for one in contrasts:
        found = {s: format_number(v, one.unit, tuple(one.lines)) for s, v in one.intervals.items()}
        ends = " and ".join(format_number(end, one.unit) for end in one.lines)
        cells = [str(one.claim), one.label, ends, *(found.get(scale, "not measured") for scale in SCALES)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(contrasts: Sequence[Contrast], columns: int = 3) -> Figure:
    """Draw a panel for each contrast, with the side that the claim predicts in grey.

    Lines are the reference or the ends of the claimed range. A filled marker says that the interval contains no line, a
    hollow one that it contains one.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    rows = -(-len(contrasts) // columns)
    figure, grid = style.subplots(rows, columns, width=10.5, height=1.75 * rows + 1.0, squeeze=False)
    for axes in grid.flat[len(contrasts) :]:
        axes.remove()
    for axes, contrast in zip(grid.flat, contrasts, strict=False):
        _panel(axes, contrast)
    grey: dict[str, Any] = {"color": "0.35", "linestyle": "none", "marker": "o"}
    key: list[Any] = [Line2D([], [], color=one.look[0], marker=one.look[1], label=one.words) for one in SCALES.values()]
    key.append(Line2D([], [], **grey, label="interval excludes the line"))
    key.append(Line2D([], [], **grey, markerfacecolor="white", label="interval contains the line"))
    key.append(Patch(facecolor="0.88", label="predicted by the claim"))
    figure.legend(handles=key, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _panel(axes: Axes, contrast: Contrast) -> None:
    import textwrap

    from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

    factor = 100.0 if contrast.unit else 1.0
    for scale, one in contrast.intervals.items():
        (colour, marker), y = SCALES[scale].look, list(SCALES).index(scale)
        mean, low, high = (factor * value for value in one)
        axes.plot([low, high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
        inside = colour if contrast.decided(one) else "white"
        axes.plot([mean], [y], marker, color=colour, markerfacecolor=inside, markersize=7)
    if contrast.axis == "log":
        axes.set_xscale("log")
        left, right = axes.get_xlim()
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if right > 1.6 * left else (1, 1.1, 1.2, 1.3, 1.4, 1.5)))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
    for line in contrast.lines:
        axes.axvline(factor * line, color="black", linewidth=1)
    axes.margins(x=0.12)
    if contrast.claimed is not None:
        left, right = axes.get_xlim()
        low, high = (e if v is None else factor * v for v, e in zip(contrast.claimed, (left, right), strict=True))
        axes.axvspan(low, high, color="0.88", linewidth=0, zorder=0)
        axes.set_xlim(left, right)
    names = [(scale, one.short.replace(" ", "\n")) for scale, one in SCALES.items()]
    axes.set_yticks(range(len(SCALES)), [n if s in contrast.intervals else f"({n})" for s, n in names])
    axes.set_ylim(len(SCALES) - 0.5, -0.5)
    words = "\n".join(textwrap.wrap(f"{contrast.claim}. {contrast.label}", 32))
    axes.set_title(re.sub(r"([πr])_(ref|r|φ)\b", r"$\1_{\\mathrm{\2}}$", words), loc="left", fontsize=10)
