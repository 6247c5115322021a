"""The grammar tool: what it draws, what it recognises, what it counts."""

import math
from collections import Counter

import pytest

from rlhf_lab.errors import LabError
from rlhf_lab.worlds.text.grammar import Draw, Grammar, mentioned

SMALL = Grammar({"s": ["The {animal} sleeps.", "The {animal} runs."], "animal": ["cat", "dog"]})


def test_every_text_of_a_small_grammar_is_drawn_about_equally_often_and_costs_log_4():
    counts: Counter[str] = Counter()
    for number in range(800):
        draw = Draw(str(number))
        counts[SMALL.text("s", draw)] += 1
        assert draw.nats == pytest.approx(math.log(4))
    assert set(counts) == {f"The {a} {v}." for a in ("cat", "dog") for v in ("sleeps", "runs")}
    # 200 of 800 each, standard deviation √(800 · ¼ · ¾) = 12.2: five of them.
    assert all(abs(count - 200) < 62 for count in counts.values())


def test_an_alternative_written_twice_is_drawn_twice_as_often():
    grammar = Grammar({"s": ["a", "a", "b"]})
    share = sum(grammar.text("s", Draw(str(i))) == "a" for i in range(900)) / 900
    assert abs(share - 2 / 3) < 5 * math.sqrt(2 / 9 / 900)


def test_weights_are_the_probabilities_and_their_logarithm_is_the_cost():
    drawn = []
    for number in range(900):
        draw = Draw(f"w{number}")
        drawn.append(draw.pick("xyz", (1, 0.5, 0.5)))
        assert draw.nats == pytest.approx(math.log(2) if drawn[-1] == "x" else math.log(4))
    assert abs(drawn.count("x") / 900 - 0.5) < 5 * math.sqrt(0.25 / 900)


def test_one_seed_gives_one_text_and_seeds_differ():
    texts = [SMALL.text("s", Draw(str(i))) for i in range(20)]
    assert texts == [SMALL.text("s", Draw(str(i))) for i in range(20)]
    assert len(set(texts)) > 1


@pytest.mark.parametrize(
    ("text", "belongs"),
    [
        ("The cat sleeps.", True), ("The dog runs.", True), ("The cat sleeps", False), ("The cat sleeps. ", False),
        ("The cow sleeps.", False), ("", False), ("cat", False),
    ],
)  # fmt: skip
def test_a_text_is_recognised_only_whole_and_only_of_the_grammar(text, belongs):
    assert SMALL.parses(text, "s") is belongs


def test_a_bound_name_takes_the_place_of_its_rule_in_drawing_and_in_recognising():
    assert SMALL.text("s", Draw("0"), animal="cow").startswith("The cow ")
    assert SMALL.parses("The cow runs.", "s", animal=("cow", "hen"))
    assert not SMALL.parses("The cat runs.", "s", animal=("cow", "hen"))


def test_recognising_tries_every_way_where_one_alternative_begins_another():
    grammar = Grammar({"s": ["{a}{b}"], "a": ["x", "xy"], "b": ["z", "yz"]})
    assert all(grammar.parses(text, "s") for text in ("xz", "xyz", "xyyz"))
    assert not grammar.parses("xyy", "s")


def test_braces_and_dots_are_taken_literally_not_as_a_pattern():
    assert not SMALL.parses("The cat sleepsX", "s")


def test_a_grammar_that_leads_back_to_itself_or_lacks_a_rule_says_so():
    with pytest.raises(LabError, match="s → t → s"):
        Grammar({"s": ["{t}"], "t": ["{s}"]})
    with pytest.raises(LabError, match="no rule 'u'"):
        Grammar({"s": ["{u}"]}).text("s", Draw("0"))
    with pytest.raises(LabError, match="list of alternatives"):
        Grammar({"s": []})


def test_a_phrase_is_mentioned_as_whole_words_whatever_the_capitals():
    phrases = ("hat", "best friend", "on Monday", "ask for it")
    assert mentioned("That best friends! On monday a Hat.", phrases) == ["hat", "on Monday"]
    assert mentioned("", phrases) == []


def test_a_part_of_a_word_is_no_mention_and_of_two_phrases_the_longer_is_found():
    assert mentioned("A scar, a carpet.", ("car", "carp")) == []
    assert mentioned("In the garden house.", ("garden", "garden house")) == ["garden house"]
    assert mentioned("In the garden, in the garden house.", ("garden", "garden house")) == ["garden", "garden house"]
