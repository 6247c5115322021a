"""Recorded roads: they begin at the reference, end where the method ends, and change nothing on the way."""

import pytest
import torch

from rlhf_lab.errors import LabError
from rlhf_lab.evaluation import evaluate
from rlhf_lab.experiments.compare import METHODS, Compare, Run
from rlhf_lab.experiments.trajectories import Recorder, recording, walk
from rlhf_lab.figures import style
from rlhf_lab.figures import trajectories as pictures

torch.set_num_threads(1)

SETTINGS = Compare(seeds=1, steps=6, labels=60, progress=False)
WORLD = SETTINGS.make_world()


@pytest.fixture(scope="module")
def walked():
    return walk(SETTINGS, WORLD, ["dpo", "ppo", "rest"], every=2, prompts=20)


def test_every_road_begins_at_the_reference(walked):
    start = evaluate(WORLD.reference, WORLD, 0.5)
    for road in walked:
        assert road.kl[0].item() == pytest.approx(0.0, abs=1e-12)
        assert road.reward[0].item() == pytest.approx(start.reward)


def test_every_road_ends_where_its_policy_is(walked):
    for road in walked:
        end = evaluate(road.end, WORLD, 0.5)
        assert (road.kl[-1].item(), road.reward[-1].item()) == pytest.approx((end.kl, end.reward))


def test_a_watched_method_ends_where_an_unwatched_one_does(walked):
    """To the last bit: the recorder draws no number and trains nothing."""
    alone = METHODS["dpo"].run(Run(SETTINGS, WORLD, 0)).policy
    assert torch.equal(WORLD.log_probs(alone), walked[0].end)


def test_places_are_noted_every_few_steps_of_the_policy_and_of_nothing_else(walked):
    """DPO: 6 steps, every 2nd, start and end: 5. PPO: 4 epochs each, 24 steps: 14. ReST: 3 thresholds of 2: 5. The
    reward model that PPO fits first is not counted.
    """
    assert [(road.method, len(road.kl)) for road in walked] == [("dpo", 5), ("ppo", 14), ("rest", 5)]


def test_what_has_no_road_is_refused():
    with pytest.raises(LabError, match="no road"):
        walk(SETTINGS, WORLD, ["optimal"])
    with pytest.raises(LabError, match="Unknown method"):
        walk(SETTINGS, WORLD, ["nonsense"])
    with pytest.raises(LabError, match="at least 1"):
        Recorder(WORLD, 0)


def test_the_pictures_show_every_method_once(walked):
    from rlhf_lab.experiments.compare import frontier_of

    drawing, axes = style.subplots(1, 2)
    pictures.trajectories_on_frontier(axes[0], walked, frontier_of(WORLD, 0.5), 0.5)
    _, labels = axes[0].get_legend_handles_labels()
    assert labels == ["DPO", "PPO", "ReST", "π_ref"]
    pictures.regret_split(axes[1], {"dpo": ([0.1, 0.2], [0.0, 0.1]), "rest": ([0.5], [0.1])})
    # The worst method stands at the bottom.
    low, high = axes[1].get_ylim()
    assert [label.get_text() for label in axes[1].get_yticklabels()] == ["DPO", "ReST"] and low > high
    drawing.canvas.draw()


def test_a_recorder_begins_anew_with_each_policy_and_hears_nothing_when_it_is_done():
    """Three steps, every one noted: start and three places. Another policy: its start alone. Outside: no more."""
    policy, other = WORLD.reference.copy(), WORLD.reference.copy()

    def step(one) -> None:
        optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
        one.log_prob(WORLD.prompts, WORLD.responses).sum().backward()
        optimizer.step()

    with recording(WORLD, 1) as recorder:
        recorder.watch(policy)
        for _ in range(3):
            step(policy)
        step(other)
        assert len(recorder.places) == 4
        recorder.watch(other)
        assert len(recorder.places) == 1
    step(other)
    assert len(recorder.places) == 1
