"""Stored token ids: the same rows as padded tokens, read back only if they are intact, and written once."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny_tokenizer

from rlhf_lab.batch import Tokens
from rlhf_lab.data import loading, token_store
from rlhf_lab.data.loading import load_rows
from rlhf_lab.data.preferences import Source
from rlhf_lab.data.token_store import StoredTokens, StoreWriter, id_type, join, open_store, pack, unpack
from rlhf_lab.errors import LabError

PROMPTS = [[5], [6, 7, 8], [9, 10], [11]]
RESPONSES = [[[1, 2], [3]], [[4], [5, 6, 7, 8]], [[9], [1]], [[2, 2, 2], [65_535]]]


def stored(folder, vocabulary=65_536):
    dtype = id_type(vocabulary)
    with StoreWriter(folder, 2, dtype) as writer:
        writer.add(pack(PROMPTS[:3], RESPONSES[:3], [], dtype))
        writer.add(pack(PROMPTS[3:], RESPONSES[3:], [], dtype))
        writer.report = {"lines": ["a"]}
    return open_store(folder)


def test_stored_rows_are_the_padded_ones_for_every_kind_of_selection(tmp_path):
    (prompts, responses, labels, trained), report = stored(tmp_path / "a")
    assert report == {"lines": ["a"]} and labels is None and trained is None
    for found, padded in ((prompts, Tokens.from_lists(PROMPTS)), (responses, Tokens.from_lists(RESPONSES))):
        assert isinstance(found, StoredTokens) and len(found) == 4 and found.shape == padded.shape
        assert torch.equal(found.lengths, padded.lengths) and torch.equal(found.mask, padded.mask)
        assert torch.equal(found.ids, padded.ids) and found.keys() == padded.keys()
        for rows in (0, -1, slice(1, 3), torch.tensor([3, 1, 1]), torch.tensor([True, False, True, False])):
            assert found[rows].tolist() == padded[rows].tolist()
        assert found[1:3].shape[-1] == max(int(n) for n in padded[1:3].lengths.flatten())
    which = torch.tensor([[1], [0], [0], [1]])
    assert responses.take(which).tolist() == Tokens.from_lists(RESPONSES).take(which).tolist()
    with pytest.raises(IndexError, match="4 rows, so they have no row 4"):
        prompts[4]


def test_a_large_selection_is_not_padded_and_can_be_selected_from_again(tmp_path, monkeypatch):
    monkeypatch.setattr(token_store, "PADDED_AT_ONCE", 2)
    (prompts, responses, *_), _ = stored(tmp_path / "a")
    order = torch.tensor([3, 0, 1])
    part = prompts[order]
    assert isinstance(part, StoredTokens) and len(part) == 3
    assert part[torch.tensor([2, 0])].tolist() == [PROMPTS[1], PROMPTS[3]]
    assert responses[order][1].tolist() == [RESPONSES[0]]
    assert part.to("cpu")[0].tolist() == [PROMPTS[3]]
    assert part.keys() == Tokens.from_lists(PROMPTS)[order].keys()


def test_joined_rows_of_memory_and_files_are_the_rows_of_both(tmp_path, monkeypatch):
    on_disk, dtype = stored(tmp_path / "a")[0], id_type(70_000)
    prompts, responses = [[70_000], [1, 2]], [[[3], [4, 5]], [[6], [69_999]]]
    in_memory = unpack(pack(prompts, responses, [], dtype), 2)
    monkeypatch.setattr(token_store, "PADDED_AT_ONCE", 3)
    both = join([in_memory, on_disk, in_memory])
    for found, expected in (
        (both.prompts, prompts + PROMPTS + prompts),
        (both.responses, responses + RESPONSES + responses),
    ):
        padded = Tokens.from_lists(expected)
        assert found.tolist() == expected and found.keys() == padded.keys() and found.shape == padded.shape
        for rows in (torch.tensor([7, 2]), slice(1, 3), torch.tensor([6, 0, 5, 2])):
            assert found[rows].tolist() == padded[rows].tolist()
    assert both.labels is None
    other = join([on_disk, in_memory, in_memory])
    assert len({rows.prompts.digest() for rows in (both, other, in_memory, on_disk)}) == 4
    assert both.prompts.digest() == join([in_memory, on_disk, in_memory]).prompts.digest()


def test_ids_take_two_bytes_or_four_if_the_vocabulary_is_larger(tmp_path):
    stored(tmp_path / "small")
    stored(tmp_path / "large", 65_537)
    number = sum(map(len, PROMPTS))
    assert (tmp_path / "small" / "prompts.ids").stat().st_size == 2 * number
    assert (tmp_path / "large" / "prompts.ids").stat().st_size == 4 * number
    assert open_store(tmp_path / "large")[0].responses[3].tolist() == [RESPONSES[3]]


def test_prompts_alone_and_labels_are_stored_too(tmp_path):
    labels, dtype = [True, False, False, True], id_type(9)
    with StoreWriter(tmp_path / "prompts", 0, dtype) as writer:
        writer.add(pack(PROMPTS, [[]] * 4, [], dtype))
    found, _ = open_store(tmp_path / "prompts")
    assert found.prompts.tolist() == PROMPTS and found.responses is None and found.labels is None
    with StoreWriter(tmp_path / "labels", 1, dtype) as writer:
        writer.add(pack(PROMPTS, [[row[0]] for row in RESPONSES], labels, dtype))
    found, _ = open_store(tmp_path / "labels")
    assert found.responses.tolist() == [[row[0]] for row in RESPONSES]
    assert found.labels.dtype == torch.bool and found.labels.tolist() == [[label] for label in labels]


def test_the_digest_depends_on_ids_on_the_boundaries_between_sequences_and_on_the_selection(tmp_path):
    """The first three have the flat ids 1 2 3; the first two differ in nothing but their boundaries."""
    flat, index = np.array([1, 2, 3], "<u2"), np.arange(2)
    one = StoredTokens(flat, np.array([0, 1, 3]), index)
    other = StoredTokens(flat, np.array([0, 2, 3]), index)
    turned = StoredTokens(flat, np.array([0, 1, 3]), index[::-1])
    changed = StoredTokens(np.array([1, 2, 4], "<u2"), np.array([0, 1, 3]), index)
    again = StoredTokens(flat.copy(), np.array([0, 1, 3]), index)
    assert len({tokens.digest() for tokens in (one, other, turned, changed)}) == 4
    assert one.digest() == again.digest()
    # In memory and in files the same rows have the same digest, which is not computed from the ids again.
    (prompts, *_), _ = stored(tmp_path / "a")
    dtype = id_type(65_536)
    assert unpack(pack(PROMPTS, RESPONSES, [], dtype), 2).prompts.digest() == prompts.digest()
    (tmp_path / "a" / "prompts.ids").write_bytes(b"")
    assert unpack(pack(PROMPTS, RESPONSES, [], dtype), 2).prompts.digest() == prompts.digest()


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
    assert open_store(tmp_path / "a") is None
    assert stored(tmp_path / "a")[0].prompts.tolist() == PROMPTS  # written again


def test_a_writer_that_is_interrupted_leaves_no_folder(tmp_path):
    with pytest.raises(KeyboardInterrupt), StoreWriter(tmp_path / "a", 2, id_type(10)) as writer:
        writer.add(pack(PROMPTS, RESPONSES, [], id_type(10)))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_has_left_is_neither_read_nor_kept(tmp_path):
    """A killed process removes nothing. Its files lie in a folder with another name, which the next writer empties."""
    killed = StoreWriter(tmp_path / "a", 2, id_type(10))
    killed.__enter__()
    killed.add(pack(PROMPTS, RESPONSES, [], id_type(10)))
    assert len(list(tmp_path.iterdir())) == 1 and open_store(tmp_path / "a") is None
    assert stored(tmp_path / "a")[0].prompts.tolist() == PROMPTS
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


# --- from a file to stored pairs -----------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    """Seven rows, of which one has equal responses and one has a response of white space."""
    rows = [{"prompt": "ab"[: 1 + i % 2], "chosen": "c" * (i + 1), "rejected": "d" * (9 - i)} for i in range(5)]
    rows += [{"prompt": "a", "chosen": "b", "rejected": "b"}, {"prompt": "a", "chosen": " ", "rejected": "b"}]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_large_data_give_the_rows_and_counts_of_small_data_and_are_tokenised_once(file, tmp_path, monkeypatch):
    tokenizer = tiny_tokenizer(["abcd"])
    arguments = (tokenizer, 8, 6, tokenizer.eos_token_id, tmp_path / "tokens")
    small, *said = load_rows("pairs", str(file), *arguments)
    assert not (tmp_path / "tokens").exists()
    monkeypatch.setattr(loading, "IN_MEMORY", 3)
    monkeypatch.setattr(loading, "CHUNK", 2)
    large, *said_large = load_rows("pairs", str(file), *arguments)
    assert isinstance(large.prompts._flat, np.memmap) and said_large == said
    assert "5 pairs; dropped 2 rows" in said[0][0] and "responses truncated" in said[0][1]
    assert said[1]["read"] == 7 and said[1]["kept"] == 5 and sum(said[1]["dropped"].values()) == 2
    assert large.prompts.tolist() == small.prompts.tolist() and large.responses.tolist() == small.responses.tolist()

    def refuse(self):
        raise AssertionError("the rows are read again")

    monkeypatch.setattr(loading.Reading, "__iter__", refuse)
    again, *said_again = load_rows("pairs", str(file), *arguments)
    assert said_again == said and again.responses.tolist() == small.responses.tolist()
    for changed in ((tokenizer, 7, *arguments[2:]), (tiny_tokenizer(["abce"]), *arguments[1:])):
        with pytest.raises(AssertionError, match="read again"):
            load_rows("pairs", str(file), *changed)
    for other in (("pairs", Source(str(file), limit=4)), ("targets", str(file))):
        with pytest.raises(AssertionError, match="read again"):
            load_rows(*other, *arguments)
    file.write_text(file.read_text().replace("cccc", "cdcd"))
    with pytest.raises(AssertionError, match="read again"):
        load_rows("pairs", str(file), *arguments)


@pytest.mark.parametrize("kind", ["targets", "labelled", "prompts"])
def test_every_kind_of_large_data_is_that_of_small_data(kind, tmp_path, monkeypatch):
    """Rows 0 and 5 have the same prompt, the response of row 1 is empty, and that of row 3 contains the end token.

    So KTO has rows 0, 2, 4 and 5, and SFT only the desirable ones: 0, 2 and 4.
    """
    texts = ["a", " ", "b", "c<end>d", "d", "ab"]
    rows = [{"prompt": "ab"[i % 5 :] + "cd", "completion": text, "label": i % 2 == 0} for i, text in enumerate(texts)]
    file, tokenizer = tmp_path / "rows.jsonl", tiny_tokenizer(["abcd"])
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = (kind, str(file), tokenizer, 8, 6, tokenizer.eos_token_id, tmp_path / "tokens")
    small, *said = load_rows(*arguments)
    monkeypatch.setattr(loading, "IN_MEMORY", 1)
    monkeypatch.setattr(loading, "CHUNK", 2)
    for _ in ("written", "read"):
        large, *said_large = load_rows(*arguments)
        assert said_large == said and large.prompts.tolist() == small.prompts.tolist()
        if kind == "prompts":
            assert large.responses is None and len(large.prompts) == len({row["prompt"] for row in rows})
        else:
            assert large.responses.tolist() == small.responses.tolist() and large.responses.shape[:2] == (
                {"targets": 3, "labelled": 4}[kind],
                1,
            )
        if kind == "labelled":
            assert large.labels.tolist() == small.labels.tolist() == [[True], [True], [True], [False]]
        else:
            assert large.labels is None


def test_a_malformed_row_of_large_data_is_named_and_no_ids_are_stored(file, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "IN_MEMORY", 2)
    monkeypatch.setattr(loading, "CHUNK", 2)
    with file.open("a") as out:
        out.write('{"prompt": "a", "chosen": 3, "rejected": "b"}\n')
    tokenizer = tiny_tokenizer(["abcd"])
    with pytest.raises(LabError, match="line 8: `chosen` is of type int"):
        load_rows("pairs", str(file), tokenizer, None, None, tokenizer.eos_token_id, tmp_path / "tokens")
    assert not any(path.is_dir() for path in (tmp_path / "tokens").iterdir())


def test_an_interrupted_start_begins_again_and_a_start_that_waited_for_another_reads_its_ids(
    file, tmp_path, monkeypatch
):
    monkeypatch.setattr(loading, "IN_MEMORY", 2)
    monkeypatch.setattr(loading, "CHUNK", 2)
    tokenizer = tiny_tokenizer(["abcd"])
    arguments = ("pairs", str(file), tokenizer, None, None, tokenizer.eos_token_id, tmp_path / "tokens")
    real, calls = loading.Encoder.encode, []

    def stopped(self, examples):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(examples))
        return real(self, examples)

    monkeypatch.setattr(loading.Encoder, "encode", stopped)
    with pytest.raises(KeyboardInterrupt):
        load_rows(*arguments)
    assert not any(path.is_dir() for path in (tmp_path / "tokens").iterdir())
    monkeypatch.setattr(loading.Encoder, "encode", real)
    written, add = [], StoreWriter.add
    monkeypatch.setattr(StoreWriter, "add", lambda self, columns: written.append(1) or add(self, columns))
    first = load_rows(*arguments)
    assert len(written) == 3 and len(first.rows.prompts) == 5  # chunks of 2, 2 and 1 rows
    # Another process finishes after this one has looked for the ids, and before this one has the lock.
    looks, read = [], token_store.open_store
    monkeypatch.setattr(
        token_store, "open_store", lambda folder: looks.append(1) or (read(folder) if looks[1:] else None)
    )
    other = load_rows(*arguments)
    assert len(written) == 3 and len(looks) == 3
    assert other.rows.responses.tolist() == first.rows.responses.tolist() and other.said == first.said


def test_texts_are_tokenised_in_batches_and_the_bar_counts_every_usable_row(file, tmp_path, monkeypatch):
    """A batch of texts in one call is what the tokenizer divides among its threads. Five pairs are three chunks of at
    most two pairs, with a call each for prompts, chosen and rejected responses."""
    monkeypatch.setattr(loading, "IN_MEMORY", 2)
    monkeypatch.setattr(loading, "CHUNK", 2)
    tokenizer, batches, bars = tiny_tokenizer(["abcd"]), [], []
    call = type(tokenizer).__call__

    def counted(self, texts, **more):
        if isinstance(texts, list):
            batches.append(len(texts))
        return call(self, texts, **more)

    class Bar(loading.tqdm):
        def __init__(self, *a, **k):
            super().__init__(*a, **{**k, "disable": True})
            bars.append((k["disable"], []))

        def update(self, n=1):
            bars[-1][1].append(n)

    monkeypatch.setattr(type(tokenizer), "__call__", counted)
    monkeypatch.setattr(loading, "tqdm", Bar)
    load_rows("pairs", str(file), tokenizer, 8, 6, tokenizer.eos_token_id, tmp_path / "tokens", progress=True)
    assert batches == [2, 2, 2] * 2 + [1, 1, 1] and bars == [(False, [2, 2, 1])]


def test_a_folder_that_cannot_be_written_is_named(file, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "IN_MEMORY", 2)
    monkeypatch.setattr(loading, "CHUNK", 2)
    (tmp_path / "tokens").write_text("")
    tokenizer = tiny_tokenizer(["abcd"])
    with pytest.raises(LabError, match=r"cannot be stored in .*tokens.*RLHF_LAB_CACHE"):
        load_rows("pairs", str(file), tokenizer, None, None, tokenizer.eos_token_id, tmp_path / "tokens")


def test_a_file_is_hashed_once_until_it_changes(file, monkeypatch):
    """Both `run.json` and the key of stored ids contain its SHA-256."""
    from rlhf_lab.data import readers

    opened, real = [], Path.open
    monkeypatch.setattr(Path, "open", lambda self, *mode: opened.append(self) or real(self, *mode))
    first = readers.file_sha256(str(file))
    assert readers.file_sha256(str(file)) == first and len(opened) == 1
    with real(file, "a") as out:
        out.write("\n")
    assert readers.file_sha256(str(file)) != first and len(opened) == 2
