"""Summaries: say in few words what a post says in many.

A post has six facts (who did what to which thing, where, when, and what its writer asks) and chatter around them.
Targets summarise it well, or leave facts out, or chatter on, or get a fact wrong. The gold reward is

    the share of the post's facts that the summary names
    − 0.02 for each word
    − 0.20 for each fact in it that the post does not have,

never below −1. It is the TL;DR task of Stiennon et al. 2020 and DPO's section 6.2, in small, with a judge that cannot
be argued with. It reads words alone: a telegram of key words earns more than a sentence does, as a policy may find out.
"""

from __future__ import annotations

from typing import Any

from rlhf_lab.errors import LabError
from rlhf_lab.worlds.text.grammar import Draw, Grammar, mentioned
from rlhf_lab.worlds.text.text_world import TextWorld

PRICE_OF_A_WORD = 0.02
PRICE_OF_A_WRONG_FACT = 0.2

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
"""By name, every value that a fact can have. No value stands anywhere else in a post."""

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
        # Targets: all facts, most of them, or few; with or without chatter.
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
    """A post of about fifty words, with "TL;DR:" at its end."""
    facts = {name: draw.pick(values) for name, values in FACTS.items()}
    return GRAMMAR.text("post", draw, **facts), facts


def draw_target(facts: dict[str, Any], draw: Draw) -> str:
    """A summary of mixed quality; one in six has got one fact wrong."""
    told = dict(facts)
    if draw.pick((True, False), (1, 5)):
        wrong = draw.pick(tuple(FACTS))
        told[wrong] = draw.pick([value for value in FACTS[wrong] if value != facts[wrong]])
    return GRAMMAR.text("target", draw, **told)


def facts_in(text: str) -> set[tuple[str, str]]:
    """The facts that a text names, as (name, value)."""
    return {(name, value) for name, values in FACTS.items() for value in mentioned(text, values)}


def score(prompt: str, response: str) -> float:
    """Share of the post's facts named, minus a price for words and for facts that the post does not have."""
    facts = facts_in(prompt)
    if not facts:
        raise LabError(f"No fact of this world stands in the prompt {prompt[:60]!r}: summaries cannot score it.")
    said = facts_in(response)
    covered = len(said & facts) / len(facts)
    words = PRICE_OF_A_WORD * len(response.split())
    wrong = PRICE_OF_A_WRONG_FACT * len(said - facts)
    return max(-1.0, covered - words - wrong)


def follows_grammar(prompt: str, response: str) -> bool:
    """Whether the response is a summary by the grammar, of whatever facts."""
    return GRAMMAR.parses(response, "target", **FACTS)


def world(seed: int = 0) -> TextWorld:
    """The world of posts and their summaries."""
    return TextWorld("summaries", draw_prompt, draw_target, score, follows_grammar, seed)
