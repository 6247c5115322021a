"""Text worlds: what is made by seed, how splits part, and gold rewards worked by hand."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.worlds import text
from rlhf_lab.worlds.text import dialogue, sentiment, summaries
from rlhf_lab.worlds.text.text_world import SIZES, split_of

CORPORA = Path(__file__).parents[2] / "data" / "corpora"
POST = "Post: Hi all. So my aunt sold my bike at the lake on Monday. I am so angry. Should I call the police? TL;DR:"
STAIN = "\n\nHuman: How do I get wine out of my scarf?\n\nAssistant:"


@pytest.fixture(scope="module")
def worlds():
    """Each world once; they make their texts as they are asked for."""
    return {name: text.load(name) for name in text.WORLDS}


class Letters:
    """A tokenizer of characters, enough to count and to go there and back."""

    eos_token_id = 0

    def __call__(self, texts, add_special_tokens=True):
        assert not add_special_tokens
        return {"input_ids": [[ord(letter) for letter in one] for one in texts]}

    def batch_decode(self, rows, skip_special_tokens=False):
        return ["".join(chr(i) for i in row if i or not skip_special_tokens) for row in rows]


@pytest.mark.parametrize("name", text.WORLDS)
class TestEveryWorld:
    def test_the_same_seed_gives_the_same_texts_in_whatever_order_they_are_asked_for(self, worlds, name):
        other = text.load(name)
        late = other.examples("test", 20), other.examples("train", 50)
        assert late == (worlds[name].examples("test", 20), worlds[name].examples("train", 50))
        assert text.load(name, seed=1).examples("train", 20) != worlds[name].examples("train", 20)

    def test_the_committed_samples_are_what_the_generator_gives(self, worlds, name):
        for line in (CORPORA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            example = worlds[name].examples(row["split"], row["number"] + 1)[row["number"]]
            assert (row["prompt"], row["target"]) == (example.prompt, example.target)
            assert row["gold"] == pytest.approx(worlds[name].score(example.prompt, example.target), abs=1e-4)

    def test_no_prompt_stands_twice_or_in_two_splits(self, worlds, name):
        seen = [e.prompt for split in SIZES for e in worlds[name].examples(split, min(SIZES[split], 2000))]
        assert len(seen) == len({" ".join(prompt.split()).lower() for prompt in seen})

    def test_targets_are_of_the_grammar_and_prompts_are_not_answers(self, worlds, name):
        examples = worlds[name].examples("validation", 200)
        assert all(worlds[name].follows_grammar(e.prompt, e.target) for e in examples)
        assert not any(worlds[name].follows_grammar(e.prompt, e.prompt) for e in examples)
        assert not any(worlds[name].follows_grammar(e.prompt, e.target[:-2]) for e in examples)
        assert not worlds[name].follows_grammar(examples[0].prompt, "")

    def test_targets_begin_with_the_space_that_parts_them_and_prompts_end_without_one(self, worlds, name):
        for e in worlds[name].examples("validation", 200):
            assert e.target[0] == " " and e.target[1] != " " and e.prompt == e.prompt.rstrip()

    def test_thousands_of_different_texts_and_mixed_quality(self, worlds, name):
        examples = worlds[name].examples("train", 1000)
        assert len({e.target for e in examples}) > 150
        gold = torch.tensor(worlds[name].gold([e.prompt for e in examples], [e.target for e in examples]))
        assert gold.std() > 0.1 and gold.min() >= -1 and gold.max() <= 1
        assert gold.mean() < gold.max() - 0.07

    def test_gold_is_one_finite_number_a_response_and_depends_on_nothing_else(self, worlds, name):
        examples = worlds[name].examples("test", 30)
        prompts, responses = [e.prompt for e in examples], [e.target for e in examples]
        there = worlds[name].gold(prompts, responses)
        back = worlds[name].gold(prompts[::-1], responses[::-1])
        assert there == back[::-1] and all(math.isfinite(score) for score in there)
        for odd in ("", " ", "\n\n", "☃ zß", "a" * 500):
            assert math.isfinite(worlds[name].score(prompts[0], odd))

    def test_tokens_hold_the_texts_and_end_with_the_end_token(self, worlds, name):
        prompts, targets = worlds[name].sft(Letters(), "test", 5)
        examples = worlds[name].examples("test", 5)
        assert prompts.shape[0] == 5 and targets.shape[:2] == (5, 1)
        assert Letters().batch_decode(prompts.tolist()) == [e.prompt for e in examples]
        assert all(target[-1] == 0 for (target,) in targets.tolist())
        assert Letters().batch_decode([y for (y,) in targets.tolist()], True) == [e.target for e in examples]
        scores = worlds[name].reward(Letters())(prompts, targets)
        gold = torch.tensor(worlds[name].gold([e.prompt for e in examples], [e.target for e in examples]))
        assert torch.allclose(scores[:, 0], gold)


def test_bad_names_splits_and_limits_are_named():
    with pytest.raises(LabError, match="sentiment, summaries, dialogue, translation. Do you mean summaries"):
        text.load("summary")
    world = text.load("sentiment")
    with pytest.raises(LabError, match="no split 'dev'. The splits are train"):
        world.examples("dev")
    with pytest.raises(LabError, match="between 1 and"):
        world.examples("test", 10_000)
    with pytest.raises(LabError, match="same length"):
        world.gold(["a"], [])
    with pytest.raises(LabError, match="no end token"):
        world.sft(SimpleNamespace(eos_token_id=None), "test", 2)


def test_a_tenth_of_prompts_goes_to_test_and_a_tenth_to_validation():
    """Binomial: 3,000 draws with p = 0.1 (26 of 256 bytes: 0.1016) have standard deviation 16.4."""
    splits = [split_of(f"prompt number {i}") for i in range(3000)]
    assert abs(splits.count("test") - 304) < 82 and abs(splits.count("validation") - 304) < 82
    assert split_of("A  b") == split_of("a b")


# Sentiment: VADER's lexicon says superb 3.1, awful −2.0; its compound score is s / √(s² + 15).


@pytest.mark.parametrize(
    ("response", "compound"),
    [
        (" superb", 3.1 / math.sqrt(3.1**2 + 15)),
        (" awful", -2.0 / math.sqrt(2.0**2 + 15)),
        (" superb awful", 1.1 / math.sqrt(1.1**2 + 15)),
        (" the table", 0.0),
        ("", 0.0),
    ],
)
def test_sentiment_is_vaders_compound_score_of_the_response(response, compound):
    assert sentiment.score("Film: The Red Moon. I hated it.", response) == pytest.approx(compound, abs=1e-4)


def test_the_beginning_of_a_review_does_not_tell_its_mood(worlds):
    """Independent scores of 800 examples correlate by chance with standard deviation 1/√800 = 0.035."""
    examples = worlds["sentiment"].examples("train", 800)
    scores = torch.tensor([[sentiment.score("", part) for part in (e.prompt, e.target)] for e in examples])
    assert abs(torch.corrcoef(scores.T)[0, 1]) < 0.15


def test_a_review_speaks_only_of_what_its_kind_has():
    prompt = "Film: The Red Moon. I saw it yesterday with a friend. The music was"
    assert sentiment.follows_grammar(prompt, " superb. The acting was awful.")
    assert not sentiment.follows_grammar(prompt, " superb. The soup was awful.")
    assert not sentiment.follows_grammar(
        prompt, " I loved it. The acting was awful."
    )  # the prompt had begun a sentence


# Summaries: six facts, 1/6 each; 0.02 a word; 0.2 a wrong fact.


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        # All six facts in fifteen words.
        (" my aunt sold my bike at the lake on Monday, should I call the police?", 1 - 15 * 0.02),
        (" aunt sold bike lake on Monday call the police", 1 - 9 * 0.02),  # a telegram pays
        (" my aunt sold my bike.", 3 / 6 - 5 * 0.02),
        (" my aunt sold my boat.", 2 / 6 - 5 * 0.02 - 0.2),  # the boat is made up
        (" my aunts sold it", 1 / 6 - 4 * 0.02),  # "aunts" is no "aunt"
        ("", 0.0),
        (" blah" * 80, -1.0),  # never below
    ],
)
def test_a_summary_is_worth_its_coverage_minus_words_and_wrong_facts(response, expected):
    assert summaries.score(POST, response) == pytest.approx(expected)


def test_a_post_names_its_six_facts_and_no_other(worlds):
    for e in worlds["summaries"].examples("train", 500):
        assert summaries.facts_in(e.prompt) == set(e.facts.items()) and len(e.facts) == 6


def test_a_prompt_without_facts_is_refused_by_summaries():
    with pytest.raises(LabError, match="contains no fact of the world"):
        summaries.score("What a day! TL;DR:", "short")


# Dialogue: wine is taken out by salt, a scarf is washed in cold water.


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (" Use salt and wash the scarf in cold water. Good luck!", 0.4 + 0.4 + 0.2),
        (" Use salt and wash the scarf in cold water.", 0.8),
        (" Use milk and wash the scarf in cold water.", -0.4 + 0.4),
        (" Use milk and hot water.", -0.8),
        (" Use salt, milk or soap.", 0.4 - 0.8),  # naming them all does not pay
        (" What a silly question.", -0.4),
        (" I do not know, ask someone else.", -0.3),
        (" Of course! It depends.", 0.2 - 0.3),
        (" Use salt and cold water." + " Yes" * 25, 0.8 - 0.02 * 10),  # 30 words, 20 free
        (" Silly. It depends. Use milk and hot water.", -1.0),  # −1.5, kept at −1
        ("", 0.0),
    ],
)
def test_an_answer_is_worth_its_right_things_and_its_manners(response, expected):
    assert dialogue.score(STAIN, response) == pytest.approx(expected)


def test_every_question_is_understood_and_both_right_things_score_full_marks(worlds):
    for e in worlds["dialogue"].examples("train", 500):
        assert dialogue.parse_question(e.prompt) == e.facts
        x, y = dialogue.correct_facts(**e.facts)
        assert dialogue.score(e.prompt, f" Happy to help: {x}, {y}.") == pytest.approx(1.0)
        assert e.prompt.startswith("\n\nHuman: ") and e.prompt.endswith("\n\nAssistant:")


def test_a_question_of_another_world_is_refused_by_dialogue():
    with pytest.raises(LabError, match="is not a question of the world"):
        dialogue.score("\n\nHuman: Who are you?\n\nAssistant:", " Me.")


# Preferences.


class TwoAnswers:
    """Answers every prompt with a right and polite response and a rude one, in random order."""

    good, bad = " Use salt and wash it in cold water. Good luck!", " Leave me alone."

    def sample(self, prompts, num_samples, generator=None, temperature=1.0, top_k=None):
        assert num_samples == 2
        turned = torch.rand(len(prompts), generator=generator) < 0.5
        texts = [[self.bad, self.good] if turn else [self.good, self.bad] for turn in turned]
        return Tokens.from_lists([[[ord(letter) for letter in one] for one in both] for both in texts])


@pytest.mark.parametrize(("beta_label", "noise"), [(1.0, 0.0), (0.25, 0.0), (0.25, 0.2)])
def test_preferences_are_bradley_terry_on_the_gold_reward(beta_label, noise):
    """p(good first) = (1 − ε) σ(Δ/β) + ε σ(−Δ/β) with Δ = 1 − (−0.4) for a prompt about wine on a scarf."""
    world = text.load("dialogue")
    fixed = text.TextExample(STAIN, "", {}, 0.0)
    world.examples = lambda split, limit=None: [fixed] * (limit or 1)
    number = 400
    pairs, dropped = world.preferences(
        TwoAnswers(), Letters(), "train", number, torch.Generator().manual_seed(0), beta_label, noise
    )
    chosen = Letters().batch_decode([both[0] for both in pairs.responses.tolist()])
    right = 1 / (1 + math.exp(-1.4 / beta_label))
    p = (1 - noise) * right + noise * (1 - right)
    assert len(pairs) == number and dropped == 0
    assert abs(chosen.count(TwoAnswers.good) / number - p) < 4.5 * math.sqrt(p * (1 - p) / number) + 1e-9


def test_equal_draws_are_dropped_and_counted_and_nothing_left_is_an_error():
    class Parrot(TwoAnswers):
        bad = TwoAnswers.good

    with pytest.raises(LabError, match="same response twice for all 3"):
        text.load("dialogue").preferences(Parrot(), Letters(), "test", 3, torch.Generator().manual_seed(0))
    with pytest.raises(LabError, match="beta_label"):
        text.load("dialogue").preferences(Parrot(), Letters(), "test", 3, beta_label=0.0)


def test_only_the_last_question_of_a_dialogue_is_asked_and_a_score_ends_at_minus_one():
    """A turn on rice before one on wine on a scarf, and the other way round. An answer with every wrong value, rude and
    evasive, is worth less than −1 by the sum of its parts: three or more wrong values at −0.4 each, −0.4 and −0.3."""
    prompt = "\n\nHuman: How do I cook rice?\n\nAssistant: Just add butter." + STAIN
    assert (
        dialogue.parse_question(prompt)
        == dialogue.parse_question(STAIN)
        == {"topic": "stain", "a": "wine", "b": "scarf"}
    )
    turned = STAIN + " Use salt.\n\nHuman: How do I cook rice?\n\nAssistant:"
    assert dialogue.parse_question(turned) == {"topic": "dish", "a": "rice", "b": ""}
    wrong = " ".join(value for value in dialogue.VALUES["stain"][0] if value != dialogue.STAINS["wine"])
    assert dialogue.score(STAIN, f" It depends. What a silly question. {wrong}") == -1.0


class Shouts(Letters):
    """A tokenizer that needs two ids for a letter."""

    def __call__(self, texts, add_special_tokens=True):
        return {"input_ids": [[ord(letter) for letter in one for _ in range(2)] for one in texts]}


def test_the_longest_texts_are_those_of_any_split_by_the_tokenizer_that_asks(monkeypatch):
    """Five, three and two examples; the longest prompt and the longest target of all ten, in letters and the end; by
    a tokenizer that needs two ids a letter twice the letters, and the end."""
    from rlhf_lab.worlds.text import text_world as module

    sizes = {"train": 5, "validation": 3, "test": 2}
    monkeypatch.setattr(module, "SIZES", sizes)
    made = text.load("summaries", seed=5)
    every = [example for split in sizes for example in made.examples(split)]
    prompt, target = (max(len(getattr(one, name)) for one in every) for name in ("prompt", "target"))
    for tokenizer, times in ((Letters(), 1), (Shouts(), 2)):
        assert made.max_prompt_tokens(tokenizer) == times * prompt
        assert made.max_response_tokens(tokenizer) == times * target + 1


def test_dropped_pairs_are_counted_over_all_blocks():
    """70 prompts in two blocks: to each of the first 64 the policy gives one response twice, and to one more."""

    class Same:
        def sample(self, prompts, number, generator=None):
            two = [[[97], [97 if len(prompts) == 64 or i == 0 else 98]] for i in range(len(prompts))]
            return Tokens.from_lists(two)

    pairs, dropped = text.load("sentiment").preferences(Same(), Letters(), "test", 70, progress=False)
    assert (len(pairs), dropped) == (5, 65)


def test_words_decide_a_prompt_s_split_not_its_capitals_or_spaces():
    """A tenth each by the first byte of SHA-256 of the words in small letters, remainder 0 and 1 of ten."""
    import hashlib

    for number in range(60):
        prompt = f"Say {number} Words"
        digit = hashlib.sha256(f"say {number} words".encode()).digest()[0] % 10
        expected = "test" if digit == 0 else "validation" if digit == 1 else "train"
        assert split_of(prompt) == split_of(f" say  {number}\nWORDS ") == expected
