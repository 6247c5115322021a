"""Where a command's data come from: source, limits on tokens, worlds; every option that says so reaches its loader."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from every_option import from_words, unused_is_no_fault, wanted  # noqa: F401
from small import write_lines
from tiny_models import tiny_tokenizer

from rlhf_lab.cli.train import data
from rlhf_lab.cli.train.data import data_mark, load_data, original_of, sample_pairs, token_limits
from rlhf_lab.data import loading
from rlhf_lab.errors import LabError

TOKENIZER = tiny_tokenizer(["What is one and two? It is three.", "Say it again."], vocab=300)
END = TOKENIZER.eos_token_id


def settings_of(command: str, **changes: Any) -> Any:
    """Every option at a value that is not its default, but for these."""
    return from_words(command, {**wanted(command), **changes})


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", ["pairs", "targets", "prompts"])
def test_split_revision_folder_and_limit_reach_the_source(kind, monkeypatch):
    """The values are the options' names, so that two which trade places are seen."""

    class Seen(Exception):
        pass

    def load(kind, source, tokenizer, *limits):
        raise Seen(kind, source, limits[:3], limits[-2:])

    monkeypatch.setattr(loading, "load_rows", load)
    with pytest.raises(Seen) as seen:
        load_data(settings_of("train dpo", limit=5), kind, TOKENIZER, (8, 9))
    given, source, limits, too_long = seen.value.args
    assert (given, limits, too_long) == (kind, (8, 9, END), ("drop", "last"))
    assert (source.name, source.split, source.revision, source.folder, source.limit, source.chat) == (
        "some-data", "some-data_split", "some-data_revision", "some-data_folder", 5, "off",
    )  # fmt: skip


def test_pairs_and_targets_of_a_file_are_cut_to_their_limits_and_end(tmp_path):
    """Prompts keep their last four tokens, responses their first three; what was not cut has the end token."""
    rows = [{"prompt": "What is one and two?", "chosen": "It is three. Say it again.", "rejected": "a"}]
    file = write_lines(tmp_path / "pairs.jsonl", rows)
    settings = settings_of("train dpo", data=file, limit=None, too_long="cut")
    pairs = load_data(settings, "pairs", TOKENIZER, (4, 3)).pairs
    assert pairs.prompts.tolist() == [ids(rows[0]["prompt"])[-4:]]
    assert pairs.responses.tolist() == [[ids(rows[0]["chosen"])[:3], [*ids("a"), END]]]
    found = load_data(settings, "targets", TOKENIZER, (4, 3))
    assert (found.prompts.tolist(), found.targets.tolist()) == (
        [ids(rows[0]["prompt"])[-4:]],
        [[ids(rows[0]["chosen"])[:3]]],
    )
    assert load_data(settings, "prompts", TOKENIZER, (4, 3)).prompts.tolist() == found.prompts.tolist()


def test_a_label_stays_with_its_example_where_another_one_is_dropped(tmp_path):
    """The first response holds the end token and is dropped; the labels of the two that are left are false, true."""
    rows = [("a<end>b", True), ("one", False), ("two", True)]
    file = write_lines(
        tmp_path / "v.jsonl", [{"prompt": "Say", "completion": text, "label": label} for text, label in rows]
    )
    found = load_data(settings_of("train kto", data=file, limit=None), "labelled", TOKENIZER, (8, 8))
    assert found.targets.tolist() == [[[*ids("one"), END]], [[*ids("two"), END]]]
    assert found.labels.tolist() == [[False], [True]]


def limits(prompt: int | None, response: int | None, context: int | None, **more: Any) -> tuple[int, int]:
    settings = settings_of("train dpo", max_prompt_tokens=prompt, max_response_tokens=response, **more)
    return token_limits(settings, SimpleNamespace(n_positions=context), TOKENIZER)


def test_limits_on_tokens_are_those_told_or_share_the_context():
    """Of 100 tokens each has half; what one leaves of a limit goes to the other; 256 each where there is room."""
    assert limits(None, None, 100) == (50, 50)
    assert limits(30, None, 100) == (30, 70) and limits(None, 30, 100) == (70, 30)
    assert limits(None, None, 2000) == (256, 256) and limits(None, None, None) == (256, 256)
    assert limits(30, None, 2000) == (30, 256) and limits(20, 12, 100) == (20, 12)
    assert limits(60, 40, 100) == (60, 40)
    with pytest.raises(LabError, match="101 tokens together. The context of some-model holds 100"):
        limits(60, 41, 100)


class World:
    """A text world that remembers what it was asked; its longest prompt has 5 tokens, its longest target 3."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def max_prompt_tokens(self, tokenizer):
        return 5

    def max_response_tokens(self, tokenizer):
        return 3

    def sft(self, tokenizer, split, limit):
        self.asked.append(("sft", split, limit))
        return data.Tokens.from_lists([[1] * 5]), data.Tokens.from_lists([[[2] * 3]])

    def prompts(self, tokenizer, split, limit):
        self.asked.append(("prompts", split, limit))
        return data.Tokens.from_lists([[1] * 5])

    def preferences(self, policy, tokenizer, split, num_pairs, generator, beta_label, noise, progress):
        self.asked.append((policy, split, num_pairs, generator.initial_seed(), beta_label, noise))
        pairs = data.Pairs(data.Tokens.from_lists([[1]]), data.Tokens.from_lists([[[2], [3]]]))
        return pairs, 0


@pytest.fixture
def world(monkeypatch) -> World:
    made = World()
    monkeypatch.setattr(data, "load_world", lambda name: made)
    return made


def test_a_world_gives_its_own_limits_split_and_number_of_rows(world):
    assert limits(None, None, 100, data="world:w") == (5, 3) and limits(9, None, 100, data="world:w") == (9, 3)
    settings = settings_of("train sft", data="world:w", data_split="validation", limit=7)
    load_data(settings, "targets", TOKENIZER, (5, 3))
    load_data(settings, "prompts", TOKENIZER, (5, 3))
    assert world.asked == [("sft", "validation", 7), ("prompts", "validation", 7)]
    for kind, short, name in (("targets", (5, 2), "response"), ("prompts", (4, 3), "prompt")):
        with pytest.raises(LabError, match=f"Raise max_{name}_tokens"):
            load_data(settings, kind, TOKENIZER, short)


def test_pairs_of_a_world_follow_split_number_seed_blur_and_noise(world):
    """The generator is the one of seed and stream 11."""
    policy = SimpleNamespace(device=torch.device("cpu"))
    settings = settings_of("train dpo", data="world:w", data_split="validation", limit=7, seed=5)
    settings = data.replace(settings, label_beta=0.5, label_noise=0.25)
    sample_pairs(settings, policy, TOKENIZER)
    sample_pairs(data.replace(settings, limit=None), policy, TOKENIZER)
    seed = data.seeded(5, 11).initial_seed()
    assert world.asked == [(policy, "validation", number, seed, 0.5, 0.25) for number in (7, 1000)]
    assert data.seeded(0, 11).initial_seed() != seed


def test_rest_s_original_data_have_a_source_of_their_own():
    settings = settings_of("train rest", data="some-data", limit=9, original_limit=4)
    theirs = original_of(settings)
    assert (theirs.data, theirs.data_split, theirs.data_revision, theirs.data_folder, theirs.limit) == (
        "some-original", "some-original_split", "some-original_revision", "some-original_folder", 4,
    )  # fmt: skip
    assert original_of(data.replace(settings, original_split=None)).data_split == "some-data_split"
    assert original_of(data.replace(settings, original=None)) is None


def test_the_mark_of_data_changes_with_the_file_s_contents(tmp_path):
    """SHA-256 of "a" and of "b" (FIPS 180-4, as hashlib computes them of the bytes)."""
    import hashlib

    file = tmp_path / "data.jsonl"
    for text in ("a", "b"):
        file.write_text(text)
        settings = SimpleNamespace(data=str(file), original="world:w")
        assert data_mark(settings) == {"data_sha256": hashlib.sha256(text.encode()).hexdigest()}
