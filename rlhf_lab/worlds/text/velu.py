"""Velu, an artificial language for which all correct translations into English are known.

The verb is the last word and has an ending for the tense (-ta past, -lo future, none for the present). A noun has an
ending for the number (-ri for the plural) and then one for the case: none for the subject, -n for the object, -sa for
the receiver, and -po for the place. Adjectives follow the noun and do not change. `mi`, `tu`, `duo` and `teo` precede
the noun. `ne` before the verb negates the sentence.

    Asha mi kela tamesa vosarin oru ne dovita.
    yesterday my sister friend-to letter-s-(object) old not send-past
    "Yesterday my sister did not send the friend the old letters."

The content of a sentence is a `Meaning`. `velu` and `english` write it as a sentence, and `read` parses Velu.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlhf_lab.errors import LabError
from rlhf_lab.worlds.text.grammar import Grammar

Tense = Literal["past", "present", "future"]

PEOPLE = {
    "kela": "sister", "boru": "brother", "tame": "friend", "lidu": "teacher", "soma": "king", "fenu": "farmer",
    "gali": "neighbour", "hume": "doctor", "raka": "dog", "mivu": "cat", "pelo": "horse", "zuni": "bird",
}  # fmt: skip
THINGS = {
    "vosa": "letter", "nubi": "boat", "jore": "lamp", "cavu": "coat", "dimo": "ring", "seku": "bag", "tola": "hat",
    "wabe": "key", "fulo": "flower", "guma": "stone", "hiko": "book", "lepa": "apple",
}  # fmt: skip
PLACES = {
    "bavo": ("garden", "in"), "sipe": ("house", "in"), "dolu": ("forest", "in"), "morka": ("market", "at"),
    "nilu": ("lake", "at"), "jeba": ("bridge", "on"), "kuto": ("island", "on"), "radi": ("school", "at"),
}  # fmt: skip
ADJECTIVES = {
    "oru": "old", "eli": "little", "ama": "red", "ivo": "green", "uke": "quiet", "ano": "young", "isa": "happy",
    "ebo": "strange",
}  # fmt: skip
WHOSE = {"mi": "my", "tu": "your", "duo": "two", "teo": "three"}
MANY = ("duo", "teo")
TIMES: dict[str, tuple[str, Tense]] = {
    "asha": ("yesterday", "past"), "oshi": ("today", "present"), "esho": ("tomorrow", "future"),
}  # fmt: skip
# Velu: base, with "-s", past
ALONE = {"haru": ("sleep", "sleeps", "slept"), "lunde": ("sing", "sings", "sang"), "wepa": ("wait", "waits", "waited")}
WITH_OBJECT = {
    "viku": ("see", "sees", "saw"), "tano": ("find", "finds", "found"), "serme": ("carry", "carries", "carried"),
    "golu": ("buy", "buys", "bought"), "fira": ("paint", "paints", "painted"), "jumo": ("love", "loves", "loved"),
    "noske": ("wash", "washes", "washed"), "bedi": ("follow", "follows", "followed"),
}  # fmt: skip
WITH_RECEIVER = {
    "kando": ("give", "gives", "gave"), "milto": ("show", "shows", "showed"), "dovi": ("send", "sends", "sent"),
    "rupe": ("bring", "brings", "brought"),
}  # fmt: skip
VERBS = ALONE | WITH_OBJECT | WITH_RECEIVER
NOUNS = PEOPLE | THINGS | {stem: english for stem, (english, _) in PLACES.items()}

PLURAL, OBJECT, RECEIVER, PLACE = "ri", "n", "sa", "po"
CASES = {"": "subject", OBJECT: "object", RECEIVER: "receiver", PLACE: "place"}
TENSES: dict[str, Tense] = {"ta": "past", "lo": "future", "": "present"}


@dataclass(frozen=True)
class Noun:
    """A noun phrase, given by Velu stems. `whose` and `adjective` may be empty."""

    stem: str
    plural: bool = False
    whose: str = ""
    adjective: str = ""

    def velu(self, case: str) -> str:
        """The noun phrase in Velu with the ending of a case."""
        word = self.stem + PLURAL * self.plural + case
        return " ".join(part for part in (self.whose, word, self.adjective) if part)

    def english(self) -> str:
        """The noun phrase in English."""
        words = (WHOSE.get(self.whose, "the"), ADJECTIVES.get(self.adjective, ""), NOUNS[self.stem] + "s" * self.plural)
        return " ".join(word for word in words if word)


@dataclass(frozen=True)
class Meaning:
    """The content of a sentence, in either language."""

    verb: str
    tense: Tense
    subject: Noun
    object: Noun | None = None
    receiver: Noun | None = None
    place: Noun | None = None
    time: str = ""
    denied: bool = False


def velu(meaning: Meaning) -> str:
    """The sentence in Velu, which is unique."""
    ending = next(ending for ending, tense in TENSES.items() if tense == meaning.tense)
    words = [meaning.time, meaning.subject.velu("")]
    for noun, case in ((meaning.receiver, RECEIVER), (meaning.object, OBJECT), (meaning.place, PLACE)):
        words.append(noun.velu(case) if noun else "")
    words += ["ne" * meaning.denied, meaning.verb + ending]
    return _sentence(words)


def english(meaning: Meaning) -> list[str]:
    """Every correct English sentence: with the time last or first, and with "gave it to her" or "gave her it"."""
    subject, verb = meaning.subject.english(), _english_verb(meaning)
    thing = meaning.object.english() if meaning.object else ""
    whom = meaning.receiver.english() if meaning.receiver else ""
    place = f"{PLACES[meaning.place.stem][1]} {meaning.place.english()}" if meaning.place else ""
    time = TIMES[meaning.time][0] if meaning.time else ""
    orders = [(thing, f"to {whom}"), (whom, thing)] if whom else [(thing, "")]
    return [
        _sentence([first, subject, verb, *order, place, last])
        for order in orders
        for first, last in dict.fromkeys([("", time), (time, "")])
    ]


def _english_verb(meaning: Meaning) -> str:
    base, with_s, past = VERBS[meaning.verb]
    helper = {"past": "did", "future": "will", "present": "do" if meaning.subject.plural else "does"}[meaning.tense]
    if meaning.denied:
        return f"{helper} not {base}"
    return {"past": past, "future": f"will {base}", "present": base if meaning.subject.plural else with_s}[
        meaning.tense
    ]


def _sentence(words: list[str]) -> str:
    text = " ".join(word for word in words if word)
    return text[0].upper() + text[1:] + "."


def read(sentence: str) -> Meaning:
    """Parse a sentence in Velu.

    Raises:
        LabError: it is not a sentence of the language. The message gives the reason.
    """
    words = sentence.strip().rstrip(".").lower().split()
    time = words.pop(0) if words and words[0] in TIMES else ""
    if not words:
        raise LabError(f"{sentence!r} is not a sentence in Velu, because it has no verb.")
    verb, tense = _verb(words.pop())
    denied = bool(words) and words[-1] == "ne"
    words = words[: len(words) - denied]
    nouns: dict[str, Noun] = {}
    whose = ""
    role = ""
    for word in words:
        if word in WHOSE:
            whose = word
        elif word in ADJECTIVES and role:
            known = nouns[role]
            nouns[role] = Noun(known.stem, known.plural, known.whose, word)
        else:
            stem, plural, role = _noun(word)
            nouns[role] = Noun(stem, plural, whose)
            whose = ""
    if "subject" not in nouns:
        raise LabError(f"{sentence!r} is not a sentence in Velu, because it has no subject.")
    for noun in nouns.values():
        if noun.whose in MANY and not noun.plural:
            raise LabError(f"'{noun.whose} {noun.stem}' is no Velu: {WHOSE[noun.whose]} of a thing asks for -{PLURAL}.")
    if "place" in nouns and nouns["place"].stem not in PLACES:
        raise LabError(f"'{nouns['place'].stem}' is no place, so it never takes -{PLACE}.")
    meaning = Meaning(verb, tense, nouns.pop("subject"), time=time, denied=denied, **nouns)
    if velu(meaning).lower() != " ".join(sentence.lower().split()):
        raise LabError(f"{sentence!r} is not a sentence in Velu. The closest sentence is {velu(meaning)!r}.")
    return meaning


def _verb(word: str) -> tuple[str, Tense]:
    for ending, tense in TENSES.items():
        if word.endswith(ending) and word.removesuffix(ending) in VERBS:
            return word.removesuffix(ending), tense
    raise LabError(f"'{word}' is in the place of the verb, but Velu has no such verb.")


def _noun(word: str) -> tuple[str, bool, str]:
    for case, role in CASES.items():
        for number in ("", PLURAL):
            stem = word.removesuffix(number + case)
            if word.endswith(number + case) and stem in NOUNS:
                return stem, bool(number), role
    raise LabError(f"'{word}' is not a noun of Velu in any case or number.")


def _noun_phrases(nouns: list[str], plural: bool) -> list[str]:
    """The alternatives for a noun phrase."""
    heads = ("the", "my", "your", "two", "three") if plural else ("the", "my", "your")
    ends = [noun + "s" * plural for noun in nouns]
    return [f"{head}{{adjective}} {noun}" for head in heads for noun in ends]


def english_grammar() -> Grammar:
    """A grammar of all English sentences that `english` can write. The name "sentence" is one without its capital."""
    bases = {name: [verb[0] for verb in verbs.values()] for name, verbs in _classes().items()}
    rules: dict[str, list[str]] = {
        "sentence": [f"{{{time}first}}{{{number}}} {{{time}{number} said}}{{{time}last}}"
                     for number in ("one", "more") for time in ("past", "present", "future")],
        "adjective": ["", *(f" {word}" for word in ADJECTIVES.values())],
        "one": _noun_phrases([*PEOPLE.values(), *THINGS.values()], False),
        "more": _noun_phrases([*PEOPLE.values(), *THINGS.values()], True),
        "noun": ["{one}", "{more}"],
        "place": ["", *(f" {how} {{{noun}}}" for noun, how in PLACES.values())],
    }  # fmt: skip
    for noun, _ in PLACES.values():
        rules[noun] = _noun_phrases([noun], False) + _noun_phrases([noun], True)
    for word, tense in TIMES.values():
        rules |= {f"{tense}first": ["", f"{word} "], f"{tense}last": [".", f" {word}."]}
        for number in ("one", "more"):
            do = {"past": "did", "future": "will", "present": "does" if number == "one" else "do"}[tense]
            said = []
            for name, verbs in _classes().items():
                plain = {
                    "past": [v[2] for v in verbs.values()],
                    "future": [f"will {v[0]}" for v in verbs.values()],
                    "present": [v[1 if number == "one" else 0] for v in verbs.values()],
                }[tense]
                forms = plain + [f"{do} not {base}" for base in bases[name]]
                rules[f"{tense}{number} {name}"] = forms
                after = {"alone": [""], "object": [" {noun}"], "receiver": [" {noun} to {noun}", " {noun} {noun}"]}[
                    name
                ]
                said += [f"{{{tense}{number} {name}}}{rest}{{place}}" for rest in after]
            rules[f"{tense}{number} said"] = said
    return Grammar(rules)


def _classes() -> dict[str, dict[str, tuple[str, str, str]]]:
    return {"alone": ALONE, "object": WITH_OBJECT, "receiver": WITH_RECEIVER}
