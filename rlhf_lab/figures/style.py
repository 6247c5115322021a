"""Colours and markers of every policy and method, the look of the figures, and figures with alternative text.

Two rules make a picture readable before its legend is read:

- Given and exact policies are neutral, and learned policies have a colour. π_ref is grey, π* is black on a light page
  and white on a dark page.
- Colour is never the only distinction. Every entry has a different marker, and related methods (the losses of DPO, the
  pair sources of RSO) share a hue, so that a reader who cannot distinguish two hues can still distinguish two methods.

The hues are those of Okabe and Ito (2008, "Color Universal Design"), changed mainly in lightness
until the eight main entries are at least 14 apart in CIE L*a*b* under simulated protanopia,
deuteranopia and tritanopia (Machado et al. 2009) and every entry has a contrast of at least 3 : 1 with its
page (WCAG 2.2, criterion 1.4.11). `tests/figures/test_figures.py` checks both.

matplotlib is loaded only by functions that draw, because explorers use the colours without it.
"""

from __future__ import annotations

import base64
import functools
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lab import language
from rlhf_lab.errors import LabError
from rlhf_lab.language import tr

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LIGHT_PAGE, DARK_PAGE = "#FFFFFF", "#111111"

OPEN_MARKERS = frozenset("x+_1234")
"""Markers made of strokes, which have no inside."""


@dataclass(frozen=True)
class Style:
    """The look of one policy or method.

    Attributes:
        label: its name in a legend.
        light: its colour on a light page, `#RRGGBB`.
        dark: the same hue, lighter, for a dark page.
        marker: its marker, a letter of matplotlib; the explorers draw the same shapes.
        dash: its line style, as in matplotlib.
        hollow: draw the marker's outline only.
    """

    label: str
    light: str
    dark: str
    marker: str
    dash: str = "-"
    hollow: bool = False

    def line(self) -> dict[str, Any]:
        """The style as settings of a matplotlib line with markers on a light page."""
        # Markers made of strokes have no inside: an edge in the page's colour would hide them.
        plain = self.hollow or self.marker in OPEN_MARKERS
        return {
            "color": self.light,
            "linestyle": self.dash,
            "marker": self.marker,
            "markerfacecolor": LIGHT_PAGE if self.hollow else self.light,
            "markeredgecolor": self.light if plain else LIGHT_PAGE,
            "markeredgewidth": 1.8 if plain else 0.8,
        }


STYLES: dict[str, Style] = {
    # Given or exact: neutral.
    "reference": Style("π_ref", "#858585", "#969696", "o"),
    "optimal": Style("π*", "#111111", "#F5F5F5", "*"),
    # The exact optimum of a learned reward: between given and learned.
    "plug-in": Style("π* of the reward model", "#5A5A5A", "#BDBDBD", "+"),
    # Learned, method not named.
    "policy": Style("π_θ", "#B5330A", "#F0764E", "D"),
    # Methods.
    "sft": Style("SFT", "#7F5033", "#A98467", "h"),
    "ppo": Style("PPO", "#B88520", "#FFB021", "s"),
    "dpo": Style("DPO", "#0A84F5", "#3F86F0", "^"),
    "dpo-ipo": Style("IPO", "#4A5FC1", "#8FA8FF", "v"),
    "dpo-hinge-norm": Style("DPO, hinge-norm", "#23799C", "#62B6D9", "<"),
    "dpo-cdpo": Style("cDPO", "#2A62B8", "#6FA3F0", "1", "--"),
    "dpo-robust": Style("robust DPO", "#1B4A8A", "#8CB4F5", "2", "-."),
    "dpo-hinge": Style("SLiC, hinge", "#3D6F73", "#7FBCC2", "3", ":"),
    "rso-direct": Style("RSO, direct", "#B0649B", "#D98FCB", "P", ":"),
    "rso-sft-sample-rank": Style("RSO, sft-sample-rank", "#93387C", "#CC6FBA", "X", "--"),
    "rso-rso-sample-rank": Style("RSO, rso-sample-rank", "#74105C", "#C252AE", "p"),
    "rso-paper": Style("RSO, γ = 0.05, hard labels", "#C2185B", "#FF6FA5", "4"),
    "raft": Style("RAFT", "#065C80", "#7CC8FA", ">"),
    "rest": Style("ReST", "#5B9C5A", "#4FE39A", "d"),
    "online": Style("online DPO", "#3D3A9E", "#8F8AF5", "H"),
    "best-of-n": Style("best-of-n", "#565A00", "#DDE07A", "8"),
    # Not methods, but they appear beside them.
    "reward": Style("reward", "#8A6A00", "#E3C25A", "_"),
    "wrong": Style("wrong version", "#C4001A", "#FF6B6B", "x", "--"),
}
"""The styles by key. Keys are never renamed and colours never exchanged."""

_FAMILY = {"rso": "rso-rso-sample-rank", "dpo-sigmoid-norm": "dpo", "dpo-sigmoid": "dpo"}


def of(key: str, **changes: Any) -> Style:
    """The style of `key`, the machine name of a policy or method, with `changes` such as `label="DPO, β = 2"`.

    A variant without an entry (`"rest-4-steps"`) has the style of the nearest relative (`"rest"`) with the variant's
    name; `"rso"` alone is RSO's full version.

    Raises:
        LabError: neither the key nor any prefix of it is known.
    """
    if key in STYLES:
        return replace(STYLES[key], **changes)
    parts = key.split("-")
    for cut in range(len(parts), 0, -1):
        head = "-".join(parts[:cut])
        head = _FAMILY.get(head, head)
        if head in STYLES:
            parent = STYLES[head]
            name = parent.label if cut == len(parts) else f"{parent.label}, {' '.join(parts[cut:])}"
            return replace(parent, **{"label": name, **changes})
    raise LabError(f"No style for {key!r}. Known: {', '.join(STYLES)}. Add new entries to figures/style.py.")


def colour(key: str, dark: bool = False) -> str:
    """The colour of `key` on a light (or dark) page, `#RRGGBB`."""
    return of(key).dark if dark else of(key).light


def label(key: str) -> str:
    """The English display name of `key`."""
    return of(key).label


_RC: dict[Any, Any] = {
    "figure.dpi": 100,
    "figure.facecolor": LIGHT_PAGE,
    "axes.facecolor": LIGHT_PAGE,
    "savefig.facecolor": LIGHT_PAGE,
    # DejaVu Sans comes with matplotlib: the same bytes on every machine, and it has π, β, ‖ and ≥.
    "font.family": "DejaVu Sans",
    "mathtext.fontset": "dejavusans",
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 12,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "legend.fontsize": 11,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.8,
    "lines.linewidth": 2.0,
    "lines.markersize": 7,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "rlhf_lab",
    "svg.fonttype": "none",
}


@contextmanager
def use() -> Iterator[None]:
    """Use the course's look of matplotlib inside this context, and restore the previous settings after it.

    As a decorator, `@style.use()`, it gives every function that draws on given axes the same look for every caller.
    """
    import matplotlib

    chinese = {"font.family": ["DejaVu Sans", _chinese_font()]} if language.current() == "zh" else {}
    with matplotlib.rc_context(_RC | chinese):
        yield


def figure(width: float = 8.0, height: float = 4.2) -> Figure:
    """An empty figure in the course's look; sizes are in inches. It has no window and need not be closed."""
    from matplotlib.figure import Figure

    with use():
        return Figure(figsize=(width, height), layout="constrained")


def subplots(
    rows: int = 1, columns: int = 1, width: float = 8.0, height: float = 4.2, **more: Any
) -> tuple[Figure, Any]:
    """A figure in the course's look with its axes, like `plt.subplots`, but without a window."""
    drawing = figure(width, height)
    with use():
        return drawing, drawing.subplots(rows, columns, **more)


def png(drawing: Figure, dpi: int = 144, description: str | None = None) -> bytes:
    """`drawing` as PNG; the same picture gives the same bytes (no date or version in the file).

    Args:
        drawing: the figure.
        dpi: pixels per inch.
        description: text that is stored in the file.
    """
    stream = io.BytesIO()
    metadata = {"Software": None} | ({} if description is None else {"Description": description})
    with use():
        drawing.savefig(stream, format="png", dpi=dpi, metadata=metadata)
    return stream.getvalue()


def translate(drawing: Figure) -> None:
    """Replace every label of `drawing` by its translation into the present language (`rlhf_lab.language`)."""
    from matplotlib.axis import Axis
    from matplotlib.text import Text
    from matplotlib.ticker import FixedLocator

    for ax in drawing.axes:
        for container in ax.containers:
            container.set_label(tr(container.get_label() or ""))
        for axis in (ax.xaxis, ax.yaxis):
            names = [name.get_text() for name in axis.get_majorticklabels()]
            shown = [tr(name) for name in names]
            if isinstance(axis.get_major_locator(), FixedLocator) and shown != names:
                axis.set_ticks(axis.get_majorticklocs(), shown)
    for artist in drawing.findobj():
        if isinstance(artist, Text):
            artist.set_text(tr(artist.get_text()))
        if not isinstance(artist, Axis) and isinstance(artist.get_label(), str):
            artist.set_label(tr(str(artist.get_label())))


_SQUARES = "Chinese squares"


@functools.cache
def _chinese_font() -> str:
    """The name of a font in which every Chinese character is an empty square.

    It measures Chinese text for the layout, because a Chinese character is as wide as high in every font. The viewer
    of the picture provides the real one. No font with Chinese characters is therefore needed on this machine.
    """
    from fontTools.fontBuilder import FontBuilder
    from fontTools.ttLib.tables._g_l_y_f import Glyph
    from matplotlib import font_manager, get_cachedir

    path = Path(get_cachedir()) / "rlhf-lab-chinese-squares.ttf"
    if not path.is_file():
        build = FontBuilder(1000, isTTF=True)
        build.setupGlyphOrder([".notdef", "square"])
        build.setupCharacterMap({code: "square" for start, end in _CHINESE for code in range(start, end)})
        build.setupGlyf({".notdef": Glyph(), "square": Glyph()})
        build.setupHorizontalMetrics({".notdef": (1000, 0), "square": (1000, 0)})
        build.setupHorizontalHeader(ascent=880, descent=-120)
        build.setupNameTable({"familyName": _SQUARES, "styleName": "Regular"})
        build.setupOS2(sTypoAscender=880, sTypoDescender=-120)
        build.setupPost()
        part = path.with_suffix(f".{os.getpid()}")  # two processes may draw at the same time
        build.save(part)
        part.replace(path)
    known = font_manager.fontManager
    known.addfont(path)
    known.ttflist.append(replace(known.ttflist[-1], weight=700))  # titles are bold
    return _SQUARES


_CHINESE = ((0x3000, 0x3040), (0x4E00, 0xA000), (0xFF00, 0xFFF0))
"""Chinese punctuation, characters, and letters of full width."""
_SYSTEM_FONTS = "'PingFang SC', 'Microsoft YaHei', 'Noto Sans CJK SC', 'Noto Sans SC', sans-serif"


def svg(drawing: Figure) -> bytes:
    """`drawing` in the present language as SVG, with its text as text in the fonts of the viewer's machine."""
    translate(drawing)
    stream = io.BytesIO()
    with use():
        drawing.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue().replace(f"'{_SQUARES}'".encode(), _SYSTEM_FONTS.encode())


class Shown:
    """A picture with its alternative text, as the last line of a notebook's cell.

    The text is shown below the picture, for readers who cannot see the picture, search engines, and tests that compare
    outputs. It contains the main numbers of the picture.
    """

    def __init__(self, drawing: Figure, alt: str) -> None:
        """Store `drawing` and `alt`, its alternative text of one to three sentences.

        Raises:
            LabError: an empty text.
        """
        if not alt.strip():
            raise LabError("alt is empty. Describe in a sentence what the picture shows.")
        self.drawing, self.alt = drawing, alt

    def __repr__(self) -> str:
        return f"Picture: {self.alt}"

    def _ipython_display_(self) -> None:
        from IPython.display import display

        data = {"image/png": base64.b64encode(png(self.drawing)).decode(), "text/plain": repr(self)}
        # `alt` is the name under which nbconvert looks for an image's alternative text.
        looks = {"width": round(self.drawing.get_figwidth() * 96), "alt": self.alt}
        display(data, raw=True, metadata={"image/png": looks})
        display({"text/markdown": f"*In words:* {self.alt}", "text/plain": f"In words: {self.alt}"}, raw=True)


def show(drawing: Figure, alt: str) -> Shown:
    """`drawing` for a notebook, with the text `alt` below it. See `Shown`."""
    return Shown(drawing, alt)
