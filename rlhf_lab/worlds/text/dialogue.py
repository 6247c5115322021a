r"""The dialogue world: answer a question helpfully.

Prompts have the format of AnthropicHH, "\n\nHuman: …\n\nAssistant:". In some of them a greeting precedes the question.
There are three kinds of question (how to remove a stain, how to cook a dish, where a place in town is). Each asks for
two facts, which are in the tables below. The gold reward of a response is

    + 0.4 for each of the two facts that it contains, − 0.4 for each wrong value
    + 0.2 for polite words, − 0.4 for rude words, − 0.3 for evading the question
    − 0.02 for each word after the twentieth,

limited to [−1, 1]. Targets are helpful, half helpful, wrong, evasive, too long or rude.
"""

from __future__ import annotations

from typing import Any

from rlhf_lab.errors import LabError
from rlhf_lab.worlds.text.grammar import Draw, Grammar, mentioned
from rlhf_lab.worlds.text.text_world import TextWorld

WORTH = {"right": 0.4, "wrong": -0.4, "polite": 0.2, "rude": -0.4, "evasive": -0.3, "word": -0.02}
FREE_WORDS = 20

STAINS = {
    "wine": "salt", "ink": "milk", "mud": "a brush", "oil": "soap", "rust": "lemon", "coffee": "soda",
    "grass": "vinegar", "wax": "ice", "paint": "alcohol", "egg": "sand",
}  # fmt: skip
"""What removes each stain."""
CLOTHS = {
    "shirt": "hot", "towel": "hot", "sheet": "hot", "coat": "warm", "hat": "warm", "bag": "warm", "scarf": "cold",
    "dress": "cold", "curtain": "cold", "carpet": "cold",
}  # fmt: skip
"""The temperature of the water for each piece of cloth."""
DISHES = {
    "rice": ("twelve", "butter"), "beans": ("forty", "garlic"), "fish": ("ten", "dill"), "eggs": ("six", "pepper"),
    "corn": ("ten", "butter"), "soup": ("thirty", "pepper"), "lentils": ("twenty", "garlic"),
    "pears": ("twelve", "honey"), "potatoes": ("twenty", "dill"), "beets": ("forty", "honey"),
}  # fmt: skip
"""The minutes for which each dish is cooked, and what is added."""
PLACES = {
    "library": ("nine", "Mill Road"), "museum": ("eleven", "King Street"), "market": ("seven", "Bridge Street"),
    "bakery": ("seven", "Mill Road"), "post office": ("eight", "King Street"), "school": ("eight", "Park Lane"),
    "hotel": ("noon", "Park Lane"), "theatre": ("noon", "Bridge Street"), "bank": ("nine", "King Street"),
    "hospital": ("eleven", "Park Lane"),
}  # fmt: skip
"""When each place opens, and its street."""

TOPICS = ("stain", "dish", "place")
VALUES = {  # by topic, all values of the two facts
    "stain": (tuple(STAINS.values()), ("hot", "warm", "cold")),
    "dish": tuple(tuple(dict.fromkeys(pair[i] for pair in DISHES.values())) for i in (0, 1)),
    "place": tuple(tuple(dict.fromkeys(pair[i] for pair in PLACES.values())) for i in (0, 1)),
}
POLITE = ("please", "happy to help", "good luck", "you are welcome", "of course", "enjoy")
RUDE = ("silly", "leave me alone", "how can you not know")
EVASIVE = ("I do not know", "it depends", "ask someone else", "hard to say", "I would rather not")

GRAMMAR = Grammar(
    {
        "talk": ["{turn}", "{turn}", "{turn}", "\n\nHuman: {hello}\n\nAssistant: {reply}{turn}"],
        "turn": ["\n\nHuman: {why}{question}{end}\n\nAssistant:"],
        "hello": ["Hello!", "Good morning!", "Are you there?", "I need some help."],
        "reply": ["Hello! How can I help?", "Yes, I am here.", "What is it about?"],
        "why": ["", "", "", "I am in a hurry. ", "My boss asked me. ", "It is my first time. ",
                "Guests are here soon. ", "I could not sleep. ", "We moved here last week. ",
                "My sister told me to ask. "],
        "end": ["", "", "", " Thank you!", " Be short.", " I have tried it all."],
        "stain": ["How do I get {a} out of my {b}?", "There is {a} on my {b}. What should I do?",
                  "What helps against {a} on a {b}?"],
        "dish": ["How do I cook {a}?", "How long do I cook {a}, and what do I add?",
                 "I want to make {a}. What should I do?"],
        "place": ["When does the {a} open, and where is it?",
                  "I want to go to the {a}. Where is it, and when can I go?",
                  "Where is the {a}, and is it open early?"],
        # Targets. {x} and {y} are the two facts.
        "stain both": ["Use {x} and wash the {b} in {y} water.", "Put {x} on it, then wash it in {y} water."],
        "stain one": ["Use {x}.", "Wash the {b} in {y} water.", "Put {x} on it and wait."],
        "dish both": ["Cook the {a} for {x} minutes and add {y}.", "Add {y} and cook it for {x} minutes."],
        "dish one": ["Cook the {a} for {x} minutes.", "Just add {y}.", "It takes {x} minutes."],
        "place both": ["It opens at {x} and it is on {y}.", "The {a} is on {y}, and it opens at {x}."],
        "place one": ["It opens at {x}.", "The {a} is on {y}.", "Go to {y}."],
        "polite": [" Of course! {core}", " Happy to help. {core}", " {core} Good luck!", " {core} You are welcome.",
                   " {core} Enjoy your day!"],
        "plain": [" {core}"],
        "long": [" That is a good question. {core} {talking}", " {core} {talking}", " {core} {talking} {more}"],
        "talking": ["People ask me this all the time.", "There is a lot to say about it."],
        "more": ["My mother told me so when I was little.", "It is not as hard as you think."],
        "evasive": [" It depends.", " I do not know, ask someone else.", " That is hard to say.",
                    " I would rather not say.", " Good luck! It depends on a lot of things."],
        "rude": [" What a silly question.", " Leave me alone. {core}", " How can you not know? {core}"],
    }
)  # fmt: skip
ANSWERS = ("polite", "plain", "long", "evasive", "rude")


def draw_prompt(draw: Draw) -> tuple[str, dict[str, Any]]:
    """Draw a question in the format of AnthropicHH, sometimes after a greeting."""
    topic = draw.pick(TOPICS)
    if topic == "stain":
        facts = {"a": draw.pick(tuple(STAINS)), "b": draw.pick(tuple(CLOTHS))}
    else:
        facts = {"a": draw.pick(tuple(DISHES if topic == "dish" else PLACES)), "b": ""}
    prompt = GRAMMAR.text("talk", draw, question=f"{{{topic}}}", **facts)
    return prompt, {"topic": topic, **facts}


def correct_facts(topic: str, a: str, b: str) -> tuple[str, str]:
    """The two correct facts for a question."""
    return (STAINS[a], CLOTHS[b]) if topic == "stain" else DISHES[a] if topic == "dish" else PLACES[a]


def parse_question(prompt: str) -> dict[str, str]:
    """Find the topic and the subjects a and b of the last question in a prompt.

    Raises:
        LabError: it is not a question of this world.
    """
    question = prompt.rsplit("Human:", 1)[-1]
    stains, cloths, dishes, places = (mentioned(question, tuple(table)) for table in (STAINS, CLOTHS, DISHES, PLACES))
    if stains and cloths:
        return {"topic": "stain", "a": stains[0], "b": cloths[0]}
    if dishes or places:
        return {"topic": "dish" if dishes else "place", "a": (dishes or places)[0], "b": ""}
    raise LabError(f"The prompt {prompt.strip()[:60]!r} is not a question of the world of dialogue.")


def draw_target(facts: dict[str, Any], draw: Draw) -> str:
    """Draw an answer of varying quality."""
    topic, a, b = facts["topic"], facts["a"], facts["b"]
    x, y = correct_facts(topic, a, b)
    if draw.pick((True, False), (1, 5)):  # gets one of them wrong
        if draw.pick((True, False)):
            x = draw.pick([value for value in VALUES[topic][0] if value != x])
        else:
            y = draw.pick([value for value in VALUES[topic][1] if value != y])
    core = draw.pick((f"{{{topic} both}}", f"{{{topic} one}}"), (3, 2))
    return GRAMMAR.text(draw.pick(ANSWERS, (30, 25, 20, 15, 10)), draw, core=core, a=a, b=b, x=x, y=y)


def score(prompt: str, response: str) -> float:
    """The gold reward of the module's docstring, in [−1, 1]."""
    question = parse_question(prompt)
    total = 0.0
    for right, values in zip(correct_facts(**question), VALUES[question["topic"]], strict=True):
        for value in mentioned(response, values):
            total += WORTH["right"] if value == right else WORTH["wrong"]
    for manner, phrases in (("polite", POLITE), ("rude", RUDE), ("evasive", EVASIVE)):
        if mentioned(response, phrases):
            total += WORTH[manner]
    total += WORTH["word"] * max(0, len(response.split()) - FREE_WORDS)
    return min(1.0, max(-1.0, total))


def follows_grammar(prompt: str, response: str) -> bool:
    """Whether the grammar can make the response to a question of this topic, with any facts."""
    topic, a, b = parse_question(prompt).values()
    core = (f"{{{topic} both}}", f"{{{topic} one}}")
    x, y = VALUES[topic]
    return any(GRAMMAR.parses(response, start, core=core, a=a, b=b, x=x, y=y) for start in ANSWERS)


def world(seed: int = 0) -> TextWorld:
    """Make the world of questions and answers."""
    return TextWorld("dialogue", draw_prompt, draw_target, score, follows_grammar, seed)
