"""Figures: titles, labels with units, right data in the right colours, and a palette for every eye."""

import itertools
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from rlhf_lab import exact
from rlhf_lab.errors import LabError
from rlhf_lab.figures import frontier, learning, picture, policies, style

torch.set_num_threads(1)

# Machado, Oliveira & Fernandes 2009, severity 1.0, on linear RGB.
EYES = {
    "typical": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def linear(colour: str) -> np.ndarray:
    srgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* under D65."""
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = matrix @ np.clip(rgb, 0, 1) / np.array([0.9505, 1, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(one: str, two: str) -> float:
    """WCAG's contrast ratio."""
    y = sorted(float(linear(c) @ np.array([0.2126, 0.7152, 0.0722])) for c in (one, two))
    return (y[1] + 0.05) / (y[0] + 0.05)


MAIN = ("reference", "optimal", "policy", "ppo", "dpo", "rso-rso-sample-rank", "raft", "rest")
"""The entries that must be distinguishable by colour alone, with every kind of colour vision."""


@pytest.mark.parametrize("eye", EYES)
@pytest.mark.parametrize("page", ["light", "dark"])
def test_the_main_entries_can_be_told_apart_by_colour_by_every_eye(eye, page):
    for a, b in itertools.combinations(MAIN, 2):
        seen = [lab(np.array(EYES[eye]) @ linear(getattr(style.STYLES[key], page))) for key in (a, b)]
        assert np.linalg.norm(seen[0] - seen[1]) >= 14, (a, b)


def test_every_colour_stands_out_from_its_page():
    for key, look in style.STYLES.items():
        assert contrast(look.light, style.LIGHT_PAGE) >= 3, key
        assert contrast(look.dark, style.DARK_PAGE) >= 3, key


def test_no_two_entries_share_a_marker_or_a_name():
    assert len({look.marker for look in style.STYLES.values()}) == len(style.STYLES)
    assert len({look.label for look in style.STYLES.values()}) == len(style.STYLES)


def test_a_variant_looks_like_its_relative_and_an_unknown_key_is_refused():
    assert style.of("rest-4-steps").light == style.of("rest").light
    assert style.of("rest-4-steps").label == "ReST, 4 steps"
    assert style.of("rso").marker == style.of("rso-rso-sample-rank").marker
    with pytest.raises(LabError, match="No style for 'grpo'"):
        style.of("grpo")


def test_the_colours_cost_no_matplotlib():
    code = "import sys, rlhf_lab.figures.style, rlhf_lab.figures.picture; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.fixture(scope="module")
def made_up():
    """Perturbed π* of a random bandit in the place of trained methods."""
    generator = torch.Generator().manual_seed(0)
    log_ref = torch.randn(20, 8, dtype=torch.float64, generator=generator).log_softmax(-1)
    reward = torch.randn(20, 8, dtype=torch.float64, generator=generator)
    beta = 0.5
    betas = torch.logspace(-2, 2, 81, dtype=torch.float64)
    kl, gain = exact.frontier(log_ref, reward, betas)
    curve = pd.DataFrame({"beta": betas, "kl": kl.mean(0), "reward": gain.mean(0)})
    star = exact.optimal_policy(log_ref, reward, beta)
    methods = {"reference": log_ref, "optimal": star}
    for i, key in enumerate(["sft", "ppo", "dpo", "dpo-ipo", "rso-direct", "rso-rso-sample-rank", "raft", "rest"]):
        noise = torch.randn(star.shape, dtype=star.dtype, generator=generator)
        methods[key] = (star + 0.1 * (i + 1) * noise).log_softmax(-1)
    rows = []
    for key, log_p in methods.items():
        values = {
            "reward": float((log_p.exp() * reward).sum(-1).mean()),
            "kl": float(exact.kl(log_p, log_ref).mean()),
            "regret": float(exact.regret(log_p, log_ref, reward, beta).mean()),
        }
        row = {"method": key, "label": style.label(key), **values}
        for name, value in values.items():
            row |= {f"{name}_low": value * 0.9, f"{name}_high": value * 1.1}
        rows.append(row)
    return pd.DataFrame(rows), curve, beta


def test_the_comparisons_picture_has_titles_labels_units_and_a_row_for_each_method(made_up):
    summary, curve, beta = made_up
    left, right = frontier.comparison_figure(summary, curve, beta).axes[:2]
    assert left.get_title(loc="left") and right.get_title(loc="left")
    assert "[nats]" in left.get_xlabel() and "reward" in left.get_ylabel() and "reward" in right.get_xlabel()
    assert right.get_xscale() == "log"
    names = [tick.get_text() for tick in right.get_yticklabels()]
    assert set(names) == {style.label(key) for key in summary["method"] if key != "optimal"}
    assert names[-1] == "π_ref" and right.yaxis_inverted()  # the worst lies at the bottom
    assert left.get_legend() is not None


def test_each_method_is_drawn_at_its_numbers_in_its_own_colour(made_up):
    summary, curve, beta = made_up
    left = frontier.comparison_figure(summary, curve, beta).axes[0]
    drawn = {(line.get_color(), line.get_marker()): line.get_xydata() for line in left.lines}
    for _, row in summary[summary["method"] != "optimal"].iterrows():
        look = style.of(row["method"])
        x, y = drawn[look.light, look.marker][0]
        assert (x, y) == pytest.approx((row["kl"], row["reward"]))


def test_the_star_stands_on_the_frontier_at_beta(made_up):
    summary, curve, beta = made_up
    left = frontier.comparison_figure(summary, curve, beta).axes[0]
    look = style.of("optimal")
    (star,) = [line for line in left.lines if line.get_marker() == look.marker]
    wanted = summary.set_index("method").loc["optimal", ["kl", "reward"]].astype(float).tolist()
    assert star.get_xydata()[0] == pytest.approx(wanted, abs=2e-3)  # interpolated between 81 β's


def test_every_point_lies_inside_the_left_panel_and_text_is_readable(made_up):
    summary, curve, beta = made_up
    drawing = frontier.comparison_figure(summary, curve, beta)
    left = drawing.axes[0]
    for _, row in summary.iterrows():
        assert left.get_xlim()[0] < row["kl"] < left.get_xlim()[1]
        assert left.get_ylim()[0] < row["reward"] < left.get_ylim()[1]
    for ax in drawing.axes[:2]:
        assert all(tick.get_fontsize() >= 10 for tick in [*ax.get_xticklabels(), *ax.get_yticklabels()])
        assert ax.xaxis.label.get_fontsize() >= 11


def test_the_same_picture_gives_the_same_bytes(made_up):
    once, twice = (style.png(frontier.comparison_figure(*made_up), dpi=60) for _ in range(2))
    assert once == twice and once.startswith(b"\x89PNG")


def test_the_comparisons_picture_needs_no_intervals_and_says_what_is_missing(made_up):
    summary, curve, beta = made_up
    frontier.comparison_figure(summary[["method", "reward", "kl", "regret"]], curve, beta)
    with pytest.raises(LabError, match="summary has no column regret"):
        frontier.comparison_figure(summary.drop(columns="regret"), curve, beta)
    with pytest.raises(LabError, match="no rows"):
        frontier.comparison_figure(summary[:0], curve, beta)


def test_policy_bars_have_the_policies_heights_and_all_labels():
    log_p = {
        key: torch.tensor(p).log() for key, p in {"reference": [0.5, 0.3, 0.2], "optimal": [0.1, 0.2, 0.7]}.items()
    }
    drawing = style.figure()
    ax = drawing.subplots()
    policies.policy_bars(ax, log_p, ["a", "b", "c"], torch.tensor([0.0, -0.01, 2.0]))
    heights = [[bar.get_height() for bar in group] for group in ax.containers]
    assert heights[0] == pytest.approx([0.5, 0.3, 0.2]) and heights[1] == pytest.approx([0.1, 0.2, 0.7])
    assert ax.get_title(loc="left") and ax.get_xlabel() and ax.get_ylabel() and ax.get_legend()
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a\nr = +0.0", "b\nr = +0.0", "c\nr = +2.0"]
    assert "π*: a 0.10, b 0.20, c 0.70" in policies.describe(log_p, ["a", "b", "c"])


def test_policy_bars_refuse_logits_and_lengths_that_differ():
    ax = style.figure().subplots()
    with pytest.raises(LabError, match="not log-probabilities"):
        policies.policy_bars(ax, {"policy": torch.tensor([1.0, 2.0])})
    with pytest.raises(LabError, match="there are 2 responses"):
        policies.policy_bars(ax, {"policy": torch.tensor([0.2, 0.3, 0.5]).log()}, ["a", "b"])


def test_the_look_ends_with_its_context():
    import matplotlib

    before = dict(matplotlib.rcParams)
    with style.use():
        assert matplotlib.rcParams["legend.frameon"] is False
    assert dict(matplotlib.rcParams) == before


def test_the_still_view_draws_every_kind_of_layer():
    layers = (
        picture.Curve("dpo", [0, 1], [1, 2], dash="--"),
        picture.Band("dpo", [0, 1], [0.5, 1], [1.5, 3]),
        picture.Points("ppo", [0.5], [1], low=[0.5], high=[2]),
        picture.Rule("optimal", 1.0, axis="y", label="goal"),
    )
    numeric = picture.Panel("lines", picture.Axis("step"), picture.Axis("KL [nats]", log=True), layers)
    named = picture.Panel(
        "bars", picture.Axis("y", names=("a", "b")), picture.Axis("p"), (picture.Bars("dpo", [1, 2]),)
    )
    drawing = picture.draw(picture.Picture("words", (numeric, named), (picture.Readout("E[r]", 1.0),)), "Title")
    assert [ax.get_title(loc="left") for ax in drawing.axes] == ["lines", "bars"]
    assert drawing.axes[0].get_yscale() == "log" and drawing.axes[0].get_legend() is not None
    style.png(drawing, dpi=50)
    style.png(picture.draw(picture.failed("no such thing")), dpi=50)


def test_panels_are_shown_in_one_call_with_a_legend_above_each_that_fits_its_width():
    """Short labels are in one row, and long ones in as many rows as their number of columns leaves."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    x, y = picture.Axis("x"), picture.Axis("y")
    short = picture.Panel("few", x, y, tuple(picture.Curve("dpo", [0, 1], [0, i], f"c{i}") for i in range(4)))
    long = picture.Panel(
        "many", x, y, tuple(picture.Curve("dpo", [0, 1], [0, i], f"a line of type {i}") for i in range(6))
    )
    shown = picture.show("Ten lines.", short, long)
    assert shown.alt == "Ten lines." and len(shown.drawing.axes) == 2
    FigureCanvasAgg(shown.drawing).draw()
    for ax, rows in zip(shown.drawing.axes, (1, 3), strict=True):
        legend = ax.get_legend().get_window_extent()
        assert legend.width <= 1.1 * ax.get_window_extent().width and legend.y0 >= ax.get_window_extent().y1 - 1
        assert len({round(text.get_window_extent().y0) for text in ax.get_legend().get_texts()}) == rows


def test_a_point_s_bars_run_from_its_intervals_ends_along_their_own_axes():
    """KL 1 in [0.9, 1.3], reward 5 in [3, 5.5]: horizontal from 0.9 to 1.3, vertical from 3 to 5.5."""
    row = {
        "method": "dpo",
        "kl": 1.0,
        "reward": 5.0,
        "kl_low": 0.9,
        "kl_high": 1.3,
        "reward_low": 3.0,
        "reward_high": 5.5,
    }
    _, ax = style.subplots()
    frontier.method_points(ax, pd.DataFrame([row]))
    lines = [path for one in ax.collections for path in one.get_segments()]
    ends = sorted(np.asarray(line).round(9).tolist() for line in lines)
    assert ends == sorted([[[0.9, 5.0], [1.3, 5.0]], [[1.0, 3.0], [1.0, 5.5]]])


def test_an_interval_much_wider_than_the_methods_lie_apart_does_not_set_the_limits():
    """Rewards 1 and 2, one with an interval from −50 to 50: the axis ends within a few lengths of their distance."""
    rows = [{"method": name, "kl": kl, "reward": reward} for name, kl, reward in (("dpo", 1.0, 1.0), ("ppo", 2.0, 2.0))]
    wide = {"kl_low": 0.5, "kl_high": 2.5, "reward_low": -50.0, "reward_high": 50.0}
    curve = pd.DataFrame({"beta": [0.5, 1.0], "kl": [2.0, 1.0], "reward": [2.0, 1.5]})
    _, ax = style.subplots()
    frontier._frame(ax, pd.DataFrame([row | wide for row in rows]), curve, 0.5)
    low, high = ax.get_ylim()
    assert low < 1.0 and high > 2.0 and high - low < 3


def test_bars_of_two_policies_stand_side_by_side_in_the_order_of_the_policies():
    """Over each response its two bars of width 0.4 · 0.92, centred at −0.2 and at 0.2; heights are probabilities."""
    _, ax = style.subplots()
    log_p = torch.tensor([0.25, 0.75]).double().log()
    policies.policy_bars(ax, {"reference": log_p, "optimal": log_p.flip(0)})
    bars = [(b.get_x() + b.get_width() / 2, b.get_height()) for group in ax.containers for b in group]
    flat = [number for bar in bars for number in bar]
    assert flat == pytest.approx([-0.2, 0.25, 0.8, 0.75, 0.2, 0.75, 1.2, 0.25])


@pytest.mark.parametrize("log", [False, True])
def test_learning_curves_begin_at_step_0_on_the_axis_that_is_asked_for(log):
    _, ax = style.subplots()
    learning.learning_curves(ax, {"a": ("dpo", None, [3.0, 2.0, 1.0])}, "title", "loss [nats]", log=log)
    (line,) = ax.lines
    assert line.get_xdata().tolist() == [0, 1, 2] and line.get_ydata().tolist() == [3.0, 2.0, 1.0]
    assert ax.get_yscale() == ("log" if log else "linear")
