"""Velu and its translation, by hand."""

import pytest

from rlhf_lab.errors import LabError
from rlhf_lab.worlds import text
from rlhf_lab.worlds.text import translation, velu
from rlhf_lab.worlds.text.velu import Meaning, Noun


def ask(sentence: str) -> str:
    return f"Velu: {sentence}\nEnglish:"


@pytest.mark.parametrize(
    ("sentence", "right"),
    [
        ("Raka haru.", {"The dog sleeps."}),
        ("Rakari oru haru.", {"The old dogs sleep."}),
        ("Duo rakari ne haruta.", {"Two dogs did not sleep."}),
        ("Esho mi kela vosarin oru ne dovilo.", {  # an ungrammatical English sentence is still a translation
            "My sister will not send the old letters tomorrow.", "Tomorrow my sister will not send the old letters."}),
        ("Asha mi kela tamesa vosarin oru ne dovita.", {
            "My sister did not send the old letters to the friend yesterday.",
            "Yesterday my sister did not send the old letters to the friend.",
            "My sister did not send the friend the old letters yesterday.",
            "Yesterday my sister did not send the friend the old letters."}),
        ("Tu boru nubirin ama bavopo viku.", {"Your brother sees the red boats in the garden."}),
        ("Teo zuniri mi jebaripo oru luntelo.", None),  # no such verb
    ],
)  # fmt: skip
def test_sentences_translated_by_hand(sentence, right):
    if right is None:
        with pytest.raises(LabError, match="'luntelo' is in the place of the verb"):
            translation.references(ask(sentence))
    else:
        assert set(translation.references(ask(sentence))) == right


def test_every_right_translation_earns_1_and_the_plainest_comes_first():
    world = text.load("translation")
    prompt = ask("Asha mi kela tamesa vosarin oru ne dovita.")
    assert world.exact(prompt) == " My sister did not send the old letters to the friend yesterday."
    assert [world.score(prompt, " " + right) for right in world.references(prompt)] == [1.0] * 4


def test_a_mistake_costs_and_two_cost_more_and_silence_earns_nothing():
    prompt = ask("Raka oru vosan nilupo vikuta.")
    said = [
        "The old dog saw the letter at the lake.",
        "The old dog saw the letters at the lake.",
        "The old dogs see the letters at the lake.",
        "A bird.",
        "",
    ]
    scores = [translation.score(prompt, response) for response in said]
    assert scores[0] == 1 and scores == sorted(scores, reverse=True) and len(set(scores)) == 5 and scores[-1] == 0


def test_the_score_is_sacrebleus_own_sentence_chrf():
    import sacrebleu

    prompt = ask("Rakari oru haru.")
    said = "The old cats slept."
    expected = sacrebleu.sentence_chrf(said, ["The old dogs sleep."]).score / 100
    assert translation.score(prompt, " " + said) == pytest.approx(expected)


def test_chrf_of_one_letter_against_two_by_hand():
    """chrF of "ab" against "a b": characters without spaces are equal, so all n-grams agree and the score is 1."""
    assert translation._chrf().sentence_score("ab", ["a b"]).score == pytest.approx(100)


def test_every_drawn_sentence_is_read_back_as_what_it_means():
    for e in text.load("translation").examples("train", 500):
        meaning = e.facts["meaning"]
        assert velu.read(velu.velu(meaning)) == meaning
        assert all(translation.follows_grammar(e.prompt, " " + right) for right in translation.references(e.prompt))
        assert translation.score(e.prompt, e.target) == 1 or e.target.strip() not in translation.references(e.prompt)


def test_no_two_words_of_velu_can_be_taken_for_each_other():
    """Every noun in every case and number, every verb in every tense, and the small words are all different."""
    forms = [Noun(stem, plural).velu(case) for stem in velu.NOUNS for plural in (False, True) for case in velu.CASES]
    forms += [verb + ending for verb in velu.VERBS for ending in velu.TENSES]
    forms += [*velu.ADJECTIVES, *velu.WHOSE, *velu.TIMES, "ne"]
    assert len(forms) == len(set(forms))


def test_case_not_order_says_who_does_what():
    both = {translation.references(ask(s))[0] for s in ("Raka mivun jumo.", "Mivun raka jumo.", "Mivu rakan jumo.")
            if s != "Mivun raka jumo."}  # fmt: skip
    assert both == {"The dog loves the cat.", "The cat loves the dog."}
    with pytest.raises(LabError, match="not a sentence in Velu"):
        velu.read("Mivun raka jumo.")  # Velu's order is fixed too: this lab's references rely on it


@pytest.mark.parametrize(
    ("sentence", "why"),
    [
        ("", "no verb"),
        ("Asha.", "no verb"),
        ("Haru.", "no subject"),
        ("Duo raka haru.", "asks for -ri"),
        ("Raka borupo haru.", "is no place"),
        ("Raka xyzn viku.", "'xyzn' is not a noun"),
        ("Raka oru ama haru.", "not a sentence in Velu"),
    ],
)
def test_what_is_no_velu_is_refused_by_name(sentence, why):
    with pytest.raises(LabError, match=why):
        velu.read(sentence)


def test_a_prompt_of_another_world_is_refused():
    with pytest.raises(LabError, match="does not have the form of a translation"):
        translation.score("Translate this!", "Yes.")


@pytest.mark.parametrize(
    ("response", "speaks"),
    [
        (" The old dog sees my two.", False),
        (" My old dog sees two red boats.", True),
        (" The dogs sees the boat.", False),
        (" The dog see the boat.", False),
        (" Yesterday the dog will see the boat.", False),
        (" The dog sees the boat", False),
        (" the dog sees the boat.", False),
        (" The dog does not see the boat today.", True),
    ],
)
def test_english_is_recognised_with_its_agreement_and_tenses(response, speaks):
    assert translation.follows_grammar(ask("Raka haru."), response) is speaks


def test_corpus_scores_of_right_answers_are_full_and_exact_counts():
    world = text.load("translation")
    prompts = [e.prompt for e in world.examples("test", 12)]
    right = [world.exact(prompt) for prompt in prompts]
    full = world.corpus(prompts, right)
    assert full["bleu"] == pytest.approx(100) and full["chrf"] == pytest.approx(100) and full["exact"] == 1
    half = world.corpus(prompts, right[:6] + [" The dog."] * 6)
    assert half["bleu"] < 80 and half["exact"] == 0.5
    with pytest.raises(LabError, match="Give one response per prompt"):
        world.corpus(prompts, right[:3])


def test_meaning_to_english_agrees_in_number_and_tense():
    dogs = Meaning("viku", "present", Noun("raka", True), Noun("vosa", True, "duo", "ama"), denied=True)
    assert velu.english(dogs) == ["The dogs do not see two red letters."]
    assert velu.velu(dogs) == "Rakari duo vosarin ama ne viku."


def test_every_right_translation_counts_as_exactly_right_in_a_corpus():
    """Of three responses one is the last of the right orders, one the plainest, one wrong."""
    world = text.load("translation")
    prompt = ask("Asha mi kela tamesa vosarin oru ne dovita.")
    right = world.references(prompt)
    found = world.corpus([prompt] * 3, [" " + right[-1], " " + right[0], " No."])
    assert len(right) == 4 and found["exact"] == pytest.approx(2 / 3)
