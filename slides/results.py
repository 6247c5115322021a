"""Parts of a slide that show a claim: the source's statement, our finding and a panel of the saved result's picture.

The text of a finding is written by hand, and its numbers are read from `results/`. It depends on the outcome of the
experiment and on comparisons of its numbers. If a new run changes them, the slide shows the outcome alone and a warning
asks for a new text, so that a slide never states what its result does not support.
"""

from __future__ import annotations

import functools
import itertools
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lab import language
from rlhf_lab.experiments.claims_page import Result
from rlhf_lab.experiments.verdicts import Verdict, fill, holds
from rlhf_lab.figures import style
from rlhf_lab.language import columns as width_of
from rlhf_lab.language import wrap
from slides.schema import Columns, Figure, Part, T, Text

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

RESULTS = Path(__file__).parents[1] / "results"

OUTCOMES = {
    "supported": T("supported", "得到支持"),
    "partly supported": T("partly supported", "得到部分支持"),
    "not supported": T("not supported", "未得到支持"),
    "answered": T("answered", "已有答案"),
    "inconclusive": T("inconclusive", "尚无定论"),
}
LETTERS = 14
"""Font size in points. At the width of a picture on a slide this is at least 24 px."""
SCALES = {
    "bandit": T("Bandit", "多臂老虎机"),
    "tree": T("Token tree", "词元树"),
    "small": T("Language model", "语言模型"),
}


def finding(
    name: str,
    scale: str,
    outcome: str,
    en: str,
    zh: str,
    conditions: Sequence[str] = (),
    results: Path = RESULTS,
) -> T:
    """Return the finding of a saved result for a slide, with its scale and its outcome in front.

    Args:
        name: of the experiment, such as `"dpo-frontier"`.
        scale: `"bandit"`, `"tree"` or `"small"`.
        outcome: the outcome for which the text was written.
        en: the English text, with placeholders for the result's numbers (`experiments/verdicts.fill`).
        zh: the same in Chinese.
        conditions: comparisons on which the text relies (`experiments/verdicts.holds`).
        results: folder of the saved results.

    Returns:
        The text; if the result does not have this outcome or does not satisfy the conditions, the outcome alone, with
        a warning.
    """
    place = results / name / scale / "result.json"
    where = SCALES[scale]
    if not place.is_file():
        return T(f"**{where.en}:** not run yet.", f"**{where.zh}**：尚未运行。")
    record = json.loads(place.read_text(encoding="utf-8"))
    found = Verdict.from_record(record["verdict"])
    words = OUTCOMES[found.outcome]
    failed = [f"outcome {outcome}"] if found.outcome != outcome else []
    failed += [one for one in conditions if not holds(one, found)]
    if failed:
        warnings.warn(
            f"The slide on {name}, {scale}, was written for other numbers: {', '.join(failed)} is not true of "
            f"{place}. Rewrite its text in slides/deck.",
            stacklevel=2,
        )
        return T(f"**{where.en}: {words.en}.** See docs/claims.md.", f"**{where.zh}：{words.zh}**。见 docs/claims.md。")
    english, chinese = (fill(text, found, record["settings"]) for text in (en, zh))
    return T(f"**{where.en}: {words.en}.** {english}", f"**{where.zh}：{words.zh}**。{chinese}")


def picture(
    name: str,
    scale: str,
    panels: tuple[int, ...] = (0,),
    size: tuple[float, float] = (5.0, 4.3),
    stacked: bool = False,
    rows: int | None = None,
) -> Callable[[], Drawing]:
    """Return a function that draws selected panels of a saved result's picture, with one legend below them.

    Args:
        name: of the experiment.
        scale: `"bandit"`, `"tree"` or `"small"`.
        panels: the numbers of the axes to be shown, from 0.
        size: width and height in inches. A smaller picture has larger letters on the slide.
        stacked: True draws the panels one below the other, False side by side.
        rows: how many of the first rows are shown, if the y axis has names. What all these names begin with is
            written in the title instead. The default is all rows.
    """
    return functools.partial(_draw, name, scale, panels, size, stacked, rows)


@functools.lru_cache(maxsize=4)
def _result(name: str, scale: str) -> tuple[Any, Any]:
    """The experiment and its saved result, which is drawn once in each language."""
    from rlhf_lab.experiments import results

    experiment = results.experiment_of(name)
    return experiment, results.recompute(experiment, RESULTS / name / scale)


def _draw(
    name: str, scale: str, panels: tuple[int, ...], size: tuple[float, float], stacked: bool, rows: int | None
) -> Drawing:
    from matplotlib.gridspec import GridSpec
    from matplotlib.text import Text as Writing

    experiment, found = _result(name, scale)
    drawing: Drawing = experiment.figure(found.settings, found.summary, found.runs)
    style.translate(drawing)
    every = list(drawing.axes)
    stay = [every[number] for number in panels]
    entries, elsewhere = _legends(drawing, stay)
    grid = GridSpec(len(stay), 1, drawing) if stacked else GridSpec(1, len(stay), drawing)
    for axes in every:
        if axes not in stay:
            axes.remove()
    for place, axes in enumerate(stay):
        axes.set_subplotspec(grid[place])
        axes.tick_params(labelleft=True, labelbottom=not stacked or place == len(stay) - 1)
        if rows:
            _first_rows(axes, rows)
        _fit(axes, size, len(stay) if stacked else 1, 1 if stacked else len(stay))
    shown = {label: handle for label, handle in entries.items() if label not in elsewhere}
    drawing.set_size_inches(*size)
    kept_small = _common_legend(drawing, shown, size[0]) if shown else set()
    for axes in stay:  # the labels of many rows would overlap at the full size
        if len(axes.get_yticklabels()) > 8:
            kept_small |= set(axes.get_yticklabels())
        if len(axes.texts) > 20:  # a table, whose intervals would be too small to read
            for cell in axes.texts:
                cell.set_text(cell.get_text().split("\n")[0])
    for text in set(drawing.findobj(Writing)) - kept_small:
        text.set_fontsize(max(text.get_fontsize(), LETTERS))
    return drawing


def _first_rows(axes: Any, rows: int) -> None:
    """Show only the first rows of a panel, and write the beginning that their names share in the title."""
    names = [tick.get_text() for tick in axes.get_yticklabels()][:rows]
    ends = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(min(names), max(names), strict=False))
    shared = "".join(letter for letter, _ in ends)
    axes.set_yticks(axes.get_yticks()[:rows], [name[len(shared) :] for name in names])
    axes.set_ylim(rows - 0.5, -0.5)  # the first row is at the top, at 0
    axes.set_title(shared + axes.get_title(loc="left"), loc="left")


def _common_legend(drawing: Drawing, shown: dict[str, Any], width: float) -> set[Any]:
    """Draw the legend below all panels, and return its texts if their font must stay small."""
    wide = max(width_of(label) for label in shown)
    # A long legend would leave little space for the picture, so it has two columns and a smaller font.
    many = len(shown) > 6 or (len(shown) > 3 and wide > 18)
    across = max(2 if many else 1, min(len(shown), int(width * 10 / (wide + 6))))
    small = {"fontsize": LETTERS - (4 if wide > 22 else 2), "columnspacing": 0.8, "handlelength": 1.2} if many else {}
    legend = drawing.legend(
        shown.values(), shown.keys(), loc="outside lower center", ncols=across, frameon=False, **small
    )
    return set(legend.get_texts()) if many else set()


def _fit(axes: Any, size: tuple[float, float], rows: int, columns: int) -> None:
    """Wrap titles and labels of axes that are wider than the smaller picture, and reduce the number of ticks."""
    from matplotlib.ticker import AutoLocator, MaxNLocator

    high, wide = int(size[1] * 6.3 / rows), int(size[0] * 7.2 / columns)
    axes.set_ylabel(_filled(axes.get_ylabel(), high))
    label = " ".join(axes.get_xlabel().split())
    axes.set_xlabel(_filled(label, wide), loc="right" if width_of(label) > 0.6 * wide else "center")
    title = " ".join(axes.get_title(loc="left").split())
    words = [tick.get_text() for tick in axes.get_yticklabels()]
    names = max((width_of(word) for word in words if "$" not in word), default=0)
    axes.set_title("", loc="left")
    side = "right" if names > 10 else "left"  # left-aligned after long names, a title would be cut off
    axes.set_title(_filled(title, int(wide * 0.95)), loc=side, pad=8, fontweight="bold")
    if isinstance(axes.xaxis.get_major_locator(), AutoLocator):
        axes.xaxis.set_major_locator(MaxNLocator(3 if names > 10 else 5))


def _filled(text: str, width: int) -> str:
    return "\n".join(wrap(" ".join(text.split()), width))


def _legends(drawing: Drawing, stay: list[Any]) -> tuple[dict[str, Any], set[str]]:
    """Remove the legends. Return their entries, and the labels that occur only in panels which are not shown."""
    entries: dict[str, Any] = {}
    own = {label for axes in stay for label in axes.get_legend_handles_labels()[1]}
    others = {label for axes in drawing.axes if axes not in stay for label in axes.get_legend_handles_labels()[1]}
    for legend in [*(axes.get_legend() for axes in drawing.axes), *drawing.legends]:
        if legend is not None:
            for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True):
                entries.setdefault(text.get_text(), handle)
            legend.remove()
    for axes in stay:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            if label in entries:
                entries[label] = handle
    return entries, others - own


def claim(
    name: str,
    scale: str,
    paper: T,
    source: str,
    found: tuple[T, ...],
    alt: str,
    panels: tuple[int, ...] = (0,),
    size: tuple[float, float] = (5.0, 4.3),
    stacked: bool = False,
    rows: int | None = None,
    share: float = 0.44,
) -> tuple[Part, ...]:
    """Return the parts of a claim's slide: statement and findings at the left, the picture at the right.

    Args:
        name: of the experiment.
        scale: the scale from which the picture is taken.
        paper: what the source reports, with its numbers.
        source: author, year, and section, table or figure.
        found: the findings on one or two scales, see `finding`.
        alt: the Chinese alternative text of the picture. The English one is stored with the result.
        panels: see `picture`.
        size: see `picture`.
        stacked: see `picture`.
        rows: see `picture`.
        share: the share of the width that the text takes.
    """
    with language.use("zh"):
        chinese = language.tr(source)
    words = (
        Text(T(f"**Paper:** {paper.en} ({source})", f"**文献**：{paper.zh}（{chinese}）")),
        *(Text(one) for one in found),
    )
    place = RESULTS / name / scale / "result.json"
    if not place.is_file():
        return words
    record = json.loads(place.read_text(encoding="utf-8"))
    shown = Figure(
        picture(name, scale, panels, size, stacked, rows),
        T(" ".join(Result(place.parent, record).words("Figure").split()), alt),
    )
    return (Columns(left=words, right=(shown,), share=share),)
