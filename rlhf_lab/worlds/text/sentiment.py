"""The sentiment world: continue a review so that it is positive.

The prompt is the neutral beginning of a review of a film, book, restaurant, hotel or game. About a third of the targets
are positive, a third negative and a third mixed, so a model that was trained on them writes all three. The gold reward
is VADER's compound score of the response (Hutto & Gilbert 2014), which adds the strengths of words in a lexicon.

It is a small version of the controlled sentiment task in section 6.1 of the DPO paper, which used IMDb and a
classifier. VADER reads words and not their meaning, so a policy that repeats "superb" gets a high reward.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from rlhf_lab.worlds.text.grammar import Draw, Grammar
from rlhf_lab.worlds.text.text_world import TextWorld

KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # kind: (what the writer did, what can be reviewed)
    "Film": (
        ("I saw it", "We watched it"),
        ("acting", "music", "story", "ending", "camera work", "cast", "first half", "last scene"),
    ),
    "Book": (
        ("I read it", "I finished it"),
        ("story", "language", "ending", "first chapter", "plot", "last page", "main character"),
    ),
    "Restaurant": (
        ("I ate there", "We had dinner there"),
        ("soup", "bread", "fish", "rice", "service", "wine", "view", "music", "cake"),
    ),
    "Hotel": (
        ("I stayed there", "We spent the night there"),
        ("room", "bed", "breakfast", "service", "view", "garden", "bath", "staff"),
    ),
    "Game": (
        ("I played it", "We tried it"),
        ("story", "music", "map", "first level", "ending", "art", "main character"),
    ),
}  # fmt: skip
TITLES = (
    ("Silver", "Last", "Quiet", "Long", "Red", "Little", "Winter", "Second", "Green", "Old", "Blue", "Golden"),
    ("Harbour", "River", "Garden", "Letter", "Road", "House", "Train", "Island", "Bridge", "Window", "Night", "Moon"),
)
WHEN = ("on Monday", "on Friday", "on Sunday", "last week", "last month", "last night", "yesterday", "this morning")
WHOM = ("my brother", "my sister", "my boss", "my neighbour", "my cousin", "my wife", "my husband", "a friend")

GRAMMAR = Grammar(
    {
        # How a prompt ends, and the rule by which its continuation begins.
        "full": [" {text}"],
        "and": [" I {like}. {rest}", " it was {very}{word}. {rest}"],
        "was": [" {very}{word}. {rest}", " {very}{word} and the {aspect} was {word}. {rest}"],
        "text": ["I {like}. {rest}", "It was {very}{word}. {rest}", "The {aspect} was {very}{word}. {rest}"],
        # The rest: up to two details, with or without advice.
        "rest": ["{detail}", "{detail} {advice}", "{detail} {advice}", "{advice}", "{detail} {detail}"],
        "detail": [
            "The {aspect} was {very}{word}.",
            "The {aspect} was {word} and the {aspect} was {word}.",
            "I {like}, and the {aspect} was {word}.",
            "And the {aspect}, so {word}!",
        ],
        "very": ["", "", "very ", "really ", "so "],
    }
)
GLAD = {
    "like": ("loved it", "enjoyed every minute", "liked it very much", "was delighted", "was happy with it"),
    "word": (
        "superb", "wonderful", "lovely", "great", "excellent", "brilliant", "good", "nice", "beautiful", "perfect",
        "charming", "fantastic",
    ),
    "advice": (
        "I recommend it to everyone.", "It made my week.", "We will come back soon.", "Thank you, we had so much fun!",
        "It is the best of the year.", "Go and see for yourself!",
    ),
}  # fmt: skip
SOUR = {
    "like": ("hated it", "was bored all the time", "was disappointed", "regret every minute", "was angry with it"),
    "word": (
        "awful", "terrible", "dull", "boring", "bad", "poor", "horrible", "weak", "ugly", "annoying", "sad", "lousy",
    ),
    "advice": (
        "What a waste of money.", "Never again.", "I want my money back.", "It ruined my week.",
        "It is the worst of the year.", "Stay at home.",
    ),
}  # fmt: skip
EVEN = {
    "like": (*GLAD["like"][2:3], *SOUR["like"][2:3], "was not sure about it", "had seen it all before"),
    "word": ("plain", "ordinary", "long", "short", "strange", "simple", "quiet", "old", "good", "poor", "nice", "dull"),
    "advice": ("It is what it is.", "Some will like it.", "I may try again.", "Make up your own mind."),
}
MOODS = (GLAD, SOUR, EVEN)
EVERY = {name: tuple(dict.fromkeys(text for mood in MOODS for text in mood[name])) for name in GLAD}

ENDINGS = {"full": ".", "and": ", and", "was": ". The {aspect} was"}


def draw_prompt(draw: Draw) -> tuple[str, dict[str, Any]]:
    """Draw a beginning such as "Film: The Silver River. I saw it on Monday with my boss, and"."""
    kind = draw.pick(tuple(KINDS))
    came, aspects = KINDS[kind]
    title = f"The {draw.pick(TITLES[0])} {draw.pick(TITLES[1])}"
    ending = draw.pick(tuple(ENDINGS))
    last = ENDINGS[ending].format(aspect=draw.pick(aspects) if ending == "was" else "")
    prompt = f"{kind}: {title}. {draw.pick(came)} {draw.pick(WHEN)} with {draw.pick(WHOM)}{last}"
    return prompt, {"kind": kind, "title": title, "ending": ending}


def draw_target(facts: dict[str, Any], draw: Draw) -> str:
    """Draw a positive, negative or mixed continuation."""
    mood = draw.pick(MOODS, (0.36, 0.36, 0.28))
    return GRAMMAR.text(facts["ending"], draw, aspect=KINDS[facts["kind"]][1], **mood)


def score(prompt: str, response: str) -> float:
    """VADER's compound score of the response, in [−1, 1]. It is 0 for a response without a word of the lexicon."""
    compound: float = _vader().polarity_scores(response)["compound"]
    return compound


def follows_grammar(prompt: str, response: str) -> bool:
    """Whether the grammar can continue this prompt with the response, in any mixture of moods."""
    ending = "and" if prompt.endswith(", and") else "was" if prompt.endswith(" was") else "full"
    aspects = KINDS.get(prompt.split(":")[0], ((), ()))[1]
    return bool(aspects) and GRAMMAR.parses(response, ending, aspect=aspects, **EVERY)


@cache
def _vader() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def world(seed: int = 0) -> TextWorld:
    """Make the world of reviews."""
    return TextWorld("sentiment", draw_prompt, draw_target, score, follows_grammar, seed)
