"""The world of summaries: summarise a post in few words.

A post has six facts (who did what to which thing, where, when, and what its writer asks) and sentences without facts. A
target is a good summary, or it leaves out facts, contains sentences without facts, or has a wrong fact. The gold reward
is

    the share of the post's facts that the summary contains
    − 0.02 for each word
    − 0.20 for each fact in the summary that is not in the post,

and at least −1. It is a small version of the TL;DR task of Stiennon et al. 2020 and of section 6.2 of the DPO paper.
The gold reward counts words only, so a list of key words gets a higher reward than a sentence.
"""

from __future__ import annotations

from typing import Any

from rlhf_lab.errors import LabError
from rlhf_lab.worlds.text.grammar import Draw, Grammar, mentioned
from rlhf_lab.worlds.text.text_world import TextWorld

WORD_PENALTY = 0.02
WRONG_FACT_PENALTY = 0.2

FACTS: dict[str, tuple[str, ...]] = {
    "who": (
        "brother", "sister", "boss", "neighbour", "cousin", "wife", "husband", "mother", "father", "uncle", "aunt",
        "son", "daughter", "teacher", "landlord", "best friend",
    ),
    "did": (
        "sold", "lost", "painted", "broke", "borrowed", "hid", "washed", "burned", "found", "moved", "fixed", "took",
    ),
    "thing": (
        "bike", "coat", "phone", "guitar", "boat", "watch", "lamp", "table", "camera", "tent", "ring", "bag", "hat",
        "car", "piano", "clock",
    ),
    "where": (
        "station", "market", "beach", "lake", "school", "office", "hotel", "library", "museum", "harbour", "farm",
        "park",
    ),
    "when": (
        "on Monday", "on Tuesday", "on Thursday", "on Friday", "on Sunday", "last week", "last month", "last night",
        "yesterday", "this morning", "two days ago", "at noon",
    ),
    "ask": (
        "ask for money", "say sorry", "call the police", "let it go", "buy a new one", "move out", "laugh about it",
        "write a letter", "wait", "tell everyone", "hire a lawyer", "ask for it back",
    ),
}  # fmt: skip
"""Every value of each fact. No value occurs in another part of a post."""

GRAMMAR = Grammar(
    {
        "post": ["Post: {event} {chat} {question} TL;DR:", "Post: {hello} {event} {chat} {question} TL;DR:",
                 "Post: {hello} {event} {chat} {more} {question} TL;DR:"],
        "hello": ["Hi all.", "Long time reader here.", "Sorry for the long post.", "This may sound silly.",
                  "I need some help.", "I am new here."],
        "event": [
            "So my {who} {did} my {thing} at the {where} {when}.",
            "Well, {when} my {who} {did} my {thing} at the {where}.",
            "I was at the {where} {when}, and there my {who} {did} my {thing}.",
            "You will not believe it, but my {who} {did} my {thing}. It was {when}, at the {where}.",
            "It is about my {thing}. My {who} {did} it at the {where} {when}.",
        ],
        "chat": ["I am so angry.", "I could not sleep.", "We had words about it.", "I still can not believe it.",
                 "I do not know what to think.", "It made me sad."],
        "more": ["Nobody asked me first.", "It was not the first time.", "My friends think it is funny.",
                 "I have not said a word since.", "Such things happen all the time."],
        "question": ["Should I {ask}?", "Do you think I should {ask}?", "I wonder if I should {ask}.",
                     "Would you {ask}?"],
        # Targets: all facts, most of them, or few, with or without sentences that contain no fact.
        "target": ["{all}", "{all}", "{all}", "{most}", "{most}", "{most}", "{few}", "{few}", "{wordy}", "{wordy}"],
        "all": [
            " my {who} {did} my {thing} at the {where} {when}, should I {ask}?",
            " my {who} {did} my {thing} {when} at the {where}. Should I {ask}?",
        ],
        "most": [
            " my {who} {did} my {thing} {when}, should I {ask}?",
            " my {who} {did} my {thing} at the {where}. Should I {ask}?",
            " my {who} {did} my {thing}, should I {ask}?",
            " my {who} {did} my {thing} at the {where} {when}.",
        ],
        "few": [" my {who} {did} my {thing}.", " my {who} did something to my {thing}, should I {ask}?",
                " something happened at the {where} {when}.", " should I {ask}?"],
        "wordy": ["{all} {chat}", "{most} {chat}", "{few} {chat}", "{most} {chat} {more}", "{few} {chat} {more}"],
    }
)  # fmt: skip


def draw_prompt(draw: Draw) -> tuple[str, dict[str, Any]]:
    """Draw a post of about fifty words that ends with "TL;DR:"."""
    facts = {name: draw.pick(values) for name, values in FACTS.items()}
    return GRAMMAR.text("post", draw, **facts), facts


def draw_target(facts: dict[str, Any], draw: Draw) -> str:
    """Draw a summary of varying quality. One in six has a wrong fact."""
    told = dict(facts)
    if draw.pick((True, False), (1, 5)):
        wrong = draw.pick(tuple(FACTS))
        told[wrong] = draw.pick([value for value in FACTS[wrong] if value != facts[wrong]])
    return GRAMMAR.text("target", draw, **told)


def facts_in(text: str) -> set[tuple[str, str]]:
    """The facts in a text, as pairs (name, value)."""
    return {(name, value) for name, values in FACTS.items() for value in mentioned(text, values)}


def score(prompt: str, response: str) -> float:
    """The share of the post's facts in the summary, minus penalties for words and for wrong facts."""
    facts = facts_in(prompt)
    if not facts:
        raise LabError(f"The prompt {prompt[:60]!r} contains no fact of the world of summaries. Give one of its posts.")
    said = facts_in(response)
    covered = len(said & facts) / len(facts)
    words = WORD_PENALTY * len(response.split())
    wrong = WRONG_FACT_PENALTY * len(said - facts)
    return max(-1.0, covered - words - wrong)


def follows_grammar(prompt: str, response: str) -> bool:
    """Whether the grammar can make the response, with any facts."""
    return GRAMMAR.parses(response, "target", **FACTS)


def world(seed: int = 0) -> TextWorld:
    """Make the world of posts and their summaries."""
    return TextWorld("summaries", draw_prompt, draw_target, score, follows_grammar, seed)
