"""Stored token ids: the same rows as padded tokens, read back only if they are intact, and written once."""

import json

import numpy as np
import pytest
import torch
from tiny_models import tiny_tokenizer

from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.data import preferences, token_store
from rlhf_lab.data.preferences import Source, load_pairs
from rlhf_lab.data.token_store import PairWriter, StoredTokens, open_pairs
from rlhf_lab.errors import LabError

PROMPTS = [[5], [6, 7, 8], [9, 10], [11]]
RESPONSES = [[[1, 2], [3]], [[4], [5, 6, 7, 8]], [[9], [1]], [[2, 2, 2], [65_535]]]


def stored(folder, vocabulary=65_536):
    with PairWriter(folder, vocabulary) as writer:
        writer.add(PROMPTS[:3], RESPONSES[:3])
        writer.add(PROMPTS[3:], RESPONSES[3:])
        writer.report = {"lines": ["a"]}
    return open_pairs(folder)


def test_stored_pairs_are_the_padded_ones_for_every_kind_of_selection(tmp_path):
    pairs, report = stored(tmp_path / "a")
    padded = Pairs(Tokens.from_lists(PROMPTS), Tokens.from_lists(RESPONSES))
    assert report == {"lines": ["a"]} and len(pairs) == 4
    assert isinstance(pairs.prompts, StoredTokens) and isinstance(pairs.responses, StoredTokens)
    for rows in (0, -1, slice(1, 3), torch.tensor([3, 1, 1]), torch.tensor([True, False, True, False])):
        found, expected = pairs[rows], padded[rows]
        assert found.prompts.tolist() == expected.prompts.tolist()
        assert found.responses.tolist() == expected.responses.tolist()
        assert found.responses.shape[-1] == max(len(y) for both in found.responses.tolist() for y in both)
    assert pairs.responses.shape == padded.responses.shape and pairs.prompts.shape == padded.prompts.shape
    assert torch.equal(pairs.responses.lengths, padded.responses.lengths)
    assert torch.equal(pairs.responses.ids, padded.responses.ids) and torch.equal(
        pairs.prompts.mask, padded.prompts.mask
    )
    with pytest.raises(IndexError, match="4 rows, so they have no row 4"):
        pairs.prompts[4]


def test_a_large_selection_stays_in_the_files_and_can_be_selected_from_again(tmp_path, monkeypatch):
    monkeypatch.setattr(token_store, "PADDED_AT_ONCE", 2)
    pairs, _ = stored(tmp_path / "a")
    part = pairs[torch.tensor([3, 0, 1])]
    assert isinstance(part.prompts, StoredTokens) and len(part) == 3
    assert part[torch.tensor([2, 0])].prompts.tolist() == [PROMPTS[1], PROMPTS[3]]
    assert part.responses[1].tolist() == [RESPONSES[0]]
    assert part.prompts.to("cpu")[0].tolist() == [PROMPTS[3]]


def test_ids_take_two_bytes_or_four_if_the_vocabulary_is_larger(tmp_path):
    stored(tmp_path / "small")
    stored(tmp_path / "large", 65_537)
    number = sum(map(len, PROMPTS))
    assert (tmp_path / "small" / "prompts.ids").stat().st_size == 2 * number
    assert (tmp_path / "large" / "prompts.ids").stat().st_size == 4 * number
    assert open_pairs(tmp_path / "large")[0].responses[3].tolist() == [RESPONSES[3]]


def test_the_digest_depends_on_ids_and_on_the_boundaries_between_sequences():
    """All three have the flat ids 1 2 3; the first two differ in nothing but their boundaries."""
    flat = np.array([1, 2, 3], "<u2")
    one = StoredTokens(flat, np.array([0, 1, 3]))
    other = StoredTokens(flat, np.array([0, 2, 3]))
    same = StoredTokens(flat.astype("<u4"), np.array([0, 1, 3]))
    changed = StoredTokens(np.array([1, 2, 4], "<u2"), np.array([0, 1, 3]))
    assert one.digest() == same.digest() and len({one.digest(), other.digest(), changed.digest()}) == 3
    turned = StoredTokens(np.array([2, 3, 1], "<u2"), np.array([0, 2, 3]))  # the rows of `one` in the other order
    assert turned[torch.tensor([1, 0])].tolist() == one.tolist()
    view = StoredTokens(turned._flat, turned._starts, rows=np.array([1, 0]))
    assert view.digest() == one.digest() != turned.digest()


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "version", "not json"])
def test_a_damaged_store_is_not_read(tmp_path, damage):
    stored(tmp_path / "a")
    file, record = tmp_path / "a" / "responses.ids", tmp_path / "a" / "store.json"
    data = file.read_bytes()
    if damage == "flipped":
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "cut":
        file.write_bytes(data[:-2])
    elif damage == "missing":
        file.unlink()
    elif damage == "version":
        record.write_text(json.dumps({**json.loads(record.read_text()), "version": 0}))
    else:
        record.write_text("{")
    assert open_pairs(tmp_path / "a") is None
    assert stored(tmp_path / "a")[0].prompts.tolist() == PROMPTS  # written again


def test_a_writer_that_is_interrupted_leaves_no_folder(tmp_path):
    with pytest.raises(KeyboardInterrupt), PairWriter(tmp_path / "a", 10) as writer:
        writer.add(PROMPTS, RESPONSES)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


# --- from a file to stored pairs -----------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    """Seven rows, of which one has equal responses and one has a response of white space."""
    rows = [{"prompt": "ab"[: 1 + i % 2], "chosen": "c" * (i + 1), "rejected": "d" * (9 - i)} for i in range(5)]
    rows += [{"prompt": "a", "chosen": "b", "rejected": "b"}, {"prompt": "a", "chosen": " ", "rejected": "b"}]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_large_data_give_the_pairs_and_counts_of_small_data_and_are_tokenised_once(file, tmp_path, monkeypatch):
    tokenizer = tiny_tokenizer(["abcd"])
    arguments = (tokenizer, 8, 6, tokenizer.eos_token_id, tmp_path / "tokens")
    padded, said = load_pairs(str(file), *arguments)
    assert not (tmp_path / "tokens").exists() and not isinstance(padded.prompts, StoredTokens)
    monkeypatch.setattr(preferences, "IN_MEMORY", 3)
    monkeypatch.setattr(preferences, "CHUNK", 2)
    large, said_large = load_pairs(str(file), *arguments)
    assert isinstance(large.prompts, StoredTokens) and said_large == said
    assert "5 pairs; dropped 2 rows" in said[0] and "responses truncated" in said[1]
    assert large.prompts.tolist() == padded.prompts.tolist() and large.responses.tolist() == padded.responses.tolist()

    def refuse(self):
        raise AssertionError("the rows are read again")

    monkeypatch.setattr(preferences._Reading, "__iter__", refuse)
    again, said_again = load_pairs(str(file), *arguments)
    assert said_again == said and again.responses.tolist() == padded.responses.tolist()
    for changed in ((tokenizer, 7, *arguments[2:]), (tiny_tokenizer(["abce"]), *arguments[1:])):
        with pytest.raises(AssertionError, match="read again"):
            load_pairs(str(file), *changed)
    with pytest.raises(AssertionError, match="read again"):
        load_pairs(Source(str(file), limit=4), *arguments)
    file.write_text(file.read_text().replace("cccc", "cdcd"))
    with pytest.raises(AssertionError, match="read again"):
        load_pairs(str(file), *arguments)


def test_a_malformed_row_of_large_data_is_named_and_nothing_is_stored(file, tmp_path, monkeypatch):
    monkeypatch.setattr(preferences, "IN_MEMORY", 2)
    with file.open("a") as out:
        out.write('{"prompt": "a", "chosen": 3, "rejected": "b"}\n')
    tokenizer = tiny_tokenizer(["abcd"])
    with pytest.raises(LabError, match="line 8: `chosen` is of type int"):
        load_pairs(str(file), tokenizer, None, None, tokenizer.eos_token_id, tmp_path / "tokens")
    assert list((tmp_path / "tokens").iterdir()) == []
