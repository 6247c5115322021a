"""The translation world: translate from Velu, an artificial language (`velu.py`), into English.

About half of the targets are correct. Each of the others has one mistake: a wrong tense or number, a wrong word, a
missing word, or subject and object exchanged. The gold reward is sacrebleu's sentence chrF (Popović 2015) against all
correct translations, divided by 100. Its range is [0, 1], and it is 1 only for a correct translation. This is a small
version of ReST's task (Gulcehre et al. 2023) in which all correct translations are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

from rlhf_lab.errors import LabError, count_of
from rlhf_lab.worlds.text import velu
from rlhf_lab.worlds.text.grammar import Draw, Grammar
from rlhf_lab.worlds.text.text_world import TextWorld
from rlhf_lab.worlds.text.velu import Meaning, Noun

BEGINNING, END = "Velu: ", "\nEnglish:"


def _noun(draw: Draw, stems: Sequence[str]) -> Noun:
    whose = draw.pick(("", "mi", "tu", *velu.MANY), (10, 2, 2, 1, 1))
    plural = whose in velu.MANY or draw.pick((True, False), (1, 2))
    adjective = draw.pick(("", *velu.ADJECTIVES)) if draw.pick((True, False), (2, 3)) else ""
    return Noun(draw.pick(stems), plural, whose, adjective)


def draw_prompt(draw: Draw) -> tuple[str, dict[str, Any]]:
    """Draw a sentence in Velu, followed by a line "English:"."""
    verbs = draw.pick((velu.ALONE, velu.WITH_OBJECT, velu.WITH_RECEIVER), (1, 3, 2))
    time = draw.pick(("", *velu.TIMES))
    tense = velu.TIMES[time][1] if time else draw.pick(tuple(velu.TENSES.values()))
    people, things = tuple(velu.PEOPLE), tuple(velu.THINGS)
    meaning = Meaning(draw.pick(tuple(verbs)), tense, _noun(draw, people), time=time)
    if verbs is not velu.ALONE:
        meaning = replace(meaning, object=_noun(draw, draw.pick((things, people), (3, 1))))
    if verbs is velu.WITH_RECEIVER:
        meaning = replace(meaning, receiver=_noun(draw, people))
    if verbs is velu.ALONE or draw.pick((True, False), (1, 3)):
        meaning = replace(meaning, place=_noun(draw, tuple(velu.PLACES)))
    meaning = replace(meaning, denied=draw.pick((True, False), (1, 4)))
    return f"{BEGINNING}{velu.velu(meaning)}{END}", {"meaning": meaning}


def _mistaken(meaning: Meaning, draw: Draw) -> Meaning:
    """The meaning with one mistake."""
    nouns = [name for name in ("subject", "object", "receiver", "place") if getattr(meaning, name)]
    kind = draw.pick(("tense", "number", "word", "left out", "exchanged"))
    if kind == "tense":
        others: list[Any] = [tense for tense in velu.TENSES.values() if tense != meaning.tense]
        return replace(meaning, tense=draw.pick(others), time="")
    if kind == "exchanged" and meaning.object:
        return replace(meaning, subject=meaning.object, object=meaning.subject)
    name = draw.pick(nouns)
    noun = getattr(meaning, name)
    if kind == "number":
        wrong = replace(noun, plural=not noun.plural, whose="" if noun.whose in velu.MANY else noun.whose)
    elif kind == "left out" and (noun.adjective or noun.whose):
        wrong = replace(noun, adjective="", whose="")
    else:
        among = velu.PLACES if name == "place" else velu.THINGS if noun.stem in velu.THINGS else velu.PEOPLE
        wrong = replace(noun, stem=draw.pick([stem for stem in among if stem != noun.stem]))
    return replace(meaning, **{name: wrong})


def draw_target(facts: dict[str, Any], draw: Draw) -> str:
    """Draw a translation, which is correct more often than not."""
    meaning = facts["meaning"]
    if draw.pick((True, False), (2, 3)):
        meaning = _mistaken(meaning, draw)
    return " " + draw.pick(velu.english(meaning))


@lru_cache(maxsize=8192)
def references(prompt: str) -> tuple[str, ...]:
    """Every correct translation of a prompt's sentence, with the plainest word order first.

    Raises:
        LabError: the prompt is not a sentence in Velu followed by a line "English:".
    """
    text = prompt.strip()
    if not text.startswith(BEGINNING.strip()) or not text.endswith(END.strip()):
        raise LabError(f"The prompt {text[:60]!r} does not have the form of a translation, 'Velu: …' and 'English:'.")
    sentence = text.removeprefix(BEGINNING.strip()).removesuffix(END.strip())
    return tuple(dict.fromkeys(velu.english(velu.read(sentence))))


def score(prompt: str, response: str) -> float:
    """The sentence chrF against the closest correct translation, in [0, 1]."""
    percent: float = _chrf().sentence_score(response.strip(), list(references(prompt))).score
    return percent / 100


def follows_grammar(prompt: str, response: str) -> bool:
    """Whether the response is an English sentence of the grammar, of any meaning."""
    text = response.removeprefix(" ")
    return bool(text) and text[0].isupper() and _english().parses(text[0].lower() + text[1:], "sentence")


@cache
def _chrf() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()


@cache
def _english() -> Grammar:
    return velu.english_grammar()


@dataclass(eq=False)
class Translation(TextWorld):
    """A text world in which all correct responses are known."""

    def exact(self, prompt: str) -> str:
        """The correct translation in its plainest word order, as a response with a leading space."""
        return " " + references(prompt)[0]

    def references(self, prompt: str) -> tuple[str, ...]:
        """Every correct translation, without the leading space."""
        return references(prompt)

    def corpus(self, prompts: Sequence[str], responses: Sequence[str]) -> dict[str, float]:
        """Corpus BLEU and chrF by sacrebleu, 0 to 100, and the share of exactly correct responses, 0 to 1."""
        from sacrebleu.metrics import BLEU

        if len(prompts) != len(responses) or not prompts:
            raise LabError(
                f"{count_of(len(prompts), 'prompt')} came with {count_of(len(responses), 'response')}. "
                "Give one response per prompt."
            )
        said = [response.strip() for response in responses]
        right = [references(prompt) for prompt in prompts]
        most = max(map(len, right))
        # sacrebleu needs equally many references for each response; None fills the missing ones.
        streams: list[Any] = [[texts[i] if i < len(texts) else None for texts in right] for i in range(most)]
        return {
            "bleu": BLEU().corpus_score(said, streams).score,
            "chrf": _chrf().corpus_score(said, streams).score,
            "exact": sum(text in texts for text, texts in zip(said, right, strict=True)) / len(said),
        }


def world(seed: int = 0) -> Translation:
    """Make the world of translations from Velu."""
    return Translation("translation", draw_prompt, draw_target, score, follows_grammar, seed)
