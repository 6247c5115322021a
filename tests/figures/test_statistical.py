"""Statistical pictures: the numbers that they draw, their intervals, their styles, their labels and legends."""

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rlhf_lab.errors import LabError
from rlhf_lab.figures import statistical, style

LABELS = {"title": "Regret by labels", "xlabel": "labels N", "ylabel": "regret [reward]"}
SUMMARY = pd.DataFrame(
    [
        {"method": method, "labels": labels, "regret": 1.0 * base, "regret_low": 0.8 * base, "regret_high": 1.5 * base}
        for method, scale in (("dpo", 1), ("rest", 4))
        for labels, base in ((30, 3 * scale), (300, scale))
    ]
)
RUNS = pd.DataFrame(
    [
        {"method": method, "labels": labels, "seed": seed, "regret": scale / labels + 0.01 * seed**2}
        for method, scale in (("dpo", 30), ("rest", 90))
        for labels in (30, 300)
        for seed in range(4)
    ]
)


def t_interval(values: pd.Series) -> tuple[float, float, float]:
    """scipy's own interval of a mean, an independent computation."""
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    return values.mean(), low, high


def bars_of(ax) -> list[list[float]]:
    """Each error bar as x, y, x, y."""
    segments = [np.asarray(s) for one in ax.collections if hasattr(one, "get_segments") for s in one.get_segments()]
    return sorted(s.ravel().tolist() for s in segments)


def points_of(ax, look: style.Style) -> list[list[float]]:
    lines = [one for one in ax.lines if one.get_marker() == look.marker and one.get_color() == look.light]
    return [xy for one in lines for xy in one.get_xydata().tolist()]


def test_lines_of_a_summary_pass_through_its_values_and_bars_end_at_its_ends():
    """The interval 0.8 to 1.5 is not symmetric: an exchange of its ends or half-widths would show."""
    _, ax = style.subplots()
    statistical.interval_lines(ax, SUMMARY, "labels", "regret", "method", **LABELS)
    for method, scale in (("dpo", 1), ("rest", 4)):
        assert points_of(ax, style.of(method)) == [[30, 3.0 * scale], [300, scale]]
    wanted = [[n, 0.8 * b * s, n, 1.5 * b * s] for s in (1, 4) for n, b in ((30, 3), (300, 1))]
    assert np.array(bars_of(ax)) == pytest.approx(np.array(sorted(wanted)))


@pytest.mark.parametrize("xscale", ["linear", "log"])
def test_lines_of_runs_show_means_with_t_intervals_whatever_the_axis(xscale):
    """A mean of logarithms, which a logarithmic axis invites, would be another number."""
    _, ax = style.subplots()
    statistical.interval_lines(ax, RUNS, "labels", "regret", "method", xscale=xscale, yscale="log", **LABELS)
    wanted = []
    for (method, labels), part in RUNS.groupby(["method", "labels"]):
        mean, low, high = t_interval(part["regret"])
        assert [labels, mean] in [pytest.approx(point) for point in points_of(ax, style.of(method))]
        wanted.append([labels, low, labels, high])
    assert np.array(bars_of(ax)) == pytest.approx(np.array(sorted(wanted)))
    assert ax.get_xscale() == xscale


def test_a_band_spans_the_interval():
    _, ax = style.subplots()
    statistical.interval_lines(ax, SUMMARY, "labels", "regret", "method", band=True, **LABELS)
    spans = [(one.get_datalim(ax.transData).y0, one.get_datalim(ax.transData).y1) for one in ax.collections]
    assert spans == [pytest.approx((0.8, 4.5)), pytest.approx((3.2, 18.0))]


def test_intervals_along_x_lie_at_their_y():
    _, ax = style.subplots()
    statistical.interval_lines(ax, SUMMARY, "regret", "labels", "method", along="x", **LABELS)
    wanted = [[0.8 * b * s, n, 1.5 * b * s, n] for s in (1, 4) for n, b in ((30, 3), (300, 1))]
    assert np.array(bars_of(ax)) == pytest.approx(np.array(sorted(wanted)))


def test_neighbouring_lines_are_kept_apart_by_the_dodge():
    """Two lines: half a step to either side; on a logarithmic axis the factor 1.21 between them is 1.1 either way."""
    for scale, wanted in (("linear", (29.5, 30.5)), ("log", (30 / 1.1, 30 * 1.1))):
        _, ax = style.subplots()
        dodge = 1.0 if scale == "linear" else 0.21
        statistical.interval_lines(ax, SUMMARY, "labels", "regret", "method", dodge=dodge, xscale=scale, **LABELS)
        assert tuple(points_of(ax, style.of(m))[0][0] for m in ("dpo", "rest")) == pytest.approx(wanted)


def test_a_value_without_interval_is_drawn_alone_and_a_rounded_end_does_not_move_it():
    """One seed has no interval; a lower end that rounding put above its value ends on it."""
    rows = [
        {"method": "dpo", "labels": 1.0, "regret": 2.0, "regret_low": np.nan, "regret_high": np.nan},
        {"method": "dpo", "labels": 2.0, "regret": 3.0, "regret_low": 1.0, "regret_high": np.inf},
        {"method": "dpo", "labels": 3.0, "regret": 4.0, "regret_low": 4.1, "regret_high": 5.0},
    ]
    _, ax = style.subplots()
    statistical.interval_lines(ax, pd.DataFrame(rows), "labels", "regret", "method", **LABELS)
    assert points_of(ax, style.of("dpo")) == [[1, 2], [2, 3], [3, 4]]
    assert [bar for bar in bars_of(ax) if bar and not np.isnan(bar).any()] == [[3, 4, 3, 5]]


def test_looks_give_names_colours_markers_and_their_order():
    looks = {"rest": style.of("rest", label="another name", hollow=True), "dpo": style.of("wrong")}
    _, ax = style.subplots()
    statistical.interval_lines(ax, SUMMARY, "labels", "regret", "method", looks, **LABELS)
    rest, wrong = (line for line in ax.lines if line.get_marker() in ("d", "x"))
    assert (rest.get_label(), rest.get_color(), rest.get_marker()) == ("another name", style.colour("rest"), "d")
    assert rest.get_markerfacecolor() == style.LIGHT_PAGE and rest.get_markeredgecolor() == style.colour("rest")
    # A marker made of strokes takes its colour from its edge.
    assert (wrong.get_marker(), wrong.get_markeredgecolor()) == ("x", style.colour("wrong"))
    with pytest.raises(LabError, match="looks has no style for dpo"):
        statistical.interval_lines(ax, SUMMARY, "labels", "regret", "method", {"rest": style.of("rest")})


@pytest.mark.parametrize("vertical", [False, True])
def test_each_category_has_a_point_and_a_name_from_top_to_bottom_or_left_to_right(vertical):
    few = SUMMARY[SUMMARY["labels"] == 30]
    _, ax = style.subplots()
    statistical.interval_points(ax, few, "method", "regret", vertical=vertical, title="Regret")
    turn = slice(None) if vertical else slice(None, None, -1)
    assert points_of(ax, style.of("dpo")) == [[0, 3][turn]] and points_of(ax, style.of("rest")) == [[1, 12][turn]]
    wanted = [[0, 2.4, 0, 4.5], [1, 9.6, 1, 18]] if vertical else [[2.4, 0, 4.5, 0], [9.6, 1, 18, 1]]
    assert np.array(bars_of(ax)) == pytest.approx(np.array(wanted))
    axis = ax.xaxis if vertical else ax.yaxis
    assert [tick.get_text() for tick in axis.get_ticklabels()] == ["DPO", "ReST"]
    assert ax.yaxis_inverted() is not vertical


def test_points_of_one_category_stand_side_by_side():
    _, ax = style.subplots()
    statistical.interval_points(
        ax, SUMMARY, "labels", "regret", "method", names={30: "thirty"}, dodge=0.4, xlabel="regret [reward]"
    )
    assert np.array(points_of(ax, style.of("dpo"))) == pytest.approx(np.array([[3, -0.2], [1, 0.8]]))
    assert np.array(points_of(ax, style.of("rest"))) == pytest.approx(np.array([[12, 0.2], [4, 1.2]]))
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["thirty", "300"]


@pytest.mark.parametrize("frame", [RUNS, SUMMARY], ids=["runs", "summary"])
def test_bars_have_the_means_the_intervals_and_the_colours(frame):
    _, ax = style.subplots()
    statistical.interval_bars(ax, frame.assign(labels=frame["labels"].astype(str)), "labels", "regret", "method")
    for method, group in zip(("dpo", "rest"), ax.containers, strict=True):
        part = frame[frame["method"] == method]
        assert [bar.get_height() for bar in group] == pytest.approx(part.groupby("labels")["regret"].mean().tolist())
        assert matplotlib.colors.to_hex(group[0].get_facecolor()) == style.colour(method).lower()
    ends = sorted(line.get_ydata().tolist() for line in ax.lines)
    if frame is SUMMARY:
        wanted = frame[["regret_low", "regret_high"]].to_numpy().tolist()
    else:
        wanted = [t_interval(part["regret"])[1:] for _, part in RUNS.groupby(["method", "labels"])]
    assert np.array(ends) == pytest.approx(np.array(sorted(list(one) for one in wanted)))


def test_bars_of_text_on_the_y_axis_lie_on_their_side():
    _, ax = style.subplots()
    statistical.interval_bars(ax, SUMMARY[SUMMARY["labels"] == 30], "regret", "method", title="Regret")
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([3, 12])
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["DPO", "ReST"] and ax.get_legend() is None


def test_a_heat_map_has_its_numbers_in_the_order_of_the_rows():
    """ReST stands first in the frame, and 300 before 30: sorting would exchange both. Ends are 0.8 and 1.5 times."""
    drawing, ax = style.subplots()
    frame = SUMMARY.iloc[::-1]
    statistical.heat_map(ax, frame, "labels", "method", "regret", scale="regret [reward]", form=".1f", title="Regret")
    cells = ["4.0\n[3.2, 6.0]", "12.0\n[9.6, 18.0]", "1.0\n[0.8, 1.5]", "3.0\n[2.4, 4.5]"]
    assert [text.get_text() for text in ax.texts] == cells
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["300", "30"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["rest", "dpo"]
    assert drawing.axes[1].get_ylabel() == "regret [reward]"
    without = frame.drop(columns=["regret_low", "regret_high"])
    _, ax = style.subplots()
    statistical.heat_map(ax, without, "labels", "method", "regret", scale="regret", centre=4.0, limits=(0.0, 8.0))
    assert [text.get_text() for text in ax.texts] == ["4", "12", "1", "3"]
    middle, above, below, _ = ax.collections[0].get_facecolors()
    # At the centre the colour is neutral; above it is red, below it is blue.
    assert max(middle[:3]) - min(middle[:3]) < 0.05 and above[0] > above[2] and below[2] > below[0]


def test_every_seed_is_a_point_beside_the_mean_with_its_t_interval():
    _, ax = style.subplots()
    part = RUNS[RUNS["labels"] == 30]
    statistical.seed_values(ax, part, "method", "regret", title="Each seed", ylabel="regret [reward]")
    dots = [one.get_offsets().tolist() for one in ax.collections if not hasattr(one, "get_segments")]
    wanted = [[float(place), y] for place, m in enumerate(("dpo", "rest")) for y in part[part["method"] == m]["regret"]]
    assert np.array(sorted(point for group in dots for point in group)) == pytest.approx(np.array(wanted))
    for place, method in enumerate(("dpo", "rest")):
        mean, low, high = t_interval(part[part["method"] == method]["regret"])
        assert points_of(ax, style.of(method)) == [pytest.approx([place + 0.22, mean])]
        assert pytest.approx([place + 0.22, low, place + 0.22, high]) in bars_of(ax)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["DPO", "ReST"]


def test_labels_are_there_and_the_legend_covers_no_data():
    drawing, (one, two) = style.subplots(1, 2, width=14)
    statistical.interval_lines(one, SUMMARY, "labels", "regret", "method", xscale="log", **LABELS)
    statistical.interval_bars(two, SUMMARY.assign(labels=["a", "b"] * 2), "labels", "regret", "method", **LABELS)
    drawing.draw_without_rendering()
    for ax in (one, two):
        assert (ax.get_title(loc="left"), ax.get_xlabel(), ax.get_ylabel()) == tuple(LABELS.values())
        legend = ax.get_legend()
        assert [text.get_text() for text in legend.get_texts()] == ["DPO", "ReST"]
        assert not legend.get_window_extent().overlaps(ax.get_window_extent())


def test_a_legend_of_several_axes_stands_below_them_and_has_each_name_once():
    drawing, axes = style.subplots(1, 2)
    for ax in axes:
        statistical.interval_lines(ax, SUMMARY, "labels", "regret", "method", legend=False, **LABELS)
    statistical.legend_below(drawing, *axes)
    drawing.draw_without_rendering()
    (legend,) = drawing.legends
    assert [text.get_text() for text in legend.get_texts()] == ["DPO", "ReST"]
    for ax in axes:
        assert legend.get_window_extent().y1 < ax.get_tightbbox().y0


def test_a_frame_that_cannot_be_drawn_is_refused():
    _, ax = style.subplots()
    with pytest.raises(LabError, match="frame has no column gold; it has method"):
        statistical.interval_lines(ax, SUMMARY, "labels", "gold", "method")
    with pytest.raises(LabError, match="frame has no rows"):
        statistical.interval_points(ax, SUMMARY[:0], "method", "regret")
    with pytest.raises(LabError, match="several rows with the same labels, method"):
        statistical.interval_lines(ax, pd.concat([SUMMARY, SUMMARY]), "labels", "regret", "method")
    with pytest.raises(LabError, match="several rows with the same labels and method"):
        statistical.heat_map(ax, RUNS, "labels", "method", "regret", scale="regret")


def test_the_same_picture_gives_the_same_bytes():
    pictures = []
    for _ in range(2):
        drawing, ax = style.subplots()
        statistical.seed_values(ax, RUNS, "method", "regret", title="Each seed")
        pictures.append(style.png(drawing, dpi=50))
    assert pictures[0] == pictures[1]
