"""docs/chat.md: its examples are what the code does. docs/commands.md: the table of expectations."""

import json
import re
import shutil
from pathlib import Path

import pytest
from every_option import KINDS
from tiny_models import CHATML

from rlhf_lab.cli import familiar_names, yaml_config
from rlhf_lab.cli.main import main
from rlhf_lab.data.conversations import shortened, write_turns
from rlhf_lab.policies.loading import load_tokenizer, shipped_folder

PAGE = (Path(__file__).parents[2] / "docs" / "chat.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)


@pytest.fixture(scope="module")
def tokenizer():
    found = load_tokenizer("lab-gpt2")
    found.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    found.chat_template = CHATML
    return found


def test_the_prompts_that_are_cut_are_those_of_the_page(tokenizer):
    """The numbers are in the sentences before the blocks."""
    prompt = write_turns(json.loads(blocks("json")[0]), tokenizer)

    def encoded(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    (whole,) = re.findall(r"The whole prompt has (\d+) tokens", PAGE)
    ((low, high),) = re.findall(r"limit of (\d+) to (\d+) tokens", PAGE)
    (third,) = re.findall(r"limit of (\d+) tokens,", PAGE)
    assert len(encoded(prompt)) == int(whole) == int(high) + 1
    first, second = blocks("text")[-2:]
    for limit, expected in ((high, first), (low, first), (third, second)):
        assert tokenizer.decode(shortened(prompt, tokenizer, encoded, int(limit))[0]) == expected
    assert tokenizer.decode(shortened(prompt, tokenizer, encoded, int(low) - 1)[0]) != first


def test_the_tokens_in_the_loss_are_those_of_the_page(tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(shipped_folder("lab-gpt2"), "chat-model")
    tokenizer.save_pretrained("chat-model")
    texts = ("What is 2 + 2?", "It is 4.", "And 3 + 3?", "It is 6.")
    turns = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
    Path("chat.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    command = next(line for line in "".join(blocks("sh")).splitlines() if line.startswith("rlhf-lab data chat.jsonl"))
    assert main(command.split()[1:]) == 0
    assert blocks("text")[0] in capsys.readouterr().out


def test_the_commands_of_the_table_of_expectations_have_their_options():
    """A cell such as `train dpo --chat on` names a command and options of it."""
    page = (Path(__file__).parents[2] / "docs" / "commands.md").read_text(encoding="utf-8")
    table = page.partition("| feature | command |")[2].partition("\n\n")[0]
    cells = [cell for row in table.splitlines()[2:] for cell in re.findall(r"`([^`]+)`", row.split(" | ")[1])]
    commands = 0
    for cell in cells:
        if kind := next((KINDS[name] for name in KINDS if f"{cell} ".startswith(f"{name} ")), None):
            commands += 1
            names = {name.removeprefix("no-").replace("-", "_") for name in re.findall(r"--([a-z-]+)", cell)}
            assert names <= {*yaml_config.flat_fields(kind), *familiar_names.ALIASES}, cell
    assert commands > 20
