"""What trackers are given, with a tracker that only remembers."""

from types import SimpleNamespace

from rlhf_lab.training import Training
from rlhf_lab.training.tracking import Trackers, _flat


def test_settings_become_one_level_named_by_their_whole_path():
    """β is there twice, in two settings, and both are kept; what is no plain value becomes text."""
    record = {"method": "dpo", "settings": {"beta": 0.5, "inner": {"beta": 2, "on": True}}, "trackers": ["a"]}
    assert _flat(record) == {
        "method": "dpo", "settings.beta": 0.5, "settings.inner.beta": 2, "settings.inner.on": True, "trackers": "['a']",
    }  # fmt: skip


def test_rows_are_handed_on_with_their_step_and_trackers_write_what_they_hold_once():
    done = []
    trackers = Trackers(Training(), "x", {})
    trackers.accelerator = SimpleNamespace(
        log=lambda row, step: done.append((row, step)),
        trackers=[SimpleNamespace(finish=lambda name=name: done.append(name)) for name in ("one", "two")],
    )
    trackers.log({"loss": 0.5}, 7)
    trackers.close()
    trackers.close()
    trackers.log({"loss": 0.4}, 8)
    assert done == [({"loss": 0.5}, 7), "one", "two"]
