"""The loader: each form, each reason for dropping a row, each way a file can be broken."""

import csv
import gzip
import io
import json
import time
from pathlib import Path

import pytest
from tiny_models import tiny_tokenizer

from rlhf_lab.data import preferences as data
from rlhf_lab.data.preferences import PreferenceTexts, Source, load_preferences, tokenise
from rlhf_lab.errors import LabError
from rlhf_lab.policies import hub_lookup

HH_FILE = Path(__file__).parents[2].parent / "shared" / "data" / "hh-harmless-base-test.jsonl.gz"

PLAIN = [
    {"prompt": "One and one?", "chosen": " Two.", "rejected": " Three."},
    {"prompt": 'A "quoted", word\nand a line?', "chosen": " Ja, ☂.", "rejected": " No."},
]


def turns(*contents: str, first: str = "user") -> list[dict[str, str]]:
    """A conversation in which user and assistant take turns."""
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def write(path: Path, rows: list[dict]) -> str:
    """`rows` in the format of the file's ending."""
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind == ".jsonl":
        raw = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    elif kind == ".json":
        raw = json.dumps(rows, indent=1).encode()
    elif kind == ".csv":
        out = io.StringIO(newline="")
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        raw = out.getvalue().encode()
    else:
        import pyarrow
        import pyarrow.parquet

        sink = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
        raw = sink.getvalue()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return str(path)


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet"])
def test_every_file_format_gives_the_same_texts(tmp_path, kind, packed):
    texts = load_preferences(write(tmp_path / f"pairs.{kind}{packed}", PLAIN))
    assert texts.prompts == [row["prompt"] for row in PLAIN]
    assert texts.chosen == [row["chosen"] for row in PLAIN]
    assert texts.rejected == [row["rejected"] for row in PLAIN]
    assert texts.form == "plain" and not texts.dropped


def test_json_lines_under_the_ending_json_and_a_list_under_data_are_read(tmp_path):
    lines = tmp_path / "a.json"
    lines.write_text("\n".join(json.dumps(row) for row in PLAIN))
    nested = tmp_path / "b.json"
    nested.write_text(json.dumps({"data": PLAIN}))
    assert load_preferences(str(lines)).chosen == load_preferences(str(nested)).chosen == [" Two.", " Ja, ☂."]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_json_object_of_lists_is_read_by_split(tmp_path, split):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"train": PLAIN[:1], "test": PLAIN[1:]}))
    assert load_preferences(Source(str(path), split)).chosen == {"train": [" Two."], "test": [" Ja, ☂."]}[split]


def test_one_row_whose_fields_are_turns_is_not_taken_for_splits(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"chosen": turns("Hi", "a"), "rejected": turns("Hi", "b")}))
    assert load_preferences(str(path)).chosen == [" a"]


def test_parquet_with_two_columns_of_one_name_or_with_bytes_that_are_no_text_is_refused(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    column = pyarrow.array(["a"])
    pyarrow.parquet.write_table(pyarrow.table([column] * 3, names=["prompt", "chosen", "chosen"]), path)
    with pytest.raises(LabError, match=r"a\.parquet: the column `chosen` appears more than once"):
        load_preferences(str(path))
    broken = pyarrow.array([b"caf\xe9"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table([column, broken, column], names=["prompt", "chosen", "rejected"]), path)
    with pytest.raises(LabError, match=r"a\.parquet: a text is not UTF-8 \(the byte 0xe9\)"):
        load_preferences(str(path))


EXPECTED = ("\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Help\n\nAssistant:", " Sure.", " No.")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    "row",
    [
        # whole conversations, the prompt implicit
        {"chosen": turns("Hi", "Yes?", "Help", "Sure."), "rejected": turns("Hi", "Yes?", "Help", "No.")},
        # an explicit prompt and the last turn alone
        {
            "prompt": turns("Hi", "Yes?", "Help"),
            "chosen": turns("Sure.", first="assistant"),
            "rejected": turns("No.", first="assistant"),
        },
        # an explicit prompt that the conversations repeat
        {
            "prompt": turns("Hi", "Yes?", "Help"),
            "chosen": turns("Hi", "Yes?", "Help", "Sure."),
            "rejected": turns("Hi", "Yes?", "Help", "No."),
        },
        # the last question alone as a text beside whole conversations
        {
            "prompt": "Help",
            "chosen": turns("Hi", "Yes?", "Help", "Sure."),
            "rejected": turns("Hi", "Yes?", "Help", "No."),
        },
        # a conversation as prompt, the answers as texts
        {"prompt": turns("Hi", "Yes?", "Help"), "chosen": "Sure.", "rejected": "No."},
    ],
)
def test_conversations_become_the_same_prompt_and_responses_however_they_are_stored(tmp_path, row, kind):
    texts = load_preferences(write(tmp_path / f"a.{kind}", [row]))
    assert (texts.prompts[0], texts.chosen[0], texts.rejected[0]) == EXPECTED
    assert texts.form == "conversational"


def test_a_text_prompt_with_lone_answers_is_one_user_turn(tmp_path):
    row = {"prompt": "Help", "chosen": turns("Sure.", first="assistant"), "rejected": turns("No.", first="assistant")}
    assert load_preferences(write(tmp_path / "a.jsonl", [row])).prompts == ["\n\nHuman: Help\n\nAssistant:"]


def test_a_chat_template_writes_conversational_prompts(tmp_path):
    tokenizer = tiny_tokenizer(["hi"])
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    row = {"chosen": turns("Hi", "Yes?", "Help", "Sure."), "rejected": turns("Hi", "Yes?", "Help", "No.")}
    texts = load_preferences(write(tmp_path / "a.jsonl", [row]), tokenizer=tokenizer)
    assert texts.prompts == ["<user>Hi<assistant>Yes?<user>Help<assistant>"]
    assert texts.chosen == ["Sure."]


HEAD = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Help\n\nAssistant:"
DIALOGUES = [
    ({"chosen": HEAD + " Sure.", "rejected": HEAD + " No."}, None),
    ({"chosen": HEAD + " Sure.", "rejected": HEAD.replace("Yes", "What") + " No."}, data.PART_BEFORE),
    ({"chosen": HEAD + " Sure.", "rejected": "\n\nHuman: Hi\n\nAssistant: Yes?"}, data.PART_BEFORE),
    ({"chosen": HEAD + " ", "rejected": HEAD + " No."}, data.EMPTY_RESPONSE),
    ({"chosen": HEAD + " No.", "rejected": HEAD}, data.EMPTY_RESPONSE),
    ({"chosen": HEAD + " No.", "rejected": HEAD + " No."}, data.EQUAL),
    ({"chosen": HEAD + " No.", "rejected": None}, data.MISSING),
    ({"chosen": HEAD + " No."}, data.MISSING),
    ({"chosen": HEAD + " No.\n\nHuman: Oh?", "rejected": HEAD + " No."}, data.NO_ASSISTANT),
    ({"chosen": "No turns at all", "rejected": HEAD + " No."}, data.NO_ASSISTANT),
]


def test_dialogues_are_cut_before_the_last_answer_and_each_unusable_one_is_counted_by_its_reason(tmp_path):
    texts = load_preferences(write(tmp_path / "hh.jsonl.gz", [row for row, _ in DIALOGUES]))
    assert (texts.prompts, texts.chosen, texts.rejected) == ([HEAD], [" Sure."], [" No."])
    reasons = [reason for _, reason in DIALOGUES if reason]
    assert texts.dropped == {reason: reasons.count(reason) for reason in reasons}
    assert texts.form == "AnthropicHH"
    for words in ("1 pair;", "dropped 9 rows", "dialogues differ before the last turn (2)", "empty response (2)"):
        assert words in texts.summary()


def test_plain_and_conversational_rows_are_dropped_for_the_same_reasons(tmp_path):
    plain = [*PLAIN, PLAIN[0] | {"prompt": " "}, PLAIN[0] | {"chosen": ""}, PLAIN[0] | {"rejected": " Two."}]
    assert load_preferences(write(tmp_path / "a.csv", plain)).dropped == {
        data.EMPTY_PROMPT: 1, data.EMPTY_RESPONSE: 1, data.EQUAL: 1,
    }  # fmt: skip
    good = {"chosen": turns("Hi", "a"), "rejected": turns("Hi", "b")}
    rows = [
        good,
        good | {"rejected": turns("Ho", "b")},
        good | {"rejected": turns("Hi", "b", "c")},
        good | {"rejected": turns("Hi", "")},
        good | {"rejected": []},
        {"chosen": turns("a", first="assistant"), "rejected": turns("b", first="assistant")},
    ]
    assert load_preferences(write(tmp_path / "b.json", rows)).dropped == {
        data.PART_BEFORE: 1, data.NO_ASSISTANT: 1, data.EMPTY_RESPONSE: 2, data.EMPTY_PROMPT: 1,
    }  # fmt: skip


@pytest.mark.skipif(not HH_FILE.exists(), reason="the AnthropicHH file is not beside the project")
def test_the_real_hh_file_is_counted_as_by_an_independent_count():
    """The count splits each dialogue at its turns' openings instead of searching from the end."""
    rows = [json.loads(line) for line in gzip.decompress(HH_FILE.read_bytes()).decode().splitlines()]
    parted = empty = 0
    for row in rows:
        (*a, last_a), (*b, last_b) = (row[name].split("\n\nAssistant:") for name in ("chosen", "rejected"))
        parted += a != b
        empty += a == b and not (last_a.strip() and last_b.strip())
    texts = load_preferences(str(HH_FILE))
    assert len(rows) == 2312 and parted > 0 and empty > 0
    assert texts.dropped == {data.PART_BEFORE: parted, data.EMPTY_RESPONSE: empty}
    assert len(texts) == 2312 - parted - empty
    whole = {(row["chosen"], row["rejected"]) for row in rows}
    joined = zip(texts.prompts, texts.chosen, texts.rejected, strict=True)
    assert all((p + c, p + r) in whole for p, c, r in joined)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", r"a\.jsonl is empty"),
        ("a.jsonl", b"\n \n", r"a\.jsonl is empty"),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0), r"a\.jsonl\.gz is empty"),
        ("a.json", b"[]", "contains no rows"),
        ("a.csv", b"prompt,chosen,rejected\n", "contains no rows"),
        ("a.jsonl", b'{"chosen": "a", "rejected": "b"}\n\n{"chosen": "a"\n', "line 3: malformed JSON"),
        ("a.json", b'[{"chosen": "a"},\n {"chosen" "b"}]', "line 2: malformed JSON"),
        ("a.jsonl", b"[1, 2]\n", "line 1: expected an object with named fields, found list"),
        ("a.json", b"3", "expected a list of objects, found int"),
        ("a.jsonl", b'{"question": "a", "answer": "b"}\n', "columns answer, question. Expected are `chosen` and"),
        ("a.csv", b"prompt,good,bad\n1,2,3\n", "columns bad, good, prompt. Expected"),
        ("a.csv", b"prompt,chosen,rejected\na,b,c\na,b, c, d\n", "line 3: more cells than the header's 3"),
        ("a.jsonl", b'{"chosen": "a"}\n{"chosen": "caf\xe9"}\n', "line 2: the byte 0xe9 is not UTF-8"),
        ("a.jsonl.gz", b"not gzip", "not a complete gzip file"),
        ("a.jsonl.gz", gzip.compress(b'{"chosen": "a"}' * 99, mtime=0)[:-12], "not a complete gzip file"),
        ("a.parquet", b"not parquet", "not a readable parquet file"),
        ("a.txt", b"text", r"a\.txt: unknown type of file. Known types are \.json, \.jsonl, \.csv, \.parquet"),
        ("a.jsonl", b'{"prompt": "a", "chosen": "a", "rejected": 3}\n', "line 1: `rejected` is of type int"),
        ("a.jsonl", b'{"chosen": [{"role": "user"}, 3], "rejected": []}\n', "line 1: a turn of `chosen` must be an"),
        ("a.jsonl", b'{"chosen": [{"role": "u", "content": 3}], "rejected": []}\n', "line 1: the `content` of a turn"),
        ("a.jsonl", b'{"chosen": "a", "rejected": []}\n', "line 1: `chosen` and `rejected` must both be"),
        ("a.jsonl", b'{"chosen": "a", "rejected": "b"}\n', r"gives no pair\. Dropped 1 row: .*last turn is not"),
        ("a.csv", b"prompt,chosen,chosen,rejected\na,b,c,d\n", "line 1: the column `chosen` appears more than once"),
        ("a.jsonl", b'{"chosen": "a", "chosen": "b"}\n', "line 1: the field `chosen` appears more than once"),
        ("a.jsonl", b'{"a": [{"role": "x", "role": "y"}]}\n', "line 1: the field `role` appears more than once"),
        ("a.json", b'[{"chosen": "a", "chosen": "b"}]', "the field `chosen` appears more than once"),
        ("a.jsonl", b'{"a": ' + b"9" * 5000 + b"}", "line 1: malformed JSON"),
        ("a.jsonl", b"[" * 100_000, "line 1: the JSON is nested too deeply"),
        ("a.jsonl", b'{}\n{"prompt": "ab\\ud83d"}\n', r"line 2: `prompt` contains a lone .*U\+D83D.*character 3"),
        ("a.json", b'[{"chosen": [{"content": "\\udc00"}]}]', "row 1: `chosen` contains a lone surrogate"),
        ("a.json", b'{"test": [{"chosen": "a"}], "dev": [{"chosen": "a"}]}', "splits test, dev, but no split 'train'"),
    ],
)  # fmt: skip
def test_a_broken_file_is_refused_with_its_name_and_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LabError, match=message) as caught:
        load_preferences(str(tmp_path / name))
    assert name in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(LabError, match="There is no data file"):
        load_preferences(str(tmp_path / "nothing.jsonl"))
    with pytest.raises(LabError, match="There is no data file"):
        load_preferences("nothing.csv")
    with pytest.raises(LabError, match="is a folder"):
        load_preferences(str(tmp_path))


def no_network(monkeypatch, tmp_path):
    """The Hub at a port of this machine where nothing listens, and an empty cache."""
    import datasets.config
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def test_without_a_network_a_hub_name_fails_at_once_in_one_sentence(monkeypatch, tmp_path, capfd):
    import datasets  # noqa: F401  the first import is not part of what is timed

    no_network(monkeypatch, tmp_path)
    start = time.monotonic()
    with pytest.raises(LabError, match=r"'some/pairs' is not on this machine and the Hugging Face Hub") as caught:
        load_preferences(Source("some/pairs", revision="v1"))
    assert time.monotonic() - start < 20  # the libraries' own retries take longer than that
    assert "\n" not in str(caught.value) and "Retrying" not in capfd.readouterr().err


def test_a_hub_data_set_is_asked_for_with_its_revision_split_and_folder(monkeypatch):
    import datasets

    asked = []
    monkeypatch.setattr(hub_lookup, "can_download", lambda *question: asked.append(question) or True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or PLAIN)
    texts = load_preferences(Source("some/pairs", "test", revision="abc", folder="harmless-base"))
    assert asked == [
        ("dataset", "some/pairs", "abc"),
        (("some/pairs",), {"split": "test", "revision": "abc", "data_dir": "harmless-base"}),
    ]
    assert len(texts) == 2 and texts.source == "some/pairs"


def texts_of(*rows: tuple[str, str, str]) -> PreferenceTexts:
    prompts, chosen, rejected = (list(column) for column in zip(*rows, strict=True))
    return PreferenceTexts(prompts, chosen, rejected, source="test")


def test_prompt_and_response_are_tokenised_apart_and_the_end_token_is_added_once():
    """ "ab" is one token of this tokenizer; across the boundary a|b it must not be."""
    tokenizer = tiny_tokenizer(["ababab"] * 50)
    end = tokenizer.eos_token_id
    a, b, ab = (tokenizer(text)["input_ids"] for text in ("a", "b", "ab"))
    assert len(ab) == 1
    pairs, report = tokenise(texts_of(("a", "b", "ba")), tokenizer, None, None, end)
    assert pairs.prompts.tolist() == [a]
    assert pairs.responses.tolist() == [[[*b, end], [*tokenizer("ba")["input_ids"], end]]]
    assert (report.kept, report.truncated_prompts, report.truncated_responses) == (1, 0, 0)
    pairs, _ = tokenise(texts_of(("a", "b", "ba")), tokenizer, None, None, None)
    assert pairs.responses.tolist()[0][0] == b


def test_truncation_keeps_a_prompt_s_end_and_a_response_s_beginning_and_is_counted():
    """One id a letter. Limits 3 and 4 (end token included): "abcde" keeps cde; "wxyz" loses its end token, "wx"
    keeps it; "wxyzA" and "wxyzB" become equal; a response equal to the limit with its end token is whole."""
    tokenizer = tiny_tokenizer(["a"], vocab=258)
    end = tokenizer.eos_token_id
    ids = {c: tokenizer(c)["input_ids"][0] for c in "abcdewxyzAB"}
    texts = texts_of(("abcde", "wxyz", "wx"), ("a", "wxyzA", "wxyzB"), ("abc", "wxy", "x"))
    pairs, report = tokenise(texts, tokenizer, 3, 4, end)
    assert pairs.prompts.tolist() == [[ids[c] for c in "cde"], [ids[c] for c in "abc"]]
    assert pairs.responses.tolist() == [
        [[ids[c] for c in "wxyz"], [ids["w"], ids["x"], end]],
        [[ids["w"], ids["x"], ids["y"], end], [ids["x"], end]],
    ]
    assert (report.kept, report.truncated_prompts, report.truncated_responses, report.longest) == (2, 1, 1, 7)
    assert report.dropped == {data.EQUAL_AFTER: 1}
    assert "equal responses after truncation (1)" in report.summary()


def test_a_response_that_holds_the_end_token_is_dropped_and_counted():
    tokenizer = tiny_tokenizer(["a"])
    pairs, report = tokenise(
        texts_of(("a", "b<end>d", "c"), ("a", "b", "c")), tokenizer, None, None, tokenizer.eos_token_id
    )
    assert len(pairs) == 1 and report.dropped == {data.HOLDS_END: 1}
    with pytest.raises(
        LabError, match=r"the text of a response contains the end token \(1\). The end token may only be the"
    ):
        tokenise(texts_of(("a", "b<end>d", "c")), tokenizer, None, None, tokenizer.eos_token_id)


def test_a_tokenizer_s_opening_token_stands_once_before_the_prompt_and_survives_truncation():
    tokenizer = tiny_tokenizer(["a"], vocab=258, bos=True)
    a, b, c = (tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in "abc")
    pairs, _ = tokenise(texts_of(("abc", "a", "b"), ("<s>a", "a", "b")), tokenizer, 3, None, tokenizer.eos_token_id)
    assert pairs.prompts.tolist() == [[1, b, c], [1, a]]
    assert pairs.responses.tolist()[0] == [[a, 0], [b, 0]]


def test_limits_below_one_are_refused():
    with pytest.raises(LabError, match="max_response_tokens must be at least 1"):
        tokenise(texts_of(("a", "b", "c")), tiny_tokenizer(["a"]), None, 0, 0)


COMPARISON = {
    "info": {"id": "t3_1", "post": "My cat sat.", "title": "Cat", "subreddit": "pets", "site": None, "article": None},
    "summaries": [
        {"text": " Cat sat.", "policy": "sup1", "note": ""},
        {"text": " A cat", "policy": "sup2", "note": ""},
    ],
    "choice": 0,
    "worker": "w",
    "batch": "batch3",
    "split": "train",
    "extra": {"confidence": None},
}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_comparisons_of_summaries_become_pairs(tmp_path, kind):
    """The form of openai/summarize_from_feedback, also with the summaries stored by column."""
    by_column = COMPARISON | {"choice": 1}
    if kind == "jsonl":
        by_column["summaries"] = {"text": [" Cat sat.", " A cat"]}
    texts = load_preferences(write(tmp_path / f"a.{kind}", [COMPARISON, by_column]))
    prompt = "SUBREDDIT: r/pets\n\nTITLE: Cat\n\nPOST: My cat sat.\n\nTL;DR:"
    assert texts.prompts == [prompt, prompt] and texts.form == "comparisons"
    assert (texts.chosen, texts.rejected) == ([" Cat sat.", " A cat"], [" A cat", " Cat sat."])


def test_a_comparison_of_an_article_and_one_without_a_choice(tmp_path):
    article = COMPARISON | {"info": COMPARISON["info"] | {"post": None, "article": "News."}}
    texts = load_preferences(write(tmp_path / "a.jsonl", [article, COMPARISON | {"choice": None}]))
    assert texts.prompts == ["Article:\nNews.\n\nTL;DR:"] and texts.dropped == {data.MISSING: 1}
    with pytest.raises(LabError, match="line 1: `choice` is 2"):
        load_preferences(write(tmp_path / "a.jsonl", [COMPARISON | {"choice": 2}]))
    for summaries in ([{"text": "a"}], 3, {"text": 3}, {"text": ["a"]}, ["a", 3]):
        with pytest.raises(LabError, match="line 1: expected `info` with a post"):
            load_preferences(write(tmp_path / "a.jsonl", [COMPARISON | {"summaries": summaries}]))


def test_responses_that_differ_in_white_space_alone_are_dropped_and_counted(tmp_path):
    rows = [*PLAIN, PLAIN[0] | {"rejected": "  Two.\n"}, PLAIN[0] | {"rejected": " T wo."}]
    texts = load_preferences(write(tmp_path / "a.jsonl", rows))
    assert len(texts) == 3 and texts.dropped == {data.SPACE_ONLY: 1}
    assert "responses differ only in white space (1)" in texts.summary()


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("latin-1", "line 2: the byte 0xe9 is not UTF-8"),
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16"),
        ("utf-32", "UTF-16"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "csv", "json"])
def test_another_encoding_is_named(tmp_path, encoding, message, kind):
    text = {
        "jsonl": '{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "caf\xe9", "chosen": "b"}\n',
        "csv": "prompt,chosen,rejected\ncaf\xe9,b,c\n",
        "json": '[{"prompt": "a", "chosen": "b", "rejected": "c"},\n{"prompt": "caf\xe9"}]',
    }[kind]
    path = tmp_path / f"a.{kind}"
    path.write_bytes(text.encode(encoding))
    with pytest.raises(LabError, match=message) as caught:
        load_preferences(str(path))
    assert path.name in str(caught.value)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "json"])
def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path, kind):
    path = Path(write(tmp_path / f"a.{kind}", PLAIN))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_preferences(str(path)).prompts == [row["prompt"] for row in PLAIN]


def test_a_line_of_a_hundred_megabytes_is_refused_without_being_held_three_times(tmp_path):
    """Line 2 has 100 MB. The reader stops at its limit: the memory it took at most is a few times that, not the
    line's. Python's own allocations are counted, which hold every bytes and str of it."""
    import tracemalloc

    from rlhf_lab.data.readers import LONGEST_LINE

    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(json.dumps(PLAIN[0]).encode() + b"\n" + b'{"prompt": "')
        for _ in range(100):
            file.write(b"a" * 2**20)
        file.write(b'", "chosen": "a", "rejected": "b"}\n')
    tracemalloc.start()
    try:
        with pytest.raises(LabError, match=r"a\.jsonl, line 2: longer than 32 MB"):
            load_preferences(str(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2.5 * LONGEST_LINE


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["question", "chosen", "rejected"], "last turn is not the assistant's.*rename `question` to `prompt`"),
        (["prompt", "accepted", "rejected"], "Perhaps rename `accepted` to `chosen`"),
        (["prompt", "Chosen", "Rejected"], "Perhaps rename `Chosen` to `chosen` and `Rejected` to `rejected`"),
        (["prompt", "choosen", "rejected"], "Perhaps rename `choosen` to `chosen`"),
        (["x", "y_w", "y_l"], "rename `x` to `prompt` and `y_w` to `chosen` and `y_l` to `rejected`"),
    ],
)
def test_columns_of_other_names_are_refused_with_what_to_rename(tmp_path, columns, message):
    path = write(tmp_path / "a.csv", [dict(zip(columns, "abc", strict=True))])
    with pytest.raises(LabError, match=message):
        load_preferences(path)


def test_a_limit_stops_at_so_many_usable_pairs(tmp_path):
    rows = [PLAIN[0] | {"prompt": f"{i}", "rejected": " Two." if i == 1 else " No."} for i in range(9)]
    texts = load_preferences(Source(write(tmp_path / "a.jsonl", rows), limit=3))
    assert texts.prompts == ["0", "2", "3"] and texts.dropped == {data.EQUAL: 1}
    with pytest.raises(LabError, match="limit must be at least 1"):
        load_preferences(Source(write(tmp_path / "a.jsonl", rows), limit=0))


def test_a_cut_prompt_and_two_cut_responses_are_counted_under_their_own_names():
    tokenizer = tiny_tokenizer(["one two three four five six"])
    texts = PreferenceTexts(["one two three four"], ["five six one two"], ["six five two one"])
    _, report = tokenise(texts, tokenizer, 2, 3, tokenizer.eos_token_id)
    assert (report.truncated_prompts, report.truncated_responses) == (1, 2)


def test_a_parquet_file_is_read_to_its_end(tmp_path):
    """2,500 rows are more than two of the batches in which they are read."""
    rows = [{"prompt": f"{i}?", "chosen": f" {i}", "rejected": " no"} for i in range(2500)]
    texts = load_preferences(write(tmp_path / "many.parquet", rows))
    assert (len(texts), texts.prompts[-1]) == (2500, "2499?")
