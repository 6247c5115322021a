"""Data from the Hub, by a stand-in for it: streaming, what is kept, how a broken stream goes on."""

import datasets
import pytest

from rlhf_lab.data import hub
from rlhf_lab.data.preferences import Source, load_preferences
from rlhf_lab.errors import LabError
from rlhf_lab.policies import hub_lookup

ROWS = [{"prompt": f"{i}?", "chosen": f" {i}", "rejected": " no" if i % 4 else f" {i}"} for i in range(40)]


class Stream:
    """What `load_dataset(streaming=True)` gives: counts what was read, and breaks where it is told."""

    def __init__(self, rows, read, breaks=None):
        self.rows, self.read, self.breaks = rows, read, breaks

    def skip(self, number):
        return Stream(self.rows[number:], self.read, None if self.breaks is None else self.breaks - number)

    def __iter__(self):
        for number, row in enumerate(self.rows):
            if number == self.breaks:
                raise ConnectionError("the line is dead")
            self.read.append(row["prompt"])
            yield row


@pytest.fixture
def the_hub(monkeypatch, tmp_path):
    """The Hub has ROWS at the commit `one`, and can be changed by the test."""
    state = {"commit": "one", "rows": ROWS, "breaks": None, "read": [], "asked": []}
    monkeypatch.setenv("RLHF_LAB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub_lookup, "hub_commit", lambda *question: state["commit"])

    def load_dataset(name, **how):
        state["asked"].append(how)
        if how.get("streaming"):
            return Stream(state["rows"], state["read"], state["breaks"])
        return state["rows"]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return state


def test_a_limit_streams_no_more_than_it_needs_and_the_next_time_nothing(the_hub):
    """Every fourth pair is of equal responses: six usable ones are the first eight rows … 1, 2, 3, 5, 6, 7."""
    texts = load_preferences(Source("some/pairs", limit=6))
    assert texts.prompts == ["1?", "2?", "3?", "5?", "6?", "7?"] and len(the_hub["read"]) == 8
    assert load_preferences(Source("some/pairs", limit=5)).prompts == texts.prompts[:5] and len(the_hub["read"]) == 8
    assert len(load_preferences(Source("some/pairs", limit=7))) == 7
    assert the_hub["read"] == [f"{i}?" for i in range(10)], "only the rows behind those that were kept"


def test_a_stream_that_breaks_goes_on_where_it_broke(the_hub):
    the_hub["breaks"] = 5
    with pytest.raises(
        LabError, match=r"The download of 'some/pairs' was interrupted \(ConnectionError: the line is dead\)"
    ):
        load_preferences(Source("some/pairs", limit=10))
    the_hub["breaks"] = None
    assert len(load_preferences(Source("some/pairs", limit=10))) == 10
    assert the_hub["read"] == [f"{i}?" for i in range(14)]


def test_half_a_line_that_a_killed_process_left_is_cut_off(the_hub):
    load_preferences(Source("some/pairs", limit=3))
    (kept,) = hub_lookup.cache_folder().rglob("*.jsonl")
    kept.write_bytes(kept.read_bytes()[:-7])
    assert load_preferences(Source("some/pairs", limit=6)).prompts == ["1?", "2?", "3?", "5?", "6?", "7?"]


def test_another_commit_is_streamed_anew_and_without_a_network_the_kept_rows_are_used(the_hub):
    load_preferences(Source("some/pairs", limit=3))
    the_hub |= {"commit": "two", "rows": [{"prompt": "new?", "chosen": " a", "rejected": " b"}]}
    assert load_preferences(Source("some/pairs", limit=3)).prompts == ["new?"]
    the_hub["commit"] = None
    assert load_preferences(Source("some/pairs", limit=3)).prompts == ["new?"]


def test_revision_split_and_folder_are_kept_apart(the_hub):
    for how in ({}, {"revision": "v1"}, {"split": "test"}, {"folder": "harmless-base"}):
        load_preferences(Source("some/pairs", limit=1, **how))
    assert len(list(hub_lookup.cache_folder().rglob("*.jsonl"))) == 4
    assert the_hub["asked"][-1] == {"split": "train", "revision": None, "data_dir": "harmless-base", "streaming": True}


def test_a_data_set_that_is_a_script_is_read_from_its_parquet_copy(the_hub, monkeypatch):
    """No script is run: the Hub's own conversion is asked for instead."""

    def load_dataset(name, revision=None, **how):
        if revision is None:
            raise RuntimeError("Dataset scripts are no longer supported, but found summarize_from_feedback.py")
        return [{"prompt": revision, "chosen": "a", "rejected": "b"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_preferences("openai/summarize_from_feedback").prompts == [hub.CONVERTED]


@pytest.mark.parametrize("line", [b'{"prompt": "a\xff"}', b"{broken", b"3", b"[1]"])
def test_a_damaged_line_of_what_was_kept_is_named_with_the_file_to_remove(the_hub, line):
    """Ten pairs are streamed, and kept; then the second line of the kept file is damaged."""
    load_preferences(Source("some/pairs", limit=10))
    kept = hub._stored_file("some/pairs", "train", None, None)
    lines = kept.read_bytes().splitlines()
    kept.write_bytes(b"\n".join([lines[0], line, *lines[2:]]) + b"\n")
    with pytest.raises(LabError, match=r"line 2, is damaged .*Remove this file") as caught:
        load_preferences(Source("some/pairs", limit=10))
    assert str(kept) in str(caught.value)


def test_half_a_character_in_a_row_from_the_hub_is_one_error_with_the_row_now_and_when_it_is_kept(the_hub):
    the_hub["rows"] = [ROWS[1], ROWS[2] | {"chosen": "\ud83d"}, *ROWS[3:]]
    for _ in range(2):
        with pytest.raises(LabError, match=r"some/pairs, row 2: `chosen` contains a lone surrogate"):
            load_preferences(Source("some/pairs", limit=10))


def test_split_revision_and_folder_are_those_that_are_asked_for_streamed_or_whole(the_hub):
    for limit in (3, None):
        the_hub["asked"].clear()
        list(hub.rows("some/pairs", "validation", "v2", "part", True, limit))
        (how,) = the_hub["asked"]
        assert (how["split"], how["revision"], how["data_dir"]) == ("validation", "v2", "part")
        assert how.get("streaming", False) is (limit is not None)
