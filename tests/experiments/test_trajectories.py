"""Recorded trajectories: they begin at π_ref, end at the trained policy, and change nothing on the way."""

import pytest
import torch

from rlhf_lab.errors import LabError
from rlhf_lab.evaluation import evaluate
from rlhf_lab.experiments.compare import Compare, exact_setup, train_compared
from rlhf_lab.experiments.trajectories import record, record_trajectories
from rlhf_lab.figures import style
from rlhf_lab.figures import trajectories as pictures

torch.set_num_threads(1)

SETTINGS = Compare(seeds=1, steps=6, labels=60, progress=False)
WORLD = SETTINGS.make_world()


@pytest.fixture(scope="module")
def recorded():
    return record_trajectories(SETTINGS, WORLD, ["dpo", "ppo", "rest"], every=2, prompts=20)


def test_every_trajectory_begins_at_the_reference(recorded):
    start = evaluate(WORLD.reference, WORLD, 0.5)
    for one in recorded:
        assert one.kl[0].item() == pytest.approx(0.0, abs=1e-12)
        assert one.reward[0].item() == pytest.approx(start.reward)


def test_every_trajectory_ends_at_its_policy(recorded):
    for one in recorded:
        end = evaluate(one.end, WORLD, 0.5)
        assert (one.kl[-1].item(), one.reward[-1].item()) == pytest.approx((end.kl, end.reward))


def test_a_recorded_method_ends_where_an_unrecorded_one_does(recorded):
    """To the last bit: the recorder draws no number and trains nothing."""
    alone = train_compared("dpo", exact_setup(SETTINGS, WORLD, 0)).policy
    assert torch.equal(WORLD.log_probs(alone), recorded[0].end)


def test_positions_are_recorded_every_few_steps_of_the_policy_and_of_nothing_else(recorded):
    """DPO: 6 steps, every 2nd, start and end: 5. PPO: 4 epochs each, 24 steps: 14. ReST: 3 thresholds of 2: 5. The
    reward model that PPO fits first is not counted.
    """
    assert [(one.method, len(one.kl)) for one in recorded] == [("dpo", 5), ("ppo", 14), ("rest", 5)]


def test_what_has_no_trajectory_is_refused():
    with pytest.raises(LabError, match="'optimal' trains no policy"):
        record_trajectories(SETTINGS, WORLD, ["optimal"])
    with pytest.raises(LabError, match="Unknown method"):
        record_trajectories(SETTINGS, WORLD, ["nonsense"])
    with pytest.raises(LabError, match="at least 1"):
        record_trajectories(SETTINGS, WORLD, ["dpo"], every=0)


def test_the_pictures_show_every_method_once(recorded):
    from rlhf_lab.experiments.compare import frontier_of

    drawing, axes = style.subplots(1, 2)
    pictures.trajectories_on_frontier(axes[0], recorded, frontier_of(WORLD, 0.5), 0.5, limits={"rest": (9.0, 0.5)})
    _, labels = axes[0].get_legend_handles_labels()
    assert labels == ["DPO", "PPO", "ReST", "π_ref", "limit of the method", "π* at β = 0.5", "frontier"]
    assert axes[0].get_xlim()[1] > 9
    pictures.regret_split(axes[1], {"dpo": ([0.1, 0.2], [0.0, 0.1]), "rest": ([0.5], [0.1])})
    # The worst method stands at the bottom.
    low, high = axes[1].get_ylim()
    assert [label.get_text() for label in axes[1].get_yticklabels()] == ["DPO", "ReST"] and low > high
    drawing.canvas.draw()


def test_a_recorder_starts_again_with_each_policy_and_stops_with_its_context():
    """Three steps are three calls after that of the start. Steps of another policy, and later ones, are not counted."""
    policy, other = WORLD.reference.copy(), WORLD.reference.copy()
    calls = []

    def step(one) -> None:
        optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
        one.log_prob(WORLD.prompts, WORLD.responses).sum().backward()
        optimizer.step()

    with record(lambda one, steps: calls.append((one, steps))) as recorder:
        step(policy)
        assert calls == []
        recorder.follow(policy)
        for _ in range(3):
            step(policy)
        step(other)
        assert calls == [(policy, number) for number in range(4)] and recorder.steps == 3
        recorder.follow(other)
        assert calls[4:] == [(other, 0)] and recorder.steps == 0
    step(other)
    assert len(calls) == 5
    with record(lambda one, steps: calls.append((one, steps)), policy):
        assert calls[5:] == [(policy, 0)]
