"""Write samples of the text worlds' corpora, and a card for each, into data/corpora/.

    python tools/build_corpora.py            # all four
    python tools/build_corpora.py --check    # write nothing; fail if a file differs from what the grammars generate

The corpora themselves are not stored, because `rlhf_lab.worlds.text` generates them from a seed when they are needed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

from rlhf_lab.worlds import text
from rlhf_lab.worlds.text.text_world import SIZES, TextWorld

FOLDER = Path(__file__).parents[1] / "data" / "corpora"
SAMPLES = {"train": 16, "validation": 8, "test": 8}

ABOUT = {
    "sentiment": (
        "Beginnings of reviews of films, books, restaurants, hotels and games, with continuations that are glad (36%), "
        "sour (36%) or in between (28%).",
        "VADER's compound score of the response alone, in [−1, 1] (`vaderSentiment`).",
        "VADER reads words, not sense: a list of glad words scores higher than any review. Reviews are put together "
        "from about a hundred words; sentences do not refer to each other.",
    ),
    "summaries": (
        "Posts of six facts (who, did what, to which thing, where, when, and what is asked) with chatter, and "
        "summaries of them: complete, partial, wordy, and one in six with a wrong fact.",
        "Share of the six facts named − 0.02 a word − 0.2 for each fact that the post does not have; at least −1.",
        "Facts are found as whole words, so a telegram of key words beats a sentence. Posts do not lie, and never name "
        "two people.",
    ),
    "dialogue": (
        "Questions about stains, dishes and places in town, in AnthropicHH's form, some after a turn of greeting; "
        "answers that are helpful, half so, wrong, evasive, long-winded or rude.",
        "0.4 for each of two right things, −0.4 for each wrong one; +0.2 polite, −0.4 rude, −0.3 evasive; −0.02 a word "
        "after the twentieth; within [−1, 1].",
        "The know-how is made up for the lab: do not wash by it. The same question comes in several splits, asked in "
        "other words: test prompts are new, the tables behind them are not.",
    ),
    "translation": (
        "Sentences in Velu, a language made up for the lab (grammar in `rlhf_lab/worlds/text/velu.py`), and their "
        "English; two of five targets have one mistake.",
        "Sentence chrF by `sacrebleu` against every right translation, the best of them, divided by 100. `world.exact` "
        "gives a right one; `world.corpus` BLEU and chrF of many, and the share that is right.",
        "Single main clauses without pronouns; sentences may be odd in sense. A mistake now and then yields another "
        "right order, and so none.",
    ),
}

CARD = """# {name}

{about}

- **Made by** `rlhf_lab.worlds.text.load("{name}", seed=0)`, from a grammar written for this repository; nothing was
  downloaded. `python tools/build_corpora.py` wrote this card and [{name}.jsonl]({name}.jsonl) ({samples} rows of it:
  `split`, `number` in it, `prompt`, `target`, `gold`); with `--check` it compares them with what the grammar gives.
- **Licence**: the repository's (MIT).
- **Gold reward**: {gold}

| split | prompts | words a prompt | words a target | gold of targets, mean ± sd | from … to |
|---|---|---|---|---|---|
{rows}

No prompt stands twice, or in two splits: a hash of its words decides the split. A target's derivation costs
{nats:.2f} nats on average, given the prompt's facts: about the lowest held-out loss a model can have.

Two of the test split:

{examples}

**Limits.** {limits}
"""


def sample(world: TextWorld) -> str:
    """The first rows of each split, as JSON lines."""
    rows = [
        {
            "split": split,
            "number": number,
            "prompt": example.prompt,
            "target": example.target,
            "gold": round(world.score(example.prompt, example.target), 4),
        }
        for split, limit in SAMPLES.items()
        for number, example in enumerate(world.examples(split, limit))
    ]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def card(world: TextWorld) -> str:
    """The card of a world, with freshly computed numbers."""
    rows = []
    for split in SIZES:
        examples = world.examples(split)
        gold = world.gold([e.prompt for e in examples], [e.target for e in examples])
        words = [statistics.mean(len(t.split()) for t in texts) for texts in
                 ([e.prompt for e in examples], [e.target for e in examples])]  # fmt: skip
        rows.append(
            f"| {split} | {len(examples):,} | {words[0]:.1f} | {words[1]:.1f} | {statistics.mean(gold):.3f} ± "
            f"{statistics.stdev(gold):.3f} | {min(gold):.2f} … {max(gold):.2f} |"
        )
    about, gold_text, limits = ABOUT[world.name]
    shown = [e for e in world.examples("test", 2)]
    return CARD.format(
        name=world.name,
        about=about,
        gold=gold_text,
        limits=limits,
        samples=sum(SAMPLES.values()),
        rows="\n".join(rows),
        nats=statistics.mean(e.nats for e in world.examples("test")),
        examples="\n\n".join(
            "\n".join("    " + line for line in f"{e.prompt} ⟶{e.target}".strip().splitlines()) for e in shown
        ),
    )


def main() -> None:
    """Write the files, or compare them, from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file differs")
    args = parser.parse_args()
    differ = []
    for name in text.WORLDS:
        world = text.load(name)
        for file, content in ((FOLDER / f"{name}.jsonl", sample(world)), (FOLDER / f"{name}.md", card(world))):
            if not args.check:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(content, encoding="utf-8")
            elif not file.is_file() or file.read_text(encoding="utf-8") != content:
                differ.append(str(file))
    if differ:
        sys.exit(f"Files differ from what the grammars generate: {', '.join(differ)}. Run tools/build_corpora.py.")


if __name__ == "__main__":
    main()
