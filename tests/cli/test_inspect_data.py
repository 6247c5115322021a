"""`rlhf-lab data`: the numbers and the tokens of what a run is trained on."""

import json
import re
import sys

import pytest
from small import train, write_lines
from tiny_models import chat_tokenizer, one_thread, tiny  # noqa: F401

from rlhf_lab.cli.main import main
from rlhf_lab.data import preferences


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory) -> str:
    """A chat model with one id a letter, and one for each marker of its template."""
    folder, tokenizer = tmp_path_factory.mktemp("chat") / "model", chat_tokenizer()
    tiny("gpt2", vocab=len(tokenizer), context=96, wide=0.05).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def pair(prompt: str, chosen: str, rejected: str) -> dict:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


ROWS = [
    pair("aa", "b", "c"),
    pair("aa", "b", "c"),  # the same row
    pair("aa", "bbb", "c"),  # the same prompt
    pair("dddd", "bb", "ccc"),
    pair(" ", "b", "c"),  # no prompt
    pair("a", "b", "b"),  # equal responses
    pair("a", "eeeeX", "eeeeY"),  # equal after the cut to four tokens
    pair("x" * 12, "y" * 9, "n"),  # the prompt and one response are cut
]


def report(words: list[str], capsys) -> dict:
    assert main([*words, "--json", "--no-progress"]) == 0
    return json.loads(capsys.readouterr().out)


def test_rows_read_dropped_cut_and_repeated_are_counted_and_lengths_are_in_tokens(chat_model, tmp_path, capsys):
    """One id a letter and one for the end: prompts of 2, 2, 2, 4 and, cut, 10 tokens. Chosen responses of 2, 2, 4, 3
    and, cut, 4 tokens. Five of eight rows are left: one has an empty prompt, one has equal responses, and the responses
    of one are equal after the cut."""
    data = write_lines(tmp_path / "pairs.jsonl", ROWS)
    words = ["data", data, "--model", chat_model, "--max-prompt-tokens", "10", "--max-response-tokens", "4"]
    found = report(words, capsys)
    counts = found["sources"][data]
    assert (counts["form"], counts["what"], counts["read"], counts["kept"]) == ("plain", "pairs", 8, 5)
    reasons = (preferences.EMPTY_PROMPT, preferences.EQUAL, preferences.EQUAL_AFTER)
    assert counts["dropped"] == dict.fromkeys(reasons, 1)
    assert (counts["cut_prompts"], counts["cut_responses"]) == (1, 1)
    assert found["duplicates"] == {"rows": 1, "prompts": 2}
    assert {name: lengths["histogram"] for name, lengths in found["lengths"].items()} == {
        "prompt": [[2, 2, 3], [3, 3, 0], [4, 4, 1], [5, 5, 0], [6, 6, 0], [7, 7, 0], [8, 8, 0], [9, 9, 0], [10, 10, 1]],
        "chosen": [[2, 2, 2], [3, 3, 1], [4, 4, 2]],
        "rejected": [[2, 2, 4], [3, 3, 0], [4, 4, 1]],
    }
    assert (found["lengths"]["prompt"]["median"], found["lengths"]["prompt"]["maximum"]) == (2, 10)
    assert main([*words, "--rows", "0"]) == 0
    text = capsys.readouterr().out
    expected = [
        "rows read +8$",
        "pairs to train on +5 +62.5%",
        "dropped: empty prompt +1 +12.5%",
        "prompts cut +1 +20.0%",
        "responses cut +1 +10.0%",
        "rows equal to an earlier one +1 +20.0%",
        "prompt, in tokens: median 2,",
        "2 – 2 +3 #+",
        "10 – 10 +1 #+$",
    ]
    for line in expected:  # fmt: skip
        assert re.search(line, text, re.M), line
    assert "[tokens]" not in text and narrow(text)


def test_the_numbers_are_those_of_the_run(chat_model, tmp_path, capsys):
    """The README of a run on the same file says what the command says."""
    data = write_lines(tmp_path / "pairs.jsonl", ROWS)
    assert main(train("dpo", chat_model, data, tmp_path / "run", "--max-prompt-tokens", "10")) == 0
    card = (tmp_path / "run" / "README.md").read_text()
    capsys.readouterr()
    words = ["data", data, "--model", chat_model, "--max-prompt-tokens", "10", "--max-response-tokens", "8"]
    counts = report(words, capsys)["sources"][data]
    assert f"{counts['kept']} pairs of at most" in card and f"{counts['cut_prompts']} prompt" in card
    assert all(f"{reason} ({number})" in card for reason, number in counts["dropped"].items())


def turns(*contents: str) -> list[dict]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents)]


def shown(text: str) -> str:
    """The lines of tokens, joined. A line that begins with a token outside the loss begins with a bar."""
    return "".join(line[2:] for line in text.splitlines() if line.startswith(("  [", "  |"))).replace("||", "|")


def narrow(text: str) -> bool:
    """Whether no line has more than 80 columns, except for those with the name of a file."""
    return all(len(line) <= 80 for line in text.splitlines() if ".jsonl" not in line)


def test_tokens_in_the_loss_have_brackets_and_others_bars(chat_model, tmp_path, capsys):
    """With `last` the first answer is part of the prompt. With `all` it is in the loss, and the user's turn is not.

    A turn of the user has 9 tokens here, the first answer 14, and the opening of an answer 11: 43 before the last
    answer, which has 2. After the first opening there are 2 + 1 + 9 + 11 + 2.
    """
    data = write_lines(tmp_path / "chat.jsonl", [{"messages": turns("q", "a", "r", "b")}])
    words = ["data", data, "--model", chat_model, "--no-progress"]
    opening, end = "|<|im_start|>|a|s|s|i|s|t|a|n|t|\\n|", "<|im_end|>"
    user = "|<|im_start|>|u|s|e|r|\\n|{}|<|im_end|>|\\n"
    assert main(words) == 0
    text = capsys.readouterr().out
    assert shown(text) == f"{user.format('q')}{opening}a|{end}|\\n{user.format('r')}{opening}[b][{end}]"
    assert "prompt, 43 tokens, not in the loss" in text and "response, 2 tokens, weight +1" in text
    assert main([*words, "--train-on", "all"]) == 0
    text = capsys.readouterr().out
    first = f"{user.format('q')}{opening}"
    assert shown(text) == f"{first}[a][{end}]|\\n{user.format('r')}{opening}[b][{end}]"
    assert "response, 25 tokens, 4 of them in the loss, weight +1" in text


def test_colours_are_for_terminals_only_and_can_be_switched_off(chat_model, tmp_path, capsys, monkeypatch):
    data = write_lines(tmp_path / "a.jsonl", [{"prompt": "q", "completion": "a\x1b[31m\x07"}])
    words = ["data", data, "--model", chat_model, "--no-progress"]
    assert main(words) == 0
    plain = capsys.readouterr().out
    assert "\x1b" not in plain and "[\\x1b][[][3][1][m][\\x07]" in plain
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(words) == 0
    painted = capsys.readouterr().out
    assert "\x1b[30;42ma\x1b[0m" in painted and "\x1b[90mq\x1b[0m" in painted and "\x07" not in painted
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(words) == 0
    assert capsys.readouterr().out == plain


def test_the_two_sides_of_a_pair_have_opposite_weights_and_prompts_alone_have_none(chat_model, tmp_path, capsys):
    data = write_lines(tmp_path / "pairs.jsonl", ROWS[:1])
    words = ["data", data, "--model", chat_model]
    row = report(words, capsys)["shown"][0]
    assert row["prompt"] == {"tokens": ["a", "a"], "weights": [0, 0]}
    assert row["chosen"] == {"tokens": ["b", "<end>"], "weights": [1, 1]}
    assert row["rejected"] == {"tokens": ["c", "<end>"], "weights": [-1, -1]}
    labelled = [{"prompt": "a", "completion": "b", "label": label} for label in (True, False)]
    kto = report(["data", write_lines(tmp_path / "kto.jsonl", labelled), "--model", chat_model], capsys)["shown"]
    assert [row["response"]["weights"] for row in kto] == [[1, 1], [-1, -1]]
    assert list(report([*words, "--as", "prompts"], capsys)["lengths"]) == ["prompt"]
    assert list(report([*words, "--as", "sft"], capsys)["lengths"]) == ["prompt", "response"]


@pytest.mark.parametrize(
    ("row", "what", "names"),
    [
        (ROWS[0], "pairs", ["prompt", "chosen", "rejected"]),
        ({"prompt": "a", "completion": "b", "label": False}, "examples", ["prompt", "response"]),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "examples", None),
        ({"instruction": "a", "output": "b"}, "examples", None),
        ({"prompt": "a"}, "prompts", ["prompt"]),
    ],
)
def test_the_first_row_decides_what_the_data_are_for(row, what, names, chat_model, tmp_path, capsys):
    data = write_lines(tmp_path / "a.jsonl", [row])
    found = report(["data", data, "--model", chat_model], capsys)
    assert found["sources"][data]["what"] == what and list(found["lengths"]) == (names or ["prompt", "response"])
    assert found["shown"][0].get("label") == row.get("label")


def test_a_seed_chooses_the_rows_and_long_texts_are_shortened(chat_model, tmp_path, capsys):
    rows = [{"prompt": f"{i}" + "x" * 40, "completion": "y" * 200} for i in range(30)]
    words = ["data", write_lines(tmp_path / "a.jsonl", rows), "--model", chat_model, "--max-prompt-tokens", "41"]
    chosen = [[row["row"] for row in report([*words, "--seed", seed], capsys)["shown"]] for seed in ("0", "0", "1")]
    assert chosen[0] == chosen[1] != chosen[2] and len(chosen[0]) == 3 and chosen[0] == sorted(chosen[0])
    words[-1] = "5"
    assert main([*words, "--max-response-tokens", "91", "--no-progress"]) == 0
    text = capsys.readouterr().out
    assert narrow(text) and "… 11 tokens …" in text


def test_several_files_are_counted_apart_and_mixed(chat_model, tmp_path, capsys):
    one, two = (write_lines(tmp_path / f"{name}.jsonl", rows) for name, rows in (("a", ROWS[:2]), ("b", ROWS[2:5])))
    words = ["data", one, two, "--model", chat_model]
    found = report(words, capsys)
    assert [found["sources"][name]["kept"] for name in (one, two)] == [2, 2] and found["rows"] == 4
    assert report([*words, "--data-weights", "1", "1", "--limit", "1"], capsys)["rows"] == 2
    assert main([*words, "--no-progress"]) == 0 and "rows of an epoch" in capsys.readouterr().out


def test_a_file_that_is_given_twice_is_counted_twice(chat_model, tmp_path, capsys):
    data = write_lines(tmp_path / "a.jsonl", ROWS[:2])
    found = report(["data", data, data, "--model", chat_model], capsys)
    assert [(name, counts["kept"]) for name, counts in found["sources"].items()] == [(data, 2), (f"{data} (2)", 2)]
    assert found["rows"] == 4


def test_a_conversation_with_several_answers_has_the_sum_of_both_limits(chat_model, tmp_path, capsys):
    turns = [{"role": role, "content": "a" * 8} for _ in range(2) for role in ("user", "assistant")]
    words = ["data", write_lines(tmp_path / "a.jsonl", [{"messages": turns}]), "--model", chat_model]
    words += ["--max-prompt-tokens", "60", "--max-response-tokens", "20", "--train-on", "all"]
    found = report(words, capsys)["lengths"]["response"]
    assert 20 < found["maximum"] <= 80 and found["limit_with_prompt"] == 80
    assert main([*words, "--no-progress"]) == 0 and "limit 20, with prompt 80" in capsys.readouterr().out


def test_a_world_has_targets_and_prompts(capsys):
    found = report(["data", "world:sentiment", "--model", "lab-gpt2", "--limit", "4"], capsys)
    assert found["sources"]["world:sentiment"]["kept"] == 4 and list(found["lengths"]) == ["prompt", "response"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.jsonl"], "There is no data file missing.jsonl"),
        (["world:sentiment", "--as", "pairs"], "sampled from the model before training, so --as pairs"),
        (["PAIRS", "--as", "kto", "--train-on", "all"], "--train-on all has no effect for these data"),
        (["PAIRS", "--rows", "-1"], "--rows must be a whole number of at least 0"),
        (["PAIRS", "--chat", "on", "--model", "lab-gpt2"], "no chat template, so chat cannot be on"),
        (["PAIRS", "--data-split", "test"], "--data-split test has no effect"),
        (["PAIRS", "--max-prompt-tokens", "90", "--max-response-tokens", "90"], "are 180 tokens together"),
        (["PAIRS", "--row", "3"], "data has no option --row. Do you mean --rows?"),
        (["--data", "PAIRS"], "data has no option --data. Leave it out, and give the files alone"),
    ],
)
def test_bad_inputs_have_one_sentence(words, message, chat_model, tmp_path, capsys):
    data = write_lines(tmp_path / "pairs.jsonl", ROWS)
    assert main(["data", "--model", chat_model, *(data if word == "PAIRS" else word for word in words)]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1] and len(said) == 1


def test_nothing_is_written(chat_model, tmp_path, capsys, monkeypatch):
    data = write_lines(tmp_path / "pairs.jsonl", ROWS)
    monkeypatch.chdir(tmp_path)
    before = list(tmp_path.rglob("*"))
    assert main(["data", data, "--model", chat_model]) == 0
    assert list(tmp_path.rglob("*")) == before
