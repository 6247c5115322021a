"""Every `rlhf-lab train METHOD` on AnthropicHH: a small file of its shape, and the real one where it is at hand."""

import gzip
import json
import math

import pytest
import torch
from small import HH_FILE, dialogue, history, train, weights
from tiny_models import one_thread  # noqa: F401

from rlhf_lab.cli.main import main
from rlhf_lab.policies.loading import shipped_folder

METHODS = {
    "sft": ("examples", None, []),
    "reward-model": ("pairs", None, []),
    "ranker": ("pairs", None, ["--orders", "both"]),
    "dpo": ("pairs", None, []),
    "kto": ("pairs", None, []),
    "ppo": ("prompts", "reward", ["--samples", "2", "--epochs", "1"]),
    "rso": ("prompts", "ranker", ["--candidates", "4", "--accepted", "2"]),
    "raft": ("prompts", "reward", ["--best-of", "2"]),
    "rest": ("prompts", "reward", ["--samples", "2", "--thresholds", "0", "0.3"]),
    "iterated-dpo": ("prompts", "reward", ["--labels", "8", "--rounds", "2"]),
    "rloo": ("prompts", "reward", ["--samples", "2"]),
    "grpo": ("prompts", "reward", ["--samples", "2"]),
}
"""What each counts its data in, what it is told rewards by, and options that keep it small."""


def rows() -> list[dict[str, str]]:
    """Ten pairs in dialogues of one to three turns (two rows of one prompt), and four that are of no use."""
    out = []
    for i in range(10):
        before = "".join(dialogue(f"Tell me {k}.", f"{k}, as you said.") for k in range(i % 3))
        number = 0 if i == 3 else i
        question = f"And what is {number} and 1?"
        good, bad = f"It is {number + 1}.", f"Who knows? {i}, {i}, {i} …"
        out.append({"chosen": before + dialogue(question, good), "rejected": before + dialogue(question, bad)})
    same = dialogue("Hello?", "Hello.")
    out.append({"chosen": same, "rejected": same})
    out.append({"chosen": dialogue("One?", "Yes."), "rejected": dialogue("Two?", "No.")})
    out.append({"chosen": dialogue("Are you there?", ""), "rejected": dialogue("Are you there?", "I am.")})
    out.append({"chosen": "\n\nHuman: Nobody answers.", "rejected": "\n\nHuman: Nobody answers."})
    return out


@pytest.fixture(scope="session")
def dialogues(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("hh") / "hh.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows())
    return str(path)


def check(out, method: str) -> str:
    """The run is whole and every number in it is finite; returns its card."""
    logged = history(out)
    assert logged and all(math.isfinite(value) for row in logged for value in row.values())
    assert all(torch.isfinite(tensor).all() for tensor in weights(out / "model").values())
    assert json.loads((out / "run.json").read_text())["method"] == method
    return (out / "README.md").read_text()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_dialogues_of_several_turns_and_counts_what_it_drops(
    method, model, reward, ranker, dialogues, tmp_path
):
    """Ten pairs are left of fourteen: two rows are of equal dialogues, one parts before its last turn, and in one the
    chosen answer is empty. Prompts alone need no usable pair: 12 dialogues ask what no row before asked (the ten but
    for one, and those of the other four whose last turn is the assistant's)."""
    counted, told, more = METHODS[method]
    more = more if told is None else [*more, "--reward", {"reward": reward, "ranker": ranker}[told]]
    assert main(train(method, model, dialogues, tmp_path / "run", *more)) == 0
    card = check(tmp_path / "run", method)
    found = 12 if counted == "prompts" else 10
    assert f"(AnthropicHH): {found} {counted}; dropped {14 - found} rows" in card.replace("chosen side of ", "")


@pytest.mark.skipif(not HH_FILE.exists(), reason="the AnthropicHH file is not beside the project")
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_the_shipped_model_on_the_real_file(method, real_rewards, tmp_path):
    """The first eight usable rows of AnthropicHH's harmless-base/test. The tokens of a prompt are its last 48, so that
    some prompts are cut, and the card counts them."""
    counted, told, more = METHODS[method]
    more = more if told is None else [*more, "--reward", real_rewards[told]]
    assert main(on_the_real_file(method, tmp_path / "run", *more)) == 0
    card = check(tmp_path / "run", method)
    assert f": 8 {counted}; dropped " in card and f"8 {counted} of at most " in card
    if method == "rso":
        check_pairs(tmp_path / "run" / "pairs")


def on_the_real_file(method: str, out, *more: str) -> list[str]:
    words = train(method, "lab-gpt2", str(HH_FILE), out, "--limit", "8", *more)
    words[words.index("--max-prompt-tokens") + 1] = "48"
    return words


@pytest.fixture(scope="module")
def real_rewards(tmp_path_factory) -> dict[str, str]:
    """A reward model and a ranker on the shipped model, fitted to a few real pairs."""
    try:
        shipped_folder("lab-gpt2")
    except ValueError:
        pytest.skip("the shipped models are not built")
    folder = tmp_path_factory.mktemp("real")
    for method in ("reward-model", "ranker"):
        assert main(on_the_real_file(method, folder / method)) == 0
    return {"reward": str(folder / "reward-model"), "ranker": str(folder / "ranker")}


def check_pairs(folder) -> None:
    """What `datasets` gives for the folder: three columns of text, two different responses, the tail of a prompt."""
    import datasets

    found = datasets.load_dataset(str(folder), split="train", cache_dir=str(folder.parent / "cache"))
    assert found.column_names == ["prompt", "chosen", "rejected"] and len(found)
    assert all(value.dtype == "string" for value in found.features.values())
    assert all(row["prompt"].endswith("\n\nAssistant:") and row["chosen"] != row["rejected"] for row in found)
