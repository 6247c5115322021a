"""A tiny model, files of data and the command's words, for the tests of commands."""

import json
from pathlib import Path

from safetensors.torch import load_file
from tiny_models import tiny, tiny_tokenizer

HH_FILE = Path(__file__).parents[2].parent / "shared" / "data" / "hh-harmless-base-test.jsonl.gz"


def dialogue(question: str, answer: str) -> str:
    return f"\n\nHuman: {question}\n\nAssistant: {answer}"


def pair_rows(number: int = 16) -> list[dict[str, str]]:
    """Pairs in AnthropicHH's form: a sum is right and short, or wrong and loud."""
    rows = []
    for i in range(number):
        question = f"What is {i} and {i % 5}?"
        rows.append({"chosen": dialogue(question, f"{i + i % 5}."), "rejected": dialogue(question, f"No, {i}!")})
    return rows


def write_lines(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def make(folder: Path, kind: str = "gpt2", context: int = 96, texts: list[str] | None = None, vocab: int = 300) -> str:
    """A model's folder with its tokenizer."""
    tokenizer = tiny_tokenizer(texts or [row["chosen"] for row in pair_rows()], vocab=vocab)
    tiny(kind, vocab=len(tokenizer), context=context, wide=0.05).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def train(method: str, model: str, data: str, out: Path, *more: str) -> list[str]:
    """The words of a run of two steps."""
    return [
        "train", method, "--model", model, "--data", data, "--out", str(out), "--device", "cpu", "--steps", "2",
        "--batch-size", "4", "--learning-rate", "0.01", "--log-every", "1", "--max-prompt-tokens", "32",
        "--max-response-tokens", "8", "--no-progress", *more,
    ]  # fmt: skip


def weights(folder: Path) -> dict:
    """The tensors of a folder with a model, or with a reward."""
    return load_file(next(folder.glob("*.safetensors")))


def history(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
